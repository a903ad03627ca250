"""Every partitioner keeps the contract of splits and its own promises, and batches are as training expects."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import itertools
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError
from scipy.special import digamma

from fedbench import data
from fedbench.base import rng
from fedbench.contract import form
from fedbench.contract.samples import CHECKS
from fedbench.data import DataError, Parts, Samples, Split, batches, dirichlet_shares, partition, split
from fedbench.plan.plugins import plugins

PARTITIONERS: dict[str, Any] = plugins().classes["partition"]
# Options to test beside the defaults; a partitioner that is not named here is tested with its defaults.
VARIANTS: dict[str, list[dict[str, Any]]] = {
    "pathological": [{"classes_per_client": 2}, {"classes_per_client": 3}],
    "dirichlet": [{"alpha": 0.1}, {"alpha": 1.0, "min_train": 1}, {"alpha": 0.3, "balanced": False}],
    "dirichlet_client": [{"alpha": 1.0}, {"alpha": 100.0}, {"alpha": 1.0, "order": "sequential"}],
    "domain": [{}, {"alpha": 0.5}, {"test": "own"}],
    "iid": [{}, {"test": "merged"}, {"test": "own", "test_share": 0.5}],
    "shards": [{}, {"shards_per_client": 3}],
    "quantity": [{"sigma": 0.0}, {"sigma": 0.7}],
    "imbalanced": [{"classes_per_client": 1}, {"classes_per_client": 3, "owned": 0.8, "alpha": 0.3}],
    "natural": [{"users": "draw"}, {"users": "merge"}, {"users": "merge", "test": "own"}],
}
CASES = [
    pytest.param(make(**options), id=f"{name}-{'-'.join(f'{k}={v}' for k, v in options.items())}")
    for name, make in PARTITIONERS.items()
    if issubclass(make, data.Partitioner)  # what only reads a split has tests of its own
    for options in VARIANTS.get(name, [{}])
]
WITH_ALPHA = ("dirichlet", "dirichlet_client", "domain", "imbalanced")
every_partitioner = pytest.mark.parametrize("partitioner", CASES)


def samples(
    train: list[int], test: list[int], domains: int = 3, names: int | None = None, order: int | None = None
) -> Samples:
    """`train[c]` and `test[c]` samples of class c, dealt round to the domains and to 17 users, in a random order if
    `order` names one."""
    labels = np.concatenate([np.full(n, c) for part in (train, test) for c, n in enumerate(part)])
    is_test = np.arange(len(labels)) >= sum(train)
    domain, user = (np.arange(len(labels)) % n for n in (domains, 17))
    if order is not None:
        shuffled = np.random.default_rng(order).permutation(len(labels))
        labels, is_test, domain, user = labels[shuffled], is_test[shuffled], domain[shuffled], user[shuffled]
    images = np.zeros((len(labels), 1, 1, 3), dtype=np.uint8)
    return Samples(images, labels, is_test, domain, user, tuple(map(str, range(names or len(train)))))


def owners(part: tuple[data.Ints, ...], count: int) -> data.Ints:
    """The client of every sample, -1 for nobody's."""
    owner = np.full(count, -1)
    for k, indices in enumerate(part):
        owner[indices] = k
    return owner


def test_partitioners_were_found() -> None:
    assert {"iid", "pathological", "dirichlet", "dirichlet_client", "domain"} <= set(PARTITIONERS)
    for check in form.CHECKS:  # those that draw keep them below
        check.run(PARTITIONERS["file"](path=Path("mine.csv")))


@every_partitioner
def test_every_partitioner_keeps_the_contract(partitioner: Any) -> None:
    for check in [*form.CHECKS, *(check for check in CHECKS if check.subject_kind == "partition")]:
        check.run(partitioner)


