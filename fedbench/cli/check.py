"""The command line of the contract checks: `fedbench check FILE` reports what is wrong with a plug-in, in seconds."""

from __future__ import annotations

import argparse
import ast
import dataclasses
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter, ValidationError

from fedbench import data
from fedbench.base.broken_pipe import exits_when_pipe_closes
from fedbench.base.home import HOME
from fedbench.cli.output import say
from fedbench.contract import Check, form, isolation, metrics, rounds, samples, violation
from fedbench.contract.world import CPU, Case, variants
from fedbench.method import Aggregation
from fedbench.plan.device import choose_device
from fedbench.plan.plugins import ALL_KINDS, Kind, PluginError, load, plugins
from fedbench.plan.yaml_reader import YamlError, parse_yaml

FINE, BROKEN, MISTAKE = 0, 1, 2

EPILOG = """\
A method is checked with its defaults, with every other value of each choice or switch, and with one aggregation for each
set of hooks. An aggregation is checked with fedvpt, with shared and with local prompts and head.
Exit code: 0 if the plug-in keeps the contract, 1 if not, 2 if the file holds no plug-in or cannot be run.

examples:
  %(prog)s my_methods/methods/mine.py
  %(prog)s datasets/npz.py --set path=mine.npz
  %(prog)s my_methods/methods/mine.py --device cuda
"""


def parser(program: str = "fedbench check") -> argparse.ArgumentParser:
    """The options."""
    options = argparse.ArgumentParser(
        prog=program,
        description="Run the contract checks on the file of a method, aggregation, dataset or partitioner.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    options.add_argument("files", nargs="+", type=Path, metavar="FILE")
    options.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="FIELD=VALUE",
        dest="fields",
        help="the value of a field for all checks",
    )
    options.add_argument(
        "--data", type=Path, default=Path("data"), metavar="DIR", help="folder of datasets (default: data)"
    )
    options.add_argument(
        "--device",
        default="cpu",
        help="auto, cpu, cuda or cuda:N: where the rounds of methods and aggregations run (default: cpu)",
    )
    return options


@exits_when_pipe_closes
def main(arguments: Sequence[str] | None = None, program: str = "fedbench check") -> int:
    """Check the files named on the command line and return the exit code."""
    options = parser(program).parse_args(arguments)
    torch.set_num_threads(1)  # fastest for tiny tensors
    try:
        device = choose_device(options.device)
    except ValueError as error:
        sys.stderr.write(f"error: --device: {error}\n")
        return MISTAKE
    codes = []
    for file in options.files:
        try:
            codes.append(check_file(file, options.fields, options.data, device))
        except PluginError as error:
            sys.stderr.write(f"error: {error}\n")
            codes.append(MISTAKE)
    return max(codes)


def check_file(file: Path, fields: Iterable[str], root: Path, device: torch.device = CPU) -> int:
    """Print one line per check and return the exit code; rounds run on `device`.

    Raises PluginError if there is no plug-in to check.
    """
    kind, cls = find(file)
    values = _values(file, cls, fields)
    made: dict[str, Any] = variants(file.stem, cls, **values)
    say(f"{file}: {kind} {file.stem}" + (f", {len(made)} variants" if len(made) > 1 else ""))
    if file.stem in plugins().classes[kind] and HOME not in file.resolve().parents:
        say(f"  note  fedbench has a {kind} called {file.stem}: a sweep refuses a second one, so rename the file")
    failed, said, repeated = 0, set(), 0
    for check, subjects in plan(kind, made, root, device):
        if not subjects:
            continue  # the plug-in trains nothing
        wrong, where = first_wrong(check, subjects)
        mark = "ok" if wrong is None else "warn" if check.warns else "FAIL"
        failed += mark == "FAIL"
        if wrong in said:  # one mistake in a hook ends many checks
            repeated += 1
        else:
            say(f"  {mark:<5} {check.sentence}" + ("" if wrong is None else f"\n        {wrong}{where}"))
        said |= set() if wrong is None else {wrong}
        if failed and check in (form.CHECKS[-1], rounds.params_are_declared):
            break  # the later checks would only repeat these failures
    if repeated:
        say(
            f"  FAIL  {repeated} further check{'s end' if repeated > 1 else ' ends'} with the same message as one above"
        )
    folder = ALL_KINDS[kind][0]
    if not Path(file.resolve().parent).as_posix().endswith("/" + folder):
        say(f"  note  a sweep looks for it in {folder}/ below the folders of --plugins")
    return BROKEN if failed else FINE


