"""The command line of the data: what data sets there are, and getting them ready before any job is sent."""

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

import yaml
from pydantic import TypeAdapter, ValidationError

from fedbench.base.broken_pipe import exits_when_pipe_closes
from fedbench.cli import split_view
from fedbench.cli.output import say
from fedbench.data import DataError, Dataset
from fedbench.plan.config import ConfigError
from fedbench.plan.plugins import PluginError, Plugins, plugins

DONE, FAILED, MISTAKE, INTERRUPTED = 0, 1, 2, 130

EPILOG = """\
The same command again goes on where the last one stopped. Exit code: 0 done, 1 the data cannot be had or are not what they
should be, 2 a mistake on the command line.

examples:
  %(prog)s list
  %(prog)s info tiny_imagenet
  %(prog)s prepare tiny_imagenet
  %(prog)s prepare inaturalist --root /scratch/me/data --from /archives --set clients=geo_1k
  %(prog)s verify cifar100
"""


class Mistake(ValueError):
    """Something on the command line that cannot be meant; says what is legal."""


@dataclass(frozen=True)
class Verb:
    """One word of the command line: its own arguments, and what it does with them and the plug-ins found."""

    help: str
    arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace, Plugins], int]


def _no_arguments(_: argparse.ArgumentParser) -> None:
    pass


def _split(given: argparse.Namespace, _: Plugins) -> int:
    split_view.show(given, say)
    return DONE


def _one_dataset(made: argparse.ArgumentParser) -> None:
    made.add_argument("name", help="a data set, as `list` names them, e.g. tiny_imagenet")
    made.add_argument("--root", type=Path, default=Path("data"), help="the data folder, e.g. --root /scratch/me/data")
    made.add_argument(
        "--set", action="append", default=[], metavar="FIELD=VALUE", dest="fields", help="e.g. --set image_size=96"
    )
    made.add_argument(
        "--image-size", type=int, help="short for --set image_size=: pixels per side, e.g. --image-size 96"
    )


def _prepare_arguments(made: argparse.ArgumentParser) -> None:
    _one_dataset(made)
    made.add_argument(
        "--from",
        type=Path,
        dest="given",
        metavar="PATH",
        help="an archive or a folder that you have, e.g. --from ~/zips",
    )


def _list(_: argparse.Namespace, found: Plugins) -> int:
    for name, cls in found.classes["dataset"].items():
        say(f"{name:<17} {_size(cls):<62} {(cls.__doc__ or '').strip().splitlines()[0]}".rstrip())
    return DONE


def _size(cls: Any) -> str:
    facts = cls.facts
    if facts is None:
        return ""
    parts = ((facts.images, "images"), (facts.classes, "classes"), (facts.domains, "domains"), (facts.users, "users"))
    return ", ".join(f"{count:,} {what}" for count, what in parts if count)


def _info(given: argparse.Namespace, found: Plugins) -> int:
    dataset = _dataset(given, found)
    lines = [("what", (dataset.__doc__ or "").strip().splitlines()[0]), ("size", _size(dataset))]
    lines += [("citation", dataset.citation), ("licence", dataset.licence)]
    lines += [("page", dataset.facts.page if dataset.facts else "")]
    for archive in dataset.archives:
        size = f"{archive.size:,} bytes" if archive.size else archive.told or "size not told"
        sure = (
            (f"md5 {archive.md5}" + ("" if archive.official else ", by third parties"))
            if archive.md5
            else "no checksum"
        )
        lines.append(("archive", f"{archive.name} ({size}, {sure}) {archive.url or 'to be fetched by hand'}"))
    for field in dataclasses.fields(dataset):
        lines.append(("option", f"{field.name}={getattr(dataset, field.name)}: {field.metadata.get('meaning', '')}"))
    lines += [("here", line) for line in dataset.info(given.root)]
    for what, text in lines:
        if text:
            say(f"{what:<9} {text}")
    return DONE