@every_partitioner
@settings(max_examples=25, deadline=None)
@given(drawn=st.data())
def test_a_split_is_sound(partitioner: Any, drawn: Any) -> None:
    classes = drawn.draw(st.integers(3, 8), label="classes")
    sizes = st.lists(st.integers(12, 60), min_size=classes, max_size=classes)
    train, test = drawn.draw(sizes, label="train"), drawn.draw(sizes, label="test")
    clients = drawn.draw(st.integers(3, 12), label="clients")
    seed = drawn.draw(st.integers(0, 2**40), label="seed")
    validation = drawn.draw(st.sampled_from([0.0, 0.1, 0.9]), label="validation")
    held_out = drawn.draw(st.sampled_from([0.0, 0.2, 1.0, 2.0]), label="held out")
    dataset = samples(train, test, order=drawn.draw(st.integers(0, 9), label="order"))
    partitioner = dataclasses.replace(partitioner, redraws=min(partitioner.redraws, 20))
    try:
        made = split(dataset, partitioner, clients, held_out, validation, seed)
    except DataError:
        return  # there may be too few samples; the tests below have enough, and see every partitioner succeed

    assert len(made.train) == len(made.validation) == len(made.test) == len(made.held_out) == clients
    parts = [*made.train, *made.validation, *made.test]
    used = np.concatenate(parts)
    assert len(np.unique(used)) == len(used), "a sample occurs twice"
    assert all((np.diff(part) > 0).all() for part in parts), "indices are sorted"
    if partitioner.test != "merged":
        assert not dataset.is_test[np.concatenate([*made.train, *made.validation])].any()
        assert (dataset.is_test[np.concatenate(made.test)] == (partitioner.test == "official")).all()

    need = max(partitioner.min_train, 2 if validation else 1)
    for k in range(clients):  # held-out clients too: they are evaluated, and may fine-tune
        held = len(made.train[k]) + len(made.validation[k])
        assert held >= need
        assert len(made.train[k]) >= 1
        assert len(made.test[k]) >= 1
        expected = min(max(1, round(validation * held)), held - 1) if validation else 0
        assert len(made.validation[k]) == expected
        if partitioner.test != "official":
            assert len(made.test[k]) == max(1, round(partitioner.test_share * (held + len(made.test[k]))))
    assert made.held_out.sum() == (held_out if held_out >= 1 else round(held_out * clients))

    counts = made.class_counts(dataset.labels, classes)
    assert counts.shape == (clients, classes)
    assert (counts.sum(1) == [len(part) for part in made.train]).all()
    everything = counts.sum(0) + np.bincount(dataset.labels[np.concatenate(made.validation)], minlength=classes)
    if partitioner.test != "merged":
        assert (everything <= train).all()
    assert used.max() < len(dataset.labels)


@every_partitioner
def test_nothing_is_lost(partitioner: Any) -> None:
    dataset = samples([120] * 6, [40] * 6)
    made = split(dataset, partitioner, 9, validation=0.1)
    used = np.concatenate([*made.train, *made.validation, *made.test])
    if isinstance(partitioner, PARTITIONERS["natural"]) and partitioner.users == "draw":  # other users are left out
        lost = np.setdiff1d(np.arange(len(dataset.labels)), used)
        assert not np.isin(dataset.user[lost], dataset.user[used]).any()
    elif partitioner.test == "own":
        assert (np.sort(used) == np.flatnonzero(~dataset.is_test)).all()
    else:
        assert len(used) == len(dataset.labels)


@every_partitioner
@pytest.mark.parametrize("seed", range(3))
def test_test_data_follow_the_train_distribution(partitioner: Any, seed: int) -> None:
    dataset = samples([200, 130, 90, 200, 170, 111], [50, 31, 23, 60, 40, 37])
    made = split(dataset, partitioner, 8, seed=seed)
    groups = partitioner.groups(dataset)
    if partitioner.test != "official":  # a client's test samples are a random part of its own
        for part, test in zip(made.train, made.test, strict=True):
            counts, expected = (np.bincount(dataset.labels[p], minlength=6) for p in (test, np.append(part, test)))
            mean = partitioner.test_share * expected
            assert (np.abs(counts - mean) <= 5 * np.sqrt(mean * (1 - partitioner.test_share)) + 1).all()
        return
    for group in np.unique(groups):
        shares, counts = [], []
        for part, is_test in ((made.train, False), (made.test, True)):
            count = ((groups == group) & (dataset.is_test == is_test)).sum()
            shares.append(np.array([(groups[samples_] == group).sum() for samples_ in part]) / count)
            counts.append(count)
        # A cut is rounded by at most 1/2, and a client lies between two cuts.
        assert np.abs(shares[0] - shares[1]).max() <= 1 / counts[0] + 1 / counts[1] + 1e-9


