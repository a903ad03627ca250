"""`fedbench unpack`: writes published runs as finished run folders, so that a sweep goes on from them."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from fedbench.base import run_files
from fedbench.base.broken_pipe import exits_when_pipe_closes
from fedbench.base.storage import write_atomically
from fedbench.cli.output import say, warn
from fedbench.report.published_runs import PublishedRun, PublishedRunsError, read, unpack

DONE, MISTAKE = 0, 2

EPILOG = """\
A sweep then takes these runs and trials as done and does the missing ones. Folders that exist are left alone.

examples:
  %(prog)s results/published/reference_nano.parquet
  %(prog)s results/published/quickstart.parquet --results /scratch/me/results
"""


def parser(program: str = "fedbench unpack") -> argparse.ArgumentParser:
    """The options."""
    options = argparse.ArgumentParser(
        prog=program,
        description="Write the runs of a published file as finished runs of a results folder.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    options.add_argument("file", type=Path, metavar="FILE.parquet", help="a file that `fedbench publish` made")
    options.add_argument(
        "--results", type=Path, default=Path("results"), metavar="DIR", help="where the sweep's runs are (results)"
    )
    return options


@exits_when_pipe_closes
def main(arguments: Sequence[str] | None = None, program: str = "fedbench unpack") -> int:
    """Write the folders, and return the exit code."""
    options = parser(program).parse_args(arguments)
    try:
        runs = read(options.file)
        options.results.mkdir(parents=True, exist_ok=True)
        missing = [run for run in runs if not (options.results / run.name).exists()]
        for run in missing:
            _write(run, options.results, f"{program} {options.file.name}")
    except PublishedRunsError as error:
        warn(f"error: {error}")
        return MISTAKE
    except OSError as error:
        warn(f"error: {error.filename or options.results}: {error.strerror or error}")
        return MISTAKE
    here = len(runs) - len(missing)
    say(
        f"{options.results}: {len(missing)} of {len(runs)} runs written"
        + (f", {here} are here already" if here else "")
    )
    return DONE


def _write(run: PublishedRun, results: Path, command: str) -> None:
    """A finished run's folder; its env.json says where the run was computed and how it came here. Raises OSError."""
    unknown = {"platform": "unknown", "hostname": "unknown", "packages": {}}  # are not published
    nothing = dict.fromkeys(("job", "node", "sweep_command"))
    environment = {**unknown, **nothing, **run.provenance, "command": command}
    folder = unpack(run, results)
    write_atomically(folder.path / "env.json", run_files.encode(environment))
