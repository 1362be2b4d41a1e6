"""Networks as ONNX files: read as they are, in any opset, and refused in one line."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from common.errors import ModelError
from common.runtime.registry import open_model
from search.network import execute
from search.network.cuts import cut_of_head, find_cuts
from search.network.graph import Graph
from search.network.importers.onnx_file import import_onnx, read_onnx
from search.network.importers.scaling import InputScaling
from search.network.passes import optimise
from search.quantization.export import SharedWeights, tail_model, write_weights

SHAPE = (1, 3, 16, 24)
IMAGE = np.random.default_rng(0).random(SHAPE, np.float32)
PLAIN = InputScaling()


def saved(
    path: Path,
    nodes: Sequence[onnx.NodeProto],
    constants: dict[str, NDArray[Any]],
    *,
    opset: int = 17,
    shape: Sequence[int | str] = SHAPE,
    outputs: Sequence[str] = ("y",),
    ir: int = 8,
    domains: Sequence[str] = (),
) -> Path:
    """Write a model of one input "x"."""
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    versions = [helper.make_opsetid("", opset), *(helper.make_opsetid(d, 1) for d in domains)]
    model = helper.make_model(graph, opset_imports=versions, ir_version=ir)
    path.write_bytes(model.SerializeToString())
    return path


def weights(*shape: int) -> NDArray[np.float32]:
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32) * 0.3


def imported(path: Path, shape: Sequence[int] | None = None) -> Graph:
    return optimise(import_onnx(read_onnx(path, shape), PLAIN))


def check_all_cuts(graph: Graph, path: Path, folder: Path) -> None:
    """Require every tail, fed by torch, to make what the file makes."""
    expected = open_model(path).run({"x": IMAGE})
    shared = SharedWeights.of(graph.nodes)
    write_weights(folder, shared)
    image = torch.from_numpy(IMAGE)
    for cut in find_cuts(graph).cuts[:-1]:
        (folder / "tail.onnx").write_bytes(tail_model(graph, cut, shared))
        sent = execute.run(graph, {"image": image}, cut.tensors)
        found = open_model(folder / "tail.onnx").run({n: v.numpy() for n, v in sent.items()})
        for want, got in zip(expected, found, strict=True):
            np.testing.assert_allclose(got, want, atol=2e-5)


def conv(source: str, weight: str, output: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node("Conv", [source, weight], [output], **attributes)


def test_operators_of_old_versions_are_read(tmp_path: Path) -> None:
    """Settings that were attributes in opset 9 are inputs now."""
    nodes = [
        conv("x", "w", "a", pads=[1, 1, 1, 1]),
        helper.make_node("Clip", ["a"], ["b"], min=0.0, max=6.0),
        helper.make_node("Upsample", ["b", "scales"], ["c"], mode="nearest"),
        helper.make_node("Slice", ["c"], ["d"], axes=[1, 2], starts=[0, 2], ends=[4, 1000]),
        helper.make_node("Pad", ["d"], ["e"], pads=[0, 0, 0, 1, 0, 0, 2, 0], value=0.0),
        helper.make_node("Split", ["e"], ["f", "g"], axis=1, split=[1, 3]),
        helper.make_node("Unsqueeze", ["f"], ["h"], axes=[1]),
        helper.make_node("Squeeze", ["h"], ["i"], axes=[1]),
        helper.make_node("Max", ["i", "i2"], ["j"]),
        helper.make_node("Slice", ["g"], ["i2"], axes=[1], starts=[0], ends=[1]),
        helper.make_node("Concat", ["j", "g"], ["k"], axis=1),
        helper.make_node("Dropout", ["k"], ["l"]),
        conv("l", "v", "y"),
    ]
    nodes[8], nodes[9] = nodes[9], nodes[8]
    constants: dict[str, NDArray[Any]] = {
        "w": weights(8, 3, 3, 3),
        "v": weights(4, 4, 1, 1),
        "scales": np.array([1, 1, 2, 2], np.float32),
    }
    path = saved(tmp_path / "old.onnx", nodes, constants, opset=9, ir=4)
    graph = imported(path)
    assert "onnx" not in {node.op for node in graph.nodes}
    check_all_cuts(graph, path, tmp_path)


def test_operators_without_an_entry_stay_in_tails_as_they_are(tmp_path: Path) -> None:
    nodes = [
        conv("x", "w", "a", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("LRN", ["b"], ["c"], size=3),
        helper.make_node("TopK", ["c", "k"], ["d", "index"], axis=3),
        helper.make_node("Cast", ["index"], ["e"], to=TensorProto.FLOAT),
        helper.make_node("Add", ["d", "e"], ["y"]),
    ]
    constants: dict[str, NDArray[Any]] = {"w": weights(8, 3, 3, 3), "k": np.array([5], np.int64)}
    path = saved(tmp_path / "opaque.onnx", nodes, constants)
    graph = imported(path)
    assert [node.op for node in graph.nodes if node.op.startswith("onnx")][:2] == ["onnx", "onnx"]
    assert {cut.kind for cut in find_cuts(graph).cuts} == {"cloud-only", "split", "edge-only"}
    shared = SharedWeights.of(graph.nodes)
    write_weights(tmp_path, shared)
    (expected,) = open_model(path).run({"x": IMAGE})
    for cut in (cut_of_head(graph, []), cut_of_head(graph, ["conv_0"])):
        (tmp_path / "tail.onnx").write_bytes(tail_model(graph, cut, shared))
        sent = execute.run(graph, {"image": torch.from_numpy(IMAGE)}, cut.tensors)
        tail = open_model(tmp_path / "tail.onnx")
        (found,) = tail.run({n: v.numpy() for n, v in sent.items()})
        np.testing.assert_allclose(found, expected, atol=1e-5)


def test_channels_last_blue_first_and_scaled(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Transpose", ["x"], ["a"], perm=[0, 3, 1, 2]),
        conv("a", "w", "y", pads=[1, 1, 1, 1]),
    ]
    path = saved(tmp_path / "last.onnx", nodes, {"w": weights(4, 3, 3, 3)}, shape=(1, 16, 24, 3))
    scaling = InputScaling((0.1, 0.2, 0.3), (0.5, 0.25, 0.2), blue_first=True, channels_last=True)
    graph = optimise(import_onnx(read_onnx(path), scaling))
    assert graph.nodes[0].shape == (3, 16, 24)
    assert "transpose" not in {node.op for node in graph.nodes}
    mean, std = np.array(scaling.mean, np.float32), np.array(scaling.std, np.float32)
    given = (IMAGE[:, ::-1].transpose(0, 2, 3, 1) - mean) / std
    (expected,) = open_model(path).run({"x": np.ascontiguousarray(given, np.float32)})
    found = execute.run(graph, {"image": torch.from_numpy(IMAGE)}, graph.outputs)
    np.testing.assert_allclose(found[graph.outputs[0]].numpy(), expected, atol=1e-4)


def test_a_declared_size_can_be_replaced(tmp_path: Path) -> None:
    nodes, constants = [conv("x", "w", "y")], {"w": weights(4, 3, 1, 1)}
    path = saved(tmp_path / "any.onnx", nodes, constants, shape=("N", 3, "H", "W"))
    with pytest.raises(ModelError, match=r"x is \?x3x\?x\?, of no fixed size: give --input x=1x3x"):
        read_onnx(path)
    assert imported(path, (1, 3, 8, 12)).nodes[0].shape == (3, 8, 12)
    path = saved(tmp_path / "ten.onnx", nodes, constants, shape=(10, 3, 32, 32))
    with pytest.raises(ModelError, match=r"a batch of 10: give --input x=1x3x416x416"):
        read_onnx(path)
    assert imported(path, SHAPE).nodes[0].shape == SHAPE[1:]


def test_a_size_is_for_files_that_leave_it_open(tmp_path: Path) -> None:
    nodes, constants = [conv("x", "w", "y")], {"w": weights(4, 3, 1, 1)}
    path = saved(tmp_path / "any.onnx", nodes, constants, shape=("N", 3, "H", "W"))
    assert read_onnx(path, size=(8, 12)).input_shape == (1, 3, 8, 12)
    path = saved(tmp_path / "fixed.onnx", nodes, constants)
    assert read_onnx(path, size=(16, 24)).input_shape == SHAPE  # as it is declared
    with pytest.raises(
        ModelError, match=r"x is 1x3x16x24, and no other size: .*, or give --input x=1x3x8x12 if"
    ):
        read_onnx(path, size=(8, 12))
    assert read_onnx(path, SHAPE, (8, 12)).input_shape == (1, 3, 8, 12)  # a card's shape


def test_sizes_that_would_fit_are_named(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("MaxPool", ["x"], ["s"], kernel_shape=[8, 8], strides=[8, 8]),
        helper.make_node("Resize", ["s", "", "scales"], ["u"], mode="nearest"),
        helper.make_node("Add", ["x", "u"], ["y"]),
    ]
    scales = {"scales": np.array([1, 1, 8, 8], np.float32)}
    path = saved(tmp_path / "m.onnx", nodes, scales, shape=("N", 3, "H", "W"))
    with pytest.raises(ModelError, match=r"20x64 does not fit .*, 24x64 would: .* multiples of 8"):
        read_onnx(path, size=(20, 64))
    assert read_onnx(path, size=(24, 64)).input_shape == (1, 3, 24, 64)


def test_a_size_is_of_the_right_axes(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Transpose", ["x"], ["t"], perm=[0, 3, 1, 2]),
        conv("t", "w", "y"),
    ]
    path = saved(tmp_path / "m.onnx", nodes, {"w": weights(4, 3, 1, 1)}, shape=(1, "H", "W", 3))
    assert read_onnx(path, size=(8, 12)).input_shape == (1, 8, 12, 3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"opset": 99}, r"it has opset 99, at most \d+ is read here: export it again"),
        ({"ir": 99}, r"it has ONNX IR version 99, at most \d+ is"),
        ({"shape": (1, 4, 8, 8)}, "x is 1x4x8x8: one image of 3 channels is expected"),
        ({"shape": (1, 3, 9000, 9000)}, "at most 4096x4096 pixels"),
    ],
)
def test_a_model_that_cannot_be_read_is_refused(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    nodes, constants = [conv("x", "w", "y")], {"w": weights(4, 3, 1, 1)}
    path = saved(tmp_path / "m.onnx", nodes, constants, **changes)
    with pytest.raises(ModelError, match=message) as caught:
        read_onnx(path)
    assert "\n" not in str(caught.value)


def test_what_is_no_model_of_one_image_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    for content in (b"", b"hello", b"\x89PNG\r\n\x1a\n" * 50):
        path.write_bytes(content)
        with pytest.raises(ModelError, match="not an ONNX file"):
            read_onnx(path)
    with pytest.raises(ModelError, match="cannot be read: No such file"):
        read_onnx(tmp_path / "none.onnx")
    saved(path, [conv("x", "w", "y")], {"w": weights(4, 3, 1, 1)})
    model = onnx.load(path)
    model.graph.input.append(helper.make_tensor_value_info("mask", TensorProto.FLOAT, SHAPE))
    path.write_bytes(model.SerializeToString())
    with pytest.raises(ModelError, match=r"it has 2 inputs \(x, mask\): one image is expected"):
        read_onnx(path)


def test_control_flow_and_custom_operators_are_named(tmp_path: Path) -> None:
    branch = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["z"])],
        "b",
        [],
        [helper.make_tensor_value_info("z", TensorProto.FLOAT, None)],
    )
    looped = helper.make_node(
        "If", ["c"], ["y"], name="decide", then_branch=branch, else_branch=branch
    )
    path = saved(tmp_path / "m.onnx", [looped], {"c": np.array(True)})
    with pytest.raises(ModelError, match=r"node decide is control flow \(If\)"):
        read_onnx(path)
    custom = helper.make_node("Warp", ["x"], ["y"], name="warp", domain="acme")
    path = saved(tmp_path / "m.onnx", [custom], {}, domains=["acme"])
    with pytest.raises(ModelError, match=r"node warp is a custom operator \(acme\.Warp\)"):
        read_onnx(path)


def test_weights_outside_lie_in_the_folder_of_the_file(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    path = saved(folder / "m.onnx", [conv("x", "w", "y")], {"w": weights(4, 3, 1, 1)})
    plain = imported(path)
    model = onnx.load(path)
    onnx.save_model(model, path, save_as_external_data=True, location="w.bin", size_threshold=0)
    found, expected = imported(path)["conv_0"].weight, plain["conv_0"].weight
    assert found is not None
    assert expected is not None
    np.testing.assert_array_equal(found, expected)
    (folder / "w.bin").rename(tmp_path / "w.bin")
    with pytest.raises(ModelError, match=r"its weights w\.bin are missing: put them beside it"):
        read_onnx(path)
    model = onnx.load(path, load_external_data=False)
    for entry in model.graph.initializer[0].external_data:
        if entry.key == "location":
            entry.value = "../w.bin"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(ModelError, match="lie outside of its folder"):
        read_onnx(path)
