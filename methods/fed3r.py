"""Fed3R: ridge regression from features to one-hot labels, exact from the clients' second moments, without any training.

Source: Fani et al. 2024, arXiv 2406.01116 (paper), and the authors' code (code): a constant 1 is appended to the feature z,
lambda = 0.01 also applies to the bias, and each class's weight vector, with its bias, is scaled to norm 1. A client sends
A_k = sum z z^T and b_k = sum z y^T once. W = (sum_k A_k + lambda I)^-1 sum_k b_k is the solution on the pooled data,
whatever the split. Not ported: random features (Fed3R-RF) and fine-tuning afterwards.

Scores are standardised over the classes of each sample and divided by a temperature (ours). This changes no answer, but it
weighs a log prior (`logit_prior: eval`) in the same way on every backbone and with any number of classes: one standard
deviation of the scores is worth 1/tau nats. The system is solved in double precision, since A is close to singular with
fewer samples than dimensions.
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
    """Scores W^T (z, 1), standardised, over tau."""

    ridge: Annotated[float, Field(gt=0)] = option(0.01, "lambda: added to the diagonal of the summed second moments")
    normalize: bool = option(True, "whether each class's weights are scaled to norm 1")
    temperature: Annotated[float, Field(gt=0)] = option(
        0.25,
        "tau: the scores are divided by it; matters only with a prior",
        needs=("`logit_prior: eval`", lambda options: options.logit_prior in ("eval", "both")),
    )

    family: ClassVar[str] = "training-free"
    search: ClassVar = {}  # nothing is trained
    citation: ClassVar[str] = "Fani et al. 2024, arXiv 2406.01116"
    fidelity: ClassVar[Fidelity] = "exact port"

    def search_space(self) -> Mapping[str, Mapping[str, tuple[Any, ...]]]:
        """The temperature, if a prior is added; otherwise it changes no answer."""
        return {"temperature": {"log": (0.05, 2.0)}} if self.adds_prior_in_evaluation else {}

    def params(self, task: Task) -> dict[str, Param]:
        """weight [C, D] and bias [C], read by clients; the server's running sums A [D+1, D+1] and b [D+1, C]."""
        classes, width = task.num_classes, task.width
        return {
            "weight": Param(torch.zeros(classes, width), "server"),
            "bias": Param(torch.zeros(classes), "server"),
            "A": Param(torch.zeros(width + 1, width + 1), "server_only"),
            "b": Param(torch.zeros(width + 1, classes), "server_only"),
        }

    def statistics(self, p: Values, query: Tensor, y: Tensor) -> dict[str, Tensor]:
        """A_k and b_k of one client's features [n, D]."""
        ones = torch.ones_like(query[:, :1])
        z = torch.cat([query, ones], 1)  # [n, D+1]
        return {"A": z.T @ z, "b": class_sums(z, y, ones[:, 0], len(p["bias"]))["sum"].T}

    def absorb(self, server: Values, stats: Values) -> dict[str, Tensor]:
        """The regression on all clients that have reported."""
        A, b = server["A"] + stats["A"].sum(0), server["b"] + stats["b"].sum(0)
        eye = torch.eye(len(A), dtype=torch.float64, device=A.device)
        W = torch.linalg.solve(A.double() + self.ridge * eye, b.double())  # [D+1, C]
        if self.normalize:
            W = W / W[:-1].norm(dim=0).clamp(min=1e-12)
        return {"A": A, "b": b, "weight": W[:-1].T.to(A), "bias": W[-1].to(A)}

    def logits(self, p: Values, out: Values) -> Tensor:
        """Standardised scores over tau, [B, C]."""
        scores = F.linear(out["cls"], p["weight"], p["bias"])
        return F.layer_norm(scores, scores.shape[-1:], eps=1e-12) / self.temperature