@every_partitioner
def test_seeds_make_splits(partitioner: Any) -> None:
    dataset = samples([100] * 6, [30] * 6)
    first = split(dataset, partitioner, 8, 0.25, 0.1, seed=0)
    np.random.seed(5)  # noqa: NPY002 - the global state must not matter
    assert split(dataset, partitioner, 8, 0.25, 0.1, seed=0).hash == first.hash
    assert len({split(dataset, partitioner, 8, 0.25, 0.1, seed=s).hash for s in range(20)}) == 20


@every_partitioner
def test_held_out_clients_and_validation_sets_move_no_sample_to_other_clients(partitioner: Any) -> None:
    samples_ = samples([100] * 6, [30] * 6)
    plain, with_sets = split(samples_, partitioner, 8), split(samples_, partitioner, 8, 0.25, 0.1)
    for k in range(8):
        assert set(plain.train[k]) == {*with_sets.train[k], *with_sets.validation[k]}
        assert (plain.test[k] == with_sets.test[k]).all()


def test_the_hash_changes_with_anything() -> None:
    def made(**change: Any) -> str:
        parts: dict[str, Any] = {
            "train": ([0, 1], [2]),
            "validation": ([3], [4]),
            "test": ([5], [6, 7]),
            "held_out": np.array([False, True]),
        }
        changed = parts | change
        return Split(**{name: Parts.of(v) if name != "held_out" else v for name, v in changed.items()}).hash

    hashes = [
        made(),
        made(train=([0], [1, 2])),
        made(train=([2], [0, 1])),
        made(train=([0, 1, 3], [2]), validation=([], [4])),
        made(validation=([4], [3])),
        made(test=([5, 6], [7])),
        made(held_out=np.array([True, False])),
        made(held_out=np.array([False, False])),
    ]
    assert len(set(hashes)) == len(hashes)
    # Written out: who is held out, then for each part each client's number of samples and the samples, 8 bytes each.
    numbers = [2, 0, 1, 1, 2, 1, 3, 1, 4, 1, 5, 2, 6, 7]
    whole = np.packbits([False, True]).tobytes() + np.array(numbers, "<i8").tobytes()
    assert made() == hashlib.sha256(whole).hexdigest()[:16]


@every_partitioner
def test_too_few_samples_are_reported_with_the_numbers(partitioner: Any) -> None:
    dataset = samples([2] * 6, [2] * 6)
    with pytest.raises(DataError, match="impossible split") as error:
        split(dataset, dataclasses.replace(partitioner, redraws=3), 40)
    assert "40" in str(error.value) or "owners" in str(error.value)


@pytest.mark.parametrize(("clients", "draws"), [(60, 3), (20, 7)])
def test_drawing_ends_after_three_draws_if_more_than_twenty_clients_are_left_short(clients: int, draws: int) -> None:
    """10 x 14 training samples are never 50 for any of many clients."""
    make, small = PARTITIONERS["dirichlet"], samples([14] * 10, [36] * 10)
    with pytest.raises(DataError, match=f"in the best of {draws} draws of"):
        split(small, make(alpha=1.0, min_train=150, redraws=7), clients)


def test_a_split_needs_both_parts() -> None:
    with pytest.raises(DataError, match="found 6 and 0"):
        split(samples([2] * 3, [0] * 3), PARTITIONERS["iid"](), 2)
    with pytest.raises(DataError, match="5 of 5 clients are held out"):
        split(samples([20] * 3, [20] * 3), PARTITIONERS["iid"](), 5, held_out=5)


