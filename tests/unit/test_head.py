"""The edge's half: the parity gate, what a cut is made of, and edge-only detections."""

from pathlib import Path

import numpy as np
import pytest

from common.bundle import Bundle
from common.codec import make_codec
from common.errors import ParityError, SettingsError, UnknownPlanError
from common.images import Letterbox, letterbox
from common.runtime import Model
from edge.detector import find_plan
from edge.head import EdgePlan, open_plans
from tests import tiny

FRAME = letterbox(tiny.image(), (tiny.SIZE, tiny.SIZE))
WHERE = Letterbox.fit(48, 40, (tiny.SIZE, tiny.SIZE))


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return tiny.build(tmp_path_factory.mktemp("bundle") / "b", [*tiny.ALL_PLANS, tiny.SPLIT_8])


@pytest.fixture(scope="module")
def plans(bundle: Bundle) -> dict[str, EdgePlan]:
    return {opened.plan.name: opened for opened in open_plans(bundle).values()}


def decoded(opened: EdgePlan) -> np.ndarray:
    assert opened.plan.codec is not None
    (wire,) = opened.plan.wire
    (payload,) = opened.cut(FRAME).payloads
    return make_codec(opened.plan.codec).decode(payload.data, wire.shape, wire.bits)


@pytest.mark.parametrize("name", [tiny.SPLIT, tiny.SPLIT_8])
def test_what_travels_are_the_symbols_of_the_heads_output(
    bundle: Bundle, plans: dict[str, EdgePlan], name: str
) -> None:
    opened = plans[name]
    assert opened.plan.head is not None
    (codes,) = Model(bundle.file(opened.plan.head.file)).run({"image": FRAME[None]})
    expected = np.array(opened.plan.wire[0].to_symbol, np.uint8)[codes[0]]

    np.testing.assert_array_equal(decoded(opened), expected)


def test_cloud_only_sends_the_frame(plans: dict[str, EdgePlan]) -> None:
    np.testing.assert_array_equal(decoded(plans[tiny.CLOUD_ONLY]), FRAME)


def test_edge_only_finds_objects_here(plans: dict[str, EdgePlan]) -> None:
    local = plans[tiny.EDGE_ONLY].infer(FRAME, WHERE, 0.25)

    assert len(local.detections) > 0
    assert (local.detections.scores >= 0.25).all()


def test_edge_only_has_nothing_to_send(plans: dict[str, EdgePlan]) -> None:
    with pytest.raises(SettingsError, match="edge-only"):
        plans[tiny.EDGE_ONLY].cut(FRAME)


def test_a_split_cannot_be_finished_here(plans: dict[str, EdgePlan]) -> None:
    with pytest.raises(SettingsError, match="needs the cloud"):
        plans[tiny.SPLIT].infer(FRAME, WHERE, 0.25)


def test_a_head_that_is_not_reproduced_is_never_served(tmp_path: Path) -> None:
    bundle = tiny.build(tmp_path / "b", [tiny.SPLIT], wrong_vector=True)
    with pytest.raises(ParityError, match="does not reproduce"):
        open_plans(bundle)


def test_only_the_plans_asked_for_are_opened(tmp_path: Path) -> None:
    bundle = tiny.build(tmp_path / "b", [tiny.SPLIT, tiny.CLOUD_ONLY], wrong_vector=True)
    wanted = find_plan(bundle, tiny.CLOUD_ONLY)
    assert list(open_plans(bundle, [wanted])) == [wanted]


class TestFindPlan:
    def test_by_name_or_by_the_start_of_its_digest(self, bundle: Bundle) -> None:
        for digest, plan in bundle.plans.items():
            assert find_plan(bundle, plan.name) == digest
            assert find_plan(bundle, digest.hex()[:12]) == digest
            assert find_plan(bundle, digest.hex().upper()) == digest

    @pytest.mark.parametrize("wanted", ["", "nothing", "0", "g" * 12])
    def test_otherwise_the_names_are_listed(self, bundle: Bundle, wanted: str) -> None:
        with pytest.raises(UnknownPlanError, match=tiny.SPLIT):
            find_plan(bundle, wanted)
