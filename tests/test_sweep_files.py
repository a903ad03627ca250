"""The repository's sweep files: each is legal, compares what its name says, and runs shrunk to the embedded default."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import pytest

from fedbench.base.naming import flat
from fedbench.cli import sweep
from fedbench.plan.config import Sweep
from fedbench.plan.planning import read_sweep
from fedbench.report import paper_numbers, writer
from fedbench.report.evidence import gather

SWEEPS = Path(__file__).parents[1] / "sweeps"
FILES = sorted(SWEEPS.rglob("*.yaml"))
NAMES = [path.relative_to(SWEEPS).with_suffix("").as_posix() for path in FILES]
WANTED = {
    *("main_table", "participation", "clients", "prompt_length", "pep_ablation", "controls", "held_out", "roster"),
    *(
        "quickstart",
        "clip_quickstart",
        "nano_plain",
        "pep_ablation_nano",
        "reference_nano",
        "reference_cifar100",
    ),
    *("protocols/sgpt", "protocols/pfedpg", "protocols/pfpt", "protocols/fedperfix"),
}
# What makes any of them small enough for minutes on a laptop: one command line for all.
SHRINK = {
    "backbone": "{name: nano}",
    "dataset": "{name: glyphs, train_per_class: 1, test_per_class: 1}",
    "rounds": "1",
    "evaluate_every": "1",
    "clients.number": "6",
    "clients.per_round": "2",
    "clients.held_out": "1",
    "local.epochs": "1",
    "partition": "{name: iid}",
    "seed": "0",
    "machine.device": "cpu",
}


@cache
def read(name: str) -> Sweep:
    return read_sweep(FILES[NAMES.index(name)])


def test_all_that_are_promised_are_there() -> None:
    assert set(NAMES) >= WANTED


@pytest.mark.parametrize("name", NAMES)
def test_it_is_legal_and_fair(name: str) -> None:
    made = read(name)
    assert made.name == Path(name).name
    seeds = {planned.run.seed for planned in made.runs}
    assert len(seeds) >= 3
    for setting in {repr((p.run.dataset, p.run.partition, p.run.clients)) for p in made.runs}:
        here = [p for p in made.runs if repr((p.run.dataset, p.run.partition, p.run.clients)) == setting]
        for label in {p.label for p in here}:
            assert {p.run.seed for p in here if p.label == label} == seeds  # every method with every seed
        # the same budget, and the same rate unless the row's name says otherwise
        assert len({(p.run.rounds, p.run.local.epochs, p.run.local.batch_size) for p in here}) == 1
        assert len({p.run.local for p in here if ", rate " not in p.label}) == 1
    assert all(planned.run.clients.validation > 0 for planned in made.runs)


@pytest.mark.parametrize(
    ("name", "field", "least"),
    [
        ("participation", "per_round", 4),
        ("clients", "number", 4),
        ("held_out", "held_out", 3),
    ],
)
def test_what_is_varied_in_the_setting(name: str, field: str, least: int) -> None:
    assert len({getattr(planned.run.clients, field) for planned in read(name).runs}) >= least


def test_ablations_vary_one_factor_at_a_time() -> None:
    runs = read("pep_ablation").runs
    default = runs[0].run.method
    changes = [{k for k, v in planned.run.method.items() if v != default[k]} for planned in runs]
    assert all(len(change) <= 1 for change in changes)
    assert {"inject", "temperature", "prior", "prototypes", "similarity"} <= set().union(*changes)
    lengths = {(p.run.method["name"], p.run.method["prompt_length"]) for p in read("prompt_length").runs}
    assert len(lengths) == 3 * 6


def test_the_main_table_tunes_all_alike_and_holds_the_controls() -> None:
    made = read("main_table")
    assert made.tune is not None
    labels = {planned.label for planned in made.runs}
    assert {"fedvpt + log-prior", "pep_fedpt, uniform prior", "pep_fedpt, shuffled prototypes", "fedncm"} <= labels
    assert len({(repr(p.run.dataset), repr(p.run.partition)) for p in made.runs}) >= 4


def test_sgpt_has_its_codes_settings_on_feature_shift_and_no_others_there() -> None:
    """Query after block 5, majorities of batches, keys without momentum, a group per domain, blocks 0..4 and 5..6."""
    on_domains = {
        "query_block": 5,
        "choice": "batch",
        "key_momentum": 0,
        "groups": 6,
        "shared_blocks": 5,
        "group_blocks": 2,
    }
    runs = [p.run for p in read("main_table").runs if p.run.method["name"] == "sgpt"]
    assert {run.dataset["name"] for run in runs} == {"cifar100", "tiny_imagenet", "domainnet", "inaturalist"}
    for run in runs:
        settings = {name: run.method[name] for name in on_domains}
        assert (settings == on_domains) == (run.partition["name"] == "domain")
    assert {run.method["choice"] for run in runs if run.partition["name"] != "domain"} == {"sample"}


def test_no_path_of_a_machine_is_in_a_sweep_file() -> None:
    for file in FILES:
        assert not re.findall(r"(?:^|[\s:'\"])/(?:[a-z]+/)", file.read_text()), file.name


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_it_runs_when_shrunk(name: str, tmp_path: Path) -> None:
    """Every run of it, on the embedded default, from the command line to the report."""
    file, results = FILES[NAMES.index(name)], tmp_path / "results"
    shrink = SHRINK | {"machine.data": str(tmp_path / "data")}
    if read(name).tune:
        shrink["tune"] = "{trials: 1, rounds: 1}"
    if name == "pep_ablation":
        shrink["grid.method"] = "[{name: pep_fedpt, inject: 3}, {name: pep_fedpt, inject: 1}]"  # nano has six blocks
    if name == "clip_quickstart":
        shrink["backbone"] = "{name: clip_nano}"
    if name in ("main_table", "sgpt", "protocols/sgpt"):  # nano has six blocks
        shrink["exclude"] = "[{method: {name: sgpt, shared_blocks: 5}}]"
    settings = [f"{key}={value}" for key, value in shrink.items()]
    flags = [word for setting in settings for word in ("--set", setting)]
    assert sweep.main([str(file), "--results", str(results), "--cluster", "inline", *flags]) == 0
    evidence = gather([file], results, settings=settings)
    assert set(evidence.runs["state"]) == {"done"}
    assert writer.write(evidence, tmp_path / "out").page.is_file()


def test_the_reference_sweep_has_all_methods_and_is_tuned() -> None:
    tuned = read("reference_nano")
    assert len({run.run.method["name"] for run in tuned.runs}) >= 21
    assert tuned.tune is not None
    assert {run.run.rounds for run in tuned.runs} == {40}
    assert {run.run.seed for run in tuned.runs} == {0, 1, 2, 3, 4}
    assert len({repr(run.run.partition) for run in tuned.runs}) == 3


def test_pfedpg_s_protocol_repeats_the_published_numbers() -> None:
    """Each number of the paper on CIFAR-100 has runs, and the report finds no difference of protocol beyond the unknown."""
    numbers = [
        number for number in paper_numbers.read() if "pFedPG" in number.source and "CIFAR-100" in number.setting_there
    ]
    configs = [run.run.model_dump(mode="json") for run in read("protocols/pfedpg").runs]
    assert len(numbers) == 12
    for number in numbers:
        repeated = [config for config in configs if number.is_of(config)]
        assert repeated, number.method_there
        for path, value in number.protocol.items():
            if path != "backbone.name":
                assert {flat(config)[path] for config in repeated} == {value}, path
