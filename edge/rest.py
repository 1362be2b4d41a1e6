"""The edge's REST API: an image in, through the split, its result out.

    POST /v1/infer, /v1/detect -> body (common.http.intake) -> turn
        -> [thread: decode -> Detector.detect -> head, stream, tail] -> InferResponse

For clients next to the edge: a camera's script, a browser, a health check. The API never sends the
image on to another machine; the plan's payload does leave the edge.
"""

import io
import time
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import anyio
from fastapi import Depends, FastAPI, Query, Request, Response

from common.errors import SourceError
from common.explanation import ExplainedPlans, explanation
from common.http.intake import EDGE_INTAKE, Intake, IntakeLimits, unless_gone
from common.http.metrics import serve_intake, serve_metrics
from common.http.schemas import (
    IMAGE_BODY,
    DetectResponse,
    FrameResponse,
    Health,
    ImageSize,
    InferResponse,
    PlanName,
    detect_response,
    error_responses,
    infer_response,
    new_app,
    plan_record,
)
from common.http.settings_query import settings_query
from common.http.turns import TurnLimits, Turns
from common.imaging.images import EDGE_LIMITS, ImageLimits, decode_image
from common.tasks.base import ResultSettings, TaskResult
from common.tasks.detections import require_detection
from common.tasks.draw import annotate
from edge.detector import Detector, find_plan
from edge.metrics import EdgeMetrics
from edge.planning.controller import announcement

if TYPE_CHECKING:
    from edge.capture.player import Player  # brings the video decoder

_TURNS = TurnLimits(at_once=4, waiting=64)
_LEAST_DEADLINE_MS = 1e-3

PlanQuery = Annotated[str | None, Query(description="A plan's name, or the start of its digest.")]

Deadline = Annotated[
    float | None,
    Query(
        gt=0,
        allow_inf_nan=False,
        description="Deadline in milliseconds: the most accurate plan that meets it is chosen.",
    ),
]


def create_app(
    detector: Detector,
    *,
    limits: ImageLimits = EDGE_LIMITS,
    settings: ResultSettings | None = None,
    metrics: EdgeMetrics | None = None,
    player: "Player | None" = None,
    bodies: IntakeLimits = EDGE_INTAKE,
    queue: TurnLimits = _TURNS,
) -> FastAPI:
    """Create the REST app of a detector.

    Args:
        detector: The opened detector.
        limits: The largest image to accept.
        settings: What is reported to requests that do not say; the bundle's defaults, if None.
        metrics: Metrics that /metrics exposes.
        player: Player of a camera in the same process, for /v1/latest.jpg.
        bodies: Limits on the request bodies held in memory at once.
        queue: Limits on the requests that wait and that are served at once.
    """
    app = new_app("Splitpoint edge")
    intake, turns = Intake(bodies), Turns(queue)
    counted = EdgeMetrics(detector) if metrics is None else metrics
    serve_metrics(app, counted.registry)
    serve_intake(counted.registry, "edge", intake, turns)
    defaults = detector.bundle.manifest.settings if settings is None else settings
    _serve_images(app, _Images(detector, limits, defaults, counted, intake, turns))
    if player is not None:
        _serve_latest(app, player)

    @app.get("/v1/plans")
    async def plans() -> ExplainedPlans:
        """Plans of the bundle, the search's choice first; the plan in use and the reason for it."""
        bundle, controller = detector.bundle, detector.controller
        return ExplainedPlans(
            model=bundle.manifest.search.model,
            plans=[plan_record(plan, digest) for digest, plan in bundle.plans.items()],
            in_use=[]
            if controller is None
            else [explanation("", announcement(controller.state()), bundle.plans)],
        )

    @app.get("/livez")
    async def alive() -> Health:
        """Liveness: the process runs."""
        return Health()

    @app.get("/readyz", responses=error_responses(502, 503))
    async def ready() -> Health:
        """Readiness: the default plan can be served, with its cloud if it needs one.

        If a camera is played in the same process, it must deliver frames.
        """
        if player is not None:
            player.check_frames()
        await anyio.to_thread.run_sync(detector.check_ready)
        return Health()

    return app


@dataclass(frozen=True)
class _Images:
    """Needs of the routes that run images.

    Attributes:
        detector: The opened detector.
        limits: The largest image to accept.
        defaults: What is reported to requests that do not say.
        metrics: Metrics that count the frames.
        intake: Bound on bodies.
        turns: Bound on requests at once.
    """

    detector: Detector
    limits: ImageLimits
    defaults: ResultSettings
    metrics: EdgeMetrics
    intake: Intake
    turns: Turns


