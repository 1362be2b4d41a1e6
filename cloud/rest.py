"""The REST front end: whole images in, results out, and what is known of edges and latencies.

    HTTP -> body (common.http.intake) -> DataPlane -> JSON, or an error with its status

`POST /v1/infer` is the path of a caller without an edge, and the reference for every split: the
network as it is, on the fitted pixels, with no lossy codec between them. `POST /v1/detect` is the
same for detectors alone, with its answer in their own form.
"""

from collections.abc import Mapping
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Query, Request

from cloud.data_plane import DataPlane
from cloud.edges import Edge, ReportedResult
from cloud.store.stage_rows import StoredRow
from cloud.store.table_pages import MAX_CURSOR_CHARACTERS
from cloud.tails import Tails
from cloud.whole_images import ImageResult
from common.explanation import ExplainedPlans, explanation
from common.http.intake import CLOUD_INTAKE, Intake, IntakeLimits, peer_of, unless_gone
from common.http.metrics import serve_intake, serve_metrics
from common.http.schemas import (
    IMAGE_BODY,
    DetectionReport,
    DetectionReports,
    DetectResponse,
    EdgeRecord,
    EdgesResponse,
    FrameResponse,
    Health,
    ImageSize,
    InferResponse,
    PlanKey,
    PlanName,
    ProfileResponse,
    ReportRecord,
    ResultReport,
    ResultReports,
    TableRow,
    TablesResponse,
    detect_response,
    detection_records,
    error_responses,
    infer_response,
    new_app,
    plan_record,
)
from common.http.settings_query import settings_query
from common.tasks.base import ResultSettings
from common.tasks.detections import require_detection

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


def create_app(plane: DataPlane, *, bodies: IntakeLimits = CLOUD_INTAKE) -> FastAPI:
    """Create the REST app of a data plane.

    Args:
        plane: Serves the images; the app shows its edges, tables and metrics.
        bodies: Bounds of all images that are held at once.
    """
    app = new_app("Splitpoint cloud")
    intake = Intake(bodies)
    bundle = plane.tails.bundle
    _serve_images(app, plane, intake)
    _serve_edges(app, plane)
    serve_metrics(app, plane.metrics.registry)
    serve_intake(plane.metrics.registry, "cloud", intake)

    @app.get("/v1/plans", responses=error_responses(404))
    async def plans(edge: EdgeName = None) -> ExplainedPlans:
        """The plans of the bundle, and which of them the connected edges use, and why."""
        asked = plane.edges.all() if edge is None else [plane.edges.find(edge)]
        return ExplainedPlans(
            model=bundle.manifest.search.model,
            plans=[plan_record(plan, digest) for digest, plan in bundle.plans.items()],
            in_use=[
                explanation(each.name, each.switch, bundle.plans)
                for each in asked
                if each.switch is not None
            ],
        )

    @app.get("/v1/tables", responses=error_responses(422, 503))
    async def tables(
        request: Request, limit: PageLimit = 1000, cursor: PageCursor = None
    ) -> TablesResponse:
        """Observed latencies of frames, and the latency tables of each device, by pages."""
        page = await unless_gone(request, plane.read_tables(cursor, limit))
        names = {digest.hex(): plan.name for digest, plan in bundle.plans.items()}
        return TablesResponse(
            rows=[_table_row(row, names) for row in page.rows],
            tables=list(page.tables),
            ignored={} if plane.store is None else dict(plane.store.ignored),
            dropped=0 if plane.store is None else plane.store.dropped,
            next=page.next,
        )

    @app.get("/livez")
    async def alive() -> Health:
        """The process lives."""
        return Health()

    @app.get("/readyz", responses=error_responses(503))
    async def ready() -> Health:
        """Every tail has run once."""
        plane.check_ready()
        return Health()

    return app


