"""The command line `fedbench data`: list datasets, and prepare and verify them before any job starts."""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import TypeAdapter, ValidationError

from fedbench.base.broken_pipe import exits_when_pipe_closes
from fedbench.cli import split_view
from fedbench.cli.options import add_plugins
from fedbench.cli.output import say
from fedbench.data import DataError, Dataset
from fedbench.plan import content
from fedbench.plan.config import ConfigError
from fedbench.plan.plugins import PluginError, Plugins, plugins
from fedbench.plan.yaml_reader import YamlError, parse_yaml

DONE, FAILED, MISTAKE, INTERRUPTED = 0, 1, 2, 130

EPILOG = """\
The same command resumes where the last one stopped. Exit code: 0 done, 1 the data are unavailable or damaged, 2 a mistake on
the command line.

examples:
  %(prog)s list
  %(prog)s info tiny_imagenet
  %(prog)s prepare tiny_imagenet
  %(prog)s prepare inaturalist --root /scratch/me/data --from /archives --set clients=geo_1k
  %(prog)s verify cifar100
"""


class CommandError(ValueError):
    """A mistake on the command line. The message names the legal choices."""


@dataclass(frozen=True)
class Verb:
    """A subcommand: its help, its arguments, and a function of the parsed arguments and the plug-ins."""

    help: str
    arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace, Plugins], int]


def _no_arguments(_: argparse.ArgumentParser) -> None:
    pass


def _split(arguments: argparse.Namespace, _: Plugins) -> int:
    split_view.show(arguments, say)
    return DONE


def _dataset_arguments(made: argparse.ArgumentParser) -> None:
    made.add_argument("name", help="a dataset, as in `list`, e.g. tiny_imagenet")
    made.add_argument("--root", type=Path, default=Path("data"), help="the data folder, e.g. --root /scratch/me/data")
    made.add_argument(
        "--set", action="append", default=[], metavar="FIELD=VALUE", dest="fields", help="e.g. --set image_size=96"
    )
    made.add_argument(
        "--image-size", type=int, help="the same as --set image_size=: pixels per side, e.g. --image-size 96"
    )


def _prepare_arguments(made: argparse.ArgumentParser) -> None:
    _dataset_arguments(made)
    made.add_argument(
        "--from",
        type=Path,
        dest="local",
        metavar="PATH",
        help="an archive or folder on this machine, e.g. --from ~/zips",
    )


def _list(_: argparse.Namespace, registry: Plugins) -> int:
    for name, cls in registry.classes["dataset"].items():
        say(f"{name:<17} {_size(cls):<62} {(cls.__doc__ or '').strip().splitlines()[0]}".rstrip())
    return DONE


def _size(cls: Any) -> str:
    facts = cls.facts
    if facts is None:
        return ""
    parts = ((facts.images, "images"), (facts.classes, "classes"), (facts.domains, "domains"), (facts.users, "users"))
    return ", ".join(f"{count:,} {what}" for count, what in parts if count)


def _info(arguments: argparse.Namespace, registry: Plugins) -> int:
    dataset = _dataset(arguments, registry)
    lines = [("what", (dataset.__doc__ or "").strip().splitlines()[0]), ("size", _size(dataset))]
    lines += [("citation", dataset.citation), ("licence", dataset.licence)]
    lines += [("page", dataset.facts.page if dataset.facts else "")]
    for archive in dataset.archives:
        size = f"{archive.size:,} bytes" if archive.size else archive.remark or "size unknown"
        sure = (
            (f"md5 {archive.md5}" + ("" if archive.official else ", by third parties"))
            if archive.md5
            else "no checksum"
        )
        lines.append(("archive", f"{archive.name} ({size}, {sure}) {archive.url or 'to be fetched by hand'}"))
    for field in dataclasses.fields(dataset):
        lines.append(("option", f"{field.name}={getattr(dataset, field.name)}: {field.metadata.get('meaning', '')}"))
    lines += [("here", line) for line in dataset.info(arguments.root)]
    for what, text in lines:
        if text:
            say(f"{what:<9} {text}")
    return DONE


