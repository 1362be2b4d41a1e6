"""The measurements: believed where they can be true, kept, summed up, and never in the way."""

import sqlite3
import threading
from pathlib import Path

import pytest

from cloud.samples import STAGES, ImpossibleTimesError, Ledger, Sample, Source
from cloud.store import HOUR_S, SCHEMA, Store
from common.errors import StoreError
from common.rpc import splitpoint_pb2 as pb

SOURCE = Source("edge7", "box", "onnxruntime x1")
OTHER = Source("edge8", "box", "onnxruntime x1")
PLAN = bytes(range(32))


def sample(total_ms: float, at_s: float = 1000.0, source: Source = SOURCE) -> Sample:
    stages = {"head": total_ms / 2, "total": total_ms}
    return Sample(source, PLAN.hex(), at_s, 100, stages)


def frame(frame_id: int = 1) -> pb.Frame:
    return pb.Frame(frame_id=frame_id, plan_digest=PLAN, payloads=[pb.Payload(data=b"x" * 50)])


def answered(ledger: Ledger, frame_id: int = 1) -> None:
    times = pb.CloudTimes(decode_us=100, queue_us=200, tail_us=3000, postprocess_us=400)
    times.total_us = 4000
    ledger.answered(frame(frame_id), pb.Result(frame_id=frame_id, times=times))


def edge_times(**changes: int) -> pb.EdgeTimes:
    times = {
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
        ledger = Ledger(SOURCE)
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
                "link": 40.0,
                "queue": 0.2,
                "decode": 0.1,
                "tail": 3.0,
                "postprocess": 0.4,
                "other": 0.8,
                "total": 55.0,
            }
        )
        assert list(made.stages_ms) == list(STAGES)

    def test_a_report_has_no_link(self) -> None:
        times = edge_times(round_trip_us=0, encode_us=0, postprocess_us=700, total_us=11_000)
        made = Ledger(SOURCE).report(pb.Report(plan_digest=PLAN, times=times), 7.0)
        assert made.uplink_bytes == 0
        assert "link" not in made.stages_ms
        assert made.stages_ms["postprocess"] == 0.7
        assert made.stages_ms["other"] == pytest.approx(0.3)

    @pytest.mark.parametrize(
        "changes",
        [
            {"total_us": 0},
            {"total_us": 20_000},  # less than its stages
            {"round_trip_us": 1000},  # less than the cloud's part
            {"head_us": 2**32 - 1, "total_us": 2**32 - 1},  # a clock that stepped
        ],
    )
    def test_impossible_times_are_no_sample(self, changes: dict[str, int]) -> None:
        ledger = Ledger(SOURCE)
        answered(ledger)
        with pytest.raises(ImpossibleTimesError):
            ledger.sample(pb.Measurement(frame_id=1, times=edge_times(**changes)), 7.0)

    def test_a_frame_is_told_about_once_and_only_if_it_was_answered(self) -> None:
        ledger = Ledger(SOURCE)
        answered(ledger)
        told = pb.Measurement(frame_id=1, times=edge_times())
        ledger.sample(told, 7.0)
        for again in (told, pb.Measurement(frame_id=2, times=edge_times())):
            with pytest.raises(ImpossibleTimesError, match="not waited for"):
                ledger.sample(again, 7.0)

    def test_old_frames_are_forgotten(self) -> None:
        ledger = Ledger(SOURCE)
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
    path = tmp_path / "deep" / "store.sqlite"
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
    store.keep_up(HOUR_S * 12 + 100)
    hours = store.hours()
    assert {hour for hour, *_ in hours} == {10, 11}  # the third one is not over
    first = next(row for row in hours if row[0] == 10 and row[3] == "total")
    assert first[1:6] == (SOURCE, PLAN.hex(), "total", 10, 4.5)
    assert {row.n for row in store.table()} == {5}
    store.keep_up(HOUR_S * 13 + 100)
    assert {hour for hour, *_ in store.hours()} == {10, 11, 12}
    store.close()


def test_hours_are_bounded_too(tmp_path: Path) -> None:
    store = Store(tmp_path / "store.sqlite", most_hours=4)
    for k in range(10):
        store.add(sample(1.0, at_s=HOUR_S * k))
    store.flush()
    store.keep_up(HOUR_S * 20)
    assert [hour for hour, *_ in store.hours()] == [8, 8, 9, 9]
    store.close()


def test_a_broken_file_is_moved_aside(tmp_path: Path) -> None:
    path = tmp_path / "store.sqlite"
    path.write_bytes(b"this was a database once" * 100)
    store = Store(path)
    store.add(sample(10.0))
    store.flush()
    assert len(store.table()) == 2
    store.close()
    assert (tmp_path / "store.sqlite.broken-1").read_bytes().startswith(b"this was")


def test_a_newer_file_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "store.sqlite"
    Store(path).close()
    with sqlite3.connect(path) as database:
        database.execute(f"PRAGMA user_version = {SCHEMA + 1}")
    database.close()
    before = path.read_bytes()
    with pytest.raises(StoreError, match=r"newer version .* upgrade, or give another --store"):
        Store(path)
    assert path.read_bytes() == before


def test_a_place_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot be created"):
        Store(tmp_path / "file" / "store.sqlite")


def test_a_disk_that_fails_costs_samples_and_nothing_else(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_batch: object) -> None:
        raise sqlite3.OperationalError("disk full")

    monkeypatch.setattr(store, "_write", fail)
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
