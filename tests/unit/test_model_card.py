"""Networks of the search by ONNX file and model card: what is read, guessed and refused."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from common.errors import SettingsError
from common.tasks.labels import CLASS_NAMES
from search.card import read_card
from search.source import NetworkSource, open_network


def model(path: Path, channels: int, *tail: onnx.NodeProto, **constants: np.ndarray) -> Path:
    """A convolution to so many channels on 64 x 64 pixels, and what follows it."""
    weight = np.random.default_rng(0).standard_normal((channels, 3, 1, 1)).astype(np.float32)
    nodes = [helper.make_node("Conv", ["x", "w"], ["y" if not tail else "a"], strides=[8, 8])]
    graph = helper.make_graph(
        [*nodes, *tail],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, (1, 3, 64, 64))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(a, n) for n, a in {"w": weight, **constants}.items()],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path.write_bytes(made.SerializeToString())
    return path


def test_a_card_names_task_labels_and_input(tmp_path: Path) -> None:
    path = model(
        tmp_path / "m.onnx",
        2,
        helper.make_node("GlobalAveragePool", ["a"], ["b"]),
        helper.make_node("Flatten", ["b"], ["y"]),
    )
    (tmp_path / "m.toml").write_text(
        'labels = ["cat", "dog"]\n[input]\nmean = [127.5, 127.5, 127.5]\nstd = [255, 255, 255]\n'
        'fit = "stretch"\nchannels = "bgr"\n[task]\nkind = "classification"\n'
    )
    source = open_network(NetworkSource(str(path)))
    assert source.task.kind == "classification"
    assert source.task.class_names == ("cat", "dog")
    assert source.task.image.fit == "stretch"
    assert source.task.image.size == (64, 64)
    assert {"gather", "scale"} < {node.op for node in source.graph.nodes}
    assert source.graph[source.graph.outputs[0]].shape == (2,)


def test_an_output_without_a_doubt_needs_no_card(tmp_path: Path) -> None:
    path = model(
        tmp_path / "m.onnx",
        84,
        helper.make_node("Reshape", ["a", "shape"], ["y"]),
        shape=np.array([1, 84, -1], np.int64),
    )
    with pytest.raises(SettingsError, match=r"do not say which decoder.*\[task\.decoder\]"):
        open_network(NetworkSource(str(path)))
    (tmp_path / "m.toml").write_text('[task]\nkind = "tensors"\n')
    assert open_network(NetworkSource(str(path))).task.kind == "tensors"


def test_classes_have_coco_s_names_if_there_are_eighty(tmp_path: Path) -> None:
    path = model(
        tmp_path / "m.onnx",
        80,
        helper.make_node("GlobalAveragePool", ["a"], ["b"]),
        helper.make_node("Flatten", ["b"], ["y"]),
    )
    (tmp_path / "m.toml").write_text('[task]\nkind = "classification"\n')
    assert open_network(NetworkSource(str(path))).task.class_names == CLASS_NAMES
    (tmp_path / "labels.txt").write_text("one\ntwo\n")
    (tmp_path / "m.toml").write_text('labels = "labels.txt"\n[task]\nkind = "classification"\n')
    with pytest.raises(SettingsError, match=r"expected one output \(2\)"):
        open_network(NetworkSource(str(path)))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[input]\nmeen = [1, 2, 3]\n", r"input\.meen: Extra inputs"),
        ("[input]\nmean = [1, 2]\n", r"input\.mean: "),
        ("[input\n", "no TOML"),
        ('labels = "none.txt"\n[task]\nkind = "classification"\n', r"none\.txt: no file of labels"),
        ('[task]\nkind = "poetry"\n', "task: "),
    ],
)
def test_a_wrong_card_is_one_line(text: str, message: str, tmp_path: Path) -> None:
    path = model(tmp_path / "m.onnx", 4)
    (tmp_path / "m.toml").write_text(text)
    with pytest.raises(SettingsError, match=message) as caught:
        open_network(NetworkSource(str(path)))
    assert "\n" not in str(caught.value)


def test_a_card_that_is_not_there_or_too_large_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="cannot be read"):
        read_card(tmp_path / "none.toml")
    large = tmp_path / "large.toml"
    large.write_text("#" * (1 << 20) + "\n")
    with pytest.raises(SettingsError, match="over 1 MiB"):
        read_card(large)
    with pytest.raises(SettingsError, match="--weights is for the zoo and for"):
        open_network(NetworkSource("m.onnx", weights=tmp_path / "w.pt"))
