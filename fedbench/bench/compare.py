"""Comparison of two commits: ratios of two results, and runs of the benchmark in a worktree of another commit."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fedbench.base.home import ROOT

# Results are comparable only if these agree.
CONDITIONS = ("device", "threads", "torch", "python", "precision")


class BenchError(ValueError):
    """A benchmark cannot be run or compared. The message gives the reason."""


def rates(result: Mapping[str, Any]) -> dict[tuple[str, str, str], float]:
    """{(case, method, training | evaluation | round): images or rounds per second}; larger is better."""
    per_second = {}
    for case in result["cases"]:
        for method, figures in case["methods"].items():
            for what in ("training", "evaluation"):
                if what in figures:
                    per_second[case["case"], method, what] = float(figures[what]["images_per_second"])
            per_second[case["case"], method, "round"] = 1 / float(figures["round"]["unwatched"])
    return per_second


def comparison_table(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """A Markdown table of the ratios, and a line for each of `CONDITIONS` that differs.

    Raises BenchError if the results have no case and method in common.
    """
    before, after = rates(old), rates(new)
    both = [key for key in after if key in before]
    if not both:
        raise BenchError("the two results have no case and method in common")
    lines = [f"| case | method | | {old['commit']} | {new['commit']} | ratio |", "|---|---|---|---:|---:|---:|"]
    for key in both:
        unit = "1/s" if key[2] == "round" else "images/s"
        columns = (*key, f"{before[key]:.4g} {unit}", f"{after[key]:.4g} {unit}", f"{after[key] / before[key]:.2f}")
        lines.append("| " + " | ".join(columns) + " |")
    differ = [f"{name}: {old.get(name)} and {new.get(name)}" for name in CONDITIONS if old.get(name) != new.get(name)]
    return "\n".join([*lines, *(f"different {line}" for line in differ)]) + "\n"


def read(path: Path) -> dict[str, Any]:
    """A result that ``--json`` wrote. Raises BenchError if the file is not one."""
    try:
        result = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise BenchError(f"{path} is not a result of this benchmark ({error})") from error
    if not isinstance(result, dict) or "cases" not in result:
        raise BenchError(f"{path} is not a result of this benchmark (it has no `cases`)")
    return result


@contextmanager
def worktree(commit: str) -> Iterator[tuple[Path, str]]:
    """A checkout of `commit` with this version of the benchmark in it, and the commit's short hash.

    Raises BenchError if git does not know the commit.
    """
    short = _git("rev-parse", "--short=12", f"{commit}^{{commit}}").strip()
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "tree"
        _git("worktree", "add", "--detach", str(tree), short)
        try:
            here = Path(__file__).parent
            shutil.rmtree(tree / "fedbench" / "bench", ignore_errors=True)
            shutil.copytree(here, tree / "fedbench" / "bench", ignore=shutil.ignore_patterns("__pycache__"))
            yield tree, short
        finally:
            _git("worktree", "remove", "--force", str(tree))


def against(commit: str, cases: Sequence[str], options: Sequence[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The results of `commit` and of this tree: the cases alternate, each in a new process. Raises BenchError if one fails."""
    with worktree(commit) as (tree, short), tempfile.TemporaryDirectory() as folder:
        parts: dict[Path, list[dict[str, Any]]] = {tree: [], ROOT: []}
        for number, case in enumerate(cases):
            for place in (tree, ROOT)[:: -1 if number % 2 else 1]:
                file = Path(folder) / "result.json"
                command = [sys.executable, "-m", "fedbench.bench", "--cases", case, "--json", str(file), *options]
                if subprocess.run(command, cwd=place, stdout=subprocess.DEVNULL).returncode:
                    raise BenchError(
                        f"{case} cannot be measured at {short if place == tree else 'this tree'}; see above"
                    )
                parts[place].append(read(file))
    old, new = (
        {**results[0], "cases": [case for result in results for case in result["cases"]]} for results in parts.values()
    )
    return old | {"commit": short}, new


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise BenchError(f"git {' '.join(arguments)}: {done.stderr.strip()}")
    return done.stdout
