"""The cloud's REST API: whole images in, detections out, and whether the process is ready.

    body (common.http.intake) -> admission
        -> [worker: decode, letterbox, cloud-only tail] -> detections

This is the path of a caller without an edge, and the reference for every split: the network as it
is, on the letterboxed pixels, with no lossy codec between them.
"""

import asyncio
import time
from collections.abc import Mapping
from functools import partial
from typing import Annotated

from fastapi import FastAPI, Query, Request

from cloud.admission import Admission
from cloud.edges import Edge, EdgeFailedError, Edges, ReportedDetections
from cloud.metrics import CloudMetrics
from cloud.profile import rows_of
from cloud.store.samples import ImpossibleTimesError
from cloud.store.store import Store, StoredRow
from cloud.store.table_pages import MAX_CURSOR_CHARACTERS, read_page
from cloud.tails import DEFAULT_SCORE_THRESHOLD, Tails
from common.errors import CloudUnavailableError
from common.explanation import ExplainedPlans, explanation
from common.http.intake import (
    CLOUD_INTAKE,
    Intake,
    IntakeLimits,
    TurnLimits,
    Turns,
    peer_of,
    unless_gone,
)
from common.http.metrics import serve_intake, serve_metrics
from common.http.schemas import (
    IMAGE_BODY,
    DetectResponse,
    EdgeRecord,
    EdgesResponse,
    Health,
    ImageSize,
    PlanKey,
    PlanName,
    ProfileResponse,
    ReportRecord,
    ReportsResponse,
    ScoreThreshold,
    TableRow,
    TablesResponse,
    detection_records,
    error_responses,
    new_app,
    plan_record,
)
from common.imaging.images import DEFAULT_LIMITS, ImageLimits, Letterbox, decode_image, letterbox

_MOST_READERS = 4
"""Calls that may wait to read the store."""

ProfileBudget = Annotated[
    float, Query(gt=0, le=300, allow_inf_nan=False, description="Seconds that it may take.")
]
PageLimit = Annotated[
    int, Query(ge=1, le=5000, description="Rows at the most, of `rows` and `tables` together.")
]
PageCursor = Annotated[
    str | None,
    Query(max_length=MAX_CURSOR_CHARACTERS, description="`next` of the page before."),
]
EdgeName = Annotated[str | None, Query(description="Only this edge; all, if not given.")]


def create_app(
    tails: Tails,
    admission: Admission,
    *,
    store: Store | None = None,
    edges: Edges | None = None,
    metrics: CloudMetrics | None = None,
    limits: ImageLimits = DEFAULT_LIMITS,
    bodies: IntakeLimits = CLOUD_INTAKE,
) -> FastAPI:
    """The app over a bundle's tails.

    Args:
        tails: The opened tails.
        admission: The queue before the workers, shared with the gRPC service.
        store: Where observations are kept.
        edges: Who is connected.
        metrics: Served at /metrics.
        limits: The largest image to accept.
        bodies: Bounds of all images that are held at once.
    """
    app = new_app("Splitpoint cloud")
    intake = Intake(bodies)
    connected = Edges() if edges is None else edges
    _serve_edges(app, connected, tails, store)
    counted = CloudMetrics(tails.bundle.plans, connected, store) if metrics is None else metrics
    serve_metrics(app, counted.registry)
    serve_intake(counted.registry, "cloud", intake)

    @app.post(
        "/v1/detect",
        openapi_extra=IMAGE_BODY,
        responses=error_responses(403, 408, 409, 413, 415, 422, 503),
    )
    async def detect(
        request: Request, score_threshold: ScoreThreshold = DEFAULT_SCORE_THRESHOLD
    ) -> DetectResponse:
        """Detect objects in one image with the whole network."""
        tails.image_runner()  # before the body is read: nothing in it could help
        client = peer_of(request)
        admission.check("rest", client)
        async with intake.body(request, limits.max_bytes) as body:
            work = partial(detect_image, tails, body, score_threshold, limits, time.perf_counter())
            return await unless_gone(request, admission.run("rest", client, work))

    @app.get("/v1/plans", responses=error_responses(404))
    async def plans(edge: EdgeName = None) -> ExplainedPlans:
        """The plans of the bundle, and which of them the connected edges use, and why."""
        asked = connected.all() if edge is None else [connected.find(edge)]
        return ExplainedPlans(
            model=tails.bundle.manifest.search.model,
            plans=[plan_record(plan, digest) for digest, plan in tails.bundle.plans.items()],
            in_use=[
                explanation(each.name, each.switch, tails.bundle.plans)
                for each in asked
                if each.switch is not None
            ],
        )

    # A full store is much to read: one call does, few wait, and none of them holds a thread.
    readers = Turns(TurnLimits(at_once=1, waiting=_MOST_READERS))

    @app.get("/v1/tables", responses=error_responses(422, 503))
    async def tables(
        request: Request, limit: PageLimit = 1000, cursor: PageCursor = None
    ) -> TablesResponse:
        """Observed latencies of frames, and the latency tables of each device, by pages."""
        if store is None:
            return TablesResponse(rows=[], tables=[], ignored={}, dropped=0)
        reading = readers.run(partial(read_page, store, cursor, limit))
        page = await unless_gone(request, reading)
        names = {digest.hex(): plan.name for digest, plan in tails.bundle.plans.items()}
        return TablesResponse(
            rows=[_table_row(row, names) for row in page.rows],
            tables=list(page.tables),
            ignored=dict(store.ignored),
            dropped=store.dropped,
            next=page.next,
        )

    @app.get("/livez")
    async def alive() -> Health:
        """The process lives."""
        return Health()

    @app.get("/readyz", responses=error_responses(503))
    async def ready() -> Health:
        """Every tail has run once."""
        if not tails.ready:
            raise CloudUnavailableError("the tails are being warmed up")
        return Health()

    return app


