"""The cost of a population: the same cohort size from few and from 9,275 clients with local prompts and heads.

`python -m benchmarks.population [CLIENTS ...]` splits a synthetic dataset (natural users, 12 training and 4 test images
each, 1,203 classes: the shape of iNaturalist-User-120k) and trains fedvpt with local prompts and heads on the embedded
backbone. Each population runs in its own process, to measure its peak memory. A round should cost the same in both.
"""

from __future__ import annotations

import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

CLASSES, TRAIN, TEST, ROUNDS = 1203, 12, 4, 5


def synthetic(path: Path, clients: int) -> None:
    """Images of noise, 8 x 8 pixels, whose users are the clients."""
    draw = np.random.default_rng(0)
    user = np.repeat(np.arange(clients), TRAIN + TEST)
    images = draw.integers(0, 256, (len(user), 8, 8, 3), dtype=np.uint8)
    labels = np.concatenate([np.arange(CLASSES), draw.integers(0, CLASSES, len(user) - CLASSES)])
    np.savez(path, images=images, labels=labels, is_test=np.arange(len(user)) % (TRAIN + TEST) >= TRAIN, user=user)


def measure(clients: int) -> None:
    """Build, train and evaluate in this process; print the time and memory."""
    from fedbench.base.record_schema import TotalCosts
    from fedbench.jobs import malloc_tuning
    from fedbench.plan.planning import check_sweep
    from fedbench.plan.plugins import plugins
    from fedbench.run import checkpoint, evaluation
    from fedbench.run.experiment import build
    from fedbench.run.simulation import one_round

    def clock() -> float:
        now = time.monotonic()
        spent, clock.last = now - clock.last, now  # type: ignore[attr-defined]
        return float(spent)

    malloc_tuning.keep_freed_memory()  # as a job does, since the kept memory counts
    clock.last = time.monotonic()  # type: ignore[attr-defined]
    with tempfile.TemporaryDirectory() as name:
        synthetic(Path(name) / "population.npz", clients)
        content = {
            "base": {
                "dataset": {"name": "npz", "path": f"{name}/population.npz"},
                "partition": "natural",
                "method": {"name": "fedvpt", "prompt": "local", "head": "local", "own_init": True},
                "rounds": ROUNDS,
                "clients": {"number": clients, "per_round": 10, "held_out": 0.1, "validation": 0.1},
            },
            "machine": {"data": name},
        }
        sweep = check_sweep(content, plugins())
        clock()
        experiment = build(sweep.runs[0], sweep.machine, sweep.plugins)
        built = clock()
        rounds = []
        for round_ in range(1, ROUNDS + 1):
            one_round(experiment, round_)
            rounds.append(clock())
        checkpoint.save(Path(name), experiment.server.state(), ROUNDS, TotalCosts(0, 0, 0), 0.0)
        saved, size = clock(), (Path(name) / checkpoint.CURRENT).stat().st_size
        trained = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        evaluation.evaluate(experiment)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(
            f"{clients:>8,} clients: build {built:.1f} s, round {np.median(rounds[1:]):.2f} s, checkpoint {saved:.2f} s "
            f"({size / 1e6:.0f} MB), evaluation of all {clock():.0f} s, peak memory {trained:.0f} MiB in training, "
            f"{peak:.0f} MiB in all",
            flush=True,
        )


def main() -> None:
    """Measure each population in its own process."""
    if sys.argv[1:2] == ["--one"]:
        return measure(int(sys.argv[2]))
    for clients in sys.argv[1:] or ["100", "9275"]:
        subprocess.run([sys.executable, "-m", "benchmarks.population", "--one", clients], check=True)
    return None


if __name__ == "__main__":
    main()
