"""The measurements: believed where they can be true, kept, summed up, and never in the way."""

import math
import sqlite3
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cloud.store.links import LinkSeen, Spread
from cloud.store.samples import (
    ImpossibleTimesError,
    PendingMeasurements,
    Sample,
    SampleSource,
)
from cloud.store.store import Store
from cloud.store.summary import PlanMedians
from cloud.store.upkeep import HOUR_S
from common.errors import StoreError
from common.rpc import splitpoint_pb2 as pb
from common.stages import OBSERVED
from common.tables.rows import LatencyRow, RuntimeTarget

SOURCE = SampleSource("edge7", "box", "onnxruntime x1")
OTHER = SampleSource("edge8", "box", "onnxruntime x1")
PLAN = bytes(range(32))


def sample(total_ms: float, at_s: float = 1000.0, source: SampleSource = SOURCE) -> Sample:
    stages = {"head": total_ms / 2, "total": total_ms}
    return Sample(source, PLAN.hex(), at_s, 100, stages)


def frame(frame_id: int = 1) -> pb.Frame:
    return pb.Frame(frame_id=frame_id, plan_digest=PLAN, payloads=[pb.Payload(data=b"x" * 50)])


def answered(ledger: PendingMeasurements, frame_id: int = 1) -> None:
    times = pb.CloudTimes(decode_us=100, queue_us=200, tail_us=3000, postprocess_us=400)
    times.total_us = 4000
    ledger.answered(frame(frame_id), pb.Result(frame_id=frame_id, times=times))


def edge_times(**changes: float) -> pb.EdgeTimes:
    times: dict[str, Any] = {
        "capture_us": 5000,
        "preprocess_us": 1000,
        "head_us": 9000,
        "encode_us": 500,
        "round_trip_us": 44_000,
        "total_us": 55_000,
    }
    return pb.EdgeTimes(**(times | changes))


class TestLedger:
    def test_both_ends_make_one_sample_without_comparing_clocks(self) -> None:
        ledger = PendingMeasurements(SOURCE)
        answered(ledger)
        made = ledger.sample(pb.Measurement(frame_id=1, times=edge_times()), 7.0)
        assert made.source == SOURCE
        assert made.plan == PLAN.hex()
        assert made.uplink_bytes == frame().ByteSize()
        assert made.at_s == 7.0
        assert made.stages_ms == pytest.approx(
            {
                "capture": 5.0,
                "preprocess": 1.0,
                "head": 9.0,
                "encode": 0.5,
                "uplink": 40.0,
                "queue": 0.2,
                "decode": 0.1,
                "tail": 3.0,
                "postprocess": 0.4,
                "downlink": 0.0,
                "other": 0.8,
                "total": 55.0,
            }
        )
        assert list(made.stages_ms) == list(OBSERVED)

    @pytest.mark.parametrize(
        ("uplink_us", "up_ms", "down_ms"),
        [(30_000, 30.0, 10.0), (41_000, 40.0, 0.0), (0, 40.0, 0.0)],
    )
    def test_the_link_is_told_by_direction(
        self, uplink_us: int, up_ms: float, down_ms: float
    ) -> None:
        ledger = PendingMeasurements(SOURCE)
        answered(ledger)
        times = edge_times(uplink_us=uplink_us, uplink_bps=3e6, rtt_us=20_500)
        made = ledger.sample(pb.Measurement(frame_id=1, times=times), 7.0)
        assert (made.stages_ms["uplink"], made.stages_ms["downlink"]) == (up_ms, down_ms)
        assert (made.uplink_bps, made.rtt_ms) == (3e6, 20.5)

    def test_a_report_that_went_up_a_link_is_none(self) -> None:
        times = edge_times(round_trip_us=0, uplink_us=5000)
        with pytest.raises(ImpossibleTimesError, match="up a link"):
            PendingMeasurements(SOURCE).report(pb.Report(plan_digest=PLAN, times=times), 7.0)

    def test_a_report_has_no_link(self) -> None:
        times = edge_times(round_trip_us=0, encode_us=0, postprocess_us=700, total_us=11_000)
        made = PendingMeasurements(SOURCE).report(pb.Report(plan_digest=PLAN, times=times), 7.0)
        assert made.uplink_bytes == 0
        assert not {"uplink", "downlink"} & made.stages_ms.keys()
        assert made.stages_ms["postprocess"] == 0.7
        assert made.stages_ms["other"] == pytest.approx(0.3)

    @pytest.mark.parametrize(
        "changes",
        [
            {"total_us": 0},
            {"total_us": 20_000},  # less than its stages
            {"round_trip_us": 1000},  # less than the cloud's part
            {"head_us": 2**32 - 1, "total_us": 2**32 - 1},  # a clock that stepped
            {"uplink_us": 42_001},  # more than the link took
            {"rtt_us": 2**32 - 1},
            {"uplink_bps": math.nan},
            {"uplink_bps": math.inf},
            {"uplink_bps": -1.0},
            {"uplink_bps": 1e13},
        ],
    )
    def test_impossible_times_are_no_sample(self, changes: dict[str, float]) -> None:
        ledger = PendingMeasurements(SOURCE)
        answered(ledger)
        with pytest.raises(ImpossibleTimesError):
            ledger.sample(pb.Measurement(frame_id=1, times=edge_times(**changes)), 7.0)

    def test_a_frame_is_told_about_once_and_only_if_it_was_answered(self) -> None:
        ledger = PendingMeasurements(SOURCE)
        answered(ledger)
        told = pb.Measurement(frame_id=1, times=edge_times())
        ledger.sample(told, 7.0)
        for again in (told, pb.Measurement(frame_id=2, times=edge_times())):
            with pytest.raises(ImpossibleTimesError, match="not waited for"):
                ledger.sample(again, 7.0)

    def test_old_frames_are_forgotten(self) -> None:
        ledger = PendingMeasurements(SOURCE)
        for frame_id in range(1, 101):
            answered(ledger, frame_id)
        with pytest.raises(ImpossibleTimesError):
            ledger.sample(pb.Measurement(frame_id=1, times=edge_times()), 7.0)
        ledger.sample(pb.Measurement(frame_id=100, times=edge_times()), 7.0)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store.sqlite")