def _serve_images(app: FastAPI, plane: DataPlane, intake: Intake) -> None:
    """Add the routes that run whole images."""
    task, defaults = plane.tails.task, plane.tails.bundle.manifest.settings
    options: dict[str, Any] = {
        "openapi_extra": IMAGE_BODY,
        "responses": error_responses(403, 408, 409, 413, 415, 422, 503),
    }
    Settings = Annotated[ResultSettings, Depends(settings_query(task, defaults))]  # noqa: N806 - a type

    async def run(request: Request, settings: ResultSettings) -> tuple[ImageResult, FrameResponse]:
        client = peer_of(request)
        plane.check_image(client)  # before the body is read: nothing in it could help
        async with intake.body(request, plane.image_limits.max_bytes) as body:
            work = plane.infer(body, client, settings)
            result = await unless_gone(request, work)
            return result, _served(result, len(body))

    @app.post("/v1/detect", **options)
    async def detect(request: Request, settings: Settings) -> DetectResponse:
        """Detect objects in one image with the whole network."""
        require_detection(task, "POST /v1/infer")
        result, served = await run(request, settings)
        return detect_response(served, result.result, task)

    @app.post("/v1/infer", **options)
    async def infer(request: Request, settings: Settings) -> InferResponse:
        """Run the whole network on one image; answers with the result of the bundle's task."""
        result, served = await run(request, settings)
        return infer_response(served, result.result, task)


def _serve_edges(app: FastAPI, plane: DataPlane) -> None:
    """Add the routes about connected edges."""

    @app.get("/v1/edges")
    async def all_edges() -> EdgesResponse:
        """The edges that are connected now."""
        edges = plane.edges
        return EdgesResponse(
            edges=[_edge_record(edge, edges.has_namesake(edge)) for edge in edges.all()]
        )

    @app.post(
        "/v1/edges/{edge:path}/profile", responses=error_responses(403, 404, 409, 422, 503, 504)
    )
    async def profile(
        request: Request, edge: str, budget_s: ProfileBudget = 30.0
    ) -> ProfileResponse:
        """Have a connected edge time its plans, for the latency tables; answers when it has."""
        return ProfileResponse(rows=await unless_gone(request, plane.profile(edge, budget_s)))

    tails, task = plane.tails, plane.tails.task

    @app.get("/v1/edges/{edge:path}/detections", responses=error_responses(404, 409))
    async def detections(edge: str) -> DetectionReports:
        """Detections of an edge's newest edge-only frames, for as long as it is connected."""
        require_detection(task, "GET /v1/edges/NAME/results")
        found = plane.edges.find(edge)
        reports = [
            DetectionReport(
                **dict(_report_record(each, tails)),
                detections=detection_records(each.result, task),
            )
            for each in reversed(found.results)
        ]
        return DetectionReports(edge=found.name, reports=reports)

    @app.get("/v1/edges/{edge:path}/results", responses=error_responses(404))
    async def results(edge: str) -> ResultReports:
        """Results of an edge's newest edge-only frames, for as long as it is connected."""
        found = plane.edges.find(edge)
        reports = [
            ResultReport(
                **dict(_report_record(each, tails)),
                result=each.result.to_json(task.class_names),
            )
            for each in reversed(found.results)
        ]
        return ResultReports(edge=found.name, task=task.kind, reports=reports)


def _served(result: ImageResult, uplink_bytes: int) -> FrameResponse:
    plan = result.plan
    return FrameResponse(
        image=ImageSize(width=result.width, height=result.height),
        plan=PlanName(name=plan.name, kind=plan.kind, digest=result.digest.hex()),
        times_ms=result.times_ms,
        latency_ms=result.latency_ms,
        uplink_bytes=uplink_bytes,
    )


def _report_record(report: ReportedResult, tails: Tails) -> ReportRecord:
    return ReportRecord(
        frame_id=report.frame_id,
        plan=PlanKey(name=tails.bundle.plans[report.plan].name, digest=report.plan.hex()),
        at_s=report.at_s,
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
