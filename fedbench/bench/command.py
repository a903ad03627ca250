"""The command ``fedbench bench``: measure, print, write and compare."""

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
from fedbench.bench import compare, device_report, measuring
from fedbench.bench.cases import CASES, METHODS, SUITES
from fedbench.plan.config import ConfigError
from fedbench.plan.device import choose_device
from fedbench.plan.planning import read_sweep
from fedbench.plan.plugins import PluginError, plugins
from fedbench.vit.backbone import BackboneError

EPILOG = """\
examples:
  %(prog)s --cases small@32 --methods fedvpt
  %(prog)s --suite gpu --json benchmarks/gpu.json
  %(prog)s --cases nano@32 --against HEAD~1
  %(prog)s --device-report report --sweep sweeps/quickstart.yaml --results results
"""


def main(arguments: Sequence[str] | None = None, program: str = "fedbench bench") -> int:
    """Run the program. Returns 0, 1 if a part of a device report failed, or 2 after a mistake on the command line."""
    args = parser(program).parse_args(arguments)
    try:
        return _run(args)
    except (compare.BenchError, ConfigError, PluginError, BackboneError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 2


def parser(program: str = "fedbench bench") -> argparse.ArgumentParser:
    """The command line."""
    options = argparse.ArgumentParser(
        prog=program,
        description="Measure images per second, memory, share of the matrix product rate and the parts of a round, per method.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    options.add_argument(
        "--suite", choices=SUITES, default="cpu", help="the default cases, device and precision (default: cpu)"
    )
    options.add_argument("--cases", nargs="+", metavar="CASE", help=f"some of {', '.join(CASES)}")
    options.add_argument(
        "--methods",
        nargs="+",
        metavar="METHOD",
        default=METHODS,
        help=f"names of methods, or all (default: {' '.join(METHODS)})",
    )
    options.add_argument(
        "--plugins", nargs="+", type=Path, default=(), metavar="DIR", help="folders of your own plug-ins"
    )
    options.add_argument("--repeat", type=int, default=5, help="how often to repeat all measurements (default: 5)")
    options.add_argument("--device", help="auto, cpu, cuda or cuda:N (default: the suite's)")
    options.add_argument("--precision", choices=("float32", "bfloat16"), help="default: the suite's")
    options.add_argument(
        "--compile",
        action=argparse.BooleanOptionalAction,
        help="also measure the first method with torch.compile (default: on a GPU)",
    )
    options.add_argument("--threads", type=int, help="threads of torch (default: torch's choice)")
    options.add_argument("--json", type=Path, metavar="FILE", help="write all measurements")
    options.add_argument("--figure", type=Path, metavar="FILE", help="draw the results, as .png or .pdf")
    options.add_argument("--profile", type=Path, metavar="FILE", help="also profile a round of the first case and method: "
                        "a Chrome trace if FILE ends in .json, else a table")  # fmt: skip
    options.add_argument(
        "--compare", nargs=2, type=Path, metavar=("OLD", "NEW"), help="compare two JSON files and measure nothing"
    )
    options.add_argument(
        "--against", metavar="COMMIT", help="measure COMMIT, in a worktree, and this tree, and print the ratios"
    )
    report = options.add_argument_group("a report on one device, in parts that do not depend on each other")
    report.add_argument(
        "--device-report", type=Path, metavar="DIR", help="write it to this folder, on --device (default: cuda)"
    )
    report.add_argument("--small", action="store_true", help="the smallest case and few methods: tries the command")
    report.add_argument(
        "--deadline",
        type=float,
        default=device_report.DEADLINE,
        metavar="SECONDS",
        help=f"when everything is over (default: {device_report.DEADLINE:.0f})",
    )
    report.add_argument(
        "--sweep", type=Path, metavar="FILE", help="then do the runs of this sweep file until the deadline"
    )
    report.add_argument(
        "--results", type=Path, metavar="FOLDER", help="the sweep's results, to go on from (default: DIR/results)"
    )
    return options


def _device_report(args: argparse.Namespace) -> int:
    """Write a device report. Raises BenchError, and ConfigError for mistakes in the sweep file."""
    try:
        device = choose_device(args.device or "cuda")
    except ValueError as error:
        raise compare.BenchError(f"--device: {error}") from error
    if args.deadline <= 0:
        raise compare.BenchError("--deadline: expected more than 0 seconds")
    if args.sweep:  # mistakes in it are reported before anything is measured
        read_sweep(args.sweep, args.plugins, [f"machine.device={device}"])
    options = device_report.ReportOptions(
        folder=args.device_report.resolve(),
        device=str(device),
        small=args.small,
        deadline=args.deadline,
        sweep=args.sweep.resolve() if args.sweep and args.sweep.is_file() else args.sweep,  # or a name
        results=args.results and args.results.resolve(),
        plugins=[path.resolve() for path in args.plugins],
    )

    def say(line: str) -> None:
        sys.stdout.write(line + "\n")
        sys.stdout.flush()

    try:
        return device_report.write_report(options, say)
    except OSError as error:
        raise compare.BenchError(f"--device-report {args.device_report}: {error}") from error


def _run(args: argparse.Namespace) -> int:
    if args.compare:
        sys.stdout.write(compare.comparison_table(*map(compare.read, args.compare)))
        return 0
    if args.device_report:
        return _device_report(args)
    suite = SUITES[args.suite]
    cases = args.cases or list(suite.cases)
    device_name, precision = args.device or suite.device, args.precision or suite.precision
    loaded = plugins(args.plugins)
    known = loaded.classes["method"]
    on_plain_vits = [name for name, cls in known.items() if not cls.reads_text]  # type: ignore[attr-defined]
    methods = on_plain_vits if list(args.methods) == ["all"] else list(dict.fromkeys(args.methods))
    _check_names("case", cases, CASES)
    _check_names("method", methods, known)
    if args.repeat < 1 or (args.threads or 1) < 1:
        raise compare.BenchError("--repeat and --threads: expected 1 or more")
    if args.figure and args.figure.suffix not in (".png", ".pdf"):
        raise compare.BenchError(f"--figure {args.figure}: expected .png or .pdf")
    if args.against:
        flags = ["--methods", *methods, "--repeat", str(args.repeat), "--device", device_name]
        flags += ["--precision", precision, "--no-compile"]
        flags += ["--plugins", *(str(path.resolve()) for path in args.plugins)] if args.plugins else []
        flags += ["--threads", str(args.threads)] if args.threads else []
        old, new = compare.against(args.against, cases, flags)
        sys.stdout.write(compare.comparison_table(old, new))
        return _write(args, new)
    if args.threads:
        torch.set_num_threads(args.threads)
    try:
        device = choose_device(device_name)
    except ValueError as error:
        raise compare.BenchError(str(error)) from error
    compile = device.type == "cuda" if args.compile is None else args.compile
    options = measuring.MeasureOptions(
        methods=[{"name": name} for name in methods],
        device=device,
        precision=precision,
        repeat=args.repeat,
        plugins=loaded,
        compile=compile,
    )
    result: dict[str, Any] = {
        "commit": provenance.commit(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else _processor(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "precision": precision,
        "repeat": args.repeat,
        "cases": [],
    }
    for number, name in enumerate(cases):
        result["cases"].append(measuring.case(name, options, None if number else args.profile))
        sys.stdout.write(case_tables(result["cases"][-1]))
        sys.stdout.flush()
        _write(args, result)  # after each case, in case a later one fails
    return 0


def _write(args: argparse.Namespace, result: Mapping[str, Any]) -> int:
    if args.json:
        args.json.write_text(json.dumps(result, indent=2) + "\n")
    if args.figure:
        from fedbench.bench.picture import draw  # matplotlib is slow to import

        draw(result, args.figure)
    return 0


def case_tables(case: Mapping[str, Any]) -> str:
    """The measurements of a case as two Markdown tables: speed, and the parts of a round."""
    limit = int(case["memory_limit_bytes"])
    lines = [
        f"## {case['case']}: {case['clients']} clients, batches of {case['batch_size']}, {case['images']} images, "
        f"chunks of {case['chunk_images']}; bare loop in batches of {case['bare_batch']['training']}",
        "",
        f"| | | images/s | x bare loop | x published | of matrix rate | peak memory, of {limit >> 30} GiB |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    for who, figures in {**case["baselines"], **case["methods"]}.items():
        for what in ("training", "evaluation"):
            if what not in figures:
                continue
            measured = figures[what]
            more = [
                f"{measured[key]:.2f}" if key in measured else ""
                for key in ("times_bare_loop", "times_published_loop", "fraction")
            ]
            memory = f"{measured['peak_memory_bytes'] / 2**20:,.0f} MiB, {measured['peak_memory_bytes'] / limit:.0%}"
            lines.append("| " + " | ".join([who, what, f"{measured['images_per_second']:,.1f}", *more, memory]) + " |")
    if "compile_error" in case:
        lines += ["", f"not measured: {case['compile_error']}"]
    rounds = {method: figures["round"] for method, figures in case["methods"].items()}
    names = list(next(iter(rounds.values())))
    lines += ["", "| seconds of a round | " + " | ".join(names) + " |", "|---|" + "---:|" * len(names)]
    lines += [
        f"| {method} | " + " | ".join(f"{parts[name]:.4f}" for name in names) + " |" for method, parts in rounds.items()
    ]
    return "\n".join([*lines, "", ""])


def _check_names(kind: str, names: Sequence[str], known: Mapping[str, Any]) -> None:
    if unknown := [name for name in names if name not in known]:
        raise compare.BenchError(f"no {kind} {', '.join(unknown)}; legal: {', '.join(known)}")


def _processor() -> str:
    """The processor's name, from /proc/cpuinfo if it exists."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()
