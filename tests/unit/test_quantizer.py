"""Look-ups on both ends of the wire, against the definition of a wire tensor."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from common.codec.quantizer import WireTable
from common.codec.spec import WireTensor


@st.composite
def wires(draw: st.DrawFn) -> WireTensor:
    bits = draw(st.integers(1, 8))
    symbols = st.lists(st.integers(0, (1 << bits) - 1), min_size=256, max_size=256)
    values = st.lists(st.floats(-1e6, 1e6), min_size=1 << bits, max_size=1 << bits)
    return WireTensor(
        name="cut",
        shape=(3, 4, 5),
        bits=bits,
        to_symbol=tuple(draw(symbols)),
        to_value=tuple(draw(values)),
    )


CODES = np.arange(256, dtype=np.uint8).reshape(4, 8, 8)


@given(wire=wires())
def test_a_code_becomes_its_symbol(wire: WireTensor) -> None:
    symbols = WireTable(wire).symbols(CODES)
    assert symbols.dtype == np.uint8
    assert symbols.shape == CODES.shape
    assert symbols.ravel().tolist() == list(wire.to_symbol)


@given(wire=wires())
def test_a_symbol_becomes_its_value_in_float32(wire: WireTensor) -> None:
    symbols = np.arange(1 << wire.bits, dtype=np.uint8).reshape(1, 1, -1)
    values = WireTable(wire).values(symbols)
    assert values.dtype == np.float32
    assert values.shape == symbols.shape
    assert values.ravel().tolist() == np.array(wire.to_value, np.float32).tolist()


def test_codes_need_not_be_contiguous() -> None:
    wire = WireTensor(
        name="cut",
        shape=(4, 8, 8),
        bits=4,
        to_symbol=tuple(code >> 4 for code in range(256)),
        to_value=tuple(float(symbol) for symbol in range(16)),
    )
    table = WireTable(wire)
    transposed = CODES.transpose(2, 0, 1)
    symbols = table.symbols(transposed)
    np.testing.assert_array_equal(symbols, transposed // 16)
    np.testing.assert_array_equal(table.values(symbols), transposed // 16)


def test_the_codes_are_not_changed() -> None:
    codes = CODES.copy()
    identity = tuple(range(256))
    for to_symbol in (identity, identity[::-1]):
        wire = WireTensor(
            name="cut",
            shape=(4, 8, 8),
            bits=8,
            to_symbol=to_symbol,
            to_value=tuple(float(code) for code in identity),
        )
        table = WireTable(wire)
        table.values(table.symbols(codes))
        np.testing.assert_array_equal(codes, CODES)
