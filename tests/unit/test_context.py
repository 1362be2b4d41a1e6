"""Context coding: the same bytes from C and from Python, and nothing believed that comes in."""

import hashlib
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.codec import context, make_codec, slow_context
from common.codec.base import Shape, Symbols
from common.codec.context import ContextCoded
from common.codec.context_model import CLASSES, ContextModel, class_of
from common.codec.packed import Packed
from common.codec.spec import CodecSpec
from common.errors import BundleError, PayloadError
from tests.contexts import random_model, sparse_symbols

SHAPE = (8, 6, 7)
LIMIT = 1 << 20
CODEC = ContextCoded(random_model(8, 16, seed=7))
DATA = CODEC.encode(sparse_symbols(SHAPE, 16, seed=3), 4)

needs_extension = pytest.mark.skipif(not context.FAST, reason="the C extension was not built")


@pytest.fixture(params=["fast", "slow"])
def either(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run a test with the C extension, and without."""
    if request.param == "slow":
        monkeypatch.setattr(context, "FAST", False)
    elif not context.FAST:
        pytest.skip("the C extension was not built")


@st.composite
def tensors(draw: st.DrawFn) -> tuple[Symbols, int, ContextModel]:
    """Symbols of any small shape, their width, and a model."""
    bits = draw(st.integers(1, 4))
    shape = draw(st.tuples(*[st.integers(1, 7)] * 3))
    seed = draw(st.integers(0, 99))
    symbols = draw(
        st.sampled_from(
            [
                sparse_symbols(shape, 1 << bits, seed),
                np.zeros(shape, np.uint8),
                np.full(shape, (1 << bits) - 1, np.uint8),
                np.random.default_rng(seed).integers(0, 1 << bits, shape, dtype=np.uint8),
            ]
        )
    )
    return symbols, bits, random_model(shape[0], 1 << bits, seed)


class TestCoding:
    @given(tensor=tensors())
    def test_nothing_is_lost(self, tensor: tuple[Symbols, int, ContextModel]) -> None:
        symbols, bits, model = tensor
        codec = ContextCoded(model)
        data = codec.encode(symbols, bits)
        np.testing.assert_array_equal(codec.decode(data, symbols.shape, bits), symbols)
        assert len(data) <= Packed().size(symbols.size, bits) + 1

    @needs_extension
    @given(tensor=tensors())
    def test_c_and_python_make_the_same_bytes(
        self, tensor: tuple[Symbols, int, ContextModel]
    ) -> None:
        symbols, _, model = tensor
        fast = context._encode(model, symbols, None, LIMIT)
        slow = slow_context.encode(symbols, None, model, LIMIT)
        assert fast == slow
        assert slow is not None
        np.testing.assert_array_equal(
            slow_context.decode(slow, None, model, symbols.shape), symbols
        )
        np.testing.assert_array_equal(context._decode(model, slow, None, symbols.shape), symbols)

    @pytest.mark.usefixtures("either")
    @pytest.mark.parametrize(
        ("shape", "levels", "size", "digest"),
        [
            ((1, 1, 1), 2, 0, "e3b0c442"),
            ((8, 6, 7), 16, 155, "adff8b41"),
            ((3, 20, 1), 4, 8, "68620053"),
            ((40, 9, 11), 8, 1229, "1dcd9cc5"),
        ],
    )
    def test_golden(self, shape: Shape, levels: int, size: int, digest: str) -> None:
        """Bytes written once: every edge and cloud must agree on them."""
        model = random_model(shape[0], levels, seed=7)
        data = context._encode(model, sparse_symbols(shape, levels, seed=3), None, LIMIT)
        assert data is not None
        assert (len(data), hashlib.sha256(data).hexdigest()[:8]) == (size, digest)

    @pytest.mark.usefixtures("either")
    def test_a_carry_runs_through_the_bytes_before(self) -> None:
        """Where the last symbol always comes, the code lies at the end of every interval."""
        model = random_model(1, 2)
        model.cumulative[:, 1] = 1
        rare = np.zeros((1, 40, 40), np.uint8)
        rng = np.random.default_rng(0)
        for _ in range(20):
            symbols = np.where(rng.random(rare.shape) < 0.995, 1, rare).astype(np.uint8)
            data = context._encode(model, symbols, None, LIMIT)
            assert data is not None
            np.testing.assert_array_equal(context._decode(model, data, None, rare.shape), symbols)

    @pytest.mark.usefixtures("either")
    def test_activities_wrap_alike_everywhere(self) -> None:
        """Weights at their largest leave 16 bits: the bytes differ, nothing breaks."""
        model = random_model(128, 4)
        model.weights[...] = 127
        model.weights[0] = np.triu(model.weights[0], 1)
        symbols = np.full((128, 3, 3), 3, np.uint8)
        data = context._encode(model, symbols, None, LIMIT)
        assert data is not None
        assert hashlib.sha256(data).hexdigest()[:8] == "7269c3e5"
        np.testing.assert_array_equal(context._decode(model, data, None, symbols.shape), symbols)

    def test_close_to_the_ideal_code_length(self) -> None:
        model = random_model(32, 8)
        symbols = sparse_symbols((32, 26, 26), 8)
        kinds = class_of(slow_context.activities(symbols, None, model))
        tables = np.diff(model.cumulative.astype(np.int64)) / (1 << 15)
        ideal = -np.log2(tables[kinds, symbols]).sum() / 8
        data = ContextCoded(model).encode(symbols, 3)
        assert ideal <= len(data) <= 1.005 * ideal + 5

    def test_memory_order_does_not_matter(self) -> None:
        codec = ContextCoded(random_model(8, 16))
        symbols = sparse_symbols(SHAPE, 16)
        assert codec.encode(np.asfortranarray(symbols), 4) == codec.encode(symbols, 4)

    def test_what_does_not_compress_is_packed(self) -> None:
        noise = np.random.default_rng(0).integers(0, 16, SHAPE, dtype=np.uint8)
        codec = ContextCoded(random_model(8, 16))
        data = codec.encode(noise, 4)
        assert data == b"\0" + Packed().encode(noise, 4)
        np.testing.assert_array_equal(codec.decode(data, SHAPE, 4), noise)

    def test_a_plan_gets_it_by_its_model(self) -> None:
        model = random_model(8, 16)
        codec = make_codec(CodecSpec(name="context"), model)
        assert isinstance(codec, ContextCoded)
        assert codec.model is model


class TestSequence:
    MODEL = random_model(8, 16, seed=7)
    AFTER = random_model(8, 16, seed=8, looks_back=True)
    CODEC = ContextCoded(MODEL, AFTER)

    @pytest.mark.usefixtures("either")
    def test_a_frame_after_one_like_it(self) -> None:
        before = sparse_symbols(SHAPE, 16, seed=3)
        now = before.copy()
        now[2, 3] = 1
        data = self.CODEC.encode_after(now, 4, before)
        assert data[:1] == b"\2"
        assert hashlib.sha256(data).hexdigest()[:8] == "df1a250e"
        np.testing.assert_array_equal(self.CODEC.decode_after(data, SHAPE, 4, before), now)

    def test_a_frame_after_another_picture_stands_alone(self) -> None:
        before = sparse_symbols(SHAPE, 16, seed=4)
        now = sparse_symbols(SHAPE, 16, seed=3)
        data = self.CODEC.encode_after(now, 4, before)
        assert data == self.CODEC.encode(now, 4)
        np.testing.assert_array_equal(self.CODEC.decode_after(data, SHAPE, 4, before), now)

    def test_without_the_frame_before_it_is_refused(self) -> None:
        before = sparse_symbols(SHAPE, 16, seed=3)
        data = self.CODEC.encode_after(before, 4, before)
        for codec in (self.CODEC, ContextCoded(self.MODEL)):
            with pytest.raises(PayloadError, match="earlier frame"):
                codec.decode(data, SHAPE, 4)
        with pytest.raises(PayloadError, match="earlier frame"):
            ContextCoded(self.MODEL).decode_after(data, SHAPE, 4, before)

    @needs_extension
    @given(seed=st.integers(0, 99), shape=st.tuples(*[st.integers(1, 6)] * 3))
    def test_c_and_python_make_the_same_bytes(self, seed: int, shape: Shape) -> None:
        model = random_model(shape[0], 8, seed, looks_back=True)
        before, now = (sparse_symbols(shape, 8, seed + k) for k in range(2))
        data = context._encode(model, now, before, LIMIT)
        assert data is not None
        assert data == slow_context.encode(now, before, model, LIMIT)
        for decode in (context._decode, lambda m, d, p, s: slow_context.decode(d, p, m, s)):
            np.testing.assert_array_equal(decode(model, data, before, shape), now)

    @needs_extension
    def test_c_refuses_symbols_before_that_cannot_be(self) -> None:
        for before in (np.full(SHAPE, 16, np.uint8), np.zeros((8, 6, 6), np.uint8)):
            with pytest.raises(ValueError, match="model"):
                context._decode(self.AFTER, b"", before, SHAPE)
        with pytest.raises(ValueError, match="model"):
            context._decode(self.MODEL, b"", np.zeros(SHAPE, np.uint8), SHAPE)


class TestDamage:
    @pytest.mark.usefixtures("either")
    def test_truncated_data_is_refused(self) -> None:
        assert DATA[:1] == b"\1"
        for length in {0, 1, 2, 5, len(DATA) // 2, len(DATA) - 8}:
            with pytest.raises(PayloadError):
                CODEC.decode(DATA[:length], SHAPE, 4)

    @pytest.mark.usefixtures("either")
    @pytest.mark.parametrize("extra", [b"\0", b"\xff", b"more"])
    def test_appended_bytes_are_refused(self, extra: bytes) -> None:
        with pytest.raises(PayloadError):
            CODEC.decode(DATA + 4 * extra, SHAPE, 4)

    def test_more_than_packing_takes_is_refused(self) -> None:
        with pytest.raises(PayloadError, match="at most"):
            CODEC.decode(b"\1" + bytes(200), SHAPE, 4)

    def test_an_unknown_mode_is_refused(self) -> None:
        with pytest.raises(PayloadError, match="mode"):
            CODEC.decode(b"\3" + DATA[1:], SHAPE, 4)

    @given(data=st.binary(max_size=168))
    def test_any_bytes_are_refused_or_give_symbols(self, data: bytes) -> None:
        try:
            symbols = CODEC.decode(b"\1" + data, SHAPE, 4)
        except PayloadError as error:
            assert "\n" not in str(error)  # noqa: PT017 - both outcomes are right
        else:
            assert symbols.shape == SHAPE
            assert symbols.max() < 16

    @needs_extension
    @given(data=st.binary(max_size=168))
    def test_c_and_python_refuse_the_same(self, data: bytes) -> None:
        results = []
        for decode in (context._decode, lambda m, d, p, s: slow_context.decode(d, p, m, s)):
            try:
                results.append(decode(CODEC.model, data, None, SHAPE).tobytes())
            except ValueError:
                results.append(b"refused")
        assert results[0] == results[1]

    @needs_extension
    @pytest.mark.parametrize("shape", [(7, 6, 7), (8, 0, 7), (8, 6, -1), (8, 70000, 1)])
    def test_c_refuses_a_shape_that_is_not_the_model_s(self, shape: Shape) -> None:
        with pytest.raises(ValueError, match="model"):
            context._decode(CODEC.model, b"", None, shape)

    @needs_extension
    def test_c_refuses_a_symbol_without_a_probability(self) -> None:
        with pytest.raises(ValueError, match="symbols"):
            context._encode(CODEC.model, np.full(SHAPE, 16, np.uint8), None, LIMIT)


class TestModel:
    def test_it_comes_back_from_its_file(self) -> None:
        model = random_model(5, 4)
        again = ContextModel.from_bytes(model.to_bytes(), "file")
        for part in ("weights", "bias", "magnitudes", "cumulative"):
            np.testing.assert_array_equal(getattr(again, part), getattr(model, part), strict=True)

    @given(data=st.binary(max_size=80))
    def test_any_bytes_are_refused(self, data: bytes) -> None:
        for prefix in (b"", b"SPCX\1\0\2\0\0\0\1\0\0\0"):
            with pytest.raises(BundleError, match="file"):
                ContextModel.from_bytes(prefix + data, "file")

    @pytest.mark.parametrize("length", [0, 11, 12, 100, -1])
    def test_a_truncated_file_is_refused(self, length: int) -> None:
        with pytest.raises(BundleError, match="search again"):
            ContextModel.from_bytes(random_model(5, 4).to_bytes()[:length], "file")

    def test_another_version_is_refused(self) -> None:
        data = bytearray(random_model(5, 4).to_bytes())
        data[4] = 9
        with pytest.raises(BundleError, match="version"):
            ContextModel.from_bytes(bytes(data), "file")

    def test_a_model_that_looks_ahead_is_refused(self) -> None:
        model = random_model(5, 4)
        weights = model.weights.copy()
        weights[0, 3, 3] = 1
        with pytest.raises(BundleError, match="not yet known"):
            replace(model, weights=weights)

    @pytest.mark.parametrize("column", [0, 1, 4])
    def test_a_table_that_is_no_distribution_is_refused(self, column: int) -> None:
        model = random_model(5, 4)
        cumulative = model.cumulative.copy()
        cumulative[CLASSES // 2, column] = 40000
        with pytest.raises(BundleError, match="distribution"):
            replace(model, cumulative=cumulative)

    def test_a_large_magnitude_is_refused(self) -> None:
        model = random_model(5, 4)
        with pytest.raises(BundleError, match="magnitude"):
            replace(model, magnitudes=np.array([0, 1, 2, 4], np.uint8))
