"""The search's own arithmetic: predictions, what is kept, wire quantizers, sizes."""

import re
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.codec.spec import USUAL_UPLOAD, CodecSpec
from common.errors import SettingsError
from common.link.link import parse_link
from common.sizes import parse_size
from common.tables.timing import Timing
from search.constraints import constraints
from search.constraints.edge_memory import EdgeMemory
from search.network.cuts import Cut, enumerate_cuts
from search.network.graph import Node
from search.network.quant_params import QuantParams
from search.prediction.candidates import (
    FRAME_OVERHEAD_BYTES,
    Candidate,
    CostModel,
    RankedCandidate,
    pareto,
    predict,
    rank_candidates,
    shortlist,
    worth_keeping,
)
from search.prediction.cut_times import CutTimes
from search.prediction.devices import DeviceProfile, device_profile
from search.quantization.calibration import observe
from search.quantization.heads import Heads
from search.quantization.network import QuantizedGraph
from search.quantization.recipe import rounded
from search.ranking.infeasible import no_cut_left
from search.wire.formats import promising_cuts, runnable_cuts
from search.wire.quantizers import wire_tensor
from tests.networks import SIZE, branched_graph
from tests.tiny import PREDICTION

LINK = parse_link("1mbit/20ms")
COST_MODEL = CostModel(LINK, DeviceProfile("slow", 4.0), preprocess_ms=2.0, postprocess_ms=1.0)
TIMES = CutTimes(Timing(10.0, 11.0, 9), Timing(30.0, 31.0, 9))
NODE = Node("t", "conv", (), (4, 2, 2))
GRID = QuantParams.over(-1.0, 3.0)


def _candidate(
    kind: str = "split", sent: float = 900.0, memory: int = 5, bits: int = 4
) -> Candidate:
    head = () if kind == "cloud-only" else (NODE,)
    tail = () if kind == "edge-only" else (NODE,)
    codec = None if kind == "edge-only" else CodecSpec(name="packed")
    counts = np.ones(256, np.int64)
    wire = () if codec is None else (wire_tensor(NODE, GRID, bits, counts),)
    cut = Cut((f"t{bits}",), head, tail)
    encode_ms, decode_ms = (0.5, 0.25) if codec else (0.0, 0.0)
    return Candidate(cut, wire, codec, sent, encode_ms, decode_ms, memory, 0)


def test_a_split_pays_for_every_stage() -> None:
    prediction = predict(_candidate(), TIMES, COST_MODEL)
    uplink_ms = (900 + FRAME_OVERHEAD_BYTES) * 8 / 1000
    assert prediction.uplink_ms == uplink_ms
    assert prediction.latency_ms == 4 * (2 + 10 + 0.5) + uplink_ms + 20 + 0.25 + 30 + 1


def test_edge_only_does_not_wait_for_the_link() -> None:
    prediction = predict(
        _candidate("edge-only"), CutTimes(Timing(10, 10, 9), Timing(0, 0, 0)), COST_MODEL
    )
    assert prediction.latency_ms == 4 * (2 + 10 + 1)
    assert prediction.uplink_bytes == prediction.rtt_ms == 0


def _judged(
    latency: float, sent: float, memory: int, accuracy: float, kind: str = "split"
) -> RankedCandidate:
    predicted = PREDICTION.model_copy(update={"latency_ms": latency, "uplink_ms": 0.0})
    return RankedCandidate(_candidate(kind, sent, memory), predicted, accuracy)


def test_the_front_holds_what_nothing_beats_on_every_axis() -> None:
    fast, small, lean, good = (
        _judged(10, 50, 50, 50),
        _judged(50, 10, 50, 50),
        _judged(50, 50, 10, 50),
        _judged(50, 50, 50, 90),
    )
    beaten = _judged(11, 51, 51, 50)
    assert set(pareto([beaten, fast, small, lean, good])) == {fast, small, lean, good}


def test_who_is_beaten_on_the_link_asked_for_is_kept_for_a_faster_one() -> None:
    coded = _candidate(sent=1000, memory=10)
    times = {coded.cut.name: TIMES}
    plain = replace(coded, payload_bytes=1500.0, encode_ms=coded.encode_ms / 5)
    worse = replace(plain, payload_bytes=1600.0)
    judged = [
        replace(j, accuracy=50.0) for j in rank_candidates([coded, plain, worse], times, COST_MODEL)
    ]

    assert judged[0].candidate is coded
    assert {j.candidate.payload_bytes for j in pareto(judged)} == {1000.0, 1500.0}


@given(st.lists(st.tuples(*[st.integers(0, 5)] * 4), min_size=1, max_size=20))
def test_everything_off_the_front_is_beaten_by_something_on_it(
    points: list[tuple[int, int, int, int]],
) -> None:
    judged = [_judged(*point) for point in points]
    front = pareto(judged)
    for each in judged:
        assert any(all(a <= b for a, b in zip(f.axes, each.axes, strict=True)) for f in front)
    for one in front:
        for other in front:
            assert one is other or any(a > b for a, b in zip(one.axes, other.axes, strict=True))


def test_the_fastest_of_a_beaten_kind_is_kept() -> None:
    edge = _judged(10, 0, 0, 90, "edge-only")
    slow, slower = _judged(20, 10, 10, 80), _judged(30, 20, 20, 80)
    assert worth_keeping([slower, slow, edge]) == [edge, slow]


