"""The rooms of the house and the one way that imports point."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.rooms import PAGE, arrows, page

ROOT = Path(__file__).resolve().parents[2]
ROOMS = {"common", "search", "edge", "cloud", "bench", "splitpoint"}
MAY_IMPORT = {
    "common": set(),
    "search": {"common"},
    "edge": {"common"},
    "cloud": {"common"},
    "bench": {"common", "search", "edge", "cloud"},
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


@pytest.mark.parametrize("room", sorted(ROOMS))
def test_folders_of_a_room_import_one_way(room: str) -> None:
    left = arrows(room)
    while free := [place for place, targets in left.items() if not targets & left.keys()]:
        for place in free:
            del left[place]
    assert not left, f"{room}: these import each other in a circle: {sorted(left)}"


def test_no_class_name_occurs_twice() -> None:
    """Tests and generated code apart: a name that is met anywhere says which class it is."""
    places: dict[str, list[str]] = {}
    for path in FILES:
        if "_pb2" in path.name:
            continue
        for node in ast.walk(ast.parse(path.read_text(), str(path))):
            if isinstance(node, ast.ClassDef):
                places.setdefault(node.name, []).append(name(path))
    assert {k: v for k, v in places.items() if len(v) > 1} == {}


def test_the_picture_of_the_rooms_is_current() -> None:
    text = PAGE.read_text()
    assert page(text) == text, "run `python -m tests.rooms`"


@pytest.mark.parametrize("path", FILES, ids=name)
def test_only_the_seam_knows_the_libraries_behind_it(path: Path) -> None:
    if path.parent != ROOT / "common" / "runtime":
        assert not set(imported(path)) & {"onnxruntime", "openvino"}
