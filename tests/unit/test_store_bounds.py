"""What keeps a store small and quick: bounds, small steps, and readers that nobody waits for."""

import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cloud.store.samples import Sample, SampleSource
from cloud.store.store import Store
from cloud.store.summary import PlanMedians
from cloud.store.upkeep import HOUR_S
from common.errors import StoreError
from common.tables.store_file import RECENT, connect_to_read
from tests import tiny

PLAN = "ab" * 32
KIND = ("box", "r", 1)


def sample(edge: str, total_ms: float = 1.0, at_s: float = 1000.0) -> Sample:
    return Sample(SampleSource(edge, *KIND), PLAN, at_s, 100, {"head": total_ms, "total": total_ms})


def eventually(condition: Callable[[], bool]) -> None:
    """Wait for what the writer does in its own time."""
    until_s = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < until_s, "it never came true"
        time.sleep(0.01)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    made = Store(tmp_path / "store.sqlite")
    yield made
    made.close()


class TestManyEdgesOfOneKind:
    @pytest.fixture
    def crowded(self, tmp_path: Path) -> Path:
        path = tmp_path / "store.sqlite"
        bundle = tiny.build(tmp_path / "bundle", (tiny.SPLIT,))
        (digest,) = bundle.plans
        store = Store(path)
        store.register_plans(bundle.plans)
        for k in range(RECENT + 20):
            source = SampleSource(f"edge-{k}", *KIND)
            store.add(Sample(source, digest.hex(), 1000.0 + k, 100, {"head": 2.0, "total": 3.0}))
        store.flush()
        assert [each.n for each in store.plan_medians(*KIND)] == [RECENT]
        store.close()
        return path

    def test_they_teach_an_edge_that_connects(self, crowded: Path) -> None:
        store = Store(crowded)
        (learned,) = store.plan_medians(*KIND)
        assert (learned.n, learned.edge_ms) == (RECENT, 2.0)
        store.close()

    def test_they_teach_the_tables(self, crowded: Path) -> None:
        store = Store(crowded)
        (head,) = [row for row in store.latency_rows() if row.segment == "head to cut"]
        assert (head.n, head.median_ms, head.last_seen_s) == (RECENT, 2.0, 1000.0 + RECENT + 19)
        store.close()


def test_an_edge_that_sends_much_counts_no_more_than_another(tmp_path: Path) -> None:
    path = tmp_path / "store.sqlite"
    store = Store(path)
    for k in range(2 * RECENT):
        store.add(sample("talkative", 100.0, at_s=2000.0 + k))
    for edge in ("quiet", "silent"):
        for k in range(RECENT):
            store.add(sample(edge, 1.0, at_s=1000.0 + k))
    store.flush()
    share = RECENT // 3
    expected = (PlanMedians(PLAN, 3 * share, 1.0, 0.0, 100),)
    assert store.plan_medians(*KIND) == expected
    store.close()
    again = Store(path)
    assert again.plan_medians(*KIND) == expected
    again.close()


def test_what_is_learned_is_of_the_newest_frames(store: Store) -> None:
    for k in range(2 * RECENT):
        store.add(sample("door", 9.0 if k < RECENT else 1.0))
    store.flush()
    assert store.plan_medians(*KIND) == (PlanMedians(PLAN, RECENT, 1.0, 0.0, 100),)


def held(path: Path) -> sqlite3.Connection:
    """A connection that keeps everybody else from writing."""
    database = sqlite3.connect(path)
    database.execute("BEGIN IMMEDIATE")
    return database


def test_reading_waits_for_no_writer(store: Store, tmp_path: Path) -> None:
    store.add(sample("door"))
    store.flush()
    told: list[object] = []

    def read() -> None:
        told.extend((store.table(), store.latency_rows(), store.links(), store.hours()))

    reading = threading.Thread(target=read, daemon=True)
    with store._file._lock:  # as if the writer were at a slow disk
        reading.start()
        reading.join(60)
        assert not reading.is_alive()
    assert len(told) == 4


def test_an_edge_is_welcomed_while_the_store_is_busy(store: Store, tmp_path: Path) -> None:
    store.add(sample("door"))
    store.flush()
    told: list[object] = []
    asking = threading.Thread(target=lambda: told.append(store.plan_medians(*KIND)), daemon=True)
    with store._file._lock:
        blocked = held(tmp_path / "store.sqlite")
        asking.start()
        asking.join(60)
        blocked.close()
    assert told == [(PlanMedians(PLAN, 1, 1.0, 0.0, 100),)]


def test_writing_waits_for_no_reader(store: Store, tmp_path: Path) -> None:
    store.add(sample("door"))
    store.flush()
    reader = connect_to_read(tmp_path / "store.sqlite")
    reader.execute("BEGIN")
    assert reader.execute("SELECT COUNT(*) FROM samples").fetchone() == (1,)
    store.add(sample("door"))
    store.flush()
    assert reader.execute("SELECT COUNT(*) FROM samples").fetchone() == (1,)
    reader.close()
    assert store.dropped == 0
    assert store.table()[0].n == 2


