"""REST code that both ends share: an image in, a result out, errors as one JSON shape.

    POST body -> common.http.intake -> decode -> network -> InferResponse or DetectResponse
    SplitpointError -> {"error": {"type": ..., "message": ...}} with its http_status

The image is the raw body, not a form, so that it can be read against a hard limit. Only REST apps
import this module; the gRPC path does not need it.
"""

import http
import math
from collections.abc import Mapping
from typing import Any, Literal

from fastapi import Depends, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from common.bundle.manifest import Plan, PlanKind, Prediction
from common.errors import CloudOverloadedError, OverloadedError, SplitpointError
from common.http.docs_page import serve_docs
from common.http.guards import AnswerHeaders, refuse_cross_site, refuse_unknown_parameters
from common.tables.rows import LatencyRow
from common.tasks.base import Task, TaskResult
from common.tasks.detections import as_detections
from common.version import __version__

IMAGE_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "description": "The bytes of one image.",
        "content": {
            media_type: {"schema": {"type": "string", "format": "binary"}}
            for media_type in ("image/jpeg", "image/png", "image/webp")
        },
    }
}
"""`openapi_extra` of a route that takes an image."""


_BUSY = 503
_CLIENT_CLOSED_REQUEST = 499
_MEANINGS: Mapping[int, str] = {
    400: "What came cannot be decoded.",
    403: "A page of another site sent it.",
    404: "No such edge is connected.",
    408: "The body arrived too slowly.",
    409: "No such plan, or not on both ends; an edge that is at it already; or another task.",
    413: "The image is over the limit on bytes or on pixels.",
    415: "The body is no image.",
    422: "A parameter makes no sense, or is not known.",
    503: "Busy or not ready; `Retry-After` says in how many seconds to try again.",
    504: "The edge did not do what it was asked.",
}


class ImageSize(BaseModel):
    """Size of the image as it was sent, in pixels."""

    width: int
    height: int


class PlanName(BaseModel):
    """Name, kind and digest of a plan."""

    name: str
    kind: PlanKind
    digest: str = Field(description="SHA-256 of what the plan does, in hex.")


class DetectionRecord(BaseModel):
    """One detection, in COCO's result format with the class's name beside its id."""

    category_id: int = Field(description="COCO's id of the class, if it is one of COCO's.")
    class_name: str
    bbox: tuple[float, float, float, float] = Field(
        description="x, y, width, height in pixels of the image."
    )
    score: float


class FrameResponse(BaseModel):
    """Record of one image that was served: the plan, and where the time went."""

    image: ImageSize
    plan: PlanName
    times_ms: dict[str, float] = Field(description="Milliseconds per stage.")
    latency_ms: float = Field(description="End to end in this process, as measured.")
    uplink_bytes: int = Field(description="Bytes sent to the cloud for this frame.")
    expected_ms: float | None = Field(
        default=None, description="Predicted `latency_ms`, where a planner has a prediction."
    )
    reason: str = Field(default="", description="Why this plan.")


class DetectResponse(FrameResponse):
    """Detections in one image."""

    detections: list[DetectionRecord]


class InferResponse(FrameResponse):
    """Result of one image, in the form of the bundle's task."""

    task: str = Field(description="Kind of the task: detection, classification or tensors.")
    result: list[dict[str, Any]] = Field(
        description="One record per finding: detections as of `/v1/detect`; the best classes as "
        "`class_name`, `class_index` and `score`; tensors as `shape`, `dtype` and `data`, base64 "
        "of little-endian values."
    )


class PlanRecord(PlanName):
    """A plan, with the predictions of the search."""

    codec: str | None
    predicted: Prediction


class PlansResponse(BaseModel):
    """The plans of a bundle; the first is the default."""

    model: str
    plans: list[PlanRecord]


class PlanKey(BaseModel):
    """A plan by its digest; the name is empty for one of another bundle."""

    name: str
    digest: str


class TableRow(BaseModel):
    """Observed latency of one stage of one plan on one edge, measured while serving."""

    edge: str
    device: str
    runtime: str
    threads: int
    plan: PlanKey
    stage: str
    n: int
    median_ms: float
    p90_ms: float
    interval_ms: tuple[float, float] = Field(description="95 % interval of the median.")
    source: Literal["served"] = "served"
    last_seen_s: float = Field(description="Seconds since the epoch, by the cloud's clock.")


class TablesResponse(BaseModel):
    """A page of the latency tables, with what did not get into them; `rows` come first."""

    rows: list[TableRow] = Field(description="Observed latencies, by edge, plan and stage.")
    tables: list[LatencyRow] = Field(
        description="Latencies of segments, by device: simulated, profiled and served."
    )
    ignored: dict[str, int] = Field(description="By edge: measurements that could not be true.")
    dropped: int = Field(description="Measurements that could not be written.")
    next: str | None = Field(
        default=None,
        description="If there is more: ask again with this as `cursor`. Null on the last page.",
    )


class EdgeRecord(BaseModel):
    """One connected edge."""

    edge: str
    device: str
    runtime: str
    bundle: str = Field(description="SHA-256 of its bundle's manifest, in hex.")
    version: str
    since_s: float = Field(description="When it connected, in seconds since the epoch.")
    plan: str | None = Field(description="Digest of the plan it announced last, in hex.")
    switches: int = Field(description="How often it announced one.")
    duplicate_name: bool = Field(
        default=False,
        description="Whether another one calls itself the same; `edge` is unique.",
    )


