"""Context models that are fitted to symbols: what they save, and when they cannot be."""

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from common.codec.context import ContextCoded
from common.errors import CalibrationError
from search.wire.context_fitting import fit_context, ideal_bytes, magnitudes_of


def correlated(count: int) -> NDArray[np.uint8]:
    """(N, 6, 12, 12) symbols of 2 bits: neighbours and channels say much of each other."""
    rng = np.random.default_rng(0)
    fields = []
    for _ in range(count):
        field = Image.fromarray(rng.random((4, 4), np.float32)).resize((12, 12))
        level = np.asarray(field)[None] + 0.05 * rng.standard_normal((6, 12, 12))
        fields.append(np.clip((level - 0.6) * 10, 0, 3))
    return np.stack(fields).astype(np.uint8)


class TestContext:
    def test_what_neighbours_say_saves_bytes(self) -> None:
        symbols = correlated(48)
        model = fit_context(symbols[:40], 4)
        codec = ContextCoded(model)
        sizes, ideals = [], []
        for each in symbols[40:]:
            data = codec.encode(each, 2)
            np.testing.assert_array_equal(codec.decode(data, each.shape, 2), each)
            sizes.append(len(data))
            ideals.append(ideal_bytes(model, each))
        shares = np.bincount(symbols.ravel(), minlength=4) / symbols.size
        entropy = -(shares * np.log2(shares)).sum() * symbols[0].size / 8
        assert np.mean(sizes) < 0.6 * entropy
        assert np.mean(ideals) <= np.mean(sizes) < 1.01 * np.mean(ideals) + 3

    def test_another_model_is_a_good_beginning(self) -> None:
        symbols = correlated(40)
        start = fit_context(symbols, 4)
        few = fit_context(symbols, 4, most_steps=5)
        more = fit_context(symbols, 4, start=start, most_steps=5)
        assert ideal_bytes(more, symbols[0]) < ideal_bytes(few, symbols[0])

    def test_the_same_symbols_always_give_the_same_model(self) -> None:
        symbols = correlated(16)
        one, other = (fit_context(symbols, 4, most_steps=10) for _ in range(2))
        assert one.to_bytes() == other.to_bytes()

    def test_the_frame_before_says_much(self) -> None:
        before = correlated(48)
        rng = np.random.default_rng(1)
        now = np.where(rng.random(before.shape) < 0.03, 3 - before, before).astype(np.uint8)
        start = fit_context(now[:40], 4)
        after = fit_context(now[:40], 4, previous=before[:40], start=start)
        assert after.looks_back
        codec = ContextCoded(start, after)
        alone, following = [], []
        for k in range(40, 48):
            data = codec.encode_after(now[k], 2, before[k])
            np.testing.assert_array_equal(
                codec.decode_after(data, now[k].shape, 2, before[k]), now[k]
            )
            following.append(len(data))
            alone.append(len(codec.encode(now[k], 2)))
        assert np.mean(following) < 0.9 * np.mean(alone)

    def test_a_large_tensor_is_fitted_in_parts(self) -> None:
        symbols = np.tile(correlated(16)[:, :2], (1, 1, 8, 8))
        model = fit_context(symbols, 4, most_steps=4)
        assert model.channels == 2

    def test_too_few_images(self) -> None:
        with pytest.raises(CalibrationError, match="at least 16 are needed"):
            fit_context(correlated(15), 4)

    def test_one_symbol_only(self) -> None:
        model = fit_context(np.zeros((16, 3, 4, 4), np.uint8), 2, most_steps=4)
        assert len(ContextCoded(model).encode(np.zeros((3, 4, 4), np.uint8), 1)) <= 3

    def test_magnitudes_are_distances_from_the_most_frequent(self) -> None:
        assert magnitudes_of(np.array([3, 90, 5, 1])).tolist() == [1, 0, 1, 2]
