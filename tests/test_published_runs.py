"""Published runs: packed into one file, filled into another person's report, run again, and refused if damaged."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import yaml
from pyarrow import parquet

from fedbench.base.home import HOME
from fedbench.base.records import RunFolder, run_folders
from fedbench.cli import figures, publish, sweep, unpack, verify
from fedbench.plan.planning import check_sweep, read_sweep
from fedbench.plan.plugins import plugins
from fedbench.plan.rerun import planned_from_identity
from fedbench.report import published_rows, published_runs
from fedbench.report.evidence import gather
from fedbench.report.figures import report_figures
from fedbench.report.figures.catalogue import FigureCatalogue
from fedbench.report.published_runs import PublishedRun, PublishedRunsError
from fedbench.report.selection import Selection
from fedbench.report.tables import notes


@dataclasses.dataclass(frozen=True)
class World:
    """A finished sweep of two methods and two seeds on noise, and the file that it was published as."""

    folder: Path
    sweep: Path
    results: Path
    file: Path

    @property
    def images(self) -> Path:
        return self.folder / "tiny.npz"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    folder = tmp_path_factory.mktemp("published")
    labels = np.arange(60) % 2
    images = np.random.default_rng(0).integers(0, 160, (60, 16, 16, 3)) + 60 * labels[:, None, None, None]
    np.savez(folder / "tiny.npz", images=images.astype(np.uint8), labels=labels, is_test=np.arange(60) % 10 < 4)
    base = {
        "dataset": {"name": "npz", "path": str(folder / "tiny.npz")},
        "partition": "iid",
        "rounds": 2,
        "evaluate_every": 1,
        "clients": {"number": 4, "per_round": 2, "held_out": 1},
    }
    content = {"base": base, "grid": {"method": [{"name": "head_only"}, {"name": "fedncm"}], "seed": [0, 1]}}
    content["machine"] = {"data": str(folder / "data"), "device": "cpu"}
    file = folder / "tiny.yaml"
    file.write_text(yaml.safe_dump(content))
    world = World(folder, file, folder / "results", folder / "tiny.parquet")
    assert sweep.main([str(file), "--results", str(world.results), "--cluster", "inline", "--no-watch"]) == 0
    assert publish.main([str(file), "--results", str(world.results), "--out", str(world.file)]) == 0
    return world


def names_of(world: World, method: str) -> list[str]:
    return [folder.path.name for folder in run_folders(world.results) if folder.path.name.startswith(method)]


def rewritten(world: World, path: Path, change: Any) -> Path:
    """A copy of the published file, each of its rows changed by `change(row)`, in the same schema."""
    rows = parquet.read_table(world.file).to_pylist()
    for row in rows:
        change(row)
    parquet.write_table(pa.Table.from_pylist(rows, published_runs.SCHEMA), path)
    return path


def changed_records(row: dict[str, Any], number: int, **values: Any) -> None:
    records = json.loads(row["records"])
    records[number] |= values
    row["records"] = json.dumps(records)


# -- publish -----------------------------------------------------------------------------------------------------------
def test_a_published_file_holds_what_the_runs_wrote(world):
    runs = published_runs.read(world.file)
    assert [run.name for run in runs] == sorted(folder.path.name for folder in run_folders(world.results))
    for run in runs:
        folder = RunFolder(world.results / run.name)
        assert run.records == folder.records()
        assert (run.identity, run.label) == (folder.config()["identity"], folder.config()["label"])
        assert run.provenance["torch"] == folder.environment()["torch"]
        table = parquet.read_table(folder.path / "clients.parquet")
        for column in ("client", "held_out", "train_samples", "test_samples", "accuracy"):
            np.testing.assert_array_equal(run.clients[column], table.column(column).to_numpy(), err_msg=column)
    text = world.file.read_bytes() + str(parquet.read_table(world.file).to_pylist()).encode()
    for private in (str(world.folder), "hostname", "command", "packages"):
        assert private.encode() not in text
    assert world.file.stat().st_size < 25_000


def test_the_same_runs_give_the_same_bytes_wherever_they_are(world, tmp_path):
    shutil.copytree(world.results, tmp_path / "moved")
    for folder in (tmp_path / "moved").iterdir():
        os.utime(folder, (0, 0))
    again = tmp_path / "new" / "folder" / "again.parquet"
    assert publish.main([str(world.sweep), "--results", str(tmp_path / "moved"), "--out", str(again)]) == 0
    assert again.read_bytes() == world.file.read_bytes()


def test_runs_that_are_not_done_or_are_damaged_are_left_out_and_named(world, tmp_path, capsys):
    shutil.copytree(world.results, tmp_path / "results")
    first, second = names_of(world, "head_only")
    (tmp_path / "results" / first / "done").unlink()
    with open(tmp_path / "results" / second / "records.jsonl", "a") as file:
        file.write("\n")
    out = tmp_path / "some.parquet"
    assert publish.main([str(world.sweep), "--results", str(tmp_path / "results"), "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert f"left out: {first}: running" in said
    assert f"left out: {second}: " in said
    assert "records.jsonl does not hold what the run wrote" in said
    assert "2 of 4 runs" in said
    assert [run.name for run in published_runs.read(out)] == names_of(world, "fedncm")


def test_without_finished_runs_nothing_is_written(world, tmp_path, capsys):
    out = tmp_path / "none.parquet"
    assert publish.main([str(world.sweep), "--results", str(tmp_path / "nothing"), "--out", str(out)]) == 2
    (message,) = capsys.readouterr().err.splitlines()
    assert "none of the 4 runs of tiny is done" in message
    assert not out.exists()


@pytest.mark.parametrize("name", ["quickstart", "pep_ablation_nano", "clip_quickstart", "nano_plain"])
def test_published_runs_are_runs_of_todays_sweep(name):
    """A key added to identities would make earlier runs unknown to their own sweep file."""
    planned = {run.name for run in read_sweep(HOME / "sweeps" / f"{name}.yaml", [], [], None).runs}
    assert {run.name for run in published_runs.read(published_rows.PUBLISHED / f"{name}.parquet")} <= planned


def test_published_files_are_tracked_and_run_folders_are_not():
    lines = (HOME / ".gitignore").read_text().splitlines()
    assert "results/" not in lines  # a file below an ignored folder cannot be tracked
    assert lines.index("results/*") < lines.index("!results/published/")


# -- figures -----------------------------------------------------------------------------------------------------------
def report(world: World, results: Path, out: Path, *more: str) -> str:
    arguments = [str(world.sweep), "--results", str(results), "--out", str(out), *more]
    assert figures.main(arguments) == 0
    return (out / "table.md").read_text()


def test_rows_that_were_not_run_here_come_from_published_files_and_say_so(world, tmp_path, monkeypatch):
    monkeypatch.setattr(report_figures, "all_figures", lambda *_: FigureCatalogue.empty())
    (tmp_path / "results").mkdir()
    for name in names_of(world, "head_only"):
        shutil.copytree(world.results / name, tmp_path / "results" / name)
    table = report(world, tmp_path / "results", tmp_path / "out", "--published", str(world.file))
    whole = report(world, world.results, tmp_path / "whole")
    line = "Published runs, not done here, from tiny.parquet (runs of each method): fedncm (2 of 2)"
    assert line in " ".join(table.replace("\\", "").split())
    assert "Published runs" not in whole
    for file in ("table.csv", "comparisons.csv"):  # the same numbers as if all had been run here
        assert (tmp_path / "out" / file).read_text() == (tmp_path / "whole" / file).read_text()
    assert line in " ".join((tmp_path / "out" / "index.html").read_text().split())
    here = sorted(path.name for path in (tmp_path / "results").iterdir())
    assert here == names_of(world, "head_only")  # nothing was added to the user's results


def test_runs_done_here_win_over_published_ones(world, tmp_path):
    def worse(row: dict[str, Any]) -> None:
        changed_records(row, 1, pooled_accuracy=0.0)

    rewritten(world, tmp_path / "other.parquet", worse)
    with published_rows.filled(world.results, [tmp_path / "other.parquet"]) as results:
        assert results.sources == {}
        evidence = results.marked(gather([], results.path))
    assert (evidence.runs["pooled_accuracy"] > 0).all()
    assert evidence.published == {}
    assert notes.published_lines(evidence.runs, evidence.published) == []


def test_all_files_of_the_published_folder_are_used_by_default(world, tmp_path, monkeypatch):
    monkeypatch.setattr(published_rows, "PUBLISHED", tmp_path / "published")
    with pytest.raises(published_rows.ReportError, match="holds no parquet files"), published_rows.filled(tmp_path, []):
        pass
    (tmp_path / "published").mkdir()
    shutil.copy(world.file, tmp_path / "published" / "b.parquet")
    (tmp_path / "published" / "a.parquet").write_bytes(b"PAR1 nothing PAR1")
    with published_rows.filled(tmp_path / "results", []) as results:
        assert {file for _, file in results.sources.values()} == {"b.parquet"}
        assert len(results.sources) == 4
        assert len(results.notes) == 1
        assert "a.parquet: cannot be read as a file of published runs" in results.notes[0]


def test_notes_name_unused_files_first_and_then_folders_where_the_user_has_them(tmp_path):
    filled = published_rows.FilledResults(tmp_path / "made", tmp_path / "results", {}, ("a.parquet: damaged",))
    selection = filled.checked(Selection([], [f"{tmp_path / 'made' / 'run'} is odd"]))
    assert selection.notes == ["a.parquet: damaged", f"{tmp_path / 'results' / 'run'} is odd"]


def test_a_tuned_sweep_is_filled_with_the_published_trials_and_their_choice(world, tmp_path):
    content = yaml.safe_load(world.sweep.read_text())
    content["base"]["clients"]["validation"] = 0.3
    content["grid"] = {"method": [{"name": "head_only"}]}
    content["tune"] = {"trials": 2, "search": {"local.lr": {"log": [0.001, 1.0]}}}
    file, results, out = tmp_path / "tuned.yaml", tmp_path / "results", tmp_path / "tuned.parquet"
    file.write_text(yaml.safe_dump(content))
    assert sweep.main([str(file), "--results", str(results), "--cluster", "inline", "--no-watch"]) == 0
    assert publish.main([str(file), "--results", str(results), "--out", str(out)]) == 0
    here = gather([file], results)
    with published_rows.filled(tmp_path / "nothing", [out]) as folder:
        there = folder.marked(gather([file], folder.path))
    pd.testing.assert_frame_equal(there.runs, here.runs)
    pd.testing.assert_frame_equal(there.trials, here.trials)
    assert there.published == dict.fromkeys(here.runs["run"], "tuned.parquet")
    assert len(there.trials) == 2


# -- damaged and foreign files -----------------------------------------------------------------------------------------
def with_nan(row: dict[str, Any]) -> None:
    row["records"] = row["records"].replace('"mean_accuracy": ', '"mean_accuracy": NaN, "x": ', 1)


def too_good(row: dict[str, Any]) -> None:
    changed_records(row, 0, mean_accuracy=7.5)


def other_identity(row: dict[str, Any]) -> None:
    row["identity"] = json.dumps(json.loads(row["identity"]) | {"rounds": 3})


def escaping(row: dict[str, Any]) -> None:
    row["run"] = f"../../{row['run']}"


def fewer_clients(row: dict[str, Any]) -> None:
    row["accuracy"] = row["accuracy"][1:]


def better_clients(row: dict[str, Any]) -> None:
    row["accuracy"] = [1 - value / 2 for value in row["accuracy"]]


def one_round(row: dict[str, Any]) -> None:
    row["records"] = json.dumps(json.loads(row["records"])[:1])


def with_a_path(row: dict[str, Any]) -> None:
    row["provenance"] = json.dumps({"hostname": "somewhere"})


def no_label(row: dict[str, Any]) -> None:
    row["label"] = " "


def label_missing(row: dict[str, Any]) -> None:
    row["label"] = None


def records_of_a_mapping(row: dict[str, Any]) -> None:
    row["records"] = "{}"


def tuning_of_a_list(row: dict[str, Any]) -> None:
    row["tuning"] = "[]"


def cut_text(row: dict[str, Any]) -> None:
    row["provenance"] = row["provenance"][:-1]


def records_of_another_run(row: dict[str, Any]) -> None:
    changed_records(row, 1, run="another")


def records_of_another_config(row: dict[str, Any]) -> None:
    changed_records(row, 1, config_hash="another")


def negative_count(row: dict[str, Any]) -> None:
    row["train_samples"] = [-1, *row["train_samples"][1:]]


def count_missing(row: dict[str, Any]) -> None:
    row["held_out"] = [None, *row["held_out"][1:]]


def share_above_one(row: dict[str, Any]) -> None:
    row["val_accuracy"] = [1.5, *row["val_accuracy"][1:]]


def no_client_accuracies(row: dict[str, Any]) -> None:
    row["accuracy"] = [None] * len(row["accuracy"])


DAMAGES = {
    no_label: "its label is empty",
    label_missing: "label is missing",
    records_of_a_mapping: "expected a list in records",
    tuning_of_a_list: "expected a mapping in tuning",
    cut_text: "provenance is not JSON",
    records_of_another_run: "round 2: the record is of another run",
    records_of_another_config: "round 2: the record is of another run",
    negative_count: "train_samples is -1, expected counts",
    count_missing: "held_out is None, expected counts",
    share_above_one: "val_accuracy is 1.5, expected shares from 0 to 1",
    no_client_accuracies: "the mean of their accuracies is not that of the last record",
    with_nan: "NaN is not a finite number",
    too_good: "mean_accuracy: expected a share from 0 to 1",
    other_identity: "is not that of its identity",
    escaping: "is not that of its identity",
    fewer_clients: "as many values in each column",
    better_clients: "the mean of their accuracies is not that of the last record",
    one_round: "expected one for each of the rounds 1, 2",
    with_a_path: "unknown key 'hostname'",
}


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_a_file_with_odd_content_is_refused_with_the_reason(world, tmp_path, damage):
    path = rewritten(world, tmp_path / "odd.parquet", damage)
    with pytest.raises(PublishedRunsError) as refusal:
        published_runs.read(path)
    assert str(refusal.value).startswith(f"{path}, run 1")
    assert DAMAGES[damage] in str(refusal.value)


def test_foreign_and_broken_files_are_refused_with_the_reason(world, tmp_path, capsys):
    path = tmp_path / "odd.parquet"
    whole, table = world.file.read_bytes(), parquet.read_table(world.file)
    cases: dict[str, Any] = {
        "it lacks records": lambda: parquet.write_table(table.drop_columns(["records"]), path),
        "other types have run": lambda: parquet.write_table(
            table.set_column(0, "run", pa.array(range(4))).replace_schema_metadata(table.schema.metadata), path
        ),
        "its metadata should be": lambda: parquet.write_table(table.replace_schema_metadata({}), path),
        "holds a run twice": lambda: parquet.write_table(pa.concat_tables([table, table]), path),
        "holds no runs": lambda: parquet.write_table(table.slice(0, 0), path),
        "cannot be read as a file": lambda: path.write_bytes(whole[: len(whole) // 2]),
        "No such file": path.unlink,
        "found a folder": path.mkdir,
    }
    for reason, make in cases.items():
        make()
        assert verify.main([str(path)]) == 2
        (message,) = capsys.readouterr().err.splitlines()
        assert message.startswith(f"error: {path}: "), message
        assert reason in message
    with pytest.raises(published_rows.ReportError, match="found a folder"), published_rows.filled(tmp_path, [path]):
        pass


def test_no_flipped_byte_changes_a_number_unnoticed(world, tmp_path):
    whole, runs = world.file.read_bytes(), published_runs.read(world.file)
    for place in np.random.default_rng(0).integers(0, len(whole), 60):
        flipped = bytearray(whole)
        flipped[place] ^= 1 << int(place % 8)
        (tmp_path / "flipped.parquet").write_bytes(flipped)
        try:
            assert published_runs.read(tmp_path / "flipped.parquet") == runs, f"byte {place}"
        except PublishedRunsError:
            continue


def test_a_file_that_decompresses_to_more_than_the_limit_is_refused_before_it_is_read(world, monkeypatch):
    metadata = parquet.ParquetFile(world.file).metadata
    assert metadata.row_group(0).column(0).compression == "ZSTD"
    size = sum(metadata.row_group(i).total_byte_size for i in range(metadata.num_row_groups))
    assert published_runs.LARGEST_BYTES == 2**30
    monkeypatch.setattr(published_runs, "LARGEST_BYTES", size)
    assert len(published_runs.read(world.file)) == 4
    monkeypatch.setattr(published_runs, "LARGEST_BYTES", size - 1)
    with pytest.raises(PublishedRunsError, match="its content is larger than"):
        published_runs.read(world.file)


# -- verify ------------------------------------------------------------------------------------------------------------
def test_a_rerun_equals_the_published_records_to_the_bit(world, capsys):
    assert verify.main([str(world.file), "--sample", "2", "--seed", "1", "--files", str(world.images)]) == 0
    said = capsys.readouterr().out
    assert "2 of 4 runs, drawn with seed 1" in said
    assert said.count("pass (to the bit)") == 2
    assert said.count("no difference") == 2
    assert verify.main([str(world.file), "--sample", "2", "--seed", "1", "--files", str(world.images)]) == 0
    assert capsys.readouterr().out == said  # the same draw


def test_a_changed_accuracy_fails_and_the_difference_is_named(world, tmp_path, capsys):
    def better(row: dict[str, Any]) -> None:
        record = json.loads(row["records"])[0]
        up = -0.25 if record["mean_accuracy"] > 0.5 else 0.25
        changed_records(row, 0, mean_accuracy=record["mean_accuracy"] + up)

    file = rewritten(world, tmp_path / "changed.parquet", better)
    assert verify.main([str(file), "--sample", "1", "--files", str(world.images)]) == 1
    said = capsys.readouterr().out
    assert "fail (to the bit)" in said
    assert "largest difference 25 points, mean_accuracy in round 1" in said


@pytest.mark.parametrize(("points", "code"), [(0.4, 0), (0.6, 1)])
@pytest.mark.parametrize("difference", ["versions", "images"])
def test_other_versions_and_images_are_compared_within_the_tolerance(world, tmp_path, capsys, points, code, difference):
    def elsewhere(row: dict[str, Any]) -> None:
        accuracy = json.loads(row["records"])[0]["mean_accuracy"]
        changed = {"mean_accuracy": accuracy + points / 100 * (-1 if accuracy > 0.5 else 1)}
        if difference == "images":  # drawn a little differently, as by another version of Pillow
            changed["data_hash"] = "0" * 16
        else:
            row["provenance"] = json.dumps(json.loads(row["provenance"]) | {"torch": "1.0"})
        changed_records(row, 0, **changed)

    file = rewritten(world, tmp_path / "elsewhere.parquet", elsewhere)
    arguments = [str(file), "--sample", "1", "--files", str(world.images), "--tolerance", "0.5"]
    assert verify.main(arguments) == code
    said = capsys.readouterr().out
    assert ("pass (within tolerance)", "fail (within tolerance)")[code] in said
    assert f"largest difference {points} points" in said
    assert ("the images here differ" in said) == (difference == "images")


def test_runs_without_their_data_or_plug_ins_are_named_and_skipped(world, tmp_path, capsys):
    assert verify.main([str(world.file), "--sample", "2"]) == 2
    said = capsys.readouterr().out
    assert said.count("skipped  ") == 2
    assert said.count("no file with the content of dataset.path is named by --files") == 2

    def of_another(run: PublishedRun) -> PublishedRun:
        identity = run.identity | {"method": {"name": "not_here"}}
        digest = published_runs.config_hash(identity)
        name = f"not_here-{digest[:8]}"
        records = [record | {"run": name, "config_hash": digest} for record in run.records]
        return dataclasses.replace(run, name=name, identity=identity, records=records)

    published_runs.write(tmp_path / "other.parquet", [of_another(published_runs.read(world.file)[0])])
    assert verify.main([str(tmp_path / "other.parquet"), "--files", str(world.images)]) == 2
    assert "there is no method plug-in 'not_here' here" in capsys.readouterr().out


def test_a_sweep_goes_on_from_unpacked_runs_and_publishing_them_again_gives_the_same_bytes(world, tmp_path, capsys):
    results, again = tmp_path / "results", tmp_path / "again.parquet"
    names = [run.name for run in published_runs.read(world.file)]
    shutil.copytree(world.results / names[0], results / names[0])  # a run that is here already is left alone
    before = (results / names[0] / "env.json").read_bytes()
    assert unpack.main([str(world.file), "--results", str(results)]) == 0
    assert f"{len(names) - 1} of {len(names)} runs written, 1 are here already" in capsys.readouterr().out
    assert (results / names[0] / "env.json").read_bytes() == before
    assert (
        sweep.main([str(world.sweep), "--results", str(results), "--cluster", "inline", "--set", "grid.seed=[0, 1, 2]"])
        == 0
    )
    said = capsys.readouterr()
    assert "6 runs: 2 pending, 4 done; 2 started" in said.out
    assert said.err == ""
    assert publish.main([str(world.sweep), "--results", str(results), "--out", str(again)]) == 0
    assert again.read_bytes() == world.file.read_bytes()
    assert unpack.main([str(tmp_path / "none.parquet"), "--results", str(results)]) == 2
    assert "none.parquet" in capsys.readouterr().err


# -- the files of this repository -----------------------------------------------------------------------------------------
def test_every_run_of_this_repository_s_files_has_the_identity_that_the_code_gives_it():
    """An option added without `added_later=True` would make all finished and published runs strangers."""
    available, checked = plugins(), 0
    files = sorted(published_rows.PUBLISHED.glob("*.parquet"))
    for run in {
        run.name: run for file in files for run in published_runs.read(file) if run.identity["seed"] == 0
    }.values():
        planned = planned_from_identity(run.identity, run.label, available, HOME / "data")
        assert planned.name == run.name
        checked += 1
    assert checked >= 14  # a seed of the demo


def test_a_later_option_is_part_of_the_identity_only_if_it_is_not_at_its_default():
    base = {"dataset": "glyphs", "partition": "iid", "method": "fedvpt", "clients": {"number": 4, "per_round": 2}}
    plain, default, other = (
        check_sweep({"base": base | more}, plugins()).runs[0]
        for more in (
            {},
            {"aggregation": {"name": "fedavg", "weighting": "samples"}},
            {"aggregation": {"name": "fedavg", "weighting": "uniform"}},
        )
    )
    assert plain.identity["aggregation"] == {"name": "fedavg"}
    assert plain.identity == default.identity
    assert other.identity["aggregation"] == {"name": "fedavg", "weighting": "uniform"}
    assert default.run.aggregation["weighting"] == "samples"


def test_a_column_of_clients_is_unpacked_as_runs_write_it():
    shares = published_runs._array("val_accuracy", [0.5, None])
    assert (shares.type, shares.null_count) == (pa.float64(), 0)
    np.testing.assert_array_equal(shares.to_numpy(), [0.5, np.nan])
    counts = published_runs._array("train_samples", [3, 4])
    assert (str(counts.type), counts.to_pylist()) == ("int64", [3, 4])
