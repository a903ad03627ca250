"""What the splits of a sweep look like, before any job is sent: numbers, a figure of each, and files to publish."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from fedbench.base.storage import write_aside
from fedbench.data import DataError, Samples, published
from fedbench.data.split_stats import SplitStats
from fedbench.plan.config import ConfigError, RunConfig, Sweep, short_name
from fedbench.plan.planning import read_sweep
from fedbench.plan.split import split_of
from fedbench.report.figures.split import draw

Say = Callable[[str], None]


def arguments(made: argparse.ArgumentParser) -> None:
    """The options of the verb."""
    made.add_argument("sweep", type=Path, help="a sweep file, e.g. sweeps/quickstart.yaml")
    made.add_argument(
        "--out", type=Path, default=Path("reports/out/splits"), metavar="DIR", help="for figures; default: %(default)s"
    )
    made.add_argument(
        "--write", type=Path, metavar="FILE", help=f"publish the split as FILE ({', '.join(published.SUFFIXES)})"
    )
    made.add_argument(
        "--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help="as of a sweep, e.g. --set seed=0"
    )


def show(given: argparse.Namespace, say: Say) -> None:
    """Deal every distinct split of the sweep and say what it is. Raises ConfigError and DataError."""
    sweep = read_sweep(given.sweep, given.plugins, given.set)
    runs = {_key(planned.run): planned.run for planned in sweep.runs}
    if given.write and len(runs) > 1:
        names = "\n".join(f"  - {_title(sweep, run)}" for run in runs.values())
        raise ConfigError(
            f"--write takes one split, but {given.sweep} has {len(runs)}; choose one by --set, for example --set seed=0:\n"
            + names
        )
    loaded: dict[str, Samples] = {}
    impossible: list[str] = []
    given.out.mkdir(parents=True, exist_ok=True)
    for run in runs.values():
        name = json.dumps(run.dataset, default=str)
        if name not in loaded:
            loaded = {name: sweep.plugins.make("dataset", run.dataset).load(sweep.machine.data)}  # one at a time
        samples, title = loaded[name], _title(sweep, run)
        say(title)
        try:
            made = split_of(run, samples, sweep.plugins.make("partition", run.partition))
        except DataError as error:
            say(f"  {error}")
            impossible.append(title)
            continue
        portrait = SplitStats.of(made, samples)
        for line in lines(portrait, made.hash):
            say("  " + line)
        stem = f"{run.dataset['name']}-{run.partition['name']}-s{run.stream('partition')}-{made.hash[:8]}"
        files = draw(portrait.counts, portrait.held_out, portrait.variation, portrait.by_chance, title)
        for kind, content in files.items():
            write_aside(given.out / f"{stem}.{kind}", content)
        say(f"  figure             {given.out / stem}.png")
        if given.write:
            published.write(given.write, made, samples)
            say(f"  written            {given.write}")
    if impossible:
        raise DataError(f"{len(impossible)} of {len(runs)} splits cannot be dealt: " + "; ".join(impossible))


def _key(run: RunConfig) -> str:
    """What a split depends on."""
    clients = (run.clients.number, run.clients.held_out, run.clients.validation)
    return json.dumps([run.dataset, run.partition, clients, run.stream("partition")], sort_keys=True, default=str)


def _title(sweep: Sweep, run: RunConfig) -> str:
    classes = sweep.plugins.classes
    dataset = short_name(run.dataset, classes["dataset"][run.dataset["name"]])
    partition = short_name(run.partition, classes["partition"][run.partition["name"]])
    return f"{dataset} · {partition} · {run.clients.number:,} clients · seed {run.stream('partition')}"


def lines(portrait: SplitStats, hash_: str) -> list[str]:
    """The numbers of a split, a line each."""
    out = int(portrait.held_out.sum())
    clients, classes = portrait.counts.shape
    train, validation, test = portrait.sizes
    whole = "the whole (all clients' training samples)"
    return [
        f"hash               {hash_}",
        f"clients            {clients - out:,} train, {out:,} are held out",
        f"training samples   {_spread(train)}, {train.sum():,} in all",
        f"validation         {_spread(validation)}, {validation.sum():,} in all",
        f"test               {_spread(test)}, {test.sum():,} in all",
        f"nobody's           {portrait.unused:,} samples",
        f"classes            {_spread(portrait.classes)} of {classes:,} in a client's training samples",
        f"total variation    mean {portrait.variation.mean():.3f} between a client's classes and {whole}; "
        f"{portrait.by_chance.mean():.3f} if dealt at random in the same sizes",
        f"Jensen-Shannon     mean {portrait.shannon.mean():.3f} bits between the same",
        f"train to test      mean total variation {portrait.test_variation.mean():.3f} between a client's own two parts",
    ]


def _spread(values: Any) -> str:
    return f"min {values.min():,} median {np.median(values):,g} max {values.max():,}"