class EdgesResponse(BaseModel):
    """The connected edges, by name."""

    edges: list[EdgeRecord]


class ProfileResponse(BaseModel):
    """Latency rows that an edge measured when it timed its plans."""

    rows: list[LatencyRow]


class Health(BaseModel):
    """Whether the process lives, or is ready."""

    status: Literal["ok"] = "ok"


class ErrorDetail(BaseModel):
    """Description of an error: a name for programs, a line for people."""

    type: str
    message: str


class ErrorResponse(BaseModel):
    """The body of every answer that is not a success."""

    error: ErrorDetail


def error_responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Declare the statuses that a route may answer with, for its OpenAPI description."""
    return {
        status: {
            "model": ErrorResponse,
            "description": _MEANINGS.get(status, http.HTTPStatus(status).phrase),
        }
        for status in statuses
    }


def detection_records(result: TaskResult, task: Task) -> list[DetectionRecord]:
    """Detections as the REST APIs give them.

    Raises:
        WrongTaskError: If the result is of another task.
    """
    found = as_detections(result).to_json(task.class_names)
    return [DetectionRecord.model_validate(record) for record in found]


def detect_response(served: FrameResponse, result: TaskResult, task: Task) -> DetectResponse:
    """Answer of `POST /v1/detect`."""
    return DetectResponse(**dict(served), detections=detection_records(result, task))


def infer_response(served: FrameResponse, result: TaskResult, task: Task) -> InferResponse:
    """Answer of `POST /v1/infer`."""
    return InferResponse(**dict(served), task=task.kind, result=result.to_json(task.class_names))


def plan_record(plan: Plan, digest: bytes) -> PlanRecord:
    """One row of `GET /v1/plans`."""
    return PlanRecord(
        name=plan.name,
        kind=plan.kind,
        digest=digest.hex(),
        codec=None if plan.codec is None else str(plan.codec),
        predicted=plan.predicted,
    )


def new_app(title: str) -> FastAPI:
    """An app with what both ends share: errors of one shape, guards before each route, /docs."""
    app = FastAPI(
        title=title,
        version=__version__,
        openapi_url=None,  # served as a route, under the guards of the others
        docs_url=None,
        redoc_url=None,
        dependencies=[Depends(refuse_cross_site), Depends(refuse_unknown_parameters)],
    )
    app.add_middleware(AnswerHeaders)
    install_error_handlers(app)
    serve_docs(app)
    return app


def install_error_handlers(app: FastAPI) -> None:
    """Answer every failure in the one shape of `ErrorResponse`."""

    def answer(
        status: int, kind: str, message: str, headers: Mapping[str, str] | None = None
    ) -> JSONResponse:
        body = ErrorResponse(error=ErrorDetail(type=kind, message=message))
        return JSONResponse(body.model_dump(), status_code=status, headers=headers)

    @app.exception_handler(SplitpointError)
    async def on_known(_: Request, error: SplitpointError) -> JSONResponse:
        headers = {"Retry-After": _retry_after(error)} if error.http_status == _BUSY else None
        return answer(error.http_status, type(error).__name__, str(error), headers)

    @app.exception_handler(ClientDisconnect)
    async def on_gone(_: Request, _gone: ClientDisconnect) -> Response:
        # Nobody reads it; without it, the server would log a fault of its own.
        return Response(status_code=_CLIENT_CLOSED_REQUEST)

    @app.exception_handler(RequestValidationError)
    async def on_invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        faults = [f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()]
        return answer(422, "SettingsError", "; ".join(faults))

    @app.exception_handler(HTTPException)
    async def on_http(_: Request, error: HTTPException) -> JSONResponse:
        name = http.HTTPStatus(error.status_code).phrase.replace(" ", "")
        return answer(error.status_code, name, str(error.detail), error.headers)

    @app.exception_handler(Exception)
    async def on_unknown(_: Request, error: Exception) -> JSONResponse:
        # The stack trace goes to the log; a caller sees only that it was not their fault.
        return answer(
            500, "InternalError", f"the server failed ({type(error).__name__}); see its log"
        )


def _retry_after(error: SplitpointError) -> str:
    """Seconds until another try makes sense; 1 for an error that does not say."""
    if isinstance(error, OverloadedError | CloudOverloadedError):
        return str(max(1, math.ceil(error.retry_after_s)))
    return "1"


class ReportRecord(BaseModel):
    """One edge-only frame as its edge reported it."""

    frame_id: int = Field(description="Unique within the edge's stream.")
    plan: PlanKey
    at_s: float = Field(description="When the report came, in seconds since the epoch.")


class DetectionReport(ReportRecord):
    """The detections of an edge-only frame."""

    detections: list[DetectionRecord]


class ResultReport(ReportRecord):
    """The result of an edge-only frame, as of `/v1/infer`."""

    result: list[dict[str, Any]]


class DetectionReports(BaseModel):
    """Detections of the newest reports of a connected edge, the newest first."""

    edge: str
    reports: list[DetectionReport]


class ResultReports(BaseModel):
    """Results of the newest reports of a connected edge, the newest first."""

    edge: str
    task: str
    reports: list[ResultReport]
