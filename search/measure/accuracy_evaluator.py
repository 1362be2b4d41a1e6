"""Accuracy evaluator: candidates as deployed, each measured once, bad ones on few images.

A plan keeps the limit on lost accuracy if the upper end of a one-sided bootstrap interval of its
loss (`search.measure.intervals`) is within it, so few images never hide a loss. A candidate that
loses too much mostly shows it soon. After 32, 64, 128, ... images a two-sided
interval is taken; if even its lower end is above what may be lost, the upper end cannot be below,
and the rest of the images is saved. What is accepted was always judged on all of them.

Results are keyed by the digest of everything that decides them; two candidates may share a name.
"""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from common.codec.spec import CodecSpec
from common.machine import usable_cores
from common.progress import Progress
from common.tasks.base import DEFAULTS, ResultSettings, Task, TaskResult
from common.tasks.detections import Detections
from search.cache import Cache, digest
from search.measure.accuracy import AccuracySource
from search.measure.evaluate import Evaluator
from search.measure.frames import Frames
from search.measure.intervals import KEEP_LEVEL
from search.measure.sources import Basis, accuracy_metrics, content_digest
from search.network.cuts import Cut, prefix_cuts
from search.prediction.candidates import Candidate, RankedCandidate
from search.quantization.heads import Heads
from search.wire.tail_adaptation import Wire

_LOG = logging.getLogger(__name__)

FIRST_LOOK = 32
"""Images before the first interval; the next looks are at twice as many each."""
GIVE_UP_LEVEL = 0.99
"""Level of the interval by whose lower end a candidate is given up."""
_LOOKS = 4


@dataclass(frozen=True)
class MeasuredAccuracy:
    """Accuracy of one candidate.

    Attributes:
        accuracy: On all images; of one that was given up, the reference's less the loss so far.
        images: How many it was judged on.
        most_lost: Upper end of the interval of its loss, in points; infinite if it was given up.
    """

    accuracy: float
    images: int
    most_lost: float


class AccuracyEvaluator:
    """Measured accuracies of candidates, keyed by their digests.

    Args:
        evaluator: Runs candidates.
        source: Judges what they find.
        reference: What the floating-point network finds on the evaluator's images.
        max_drop: Largest loss allowed, in points of the source's metric.
        cache: For accuracies.
        judged_on: Digest of the network, the images and their annotations.
    """

    def __init__(
        self,
        evaluator: Evaluator,
        source: AccuracySource,
        reference: Sequence[TaskResult],
        max_drop: float,
        cache: Cache,
        judged_on: str,
    ) -> None:
        self.best = source.accuracy(reference)
        self.metric = source.metric
        self._evaluator = evaluator
        self._source = source
        self._reference = reference
        self._max_drop = max_drop
        self._cache = cache
        self._judged_on = judged_on
        self._known: dict[str, tuple[Candidate, MeasuredAccuracy]] = {}
        self._measured: dict[str, MeasuredAccuracy] = {}

    @property
    def sees_nothing(self) -> bool:
        """Whether the reference detects nothing that is sure on any image: a wrong input, often."""
        found = [each for each in self._reference if isinstance(each, Detections)]
        return bool(found) and all((each.scores < DEFAULTS.score_threshold).all() for each in found)

    def __contains__(self, candidate: Candidate) -> bool:
        return self.digest(candidate) in self._known

    def digest(self, candidate: Candidate) -> str:
        """Digest of what a candidate finds and of how it is coded."""
        return self._evaluator.digest(candidate)

    @property
    def candidates(self) -> list[Candidate]:
        """Candidates measured so far."""
        return [candidate for candidate, _ in self._known.values()]

    def of(self, cut: Cut) -> list[Candidate]:
        """Measured candidates of a cut with its widths."""
        return [c for c in self.candidates if c.cut.label == cut.label]

    def measured(self, candidate: Candidate) -> MeasuredAccuracy:
        """Accuracy of a candidate, measured on first use."""
        key = self.digest(candidate)
        if key not in self._known:
            self._known[key] = candidate, self._once(candidate)
        return self._known[key][1]

    def with_accuracy(self, ranked: RankedCandidate) -> RankedCandidate:
        """Candidate with its accuracy, measured on first use."""
        measured = self.measured(ranked.candidate)
        return replace(
            ranked,
            accuracy=measured.accuracy,
            judged_on=measured.images,
            most_lost=measured.most_lost,
            digest=self.digest(ranked.candidate),
        )

    def drop(self, candidate: Candidate) -> float:
        """Accuracy that a candidate loses, in points."""
        return self.best - self.measured(candidate).accuracy

    def is_accurate(self, candidate: Candidate) -> bool:
        """Whether the upper confidence bound of a candidate's loss is within the limit."""
        return self.measured(candidate).most_lost <= self._max_drop

    def first_accurate(self, cut: Cut, wires: Sequence[Wire], progress: Progress) -> int:
        """Index of the first wire format that is accurate with the tail as it is, or their number.

        No codec of tensors changes what a format keeps, so "packed" stands for all, and nothing is
        counted among the candidates.
        """
        for index, wire in enumerate(wires):
            format_only = Candidate(cut, wire, CodecSpec(name="packed"), 0, 0, 0, 0, 0)
            is_accurate = self._once(format_only).most_lost <= self._max_drop
            progress(len(wires) if is_accurate else index + 1, len(wires))
            if is_accurate:
                return index
        return len(wires)

    def measure(self, candidates: Sequence[Candidate], progress: Progress) -> None:
        """Measure several candidates, those of one cut in succession."""
        for done, candidate in enumerate(sorted(candidates, key=lambda c: c.cut.label), 1):
            self.measured(candidate)
            progress(done, len(candidates))

    def _once(self, candidate: Candidate) -> MeasuredAccuracy:
        identity = self._evaluator.identity(candidate)
        if identity not in self._measured:
            accuracy, images, most_lost = self._cache.json(
                "judgement",
                [self._judged_on, self._max_drop, identity],
                lambda: self._measure(candidate),
            )
            bound = math.inf if most_lost is None else most_lost
            self._measured[identity] = MeasuredAccuracy(accuracy, images, bound)
        return self._measured[identity]

    def _measure(self, candidate: Candidate) -> tuple[float, int, float | None]:
        count, found = len(self._reference), list[TaskResult]()
        look = FIRST_LOOK
        while 2 * look <= count:
            found += self._evaluator.detections(candidate, range(len(found), look))
            low, middle = self._source.drop(self._reference[:look], found, GIVE_UP_LEVEL)
            if low > self._max_drop:
                return self.best - max(low, middle), look, None
            look *= 2
        found += self._evaluator.detections(candidate, range(len(found), count))
        most_lost = self._source.most_lost(self._reference, found, KEEP_LEVEL)
        return self._source.accuracy(found), count, most_lost


