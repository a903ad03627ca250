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
        "samples",
        "weights of the clients in every mean over the cohort: their training samples n_k, or all equal",
        added_later=True,
    )

    fidelity: ClassVar[Fidelity] = "our reading"  # how close it is to its source; listings print it
    citation: ClassVar[str] = "McMahan et al. 2017, arXiv 1602.05629"
    search: ClassVar[Mapping[str, Mapping[str, tuple[Any, ...]]]] = {}  # ranges, as in `Method`
    wants_gradient: ClassVar[bool] = False  # clients also send the mean of their gradients: `ClientUpdates.gradient`
    # True: only what this aggregation makes of the updates is private. Methods whose own `merge` reads them are refused.
    private: ClassVar[bool] = False

    @property
    def uses_round(self) -> bool:
        """Whether a hook reads ``p["round"]`` or ``server["round"]`` [], the number of the current round from 1."""
        return False

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

    @optional_hook
    def absorb(self, server: Values, stats: Values) -> dict[str, Tensor]:  # type: ignore[empty-body]
        """{name: [K, ...]} in place of the clients' statistics `stats` {name: [K, ...]}, such as their noisy sum as one row.

        The method's `absorb` receives these. Names that are not in `stats` are the aggregation's own parameters.
        Called at the start of a round with clients that report statistics, before the method's `absorb`.
        """

    @optional_hook
    def measures(self, server: Values, run: Mapping[str, Any]) -> dict[str, float | None]:  # type: ignore[empty-body]
        """{column: number or None} that a record holds beside the core's columns, such as the privacy loss so far.

        `run`: the run's config, as in `check`. Called at every evaluation.
        """

    @optional_hook
    def encode(self, p: Values, received: Values) -> dict[str, Tensor]:  # type: ignore[empty-body]
        """{name: tensor} that a client sends for its trained aggregated values: compressed, clipped, or as signs.

        `p`: the client's values after training. `received`: the aggregated parameters as the server sent them. Names of the
        aggregation's local parameters are kept by the client; all other tensors go up, and their bytes are counted by their
        types (floating point in at most 4 bytes). Called at the end of every round, once for each client, before `decode`.
        """

    @optional_hook
    def decode(self, message: Values, received: Values) -> dict[str, Tensor]:  # type: ignore[empty-body]
        """{name: value} of every aggregated parameter of a client, from its `message`; without this hook, the message itself.

        The method and the aggregation see these as the client's trained values.
        Called at the end of every round, once for each client, before the mean.
        """

    @hook
    def merge(self, server: Values, updates: ClientUpdates, mean: Values) -> dict[str, Tensor]:
        """{name: value} that replace values in `mean`, which holds the aggregated parameters after the method's own merge.

        Local names have a row for each client of the cohort, [K, ...].
        Called at the end of every round, after the method's own `merge`.
        """
        return {}