@pytest.mark.parametrize(
    "shares", [np.ones((3, 2)), np.full((2, 4), 0.25), np.full((3, 4), 0.2), np.eye(3, 4) * 2 - 0.25, np.ones(4)]
)
def test_shares_are_checked(shares: Any) -> None:
    class Wrong(data.Partitioner):
        def shares(self, samples: Samples, clients: int, stream: np.random.Generator) -> Any:
            return shares

    with pytest.raises(DataError, match=r"at least \[3, 4\] shares, rows summing to 1"):
        split(samples([20] * 3, [20] * 3), Wrong(), 4)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("pathological", {"classes_per_client": 0}),
        ("dirichlet", {"alpha": 0}),
        ("dirichlet", {"min_train": 0}),
        ("dirichlet", {"redraws": 0}),
        ("dirichlet_client", {"alpha": -1}),
        *((name, {"alpha": alpha}) for name in WITH_ALPHA for alpha in (float("inf"), float("nan"), 1e7, 0)),
        ("dirichlet_client", {"order": "random"}),
        ("quantity", {"sigma": 1e9}),
        ("quantity", {"sigma": float("inf")}),
        ("domain", {"alpha": 0}),
    ],
)
def test_senseless_options_are_refused(name: str, options: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        TypeAdapter(PARTITIONERS[name]).validate_python(options)


def test_iid_parts_are_equal() -> None:
    made = split(samples([101] * 5, [33] * 5), PARTITIONERS["iid"](), 12)
    for part in (made.train, made.test):
        sizes = [len(indices) for indices in part]
        assert max(sizes) - min(sizes) <= 1


@settings(max_examples=60, deadline=None)
@given(classes=st.integers(1, 30), clients=st.integers(1, 40), each=st.integers(1, 30), seed=st.integers(0, 99))
def test_pathological_gives_exactly_s_classes_and_level_owners(
    classes: int, clients: int, each: int, seed: int
) -> None:
    assume(each <= classes <= each * clients)
    most = -(-each * clients // classes)
    dataset = samples([2 * most + 1] * classes, [2 * most + 1] * classes)
    made = split(dataset, PARTITIONERS["pathological"](classes_per_client=each), clients, seed=seed)
    held = made.class_counts(dataset.labels, classes) > 0
    assert (held.sum(1) == each).all()
    assert held.sum(0).max() - held.sum(0).min() <= 1
    tested = np.stack([np.bincount(dataset.labels[part], minlength=classes) for part in made.test]) > 0
    assert (tested == held).all()


@pytest.mark.parametrize(("classes", "clients", "each"), [(7, 9, 3), (5, 4, 2), (10, 6, 5)])
def test_each_client_takes_the_classes_with_the_most_free_places_and_chance_decides_ties(
    classes: int, clients: int, each: int
) -> None:
    for seed in range(5):
        owned = data.level_owners(classes, clients, each, np.random.default_rng(seed))
        draw = np.random.default_rng(seed)
        free = [clients * each // classes] * classes
        for c in draw.permutation(classes)[: clients * each % classes]:
            free[c] += 1
        for k in range(clients):
            tie = draw.random(classes)
            taken = sorted(range(classes), key=lambda c: (-free[c], tie[c]))[:each]
            assert np.flatnonzero(owned[:, k]).tolist() == sorted(taken)
            for c in taken:
                free[c] -= 1


def test_a_domain_without_samples_of_the_last_classes_is_dealt_as_well() -> None:
    labels = np.array([0, 1, 2, 3] * 20 + [0, 1] * 20)
    domain = np.repeat([0, 1], [80, 40])
    is_test = np.arange(120) // 4 % 4 == 0
    made = Samples(np.zeros((120, 1, 1, 3), np.uint8), labels, is_test, domain=domain, class_names=tuple("abcd"))
    split_ = split(made, PARTITIONERS["domain"](alpha=100.0), 4)
    assert [set(domain[part]) for part in split_.train].count({1}) == 2
    assert sorted(np.concatenate(list(split_.train)).tolist()) == np.flatnonzero(~is_test).tolist()


def test_pathological_shares_lie_in_the_papers_range() -> None:
    dataset = samples([3000] * 10, [100] * 10)
    made = split(dataset, PARTITIONERS["pathological"](classes_per_client=2), 20)
    shares = made.class_counts(dataset.labels, 10) / 3000
    low, high = 0.4 / (0.4 + 3 * 0.6), 0.6 / (0.6 + 3 * 0.4)  # four owners: one smallest, and one largest
    assert ((shares[shares > 0] >= low - 1 / 3000) & (shares[shares > 0] <= high + 1 / 3000)).all()
    assert shares[shares > 0].std() > 0.01


def test_pathological_says_what_does_not_go_round() -> None:
    make = PARTITIONERS["pathological"]
    with pytest.raises(DataError, match="classes_per_client is 10, but the dataset has 4 classes"):
        split(samples([20] * 4, [20] * 4), make(), 4)
    with pytest.raises(DataError, match="3 clients with 2 classes each cannot own all 10") as error:
        split(samples([20] * 10, [20] * 10), make(classes_per_client=2), 3)
    assert "raise classes_per_client to 4 or clients.number to 5" in str(error.value)
    with pytest.raises(DataError, match="class 2 has 5 training samples for its 10 owners, who need 15"):
        split(samples([20, 20, 5, 20], [20] * 4), make(classes_per_client=2), 20)
    with pytest.raises(DataError, match="class 4 has 0 training samples"):
        split(samples([20] * 4, [20] * 4, names=5), make(classes_per_client=2), 5)


def test_dirichlet_shares_have_the_moments_of_the_distribution() -> None:
    clients, alpha, groups = 5, 0.7, 20_000
    shares = dirichlet_shares(np.ones(groups, int), clients, alpha, rng.numpy_stream(0, "test"), balanced=False)
    mean = 1 / clients
    variance = mean * (1 - mean) / (clients * alpha + 1)
    assert np.allclose(shares.mean(0), mean, atol=5 * math.sqrt(variance / groups))
    assert np.allclose(shares.var(0), variance, rtol=0.05)


@pytest.mark.parametrize("seed", range(5))
def test_balanced_dirichlet_stops_at_an_equal_part(seed: int) -> None:
    counts = np.array([100, 50, 80, 0, 120, 60])
    stream = rng.numpy_stream(seed, "test")
    held = counts @ dirichlet_shares(counts, 4, 0.3, stream)
    # Whoever has reached N/K takes part in no later class, so nobody exceeds it by more than one class.
    assert held.max() < counts.sum() / 4 + counts.max()
    free = np.array([(counts @ dirichlet_shares(counts, 4, 0.3, stream, False)).max() for _ in range(50)])
    tied = np.array([(counts @ dirichlet_shares(counts, 4, 0.3, stream)).max() for _ in range(50)])
    assert tied.mean() < free.mean()


@pytest.mark.parametrize(("clients", "train", "test", "classes"), [(100, 500, 100, 100), (20, 100, 20, 100)])
@pytest.mark.parametrize("alpha", [0.1, 0.3, 0.5])
def test_the_usual_dirichlet_settings_need_no_luck(
    clients: int, train: int, test: int, classes: int, alpha: float
) -> None:
    make = PARTITIONERS["dirichlet"]
    made = split(samples([train] * classes, [test] * classes), make(alpha=alpha, redraws=2), clients, seed=1)
    assert min(map(len, made.train)) >= 10


def test_dirichlet_is_drawn_again_until_all_have_enough() -> None:
    make, small = PARTITIONERS["dirichlet"], samples([144] * 10, [36] * 10)
    lucky = 0
    for seed in range(20):
        split(small, make(alpha=0.1), 20, seed=seed)
        with contextlib.suppress(DataError):
            split(small, make(alpha=0.1, redraws=1), 20, seed=seed)
            lucky += 1
    assert lucky < 15, "this setting was chosen because one draw seldom does"


@pytest.mark.parametrize("train", [[100] * 10, [10, 400, 37, 90, 1, 222]])
@pytest.mark.parametrize("alpha", [1e-6, 0.1, 1.0, 30.0, 1e6])
def test_dirichlet_clients_are_equally_large(train: list[int], alpha: float) -> None:
    dataset = samples(train, [200] * len(train))
    made = split(dataset, PARTITIONERS["dirichlet_client"](alpha=alpha), 7)
    sizes = [len(part) for part in made.train]
    assert max(sizes) - min(sizes) <= 1
    assert sum(sizes) == sum(train)
    if alpha == 1e6:  # then every client is a draw from the dataset's own distribution
        expected = np.array(train) / 7
        off = np.abs(made.class_counts(dataset.labels, len(train)) - expected)
        assert (off <= 5 * np.sqrt(expected) + 1).all()


@pytest.mark.parametrize(
    ("name", "alphas"),
    [
        ("dirichlet", (0.03, 0.3, 3.0, 300.0)),
        ("dirichlet_client", (0.3, 3.0, 30.0, 3000.0)),
        ("domain", (0.03, 0.3, 3.0, 300.0)),
    ],
)
def test_larger_alpha_is_more_even(name: str, alphas: tuple[float, ...]) -> None:
    dataset = samples([100] * 10, [40] * 10)

    def unevenness(alpha: float) -> float:
        """How far clients' class distributions are from the dataset's: half the absolute differences, 0 to 1."""
        distances = []
        for seed in range(5):
            options = {"alpha": alpha, "min_train": 1, "redraws": 500}
            made = split(dataset, PARTITIONERS[name](**options), 9, seed=seed)
            counts = made.class_counts(dataset.labels, 10)
            distances.append(np.abs(counts / counts.sum(1, keepdims=True) - 0.1).sum(1).mean() / 2)
        return float(np.mean(distances))

    unevennesses = [unevenness(alpha) for alpha in alphas]
    assert all(more > less + 0.05 for more, less in itertools.pairwise(unevennesses)), unevennesses
    assert unevennesses[-1] < 0.12


@pytest.mark.parametrize("alpha", [None, 0.5])
@pytest.mark.parametrize("clients", [4, 6, 11])
def test_domain_clients_live_in_one_domain(alpha: float | None, clients: int) -> None:
    dataset = samples([100] * 6, [40] * 6, domains=4)
    dataset = dataclasses.replace(dataset, domain=dataset.domain * 10 + 3)  # any numbers will do
    made = split(dataset, PARTITIONERS["domain"](alpha=alpha), clients)
    homes = []
    for parts in zip(made.train, made.test, strict=True):
        domains = np.unique(dataset.domain[np.concatenate(parts)])
        assert len(domains) == 1
        homes.append(int(domains[0]))
    counts = np.unique(homes, return_counts=True)[1]
    assert len(counts) == 4
    assert counts.max() - counts.min() <= 1


def test_domain_says_what_is_missing() -> None:
    three = samples([30] * 3, [30] * 3)
    with pytest.raises(DataError, match="2 clients leave some of the 3 domains empty; take 3 or more"):
        split(three, PARTITIONERS["domain"](), 2)
    with pytest.raises(DataError, match="the dataset has no domains"):
        split(dataclasses.replace(three, domain=None), PARTITIONERS["domain"](), 5)


uneven = st.lists(st.integers(1, 40), min_size=1, max_size=6)


@settings(max_examples=60, deadline=None)
@given(sizes=uneven, batch_size=st.integers(1, 12), epochs=st.integers(1, 3), seed=st.integers(0, 99), pick=st.data())
def test_batches_count_every_sample_once_an_epoch(
    sizes: list[int], batch_size: int, epochs: int, seed: int, pick: Any
) -> None:
    edges = np.cumsum([0, *sizes])
    train = [np.arange(a, b) for a, b in itertools.pairwise(edges)]
    cohort = np.array(pick.draw(st.permutations(range(len(sizes)))))[: pick.draw(st.integers(1, len(sizes)))]
    made = batches(train, cohort, batch_size, epochs, seed, 4)

    steps = [epochs * math.ceil(sizes[k] / batch_size) for k in made.clients]
    assert sorted(made.clients) == sorted(cohort)
    assert steps == sorted(steps, reverse=True)
    shape = (max(steps), len(cohort), batch_size)
    assert made.index.shape == made.weight.shape == made.flip.shape == made.shift.shape[:3] == shape
    assert made.shift.shape[3:] == (2,)
    assert (np.abs(made.shift) <= 1).all()
    assert made.active == tuple(sum(n > s for n in steps) for s in range(shape[0]))
    assert set(np.unique(made.weight)) <= {0.0, 1.0}
    for row, k in enumerate(made.clients):
        index, weight = made.index[:, row], made.weight[:, row]
        assert np.isin(index, train[k]).all(), "padding belongs to the same client"
        assert (np.bincount(index.ravel(), weight.ravel(), minlength=edges[-1])[train[k]] == epochs).all()
        assert weight.sum() == epochs * sizes[k]
        assert (weight[: steps[row]].sum(1) >= 1).all(), "no step without a sample"
        assert not weight[steps[row] :].any(), "nothing counts after a client's end"
        per_epoch = steps[row] // epochs
        for epoch in range(epochs):
            here = slice(epoch * per_epoch, (epoch + 1) * per_epoch)
            drawn = index[here][weight[here] > 0]
            assert sorted(drawn) == list(train[k]), "each epoch sees every sample once"


def test_batches_do_not_depend_on_the_cohort() -> None:
    train = [np.arange(0, 7), np.arange(7, 30), np.arange(30, 34)]
    together = batches(train, np.array([0, 1, 2]), 5, 2, 0, 9)
    for k in range(3):
        alone = batches(train, np.array([k]), 5, 2, 0, 9)
        row, steps = int(np.flatnonzero(together.clients == k)[0]), len(alone.index)
        for name in ("index", "weight", "flip", "shift"):
            assert (getattr(together, name)[:steps, row] == getattr(alone, name)[:, 0]).all()
    other_round = batches(train, np.array([1]), 5, 2, 0, 10)
    assert (other_round.index != batches(train, np.array([1]), 5, 2, 0, 9).index).any()
    assert (batches(train, np.array([1]), 5, 2, 1, 9).index != batches(train, np.array([1]), 5, 2, 0, 9).index).any()


# ---------------------------------------------------------------- dirichlet_client: who draws when


def drawn_one_by_one(
    counts: list[int], wished: np.ndarray[Any, Any], sizes: list[int], draw: np.random.Generator
) -> np.ndarray[Any, Any]:
    """Hsu et al. sample by sample: each client in turn draws a class by its distribution, renormalised over what is left."""
    left, table = np.array(counts), np.zeros(wished.shape)
    for k, size in enumerate(sizes):
        for _ in range(size):
            odds = np.where(left > 0, wished[k], 0)
            c = draw.choice(len(left), p=odds / odds.sum())
            left[c] -= 1
            table[k, c] += 1
    return table


def test_clients_in_turn_draw_as_sample_by_sample() -> None:
    """The mean table of many draws, against a plain loop over samples."""
    module = sys.modules[PARTITIONERS["dirichlet_client"].__module__]
    counts, sizes = [4, 3, 5], [5, 4, 3]
    wished = np.array([[0.7, 0.2, 0.1], [0.6, 0.3, 0.1], [0.2, 0.4, 0.4]])
    fast_stream, slow_stream = np.random.default_rng(0), np.random.default_rng(1)
    repeats = 4000
    fast = [module._draw_in_turn(np.array(counts), wished, np.array(sizes), fast_stream) for _ in range(repeats)]
    slow = [drawn_one_by_one(counts, wished, sizes, slow_stream) for _ in range(repeats)]
    for tables in (fast, slow):
        assert all((table.sum(0) == counts).all() and (table.sum(1) == sizes).all() for table in tables)
    error = np.sqrt((np.var(fast, axis=0) + np.var(slow, axis=0)) / repeats)
    assert (np.abs(np.mean(fast, axis=0) - np.mean(slow, axis=0)) <= 4.5 * error + 1e-12).all()


def test_a_client_whose_classes_ran_out_takes_what_is_left() -> None:
    module = sys.modules[PARTITIONERS["dirichlet_client"].__module__]
    wished = np.array([[1.0, 0.0], [1.0, 0.0]])
    table = module._draw_in_turn(np.array([3, 3]), wished, np.array([3, 3]), np.random.default_rng(0))
    assert table.tolist() == [[3, 0], [0, 3]]


def entropy(shares: np.ndarray[Any, Any]) -> float:
    """The mean entropy in bits of the class distributions of clients, from their shares [C, clients] of equal classes."""
    distribution = shares / shares.sum(0)
    return float(-(distribution * np.log2(np.where(distribution > 0, distribution, 1))).sum(0).mean())


@pytest.mark.parametrize(("alpha", "low", "high"), [(0.1, 0.21, 0.68), (1.0, 1.13, 1.42), (10.0, 2.69, 2.81)])
def test_clients_in_turn_are_less_alike_than_at_once(alpha: float, low: float, high: float) -> None:
    """The numbers on the page; and the closed form of a Dirichlet's mean entropy, which the first clients keep."""
    labels = np.repeat(np.arange(10), 6000)
    digits = Samples(np.zeros((60_000, 1, 1, 3), np.uint8), labels, np.tile(np.arange(6000) >= 5000, 10))
    shares = {
        order: [
            PARTITIONERS["dirichlet_client"](alpha=alpha, order=order).shares(
                digits, 100, rng.numpy_stream(seed, "partition", 0)
            )
            for seed in range(5)
        ]
        for order in ("sequential", "simultaneous")
    }
    assert np.mean([entropy(shares_) for shares_ in shares["sequential"]]) == pytest.approx(low, abs=0.01)
    assert np.mean([entropy(shares_) for shares_ in shares["simultaneous"]]) == pytest.approx(high, abs=0.01)
    closed = (digamma(alpha + 1) - digamma(alpha / 10 + 1)) / np.log(2)
    first = [entropy(shares_[:, :30]) for shares_ in shares["sequential"]]
    assert np.mean(first) == pytest.approx(closed, abs=0.15)


@pytest.mark.parametrize("name", ["dirichlet", "dirichlet_client", "domain"])
def test_a_last_class_without_training_samples_is_no_mistake(name: str) -> None:
    dataset = samples([60] * 5 + [0], [20] * 6, order=2)
    made = split(dataset, PARTITIONERS[name](alpha=0.5), 6)
    assert made.train.sizes.sum() == 300
    assert np.bincount(dataset.labels[made.train.indices], minlength=6).tolist() == [60] * 5 + [0]


@pytest.mark.parametrize(
    ("share", "taken"),
    [(0.3, [0, 0, 1, 1, 3]), (0.9, [0, 0, 1, 2, 9]), (0.05, [0, 0, 1, 1, 1]), (1.0, [0, 0, 1, 2, 9])],
)
def test_a_cut_takes_its_share_but_at_least_one_sample_and_never_all(share: float, taken: list[int]) -> None:
    assert partition.cut(np.array([0, 1, 2, 3, 10]), share).tolist() == taken


def test_chosen_samples_are_so_many_of_each_client_and_each_sample_is_chosen_equally_often() -> None:
    owner, among = np.array([2, 0, 0, 2, 1, 0, 2, 2, -1]), np.array([1, 1, 1, 1, 1, 1, 0, 1, 0], dtype=bool)
    times = np.zeros(9)
    for seed in range(1000):
        mask = partition.chosen(owner, among, np.array([2, 0, 1]), np.random.default_rng(seed))
        assert [int(mask[owner == k].sum()) for k in (0, 1, 2)] == [2, 0, 1]
        times += mask
    third, whole = 1000 / 3, 2000 / 3
    assert np.allclose(times, [third, whole, whole, third, 0, whole, 0, third, 0], atol=60)


def test_clients_without_enough_samples_are_counted_and_the_first_is_described() -> None:
    owner = np.array([0, 0, 0, 1, 1, 2, 2, 2, 3, -1])
    is_test = np.array([0, 0, 1, 0, 1, 0, 0, 0, 1, 1], dtype=bool)
    assert partition.too_few(owner, is_test, 4, 2) == (
        3,
        "3 of 4 clients are left short, for example client 1 with 1 training and 1 test samples (at least 2 and 1 are needed)",
    )
    assert partition.too_few(owner, is_test, 4, 1)[0] == 2  # client 2 has no test sample, client 3 no training sample
    assert partition.too_few(owner[:3], is_test[:3], 1, 2)[0] == 0


@pytest.mark.parametrize(("balanced", "clients"), [(True, 3), (False, 3), (True, 1)])
def test_dirichlet_shares_of_each_class_sum_to_1_and_full_clients_get_none(balanced: bool, clients: int) -> None:
    counts, zeros = np.array([50, 30, 0, 20, 100]), 0
    for seed in range(50):
        stream = np.random.default_rng(seed)
        shares = partition.dirichlet_shares(counts, clients, 0.2, stream, balanced)
        assert np.allclose(shares.sum(1), 1)
        again, held = np.random.default_rng(seed), np.zeros(clients)
        for c in again.permutation(5):  # classes in this order, each over the clients that still want samples
            wants = held < 200 / clients if balanced else held < np.inf
            wants = wants if wants.any() else np.ones(clients, dtype=bool)
            expected = np.zeros(clients)
            expected[wants] = again.dirichlet([0.2] * int(wants.sum()))
            assert np.array_equal(shares[c], expected)
            held += counts[c] * expected
            zeros += int((~wants).sum())
    assert (zeros > 0) == (balanced and clients > 1)
