"""Zipped bundles: the same bytes for the same folder, and none that was tampered with is opened."""

import os
import stat
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from common.bundle.bundle import Bundle, zip_bundle
from common.errors import BundleError
from tests.bundles import write


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(tmp_path / "bundle")
    return tmp_path / "bundle"


class Zip:
    """A zip of a bundle, to be tampered with entry by entry."""

    def __init__(self, folder: Path, path: Path) -> None:
        self.path = path
        self.entries = [
            (file.relative_to(folder).as_posix(), file.read_bytes())
            for file in sorted(folder.rglob("*"))
            if file.is_file()
        ]
        self.modes: dict[str, int] = {}

    def write(self) -> None:
        with warnings.catch_warnings(), zipfile.ZipFile(self.path, "w") as archive:
            warnings.simplefilter("ignore")  # the module warns of duplicate names
            for name, data in self.entries:
                info = zipfile.ZipInfo(name)
                info.compress_type = zipfile.ZIP_DEFLATED
                info.external_attr = self.modes.get(name, stat.S_IFREG | 0o644) << 16
                archive.writestr(info, data)

    def replace(self, name: str, data: bytes) -> None:
        self.entries = [(n, data if n == name else old) for n, old in self.entries]

    def as_link(self) -> None:
        self.modes["report.md"] = stat.S_IFLNK | 0o777

    def without(self, name: str) -> None:
        self.entries = [(n, data) for n, data in self.entries if n != name]

    def patch(self, old: bytes, new: bytes) -> None:
        """Change bytes of the written file; nothing else may hold them."""
        self.write()
        data = self.path.read_bytes()
        assert old in data
        self.path.write_bytes(data.replace(old, new))


@pytest.mark.parametrize(
    ("tamper", "named"),
    [
        # zip slip, in all its spellings
        (lambda z: z.entries.append(("../evil", b"x")), "evil"),
        (lambda z: z.entries.append(("/tmp/evil", b"x")), "evil"),  # noqa: S108 - never opened
        (lambda z: z.entries.append(("models/../../evil", b"x")), "evil"),
        (lambda z: z.entries.append(("..\\evil", b"x")), "evil"),
        (lambda z: z.entries.append(("C:\\evil", b"x")), "evil"),
        (lambda z: z.entries.append(("extra.md", b"x")), "extra.md"),
        # readers disagree on which of two entries counts
        (lambda z: z.entries.append(("report.md", b"why")), "report.md"),
        (lambda z: z.entries.append(("manifest.json", b"{}")), "manifest.json"),
        (lambda z: z.without("report.md"), "report.md"),
        (lambda z: z.without("manifest.json"), "manifest.json"),
        (lambda z: z.replace("report.md", b"now"), "report.md"),
        # a bomb: 64 MiB of zeros behind a listed name
        (lambda z: z.replace("report.md", bytes(64 << 20)), "report.md"),
        (lambda z: z.replace("manifest.json", b" " * (17 << 20)), "manifest.json"),
        (lambda z: z.as_link(), "report.md"),
    ],
    ids=[
        "..", "absolute", "inner ..", "backslash", "drive letter", "extra", "twice",
        "manifest twice", "missing", "no manifest", "changed", "bomb", "manifest bomb", "link",
    ],
)  # fmt: skip
def test_a_zip_that_was_tampered_with_is_refused(
    folder: Path, tmp_path: Path, tamper: Callable[[Zip], object], named: str
) -> None:
    archive = Zip(folder, tmp_path / "deep" / "er" / "bundle.zip")
    archive.path.parent.mkdir(parents=True)
    tamper(archive)
    archive.write()
    assert_zip_refused(archive.path, tmp_path, named)


def test_a_zip_with_an_encrypted_entry_is_refused(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "bundle.zip"
    zip_bundle(folder, path)
    data = bytearray(path.read_bytes())
    for signature, flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        position = data.find(signature)
        while position >= 0:
            data[position + flags] |= 1
            position = data.find(signature, position + 4)
    path.write_bytes(data)
    assert_zip_refused(path, tmp_path, "encrypt")


def test_a_zip_whose_header_lies_about_a_size_is_refused(folder: Path, tmp_path: Path) -> None:
    archive = Zip(folder, tmp_path / "bundle.zip")
    archive.replace("report.md", bytes(5_000_001))
    size, lie = (5_000_001).to_bytes(4, "little"), (3).to_bytes(4, "little")
    archive.patch(size, lie)
    assert_zip_refused(archive.path, tmp_path, "report.md")


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_damaged_entry_of_another_method_is_refused(
    folder: Path, tmp_path: Path, method: int
) -> None:
    path = tmp_path / "bundle.zip"
    with zipfile.ZipFile(path, "w", method) as archive:
        for file in sorted(folder.rglob("*")):
            if file.is_file():
                archive.write(file, file.relative_to(folder))
    data = bytearray(path.read_bytes())
    data[80:400] = bytes(320)
    path.write_bytes(data)
    assert_zip_refused(path, tmp_path, "json|onnx|zip")


def test_any_damage_to_a_zip_is_refused_in_one_way(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "bundle.zip"
    zip_bundle(folder, path)
    whole = path.read_bytes()
    work = tmp_path / "work"
    work.mkdir()
    for position in range(0, len(whole), 7):
        damaged = bytearray(whole)
        damaged[position] ^= 0xFF
        path.write_bytes(damaged)
        try:
            Bundle.open(path, workdir=work).close()
        except BundleError as error:
            assert "\n" not in str(error)  # noqa: PT017 - times and comments may be damaged
        assert not list(work.iterdir())


def assert_zip_refused(path: Path, tmp_path: Path, named: str) -> None:
    work = tmp_path / "work"
    work.mkdir()
    with pytest.raises(BundleError, match=named) as refused:
        Bundle.open(path, workdir=work)
    assert "\n" not in str(refused.value)
    assert not list(work.iterdir())
    assert not list(tmp_path.rglob("*evil*"))


class TestZip:
    def test_the_same_folder_gives_the_same_bytes(self, tmp_path: Path) -> None:
        for name in ("a", "b"):
            write(tmp_path / name)
            os.utime(tmp_path / name / "report.md", (10**9, 10**9 + ord(name)))
            zip_bundle(tmp_path / name, tmp_path / f"{name}.zip")
        assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()
