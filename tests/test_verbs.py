"""The verbs of the command line, and the listing of methods."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import shtab

from fedbench.base.broken_pipe import EXIT_PIPE_CLOSED
from fedbench.base.home import sweep_file
from fedbench.cli import completion, list_methods
from fedbench.cli import main as verbs
from fedbench.plan.plugins import HOME, plugins


def test_every_method_is_listed_with_its_fields():
    plugins_ = plugins()
    entries = {(entry.kind, entry.name): entry for entry in list_methods.listing(plugins_)}
    assert entries.keys() == {(kind, n) for kind in ("method", "aggregation") for n in plugins_.classes[kind]}
    for (kind, name), entry in entries.items():
        cls = plugins_.classes[kind][name]
        assert [field.name for field in entry.fields] == [field.name for field in dataclasses.fields(cls)]
        assert all(field.meaning for field in entry.fields)
        assert entry.citation
        assert 20 < len(entry.sentence) < 250, name
    fedvpt = entries["method", "fedvpt"]
    assert (fedvpt.family, fedvpt.reference) == ("global", False)
    assert fedvpt.sentence.startswith("VPT-shallow with FedAvg, and its personalised forms")
    fields = {field.name: (field.default, field.allowed) for field in fedvpt.fields}
    assert fields["prompt_length"] == (8, "int ≥ 1")
    assert fields["prompt"] == ("shared", "shared | local")
    assert entries["method", "head_only"].reference


def test_the_listing_prints(capsys):
    assert list_methods.main(["fedvpt", "fedprox"]) == 0
    text = capsys.readouterr().out
    assert "fedvpt  (global)" in text
    assert "      mu = 0.01    [float ≥ 0]" in text
    assert "Every method has:\n      logit_prior = none    [none | eval | train | both]" in text
    assert "pep_fedpt" not in text
    assert list_methods.main(["--json"]) == 0
    assert {entry["name"] for entry in json.loads(capsys.readouterr().out)} >= {"fedvpt", "fedprox"}
    assert list_methods.main(["fedvtp"]) == 2
    assert "no method or aggregation is called 'fedvtp'; there are " in capsys.readouterr().err


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
    quickstart = HOME / "sweeps" / "quickstart.yaml"
    for name in ("quickstart", "quickstart.yaml", "sweeps/quickstart.yaml"):
        assert sweep_file(Path(name)) == quickstart
    for other in ("none_such", "elsewhere/quickstart.yaml", "../quickstart", "quickstart.json"):
        assert sweep_file(Path(other)) == Path(other)
    (tmp_path / "quickstart.yaml").touch()
    assert sweep_file(Path("quickstart.yaml")) == Path("quickstart.yaml")  # a file of the user comes first


def test_the_installed_command_is_the_same():
    scripts = tomllib.loads((HOME / "pyproject.toml").read_text())["project"]["scripts"]
    assert scripts == {"fedbench": "fedbench.cli.main:main"}


@pytest.mark.slow
@pytest.mark.parametrize("words", [["methods"], ["data", "list"]])
def test_a_reader_who_leaves_early_hears_nothing(words):
    """As `fedbench ... | true`."""
    command = [sys.executable, "-m", "fedbench", *words]
    with subprocess.Popen(command, cwd=HOME, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as running:
        running.stdout.close()
        assert running.stderr.read() == b""
    assert running.returncode == EXIT_PIPE_CLOSED
