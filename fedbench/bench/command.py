"""``python -m fedbench.bench``: measure, print, write, compare."""

from __future__ import annotations

import argparse
import json
import platform
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from fedbench.base import provenance
from fedbench.bench import compare, measuring
from fedbench.bench.cases import CASES, METHODS, SUITES
from fedbench.plan.config import ConfigError
from fedbench.plan.device import choose_device
from fedbench.plan.plugins import PluginError, plugins
from fedbench.vit.backbone import BackboneError

EPILOG = """\
examples:
  %(prog)s --cases small@32 --methods fedvpt
  %(prog)s --suite gpu --json benchmarks/gpu.json
  %(prog)s --cases nano@32 --against HEAD~1
"""


def main(arguments: Sequence[str] | None = None, program: str = "python -m fedbench.bench") -> int:
    """The program; 0: measured, 2: a mistake on the command line."""
    given = parser(program).parse_args(arguments)
    try:
        return _do(given)
    except (compare.BenchError, ConfigError, PluginError, BackboneError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 2


def parser(program: str = "python -m fedbench.bench") -> argparse.ArgumentParser:
    """The options."""
    options = argparse.ArgumentParser(
        prog=program,
        description="Images per second, memory, share of the matrix product rate and the seconds of a round, per method.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    options.add_argument("--suite", choices=SUITES, default="cpu", help="what is measured if not said (default: cpu)")
    options.add_argument("--cases", nargs="+", metavar="CASE", help=f"of {', '.join(CASES)}")
    options.add_argument(
        "--methods", nargs="+", metavar="METHOD", default=METHODS, help=f"names, or all (default: {' '.join(METHODS)})"
    )
    options.add_argument(
        "--plugins", nargs="+", type=Path, default=(), metavar="DIR", help="folders of your own plug-ins"
    )
    options.add_argument("--repeat", type=int, default=5, help="turns of all contenders (default: 5)")
    options.add_argument("--device", help="auto, cpu, cuda or cuda:N (default: the suite's)")
    options.add_argument("--precision", choices=("float32", "bfloat16"), help="default: the suite's")
    options.add_argument(
        "--compile",
        action=argparse.BooleanOptionalAction,
        help="the first method by torch.compile too (default: on a GPU)",
    )
    options.add_argument("--threads", type=int, help="of torch (default: its own choice)")
    options.add_argument("--json", type=Path, metavar="FILE", help="write all figures")
    options.add_argument("--figure", type=Path, metavar="FILE", help="draw them: .png or .pdf")
    options.add_argument("--profile", type=Path, metavar="FILE", help="profile a round of the first case and method too: "
                        "a Chrome trace if FILE ends in .json, else a table")  # fmt: skip
    options.add_argument(
        "--compare", nargs=2, type=Path, metavar=("OLD", "NEW"), help="two JSON files; measures nothing"
    )
    options.add_argument(
        "--against", metavar="COMMIT", help="measure COMMIT, in a worktree, and this tree; tell ratios"
    )
    return options


def _do(given: argparse.Namespace) -> int:
    if given.compare:
        sys.stdout.write(compare.told(*map(compare.read, given.compare)))
        return 0
    suite = SUITES[given.suite]
    cases = given.cases or list(suite.cases)
    device_name, precision = given.device or suite.device, given.precision or suite.precision
    found = plugins(given.plugins)
    known = found.classes["method"]
    methods = list(known) if list(given.methods) == ["all"] else list(dict.fromkeys(given.methods))
    _legal("case", cases, CASES)
    _legal("method", methods, known)
    if given.repeat < 1 or (given.threads or 1) < 1:
        raise compare.BenchError("--repeat and --threads start at 1")
    if given.figure and given.figure.suffix not in (".png", ".pdf"):
        raise compare.BenchError(f"--figure {given.figure}: expected .png or .pdf")
    if given.against:
        options = ["--methods", *methods, "--repeat", str(given.repeat), "--device", device_name]
        options += ["--precision", precision, "--no-compile"]  # of methods alone
        options += ["--plugins", *(str(path.resolve()) for path in given.plugins)] if given.plugins else []
        options += ["--threads", str(given.threads)] if given.threads else []
        old, new = compare.against(given.against, cases, options)
        sys.stdout.write(compare.told(old, new))
        return _write(given, new)
    if given.threads:
        torch.set_num_threads(given.threads)
    try:
        device = choose_device(device_name)
    except ValueError as error:
        raise compare.BenchError(str(error)) from error
    compile = device.type == "cuda" if given.compile is None else given.compile
    asked = measuring.Asked([{"name": name} for name in methods], device, precision, given.repeat, found, compile)
    result: dict[str, Any] = {
        "commit": provenance.commit(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else _processor(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "precision": precision,
        "repeat": given.repeat,
        "cases": [],
    }
    for number, name in enumerate(cases):
        result["cases"].append(measuring.case(name, asked, None if number else given.profile))
        sys.stdout.write(told(result["cases"][-1]))
        sys.stdout.flush()
        _write(given, result)  # what is there, in case that the rest does not come
    return 0


def _write(given: argparse.Namespace, result: Mapping[str, Any]) -> int:
    if given.json:
        given.json.write_text(json.dumps(result, indent=2) + "\n")
    if given.figure:
        from fedbench.bench.picture import draw  # matplotlib is slow to import, and rarely asked for

        draw(result, given.figure)
    return 0


def told(case: Mapping[str, Any]) -> str:
    """A case's figures as two Markdown tables: speed, and the parts of a round."""
    limit = int(case["memory_limit_bytes"])
    lines = [
        f"## {case['case']}: {case['clients']} clients, batches of {case['batch_size']}, {case['images']} images, "
        f"chunks of {case['chunk_images']}; bare loop in batches of {case['bare_batch']['training']}",
        "",
        f"| | | images/s | x bare loop | x published | of matrix rate | peak memory, of {limit >> 30} GiB |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    for who, figures in {**case["contenders"], **case["methods"]}.items():
        for what in ("training", "evaluation"):
            if what not in figures:
                continue
            one = figures[what]
            more = [
                f"{one[key]:.2f}" if key in one else ""
                for key in ("times_bare_loop", "times_published_loop", "fraction")
            ]
            memory = f"{one['peak_memory_bytes'] / 2**20:,.0f} MiB, {one['peak_memory_bytes'] / limit:.0%}"
            lines.append("| " + " | ".join([who, what, f"{one['images_per_second']:,.1f}", *more, memory]) + " |")
    rounds = {method: figures["round"] for method, figures in case["methods"].items()}
    names = list(next(iter(rounds.values())))
    lines += ["", "| seconds of a round | " + " | ".join(names) + " |", "|---|" + "---:|" * len(names)]
    lines += [
        f"| {method} | " + " | ".join(f"{one[name]:.4f}" for name in names) + " |" for method, one in rounds.items()
    ]
    return "\n".join([*lines, "", ""])


def _legal(kind: str, names: Sequence[str], known: Mapping[str, Any]) -> None:
    if unknown := [name for name in names if name not in known]:
        raise compare.BenchError(f"no {kind} {', '.join(unknown)}; there are {', '.join(known)}")


def _processor() -> str:
    """The processor's own name where the system tells it."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()
