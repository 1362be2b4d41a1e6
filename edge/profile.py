"""Profiles the edge's stages of plans, as they are deployed, on the edge itself.

    picture -> fitted frame -> EdgePlan.cut | infer -> ms per stage: plans in turn, round by round
    ProfileOrder -> answer -> ProfileReport, when the cloud asks

The time of the entropy coders depends on the data, so the frame is the picture that the bundle's
heads are checked with; for a bundle without heads, one with the spectrum of a photograph.
"""

import logging
from collections.abc import Callable, Mapping
from time import perf_counter

import numpy as np
from numpy.typing import NDArray

from common.bundle.bundle import Bundle, read_vector
from common.errors import SettingsError, SplitpointError, UnknownPlanError
from common.rpc import splitpoint_pb2 as pb
from common.rpc.messages import microseconds, reference_to
from common.tables.rows import MAX_PROFILE_ROWS, StageTimes, segments
from common.tables.timing import Probe, Timing, probe_until_tight
from common.tasks.base import DEFAULTS
from edge.head import EdgePlan

_LOG = logging.getLogger("splitpoint.edge")
_FALL = 1.5
"""Exponent of the amplitude spectrum: 640x480 letterboxed to 416 takes 21 KB as JPEG q75 and 198 KB
as PNG; COCO's pictures take 23 and 192."""
_MOVED_PIXELS = 2
_LONGEST_MS = 600_000

Frame = NDArray[np.uint8]

PICTURE = (640, 480)
"""Width and height of the pictures to fit, if the camera's picture size is not known."""


def profile(
    plans: Mapping[bytes, EdgePlan],
    frame: Frame,
    *,
    budget_s: float,
    picture: tuple[int, int] = PICTURE,
    progress: Callable[[int, int], None] | None = None,
) -> StageTimes:
    """Time the edge's stages of plans.

    Args:
        plans: The opened plans, by digest.
        frame: (3, H, W), fitted into the input; see `frame_of`.
        budget_s: Time budget; the round under way is finished.
        picture: Width and height of the camera's pictures, which the preprocessing time depends on.
        progress: Called after each round with rounds done and rounds at the most.

    Returns:
        By plan, the times of its edge stages: of preprocess, head, encode and postprocess those
        that it has.
    """
    taken = natural_picture(*picture)
    stages = {
        digest: [each.stage for each in segments(opened.plan) if each.side == "edge"]
        for digest, opened in plans.items()
    }
    probes = [_probe(opened, stages[digest], taken, frame) for digest, opened in plans.items()]
    timings = probe_until_tight(probes, budget_s=budget_s, progress=progress)
    return {
        digest: dict(zip(stages[digest], each, strict=True))
        for digest, each in zip(plans, timings, strict=True)
    }


def frames_of(plans: Mapping[bytes, EdgePlan], frame: Frame) -> dict[bytes, list[pb.Frame]]:
    """Build the Frame messages of each plan with a tail.

    Plans that look back get two: an earlier frame, and one that refers to it.

    Args:
        plans: The opened plans, by digest.
        frame: (3, H, W), fitted into the input.
    """
    return {
        digest: _sent(opened, frame)
        for digest, opened in plans.items()
        if opened.plan.tail is not None
    }


def frame_of(bundle: Bundle) -> Frame:
    """Return a fitted frame (3, H, W) for profiling: the bundle's own, or a synthetic one.

    Raises:
        BundleError: If the vector of a head is not what its plan says.
    """
    for plan in bundle.plans.values():
        if plan.head is not None:
            frame: Frame = read_vector(bundle, plan.head)[0][0]
            return frame
    return bundle.manifest.task.image.pixels(natural_picture(*PICTURE))


def natural_picture(width: int, height: int, seed: int = 0) -> Frame:
    """Synthesise an (H, W, 3) RGB picture: random phases, amplitude spectrum of a photograph.

    Amplitudes fall with the frequency as 1/f (Field 1987, "Relations between the statistics of
    natural images and the response properties of cortical cells"), somewhat faster here, because a
    photograph's phases make it sparser than this; JPEG then takes as many bytes for both. Channels
    share most of their content, as in photographs.
    """
    rng = np.random.default_rng(seed)
    down, across = np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None]
    frequency = np.maximum(np.hypot(down, across), 1 / max(width, height))

    def plane() -> NDArray[np.float64]:
        phases = np.exp(2j * np.pi * rng.random(frequency.shape))
        values: NDArray[np.float64] = np.fft.irfft2(phases / frequency**_FALL, (height, width))
        values /= values.std()
        return values

    grey = plane()
    channels = [120 + 50 * grey + 12 * plane() for _ in range(3)]
    return np.clip(np.stack(channels, axis=-1), 0, 255).astype(np.uint8)


