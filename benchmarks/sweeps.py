"""The overhead of a sweep: planning ten thousand runs, and a run from its process start to its first training step.

``python benchmarks/sweeps.py plan``, ``... run`` and ``... report`` (every table and figure of ten thousand runs), on an idle
machine; processor time is printed too, since other programs slow down the wall clock.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

HOME = Path(__file__).resolve().parents[1]

PLAN = {
    "base": {"dataset": {"name": "glyphs"}, "rounds": 8, "clients": {"number": 20, "per_round": 5}},
    "grid": {
        "partition": [{"name": "dirichlet", "alpha": alpha / 10} for alpha in range(1, 11)],
        "method": [{"name": "fedvpt", "prompt_length": k} for k in range(1, 26)]
        # the last two are duplicates, and dropped
        + [{"name": "pep_fedpt", "inject": k} for k in range(5)] + [{"name": "pep_fedpt", "inject": k} for k in (3, 4)],
        "seed": list(range(34)),
    },
}  # fmt: skip

# A run as a scheduler starts it; it prints when its first training step starts and how long its rounds take.
RUN = """
import json, os, sys, time
from pathlib import Path
from fedbench.jobs import job
from fedbench.run import local, simulation

def now():
    started = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19]) / os.sysconf("SC_CLK_TCK")
    return time.clock_gettime(time.CLOCK_BOOTTIME) - started

times = {"imports": now(), "imports_cpu": time.process_time(), "training": 0.0}
train, one_round = local._ChunkTraining._loss, simulation.one_round
def first(*args, **more):
    times.setdefault("first_step", now())
    times.setdefault("first_step_cpu", time.process_time())
    return train(*args, **more)
def timed(*args):
    start = time.monotonic()
    try:
        return one_round(*args)
    finally:
        times["training"] += time.monotonic() - start
