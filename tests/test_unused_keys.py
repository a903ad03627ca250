"""Keys that are legal and would change nothing: refused where the user set them, and never because of a default."""

from __future__ import annotations

from typing import Any

import pytest
from workplace import Workplace

from fedbench.plan.config import ConfigError, Sweep
from fedbench.plan.planning import check_sweep, planned_from_disk
from fedbench.plan.plugins import plugins

BASE: dict[str, Any] = {"dataset": "glyphs", "partition": "iid", "method": "head_only", "rounds": 1}


def checked(grid: dict[str, Any] | None = None, tune: Any = None, **base: Any) -> Sweep:
    content: dict[str, Any] = {"base": BASE | base, "grid": grid or {}}
    return check_sweep(content | ({} if tune is None else {"tune": tune}), plugins())


def mistakes(*arguments: Any, **more: Any) -> list[str]:
    with pytest.raises(ConfigError) as refused:
        checked(*arguments, **more)
    return [line.strip() for line in str(refused.value).splitlines()[1:]]


@pytest.mark.parametrize("optimizer", ["adam", "adamw"])
def test_momentum_beside_an_optimizer_without_momentum_is_refused(optimizer: str) -> None:
    want = f"- local.momentum: 0.9 has no effect with `optimizer: {optimizer}`, only with sgd; leave it out, or set it to 0"
    assert mistakes(local={"optimizer": optimizer, "momentum": 0.9}) == [want]


@pytest.mark.parametrize(
    "local", [{"optimizer": "adam"}, {"optimizer": "adamw", "momentum": 0}, {"momentum": 0.5}, {"optimizer": "sgd"}]
)
def test_the_default_momentum_or_none_is_no_mistake(local: dict[str, Any]) -> None:
    """The default 0.9 is part of every run's config, which a job and a tuning read again."""
    sweep = checked(local=local)
    (planned,) = sweep.runs
    assert planned_from_disk(sweep.on_disk(planned))[0].identity == planned.identity


def test_momentum_of_the_base_is_a_mistake_for_the_method_with_adam_alone() -> None:
    method = ["head_only", {"name": "fedvpt", "with": {"local": {"optimizer": "adam"}}}]
    (line,) = mistakes({"method": method}, local={"momentum": 0.5})
    assert line.startswith("- local.momentum: 0.5 has no effect with `optimizer: adam`")
    method[1]["with"]["local"]["momentum"] = 0  # type: ignore[index]
    assert len(checked({"method": method}, local={"momentum": 0.5}).runs) == 2


def test_a_search_for_a_momentum_that_no_run_has_is_refused() -> None:
    tune = {"search": {"local.momentum": {"linear": [0.1, 0.9]}}}
    assert mistakes(None, tune, local={"optimizer": "adam"}) == [
        "- tune.search: local.momentum has no effect: no run has `optimizer: sgd`"
    ]
    assert checked(None, tune).tune is not None


def test_nesterov_is_an_unknown_name() -> None:
    (line,) = mistakes(local={"nesterov": True})
    assert line.startswith("- local: unknown name 'nesterov'")
    assert "momentum" in line


VAIN = [
    (
        {"name": "fedvpt", "own_init": True},
        "method fedvpt.own_init: True",
        "`prompt: local` or `head: local`",
        {"head": "local"},
    ),
    ({"name": "pep_fedpt", "momentum": 0.5}, "method pep_fedpt.momentum: 0.5", "`query: inject`", {"query": "inject"}),
    (
        {"name": "pep_fedpt", "prompt_length": 0, "prompt_lr_scale": 3},
        "method pep_fedpt.prompt_lr_scale: 3.0",
        "shared prompts (`prompt_length`)",
        {"prompt_length": 2},
    ),
    *(
        ({"name": n, "temperature": 1}, f"method {n}.temperature: 1.0", "`logit_prior: eval`", {"logit_prior": "eval"})
        for n in ("fedncm", "fed3r", "fedcof")
    ),
]


@pytest.mark.parametrize(("block", "place", "needs", "change"), VAIN, ids=[case[1] for case in VAIN])
def test_an_option_that_needs_another_one_is_refused_without_it(
    block: dict[str, Any], place: str, needs: str, change: dict[str, Any]
) -> None:
    assert mistakes(method=block) == [f"- {place} has no effect here; it needs {needs}"]
    assert len(checked(method=block | change).runs) == 1
    (key,) = [key for key in block if key in place.partition(".")[2]]
    assert len(checked(method={name: value for name, value in block.items() if name != key}).runs) == 1


def test_the_share_of_test_images_is_refused_beside_official_lists() -> None:
    (line,) = mistakes(dataset={"name": "pacs", "test_share": 0.4})
    assert line == "- dataset pacs.test_share: 0.4 has no effect here; it needs `parts: drawn`"


def test_an_option_with_its_default_value_is_no_mistake() -> None:
    assert len(checked(method={"name": "pep_fedpt", "momentum": 0.0}).runs) == 1


@pytest.mark.parametrize("option", [{"finetune_epochs": 3}, {"logit_prior": "train"}], ids=str)
def test_training_options_of_a_method_that_trains_nothing_are_refused(
    tmp_path: Any, capsys: pytest.CaptureFixture[str], option: dict[str, Any]
) -> None:
    place = Workplace(tmp_path)
    place.write(methods=[{"name": "fedncm", **option}])
    assert place.run("--dry-run") == 2
    said = capsys.readouterr().err
    assert f"method fedncm: {next(iter(option))} is " in said
    assert "this method trains nothing" in said
