"""Every registered runtime: the same results, and the same kind of refusal."""

import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from common.bundle.packed_weights import unpack_weights
from common.errors import ModelError, SettingsError
from common.latency import costs
from common.runtime import registry
from common.runtime.base import Array, Session
from common.runtime.parity import check_parity
from common.runtime.registry import DEFAULT_RUNTIME, RUNTIMES, open_model, runtime_name
from common.tables.rows import LatencyRow, RuntimeTarget, row_of, segments
from common.tables.timing import Timing
from edge.head import open_plans
from search.network.cuts import enumerate_cuts
from search.network.graph import Graph
from search.network.importers.torch_module import import_module
from search.network.passes import optimise
from search.quantization import integer
from search.quantization.calibration import observe
from search.quantization.export import (
    SharedWeights,
    head_model,
    packed_weights,
    tail_model,
    write_weights,
)
from search.quantization.recipe import rounded
from search.quantization.widths import Widths, uniform
from tests import tiny
from tests.networks import SIZE, branched_graph, pictures, seeded

ROOT = Path(__file__).resolve().parents[2]
OTHERS = sorted(set(RUNTIMES) - {DEFAULT_RUNTIME})


@pytest.fixture(params=sorted(RUNTIMES))
def runtime(request: pytest.FixtureRequest) -> str:
    return str(request.param)