def test_the_edges_seen_last_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "store.sqlite"
    store = Store(path, most_sources=3)
    for name in ("a", "b", "c", "a", "d", "e"):
        store.add(sample(name))
    store.flush()
    eventually(lambda: {row.source.edge for row in store.table()} == {"a", "d", "e"})
    assert [each.n for each in store.plan_medians(*KIND)] == [4]
    store.close()
    fewer = Store(path, most_sources=2)
    assert [each.n for each in fewer.plan_medians(*KIND)] == [2]
    eventually(lambda: {row.source.edge for row in fewer.table()} == {"d", "e"})
    fewer.close()


def test_one_edge_under_many_kinds_is_many_sources(tmp_path: Path) -> None:
    store = Store(tmp_path / "store.sqlite", most_sources=3)
    for k in range(20):
        store.add(
            Sample(SampleSource("door", f"box {k}", "r", 1), PLAN, 1000.0, 100, {"total": 1.0})
        )
    store.flush()
    eventually(lambda: len({row.source for row in store.table()}) == 3)
    assert store.plan_medians("box 0", "r", 1) == ()
    assert [each.n for each in store.plan_medians("box 19", "r", 1)] == [1]
    store.close()


def test_a_source_with_many_samples_goes_in_steps(tmp_path: Path) -> None:
    store = Store(tmp_path / "store.sqlite", most_sources=1)
    for _ in range(2500):
        store.add(sample("old"))
    store.add(sample("new"))
    store.flush()
    eventually(lambda: {row.source.edge for row in store.table()} == {"new"})
    store.close()


def test_samples_are_written_between_the_steps_of_upkeep(tmp_path: Path) -> None:
    store = Store(tmp_path / "store.sqlite", most_samples=100)
    for k in range(3100):
        store.add(sample(f"edge-{k % 4}", at_s=HOUR_S * (1 + k // 1600)))
    store.flush()
    steps = 0
    for _ in store._upkeep.steps(HOUR_S * 5):
        steps += 1
        store.add(sample("new", at_s=HOUR_S * 5.5))
        store.flush()
    assert steps >= 2 * 4 + 3  # sources of each of two hours, and thousands of samples
    assert store.dropped == 0
    assert {row.n for row in store.table() if row.source.edge == "new"} == {steps}
    store.close()


def test_an_hour_that_was_half_summed_up_is_summed_up_again(tmp_path: Path) -> None:
    path = tmp_path / "store.sqlite"
    store = Store(path)
    for k in range(30):
        store.add(sample(f"edge-{k % 3}", at_s=HOUR_S * 10 + k))
    store.flush()
    half = store._upkeep.steps(HOUR_S * 12)
    next(half)
    half.close()
    assert len({source for _, source, *_ in store.hours()}) == 1
    store.close()
    again = Store(path)
    again.roll_up_and_prune(HOUR_S * 12)
    assert {source.edge for _, source, *_ in again.hours()} == {"edge-0", "edge-1", "edge-2"}
    again.close()


def test_hours_of_a_clock_that_was_ahead_do_not_hold_up_others(store: Store) -> None:
    store.add(sample("door", at_s=HOUR_S * 1000))
    store.flush()
    store.roll_up_and_prune(HOUR_S * 1002)
    store.add(sample("door", at_s=HOUR_S * 11))
    store.flush()
    store.roll_up_and_prune(HOUR_S * 10.5)
    store.roll_up_and_prune(HOUR_S * 12.5)
    assert [hour for hour, *_ in store.hours()] == [11, 11, 1000, 1000]


def test_a_closed_store_is_told_and_waits_for_nobody(store: Store) -> None:
    store.close()
    store.flush()
    with pytest.raises(StoreError, match="closed"):
        store.table()


def test_a_disk_that_fails_every_batch_is_told_once(
    store: Store, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(_batch: object) -> None:
        raise sqlite3.OperationalError("disk full")

    monkeypatch.setattr(store._writer, "_write", fail)
    for _ in range(5):
        store.add(sample("door"))
        store.flush()
    assert store.dropped == 5
    assert len(caplog.records) == 1


def test_upkeep_that_fails_is_put_off_and_writing_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(tmp_path / "store.sqlite", most_sources=1)
    tries: list[int] = []

    def fail() -> None:
        tries.append(1)
        raise sqlite3.OperationalError("disk full")

    monkeypatch.setattr(store._sources, "delete_leaving", fail)
    for k in range(5):
        store.add(sample(f"edge-{k}"))
        store.flush()
    assert store.dropped == 0
    assert len(tries) == 1
    assert len(store.table()) == 2 * 5
    store.close()


def test_the_summary_knows_the_groups_seen_last(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cloud.store.summary.MOST_GROUPS", 3)
    for k in range(5):
        store.add(
            Sample(SampleSource("door", f"box {k}", "r", 1), PLAN, 1000.0, 100, {"total": 1.0})
        )
    store.flush()
    known = [bool(store.plan_medians(f"box {k}", "r", 1)) for k in range(5)]
    assert known == [False, False, True, True, True]
