"""The rooms of the house and the one way that imports point."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ROOMS = {"common", "search", "edge", "cloud", "bench", "splitpoint"}
MAY_IMPORT = {
    "common": set(),
    "search": {"common"},
    "edge": {"common"},
    "cloud": {"common"},
    "bench": ROOMS,
    "splitpoint": {"search", "edge", "cloud", "bench", "common"},
}
FILES = [path for room in sorted(ROOMS) for path in sorted((ROOT / room).rglob("*.py"))]


def imported(path: Path) -> Iterator[str]:
    """Top-level names of everything that a file imports, at its head or inside a function."""
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield (node.module or "").partition(".")[0]


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", FILES, ids=name)
def test_a_room_imports_only_what_it_may(path: Path) -> None:
    room = path.relative_to(ROOT).parts[0]

    foreign = (set(imported(path)) & ROOMS) - MAY_IMPORT[room] - {room}

    assert not foreign, f"{name(path)} imports {sorted(foreign)}"


@pytest.mark.parametrize("path", FILES, ids=name)
def test_only_search_and_bench_import_torch(path: Path) -> None:
    if path.relative_to(ROOT).parts[0] not in {"search", "bench"}:
        assert not set(imported(path)) & {"torch", "onnx", "scipy", "pandas", "cv2"}
