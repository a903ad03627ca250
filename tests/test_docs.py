"""The pages: what they take from the code is what it says, the site builds, and whoever follows a page gets there."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
from pathlib import Path

import archives
import pytest
import yaml
from followed import Page
from workplace import Workplace

from fedbench.base.record_schema import columns
from fedbench.cli import check, docs_generator
from fedbench.plan.config import Block
from fedbench.plan.planning import check_sweep
from fedbench.plan.plugins import HOME, plugins
from fedbench.report.tables.metrics import METRICS

ADD = {kind: Page(f"docs/add_a_{kind}.md") for kind in ("method", "dataset", "partitioner")}
TUTORIAL = Page("docs/tutorial.md")


# ---------------------------------------------------------------- what the code says


def test_the_pages_hold_what_the_code_says(capsys):
    assert docs_generator.main([]) == 0, f"run `make docs`: {capsys.readouterr().out}"


def test_a_stale_page_is_seen(tmp_path):
    for name in docs_generator.pages():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(HOME / name, tmp_path / name)
    assert not docs_generator.stale(tmp_path)
    page = tmp_path / "docs" / "sweep_file.md"
    true = page.read_text()
    page.write_text(true.replace("| `rounds` | `int ≥ 1` | `100` |", "| `rounds` | `int ≥ 1` | `99` |"))
    assert docs_generator.stale(tmp_path) == {page: true}
    page.write_text("no markers")
    with pytest.raises(ValueError, match="no markers"):
        docs_generator.stale(tmp_path)


def test_only_keys_of_a_run_are_documented_as_plug_ins():
    page = Page("docs/sweep_file.md").text
    parts = dict(re.findall(r"^### ([\w ]+)\n(.*?)(?=^###|\Z)", page, re.DOTALL | re.MULTILINE))
    assert "[`{name: ...}` or a name](partitioners.md)" in parts["base and grid"]
    assert "| `partition` | `int ≥ 0` \\| `null` | `null` |" in parts["seeds"]
    assert "| `partition` | `text` \\| `null` | `null` |" in parts["cluster"]
    assert all("](partitioners.md)" not in text for name, text in parts.items() if name != "base and grid")


def test_every_key_says_what_it_means():
    blocks = Block.__subclasses__()
    assert len(blocks) > 7
    for block in blocks:
        assert block.__doc__
        for name, field in block.model_fields.items():
            assert field.description, f"{block.__name__}.{name}"


def test_docstrings_become_markdown():
    assert docs_generator.prose("<v - w> in `<code>`") == "&lt;v - w> in `<code>`"
    assert (
        docs_generator.linked("Li 2020, arXiv:1812.06127")
        == "Li 2020, [arXiv 1812.06127](https://arxiv.org/abs/1812.06127)"
    )
    assert docs_generator.linked("see https://a.org/b, c") == "see <https://a.org/b>, c"
    assert docs_generator.code("a | b") == "`a` | `b`"


def test_the_example_of_the_sweep_file_makes_the_runs_it_says():
    (text,) = Page("docs/sweep_file.md").blocks("yaml")
    assert len(check_sweep(yaml.safe_load(text), plugins()).runs) == 24


def test_every_metric_and_every_word_of_a_record_is_defined(tmp_path):
    page = Page("docs/metrics.md").text
    generated, _ = page.split(docs_generator.END)
    assert all(f"| `{metric.name}` |" in generated for metric in METRICS)
    work = Workplace(tmp_path)
    work.write(seeds=(0,), rounds=1)
    assert work.run("--cluster", "inline", "--no-watch") == 0
    (record,) = work.folders[0].records()
    assert len(record) > 30
    assert list(record) == list(columns())
    assert all(f"| `{name}` |" in generated for name in record)


# ---------------------------------------------------------------- messages


def words_of_the_source() -> list[str]:
    """Every text of the package and its plug-ins; of one with values in it, the fixed parts."""
    found = []
    for folder in ("fedbench", "methods", "datasets"):
        for path in (HOME / folder).rglob("*.py"):
            nodes = ast.walk(ast.parse(path.read_text()))
            found += [n.value for n in nodes if isinstance(n, ast.Constant) and isinstance(n.value, str)]
    return found


def unknown(message: str, texts: list[str]) -> list[str]:
    """The fixed parts of a quoted message that no text of the source holds."""
    parts = [part.strip(" :;,()") for part in message.split("…")]
    return [part for part in parts if part and not any(part in text for text in texts)]


def test_every_quoted_message_is_one_that_is_said():
    page = Page("docs/troubleshooting.md").text
    messages = [text for text in re.findall(r"\*\*`(.+?)`\*\*", page, re.DOTALL) if "…" in text or " " in text]
    assert len(messages) > 40
    texts = words_of_the_source()
    assert {message: unknown(message, texts) for message in messages if unknown(message, texts)} == {}
    assert unknown("… is not a plain ViT that reads its CLS token", texts) == [
        "is not a plain ViT that reads its CLS token"
    ]


def test_every_kind_of_failure_that_is_quoted_exists():
    from fedbench.jobs.failures import MORE_ATTEMPTS

    kinds = re.findall(r"\*\*Kind `(\w+)`\*\*", Page("docs/troubleshooting.md").text)
    assert len(kinds) >= 3
    assert set(kinds) <= set(MORE_ATTEMPTS)


# ---------------------------------------------------------------- the site


def build(source: Path, into: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--config-file", str(source / "mkdocs.yml")]
    return subprocess.run(
        [*command, "--site-dir", str(into)], cwd=source, capture_output=True, text=True, timeout=120, check=False
    )


def test_the_site_builds_without_a_warning(tmp_path):
    done = build(HOME, tmp_path / "site")
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr
    made = {path.stem for path in (tmp_path / "site").glob("*.html")}
    assert made >= {path.stem for path in (HOME / "docs").glob("*.md")}
    assert "Floors" in (tmp_path / "site" / "architecture.html").read_text()


def test_a_broken_link_breaks_the_site(tmp_path):
    shutil.copytree(HOME / "docs", tmp_path / "docs")
    shutil.copy(HOME / "mkdocs.yml", tmp_path)
    with open(tmp_path / "docs" / "index.md", "a") as page:
        page.write("\n[nowhere](metrics.md#nowhere)\n")
    done = build(tmp_path, tmp_path / "site")
    assert done.returncode != 0
    assert "nowhere" in done.stderr


# ---------------------------------------------------------------- pages that lead somewhere


@pytest.mark.parametrize("kind", ADD)
def test_a_page_on_plug_ins_is_short_enough(kind):
    page = ADD[kind]
    (code,) = [text for name, text in page.files.items() if name.endswith(".py")]
    assert len([line for line in code.splitlines() if line.strip()]) <= 26
    assert len(page.files) == 2
    assert page.commands[0] == f"python -m fedbench.check {next(iter(page.files))}"


@pytest.mark.slow
@pytest.mark.parametrize("kind", ADD)
def test_a_page_on_plug_ins_leads_to_rows(kind, tmp_path):
    """Follow it literally, in a folder outside the repository."""
    page = ADD[kind]
    page.lay_out(tmp_path)
    printed = [page.run(command, tmp_path) for command in page.commands]
    assert "FAIL" not in printed[0]
    assert printed[0].count("  ok ") > (15 if kind == "method" else 3)
    rows = {"method": ("fedvpt", "own_token", "own_token(prompt_length=1)")}.get(kind, ("head_only", "fedncm"))
    for label in rows:
        assert re.search(rf"^\W*{re.escape(label)}\W", printed[-1], re.MULTILINE), printed[-1]
    assert not list(tmp_path.rglob("__init__.py"))


def test_the_message_in_the_page_on_methods_is_what_is_said(tmp_path):
    page = ADD["method"]
    (code,) = [text for name, text in page.files.items() if name.endswith(".py")]
    path = tmp_path / "without_batch_axis.py"
    path.write_text(code.replace('tokens(p["own"], cls)', 'p["own"]'))
    _, cls = check.find(path)
    wrong = (check.first_wrong(one, subjects) for one, subjects in check.plan("method", {"m": cls()}, Path()))
    (told,) = page.blocks("text")
    assert next(filter(None, wrong)).split(": ", 1)[1].startswith(told.strip())


BY_THE_GATE = ("make demo", ". .venv/bin/activate")


def test_the_tutorial_starts_as_the_gate_does():
    assert tuple(TUTORIAL.commands[:2]) == BY_THE_GATE
    assert BY_THE_GATE[0] in (HOME / ".ci" / "run").read_text()
    assert len(TUTORIAL.on_slurm) == 4
    for name, text in TUTORIAL.files.items():
        assert check_sweep(yaml.safe_load(text), plugins()).runs, name


@pytest.mark.slow
def test_the_tutorial_leads_to_a_report(tmp_path):
    """All of it but what the gate does in a clean clone and what needs a Slurm (tests/slurm/test_pages.py)."""
    TUTORIAL.lay_out(tmp_path)
    (tmp_path / "Downloads").mkdir()
    archives.tiny_imagenet(tmp_path / "Downloads")
    printed = {}
    for command in TUTORIAL.commands:
        if command not in (*BY_THE_GATE, *TUTORIAL.on_slurm):
            printed[command] = TUTORIAL.run(command, tmp_path)
    assert "6 runs: 6 missing" in printed["python -m fedbench.sweep mine.yaml --dry-run"]
    assert "6 runs: 6 done" in printed["python -m fedbench.sweep mine.yaml --status"]
    assert re.search(r"^\W*PEP\W", printed["python reports/make_figures.py mine.yaml"], re.MULTILINE)
    assert (tmp_path / "reports" / "out" / "index.html").is_file()
    assert list((tmp_path / "data" / "cache").iterdir())