def answer(
    order: pb.ProfileOrder,
    plans: Mapping[bytes, EdgePlan],
    frame: Frame,
    picture: tuple[int, int] = PICTURE,
) -> pb.ProfileReport:
    """Carry out a profile order of the cloud; never raises.

    Args:
        order: The cloud's message.
        plans: The opened plans, by digest.
        frame: (3, H, W), fitted into the input; see `frame_of`.
        picture: Width and height of the camera's pictures.

    Returns:
        The times of the plans, or an error in one line.
    """
    try:
        wanted, budget_s = _wanted(order, plans), _budget_s(order)
        times = profile(wanted, frame, budget_s=budget_s, picture=picture)
    except SplitpointError as error:
        why = " ".join(str(error).split())[:300]
    except Exception as error:  # noqa: BLE001 - the edge serves on, whatever a profile does
        _LOG.exception("a profile failed")
        why = f"it failed ({type(error).__name__}): see the log of the edge"
    else:
        return pb.ProfileReport(
            order_id=order.order_id,
            rows=[
                _stage_times(digest, stage, timing)
                for digest, stages in times.items()
                for stage, timing in stages.items()
            ],
        )
    return pb.ProfileReport(order_id=order.order_id, error=why)


def _probe(opened: EdgePlan, stages: list[str], picture: Frame, frame: Frame) -> Probe:
    """Build a function that runs a plan's edge stages once and returns their times in ms."""
    geometry = opened.image
    where = geometry.place(picture.shape[1], picture.shape[0])
    looks_back = opened.plan.tail is not None and opened.plan.looks_back
    earlier = opened.cut(_moved(frame)).symbols if looks_back else None

    def run() -> list[float]:
        started_s = perf_counter()
        geometry.pixels(picture)
        took = {"preprocess": (perf_counter() - started_s) * 1e3}
        if opened.plan.tail is None:
            local = opened.infer(frame, where, DEFAULTS)
            took |= {"head": local.head_ms, "postprocess": local.postprocess_ms}
        else:
            cut = opened.cut(frame, earlier)
            took |= {"head": cut.head_ms, "encode": cut.encode_ms}
        return [took[stage] for stage in stages]

    return run


def _sent(opened: EdgePlan, frame: Frame) -> list[pb.Frame]:
    if not opened.plan.looks_back:
        return [_message(opened, opened.cut(frame).payloads, 1)]
    earlier = opened.cut(_moved(frame))
    first = _message(opened, earlier.payloads, 1)
    second = _message(opened, opened.cut(frame, earlier.symbols).payloads, 2)
    second.reference.CopyFrom(reference_to(first))
    return [first, second]


def _message(opened: EdgePlan, payloads: list[pb.Payload], frame_id: int) -> pb.Frame:
    message = opened.message(payloads, opened.image.place(*PICTURE), DEFAULTS)
    message.frame_id = frame_id
    return message


def _moved(frame: Frame) -> Frame:
    """Shift a frame sideways by 2 pixels: the previous frame of a turning camera."""
    return np.roll(frame, _MOVED_PIXELS, axis=2)


def _wanted(order: pb.ProfileOrder, plans: Mapping[bytes, EdgePlan]) -> dict[bytes, EdgePlan]:
    """Return the plans that an order names; all, if it names none.

    Raises:
        UnknownPlanError: If one of them is not open here.
        SettingsError: If there are more than a report can hold, or none.
    """
    wanted = dict.fromkeys(order.plan_digests or plans)
    for digest in wanted:
        if digest not in plans:
            raise UnknownPlanError(f"plan {digest.hex()[:12]} was not opened on this edge")
    if not wanted:
        raise SettingsError("no plan is open on this edge")
    rows = sum(each.side == "edge" for digest in wanted for each in segments(plans[digest].plan))
    if rows > MAX_PROFILE_ROWS:
        raise SettingsError(f"{rows} stages, a report holds {MAX_PROFILE_ROWS}: name fewer plans")
    return {digest: plans[digest] for digest in wanted}


def _budget_s(order: pb.ProfileOrder) -> float:
    if not 1 <= order.budget_ms <= _LONGEST_MS:
        raise SettingsError(f"budget_ms: expected 1 to {_LONGEST_MS}, got {order.budget_ms}")
    return order.budget_ms / 1e3


def _stage_times(digest: bytes, stage: str, timing: Timing) -> pb.StageTimes:
    def us(ms: float) -> int:
        return max(1, microseconds(ms))

    return pb.StageTimes(
        plan_digest=digest,
        stage=stage,
        n=timing.n,
        median_us=us(timing.median_ms),
        p90_us=us(timing.p90_ms),
        low_us=us(timing.low_ms),
        high_us=us(timing.high_ms),
    )
