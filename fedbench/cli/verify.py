"""`fedbench verify`: does some runs of a published file again, drawn at random, and compares the records."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fedbench.base.broken_pipe import exits_when_pipe_closes
from fedbench.cli.options import add_plugins
from fedbench.cli.output import say, warn
from fedbench.jobs import verification
from fedbench.jobs.attempt import BrokenAccelerator
from fedbench.jobs.verification import POINTS, TAIL_FACTOR, Verified
from fedbench.plan.config import Machine
from fedbench.plan.plugins import PluginError, Plugins, plugins
from fedbench.plan.rerun import NotHere, planned_from_identity
from fedbench.report.published_runs import PublishedRun, PublishedRunsError, read

PASS, FAIL, NOTHING = 0, 1, 2

EPILOG = f"""\
With the versions, processor and threads of the published run, all records must be equal to the bit. Otherwise means may
differ by the tolerance, metrics of few clients (worst, 10th percentile, spread) by {TAIL_FACTOR:g} times as much, and
the training loss by {verification.LOSS_TOLERANCE:.0%}. Hashes, bytes and multiply-adds must be equal. Times and memory are not
compared.
Exit code: 0 all compared runs pass, 1 some fail, 2 nothing could be compared.

examples:
  %(prog)s results/published/quickstart.parquet
  %(prog)s results/published/quickstart.parquet --sample 5 --seed 1
""".replace("%.", "%%.")


def parser(program: str = "fedbench verify") -> argparse.ArgumentParser:
    """The options."""
    options = argparse.ArgumentParser(
        prog=program,
        description="Do some published runs again and compare their records.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    options.add_argument("file", type=Path, metavar="FILE.parquet", help="a file that `fedbench publish` made")
    options.add_argument("--sample", type=int, default=5, metavar="N", help="runs to draw (5)")
    options.add_argument("--seed", type=int, default=0, metavar="S", help="seed of the draw (0)")
    options.add_argument(
        "--tolerance", type=float, default=POINTS, metavar="POINTS", help=f"of mean accuracies ({POINTS:g} point)"
    )
    options.add_argument("--data", type=Path, default=Path("data"), metavar="DIR", help="folder of datasets (data)")
    options.add_argument(
        "--files", type=Path, nargs="+", default=[], metavar="PATH", help="your own files that the runs read"
    )
    add_plugins(options)
    options.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (auto)")
    return options


@exits_when_pipe_closes
def main(arguments: Sequence[str] | None = None, program: str = "fedbench verify") -> int:
    """Verify the file, and return the exit code."""
    command_line = parser(program)
    options = command_line.parse_args(arguments)
    if options.sample < 1 or options.seed < 0 or not 0 <= options.tolerance <= 100:
        command_line.error("expected --sample from 1 on, --seed from 0 on and --tolerance from 0 to 100")
    try:
        machine = Machine(device=options.device, data=options.data.expanduser().resolve())
    except ValueError:
        command_line.error(f"--device {options.device}: expected auto, cpu, cuda or cuda:N")
    try:
        runs = sorted(read(options.file), key=lambda run: run.name)
        available = plugins(options.plugins)
        _ = available.classes
    except (PublishedRunsError, PluginError) as error:
        warn(f"error: {error}")
        return NOTHING
    places = np.random.default_rng(options.seed).choice(len(runs), min(options.sample, len(runs)), replace=False)
    drawn = [runs[place] for place in sorted(places)]
    say(f"{options.file}: {len(drawn)} of {len(runs)} runs, drawn with seed {options.seed}")
    verdicts = []
    for run in drawn:
        verified = _verify(run, available, machine, options.files, options.tolerance)
        verdicts.append(verified.verdict)
        kind = "" if verified.verdict == "skipped" else " (to the bit)" if verified.exact else " (within tolerance)"
        say(f"{verified.verdict}{kind}  {run.name}: {verified.said}")
    counts = ", ".join(f"{verdicts.count(word)} {word}" for word in ("pass", "fail", "skipped") if word in verdicts)
    say(counts)
    return FAIL if "fail" in verdicts else PASS if "pass" in verdicts else NOTHING


def _verify(
    run: PublishedRun, available: Plugins, machine: Machine, files: Sequence[Path], tolerance: float
) -> Verified:
    """Do a run again in a temporary folder, and compare it."""
    try:
        planned = planned_from_identity(run.identity, run.label, available, machine.data, files)
    except NotHere as error:
        return Verified(run.name, "skipped", False, str(error))
    with tempfile.TemporaryDirectory(prefix="fedbench-verify-") as folder:
        threads = max(1, int(run.provenance.get("threads", 1)))
        try:
            done = verification.rerun(planned, available, machine, threads, Path(folder))
        except BrokenAccelerator as error:
            return Verified(run.name, "skipped", False, f"the accelerator is unusable: {error}")
        return verification.compare(run.name, run.records, run.provenance, done, tolerance)