class Depthwise(nn.Module):
    """A convolution per channel between ordinary ones."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, 2, 1)
        self.each = nn.Conv2d(8, 8, 3, 1, 1, groups=8)
        self.top = nn.Conv2d(8, 6, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = nn.functional.leaky_relu(self.stem(x), 0.1)
        x = nn.functional.leaky_relu(self.each(x), 0.2)
        made: torch.Tensor = self.top(x)
        return made


def depthwise_graph() -> Graph:
    return optimise(import_module(seeded(Depthwise()), SIZE))


def affine(*, batch: int | str = "N") -> bytes:
    """y = 2 x + 1, (N, 4)."""
    nodes = [
        helper.make_node("Mul", ["x", "two"], ["d"]),
        helper.make_node("Add", ["d", "one"], ["y"]),
    ]
    constants = [
        numpy_helper.from_array(np.array(value, np.float32), name)
        for name, value in (("two", 2), ("one", 1))
    ]
    ports = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [batch, 4]) for n in ("x", "y")]
    graph = helper.make_graph(nodes, "affine", ports[:1], ports[1:], constants)
    opsets = [helper.make_opsetid("", 17)]
    data: bytes = helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString()
    return data


def tail_inputs(
    graph: Graph, names: tuple[str, ...], batch: int, seed: int = 0
) -> dict[str, Array]:
    rng = np.random.default_rng(seed)
    return {
        name: rng.standard_normal((batch, *graph[name].shape), dtype=np.float32) for name in names
    }


@pytest.mark.parametrize(
    "graph", [branched_graph(), depthwise_graph()], ids=["branched", "depthwise"]
)
def test_heads_are_the_reference_to_the_bit_at_every_cut(runtime: str, graph: Graph) -> None:
    frames = pictures(2)
    network = rounded(graph, observe(graph, frames), reduced_range=True)  # exact on any CPU
    heads = [cut for cut in enumerate_cuts(graph) if cut.head]
    assert len(heads) > 2
    for cut in heads:
        session = open_model(head_model(network, cut.tensors), runtime=runtime)
        for frame in frames:
            found = session.run({"image": frame[None]})
            expected = integer.run(network, frame[None], cut.tensors)
            for got, want in zip(found, expected, strict=True):
                np.testing.assert_array_equal(got, want, err_msg=cut.name)


CURVES = {
    "leaky": ([helper.make_node("PRelu", ["r", "k"], ["a"])], np.full((1, 1, 1), 0.1)),
    "leaky by channel": (
        [helper.make_node("PRelu", ["r", "k"], ["a"])],
        np.array([0.1, 0.2, 0.3]).reshape(3, 1, 1),
    ),
    "clipped": (
        [helper.make_node("Relu", ["r"], ["b"]), helper.make_node("Min", ["b", "k"], ["a"])],
        np.array(6),
    ),
    "silu": (
        [helper.make_node("Sigmoid", ["r"], ["b"]), helper.make_node("Mul", ["r", "b"], ["a"])],
        np.array(0),
    ),
    "no activation": ([helper.make_node("Identity", ["r"], ["a"])], np.array(0)),
}


@pytest.mark.parametrize("curve", CURVES)
@pytest.mark.parametrize("step", [0.05, 0.1, 0.3], ids=["ties", "one to one", "coarser"])
def test_activations_of_codes_are_those_of_the_default(
    runtime: str, curve: str, step: float
) -> None:
    nodes, constant = CURVES[curve]
    grids = {"s": np.float32(0.1), "z": np.uint8(100), "t": np.float32(step), "u": np.uint8(60)}
    constants = [numpy_helper.from_array(np.asarray(v), name) for name, v in grids.items()]
    constants.append(numpy_helper.from_array(constant.astype(np.float32), "k"))
    ports = [helper.make_tensor_value_info(n, TensorProto.UINT8, [1, 3, 9, 9]) for n in ("x", "y")]
    quantized = [
        helper.make_node("DequantizeLinear", ["x", "s", "z"], ["r"]),
        *nodes,
        helper.make_node("QuantizeLinear", ["a", "t", "u"], ["y"]),
    ]
    graph = helper.make_graph(quantized, "curve", ports[:1], ports[1:], constants)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=10)
    codes = np.resize(np.arange(256, dtype=np.uint8), (1, 3, 9, 9))
    (expected,) = open_model(made.SerializeToString()).run({"x": codes})
    (found,) = open_model(made.SerializeToString(), runtime=runtime).run({"x": codes})
    # Slopes by channel are in no head: a runtime may round them in its own way.
    most = 1 if curve == "leaky by channel" else 0
    assert np.abs(found.astype(int) - expected.astype(int)).max() <= most


def test_heads_take_their_weights_from_outside(runtime: str, tmp_path: Path) -> None:
    graph, frames = branched_graph(), pictures(2)
    widths = uniform(graph, 4) | {"conv_0": Widths(weight=2)}
    network = rounded(graph, observe(graph, frames), widths)
    packed = packed_weights(network, graph.outputs)
    assert packed is not None
    data, weights = (
        head_model(network, graph.outputs, outside_weights=True),
        unpack_weights(packed, "w"),
    )
    path = tmp_path / "head.onnx"
    path.write_bytes(data)
    expected = integer.run(network, frames[:1], graph.outputs)
    for source in (path, data):
        session = open_model(source, weights=weights, runtime=runtime)
        check_parity(session.run({"image": frames[:1]}), expected, what="head")
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(ModelError, match="refuses it"):
        open_model(path, runtime=runtime)


def test_weights_of_another_shape_are_refused(runtime: str) -> None:
    graph, frames = branched_graph(), pictures(2)
    network = rounded(graph, observe(graph, frames), uniform(graph, 4))
    packed = packed_weights(network, graph.outputs)
    assert packed is not None
    weights = unpack_weights(packed, "w")
    weights["conv_0.weight"] = weights["conv_0.weight"][:1]
    with pytest.raises(ModelError, match=r"refuses it|conv_0") as refused:
        open_model(
            head_model(network, graph.outputs, outside_weights=True),
            weights=weights,
            runtime=runtime,
        )
    assert "\n" not in str(refused.value)


def test_tails_agree_in_floating_point_at_any_batch(runtime: str, tmp_path: Path) -> None:
    graph = branched_graph()
    weights = SharedWeights.of(graph.nodes)
    write_weights(tmp_path, weights)
    for cut in (cut for cut in enumerate_cuts(graph) if cut.tail):
        path = tmp_path / "tail.onnx"
        path.write_bytes(tail_model(graph, cut, weights))
        reference, session = open_model(path), open_model(path, runtime=runtime)
        assert session.inputs == reference.inputs
        assert session.outputs == reference.outputs
        assert {port.shape[0] for port in session.inputs} == {None}
        for batch in (1, 3, 2, 1):
            inputs = tail_inputs(graph, cut.tensors, batch)
            found, expected = session.run(inputs), reference.run(inputs)
            for got, want in zip(found, expected, strict=True):
                assert got.dtype == np.float32
                np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4, err_msg=cut.name)


def test_a_result_is_not_overwritten_by_the_next_run(runtime: str) -> None:
    session = open_model(affine(), runtime=runtime)
    first = session.run({"x": np.zeros((1, 4), np.float32)})[0]
    session.run({"x": np.ones((1, 4), np.float32)})
    np.testing.assert_array_equal(first, np.ones((1, 4)))


def test_inputs_may_be_views_and_read_only(runtime: str) -> None:
    session = open_model(affine(), runtime=runtime)
    wide = np.arange(16, dtype=np.float32).reshape(4, 4)
    wide.flags.writeable = False
    for view in (wide.T, wide[::2], wide[:, ::-1]):
        np.testing.assert_array_equal(session.run({"x": view})[0], 2 * view + 1)


@pytest.mark.parametrize("parallel_runs", [1, 3])
def test_threads_may_run_at_once(runtime: str, tmp_path: Path, parallel_runs: int) -> None:
    graph = branched_graph()
    weights = SharedWeights.of(graph.nodes)
    write_weights(tmp_path, weights)
    cut = next(cut for cut in enumerate_cuts(graph) if cut.head and cut.tail)
    path = tmp_path / "tail.onnx"
    path.write_bytes(tail_model(graph, cut, weights))
    session = open_model(path, runtime=runtime, parallel_runs=parallel_runs)
    inputs = [tail_inputs(graph, cut.tensors, 1 + seed % 2, seed) for seed in range(40)]
    alone = [session.run(each) for each in inputs]
    with ThreadPoolExecutor(5) as callers:
        together = list(callers.map(session.run, inputs))
    for found, expected in zip(together, alone, strict=True):
        for got, want in zip(found, expected, strict=True):
            np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


REFUSED = [
    ("not a model", b"\xff\xff\xff junk"),
    ("empty", b""),
    ("no such operator", affine().replace(b"Mul", b"Nop")),
    ("half of one", affine()[: len(affine()) // 2]),
]


@pytest.mark.parametrize("data", [pytest.param(d, id=name) for name, d in REFUSED])
@pytest.mark.parametrize("from_file", [False, True], ids=["in memory", "a file"])
def test_what_is_no_model_is_refused_in_one_line(
    runtime: str, tmp_path: Path, data: bytes, from_file: bool
) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(data)
    with pytest.raises(ModelError, match=r"refuses it: .") as refused:
        open_model(path if from_file else data, runtime=runtime)
    message = str(refused.value)
    assert message.startswith(str(path) if from_file else "model in memory")
    assert "\n" not in message
    assert "site-packages" not in message
    assert len(message) < 1000


def test_a_file_that_is_missing_is_named(runtime: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"none\.onnx"):
        open_model(tmp_path / "none.onnx", runtime=runtime)
    with pytest.raises(ModelError, match=r"none\.onnx"):
        open_model(tmp_path / "none.onnx", weights={"w": np.zeros(1)}, runtime=runtime)


@pytest.mark.parametrize(
    "inputs",
    [
        {"x": np.zeros((1, 5), np.float32)},
        {"x": np.zeros(4, np.float32)},
        {"x": np.zeros((1, 4), np.float64)},
        {"z": np.zeros((1, 4), np.float32)},
        {},
    ],
    ids=["another size", "another rank", "another type", "another name", "none"],
)
def test_inputs_that_are_not_the_models_are_refused(
    runtime: str, inputs: dict[str, NDArray[np.float32]]
) -> None:
    session = open_model(affine(), runtime=runtime)
    with pytest.raises(ModelError) as refused:
        session.run(inputs)
    assert "\n" not in str(refused.value)
    run = session.run({"x": np.zeros((1, 4), np.float32)})  # and goes on
    np.testing.assert_array_equal(run[0], np.ones((1, 4)))


def test_names_begin_with_the_registered_one_and_end_with_the_threads(runtime: str) -> None:
    one, two = runtime_name(1, runtime), runtime_name(2, runtime)
    assert one.split()[0] == runtime
    assert one.endswith(" x1")
    assert two == f"{one[:-1]}2"
    assert len(one) <= 128


def test_plans_of_a_bundle_are_checked_and_run(runtime: str, tmp_path: Path) -> None:
    bundle = tiny.build(tmp_path / "bundle")
    frame = np.random.default_rng(3).integers(0, 256, (3, tiny.SIZE, tiny.SIZE), dtype=np.uint8)
    expected, found = open_plans(bundle), open_plans(bundle, runtime=runtime)
    for digest, plan in found.items():
        if plan.plan.tail is not None:
            assert plan.cut(frame).payloads == expected[digest].cut(frame).payloads


def test_rows_of_runtimes_are_apart(tmp_path: Path) -> None:
    bundle = tiny.build(tmp_path / "bundle")
    (plan,) = [plan for plan in bundle.plans.values() if plan.name == tiny.SPLIT]
    head = next(segment for segment in segments(plan) if segment.stage == "head")

    def row(runtime: str, ms: float, at_s: float) -> LatencyRow:
        place = RuntimeTarget("box", runtime_name(1, runtime), 1)
        return row_of(Timing(ms, ms, 9, ms, ms), head, place, "profiled", at_s)

    rows = [row(name, 10.0 + number, number) for number, name in enumerate(sorted(RUNTIMES))]
    assert len({each.key for each in rows}) == len(RUNTIMES)
    for number, name in enumerate(sorted(RUNTIMES)):
        found = next(c for c in costs(bundle.plans, rows, "box", name) if c.plan == plan)
        assert {s.ms for s in found.stages if s.stage == "head"} == {10.0 + number}


def test_a_name_that_is_unknown_lists_those_that_are() -> None:
    with pytest.raises(SettingsError, match="unknown runtime 'tvm': choose one of onnxruntime, "):
        open_model(affine(), runtime="tvm")


@pytest.fixture
def without_openvino(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setitem(sys.modules, "openvino", None)
    monkeypatch.delitem(sys.modules, "common.runtime.openvino_runtime", raising=False)
    registry.runtime_named.cache_clear()
    yield
    registry.runtime_named.cache_clear()


@pytest.mark.usefixtures("without_openvino")
def test_a_package_that_is_missing_is_named_with_its_extra() -> None:
    with pytest.raises(SettingsError, match=r"pip install 'splitpoint\[openvino\]'") as missing:
        open_model(affine(), runtime="openvino")
    assert "\n" not in str(missing.value)


@pytest.mark.parametrize("command", ["edge", "cloud"])
def test_the_commands_say_so_too(command: str, tmp_path: Path) -> None:
    tiny.build(tmp_path / "bundle", [tiny.EDGE_ONLY, tiny.CLOUD_ONLY])
    (tmp_path / "picture.png").write_bytes(tiny.png())
    arguments = [command, "--bundle", str(tmp_path / "bundle"), "--runtime", "openvino"]
    if command == "edge":
        arguments.append(str(tmp_path / "picture.png"))
    else:
        arguments += ["--grpc-port", "0", "--rest-port", "0"]
    code = (
        "import sys\n"
        "sys.modules['openvino'] = None\n"
        f"sys.argv = ['splitpoint', *{arguments!r}]\n"
        "from splitpoint.cli import main\n"
        "sys.exit(main())\n"
    )
    done = subprocess.run(  # noqa: S603 - our own code
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert done.returncode == SettingsError.exit_code
    assert done.stderr.strip().splitlines()[-1].endswith("pip install 'splitpoint[openvino]'")
    assert "Traceback" not in done.stderr


def test_only_the_runtime_that_is_used_is_loaded() -> None:
    code = (
        "import sys\n"
        "from edge.app import open_edge\n"
        "from common.runtime.registry import runtime_named\n"
        f"runtime_named({DEFAULT_RUNTIME!r})\n"
        f"print([name for name in {OTHERS!r} if name in sys.modules])\n"
    )
    done = subprocess.run(  # noqa: S603 - our own code
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert done.stdout.strip() == "[]"


def test_openvino_reports_nothing_to_its_makers(tmp_path: Path) -> None:
    """Its package says that it was imported, by a package of which this is a stand-in."""
    (tmp_path / "openvino_telemetry").mkdir()
    spy = (
        "from pathlib import Path\nPath(__file__).with_name('imported').touch()\nTelemetry = None\n"
    )
    (tmp_path / "openvino_telemetry" / "__init__.py").write_text(spy)
    code = (
        f"import sys\nsys.path.insert(0, {str(tmp_path)!r})\n"
        "from common.runtime.registry import runtime_named\n"
        "runtime_named('openvino')\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)  # noqa: S603 - our own code
    assert not (tmp_path / "openvino_telemetry" / "imported").exists()


def _threads_of(session: Session) -> int:
    compiled = session._compiled  # type: ignore[attr-defined]
    return int(compiled.get_property("INFERENCE_NUM_THREADS"))


def test_openvino_keeps_to_its_threads() -> None:
    session = open_model(affine(), threads=1, runtime="openvino")
    assert _threads_of(session) == 1
    assert session._compiled.get_property("INFERENCE_PRECISION_HINT").to_string() == "f32"  # type: ignore[attr-defined]
