"""Digests of the software that makes a result: other software makes another result.

    search/ and common/, all of their sources -+
    versions of libraries and of Python --------+-> software_digest()
    the function that computes a stage -------------> function_digest()

The modules that a stage depends on are not determined: what it calls may reach it as an argument,
and a module too few would serve a stale result. So any edit of the two packages makes every result
again, which costs developers time and users of one version nothing.
"""

import functools
import hashlib
import inspect
import platform
import sys
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from types import CodeType
from typing import Any

_ROOT = Path(__file__).resolve().parents[1]
_PACKAGES = ("common", "search")
_SOURCES = {".py", ".c", ".so", ".cfg"}
_LIBRARIES = (
    "networkx",
    "numpy",
    "onnx",
    "onnxruntime",
    "pillow",
    "pycocotools",
    "scipy",
    "torch",
    "zstandard",
)


@functools.cache
def software_digest() -> str:
    """SHA-256 of our code, the versions of the libraries that compute, and Python's."""
    return digest_of(code_digest(_ROOT), *library_versions())


def code_digest(root: Path) -> str:
    """SHA-256 of the sources of `search` and `common` below a folder, by relative path."""
    files = (p for name in _PACKAGES for p in (root / name).rglob("*") if p.suffix in _SOURCES)
    parts: list[bytes] = []
    for name, path in sorted((path.relative_to(root).as_posix(), path) for path in files):
        parts += name.encode(), path.read_bytes()
    return digest_of(*parts)


def library_versions() -> Iterator[str]:
    """Versions of libraries and of Python that a result may depend on, as "NAME VERSION"."""
    for name in _LIBRARIES:
        try:
            yield f"{name} {metadata.version(name)}"
        except metadata.PackageNotFoundError:
            yield f"{name} none"
    yield f"python {sys.version_info.major}.{sys.version_info.minor} {platform.machine()}"


def function_digest(function: Callable[..., Any]) -> str:
    """SHA-256 of a function's own code, equal in every process that loads the same source.

    Where the function lies in its file is no part of it, nor is what its closure holds. Of a
    function outside `search` and `common` the whole file is.
    """
    while isinstance(function, functools.partial):
        function = function.func
    function = inspect.unwrap(function)
    code = getattr(function, "__code__", None)  # of a bound method, too
    if code is None:
        function = type(function).__call__
        code = getattr(function, "__code__", None)
    names = [str(getattr(function, key, "")) for key in ("__module__", "__qualname__")]
    parts = [*names, *([] if code is None else _code_parts(code))]
    if names[0].partition(".")[0] not in _PACKAGES:
        parts.append(_file_of(names[0]))
    return digest_of(*parts)


def digest_of(*parts: str | bytes) -> str:
    """SHA-256 of texts and bytes, each with its length in front."""
    state = hashlib.sha256()
    for part in parts:
        data = part.encode("utf-8", "surrogatepass") if isinstance(part, str) else part
        state.update(f"{len(data)} ".encode())
        state.update(data)
    return state.hexdigest()


def _code_parts(code: CodeType) -> Iterator[str | bytes]:
    """Bytecode, names and constants, those of inner functions included; no line, no path."""
    yield code.co_code
    yield " ".join((*code.co_names, *code.co_varnames, *code.co_freevars, *code.co_cellvars))
    for constant in code.co_consts:
        yield from _code_parts(constant) if isinstance(constant, CodeType) else [_stable(constant)]


def _stable(constant: object) -> str:
    """A constant as text: the order of a set differs from process to process."""
    if isinstance(constant, frozenset):
        return f"frozenset {sorted(map(_stable, constant))}"
    if isinstance(constant, tuple):
        return f"tuple {[_stable(each) for each in constant]}"
    return repr(constant)


@functools.cache
def _file_of(module: str) -> bytes:
    path = getattr(sys.modules.get(module), "__file__", None)
    try:
        return b"" if path is None else Path(path).read_bytes()
    except OSError:
        return b""
