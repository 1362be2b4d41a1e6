"""The cache: results of the stages of a search, found by the digest of their inputs.

    folder/statistics-3f2a….npz      arrays of one stage, found by the digest of all its inputs and
                                     of the software that made it (software.py)

A search that is killed takes up where it was, and one with another link or limit reuses whatever
does not depend on them. An artefact is written under another name first and moved into place, so it
is whole or not there; one that cannot be read is made again. Nothing is pickled. Artefacts least
recently used are removed when the folder grows over its limit.
"""

import contextlib
import dataclasses
import hashlib
import io
import json
import os
import re
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel

from common.errors import SettingsError
from common.sizes import parse_size
from search.software import function_digest, software_digest

LIMIT_VARIABLE = "SPLITPOINT_CACHE_LIMIT"
DEFAULT_LIMIT_BYTES = 2 << 30

_OURS = re.compile(r"[a-z_]+-[0-9a-f]{32}\.(?:npz|json)")
_PART_PREFIX, _PART_SUFFIX = ".splitpoint-", ".part"
_PART = re.compile(rf"{re.escape(_PART_PREFIX)}\w+{re.escape(_PART_SUFFIX)}")
_STALE_S = 24 * 3600

Arrays = dict[str, NDArray[Any]]


class Cache:
    """Artefacts in a folder, which several processes may use at once.

    Args:
        folder: Where they are kept; None keeps nothing.
        version: Of the software, on which all of them depend beside its code.
        limit_bytes: How large the folder's artefacts may be together; by default as
            $SPLITPOINT_CACHE_LIMIT says, such as "500MB", or 2 GiB.

    Raises:
        SettingsError: If the folder cannot be made or the limit is no size.
    """

    def __init__(
        self, folder: Path | None = None, version: str = "", *, limit_bytes: int | None = None
    ) -> None:
        self._folder = folder
        self._version = version
        if folder is not None:
            # Now, because code that is edited later is not what this process runs.
            self._software = software_digest()
            self._limit_bytes = _limit() if limit_bytes is None else limit_bytes
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise SettingsError(
                    f"{folder}: cannot hold what a search works out: {error.strerror}"
                ) from error

    def arrays(
        self, stage: str, inputs: Sequence[Any], compute: Callable[[], Mapping[str, NDArray[Any]]]
    ) -> Arrays:
        """Arrays by name, from the cache or computed.

        Args:
            stage: What they are.
            inputs: Everything that they depend on, as `digest` takes it, but the code.
            compute: Makes them.
        """
        path = self._path(stage, inputs, compute, ".npz")
        if path is not None:
            with contextlib.suppress(OSError, ValueError, zipfile.BadZipFile, EOFError, KeyError):
                kept = np.load(io.BytesIO(_read(path)), allow_pickle=False)
                return {name: kept[name] for name in kept.files}
        made = dict(compute())
        if path is not None:
            buffer = io.BytesIO()
            np.savez(buffer, allow_pickle=False, **made)
            self._keep(path, buffer.getvalue())
        return made

    def json(self, stage: str, inputs: Sequence[Any], compute: Callable[[], Any]) -> Any:
        """A JSON value, from the cache or computed; arguments as for `arrays`."""
        path = self._path(stage, inputs, compute, ".json")
        if path is not None:
            with contextlib.suppress(OSError, ValueError):
                return json.loads(_read(path))
        made = compute()
        if path is not None:
            self._keep(path, json.dumps(made, indent=1).encode())
        return made

    def _path(
        self, stage: str, inputs: Sequence[Any], compute: Callable[[], Any], suffix: str
    ) -> Path | None:
        if self._folder is None:
            return None
        key = digest(self._version, self._software, function_digest(compute), *inputs)
        return self._folder / f"{stage}-{key[:32]}{suffix}"

    def _keep(self, path: Path, data: bytes) -> None:
        """Write an artefact if it is within the limit; errors of the disk are ignored."""
        if len(data) > self._limit_bytes:
            return
        with contextlib.suppress(OSError):
            descriptor, name = tempfile.mkstemp(
                dir=path.parent, prefix=_PART_PREFIX, suffix=_PART_SUFFIX
            )
            try:
                with os.fdopen(descriptor, "wb") as file:
                    file.write(data)
                Path(name).replace(path)
            except OSError:
                Path(name).unlink(missing_ok=True)
                raise
            _evict(path.parent, self._limit_bytes, path)


def _read(path: Path) -> bytes:
    """Read an artefact and mark it as used now."""
    data = path.read_bytes()
    with contextlib.suppress(OSError):  # in a folder that may only be read, nothing is evicted
        os.utime(path)
    return data


def _evict(folder: Path, limit_bytes: int, newest: Path) -> None:
    """Remove the artefacts least recently used until the rest is within the limit.

    Whatever is not named as an artefact stays, and is not counted. Another process may remove the
    same files meanwhile, or have one open, which it then reads to its end.
    """
    found = sorted(_artefacts(folder))
    total = sum(size for _, size, _ in found)
    for _, size, path in found:
        if total <= limit_bytes:
            break
        if path != newest:
            path.unlink(missing_ok=True)
            total -= size


def _artefacts(folder: Path) -> Iterator[tuple[int, int, Path]]:
    """(time of last use, bytes, path) of each; what a killed process half wrote is removed."""
    for entry in os.scandir(folder):
        with contextlib.suppress(FileNotFoundError):
            if not entry.is_file(follow_symlinks=False):
                continue
            stat, path = entry.stat(follow_symlinks=False), Path(entry.path)
            if _OURS.fullmatch(entry.name):
                yield stat.st_mtime_ns, stat.st_size, path
            elif _PART.fullmatch(entry.name) and time.time() - stat.st_mtime > _STALE_S:
                path.unlink(missing_ok=True)


def _limit() -> int:
    configured = os.environ.get(LIMIT_VARIABLE)
    if not configured:
        return DEFAULT_LIMIT_BYTES
    try:
        return parse_size(configured)
    except SettingsError as error:
        raise SettingsError(f"{LIMIT_VARIABLE}: {error}") from error


def digest(*parts: Any) -> str:
    """SHA-256 of values: plain ones, arrays, dataclasses, pydantic models, and containers of them.

    Raises:
        TypeError: For anything else; a digest that depended on an address would never be found.
    """
    state = hashlib.sha256()
    for part in parts:
        _feed(state.update, part)
    return state.hexdigest()


def _feed(update: Callable[[bytes], None], value: Any) -> None:
    """Feed a value, its kind and length in front, so that no two sequences look alike."""
    if isinstance(value, np.ndarray):
        update(f"array {value.dtype.str} {value.shape} ".encode())
        update(np.ascontiguousarray(value).tobytes())
    elif isinstance(value, bytes):
        update(f"bytes {len(value)} ".encode())
        update(value)
    elif value is None or isinstance(value, str | bool | int | float | np.generic):
        text = repr(value.item() if isinstance(value, np.generic) else value)
        update(f"{type(value).__name__} {len(text)} {text}".encode())
    elif isinstance(value, Path):
        _feed(update, str(value))
    elif isinstance(value, BaseModel):
        _feed(update, value.model_dump_json())
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        _feed(update, {f.name: getattr(value, f.name) for f in dataclasses.fields(value)})
    elif isinstance(value, Mapping):
        update(f"mapping {len(value)} ".encode())
        for key, each in value.items():
            _feed(update, key)
            _feed(update, each)
    elif isinstance(value, Sequence):
        update(f"sequence {len(value)} ".encode())
        for each in value:
            _feed(update, each)
    else:
        raise TypeError(f"{type(value).__name__} has no digest")
