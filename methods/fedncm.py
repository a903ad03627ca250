"""FedNCM: the nearest class prototype without any training, optionally with the client's class prior.

Source: Legate et al. 2023 (NeurIPS), arXiv 2306.03937 (paper). Each client sends per-class means and counts of the frozen
feature once (here sums, which hold the same information), and the server's averages are exactly the class means of the pooled
data. Scores are z times the means scaled to norm 1, as in the comparison of Goswami et al. 2025 (code). We also divide by |z|
and by the temperature (ours). Without a prior this changes no answer; with one it weighs prior against similarity as PEP-FedPT
does. This control shows what prototypes and priors achieve alone. Not ported: fine-tuning afterwards (FedNCM+FT).
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
    """Scores cos(z, mu_c) / tau; `logit_prior: eval` adds the client's log prior."""

    temperature: Annotated[float, Field(gt=0)] = option(
        0.1,
        "tau: the cosines are divided by it; matters only with a prior",
        needs=("`logit_prior: eval`", lambda options: options.logit_prior in ("eval", "both")),
    )

    family: ClassVar[str] = "training-free"
    citation: ClassVar[str] = "Legate et al. 2023, arXiv 2306.03937"
    fidelity: ClassVar[Fidelity] = "exact port"
    search: ClassVar = {}  # nothing is trained

    def search_space(self) -> Mapping[str, Mapping[str, tuple[Any, ...]]]:
        """The temperature, if a prior is added; otherwise it changes no answer."""
        return {"temperature": {"log": (0.01, 1.0)}} if self.adds_prior_in_evaluation else {}

    def params(self, task: Task) -> dict[str, Param]:
        """prototype [C, D], and the server's running sums [C, D] and counts [C]."""
        zero = torch.zeros(task.num_classes, task.width)
        return {
            "prototype": Param(zero, "server"),
            "sum": Param(zero, "server_only"),
            "count": Param(zero[:, 0], "server_only"),
        }

    def statistics(self, p: Values, query: Tensor, y: Tensor) -> dict[str, Tensor]:
        """Per-class sums [C, D] and counts [C] of one client's features [n, D]."""
        return class_sums(query, y, torch.ones_like(query[:, 0]), len(p["prototype"]))

    def absorb(self, server: Values, stats: Values) -> dict[str, Tensor]:
        """Class means over all clients that have reported; the prototype of an unseen class is zero."""
        total, count = server["sum"] + stats["sum"].sum(0), server["count"] + stats["count"].sum(0)
        return {"sum": total, "count": count, "prototype": total / count.clamp(min=1)[:, None]}

    def logits(self, p: Values, out: Values) -> Tensor:
        """Cosine to each prototype over tau, [B, C]."""
        return F.normalize(out["cls"], dim=-1) @ F.normalize(p["prototype"], dim=-1).T / self.temperature
