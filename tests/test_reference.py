"""Published numbers: each is cited and legal, compared only with runs of the same method and setting, with all differences."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from written import write_run

from fedbench.base.naming import flat
from fedbench.plan.config import RunConfig
from fedbench.plan.plugins import plugins
from fedbench.report import writer
from fedbench.report.content import ReportOptions
from fedbench.report.evidence import gather
from fedbench.report.paper_numbers import COLUMNS, ReferencesError, beside, read

HEAD = ",".join([*COLUMNS, "clients.number", "local.lr", "note"])


def numbers(tmp_path: Path, *rows: str) -> Path:
    (tmp_path / "published").mkdir(exist_ok=True)
    (tmp_path / "published" / "a.csv").write_text("# said why\n" + "\n".join([HEAD, *rows]) + "\n")
    return tmp_path / "published"


ROW = 'A et al. 2020,table 1,Theirs,"Glyphs, Dir",mean_accuracy,55.0,{name: ma},{name: glyphs},"{name: dirichlet, alpha: 0.3}",'


def test_ours_stands_beside_theirs_with_the_difference_and_the_protocol(tmp_path: Path) -> None:
    for seed, value in enumerate((0.5, 0.54)):
        write_run(tmp_path / "r", "A", seed, {20: value})
        write_run(tmp_path / "r", "A", seed, {20: 0.9}, alpha=0.1)  # another setting
    table = beside(gather([], tmp_path / "r").runs, read(numbers(tmp_path, ROW + "10,0.01,one model for all")))
    assert len(table) == 1
    row = table.iloc[0]
    assert (row["reported"], row["label"], row["seeds"]) == (55.0, "A", 2)
    assert row["here"] == pytest.approx(52.0)
    assert row["std"] == pytest.approx(2 * math.sqrt(2))
    assert row["difference"] == pytest.approx(-3.0)
    assert row["protocol"] == "clients.number: 10 / 4; one model for all"  # the learning rate is the same


def test_a_number_without_a_run_is_listed_and_a_number_of_another_dataset_is_not(tmp_path: Path) -> None:
    write_run(tmp_path / "r", "A")
    other = ROW.replace("{name: ma}", "{name: mb}")
    foreign = ROW.replace("glyphs", "digits")
    table = beside(gather([], tmp_path / "r").runs, read(numbers(tmp_path, other + ",,", foreign + ",,")))
    assert list(table["protocol"]) == ["no run of this method and partition"]


def test_the_report_shows_it(tmp_path: Path) -> None:
    write_run(tmp_path / "r", "A", 0, {20: 0.5})
    options = ReportOptions(references=numbers(tmp_path, ROW + "10,,", ROW.replace("{name: ma}", "{name: mb}") + ",,"))
    html = writer.write(gather([], tmp_path / "r"), tmp_path / "out", options).page.read_text()
    assert "A et al. 2020, table 1" in html
    assert "clients.number: 10 / 4" in html
    assert "-5.0" in html
    assert "1 more published numbers" in html
    assert "55.0,A,50.0" in (tmp_path / "out" / "reported.csv").read_text()


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (ROW.replace("mean_accuracy", "accuracy") + ",,", "found 'accuracy'"),
        (ROW.replace("55.0", "high") + ",,", "high"),
        (ROW.replace("{name: ma}", "fedvpt") + ",,", "blocks like"),
        (ROW.replace("A et al. 2020", "") + ",,", "expected a source"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, row: str, message: str) -> None:
    with pytest.raises(ReferencesError, match=message):
        read(numbers(tmp_path, row))
    (tmp_path / "published" / "a.csv").write_text("source,percent\n")
    with pytest.raises(ReferencesError, match="columns dataset"):
        read(tmp_path / "published")


def test_every_number_that_is_kept_is_cited_and_its_fields_exist() -> None:
    kept = read()
    assert len(kept) >= 17
    run: dict[str, Any] = RunConfig(dataset={}, partition={}, method={}).model_dump()
    known = {*flat(run), "note", "method.prompt_length"}
    classes = plugins().classes
    for number in kept:
        assert len(number.source) > 5
        assert set(number.protocol) <= known
        for kind, block in (("method", number.method), ("partition", number.partition)):
            if (cls := classes[kind].get(str(block["name"]))) is not None:
                fields = set(cls.__dataclass_fields__)
                assert set(block) - {"name"} <= fields, block
    assert next(number.percent for number in kept if number.method_there == "pFedPG") == 70.96
