"""Summary of a store: observations of plans, by kind of edge.

    samples as written --> PlanSummary: of each kind of edge and plan, the newest of each edge
                                |
               publish(): medians of what changed --> medians(): a look-up, in any thread

An edge that connects is sent the medians of plans on others of its kind, so that its first choice
is no guess. Edges connect at any time and many at once, so the answer is ready before they ask: no
database is read for it. Medians are of the newest samples only: a device that was replaced or
throttled is soon seen as it is now.
"""

import sqlite3
from collections import OrderedDict, defaultdict
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from cloud.store.samples import Sample, SampleSource
from common.stages import CLOUD, EDGE
from common.tables.rows import RuntimeTarget
from common.tables.store_file import RECENT, newest_by_kind

MOST_GROUPS = 1024
"""Pairs of a kind of edge and a plan that a summary holds: those seen last."""


@dataclass(frozen=True)
class PlanMedians:
    """Medians of the observations of one plan on edges of one kind.

    Attributes:
        plan: The plan's digest, in hex.
        n: Frames.
        edge_ms: From the decoded picture to the Frame; of edge-only, to the detections.
        cloud_ms: In the cloud, without waiting for a runtime; 0 for edge-only.
        uplink_bytes: Size of the Frame; 0 for edge-only.
    """

    plan: str
    n: int
    edge_ms: float
    cloud_ms: float
    uplink_bytes: int


class _Costs(NamedTuple):
    """Costs of one frame; fields are those of `PlanMedians`."""

    edge_ms: float
    cloud_ms: float
    uplink_bytes: int


class _FrameGroup:
    """The newest frames of one plan on edges of one kind, as many of each edge.

    So an edge that sends much, or lies, counts no more than another. Of more than `RECENT` edges
    the ones seen last count, with a frame each.
    """

    def __init__(self) -> None:
        self._edges: OrderedDict[str, list[_Costs]] = OrderedDict()

    def add(self, edge: str, costs: _Costs) -> None:
        if edge not in self._edges:
            if len(self._edges) == RECENT:
                self._edges.popitem(last=False)
            self._edges[edge] = []
            for known in self._edges.values():
                del known[: -self._share]
        known = self._edges[edge]
        known.append(costs)
        del known[: -self._share]
        self._edges.move_to_end(edge)

    def forget(self, edge: str) -> bool:
        """Leave an edge out; False if nothing is left."""
        self._edges.pop(edge, None)
        return bool(self._edges)

    def medians(self, plan: str) -> PlanMedians:
        frames = np.array([each for known in self._edges.values() for each in known])
        edge_ms, cloud_ms, uplink_bytes = np.median(frames, axis=0).tolist()
        return PlanMedians(plan, len(frames), edge_ms, cloud_ms, round(uplink_bytes))

    @property
    def _share(self) -> int:
        """Frames that count of each edge: at least one, as there are at most `RECENT` edges."""
        return RECENT // len(self._edges)


class PlanSummary:
    """Newest samples and published medians of plans, by kind of edge; bounded in size.

    One thread adds samples and publishes; any thread may look up what was published.
    """

    def __init__(self) -> None:
        self._groups: OrderedDict[tuple[RuntimeTarget, str], _FrameGroup] = OrderedDict()
        self._plans: defaultdict[RuntimeTarget, dict[str, PlanMedians]] = defaultdict(dict)
        self._changed: set[tuple[RuntimeTarget, str]] = set()
        self._published: dict[RuntimeTarget, tuple[PlanMedians, ...]] = {}

    def medians(self, target: RuntimeTarget) -> tuple[PlanMedians, ...]:
        """Medians of plans on edges of one kind, by digest, as last published."""
        return self._published.get(target, ())

    def add(self, sample: Sample) -> None:
        """Take a sample in."""
        source = sample.source
        target = RuntimeTarget(source.device, source.runtime, source.threads)
        self._add(target, sample.plan, source.edge, _costs_of(sample))

    def load(self, database: sqlite3.Connection) -> None:
        """Take in what a store has kept, and publish it."""
        # Boxes are decoded in the cloud unless the plan is edge-only, which has no decode_ms.
        columns = (
            "edge, IFNULL(preprocess_ms, 0) + IFNULL(head_ms, 0) + IFNULL(encode_ms, 0)"
            "    + IFNULL(other_ms, 0) + IIF(decode_ms IS NULL, IFNULL(postprocess_ms, 0), 0),"
            "IIF(decode_ms IS NULL, 0,"
            "    decode_ms + IFNULL(tail_ms, 0) + IFNULL(postprocess_ms, 0)),"
            "uplink_bytes"
        )
        for target, plan, samples in newest_by_kind(database, columns):
            for edge, *costs in reversed(samples):  # the newest last
                self._add(target, plan, edge, _Costs(*costs))
        self.publish()

    def forget(self, source: SampleSource) -> None:
        """Leave out the samples of one edge."""
        target = RuntimeTarget(source.device, source.runtime, source.threads)
        for plan in [*self._plans.get(target, ())]:
            group = self._groups.get((target, plan))
            if group is not None and not group.forget(source.edge):
                del self._groups[target, plan]
            self._changed.add((target, plan))

    def publish(self) -> None:
        """Compute the medians of all that has changed; `medians` returns them from now on."""
        targets = set()
        for target, plan in self._changed:
            group = self._groups.get((target, plan))
            if group is None:
                self._plans[target].pop(plan, None)
            else:
                self._plans[target][plan] = group.medians(plan)
            targets.add(target)
        self._changed.clear()
        for target in targets:
            medians = self._plans[target]
            if medians:
                self._published[target] = tuple(medians[plan] for plan in sorted(medians))
            else:
                del self._plans[target]
                self._published.pop(target, None)

    def _add(self, target: RuntimeTarget, plan: str, edge: str, costs: _Costs) -> None:
        key = target, plan
        if key not in self._groups:
            if len(self._groups) == MOST_GROUPS:
                oldest, _ = self._groups.popitem(last=False)
                self._changed.add(oldest)
            self._groups[key] = _FrameGroup()
        self._groups[key].add(edge, costs)
        self._groups.move_to_end(key)
        self._changed.add(key)


def _costs_of(sample: Sample) -> _Costs:
    """Costs of a sample, by the same sums as the columns of `PlanSummary.load`."""
    ms = sample.stages_ms
    edge_ms = sum(ms.get(stage, 0.0) for stage in (*EDGE, "other"))
    if "decode" not in ms:
        return _Costs(edge_ms + ms.get("postprocess", 0.0), 0.0, sample.uplink_bytes)
    cloud_ms = sum(ms.get(stage, 0.0) for stage in CLOUD)
    return _Costs(edge_ms, cloud_ms, sample.uplink_bytes)
