"""The bundle: what is deployed, as a folder or one zip file, believed only after it is checked.

    manifest.json   plans, the size and SHA-256 of every other file, and its own SHA-256
    models/...      heads and tails, ONNX
    contexts/...    models of the context coder
    vectors/...     parity vectors, .npy
    report.md       why these plans; report.json has all candidates

Opening checks everything: nothing may be missing, changed, added, linked or placed outside.
"""

import hashlib
import json
import logging
import os
import shutil
import stat
import tempfile
import zipfile
import zlib
from collections.abc import Mapping
from functools import cache
from pathlib import Path, PurePosixPath
from types import MappingProxyType, TracebackType
from typing import IO, BinaryIO, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from common.bundle.manifest import (
    SCHEMA_VERSION,
    FileEntry,
    Head,
    Manifest,
    Plan,
    Search,
    is_sealed,
    seal_manifest,
)
from common.codec import Codec, ContextModel, make_codec
from common.codec.context import FAST
from common.codec.spec import WireTensor
from common.errors import BundleError, BundleVersionError, UnknownPlanError
from common.records import first_problem
from common.tasks.registry import AnyTask

MANIFEST = "manifest.json"

_LOG = logging.getLogger("splitpoint")
_MAX_MANIFEST_BYTES = 16 << 20
_CHUNK = 1 << 20
_AGAIN = "search again or copy it anew"
_NO_LINKS = "links are not allowed in a bundle: copy what they point to, as `cp -rL` does"


class Bundle:
    """An opened bundle.

    Attributes:
        manifest: What it holds.
        digest: SHA-256 of manifest.json.
        root: The folder with its files; of a zip, a temporary one.
        plans: The plans by their digest, the best first.
    """

    def __init__(
        self, root: Path, manifest: Manifest, digest: bytes, temporary: Path | None
    ) -> None:
        self.root = root
        self.manifest = manifest
        self.digest = digest
        self.plans: Mapping[bytes, Plan] = MappingProxyType(
            dict(zip(manifest.digests, manifest.plans, strict=True))
        )
        self._temporary = temporary

    @classmethod
    def open(cls, path: Path, *, workdir: Path | None = None) -> "Bundle":
        """Open and check a bundle.

        Args:
            path: A folder, or a zip file, which is unpacked into a temporary folder.
            workdir: Where that temporary folder is made.

        Raises:
            BundleVersionError: If it was written for another schema.
            BundleError: If anything about it is not as its manifest says.
        """
        if path.is_dir():
            return cls._checked(path, None)
        if not path.is_file():
            raise BundleError(f"{path}: no such bundle; `splitpoint search` makes one")
        temporary = Path(tempfile.mkdtemp(prefix="splitpoint-", dir=workdir))
        try:
            _unpack(path, temporary)
            return cls._checked(temporary, temporary)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise

    @classmethod
    def _checked(cls, root: Path, temporary: Path | None) -> "Bundle":
        try:
            data = _read_manifest(root)
            manifest = parse_manifest(data)
            _check_files(root, manifest)
        except OSError as error:
            raise BundleError(f"{error.filename}: cannot be read: {error.strerror}") from error
        return cls(root, manifest, hashlib.sha256(data).digest(), temporary)

    def plan(self, digest: bytes) -> Plan:
        """The plan of a digest.

        Raises:
            UnknownPlanError: If the bundle has none.
        """
        try:
            return self.plans[digest]
        except KeyError:
            known = ", ".join(each.hex()[:12] for each in self.plans)
            raise UnknownPlanError(
                f"no plan {digest.hex()[:12]} here; known are {known}: deploy the same bundle to "
                "edge and cloud"
            ) from None

    def file(self, name: str) -> Path:
        """Path of a file of the manifest."""
        return self.root / name

    def close(self) -> None:
        """Remove the temporary folder of a zip."""
        if self._temporary is not None:
            shutil.rmtree(self._temporary, ignore_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class BundleWriter:
    """Writes a bundle beside its final place and moves it there when it is whole.

    Raises:
        BundleError: If `folder` exists and is not a bundle.
    """

    def __init__(self, folder: Path) -> None:
        if folder.exists() and not may_replace(folder):
            raise BundleError(f"{folder} exists and is no bundle: choose another place")
        self._folder = folder
        self._files: dict[str, FileEntry] = {}
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            self._part = Path(tempfile.mkdtemp(prefix=f"{folder.name}.", dir=folder.parent))
        except OSError as error:
            raise BundleError(f"{folder}: cannot be written: {error.strerror}") from error

    def __contains__(self, name: str) -> bool:
        return name in self._files

    def add(self, name: str, data: bytes) -> None:
        """Add one file.

        Raises:
            BundleError: If `name` is not a plain relative path inside the bundle.
        """
        if name in {"", ".", MANIFEST} or not _is_plain(name):
            raise BundleError(f"{name!r}: expected a relative path inside the bundle")
        path = self._part / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        self._files[name] = FileEntry(size_bytes=len(data), sha256=hashlib.sha256(data).hexdigest())

    def finish(self, *, task: AnyTask, search: Search, plans: tuple[Plan, ...]) -> Manifest:
        """Write the manifest and put the bundle in its place, replacing an older one."""
        manifest = Manifest(
            schema_version=SCHEMA_VERSION,
            task=task,
            search=search,
            plans=plans,
            files=dict(sorted(self._files.items())),
        )
        data = seal_manifest(f"{manifest.model_dump_json(indent=1)}\n".encode())
        (self._part / MANIFEST).write_bytes(data)
        self._part.chmod(0o755)
        older = self._part.with_name(f"{self._part.name}.older")
        if self._folder.exists():
            self._folder.replace(older)  # moved, not removed: at no time is there half a bundle
        self._part.replace(self._folder)
        shutil.rmtree(older, ignore_errors=True)
        return parse_manifest(data)

    def discard(self) -> None:
        """Remove what was written so far."""
        shutil.rmtree(self._part, ignore_errors=True)


def _is_plain(name: str) -> bool:
    path = PurePosixPath(name)
    escapes = path.is_absolute() or ".." in path.parts or "\\" in name or ":" in name
    return str(path) == name and not escapes


def may_replace(folder: Path) -> bool:
    """Whether a bundle may take this folder's place: it holds an older one, or nothing."""
    if not folder.is_dir():
        return False
    return (folder / MANIFEST).is_file() or not any(folder.iterdir())


def zip_bundle(folder: Path, path: Path) -> None:
    """Write a bundle folder as one zip file; the same folder always gives the same bytes."""
    part = path.with_name(f"{path.name}.part")
    names = sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())
    with zipfile.ZipFile(part, "w", zipfile.ZIP_DEFLATED, compresslevel=6) as archive:
        for name in names:
            info = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
            info.compress_type = zipfile.ZIP_DEFLATED
            info.external_attr = 0o644 << 16
            with archive.open(info, "w") as target, (folder / name).open("rb") as source:
                shutil.copyfileobj(source, target, _CHUNK)
    part.replace(path)


