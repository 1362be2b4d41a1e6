"""Whole images in the cloud: decoded, fitted and run through the network as it was trained.

encoded image -> decode -> fit into the input -> tail of the cloud-only plan -> TaskResult
"""

import time
from dataclasses import dataclass

from cloud.tails import Tails
from common.bundle.manifest import Plan
from common.imaging.images import DEFAULT_LIMITS, ImageLimits, decode_image
from common.tasks.base import ResultSettings, TaskResult


@dataclass(frozen=True)
class ImageResult:
    """The task's result of one whole image, and the latency of each stage.

    Attributes:
        width: Of the image, in pixels.
        height: Of the image, in pixels.
        plan: The cloud-only plan that served it.
        digest: The plan's digest.
        result: Of the bundle's task; boxes are in pixels of the image.
        times_ms: By stage: queue, preprocess, decode, tail, postprocess.
        latency_ms: From the image's arrival to its result.
    """

    width: int
    height: int
    plan: Plan
    digest: bytes
    result: TaskResult
    times_ms: dict[str, float]
    latency_ms: float


def run_image(
    tails: Tails,
    data: bytes,
    settings: ResultSettings | None = None,
    limits: ImageLimits = DEFAULT_LIMITS,
    arrived_s: float | None = None,
) -> ImageResult:
    """Decode an image and run the whole network on it, in the calling thread.

    Args:
        tails: The opened tails.
        data: The encoded image.
        settings: What to report; by the bundle's defaults, if None.
        limits: The largest image to decode.
        arrived_s: When the image arrived, in seconds of `time.perf_counter`; now, if None.

    Raises:
        ImageError: If it is no image, or too large.
        UnknownPlanError: If the bundle has no cloud-only plan.
    """
    started_s = time.perf_counter()
    settings = tails.bundle.manifest.settings if settings is None else settings
    arrived_s = started_s if arrived_s is None else arrived_s
    runner = tails.image_runner()
    image = decode_image(data, limits)
    height, width = image.shape[:2]
    pixels = tails.task.image.pixels(image)
    preprocessed_s = time.perf_counter()
    where = tails.task.image.place(width, height)
    finished = runner.run(runner.symbols([pixels]), where, settings)
    done_s = time.perf_counter()
    return ImageResult(
        width=width,
        height=height,
        plan=runner.plan,
        digest=runner.digest,
        result=finished.result,
        times_ms={
            "queue": (started_s - arrived_s) * 1000,
            "preprocess": (preprocessed_s - started_s) * 1000,
            "decode": finished.decode_ms,
            "tail": finished.tail_ms,
            "postprocess": finished.postprocess_ms,
        },
        latency_ms=(done_s - arrived_s) * 1000,
    )
