"""FedMGP: each client has several pairs of text and image prompts, and sends those sampled by similarity to the server's.

Source: Bo et al., NeurIPS 2025, arXiv 2511.00480; official code https://github.com/weihao-bo/FedMGP. A client has G groups
of context vectors and of prompts at the image tower's input. Group g of the images meets group g of the texts; class scores
are the mean over groups, and the loss is the mean of the groups' cross entropies plus a term about the distances between the
groups' features. After training, a client samples s groups without replacement, of texts and of images, with probabilities
softmax(similarity / T), where the similarity is the largest cosine with one of the s groups that the server sent. It sends
them in the order in which they were sampled. The server averages them by this rank. They replace the sampled groups when the
client next receives them.

The code adds the absolute value of a term that is minus the mean distance of two groups' features (of all classes and of all
images). Its loss thus draws groups together, although the paper wants them apart. `diversity_loss: code` is this form, and
`apart` subtracts the distance.

Differences: contexts start from N(0, 0.02^2), while the code starts from "a photo" with noise. The image tower's first norm
does not see the prompts. The mean over clients is weighted by samples; `weighting: uniform` is the code's. A client that was
away receives the newest averages, while in the code it has those of its last round. A client's draws come from another
random stream; as in the code, they are the same for texts and images. As there, a client that never took part has the
initial groups.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import Annotated, Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from fedbench.method import ClientUpdates, Fidelity, Param, Task, Values, cosine_logits, option, tokens
from fedbench.method import Method as Base

TOWERS = ("text", "visual")


@dataclass(frozen=True)
class Method(Base):
    """Local groups of contexts and image prompts, some of which a client samples, sends and replaces by their averages."""

    family: ClassVar[str] = "personalised"
    citation: ClassVar[str] = "Bo et al. 2025, arXiv 2511.00480"
    fidelity: ClassVar[Fidelity] = "port with named differences"
    reads_text: ClassVar[bool] = True
    reads_views: ClassVar[bool] = True
    search: ClassVar[Mapping[str, Mapping[str, tuple[Any, ...]]]] = {
        "local.lr": {"log": (0.0001, 1.0)},
        "diversity": {"log": (0.01, 10.0)},
    }

    groups: Annotated[int, Field(ge=2)] = option(5, "G: groups of a client")
    selected: Annotated[int, Field(ge=1)] = option(2, "s: groups that a client sends and receives")
    context_length: Annotated[int, Field(ge=1)] = option(2, "P: context vectors of a group")
    prompt_length: Annotated[int, Field(ge=1)] = option(2, "P': prompts of a group at the image tower's input")
    temperature: Annotated[float, Field(gt=0)] = option(1.0, "T: similarities are divided by it")
    diversity: Annotated[float, Field(ge=0)] = option(1.0, "weight of the distances between groups in the loss")
    diversity_loss: Literal["code", "apart"] = option(
        "code", "code: adds the distances, as the code does, which draws groups together; apart: subtracts them"
    )

    @property
    def label_note(self) -> str:
        """Whether the loss is the code's."""
        return "" if self.diversity_loss == "code" else "not the official form"

    @property
    def uses_round(self) -> bool:
        """Each round has its draws."""
        return True

    @property
    def views(self) -> tuple[str, ...]:  # type: ignore[override]
        """A pass for each group of image prompts after the first, which has the main pass."""
        return tuple(f"group{g}" for g in range(1, self.groups))

    def layers(self, depth: int) -> tuple[int, ...]:
        """The first block."""
        return (0,)

    def params(self, task: Task) -> dict[str, Param]:
        """``text`` [G, P, D_text], ``visual`` [G, P', D], their averages [s, ...], the averages' places [s], and draws.

        Raises ValueError if a client would send more groups than it has.
        """
        if self.selected > self.groups:
            raise ValueError(f"selected {self.selected} is more than groups {self.groups}")
        params = {}
        sizes = {"text": (self.context_length, task.text_width), "visual": (self.prompt_length, task.width)}
        for tower, size in sizes.items():
            params[tower] = Param(task.normal(tower, self.groups, *size, std=0.02), "local")
            params[f"average_{tower}"] = Param(torch.zeros(self.selected, *size))
            places = torch.full((self.selected,), -1)  # none before the first round
            params[f"places_{tower}"] = Param(places, "local", trained=False)
        draws = (task.rounds, self.groups)
        rows = task.per_client_normal("draws", *draws, std=1.0)
        return params | {"draws": Param(torch.zeros(draws), "local", trained=False, rows=rows)}

    def prompts_of(self, p: Values, tower: str) -> Tensor:
        """The client's groups [G, P, D], with the server's averages in their places."""
        places, local = p[f"places_{tower}"], p[tower]
        at = F.one_hot(places.clamp(min=0), self.groups).to(local) * (places >= 0).to(local)[:, None]  # [s, G]
        return torch.einsum("sg,spd->gpd", at, p[f"average_{tower}"]) + (1 - at.sum(0))[:, None, None] * local

    # -- the client ------------------------------------------------------------------------------------------------
    def contexts(self, p: Values) -> dict[str, Tensor]:
        """A slot for each group."""
        return {f"group{g}": context for g, context in enumerate(self.prompts_of(p, "text"))}

    def prompts(self, layer: int, p: Values, cls: Tensor, query: Tensor | None) -> dict[str, Tensor]:
        """The tokens of the group of this view."""
        group = 0 if self.view is None else int(self.view.removeprefix("group"))
        return {"prompt": tokens(self.prompts_of(p, "visual")[group], cls)}

    def scores(self, p: Values, out: Values) -> Tensor:
        """The class scores of each group, [G, B, C]."""
        images = [out["image"], *(out[f"{view}.image"] for view in self.views)]
        return torch.stack([cosine_logits(p, {"image": x}, p[f"text.group{g}"]) for g, x in enumerate(images)])

    def logits(self, p: Values, out: Values) -> Tensor:
        """The mean of the groups' scores."""
        return self.scores(p, out).mean(0)

    def extra_loss(self, p: Values, received: Values, out: Values, query: Tensor) -> Tensor:
        """[B]: what the mean of the groups' cross entropies has beside that of the mean scores, and the groups' distances."""
        scores = self.scores(p, out)
        prior = out["logits"] - scores.mean(0)  # zero without `logit_prior`
        entropies = (scores + prior).logsumexp(-1).mean(0) - out["logits"].logsumexp(-1)  # their other parts are equal
        images = [out["image"], *(out[f"{view}.image"] for view in self.views)]
        texts = [p[f"text.group{g}"] for g in range(self.groups)]
        distance = (_distance(texts).mean() + _distance(images)) / 2  # [B]
        return entropies + (self.diversity if self.diversity_loss == "code" else -self.diversity) * distance

    def upload(self, p: Values, received: Values) -> dict[str, Tensor]:
        """The sampled groups, in the order of sampling, and what the client keeps: all groups, and which ones it sent."""
        row = (p["round"].long() - 1).clamp(0, len(p["draws"]) - 1)
        draw = p["draws"].index_select(0, row[None])[0]  # [G] ~ N(0, 1)
        uniform = torch.special.ndtr(draw).clamp(1e-6, 1 - 1e-6)
        gumbel = -(-uniform.log()).log()
        made: dict[str, Tensor] = {}
        for tower in TOWERS:
            groups, average = self.prompts_of(p, tower), received[f"average_{tower}"]
            cosine = F.cosine_similarity(groups.flatten(1)[:, None], average.flatten(1)[None], dim=-1)  # [G, s]
            # The largest sums with Gumbel draws are a sample without replacement, in its order (Plackett-Luce).
            places = (cosine.amax(1) / self.temperature + gumbel).topk(self.selected).indices
            sent = groups.index_select(0, places)
            made |= {tower: groups, f"average_{tower}": sent, f"places_{tower}": places}
        return made

    # -- the server ------------------------------------------------------------------------------------------------
    def merge(self, server: Values, updates: ClientUpdates) -> dict[str, Tensor]:
        """Each client keeps where its groups came from; the averages are those of the core."""
        return {name: updates.updated[name] for name in (f"places_{tower}" for tower in TOWERS)}


def _distance(features: list[Tensor]) -> Tensor:
    """The mean absolute difference [B] of the groups' features [B, E], in the mean over all pairs of groups."""
    pairs = [(a - b).abs().mean(-1) for a, b in combinations(features, 2)]
    return torch.stack(pairs).mean(0)
