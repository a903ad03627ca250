"""Speed of `prepare`: JPEGs in an archive to one array on disk, per core, against a plain Pillow loop over files.

The plain loop opens a file, resizes its short side, cuts the middle and puts it into an array in memory, on one core. The
images are drawn here, as large as photographs of iNaturalist (800 x 600) or of another size. Both alternate, and the
median of the ratios is told. Usage: ``python -m benchmarks.prepare [--images N] [--side PX] [--size PX] [--out FILE]``
"""

from __future__ import annotations

import argparse
import io
import json
import platform
import statistics
import tempfile
import time
import zipfile
from pathlib import Path

import numpy as np
import PIL
from PIL import Image, ImageOps

from fedbench import pixels
from fedbench.archive import open_source


def draw(folder: Path, count: int, side: int) -> Path:
    """`count` JPEGs of side x 3/4 side pixels as files and in images.zip; a few pictures, again and again."""
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
    """Seconds of what `prepare` does, to the last byte on disk."""
    with tempfile.TemporaryDirectory(dir=archive.parent) as aside:
        begin = time.perf_counter()
        files = [(0, f"{number}.jpg") for number in range(count)]
        pixels.write([open_source(archive)], files, str, size, 0.0, Path(aside))
        return time.perf_counter() - begin


def main() -> None:
    """Measure and print JSON."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--images", type=int, default=1000)
    options.add_argument("--side", type=int, default=800, help="long side of the images")
    options.add_argument("--size", type=int, default=224, help="pixels per side of what is stored")
    options.add_argument("--repeat", type=int, default=3)
    options.add_argument("--out", type=Path)
    given = options.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        archive = draw(Path(folder), given.images, given.side)
        loops, ours = [], []
        for _ in range(given.repeat):
            loops.append(plain(Path(folder), given.images, given.size))
            ours.append(prepared(archive, given.images, given.size))
    cores = pixels.cores()
    result = {
        "images": given.images,
        "pixels": f"{given.side} x {given.side * 3 // 4} to {given.size} x {given.size}",
        "cores": cores,
        "processor": platform.processor() or platform.machine(),
        "pillow": PIL.__version__,
        "plain_loop_images_per_second": round(given.images / statistics.median(loops), 1),
        "prepare_images_per_second": round(given.images / statistics.median(ours), 1),
        "prepare_images_per_second_per_core": round(given.images / statistics.median(ours) / cores, 1),
        "per_core_ratio": round(statistics.median(a / b / cores for a, b in zip(loops, ours, strict=True)), 3),
    }
    text = json.dumps(result, indent=1)
    print(text)
    if given.out:
        given.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
