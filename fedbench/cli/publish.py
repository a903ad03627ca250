"""`fedbench publish`: packs the finished runs of a sweep into one file, from which other reports can fill their rows."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from fedbench.base.broken_pipe import exits_when_pipe_closes
from fedbench.base.records import RecordsError, RunFolder
from fedbench.cli.options import add_plugins, add_settings
from fedbench.cli.output import say, warn
from fedbench.plan.config import ConfigError, Sweep
from fedbench.plan.planning import read_sweep
from fedbench.plan.plugins import PluginError
from fedbench.plan.tuning import next_stage, tuning_groups
from fedbench.report import published_runs
from fedbench.report.published_runs import PublishedRunsError

DONE, MISTAKE = 0, 2

EPILOG = """\
Runs that are not done, or whose files are damaged, are left out and named. The same runs give the same bytes.
Exit code: 0 written, 2 no run is done, or a mistake in the file or on the command line.

examples:
  %(prog)s sweeps/quickstart.yaml --out results/published/quickstart.parquet
  %(prog)s sweeps/main_table.yaml --results /scratch/me/results --out results/published/main_table.parquet
"""


def parser(program: str = "fedbench publish") -> argparse.ArgumentParser:
    """The options."""
    options = argparse.ArgumentParser(
        prog=program,
        description="Pack the finished runs of a sweep file into one parquet file.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    options.add_argument("sweep", type=Path, metavar="SWEEP.yaml", help="sweep file, e.g. sweeps/quickstart.yaml")
    options.add_argument(
        "--out",
        type=Path,
        required=True,
        metavar="FILE.parquet",
        help="where to write, e.g. results/published/mine.parquet",
    )
    options.add_argument(
        "--results", type=Path, default=Path("results"), metavar="DIR", help="where runs are (results)"
    )
    add_plugins(options)
    add_settings(options)
    return options


@exits_when_pipe_closes
def main(arguments: Sequence[str] | None = None, program: str = "fedbench publish") -> int:
    """Write the file, and return the exit code."""
    command_line = parser(program)
    options = command_line.parse_args(arguments)
    if options.out.suffix != ".parquet":
        command_line.error(f"--out {options.out}: expected a name that ends in .parquet")
    try:
        return _publish(read_sweep(options.sweep, options.plugins, options.settings), options.results, options.out)
    except BrokenPipeError:
        raise
    except (ConfigError, PluginError, RecordsError, OSError) as error:
        warn(f"error: {error}")
        return MISTAKE


def _publish(sweep: Sweep, results: Path, out: Path) -> int:
    """Write the finished runs and trials of `sweep` into `out`; returns the exit code. Raises OSError."""
    stage = next_stage(sweep, results)
    trials = [trial.planned for group in tuning_groups(sweep, results) for trial in group.trials]
    names = list(dict.fromkeys(run.name for run in [*stage.runs, *trials]))
    runs = []
    left_out = [f"{len(stage.later)} runs that wait for trials of the tuning"] if stage.later else []
    for name in names:
        folder = RunFolder(results / name)
        if folder.status != "done":
            left_out.append(f"{name}: {folder.status}")
            continue
        try:
            runs.append(published_runs.of_folder(folder))
        except PublishedRunsError as error:
            left_out.append(f"{name}: {error}")
    if not runs:
        warn(f"error: none of the {len(names)} runs of {sweep.name} is done in {results}; nothing was written")
        return MISTAKE
    published_runs.write(out, runs)
    for line in left_out:
        say(f"left out: {line}")
    say(f"{out}: {len(runs)} of {len(names)} runs, {out.stat().st_size / 1000:.0f} kB")
    return DONE
