"""The edge's REST API: an image in, through the split, detections out.

    POST /v1/detect -> decode -> [thread: Detector.detect -> head, stream, tail] -> DetectResponse

For whoever stands beside the edge: a camera's script, a browser, a health check. The image never
leaves the machine by this path; what the plan sends does.
"""

import io
import time
from contextlib import nullcontext
from functools import partial
from typing import TYPE_CHECKING, Annotated

import anyio
from fastapi import FastAPI, Query, Request, Response

from common.draw import annotate
from common.errors import SourceError
from common.explained import ExplainedPlans, explanation
from common.images import EDGE_LIMITS, ImageLimits, decode_image
from common.metrics import serve_metrics
from common.rest import (
    IMAGE_BODY,
    DetectResponse,
    Health,
    ImageSize,
    PlanName,
    ScoreThreshold,
    detection_records,
    error_responses,
    install_error_handlers,
    plan_record,
    read_image_body,
)
from edge.detector import DEFAULT_SCORE_THRESHOLD, Detector, find_plan
from edge.metrics import EdgeMetrics
from edge.pilot import announcement

if TYPE_CHECKING:
    from edge.player import Player  # brings the video decoder

_AT_ONCE = 4

Deadline = Annotated[
    float | None,
    Query(
        gt=0,
        allow_inf_nan=False,
        description="Milliseconds: the most accurate plan that keeps them is chosen.",
    ),
]


def create_app(
    detector: Detector,
    *,
    limits: ImageLimits = EDGE_LIMITS,
    score_threshold: float = DEFAULT_SCORE_THRESHOLD,
    version: str = "",
    metrics: EdgeMetrics | None = None,
    player: "Player | None" = None,
) -> FastAPI:
    """The app over a detector.

    Args:
        detector: The opened detector.
        limits: The largest image to accept.
        score_threshold: For requests that name none.
        version: The software's version, for /docs.
        metrics: What /metrics tells.
        player: What is played beside, for /v1/latest.jpg.
    """
    app = FastAPI(title="Splitpoint edge", version=version or "0")
    install_error_handlers(app)
    default_threshold = score_threshold
    slots = anyio.CapacityLimiter(_AT_ONCE)
    counted = EdgeMetrics(detector) if metrics is None else metrics
    serve_metrics(app, counted.registry)
    if player is not None:
        _serve_latest(app, player)

    @app.post(
        "/v1/detect",
        openapi_extra=IMAGE_BODY,
        responses=error_responses(400, 409, 413, 415, 422, 503),
    )
    async def detect(
        request: Request,
        plan: str | None = Query(None, description="A plan's name, or the start of its digest."),
        score_threshold: ScoreThreshold = default_threshold,
        deadline_ms: Deadline = None,
    ) -> DetectResponse:
        """Detect objects in one image, through the split."""
        digest = None if plan is None else find_plan(detector.bundle, plan)
        body = await read_image_body(request, limits.max_bytes)
        return await anyio.to_thread.run_sync(
            partial(
                detect_image,
                detector,
                body,
                digest,
                score_threshold,
                limits,
                deadline_ms,
                counted,
            ),
            limiter=slots,
        )

    @app.get("/v1/plans")
    async def plans() -> ExplainedPlans:
        """The plans of the bundle; the first is the search's choice. And which is used, and why."""
        bundle, pilot = detector.bundle, detector.pilot
        return ExplainedPlans(
            model=bundle.manifest.search.model,
            plans=[plan_record(plan, digest) for digest, plan in bundle.plans.items()],
            in_use=[]
            if pilot is None
            else [explanation("", announcement(pilot.state()), bundle.plans)],
        )

    @app.get("/livez")
    async def alive() -> Health:
        """The process lives."""
        return Health()

    @app.get("/readyz", responses=error_responses(409, 503))
    async def ready() -> Health:
        """The default plan can be served: its head is reproduced, its cloud greets."""
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
        """The last frame that was served, with its boxes drawn."""
        return Response(
            await anyio.to_thread.run_sync(draw_latest, player),
            media_type="image/jpeg",
            headers={"Cache-Control": "no-store"},
        )


def draw_latest(player: "Player") -> bytes:
    """The last frame with its boxes, as a JPEG file.

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
    return file.getvalue()


def detect_image(
    detector: Detector,
    data: bytes,
    digest: bytes | None,
    score_threshold: float,
    limits: ImageLimits = EDGE_LIMITS,
    deadline_ms: float | None = None,
    metrics: EdgeMetrics | None = None,
) -> DetectResponse:
    """Decode an image and detect objects in it, in the calling thread.

    Raises:
        ImageError: If it is no image, or too large.
        UnknownPlanError: If the plan is not held on both ends.
        CloudUnavailableError: If the plan needs the cloud, and it is or goes away.
    """
    started_s = time.perf_counter()
    image = decode_image(data, limits)
    open_ms = (time.perf_counter() - started_s) * 1000
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
