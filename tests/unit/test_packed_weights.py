"""Packed weights: the same integers come back, and a hostile file is one line."""

import contextlib
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.bundle.packed_weights import Packable, pack_weights, unpack_weights
from common.errors import BundleError, ModelError
from common.runtime.parity import check_parity
from common.runtime.registry import open_model
from search.quantization import integer
from search.quantization.calibration import observe
from search.quantization.export import head_model, packed_weights
from search.quantization.recipe import rounded
from search.quantization.widths import Widths, uniform
from tests.networks import branched_graph, pictures


@st.composite
def tensors(draw: st.DrawFn) -> dict[str, Packable]:
    made = {}
    for index in range(draw(st.integers(0, 4))):
        bits = draw(st.integers(2, 8))
        shape = draw(st.lists(st.integers(1, 5), min_size=1, max_size=4))
        rng = np.random.default_rng(draw(st.integers(0, 1000)))
        values = rng.integers(-(1 << bits - 1), 1 << bits - 1, shape).astype(np.int8)
        made[f"conv_{index}.weight"] = Packable(values, bits)
    return made


@given(tensors())
def test_what_is_packed_comes_back(packed: dict[str, Packable]) -> None:
    data = pack_weights(packed)
    found = unpack_weights(data, "file")
    assert list(found) == list(packed)
    for name, tensor in packed.items():
        np.testing.assert_array_equal(found[name], tensor.values)


@given(tensors(), st.integers(0, 10_000), st.integers(1, 255))
def test_damage_is_found_or_harmless(packed: dict[str, Packable], where: int, flip: int) -> None:
    data = bytearray(pack_weights(packed))
    data[where % len(data)] ^= flip
    with contextlib.suppress(BundleError):
        unpack_weights(bytes(data), "file")


def _file(directory: bytes, rest: bytes = b"") -> bytes:
    return struct.pack("<4sHI", b"SPPW", 1, len(directory)) + directory + rest


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (b"", "no packed weights"),
        (b"PK\x03\x04 and more", "no packed weights"),
        (struct.pack("<4sHI", b"SPPW", 9, 0), "version 9"),
        (_file(b"{}"), "directory is damaged"),
        (_file(b'[{"name":"a","bits":1,"shape":[1]}]'), "directory is damaged"),
        (_file(b'[{"name":"a","bits":4,"shape":[1048576,1048576]}]'), "promises more than"),
        (_file(b'[{"name":"a","bits":4,"shape":[4]}]', b"\0"), "a: expected 2 bytes"),
        (_file(b'[{"name":"a","bits":4,"shape":[2]}]', b"\0\0"), "length does not fit"),
        (_file(b'[{"name":"a","bits":4,"shape":[2]}]' * 2), "directory is damaged"),
    ],
)
def test_what_is_no_file_of_weights_is_refused(data: bytes, error: str) -> None:
    with pytest.raises(BundleError, match=error):
        unpack_weights(data, "head.weights")


def test_a_head_runs_on_weights_from_outside(tmp_path: Path) -> None:
    graph, frames = branched_graph(), pictures(2)
    widths = uniform(graph, 4) | {"conv_0": Widths(weight=2)}
    network = rounded(graph, observe(graph, frames), widths)
    packed = packed_weights(network, graph.outputs)
    assert packed is not None
    assert len(packed) < 0.6 * sum(conv.weight.nbytes for conv in network.convs.values()) + 1000
    path = tmp_path / "head.onnx"
    path.write_bytes(head_model(network, graph.outputs, outside_weights=True))
    model = open_model(path, weights=unpack_weights(packed, "head.weights"))
    expected = integer.run(network, frames[:1], graph.outputs)
    check_parity(model.run({"image": frames[:1]}), expected, what="head")
    with pytest.raises(ModelError, match="ONNX Runtime refuses"):
        open_model(path)


def test_weights_of_8_bits_stay_in_the_model() -> None:
    graph = branched_graph()
    network = rounded(graph, observe(graph, pictures(2)))
    assert packed_weights(network, graph.outputs) is None
