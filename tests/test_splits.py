"""What single partitioners promise beyond the contract, where test samples come from, and splits as published files."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError
from test_partitioners import PARTITIONERS, samples

from fedbench import data
from fedbench.data import DataError, Samples, published, split
from fedbench.plan.config import short_name
from fedbench.plan.plugins import HOME

MANY = samples([120] * 6, [40] * 6, order=1)


# -- single partitioners -----------------------------------------------------------------------------------------------
def test_shards_are_mcmahans() -> None:
    """600 samples of 10 classes, 10 clients, 2 shards: 20 shards of 30 samples, two to a class, so at most 2 classes."""
    dataset = samples([60] * 10, [20] * 10, order=3)
    made = split(dataset, PARTITIONERS["shards"](), 10)
    counts = made.class_counts(dataset.labels, 10)
    assert (counts.sum(1) == 60).all()
    assert set(np.unique(counts)) <= {0, 30, 60}
    tested = made.test.class_counts(dataset.labels, 10)
    assert (tested * 3 == counts).all()


def test_shards_may_straddle_classes() -> None:
    """Sorted labels 0 0 0 1 1 1 1 1 2 2 2 2 in 4 shards of 3: {0: 3}, {1: 3}, {1: 2, 2: 1}, {2: 3}."""
    dataset = samples([3, 5, 4], [10, 10, 10])
    made = split(dataset, PARTITIONERS["shards"](shards_per_client=1), 4)
    assert sorted(map(tuple, made.class_counts(dataset.labels, 3))) == [
        (0, 0, 3),
        (0, 2, 1),
        (0, 3, 0),
        (3, 0, 0),
    ]


def test_too_many_shards_are_reported() -> None:
    with pytest.raises(DataError, match="7 clients with 2 shards each are 14 shards of 12 training samples"):
        split(samples([4] * 3, [9] * 3), PARTITIONERS["shards"](), 7)


def test_quantity_sizes_are_log_normal() -> None:
    """The logarithms of 400 sizes have the asked standard deviation: its own standard error is sigma / sqrt(800)."""
    dataset = samples([50_000] * 4, [50_000] * 4)
    for sigma in (0.3, 0.6):
        made = split(dataset, PARTITIONERS["quantity"](sigma=sigma), 400)
        assert np.log(made.train.sizes).std() == pytest.approx(sigma, abs=4 * sigma / np.sqrt(800))
        share = made.class_counts(dataset.labels, 4) / made.train.sizes[:, None]
        assert abs(share.mean(0) - 0.25).max() < 0.01
        assert np.corrcoef(made.train.sizes, made.test.sizes)[0, 1] > 0.999
    assert np.ptp(split(dataset, PARTITIONERS["quantity"](sigma=0.0), 400).train.sizes) <= 1


def test_imbalanced_classes_lie_with_their_owners() -> None:
    """10 classes, 20 clients that own one each: two owners a class, who hold 99 % of it, half each."""
    dataset = samples([10_000] * 10, [1000] * 10)
    made = split(dataset, PARTITIONERS["imbalanced"](classes_per_client=1), 20)
    counts = np.sort(made.class_counts(dataset.labels, 10), axis=0)  # by class: its owners last
    owners = counts[-2:]
    assert (abs(owners - 4950) <= 100).all()  # and at most the rest of the class, 1 %
    assert (counts[:-2].sum(0) <= 100).all()
    assert (counts[:-2].sum(0) >= 50).any(), "the rest is dealt to all"


def with_users(train: list[int], test: list[int], nobodys: int = 0) -> Samples:
    """User u has `train[u]` training and `test[u]` test images of two classes; `nobodys` test images have no user."""
    user = np.repeat([*range(len(train)), *range(len(test)), -1], [*train, *test, nobodys])
    is_test = np.arange(len(user)) >= sum(train)
    return Samples(
        np.zeros((len(user), 1, 1, 3), np.uint8),
        np.arange(len(user)) % 2,
        is_test,
        None,
        np.where(user < 0, -1, 10 * user),
        ("a", "b"),
    )


def test_natural_clients_are_users() -> None:
    dataset = with_users([5, 9, 2, 7], [1, 2, 3, 1])
    made = split(dataset, PARTITIONERS["natural"](), 4)
    for k, (train, test) in enumerate(zip(made.train, made.test, strict=True)):
        assert (dataset.user[train] == 10 * k).all()
        assert (dataset.user[test] == 10 * k).all()
    assert made.train.sizes.tolist() == [5, 9, 2, 7]
    assert made.test.sizes.tolist() == [1, 2, 3, 1]


def test_natural_merge_deals_users_evenly() -> None:
    dataset = with_users([6] * 25, [2] * 25)
    made = split(dataset, PARTITIONERS["natural"](users="merge"), 10, seed=4)
    users = [set(dataset.user[np.append(train, test)]) for train, test in zip(made.train, made.test, strict=True)]
    assert sorted(map(len, users)) == [2] * 5 + [3] * 5
    assert sum(map(len, users)) == len(set.union(*users)) == 25


def test_natural_draw_leaves_others_out() -> None:
    dataset = with_users([6] * 25, [2] * 25)
    made = [split(dataset, PARTITIONERS["natural"](users="draw"), 10, seed=seed) for seed in (0, 1)]
    assert all((m.train.sizes == 6).all() and (m.test.sizes == 2).all() for m in made)
    assert made[0].hash != made[1].hash


def test_natural_says_what_may_be_chosen() -> None:
    make = PARTITIONERS["natural"]
    dataset = with_users([5, 9, 1, 7], [1, 2, 3, 0])
    with pytest.raises(
        DataError, match="3, but 2 of the dataset's 4 users have enough samples to be a client"
    ) as error:
        split(dataset, make(min_train=2), 3)
    assert str(error.value).endswith("set clients.number to 2 or less")
    with pytest.raises(DataError, match="2, but 3 of the dataset's 4 users") as error:
        split(dataset, make(), 2)
    assert all(choice in str(error.value) for choice in ("clients.number to 3", "users: draw", "users: merge"))
    unnamed = with_users([5, 9, 4, 7], [], nobodys=6)
    with pytest.raises(DataError, match="no test sample has a user") as error:
        split(unnamed, make(), 4)
    assert all(choice in str(error.value) for choice in ("test: own", "test: merged"))
    with pytest.raises(DataError, match="the dataset has no users"):
        split(dataclasses.replace(unnamed, user=None), make(), 4)


def test_users_whose_test_images_are_held_out() -> None:
    """A quarter of each user's own images, at least one: of 5, 9, 2 and 8 images 1, 2, 1 and 2; one image is too few."""
    dataset = with_users([5, 9, 2, 8, 1], [], nobodys=6)
    made = split(dataset, PARTITIONERS["natural"](test="own"), 4, validation=0.0)
    assert made.test.sizes.tolist() == [1, 2, 1, 2]
    assert made.train.sizes.tolist() == [4, 7, 1, 6]
    assert (made.global_test(dataset) == np.flatnonzero(dataset.is_test)).all()