def open_bundle(path: Path | str) -> Bundle:
    """Open and check a bundle: a folder, or a zip file.

    Raises:
        BundleError: If anything about it is not as its manifest says.
    """
    return Bundle.open(Path(path))


def open_codecs(bundle: Bundle, plan: Plan) -> list[Codec]:
    """The codec of each of a plan's wire tensors.

    Raises:
        BundleError: If a context model is not one, or is not of the tensor's size.
    """
    if plan.codec is None:
        return []
    if plan.codec.kind.has_model and not FAST:
        _warn_that_coding_is_slow()
    return [
        make_codec(
            plan.codec,
            _context(bundle, tensor, tensor.context, looks_back=False),
            _context(bundle, tensor, tensor.context_after, looks_back=True),
        )
        for tensor in plan.wire
    ]


@cache
def _warn_that_coding_is_slow() -> None:
    _LOG.warning(
        "context coding runs in Python, fifty times slower than it could: install a C compiler and "
        "Python's headers, then install Splitpoint again"
    )


def _context(
    bundle: Bundle, tensor: WireTensor, name: str | None, *, looks_back: bool
) -> ContextModel | None:
    if name is None:
        return None
    model = ContextModel.from_bytes(bundle.file(name).read_bytes(), name)
    found = model.channels, model.levels, model.looks_back
    if found != (tensor.shape[0], 1 << tensor.bits, looks_back):
        raise BundleError(f"{name}: not a model of {tensor.name}; {_AGAIN}")
    return model


def read_vector(bundle: Bundle, head: Head) -> tuple[NDArray[np.uint8], list[NDArray[np.uint8]]]:
    """The parity vector of a head: its input (1, 3, H, W) and its outputs, all uint8.

    Raises:
        BundleError: If an array is not of the type and shape that the plan says.
    """
    size = (1, 3, *bundle.manifest.task.image.size)
    image = _read_codes(bundle.file(f"{head.vector}/input.npy"), size)
    outputs = [
        _read_codes(bundle.file(f"{head.vector}/output-{k}.npy"), (1, *output.shape))
        for k, output in enumerate(head.outputs)
    ]
    return image, outputs


