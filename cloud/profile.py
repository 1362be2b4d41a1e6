"""The cloud's part of profiles: timing its stages of plans, and checking what an edge found.

    frames of each plan -> TailRunner.finish -> ms per stage: each plan in turn, round by round
    ProfileReport -> rows_of -> latency rows, if they can be true

Frames come from an edge's models, which this package does not have: the caller brings them.
"""

from collections.abc import Callable, Mapping, Sequence

from cloud.reference_frames import ReferenceFrames
from cloud.store.samples import LONGEST_US, ImpossibleTimesError, SampleSource
from cloud.tails import TailRunner, Tails
from common.bundle.manifest import Plan
from common.rpc import splitpoint_pb2 as pb
from common.stages import CLOUD
from common.tables.rows import (
    MAX_PROFILE_ROWS,
    LatencyRow,
    RuntimeTarget,
    StageTimes,
    profiled,
    segments,
)
from common.tables.timing import Probe, Timing, probe_until_tight

_MOST_RUNS = 100_000


def profile(
    tails: Tails,
    frames: Mapping[bytes, Sequence[pb.Frame]],
    *,
    budget_s: float,
    progress: Callable[[int, int], None] | None = None,
) -> StageTimes:
    """Time the cloud's stages of plans.

    Args:
        tails: The opened tails.
        frames: By plan, frames as an edge sends them: the last is timed, after those that it may
            look back at.
        budget_s: How long it may take; the round under way is finished.
        progress: Called after each round with rounds done and rounds at the most.

    Returns:
        By plan, of decode, tail and postprocess.

    Raises:
        UnknownPlanError: If a plan has no tail here.
        PayloadError: If a frame is none of its plan.
    """
    probes = [_probe(tails.runner(digest), sent) for digest, sent in frames.items()]
    timings = probe_until_tight(probes, budget_s=budget_s, progress=progress)
    return {
        digest: dict(zip(CLOUD, stages, strict=True))
        for digest, stages in zip(frames, timings, strict=True)
    }


def rows_of(
    report: pb.ProfileReport, source: SampleSource, plans: Mapping[bytes, Plan], now_s: float
) -> list[LatencyRow]:
    """Convert the profile of an edge to rows of a latency table.

    Args:
        report: From the edge; believed only where it can be true.
        source: Who sent it.
        plans: The plans of the bundle, by digest.
        now_s: In seconds since the epoch.

    Raises:
        ImpossibleTimesError: If it has an unknown plan or stage, one twice, too many, or times that
            cannot be. Nothing of such a report is used.
    """
    if len(report.rows) > MAX_PROFILE_ROWS:
        raise ImpossibleTimesError(f"{len(report.rows)} rows, expected at most {MAX_PROFILE_ROWS}")
    if not source.device:
        raise ImpossibleTimesError("a profile of an edge that does not say what it is")
    times: dict[bytes, dict[str, Timing]] = {}
    for row in report.rows:
        plan = plans.get(row.plan_digest)
        if plan is None:
            raise ImpossibleTimesError(f"a profile of plan {row.plan_digest.hex()[:12]}, not known")
        if row.stage not in {each.stage for each in segments(plan) if each.side == "edge"}:
            raise ImpossibleTimesError(f"plan {plan.name} has no {row.stage[:32]!r} on an edge")
        stages = times.setdefault(row.plan_digest, {})
        if row.stage in stages:
            raise ImpossibleTimesError(f"{row.stage} of plan {plan.name} twice")
        stages[row.stage] = _timing(row)
    target = RuntimeTarget(source.device, source.runtime, source.threads)
    return profiled(times, plans, "edge", target, now_s)


def _probe(runner: TailRunner, frames: Sequence[pb.Frame]) -> Probe:
    """A run of all stages of a plan that the cloud has."""
    references = ReferenceFrames()
    *earlier, last = frames
    for frame in earlier:
        references.keep(frame, runner.finish(frame, references.find(frame)).symbols)
    previous = references.find(last)

    def run() -> tuple[float, float, float]:
        finished = runner.finish(last, previous)
        return finished.decode_ms, finished.tail_ms, finished.postprocess_ms

    return run


def _timing(row: pb.StageTimes) -> Timing:
    """Check one row and convert it to a Timing.

    Raises:
        ImpossibleTimesError: If it contradicts itself, or reason.
    """
    if not 1 <= row.n <= _MOST_RUNS:
        raise ImpossibleTimesError(f"{row.stage}: {row.n} runs, expected 1 to {_MOST_RUNS}")
    if not 1 <= row.low_us <= row.median_us <= row.high_us <= LONGEST_US:
        raise ImpossibleTimesError(
            f"{row.stage}: a median of {row.median_us} us in an interval from {row.low_us} to "
            f"{row.high_us}"
        )
    if not row.median_us <= row.p90_us <= LONGEST_US:
        raise ImpossibleTimesError(f"{row.stage}: a 90th percentile of {row.p90_us} us")
    return Timing(
        median_ms=row.median_us / 1e3,
        p90_ms=row.p90_us / 1e3,
        n=row.n,
        low_ms=row.low_us / 1e3,
        high_ms=row.high_us / 1e3,
    )
