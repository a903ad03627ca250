"""The pages: their generated parts are up to date, the site builds, and following a page gives the stated results."""

from __future__ import annotations

import ast
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import archives
import pytest
import torch
import yaml
from followed import Page
from test_structure import FOLDERS
from torch import Tensor
from workplace import Workplace

from fedbench.base.hooks import hooks_of
from fedbench.base.record_schema import columns
from fedbench.cli import check, data, docs_generator, hook_tables, markdown
from fedbench.method import Aggregation, ClientUpdates, Method
from fedbench.plan.config import Block
from fedbench.plan.planning import check_sweep
from fedbench.plan.plugins import HOME, plugins
from fedbench.report.tables.metrics import METRICS

ADD = {kind: Page(f"docs/add_a_{kind}.md") for kind in ("method", "dataset", "partitioner")}
ADD["aggregation"] = Page("docs/add_an_aggregation.md")
RECIPES = Page("docs/recipes.md")
TUTORIAL = Page("docs/tutorial.md")


# ---------------------------------------------------------------- what the code says


def test_the_pages_hold_what_the_code_says(capsys):
    assert docs_generator.main([]) == 0, f"run `make docs`: {capsys.readouterr().out}"


@pytest.mark.slow
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
    assert markdown.prose("<v - w> in `<code>`") == "&lt;v - w> in `<code>`"
    assert (
        markdown.linked("Li 2020, arXiv:1812.06127") == "Li 2020, [arXiv 1812.06127](https://arxiv.org/abs/1812.06127)"
    )
    assert markdown.linked("see https://a.org/b, c") == "see <https://a.org/b>, c"
    assert markdown.code("a | b") == "`a` | `b`"


def test_the_examples_of_the_sweep_file_make_the_runs_that_the_page_counts():
    contents = [yaml.safe_load(text) for text in Page("docs/sweep_file.md").blocks("yaml")]
    assert [len(check_sweep(content, plugins()).runs) for content in contents] == [24, 16]
    assert len(check_sweep({**contents[1], "exclude": []}, plugins()).runs) == 24


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


@pytest.mark.parametrize("base", [Method, Aggregation])
def test_the_page_on_hooks_says_when_each_hook_is_called(base):
    page = Page("docs/hooks.md").text
    for name in hooks_of(base):
        returns, called = hook_tables.described(base, name)
        assert returns, name
        assert called, f"the docstring of {base.__name__}.{name} has no sentence `Called ...`"
        assert f"| {called} |" in page
    fields = [name for name, hint in base.__annotations__.items() if "ClassVar" in str(hint)]
    assert len(fields) > 2
    assert [name for name in fields if f"`{name}`" not in page] == []


def test_the_page_on_hooks_names_plug_ins_that_override_them():
    assert hook_tables.users_of("method", "send", plugins()) == ["pfedmoap", "pfedpg"]
    assert hook_tables.users_of("aggregation", "extra_loss", plugins()) == ["feddyn", "fedprox", "scaffold"]
    inheriting = hook_tables.users_of("method", "layers", plugins())
    assert inheriting.index("sgpt") < inheriting.index("fedvpt")  # its own file first, then its base's


# ---------------------------------------------------------------- messages


def words_of_the_source() -> list[str]:
    """Every text in the package and its plug-ins; of a text with values in it, the fixed parts."""
    texts = []
    for folder in ("fedbench", "methods", "datasets"):
        for path in (HOME / folder).rglob("*.py"):
            nodes = ast.walk(ast.parse(path.read_text()))
            texts += [n.value for n in nodes if isinstance(n, ast.Constant) and isinstance(n.value, str)]
    return texts


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
    assert unknown("… is not a supported ViT that reads its CLS token", texts) == [
        "is not a supported ViT that reads its CLS token"
    ]


def test_every_kind_of_failure_that_is_quoted_exists():
    from fedbench.jobs.failures import MORE_ATTEMPTS

    kinds = re.findall(r"\*\*Kind `(\w+)`\*\*", Page("docs/troubleshooting.md").text)
    assert len(kinds) >= 3
    assert set(kinds) <= set(MORE_ATTEMPTS)


# ---------------------------------------------------------------- the architecture