def _read_codes(path: Path, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise BundleError(f"{path.name}: not an array: {error}; {_AGAIN}") from error
    if not isinstance(array, np.ndarray) or array.dtype != np.uint8 or array.shape != shape:
        raise BundleError(f"{path.name}: expected uint8{shape}; {_AGAIN}")
    return np.array(array)


def _read_manifest(root: Path) -> bytes:
    path = root / MANIFEST
    if path.is_symlink():
        raise BundleError(f"{path}: {_NO_LINKS}")
    if not path.is_file():
        raise BundleError(f"{root}: no {MANIFEST}: this is not a bundle")
    if path.stat().st_size > _MAX_MANIFEST_BYTES:
        raise BundleError(f"{path}: larger than {_MAX_MANIFEST_BYTES >> 20} MiB; {_AGAIN}")
    return path.read_bytes()


def parse_manifest(data: bytes) -> Manifest:
    """Read the bytes of a manifest.

    Raises:
        BundleVersionError: If it was written for another schema.
        BundleError: If it is not a manifest.
    """
    try:
        document = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{MANIFEST}: not JSON: {error}; {_AGAIN}") from error
    version = document.get("schema_version") if isinstance(document, dict) else None
    if type(version) is not int or version != SCHEMA_VERSION:  # True equals 1
        raise BundleVersionError(
            f"the bundle has schema {version!r}, this Splitpoint reads {SCHEMA_VERSION}: search "
            "again with this version, or install the one that wrote it"
        )
    if not is_sealed(data, document.get("sha256")):
        raise BundleError(f"{MANIFEST}: its content was changed (sha256 differs); {_AGAIN}")
    try:
        return Manifest.model_validate_json(data)
    except ValidationError as error:
        raise BundleError(f"{MANIFEST}: {first_problem(error)}; {_AGAIN}") from error


def _check_files(root: Path, manifest: Manifest) -> None:
    present = set()
    for folder, folders, files in os.walk(root):
        for name in (*folders, *files):
            path = Path(folder) / name
            if path.is_symlink():
                raise BundleError(f"{path}: {_NO_LINKS}")
            if not (path.is_dir() or stat.S_ISREG(path.stat().st_mode)):
                raise BundleError(f"{path}: neither a file nor a folder: remove it")
        present |= {(Path(folder) / name).relative_to(root).as_posix() for name in files}
    missing = sorted(manifest.files.keys() - present)
    extra = sorted(present - manifest.files.keys() - {MANIFEST})
    if missing:
        raise BundleError(f"{missing[0]}: listed in {MANIFEST} but missing; {_AGAIN}")
    if extra:
        raise BundleError(f"{extra[0]}: not listed in {MANIFEST}: remove it")
    for name, entry in manifest.files.items():
        path = root / name
        if path.stat().st_size != entry.size_bytes:
            raise BundleError(
                f"{name}: {path.stat().st_size} bytes, {entry.size_bytes} expected; {_AGAIN}"
            )
        with path.open("rb") as stream:
            if hashlib.file_digest(stream, "sha256").hexdigest() != entry.sha256:
                raise BundleError(f"{name}: its content was changed (sha256 differs); {_AGAIN}")


def _unpack(path: Path, folder: Path) -> None:
    """Unpack a zip, manifest first: only what that lists comes out, and no more bytes of it."""
    try:
        with zipfile.ZipFile(path) as archive:
            infos: dict[str, zipfile.ZipInfo] = {}
            for info in archive.infolist():
                if info.filename in infos:
                    raise BundleError(f"{info.filename!r}: in the zip file twice; {_AGAIN}")
                infos[info.filename] = info
            if MANIFEST not in infos:
                raise BundleError(f"{path}: no {MANIFEST}: this is not a bundle")
            _extract(archive, infos.pop(MANIFEST), folder / MANIFEST, _MAX_MANIFEST_BYTES)
            files = parse_manifest(_read_manifest(folder)).files
            for name, info in infos.items():
                if name not in files:
                    raise BundleError(f"{name!r}: not listed in {MANIFEST}; {_AGAIN}")
                target = folder / name
                target.parent.mkdir(parents=True, exist_ok=True)
                _extract(archive, info, target, files[name].size_bytes)
    except (zipfile.BadZipFile, NotImplementedError, EOFError, zlib.error, OSError) as error:
        raise BundleError(f"{path}: not a zip file that can be read: {error}") from error


def _extract(archive: zipfile.ZipFile, info: zipfile.ZipInfo, target: Path, limit: int) -> None:
    if info.flag_bits & 1:
        raise BundleError(f"{info.filename!r}: encrypted: zip the bundle without a password")
    if info.is_dir() or stat.S_ISLNK(info.external_attr >> 16):
        raise BundleError(f"{info.filename!r}: only plain files are allowed")
    if info.compress_type not in {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}:
        raise BundleError(f"{info.filename!r}: neither stored nor deflated: zip the bundle anew")
    with archive.open(info) as source, target.open("xb") as sink:
        _copy_at_most(source, sink, limit, info.filename)


def _copy_at_most(source: IO[bytes], sink: BinaryIO, limit: int, name: str) -> None:
    done = 0
    while chunk := source.read(min(_CHUNK, limit - done + 1)):
        done += len(chunk)
        if done > limit:
            raise BundleError(f"{name}: larger than the {limit} bytes expected; {_AGAIN}")
        sink.write(chunk)
