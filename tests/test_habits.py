"""Files around the code agree with each other: make targets, Python versions, the version, and issue templates."""

from __future__ import annotations

import re
import tomllib

import yaml

from fedbench.plan.plugins import HOME

PROJECT = tomllib.loads((HOME / "pyproject.toml").read_text())["project"]
TARGETS = set(re.findall(r"^([\w-]+):", (HOME / "Makefile").read_text(), re.MULTILINE))
WORKFLOW = yaml.safe_load((HOME / ".github" / "workflows" / "ci.yml").read_text())
CONTRIBUTING = (HOME / "CONTRIBUTING.md").read_text()


def commands(job: str) -> list[str]:
    return [step["run"] for step in WORKFLOW["jobs"][job]["steps"] if "run" in step]


def test_the_workflow_runs_the_make_targets_on_every_python():
    assert commands("fast") == ["make env", "make check", "make test", "make demo"]
    ran = {command.removeprefix("make ") for job in WORKFLOW["jobs"] for command in commands(job) if "make " in command}
    assert ran <= TARGETS
    assert ran >= {"check", "test", "test-all", "coverage", "audit", "demo"}
    pythons = WORKFLOW["jobs"]["fast"]["strategy"]["matrix"]["python"]
    assert pythons == ["3.11", "3.12", "3.13"]
    assert PROJECT["requires-python"] == f">={pythons[0]}"


def test_pre_commit_is_make_check():
    (repository,) = yaml.safe_load((HOME / ".pre-commit-config.yaml").read_text())["repos"]
    assert [hook["entry"] for hook in repository["hooks"]] == ["make check"]


def test_the_page_for_contributors_is_one_page_and_names_what_exists():
    assert len(CONTRIBUTING.splitlines()) <= 60
    named = set(re.findall(r"^make ([\w-]+)", CONTRIBUTING, re.MULTILINE))
    assert len(named) > 5
    assert named <= TARGETS
    for link in re.findall(r"\]\(([\w./]+)\)", CONTRIBUTING):
        assert (HOME / link).exists(), link


def test_a_report_must_hold_a_runs_config():
    folder = HOME / ".github" / "ISSUE_TEMPLATE"
    wrong = {part["id"]: part for part in yaml.safe_load((folder / "wrong.yml").read_text())["body"]}
    assert "run.yaml" in wrong["config"]["attributes"]["description"]
    assert wrong["config"]["validations"]["required"]
    assert "run.yaml" in (HOME / ".github" / "pull_request_template.md").read_text()


def test_the_version_is_one():
    citation = yaml.safe_load((HOME / "CITATION.cff").read_text())
    assert citation["version"] == PROJECT["version"]
    assert {"cff-version", "title", "message", "authors", "license"} <= set(citation)
    changelog = (HOME / "CHANGELOG.md").read_text()
    assert re.findall(r"^## (.+)$", changelog, re.MULTILINE)[0] == "[Unreleased]"
    assert PROJECT["version"] in changelog


def test_what_is_locked_is_what_is_asked_for():
    locked = set(re.findall(r"^([\w.-]+)==", (HOME / "requirements.lock").read_text(), re.MULTILINE))
    extras = PROJECT["optional-dependencies"]
    required = [
        *PROJECT["dependencies"],
        *extras["dev"],
        *(extras["docs"] if "fedbench[docs]" in extras["dev"] else ()),
    ]
    names = {re.split(r"[>=<\[]", requirement)[0].lower() for requirement in required} - {"fedbench"}
    assert names <= locked, "run `make lock`"


def test_every_package_is_in_the_wheel():
    listed = set(tomllib.loads((HOME / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"])
    folders = {path.parent.relative_to(HOME) for path in (HOME / "fedbench").rglob("*.py")}
    home = {path.parent.relative_to(HOME) for top in ("methods", "datasets") for path in (HOME / top).rglob("*.py")}
    expected = {".".join(folder.parts) for folder in folders} | {
        f"fedbench._home.{'.'.join(folder_.parts)}" for folder_ in home
    }
    assert listed == expected | {"fedbench._home.sweeps", "fedbench._home.reports.reference"}
