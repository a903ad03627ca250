"""fedbench compared with other frameworks and plain loops, on the same tensors and the same frozen ViT.

`make bench-peers` creates the peers' environment and runs this. Each system trains and evaluates the same task in its own
process, one after the other, in reverse order in every second repeat. Results are reported only if all systems end with the
same values. Usage: ``python -m benchmarks.peers [--repeat N] [--out FILE] [--only SYSTEM ...] [case ...]``
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import signal
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.peers.memory import watched
from benchmarks.peers.prepare import CASES, COMMON, SIZES, prepare
from fedbench.base import provenance

HOME = Path(__file__).resolve().parents[2]
APART = HOME / ".peers" / "bin" / "python"
SYSTEMS = {  # name in the table: module, whether it lives in the peers' environment
    "bare PyTorch loop": ("bare", False),
    "published-style loop": ("published", False),
    "full encoders at each step": ("clip_published", False),
    "pfl-research": ("pfl_research", True),
    "Flower": ("flower", True),
    "fedbench": ("ours", False),
}
OF_PROMPTFL = ("clip_published", "ours")  # the systems that train PromptFL; all but the first train FedVPT
TOLERANCE = 2e-5  # largest difference of a final value from the bare loop's


def processor() -> str:
    """The processor's name, from /proc/cpuinfo if it exists."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def run_system(name: str, folder: Path, out: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Run a system in its own process. Returns its log, and the time and memory measured from outside."""
    module, apart = SYSTEMS[name]
    quiet = {"FLWR_TELEMETRY_ENABLED": "0", "RAY_USAGE_STATS_ENABLED": "0", "FLWR_HOME": str(folder / "flwr")}
    env = os.environ | quiet | dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(args.threads))
    env |= {"PYTHONPATH": str(HOME), "PEERS_FLOWER_ACTORS": str(args.flower_actors)}
    for left in ("results", "cache"):  # of an earlier run
        shutil.rmtree(folder / left, ignore_errors=True)
    (folder / "results").mkdir()
    command = [
        str(APART) if apart else sys.executable,
        "-m",
        "benchmarks.peers.run_system",
        module,
        str(folder),
        str(out),
    ]
    start, end, peak = watched(command, env, HOME, out.with_suffix(".log"))
    log = json.loads(out.with_suffix(".json").read_text())
    return {
        "cold_start": log["first_step"] - start,
        "rounds": log["rounds"],
        "evaluations": log["evaluations"],
        "whole": end - start,
        "round_processor": log["round_processor"],
        "processor": log["processor"],
        "peak_bytes": peak,
        "right": log["right"],
        "versions": log["versions"],
    }


def difference(out: Path, reference: Path) -> float:
    """The largest difference of any final value."""
    with np.load(out.with_suffix(".npz")) as a, np.load(reference.with_suffix(".npz")) as b:
        return max(float(np.abs(a[name].astype(np.float64) - b[name]).max()) for name in b.files)


def moved(out: Path, folder: Path) -> float:
    """The smallest change of a value by training. If it were zero, agreement would prove nothing."""
    with np.load(out.with_suffix(".npz")) as a, np.load(folder / "task.npz") as b:
        return min(float(np.abs(a[name] - b[name]).max()) for name in a.files if name in b)


