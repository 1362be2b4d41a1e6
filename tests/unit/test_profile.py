"""Profiles: both ends time their own stages of each plan, and only believable times are kept."""

import io
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from cloud import profile as cloud_profile
from cloud.admission import Admission
from cloud.data_plane import DataPlane
from cloud.profile import rows_of
from cloud.rest import create_app
from cloud.store.samples import LONGEST_US, ImpossibleTimesError, SampleSource
from cloud.store.store import Store
from cloud.tails import Tails
from common.bundle.bundle import Bundle, read_vector
from common.errors import ModelError, PayloadError, UnknownPlanError
from common.imaging.placement import fit_image
from common.rpc import splitpoint_pb2 as pb
from common.tasks.base import ImageInput
from edge import profile as edge_profile
from edge.detector import Detector
from edge.head import EdgePlan, open_plans
from edge.profile import answer, frame_of, frames_of, natural_picture
from tests import tiny
from tests.asgi import request

PLANS = (*tiny.ALL_PLANS, tiny.SPLIT_8, tiny.SPLIT_VIDEO)
ENCODING = (tiny.SPLIT, tiny.SPLIT_8, tiny.SPLIT_VIDEO, tiny.CLOUD_ONLY)
SOURCE = SampleSource("edge7", "box", "onnxruntime x1", 1)
BUDGET_S = 0.05


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return tiny.build(tmp_path_factory.mktemp("bundle") / "tiny", PLANS)


@pytest.fixture(scope="module")
def plans(bundle: Bundle) -> dict[bytes, EdgePlan]:
    return open_plans(bundle)


@pytest.fixture(scope="module")
def tails(bundle: Bundle) -> Tails:
    return Tails(bundle)


@pytest.fixture
def report(bundle: Bundle) -> pb.ProfileReport:
    """A report that is fine."""
    digest = digest_of(bundle, tiny.SPLIT)
    times = {"n": 9, "median_us": 1000, "p90_us": 1500, "low_us": 900, "high_us": 1200}
    rows = [pb.StageTimes(plan_digest=digest, stage=s, **times) for s in ("head", "encode")]
    return pb.ProfileReport(order_id=1, rows=rows)


def digest_of(bundle: Bundle, name: str) -> bytes:
    return next(digest for digest, plan in bundle.plans.items() if plan.name == name)


class TestFrames:
    def test_it_is_the_picture_that_the_heads_are_checked_with(self, bundle: Bundle) -> None:
        head = bundle.plan(digest_of(bundle, tiny.SPLIT)).head
        assert head is not None
        np.testing.assert_array_equal(frame_of(bundle), read_vector(bundle, head)[0][0])

    def test_without_heads_it_is_like_a_photograph(self, tmp_path: Path) -> None:
        bundle = tiny.build(tmp_path / "tiny", [tiny.CLOUD_ONLY])
        frame = frame_of(bundle)
        assert frame.shape == (3, tiny.SIZE, tiny.SIZE)
        assert frame.dtype == np.uint8

    def test_a_natural_picture_is_no_noise(self) -> None:
        picture = natural_picture(320, 240)
        noise = np.random.default_rng(0).integers(0, 256, picture.shape, np.uint8)

        def coded(pixels: edge_profile.Frame) -> int:
            file = io.BytesIO()
            Image.fromarray(pixels).save(file, "JPEG", quality=75)
            return file.tell()

        assert picture.shape == (240, 320, 3)
        assert coded(picture) < coded(noise) / 3
        np.testing.assert_array_equal(picture, natural_picture(320, 240))


