"""Ends the jobs and local workers that a sweep started, and nothing else, even if a job.json names other processes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedbench.base.records import RunFolder
from fedbench.jobs import launch, slurm, watch
from fedbench.plan.config import Sweep


@dataclass(frozen=True)
class Cancelled:
    """How many runs were cancelled, sentences about runs that continue, and whether everything that can be ended has ended."""

    count: int
    problems: list[str]
    complete: bool


def cancel(sweep: Sweep, results: Path) -> Cancelled:
    """End the jobs and local workers that this sweep started. Its runs keep their files.

    A job must have the sweep's job name and belong to this user on this cluster. A process must be a supervisor or a
    command of fedbench. Otherwise the id or process number belongs to something else by now.
    """
    views = watch.Observer(results, sweep.runs).look()
    live = {view.name for view in views if view.state in ("pending", "running")}
    jobs = {name: RunFolder(results / name).job() for name in live}
    of_sweep = {name: job for name, job in jobs.items() if job.get("sweep") == sweep.name}
    strangers, refused = slurm.cancel([job for job in of_sweep.values() if "id" in job], sweep.name)

    owners = {json.dumps(owner): owner for job in of_sweep.values() for owner in job.get("owners", ())}
    here = {key: owner for key, owner in owners.items() if launch.is_alive(owner)}
    ours = {key: owner for key, owner in here.items() if launch.is_ours(owner, results, sweep.name)}
    ended = launch.stop(list(ours.values()))

    def is_gone(job: Mapping[str, Any]) -> bool:
        if "id" in job:
            return job["id"] not in strangers
        return all(json.dumps(owner) in ours for owner in job["owners"])

    gone = [name for name, job in of_sweep.items() if is_gone(job)]
    if not refused and ended:
        launch.forget(results, gone)
    away = sorted({str(owner["host"]).split("/")[0] for key, owner in owners.items() if key not in here})
    others = sorted(str(owner["pid"]) for key, owner in here.items() if key not in ours)
    count = len(live) - len(of_sweep)
    problems = [
        refused,
        "" if ended else "Some local processes have not ended yet; run the command again in a minute.",
        f"Some run on {', '.join(away)}; cancel them there." if away else "",
        f"Left alone, since they are not jobs of this sweep: Slurm jobs {', '.join(strangers)}." if strangers else "",
        f"Left alone, since they are not processes of this sweep: {', '.join(others)}." if others else "",
        f"Runs that another sweep started, and that continue: {count}." if count else "",
    ]
    complete = not refused and ended and not away and not strangers and not others
    return Cancelled(len(gone), [problem for problem in problems if problem], complete)
