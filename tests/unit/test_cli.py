"""The command line: every mistake is one line that says what to do, with its own exit code."""

import json
import socket
from collections.abc import Iterable
from pathlib import Path

import pytest

from common.tasks.registry import AnyTask
from edge.app import own_name
from search.zoo.registry import MODELS
from splitpoint import __version__
from splitpoint.cli import main
from splitpoint.commands.edge import file_names, image_ids
from tests import tiny

FREE_PORTS = ("--grpc-port", "0", "--rest-port", "0")


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    tiny.build(tmp_path / "bundle")
    return tmp_path / "bundle"


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "picture.png"
    path.write_bytes(tiny.png())
    return path


@pytest.fixture
def taken_port() -> Iterable[int]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener.getsockname()[1]


def _run(*arguments: object) -> int:
    """The exit code, whichever way the command line ends."""
    try:
        return main([str(argument) for argument in arguments])
    except SystemExit as end:
        return int(end.code or 0)


def _one_line(capsys: pytest.CaptureFixture[str]) -> str:
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("error: ")
    return lines[0]


def test_version_and_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert _run("--version") == 0
    assert capsys.readouterr().out.strip() == f"splitpoint {__version__}"
    assert _run("--help") == 0
    for command in ("cloud", "demo", "edge", "models", "search"):
        assert command in capsys.readouterr().out or _run(command, "--help") == 0


def test_the_zoo_is_listed_in_a_narrow_terminal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SPLITPOINT_CACHE", str(tmp_path))
    monkeypatch.setenv("COLUMNS", "80")
    assert _run("models", "list") == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    rows = {cells[0]: cells[1:] for cells in lines if cells}
    assert rows["mobilenet-v2"] == ["classification", "224x224", "14.2", "MB", "b03531047f", "no"]
    assert MODELS.keys() < rows.keys()


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["search", "--link", "1mbit/1ms"], "exists and is no bundle: choose another place"),
        (["allocate"], "is a file: give a folder"),
        (["quantize", "--widths", "none"], "is a file: give a folder"),
        (["profile"], "is a file: give a folder"),
    ],
)
def test_an_out_that_exists_is_refused_before_anything_is_read(
    command: list[str], message: str, picture: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    missing = picture.parent / "no pictures"
    options = "--model", "yolov3-tiny", "--calibration", missing, "--no-cache", "--out", picture
    assert _run(*command, *options) in {64, 65}
    assert message in _one_line(capsys)


def test_edge_only_runs_without_a_cloud(
    bundle: Path, picture: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, drawn = tmp_path / "found.json", tmp_path / "drawn"
    code = _run(
        *("edge", "--bundle", bundle, "--plan", tiny.EDGE_ONLY),
        *("--json", out, "--annotate", drawn, picture),
    )
    assert code == 0
    found = json.loads(out.read_text())
    assert found
    assert set(found[0]) >= {"image_id", "category_id", "bbox", "score"}
    assert len(list(drawn.iterdir())) == 1
    assert "picture.png" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["edge", "--bundle", "{none}", "{picture}"], 65, "no such bundle"),
        (
            ["cloud", "--bundle", "{none}", "--grpc-port", "0", "--rest-port", "0"],
            65,
            "no such bundle",
        ),
        (["edge", "--bundle", "{bundle}", "--plan", "nope", "{picture}"], 65, "split-4"),
        (["edge", "--bundle", "{bundle}"], 64, "give images"),
        (
            ["edge", "--bundle", "{bundle}", "--cloud", "nowhere", "{picture}"],
            64,
            "HOST:PORT",
        ),
        (
            ["edge", "--bundle", "{bundle}", "--cloud", "http://door:8080", "{picture}"],
            64,
            "expected HOST:PORT alone, like 127.0.0.1:50051: no URL",
        ),
        (
            ["edge", "--bundle", "{bundle}", "--plan", "split-4", "{picture}"],
            69,
            "no address was given: give --cloud HOST:PORT",
        ),
        (
            ["cloud", "--bundle", "{bundle}", *FREE_PORTS, "--store", "{none}/x/store.sqlite"],
            65,
            "there is no folder",
        ),
        (
            [
                "edge",
                "--bundle",
                "{bundle}",
                "--cloud",
                "127.0.0.1:1",
                "--plan",
                "split-4",
                "{picture}",
            ],
            69,
            "is `splitpoint cloud` running there",
        ),
        (
            ["edge", "--bundle", "{bundle}", "--cloud", "c:1", "--link", "fast", "{picture}"],
            64,
            "3mbit/20ms",
        ),
        (
            ["edge", "--bundle", "{bundle}", "--plan", "edge-only", "{none}"],
            65,
            "No such file",
        ),
        (
            ["edge", "--bundle", "{bundle}", "--listen", "127.0.0.1:{taken}"],
            71,
            "another process: end that one, or choose another port with --listen",
        ),
        (
            ["cloud", "--bundle", "{bundle}", "--rest-port", "{taken}"],
            71,
            "another process: end that one, or choose another port with --rest-port",
        ),
        (
            ["cloud", "--bundle", "{bundle}", "--rest-port", "0", "--grpc-port", "{taken}"],
            71,
            "another process: end that one, or choose another port with --grpc-port",
        ),
        (["cloud", "--bundle", "{bundle}", "--rest-port", "99999"], 64, "0 to 65535"),
        (["edge", "--bundle", "{bundle}", "--source", "{none}"], 66, "no such file"),
        (["edge", "--bundle", "{bundle}", "--source", "{picture}", "--fps", "0"], 64, "--fps 0"),
        (["edge", "--bundle", "{bundle}", "--loop", "{picture}"], 64, "belong to --source"),
        (["edge", "--bundle", "{bundle}", "--source", "x", "{picture}"], 64, "one of them"),
        (["edge", "--bundle", "{bundle}", "--tls-ca", "{none}", "{picture}"], 64, "cannot be read"),
        (["cloud", "--bundle", "{bundle}", "--tls-cert", "{none}"], 64, "--tls-key"),
        (["models", "fetch", "resnet"], 65, "resnet-18"),
        (
            [
                "edge",
                "--bundle",
                "{bundle}",
                "--listen",
                "127.0.0.1:0",
                "--ready-file",
                "{in_file}",
            ],
            64,
            "ready file cannot be written",
        ),
        (["cloud", "--bundle", "{none}", "--ready-file", "{in_file}"], 64, "cannot be written"),
        (["cloud", "--bundle", "{none}", "--ready-file", "{bundle}"], 64, "directory"),
        (["cloud", "--bundle", "{none}", "--ready-file", "{none}/x/y"], 64, "No such file"),
    ],
)
def test_a_mistake_is_one_line_and_its_exit_code(
    bundle: Path,
    picture: Path,
    taken_port: int,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    code: int,
    message: str,
) -> None:
    names = {
        "bundle": bundle,
        "picture": picture,
        "none": tmp_path / "none",
        "taken": taken_port,
        "in_file": picture / "ready.json",
    }
    assert _run(*(argument.format(**names) for argument in arguments)) == code
    assert message in _one_line(capsys)


