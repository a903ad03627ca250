"""Invalid ranges of a search are refused wherever they were written, and valid ranges are accepted."""

from __future__ import annotations

import math
from typing import Any

import pytest

from fedbench.plan.config import ConfigError
from fedbench.plan.plugins import plugins
from fedbench.plan.search_space import check_range

ILLEGAL: list[tuple[dict[str, tuple[Any, ...]], str]] = [
    ({}, "expected {log"),
    ({"logarithmic": (1, 2)}, "expected {log"),
    ({"log": (1, 2), "linear": (1, 2)}, "expected {log"),
    ({"log": ()}, "expected {log"),
    ({"choice": ()}, "expected {log"),
    ({"linear": (1,)}, "expected two numbers"),
    ({"linear": (1, 2, 3)}, "expected two numbers"),
    ({"linear": ("a", 2)}, "expected two numbers"),
    ({"linear": (True, 2)}, "expected two numbers"),
    ({"linear": (0, math.inf)}, "expected two numbers"),
    ({"log": (math.nan, 2)}, "expected two numbers"),
    ({"linear": (1.0, 1.0)}, "expected low < high"),
    ({"linear": (2, 1)}, "expected low < high"),
    ({"log": (0, 1)}, "starts above 0, not at 0"),
    ({"log": (-1, 1)}, "starts above 0, not at -1"),
]
LEGAL: list[dict[str, tuple[Any, ...]]] = [
    {"log": (1e-9, 1)},
    {"linear": (0, 1)},
    {"linear": (-2, -1.5)},
    {"choice": ("a",)},
    {"choice": (3, 1, True, None)},
]


@pytest.mark.parametrize(("range_", "message"), ILLEGAL, ids=str)
def test_an_illegal_range_is_refused_and_named(range_: dict[str, tuple[Any, ...]], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as error:
        check_range("local.lr", range_)
    assert str(error.value).startswith("tune: local.lr: ")


@pytest.mark.parametrize("range_", LEGAL, ids=str)
def test_a_legal_range_is_taken(range_: dict[str, tuple[Any, ...]]) -> None:
    check_range("local.lr", range_)


LR, SCALE, EPOCHS = {"log": (0.001, 1.0)}, {"log": (0.1, 100.0)}, {"choice": (1, 2, 5, 10)}
PROMPTS: dict[str, Any] = {"local.lr": LR, "prompt_lr_scale": SCALE}
# The ranges that a comparison with `tune:` searches unless it states others: part of the protocol of published numbers.
CONTEXTS = {"local.lr": {"log": (0.0001, 1.0)}}
CLASS_PROMPTS = {
    **PROMPTS,
    "temperature": {"log": (0.03, 1.0)},
    "class_prompt_lr_scale": {"log": (1.0, 300.0)},
}
SEARCHED: dict[str, dict[str, Any]] = {
    "apfl": {**PROMPTS, "alpha": {"linear": (0.1, 0.9)}},
    "central_vpt": PROMPTS,
    "ditto": {**PROMPTS, "pull": {"log": (0.01, 10.0)}},
    "fed3r": {},
    "fedbabu": {**PROMPTS, "finetune_epochs": EPOCHS},
    "fedcof": {},
    "fedncm": {},
    "fedperfix": {**PROMPTS, "scale": {"log": (0.1, 10.0)}},
    "fedpgp": {
        **PROMPTS,
        "factor_lr_scale": SCALE,
        "mu": {"log": (0.01, 10.0)},
        "rank": {"choice": (1, 2, 4, 8)},
    },
    "fedpr": {"local.lr": LR, "prompt_lr_scale": {"log": (1.0, 1000.0)}},
    "fedproto": {**PROMPTS, "pull": {"log": (0.01, 10.0)}},
    "fedrep": {**PROMPTS, "finetune_epochs": EPOCHS},
    "fedvpt": PROMPTS,
    "fedvpt_deep": PROMPTS,
    "fedvpt_supcon": {**PROMPTS, "contrast": {"log": (0.03, 3.0)}},
    "full_finetune": {"local.lr": LR, "backbone_lr_scale": {"log": (0.01, 10.0)}},
    "head_only": {"local.lr": LR},
    "ifca": {**PROMPTS, "models": {"choice": (2, 3, 4)}},
    "lora": {"local.lr": LR, "lora_lr_scale": SCALE, "alpha": {"log": (1.0, 64.0)}},
    "pep_fedpt": CLASS_PROMPTS,
    "pep_fedpt_text": CLASS_PROMPTS,
    "pfedmoap": {**CONTEXTS, "gate_lr_scale": SCALE, "local_share": {"linear": (0.0, 1.0)}},
    "pfedpg": {**PROMPTS, "server_lr": {"log": (0.1, 10.0)}},
    "pfedpt": {"local.lr": LR, "border_lr_scale": {"log": (1.0, 1000.0)}},
    "pfpt": {"local.lr": LR, "prompt_lr_scale": {"log": (0.01, 10.0)}},
    "clip_zero_shot": {},
    "fedmgp": {**CONTEXTS, "diversity": {"log": (0.01, 10.0)}},
    "fedotp": CONTEXTS,
    "fedtpg": CONTEXTS,
    "fedvpt_text": PROMPTS,
    "fedpgp_text": {**CONTEXTS, "mu": {"log": (0.01, 10.0)}, "rank": {"choice": (1, 2, 4, 8)}},
    "kgcoop": {**CONTEXTS, "pull": {"log": (0.1, 100.0)}},
    "prograd": {**CONTEXTS, "pull": {"log": (0.01, 10.0)}},
    "promptfl": CONTEXTS,
    "promptfolio": {**CONTEXTS, "theta": {"linear": (0.0, 1.0)}},
    "sgpt": {**PROMPTS, "groups": {"choice": (5, 10, 20, 40)}},
}
# What a prior adds to a method that trains nothing, whose answers no temperature changes otherwise.
WITH_A_PRIOR = {
    "fed3r": {"temperature": {"log": (0.05, 2.0)}},
    "fedcof": {"temperature": {"log": (0.05, 2.0)}},
    "fedncm": {"temperature": {"log": (0.01, 1.0)}},
}


def test_every_method_searches_its_published_ranges() -> None:
    classes = plugins().classes["method"]
    assert {name: dict(cls().search_space()) for name, cls in classes.items()} == SEARCHED
    for prior in ("eval", "both"):
        spaces = {name: dict(classes[name](logit_prior=prior).search_space()) for name in WITH_A_PRIOR}
        assert spaces == WITH_A_PRIOR
    assert not any(classes[name](logit_prior="train").search_space() for name in WITH_A_PRIOR)
