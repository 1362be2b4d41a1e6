"""Bundles: what is written is read back, and nothing that was tampered with is opened."""

import hashlib
import io
import json
import os
import stat
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from pydantic import ValidationError

from common.bundle import Bundle, BundleWriter, open_codecs, read_vector, zip_bundle
from common.detections import DetectorSpec, YoloHeadSpec
from common.errors import BundleError, BundleVersionError, UnknownPlanError
from common.manifest import (
    CodecSpec,
    Head,
    HeadOutput,
    Manifest,
    Plan,
    Prediction,
    Search,
    Tail,
    WireTensor,
)
from tests.contexts import random_model, sparse_symbols

SIZE = 32
CUT = (2, 4, 4)
INPUT = np.random.default_rng(0).integers(0, 256, (1, 3, SIZE, SIZE), dtype=np.uint8)
OUTPUT = np.random.default_rng(1).integers(0, 256, (1, *CUT), dtype=np.uint8)

DETECTOR = DetectorSpec(
    kind="yolov3",
    input_height=SIZE,
    input_width=SIZE,
    heads=(YoloHeadSpec(stride=8, anchors=((8.0, 8.0),), classes=1),),
    class_names=("cat",),
)
SEARCH = Search(
    model="tiny",
    weights_sha256="0" * 64,
    device="test",
    uplink_bps=3e6,
    rtt_ms=20,
    max_drop=1,
    calibration_images=1,
    accuracy_metric="none",
    software_version="0",
)
PLAN = Plan(
    name="split",
    cut=("cut",),
    head=Head(
        file="models/head.onnx",
        outputs=(HeadOutput(name="cut", shape=CUT, scale=0.1, zero_point=0),),
        weight_bytes=1,
        peak_activation_bytes=1,
        bits={"conv": 8},
        vector="vectors/cut",
    ),
    wire=(
        WireTensor(
            name="cut",
            shape=CUT,
            bits=1,
            to_symbol=tuple(code >> 7 for code in range(256)),
            to_value=(0.0, 1.0),
        ),
    ),
    codec=CodecSpec(name="packed"),
    tail=Tail(file="models/tail.onnx"),
    predicted=Prediction(**dict.fromkeys(Prediction.model_fields, 1)),
)


def npy(array: NDArray[Any], *, allow_pickle: bool = False) -> bytes:
    file = io.BytesIO()
    np.save(file, array, allow_pickle=allow_pickle)
    return file.getvalue()


def files() -> dict[str, bytes]:
    return {
        "models/head.onnx": b"a head",
        "models/tail.onnx": b"a tail " * 1000,
        "vectors/cut/input.npy": npy(INPUT),
        "vectors/cut/output-0.npy": npy(OUTPUT),
        "report.md": b"why",
    }


def write(folder: Path, contents: dict[str, bytes] | None = None, plan: Plan = PLAN) -> Manifest:
    writer = BundleWriter(folder)
    for name, data in (contents or files()).items():
        writer.add(name, data)
    return writer.finish(detector=DETECTOR, search=SEARCH, plans=(plan,))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(tmp_path / "bundle")
    return tmp_path / "bundle"


