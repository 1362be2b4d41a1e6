"""The edge's REST API: an image in, through the split, detections out.

    POST /v1/detect -> body (common.http.intake) -> turn
        -> [thread: decode -> Detector.detect -> head, stream, tail] -> DetectResponse

For clients next to the edge: a camera's script, a browser, a health check. The API never sends the
image on to another machine; the plan's payload does leave the edge.
"""

import io
import time
from contextlib import nullcontext
from functools import partial
from typing import TYPE_CHECKING, Annotated

import anyio
from fastapi import FastAPI, Query, Request, Response

from common.errors import SourceError
from common.explanation import ExplainedPlans, explanation
from common.http.intake import EDGE_INTAKE, Intake, IntakeLimits, unless_gone
from common.http.metrics import serve_intake, serve_metrics
from common.http.schemas import (
    IMAGE_BODY,
    DetectResponse,
    Health,
    ImageSize,
    PlanName,
    ScoreThreshold,
    detection_records,
    error_responses,
    new_app,
    plan_record,
)
from common.http.turns import TurnLimits, Turns
from common.imaging.images import EDGE_LIMITS, ImageLimits, decode_image
from common.tasks.draw import annotate
from edge.detector import DEFAULT_SCORE_THRESHOLD, Detector, find_plan
from edge.metrics import EdgeMetrics
from edge.planning.controller import announcement

if TYPE_CHECKING:
    from edge.capture.player import Player  # brings the video decoder

_TURNS = TurnLimits(at_once=4, waiting=64)
_LEAST_DEADLINE_MS = 1e-3

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
    score_threshold: float = DEFAULT_SCORE_THRESHOLD,
    metrics: EdgeMetrics | None = None,
    player: "Player | None" = None,
    bodies: IntakeLimits = EDGE_INTAKE,
    queue: TurnLimits = _TURNS,
) -> FastAPI:
    """Create the REST app of a detector.

    Args:
        detector: The opened detector.
        limits: The largest image to accept.
        score_threshold: For requests that name none.
        metrics: Metrics that /metrics exposes.
        player: Player of a camera in the same process, for /v1/latest.jpg.
        bodies: Limits on the request bodies held in memory at once.
        queue: Limits on the requests that wait and that are served at once.
    """
    app = new_app("Splitpoint edge")
    default_threshold = score_threshold
    intake, turns = Intake(bodies), Turns(queue)
    counted = EdgeMetrics(detector) if metrics is None else metrics
    serve_metrics(app, counted.registry)
    serve_intake(counted.registry, "edge", intake, turns)
    if player is not None:
        _serve_latest(app, player)

    @app.post(
        "/v1/detect",
        openapi_extra=IMAGE_BODY,
        responses=error_responses(403, 408, 409, 413, 415, 422, 502, 503),
    )
    async def detect(
        request: Request,
        plan: str | None = Query(None, description="A plan's name, or the start of its digest."),
        score_threshold: ScoreThreshold = default_threshold,
        deadline_ms: Deadline = None,
    ) -> DetectResponse:
        """Detect objects in one image, through the split."""
        digest = None if plan is None else find_plan(detector.bundle, plan)
        turns.check()
        async with intake.body(request, limits.max_bytes) as body:
            asked_s = time.perf_counter()
            work = partial(
                detect_image,
                detector,
                body,
                digest,
                score_threshold,
                limits,
                deadline_ms,
                counted,
                asked_s,
            )
            return await unless_gone(request, turns.run(work))

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


def _serve_latest(app: FastAPI, player: "Player") -> None:
    @app.get(
        "/v1/latest.jpg",
        response_class=Response,
        responses={200: {"content": {"image/jpeg": {}}}, **error_responses(503)},
    )
    async def latest() -> Response:
        """Latest served frame, with its boxes drawn."""
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
    """Draw the last frame with its boxes; returns a JPEG file and the frame's age in ms.

    Raises:
        SourceError: If there was none yet.
    """
    shown = player.latest
    if shown is None:
        raise SourceError("no frame was served yet: try again")
    outcome = shown.outcome
    caption = f"{outcome.plan.name}  {outcome.latency_ms:.0f} ms  {outcome.uplink_bytes} B"
    file = io.BytesIO()
    annotate(shown.captured.image, outcome.detections, player.class_names, caption).save(
        file, "JPEG", quality=85
    )
    return file.getvalue(), shown.age_ms()


def detect_image(
    detector: Detector,
    data: bytes,
    digest: bytes | None,
    score_threshold: float,
    limits: ImageLimits = EDGE_LIMITS,
    deadline_ms: float | None = None,
    metrics: EdgeMetrics | None = None,
    asked_s: float | None = None,
) -> DetectResponse:
    """Decode an image and detect objects in it, in the calling thread.

    Args:
        detector: The opened detector.
        data: The image file.
        digest: Digest of the plan; the detector's choice, if None.
        score_threshold: Lowest score to return.
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
            image, digest, score_threshold, capture_ms=open_ms, deadline_ms=deadline_ms
        )
    if metrics is not None:
        metrics.served(outcome, open_ms)
    plan = outcome.plan
    class_names = detector.bundle.manifest.detector.class_names
    return DetectResponse(
        image=ImageSize(width=image.shape[1], height=image.shape[0]),
        plan=PlanName(name=plan.name, kind=plan.kind, digest=outcome.digest.hex()),
        detections=detection_records(outcome.detections, class_names),
        times_ms={"open": open_ms, **outcome.times_ms},
        latency_ms=open_ms + outcome.latency_ms,
        expected_ms=None if outcome.expected is None else open_ms + outcome.expected.latency_ms,
        reason=outcome.reason,
        uplink_bytes=outcome.uplink_bytes,
    )
