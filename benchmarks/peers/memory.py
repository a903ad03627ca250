"""Peak memory of a process and everything below it, read from /proc while it runs."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path

PAGE = os.sysconf("SC_PAGE_SIZE")
BEAT = 0.1  # seconds between two measurements
LIMIT = 900.0  # most seconds of a run: a server waits for an hour for workers that never start


def resident(pid: int) -> int:
    """Resident bytes of `pid` and of all its descendants now; pages that they share count in each of them."""
    parents, family, total = {}, {pid}, 0
    for path in Path("/proc").iterdir():
        if path.name.isdigit():
            try:
                parents[int(path.name)] = int((path / "stat").read_text().rpartition(")")[2].split()[1])
            except (OSError, IndexError):
                continue  # it has just ended
    grown = True
    while grown:
        below = {child for child, parent in parents.items() if parent in family} - family
        family |= below
        grown = bool(below)
    for process in family:
        try:
            total += int(Path(f"/proc/{process}/statm").read_text().split()[1]) * PAGE
        except (OSError, IndexError):
            continue
    return total


def watched(command: list[str], env: dict[str, str], cwd: Path, output: Path) -> tuple[float, float, int]:
    """Run `command` to its end: returns its start time, end time and peak bytes. Raises RuntimeError if it fails."""
    peak = 0
    with output.open("w") as log:
        start = time.monotonic()
        process = subprocess.Popen(
            command, env=env, cwd=cwd, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            while True:
                try:
                    process.wait(BEAT)
                    break
                except subprocess.TimeoutExpired:
                    if time.monotonic() - start > LIMIT:
                        words = f"{' '.join(command)} has not ended in {LIMIT:g} s"
                        raise RuntimeError(f"{words}:\n{output.read_text()[-3000:]}") from None
                    peak = max(peak, resident(process.pid))
            end = time.monotonic()
        finally:  # also if interrupted, since leftover processes would disturb the next benchmark
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} failed ({process.returncode}):\n{output.read_text()[-3000:]}")
    return start, end, peak
