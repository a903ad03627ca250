"""`fedbench data split` shows exactly the splits that runs train on, publishes them, and reports all impossible splits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image
from test_partitioners import PARTITIONERS, samples

from fedbench.cli.data import main
from fedbench.data import Parts, Split, split
from fedbench.data.split_stats import SplitStats
from fedbench.plan.planning import read_sweep
from fedbench.report.figures.split import draw
from fedbench.run.experiment import build


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A sweep of two partitions and two methods on 240 images of 6 classes."""
    dataset = samples([30] * 6, [10] * 6, order=2)
    images = np.zeros((len(dataset.labels), 8, 8, 3), dtype=np.uint8)
    np.savez(tmp_path / "data.npz", images=images, labels=dataset.labels, is_test=dataset.is_test)
    content = {
        "base": {
            "dataset": {"name": "npz", "path": str(tmp_path / "data.npz")},
            "rounds": 1,
            "clients": {"number": 4, "per_round": 2, "held_out": 1},
        },
        "grid": {
            "partition": ["iid", {"name": "dirichlet", "alpha": 1.0, "min_train": 2}],
            "method": ["head_only", "fedvpt"],
        },
        "machine": {"data": str(tmp_path)},
    }
    path = tmp_path / "sweep.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def shown(capsys: Any, *words: Any) -> tuple[int, str, str]:
    code = main(["split", *map(str, words)])
    out = capsys.readouterr()
    return code, out.out, out.err


def test_it_shows_the_splits_of_the_runs(file: Path, tmp_path: Path, capsys: Any) -> None:
    code, text, _ = shown(capsys, file, "--out", tmp_path / "out")
    assert code == 0
    sweep = read_sweep(file)
    hashes = {build(planned, sweep.machine, sweep.plugins).facts.partition_hash for planned in sweep.runs}
    assert len(hashes) == 2
    assert {line.split()[-1] for line in text.splitlines() if line.startswith("  hash")} == hashes
    assert text.count("3 train, 1 are held out") == 2
    assert "· dirichlet(min_train=2, alpha=1.0) · 4 clients · seed 0" in text
    drawn = sorted((tmp_path / "out").glob("*.png"))
    assert len(drawn) == len(list((tmp_path / "out").glob("*.pdf"))) == 2
    assert all(str(path) in text for path in drawn)
    with Image.open(drawn[0]) as image:
        assert image.width > 1000


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_what_it_publishes_is_the_same_split_again(file: Path, tmp_path: Path, capsys: Any, suffix: str) -> None:
    published = tmp_path / f"mine{suffix}"
    words = (file, "--out", tmp_path / "out", "--set")
    code, text, _ = shown(capsys, *words, "partition=iid", "seed=3", "--write", published)
    assert code == 0
    assert "seed 3" in text
    code, again, _ = shown(capsys, *words, f"partition={{name: file, path: {published}}}")
    assert code == 0
    hashes = [next(line for line in t.splitlines() if "hash" in line) for t in (text, again)]
    assert hashes[0] == hashes[1]


def test_one_file_takes_one_split(file: Path, tmp_path: Path, capsys: Any) -> None:
    code, text, wrong = shown(capsys, file, "--out", tmp_path / "out", "--write", tmp_path / "mine.csv")
    assert (code, text) == (2, "")
    assert "has 2; choose one with --set" in wrong
    assert "· iid ·" in wrong
    assert not (tmp_path / "mine.csv").exists()
    code, _, wrong = shown(capsys, tmp_path / "absent.yaml")
    assert code == 2
    assert "cannot be read" in wrong


def test_impossible_splits_are_reported_and_the_others_shown(file: Path, tmp_path: Path, capsys: Any) -> None:
    content = yaml.safe_load(file.read_text())
    content["grid"]["partition"] = ["domain", "iid", "natural"]
    file.write_text(yaml.safe_dump(content))
    code, text, wrong = shown(capsys, file, "--out", tmp_path / "out")
    assert code == 1
    assert "the dataset has no domains" in text
    assert "the dataset has no users" in text
    assert text.count("hash") == 1
    assert "2 of 3 splits are impossible" in wrong


def test_the_statistics_of_a_split_are_those_counted_by_hand() -> None:
    """Client 0 trains on class 0 alone, client 1 on class 1, client 2 on both; the whole is half and half."""
    dataset = samples([3, 3], [2, 2])  # samples 0 1 2 | 3 4 5, test 6 7 | 8 9
    parts = [Parts.of(p) for p in ([[0, 1], [3, 4], [2, 5]], [[], [], []], [[6], [7], [8, 9]])]
    stats = SplitStats.of(Split(*parts, np.array([False, False, True])), dataset)
    assert stats.counts.tolist() == [[2, 0], [0, 2], [1, 1]]
    assert stats.classes.tolist() == [1, 1, 2]
    assert stats.variation.tolist() == [0.5, 0.5, 0.0]
    # Of (1, 0) and (1/2, 1/2), whose middle is (3/4, 1/4): half of log2(4/3), and half of log2(2/3)/2 + log2(2)/2.
    expected = (np.log2(4 / 3) + (np.log2(2 / 3) + 1) / 2) / 2
    assert stats.shannon == pytest.approx([expected, expected, 0])
    # Tests of class 0, of class 0 and of class 1: as client 0 trains, the opposite, and half of what client 2 trains.
    assert stats.test_variation.tolist() == [0.0, 1.0, 0.5]
    assert stats.unused == 0
    even = SplitStats.of(split(samples([500] * 4, [90] * 4), PARTITIONERS["iid"](), 5), samples([500] * 4, [90] * 4))
    assert abs(even.variation.mean() - even.by_chance.mean()) < 0.03


@pytest.mark.parametrize(("clients", "classes"), [(1, 1), (3, 200), (60, 5), (61, 2), (4000, 700)])
def test_every_size_can_be_drawn(clients: int, classes: int) -> None:
    counts = np.random.default_rng(0).poisson(0.4, (clients, classes)) + np.eye(clients, classes, dtype=int)
    counts[:, 0] += counts.sum(1) == 0
    distance = np.linspace(0, 1, clients)
    files = draw(counts, distance > 0.9, distance, distance[::-1], "a title")
    assert files["png"][1:4] == b"PNG"
    assert files == draw(counts, distance > 0.9, distance, distance[::-1], "a title")
