"""What runs cost, by hand: bytes and multiply-adds that occur once are charged once, and inference includes every pass."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import tiny
from oracle import laws
from pyarrow import parquet
from workplace import Workplace
from written import write_run

from fedbench.base.records import RunFolder
from fedbench.method import Method
from fedbench.report import writer
from fedbench.report.evidence import gather
from fedbench.report.figures import report_figures
from fedbench.report.figures.catalogue import FigureCatalogue
from fedbench.run import cost

CLASSES, CLIENTS, PER_ROUND, ROUNDS = 2, 4, 2, 5  # of the workplace


def block(tokens: int, read: int, width: int, hidden: int) -> int:
    """Keys and values of all tokens; queries, projection and MLP of those that are read; scores and mixture of attention."""
    linear = 2 * tokens * width**2 + read * (2 * width**2 + 2 * width * hidden)
    return linear + 2 * tokens * read * width


def forward(patches: int, patch: int, width: int, hidden: int, tokens: list[int], read_last: int = 1) -> int:
    """One image through all blocks, of which block l has `tokens[l]` tokens."""
    embedding = patches * 3 * patch**2 * width
    blocks = [block(t, t, width, hidden) for t in tokens[:-1]] + [block(tokens[-1], read_last, width, hidden)]
    return embedding + sum(blocks)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, RunFolder]:
    """Short runs of methods whose costs differ in kind."""
    place = Workplace(tmp_path_factory.mktemp("costs"))
    methods = [{"name": name, "label": name} for name in ("fedncm", "fed3r", "fedcof", "head_only", "fedvpt")]
    place.write(methods=methods, seeds=[3], rounds=ROUNDS)
    assert place.run("--cluster", "inline", "--no-watch") == 0
    return {folder.records()[0]["label"]: folder for folder in place.folders}


NOBODY = np.zeros(CLIENTS, dtype=bool)  # is held out


def newcomers() -> list[list[int]]:
    """The clients that take part for the first time, round by round."""
    seen: set[int] = set()
    rounds = []
    for number in range(1, ROUNDS + 1):
        cohort = laws.cohort(3, NOBODY, PER_ROUND, number).tolist()
        rounds.append([k for k in cohort if k not in seen])
        seen |= set(cohort)
    return rounds


def of_the_clients(folder: RunFolder) -> pd.DataFrame:
    return pd.read_parquet(folder.path / "clients.parquet").set_index("client")


WIDTH, HIDDEN, DEPTH, TOKENS = 128, 512, 6, 17  # of `nano` at 32 px: 16 patches of 8 px and CLS
PROMPT_FREE = forward(16, 8, WIDTH, HIDDEN, [TOKENS] * DEPTH)


def rows_by_class(classes: int, numbers: int) -> int:
    """Bytes of a client's sums with a row of `numbers` for each class: with the classes' indices, or all of them."""
    return min(classes * (4 * numbers + 4), CLASSES * 4 * numbers)


def statistics(name: str, classes: int) -> int:
    """Bytes of what a client with samples of `classes` classes sends once."""
    if name == "fed3r":  # second moments of feature and 1, and their sums by class
        return 4 * (WIDTH + 1) ** 2 + 4 * (WIDTH + 1) * CLASSES
    return rows_by_class(classes, WIDTH) + rows_by_class(classes, 1)


@pytest.mark.parametrize("name", ["fedncm", "fed3r", "fedcof"])
def test_a_method_without_training_sends_statistics_up_and_its_classifier_down_once_for_each_client(
    runs: dict[str, RunFolder], name: str
) -> None:
    table = of_the_clients(runs[name])
    classifier = 4 * (CLASSES * WIDTH + CLASSES * (name == "fed3r"))
    up = down = 0
    rounds = newcomers()
    assert [] in rounds  # a round in which nothing is left to send
    for record, new in zip(runs[name].records(), rounds, strict=True):
        sent = sum(statistics(name, len(table["classes"][k])) for k in new)
        up, down = up + sent, down + classifier * len(new)
        assert (record["bytes_up"], record["bytes_down"]) == (sent, classifier * len(new))
        assert (record["total_bytes_up"], record["total_bytes_down"]) == (up, down)
    assert down == classifier * len({k for new in rounds for k in new})


def test_a_method_that_trains_is_sent_its_values_in_every_round(runs: dict[str, RunFolder]) -> None:
    values = 4 * (CLASSES * WIDTH + CLASSES)
    assert [record["bytes_down"] for record in runs["head_only"].records()] == [PER_ROUND * values] * ROUNDS


@pytest.mark.parametrize("name", ["fedncm", "fed3r", "fedcof", "head_only"])
def test_the_frozen_feature_pass_is_charged_once_for_each_image_of_a_client(
    runs: dict[str, RunFolder], name: str
) -> None:
    samples = of_the_clients(runs[name])["train_samples"]
    for record, new in zip(runs[name].records(), newcomers(), strict=True):
        assert record["multiply_adds"] == PROMPT_FREE * sum(int(samples[k]) for k in new)
    assert runs[name].records()[-1]["total_multiply_adds"] > 0


def test_a_method_that_trains_through_the_backbone_is_charged_for_every_step(runs: dict[str, RunFolder]) -> None:
    samples = of_the_clients(runs["fedvpt"])["train_samples"]
    tokens = [TOKENS + 8] * DEPTH
    back = [2 * t * WIDTH**2 + t * (2 * WIDTH**2 + 2 * WIDTH * HIDDEN) + 4 * t * t * WIDTH for t in tokens[:-1]]
    last = 2 * tokens[-1] * WIDTH**2 + 2 * WIDTH**2 + 2 * WIDTH * HIDDEN + 4 * tokens[-1] * WIDTH
    per_image = forward(16, 8, WIDTH, HIDDEN, tokens) + sum(back) + last
    epochs = runs["fedvpt"].config()["run"]["local"]["epochs"]
    for number, record in enumerate(runs["fedvpt"].records(), 1):
        cohort = laws.cohort(3, NOBODY, PER_ROUND, number).tolist()
        assert record["multiply_adds"] == per_image * epochs * sum(int(samples[k]) for k in cohort)


# -- inference ----------------------------------------------------------------------------------------------------
# The miniature ViT: D = 32, H = 64, four blocks, four patches of 8 px, hence 5 tokens. By hand, without any function of
# this file: a block of T tokens that are all read costs 8192 T + 64 T^2, the last one 2048 T + (6144 + 64 T) R.
MINI_PROMPT_FREE = 24_576 + 3 * (8192 * 5 + 64 * 25) + 2048 * 5 + 6144 + 320  # 168,960
INFERENCE = {
    "head_only": 168_960,
    "fedncm": 168_960,
    # 2 prompts from block 0 on
    "fedvpt": 24_576 + 3 * (8192 * 7 + 64 * 49) + 2048 * 7 + 6144 + 448,
    # a prompt-free pass for the query, then 2 prompts from block 0 on and 1 mixed prompt from block 2 on
    "pep_fedpt": 168_960 + 24_576 + 2 * (8192 * 7 + 64 * 49) + (8192 * 8 + 64 * 64) + 2048 * 8 + 6144 + 512,
    # a prompt-free pass for the group, then 1 shared token from block 0 on, 1 group token from block 1 on; the head reads
    # CLS and both slots
    "sgpt": 168_960 + 24_576 + (8192 * 6 + 64 * 36) + 2 * (8192 * 7 + 64 * 49) + 2048 * 7 + 3 * (6144 + 448),
}
FIELDS: dict[str, dict[str, Any]] = {
    "fedvpt": {"prompt_length": 2},
    "pep_fedpt": {"prompt_length": 2, "class_prompt_length": 1, "inject": 2},
    "sgpt": {"prompt_length": 1, "group_length": 1, "shared_blocks": 1, "group_blocks": 1},
}


def mini_cost(name: str, augment: Any = "none") -> cost.ImageCost:
    method: Method = replace(tiny.METHODS[name], **FIELDS.get(name, {}))
    model = tiny.mini_run(method).model
    return cost.image_cost(model.method, model.spec, model.backbone, augment)


@pytest.mark.parametrize("name", INFERENCE)
def test_inference_counts_every_pass_of_one_image(name: str) -> None:
    assert MINI_PROMPT_FREE == 168_960
    assert mini_cost(name).inference == INFERENCE[name]


def test_a_query_from_within_the_pass_needs_no_second_pass() -> None:
    model = tiny.mini_run(replace(tiny.METHODS["pep_fedpt"], **FIELDS["pep_fedpt"], query="inject")).model
    counted = cost.image_cost(model.method, model.spec, model.backbone, "none")
    assert counted.inference == INFERENCE["pep_fedpt"] - MINI_PROMPT_FREE
    assert counted.features == 0


def test_augmented_images_of_a_frozen_backbone_need_a_forward_pass_in_every_step() -> None:
    assert mini_cost("head_only") == cost.ImageCost(0, MINI_PROMPT_FREE, MINI_PROMPT_FREE)
    assert mini_cost("head_only", "flip") == cost.ImageCost(MINI_PROMPT_FREE, 0, MINI_PROMPT_FREE)


def test_the_table_of_clients_holds_the_inference_cost_of_its_run(runs: dict[str, RunFolder]) -> None:
    def held(name: str) -> int:
        path: Path = runs[name].path / "clients.parquet"
        return int(parquet.read_schema(path).metadata[b"inference_multiply_adds"])

    assert held("fedncm") == held("head_only") == PROMPT_FREE
    assert held("fedvpt") == forward(16, 8, WIDTH, HIDDEN, [TOKENS + 8] * DEPTH)


def test_inference_cost_is_a_column_of_every_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report_figures, "all_figures", lambda *_: FigureCatalogue.empty())
    for seed in (0, 1):
        write_run(tmp_path / "r", "A", seed, {20: 0.5}, clients=True, inference=32_694_000_000)
        write_run(tmp_path / "r", "old", seed, {20: 0.5}, clients=True)  # a run of an older version
    write_run(tmp_path / "r", "going on", 0, {10: 0.5}, state="running")
    writer.write(gather([], tmp_path / "r"), tmp_path / "out")
    made = {path.name: path.read_text() for path in (tmp_path / "out").iterdir() if path.is_file()}
    runs = pd.read_csv(tmp_path / "out" / "runs.csv").set_index("label")["inference_multiply_adds"]
    assert runs["A"].tolist() == [32_694_000_000] * 2
    assert runs["old"].isna().all()
    table = pd.read_csv(tmp_path / "out" / "table.csv")
    inference = table[table["metric"] == "inference_multiply_adds"].set_index("label")["mean"]
    assert inference["A"] == 32_694_000_000
    for name in ("index.html", "table.md", "details.tex"):
        assert "MACs/image" in made[name], name
        assert "32.7 G" in made[name], name
