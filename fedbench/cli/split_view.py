"""Shows the splits of a sweep before any job starts: numbers, figures, and files to publish."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from fedbench.base.storage import write_atomically
from fedbench.data import DataError, Samples, published
from fedbench.data.split_stats import SplitStats
from fedbench.plan.config import ConfigError, RunConfig, Sweep, short_name
from fedbench.plan.planning import read_sweep
from fedbench.plan.split import split_of
from fedbench.report.figures.split import draw

Say = Callable[[str], None]


def arguments(made: argparse.ArgumentParser) -> None:
    """Add the options of `data split` to its parser."""
    made.add_argument("sweep", type=Path, help="a sweep file, e.g. sweeps/quickstart.yaml")
    out = Path("reports/out/splits")
    made.add_argument(
        "--out", type=Path, default=out, metavar="DIR", help="folder of the figures; default: %(default)s"
    )
    made.add_argument(
        "--write", type=Path, metavar="FILE", help=f"write the split to FILE ({', '.join(published.SUFFIXES)})"
    )
    made.add_argument(
        "--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help="as of a sweep, e.g. --set seed=0"
    )


def show(options: argparse.Namespace, say: Say) -> None:
    """Make every distinct split of the sweep and describe it. Raises ConfigError and DataError."""
    sweep = read_sweep(options.sweep, options.plugins, options.set)
    runs = {_key(planned.run): planned.run for planned in sweep.runs}
    if options.write and len(runs) > 1:
        names = "\n".join(f"  - {_title(sweep, run)}" for run in runs.values())
        raise ConfigError(
            f"--write takes one split, but {options.sweep} has {len(runs)}; choose one with --set, for example --set seed=0:\n"
            + names
        )
    loaded: dict[str, Samples] = {}
    impossible: list[str] = []
    options.out.mkdir(parents=True, exist_ok=True)
    for run in runs.values():
        name = json.dumps(run.dataset, default=str)
        if name not in loaded:
            dataset = sweep.plugins.make("dataset", run.dataset)
            loaded = {name: dataset.load(sweep.machine.data)}  # one dataset in memory at a time
        samples, title = loaded[name], _title(sweep, run)
        say(title)
        try:
            made = split_of(run, samples, sweep.plugins.make("partition", run.partition))
        except DataError as error:
            say(f"  {error}")
            impossible.append(title)
            continue
        stats = SplitStats.of(made, samples)
        for line in lines(stats, made.hash):
            say("  " + line)
        stem = f"{run.dataset['name']}-{run.partition['name']}-s{run.stream('partition')}-{made.hash[:8]}"
        files = draw(stats.counts, stats.held_out, stats.variation, stats.by_chance, title)
        for kind, content in files.items():
            write_atomically(options.out / f"{stem}.{kind}", content)
        say(f"  figure             {options.out / stem}.png")
        if options.write:
            published.write(options.write, made, samples)
            say(f"  written            {options.write}")
    if impossible:
        raise DataError(f"{len(impossible)} of {len(runs)} splits are impossible: " + "; ".join(impossible))


def _key(run: RunConfig) -> str:
    """The fields that determine a run's split, as text."""
    clients = (run.clients.number, run.clients.held_out, run.clients.validation)
    return json.dumps([run.dataset, run.partition, clients, run.stream("partition")], sort_keys=True, default=str)


def _title(sweep: Sweep, run: RunConfig) -> str:
    classes = sweep.plugins.classes
    dataset = short_name(run.dataset, classes["dataset"][run.dataset["name"]])
    partition = short_name(run.partition, classes["partition"][run.partition["name"]])
    return f"{dataset} · {partition} · {run.clients.number:,} clients · seed {run.stream('partition')}"


def lines(stats: SplitStats, hash_: str) -> list[str]:
    """The numbers of a split, one line each."""
    held_out = int(stats.held_out.sum())
    clients, classes = stats.counts.shape
    train, validation, test = stats.sizes
    whole = "the whole (all clients' training samples)"
    return [
        f"hash               {hash_}",
        f"clients            {clients - held_out:,} train, {held_out:,} are held out",
        f"training samples   {_spread(train)}, {train.sum():,} in all",
        f"validation         {_spread(validation)}, {validation.sum():,} in all",
        f"test               {_spread(test)}, {test.sum():,} in all",
        f"unused             {stats.unused:,} samples",
        f"classes            {_spread(stats.classes)} of {classes:,} in a client's training samples",
        f"total variation    mean {stats.variation.mean():.3f} between a client's classes and {whole}; "
        f"{stats.by_chance.mean():.3f} for random clients of the same sizes",
        f"Jensen-Shannon     mean {stats.shannon.mean():.3f} bits between the same",
        f"train to test      mean total variation {stats.test_variation.mean():.3f} between a client's training and test parts",
    ]


def _spread(values: Any) -> str:
    return f"min {values.min():,} median {np.median(values):,g} max {values.max():,}"
