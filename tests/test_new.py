"""`fedbench new`: the files that it writes keep the contract, and nothing is overwritten."""

import pytest

from fedbench.cli import check
from fedbench.cli import main as verbs
from fedbench.cli.skeletons import SKELETONS
from fedbench.plan.plugins import ALL_KINDS, plugins


@pytest.mark.parametrize(
    "kind",
    [
        kind if kind in ("dataset", "partition", "metric") else pytest.param(kind, marks=pytest.mark.slow)
        for kind in SKELETONS
    ],
)
def test_a_new_plug_in_keeps_the_contract(kind, tmp_path, capsys):
    assert verbs.main(["new", kind, "my_own", "--to", str(tmp_path)]) == 0
    path = tmp_path / ALL_KINDS[kind][0] / "my_own.py"
    assert capsys.readouterr().out.startswith(f"{path}: written. Next: fedbench check {path};")
    assert check.main([str(path), "--data", str(tmp_path / "data")]) == 0
    printed = capsys.readouterr().out
    assert "FAIL" not in printed
    assert "note" not in printed  # the file lies where a sweep looks for it


def test_a_new_plug_in_is_found_by_sweeps(tmp_path):
    for kind in SKELETONS:
        assert verbs.main(["new", kind, "my_own", "--to", str(tmp_path)]) == 0
    assert all("my_own" in classes for classes in plugins([tmp_path]).classes.values())


@pytest.mark.parametrize("name", ["", "My", "my-own", "../own", "9lives", "a b", "class", "x" * 61, "fedvpt"])
def test_an_illegal_or_taken_name_is_one_message(name, tmp_path, capsys):
    assert verbs.main(["new", "method", name, "--to", str(tmp_path)]) == 2
    message = capsys.readouterr().err
    assert message.startswith("error: ")
    assert message.count("\n") == 1
    assert repr(name) in message
    assert not list(tmp_path.iterdir())


def test_an_existing_file_is_left_as_it_is(tmp_path, capsys):
    path = tmp_path / "methods" / "my_own.py"
    path.parent.mkdir()
    path.write_text("mine")
    assert verbs.main(["new", "method", "my_own", "--to", str(tmp_path)]) == 2
    assert capsys.readouterr().err == f"error: {path} exists; choose another name or folder\n"
    assert path.read_text() == "mine"


def test_a_folder_that_cannot_be_made_is_one_message(tmp_path, capsys):
    (tmp_path / "methods").touch()
    assert verbs.main(["new", "method", "my_own", "--to", str(tmp_path)]) == 2
    assert capsys.readouterr().err.count("\n") == 1
