"""Latency tables: what plans share, and files that are read whoever wrote them."""

import json
import os
import re
import sqlite3
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cloud.store.samples import Sample, SampleSource
from cloud.store.store import Store
from common.bundle.bundle import Bundle
from common.errors import StoreError
from common.stages import OBSERVED
from common.tables.rows import LatencyRow, RuntimeTarget, merged, profiled, segments, to_json
from common.tables.store_file import SCHEMA, read_tables
from common.tables.timing import Timing
from tests import tiny

CODED, CODED_8 = "cut packed+zstd DIGEST", "cut raw DIGEST"
BOX, CLOUD = RuntimeTarget("box", "onnxruntime x1", 1), RuntimeTarget("server", "onnxruntime x2", 2)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    plans = (*tiny.ALL_PLANS, tiny.SPLIT_8)
    return tiny.build(tmp_path_factory.mktemp("bundle") / "tiny", plans)


@pytest.fixture
def digests(bundle: Bundle) -> dict[str, bytes]:
    return {plan.name: digest for digest, plan in bundle.plans.items()}


def row(**changes: Any) -> LatencyRow:
    fields = {
        **BOX._asdict(),
        "side": "edge",
        "network": tiny.NETWORK,
        "segment": "head to cut",
        "bits": "8",
        "n": 9,
        "median_ms": 10.0,
        "p90_ms": 12.0,
        "low_ms": 9.0,
        "high_ms": 11.0,
        "source": "profiled",
        "last_seen_s": 1000.0,
    }
    return LatencyRow.model_validate(fields | changes)


def plain(segment: str) -> str:
    """The segment's name, without the digest of its wire format if it has one."""
    return re.sub(r" [0-9a-f]{16}$", " DIGEST", segment)


def sample(plan: bytes, at_s: float, **stages_ms: float) -> Sample:
    source = SampleSource("edge7", *BOX)
    return Sample(source, plan.hex(), at_s, 100, stages_ms)