def test_one_bad_picture_does_not_stop_the_others(
    bundle: Path, picture: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = tmp_path / "bad.jpg"
    bad.write_bytes(b"not a picture")
    assert _run("edge", "--bundle", bundle, "--plan", tiny.EDGE_ONLY, bad, picture) == 65
    streams = capsys.readouterr()
    assert "bad.jpg" in streams.err
    assert "picture.png" in streams.out


def test_a_bundle_of_another_version_says_what_to_do(
    bundle: Path, picture: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = bundle / "manifest.json"
    document = json.loads(manifest.read_text())
    document["schema_version"] = 99
    manifest.write_text(json.dumps(document))
    assert _run("edge", "--bundle", bundle, picture) == 65
    assert "schema 99" in _one_line(capsys)


def test_a_head_that_is_not_reproduced_stops_the_edge(
    tmp_path: Path, picture: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny.build(tmp_path / "wrong", wrong_vector=True)
    code = _run("edge", "--bundle", tmp_path / "wrong", "--plan", tiny.EDGE_ONLY, picture)
    assert code == 70
    assert "does not reproduce the head" in _one_line(capsys)


def test_weights_that_are_missing_name_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SPLITPOINT_CACHE", str(tmp_path / "empty"))
    arguments = ["--model", "yolov3", "--link", "3mbit", "--calibration", tmp_path]
    assert _run("search", *arguments, "--out", tmp_path / "out") == 66
    assert "splitpoint models fetch yolov3" in capsys.readouterr().err


@pytest.mark.parametrize(
    "option", [("--max-drop", "1"), ("--evaluation", "."), ("--explain", "x.svg")]
)
def test_a_search_without_accuracy_takes_no_option_about_it(
    option: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--model", "yolov3-tiny", "--link", "3mbit", "--calibration", tmp_path]
    assert _run("search", *arguments, "--out", tmp_path / "out", "--no-accuracy", *option) == 64
    assert "--no-accuracy measures none" in _one_line(capsys)


def test_a_missing_extra_names_what_to_install(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def lack(_: object) -> None:
        raise ModuleNotFoundError("No module named 'torch'", name="torch")

    monkeypatch.setattr("cloud.server.serve", lack)
    assert _run("cloud", "--bundle", bundle) == 69
    assert ".[search]" in _one_line(capsys)


@pytest.mark.parametrize(
    "arguments",
    [
        ["edge", "--threads", "100000"],
        ["edge", "--threads", "0"],
        ["cloud", "--threads", "100000"],
        ["cloud", "--workers", "100000"],
        ["profile", "--threads", "100000"],
        ["edge", "--report", "everything"],
    ],
)
def test_more_than_a_machine_can_use_is_refused(
    bundle: Path, capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    assert _run(*arguments, "--bundle", bundle) == 2
    assert arguments[1] in capsys.readouterr().err


def test_pictures_of_one_name_keep_their_own_boxes(bundle: Path, tmp_path: Path) -> None:
    pictures = []
    for number, name in enumerate(["a/1.png", "b/1.png", "a/7.png", "a/seven.png"]):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(tiny.png(tiny.image(number)))
        pictures.append(path)
    out, drawn = tmp_path / "found.json", tmp_path / "drawn"
    options = ("--plan", tiny.EDGE_ONLY, "--json", out, "--annotate", drawn)
    assert _run("edge", "--bundle", bundle, *options, *pictures) == 0
    ids = {record["file_name"]: record["image_id"] for record in json.loads(out.read_text())}
    assert set(ids) == {str(path) for path in pictures}
    assert len(set(ids.values())) == 4
    assert ids[str(pictures[2])] == 7, "COCO's number, which no other picture claims"
    assert {path.name for path in drawn.iterdir()} == {"1.jpg", "1-2.jpg", "7.jpg", "seven.jpg"}


@pytest.mark.parametrize(
    ("names", "ids"),
    [
        (["2.jpg", "a.jpg"], [2, 1]),  # a number in a name is not given to another picture
        (["a.jpg", "b.jpg", "2.jpg"], [1, 3, 2]),
        (["a/2.jpg", "b/2.jpg", "1.jpg"], [3, 4, 1]),  # two claim it, neither gets it
        (["000000000139.jpg", "139.png"], [1, 2]),
        (["5.jpg", "5.jpg"], [5, 5]),  # the same picture twice
        (["١.jpg"], [1]),  # noqa: RUF001 - a digit, but not one of COCO's
    ],
)
def test_pictures_have_numbers_of_their_own(names: list[str], ids: list[int]) -> None:
    assert image_ids([Path(name) for name in names]) == ids


def test_drawn_pictures_have_names_of_their_own() -> None:
    names = ["x/a.jpg", "y/a.jpg", "a.png", "a-2.jpg", "A.jpg", "b.jpg"]
    found = file_names([Path(name) for name in names])
    assert len({name.casefold() for name in found}) == len(names)
    assert found[3] == "a-2.jpg"
    assert found[5] == "b.jpg"


def test_an_edge_is_called_after_its_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.node", lambda: "x" * 300)
    assert own_name() == "x" * 128
    monkeypatch.setattr("platform.node", lambda: "")
    assert own_name() == "edge"


@pytest.mark.parametrize("option", ["--threads", "--workers", "--max-edges"])
@pytest.mark.parametrize(
    ("value", "said"), [("0", "greater than or equal to 1"), ("100000", "less than or equal to")]
)
def test_a_cloud_has_bounds(
    bundle: Path, option: str, value: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _run("cloud", "--bundle", bundle, option, value) == 2
    error = capsys.readouterr().err
    assert f"'{option}': Input should be {said}" in error


def test_a_cloud_that_cannot_say_that_it_is_ready_says_why(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    ready = tmp_path / "file" / "ready.json"
    ports = ("--grpc-port", 0, "--rest-port", 0)
    assert _run("cloud", "--bundle", bundle, *ports, "--ready-file", ready) == 64
    assert (
        "ready.json: the ready file cannot be written: Not a directory" in capsys.readouterr().err
    )


@pytest.mark.parametrize(
    ("task", "column"),
    [(tiny.CLASSES, "kind "), (tiny.TENSORS, "14x4x4")],
    ids=["classes", "tensors"],
)
def test_results_of_other_tasks_are_shown_and_written(
    task: AnyTask, column: str, picture: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny.build(tmp_path / "other", task=task)
    out, drawn = tmp_path / "found.json", tmp_path / "drawn"
    code = _run(
        *("edge", "--bundle", tmp_path / "other", "--plan", tiny.EDGE_ONLY),
        *("--json", out, "--annotate", drawn, picture),
    )
    assert code == 0
    assert column in capsys.readouterr().out
    assert json.loads(out.read_text())[0]["image_id"] == 1
    assert len(list(drawn.iterdir())) == 1


def test_only_the_class_that_is_asked_for(bundle: Path, picture: Path, tmp_path: Path) -> None:
    out = tmp_path / "found.json"
    options = "--plan", tiny.EDGE_ONLY, "--json", out, "--score-threshold", 0.01
    assert _run("edge", "--bundle", bundle, *options, "--class", "cat", picture) == 0
    cats = json.loads(out.read_text())
    assert _run("edge", "--bundle", bundle, *options, "--max-detections", 1, picture) == 0
    assert len(json.loads(out.read_text())) == 1
    assert {each["category_id"] for each in cats} <= {1}


def test_a_class_that_the_network_does_not_know(
    bundle: Path, picture: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = "--plan", tiny.EDGE_ONLY, "--class", "cow"
    assert _run("edge", "--bundle", bundle, *options, picture) == 64
    assert "no class 'cow'; there are 2: cat, dog" in _one_line(capsys)
