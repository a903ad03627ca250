"""The method contract: a federated prompt tuning method is a few small hooks, written for one client.

Shapes use the same letters everywhere: K clients, B samples, C classes, P prompts, D width, L blocks, N images.

A method is a frozen dataclass called ``Method`` in a file of ``methods/``. Its fields are its hyper-parameters, and a
sweep file sets them by name. The core maps the hooks over clients, so only `send`, `absorb` and `merge`, which run on the
server, see a client axis.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

import torch.nn.functional as F
from torch import Tensor

from fedbench.base.options import option
from fedbench.base.planned_task import PlannedTask
from fedbench.method.building_blocks import linear_head
from fedbench.method.hooks import hook, optional_hook
from fedbench.method.param import Fidelity, Param, Phases, Taps, Values
from fedbench.method.task import Task
from fedbench.method.updates import ClientUpdates


@dataclass(frozen=True)
class Method:
    """Base of all methods: a frozen backbone and a linear head on its final feature. Override the hooks that differ."""

    logit_prior: Literal["none", "eval", "train", "both"] = option(
        "none", "when to add log pi_k, the client's own log class prior, to the logits: a control for label skew"
    )
    finetune_epochs: int = option(
        0, "epochs for which each client fine-tunes the final model on its own data before evaluation"
    )

    family: ClassVar[str] = "global"
    citation: ClassVar[str] = "ours"
    fidelity: ClassVar[Fidelity] = "our reading"  # how close it is to its source; listings print it
    reference: ClassVar[bool] = False  # True: an upper or lower reference, marked so in the tables
    reads_slots: ClassVar[bool] = False  # whether `logits` or `extra_loss` read out[slot], not only out["cls"]
    # Whether `logits`, `extra_loss` or `observe` read "patches" [B, N, D], the final patch tokens; with `reads_text` [B, N, E],
    # as out["image"].
    reads_patches: ClassVar[bool] = False
    # Whether `extra_loss` reads other samples of the batch, with their weights out["weight"] [B]. A batch is then one pass.
    reads_batch: ClassVar[bool] = False
    # The ranges of `search_space`: {"log": (low, high)}, {"linear": (low, high)} or {"choice": (a, b, ...)}, by field or
    # dotted path of the run. Empty for a method that trains nothing.
    search: ClassVar[Mapping[str, Mapping[str, tuple[Any, ...]]]] = {"local.lr": {"log": (0.001, 1.0)}}
    # Whether hooks read text: class names in the frozen text tower of a vision-language model. See `contexts`.
    reads_text: ClassVar[bool] = False
    centralized: ClassVar[bool] = False  # True: no clients; each round draws the same number of samples from all data
    # The names trained in each local phase, one inner tuple for each phase; None: one phase that trains everything. Each
    # phase takes `local.epochs` epochs.
    phases: ClassVar[Phases | None] = None
    # The same for fine-tuning before evaluation; None: as in training. May name values that federated training does not change.
    finetune_phases: ClassVar[Phases | None] = None
    # Further passes in training, by name; `extra_loss` reads their CLS feature as out["<name>.cls"].
    views: ClassVar[tuple[str, ...]] = ()
    # Whether `logits` reads them, too, so that evaluation makes these passes; with `reads_text` also out["<name>.image"].
    reads_views: ClassVar[bool] = False
    # Where a hook is called: the local phase (None in evaluation) and the view (None in the main pass).
    phase: ClassVar[int | None] = None
    view: ClassVar[str | None] = None

    def at(self, phase: int | None = None, view: str | None = None) -> Self:
        """A copy of the method whose hooks find the given local phase and view in `self.phase` and `self.view`."""
        made = copy.copy(self)
        object.__setattr__(made, "phase", phase)
        object.__setattr__(made, "view", view)
        return made

    def in_training(self) -> Self:
        """The method as training sees it: options that act in evaluation alone have neutral values.

        Runs that differ in nothing else have one training.
        """
        made = copy.copy(self)
        object.__setattr__(made, "logit_prior", "train" if self.adds_prior_in_training else "none")
        object.__setattr__(made, "finetune_epochs", 0)
        return made

    @property
    def label_note(self) -> str:
        """Words after the name in the method's default label, such as "not the official form"; "": none."""
        return ""

    def touches(self, depth: int) -> bool:
        """Whether the method changes what a backbone of `depth` blocks computes; if not, its cached features suffice."""
        return bool(
            self.layers(depth)
            or self.taps(depth)
            or self.pixels is not None
            or self.backbone_weights is not None
            or self.reads_patches
            or self.reads_views
            or self.query_after is not None  # the cached features are not those that a head reads
        )

    def reads_features(self, depth: int) -> bool:
        """Whether the prompt-free features are needed, by a hook or instead of a backbone of `depth` blocks."""
        return self.uses_query or self.statistics is not None or not self.touches(depth)

    @property
    def candidates(self) -> tuple[str, ...]:
        """Names of models that a client compares by their loss before it trains; hooks find the name in `self.view`."""
        return ()

    @property
    def uses_query(self) -> bool:
        """Whether a hook reads `query`, the prompt-free feature of the frozen backbone after the block `query_after`."""
        return False

    @property
    def query_after(self) -> int | None:
        """The block after which `query` is the CLS token (or mean patch token), with the final norm; None: the last block."""
        return None

    @property
    def uses_prior(self) -> bool:
        """Whether a hook reads ``p["prior"]`` [C], the client's own class distribution, which never leaves the client."""
        return False

    @property
    def uses_round(self) -> bool:
        """Whether a hook reads ``p["round"]`` or ``server["round"]`` [], the number of the current round from 1.

        In evaluation it is the number of the last finished round. `Task.rounds` is the number of all rounds.
        """
        return False

    @property
    def adds_prior_in_training(self) -> bool:
        """Whether `logit_prior` adds the log class prior to the logits of training."""
        return self.logit_prior in ("train", "both")

    @property
    def adds_prior_in_evaluation(self) -> bool:
        """Whether `logit_prior` adds the log class prior to the logits of evaluation."""
        return self.logit_prior in ("eval", "both")

    @property
    def needs_prior(self) -> bool:
        """Whether clients need their class prior: a hook reads it, or `logit_prior` adds it to the logits."""
        return self.uses_prior or self.logit_prior != "none"

    # -- before a run ----------------------------------------------------------------------------------------------
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

    # -- the parameters --------------------------------------------------------------------------------------------
    @hook
    def params(self, task: Task) -> dict[str, Param]:
        """Every tensor of the method, by name. By default the linear head.

        Called before a run starts.
        """
        return linear_head(task)

    @hook
    def layers(self, depth: int) -> tuple[int, ...]:
        """The blocks, of a backbone with `depth` blocks, at which `prompts` and `prefixes` are called.

        Called before a run starts, and for each local phase.
        """
        return ()

    @hook
    def taps(self, depth: int) -> tuple[int, ...]:
        """The blocks whose entering CLS token (or mean patch token) `observe` sees.

        Called before a run starts, and for each local phase.
        """
        return ()

    # -- a client's forward pass -----------------------------------------------------------------------------------
    @hook
    def prompts(self, layer: int, p: Values, cls: Tensor, query: Tensor | None) -> dict[str, Tensor]:
        """The prompt slots that enter block `layer`: ``{slot: [B, P, D]}``. A known slot is replaced, a new slot inserted.

        `cls` [B, D] is the CLS token entering this block, or the mean patch token in a model that is not read at CLS. `query`
        [B, D] is the prompt-free final feature.
        Called in every forward pass, once for each block of `layers`.
        """
        if self.prefixes is None:
            raise TypeError(f"{type(self).__module__}: a method with layers() must define prompts() or prefixes()")
        return {}

    @optional_hook
    def prefixes(self, layer: int, p: Values, tokens: Tensor) -> dict[str, Tensor]:  # type: ignore[empty-body]
        """What joins the keys and values of block `layer`: ``keys`` and ``values`` [B, P, D], P pairs beside those of tokens.

        Or ``added_keys`` and ``added_values`` [B, T, D], which are added to the keys and values of the block's own T tokens
        before any norm of keys. `tokens` [B, T, D] is what enters attention: CLS, the slots and the patches after the
        block's first norm. Called in every forward pass, once for each block of `layers`, after `prompts`.
        """

    @hook
    def logits(self, p: Values, out: Values) -> Tensor:
        """Class scores [B, C] from the final feature ``out["cls"]`` [B, D].

        With `reads_slots` also from ``out[slot]`` [B, P, D], and with `reads_patches` from the patch tokens ``out["patches"]``
        [B, N, D]. All are after the last norm.
        Called at the end of every forward pass.
        """
        return F.linear(out["cls"], p["head.weight"], p["head.bias"])

    @optional_hook
    def pixels(self, p: Values, images: Tensor) -> Tensor:  # type: ignore[empty-body]
        """The images [B, 3, S, S] that enter the backbone, from the normalised `images`.

        Called at the start of every forward pass.
        """

    @optional_hook
    def backbone_weights(self, p: Values, frozen: Values) -> dict[str, Tensor]:  # type: ignore[empty-body]
        """{name: tensor} that replace the backbone's tensors `frozen`. Slow: each client has its own backbone pass.

        Called at the start of every forward pass.
        """

    @optional_hook
    def contexts(self, p: Values) -> dict[str, Tensor]:  # type: ignore[empty-body]
        """{slot: context vectors [P, D_text] before every class name, or [C, P, D_text] before each} for the text tower.

        The other hooks of the step find the resulting text features, of length 1, as ``p["text.<slot>"]`` [C, E]. All methods
        with `reads_text` find ``p["class_text"]`` [C, E], the features of the backbone's template, ``p["logit_scale"]`` [],
        and ``out["image"]`` [B, E], the image features, of length 1.
        Called in every training step, before the forward passes, and before an evaluation.
        """

    # -- a client's training ---------------------------------------------------------------------------------------
    @optional_hook
    def choose_by_loss(self, p: Values, losses: Values) -> dict[str, Tensor]:  # type: ignore[empty-body]
        """{name: value} that a client chooses by the mean loss of each of its `candidates`, `losses` {candidate: scalar}.

        The losses are those on the client's training data. A name of params() becomes the client's starting value. All other
        values are reported to the server, which finds them in `updates.sums`; their bytes count.
        Called before a client trains, in every round, and before it is evaluated.
        """

    @optional_hook
    def batch_values(  # type: ignore[empty-body]
        self, p: Values, query: Tensor, weight: Tensor, epoch: Tensor
    ) -> dict[str, Tensor]:
        """{name: tensor} that the other hooks of this step find in `p`: what depends on the whole batch or on the epoch.

        `query` [B, D] and the samples' weights `weight` [B] are those of the whole batch, which may pass through the backbone
        in pieces. `epoch` (0-d) is the client's epoch of this local phase, from 0.
        Called in every training step, before the forward passes.
        """

    @optional_hook
    def extra_loss(self, p: Values, received: Values, out: Values, query: Tensor) -> Tensor:  # type: ignore[empty-body]
        """A term of the loss: [B] about samples (the core removes padding), or a scalar about parameters.

        `received`: the shared parameters as the server sent them. `out` also holds the labels ``out["y"]`` [B] and the class
        scores ``out["logits"]`` [B, C]. A term about a sample depends on that sample alone, or with `reads_batch` also on
        the other samples of the batch, whose weights ``out["weight"]`` [B] are 0 for padding.
        Called in every training step, after the forward passes.
        """

    @optional_hook
    def steer(self, p: Values, step: Values) -> dict[str, Tensor]:  # type: ignore[empty-body]
        """The optimiser's `step` {name: tensor}, as it should be applied.

        Called in every training step, after the optimiser has computed its step.
        """

    @optional_hook
    def upload(self, p: Values, received: Values) -> dict[str, Tensor]:  # type: ignore[empty-body]
        """{name: value} of params() after training: what a client sends as its shared values, and its new local values.

        `received`: the shared parameters as the server sent them. The server finds the values in `updates.updated`. The client
        keeps trained local values, and others if `merge` returns them. Called once for each client in a round, after it has
        trained.
        """

    @optional_hook
    def observe(  # type: ignore[empty-body]
        self, p: Values, taps: Taps, query: Tensor, y: Tensor, weight: Tensor
    ) -> dict[str, Tensor]:
        """{name: sums} over the batch, without gradient; the core adds them up over the round. `weight` [B] weighs samples.

        `taps` {block: [B, D]} also holds what the pass ends with: ``taps["cls"]`` [B, D], ``taps[slot]``,
        ``taps["logits"]`` [B, C] and each sample's cross entropy ``taps["loss"]`` [B], with
        smoothed labels if the run smooths them. `y` [B] are the labels.
        Called in every training step of a round, not in fine-tuning.
        """

    @optional_hook
    def statistics(self, p: Values, query: Tensor, y: Tensor) -> dict[str, Tensor]:  # type: ignore[empty-body]
        """{name: tensor} that a client reports once, from all its training samples.

        `query` [n, D] prompt-free features, `y` [n] labels, `p` what clients read of the server.
        Called once for each client, in the round in which it first takes part, before it trains.
        """

    @optional_hook
    def newcomer(self, p: Values) -> dict[str, Tensor]:  # type: ignore[empty-body]
        """{local name: value}: initial local values of a client that never took part, from the values that the server sends.

        Called when the server sends values to a client that never took part, in a round or for an evaluation.
        """

    # -- the server ------------------------------------------------------------------------------------------------
    @optional_hook
    def absorb(self, server: Values, stats: Values) -> dict[str, Tensor]:  # type: ignore[empty-body]
        """{name: value} of the server, from the `statistics` {name: [K, ...]} of clients that take part for the first time.

        Called at the start of a round with such clients, before the server sends anything.
        """

    @optional_hook
    def send(self, server: Values, clients: Tensor) -> dict[str, Tensor]:  # type: ignore[empty-body]
        """{name: [K, ...]} that the `clients` [K] receive instead of copies of the server's values.

        Rows of zeros in values that clients do not train are not sent, so they cost no bytes.
        Called at the start of every round, and for every evaluation.
        """

    @optional_hook
    def merge(self, server: Values, updates: ClientUpdates) -> dict[str, Tensor]:  # type: ignore[empty-body]
        """{name: value} that replace the n_k-weighted means; local names have rows [K, ...].

        The aggregation then steps from the server's old shared values towards these.
        Called at the end of every round, after the mean.
        """

    # -- the report ------------------------------------------------------------------------------------------------
    @optional_hook
    def picture(self, server: Values, prior: Tensor | None) -> dict[str, Tensor]:  # type: ignore[empty-body]
        """{panel: matrix [rows, columns] of values from 0 to 1} for the report's figure of what the method has learnt.

        `server`: its values at the end of a run, in float64; `prior` [C]: the class distribution of one client, None if
        unknown. The first paragraph of the override's docstring is the figure's caption.
        Called when the report of a finished run is made.
        """
