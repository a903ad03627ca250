"""A user's folders of images: layouts, image modes, sizes, flaws."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from archives import DATASETS
from oracle import laws
from PIL import Image
from pydantic import TypeAdapter, ValidationError

from fedbench.cli.data import main
from fedbench.data import DataError


def image_tree(folder: Path, domains: tuple[str, ...] = (), tops: tuple[str, ...] = ("",), each: int = 5) -> Path:
    """Two classes of small images whose grey level tells which they are."""
    level = 0
    for top in tops:
        for domain in domains or ("",):
            for name in ("cat", "dog"):
                for number in range(each):
                    place = folder / top / domain / name
                    place.mkdir(parents=True, exist_ok=True)
                    Image.new("RGB", (12, 9), (level, level, level)).save(place / f"{number}.png")
                    level += 3
    return folder


def test_imagefolder_of_classes(tmp_path: Path) -> None:
    folder = image_tree(tmp_path / "mine", each=10)
    (folder / "cat" / "notes.txt").write_text("not an image")
    (folder / "cat" / ".hidden.png").write_text("nor this")
    (folder / ".git").mkdir()
    (folder / "empty").mkdir()
    made = DATASETS["imagefolder"](path=folder, image_size=6).load(tmp_path / "root")
    assert made.images.shape == (20, 6, 6, 3)
    assert (made.images[:, 0, 0, 0] == np.arange(20) * 3).all()
    assert list(made.labels) == [0] * 10 + [1] * 10
    assert made.class_names == ("cat", "dog")
    assert made.domain is None
    assert [made.is_test[made.labels == c].sum() for c in (0, 1)] == [2, 2], "a fifth of each class"
    assert isinstance(made.images, np.memmap)
    assert not made.images.flags.writeable


def test_imagefolder_of_domains(tmp_path: Path) -> None:
    folder = image_tree(tmp_path / "mine", ("art", "photo"))
    made = DATASETS["imagefolder"](path=folder, image_size=6, test_share=0.4).load(tmp_path / "root")
    assert made.domain_names == ("art", "photo")
    assert made.domain is not None
    assert list(made.domain) == [0] * 10 + [1] * 10
    for domain in (0, 1):
        for label in (0, 1):
            assert made.is_test[(made.domain == domain) & (made.labels == label)].sum() == 2


@pytest.mark.parametrize("domains", [(), ("art", "photo")])
def test_imagefolder_with_its_own_test_folder(domains: tuple[str, ...], tmp_path: Path) -> None:
    folder = image_tree(tmp_path / "mine", domains, ("train", "test"), each=3)
    made = DATASETS["imagefolder"](path=folder, image_size=6).load(tmp_path / "root")
    assert made.class_names == ("cat", "dog")
    assert made.domain_names == domains
    assert made.is_test.sum() * 2 == len(made.is_test)
    assert (made.images[~made.is_test].max() < made.images[made.is_test].min()).all()


def test_imagefolder_decodes_every_mode(tmp_path: Path) -> None:
    """A red square in each of the ways in which files hold it comes out red; half-transparent comes out on white."""
    place = tmp_path / "mine" / "a"
    place.mkdir(parents=True)
    red = Image.new("RGB", (10, 8), (255, 0, 0))
    palette = red.convert("P", palette=Image.Palette.ADAPTIVE)
    red.save(place / "01.png")
    red.convert("CMYK").save(place / "02.jpg", quality=100)
    palette.save(place / "03.gif")
    palette.save(place / "04.png", transparency=bytes([255] * 256))
    Image.new("RGBA", (10, 8), (255, 0, 0, 0)).save(place / "05.png")
    Image.new("RGBA", (10, 8), (255, 0, 0, 128)).save(place / "06.webp", lossless=True)
    Image.new("LA", (10, 8), (100, 255)).save(place / "07.png")
    Image.new("L", (10, 8), 100).save(place / "08.JPEG", quality=100)
    Image.new("1", (10, 8), 1).save(place / "09.bmp")
    Image.fromarray(np.full((8, 10), 100 * 256, np.uint16)).save(place / "10.png")
    Image.new("I", (10, 8), 100 * 256).save(place / "11.tiff")
    (tmp_path / "mine" / "b").mkdir()
    red.save(tmp_path / "mine" / "b" / "1.png")
    made = DATASETS["imagefolder"](path=tmp_path / "mine", image_size=4).load(tmp_path / "root")
    white, grey, pink = (255, 255, 255), (100, 100, 100), (255, 127, 127)
    expected = [(255, 0, 0)] * 4 + [white, pink, grey, grey, white, grey, grey, (255, 0, 0)]
    assert np.abs(made.images.astype(int) - np.array(expected)[:, None, None]).max() <= 3


@pytest.mark.parametrize("size", [(30, 10), (10, 30), (10, 10), (1, 51), (5, 5)])
def test_imagefolder_resizes_and_cuts_the_middle(size: tuple[int, int], tmp_path: Path) -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3)).astype(np.uint8))
    for name in ("a/1.png", "a/2.png"):
        (tmp_path / "mine" / name).parent.mkdir(parents=True, exist_ok=True)
        image.save(tmp_path / "mine" / name)
    made = DATASETS["imagefolder"](path=tmp_path / "mine", image_size=5).load(tmp_path / "root")
    width, height = (side * 5 // min(size) for side in size)
    whole = np.asarray(image.resize((width, height), Image.Resampling.BICUBIC)).astype(int)
    top, left = (height - 5) // 2, (width - 5) // 2
    assert np.abs(made.images[0] - whole[top : top + 5, left : left + 5]).max() <= 1


@pytest.mark.parametrize(
    ("prepare", "expected"),
    [
        (lambda f: None, "cannot be read"),
        (lambda f: f.mkdir(), "expected images as class/image or domain/class/image"),
        (lambda f: image_tree(f, ("a/b",)), "for all files alike, found a/b/cat/0.png"),
        (lambda f: image_tree(image_tree(f), ("art",)), "found cat/0.png beside art/cat/0.png"),
        (lambda f: Image.new("L", (3, 3)).save(image_tree(f) / "top.png"), "found top.png beside cat/0.png"),
        (
            lambda f: image_tree(image_tree(f, (), ("train", "test")), ("val",)),
            "expected train/ with test/ or with val/, found test/, train/, val/; keep one folder",
        ),
        (
            lambda f: (image_tree(f, (), ("train",)) / "test").mkdir(),
            "expected train/ with test/ or with val/, found train/; give ",
        ),
        (lambda f: image_tree(f, each=1), "found 0 of 2 for testing"),
        (lambda f: (image_tree(f) / "cat" / "1.png").write_bytes(b""), "cat/1.png: expected an image"),
        (lambda f: (image_tree(f) / "cat" / "1.jpg").write_bytes(b"<html>"), "cat/1.jpg: expected an image"),
    ],
)
def test_imagefolder_names_each_flaw(prepare: Callable[[Path], Any], expected: str, tmp_path: Path) -> None:
    prepare(tmp_path / "mine")
    with pytest.raises(DataError) as error:
        DATASETS["imagefolder"](path=tmp_path / "mine", image_size=4).load(tmp_path / "root")
    assert str(tmp_path / "mine") in str(error.value)
    assert expected in str(error.value)
    assert not list((tmp_path / "root").rglob("*.npy")), "nothing half-made is left"


@pytest.mark.parametrize("suffix", ["png", "jpg", "gif", "webp", "bmp", "tif", "ppm"])
def test_imagefolder_names_a_truncated_image(suffix: str, tmp_path: Path) -> None:
    folder = image_tree(tmp_path / "mine")
    path = folder / "dog" / f"9.{suffix}"
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3)).astype(np.uint8)
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(DataError, match=f"dog/9.{suffix}: expected an image, which cannot be read"):
        DATASETS["imagefolder"](path=folder, image_size=4).load(tmp_path / "root")


def test_imagefolder_sees_changed_files_and_options(tmp_path: Path) -> None:
    folder, root = image_tree(tmp_path / "mine"), tmp_path / "root"
    first = DATASETS["imagefolder"](path=folder, image_size=4).load(root)
    decoded = {path: path.stat().st_mtime_ns for path in root.rglob("images.npy")}
    DATASETS["imagefolder"](path=folder, image_size=4, test_share=0.5).load(root)
    assert {path: path.stat().st_mtime_ns for path in root.rglob("images.npy")} == decoded, "decoded once"
    assert DATASETS["imagefolder"](path=folder, image_size=5).load(root).images.shape[1] == 5
    Image.new("RGB", (12, 9), "white").save(folder / "cat" / "0.png")
    changed = DATASETS["imagefolder"](path=folder, image_size=4).load(root)
    assert (changed.images[0] == 255).all()
    assert (changed.images[1:] == first.images[1:]).all()


@pytest.mark.parametrize("options", [{"image_size": 0}, {"test_share": 0}, {"test_share": 1}, {}])
def test_imagefolder_refuses_senseless_options(options: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ValidationError):
        TypeAdapter(DATASETS["imagefolder"]).validate_python({"path": tmp_path, **options} if options else options)


@pytest.mark.parametrize("domains", [(), ("art", "photo")])
@pytest.mark.parametrize(
    "tops", [("train", "val"), ("train", "valid"), ("train", "validation"), ("Train", "TEST"), ("training", "Val")]
)
def test_validation_images_are_for_testing_where_there_is_no_test_folder(
    tops: tuple[str, str], domains: tuple[str, ...], tmp_path: Path
) -> None:
    folder = image_tree(tmp_path / "mine", domains, tops, each=3)
    made = DATASETS["imagefolder"](path=folder, image_size=6).load(tmp_path / "root")
    assert made.class_names == ("cat", "dog")
    assert made.domain_names == domains
    assert made.is_test.sum() * 2 == len(made.is_test)
    # the grey level of an image grows in the order in which it was made: training images first
    assert made.images[~made.is_test].max() < made.images[made.is_test].min()


@pytest.mark.parametrize(
    ("tops", "problem"),
    [
        (("train",), r"found train/; give .*mine/train as the path to have a test part drawn from it"),
        (("Val",), r"found Val/; give .*mine/Val as the path"),
        (("test", "val"), r"expected train/ with test/ or with val/, found test/, val/; keep one folder"),
        (("train", "Train", "test"), r"found Train/, test/, train/; keep one folder"),
        (("train", "test", "more"), r"nothing beside test/, train/, found more/cat/0.png; a domain cannot have such a"),
        (("art", "validation"), r"nothing beside validation/, found art/cat/0.png; a domain cannot have such a name"),
    ],
)
def test_domains_called_like_parts_are_refused_with_advice(tops: tuple[str, ...], problem: str, tmp_path: Path) -> None:
    folder = image_tree(tmp_path / "mine", (), tops)
    with pytest.raises(DataError, match=problem):
        DATASETS["imagefolder"](path=folder, image_size=6).load(tmp_path)


def test_the_advice_for_a_training_folder_alone_can_be_taken(tmp_path: Path) -> None:
    folder = image_tree(tmp_path / "mine", (), ("train",))
    made = DATASETS["imagefolder"](path=folder / "train", image_size=6).load(tmp_path)
    assert (made.class_names, int(made.is_test.sum())) == (("cat", "dog"), 2)


def test_parts_below_the_classes_are_refused(tmp_path: Path) -> None:
    folder = image_tree(tmp_path / "mine")
    for name in ("cat", "dog"):
        (folder / name).rename(folder / "x")
        (folder / name).mkdir()
        (folder / "x").rename(folder / name / "train")
    with pytest.raises(DataError, match=r"called train or alike, such as cat/train/0.png: move these folders above"):
        DATASETS["imagefolder"](path=folder, image_size=6).load(tmp_path)


def test_a_folder_called_images_below_each_class_is_no_class(tmp_path: Path) -> None:
    folder = image_tree(tmp_path / "mine")
    for name in ("cat", "dog"):
        (folder / name).rename(folder / "x")
        (folder / name).mkdir()
        (folder / "x").rename(folder / name / "images")
    made = DATASETS["imagefolder"](path=folder, image_size=6).load(tmp_path)
    assert made.class_names == ("cat", "dog")
    assert made.domain is None


def test_classes_may_be_called_valid_and_invalid(tmp_path: Path) -> None:
    folder = image_tree(tmp_path / "mine")
    (folder / "cat").rename(folder / "valid")
    (folder / "dog").rename(folder / "invalid")
    made = DATASETS["imagefolder"](path=folder, image_size=6).load(tmp_path)
    assert made.class_names == ("invalid", "valid")


def test_verify_finds_a_damaged_image_and_a_damaged_cache(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = image_tree(tmp_path / "mine")
    words = ["imagefolder", "--root", str(tmp_path), "--set", f"path={folder}", "image_size=6"]
    words = [*words[:-1], "--set", words[-1]]
    assert main(["verify", *words]) == 1, "it is not prepared"
    assert main(["prepare", *words]) == 0
    assert main(["verify", *words]) == 0
    (images,) = (tmp_path / "cache").glob("imagefolder-*/images.npy")
    content = bytearray(images.read_bytes())
    content[-5] ^= 16
    images.write_bytes(content)
    capsys.readouterr()
    assert main(["verify", *words]) == 1
    assert "images.npy: expected sha256" in capsys.readouterr().out
    status = (folder / "cat" / "1.png").stat()
    (folder / "cat" / "1.png").write_bytes(bytes(status.st_size))
    os.utime(folder / "cat" / "1.png", ns=(status.st_atime_ns, status.st_mtime_ns))
    assert main(["verify", *words]) == 1
    assert "cat/1.png: expected an image, which cannot be read" in capsys.readouterr().out
    (folder / "top.png").write_bytes(b"")
    assert main(["verify", *words]) == 1
    assert "found top.png beside cat/0.png" in capsys.readouterr().out


def test_prepare_lists_the_images_that_are_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = image_tree(tmp_path / "mine", each=30)
    for number in range(25):
        (folder / "cat" / f"{number}.png").write_bytes(b"no image")
    words = ["imagefolder", "--root", str(tmp_path), "--set", f"path={folder}"]
    assert main(["prepare", *words, "--set", "image_size=6", "--set", "skip=0.5"]) == 0
    out = capsys.readouterr().out
    assert "35 images of 6 x 6 pixels" in out
    assert "25 images left out:" in out
    assert "cat/0.png: expected an image, which cannot be read" in out
    assert "and 5 more, all in" in out


def test_the_test_part_is_a_rounded_share_of_each_group_and_never_all_of_it(tmp_path: Path) -> None:
    dataset = DATASETS["imagefolder"](path=tmp_path, test_share=0.3)
    groups = np.random.default_rng(0).permutation(np.repeat([0, 3, 4, 7, 9], [1, 2, 5, 10, 12]))
    is_test = dataset._draw_test(groups)
    assert [int(is_test[groups == group].sum()) for group in (0, 3, 4, 7, 9)] == [0, 1, 2, 3, 4]
    for group in (4, 7, 9):
        members = np.flatnonzero(groups == group)
        drawn = laws.stream("imagefolder", "test", group).permutation(members)[: is_test[members].sum()]
        assert sorted(drawn.tolist()) == np.flatnonzero(is_test & (groups == group)).tolist()
    almost_all = DATASETS["imagefolder"](path=tmp_path, test_share=0.99)._draw_test(groups)
    assert [int((~almost_all)[groups == group].sum()) for group in (0, 3, 4, 7, 9)] == [1] * 5


def test_names_that_are_not_utf_8_are_read_as_latin_1_unless_two_become_equal(tmp_path: Path) -> None:
    folder = image_tree(tmp_path / "mine", each=2)
    (folder / "cat").rename(folder / os.fsdecode(b"caf\xe9"))
    dataset = DATASETS["imagefolder"](path=folder, image_size=6, test_share=0.5)
    assert dataset.load(tmp_path / "root").class_names == ("café", "dog")
    (folder / "dog").rename(folder / "café")
    with pytest.raises(DataError, match="two folders are called 'café', in different encodings; rename one of them"):
        dataset.load(tmp_path / "root")


def test_a_file_two_levels_below_a_class_is_refused_and_one_without_a_folder_too(tmp_path: Path) -> None:
    folder = image_tree(tmp_path / "mine", ("art",), ("train", "test"), each=1)
    Image.new("RGB", (4, 4)).save(folder / "train" / "art" / "cat" / "0b.png")
    deep = folder / "test" / "art" / "cat" / "deep"
    deep.mkdir()
    Image.new("RGB", (4, 4)).save(deep / "0.png")
    dataset = DATASETS["imagefolder"](path=folder, image_size=6)
    with pytest.raises(
        DataError, match=r"for all files alike, found test/art/cat/deep/0.png beside test/art/cat/0.png"
    ):
        dataset.load(tmp_path / "root")
    with pytest.raises(DataError, match=r"found 0.png beside 0.png"):
        DATASETS["imagefolder"](path=deep, image_size=6).load(tmp_path / "root")
