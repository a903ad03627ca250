"""Images decoded into one array: gaps, notes for a later attempt, and what is said about images that are left out."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fedbench.data import DataError
from fedbench.sources import cache, pixels

SIZE = 2


def picture(shade: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.full((SIZE, SIZE, 3), shade, np.uint8)).save(file, "PNG")
    return file.getvalue()


class Shelf:
    """A source that holds some files; a file of no content is not an image."""

    def __init__(self, contents: dict[str, bytes]) -> None:
        self.contents, self.path = contents, Path("shelf.zip")
        self.read: list[str] = []

    def stream(self, wanted: Callable[[str], bool]) -> Iterator[tuple[str, Callable[[], bytes]]]:
        for name, content in self.contents.items():
            if wanted(name):
                self.read.append(name)
                yield name, lambda content=content: content  # type: ignore[misc]


def written(shelves: list[Any], files: list[tuple[int, str]], skip: float, folder: Path) -> tuple[Any, Any, list[str]]:
    skipped = pixels.write(shelves, files, lambda name: name, SIZE, skip, folder)
    return np.load(folder / "images.npy")[:, 0, 0, 0].tolist(), np.load(folder / "kept.npy").tolist(), skipped


@pytest.mark.parametrize(
    ("done", "kept"),
    [("111", [0, 1, 2]), ("011", [2, 1]), ("10011", [0, 3, 4]), ("1100", [0, 1]), ("0001", [3]), ("000", [])],
)
def test_the_last_rows_fill_the_gaps(done: str, kept: list[int]) -> None:
    assert pixels._close_gaps(np.array([mark == "1" for mark in done])).tolist() == kept


def test_images_that_are_missing_or_broken_are_left_out_up_to_the_share(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = Shelf({"a": picture(10), "b": b"", "c": picture(30)})
    second = Shelf({"d": picture(40), "unasked": picture(99), "a": picture(50), "last": picture(60)})
    files = [(0, "b"), (0, "a"), (1, "gone"), (1, "d"), (0, "c"), (1, "a"), (0, "a"), (1, "d")]
    for folder in ("enough", "strict"):
        (tmp_path / folder).mkdir()
    with caplog.at_level("WARNING", "fedbench"):
        shades, kept, skipped = written([first, second], files, 0.25, tmp_path / "enough")
    (line,) = [record.getMessage() for record in caplog.records]
    assert line.startswith("2 of 8 images are left out (skip), for example b: ")
    assert kept == [6, 1, 7, 3, 4, 5]
    assert shades == [10, 10, 40, 40, 30, 50]
    assert len(skipped) == 2
    assert skipped[0].startswith("b: ")
    assert skipped[1] == "gone: not in shelf.zip"
    assert first.read == ["a", "b", "c"]
    assert second.read == ["d", "a"]
    with pytest.raises(
        DataError, match=r"2 of 8 images cannot be used, more than the share of 0\.249 that may be left"
    ):
        written([first, second], files, 0.249, tmp_path / "strict")


@pytest.mark.parametrize(("broken", "listed"), [(20, False), (21, True)])
def test_twenty_unusable_images_are_named_and_a_file_lists_more(tmp_path: Path, broken: int, listed: bool) -> None:
    (tmp_path / ".aside").mkdir()
    files = [(0, f"image{number:02}") for number in range(broken)]
    with pytest.raises(DataError) as error:
        pixels.write([Shelf({})], files, lambda name: name, SIZE, 0.5, tmp_path / ".aside")  # type: ignore[list-item]
    text = str(error.value)
    assert text.count("not in shelf.zip") == 20
    path = tmp_path / "aside.unreadable.txt"
    assert path.exists() == listed
    assert text.endswith(f"and 1 more, all in {path}" if listed else "image19: not in shelf.zip")
    if listed:
        assert path.read_text().splitlines() == [f"{name}: not in shelf.zip" for _, name in files]


def test_an_attempt_resumes_with_the_rows_that_the_last_one_noted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pixels, "SAFE_EVERY", 3)
    monkeypatch.setattr(pixels, "cores", lambda: 1)

    class Failing(Shelf):
        def stream(self, wanted: Callable[[str], bool]) -> Iterator[tuple[str, Callable[[], bytes]]]:
            yield from super().stream(wanted)
            raise KeyboardInterrupt

    names = [f"{number:02}" for number in range(12)]
    files, contents = [(0, name) for name in names], {name: picture(int(name)) for name in names[:11]}
    with pytest.raises(KeyboardInterrupt):
        written([Failing(contents)], files, 0, tmp_path)
    noted = int(np.fromfile(tmp_path / "done.bin", dtype=np.bool_).sum())
    assert 3 <= noted <= 11  # at most four images wait, so seven were finished, and at most two of these are not noted
    again = Shelf(contents | {"11": picture(11)})
    shades, kept, skipped = written([again], files, 0, tmp_path)
    assert (shades, kept, skipped) == (list(range(12)), list(range(12)), [])
    assert len(again.read) == 12 - noted
    other = Shelf(contents | {"11": picture(11)})
    shades, _, _ = written([other], files[::-1], 0, tmp_path)  # of another list nothing is kept
    assert (shades, len(other.read)) == (list(range(11, -1, -1)), 12)


@pytest.mark.parametrize(("count", "more"), [(20, []), (21, ["    and 1 more, all in "])])
def test_a_cache_is_described_with_its_sources_remarks_and_twenty_skipped_images(
    tmp_path: Path, count: int, more: list[str]
) -> None:
    folder = tmp_path / "c"
    assert cache.describe_cache(folder) == [f"cache: {folder} (not there)"]
    skipped = [f"image {number}: broken" for number in range(count)]

    def build(aside: Path) -> dict[str, Any]:
        np.save(aside / "x.npy", np.zeros(1_000_000, np.uint8))
        return {"sources": ["one.zip", "two.zip"], "remarks": ["a remark"], "skipped": skipped}

    cache.cached_arrays(folder, build)
    assert cache.describe_cache(folder) == [
        f"cache: {folder} (1.0 MB)",
        "  from one.zip",
        "  from two.zip",
        "  a remark",
        f"  {count} images left out:",
        *(f"    {line}" for line in skipped[:20]),
        *(f"{line}{folder / 'contents.json'}" for line in more),
    ]
