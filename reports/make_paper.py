"""Every table and figure of a paper from real runs on the embedded default: `python reports/make_paper.py`, or `make paper`.

This runs the repository's sweep files, shrunk to a small backbone, few clients, few rounds and three seeds. It makes a
report of each, and a page with links to them. It shows that everything can be made, but not which method is better: see the
main table's budget.
"""

from __future__ import annotations

import argparse
import html
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

HOME = Path(__file__).resolve().parent.parent
SMALL = {
    "backbone": "{name: nano}",
    "dataset": "{name: glyphs, train_per_class: 6, test_per_class: 2}",
    "rounds": "5",
    "evaluate_every": "2",
    "clients.number": "20",
    "clients.per_round": "5",
    "local": "{epochs: 1, batch_size: 32, lr: 0.03, momentum: 0.9}",
    "cluster.cpus": "1",  # one core per run, since a small backbone gains little from several
}
MAIN = """[{name: head_only}, {name: fedvpt}, {name: fedvpt_deep},
  {name: fedvpt, logit_prior: eval, label: fedvpt + log-prior}, {name: fedvpt, prompt: local, label: local prompts},
  {name: pep_fedpt}, {name: fedncm}, {name: fedncm, logit_prior: eval, label: fedncm + log-prior}]"""
FEW = """[{name: head_only}, {name: fedvpt}, {name: fedvpt, logit_prior: eval, label: fedvpt + log-prior}, {name: pep_fedpt}]"""
PEP = """[{name: pep_fedpt, inject: 3}, {name: pep_fedpt, inject: 0}, {name: pep_fedpt, inject: 5},
  {name: pep_fedpt, inject: 3, temperature: 0.03}, {name: pep_fedpt, inject: 3, temperature: 0.5},
  {name: pep_fedpt, inject: 3, prior: uniform}, {name: pep_fedpt, inject: 3, prototypes: shuffled},
  {name: pep_fedpt, inject: 3, similarity: euclidean}]"""
# {sweep file: its settings besides SMALL}
SWEEPS: dict[str, dict[str, str]] = {
    "main_table": {
        "grid.partition": "[{name: pathological, classes_per_client: 10}, {name: dirichlet, alpha: 0.1, min_train: 8,"
        " redraws: 50}, {name: dirichlet, alpha: 0.5}]",
        "grid.method": MAIN,
        "tune": "{trials: 2, rounds: 2}",
    },
    "participation": {"grid.clients.per_round": "[2, 5, 10]", "grid.method": FEW},
    "clients": {"grid.clients.number": "[10, 20, 40]", "grid.method": FEW},
    "prompt_length": {"grid.method.prompt_length": "[2, 16]", "grid.method": "[{name: fedvpt}, {name: pep_fedpt}]"},
    "pep_ablation": {"grid.method": PEP},
    "held_out": {"grid.clients.held_out": "[0.1, 0.3]", "grid.method": FEW},
}


def flags(name: str, further: Sequence[str]) -> list[str]:
    """The settings that shrink the sweep file `name`, as arguments of both the sweep and the report."""
    overrides = SWEEPS[name]
    small = {key: value for key, value in SMALL.items() if f"grid.{key}" not in overrides}
    settings = [f"{key}={' '.join(value.split())}" for key, value in {**small, **overrides}.items()]
    return [word for setting in [*settings, *further] for word in ("--set", setting)]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the sweeps that are not done yet and make their reports. Returns the worst exit code."""
    parser = argparse.ArgumentParser(description="Every table and figure of a paper, on the embedded default.")
    parser.add_argument("--only", nargs="+", choices=sorted(SWEEPS), default=sorted(SWEEPS), help="some of the sweeps")
    parser.add_argument("--results", type=Path, default=Path("results"), metavar="DIR", help="where runs are (results)")
    parser.add_argument("--out", type=Path, default=Path("reports/out/paper"), metavar="DIR", help="where to write")
    parser.add_argument("--cluster", default="local", help="the same as for a sweep (local)")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="further settings for all sweeps"
    )
    options = parser.parse_args(arguments)
    worst, rows = 0, []
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HOME), os.environ.get("PYTHONPATH", "")])}
    for name in [name for name in SWEEPS if name in options.only]:
        start = time.monotonic()
        file, both = (
            str(HOME / "sweeps" / f"{name}.yaml"),
            ["--results", str(options.results), *flags(name, options.set)],
        )
        sweep = [sys.executable, "-m", "fedbench.sweep", file, "--cluster", options.cluster, *both]
        figures = [
            sys.executable,
            str(HOME / "reports" / "make_figures.py"),
            file,
            "--out",
            str(options.out / name),
            *both,
        ]
        codes = [subprocess.run(command, env=environment, check=False).returncode for command in (sweep, figures)]
        worst = max(worst, *codes)
        rows.append((name, time.monotonic() - start))
        sys.stdout.write(f"{name}: {rows[-1][1]:.0f} s, exit codes {codes}\n")
        sys.stdout.flush()
        if codes[1] == 2:
            break  # a mistake, which is the same for each sweep
    links = "".join(f'<li><a href="{html.escape(name)}/index.html">{html.escape(name)}</a></li>' for name, _ in rows)
    options.out.mkdir(parents=True, exist_ok=True)
    page = (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>fedbench: paper</title><ul>{links}</ul></html>\n'
    )
    (options.out / "index.html").write_text(page)
    sys.stdout.write(f"{options.out / 'index.html'}: {sum(seconds for _, seconds in rows) / 60:.1f} minutes in all\n")
    return worst


if __name__ == "__main__":
    sys.exit(main())
