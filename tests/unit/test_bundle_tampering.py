"""Bundles that were tampered with, as folders: none is opened."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from common.bundle.bundle import Bundle, parse_manifest
from common.bundle.manifest import SCHEMA_VERSION, UNSEALED, seal_manifest
from common.errors import BundleError, BundleVersionError
from tests.bundles import write


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(tmp_path / "bundle")
    return tmp_path / "bundle"


def edit_manifest(folder: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    """Edit it and seal it again, as somebody would who knows how."""
    path = folder / "manifest.json"
    document = json.loads(path.read_text())
    document["sha256"] = UNSEALED
    edit(document)
    path.write_bytes(seal_manifest(json.dumps(document).encode()))


Tamper = Callable[[Path], object]


def flip(name: str) -> Tamper:
    def tamper(folder: Path) -> None:
        data = bytearray((folder / name).read_bytes())
        data[len(data) // 2] ^= 1
        (folder / name).write_bytes(data)

    return tamper


def manifest_with(edit: Callable[[dict[str, Any]], object]) -> Tamper:
    return lambda folder: edit_manifest(folder, edit)


def listed_as(name: str) -> Tamper:
    """The manifest lists a file under a name that leads out of the bundle."""
    return manifest_with(lambda d: d["files"].__setitem__(name, d["files"]["report.md"]))


def replaced_by_link(folder: Path) -> None:
    (folder / "report.md").rename(folder.parent / "report.md")
    (folder / "report.md").symlink_to(folder.parent / "report.md")


def folder_replaced_by_link(folder: Path) -> None:
    (folder / "models").rename(folder.parent / "models")
    (folder / "models").symlink_to(folder.parent / "models", target_is_directory=True)


def manifest_replaced_by_link(folder: Path) -> None:
    (folder / "manifest.json").rename(folder.parent / "manifest.json")
    (folder / "manifest.json").symlink_to(folder.parent / "manifest.json")


def folder_in_its_place(folder: Path) -> None:
    (folder / "report.md").unlink()
    (folder / "report.md").mkdir()


def pipe_in_its_place(folder: Path) -> None:
    (folder / "report.md").unlink()
    os.mkfifo(folder / "report.md")


TAMPERINGS: list[tuple[str, Tamper, str]] = [
    # one flipped bit in a model
    ("flipped byte", flip("models/tail.onnx"), "tail.onnx"),
    ("cut off", lambda f: (f / "models/tail.onnx").write_bytes(b"a t"), "tail.onnx"),
    ("longer", lambda f: (f / "models/tail.onnx").write_bytes(b"a tail " * 1001), "tail.onnx"),
    ("missing file", lambda f: (f / "models/head.onnx").unlink(), "head.onnx"),
    # a file that nobody vouches for
    ("extra file", lambda f: (f / "models/extra.onnx").write_bytes(b"x"), "extra.onnx"),
    ("hidden extra file", lambda f: (f / ".hidden").write_bytes(b"x"), ".hidden"),
    (
        "a folder for a file",
        folder_in_its_place,
        "report",
    ),
    # the same bytes, elsewhere: whoever owns the target could change them after the check
    ("link", replaced_by_link, "report.md: links are not allowed.*cp -rL"),
    ("linked folder", folder_replaced_by_link, "models: links are not allowed.*cp -rL"),
    ("linked manifest", manifest_replaced_by_link, "manifest.json: links.*cp -rL"),
    # reading a pipe would wait for ever
    ("pipe", pipe_in_its_place, "report.md"),
    ("no manifest", lambda f: (f / "manifest.json").unlink(), "manifest.json"),
    ("not JSON", lambda f: (f / "manifest.json").write_text("{"), "manifest.json"),
    ("not UTF-8", lambda f: (f / "manifest.json").write_bytes(b"\xff\xfe{"), "manifest.json"),
    ("deep JSON", lambda f: (f / "manifest.json").write_text("[" * 100_000), "manifest.json"),
    ("huge integer", lambda f: (f / "manifest.json").write_text("9" * 5000), "manifest.json"),
    ("a list", lambda f: (f / "manifest.json").write_text("[]"), "schema"),
    ("17 MiB", lambda f: (f / "manifest.json").write_bytes(b" " * (17 << 20)), "16 MiB"),
    # the schema is looked at before anything else, so a newer manifest is not called damaged
    (
        "newer",
        manifest_with(lambda d: d.update(schema_version=SCHEMA_VERSION + 1, plans="other")),
        f"schema {SCHEMA_VERSION + 1}",
    ),
    ("no version", manifest_with(lambda d: d.pop("schema_version")), "schema"),
    ("version of another type", manifest_with(lambda d: d.update(schema_version=True)), "schema"),
    ("no seal", manifest_with(lambda d: d.pop("sha256")), "manifest.json: .*sha256"),
    (
        "seal of another type",
        manifest_with(lambda d: d.update(sha256=1)),
        "manifest.json: .*sha256",
    ),
    ("seal that is no text", manifest_with(lambda d: d.update(sha256="\ud800" * 64)), "sha256"),
    # sealed again: the field is named
    (
        "bad field",
        manifest_with(lambda d: d["plans"][0]["wire"][0].update(bits=9)),
        "plans.0.wire.0.bits",
    ),
    (
        "codec of another version",
        manifest_with(lambda d: d["plans"][0]["codec"].update(name="gzip")),
        "no codec .gzip.",
    ),
    ("unknown field", manifest_with(lambda d: d.update(more=1)), "more"),
    (
        "lying size",
        manifest_with(lambda d: d["files"]["report.md"].update(size_bytes=2)),
        "report.md",
    ),
    (
        "lying digest",
        manifest_with(lambda d: d["files"]["report.md"].update(sha256="1" * 64)),
        "report.md",
    ),
    (
        "plan without its file",
        manifest_with(lambda d: d["files"].pop("models/tail.onnx")),
        "tail.onnx",
    ),
    # names that lead out of the bundle
    ("..", listed_as("../evil"), "evil"),
    ("inner ..", listed_as("models/../../evil"), "evil"),
    ("absolute", listed_as("/tmp/evil"), "evil"),  # noqa: S108 - never opened
    ("backslash", listed_as("..\\evil"), "evil"),
    ("drive letter", listed_as("C:evil"), "evil"),
    ("the manifest itself", listed_as("manifest.json"), "manifest.json"),
]


@pytest.mark.parametrize(
    ("tamper", "named"),
    [pytest.param(tamper, named, id=name) for name, tamper, named in TAMPERINGS],
)
def test_a_folder_that_was_tampered_with_is_refused(
    folder: Path, tamper: Tamper, named: str
) -> None:
    tamper(folder)
    with pytest.raises(BundleError, match=named) as refused:
        Bundle.open(folder)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "version", [0, 1, SCHEMA_VERSION - 1, SCHEMA_VERSION + 1, str(SCHEMA_VERSION), None, 2.5]
)
def test_another_schema_says_what_to_do(folder: Path, version: object) -> None:
    edit_manifest(folder, lambda d: d.update(schema_version=version))
    with pytest.raises(BundleVersionError, match="search again"):
        Bundle.open(folder)


def test_no_bit_of_the_manifest_may_change(folder: Path) -> None:
    """Neither in a number, a name or its own digest, nor in what JSON does not care about."""
    data = (folder / "manifest.json").read_bytes()
    parse_manifest(data)
    accepted = []
    for bit in range(8 * len(data)):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        try:
            parse_manifest(bytes(flipped))
        except BundleError:
            continue
        accepted.append(bit)
    assert accepted == []


def test_the_folder_itself_may_be_a_link(folder: Path) -> None:
    (folder.parent / "latest").symlink_to(folder, target_is_directory=True)
    assert Bundle.open(folder.parent / "latest").digest == Bundle.open(folder).digest


def test_a_bundle_of_links_says_how_to_copy_it(folder: Path, tmp_path: Path) -> None:
    """As `cp -rs` makes it, or a store of files that are found by their content."""
    linked = tmp_path / "linked"
    for path in sorted(folder.rglob("*")):
        target = linked / path.relative_to(folder)
        if path.is_dir():
            target.mkdir(parents=True)
        else:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.symlink_to(path)
    with pytest.raises(BundleError, match=r"links are not allowed.*cp -rL"):
        Bundle.open(linked)
    shutil.copytree(linked, tmp_path / "copied")
    assert Bundle.open(tmp_path / "copied").digest == Bundle.open(folder).digest