local._ChunkTraining._loss, simulation.one_round = first, timed
job.main(sys.argv[1:])
print(json.dumps({**times, "all": now(), "all_cpu": time.process_time()}))
"""


def clocked(command: list[str]) -> tuple[float, float, str]:
    """(seconds, processor seconds, output) of a command."""
    before, start = os.times(), time.monotonic()
    said = subprocess.run(command, cwd=HOME, capture_output=True, text=True, check=True).stdout
    after = os.times()
    used = after.children_user + after.children_system - before.children_user - before.children_system
    return time.monotonic() - start, used, said


def plan(folder: Path) -> None:
    """Expansion and deduplication, --dry-run and --status of 10,200 runs, as whole commands and by parts."""
    sys.path.insert(0, str(HOME))
    file, results = folder / "ten_thousand.yaml", folder / "results"
    file.write_text(json.dumps(PLAN))
    from fedbench.base.records import RunFolder
    from fedbench.jobs.watch import Observer
    from fedbench.plan.planning import read_sweep

    start = time.process_time()
    sweep = read_sweep(file)
    print(f"expand and dedupe: {time.process_time() - start:.2f} s of processor for {len(sweep.runs)} runs", flush=True)
    command = [sys.executable, "-m", "fedbench.sweep", str(file), "--results", str(results), "--status"]
    for what in ("nothing there", "a third each done, at round 5, and waiting"):
        start = time.process_time()
        Observer(results, sweep.runs).look()
        print(f"look, {what}: {time.process_time() - start:.2f} s of processor", flush=True)
        clock, used, said = clocked([*command, "--json"])
        print(
            f"--status --json, {what}: {clock:.2f} s, {used:.2f} s of processor: {json.loads(said)['counts']}",
            flush=True,
        )
        if (results / sweep.runs[0].name).exists():
            break
        for i, run in enumerate(sweep.runs):
            made = RunFolder(results / run.name)
            made.path.mkdir(parents=True)
            (made.path / "run.yaml").write_text("{}")
            if i % 3:
                (made.path / "progress.json").write_text(json.dumps({"round": 5, "rounds": 8, "seconds": 60.0}))
            (made.path / "job.json").write_text("{}")
            if i % 3 == 2:
                (made.path / "done").touch()


def run(folder: Path) -> None:
    """One run of about a minute with nano on glyphs and warm caches, which a first execution fills."""
    sweep = {
        "base": {
            "dataset": {"name": "glyphs", "train_per_class": 6, "test_per_class": 2},
            "partition": "iid",
            "method": "fedvpt",
            "clients": {"number": 20, "per_round": 5},
        },
        "grid": {"rounds": [2, 60]},
        "machine": {"data": str(folder / "data"), "device": "cpu"},
    }
    (folder / "one.yaml").write_text(json.dumps(sweep))
    sys.path.insert(0, str(HOME))
    from fedbench.base.records import RunFolder
    from fedbench.plan.planning import read_sweep

    made = read_sweep(folder / "one.yaml")
    for planned, what in zip(made.runs, ("cold", "warm"), strict=True):
        RunFolder(folder / "results" / planned.name).plan(made.on_disk(planned))
        _, _, said = clocked([sys.executable, "-c", RUN, str(folder / "results"), planned.name])
        times = json.loads(said.splitlines()[-1])
        share = 1 - times["training"] / times["all"]
        parts = (("imports", "imports"), ("first training step", "first_step"), ("all", "all"))
        words = [f"{word} after {times[key]:.2f} s ({times[key + '_cpu']:.2f} of processor)" for word, key in parts]
        print(
            f"{what}, {planned.run.rounds} rounds: {', '.join(words)}; {100 * share:.0f} % is not training", flush=True
        )


def report(folder: Path) -> None:
    """All tables and figures of 10,200 runs: one real run, copied for the others with different numbers."""
    sys.path.insert(0, str(HOME))
    from fedbench.base.records import RunFolder
    from fedbench.plan.config import Sweep
    from fedbench.plan.planning import read_sweep
    from fedbench.plan.plugins import plugins
    from fedbench.run.simulation import run_rounds

    file, results = folder / "ten_thousand.yaml", folder / "results"
    small = {"dataset": {"name": "glyphs", "train_per_class": 6, "test_per_class": 2}, "evaluate_every": 2}
    plan = PLAN | {"base": PLAN["base"] | small, "machine": {"data": str(folder / "data")}}
    file.write_text(json.dumps(plan))
    sweep: Sweep = read_sweep(file)
    first = sweep.runs[0]
    run_folder = RunFolder(folder / "first" / first.name)
    run_folder.plan(sweep.on_disk(first))
    run_rounds(first, sweep.machine, plugins(), run_folder)
    records, clients = run_folder.records(), (run_folder.path / "clients.parquet").read_bytes()
    draw = np.random.default_rng(0)
    for run in sweep.runs:
        made = RunFolder(results / run.name)
        made.plan(sweep.on_disk(run))
        shift = float(draw.normal(0, 0.02))
        identity = {
            "run": run.name,
            "key": run.key,
            "label": run.label,
            "method": run.run.method["name"],
            "seed": run.run.seed,
        }
        for record in records:
            made.append(record | identity | {"mean_accuracy": record["mean_accuracy"] + shift})
        (made.path / "clients.parquet").write_bytes(clients)
        made.finish()
    command = [sys.executable, str(HOME / "reports" / "make_figures.py"), str(file), "--results", str(results)]
    clock, used, said = clocked([*command, "--out", str(folder / "out")])
    print(
        f"report of {len(sweep.runs)} runs: {clock:.1f} s, {used:.1f} s of processor, {len(said.splitlines())} lines said"
    )


def main() -> None:
    """The command line."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("what", choices=("plan", "run", "report"))
    arguments = options.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        {"plan": plan, "run": run, "report": report}[arguments.what](Path(folder))


if __name__ == "__main__":
    main()
