"""`fedbench export`: writes the final model of a run as safetensors, with a loader that needs timm alone."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from fedbench.base.broken_pipe import exits_when_pipe_closes
from fedbench.base.records import RecordsError, RunFolder
from fedbench.cli.output import say, warn
from fedbench.data import DataError
from fedbench.plan.config import ConfigError, Machine, PlannedRun
from fedbench.plan.planning import planned_from_disk
from fedbench.plan.plugins import PluginError, Plugins

FINE, MISTAKE = 0, 2

EPILOG = """\
The folder holds model.safetensors, model.json, README.md and load_model.py, whose load() returns the model in plain timm.
Methods that change pixels, keys, values or scores in other ways have no such loader; their tensors are written all the same.

examples:
  %(prog)s results/fedvpt-glyphs-iid-s0-1a2b3c4d --out model
  %(prog)s results/ditto-glyphs-iid-s0-5e6f7a8b --client 3 --out model_of_client_3
"""


def parser(program: str = "fedbench export") -> argparse.ArgumentParser:
    """The options."""
    options = argparse.ArgumentParser(
        prog=program,
        description="Write the final prompts, head and other tensors of a run that is done.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    options.add_argument("run", type=Path, metavar="RUN", help="the run's folder")
    options.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to write to; it may exist")
    options.add_argument("--client", type=int, metavar="K", help="the model of client K (default: the server's model)")
    options.add_argument("--data", type=Path, metavar="DIR", help="folder of datasets (default: the run's)")
    return options


@exits_when_pipe_closes
def main(arguments: Sequence[str] | None = None, program: str = "fedbench export") -> int:
    """Export the run named on the command line, and return the exit code."""
    options = parser(program).parse_args(arguments)
    folder = RunFolder(options.run)
    if folder.status != "done":
        warn(f"error: {options.run} is {folder.status}, and only a run that is done can be exported")
        return MISTAKE
    from fedbench.run import export  # imports timm, which takes seconds
    from fedbench.vit.backbone import BackboneError

    try:
        planned, machine, available = planned_from_disk(folder.config())
        if options.data is not None:
            machine = machine.model_copy(update={"data": options.data.expanduser().resolve()})
        said = _export(folder, planned, machine.model_copy(update={"device": "cpu"}), available, options)
    except (RecordsError, ConfigError, PluginError, DataError, BackboneError, export.ExportError, OSError) as error:
        warn(f"error: {error}")
        return MISTAKE
    say(said)
    return FINE


def _export(
    folder: RunFolder, planned: PlannedRun, machine: Machine, available: Plugins, options: argparse.Namespace
) -> str:
    """Write the files, and return a sentence about them. Raises what `main` catches."""
    from fedbench.run import export, resume
    from fedbench.run.experiment import build

    experiment = build(planned, machine, available)
    saved = resume.fitting_checkpoint(folder, planned.run)
    if saved is None or saved.round != planned.run.rounds:
        raise export.ExportError(f"{folder.path} has no checkpoint of its last round")
    experiment.server.restore(saved.state)
    model = export.final_model(experiment, options.client)
    accuracy = _accuracy(folder, options.client)
    names = export.write(experiment, model, options.out, options.client, accuracy)
    why = f"; no loader for plain timm: {model.no_loader}" if model.no_loader else ""
    return f"{options.out}: {', '.join(names)}{why}"


def _accuracy(folder: RunFolder, client: int | None) -> float | None:
    """The test accuracy that the run recorded for the exported model; None if it recorded none."""
    if client is None:
        value = folder.records()[-1].get("global_accuracy")
        return None if value is None else float(value)
    from pyarrow import parquet

    table = parquet.read_table(folder.path / "clients.parquet", columns=["client", "accuracy"])
    return dict(zip(table["client"].to_pylist(), table["accuracy"].to_pylist(), strict=True)).get(client)
