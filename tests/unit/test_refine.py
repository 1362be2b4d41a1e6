"""Searched wire formats: quantizers, context models, adapted tails, and the curve they lie on."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from common.errors import CalibrationError
from common.tasks.decoders.yolov3 import AnchorMap
from search.cache import Cache
from search.network import execute
from search.network.cuts import Cut, enumerate_cuts
from search.network.graph import Node
from search.network.losses import Loss, distillation_loss
from search.network.quant_params import QuantParams
from search.quantization.calibration import observe
from search.quantization.heads import Heads
from search.quantization.network import QuantizedGraph
from search.quantization.recipe import rounded
from search.refine.cached_refiner import CachedRefiner
from search.refine.refine import Refiner
from search.wire import tail_adaptation as adapt
from search.wire.quantizers import stepped_tensor
from search.wire.rate_curve import rate_curve
from search.wire.tail_adaptation import Wire, adapt_tail, wire_error
from search.wire.training_data import Examples, alter, collect, collect_pairs, move
from tests.affinity import one_core
from tests.networks import SIZE, branched_graph, pictures
from tests.tasks import yolo_task

DETECTOR = yolo_task(
    SIZE[0],
    SIZE[1],
    heads=tuple(AnchorMap(stride=stride, anchors=((8.0, 8.0), (16.0, 16.0))) for stride in (16, 8)),
    class_names=("cat", "dog"),
)


class Silent:
    """Reports nothing, but counts the stages."""

    def __init__(self) -> None:
        self.titles: list[str] = []

    def stage(self, title: str, /) -> "Silent":
        self.titles.append(title)
        return self

    def __call__(self, done: int, total: int, _note: str = "", /) -> None:
        assert 0 <= done <= total


FRAMES = pictures(24)


@pytest.fixture(scope="module")
def network() -> QuantizedGraph:
    graph = branched_graph()
    return rounded(graph, observe(graph, FRAMES))


@pytest.fixture(scope="module")
def cut(network: QuantizedGraph) -> Cut:
    """A cut of one tensor that everything in the tail depends on."""
    return next(c for c in enumerate_cuts(network.graph) if c.kind == "split" and c.name == "add_4")


@pytest.fixture(scope="module")
def examples(
    network: QuantizedGraph, cut: Cut, tmp_path_factory: pytest.TempPathFactory
) -> Examples:
    return examples_of(network, cut, FRAMES, tmp_path_factory.mktemp("examples"))


def examples_of(
    network: QuantizedGraph, cut: Cut, frames: NDArray[np.uint8], folder: Path
) -> Examples:
    whole = enumerate_cuts(network.graph)[0]
    return collect(
        network, whole, cut.tensors, frames, folder, copies=2, threads=1, progress=Silent()
    )


def coarse(network: QuantizedGraph, cut: Cut, examples: Examples, step: float = 1.0) -> Wire:
    wires = []
    for name in cut.tensors:
        counts = np.bincount(examples.codes[name].ravel(), minlength=256)
        wires.append(
            stepped_tensor(
                network.graph[name],
                network.grids[name],
                counts,
                dead_zone=0.5 * step,
                step=step,
                clip=np.inf,
            )
        )
    return tuple(wires)


class TestQuantizer:
    NODE = Node("t", "conv", (), (4, 2, 2))

    @given(
        low=st.floats(-8, 0),
        high=st.floats(0.5, 8),
        dead_zone=st.floats(0.01, 4),
        step=st.floats(0.05, 8),
        clip=st.floats(0.1, 16),
    )
    def test_every_code_has_a_symbol_and_symbols_follow_values(
        self, low: float, high: float, dead_zone: float, step: float, clip: float
    ) -> None:
        grid = QuantParams.over(low, high)
        counts = np.ones(256, np.int64)
        wire = stepped_tensor(self.NODE, grid, counts, dead_zone=dead_zone, step=step, clip=clip)
        symbols = np.array(wire.to_symbol)
        assert (np.diff(symbols) >= 0).all()
        assert symbols.max() < 1 << wire.bits
        used = np.array(wire.to_value)[: symbols.max() + 1]
        assert (np.diff(used) >= 0).all()

    def test_levels_are_where_they_were_asked_for(self) -> None:
        grid = QuantParams.over(-1.0, 9.0)
        values = grid.dequantize(np.arange(256).astype(np.uint8))
        counts = (values >= 0).astype(np.int64)
        wire = stepped_tensor(self.NODE, grid, counts, dead_zone=0.5, step=2.0, clip=5.0)
        symbols = np.array(wire.to_symbol)
        for value, symbol in ((-0.9, 0), (0.4, 0), (0.6, 1), (2.4, 1), (2.6, 2), (4.6, 3), (9, 3)):
            assert symbols[np.abs(values - value).argmin()] == symbol
        assert wire.bits == 2
        assert wire.to_value[1] == pytest.approx(1.5, abs=0.1)  # the mean of what falls into it

    def test_a_signed_tensor_keeps_both_sides(self) -> None:
        grid = QuantParams.over(-4.0, 4.0)
        wire = stepped_tensor(
            self.NODE, grid, np.ones(256, np.int64), dead_zone=1.0, step=1.0, clip=np.inf
        )
        assert wire.to_value[0] < -3
        assert wire.to_value[max(wire.to_symbol)] > 3


class TestExamples:
    def test_held_out_images_come_first_and_as_they_are(
        self, network: QuantizedGraph, examples: Examples
    ) -> None:
        assert (examples.held_out, len(examples)) == (3, 3 + 21 * 3)
        image = torch.from_numpy(FRAMES[::8]).float() / 255
        truth = execute.run(network.graph, {"image": image}, network.graph.outputs)
        for name, maps in zip(network.graph.outputs, examples.maps, strict=True):
            np.testing.assert_allclose(maps[:3], truth[name].numpy(), rtol=2e-3, atol=2e-3)

    def test_too_few_images(self, network: QuantizedGraph, cut: Cut, tmp_path: Path) -> None:
        with pytest.raises(CalibrationError, match="at least 16 are needed"):
            examples_of(network, cut, FRAMES[:15], tmp_path)

    def test_an_altered_frame_is_another_frame_of_the_same_size(self) -> None:
        rng = np.random.default_rng(0)
        altered = alter(FRAMES[0], rng)
        assert altered.shape == FRAMES[0].shape
        assert altered.dtype == np.uint8
        assert (altered != FRAMES[0]).mean() > 0.5
        assert (altered != alter(FRAMES[0], rng)).mean() > 0.5


class TestPairs:
    def test_a_moved_frame_is_almost_the_same(self) -> None:
        moved = move(FRAMES[0], np.random.default_rng(0))
        assert moved.shape == FRAMES[0].shape
        assert 0 < np.abs(moved.astype(int) - FRAMES[0]).mean() < 25

    def test_frames_come_with_those_before_them(self, network: QuantizedGraph, cut: Cut) -> None:
        pairs = collect_pairs(network, cut.tensors, FRAMES, threads=1, progress=Silent())
        (name,) = cut.tensors
        assert pairs.codes[name].shape == pairs.before[name].shape
        assert len(pairs.codes[name]) == 2 * 21  # the held-out frames are left out
        apart = np.abs(pairs.codes[name].astype(int) - pairs.before[name]).mean()
        others = np.abs(pairs.codes[name].astype(int) - pairs.before[name][::-1]).mean()
        assert 0 < apart < 0.7 * others


LOSSES = pytest.mark.parametrize(
    "loss", [distillation_loss(DETECTOR), distillation_loss(None)], ids=["detector", "any"]
)


class TestAdaptation:
    @LOSSES
    def test_the_tail_learns_what_the_wire_leaves(
        self, network: QuantizedGraph, cut: Cut, examples: Examples, loss: Loss
    ) -> None:
        wire = coarse(network, cut, examples)
        notes = []
        adapted = adapt_tail(
            network.graph.outputs,
            cut,
            wire,
            examples,
            loss,
            steps=60,
            adapted_to="coarse",
            progress=lambda _done, _total, note: notes.append(note),
        )
        assert adapted.is_better
        assert adapted.after < 0.95 * adapted.before
        assert adapted.before == pytest.approx(
            wire_error(network.graph.outputs, cut, wire, examples, loss)
        )
        assert adapted.after == pytest.approx(
            wire_error(network.graph.outputs, adapted.cut, wire, examples, loss)
        )
        assert f"{adapted.after:.3f}" in notes[-1]
        assert adapted.cut.adapted_to == "coarse"
        assert [n.name for n in adapted.cut.tail] == [n.name for n in cut.tail]

    def test_it_is_never_worse_than_before(
        self,
        network: QuantizedGraph,
        cut: Cut,
        examples: Examples,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr(adapt, "LEARNING_RATE", 10.0)
        wire, loss = coarse(network, cut, examples), distillation_loss(DETECTOR)
        adapted = adapt_tail(
            network.graph.outputs, cut, wire, examples, loss, steps=30, adapted_to="x"
        )
        assert (adapted.steps, adapted.is_better) == (0, False)
        assert adapted.after == adapted.before
        for old, new in zip(cut.tail, adapted.cut.tail, strict=True):
            if old.weight is not None:
                assert new.weight is not None
                np.testing.assert_array_equal(new.weight, old.weight)

    def test_it_begins_with_a_better_tail(
        self, network: QuantizedGraph, cut: Cut, examples: Examples
    ) -> None:
        wire, loss = coarse(network, cut, examples), distillation_loss(DETECTOR)
        outputs = network.graph.outputs
        first = adapt_tail(outputs, cut, wire, examples, loss, steps=50, adapted_to="first")
        again = adapt_tail(
            outputs, cut, wire, examples, loss, steps=0, adapted_to="again", start=first.cut
        )
        assert again.before == first.before
        assert again.after == pytest.approx(first.after)

    def test_a_tail_without_weights_stays(
        self, network: QuantizedGraph, cut: Cut, examples: Examples
    ) -> None:
        wire, bare = coarse(network, cut, examples), replace(cut, tail=())

        def loss(maps: Sequence[torch.Tensor], _teacher: Sequence[torch.Tensor]) -> torch.Tensor:
            return maps[0].abs().mean()

        adapted = adapt_tail(cut.tensors, bare, wire, examples, loss, steps=5, adapted_to="it")
        assert adapted.cut is bare
        assert not adapted.is_better

    @LOSSES
    def test_the_teacher_itself_has_no_loss(self, loss: Loss) -> None:
        maps = [
            torch.randn(2, 14, s, s, generator=torch.Generator().manual_seed(s)) for s in (4, 8)
        ]
        assert float(loss(maps, maps)) == pytest.approx(0, abs=1e-5)
        worse = [m + 0.5 for m in maps]
        assert float(loss(worse, maps)) > 0.01


class TestCurve:
    def test_fewer_bytes_mean_more_error(
        self, network: QuantizedGraph, cut: Cut, examples: Examples
    ) -> None:
        curve = rate_curve(
            network,
            cut,
            examples,
            distillation_loss(DETECTOR),
            context_steps=20,
            progress=Silent(),
        )
        sizes = [p.payload_bytes for p in curve.points]
        errors = [p.error for p in curve.points]
        assert len(curve.points) >= 3
        assert sizes == sorted(sizes)
        assert errors == sorted(errors, reverse=True)
        assert [m.channels for m in curve.contexts] == [
            network.graph[n].shape[0] for n in cut.tensors
        ]


@pytest.mark.parametrize("video", [False, True], ids=["stills", "video"])
def test_a_refined_candidate_has_all_that_it_needs(
    network: QuantizedGraph, cut: Cut, examples: Examples, tmp_path: Path, video: bool
) -> None:
    reporter = Silent()
    pairs = collect_pairs(network, cut.tensors, FRAMES, threads=1, progress=Silent())
    refiner = Refiner(
        Heads(network),
        examples,
        distillation_loss(DETECTOR),
        60,
        reporter,
        pairs=pairs if video else None,
        context_steps=40,
    )
    curve = refiner.curve(cut)
    coarse_one = curve.points[len(curve.points) // 4]
    remembered = CachedRefiner(
        lambda: refiner, Heads(network), Cache(tmp_path, "some version"), ["a network"]
    )
    options = remembered.options(cut, curve, coarse_one.wire)
    candidate = min(options, key=lambda option: option.payload_bytes)
    assert candidate is options[0]
    assert str(candidate.codec) == "context"
    assert len({option.name for option in options}) == len(options) > 1
    assert candidate.name.startswith(f"{cut.name} ")
    assert candidate.name.endswith(" KB context")
    assert candidate.weight_bytes > sum(len(m.to_bytes()) for m in candidate.contexts)
    for codec, wire in zip(candidate.codecs, candidate.wire, strict=True):
        symbols = np.array(wire.to_symbol, np.uint8)[examples.codes[wire.name][0]]
        data = codec.encode(symbols, wire.bits)
        np.testing.assert_array_equal(codec.decode(data, wire.shape, wire.bits), symbols)
    assert [model.looks_back for model in candidate.contexts_after] == [True] * video
    adapted = remembered.adapted(cut, candidate.wire, candidate.label)
    assert replace(candidate, cut=adapted).name == f"{candidate.name} adapted"
    assert len(reporter.titles) == 3 + video
    again = remembered.options(cut, curve, coarse_one.wire)
    tail = remembered.adapted(cut, candidate.wire, candidate.label).tail
    assert len(reporter.titles) == 3 + video  # it was asked for nothing a second time
    assert [option.name for option in again] == [option.name for option in options]
    assert any(new.weight is not old.weight for new, old in zip(tail, cut.tail, strict=True))
    for kept, made in zip(tail, adapted.tail, strict=True):
        np.testing.assert_array_equal(kept.weight, made.weight)
    if not video:
        with one_core():
            remembered.options(cut, curve, coarse_one.wire)
        assert len(reporter.titles) > 3  # times of coding are those of a machine