def rounds_of(rounds: int) -> dict[str, int]:
    """The config keys of a run of `rounds`, with an evaluation in the middle and one at the end."""
    return {"rounds": rounds, "evaluate_every": rounds // 2}


def systems_of(case: str, names: list[str]) -> list[str]:
    """Those of the systems `names` that train the method of `case`."""
    text = (COMMON | CASES[case])["method"] == "promptfl"
    modules = OF_PROMPTFL if text else [module for module, _ in SYSTEMS.values() if module != OF_PROMPTFL[0]]
    return [name for name in names if SYSTEMS[name][0] in modules]


def compare(case: str, names: list[str], args: argparse.Namespace, work: Path) -> dict[str, Any]:
    """Run all systems on one case. Raises RuntimeError if one ends with other values than the first."""
    folder = work / case
    names = systems_of(case, names)
    task = COMMON | SIZES | CASES[case] | rounds_of(args.rounds)
    prepare(folder, task)
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    reference: Path | None = None
    far = 0.0
    for repeat in range(args.repeat):
        for name in names if repeat % 2 == 0 else names[::-1]:
            out = work / f"{case}-{SYSTEMS[name][0]}-{repeat}"
            result = run_system(name, folder, out, args)
            runs[name].append(result)
            if reference is None:
                reference, far = out, moved(out, folder)
            result["difference"] = difference(out, reference)
            print(
                f"{case}: {name}: {result['whole']:.1f} s, difference {result['difference']:.1e}, {result['right']}",
                file=sys.stderr,
            )
            if not result["difference"] < TOLERANCE:
                raise RuntimeError(
                    f"{case}: {name} ends {result['difference']:g} away from {names[0]}, so there is no comparison"
                )
    if far < 10 * TOLERANCE:
        raise RuntimeError(f"{case}: training moved a value by {far:g} at most, so agreement proves nothing")
    return {"case": case, "task": task, "moved": far, "systems": runs}


def row(name: str, runs: list[dict[str, Any]], pace: float) -> str:
    """One line of the table: medians over rounds and repeats; `pace` is the bare loop's round."""

    def median(key: str) -> float:
        return float(statistics.median(run[key] for run in runs))

    steady = statistics.median(seconds for run in runs for seconds in run["rounds"][1:])
    evaluation = [seconds for run in runs for seconds in run["evaluations"]]
    cells = [
        name,
        f"{median('cold_start'):.1f} s",
        f"{steady:.2f} s",
        f"{pace / steady:.2f}",
        f"{statistics.median(evaluation):.2f} s" if evaluation else "-",
        f"{median('whole'):.1f} s",
        f"{statistics.median(s for run in runs for s in run['round_processor'][1:]):.2f} s",
        f"{median('processor'):.1f} s",
        f"{max(run['peak_bytes'] for run in runs) / 2**30:.2f} GiB",
        f"{max(run['difference'] for run in runs):.0e}",
    ]
    return "| " + " | ".join(cells) + " |"


def table(result: dict[str, Any]) -> str:
    """Markdown for benchmarks/README.md."""
    machine, versions = result["machine"], ", ".join(f"{k} {v}" for k, v in sorted(result["versions"].items()))
    lines = [
        f"{machine['processor']}, {machine['cores']} cores, {machine['threads']} threads (Flower: shared by "
        f"{machine['flower_actors']} actors), Python {machine['python']}; "
        f"{versions}; commit {result['commit']}."
    ]
    for case in result["cases"]:
        runs = case["systems"]
        pace = statistics.median(s for run in next(iter(runs.values())) for s in run["rounds"][1:])
        lines += ["", f"**{case['case']}**", ""]
        times = "cold start | round | speed | evaluation | whole run | round, processor | whole run, processor"
        lines += [f"| | {times} | peak memory | difference |"]
        lines += [
            "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
            *(row(name, repeats, pace) for name, repeats in runs.items()),
        ]
    return "\n".join(lines)


def main() -> None:
    """Measure, check, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("cases", nargs="*", default=list(CASES), metavar="case", help=f"of {', '.join(CASES)}")
    parser.add_argument("--repeat", type=int, default=1, help="runs of each system")
    parser.add_argument("--rounds", type=int, default=10, help="rounds of a run, an even number")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--flower-actors", type=int, default=2, help="Flower's actors, which share the threads evenly")
    parser.add_argument("--only", nargs="+", metavar="SYSTEM", help=f"modules of {[m for m, _ in SYSTEMS.values()]}")
    parser.add_argument("--out", type=Path, help="JSON file for the figures")
    args = parser.parse_args()
    names = [name for name, (module, _) in SYSTEMS.items() if not args.only or module in args.only]
    if wrong := set(args.cases) - set(CASES):
        parser.error(f"unknown case {', '.join(sorted(wrong))}; legal: {', '.join(CASES)}")
    if args.rounds < 2 or args.rounds % 2:
        parser.error(f"--rounds {args.rounds}: expected 2, 4, ...")
    if any(SYSTEMS[name][1] for case in args.cases for name in systems_of(case, names)) and not APART.exists():
        parser.error(f"no {APART.relative_to(HOME)}: `make bench-peers` makes the peers' environment")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the running system ends as well
    with tempfile.TemporaryDirectory() as work:
        cases = [compare(case, names, args, Path(work)) for case in args.cases]
    versions: dict[str, str] = {}
    for case in cases:
        for runs in case["systems"].values():
            for run in runs:
                versions |= run.pop("versions")
    machine = {
        "processor": processor(), "cores": os.cpu_count(), "threads": args.threads, "python": platform.python_version(),
        "flower_actors": args.flower_actors,
    }  # fmt: skip
    result = {"commit": provenance.commit(), "machine": machine, "versions": versions, "cases": cases}
    print(table(result))
    if args.out:
        args.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