def find(file: Path) -> tuple[Kind, type]:
    """The kind and class of the plug-in in a file, found by the class's name. Raises PluginError."""
    try:
        tree = ast.parse(file.read_text())
    except OSError as error:
        raise PluginError(f"{file}: cannot be read ({error.strerror or error})") from error
    except (SyntaxError, ValueError) as error:
        raise PluginError(f"{file}: not Python: {error}") from error
    names = {node.name for node in tree.body if isinstance(node, ast.ClassDef)}
    candidates = [(kind, class_name, base) for kind, (_, class_name, base) in ALL_KINDS.items() if class_name in names]
    if len(candidates) != 1:
        wanted = ", ".join(class_name for _, class_name, _ in ALL_KINDS.values())
        raise PluginError(f"{file}: expected one class called {wanted}; found {', '.join(sorted(names)) or 'no class'}")
    kind, class_name, base = candidates[0]
    return kind, load(file, class_name, base)


def _values(file: Path, cls: type, fields: Iterable[str]) -> dict[str, Any]:
    """The values of ``--set``, read as in a sweep file. Raises PluginError."""
    try:
        values = {name: parse_yaml(text) for name, _, text in (field.partition("=") for field in fields)}
    except YamlError as error:
        raise PluginError(f"--set: not a YAML value: {' '.join(str(error).split())}") from error
    legal = [field.name for field in dataclasses.fields(cls)]
    if wrong := [name for name in values if name not in legal]:
        raise PluginError(f"{file}: no field {wrong[0]!r}; legal: {', '.join(legal)}")
    try:
        made: Any = TypeAdapter(cls).validate_python(values)
    except ValidationError as error:
        mistakes = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise PluginError(f"{file}: {mistakes} (give it with --set FIELD=VALUE)") from error
    except Exception as error:
        raise PluginError(f"{file}: {type(error).__name__}: {error}") from error
    return {name: getattr(made, name) for name in values}


def plan(
    kind: Kind, made: dict[str, Any], root: Path, device: torch.device = CPU
) -> Iterator[tuple[Check, dict[str, Any]]]:
    """Each check with the subjects {name: ...} that it is run on; rounds run on `device`."""
    for check in form.CHECKS:
        yield check, made
    if kind in ("dataset", "partition"):
        subjects = {"": samples.OnDisk(next(iter(made.values())), root)} if kind == "dataset" else made
        subjects = {n: s for n, s in subjects.items() if kind == "dataset" or isinstance(s, data.Partitioner)}
        yield from ((check, subjects) for check in samples.CHECKS if check.subject_kind == kind)
        return
    if kind == "metric":
        yield from ((check, made) for check in metrics.CHECKS)
        return
    cases = {name: dataclasses.replace(case, device=device) for name, case in _cases(kind, made)}
    yield rounds.params_are_declared, cases
    trained = {name: case for name, case in cases.items() if case.trains}
    for check in (*isolation.CHECKS, *rounds.CHECKS[1:]):
        yield check, cases if check.subject_kind == "run" else trained


def _cases(kind: Kind, made: dict[str, Any]) -> Iterator[tuple[str, Case]]:
    classes = plugins().classes
    if kind == "method":
        yield from ((name, Case(method)) for name, method in made.items())
        name, method = next(iter(made.items()))
        for other, cls in _of_each_structure(classes["aggregation"]).items():
            yield f"{name} + {other}", Case(method, cls())
        return
    fedvpt = classes["method"]["fedvpt"]
    for name, aggregation in made.items():
        for options in ({}, {"prompt": "local"}, {"head": "local"}):
            fields = "".join(f" {key}={value}" for key, value in options.items())
            yield f"{name} + fedvpt{fields}", Case(fedvpt(**options), aggregation)
        if aggregation.absorb is not None:
            yield f"{name} + fedncm", Case(classes["method"]["fedncm"](), aggregation)


def _of_each_structure(aggregations: Mapping[str, type[Any]]) -> dict[str, type[Any]]:
    """One aggregation for each set of hooks that meet a method's own; FedAvg, which has none, is left out."""
    meeting = ("extra_loss", "params", "absorb", "encode", "decode", "merge")
    by_hooks: dict[tuple[str, ...], str] = {}
    for name in sorted(aggregations, key=lambda name: (_overrides(aggregations[name], "check"), name)):
        by_hooks.setdefault(tuple(hook for hook in meeting if _overrides(aggregations[name], hook)), name)
    return {name: aggregations[name] for hooks, name in by_hooks.items() if hooks}


def _overrides(cls: type[Any], hook: str) -> bool:
    return getattr(cls, hook) is not getattr(Aggregation, hook)


def first_wrong(check: Check, subjects: dict[str, Any]) -> tuple[str | None, str]:
    """The violation of the first subject that breaks the check, and which subject if there are several; None if all keep it."""
    for name, subject in subjects.items():
        if says := violation(check, subject):
            return says, f" [{name}]" if len(subjects) > 1 else ""
    return None, ""