# -- where test samples come from ----------------------------------------------------------------------------------------
def test_merged_names_itself_and_has_another_global_test_set() -> None:
    make = PARTITIONERS["dirichlet"]
    merged = make(alpha=1.0, test="merged")
    block = {"name": "dirichlet", **dataclasses.asdict(merged)}
    assert short_name(block, make) == "dirichlet(test=merged, alpha=1.0)"
    made = split(MANY, merged, 5)
    sizes = made.train.sizes + made.test.sizes
    assert sizes.sum() == len(MANY.labels)
    assert (made.test.sizes == np.rint(sizes / 4)).all()
    assert MANY.is_test[made.train.indices].any()
    assert (made.global_test(MANY) == np.sort(made.test.indices)).all()
    official = split(MANY, make(alpha=1.0), 5)
    assert (official.global_test(MANY) == np.flatnonzero(MANY.is_test)).all()


def test_no_test_set_is_needed_where_clients_have_their_own() -> None:
    train_only = dataclasses.replace(MANY, is_test=np.zeros(len(MANY.labels), dtype=bool))
    with pytest.raises(DataError, match="needs training and test samples"):
        split(train_only, PARTITIONERS["iid"](), 5)
    for where in ("own", "merged"):
        made = split(train_only, PARTITIONERS["iid"](test=where), 5)
        assert (made.global_test(train_only) == np.sort(made.test.indices)).all()


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("shards", {"shards_per_client": 0}),
        ("quantity", {"sigma": -0.1}),
        ("imbalanced", {"owned": 0.0}),
        ("imbalanced", {"alpha": 0.0}),
        ("natural", {"users": "all"}),
        ("iid", {"test": "train"}),
        ("iid", {"test_share": 1.0}),
        ("iid", {"min_train": 0}),
        ("file", {}),
    ],
)
def test_senseless_options_are_refused(name: str, options: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        TypeAdapter(PARTITIONERS[name]).validate_python(options)


HASHES = """
import sys
sys.path[:0] = ["tests"]
from test_splits import hashes
print(hashes())
"""


def hashes() -> list[str]:
    """Of a split of every partitioner that draws."""
    options: dict[str, Any] = {"imbalanced": {"classes_per_client": 2}, "pathological": {"classes_per_client": 2}}
    options["natural"] = {"users": "merge"}
    made = [c(**options.get(n, {})) for n, c in PARTITIONERS.items() if issubclass(c, data.Partitioner)]
    return [split(MANY, partitioner, 6, 0.2, 0.1, seed=3).hash for partitioner in made]


@pytest.mark.slow
def test_hashes_are_the_same_in_every_process() -> None:
    env = {**os.environ, "PYTHONHASHSEED": "77"}
    other = subprocess.run(
        [sys.executable, "-c", HASHES], cwd=HOME, capture_output=True, text=True, env=env, check=True
    )
    assert other.stdout.strip() == str(hashes())
    assert len(set(hashes())) == len(hashes()) > 7


def test_a_million_clients_in_seconds() -> None:
    count = 3_000_000
    images = np.broadcast_to(np.zeros((1, 1, 1, 3), np.uint8), (count, 1, 1, 3))
    at = np.arange(count)
    many = Samples(images, at % 7, at % 3 == 0, None, at // 3, tuple("abcdefg"))
    start = time.process_time()
    made = split(many, PARTITIONERS["natural"](), count // 3, held_out=0.1, validation=0.1)
    assert made.hash
    assert time.process_time() - start < 15
    assert (made.train.sizes == 1).all() and (made.validation.sizes == 1).all()  # noqa: PT018
    assert (many.user[made.test.indices] == np.arange(count // 3)).all()


def test_by_default_every_client_trains_on_all_its_samples_with_seed_0() -> None:
    made = split(MANY, PARTITIONERS["iid"](), 6)
    assert not made.held_out.any()
    assert (len(made.validation.indices), len(made.train.indices)) == (0, 720)
    assert made.hash == split(MANY, PARTITIONERS["iid"](), 6, held_out=0.0, validation=0.0, seed=0).hash
    assert made.hash != split(MANY, PARTITIONERS["iid"](), 6, seed=1).hash


# -- published files -----------------------------------------------------------------------------------------------------
def from_file(path: Path, clients: int = 6, held_out: float = 0.0, validation: float = 0.0) -> data.Split:
    return split(MANY, PARTITIONERS["file"](path=path), clients, held_out, validation)


@pytest.mark.parametrize("suffix", published.SUFFIXES)
@settings(max_examples=8, deadline=None)
@given(
    name=st.sampled_from(["iid", "dirichlet", "quantity", "natural"]),
    where=st.sampled_from(["official", "own", "merged"]),
    held_out=st.sampled_from([0.0, 0.3, 1.0]),
    validation=st.sampled_from([0.0, 0.2]),
    seed=st.integers(0, 99),
)
def test_what_is_written_reads_back(
    tmp_path_factory: pytest.TempPathFactory,
    suffix: str,
    name: str,
    where: Any,
    held_out: float,
    validation: float,
    seed: int,
) -> None:
    partitioner = PARTITIONERS[name](test=where, **({"users": "draw"} if name == "natural" else {}))
    made = split(MANY, partitioner, 6, held_out, validation, seed)
    path = tmp_path_factory.mktemp("split") / f"mine{suffix}"
    published.write(path, made, MANY)
    again = from_file(path, 6, held_out, validation)
    assert again.hash == made.hash
    assert (again.global_test(MANY) == made.global_test(MANY)).all()
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def rows(**change: list[Any]) -> pd.DataFrame:
    """Two clients with a training and a test image each; `change` replaces columns, None takes one away."""
    is_test = np.flatnonzero(MANY.is_test)[:2]
    image = [int(i) for i in (*np.flatnonzero(~MANY.is_test)[:2], *is_test)]
    table = {"image": image, "client": [0, 1, 0, 1], "split": ["train", "train", "test", "test"], **change}
    return pd.DataFrame({name: column for name, column in table.items() if column is not None})


def test_a_file_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "own.csv"
    rows().to_csv(path, index=False)
    made = from_file(path, 2, held_out=1)  # the file does not say who is held out, so it is drawn
    assert made.train.sizes.tolist() == made.test.sizes.tolist() == [1, 1]
    assert made.held_out.sum() == 1
    with pytest.raises(DataError, match=r"with 1 training and 1 test samples \(at least 2 and 1"):
        from_file(path, 2, validation=0.5)  # a client cannot spare its only training sample


def test_a_file_that_sets_samples_aside_itself_leaves_a_client_one_training_sample(tmp_path: Path) -> None:
    path = tmp_path / "own.csv"
    more = {"image": int(np.flatnonzero(~MANY.is_test)[2]), "client": 0, "split": "validation"}
    pd.concat([rows(), pd.DataFrame([more])]).to_csv(path, index=False)
    made = from_file(path, 2, validation=0.5)
    assert (made.train.sizes.tolist(), made.validation.sizes.tolist()) == ([1, 1], [1, 0])


def test_held_out_clients_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "own.parquet"
    rows(held_out=[False, True, False, True]).to_parquet(path)
    assert from_file(path, 2, held_out=0.5).held_out.tolist() == [False, True]
    with pytest.raises(DataError, match=r"asks for 0 clients, but .* holds 1 out; set clients\.held_out to 1"):
        from_file(path, 2)


IMAGES = rows()["image"].tolist()
WRONG: dict[str, tuple[pd.DataFrame, str]] = {
    "unknown image": (rows(image=[*IMAGES[:3], 9999]), r"expected 0\.\.959, as the dataset has 960 .* found 9999 in row 4"),
    "an image twice": (rows(image=[*IMAGES[:3], IMAGES[1]]), f"image {IMAGES[1]} occurs twice, in rows 2 and 4"),
    "negative client": (rows(client=[0, -1, 0, 1]), "expected 0 or more in column client, found -1 in row 2"),
    "half a client": (rows(client=[0, 1.5, 0, 1]), "expected whole numbers in column client, found 1.5"),
    "no client": (rows(client=[0, None, 0, 1]), "expected whole numbers in column client, found nan"),
    "one client is missing": (rows(client=pd.array([0, None, 0, 1], dtype="Int64")), "column client, found (nan|<NA>)"),
    "a word for a client": (rows(client=["0", "x", "0", "1"]), "expected whole numbers in column client, found x"),
    "no test": (rows(split=["train", "train", "test", "train"]), "client 1 with 2 training and 0 test samples"),
    "only validation": (rows(split=["train", "validation", "test", "test"]), "client 1 with 0 training and 1 test samples"),
    "a gap": (rows(client=[0, 2, 0, 2]), r"has clients 0\.\.2; set clients.number to 3, not 2"),
    "another split": (rows(split=["train", "train", "test", "val"]), "expected train, validation, test in .* found 'val'"),
    "no split": (rows(split=None), "the columns image, client, split and at most held_out, label, found image, client"),
    "a column more": (rows(user=[1, 2, 3, 4]), "found image, client, split, user"),
    "other labels": (rows(label=(MANY.labels[IMAGES] + 1).tolist()), "the file is of another dataset"),
    "half held out": (rows(held_out=[0, 1, 0, 0]), "client 1 is held out in some rows and not in others"),
    "held out maybe": (rows(held_out=[0, 0.5, 0, 0]), "expected 0 or 1 in column held_out, found"),
    "empty": (rows().iloc[:0].astype({"image": int, "client": int}), "no rows"),
}  # fmt: skip


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
@pytest.mark.parametrize("case", WRONG)
def test_a_malformed_file_gets_one_clear_message(tmp_path: Path, case: str, suffix: str) -> None:
    table, message = WRONG[case]
    path = tmp_path / f"wrong{suffix}"
    table.to_csv(path, index=False) if suffix == ".csv" else table.to_parquet(path)
    with pytest.raises(DataError, match=message) as error:
        from_file(path, 2)
    assert str(path) in str(error.value)


def test_a_client_needs_a_second_training_sample_where_some_are_set_aside_for_validation() -> None:
    """Three training samples for two clients are 2 and 1; `min_train: 1` does not lower what validation needs."""
    dataset, partitioner = samples([2, 1], [4, 4]), PARTITIONERS["iid"](min_train=1)
    assert sorted(split(dataset, partitioner, 2).train.sizes) == [1, 2]
    with pytest.raises(DataError, match=r"with 1 training and 4 test samples \(at least 2 and 1 are needed\)"):
        split(dataset, partitioner, 2, validation=0.5)


def test_what_is_no_such_file(tmp_path: Path) -> None:
    for name, content in {
        "a.csv": b"",
        "b.parquet": b"PAR1 cut",
        "c.csv.gz": b"plain",
        "d.csv": b"\xff\xfe\x00",
    }.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=name):
            from_file(tmp_path / name)
    with pytest.raises(DataError, match="No such file"):
        from_file(tmp_path / "absent.csv")
    with pytest.raises(DataError, match=r"one of \.csv, \.csv\.gz, \.parquet"):
        from_file(tmp_path / "split.txt")
    with pytest.raises(DataError, match=r"written as one of \.csv"):
        published.write(tmp_path / "split.txt", split(MANY, PARTITIONERS["iid"](), 6), MANY)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"labels": np.arange(4, dtype=np.int32)}, "labels must be int64, not int32"),
        ({"user": np.zeros(4)}, "user must be int64, not float64"),
        ({"is_test": np.zeros(4, dtype=np.int64)}, "is_test must be bool, not int64"),
        (
            {"images": np.zeros((4, 2, 2), dtype=np.uint8)},
            r"images must be uint8 \[N, H, W, 3\], not uint8 \[4, 2, 2\]",
        ),
        ({"domain": np.zeros(3, dtype=np.int64)}, "domain has 3 rows, labels has 4"),
        ({"user": np.array([0, 0, -1, -1])}, "user may be -1 .* for test samples only"),
        ({"class_names": ("a", "b")}, r"labels must be in 0\.\.1, found 0\.\.3"),
        ({"labels": np.arange(4) - 1}, "found -1"),
        (dict.fromkeys(("labels", "images", "is_test")), "the dataset is empty"),
    ],
)
def test_samples_say_what_is_wrong_with_them(wrong, says):
    fine = {"images": np.zeros((4, 2, 2, 3), dtype=np.uint8), "labels": np.arange(4), "is_test": np.arange(4) == 3}
    changed = fine | {name: fine[name][:0] if value is None else value for name, value in wrong.items()}
    with pytest.raises(DataError, match=says):
        Samples(**changed)
