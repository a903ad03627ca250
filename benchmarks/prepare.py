"""Speed of `prepare`: JPEGs in an archive to one array on disk, per core, against a plain Pillow loop over files.

The plain loop opens a file, resizes its short side, cuts the middle and puts it into an array in memory, on one core. The
images are drawn here, as large as photographs of iNaturalist (800 x 600) or of another size. Both alternate, and the
median of the ratios is printed. Usage: ``python -m benchmarks.prepare [--images N] [--side PX] [--size PX] [--out FILE]``

``--memory`` shows instead that memory does not grow with the number of images: peak memory of preparing an iNaturalist of
2,000 and of 20,000 small images, from its own archives, each in a separate process.
"""

from __future__ import annotations

import argparse
import dataclasses
import io
import json
import os
import platform
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import PIL
from PIL import Image, ImageOps

from fedbench.base.home import HOME
from fedbench.plan.plugins import plugins
from fedbench.sources import pixels
from fedbench.sources.archive import open_source


def draw(folder: Path, count: int, side: int) -> Path:
    """`count` JPEGs of side x 3/4 side pixels as files and in images.zip; a few pictures, repeated."""
    stream, pictures = np.random.default_rng(0), []
    for _ in range(min(count, 32)):
        coarse = stream.integers(0, 256, (side * 3 // 40, side // 10, 3)).astype(np.uint8)
        file = io.BytesIO()
        Image.fromarray(coarse).resize((side, side * 3 // 4), Image.Resampling.BICUBIC).save(file, "JPEG", quality=90)
        pictures.append(file.getvalue())
    with zipfile.ZipFile(folder / "images.zip", "w") as archive:
        for number in range(count):
            (folder / f"{number}.jpg").write_bytes(pictures[number % len(pictures)])
            archive.writestr(f"{number}.jpg", pictures[number % len(pictures)])
    return folder / "images.zip"


def plain(folder: Path, count: int, size: int) -> float:
    """Seconds of the plain loop."""
    begin = time.perf_counter()
    array = np.empty((count, size, size, 3), dtype=np.uint8)
    for number in range(count):
        with Image.open(folder / f"{number}.jpg") as image:
            array[number] = np.asarray(ImageOps.fit(image.convert("RGB"), (size, size), Image.Resampling.BICUBIC))
    return time.perf_counter() - begin


def prepared(archive: Path, count: int, size: int) -> float:
    """Seconds of `prepare`, until everything is on disk."""
    with tempfile.TemporaryDirectory(dir=archive.parent) as aside:
        begin = time.perf_counter()
        files = [(0, f"{number}.jpg") for number in range(count)]
        pixels.write([open_source(archive)], files, str, size, 0.0, Path(aside))
        return time.perf_counter() - begin


def draw_inaturalist(folder: Path, count: int) -> None:
    """The two archives of iNaturalist-User-120k with `count` images of 24 x 18 pixels: ten per user, a tenth for testing."""
    file = io.BytesIO()
    Image.new("RGB", (24, 18), (90, 160, 70)).save(file, "JPEG")
    content = file.getvalue()
    with tarfile.open(folder / "train_val_images.tar.gz", "w:gz", compresslevel=1) as archive:
        for number in range(count):
            member = tarfile.TarInfo(f"train_val_images/Aves/Turdus merula/{number:032x}.jpg")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    train, first_test = "user_id,image_id,class,label\n", count * 9 // 10
    train += "".join(f"{n // 10},{n:032x},{n % 1203},0\n" for n in range(first_test))
    test = "image_id,class,label\n" + "".join(f"{n:032x},{n % 1203},0\n" for n in range(first_test, count))
    with zipfile.ZipFile(folder / "inaturalist-user-120k.zip", "w") as lists:
        lists.writestr("inaturalist-user-120k/federated_train_user_120k.csv", train)
        lists.writestr("inaturalist-user-120k/test.csv", test)


def peak(root: Path, size: int) -> tuple[int, int]:
    """The number of images prepared in this process, and the peak memory [bytes] above that of its imports (Linux)."""
    made = plugins().classes["dataset"]["inaturalist"]
    made.archives = tuple(dataclasses.replace(archive, md5="") for archive in made.archives)  # type: ignore[attr-defined]
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here on
    before = _status("VmRSS")
    count = len(made(image_size=size, skip=1).load(root).labels)
    return count, _status("VmHWM") - before


def _status(name: str) -> int:
    (line,) = (text for text in Path("/proc/self/status").read_text().splitlines() if text.startswith(f"{name}:"))
    return int(line.split()[1]) << 10


def memory(counts: Sequence[int], size: int) -> dict[str, dict[str, int]]:
    """Peak memory of preparing that many images, without imports, and the size of their pixels, in MiB."""
    peaks = {}
    for count in counts:
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "inaturalist").mkdir()
            draw_inaturalist(Path(folder) / "inaturalist", count)
            command = [sys.executable, "-m", "benchmarks.prepare", "--peak", folder, "--size", str(size)]
            done = subprocess.run(command, cwd=HOME, env=os.environ, capture_output=True, text=True, check=False)
            if done.returncode:
                raise RuntimeError(done.stderr)
            images, most = json.loads(done.stdout)
        peaks[f"{images:,} images"] = {"peak_mib": most >> 20, "pixels_mib": images * 3 * size**2 >> 20}
    return peaks


def main() -> None:
    """Measure and print JSON."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--images", type=int, default=1000)
    options.add_argument("--side", type=int, default=800, help="long side of the images")
    options.add_argument("--size", type=int, default=224, help="pixels per side of the stored images")
    options.add_argument("--repeat", type=int, default=3)
    options.add_argument("--out", type=Path)
    options.add_argument("--memory", action="store_true", help="peak memory instead of speed")
    options.add_argument("--peak", type=Path, help=argparse.SUPPRESS)  # what --memory starts
    arguments = options.parse_args()
    if arguments.peak:
        print(json.dumps(peak(arguments.peak, arguments.size)))
        return
    if arguments.memory:
        show(memory((2_000, 20_000), 64), arguments.out)
        return
    with tempfile.TemporaryDirectory() as folder:
        archive = draw(Path(folder), arguments.images, arguments.side)
        loops, ours = [], []
        for _ in range(arguments.repeat):
            loops.append(plain(Path(folder), arguments.images, arguments.size))
            ours.append(prepared(archive, arguments.images, arguments.size))
    cores = pixels.cores()
    result = {
        "images": arguments.images,
        "pixels": f"{arguments.side} x {arguments.side * 3 // 4} to {arguments.size} x {arguments.size}",
        "cores": cores,
        "processor": platform.processor() or platform.machine(),
        "pillow": PIL.__version__,
        "plain_loop_images_per_second": round(arguments.images / statistics.median(loops), 1),
        "prepare_images_per_second": round(arguments.images / statistics.median(ours), 1),
        "prepare_images_per_second_per_core": round(arguments.images / statistics.median(ours) / cores, 1),
        "per_core_ratio": round(statistics.median(a / b / cores for a, b in zip(loops, ours, strict=True)), 3),
    }
    show(result, arguments.out)


def show(result: dict[str, Any], out: Path | None) -> None:
    """Print the result, and write it to `out`."""
    text = json.dumps(result, indent=1)
    print(text)
    if out:
        out.write_text(text + "\n")


if __name__ == "__main__":
    main()
