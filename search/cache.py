"""The cache: what a search worked out once, kept by what it was worked out from.

    folder/statistics-3f2a….npz      arrays of one stage, found by the digest of all its inputs

A search that is killed takes up where it was, and one with another link or limit reuses whatever
does not depend on them. An artefact is written under another name first and moved into place, so it
is whole or not there; one that cannot be read is made again. Nothing is pickled.
"""

import contextlib
import dataclasses
import hashlib
import io
import json
import os
import tempfile
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel

from common.errors import SettingsError

Arrays = dict[str, NDArray[Any]]


class Cache:
    """Artefacts in a folder.

    Args:
        folder: Where they are kept; None keeps nothing.
        version: Of the software, on which all of them depend.
    """

    def __init__(self, folder: Path | None = None, version: str = "") -> None:
        self._folder = folder
        self._version = version
        if folder is not None:
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise SettingsError(
                    f"{folder}: cannot hold what a search works out: {error.strerror}"
                ) from error

    def arrays(
        self, stage: str, inputs: Sequence[Any], compute: Callable[[], Mapping[str, NDArray[Any]]]
    ) -> Arrays:
        """Arrays by name.

        Args:
            stage: What they are.
            inputs: Everything that they depend on, as `digest` takes it.
            compute: Makes them.
        """
        path = self._path(stage, inputs, ".npz")
        if path is not None:
            with contextlib.suppress(OSError, ValueError, zipfile.BadZipFile, EOFError, KeyError):
                kept = np.load(io.BytesIO(path.read_bytes()), allow_pickle=False)
                return {name: kept[name] for name in kept.files}
        made = dict(compute())
        if path is not None:
            buffer = io.BytesIO()
            np.savez(buffer, allow_pickle=False, **made)
            self._keep(path, buffer.getvalue())
        return made

    def json(self, stage: str, inputs: Sequence[Any], compute: Callable[[], Any]) -> Any:
        """Anything that JSON can hold; arguments as for `arrays`."""
        path = self._path(stage, inputs, ".json")
        if path is not None:
            with contextlib.suppress(OSError, ValueError):
                return json.loads(path.read_bytes())
        made = compute()
        if path is not None:
            self._keep(path, json.dumps(made, indent=1).encode())
        return made

    def _path(self, stage: str, inputs: Sequence[Any], suffix: str) -> Path | None:
        if self._folder is None:
            return None
        return self._folder / f"{stage}-{digest(self._version, *inputs)[:32]}{suffix}"

    def _keep(self, path: Path, data: bytes) -> None:
        """A full disk costs the next search its time, not this one its result."""
        with contextlib.suppress(OSError):
            descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=".part")
            try:
                with os.fdopen(descriptor, "wb") as file:
                    file.write(data)
                Path(name).replace(path)
            except OSError:
                Path(name).unlink(missing_ok=True)
                raise


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
    """Every value with its kind and its length in front, so that no two sequences look alike."""
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
