"""The microbenchmarks: which plans are measured, and what is timed of a frame and the planner."""

from time import perf_counter
from typing import Any

import pytest

from bench.micro.parts import PARTS, choose, experienced_planner, frame_ms, row_of, section
from bench.plan_choice import cheapest_split, upload
from cloud.tails import Tails
from common.bundle.bundle import Bundle
from common.bundle.manifest import Plan
from common.codec.spec import CodecSpec
from common.errors import SplitpointError
from common.tables.timing import Timing
from edge.detector import find_plan
from edge.head import open_plans
from tests import tiny


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("bundle") / "b"
    return tiny.build(folder, [*tiny.ALL_PLANS, tiny.SPLIT_8, tiny.SPLIT_CONTEXT])


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


@pytest.mark.parametrize("name", [tiny.SPLIT_CONTEXT, tiny.CLOUD_ONLY])
def test_every_part_of_a_frame_is_timed(bundle: Bundle, name: str) -> None:
    digest = find_plan(bundle, name)
    edge, tail = open_plans(bundle, [digest])[digest], Tails(bundle).runner(digest)

    geometry = bundle.manifest.task.image
    times = dict(zip(PARTS, frame_ms(edge, tail, tiny.image(), geometry), strict=True))

    assert all(ms > 0 for ms in times.values())


def test_the_planner_has_learnt_before_it_is_timed(bundle: Bundle) -> None:
    now_s = perf_counter()
    planner = experienced_planner(bundle)

    state = planner.state(now_s)

    assert state.link.uplink_bps == pytest.approx(bundle.manifest.search.uplink_bps, rel=0.2)
    assert state.link.rtt_ms == pytest.approx(bundle.manifest.search.rtt_ms, rel=0.2)
    assert len(state.expected) == len(bundle.plans)
    assert state.coverage is not None


def test_a_row_is_in_microseconds_and_is_shown() -> None:
    timing = Timing(1.5, 1.6, 9, 1.4, 1.7)
    rows = [row_of("planner", timing), row_of("head", timing, "split")]

    assert rows[1] == {
        "part": "head",
        "plan": "split",
        "median_us": 1500,
        "low_us": 1400,
        "high_us": 1700,
        "n": 9,
    }
    assert list(section({"rows": rows}))[2:] == [
        "| planner |  | 1,500 | 1,400 to 1,700 |",
        "| head | split | 1,500 | 1,400 to 1,700 |",
    ]
