"""The aggregation contract: terms of the clients' loss, and the server's step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import Tensor

from fedbench.base.options import option
from fedbench.base.planned_task import PlannedTask
from fedbench.method.hooks import hook, optional_hook
from fedbench.method.param import Fidelity, Param, Values
from fedbench.method.task import Task
from fedbench.method.updates import ClientUpdates


@dataclass(frozen=True)
class Aggregation:
    """Base of all aggregations; by itself FedAvg, the mean weighted by `weighting` (McMahan et al. 2017).

    An aggregation is a frozen dataclass called ``Aggregation`` in a file of ``methods/aggregation/``. It works with the
    parameters of any method.
    """

    weighting: Literal["samples", "uniform"] = option(
        "samples", "weights of the clients in every mean over the cohort: their training samples n_k, or all equal"
    )

    fidelity: ClassVar[Fidelity] = "our reading"  # how close it is to its source; listings print it
    citation: ClassVar[str] = "McMahan et al. 2017, arXiv 1602.05629"
    search: ClassVar[Mapping[str, Mapping[str, tuple[Any, ...]]]] = {}  # ranges, as in `Method`
    wants_gradient: ClassVar[bool] = False  # clients also send the mean of their gradients: `ClientUpdates.gradient`

    @optional_hook
    def check(self, task: PlannedTask, run: Mapping[str, Any]) -> None:
        """Raise ValueError if the options do not fit the task. Called when a sweep is planned, before anything starts.

        `run`: the run's config as in a sweep file, with all defaults, such as ``run["local"]["lr"]``.
        """

    @hook
    def search_space(self) -> Mapping[str, Mapping[str, tuple[Any, ...]]]:
        """What `tune:` searches: {field, or dotted path of the run: range}. Override it if the ranges depend on options.

        Called when a sweep with `tune:` is planned. By default the class attribute `search`.
        """
        return self.search

    @optional_hook
    def extra_loss(self, p: Values, received: Values) -> Tensor:  # type: ignore[empty-body]
        """A scalar added to each client's mean loss.

        `received`: the aggregated parameters as the server sent them.
        Called in every training step of a round, not in fine-tuning, and not if the method has no aggregated parameters.
        """

    @hook
    def params(self, spec: Mapping[str, Param], task: Task) -> dict[str, Param]:
        """The aggregation's own tensors by name; `spec` holds the method's. Clients read those with home "server" or "local".

        Called before a run starts.
        """
        return {}

    @hook
    def merge(self, server: Values, updates: ClientUpdates, mean: Values) -> dict[str, Tensor]:
        """{name: value} that replace values in `mean`, which holds the aggregated parameters after the method's own merge.

        Local names have a row for each client of the cohort, [K, ...].
        Called at the end of every round, after the method's own `merge`.
        """
        return {}
