"""FedProto: clients keep their prompts and heads and share class prototypes only, which pull the features of each client.

Source: Tan et al. 2022 (AAAI), arXiv 2105.00243 (paper and code). A client adds `pull` times the mean squared distance between
a sample's feature and its class's global prototype, if any, to the cross entropy. It sends its mean feature of each class. The
server averages them by the clients' samples of the class (paper), or uniformly with `weighting: uniform` (code). A sample has
the class of the nearest prototype (paper); the code also reports the local heads (`predict: head`), and only the client's
classes (here `logit_prior: eval`). Ours: prompts at block 0 and a head, local; the feature is CLS. Means are over all epochs
of a round (in the code over the last). Unreported classes keep their prototypes. New clients have the initial prompts.
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from fedbench.method import ClientUpdates, Fidelity, Param, Phases, Taps, Task, Values, class_sums, linear_head, option
from fedbench.method import InputPrompt as Base


@dataclass(frozen=True)
class Method(Base):
    """Local prompts [P, D] and a local head; the server's prototypes [C, D]."""

    pull: Annotated[float, Field(ge=0)] = option(1.0, "lambda: weight of the distance between features and prototypes")
    predict: Literal["prototype", "head"] = option("prototype", "what classifies: the nearest prototype or the head")
    family: ClassVar[str] = "personalised"
    search: ClassVar = {**Base.search, "pull": {"log": (0.01, 10.0)}}
    citation: ClassVar[str] = "Tan et al. 2022 (AAAI), arXiv 2105.00243"
    fidelity: ClassVar[Fidelity] = "port with named differences"
    phases: ClassVar[Phases | None] = (("prompt", "head"),)  # named, so that `logits` can tell training from evaluation

    def params(self, task: Task) -> dict[str, Param]:
        """prompt [P, D] and the head, both local, and prototype [C, D]; zero: none yet."""
        prototype = Param(torch.zeros(task.num_classes, task.width), "server")
        return self.prompt_param(task, "local") | linear_head(task, "local") | {"prototype": prototype}

    def logits(self, p: Values, out: Values) -> Tensor:
        """The local head in training; then minus the distance to each prototype, [B, C]."""
        if self.phase is not None or self.predict == "head":
            return super().logits(p, out)
        distance = (out["cls"][:, None] - p["prototype"]).square().mean(-1)
        return torch.where((p["prototype"] != 0).any(-1), -distance, -1e4)

    def extra_loss(self, p: Values, received: Values, out: Values, query: Tensor | None) -> Tensor:
        """`pull` times the mean squared difference to the prototype of each sample's class, [B]."""
        target = p["prototype"][out["y"]]
        return self.pull * (out["cls"] - target).square().mean(-1) * (target != 0).any(-1)

    def observe(self, p: Values, taps: Taps, query: Tensor | None, y: Tensor, weight: Tensor) -> dict[str, Tensor]:
        """Sums [C, D] and counts [C] of the features by class."""
        return class_sums(taps["cls"], y, weight, len(p["prototype"]))

    def merge(self, server: Values, updates: ClientUpdates) -> dict[str, Tensor]:
        """The mean over clients of their class means."""
        total, count = updates.sums["sum"], updates.sums["count"]  # [K, C, D], [K, C]
        weight = count if updates.weighting == "samples" else (count > 0).to(count)
        new = torch.einsum("kc,kcd->cd", weight / count.clamp(min=1), total) / weight.sum(0).clamp(min=1)[:, None]
        return {"prototype": torch.where((count.sum(0) > 0)[:, None], new, server["prototype"])}
