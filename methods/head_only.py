"""Frozen ViT with an averaged linear head: what federated training achieves without prompts (ours, the usual linear probe)."""

from dataclasses import dataclass
from typing import ClassVar

from fedbench.method import Method as Base


@dataclass(frozen=True)
class Method(Base):
    """A linear head [C, D] on the frozen CLS feature, averaged by FedAvg."""

    family: ClassVar[str] = "global"
    reference: ClassVar[bool] = True
