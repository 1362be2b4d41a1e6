"""Constraints: what each admits, what it would take to relax it, and searches under a budget."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_type_hints

import pytest

from common.codec.spec import CodecSpec
from common.errors import BundleError, NoFeasiblePlanError, SettingsError
from common.link.link import parse_link
from common.progress import Progress
from search.constraints import CONSTRAINTS, Limits, constraints, restored, stored
from search.constraints.base import SearchFacts
from search.constraints.edge_memory import EdgeMemory
from search.constraints.feasibility import admits
from search.constraints.max_bytes import MaxBytes
from search.constraints.max_drop import MaxDrop
from search.constraints.no_raw_image import NoRawImage
from search.measure.held_out import Judging
from search.network.cuts import Cut
from search.network.graph import Node
from search.prediction.candidates import FRAME_OVERHEAD_BYTES, Candidate, RankedCandidate
from search.prediction.devices import DeviceProfile
from search.ranking.infeasible import nothing_fits
from search.ranking.search_run import Network, rank
from search.refine import format_search
from search.refine.format_search import FormatSearch
from search.refine.refine import cheapest
from search.reports.markdown import as_json, markdown
from search.request import Request
from search.source import NetworkSource
from search.wire.rate_curve import RateCurve, RatePoint
from tests.searched import small_network
from tests.tiny import PREDICTION

NODE = Node("t", "conv", (), (1, 1, 1))
ALL: Limits = {"max_drop": 2.0, "edge_memory": "1MiB", "no_raw_image": True, "max_bytes": "4KB"}


class Silent:
    """Reports nothing."""

    def stage(self, _title: str, /) -> Progress:
        return lambda _done, _total, _note="", /: None


def plan(
    sent: float = 0.0, *, kind: str = "split", memory: int = 0, lost: float = 0.0
) -> RankedCandidate:
    """A measured candidate; edge-only sends nothing."""
    cut = Cut(("t",), () if kind == "cloud-only" else (NODE,), (NODE,))
    codec = None if kind == "edge-only" else CodecSpec(name="packed")
    candidate = Candidate(cut, (), codec, sent, 0.0, 0.0, memory, 0, label=f"{sent:g}")
    predicted = PREDICTION.model_copy(update={"uplink_bytes": candidate.uplink_bytes})
    return RankedCandidate(candidate, predicted, 90.0 - lost, 64, most_lost=lost)


def facts() -> SearchFacts:
    """Facts of a search by another strategy, whose heads are never asked for."""
    return SearchFacts(90.0, None, (), "dads")  # type: ignore[arg-type]


def test_every_limit_of_the_interface_is_registered() -> None:
    assert list(get_type_hints(Limits)) == list(CONSTRAINTS)
    assert all(kind.name == name for name, kind in CONSTRAINTS.items())


def test_limits_are_read_as_people_write_them() -> None:
    assert constraints(**ALL) == (MaxDrop(2.0), EdgeMemory(1 << 20), NoRawImage(), MaxBytes(4000))
    assert constraints(max_bytes=1234)[-1] == MaxBytes(1234)


def test_what_is_not_limited_is_no_constraint_but_accuracy_is() -> None:
    assert constraints(edge_memory=None, no_raw_image=False) == (MaxDrop(3.0),)


@pytest.mark.parametrize(
    "limits",
    [
        {"max_bytes": "few"},
        {"max_bytes": 0},
        {"max_bytes": 0.5},
        {"max_bytes": True},
        {"edge_memory": -1},
        {"max_drop": -1.0},
        {"max_drop": "much"},
        {"max_drop": True},
        {"max_drop": float("inf")},
        {"no_raw_image": 1},
    ],
)
def test_nonsense_is_no_limit(limits: Any) -> None:
    with pytest.raises(SettingsError):
        constraints(**limits)


def test_a_misspelt_limit_is_not_passed_over() -> None:
    limits: Any = {"max_byte": 4000}
    with pytest.raises(TypeError, match="max_byte"):
        constraints(**limits)


def test_a_manifest_keeps_every_limit() -> None:
    made = constraints(**ALL)
    assert set(stored(made)) == set(CONSTRAINTS)
    assert restored(stored(made)) == made


def test_a_manifest_with_a_limit_of_a_later_version_is_refused() -> None:
    with pytest.raises(BundleError, match="max_joules"):
        restored({"max_drop": 1.0, "max_joules": 2})


def test_a_budget_counts_the_framing_of_a_frame() -> None:
    assert MaxBytes(900 + FRAME_OVERHEAD_BYTES).admits(plan(900))
    assert not MaxBytes(899 + FRAME_OVERHEAD_BYTES).admits(plan(900))


def test_edge_only_keeps_any_budget() -> None:
    assert MaxBytes(1).admits(plan(kind="edge-only"))


@pytest.mark.parametrize(
    ("constraint", "kept", "broken"),
    [
        (MaxDrop(1.0), plan(lost=1.0), plan(lost=1.1)),
        (EdgeMemory(10), plan(memory=10), plan(memory=11)),
        (NoRawImage(), plan(), plan(kind="cloud-only")),
        (MaxBytes(200), plan(100), plan(101)),
    ],
    ids=str,
)
def test_a_relaxed_limit_admits_the_plan_it_was_relaxed_for(
    constraint: Any, kept: RankedCandidate, broken: RankedCandidate
) -> None:
    assert constraint.admits(kept)
    assert not constraint.admits(broken)
    relaxed = constraint.relaxed_for(broken, facts())
    option, _, value = relaxed.option.partition(" ")
    name = option.removeprefix("--").replace("-", "_")
    if name in CONSTRAINTS:
        number = float(value) if name == "max_drop" else value
        again = CONSTRAINTS[name].parse(number)
        assert again is not None
        assert again.admits(broken)
        assert relaxed.factor > 1
    else:
        assert relaxed.option == "no --no-raw-image"


def test_advice_raises_the_budget_to_the_smallest_plan_that_keeps_the_rest() -> None:
    measured = [plan(2000), plan(900), plan(50, lost=9.0), plan(60, memory=99)]
    limits = constraints(max_drop=1.0, edge_memory=98, max_bytes=400)
    message = nothing_fits(measured, limits, facts())
    assert message.startswith("no plan keeps --max-drop 1 and --edge-memory")
    ways = message.partition("the cheapest ways out: ")[2].split("; ")
    assert ways[0].startswith("--edge-memory")
    assert ways[1] == "--max-bytes 1000 (t 900 packed is small enough then)"
    assert ways[2].startswith("--max-drop 9.00")


def test_if_no_limit_alone_is_to_blame_several_are_relaxed_together() -> None:
    limits = constraints(max_drop=1.0, max_bytes=400)
    message = nothing_fits([plan(900, lost=2.0), plan(9000, lost=1.5)], limits, facts())
    assert message.endswith(
        "the cheapest ways out: --max-drop 2.00 with --max-bytes 1000 "
        "(t 900 packed keeps all limits then)"
    )


@pytest.mark.parametrize("accurate_from", range(13))
@pytest.mark.parametrize("affordable_up_to", range(-1, 12))
def test_bisection_finds_the_cheapest_between_too_coarse_and_too_dear(
    accurate_from: int, affordable_up_to: int
) -> None:
    asked: list[int] = []

    def is_accurate(option: int) -> bool:
        asked.append(option)
        return option >= accurate_from

    found = cheapest(
        range(12), is_accurate, trials=5, is_affordable=lambda option: option <= affordable_up_to
    )
    assert found == (accurate_from if accurate_from <= min(affordable_up_to, 11) else None)
    assert all(option <= affordable_up_to for option in asked)


class Formats:
    """A refiner of six formats of 100 to 3,200 bytes; notes the tails that it is asked for."""

    def __init__(self, accurate: Callable[[float], bool]) -> None:
        self.accurate = accurate
        self.adapted_to: list[float] = []
        self.sizes = [100.0 * 2**index for index in range(6)]

    def curve(self, _cut: Cut) -> RateCurve:
        points = [RatePoint(1.0, 0.5, 9.0, (size,), size, 6400 / size) for size in self.sizes]
        return RateCurve(tuple(points), ())

    def options(self, cut: Cut, _curve: RateCurve, wire: Any) -> tuple[Candidate, ...]:
        return (Candidate(cut, wire, CodecSpec(name="context"), wire[0], 0.0, 0.0, 0, 0),)

    def adapted(self, cut: Cut, wire: Any, label: str) -> Cut:
        self.adapted_to.append(wire[0])
        return replace(cut, adapted_to=label or "it")

    # Both ends of a search: what measures, and what checks.
    def first_accurate(self, _cut: Cut, wires: Sequence[Any], _progress: Progress) -> int:
        return len(wires) - 1

    def measured(self, _candidate: Candidate) -> None:
        pass


class Budget(Formats):
    """Checks of candidates against a budget, and against what is accurate."""

    limit = 1e9

    def is_affordable(self, candidate: Candidate) -> bool:
        return candidate.payload_bytes <= self.limit

    def is_feasible(self, candidate: Candidate) -> bool:
        return self.is_affordable(candidate) and self.accurate(candidate.payload_bytes)


@pytest.mark.parametrize(
    ("budget", "accurate_from", "adapted"),
    [
        (1e9, 200.0, [200.0, 100.0]),  # loss 32 at 200 is what a tail gains on 2 at 3,200
        (500.0, 200.0, [200.0, 100.0]),
        (500.0, 400.0, [200.0, 400.0]),
        (500.0, 9e9, [200.0, 400.0]),  # nothing finer is tried: it costs more still
        (150.0, 9e9, [100.0]),
        (50.0, 9e9, []),
    ],
)
def test_formats_over_the_budget_get_no_tail(
    budget: float, accurate_from: float, adapted: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    formats = Budget(lambda size: size >= accurate_from)
    formats.limit = budget
    monkeypatch.setattr(format_search, "CachedRefiner", lambda *_arguments: formats)
    monkeypatch.setattr(format_search, "ADAPTATION_GAIN", 16.0)
    request = Request(NetworkSource("m"), parse_link("1mbit/1ms"), DeviceProfile("d", 1.0), Path())
    prepared = SimpleNamespace(cache=None, origin="")
    parts: list[Any] = [request, prepared, None, formats, formats, Silent(), Path()]
    FormatSearch(*parts).search([plan(5000).candidate], [plan(5000).candidate.cut])
    assert formats.adapted_to == adapted


def few_cuts() -> Network:
    """The small network with its ends and one split between them."""
    network = small_network()
    split = next(cut for cut in network.cuts if cut.kind == "split" and len(cut.tensors) == 1)
    return replace(network, cuts=[network.cuts[0], split, network.cuts[-1]])


def small_request(folder: Path, **limits: Any) -> Request:
    """A search over so fast a link, from so slow an edge, that pixels as they are win.

    Accuracy is no limit: what is tested is the budget.
    """
    return Request(
        NetworkSource("small"),
        parse_link("100gbit/1ms"),
        DeviceProfile("slow", 1e6, reduced_range=True),
        folder,
        constraints=constraints(max_drop=100.0, **limits),
        refined_cuts=0,
        narrow_cuts=0,
    )


def test_a_budget_forces_another_winner(tmp_path: Path) -> None:
    network = few_cuts()
    judging = Judging(network.prepared.calibration, "evaluation")
    free = rank(small_request(tmp_path), network, judging, Silent()).kept[0]
    assert str(free.candidate.codec) == "raw"
    request = small_request(tmp_path, max_bytes=600)
    found = rank(request, network, judging, Silent())
    assert all(each.predicted.uplink_bytes <= 600 for each in found.kept)
    assert admits(request.constraints, found.kept[0])
    assert found.kept[0].latency_ms > free.latency_ms
    assert found.kept[0].latency_ms == min(
        each.latency_ms for each in found.measured if each.predicted.uplink_bytes <= 600
    )
    # The usual quality is over the budget: lower ones were tried, and none above it.
    webp = [j for j in found.measured if (c := j.candidate.codec) and c.name == "webp"]
    assert webp
    assert all(admits(request.constraints, each) for each in webp)
    assert "600 bytes of a frame on the uplink" in markdown(found)
    assert as_json(found)["request"]["limits"] == {"max_drop": 100.0, "max_bytes": 600}


def test_a_budget_that_nothing_keeps_says_what_the_least_is(tmp_path: Path) -> None:
    network = few_cuts()
    judging = Judging(network.prepared.calibration, "evaluation")
    request = small_request(tmp_path, max_bytes=50, edge_memory=3000)
    with pytest.raises(NoFeasiblePlanError) as caught:
        rank(request, network, judging, Silent())
    message = str(caught.value)
    assert "no plan keeps --max-drop 100 and --edge-memory" in message
    needed = int(message.partition("--max-bytes 50")[2].partition("--max-bytes ")[2].split()[0])
    enough = small_request(tmp_path, max_bytes=needed, edge_memory=3000)
    (kept,) = {each.candidate.cut.kind for each in rank(enough, network, judging, Silent()).kept}
    assert kept == "cloud-only"