def test_the_architecture_lists_the_folders_in_the_order_of_their_imports():
    table = Page("ARCHITECTURE.md").text.partition("| folder | what it holds |")[2].partition("\n\n")[0]
    assert tuple(re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)) == FOLDERS


def test_the_files_that_the_architecture_names_exist():
    names = re.findall(r"`([\w/]+\.(?:py|md))`", Page("ARCHITECTURE.md").text)
    assert len(set(names)) > 20
    places = (HOME, HOME / "fedbench", HOME / "fedbench" / "contract")
    assert [name for name in names if not any((place / name).is_file() for place in places)] == []


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
    assert "Folders" in (tmp_path / "site" / "architecture.html").read_text()


def test_a_broken_link_breaks_the_site(tmp_path):
    shutil.copytree(HOME / "docs", tmp_path / "docs")
    shutil.copy(HOME / "mkdocs.yml", tmp_path)
    with open(tmp_path / "docs" / "index.md", "a") as page:
        page.write("\n[nowhere](metrics.md#nowhere)\n")
    done = build(tmp_path, tmp_path / "site")
    assert done.returncode != 0
    assert "nowhere" in done.stderr


# ---------------------------------------------------------------- pages that lead somewhere


ROWS = {
    "method": ("fedvpt", "own_token", "own_token(prompt_length=1)"),
    "aggregation": ("fedvpt", "fedvpt + short_steps", "fedvpt + short_steps(max_norm=0.1)"),
}


@pytest.mark.parametrize("kind", ADD)
def test_a_page_on_plug_ins_is_short_enough(kind):
    page = ADD[kind]
    (code,) = [text for name, text in page.files.items() if name.endswith(".py")]
    assert len([line for line in code.splitlines() if line.strip()]) <= 26
    assert len(page.files) == 2
    assert page.commands[0] == f"fedbench check {next(iter(page.files))}"


@pytest.mark.slow
def test_the_examples_of_hooks_in_the_page_on_methods_keep_the_contract(tmp_path):
    examples = [text for text in ADD["method"].blocks("py") if text.startswith('"""')]
    named = re.compile(r"^    (?:def )?(batch_values|reads_batch|choose_by_loss|upload|prefixes)\b", re.MULTILINE)
    assert [named.findall(text) for text in examples] == [
        ["batch_values"],
        ["reads_batch"],
        ["choose_by_loss"],
        ["upload"],
        ["prefixes"],
    ]
    for number, text in enumerate(examples):
        path = tmp_path / f"example_{number}.py"
        path.write_text(text)
        _, cls = check.find(path)
        plan = check.plan("method", {"m": cls()}, Path())
        assert not list(filter(None, (check.first_wrong(check_, subjects)[0] for check_, subjects in plan)))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ADD)
def test_a_page_on_plug_ins_leads_to_rows(kind, tmp_path):
    """Follow the page literally, in a folder outside the repository."""
    page = ADD[kind]
    page.lay_out(tmp_path)
    printed = [page.run(command, tmp_path) for command in page.commands]
    assert "FAIL" not in printed[0]
    assert printed[0].count("  ok ") > (15 if kind in ROWS else 3)
    for label in ROWS.get(kind, ("head_only", "fedncm")):
        assert re.search(rf"^\W*{re.escape(label)}\W", printed[-1], re.MULTILINE), printed[-1]
    assert not list(tmp_path.rglob("__init__.py"))


@pytest.mark.slow
def test_the_recipes_keep_the_contract(tmp_path):
    RECIPES.lay_out(tmp_path)
    assert len(RECIPES.commands) == len(RECIPES.files) == 3
    for command in RECIPES.commands:
        printed = RECIPES.run(command, tmp_path)
        assert "FAIL" not in printed
        assert printed.count("  ok ") > 15


def recipe(name: str, folder: Path) -> Any:
    """The class of a method of the page of recipes."""
    RECIPES.lay_out(folder)
    return check.find(folder / "my_methods" / "methods" / f"{name}.py")[1]