def _prepare(arguments: argparse.Namespace, registry: Plugins) -> int:
    dataset = _dataset(arguments, registry)
    arguments.root.mkdir(parents=True, exist_ok=True)
    samples = dataset.prepare(arguments.root, arguments.local)
    count, height, width, _ = samples.images.shape
    test = int(samples.is_test.sum())
    summary = (
        f"{arguments.name}: {count:,} images of {width} x {height} pixels ({count - test:,} training, {test:,} test)"
    )
    summary += f", {samples.num_classes:,} classes"
    summary += f", {len(samples.domain_names)} domains" if samples.domain_names else ""
    if samples.user is not None:
        summary += f", {len(np.unique(samples.user[samples.user >= 0])):,} users"
    say(summary)
    if dataset.facts and dataset.facts.images and count != dataset.facts.images:
        say(f"  not the published {dataset.facts.images:,} images; see below for the images left out")
    for line in dataset.info(arguments.root):
        say(f"  {line}")
    for field in dataclasses.fields(dataset):
        if isinstance(path := getattr(dataset, field.name), Path):
            content.content_hash(path.resolve(), dataset.files_read, arguments.root.resolve())
    content.save()  # so that sweeps need not read the user's files
    free = shutil.disk_usage(arguments.root).free
    say(f"  {free / 1e9:,.1f} GB are free below {arguments.root}")
    return DONE


def _verify(arguments: argparse.Namespace, registry: Plugins) -> int:
    damage = _dataset(arguments, registry).verify(arguments.root)
    for line in damage:
        say(line)
    say(f"{arguments.name}: {'damaged' if damage else 'intact'}")
    return FAILED if damage else DONE


def _dataset(arguments: argparse.Namespace, registry: Plugins) -> Dataset:
    """The dataset named on the command line, with its options. Raises CommandError."""
    classes = registry.classes["dataset"]
    if arguments.name not in classes:
        near = difflib.get_close_matches(arguments.name, classes, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise CommandError(f"unknown dataset {arguments.name!r}; {hint}legal: {', '.join(sorted(classes))}")
    cls: Any = classes[arguments.name]
    legal = [field.name for field in dataclasses.fields(cls)]
    fields: dict[str, Any] = {}
    for text in [
        *arguments.fields,
        *([f"image_size={arguments.image_size}"] if arguments.image_size is not None else []),
    ]:
        key, equals, value = text.partition("=")
        if not equals or key not in legal:
            raise CommandError(
                f"{text!r}: expected FIELD=VALUE, and {arguments.name} has the fields: {', '.join(legal) or 'none'}"
            )
        try:
            fields[key] = parse_yaml(value)
        except YamlError as error:
            raise CommandError(f"{text!r}: the value cannot be read") from error
    try:
        made: Dataset = TypeAdapter(cls).validate_python(fields)
    except ValidationError as error:
        problems = [
            f"{'.'.join(map(str, each['loc']))}: {each['msg']}, found {each['input']!r:.60}" for each in error.errors()
        ]
        raise CommandError(f"{arguments.name}: {'; '.join(problems)}") from error
    return made


VERBS: dict[str, Verb] = {
    "list": Verb("list all datasets, one per line", _no_arguments, _list),
    "split": Verb(
        "show the splits of a sweep as numbers and figures, and write them as files", split_view.arguments, _split
    ),
    "info": Verb("show size, licence, citation, archives and local files of a dataset", _dataset_arguments, _info),
    "prepare": Verb("fetch, check and read a dataset once, before any job starts", _prepare_arguments, _prepare),
    "verify": Verb("compare the files and caches of a dataset with their checksums", _dataset_arguments, _verify),
}


def parser(program: str = "fedbench data") -> argparse.ArgumentParser:
    """The parser of all subcommands."""
    made = argparse.ArgumentParser(
        prog=program,
        description="List datasets, and prepare and verify them.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verbs = made.add_subparsers(dest="verb", required=True, metavar="|".join(VERBS))
    for name, verb in VERBS.items():
        subparser = verbs.add_parser(name, help=verb.help, description=verb.help)
        add_plugins(subparser)
        verb.arguments(subparser)
    return made


@exits_when_pipe_closes
def main(arguments: Sequence[str] | None = None, program: str = "fedbench data") -> int:
    """Run the command line and return the exit code."""
    parsed = parser(program).parse_args(arguments)
    try:
        return VERBS[parsed.verb].run(parsed, plugins(parsed.plugins))
    except (PluginError, ConfigError, CommandError) as error:
        sys.stderr.write(f"error: {error}\n")
        return MISTAKE
    except BrokenPipeError:
        raise
    except (DataError, OSError) as error:
        sys.stderr.write(f"error: {error}\n")
        return FAILED
    except KeyboardInterrupt:
        sys.stderr.write("\nstopped; the same command resumes here\n")
        return INTERRUPTED
