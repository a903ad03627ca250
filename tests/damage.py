"""Damage to the files of a run: each of them truncated, emptied, with flipped bits, or deleted."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

FILES = (
    *(
        "run.yaml",
        "records.jsonl",
        "clients.parquet",
        "env.json",
        "progress.json",
        "notes.jsonl",
        "job.json",
        "log.txt",
    ),
    *("checkpoint.safetensors", "checkpoint.previous.safetensors", "claim", "done", "failed.json"),
)
WAYS = ("truncate", "empty", "flip", "delete")


@dataclass(frozen=True)
class Damage:
    """One way of damaging one file; `claim` is the run's last claim file."""

    file: str
    way: str

    def do(self, folder: Path, dice: random.Random) -> bool:
        """Damage the file of a run; returns whether there was such a file with something to damage."""
        path = self._path(folder)
        if path is None or (self.way != "delete" and path.stat().st_size == 0):
            return False
        content = bytearray(path.read_bytes())
        if self.way == "delete":
            path.unlink()
        elif self.way == "empty":
            path.write_bytes(b"")
        elif self.way == "truncate":
            path.write_bytes(content[: dice.randrange(len(content))])
        else:
            for _ in range(4):
                content[dice.randrange(len(content))] ^= 1 << dice.randrange(8)
            path.write_bytes(content)
        return True

    def _path(self, folder: Path) -> Path | None:
        if self.file == "claim":
            return max(folder.glob("claim.*"), key=lambda path: int(path.suffix[1:]), default=None)
        return folder / self.file if (folder / self.file).exists() else None

    def __str__(self) -> str:
        return f"{self.way} {self.file}"


class Damages:
    """Every kind of damage to every file, repeatedly and in changing order. A kind waits for a run that has such a file."""

    def __init__(self, dice: random.Random) -> None:
        self.dice = dice
        self.waiting: list[Damage] = []

    def do_next(self, folder: Path) -> Damage | None:
        """Do the first waiting damage that a run's files allow, and return it."""
        fresh = [Damage(file, way) for file in FILES for way in WAYS]
        self.dice.shuffle(fresh)
        self.waiting += [damage for damage in fresh if damage not in self.waiting] if len(self.waiting) < 20 else []
        for damage in self.waiting:
            if damage.do(folder, self.dice):
                self.waiting.remove(damage)
                return damage
        return None