def edit_manifest(folder: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    path = folder / "manifest.json"
    document = json.loads(path.read_text())
    edit(document)
    path.write_text(json.dumps(document))


class TestOpen:
    @pytest.mark.parametrize("zipped", [False, True], ids=["folder", "zip"])
    def test_what_was_written_is_read(self, folder: Path, tmp_path: Path, zipped: bool) -> None:
        path = folder
        if zipped:
            path = tmp_path / "bundle.zip"
            zip_bundle(folder, path)

        with Bundle.open(path) as bundle:
            assert bundle.manifest.plans == (PLAN,)
            assert bundle.manifest.detector == DETECTOR
            assert bundle.digest == hashlib.sha256((folder / "manifest.json").read_bytes()).digest()
            for name, data in files().items():
                assert bundle.file(name).read_bytes() == data

    def test_plans_are_found_by_digest(self, folder: Path) -> None:
        bundle = Bundle.open(folder)
        (digest,) = bundle.plans
        assert digest == bundle.manifest.digests[0]
        assert bundle.plan(digest) == PLAN

    def test_an_unknown_digest_is_named_with_those_that_are_known(self, folder: Path) -> None:
        bundle = Bundle.open(folder)
        (digest,) = bundle.plans
        with pytest.raises(UnknownPlanError, match="abababababab") as unknown:
            bundle.plan(b"\xab" * 32)
        assert digest.hex()[:12] in str(unknown.value)

    def test_the_folder_of_a_zip_goes_with_the_bundle(self, folder: Path, tmp_path: Path) -> None:
        zip_bundle(folder, tmp_path / "bundle.zip")
        work = tmp_path / "work"
        work.mkdir()
        with Bundle.open(tmp_path / "bundle.zip", workdir=work) as bundle:
            assert bundle.root.is_relative_to(work)
        assert not list(work.iterdir())

    def test_closing_a_folder_leaves_it(self, folder: Path) -> None:
        Bundle.open(folder).close()
        Bundle.open(folder).close()

    def test_a_zip_that_is_refused_leaves_nothing_behind(self, tmp_path: Path) -> None:
        work = tmp_path / "work"
        work.mkdir()
        (tmp_path / "bundle.zip").write_bytes(b"PK\x03\x04 is not enough")
        with pytest.raises(BundleError):
            Bundle.open(tmp_path / "bundle.zip", workdir=work)
        assert not list(work.iterdir())

    def test_a_path_with_no_bundle_says_what_to_do(self, tmp_path: Path) -> None:
        with pytest.raises(BundleError, match="splitpoint search"):
            Bundle.open(tmp_path / "nowhere")


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
    ("link", replaced_by_link, "report.md"),
    ("linked folder", folder_replaced_by_link, "models"),
    ("linked manifest", manifest_replaced_by_link, "manifest.json"),
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
    ("newer", manifest_with(lambda d: d.update(schema_version=3, plans="other")), "schema 3"),
    ("no version", manifest_with(lambda d: d.pop("schema_version")), "schema"),
    ("version of another type", manifest_with(lambda d: d.update(schema_version=True)), "schema"),
    # the field is named
    (
        "bad field",
        manifest_with(lambda d: d["plans"][0]["wire"][0].update(bits=9)),
        "plans.0.wire.0.bits",
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


@pytest.mark.parametrize("version", [0, 1, 3, "2", None, 2.5])
def test_another_schema_says_what_to_do(folder: Path, version: object) -> None:
    edit_manifest(folder, lambda d: d.update(schema_version=version))
    with pytest.raises(BundleVersionError, match="search again"):
        Bundle.open(folder)


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


class TestWrite:
    def test_an_older_bundle_is_replaced_whole(self, folder: Path) -> None:
        write(folder, files() | {"report.md": b"newer"})
        assert Bundle.open(folder).file("report.md").read_bytes() == b"newer"
        assert [path.name for path in folder.parent.iterdir()] == ["bundle"]

    def test_an_empty_folder_is_taken(self, tmp_path: Path) -> None:
        write(tmp_path / "parent" / "bundle")
        Bundle.open(tmp_path / "parent" / "bundle")

    def test_a_folder_that_is_no_bundle_is_kept(self, tmp_path: Path) -> None:
        (tmp_path / "photos").mkdir()
        (tmp_path / "photos" / "cat.jpg").write_bytes(b"cat")
        with pytest.raises(BundleError, match="photos"):
            write(tmp_path / "photos")
        assert (tmp_path / "photos" / "cat.jpg").read_bytes() == b"cat"

    def test_until_it_is_finished_nothing_is_seen(self, folder: Path) -> None:
        before = (folder / "manifest.json").read_bytes()
        writer = BundleWriter(folder)
        writer.add("report.md", b"half")
        assert (folder / "manifest.json").read_bytes() == before
        assert (folder / "report.md").read_bytes() == b"why"

    @pytest.mark.parametrize(
        "name", ["../evil", "{tmp_path}/evil", "a\\b", "", ".", "a/../b", "manifest.json"]
    )
    def test_a_name_that_leads_out_is_refused(self, tmp_path: Path, name: str) -> None:
        writer = BundleWriter(tmp_path / "bundle")
        with pytest.raises(BundleError, match="relative path"):
            writer.add(name.format(tmp_path=tmp_path), b"x")
        assert not list(tmp_path.rglob("*evil*"))


class TestVector:
    def test_it_is_read(self, folder: Path) -> None:
        assert PLAN.head is not None
        image, outputs = read_vector(Bundle.open(folder), PLAN.head)
        np.testing.assert_array_equal(image, INPUT, strict=True)
        np.testing.assert_array_equal(outputs, [OUTPUT], strict=True)

    @pytest.mark.parametrize(
        "data",
        [
            pytest.param(b"", id="empty"),
            pytest.param(b"nonsense", id="not an array"),
            # a pickle runs code when it is read
            pytest.param(npy(np.array([print], object), allow_pickle=True), id="pickle"),
            pytest.param(b"\x80\x04N.", id="bare pickle"),
            pytest.param(npy(OUTPUT.astype(np.float32)), id="another type"),
            pytest.param(npy(OUTPUT[0]), id="another shape"),
            pytest.param(npy(OUTPUT)[:-1], id="cut off"),
            # a header that promises a petabyte
            pytest.param(
                npy(OUTPUT).replace(b"(1, 2, 4, 4)", b"(1, 10**15,)"), id="formula for a shape"
            ),
            pytest.param(
                npy(OUTPUT).replace(b"(1, 2, 4, 4), }   ", b"(1, 99999999, 9),}"), id="huge"
            ),
        ],
    )
    def test_another_array_is_refused(self, tmp_path: Path, data: bytes) -> None:
        write(tmp_path / "bundle", files() | {"vectors/cut/output-0.npy": data})
        assert PLAN.head is not None
        with pytest.raises(BundleError, match="output-0") as refused:
            read_vector(Bundle.open(tmp_path / "bundle"), PLAN.head)
        assert "\n" not in str(refused.value)


CONTEXT = "contexts/cut.bin"
CONTEXT_PLAN = PLAN.model_copy(
    update={
        "codec": CodecSpec(name="context"),
        "wire": (PLAN.wire[0].model_copy(update={"context": CONTEXT}),),
    }
)


class TestContexts:
    def test_a_plan_s_codecs_know_their_tensors(self, tmp_path: Path) -> None:
        model = random_model(2, 2)
        write(tmp_path / "b", files() | {CONTEXT: model.to_bytes()}, CONTEXT_PLAN)
        with Bundle.open(tmp_path / "b") as bundle:
            (codec,) = open_codecs(bundle, bundle.manifest.plans[0])
        symbols = sparse_symbols(CUT, 2)
        data = codec.encode(symbols, 1)
        np.testing.assert_array_equal(codec.decode(data, CUT, 1), symbols)

    @pytest.mark.parametrize(
        "data",
        [b"", b"SPCX", random_model(3, 2).to_bytes(), random_model(2, 4).to_bytes()],
        ids=["empty", "cut off", "other channels", "other levels"],
    )
    def test_a_model_of_another_tensor_is_refused(self, tmp_path: Path, data: bytes) -> None:
        write(tmp_path / "b", files() | {CONTEXT: data}, CONTEXT_PLAN)
        with (
            Bundle.open(tmp_path / "b") as bundle,
            pytest.raises(BundleError, match=f"{CONTEXT}.*search again"),
        ):
            open_codecs(bundle, bundle.manifest.plans[0])

    def test_another_model_is_another_plan(self, tmp_path: Path) -> None:
        digests = set()
        for seed in range(2):
            model = random_model(2, 2, seed)
            manifest = write(tmp_path / "b", files() | {CONTEXT: model.to_bytes()}, CONTEXT_PLAN)
            digests |= set(manifest.digests)
        assert len(digests) == 2

    @pytest.mark.parametrize(
        "change",
        [{"codec": CodecSpec(name="packed")}, {"wire": PLAN.wire}],
        ids=["no coder", "no model"],
    )
    def test_coder_and_model_come_together(self, change: dict[str, Any]) -> None:
        plan = CONTEXT_PLAN.model_copy(update=change)
        with pytest.raises(ValidationError, match="model for every tensor"):
            Plan.model_validate(plan.model_dump())