def test_tables_have_each_source_plan_and_stage(store: Store) -> None:
    for k in range(100):
        store.add(sample(100.0 + k, at_s=1000.0 + k))
    store.add(sample(5.0, source=OTHER))
    store.flush()
    rows = {(row.source, row.stage): row for row in store.table()}
    assert set(rows) == {(s, stage) for s in (SOURCE, OTHER) for stage in ("head", "total")}
    total = rows[SOURCE, "total"]
    assert (total.n, total.median_ms, total.last_seen_s) == (100, 149.5, 1099.0)
    assert total.p90_ms == pytest.approx(189.1)
    assert total.low_ms < total.median_ms < total.high_ms
    assert rows[OTHER, "total"].median_ms == 5.0
    store.close()


def test_what_was_kept_is_there_after_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "store.sqlite"
    first = Store(path)
    first.add(sample(10.0))
    first.close()
    again = Store(path)
    assert [row.median_ms for row in again.table()] == [5.0, 10.0]
    again.close()


def test_full_hours_are_summed_up_before_samples_go(tmp_path: Path) -> None:
    store = Store(tmp_path / "store.sqlite", most_samples=5)
    for k in range(30):
        store.add(sample(float(k), at_s=HOUR_S * (10 + k // 10) + k))
    store.flush()
    store.roll_up_and_prune(HOUR_S * 12 + 100)
    hours = store.hours()
    assert {hour for hour, *_ in hours} == {10, 11}  # the third one is not over
    first = next(row for row in hours if row[0] == 10 and row[3] == "total")
    assert first[1:6] == (SOURCE, PLAN.hex(), "total", 10, 4.5)
    assert {row.n for row in store.table()} == {5}
    store.roll_up_and_prune(HOUR_S * 13 + 100)
    assert {hour for hour, *_ in store.hours()} == {10, 11, 12}
    store.close()


def test_hours_are_bounded_too(tmp_path: Path) -> None:
    store = Store(tmp_path / "store.sqlite", most_hours=4)
    for k in range(10):
        store.add(sample(1.0, at_s=HOUR_S * k))
    store.flush()
    store.roll_up_and_prune(HOUR_S * 20)
    assert [hour for hour, *_ in store.hours()] == [8, 8, 9, 9]
    store.close()


def test_a_disk_that_fails_costs_samples_and_nothing_else(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_batch: object) -> None:
        raise sqlite3.OperationalError("disk full")

    monkeypatch.setattr(store._writer, "_write", fail)
    store.add(sample(1.0))
    store.flush()
    assert store.dropped == 1
    monkeypatch.undo()
    store.add(sample(2.0))
    store.flush()
    assert len(store.table()) == 2
    store.close()


def test_a_store_takes_samples_from_many_threads(store: Store) -> None:
    def work() -> None:
        for k in range(50):
            store.add(sample(float(k)))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    store.flush()
    assert {row.n for row in store.table()} == {200}
    store.close()


def test_edges_that_tell_nonsense_are_counted_by_name(store: Store) -> None:
    for _ in range(3):
        store.ignore("liar")
    for k in range(2000):
        store.ignore(f"made-up-{k}")
    assert store.ignored["liar"] == 3
    assert len(store.ignored) == 1000
    store.close()


def test_a_batch_that_cannot_be_written_at_all_costs_itself_only(store: Store) -> None:
    store.add(Sample(SOURCE, PLAN.hex(), 1.0, 2**70, {"total": 1.0}))  # OverflowError
    store.flush()
    assert store.dropped == 1
    store.add(sample(2.0))
    store.flush()
    assert len(store.table()) == 2
    store.close()


def test_edges_of_one_kind_learn_from_each_other(store: Store) -> None:
    split = {
        "capture": 50.0,
        "preprocess": 1.0,
        "head": 9.0,
        "encode": 0.5,
        "uplink": 40.0,
        "queue": 5.0,
        "decode": 0.25,
        "tail": 3.0,
        "postprocess": 0.5,
        "downlink": 2.0,
        "other": 0.25,
        "total": 99.0,
    }
    whole = {"preprocess": 1.0, "head": 20.0, "postprocess": 2.0, "other": 0.5, "total": 23.5}
    threaded = replace(SOURCE, threads=2)
    for source in (threaded, replace(threaded, edge="edge9")):
        for _ in range(3):
            store.add(Sample(source, "aa" * 32, 1000.0, 5300, split))
            store.add(Sample(source, "bb" * 32, 1000.0, 0, whole))
    store.add(Sample(replace(threaded, device="oven"), "aa" * 32, 2000.0, 1, {"total": 1.0}))
    store.flush()
    assert store.plan_medians(SOURCE.device, SOURCE.runtime, 2) == (
        PlanMedians("aa" * 32, 6, 10.75, 3.75, 5300),
        PlanMedians("bb" * 32, 6, 23.5, 0.0, 0),
    )
    assert store.plan_medians(SOURCE.device, SOURCE.runtime, 1) == ()
    store.close()


def test_links_are_told_by_edge(store: Store) -> None:
    for k in range(101):
        known = replace(sample(1.0, at_s=float(k)), uplink_bps=1e6 * k, rtt_ms=float(k))
        store.add(known)
    store.add(sample(1.0, source=OTHER))  # knows nothing of its link
    store.flush()
    assert store.links() == [
        LinkSeen("edge7", 101, Spread(1e7, 5e7, 9e7), Spread(10.0, 50.0, 90.0), 100.0)
    ]
    store.close()


def test_of_profiles_of_the_same_thing_the_newest_is_kept(store: Store) -> None:
    old = LatencyRow(
        **RuntimeTarget("box", "r", 1)._asdict(),
        side="edge",
        network="0" * 64,
        segment="head to cut",
        bits="8",
        n=9,
        median_ms=2.0,
        p90_ms=2.0,
        low_ms=1.0,
        high_ms=3.0,
        source="profiled",
        last_seen_s=10.0,
    )
    new = old.model_copy(update={"median_ms": 2.5, "last_seen_s": 20.0})
    other = old.model_copy(update={"threads": 2})
    store.upsert_profiles([old, other])
    store.upsert_profiles([new])
    store.upsert_profiles([old])
    assert sorted(store.latency_rows(), key=lambda row: row.threads) == [new, other]
    store.close()


def test_a_profile_that_cannot_be_kept_is_told(store: Store) -> None:
    store.close()
    with pytest.raises(StoreError, match="cannot be written"):
        store.upsert_profiles([])
