"""Archives are read in place. An archive with outside paths, links or unlimited growth is refused by name."""

from __future__ import annotations

import io
import os
import stat
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from archives import make_tar, make_zip, unpack

from fedbench.data import DataError
from fedbench.sources import archive
from fedbench.sources.archive import open_source

FILES = {"top/a.txt": b"first", "top/b/c.txt": b"second" * 100, "top/b/empty": b""}


@pytest.mark.parametrize("form", ["zip", "tar.gz", "tar", "folder"])
def test_every_form_reads_alike(form: str, tmp_path: Path) -> None:
    path = tmp_path / f"x.{form}"
    if form == "zip":
        make_zip(path, FILES.items(), folders=["top", "top/none"])
    else:
        make_tar(tmp_path / "x.tar.gz", FILES.items(), folders=["top", "top/none"])
    if form == "tar":
        import gzip

        path.write_bytes(gzip.decompress((tmp_path / "x.tar.gz").read_bytes()))
    source = (
        open_source(path) if form != "folder" else open_source(unpack(tmp_path / "x.tar.gz", tmp_path / "out"), "top")
    )
    assert sorted(source.names) == sorted(FILES)
    assert {name: read() for name, read in source.stream(lambda _: True)} == FILES
    assert [name for name, _ in source.stream(lambda name: name.endswith("c.txt"))] == ["top/b/c.txt"]
    assert source.read("top/a.txt") == b"first"
    assert source.base("b/c.txt") == "top/"
    with pytest.raises(DataError, match=r"expected top/x in it, found top/a.txt, top/b/c.txt, top/b/empty"):
        source.read("top/x")
    with pytest.raises(DataError, match=r"expected c/ in it"):
        source.base("c/")


def test_a_missing_file_is_reported_with_the_first_three_that_are_there(tmp_path: Path) -> None:
    make_zip(tmp_path / "x.zip", [(f"{letter}.txt", b"x") for letter in "dcba"])
    with pytest.raises(DataError, match=r"expected e\.txt in it, found 4 files \(a\.txt, b\.txt, c\.txt, \.\.\.\)$"):
        open_source(tmp_path / "x.zip").read("e.txt")


def zip_member(path: Path, name: str, content: bytes = b"x", mode: int = 0) -> None:
    member = zipfile.ZipInfo(name)
    member.external_attr = mode << 16
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as made:
        made.writestr(member, content)


