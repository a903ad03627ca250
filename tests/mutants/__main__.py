"""Mutation testing: change one expression of a file at a time, run the tests that cover it, and print what survives.

    make mutants                                             # files that differ from main
    make mutants FILES="fedbench/run methods" COUNT=100 SEED=7 TESTS="tests/oracle tests/test_simulation.py"
    make mutants FILES=fedbench/run/choice.py:50 COUNT=0     # every mutant of one line

The tree is copied, so nothing here changes. Once, the tests run with coverage, which says how long each takes and which
functions it runs. This is kept in .mutants/ for each test file until it changes; delete the folder to measure all again.
COUNT mutants are drawn with SEED; 0 takes all.

One process loads all tests. For each mutant it forks a child, which swaps the code of the changed function in place and runs
the tests of this function, the quickest files and those with most kills first. Changes outside functions, and in functions
that run at import, get a process of their own. A mutant is killed if a test fails or never ends. It survives if its tests pass
or have used SECONDS of processor time; it is uncovered if no test runs its file. A survivor calls for a test, unless its change
has no effect that can be observed.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
KINDS = (
    "killed",
    "survived",
    "uncovered",
    "undecided",
)  # a trial that broke off, or a test that fails anyway, decides nothing
CODE = ("fedbench/", "methods/", "datasets/", "reports/")
sys.path[:] = [path for path in sys.path if Path(path or ".").resolve() != ROOT]  # the copy is imported, not this tree
sys.path.insert(0, str(ROOT / "tests"))

from mutants.alone import lone_fate  # noqa: E402
from mutants.coverage_map import TestMap, test_map  # noqa: E402
from mutants.planting import Mutant, difference, drawn  # noqa: E402
from mutants.trial import forked  # noqa: E402
from mutants.warm import ALONE, warm_fates  # noqa: E402

sys.path.remove(str(ROOT / "tests"))


def copied_tree(place: Path) -> Path:
    """The files that tests need, without what git does not know or ignores."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, check=True)
    for name in filter(None, listed.stdout.decode().split("\0")):
        if not (ROOT / name).is_file():
            continue
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, place / name)
    return place


def files_to_change(names: Sequence[str]) -> list[str]:
    """The files, or lines of files, that `names` stand for; without names, the files that differ from main."""
    if not names:
        diff = ["git", "diff", "--name-only", "main"]
        listed = subprocess.run(diff, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
        names = [name for name in listed if name.endswith(".py") and name.startswith(CODE) and (ROOT / name).exists()]
    return [
        path.relative_to(ROOT).as_posix()
        for name in names
        for path in (sorted((ROOT / name).rglob("*.py")) if (ROOT / name).is_dir() else [ROOT / name])
    ]


def fates_of(tree: Path, chosen: Sequence[Mutant], known: TestMap, budget: float, log: Path) -> list[str]:
    """What became of each mutant, printed as it is known."""
    import timm  # noqa: F401 - once here, so that no child needs to load torch and its company again
    import torch
    import torchvision  # noqa: F401

    torch.set_num_threads(1)
    start = time.monotonic()

    def tell(number: int, fate: str) -> None:
        with log.open("a") as out:
            out.write(f"{number}\t{fate}\n")
        if fate != ALONE:
            print(
                f"{number + 1}/{len(chosen)} {chosen[number]}\n    {fate} ({time.monotonic() - start:.0f} s)",
                file=screen,
            )

    with open(os.dup(1), "w", buffering=1) as screen:

        def warm() -> str:
            warm_fates(tree, chosen, known, budget, tell)
            return "done"

        if (said := forked(warm, hangs=None)) != "done":
            raise SystemExit(f"the session of all tests: {said}")
        for number, fate in read(log).items():
            if fate == ALONE:
                tell(number, lone_fate(tree, chosen[number], known, budget))
    return [fate for _, fate in sorted(read(log).items())]


def read(log: Path) -> dict[int, str]:
    """The last fate of each mutant, by its number."""
    lines = (line.partition("\t") for line in log.read_text().splitlines())
    return {int(number): fate for number, _, fate in lines}


def tests_that_ran(order: Sequence[str]) -> str:
    """One line for each test file that a survivor passed."""
    files = Counter(test.partition("::")[0] for test in order)
    return "".join(f"{file}: {count} tests\n" for file, count in files.items())


def main() -> int:
    """The command line; 1 if a mutant survives or is uncovered."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--files", nargs="*", default=[], help="files, folders or FILE:LINE to change; default: what differs from main"
    )
    parser.add_argument("--tests", nargs="*", default=[], help="test files or folders; default: all fast tests")
    parser.add_argument("--count", type=int, default=30, help="mutants to draw; 0: all (default: 30)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the draw (default: 0)")
    parser.add_argument(
        "--seconds", type=float, default=60, help="processor time for the tests of one mutant (default: 60)"
    )
    options = parser.parse_args()
    files = files_to_change(options.files)
    if not files:
        print("nothing differs from main; name files with --files")
        return 0
    os.environ["PYTHONDONTWRITEBYTECODE"] = "1"  # two mutants of one size within a second would share compiled code
    sys.dont_write_bytecode = True
    with tempfile.TemporaryDirectory() as place:
        tree = copied_tree(Path(place).resolve() / "tree")
        os.environ["PYTHONPATH"] = str(tree)
        known = test_map(tree, ROOT / ".mutants", options.tests)
        chosen = drawn(ROOT, files, options.count, options.seed)
        fates = fates_of(tree, chosen, known, options.seconds, Path(place) / "fates")
    left = [(mutant, fate) for mutant, fate in zip(chosen, fates, strict=True) if not fate.startswith("killed")]
    for mutant, fate in left:
        order = known.order(mutant, (ROOT / mutant.file).read_bytes())
        print(f"\n{fate}: {mutant}\n{difference(ROOT, mutant)}{tests_that_ran(order)}", end="")
    uncovered = sum(fate == "uncovered" for _, fate in left)
    print(
        f"\n{len(chosen) - len(left)} killed, {len(left) - uncovered} survived, {uncovered} uncovered of {len(chosen)}"
    )
    return int(bool(left))


if __name__ == "__main__":
    sys.exit(main())
