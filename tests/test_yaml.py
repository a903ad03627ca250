"""Sweep files as YAML: merge keys, numbers read as meant, and hostile files refused at once with a short message."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from fedbench.cli import sweep
from fedbench.plan.config import ConfigError, Sweep, slurm_minutes
from fedbench.plan.planning import check_sweep, read_sweep
from fedbench.plan.plugins import plugins
from fedbench.plan.yaml_reader import MAX_BYTES, YamlError, parse_yaml

BASE: dict[str, Any] = {"dataset": "glyphs", "partition": "iid", "method": "fedvpt"}


def read(tmp_path: Path, text: str) -> Sweep:
    (tmp_path / "sweep.yaml").write_text(text)
    return read_sweep(tmp_path / "sweep.yaml")


def refused(tmp_path: Path, text: str) -> str:
    """The message for a sweep file, which is short and comes soon."""
    start = time.process_time()
    with pytest.raises(ConfigError) as error:
        read(tmp_path, text)
    assert time.process_time() - start < 20
    assert len(str(error.value)) < 20_000
    return str(error.value)


def base(**more: Any) -> str:
    return yaml.safe_dump({"base": BASE | more})


# -- merge keys ----------------------------------------------------------------------------------------------------------------
def test_merge_keys_work(tmp_path: Path) -> None:
    made = read(
        tmp_path,
        """
base: &base
  dataset: glyphs
  partition: iid
  local: &local {lr: 0.5, epochs: 3}
grid:
  method:
    - {name: fedvpt, with: {local: {<<: *local, lr: 0.25}}}
    - {name: head_only, with: {local: {<<: [*local, {momentum: 0.0}]}}}