def tar_member(path: Path, name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> None:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, link
    with tarfile.open(path, "w:gz") as made:
        made.addfile(member, io.BytesIO())


def encrypted_member(path: Path, name: str) -> None:
    """A zip archive whose directory says that its member is encrypted: bit 0 of the flags, 8 bytes behind the signature."""
    zip_member(path, name)
    content = bytearray(path.read_bytes())
    content[content.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(content)


HOSTILE: dict[str, tuple[str, Callable[[Path], None], str]] = {
    "zip, ..": ("zip", lambda p: zip_member(p, "a/../../evil"), "leads outside"),
    "zip, absolute": ("zip", lambda p: zip_member(p, "/tmp/evil"), "leads outside"),
    "zip, drive": ("zip", lambda p: zip_member(p, "C:/evil"), "leads outside"),
    "zip, backslashes": ("zip", lambda p: zip_member(p, "a\\..\\..\\evil"), "leads outside"),
    "zip, symlink": ("zip", lambda p: zip_member(p, "a", b"/etc/passwd", stat.S_IFLNK | 0o777), "a link or a device"),
    "zip, device": ("zip", lambda p: zip_member(p, "a", b"", stat.S_IFCHR | 0o666), "a link or a device"),
    "zip, encrypted": ("zip", lambda p: encrypted_member(p, "a"), "encrypted"),
    "tar, ..": ("tar.gz", lambda p: tar_member(p, "../evil"), "leads outside"),
    "tar, absolute": ("tar.gz", lambda p: tar_member(p, "/tmp/evil"), "leads outside"),
    "tar, symlink": ("tar.gz", lambda p: tar_member(p, "a", tarfile.SYMTYPE, "/etc/passwd"), "a link or a device"),
    "tar, hard link": ("tar.gz", lambda p: tar_member(p, "a", tarfile.LNKTYPE, "/etc/passwd"), "a link or a device"),
    "tar, device": ("tar.gz", lambda p: tar_member(p, "a", tarfile.CHRTYPE), "a link or a device"),
    "tar, pipe": ("tar.gz", lambda p: tar_member(p, "a", tarfile.FIFOTYPE), "a link or a device"),
}


@pytest.mark.parametrize("kind", sorted(HOSTILE))
def test_hostile_archives_are_refused(kind: str, tmp_path: Path) -> None:
    suffix, make, why = HOSTILE[kind]
    path = tmp_path / "in" / f"x.{suffix}"
    path.parent.mkdir()
    make(path)
    before = sorted(tmp_path.rglob("*"))
    for use in (lambda s: s.names, lambda s: s.read("a"), lambda s: list(s.stream(lambda _: True))):
        with pytest.raises(DataError, match=f"^{path}: refused, since .*{why}"):
            use(open_source(path))
    assert sorted(tmp_path.rglob("*")) == before, "nothing was written"


@pytest.mark.parametrize("form", ["zip", "tar.gz"])
def test_bombs_are_refused(form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / f"x.{form}"
    (make_zip if form == "zip" else make_tar)(
        path, [(f"{n}.bin", bytes(1 << 20)) for n in range(20)]
    )  # to a thousandth
    assert len(open_source(path).names) == 20, "20 MB are no bomb"
    monkeypatch.setattr(archive, "SLACK_BYTES", 1 << 20)
    with pytest.raises(DataError, match=r"would grow to more than"):
        list(open_source(path).stream(lambda _: True))
    monkeypatch.setattr(archive, "MOST_MEMBER_BYTES", 1 << 19)
    with pytest.raises(DataError, match=r"would be 1,048,576 bytes"):
        list(open_source(path).stream(lambda _: True))


def test_a_member_that_lies_about_its_size_is_cut_short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make_zip(tmp_path / "x.zip", [("a.bin", bytes(100_000))])
    content = path.read_bytes()
    lie = content.replace((100_000).to_bytes(4, "little"), (10).to_bytes(4, "little"))
    assert lie != content
    path.write_bytes(lie)
    with pytest.raises(DataError, match=r"x.zip: "):
        open_source(path).read("a.bin")


def test_a_file_of_more_than_the_most_bytes_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "MOST_MEMBER_BYTES", 4)
    (tmp_path / "a").write_bytes(b"1234")
    (tmp_path / "b").write_bytes(b"12345")
    assert open_source(tmp_path).read("a") == b"1234"
    with pytest.raises(DataError, match=r"refused, since 'b' in it is larger than 4 bytes"):
        open_source(tmp_path).read("b")


@pytest.mark.parametrize("form", ["zip", "tar.gz"])
def test_damaged_archives_are_named(form: str, tmp_path: Path) -> None:
    path = tmp_path / f"x.{form}"
    (make_zip if form == "zip" else make_tar)(path, [(f"{n}.bin", os.urandom(5000)) for n in range(4)])
    whole = path.read_bytes()
    for content in (b"", b"<html>", whole[: len(whole) // 2], whole[:3000] + b"?" * 100 + whole[3100:]):
        path.write_bytes(content)
        with pytest.raises(DataError, match=f"^{path}: expected "):
            [read() for _, read in open_source(path).stream(lambda _: True)]


def test_a_path_that_is_nothing(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"expected a file or folder, found nothing"):
        open_source(tmp_path / "x.zip")


def test_links_in_circles_and_hidden_files_are_ignored(tmp_path: Path) -> None:
    (tmp_path / "top" / "b").mkdir(parents=True)
    for name, content in FILES.items():
        (tmp_path / name).write_bytes(content)
    for name in ("circle", "another", "top/b/up"):
        (tmp_path / name).symlink_to(tmp_path)
    (tmp_path / "linked").symlink_to(tmp_path / "top" / "b")
    for name in (".DS_Store", "top/._a.txt", "__MACOSX/top/._a.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).write_bytes(b"?")
    assert sorted(open_source(tmp_path).names) == sorted([*FILES, "linked/c.txt", "linked/empty"])


@pytest.mark.parametrize("form", ["zip", "tar.gz"])
def test_hidden_members_are_ignored(form: str, tmp_path: Path) -> None:
    extra = {"top/.DS_Store": b"?", "top/b/._c.txt": b"?", "__MACOSX/top/._a.txt": b"?", "./top/plain": b"!"}
    path = (make_zip if form == "zip" else make_tar)(tmp_path / f"x.{form}", (FILES | extra).items())
    assert sorted(open_source(path).names) == sorted([*FILES, "./top/plain"])


def test_a_named_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.zip")
    with pytest.raises(DataError, match=r"x.zip: cannot be read \(expected a file, found a named pipe\)"):
        open_source(tmp_path / "x.zip")
    with pytest.raises(DataError, match=r"x.zip: cannot be read \(expected a file, found a named pipe\)"):
        open_source(tmp_path).read("x.zip")