class TestSegments:
    def test_they_follow_the_path(self, bundle: Bundle, digests: dict[str, bytes]) -> None:
        found = {
            name: [(each.stage, each.side, plain(each.name), each.bits) for each in segments(plan)]
            for name in digests
            for plan in [bundle.plan(digests[name])]
        }
        assert found[tiny.SPLIT][1:] == [
            ("head", "edge", "head to cut", "8"),
            ("encode", "edge", f"encode {CODED}", "4"),
            ("decode", "cloud", f"decode {CODED}", "4"),
            ("tail", "cloud", "tail from cut", "32"),
            ("postprocess", "cloud", "boxes", "32"),
        ]
        assert [stage for stage, *_ in found[tiny.EDGE_ONLY]] == [
            *("preprocess", "head", "postprocess"),
        ]
        assert all(each[0] == ("preprocess", "edge", "letterbox", "8") for each in found.values())

    def test_what_plans_share_is_one_row(self, bundle: Bundle, digests: dict[str, bytes]) -> None:
        times = {
            digests[tiny.SPLIT]: {
                "head": Timing(10.0, 12.0, 10, 9.0, 11.0),
                "encode": Timing(1.0, 1.0, 10, 1.0, 1.0),
            },
            digests[tiny.SPLIT_8]: {"head": Timing(20.0, 22.0, 30, 19.0, 21.0)},
        }
        rows = profiled(times, bundle.plans, "edge", BOX, 5.0)
        assert [(plain(r.segment), r.n, r.median_ms) for r in rows] == [
            ("head to cut", 40, 17.5),
            (f"encode {CODED}", 10, 1.0),
        ]
        assert {(r.device, r.runtime, r.threads, r.source, r.last_seen_s) for r in rows} == {
            (*BOX, "profiled", 5.0)
        }
        assert profiled(times, bundle.plans, "cloud", CLOUD, 5.0) == []

    def test_networks_share_none_whatever_their_plans_are_called(
        self, bundle: Bundle, tmp_path: Path
    ) -> None:
        other = tiny.build(tmp_path / "other", (*tiny.ALL_PLANS, tiny.SPLIT_8), seed=1)
        assert [plan.name for plan in other.plans.values()] == [
            plan.name for plan in bundle.plans.values()
        ]
        mine, theirs = (
            {(each.network, each.side, each.name, each.bits) for each in segments(plan)}
            for plan in (*bundle.plans.values(), *other.plans.values())[::4]
        )
        assert not mine & theirs

    def test_bundles_of_one_network_share_what_they_have_in_common(
        self, bundle: Bundle, tmp_path: Path
    ) -> None:
        again = tiny.build(tmp_path / "again", (tiny.SPLIT_8, tiny.SPLIT))
        (mine,) = [plan for plan in bundle.plans.values() if plan.name == tiny.SPLIT]
        (theirs,) = [plan for plan in again.plans.values() if plan.name == tiny.SPLIT]
        renamed = theirs.model_copy(update={"name": "the best"})
        assert list(segments(renamed)) == list(segments(mine))

    @pytest.mark.parametrize("changed", ["to_symbol", "to_value", "context"])
    def test_wire_formats_are_told_apart_by_content(self, bundle: Bundle, changed: str) -> None:
        (plan,) = [plan for plan in bundle.plans.values() if plan.name == tiny.SPLIT]
        (tensor,) = plan.wire
        values: dict[str, Any] = {
            "to_symbol": tensor.to_symbol[::-1],
            "to_value": (*tensor.to_value[:-1], 1e3),
            "context": "other.bin",
        }
        other = tensor.model_copy(update={changed: values[changed]})
        first, second = (
            {each.stage: each.name for each in segments(made)}
            for made in (plan, plan.model_copy(update={"wire": (other,)}))
        )
        assert {stage for stage in first if first[stage] != second[stage]} == {"encode", "decode"}

    def test_widths_are_told_apart_by_layer(self, bundle: Bundle) -> None:
        (plan,) = [plan for plan in bundle.plans.values() if plan.name == tiny.SPLIT]
        assert plan.head is not None
        bits = []
        for widths in ({"a": 2, "b": 8}, {"a": 8, "b": 2}, {"a": 2, "b": 2}):
            head = plan.head.model_copy(update={"bits": widths})
            made = plan.model_copy(update={"head": head})
            bits += [each.bits for each in segments(made) if each.stage == "head"]
        assert bits[0] != bits[1]
        assert [each.split()[0] for each in bits] == ["2-8", "2-8", "2"]
        assert bits[2] == "2"


def test_of_rows_of_the_same_thing_the_newest_stays() -> None:
    old, new, other = row(), row(median_ms=10.5, last_seen_s=2000.0), row(bits="4")
    assert merged([new, other], [old]) == [new, other]
    assert merged([old], [new]) == [new]


def test_a_row_that_contradicts_itself_is_none() -> None:
    with pytest.raises(ValueError, match="not inside its own interval"):
        row(low_ms=10.5)


def test_json_is_read_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "tables.json"
    path.write_text(to_json([row(), row(bits="4")]))
    assert read_tables(path) == [row(), row(bits="4")]


@pytest.fixture
def path(tmp_path: Path, bundle: Bundle) -> Path:
    """A store that a cloud has left."""
    path = tmp_path / "store of?a#cloud%.sqlite"
    store = Store(path)
    store.register_plans(bundle.plans)
    store.set_cloud_device(CLOUD, 500.0)
    store.upsert_profiles([row(source="simulated")])
    digests = {plan.name: digest for digest, plan in bundle.plans.items()}
    for k in range(10):
        stages = {"preprocess": 1.0, "head": 10.0 + k, "encode": 0.5, "tail": 3.0, "decode": 0.2}
        store.add(sample(digests[tiny.SPLIT], 1000.0 + k, **stages, postprocess=0.1))
        store.add(sample(digests[tiny.SPLIT_8], 2000.0 + k, **stages, postprocess=0.1))
        whole = sample(digests[tiny.EDGE_ONLY], 1000.0, head=99.0, postprocess=7.0)
        store.add(replace(whole, source=SampleSource("edge8", "oven", "onnxruntime x1", 1)))
        store.add(sample(b"u" * 32, 3000.0, head=1e5))  # a plan that nobody knows any more
    store.close()
    return path


