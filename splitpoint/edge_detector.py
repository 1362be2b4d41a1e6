"""Detections through a bundle: the edge as an object of a program."""

import asyncio
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

import numpy as np
from numpy.typing import NDArray

from common.bundle.bundle import Bundle
from common.link.trace import link_or_trace
from common.rpc.tls import ClientTls
from common.runtime.registry import DEFAULT_RUNTIME
from common.sizes import parse_size
from common.tasks.base import DEFAULTS, ResultSettings
from edge.app import EdgeSettings, open_edge, own_name
from edge.detector import Outcome, find_plan


class EdgeDetector:
    """Detects objects in images by the plans of a bundle, with a cloud or alone.

    With a cloud and no fixed plan, every frame takes the plan that is expected to be the fastest on
    the link as it is. May be called from several threads at once.

        >>> import numpy as np
        >>> with EdgeDetector(bundle) as edge:  # no cloud: the edge-only plan
        ...     outcome = edge.detect(np.zeros((480, 640, 3), np.uint8))
        >>> outcome.plan.kind
        'edge-only'
        >>> outcome.detections.boxes.shape[1]  # corners x1, y1, x2, y2 in pixels of the image
        4

    Args:
        bundle: A bundle's folder or zip file, or an opened one, which stays open.
        cloud: HOST:PORT of the cloud's gRPC endpoint; None leaves the edge-only plans.
        plan: Name of a fixed plan, or the start of its digest.
        link: A link to emulate, such as "3mbit/20ms", or a trace's file name.
        memory: Limit on all heads together, such as "4MiB"; that of the search, if None.
        threads: Threads within one run of a head.
        runtime: Runtime of heads: "onnxruntime", or "openvino" (`pip install
            'splitpoint[openvino]'`).
        edge_id: Name of this edge, for the cloud; this machine's host name, if None.
        device: What this edge is, for latency tables; its CPU, if None.
        tables: Measured times of this kind of edge: a store, or a table as JSON.
        tls: Files for TLS with the cloud.
        report: What the cloud is sent of frames that the edge served alone.

    Raises:
        SplitpointError: If the bundle or a setting cannot be used.
    """

    def __init__(
        self,
        bundle: Bundle | Path | str,
        cloud: str | None = None,
        *,
        plan: str | None = None,
        link: str | None = None,
        memory: str | None = None,
        threads: int = 1,
        runtime: str = DEFAULT_RUNTIME,
        edge_id: str | None = None,
        device: str | None = None,
        tables: Path | None = None,
        tls: ClientTls | None = None,
        report: Literal["results", "times", "none"] = "times",
    ) -> None:
        settings = EdgeSettings(
            cloud=cloud,
            link=None if link is None else link_or_trace(link),
            tls=tls or ClientTls(),
            report=report,
            plan=plan,
            edge_id=own_name() if edge_id is None else edge_id,
            device=device,
            threads=threads,
            runtime=runtime,
            tables=tables,
            memory_bytes=None if memory is None else parse_size(memory),
        )
        with ExitStack() as opened:
            if not isinstance(bundle, Bundle):
                bundle = opened.enter_context(Bundle.open(Path(bundle)))
            self._detector = open_edge(bundle, settings, every_plan=True)
            opened.callback(self._detector.close)
            self._opened = opened.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes that a result has indices of."""
        return self._detector.task.class_names

    def check_ready(self) -> None:
        """Connect, and require that the default plan can be served.

        Raises:
            CloudUnavailableError: If it needs the cloud, which does not answer.
        """
        self._detector.check_ready()

    def detect(
        self,
        image: NDArray[np.uint8],
        *,
        plan: str | None = None,
        score_threshold: float = DEFAULTS.score_threshold,
        iou_threshold: float | None = None,
        max_detections: int = DEFAULTS.max_detections,
        classes: Sequence[str] = (),
        deadline_ms: float | None = None,
    ) -> Outcome:
        """Run one image: detect objects, or whatever the bundle's task is.

        Args:
            image: (H, W, 3) uint8, RGB.
            plan: Name or start of the digest of the plan to use for this image.
            score_threshold: Lowest score to return, in (0, 1].
            iou_threshold: A detection that overlaps a better one of its class by more is dropped;
                as in the bundle's search, if None.
            max_detections: The most detections to return, best first.
            classes: Names of the classes to return; all, if empty.
            deadline_ms: From this call on: the most accurate plan that is expected to keep it.

        Returns:
            The result (of a detector, `detections` in pixels of the image), the plan that served,
            and the time of every stage.

        Raises:
            SplitpointError: As `edge.detector.Detector.detect`.
        """
        digest = None if plan is None else find_plan(self._detector.bundle, plan)
        wanted = self._detector.task.class_indices(classes)
        iou = self._detector.bundle.manifest.settings.iou_threshold
        iou = iou if iou_threshold is None else iou_threshold
        settings = ResultSettings(score_threshold, iou, max_detections, wanted)
        return self._detector.detect(image, digest, settings, deadline_ms=deadline_ms)

    async def detect_async(
        self,
        image: NDArray[np.uint8],
        *,
        plan: str | None = None,
        score_threshold: float = DEFAULTS.score_threshold,
        iou_threshold: float | None = None,
        max_detections: int = DEFAULTS.max_detections,
        classes: Sequence[str] = (),
        deadline_ms: float | None = None,
    ) -> Outcome:
        """Run `detect` in a thread, so that the event loop goes on."""
        return await asyncio.to_thread(
            self.detect,
            image,
            plan=plan,
            score_threshold=score_threshold,
            iou_threshold=iou_threshold,
            max_detections=max_detections,
            classes=classes,
            deadline_ms=deadline_ms,
        )

    def close(self) -> None:
        """Send what is left to report, and disconnect."""
        self._opened.close()
