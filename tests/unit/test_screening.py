"""Which cut gets its wire formats searched: by what it takes at the loss that all may have."""

from pathlib import Path

import numpy as np
import pytest

from common.codec.spec import CodecSpec
from common.link.link import parse_link
from common.tables.timing import Timing
from search.cache import Cache
from search.network.cuts import Cut, enumerate_cuts
from search.network.graph import IMAGE
from search.network.losses import feature_loss
from search.prediction.candidates import Candidate, CostModel
from search.prediction.cut_times import CutTimes
from search.prediction.devices import DeviceProfile
from search.quantization.calibration import observe
from search.quantization.heads import Heads
from search.quantization.network import QuantizedGraph
from search.quantization.recipe import rounded
from search.refine.screening import Screening, promising, screened
from search.wire.rate_curve import STEPS, Quantizers
from search.wire.sampling import sample
from search.wire.tail_adaptation import ADAPTATION_GAIN
from tests.networks import branched_graph, pictures

FRAMES = pictures(16)
SLOW = CostModel(parse_link("10kbit/20ms"), DeviceProfile("slow", 4.0), 2.0, 1.0)
TIMES = CutTimes(Timing(10.0, 11.0, 9), Timing(30.0, 31.0, 9))


@pytest.fixture(scope="module")
def network() -> QuantizedGraph:
    graph = branched_graph()
    return rounded(graph, observe(graph, FRAMES))


@pytest.fixture(scope="module")
def cuts(network: QuantizedGraph) -> list[Cut]:
    """Cuts of one tensor each."""
    found = [c for c in enumerate_cuts(network.graph) if c.kind == "split" and len(c.tensors) == 1]
    assert len(found) >= 2
    return found


@pytest.fixture(scope="module")
def screening(network: QuantizedGraph, cuts: list[Cut]) -> Screening:
    tensors = [cut.name for cut in cuts]
    codes = sample(network, tensors, FRAMES, lambda _done, _total: None).codes
    assert len(codes[IMAGE]) == len(codes[tensors[0]])
    return Screening(Heads(network), codes, feature_loss, Cache(None, "0"), "")


def plain(network: QuantizedGraph, cut: Cut, screening: Screening, sent: float) -> Candidate:
    """Good by a fine quantizer, whatever it may send."""
    codes = screening.codes(cut.name)
    wire = Quantizers(network, cut.name, codes).at(STEPS[0], 0.5, np.inf)
    return Candidate(cut, (wire,), CodecSpec(name="packed"), sent, 1.0, 1.0, 0, 0)


def test_less_loss_takes_more_bytes(screening: Screening, cuts: list[Cut]) -> None:
    for cut in cuts:
        sent = [screening.bytes_at(cut, allowed) for allowed in (1e-9, 0.01, 0.1, 1.0, 1e9)]
        assert sent == sorted(sent, reverse=True)
        assert 0 <= sent[-1] < sent[0]


def test_bytes_between_two_steps_are_between_theirs(
    network: QuantizedGraph, screening: Screening, cuts: list[Cut]
) -> None:
    cut = cuts[0]
    quantizers = Quantizers(network, cut.name, screening.codes(cut.name))
    errors = [screening.error(cut, (quantizers.at(step, 0.65, np.inf),)) for step in STEPS[-3:-1]]
    finer, between, coarser = (
        screening.bytes_at(cut, allowed) for allowed in (errors[0], sum(errors) / 2, errors[1])
    )
    assert finer > between > coarser


def test_cuts_are_in_order_of_what_they_take_at_equal_loss(
    network: QuantizedGraph, screening: Screening, cuts: list[Cut]
) -> None:
    times = {cut.name: TIMES for cut in cuts}
    allowed = ADAPTATION_GAIN * max(
        screening.error(c.cut, c.wire) for c in (plain(network, cut, screening, 0) for cut in cuts)
    )
    first, *_, second = sorted(cuts, key=lambda cut: screening.bytes_at(cut, allowed))
    # By plain formats it is the other way round.
    candidates = [
        plain(network, first, screening, 9000.0),
        plain(network, second, screening, 5000.0),
    ]
    assert promising(candidates, times, SLOW) == [second, first]
    assert screened(candidates, times, SLOW, screening) == [first, second]


def test_one_cut_alone_is_not_screened(
    network: QuantizedGraph, screening: Screening, cuts: list[Cut]
) -> None:
    candidate = plain(network, cuts[0], screening, 100.0)
    times = {cuts[0].name: TIMES}
    assert screened([candidate], times, SLOW, screening) == [cuts[0]]
    assert screened([], {}, SLOW, screening) == []


def test_what_was_screened_is_not_computed_again(
    network: QuantizedGraph,
    screening: Screening,
    cuts: list[Cut],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    codes = {name: list(screening.codes(name)) for name in (IMAGE, cuts[0].name)}
    wire = plain(network, cuts[0], screening, 0).wire

    def made() -> tuple[float, float]:
        cache = Cache(tmp_path, "0")
        again = Screening(Heads(network), codes, feature_loss, cache, "origin")
        return again.error(cuts[0], wire), again.bytes_at(cuts[0], 0.1)

    first = made()
    monkeypatch.setattr("search.refine.screening.wire_error", None)
    assert made() == first
