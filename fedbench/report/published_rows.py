"""Fills a report's rows that were not run here from files of published runs, which `fedbench publish` made."""

from __future__ import annotations

import dataclasses
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedbench.base.home import HOME
from fedbench.base.naming import key
from fedbench.base.records import RunFolder
from fedbench.report.evidence import Evidence
from fedbench.report.published_runs import PublishedRun, PublishedRunsError, read, unpack
from fedbench.report.selection import Planned, ReportError, Selection

PUBLISHED = HOME / "results" / "published"


@dataclass(frozen=True)
class FilledResults:
    """A temporary results folder: links to the runs of `results`, and the published runs that are not done there.

    sources: {run: (the published run, name of its file)}.
    """

    path: Path
    results: Path
    sources: Mapping[str, tuple[PublishedRun, str]]
    notes: tuple[str, ...]

    def checked(self, selection: Selection) -> Selection:
        """`selection` with a note for each file that was not used.

        Raises ReportError if a published run has the name of a selected run and another identity.
        """
        for planned in selection.runs:
            published, file = self.sources.get(planned.folder.path.name, (None, ""))
            if published is not None and not _same(published.identity, planned):
                raise ReportError(f"{file}: its run {published.name} is another run than the sweep's of that name")
        return dataclasses.replace(selection, notes=[*self.notes, *map(self._elsewhere, selection.notes)])

    def marked(self, evidence: Evidence) -> Evidence:
        """`evidence` of this folder as that of `results`, with the sources of its published runs."""
        runs = set(evidence.runs["run"])
        sources = {name: file for name, (_, file) in self.sources.items() if name in runs}
        notes = [self._elsewhere(note) for note in evidence.notes]
        return dataclasses.replace(evidence, results=self.results, notes=notes, published=sources)

    def _elsewhere(self, note: str) -> str:
        return note.replace(str(self.path), str(self.results))


def _same(identity: Mapping[str, Any], planned: Planned) -> bool:
    return key(identity) == key({**planned.config, "seed": planned.seed})


@contextmanager
def filled(results: Path, files: Sequence[Path]) -> Iterator[FilledResults]:
    """The folder `results`, filled with the runs of `files`; without any, of every file in results/published.

    Runs that are done in `results` win. A run that several files hold is taken from the first. A damaged file that was
    named raises ReportError; one that was not named is left out, and a note says so.
    """
    paths = list(files) or sorted(PUBLISHED.glob("*.parquet"))
    if not paths:
        raise ReportError(
            f"--published: {PUBLISHED} holds no parquet files; name a file, or make one: fedbench publish"
        )
    notes, sources = [], dict[str, tuple[PublishedRun, str]]()
    for path in paths:
        try:
            for run in read(path):
                if RunFolder(results / run.name).status != "done":
                    sources.setdefault(run.name, (run, path.name))
        except PublishedRunsError as error:
            if files:
                raise ReportError(str(error)) from error
            notes.append(f"{error}; the file is left out.")
    with tempfile.TemporaryDirectory(prefix="fedbench-figures-") as name:
        folder = Path(name)
        for entry in os.scandir(results) if results.is_dir() else ():
            if entry.name not in sources:
                (folder / entry.name).symlink_to(Path(entry.path).resolve())
        for run, _ in sources.values():
            unpack(run, folder)
        yield FilledResults(folder, results, sources, tuple(notes))
