"""The method contract: everything that the author of a method or an aggregation imports."""

from fedbench.base import rng
from fedbench.base.options import option
from fedbench.base.planned_task import PlannedTask
from fedbench.method.aggregation import Aggregation
from fedbench.method.building_blocks import class_sums, cosine_logits, linear_head, log_prior, tokens
from fedbench.method.class_prompt import ClassPrompt
from fedbench.method.context_prompt import ContextPrompt
from fedbench.method.hooks import HookError, only_if
from fedbench.method.input_prompt import InputPrompt
from fedbench.method.method import Method
from fedbench.method.metric import Metric, Predictions
from fedbench.method.param import Fidelity, Home, Param, Phases, Taps, Values
from fedbench.method.server_optimizers import AdaptiveServerOptimizer, ServerOptimizer
from fedbench.method.task import Task
from fedbench.method.updates import ClientUpdates
from fedbench.method.uploads import CompressedUploads

__all__ = [
    "AdaptiveServerOptimizer",
    "Aggregation",
    "ClassPrompt",
    "ClientUpdates",
    "CompressedUploads",
    "ContextPrompt",
    "Fidelity",
    "Home",
    "HookError",
    "InputPrompt",
    "Method",
    "Metric",
    "Param",
    "Phases",
    "PlannedTask",
    "Predictions",
    "ServerOptimizer",
    "Taps",
    "Task",
    "Values",
    "class_sums",
    "cosine_logits",
    "linear_head",
    "log_prior",
    "only_if",
    "option",
    "rng",
    "tokens",
]
