"""The whole roster on embedded backbones: every method learns, and its numbers are those of tests/pinned.csv.

Methods with text run on clip_nano, all others on nano_plain, the control. A three-round run of every method with FedAvg, and of
FedVPT with every aggregation (fields: `FIELDS`). `make pin` writes the table anew after a change that is meant; its diff shows
whose numbers moved. float32 sums differ a little between processors, hence the tolerances; what they let pass is far less than
a change of method makes.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from fedbench.base.records import RunFolder
from fedbench.plan.planning import check_sweep
from fedbench.plan.plugins import plugins
from fedbench.run.checkpoint import CURRENT
from fedbench.run.simulation import run_rounds

PINNED = Path(__file__).parent / "pinned.csv"
CLASSES, CHANCE, MARGIN = 100, 0.01, 0.05  # a guess is right once in 100; learning is five more right answers in 100
ACCURACIES = ["mean_accuracy", "worst_accuracy", "val_mean_accuracy", "global_accuracy"]
# Training amplifies the rounding of a processor: between three of them, the same commit moved the mean accuracy by up to .016,
# the validation accuracy, which has a tenth of the samples, by up to .018, a loss by 0.8 % and a root mean square by 0.7 %.
TOLERANCES = {"mean_accuracy": 0.03, "worst_accuracy": 0.15, "val_mean_accuracy": 0.05, "global_accuracy": 0.03}
RELATIVE_TOLERANCE = 0.02  # of the loss and of the root mean square
BASE: dict[str, Any] = {
    "backbone": {"name": "nano_plain"},
    "dataset": {"name": "glyphs", "train_per_class": 6, "test_per_class": 2},
    "partition": {"name": "dirichlet", "alpha": 1.0},
    "rounds": 3,
    "clients": {"number": 10, "per_round": 4, "held_out": 1, "validation": 0.1},
    "local": {"epochs": 1, "batch_size": 16, "lr": 0.01, "momentum": 0.9},
    "evaluate_every": 3,
}
# The fields of aggregations whose defaults do not fit cohorts of four in three rounds.
FIELDS: dict[str, dict[str, Any]] = {"krum": {"byzantine": 0}, "dp_fedavg": {"noise": 0.002}}
# Methods with text need another backbone. Texts cost much more than cached features, hence the fewer clients and images.
WITH_TEXT: dict[str, Any] = {
    "backbone": {"name": "clip_nano"},
    "dataset": {"name": "glyphs", "train_per_class": 2, "test_per_class": 2},
    "clients": {"number": 4, "per_round": 2, "held_out": 1, "validation": 0.1},
    "local": {"epochs": 2, "batch_size": 16, "lr": 0.003, "momentum": 0.9},
}
TEXT_FIELDS: dict[str, dict[str, Any]] = {
    "clip_zero_shot": {},
    "pep_fedpt_text": {"prompt_length": 0},  # as VPT's, its prompts at the first block would hide the image at first
    "fedotp": {"context_length": 4, "iterations": 20},
    "pfedmoap": {"context_length": 4, "experts": 2},
    "fedmgp": {"groups": 2, "selected": 1},
}

# Contexts that start at random take hundreds of steps to reach the template's texts; two more right answers in 100 are five
# standard errors of the test samples.
SMALL_MARGIN, WITH_CONTEXTS = (
    0.02,
    {"promptfl", "kgcoop", "prograd", "promptfolio", "fedpgp_text", "fedtpg", "pfedmoap", "fedmgp"},
)
# They learn on ten classes with more steps: tests/methods/test_text_methods_learn.py.
# FedOTP reads patches, and clip_nano was pretrained to align its CLS token alone with texts. VPT's random prompts at first hide
# the image from texts that cannot adapt.
NEED_MORE_ROUNDS = {"fedotp", "fedvpt_text"}


def case_of(name: str, cls: Any) -> dict[str, Any]:
    """The keys of a method's run."""
    if not cls.reads_text:
        return {"method": name}
    return WITH_TEXT | {"method": {"name": name} | TEXT_FIELDS.get(name, {"context_length": 4})}


CASES = {name: case_of(name, cls) for name, cls in plugins().classes["method"].items()} | {
    f"fedvpt+{name}": {"method": "fedvpt", "aggregation": {"name": name, **FIELDS.get(name, {})}}
    for name in plugins().classes["aggregation"]
    if name != "fedavg"
}


def numbers(case: str, data: Path) -> dict[str, float | None]:
    """What a run of `case` ends with: its accuracies, its loss, and the root mean square of all that it keeps."""
    sweep = check_sweep({"base": BASE | CASES[case], "machine": {"data": str(data)}}, plugins())
    (planned,) = sweep.runs
    with tempfile.TemporaryDirectory() as there:
        folder = RunFolder(Path(there) / planned.name)
        folder.plan(sweep.on_disk(planned))
        run_rounds(planned, sweep.machine, sweep.plugins, folder)
        record = folder.records()[-1]
        state = load_file(folder.path / CURRENT)
    kept = [v.double().flatten() for n, v in sorted(state.items()) if v.is_floating_point() and n[:6] != "total."]
    rms = float(torch.cat(kept).square().mean().sqrt()) if kept else None  # zero-shot CLIP keeps nothing
    return {name: record[name] for name in [*ACCURACIES, "train_loss"]} | {"kept_rms": rms}


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("roster")


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_every_method_learns_and_its_numbers_are_pinned(case, data):
    measured = numbers(case, data)
    margin = SMALL_MARGIN if case in WITH_CONTEXTS else MARGIN
    assert case in NEED_MORE_ROUNDS or measured["mean_accuracy"] > CHANCE + margin, measured
    table = pd.read_csv(PINNED, index_col="case")
    assert case in table.index, f"{case} is not in {PINNED.name}: `make pin` adds it"
    for name, value in table.loc[case].items():
        here = np.nan if measured[name] is None else measured[name]
        tolerance = TOLERANCES[name] if name in ACCURACIES else RELATIVE_TOLERANCE * abs(value)
        assert np.isnan(here) == np.isnan(value), (name, here, value)
        assert np.isnan(value) or abs(here - value) <= tolerance, (name, here, value)


def test_the_table_holds_every_method_and_no_other():
    assert sorted(pd.read_csv(PINNED)["case"]) == sorted(CASES)


def pin() -> None:
    """Write tests/pinned.csv."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as data:
        rows = [{"case": case} | numbers(case, Path(data)) for case in sorted(CASES)]
    table = pd.DataFrame(rows)
    table.to_csv(PINNED, index=False, float_format="%.6g")
    sys.stdout.write(table.to_string(float_format="%.4g") + "\n")


if __name__ == "__main__":
    pin()
