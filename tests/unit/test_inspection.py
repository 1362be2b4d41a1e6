"""What `splitpoint models inspect` finds in a network, and the card that it writes."""

from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from common.tasks.labels import CLASS_NAMES
from search.inspection import Inspection, inspect_network
from search.reports.inspection import first_card, markdown
from search.source import NetworkSource, open_network
from splitpoint.cli import main

POINTS = 16 * 16 + 8 * 8 + 4 * 4
"""Cells of an image of 128 x 128 pixels at strides of 8, 16 and 32."""


def detector(path: Path, channels: int, **metadata: str) -> Path:
    """Two convolutions, a depthwise one between, and a table of (channels, cells) behind a TopK."""
    rng = np.random.default_rng(0)
    shapes = {"w": (channels, 3, 1, 1), "d": (channels, 1, 3, 3)}
    weights = {
        name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()
    }
    weights["count"] = np.array([POINTS], np.int64)
    weights["flat"] = np.array([1, channels, -1], np.int64)
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], strides=[4, 4]),
        helper.make_node("Sigmoid", ["a"], ["s"]),
        helper.make_node("Mul", ["a", "s"], ["b"]),
        helper.make_node("Conv", ["b", "d"], ["c"], pads=[1, 1, 1, 1], group=channels),
        helper.make_node("Reshape", ["c", "flat"], ["t"]),
        helper.make_node("TopK", ["t", "count"], ["y", "places"], axis=2),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, (1, 3, 128, 128))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, (1, channels, POINTS))],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    helper.set_model_props(made, metadata)
    path.write_bytes(made.SerializeToString())
    return path


def inspect(path: Path) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["models", "inspect", str(path)])
    assert not ended.value.code


@pytest.fixture
def found(tmp_path: Path) -> Inspection:
    return inspect_network(NetworkSource(str(detector(tmp_path / "m.onnx", 84))))


def test_every_operator_is_counted_where_it_can_run(found: Inspection) -> None:
    uses = {use.name: use for use in found.operators}
    assert uses["conv + silu"].place == "integer head"
    assert uses["depthwise conv"].macs == 84 * 9 * 32 * 32
    assert uses["TopK"].place == "tail only"
    assert uses["TopK"].count == 1
    assert uses["TopK"].reason


def test_the_thinnest_cuts_send_less_than_the_image(found: Inspection) -> None:
    sent = [cut.bytes for cut in found.thinnest]
    assert all(each < 3 * 128 * 128 for each in sent)
    assert sent == sorted(sent, reverse=True)
    assert found.whole.macs == (84 * 3 + 84 * 9) * 32 * 32


def test_a_first_card_is_read_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = detector(tmp_path / "m.onnx", 84)
    inspect(path)
    assert "check it before you search" in capsys.readouterr().out
    card = tmp_path / "m.toml"
    before = card.read_text()
    network = open_network(NetworkSource(str(path)))
    assert network.task.kind == "detection"
    assert network.task.decoder.kind == "yolov8"
    assert network.task.image.padding == 114
    assert network.task.class_names == CLASS_NAMES
    inspect(path)
    assert card.read_text() == before


def test_labels_that_the_exporter_left_are_taken(tmp_path: Path) -> None:
    path = detector(tmp_path / "m.onnx", 6, names="{0: 'cat', 1: \"dog's\"}")
    found = inspect_network(NetworkSource(str(path)))
    card = first_card(found)
    assert found.task is None or found.task.class_names == ("cat", "dog's")
    (tmp_path / "m.toml").write_text(
        '[task]\nkind = "detection"\n[task.decoder]\nkind = "yolov8"\n'
    )
    task = open_network(NetworkSource(str(path))).task
    assert task.class_names == ("cat", "dog's")
    assert "[task]" in card


@pytest.mark.parametrize("names", ["{1: 'cat'}", "{0: 1}", "__import__('os')", "{0: 'a'", "[1]"])
def test_labels_that_are_none_are_left_out(names: str, tmp_path: Path) -> None:
    path = detector(tmp_path / "m.onnx", 84, names=names)
    assert open_network(NetworkSource(str(path))).task.class_names == CLASS_NAMES


def test_outputs_that_no_decoder_takes_are_shown_all_the_same(tmp_path: Path) -> None:
    path = detector(tmp_path / "m.onnx", 3)
    found = inspect_network(NetworkSource(str(path)))
    assert found.task is None
    assert "(3, 336)" in markdown(found)
    assert "# No decoder takes these" in first_card(found)
    assert open_network(NetworkSource(str(path)), raw=True).task.kind == "tensors"


def test_a_file_that_is_no_network_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "m.onnx").write_bytes(b"nothing")
    assert main(["models", "inspect", str(tmp_path / "m.onnx")]) != 0
    assert "not an ONNX file" in capsys.readouterr().err
    assert not (tmp_path / "m.toml").exists()
