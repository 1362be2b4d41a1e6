"""ONNX Runtime: what it refuses is one clear line, whatever raises it."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper

from common.errors import ModelError, ParityError
from common.runtime.parity import check_parity
from common.runtime.registry import open_model
from search.prediction.devices import DEVICES


def relu(*, ir: int = 8, opset: int = 17, operator: str = "Relu", domain: str = "") -> bytes:
    """A model of one operator, of any version of ONNX."""
    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in ("x", "y")]
    node = helper.make_node(operator, ["x"], ["y"], domain=domain)
    graph = helper.make_graph([node], "graph", [ports[0]], [ports[1]])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid(domain, opset)])
    model.ir_version = ir
    data: bytes = model.SerializeToString()
    return data


REFUSED = [
    ("newer IR", relu(ir=99), r"IR version 99, .* at most \d+: install a newer onnxruntime"),
    ("newer opset", relu(opset=99), r"opset 99 of ai.onnx, .* at most \d+: install a newer"),
    ("no such operator", relu(operator="Nope"), "No Op registered for Nope"),
    ("no such domain", relu(domain="mine"), "mine:Relu.* is not a registered function"),
    ("not a model", b"\xff\x00junk", "parsing failed"),
    ("empty", b"", "No graph was found|does not have a graph"),
]


@pytest.mark.parametrize(("data", "cause"), [pytest.param(d, c, id=name) for name, d, c in REFUSED])
@pytest.mark.parametrize("deep", [False, True], ids=["in memory", "under a long path"])
def test_a_refusal_names_its_cause(tmp_path: Path, data: bytes, cause: str, deep: bool) -> None:
    folder = tmp_path / "/".join(["long" * 30] * 6) if deep else tmp_path
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.onnx").write_bytes(data)
    with pytest.raises(ModelError, match=cause) as refused:
        open_model(folder / "model.onnx" if deep else data)
    assert "\n" not in str(refused.value)


def test_a_file_that_is_missing_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"none\.onnx"):
        open_model(tmp_path / "none.onnx")


@pytest.mark.parametrize(
    ("inputs", "cause"),
    [
        ({"x": np.zeros(2, np.float32)}, "invalid dimensions"),
        ({"x": np.zeros(1, np.float64)}, "data type"),
        ({"z": np.zeros(1, np.float32)}, "missing"),
    ],
)
def test_so_does_what_it_does_not_run(inputs: dict[str, np.ndarray], cause: str) -> None:
    with pytest.raises(ModelError, match=cause):
        open_model(relu()).run(inputs)


def test_no_private_module_of_the_runtime_is_needed() -> None:
    """Another release may move it; its exceptions are recognised all the same."""
    code = (
        "import sys, onnxruntime as o\n"
        "del o.capi\n"
        "from common.errors import ModelError\n"
        "from common.runtime.registry import open_model\n"
        "try:\n    open_model(b'junk')\n"
        "except ModelError as error:\n    print(error)\n"
    )
    done = subprocess.run(  # noqa: S603 - our own code
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert "ONNX Runtime refuses it" in done.stdout


def test_parity_advises_a_device_that_there_is() -> None:
    with pytest.raises(ParityError) as refused:
        check_parity([np.zeros(4, np.uint8)], [np.full(4, 9, np.uint8)], what="head.onnx")
    assert str(refused.value).split()[-1] in DEVICES