def cohort(updated: dict[str, Tensor], sums: dict[str, Tensor], num_samples: list[int]) -> ClientUpdates:
    """The updates of a cohort with these values; what the recipes do not read is zero."""
    number, zero = torch.tensor(num_samples), torch.zeros(len(num_samples))
    clients = torch.arange(len(num_samples))
    return ClientUpdates(clients, {}, updated, sums, number, steps=zero, loss=zero, lr=0.1)


def test_the_recipe_of_a_choice_averages_a_prompt_over_those_who_chose_it(tmp_path):
    method = recipe("chosen_prompt", tmp_path)(groups=3, prompt_length=1)
    server = {"prompt": torch.tensor([[[1.0]], [[2.0]], [[3.0]]])}
    updated = torch.tensor([[[[10.0]], [[20.0]], [[30.0]]], [[[50.0]], [[60.0]], [[70.0]]]])  # [K, G, P, D]
    chosen = torch.tensor([[3.0, 5.0, 0.0], [1.0, 0.0, 0.0]])  # by 3 and 1 samples; by 5 of client 0; by nobody
    merged = method.merge(server, cohort({"prompt": updated}, {"chosen": chosen}, [8, 1]))
    assert merged["prompt"].flatten().tolist() == [3 / 4 * 10 + 1 / 4 * 50, 20.0, 3.0]


def test_the_recipe_of_noise_repeats_a_round_and_changes_with_it(tmp_path):
    method = recipe("noisy_prompt", tmp_path)(noise=1.0)
    updates = cohort({"prompt": torch.tensor([[[1.0] * 500], [[4.0] * 500]])}, {}, [1, 3])  # [K, P, D]

    def noise(seed: int, round_: int) -> Tensor:
        server = {"prompt": torch.zeros(1, 500), "seed": torch.tensor(seed), "round": torch.tensor(round_)}
        merged = method.merge(server, updates)
        assert int(merged["round"]) == round_ + 1
        return merged["prompt"] - (1 / 4 * 1.0 + 3 / 4 * 4.0)

    first = noise(0, 0)
    assert torch.equal(noise(0, 0), first)
    assert not torch.equal(noise(0, 1), first)
    assert not torch.equal(noise(1, 0), first)
    assert abs(float(first.mean())) < 4 / 500**0.5  # four standard errors
    assert abs(float(first.std()) - 1) < 4 / (2 * 500) ** 0.5


def test_the_message_in_the_page_on_methods_is_what_is_said(tmp_path):
    page = ADD["method"]
    (code,) = [text for name, text in page.files.items() if name.endswith(".py")]
    path = tmp_path / "without_batch_axis.py"
    path.write_text(code.replace('tokens(p["own"], cls)', 'p["own"]'))
    _, cls = check.find(path)
    wrong = (check.first_wrong(check_, subjects)[0] for check_, subjects in check.plan("method", {"m": cls()}, Path()))
    (message,) = page.blocks("text")
    assert next(filter(None, wrong)).split(": ", 1)[1].startswith(message.strip())


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
    printed = {}
    for command in TUTORIAL.commands:
        if command not in (*BY_THE_GATE, *TUTORIAL.on_slurm) and not command.startswith("fedbench data prepare"):
            printed[command] = TUTORIAL.run(command, tmp_path)
    assert "6 runs: 6 missing" in printed["fedbench sweep mine.yaml --dry-run"]
    assert "6 runs: 6 done" in printed["fedbench sweep mine.yaml --status"]
    assert re.search(r"^\W*PEP\W", printed["fedbench figures mine.yaml"], re.MULTILINE)
    assert (tmp_path / "reports" / "out" / "index.html").is_file()


def test_the_tutorial_prepares_an_archive_that_is_on_disk(tmp_path, monkeypatch):
    """In this process, since ten images of Tiny ImageNet are a whole dataset only here."""
    (command,) = [command for command in TUTORIAL.commands if command.startswith("fedbench data prepare")]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "Downloads").mkdir()
    archives.tiny_imagenet(tmp_path / "Downloads")
    archives.publish(monkeypatch, "tiny_imagenet", tmp_path / "Downloads")
    assert data.main([str(Path(word).expanduser()) for word in shlex.split(command)[2:]]) == 0
    assert list((tmp_path / "data" / "cache").iterdir())