def test_the_usual_upload_is_kept_to_compare_with() -> None:
    usual = _judged(50, 50, 0, 80, "cloud-only")
    usual = replace(usual, candidate=replace(usual.candidate, codec=USUAL_UPLOAD))
    better = _judged(40, 40, 0, 90, "cloud-only")
    assert worth_keeping([usual, better]) == [better, usual]


def test_the_shortlist_has_every_width_and_all_that_is_no_split() -> None:
    candidates = [_candidate(sent=100.0 * bits, bits=bits) for bits in (2, 4, 6, 8)]
    candidates += [_candidate("cloud-only"), _candidate("edge-only")]
    times = {c.cut.name: TIMES for c in candidates}
    kept = shortlist(candidates, times, COST_MODEL, per_width=1)
    assert {id(c) for c in kept} == {id(c) for c in candidates}


def test_judging_ranks_by_latency() -> None:
    big, small = _candidate(sent=9000), _candidate(sent=100)
    assert [j.candidate for j in rank_candidates([big, small], {"t4": TIMES}, COST_MODEL)] == [
        small,
        big,
    ]


@given(
    bits=st.integers(1, 8),
    counts=st.lists(st.integers(0, 1000), min_size=256, max_size=256).filter(any),
)
def test_wire_quantizers_are_monotone_and_within_their_width(bits: int, counts: list[int]) -> None:
    wire = wire_tensor(NODE, GRID, bits, np.array(counts))
    symbols = np.array(wire.to_symbol)
    assert (np.diff(symbols) >= 0).all()
    assert symbols.max() < 1 << bits
    used = sorted(set(symbols.tolist()))
    assert (np.diff([wire.to_value[s] for s in used]) > 0).all()


def test_wire_quantizers_get_better_with_width_and_keep_the_mean() -> None:
    rng = np.random.default_rng(0)
    codes = np.clip(rng.laplace(70, 12, 50_000).round(), 0, 255).astype(np.uint8)
    counts = np.bincount(codes, minlength=256)
    values = GRID.dequantize(codes)
    errors = []
    for bits in (2, 3, 4, 6, 8):
        wire = wire_tensor(NODE, GRID, bits, counts)
        rebuilt = np.array(wire.to_value, np.float32)[np.array(wire.to_symbol)[codes]]
        assert abs(float(rebuilt.mean() - values.mean())) < 1e-4
        errors.append(float(np.mean((rebuilt - values) ** 2)))
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 1e-12


@pytest.fixture(scope="module")
def network() -> QuantizedGraph:
    graph = branched_graph()
    frames = np.random.default_rng(0).integers(0, 256, (4, 3, *SIZE), np.uint8)
    return rounded(graph, observe(graph, frames))


def test_memory_limit_leaves_only_heads_that_fit(network: QuantizedGraph) -> None:
    heads, cuts = Heads(network), enumerate_cuts(network.graph)
    needs = sorted(sum(heads.memory_bytes(cut)) for cut in cuts if cut.head)
    limit = needs[len(needs) // 2]
    allowed = [cut for cut in cuts if EdgeMemory(limit).admits_cut(cut, heads)]
    assert allowed[0].kind == "cloud-only"
    assert all(sum(heads.memory_bytes(cut)) <= limit for cut in allowed)
    assert 1 < len(allowed) < len(cuts)


def test_promising_cuts_are_few_and_keep_the_ends(network: QuantizedGraph) -> None:
    cuts = enumerate_cuts(network.graph) * 3
    chosen = promising_cuts(network.graph, cuts, LINK)
    assert len(chosen) == min(40, len(cuts))
    assert [c.kind for c in chosen[:2]] == ["cloud-only", "edge-only"]


def test_when_nothing_fits_the_smallest_need_is_told(network: QuantizedGraph) -> None:
    heads, cuts = Heads(network), enumerate_cuts(network.graph)
    limits = constraints(edge_memory=100, no_raw_image=True)
    message = no_cut_left(limits, heads, runnable_cuts(heads, cuts))
    assert "no cut keeps --edge-memory 9.53674e-05MiB and --no-raw-image" in message
    assert re.search(r"the smallest head, up to conv_0, needs \d+\.\d+ MiB", message)
    assert "raise --edge-memory to 0.02MiB" in message


def test_a_node_without_an_integer_form_stays_in_the_cloud(network: QuantizedGraph) -> None:
    deep = network.graph.nodes[-1].name
    refusing = QuantizedGraph(
        network.graph, network.grids, network.before, network.convs, {deep: "no"}
    )
    cuts = enumerate_cuts(network.graph)
    allowed = runnable_cuts(Heads(refusing), cuts)
    assert all(deep not in {node.name for node in cut.head} for cut in allowed)
    assert "edge-only" not in {cut.kind for cut in allowed}


@pytest.mark.parametrize(
    ("text", "size"), [("16MiB", 16 << 20), ("500 kB", 500_000), ("1.5gb", 1_500_000_000), ("7", 7)]
)
def test_sizes_are_read_as_people_write_them(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "0", "-1MiB", "4 elephants", "MiB", "1e9"])
def test_nonsense_is_no_size(text: str) -> None:
    with pytest.raises(SettingsError, match="16MiB"):
        parse_size(text)


def test_unknown_devices_are_refused_with_the_known_ones() -> None:
    with pytest.raises(SettingsError, match="this-machine, half-core"):
        device_profile("abacus")
