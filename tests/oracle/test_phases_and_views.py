"""Which values a phase trains, and in which moments a method's blocks are checked, on methods made for it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch

from fedbench.method import HookError, Method, Param, linear_head
from fedbench.method.fitting import check_blocks, moments
from fedbench.method.phases import trained_in

SPEC = {
    "head.weight": Param(torch.zeros(2)),
    "head.bias": Param(torch.zeros(2), home="local"),
    "header": Param(torch.zeros(2)),
    "kept.a": Param(torch.zeros(2), trained=False),
    "kept.b": Param(torch.zeros(2), home="server"),
    "kept.c": Param(torch.zeros(2), home="server_only"),
}


@dataclass(frozen=True)
class Phased(Method):
    """Two phases, views and fine-tuning of its own."""

    phases: ClassVar = (("head",), ("header",))
    finetune_phases: ClassVar = (("kept",), ("header", "head.bias"))
    views: ClassVar = ("side",)

    def params(self, task):
        """A head."""
        return linear_head(task)

    def layers(self, depth):
        """A block for each moment."""
        return {(None, None): (0,), (None, "side"): (1,), (0, None): (2,)}.get((self.phase, self.view), (3,))


def test_a_phase_trains_what_it_names_with_all_below_it_and_no_longer_name() -> None:
    assert trained_in(Phased(), SPEC) == [["head.weight", "head.bias"], ["header"]]
    assert trained_in(Method(), SPEC) == [["head.weight", "head.bias", "header"]]
    assert trained_in(Method(), {}) == []


def test_fine_tuning_trains_what_federated_training_leaves_alone_and_never_the_servers_values() -> None:
    assert trained_in(Phased(), SPEC, finetuning=True) == [["kept.a"], ["head.bias", "header"]]
    assert trained_in(Method(), SPEC, finetuning=True) == [["head.weight", "head.bias", "header"]]


@pytest.mark.parametrize(("phases", "says"), [((("head",),), r"no phase trains \['header'\]"), ((("x",),), "trains")])
def test_a_phase_that_trains_nothing_or_leaves_something_out_is_named(phases: tuple[tuple[str]], says: str) -> None:
    method = type("M", (Phased,), {"phases": phases})()
    with pytest.raises(HookError, match=says):
        trained_in(method, SPEC)


def test_blocks_are_checked_in_every_phase_and_view() -> None:
    assert [(m.phase, m.view) for m in moments(Phased())] == [
        (None, None),
        (None, "side"),
        (0, None),
        (0, "side"),
        (1, None),
        (1, "side"),
    ]
    check_blocks(Phased(), 4)
    for depth, block in ((1, 1), (2, 2), (3, 3)):
        with pytest.raises(
            ValueError, match=rf"layers\(\) names block {block}, but the backbone has the blocks 0\.\.{depth - 1}"
        ):
            check_blocks(Phased(), depth)