class TestBothEnds:
    def test_the_edge_times_what_each_plan_has_there(
        self, bundle: Bundle, plans: dict[bytes, EdgePlan]
    ) -> None:
        told: list[tuple[int, int]] = []
        times = edge_profile.profile(
            plans,
            frame_of(bundle),
            budget_s=BUDGET_S,
            progress=lambda done, most: told.append((done, most)),
        )
        stages = {bundle.plan(digest).name: list(found) for digest, found in times.items()}
        assert stages == {
            tiny.SPLIT: ["preprocess", "head", "encode"],
            tiny.CLOUD_ONLY: ["preprocess", "encode"],
            tiny.EDGE_ONLY: ["preprocess", "head", "postprocess"],
            tiny.SPLIT_8: ["preprocess", "head", "encode"],
            tiny.SPLIT_VIDEO: ["preprocess", "head", "encode"],
        }
        every = [timing for found in times.values() for timing in found.values()]
        assert all(0 < t.low_ms <= t.median_ms <= t.high_ms for t in every)
        assert told[-1] == (200, 200)

    def test_the_cloud_times_what_the_edge_would_send(
        self, bundle: Bundle, plans: dict[bytes, EdgePlan], tails: Tails
    ) -> None:
        frames = frames_of(plans, frame_of(bundle))
        times = cloud_profile.profile(tails, frames, budget_s=BUDGET_S)
        assert set(times) == set(tails.digests)
        for stages in times.values():
            assert list(stages) == ["decode", "tail", "postprocess"]
            assert all(timing.median_ms > 0 for timing in stages.values())

    def test_plans_that_look_back_do_so_in_a_profile(
        self, bundle: Bundle, plans: dict[bytes, EdgePlan]
    ) -> None:
        frames = frames_of(plans, frame_of(bundle))
        first, second = frames[digest_of(bundle, tiny.SPLIT_VIDEO)]
        assert not first.HasField("reference")
        assert second.reference.frame_id == first.frame_id
        assert len(frames[digest_of(bundle, tiny.SPLIT)]) == 1

    def test_frames_of_other_plans_are_refused(
        self, bundle: Bundle, plans: dict[bytes, EdgePlan], tails: Tails
    ) -> None:
        frames = frames_of(plans, frame_of(bundle))
        with pytest.raises(UnknownPlanError):
            cloud_profile.profile(tails, {b"?" * 32: [pb.Frame()]}, budget_s=BUDGET_S)
        with pytest.raises(PayloadError):
            cloud_profile.profile(tails, {key: [pb.Frame()] for key in frames}, budget_s=BUDGET_S)


