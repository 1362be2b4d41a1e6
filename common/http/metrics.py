"""Metrics code that both ends share: buckets, labels and the route that Prometheus scrapes.

    edge.metrics, cloud.metrics -> CollectorRegistry -> GET /metrics -> Prometheus

Names are `splitpoint_edge_...` and `splitpoint_cloud_...`, in seconds and bytes as Prometheus has
it. Values that something else keeps anyway (the plan in use, the link, who is connected) are read
when they are asked for, so that a frame pays for counters only.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping

from fastapi import FastAPI, Response
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from common.http.intake import REFUSALS, Intake
from common.http.turns import Turns

STAGE_BUCKETS_S = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
"""Bucket bounds, from a codec's half millisecond to a large frame over a slow link."""

Value = tuple[Mapping[str, str], float]


class ScrapedMetrics(Collector):
    """Metrics that are read when Prometheus asks.

    Args:
        read: Gives all of them.
    """

    def __init__(self, read: Callable[[], Iterable[Metric]]) -> None:
        self._read = read

    def collect(self) -> Iterator[Metric]:
        """See `prometheus_client`."""
        yield from self._read()

    def describe(self) -> list[Metric]:
        """None: their names are in no other collector, and reading them may be too early."""
        return []


def gauge(name: str, text: str, values: Iterable[Value]) -> Metric:
    """Build a gauge of current values by labels; it has no samples without a value."""
    family = GaugeMetricFamily(name, text)
    for labels, value in values:
        family.add_sample(name, dict(labels), value)
    return family


def total(name: str, text: str, value: float) -> Metric:
    """Build a counter from a count kept elsewhere; the name is without `_total`."""
    return CounterMetricFamily(name, text, value=value)


def counted(name: str, text: str, values: Iterable[Value]) -> Metric:
    """Build a counter by labels from counts kept elsewhere; the name is without `_total`."""
    family = CounterMetricFamily(name, text)
    for labels, value in values:
        family.add_sample(f"{name}_total", dict(labels), value)
    return family


def stamp(counter: Counter, labels: Iterable[str]) -> None:
    """Begin the counts of these labels at 0, so that their first increase shows as one."""
    for label in labels:
        counter.labels(label)


def serve_metrics(app: FastAPI, registry: CollectorRegistry) -> None:
    """Answer GET /metrics."""

    # In the event loop, not in a thread: what is read lives there.
    @app.get("/metrics", include_in_schema=False)
    async def metrics() -> Response:
        return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)


def serve_intake(
    registry: CollectorRegistry, end: str, intake: Intake, turns: Turns | None = None
) -> None:
    """Show what a REST app holds of images, and how many it turned away.

    Args:
        registry: Where to.
        end: `edge` or `cloud`.
        intake: Reads its bodies.
        turns: The queue behind it, unless that has metrics of its own.
    """

    def read() -> Iterator[Metric]:
        held = f"splitpoint_{end}_rest_body_bytes"
        yield gauge(held, "Bytes reserved for images by REST.", [({}, intake.held_bytes)])
        refused = CounterMetricFamily(
            f"splitpoint_{end}_rest_refused", "Images by REST that were not read.", labels=["bound"]
        )
        for bound in REFUSALS:
            refused.add_metric([bound], intake.refused[bound])
        if turns is not None:
            refused.add_metric(["queue"], turns.shed)
            waiting = f"splitpoint_{end}_rest_waiting"
            yield gauge(waiting, "Images by REST that wait for their turn.", [({}, turns.waiting)])
        yield refused

    registry.register(ScrapedMetrics(read))