""",
    )
    assert [(p.run.local.lr, p.run.local.epochs, p.run.local.momentum) for p in made.runs] == [
        (0.25, 3, 0.9),
        (0.5, 3, 0.0),
    ]


def test_a_key_that_is_merged_and_given_is_not_given_twice(tmp_path: Path) -> None:
    text = "base: {dataset: glyphs, partition: iid, method: fedvpt, clients: &c {number: 20}, seed: 1}\n"
    assert read(tmp_path, text + "machine: {}\n").runs
    assert "given twice" in refused(tmp_path, text.replace("seed: 1", "seed: 1, seed: 2"))


# -- numbers -------------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("text", "minutes"),
    [
        ("60", 60),
        ("12:00:00", 720),  # hours:minutes:seconds, not 43,200 minutes
        ("1:30", 2),  # minutes:seconds, rounded up as Slurm does
        ("90:00", 90),
        ("1-12", 2160),
        ("2-1:30", 2970),
        ("1-00:00:30", 1441),
        ("0-0:05", 5),
    ],
)
def test_times_are_read_as_slurm_reads_them(text: str, minutes: int, tmp_path: Path) -> None:
    made = read(tmp_path, base() + f"cluster: {{timeout_min: {text}}}\n")
    assert made.cluster.timeout_min == minutes
    assert read_sweep(tmp_path / "sweep.yaml", settings=[f"cluster.timeout_min={text}"]).cluster.timeout_min == minutes


@pytest.mark.parametrize("text", ["", "12h", "1:2:3:4", "-5", "1.5:00", "UNLIMITED", "1-", "0:00"])
def test_what_slurm_would_not_read_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"cluster\.timeout_min"):
        check_sweep({"base": BASE, "cluster": {"timeout_min": text}}, plugins())
    if text != "0:00":
        with pytest.raises(ValueError, match="expected minutes"):
            slurm_minutes(text)


@pytest.mark.parametrize(
    ("block", "message"),
    [
        ("rounds: 010", "010 begins with 0: write 10"),
        ("rounds: 1:30", "run.rounds: Input should be a valid integer"),
        ("rounds: true", "run.rounds: expected a value that is not true or false, found True"),
        ("rounds: yes", "run.rounds: expected a value that is not true or false, found True"),
        ("seed: false", "run.seed: expected a value that is not true or false"),
        ("local: {lr: true}", "local.lr: expected a value that is not true or false"),
        ("local: {lr: .inf}", "local.lr: expected a finite number, found inf"),
        ("local: {lr: 1e400}", "local.lr: expected a finite number, found inf"),
        ("local: {lr: .nan}", "local.lr: expected a finite number, found nan"),
        ("rounds: 1e400", "run.rounds: expected a finite number, found inf"),
        ("partition: {name: dirichlet, alpha: .inf}", "partition dirichlet.alpha: expected a finite number"),
        ("partition: {name: dirichlet, alpha: on}", "partition dirichlet.alpha: expected a value that is not true"),
        ("method: {name: fedvpt, prompt_length: true}", "method fedvpt.prompt_length: expected a value that is not"),
        ("method: {name: fedvpt, 1: 2}", "method fedvpt: unknown name 1"),
        ("method: {name: fedvpt, label: no}", "method.label: expected text, found False"),
        ("method: {name: fedvpt, label: 0}", "method.label: expected text, found 0"),
        ("method: {name: fedvpt, label: on}", "method.label: expected text, found True"),
        ("method: {name: fedvpt, label: ''}", "method.label: expected text, found ''"),
        ("method: {name: fedvpt, label: [a]}", "method.label: expected text, found ['a']"),
        ("dataset: {name: glyphs, label: x}", "dataset glyphs: unknown name 'label'"),
        ("seed: " + "9" * 5000, "(5,000 digits) is out of the range"),
        ("seed: 9223372036854775808", "out of the range of 64-bit integers"),
    ],
)
def test_a_value_that_means_something_else_is_refused(block: str, message: str, tmp_path: Path) -> None:
    lines = [f"  {key}: {value}" for key, value in BASE.items() if not block.startswith(f"{key}:")]
    assert message in refused(tmp_path, "\n".join(["base:", f"  {block}", *lines]))


@pytest.mark.parametrize("name", ["no", "0", "on", "[a]", "1.5"])
def test_the_name_of_a_sweep_is_text(name: str, tmp_path: Path) -> None:
    assert "name: expected text" in refused(tmp_path, f"name: {name}\n{base()}")


def test_numbers_are_those_that_are_written(tmp_path: Path) -> None:
    made = read(tmp_path, "base: {dataset: glyphs, partition: iid, method: fedvpt, local: {lr: 1e-4}, seed: 1_000}\n")
    assert (made.runs[0].run.local.lr, made.runs[0].run.seed) == (1e-4, 1000)
    tuned = read(tmp_path, base() + "tune: {search: {local.lr: {log: [1e-4, 1e-1]}}}\n")
    assert tuned.tune is not None
    assert tuned.tune.search["local.lr"] == {"log": (1e-4, 1e-1)}


# -- hostile files -------------------------------------------------------------------------------------------------------------
BOMB = "\n".join(
    ["a: &a [x, x, x, x, x, x, x, x, x]"]
    + [f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]" for old, new in zip("abcdefgh", "bcdefghi", strict=True)]
)
MERGE_BOMB = "\n".join(
    ["a: &a {x: 1, y: 2}"]
    + [f"{new}: &{new} {{<<: [{', '.join([f'*{old}'] * 9)}]}}" for old, new in zip("abcdefgh", "bcdefghi", strict=True)]
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("base: {seed: 2024-13-45}", "run.seed: Input should be a valid integer"),
        ("base: !!timestamp 2024-13-45", "not YAML"),
        ("name: 2024-02-30\nbase: {}", "method: missing"),
        ("base: {seed: !!int x}", "not YAML"),
        ("base: !!binary x", "not YAML"),
        ("[" * 5000, "nested more than 50 deep"),
        ("{a: " * 5000, "nested more than 50 deep"),
        ("- " * 5000, "nested more than 50 deep"),
        ("base: &a [*a]", "the alias *a contains itself"),
        ("base: &a {x: {y: *a}}", "the alias *a contains itself"),
        ("base: &a {<<: *a}", "the alias *a contains itself"),
        (BOMB, "more than 200,000 values, aliases included"),
        (MERGE_BOMB, "more than 200,000 values, aliases included"),
        ("base: {a\0b: 1}", "not YAML"),
        ("#" * (MAX_BYTES + 1), "the file has 1,048,577 bytes; at most 1,048,576 are read"),
    ],
    ids=lambda text: text[:30],
)
def test_a_hostile_file_is_refused(text: str, message: str, tmp_path: Path) -> None:
    assert message in refused(tmp_path, text)


def test_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    (tmp_path / "sweep.yaml").write_bytes(b"\xaf\x00\xff")
    with pytest.raises(ConfigError, match="not YAML: not UTF-8 text"):
        read_sweep(tmp_path / "sweep.yaml")


def test_a_pipe_as_a_sweep_file_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.yaml")
    with pytest.raises(ConfigError, match=r"pipe\.yaml: cannot be read \(it is no regular file\)"):
        read_sweep(tmp_path / "pipe.yaml")


@pytest.mark.parametrize("block", ["dataset: {name: npz, path: PATH}", "backbone: {weights: PATH}"])
def test_a_pipe_as_a_file_of_a_run_is_refused_and_not_waited_for(block: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    lines = [f"  {key}: {value}" for key, value in BASE.items() if not block.startswith(f"{key}:")]
    text = "\n".join(["base:", "  " + block.replace("PATH", str(tmp_path / "pipe")), *lines])
    assert "pipe: neither a regular file nor a folder" in refused(tmp_path, text)


@pytest.mark.parametrize(
    "where",
    ["base", *(pytest.param(name, marks=pytest.mark.slow) for name in ("grid", "machine", "", "local", "method"))],
)
def test_200000_unknown_keys_give_a_short_message_soon(where: str) -> None:
    keys: Any = {f"key{i}": [1] for i in range(200_000)}
    content: dict[str, Any] = {"base": dict(BASE)}
    if where == "":
        content |= keys
    elif where == "local":
        content["base"]["local"] = keys
    elif where == "method":
        content["base"]["method"] = {"name": "fedvpt", **keys}
    else:
        content[where] = content.get(where, {}) | keys
    start = time.process_time()
    with pytest.raises(ConfigError) as error:
        check_sweep(content, plugins())
    assert time.process_time() - start < 20
    assert len(str(error.value)) < 20_000
    assert "more unknown names" in str(error.value)


@pytest.mark.parametrize("value", [["x"] * 200_000, {"a": "y" * 10**6}, "z" * 10**6])
def test_a_huge_value_is_shortened_in_the_message(value: Any) -> None:
    with pytest.raises(ConfigError) as error:
        check_sweep({"base": {**BASE, "rounds": value, "local": value, "dataset": value}}, plugins())
    assert len(str(error.value)) < 10_000


def test_a_grid_of_a_billion_runs_is_refused_at_once() -> None:
    grid = {"seed": list(range(1000)), "rounds": list(range(1, 1001)), "local.lr": [0.1 + i for i in range(1000)]}
    start = time.process_time()
    with pytest.raises(ConfigError, match=r"grid: 1,000 x 1,000 x 1,000 = 1,000,000,000 runs; a sweep has at most"):
        check_sweep({"base": BASE, "grid": grid}, plugins())
    assert time.process_time() - start < 5


def test_the_command_ends_with_exit_code_2_and_no_traceback(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for text in (BOMB, "base: &a [*a]", "base: {seed: " + "9" * 5000 + "}", "[" * 5000, "base: {seed: 2024-13-45}"):
        (tmp_path / "sweep.yaml").write_text(text)
        assert sweep.main([str(tmp_path / "sweep.yaml"), "--dry-run"]) == 2
        assert capsys.readouterr().err.startswith("error: ")


def test_a_setting_is_read_as_strictly_as_the_file() -> None:
    for setting in ("seed=010", "seed=" + "9" * 5000, "seed=&a [*a]", "seed=" + "[" * 100):
        with pytest.raises(ConfigError, match="not a YAML value"):
            check_sweep({"base": BASE}, plugins(), [setting])
    with pytest.raises(YamlError):
        parse_yaml("a: 1\na: 2")


# -- paths ---------------------------------------------------------------------------------------------------------------------
@pytest.fixture
def images(tmp_path: Path) -> Path:
    path = tmp_path / "home" / "x.npz"
    path.parent.mkdir()
    np.savez(path, images=np.zeros((4, 8, 8, 3), np.uint8), labels=np.arange(4) % 2, is_test=np.arange(4) < 2)
    return path


@pytest.mark.parametrize("written", ["~/x.npz", "$DATA/x.npz", "${DATA}/x.npz", "$DATA/../home/x.npz", "home/x.npz"])
def test_home_and_variables_expand_in_paths(
    written: str, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(images.parent))
    monkeypatch.setenv("DATA", str(images.parent))
    monkeypatch.chdir(tmp_path)
    machine = {"data": "~/x" if written.startswith("~") else "$DATA/x"}
    made = check_sweep({"base": {**BASE, "dataset": {"name": "npz", "path": written}}, "machine": machine}, plugins())
    assert made.runs[0].run.dataset["path"] == images
    assert made.machine.data == images.parent / "x"
    assert not (tmp_path / "~").exists()


def test_a_path_that_exists_is_taken_literally(tmp_path: Path, images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    images.rename(tmp_path / "a$b.npz")
    made = check_sweep({"base": {**BASE, "dataset": {"name": "npz", "path": "a$b.npz"}}}, plugins())
    assert made.runs[0].run.dataset["path"] == tmp_path / "a$b.npz"


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ("$NOT_SET_HERE/x.npz", "the environment variable $NOT_SET_HERE is not set"),
        ("~nobody_of_this_name/x.npz", "no user is called 'nobody_of_this_name'"),
        ("missing.npz", "missing.npz: No such file or directory (relative to the current folder)"),
        ("a\0b", "a path cannot contain a NUL character"),
    ],
)
def test_a_path_that_leads_nowhere_is_named(written: str, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        check_sweep({"base": {**BASE, "dataset": {"name": "npz", "path": written}}}, plugins())
    assert message in str(error.value)
