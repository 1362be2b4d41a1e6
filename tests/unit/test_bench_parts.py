"""The microbenchmarks: which plans are measured, and that parts and floors do the same work."""

from collections.abc import Callable
from time import perf_counter
from typing import Any

import numpy as np
import pytest

from bench.micro.opened import Bare, Opened
from bench.micro.parts import (
    PartRow,
    choose,
    copying,
    experienced_planner,
    section,
    takes_batches,
)
from bench.plan_choice import cheapest_split, upload
from cloud.tails import Tails
from common.bundle.bundle import Bundle
from common.bundle.manifest import Plan
from common.codec.spec import CodecSpec
from common.errors import SplitpointError
from common.rpc import splitpoint_pb2 as pb
from common.runtime.registry import open_model
from common.tables.timing import Timing
from edge.detector import find_plan
from tests import tiny

CODED = [tiny.SPLIT_CONTEXT, tiny.SPLIT, tiny.SPLIT_8, tiny.CLOUD_ONLY]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("bundle") / "b"
    return tiny.build(folder, [*tiny.ALL_PLANS, tiny.SPLIT_8, tiny.SPLIT_CONTEXT])


@pytest.fixture(scope="module")
def opened(bundle: Bundle) -> Callable[[str], Opened]:
    return lambda name: Opened(bundle, find_plan(bundle, name), tiny.image())


def expecting(plan: Plan, size: float, accuracy: float, codec: CodecSpec | None = None) -> Plan:
    predicted = {"uplink_bytes": size, "accuracy": accuracy}
    update: dict[str, Any] = {"predicted": plan.predicted.model_copy(update=predicted)}
    return plan.model_copy(update=update if codec is None else update | {"codec": codec})


def named(bundle: Bundle, name: str) -> Plan:
    return bundle.plan(find_plan(bundle, name))


def test_the_cheapest_plan_may_be_a_point_behind_the_best(bundle: Bundle) -> None:
    plan = named(bundle, tiny.SPLIT_CONTEXT)
    plans = {
        b"best": expecting(plan, 9000, 24.0),
        b"cheap": expecting(plan, 4000, 23.1),
        b"poor": expecting(plan, 1000, 22.9),
    }

    assert cheapest_split(plans, ["context"]) == b"cheap"


def test_only_split_plans_of_the_codecs_asked_for_count(bundle: Bundle) -> None:
    assert cheapest_split(bundle.plans, ["context"]) == find_plan(bundle, tiny.SPLIT_CONTEXT)
    assert cheapest_split(bundle.plans, ["packed+zstd"]) == find_plan(bundle, tiny.SPLIT)
    assert cheapest_split(bundle.plans, ["symbols+zstd", "png"]) is None


def test_the_usual_quality_of_an_upload_is_preferred(bundle: Bundle) -> None:
    plan = named(bundle, tiny.CLOUD_ONLY)
    plans = {
        quality.to_bytes(1, "big"): expecting(plan, 1, 1, CodecSpec(name="jpeg", quality=quality))
        for quality in (95, 70, 50)
    }

    assert upload(plans, "jpeg") == bytes([70])
    assert upload(plans, "webp") is None


def test_plans_that_a_bundle_lacks_are_left_out(bundle: Bundle) -> None:
    assert choose(bundle.plans) == {
        "context": find_plan(bundle, tiny.SPLIT_CONTEXT),
        "zstd": find_plan(bundle, tiny.SPLIT),
    }
    with pytest.raises(SplitpointError, match="no split plan with the context coder"):
        choose({b"": named(bundle, tiny.CLOUD_ONLY)})


@pytest.mark.parametrize("name", CODED)
def test_what_is_timed_is_what_both_ends_do(
    bundle: Bundle, opened: Callable[[str], Opened], name: str
) -> None:
    part = opened(name)
    cut = part.edge.cut(part.frame)
    runner = Tails(bundle).runner(part.edge.digest)

    payloads = part.encode()

    assert payloads == cut.payloads
    for found, expected in zip(part.decode(payloads), runner.values(cut.symbols), strict=True):
        np.testing.assert_array_equal(found, expected)


def test_damaged_payloads_are_noticed_as_in_the_cloud(opened: Callable[[str], Opened]) -> None:
    part = opened(tiny.SPLIT)
    (payload,) = part.encode()

    with pytest.raises(SplitpointError, match="damaged"):
        part.decode([pb.Payload(data=payload.data, crc32=payload.crc32 ^ 1)])


def test_a_bare_session_is_that_of_the_product(opened: Callable[[str], Opened]) -> None:
    part = opened(tiny.SPLIT)
    model, bare = open_model(part.tail_file), Bare(part.tail_file)

    inputs = part.inputs()
    np.testing.assert_array_equal(bare.session.run(None, inputs)[0], model.run(inputs)[0])
    assert bare.run_ms(inputs) > 0


def test_a_tail_takes_batches_and_a_head_does_not(
    bundle: Bundle, opened: Callable[[str], Opened]
) -> None:
    head = named(bundle, tiny.SPLIT).head
    assert head is not None

    assert takes_batches(open_model(opened(tiny.SPLIT).tail_file))
    assert not takes_batches(open_model(bundle.file(head.file)))


def test_a_floor_copies_and_leaves_its_source_alone() -> None:
    source = np.arange(12, dtype=np.uint8).reshape(3, 4)

    copying([source, source])()

    np.testing.assert_array_equal(source, np.arange(12).reshape(3, 4))


def test_the_planner_has_learnt_before_it_is_timed(bundle: Bundle) -> None:
    now_s = perf_counter()
    planner = experienced_planner(bundle)

    state = planner.state(now_s)

    assert state.link.uplink_bps == pytest.approx(bundle.manifest.search.uplink_bps, rel=0.2)
    assert state.link.rtt_ms == pytest.approx(bundle.manifest.search.rtt_ms, rel=0.2)
    assert len(state.expected) == len(bundle.plans)
    assert state.coverage is not None


def test_a_row_is_a_ratio_in_microseconds() -> None:
    part, floor = Timing(1.5, 1.6, 9, 1.4, 1.7), Timing(0.5, 0.6, 9, 0.4, 0.7)

    row = PartRow("head", part, "split", "session.run", floor, "note").to_json()

    assert row == {
        "part": "head",
        "plan": "split",
        "median_us": 1500,
        "low_us": 1400,
        "high_us": 1700,
        "n": 9,
        "floor": "session.run",
        "floor_median_us": 500,
        "floor_low_us": 400,
        "floor_high_us": 700,
        "ratio": 3,
        "note": "note",
    }


def test_a_row_without_a_floor_has_no_ratio() -> None:
    row = PartRow("planner", Timing(1.5, 1.6, 9, 1.4, 1.7)).to_json()

    assert (row["floor"], row["floor_median_us"], row["ratio"]) == (None, None, None)


def test_every_row_is_shown() -> None:
    timing = Timing(1.5, 1.6, 9, 1.4, 1.7)
    rows = [PartRow("planner", timing), PartRow("head", timing, "split", "session.run", timing)]

    lines = list(section({"rows": [row.to_json() for row in rows]}))

    assert lines[2:] == [
        "| planner |  | 1,500 | 1,400 to 1,700 |  |  |  |  |",
        "| head | split | 1,500 | 1,400 to 1,700 | session.run | 1,500.0 | 1.00 |  |",
    ]