def test_a_store_is_read_without_its_bundle(path: Path) -> None:
    rows = {(r.device, plain(r.segment), r.source): r for r in read_tables(path)}
    assert {r.network for r in rows.values()} == {tiny.NETWORK}
    assert set(rows) == {
        ("box", "head to cut", "simulated"),
        ("box", "letterbox", "served"),
        ("box", "head to cut", "served"),
        ("box", f"encode {CODED}", "served"),
        ("box", f"encode {CODED_8}", "served"),
        ("oven", "head to map", "served"),
        ("oven", "boxes", "served"),
        ("server", f"decode {CODED}", "served"),
        ("server", f"decode {CODED_8}", "served"),
        ("server", "tail from cut", "served"),
        ("server", "boxes", "served"),
    }
    head = rows["box", "head to cut", "served"]
    assert (head.n, head.median_ms, head.last_seen_s) == (20, 14.5, 2009.0)
    assert (head.runtime, head.threads, head.side, head.bits) == (*BOX[1:], "edge", "8")
    tail = rows["server", "tail from cut", "served"]
    assert (tail.runtime, tail.threads, tail.side) == (*CLOUD[1:], "cloud")
    assert rows["oven", "boxes", "served"].median_ms == 7.0


def test_reading_leaves_everything_as_it_is(path: Path) -> None:
    before = {p.name: p.read_bytes() for p in path.parent.iterdir()}
    read_tables(path)
    assert {p.name: p.read_bytes() for p in path.parent.iterdir()} == before


def test_a_store_is_read_while_a_cloud_writes_it(path: Path, bundle: Bundle) -> None:
    store = Store(path)
    store.upsert_profiles([row(segment="new", last_seen_s=9000.0)])
    assert "new" in {each.segment for each in read_tables(path)}
    store.close()


def test_a_row_is_made_of_the_newest_frames(tmp_path: Path, bundle: Bundle) -> None:
    digests = {plan.name: digest for digest, plan in bundle.plans.items()}
    store = Store(tmp_path / "store.sqlite")
    store.register_plans(bundle.plans)
    for k in range(400):
        store.add(sample(digests[tiny.SPLIT], float(k), head=100.0))
        store.add(sample(digests[tiny.SPLIT_8], 1000.0 + k, head=10.0))
    store.flush()
    (head,) = [each for each in store.latency_rows() if each.segment == "head to cut"]
    assert (head.n, head.median_ms) == (500, 10.0)
    store.close()


def test_tails_of_another_machine_are_not_told_as_this_ones(path: Path) -> None:
    def tails(store: Store) -> list[str]:
        return [r.device for r in store.latency_rows() if r.segment == "tail from cut"]

    store = Store(path)
    assert tails(store) == ["server"]
    store.set_cloud_device(CLOUD, 1e9)
    assert tails(store) == ["server"]
    store.set_cloud_device(CLOUD._replace(device="other"), 1e9)
    assert tails(store) == []
    store.close()


def newer(path: Path) -> None:
    with sqlite3.connect(path) as database:
        database.execute(f"PRAGMA user_version = {SCHEMA + 1}")
    database.close()


def older(path: Path) -> None:
    with sqlite3.connect(path) as database:
        database.execute("PRAGMA user_version = 1")
    database.close()


def foreign(path: Path) -> None:
    path.unlink()
    with sqlite3.connect(path) as database:
        database.execute("CREATE TABLE poems (line TEXT)")
    database.close()


def cut_off(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:6000])


def scrambled(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[:4096] + b"\xa5" * (len(data) - 4096))