def _serve_images(app: FastAPI, images: _Images) -> None:
    """Add the routes that run an image."""
    detector, task = images.detector, images.detector.task
    options: dict[str, Any] = {
        "openapi_extra": IMAGE_BODY,
        "responses": error_responses(403, 408, 409, 413, 415, 422, 502, 503),
    }
    Settings = Annotated[  # noqa: N806 - a type
        ResultSettings, Depends(settings_query(task, images.defaults))
    ]

    async def run(
        request: Request, plan: str | None, settings: ResultSettings, deadline_ms: float | None
    ) -> tuple[TaskResult, FrameResponse]:
        digest = None if plan is None else find_plan(detector.bundle, plan)
        images.turns.check()
        async with images.intake.body(request, images.limits.max_bytes) as body:
            asked_s = time.perf_counter()
            work = partial(
                run_image,
                detector,
                body,
                digest,
                settings,
                images.limits,
                deadline_ms,
                images.metrics,
                asked_s,
            )
            return await unless_gone(request, images.turns.run(work))

    @app.post("/v1/detect", **options)
    async def detect(
        request: Request, settings: Settings, plan: PlanQuery = None, deadline_ms: Deadline = None
    ) -> DetectResponse:
        """Detect objects in one image, through the split."""
        require_detection(task, "POST /v1/infer")
        result, served = await run(request, plan, settings, deadline_ms)
        return detect_response(served, result, task)

    @app.post("/v1/infer", **options)
    async def infer(
        request: Request, settings: Settings, plan: PlanQuery = None, deadline_ms: Deadline = None
    ) -> InferResponse:
        """Run one image through the split; answers with the result of the bundle's task."""
        result, served = await run(request, plan, settings, deadline_ms)
        return infer_response(served, result, task)


def _serve_latest(app: FastAPI, player: "Player") -> None:
    @app.get(
        "/v1/latest.jpg",
        response_class=Response,
        responses={200: {"content": {"image/jpeg": {}}}, **error_responses(503)},
    )
    async def latest() -> Response:
        """Latest served frame, with its result drawn."""
        picture, age_ms = await anyio.to_thread.run_sync(draw_latest, player)
        return Response(
            picture,
            media_type="image/jpeg",
            headers={
                "Cache-Control": "no-store",
                "Age": str(age_ms // 1000),
                "X-Splitpoint-Age-Ms": str(age_ms),
            },
        )


def draw_latest(player: "Player") -> tuple[bytes, int]:
    """Draw the last frame with its result; returns a JPEG file and the frame's age in ms.

    Raises:
        SourceError: If there was none yet.
    """
    shown = player.latest
    if shown is None:
        raise SourceError("no frame was served yet: try again")
    outcome = shown.outcome
    caption = f"{outcome.plan.name}  {outcome.latency_ms:.0f} ms  {outcome.uplink_bytes} B"
    file = io.BytesIO()
    annotate(shown.captured.image, outcome.result, player.class_names, caption).save(
        file, "JPEG", quality=85
    )
    return file.getvalue(), shown.age_ms()


def run_image(
    detector: Detector,
    data: bytes,
    digest: bytes | None,
    settings: ResultSettings | None = None,
    limits: ImageLimits = EDGE_LIMITS,
    deadline_ms: float | None = None,
    metrics: EdgeMetrics | None = None,
    asked_s: float | None = None,
) -> tuple[TaskResult, FrameResponse]:
    """Decode an image and run it by a plan, in the calling thread.

    Args:
        detector: The opened detector.
        data: The image file.
        digest: Digest of the plan; the detector's choice, if None.
        settings: What to report; by the bundle's defaults, if None.
        limits: The largest image to accept.
        deadline_ms: See `Detector.detect`.
        metrics: Metrics that count the frame.
        asked_s: When the deadline began, by `time.perf_counter`; now, if None.

    Raises:
        ImageError: If it is no image, or too large.
        UnknownPlanError: If the plan was not opened here.
        CloudUnavailableError: If the plan needs the cloud, which cannot be reached or is lost.
    """
    started_s = time.perf_counter()
    asked_s = started_s if asked_s is None else asked_s
    image = decode_image(data, limits)
    open_ms = (time.perf_counter() - started_s) * 1000
    if deadline_ms is not None:  # decoding, and waiting for a thread to do it, are part of it
        deadline_ms = max(deadline_ms - (time.perf_counter() - asked_s) * 1000, _LEAST_DEADLINE_MS)
    with nullcontext() if metrics is None else metrics.under_way():
        outcome = detector.detect(
            image, digest, settings, capture_ms=open_ms, deadline_ms=deadline_ms
        )
    if metrics is not None:
        metrics.served(outcome, open_ms)
    plan = outcome.plan
    served = FrameResponse(
        image=ImageSize(width=image.shape[1], height=image.shape[0]),
        plan=PlanName(name=plan.name, kind=plan.kind, digest=outcome.digest.hex()),
        times_ms={"open": open_ms, **outcome.times_ms},
        latency_ms=open_ms + outcome.latency_ms,
        expected_ms=None if outcome.expected is None else open_ms + outcome.expected.latency_ms,
        reason=outcome.reason,
        uplink_bytes=outcome.uplink_bytes,
    )
    return outcome.result, served
