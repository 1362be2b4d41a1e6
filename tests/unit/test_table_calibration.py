"""What tables teach the search: exact times where they are known, slowdowns everywhere else."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common.bundle.bundle import Bundle
from common.codec.spec import CodecSpec, WireTensor
from common.errors import SettingsError, StoreError
from common.link.link import parse_link
from common.progress import Progress
from common.tables.rows import ENOUGH, LatencyRow, head_to, segments, tail_from, to_json
from common.tables.store_file import read_tables
from common.tables.timing import Timing
from search.constraints import constraints
from search.export import write_plans
from search.measure.held_out import Judging
from search.network.cuts import Cut, enumerate_cuts, prefix_cuts
from search.network.graph import Node
from search.pipeline import search
from search.prediction.candidates import (
    Candidate,
    CostModel,
    context_file,
    predict,
    rank_candidates,
    with_coding,
)
from search.prediction.cut_times import CutTimes
from search.prediction.devices import DEVICES, DeviceProfile
from search.prediction.table_calibration import (
    TableCalibration,
    calibrate,
    calibrated_device,
    cuts_of,
    require_device,
    rows_of,
)
from search.quantization.calibration import observe
from search.quantization.heads import Heads
from search.quantization.recipes import RECIPES
from search.quantization.rounding import Rounder
from search.ranking.search_run import Network, rank
from search.reports import time_sources as origins
from search.reports.html import html
from search.reports.markdown import as_json, markdown
from search.request import Request, SearchResult
from search.source import NetworkSource
from search.strategies.baselines import cost_graph
from search.wire.formats import FormatTable
from search.wire.sampling import sample
from tests import tiny
from tests.contexts import random_model
from tests.networks import branched_graph, pictures
from tests.searched import small_network

LINK = parse_link("3mbit/20ms")
PI = DeviceProfile("pi", 1.0)
TIMES = {
    name: CutTimes(Timing(head_ms, head_ms, 9), Timing(tail_ms, tail_ms, 9))
    for name, head_ms, tail_ms in (
        ("image", 0.0, 30.0),
        ("a", 10.0, 20.0),
        ("b", 20.0, 10.0),
        ("out", 30.0, 0.0),
    )
}


def row(segment: str, median_ms: float, **others: Any) -> LatencyRow:
    """A believable row of the device pi, or of the cloud if the segment is a tail."""
    cloud = segment.startswith(("tail", "decode"))
    fields: dict[str, Any] = {
        "device": "rack" if cloud else "pi",
        "runtime": "onnxruntime x1",
        "threads": 1,
        "side": "cloud" if cloud else "edge",
        "network": tiny.NETWORK,
        "segment": segment,
        "bits": "32" if cloud else "8",
        "n": 100,
        "median_ms": median_ms,
        "p90_ms": median_ms,
        "low_ms": median_ms,
        "high_ms": median_ms,
        "source": "served",
        "last_seen_s": 0.0,
    }
    return LatencyRow(**(fields | others))


def taught(*rows: LatencyRow, device: DeviceProfile = PI) -> TableCalibration:
    return calibrate(rows, device, TIMES, preprocess_ms=2.0, postprocess_ms=1.0)


def cost_model_of(*rows: LatencyRow) -> CostModel:
    return CostModel(LINK, PI, 2.0, 1.0, taught(*rows))


def candidate(cut: str, codec: str | None = "packed") -> Candidate:
    node = Node(cut, "conv", (), (4, 2, 2))
    head = () if cut == "image" else (node,)
    tail = () if codec is None else (node,)
    spec = None if codec is None else CodecSpec(name=codec)
    coding_ms = 0.0 if codec is None else 1.0
    return Candidate(
        Cut((cut,), head, tail), (), spec, 1000, coding_ms, coding_ms, 0, 0, label="searched"
    )


def test_segments_have_the_names_that_tables_give_them(tmp_path: Path) -> None:
    with Bundle.open(tiny.build(tmp_path / "bundle").root) as bundle:
        for plan in bundle.manifest.plans:
            cut, named = "+".join(plan.cut), {each.stage: each.name for each in segments(plan)}
            assert named.get("head", head_to(cut)) == head_to(cut)
            assert named.get("tail", tail_from(cut)) == tail_from(cut)
            head = () if plan.head is None else (Node(cut, "conv", (), (4, 2, 2)),)
            same = Candidate(Cut(plan.cut, head, ()), plan.wire, plan.codec, 0, 0, 0, 0, 0)
            for stage in ("encode", "decode"):
                assert named.get(stage, f"{stage} {same.coding}") == f"{stage} {same.coding}"


def test_a_known_head_takes_what_the_table_says_and_others_the_slowdown() -> None:
    cost_model = cost_model_of(row("head to a", 41.0))
    assert predict(candidate("a"), TIMES["a"], cost_model).head_ms == 41.0
    assert predict(candidate("b"), TIMES["b"], cost_model).head_ms == pytest.approx(20 * 4.1)
    edge_only = predict(candidate("out", None), TIMES["out"], cost_model)
    assert edge_only.head_ms == pytest.approx(30 * 4.1)
    assert edge_only.postprocess_ms == pytest.approx(4.1)


def test_a_known_tail_likewise_for_the_cloud() -> None:
    cost_model = cost_model_of(
        row("tail from a", 10.0), row("boxes", 3.0, side="cloud", device="rack")
    )
    assert predict(candidate("a"), TIMES["a"], cost_model).tail_ms == 10.0
    whole = predict(candidate("image"), TIMES["image"], cost_model)
    assert whole.tail_ms == pytest.approx(15.0)
    assert whole.decode_ms == pytest.approx(0.5)
    assert whole.postprocess_ms == 3.0


def test_letterboxing_and_boxes_have_their_own_times() -> None:
    cost_model = cost_model_of(row("head to a", 40.0), row("letterbox", 7.0), row("boxes", 9.0))
    assert predict(candidate("a"), TIMES["a"], cost_model).preprocess_ms == 7.0
    assert predict(candidate("out", None), TIMES["out"], cost_model).postprocess_ms == 9.0
    # The cloud's boxes are not the edge's.
    assert predict(candidate("a"), TIMES["a"], cost_model).postprocess_ms == 1.0


def test_twice_as_slow_and_twice_as_fast_cancel_out() -> None:
    side = taught(row("head to a", 20.0), row("head to b", 10.0)).edge
    assert side.pace.slowdown == pytest.approx(1.0)
    assert (side.low, side.high) == pytest.approx((0.5, 2.0))
    assert side.paired == 2


def test_frames_count_but_not_without_end() -> None:
    many, few = row("head to a", 40.0, n=10_000), row("head to b", 40.0, n=ENOUGH)
    assert 2.9 < taught(many, few).edge.pace.slowdown <= 4.0
    third = row("head to out", 60.0, n=100)
    assert taught(many, few, third).edge.pace.slowdown < 4.0


@pytest.mark.parametrize(
    ("rows", "believed"),
    [
        # what was served, as soon as there is enough of it
        ([("served", ENOUGH, 1.0), ("profiled", 50, 2.0), ("simulated", 1, 3.0)], 1.0),
        ([("served", ENOUGH - 1, 1.0), ("profiled", 50, 2.0), ("simulated", 1, 3.0)], 2.0),
        # few frames still beat a simulation
        ([("served", 3, 1.0), ("simulated", 1, 3.0)], 1.0),
        ([("simulated", 1, 3.0)], 3.0),
    ],
)
def test_the_best_source_is_believed(rows: list[tuple[str, int, float]], believed: float) -> None:
    made = [row("head to a", ms, source=source, n=n) for source, n, ms in rows]
    assert taught(*made).edge.pace.known_ms == {"head to a": believed}


def test_of_equal_rows_the_newest_is_believed() -> None:
    old, new = row("head to a", 1.0, last_seen_s=1.0), row("head to a", 2.0, last_seen_s=2.0)
    assert taught(new, old).edge.pace.known_ms == {"head to a": 2.0}


def test_a_simulated_head_of_fewer_bits_does_not_teach_one_of_eight() -> None:
    assert taught(row("head to a", 9.0, bits="2-8", source="simulated")).edge.rows == {}
    assert taught(row("head to a", 9.0, bits="2-8")).edge.pace.known_ms == {"head to a": 9.0}


def test_rows_that_may_mean_anything_are_ignored_and_counted() -> None:
    wild = row("head to a", 10.0, low_ms=4.0, high_ms=15.0)
    wide = row("head to b", 10.0, low_ms=5.0, high_ms=15.0)
    foreign = row("head to a", 10.0, low_ms=1.0, high_ms=90.0, device="else")
    calibration = taught(wild, wide, foreign)
    assert calibration.ignored == 1
    assert calibration.edge.pace.known_ms == {"head to b": 10.0}


def test_codecs_have_slowdowns_of_their_own() -> None:
    wire = candidate("a").coding
    cost_model = cost_model_of(
        row("head to a", 40.0), row(f"encode {wire}", 7.0), row(f"decode {wire}", 3.0)
    )
    packed, zstd = candidate("a"), candidate("a", "packed+zstd")
    cost_model = with_coding(cost_model, [packed, zstd])
    assert predict(packed, TIMES["a"], cost_model).encode_ms == 7.0
    other = predict(candidate("b"), TIMES["b"], cost_model)
    assert (other.encode_ms, other.decode_ms) == pytest.approx((7.0, 3.0))
    assert predict(zstd, TIMES["a"], cost_model).encode_ms == pytest.approx(4.0)
    assert with_coding(cost_model, []).calibration is not None


def test_context_models_tell_wire_formats_apart() -> None:
    tensor = WireTensor(
        name="a", shape=(4, 2, 2), bits=1, to_symbol=(0,) * 256, to_value=(0.0, 1.0)
    )
    spec, models = CodecSpec(name="context"), [random_model(4, 2), random_model(4, 2, seed=1)]
    first, again, other = (
        replace(candidate("a"), wire=(tensor,), codec=spec, contexts=(model,))
        for model in (models[0], models[0], models[1])
    )
    assert first.coding == again.coding != other.coding
    (named,) = first.named_wire
    assert named.context == context_file(models[0])


def test_small_segments_stand_in_where_no_head_is_known() -> None:
    assert taught(row("letterbox", 6.0)).edge.pace.slowdown == pytest.approx(3.0)


def test_a_profile_holds_where_the_tables_do_not_know_the_edge() -> None:
    calibration = taught(row("tail from a", 40.0), device=DEVICES["quarter-core"])
    assert calibration.edge.pace.slowdown == 4.0
    assert calibration.cloud.pace.slowdown == pytest.approx(2.0)


def test_learning_changes_which_plan_is_the_fastest() -> None:
    both = [candidate("a"), candidate("image", "png")]
    plain = CostModel(LINK, PI, 2.0, 1.0)
    assert [j.candidate.cut.name for j in rank_candidates(both, TIMES, plain)] == ["a", "image"]
    slow = cost_model_of(row("head to a", 200.0), row("letterbox", 2.0))
    assert [j.candidate.cut.name for j in rank_candidates(both, TIMES, slow)] == ["image", "a"]


@pytest.mark.parametrize("saturates", [True, False])
def test_a_device_of_the_tables_keeps_to_what_this_machine_can_measure(
    monkeypatch: pytest.MonkeyPatch, *, saturates: bool
) -> None:
    monkeypatch.setitem(DEVICES, "this-machine", DeviceProfile("this-machine", 1.0, saturates))
    device = calibrated_device("cam", [row("head to a", 1.0, device="cam")])
    assert device == DeviceProfile("cam", 1.0, saturates)


def test_devices_are_those_of_the_tables_or_profiles() -> None:
    rows = [row("head to a", 1.0), row("head to a", 1.0, device="cam"), row("tail from a", 1.0)]
    assert calibrated_device("cam", rows) == replace(DEVICES["this-machine"], name="cam")
    assert calibrated_device("quarter-core", rows) is DEVICES["quarter-core"]
    assert calibrated_device("pi", rows, reduced_range=True).reduced_range
    with pytest.raises(SettingsError, match=r"unknown device 'rack': the tables know cam, pi;"):
        calibrated_device("rack", rows)
    with pytest.raises(SettingsError, match=r"nothing of .* 'half-core'.* cam, pi of this"):
        require_device("half-core", rows)


def test_rows_of_other_networks_are_left_out() -> None:
    mine, foreign = row("head to a", 1.0), row("head to a", 9.0, network="f" * 64, device="cam")
    assert rows_of(tiny.NETWORK, [foreign, mine]) == [mine]
    assert rows_of(tiny.NETWORK, [foreign, mine], PI) == [mine]
    assert rows_of(tiny.NETWORK, [foreign], DEVICES["half-core"]) == []
    with pytest.raises(SettingsError, match="'cam' by times of other networks only"):
        rows_of(tiny.NETWORK, [foreign, mine], DeviceProfile("cam", 1.0))


def test_cuts_that_tables_tell_of_are_found() -> None:
    cuts = [Cut((name,), (), ()) for name in ("a", "b", "c")]
    found = cuts_of([row("head to a", 1.0), row("tail from c", 1.0)], cuts)
    assert [cut.name for cut in found] == ["a", "c"]


def test_a_file_that_is_no_table_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    (tmp_path / "tables").write_text("no table")
    request = Request(NetworkSource("tiny"), LINK, PI, tmp_path, tables=tmp_path / "tables")
    with pytest.raises(StoreError):
        search(request, tmp_path / "out", Silent())
    (tmp_path / "tables").write_text(to_json([row("head to a", 1.0)]))
    assert read_tables(tmp_path / "tables") == [row("head to a", 1.0)]
    request = replace(request, device=DeviceProfile("camera", 1.0))
    with pytest.raises(SettingsError, match="unknown device 'camera'"):
        search(request, tmp_path / "out", Silent())


class Silent:
    """Reports nothing."""

    def stage(self, _title: str, /) -> Progress:
        return lambda _done, _total, _note="", /: None


def test_baselines_read_the_same_learned_times() -> None:
    graph, frames = branched_graph(), pictures(6)
    rounder = Rounder(graph, observe(graph, frames), frames, how=RECIPES["nearest"])
    heads = Heads(rounder.nearest({}))
    names = [node.name for node in graph.nodes[1:]]
    samples = sample(heads.network, names, frames, lambda _done, _total: None)
    prefixes = prefix_cuts(graph)
    times = {
        cut.name: CutTimes(Timing(2.0 * len(cut.head), 0, 9), Timing(1.0 * len(cut.tail), 0, 9))
        for cut in prefixes
    }
    whole = prefixes[-1]
    rows = [row(f"head to {cut.name}", 10.0 * len(cut.head)) for cut in prefixes[1:-1]]
    rows.append(row(f"head to {whole.name}", 1000.0))
    calibration = calibrate(rows, PI, times, preprocess_ms=1.0, postprocess_ms=1.0)
    cost_model = CostModel(LINK, PI, 1.0, 1.0, calibration)
    costs = cost_graph(graph, times, FormatTable(heads, samples, times, cost_model), cost_model)
    assert sum(costs.edge_ms.values()) == pytest.approx(1000.0)
    first = costs.edge_ms[graph.nodes[1].name]
    assert first == pytest.approx(10.0)
    assert np.isclose(sum(costs.cloud_ms.values()), len(names))


def test_a_search_predicts_what_is_known_and_scales_the_rest(tmp_path: Path) -> None:
    network = small_network()
    prepared, frames = network.prepared, network.prepared.calibration
    known = next(cut for cut in network.cuts if cut.kind == "split")
    mine = row(head_to(known.name), 500.0, network=prepared.network)
    foreign = row(head_to(known.name), 7.0, network="f" * 64)
    (tmp_path / "tables").write_text(to_json([foreign, mine, foreign]))
    request = Request(
        NetworkSource("small"),
        LINK,
        PI,
        tmp_path,
        constraints=constraints(max_drop=100.0),
        refined_cuts=0,
        tables=tmp_path / "tables",
    )
    found = rank(request, network, Judging(frames, "evaluation"), Silent())
    assert found.cost_model.calibration is not None
    slowdown = found.cost_model.calibration.edge.pace.slowdown
    assert slowdown == pytest.approx(500.0 / found.times[known.name].head.median_ms)
    for judged in found.ranked:
        cut = judged.candidate.cut
        own_ms = found.times[cut.name].head.median_ms * slowdown
        assert judged.predicted.head_ms == pytest.approx(
            500.0 if cut.name == known.name else own_ms
        )
    assert found.kept[0].candidate.cut.kind == "cloud-only"


def test_a_bundle_names_its_segments_as_its_search_did(tmp_path: Path) -> None:
    prepared = small_network().prepared
    heads = Heads(prepared.rounder(reduced_range=True).nearest({}))  # the same on any CPU
    network = Network(prepared, heads, enumerate_cuts(prepared.graph))
    device = DeviceProfile("pi", 1.0, reduced_range=True)
    request = Request(
        NetworkSource("small"),
        LINK,
        device,
        tmp_path,
        constraints=constraints(max_drop=100.0),
        refined_cuts=0,
    )
    judging = Judging(prepared.calibration, "evaluation")
    found = rank(request, network, judging, Silent())
    plain = next(j for j in found.ranked if j.candidate.cut.kind == "split")
    models = tuple(random_model(t.shape[0], 1 << t.bits) for t in plain.candidate.wire)
    coded = replace(plain.candidate, codec=CodecSpec(name="context"), contexts=models)
    found = replace(found, kept=(plain, replace(plain, candidate=coded)))
    out, pixels = tmp_path / "bundle", prepared.calibration.pixels[:1]
    write_plans(out, network.heads, prepared.task, pixels, prepared.weights_sha256, found)
    with Bundle.open(out) as bundle:
        for plan, judged in zip(bundle.manifest.plans, found.kept, strict=True):
            named = {each.stage: each.name for each in segments(plan)}
            assert plan.network == prepared.network
            assert named["head"] == head_to(judged.candidate.cut.name)
            assert named["encode"] == f"encode {judged.candidate.coding}"
            assert named["decode"] == f"decode {judged.candidate.coding}"


def test_reports_say_where_times_come_from() -> None:
    cost_model = cost_model_of(
        row("head to a", 40.0),
        row("head to b", 60.0, source="profiled", last_seen_s=1.0),
        row("head to out", 10.0, high_ms=100.0),
        row("letterbox", 3.0),
    )
    assert cost_model.calibration is not None
    edge, cloud, ignored = origins.in_words(cost_model.calibration)
    assert edge.startswith("the edge pi: 3 segments by themselves (2 served, 1 profiled); all othe")
    assert "x 3.46 (median of 2" in edge
    assert "the cloud: the tables do not know it" in cloud
    assert ignored.endswith("wider than their median: 1")
    (judged,) = rank_candidates([candidate("a")], TIMES, cost_model)
    found = SearchResult(
        request=Request(NetworkSource("tiny"), LINK, PI, Path("calibration")),
        metric="AP50",
        reference_accuracy=45.0,
        cuts=4,
        calibration_images=8,
        evaluation_images=("a.jpg",),
        cost_model=cost_model,
        ranked=(judged,),
        measured=(judged,),
        kept=(judged,),
        curves={},
    )
    assert f"- {edge}" in markdown(found)
    assert "<h2>Where these times come from</h2>" in html(found)
    document = as_json(found)["times"]
    assert document["edge"]["segments"]["head to a"] == {
        "median_ms": 40.0, "n": 100, "source": "served"
    }  # fmt: skip
    uncalibrated = replace(found, cost_model=replace(cost_model, calibration=None))
    assert "Where these times come from" not in markdown(uncalibrated) + html(uncalibrated)