class UnmeasuredCandidates:
    """Candidates of a search that measures no accuracy; has what a ranking asks of an evaluator.

    Args:
        evaluator: Tells candidates apart; it runs none of them.
    """

    best: None = None
    metric: None = None
    sees_nothing = False

    def __init__(self, evaluator: Evaluator) -> None:
        self._evaluator = evaluator
        self._known: dict[str, Candidate] = {}

    def __contains__(self, candidate: Candidate) -> bool:
        return self.digest(candidate) in self._known

    def digest(self, candidate: Candidate) -> str:
        """Digest of what a candidate finds and of how it is coded."""
        return self._evaluator.digest(candidate)

    @property
    def candidates(self) -> list[Candidate]:
        """Candidates noted so far."""
        return list(self._known.values())

    def of(self, cut: Cut) -> list[Candidate]:
        """Noted candidates of a cut with its widths."""
        return [c for c in self.candidates if c.cut.label == cut.label]

    def with_accuracy(self, ranked: RankedCandidate) -> RankedCandidate:
        """Note a candidate; its accuracy stays unknown."""
        found = self.digest(ranked.candidate)
        self._known.setdefault(found, ranked.candidate)
        return replace(ranked, digest=found)

    def measure(self, candidates: Sequence[Candidate], progress: Progress) -> None:
        """Note several candidates."""
        self._known |= {self.digest(each): each for each in candidates}
        progress(1, 1)


def note_candidates(
    heads: Heads, task: Task, frames: Frames, folder: Path
) -> tuple[UnmeasuredCandidates, float]:
    """Note candidates instead of measuring them; also the median postprocessing time in ms.

    Args:
        heads: The integer networks.
        task: What the network is for.
        frames: Images, of which a few are looked at for that time.
        folder: For tails.
    """
    few = frames.pixels[:_LOOKS], frames.letterboxes[:_LOOKS]
    evaluator = Evaluator(heads, task, *few, folder, workers=1)
    _, postprocess_ms = evaluator.reference(prefix_cuts(heads.network.graph)[0])
    return UnmeasuredCandidates(evaluator), postprocess_ms


def open_evaluator(
    heads: Heads,
    task: Task,
    evaluation: Frames,
    annotations: Path | None,
    folder: Path,
    *,
    max_drop: float,
    cache: Cache,
    origin: str,
    settings: ResultSettings = DEFAULTS,
    top: int = 1,
) -> tuple[AccuracyEvaluator, float]:
    """Open an evaluator; also returns the median postprocessing time in ms on this machine.

    Args:
        heads: The integer networks.
        task: What the network is for.
        evaluation: Images to judge by.
        annotations: The truth about them; see `search.measure.sources.Basis`.
        folder: For tails while they are evaluated.
        max_drop: As for `AccuracyEvaluator`.
        cache: As for `AccuracyEvaluator`.
        origin: Digest of the network and the calibration images.
        settings: What counts of a result; the score threshold is that of average precision.
        top: How many of a classifier's best classes count.
    """
    evaluator = Evaluator(
        heads,
        task,
        evaluation.pixels,
        evaluation.letterboxes,
        folder,
        workers=max(1, int(usable_cores())),
        settings=settings,
    )
    reference, postprocess_ms = evaluator.reference(prefix_cuts(heads.network.graph)[0])
    names, classes = evaluation.names, settings.classes
    metrics = accuracy_metrics(Basis(task, names, annotations, reference, classes, tops=(top,)))
    for line in metrics.warnings:
        _LOG.warning("%s", line)
    source = metrics.sources[0]
    truth = None if annotations is None else [content_digest(annotations), *evaluation.names]
    judged_on = digest(origin, task, settings, top, evaluation.pixels, truth)
    return AccuracyEvaluator(
        evaluator, source, reference, max_drop, cache, judged_on
    ), postprocess_ms