class TestPictures:
    def test_preprocessing_is_timed_on_pictures_of_the_cameras_size(
        self, bundle: Bundle, plans: dict[bytes, EdgePlan], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        shapes = set()

        def seen(geometry: ImageInput, picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
            shapes.add(picture.shape)
            return fit_image(picture, geometry.size)

        frame, order = frame_of(bundle), pb.ProfileOrder(budget_ms=1)
        monkeypatch.setattr(ImageInput, "pixels", seen)
        assert answer(order, plans, frame).error == ""
        assert shapes == {(480, 640, 3)}
        shapes.clear()
        assert answer(order, plans, frame, (320, 200)).error == ""
        assert shapes == {(200, 320, 3)}

    def test_an_edge_that_is_asked_takes_the_size_that_it_last_saw(self, bundle: Bundle) -> None:
        shapes = set()

        def seen(order: pb.ProfileOrder, *rest: object) -> pb.ProfileReport:
            shapes.add(rest[-1])
            return pb.ProfileReport(order_id=order.order_id)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("edge.detector.answer", seen)
            digest = digest_of(bundle, tiny.EDGE_ONLY)
            detector = Detector(bundle, None, plans=[digest])
            detector.ordered(pb.ProfileOrder())
            detector.detect(np.zeros((30, 50, 3), np.uint8))
            detector.ordered(pb.ProfileOrder())
        assert shapes == {(640, 480), (50, 30)}


class TestOrders:
    def test_all_open_plans_are_timed_and_believed(
        self, bundle: Bundle, plans: dict[bytes, EdgePlan]
    ) -> None:
        order = pb.ProfileOrder(order_id=7, budget_ms=50)
        report = answer(order, plans, frame_of(bundle))
        assert (report.order_id, report.error) == (7, "")
        rows = {row.segment: row for row in rows_of(report, SOURCE, bundle.plans, 5.0)}
        assert set(rows) == {
            *("letterbox", "head to cut", "head to map", "boxes"),
            *(tiny.segment(bundle, plan, "encode") for plan in ENCODING),
        }
        assert {(r.device, r.runtime, r.threads, r.side, r.source) for r in rows.values()} == {
            ("box", "onnxruntime x1", 1, "edge", "profiled")
        }
        assert rows["letterbox"].n == sum(row.n for row in report.rows if row.stage == "preprocess")

    def test_one_plan_can_be_named(self, bundle: Bundle, plans: dict[bytes, EdgePlan]) -> None:
        digest = digest_of(bundle, tiny.EDGE_ONLY)
        order = pb.ProfileOrder(plan_digests=[digest, digest], budget_ms=1)
        report = answer(order, plans, frame_of(bundle))
        assert [row.stage for row in report.rows] == ["preprocess", "head", "postprocess"]

    @pytest.mark.parametrize(
        ("order", "why"),
        [
            (pb.ProfileOrder(order_id=3), "budget_ms: expected 1 to 600000, got 0"),
            (pb.ProfileOrder(order_id=3, budget_ms=2**32 - 1), "budget_ms: expected"),
            (
                pb.ProfileOrder(order_id=3, budget_ms=1, plan_digests=[b"\xab" * 32]),
                "plan abababababab was not opened on this edge",
            ),
            (pb.ProfileOrder(order_id=3, budget_ms=1, plan_digests=[b""]), "was not opened"),
        ],
    )
    def test_an_order_that_cannot_be_done_is_answered_in_one_line(
        self, bundle: Bundle, plans: dict[bytes, EdgePlan], order: pb.ProfileOrder, why: str
    ) -> None:
        report = answer(order, plans, frame_of(bundle))
        assert (report.order_id, len(report.rows)) == (3, 0)
        assert why in report.error

    @pytest.mark.parametrize(
        ("error", "why"),
        [
            (ModelError("it\nbroke"), "it broke"),
            (ZeroDivisionError("secret"), "it failed (ZeroDivisionError): see the log of the edge"),
        ],
    )
    def test_an_edge_that_fails_says_so(
        self,
        plans: dict[bytes, EdgePlan],
        monkeypatch: pytest.MonkeyPatch,
        error: Exception,
        why: str,
    ) -> None:
        def fail(*_: object, **__: object) -> None:
            raise error

        monkeypatch.setattr(edge_profile, "profile", fail)
        frame = np.zeros((3, tiny.SIZE, tiny.SIZE), np.uint8)
        assert answer(pb.ProfileOrder(budget_ms=1), plans, frame).error == why
        assert answer(pb.ProfileOrder(budget_ms=1), {}, frame).error.startswith("no plan is open")


class TestReports:
    def test_what_can_be_true_is_believed(self, bundle: Bundle, report: pb.ProfileReport) -> None:
        head, encode = rows_of(report, SOURCE, bundle.plans, 5.0)
        assert (head.segment, head.n) == ("head to cut", 9)
        numbers = head.median_ms, head.p90_ms, head.low_ms, head.high_ms
        assert numbers == (1.0, 1.5, 0.9, 1.2)
        assert encode.last_seen_s == 5.0

    @pytest.mark.parametrize(
        "changes",
        [
            {"plan_digest": b"u" * 32},
            {"plan_digest": b""},
            {"stage": "tail"},  # the cloud's
            {"stage": "postprocess"},  # of a split: the cloud's
            {"stage": "x" * 10_000},
            {"stage": "encode"},  # a second time
            {"n": 0},
            {"n": 2**32 - 1},
            {"median_us": 0, "low_us": 0},
            {"low_us": 0},
            {"low_us": 1001},
            {"high_us": 999},
            {"p90_us": 999},
            {"p90_us": 2**32 - 1},
            {"high_us": LONGEST_US + 1},
        ],
    )
    def test_what_cannot_is_not(
        self, bundle: Bundle, report: pb.ProfileReport, changes: Mapping[str, bytes | str | int]
    ) -> None:
        for name, value in changes.items():
            setattr(report.rows[0], name, value)
        with pytest.raises(ImpossibleTimesError) as caught:
            rows_of(report, SOURCE, bundle.plans, 5.0)
        assert len(str(caught.value)) < 200

    def test_nor_is_a_flood(self, bundle: Bundle, report: pb.ProfileReport) -> None:
        report.rows.extend([report.rows[0]] * 2048)
        with pytest.raises(ImpossibleTimesError, match="at most 2048"):
            rows_of(report, SOURCE, bundle.plans, 5.0)

    def test_nor_is_an_edge_without_a_name_for_itself(
        self, bundle: Bundle, report: pb.ProfileReport
    ) -> None:
        with pytest.raises(ImpossibleTimesError, match="what it is"):
            rows_of(report, SampleSource("edge7", "", ""), bundle.plans, 5.0)


def test_a_profile_is_told_under_tables(
    bundle: Bundle, tails: Tails, report: pb.ProfileReport
) -> None:
    store = Store()
    rows = rows_of(report, SOURCE, bundle.plans, 5.0)
    store.upsert_profiles(rows)
    with ThreadPoolExecutor(1) as workers:
        told = request(
            create_app(DataPlane(tails, Admission(workers, 1), store=store)), "GET", "/v1/tables"
        ).json()
    assert told["tables"] == [row.model_dump() for row in sorted(rows, key=lambda row: row.key)]
    assert told["rows"] == []
    store.close()
