"""Setup of benches of one cut: YOLOv3-tiny fitted to calibration pictures, and a judge of it."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from common.progress import Stages
from common.tasks.base import TaskResult
from search.cache import Cache
from search.measure.accuracy import AgreementAccuracy, CocoAccuracy
from search.measure.evaluate import Evaluator
from search.measure.frames import load_frames
from search.network.cuts import enumerate_cuts
from search.network.losses import distillation_loss
from search.prepare import Prepared, prepare
from search.quantization.heads import Heads
from search.quantization.network import QuantizedGraph
from search.refine.refine import Refiner
from search.source import NetworkSource
from search.wire.training_data import collect, collect_pairs, copies_of

MODEL = "yolov3-tiny"


def add_cut_option(parser: argparse.ArgumentParser) -> None:
    """Add an option for the cut, which has one tensor."""
    parser.add_argument("--cut", default="conv_8", help="name of the cut")


class CutSetup:
    """The network with an 8-bit head up to one cut, fitted to calibration pictures alone.

    Args:
        arguments: Names `calibration`, `cut` and `max_images`.
        folder: Folder for work files.
        stages: Reports progress.
    """

    def __init__(self, arguments: argparse.Namespace, folder: Path, stages: Stages) -> None:
        self._folder, self._stages = folder, stages
        self.prepared = prepare(
            NetworkSource(MODEL),
            arguments.calibration,
            Cache(),
            stages,
            max_images=arguments.max_images,
        )
        self.network = self.prepared.rounder().nearest({})
        self.heads = Heads(self.network)
        self.cuts = enumerate_cuts(self.prepared.graph)
        self.cut = next(cut for cut in self.cuts if cut.name == arguments.cut)

    def refiner(self, adapt_steps: int, *, sequences: bool = False) -> Refiner:
        """Refiner of the cut's wire formats; with context models that look back, if asked for."""
        frames, tensors = self.prepared.calibration, self.cut.tensors
        examples = collect(
            self.network,
            self.cuts[0],
            tensors,
            frames.pixels,
            self._folder,
            copies=copies_of(len(frames.names)),
            threads=2,
            progress=self._stages.stage("collecting examples"),
        )
        pairs = None
        if sequences:
            progress = self._stages.stage("collecting sequences")
            pairs = collect_pairs(
                self.network, tensors, frames.pixels, threads=2, progress=progress
            )
        loss = distillation_loss(self.prepared.task)
        return Refiner(self.heads, examples, loss, adapt_steps, self._stages, pairs=pairs)


class Judge:
    """Accuracy of detections on evaluation pictures: COCO AP, and agreement with floating point.

    Args:
        arguments: Names `images`, `annotations` and `max_images`.
        prepared: The network.
        folder: Folder for work files.
        stages: Reports progress.

    Attributes:
        reference: Accuracy of the network in floating point.
    """

    def __init__(
        self, arguments: argparse.Namespace, prepared: Prepared, folder: Path, stages: Stages
    ) -> None:
        self._task, self._folder = prepared.task, folder
        progress = stages.stage("reading evaluation images")
        self.images = load_frames(
            arguments.images, prepared.task.image, arguments.max_images, progress
        )
        self._truth = CocoAccuracy(arguments.annotations, self.images.names)
        whole = enumerate_cuts(prepared.graph)[0]
        reference, _ = self.evaluator(prepared.rounder().nearest({})).reference(whole)
        self._agreement = AgreementAccuracy(reference)
        self.reference = self.accuracy(reference)

    def evaluator(self, network: QuantizedGraph) -> Evaluator:
        """Evaluator of candidates with heads of a quantized network."""
        pixels, letterboxes = self.images.pixels, self.images.letterboxes
        return Evaluator(Heads(network), self._task, pixels, letterboxes, self._folder, workers=2)

    def accuracy(self, found: Sequence[TaskResult]) -> dict[str, float]:
        """AP, and AP50 with the detections in floating point as truth."""
        return {
            "ap": self._truth.accuracy(found),
            "agreement_ap50": self._agreement.accuracy(found),
        }
