"""Preparation: the inputs of every stage of the search.

    model -> graph -> calibration images (some held out) -> statistics

Each stage can be run on its own (`splitpoint profile`, `allocate`, `quantize`); the results
of earlier ones come from the cache.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from common.bundle.manifest import network_digest
from common.errors import ModelError
from common.machine import saturates_int8
from common.progress import Reporter
from common.tasks.registry import AnyTask
from search.cache import Cache, digest
from search.measure.frames import Frames, load_frames
from search.measure.held_out import Division, Judging, fit_all, in_both, without_copies
from search.network.graph import Graph
from search.network.losses import distillation_loss
from search.quantization.calibration import Statistics, observe
from search.quantization.equalise import equalise
from search.quantization.recipes import DEFAULT, Recipe
from search.quantization.rounding import Rounder
from search.quantization.sensitivity import How, Sensitivity, weigh
from search.source import NetworkSource, open_network

_SENSITIVITY_FRAMES = 16


@dataclass(frozen=True, eq=False)
class Prepared:
    """A network with its statistics on calibration images.

    Attributes:
        graph: The network, optimised.
        task: What it is for.
        weights_sha256: Digest of the weights file.
        calibration: The images that everything is fitted to, each once.
        statistics: Distributions of its tensors on them.
        cache: For the results of stages.
        origin: Digest of the graph, its task and the images that it was fitted to.
        held_out: Calibration images that were set aside to judge; None if all of them fit.
    """

    graph: Graph
    task: AnyTask
    weights_sha256: str
    calibration: Frames
    statistics: Statistics
    cache: Cache
    origin: str
    held_out: Frames | None = None

    @property
    def input_size(self) -> tuple[int, int]:
        """(H, W) of the image."""
        return self.task.image.size

    @property
    def network(self) -> str:
        """Digest of the network, as in latency tables."""
        return network_digest(self.weights_sha256, self.task)

    def judging(self, evaluation: Path | None, reporter: Reporter, max_images: int) -> Judging:
        """The pictures that judge: those of a folder, or what was held out.

        Args:
            evaluation: The folder; None only if images were held out.
            reporter: Reports progress.
            max_images: Pictures used at the most.

        Raises:
            CalibrationError: If the folder's pictures cannot be worked with.
        """
        if evaluation is None:
            if self.held_out is None:
                raise ValueError("expected held-out images or a folder to judge on")
            return Judging(self.held_out, "held-out")
        progress = reporter.stage("reading evaluation images")
        frames = load_frames(evaluation, self.task.image, max_images, progress)
        return Judging(frames, "evaluation", in_both(frames, self.calibration))

    def rounder(self, how: Recipe = DEFAULT, *, reduced_range: bool | None = None) -> Rounder:
        """Make a `Rounder` that quantizes the network by a recipe.

        Args:
            how: The recipe.
            reduced_range: As for `network.quantize`; as this machine needs it, if None.
        """
        return Rounder(
            self.graph,
            self.statistics,
            self.calibration.pixels,
            self.cache,
            self.origin,
            how,
            distillation_loss(self.task),
            reduced_range=saturates_int8() if reduced_range is None else reduced_range,
        )

    def sensitivity(self, how: How, reporter: Reporter) -> Sensitivity:
        """Errors of the layers at every width."""
        progress = reporter.stage("measuring sensitivity")
        arrays = self.cache.arrays(
            "sensitivity",
            [self.origin, how],
            lambda: weigh(
                how,
                self.graph,
                self.statistics,
                self.calibration.pixels[:_SENSITIVITY_FRAMES],
                distillation_loss(self.task),
                progress,
            ).to_arrays(),
        )
        progress(1, 1)
        return Sensitivity.from_arrays(arrays)


def prepare(
    network: NetworkSource,
    calibration: Path,
    cache: Cache,
    reporter: Reporter,
    *,
    max_images: int = 128,
    equalised: bool = False,
    divide: Callable[[Frames], Division] = fit_all,
) -> Prepared:
    """Load a network and observe it.

    Args:
        network: Place that the network comes from.
        calibration: Folder of images.
        cache: For the statistics.
        reporter: Reports progress.
        max_images: Images used at the most.
        equalised: Whether channels are rescaled between convolutions first.
        divide: Which images, each of them given once, fit and which judge.

    Raises:
        SplitpointError: A model, weights or images that cannot be worked with.
    """
    progress = reporter.stage("reading the model")
    source = open_network(network)
    graph, task = source.graph, source.task
    if equalised:
        graph = equalise(graph)
    progress(1, 1, source.note)
    progress = reporter.stage("reading calibration images")
    wrong = task.misfit([graph[name].shape for name in graph.outputs])
    if wrong is not None:
        raise ModelError(f"{network.model}: {wrong}")
    loaded = load_frames(calibration, task.image, max_images, progress)
    division = divide(without_copies(loaded))
    frames = division.fitting
    origin = digest(graph.nodes, frames.pixels, task)
    progress = reporter.stage("observing activations")
    arrays = cache.arrays(
        "statistics", [origin], lambda: observe(graph, frames.pixels, progress).to_arrays()
    )
    progress(1, 1)
    statistics = Statistics.from_arrays(arrays)
    return Prepared(
        graph,
        task,
        source.sha256,
        frames,
        statistics,
        cache,
        origin,
        division.judging,
    )