def nonsense(path: Path) -> None:
    with sqlite3.connect(path) as database:
        database.execute("UPDATE samples SET head_ms = 'long', at_s = 'yesterday'")
    database.close()


def impossible(path: Path) -> None:
    with sqlite3.connect(path) as database:
        database.execute("UPDATE profiles SET low_ms = 1e9")
    database.close()


def told_nothing(path: Path) -> None:
    with sqlite3.connect(path) as database:
        database.execute("DELETE FROM about WHERE key = 'threads'")
    database.close()


def text(content: str) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        path.write_text(content)

    return write


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (Path.unlink, "cannot be read: No such file.*splitpoint profile --tables"),
        (newer, "newer version .*upgrade"),
        (older, "older version .*start `splitpoint cloud`"),
        (foreign, "not one that `splitpoint cloud` wrote"),
        (cut_off, "damaged"),
        (scrambled, "damaged"),
        (nonsense, "damaged"),
        (impossible, "damaged"),
        (told_nothing, "damaged"),
        (text(""), "no latency table"),
        (text("{}"), "no latency table"),
        (text("a list of times"), "no latency table"),
        (text(json.dumps([{"device": "box"}])), "no latency table: 0.runtime"),
        (text(json.dumps([row().model_dump() | {"median_ms": -1}])), "0.median_ms"),
    ],
)
def test_what_is_no_table_is_told_in_one_line(
    path: Path, damage: Callable[[Path], None], message: str
) -> None:
    damage(path)
    with pytest.raises(StoreError, match=message) as caught:
        read_tables(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


def test_a_folder_is_no_table(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="cannot be read"):
        read_tables(tmp_path)


def test_the_store_has_a_column_for_every_stage(tmp_path: Path) -> None:
    Store(tmp_path / "store.sqlite").close()
    with sqlite3.connect(tmp_path / "store.sqlite") as database:
        columns = {name for _, name, *_ in database.execute("PRAGMA table_info(samples)")}
    database.close()
    assert {f"{stage}_ms" for stage in OBSERVED} | {"rtt_ms"} == {
        name for name in columns if name.endswith("_ms")
    }


def test_a_store_may_hold_several_networks(tmp_path: Path, bundle: Bundle) -> None:
    other = tiny.build(tmp_path / "other", seed=1)
    store = Store(tmp_path / "store.sqlite")
    store.register_plans(bundle.plans)
    for network, ms in ((bundle, 10.0), (other, 90.0)):
        (split,) = [d for d, plan in network.plans.items() if plan.name == tiny.SPLIT]
        store.add(sample(split, 1000.0, head=ms))
    store.flush()
    store.register_plans(other.plans)
    rows = {r.network: r.median_ms for r in store.latency_rows() if r.segment == "head to cut"}
    assert sorted(rows.values()) == [10.0, 90.0]
    assert rows[tiny.NETWORK] == 10.0
    store.close()


def test_segments_of_plans_that_nothing_is_known_of_are_forgotten(
    tmp_path: Path, bundle: Bundle
) -> None:
    path = tmp_path / "store.sqlite"
    store = Store(path)
    for seed in range(3):
        store.register_plans(tiny.build(tmp_path / str(seed), seed=seed).plans)
    store.close()
    with sqlite3.connect(path) as database:
        plans = {plan for (plan,) in database.execute("SELECT plan FROM segments")}
    database.close()
    assert len(plans) == len(tiny.ALL_PLANS)


def test_a_pipe_is_no_table_and_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(StoreError, match="cannot be read: expected a file"):
        read_tables(tmp_path / "pipe")


def test_a_table_of_a_version_without_networks_is_told(tmp_path: Path) -> None:
    fields = row().model_dump()
    del fields["network"]
    (tmp_path / "tables.json").write_text(json.dumps([fields]))
    with pytest.raises(StoreError, match=r"older version, .*run `splitpoint profile --tables`"):
        read_tables(tmp_path / "tables.json")