def _prepare(given: argparse.Namespace, found: Plugins) -> int:
    dataset = _dataset(given, found)
    given.root.mkdir(parents=True, exist_ok=True)
    samples = dataset.prepare(given.root, given.given)
    count, height, width, _ = samples.images.shape
    test = int(samples.is_test.sum())
    told = f"{given.name}: {count:,} images of {width} x {height} pixels ({count - test:,} training, {test:,} test)"
    told += f", {samples.num_classes:,} classes"
    told += f", {len(samples.domain_names)} domains" if samples.domain_names else ""
    told += f", {int(samples.user.max()) + 1:,} users" if samples.user is not None else ""
    say(told)
    if dataset.facts and dataset.facts.images and count != dataset.facts.images:
        say(f"  not the published {dataset.facts.images:,} images; see what was left out below")
    for line in dataset.info(given.root):
        say(f"  {line}")
    free = shutil.disk_usage(given.root).free
    say(f"  {free / 1e9:,.1f} GB are free below {given.root}")
    return DONE


def _verify(given: argparse.Namespace, found: Plugins) -> int:
    wrong = _dataset(given, found).verify(given.root)
    for line in wrong:
        say(line)
    say(f"{given.name}: {'not as it should be' if wrong else 'as it was written'}")
    return FAILED if wrong else DONE


def _dataset(given: argparse.Namespace, found: Plugins) -> Dataset:
    """The data set named on the command line, with its options. Raises Mistake."""
    classes = found.classes["dataset"]
    if given.name not in classes:
        near = difflib.get_close_matches(given.name, classes, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise Mistake(f"unknown data set {given.name!r}; {hint}legal: {', '.join(sorted(classes))}")
    cls: Any = classes[given.name]
    legal = [field.name for field in dataclasses.fields(cls)]
    fields: dict[str, Any] = {}
    for text in [*given.fields, *([f"image_size={given.image_size}"] if given.image_size is not None else [])]:
        key, equals, value = text.partition("=")
        if not equals or key not in legal:
            raise Mistake(
                f"{text!r}: expected FIELD=VALUE, and {given.name} has the fields: {', '.join(legal) or 'none'}"
            )
        try:
            fields[key] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise Mistake(f"{text!r}: the value cannot be read") from error
    try:
        made: Dataset = TypeAdapter(cls).validate_python(fields)
    except ValidationError as error:
        told = [
            f"{'.'.join(map(str, each['loc']))}: {each['msg']}, found {each['input']!r:.60}" for each in error.errors()
        ]
        raise Mistake(f"{given.name}: {'; '.join(told)}") from error
    return made


VERBS: dict[str, Verb] = {
    "list": Verb("every data set that is known, one a line", _no_arguments, _list),
    "split": Verb("what the splits of a sweep look like; figures, and files to publish", split_view.arguments, _split),
    "info": Verb("size, licence, citation and archives of a data set, and what of it is here", _one_dataset, _info),
    "prepare": Verb("fetch, check and read a data set, once, before any job is sent", _prepare_arguments, _prepare),
    "verify": Verb("compare archives and cache with their checksums", _one_dataset, _verify),
}


def parser(program: str = "python -m fedbench.data") -> argparse.ArgumentParser:
    """The verbs and their options."""
    made = argparse.ArgumentParser(
        prog=program,
        description="See data sets and get them ready.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verbs = made.add_subparsers(dest="verb", required=True, metavar="|".join(VERBS))
    for name, verb in VERBS.items():
        one = verbs.add_parser(name, help=verb.help, description=verb.help)
        one.add_argument("--plugins", nargs="+", action="extend", default=[], metavar="DIR", help="your own plug-ins")
        verb.arguments(one)
    return made


@exits_when_pipe_closes
def main(arguments: Sequence[str] | None = None, program: str = "python -m fedbench.data") -> int:
    """Do what the command line says and return the exit code."""
    given = parser(program).parse_args(arguments)
    try:
        return VERBS[given.verb].run(given, plugins(given.plugins))
    except (PluginError, ConfigError, Mistake) as error:
        sys.stderr.write(f"error: {error}\n")
        return MISTAKE
    except BrokenPipeError:
        raise
    except (DataError, OSError) as error:
        sys.stderr.write(f"error: {error}\n")
        return FAILED
    except KeyboardInterrupt:
        sys.stderr.write("\nstopped; the same command goes on from here\n")
        return INTERRUPTED