def _serve_edges(app: FastAPI, connected: Edges, tails: Tails, store: Store | None) -> None:
    """The routes about edges that are connected."""

    @app.get("/v1/edges")
    async def all_edges() -> EdgesResponse:
        """The edges that are connected now."""
        return EdgesResponse(
            edges=[_edge_record(edge, connected.has_namesake(edge)) for edge in connected.all()]
        )

    @app.post(
        "/v1/edges/{edge:path}/profile", responses=error_responses(403, 404, 409, 422, 503, 504)
    )
    async def profile(
        request: Request, edge: str, budget_s: ProfileBudget = 30.0
    ) -> ProfileResponse:
        """Have a connected edge time its plans, for the latency tables; answers when it has."""
        found = connected.find(edge)
        report = await unless_gone(request, found.profile(budget_s))
        try:
            rows = rows_of(report, found.source, tails.bundle.plans, time.time())
        except ImpossibleTimesError as error:
            if store is not None:
                store.ignore(edge)
            raise EdgeFailedError(f"what {edge} answered cannot be true: {error}") from error
        if store is not None:
            await asyncio.to_thread(store.upsert_profiles, rows)
        return ProfileResponse(rows=rows)

    @app.get("/v1/edges/{edge:path}/detections", responses=error_responses(404))
    async def detections(edge: str) -> ReportsResponse:
        """Detections of an edge's newest edge-only frames, for as long as it is connected."""
        found = connected.find(edge)
        return ReportsResponse(
            edge=found.name,
            reports=[_report_record(each, tails) for each in reversed(found.detections)],
        )


def _report_record(report: ReportedDetections, tails: Tails) -> ReportRecord:
    return ReportRecord(
        frame_id=report.frame_id,
        plan=PlanKey(name=tails.bundle.plans[report.plan].name, digest=report.plan.hex()),
        at_s=report.at_s,
        detections=detection_records(report.detections, tails.bundle.manifest.detector.class_names),
    )


def _edge_record(edge: Edge, duplicate_name: bool) -> EdgeRecord:
    return EdgeRecord(
        edge=edge.name,
        duplicate_name=duplicate_name,
        device=edge.source.device,
        runtime=edge.source.runtime,
        bundle=edge.bundle,
        version=edge.version,
        since_s=edge.since_s,
        plan=None if edge.switch is None else edge.switch.plan_digest.hex(),
        switches=edge.switches,
    )


def _table_row(row: StoredRow, names: Mapping[str, str]) -> TableRow:
    return TableRow(
        edge=row.source.edge,
        device=row.source.device,
        runtime=row.source.runtime,
        threads=row.source.threads,
        plan=PlanKey(name=names.get(row.plan, ""), digest=row.plan),
        stage=row.stage,
        n=row.n,
        median_ms=row.median_ms,
        p90_ms=row.p90_ms,
        interval_ms=(row.low_ms, row.high_ms),
        last_seen_s=row.last_seen_s,
    )


def detect_image(
    tails: Tails,
    data: bytes,
    score_threshold: float,
    limits: ImageLimits = DEFAULT_LIMITS,
    arrived_s: float | None = None,
) -> DetectResponse:
    """Decode an image and run the whole network on it, in the calling thread.

    Args:
        tails: The opened tails.
        data: The encoded image.
        score_threshold: Lowest score to return.
        limits: The largest image to decode.
        arrived_s: When the image arrived, in seconds of `time.perf_counter`; now, if None.

    Raises:
        ImageError: If it is no image, or too large.
        UnknownPlanError: If the bundle has no cloud-only plan.
    """
    started_s = time.perf_counter()
    arrived_s = started_s if arrived_s is None else arrived_s
    runner = tails.image_runner()
    detector = tails.bundle.manifest.detector
    image = decode_image(data, limits)
    height, width = image.shape[:2]
    size = detector.input_height, detector.input_width
    pixels = letterbox(image, size)
    preprocessed_s = time.perf_counter()
    where = Letterbox.fit(width, height, size)
    finished = runner.run(runner.symbols([pixels]), where, score_threshold)
    done_s = time.perf_counter()
    return DetectResponse(
        image=ImageSize(width=width, height=height),
        plan=PlanName(name=runner.plan.name, kind=runner.plan.kind, digest=runner.digest.hex()),
        detections=detection_records(finished.detections, detector.class_names),
        times_ms={
            "queue": (started_s - arrived_s) * 1000,
            "preprocess": (preprocessed_s - started_s) * 1000,
            "decode": finished.decode_ms,
            "tail": finished.tail_ms,
            "postprocess": finished.postprocess_ms,
        },
        latency_ms=(done_s - arrived_s) * 1000,
        uplink_bytes=len(data),
    )
