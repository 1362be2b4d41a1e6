"""State dicts: weights of a torch module, read from a file that nothing is believed of.

Nothing of the file is run. Its size is bounded, its names and shapes are compared with those of the
module, and where its own name carries the first digits of its SHA-256, as published files do
(`resnet18-f37072fd.pth`), these are checked.
"""

import hashlib
import re
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from common.errors import WeightsError

MAX_BYTES = 2 << 30
"""Largest file, and the most that it may hold unpacked."""

_DIGEST = re.compile(r"-([0-9a-f]{8,64})\.[A-Za-z]+")
_COUNTER = ".num_batches_tracked"
_WRAPPERS = ("state_dict", "model")
_NAMED = 3

Tensors = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class LoadedWeights:
    """Weights that were loaded.

    Attributes:
        sha256: Digest of the file.
        unused: Names in the file that the module does without.
    """

    sha256: str
    unused: tuple[str, ...] = ()


def load_state_dict(module: nn.Module, path: Path, *, unused: Sequence[str] = ()) -> LoadedWeights:
    """Load a file of weights into a module.

    Args:
        module: The module.
        path: The file, written by `torch.save`.
        unused: Beginnings of names that the file may hold and the module does not have.

    Raises:
        WeightsError: If the file cannot be read, is damaged, or belongs to another module.
    """
    digest = _checked_digest(path)
    held = {n: t for n, t in _read(path).items() if not n.endswith(_COUNTER)}
    found = {n: t for n, t in held.items() if not n.startswith(tuple(unused))}
    wanted = {n: t for n, t in module.state_dict().items() if not n.endswith(_COUNTER)}
    wrong = _difference(wanted, found)
    if wrong:
        raise WeightsError(f"{path}: these weights are of another network: {wrong}")
    if not all(tensor.isfinite().all() for tensor in found.values()):
        raise WeightsError(f"{path}: it holds values that are not finite: it is damaged")
    module.load_state_dict(found, strict=False)
    return LoadedWeights(digest, tuple(held.keys() - found.keys()))


def _checked_digest(path: Path) -> str:
    """SHA-256 of the file, which the file's name may begin."""
    try:
        if path.stat().st_size > MAX_BYTES:
            raise WeightsError(f"{path}: over {MAX_BYTES >> 30} GiB, more than weights may have")
        with path.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise WeightsError(f"{path}: cannot be read: {error.strerror}") from error
    named = _DIGEST.search(path.name)
    if named is not None and not digest.startswith(named[1]):
        raise WeightsError(
            f"{path}: its sha256 begins {digest[: len(named[1])]}, and its name says {named[1]}: "
            "it is damaged or another file; fetch it again"
        )
    return digest


def _read(path: Path) -> Tensors:
    try:
        small = _unpacked_bytes(path) <= MAX_BYTES
        loaded = torch.load(path, map_location="cpu", weights_only=True) if small else None
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise WeightsError(
            f"{path}: not a state dict that can be loaded without running its code; save one by "
            f"torch.save(module.state_dict(), FILE): {reason}"
        ) from error
    if not small:
        raise WeightsError(f"{path}: over {MAX_BYTES >> 30} GiB when unpacked")
    for name in _WRAPPERS:
        if isinstance(loaded, Mapping) and isinstance(loaded.get(name), Mapping):
            loaded = loaded[name]
    if not isinstance(loaded, Mapping) or not all(
        isinstance(name, str) and isinstance(tensor, torch.Tensor)
        for name, tensor in loaded.items()
    ):
        raise WeightsError(
            f"{path}: not a state dict: save one by torch.save(module.state_dict(), FILE)"
        )
    return loaded


def _unpacked_bytes(path: Path) -> int:
    """Size of what an archive holds; 0 for a file of torch's older format, which is none."""
    if not zipfile.is_zipfile(path):
        return 0
    with zipfile.ZipFile(path) as archive:
        return sum(info.file_size for info in archive.infolist())


def _difference(wanted: Tensors, found: Tensors) -> str:
    """Say what is missing, unexpected or of another shape; empty if nothing is."""
    other = [
        f"{name} is {_size(found[name])}, not {_size(wanted[name])}"
        for name in wanted.keys() & found.keys()
        if found[name].shape != wanted[name].shape
    ]
    parts = {
        "missing": [name for name in wanted if name not in found],
        "unexpected": [name for name in found if name not in wanted],
        "of another shape": sorted(other),
    }
    return "; ".join(f"{len(each)} {what} ({_few(each)})" for what, each in parts.items() if each)


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:_NAMED]) + ", ..." * (len(names) > _NAMED)


def _size(tensor: torch.Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "a number"
