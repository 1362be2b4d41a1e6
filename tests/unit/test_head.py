"""The edge's half: the parity gate, what a cut is made of, and edge-only detections."""

import re
from pathlib import Path

import numpy as np
import pytest

from common.bundle.bundle import Bundle
from common.bundle.manifest import EDGE_MEMORY
from common.codec import make_codec
from common.errors import ParityError, SettingsError, UnknownPlanError
from common.imaging.placement import Placement, fit_image
from common.runtime.registry import open_model
from common.tasks.base import DEFAULTS
from common.tasks.detections import as_detections
from edge.detector import find_plan
from edge.head import EdgePlan, fitting_together, open_plans, open_reproduced
from search.prediction.devices import device_profile
from tests import tiny

FRAME = fit_image(tiny.image(), (tiny.SIZE, tiny.SIZE))
WHERE = Placement.fit(48, 40, (tiny.SIZE, tiny.SIZE))


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
    (codes,) = open_model(bundle.file(opened.plan.head.file)).run({"image": FRAME[None]})
    expected = np.array(opened.plan.wire[0].to_symbol, np.uint8)[codes[0]]

    np.testing.assert_array_equal(decoded(opened), expected)


def test_cloud_only_sends_the_frame(plans: dict[str, EdgePlan]) -> None:
    np.testing.assert_array_equal(decoded(plans[tiny.CLOUD_ONLY]), FRAME)


def test_edge_only_finds_objects_here(plans: dict[str, EdgePlan]) -> None:
    local = plans[tiny.EDGE_ONLY].infer(FRAME, WHERE, DEFAULTS)

    assert len(as_detections(local.result)) > 0
    assert (as_detections(local.result).scores >= 0.25).all()


def test_edge_only_has_nothing_to_send(plans: dict[str, EdgePlan]) -> None:
    with pytest.raises(SettingsError, match="edge-only"):
        plans[tiny.EDGE_ONLY].cut(FRAME)


def test_a_split_cannot_be_finished_here(plans: dict[str, EdgePlan]) -> None:
    with pytest.raises(SettingsError, match="needs the cloud"):
        plans[tiny.SPLIT].infer(FRAME, WHERE, DEFAULTS)


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


class TestMemory:
    """What fits an edge together, in a bundle of two heads: 2048 bytes of weights each."""

    @pytest.fixture
    def wide(self, tmp_path: Path) -> Bundle:
        return tiny.build(tmp_path / "w", [tiny.SPLIT, tiny.EDGE_ONLY, tiny.CLOUD_ONLY])

    @staticmethod
    def limited(bundle: Bundle, limit: int | None) -> list[str]:
        search = bundle.manifest.search.model_copy(update={"limits": {EDGE_MEMORY: limit}})
        bundle.manifest = bundle.manifest.model_copy(update={"search": search})
        return [bundle.plans[digest].name for digest in fitting_together(bundle)]

    @pytest.mark.parametrize(
        ("limit", "names"),
        [
            (None, [tiny.SPLIT, tiny.EDGE_ONLY, tiny.CLOUD_ONLY]),
            (10**9, [tiny.SPLIT, tiny.EDGE_ONLY, tiny.CLOUD_ONLY]),
            # Two heads of 2048, and 2048 of activations or 4096 of an upload at a time.
            (2 * 2048 + 4096, [tiny.SPLIT, tiny.EDGE_ONLY, tiny.CLOUD_ONLY]),
            (2 * 2048 + 4095, [tiny.SPLIT, tiny.EDGE_ONLY]),
            (2 * 2048 + 2048, [tiny.SPLIT, tiny.EDGE_ONLY]),
            (2 * 2048 + 2047, [tiny.SPLIT]),
            (1, [tiny.SPLIT]),  # the best is always kept
        ],
    )
    def test_the_limit_is_of_all_heads_together(
        self, wide: Bundle, limit: int | None, names: list[str]
    ) -> None:
        assert self.limited(wide, limit) == names

    @pytest.mark.parametrize(
        ("memory", "names"),
        [
            (2 * 2048 + 4096, [tiny.SPLIT, tiny.EDGE_ONLY, tiny.CLOUD_ONLY]),
            (2 * 2048 + 2047, [tiny.SPLIT]),
            (2048 + 2048, [tiny.SPLIT]),
        ],
    )
    def test_an_edge_may_have_less_than_was_searched_for(
        self, wide: Bundle, memory: int, names: list[str]
    ) -> None:
        assert [wide.plans[d].name for d in fitting_together(wide, memory)] == names

    def test_an_edge_that_fits_nothing_says_what_the_smallest_takes(self, wide: Bundle) -> None:
        with pytest.raises(
            SettingsError, match=r"--memory 1: no plan .* smallest takes 4096 bytes"
        ):
            fitting_together(wide, 1)

    def test_plans_with_one_head_share_it(self, tmp_path: Path) -> None:
        names = [tiny.SPLIT, tiny.SPLIT_8, tiny.EDGE_ONLY]
        bundle = tiny.build(tmp_path / "s", names)
        assert self.limited(bundle, 2048 + 2048) == [tiny.SPLIT, tiny.SPLIT_8]


@pytest.fixture(scope="module")
def wrong(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return tiny.build(tmp_path_factory.mktemp("wrong") / "b", wrong_vector=True)


class TestHeadsThatAreNotReproduced:
    def test_a_plan_without_a_head_serves_all_the_same(
        self, wrong: Bundle, caplog: pytest.LogCaptureFixture
    ) -> None:
        opened = open_reproduced(wrong)
        assert [each.plan.name for each in opened.values()] == [tiny.CLOUD_ONLY]
        (line,) = caplog.messages
        assert tiny.SPLIT in line
        assert tiny.EDGE_ONLY in line

    def test_a_plan_that_was_asked_for_must_open(self, wrong: Bundle) -> None:
        with pytest.raises(ParityError):
            open_reproduced(wrong, required=[find_plan(wrong, tiny.SPLIT)])

    def test_no_plan_at_all_is_an_error(self, wrong: Bundle) -> None:
        with pytest.raises(ParityError):
            open_reproduced(wrong, [find_plan(wrong, tiny.SPLIT)])

    def test_the_advice_names_a_device_that_there_is(self, wrong: Bundle) -> None:
        with pytest.raises(ParityError) as failure:
            open_plans(wrong)
        device = re.search(r"--device (\S+)", str(failure.value))
        assert device is not None
        assert device_profile(device[1]).reduced_range
