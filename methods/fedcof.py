"""FedCOF: a ridge-like classifier whose covariances are estimated from the clients' class means, without any training.

Source: Goswami et al. 2025 (NeurIPS), arXiv 2412.14326 (paper), and the authors' code (code). A client sends what it sends
in FedNCM: per class its number of samples n_kc and the mean mu_kc of the frozen feature (here sums, which hold the same
information). A mean of n samples varies n times less than a sample. Over the K_c clients that hold class c,
  S_c = 1/(K_c - 1) sum_k n_kc (mu_kc - mu_c)(mu_kc - mu_c)^T
is therefore an unbiased estimate of the covariance of c, if the clients' samples of a class have the same distribution. The
classifier is
  G = sum_c (N_c - 1) (S_c + gamma I) + N mu mu^T,   W = G^-1 B,   B = (N_c mu_c)_c,
with each class's weights scaled to norm 1 and no bias. It uses the scatter within classes and leaves out the scatter
between them. A class of one client has S_c = 0. G is inverted by the pseudo-inverse (both code).

No D x D matrix per class is ever built (ours): the server keeps the received means as rows [M, D], M = number of (client,
class) pairs, and G is one product of weighted rows. There is at most one row per training sample: 370 MB for iNaturalist
User-120k at D = 768. Standardised scores and the temperature are as in Fed3R (ours).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from fedbench.method import Fidelity, Param, Task, Values, class_sums, option
from fedbench.method import Method as Base


@dataclass(frozen=True)
class Method(Base):
    """Scores w_c . z, standardised, over tau."""

    shrinkage: Annotated[float, Field(ge=0)] = option(1.0, "gamma: added to the diagonal of each class's covariance")
    temperature: Annotated[float, Field(gt=0)] = option(
        0.25,
        "tau: the scores are divided by it; matters only with a prior",
        needs=("`logit_prior: eval`", lambda options: options.logit_prior in ("eval", "both")),
    )

    family: ClassVar[str] = "training-free"
    search: ClassVar = {}  # nothing is trained
    citation: ClassVar[str] = "Goswami et al. 2025, arXiv 2412.14326"
    fidelity: ClassVar[Fidelity] = "exact port"

    def search_space(self) -> Mapping[str, Mapping[str, tuple[Any, ...]]]:
        """The temperature, if a prior is added; otherwise it changes no answer."""
        return {"temperature": {"log": (0.05, 2.0)}} if self.adds_prior_in_evaluation else {}

    def params(self, task: Task) -> dict[str, Param]:
        """weight [C, D], read by clients; the server's rows: means [M, D], classes [M] and numbers of samples [M]."""
        zero = torch.zeros(task.num_classes, task.width)
        return {
            "weight": Param(zero, "server"),
            "means": Param(zero[:0], "server_only"),
            "of": Param(torch.zeros(0, dtype=torch.long), "server_only"),
            "n": Param(zero[:0, 0], "server_only"),
        }

    def statistics(self, p: Values, query: Tensor, y: Tensor) -> dict[str, Tensor]:
        """Per-class sums [C, D] and counts [C] of one client's features [n, D]."""
        return class_sums(query, y, torch.ones_like(query[:, 0]), len(p["weight"]))

    def absorb(self, server: Values, stats: Values) -> dict[str, Tensor]:
        """The classifier of all clients that have reported."""
        count = stats["count"]  # [K, C]
        held = count > 0
        means = torch.cat([server["means"], stats["sum"][held] / count[held][:, None]])
        of = torch.cat([server["of"], held.nonzero()[:, 1]])
        n = torch.cat([server["n"], count[held]])
        weight = self.classifier(means.double(), of, n.double(), count.shape[1])
        return {"means": means, "of": of, "n": n, "weight": weight.to(means)}

    def gram(self, means: Tensor, of: Tensor, n: Tensor, classes: int) -> tuple[Tensor, Tensor]:
        """G [D, D] and B [C, D] from the rows [M, D], their classes [M] and numbers of samples [M]."""
        N = means.new_zeros(classes).index_add(0, of, n)  # [C]
        K = torch.bincount(of, minlength=classes)  # [C]
        B = means.new_zeros(classes, means.shape[1]).index_add(0, of, n[:, None] * means)
        apart = means - (B / N.clamp(min=1)[:, None])[of]  # [M, D]
        dof = (N - 1).clamp(min=0)
        weight = n * (dof / (K - 1).clamp(min=1))[of]  # [M]
        total = B.sum(0)
        eye = torch.eye(len(total), dtype=total.dtype, device=total.device)
        G = (weight[:, None] * apart).T @ apart + self.shrinkage * dof.sum() * eye + torch.outer(total, total) / N.sum()
        return G, B

    def classifier(self, means: Tensor, of: Tensor, n: Tensor, classes: int) -> Tensor:
        """W [C, D] with rows of norm 1; zero for an unseen class."""
        G, B = self.gram(means, of, n, classes)
        return F.normalize(B @ torch.linalg.pinv(G, hermitian=True))

    def logits(self, p: Values, out: Values) -> Tensor:
        """Standardised scores over tau, [B, C]."""
        scores = F.linear(out["cls"], p["weight"])
        return F.layer_norm(scores, scores.shape[-1:], eps=1e-12) / self.temperature
