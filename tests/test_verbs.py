"""The listing of methods and the README table it makes, the verbs, and the page that leads to a method of one's own."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import shtab

from fedbench import __main__ as verbs
from fedbench import completion, methods
from fedbench.home import sweep_file
from fedbench.plugins import HOME, plugins

PAGE = (HOME / "docs" / "add_a_method.md").read_text()
FILES = re.findall(r"^`([\w./]+)`\n\n```\w+\n(.*?)```", PAGE, re.DOTALL | re.MULTILINE)
COMMANDS = [line for block in re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL) for line in block.splitlines() if line]


def test_every_method_is_listed_with_its_fields():
    found = plugins()
    entries = {(entry.kind, entry.name): entry for entry in methods.listing(found)}
    assert entries.keys() == {(kind, n) for kind in ("method", "aggregation") for n in found.classes[kind]}
    for (kind, name), entry in entries.items():
        cls = found.classes[kind][name]
        assert [field.name for field in entry.fields] == [field.name for field in dataclasses.fields(cls)]
        assert all(field.meaning for field in entry.fields)
        assert entry.citation
        assert 20 < len(entry.sentence) < 250, name
    fedvpt = entries["method", "fedvpt"]
    assert (fedvpt.family, fedvpt.reference) == ("global", False)
    assert fedvpt.sentence.startswith("VPT-shallow with FedAvg, and its personalised forms")
    told = {field.name: (field.default, field.legal) for field in fedvpt.fields}
    assert told["prompt_length"] == (8, "int ≥ 1")
    assert told["prompt"] == ("shared", "shared | local")
    assert entries["method", "head_only"].reference


def test_the_listing_prints(capsys):
    assert methods.main(["fedvpt", "fedprox"]) == 0
    text = capsys.readouterr().out
    assert "fedvpt  (global)" in text
    assert "      mu = 0.01    [float ≥ 0]" in text
    assert "Every method has:\n      logit_prior = none    [none | eval | train | both]" in text
    assert "pep_fedpt" not in text
    assert methods.main(["--json"]) == 0
    assert {entry["name"] for entry in json.loads(capsys.readouterr().out)} >= {"fedvpt", "fedprox"}
    assert methods.main(["fedvtp"]) == 2
    assert "no 'fedvtp'; there are " in capsys.readouterr().err


def test_the_readme_holds_the_listing():
    page = (HOME / "README.md").read_text()
    assert methods.with_table(page, methods.as_markdown(methods.listing(plugins()))) == page, "run `make docs`"


def test_the_table_is_written_between_the_markers(tmp_path, capsys):
    page = tmp_path / "page.md"
    page.write_text(f"before\n{methods.BEGIN}\nold\n{methods.END}\nafter\n")
    assert methods.main(["--write", str(page)]) == 0
    text = page.read_text()
    assert text.startswith(f"before\n{methods.BEGIN}\n| name |")
    assert text.endswith(f"|\n{methods.END}\nafter\n")
    assert "| `head_only` † | global |" in text
    page.write_text("no markers")
    assert methods.main(["--write", str(page)]) == 2
    assert page.read_text() == "no markers"


def test_verbs_hand_over(capsys):
    assert verbs.main(["methods", "fedvpt", "--markdown"]) == 0
    assert capsys.readouterr().out.count("\n") == 3
    assert verbs.main(["--help"]) == 0
    usage = capsys.readouterr().out
    assert all(f"  {verb} " in usage for verb in verbs.VERBS)
    for wrong in ([], ["swep"]):
        assert verbs.main(wrong) == 2
        assert "usage: fedbench VERB" in capsys.readouterr().err
    assert verbs.main(["status", "no_such_file.yaml"]) == 2
    assert "no_such_file.yaml: cannot be read" in capsys.readouterr().err


@pytest.mark.parametrize("verb", verbs.VERBS)
def test_every_verb_is_there_with_an_example(verb, capsys):
    with pytest.raises(SystemExit) as stop:
        verbs.main([verb, "--help"])
    assert stop.value.code == 0
    usage, examples = capsys.readouterr().out.split("examples:\n")
    assert usage.startswith(f"usage: fedbench {verb} ")
    assert all(line.startswith(f"  fedbench {verb}") for line in examples.splitlines() if line)


def words_offered(*typed: str) -> set[str]:
    """What bash offers for the last of the words typed, by the script that `fedbench completion bash` prints."""
    script = (
        f"{shtab.complete(completion.every_verb(), shell='bash')}\n"
        'COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMPREPLY=()\n'
        '_shtab_fedbench fedbench "${COMP_WORDS[COMP_CWORD]}"; printf \'%s\\n\' "${COMPREPLY[@]}"'
    )
    done = subprocess.run(["bash", "-c", script, "bash", *typed], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_a_shell_completes_verbs_and_their_options(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").touch()
    assert words_offered("fedbench", "") >= set(verbs.VERBS)
    assert words_offered("fedbench", "sweep", "--clu") == {"--cluster"}
    assert words_offered("fedbench", "sweep", "--cluster", "l") == {"local"}
    assert words_offered("fedbench", "sweep", "mi") == {"mine.yaml"}
    assert words_offered("fedbench", "data", "pre") == {"prepare"}


def test_the_zsh_script_is_for_fedbench(capsys):
    assert verbs.main(["completion", "zsh"]) == 0
    assert capsys.readouterr().out.startswith("#compdef fedbench\n")


def test_a_sweep_of_the_project_goes_by_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    own = HOME / "sweeps" / "quickstart.yaml"
    for name in ("quickstart", "quickstart.yaml", "sweeps/quickstart.yaml"):
        assert sweep_file(Path(name)) == own
    for other in ("none_such", "elsewhere/quickstart.yaml", "../quickstart", "quickstart.json"):
        assert sweep_file(Path(other)) == Path(other)
    (tmp_path / "quickstart.yaml").touch()
    assert sweep_file(Path("quickstart.yaml")) == Path("quickstart.yaml")  # a file of the user comes first


def test_the_installed_command_is_the_same():
    scripts = tomllib.loads((HOME / "pyproject.toml").read_text())["project"]["scripts"]
    assert scripts == {"fedbench": "fedbench.__main__:main"}


def test_the_page_on_methods_is_short_enough():
    (code,) = [text for name, text in FILES if name.endswith(".py")]
    assert len([line for line in code.splitlines() if line.strip()]) <= 20
    assert len(FILES) == 2
    assert len(COMMANDS) == 3


@pytest.mark.slow
def test_the_page_on_methods_leads_to_a_row(tmp_path):
    """Follow it literally, in a folder outside the repository."""
    for name, text in FILES:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    env = os.environ | {"PYTHONPATH": str(HOME), "COLUMNS": "200"}
    printed = []
    for command in COMMANDS:
        words = shlex.split(command)
        assert words[0] == "python"
        done = subprocess.run(
            [sys.executable, *words[1:]], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stdout + done.stderr
        printed.append(done.stdout)
    assert "FAIL" not in printed[0]
    assert printed[0].count("  ok ") > 15
    for label in ("fedvpt", "own_token", "own_token(prompt_length=1)"):
        assert re.search(rf"^\W*{re.escape(label)}\W", printed[2], re.MULTILINE), printed[2]
    assert not (tmp_path / "my_methods" / "__init__.py").exists()


def test_the_message_in_the_page_is_what_is_said(tmp_path):
    from fedbench import check

    (code,) = [text for name, text in FILES if name.endswith(".py")]
    path = tmp_path / "without_batch_axis.py"
    path.write_text(code.replace('tokens(p["own"], cls)', 'p["own"]'))
    kind, cls = check.find(path)
    wrong = (check.first_wrong(one, subjects) for one, subjects in check.plan(kind, {"m": cls()}, Path()))
    (told,) = re.findall(r"```text\n(.*?)\n```", PAGE, re.DOTALL)
    assert next(filter(None, wrong)).split(": ", 1)[1].startswith(told)
