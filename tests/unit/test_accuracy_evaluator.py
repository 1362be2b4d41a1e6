"""Accuracy evaluator and advice: bad plans cost few images; a way out is named if none is left."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from common.codec.spec import CodecSpec, WireTensor
from common.tasks.base import TaskResult
from common.tasks.detections import Detections
from common.tasks.labels import CATEGORY_IDS
from search.cache import Cache, digest
from search.constraints import constraints
from search.constraints.base import SearchFacts
from search.measure.accuracy import AgreementAccuracy, CocoAccuracy
from search.measure.accuracy_evaluator import FIRST_LOOK, AccuracyEvaluator
from search.measure.evaluate import Evaluator
from search.network.cuts import Cut, enumerate_cuts
from search.network.graph import Node
from search.prediction.candidates import Candidate, RankedCandidate
from search.quantization.heads import Heads
from search.quantization.recipe import rounded
from search.ranking.infeasible import nothing_fits
from search.wire.tail_adaptation import Wire
from tests.networks import branched_graph, pictures
from tests.tiny import PREDICTION

IMAGES = 96
NODE = Node("t", "conv", (), (1, 1, 1))


def box(left: float, score: float = 0.9) -> Detections:
    return Detections(
        np.array([[left, 10.0, left + 40, 60.0]], np.float32),
        np.array([score], np.float32),
        np.array([0], np.int64),
    )


REFERENCE = [box(10.0 + index) for index in range(IMAGES)]


class Recorded(Evaluator):
    """Finds what it is told, and remembers for how many images it was asked."""

    def __init__(self, found: Sequence[Detections]) -> None:
        self.found = found
        self.spoiled_by: Wire | None = None
        self.begun = self.asked = 0

    def detections(self, candidate: Candidate, images: range | None = None) -> list[TaskResult]:
        assert images is not None
        if images.start == 0:
            self.begun, self.asked = self.begun + 1, 0
        assert images.start == self.asked
        self.asked = images.stop
        if candidate.wire == self.spoiled_by:
            return [box(300.0)] * len(images)
        return list(self.found[images.start : images.stop])

    def identity(self, candidate: Candidate) -> str:
        return candidate.name


def candidate(name: str = "t", memory: int = 0) -> Candidate:
    cut = Cut((name,), (NODE,), (NODE,))
    return Candidate(cut, (), CodecSpec(name="packed"), 1.0, 0.0, 0.0, memory, 0, label="x")


def wire_of(bits: int) -> Wire:
    values = tuple(float(symbol) for symbol in range(1 << bits))
    symbols = tuple(code >> (8 - bits) for code in range(256))
    return (WireTensor(name="t", shape=(1, 1, 1), bits=bits, to_symbol=symbols, to_value=values),)


def evaluator_of(
    found: Sequence[Detections], max_drop: float, cache: Cache | None = None
) -> tuple[AccuracyEvaluator, Recorded]:
    recorded = Recorded(found)
    source = AgreementAccuracy(REFERENCE)
    return AccuracyEvaluator(
        recorded, source, REFERENCE, max_drop, cache or Cache(), "data"
    ), recorded


def test_what_is_accepted_was_judged_on_all_images() -> None:
    evaluator, recorded = evaluator_of(REFERENCE, 1.0)
    assert evaluator.measured(candidate()).images == IMAGES == recorded.asked
    assert evaluator.drop(candidate()) == pytest.approx(0)


@pytest.mark.parametrize(
    "found", [[box(300.0)] * IMAGES, [Detections.empty()] * IMAGES], ids=["wrong", "nothing"]
)
def test_a_bad_candidate_is_given_up_after_the_first_look(found: list[Detections]) -> None:
    evaluator, recorded = evaluator_of(found, 5.0)
    measured = evaluator.measured(candidate())
    assert measured.images == recorded.asked == FIRST_LOOK
    assert evaluator.drop(candidate()) > 5.0


def test_a_candidate_near_the_limit_is_not_given_up() -> None:
    found = [box(300.0) if k % 10 == 0 else REFERENCE[k] for k in range(IMAGES)]
    evaluator, recorded = evaluator_of(found, 9.0)
    evaluator.measured(candidate())
    assert recorded.asked == IMAGES


def test_the_first_good_format_is_found_and_is_no_candidate_yet() -> None:
    good, bad = wire_of(3), wire_of(2)
    evaluator, recorded = evaluator_of(REFERENCE, 1.0)
    recorded.spoiled_by = bad
    cut, seen = candidate().cut, list[tuple[int, int]]()

    def progress(done: int, total: int, _note: str = "", /) -> None:
        seen.append((done, total))

    def first(*wires: Wire) -> int:
        seen.clear()
        return evaluator.first_accurate(cut, wires, progress)

    assert first(bad, good, bad) == 1
    assert seen == [(1, 3), (3, 3)]
    assert first(bad) == 1  # none
    assert first() == 0
    assert not evaluator.candidates
    assert recorded.begun == 2  # each was run once


def test_an_accuracy_is_measured_once_and_found_again(tmp_path: Path) -> None:
    first, _ = evaluator_of(REFERENCE, 1.0, Cache(tmp_path))
    first.measured(candidate())
    again, recorded = evaluator_of(REFERENCE, 1.0, Cache(tmp_path))
    assert again.measured(candidate()) == first.measured(candidate())
    assert recorded.asked == 0


def test_a_drop_against_annotations_has_an_interval(tmp_path: Path) -> None:
    names = [f"{k}.jpg" for k in range(IMAGES)]
    path = tmp_path / "instances.json"
    objects = [
        {
            "id": k + 1,
            "image_id": k,
            "category_id": CATEGORY_IDS[0],
            "bbox": [10.0 + k, 10, 40, 50],
            "area": 2000,
            "iscrowd": 0,
        }
        for k in range(IMAGES)
    ]
    path.write_text(
        json.dumps(
            {
                "images": [{"id": k, "file_name": name} for k, name in enumerate(names)],
                "annotations": objects,
                "categories": [{"id": identity} for identity in CATEGORY_IDS],
            }
        )
    )
    source = CocoAccuracy(path, names)
    half = [REFERENCE[k] if k % 2 else box(300.0) for k in range(40)]
    low, middle = source.drop(REFERENCE[:40], half, 0.99)
    assert 20 < low < middle < 90


def test_the_cheapest_way_out_comes_first() -> None:
    graph = branched_graph()
    from search.quantization.calibration import observe

    heads = Heads(rounded(graph, observe(graph, pictures(4))))
    near = RankedCandidate(candidate("near", 10), PREDICTION, 24.0, 96, most_lost=1.0)
    far = RankedCandidate(candidate("far", 10), PREDICTION, 12.0, 96, most_lost=14.0)
    limits = constraints(max_drop=0.5, edge_memory=11_700, no_raw_image=True)
    facts = SearchFacts(25.0, heads, enumerate_cuts(graph))
    message = nothing_fits([far, near], limits, facts)
    assert "near" in message.split(";")[0]
    assert "loses least, 1.00" in message
    # 11,960 bytes are 1.02 times the memory, 1.01 points twice the drop.
    assert message.index("--edge-memory 0.02MiB") < message.index("--max-drop 1.0")
    assert message.index("--max-drop 1.0") < message.index("no --no-raw-image")
    message = nothing_fits([far, near], constraints(max_drop=0.5), facts)
    assert "--edge-memory" not in message
    assert "no-raw-image" not in message


def test_a_loss_that_few_images_cannot_bound_is_not_kept() -> None:
    found = [box(300.0) if k % 16 == 0 else REFERENCE[k] for k in range(IMAGES)]
    evaluator, _ = evaluator_of(found, 13.0)
    measured = evaluator.measured(candidate())
    assert evaluator.drop(candidate()) < 13.0 < measured.most_lost
    assert not evaluator.is_accurate(candidate())
    generous, _ = evaluator_of(found, 40.0)
    assert generous.is_accurate(candidate())


def test_what_loses_nothing_is_good_whatever_the_limit() -> None:
    evaluator, _ = evaluator_of(REFERENCE, 0.0)
    assert evaluator.measured(candidate()).most_lost == 0.0
    assert evaluator.is_accurate(candidate())


def test_what_was_given_up_is_never_good() -> None:
    evaluator, _ = evaluator_of([box(300.0)] * IMAGES, 5.0)
    assert evaluator.measured(candidate()).images == FIRST_LOOK
    assert evaluator.measured(candidate()).most_lost == np.inf
    assert not evaluator.is_accurate(candidate())


class ByWire(Recorded):
    """Tells candidates apart by their wires alone."""

    def identity(self, candidate: Candidate) -> str:
        return digest(candidate.wire)


def test_candidates_of_one_name_have_accuracies_of_their_own() -> None:
    good, bad = (replace(candidate(), wire=wire_of(bits)) for bits in (3, 2))
    assert good.name == bad.name
    recorded = ByWire(REFERENCE)
    recorded.spoiled_by = bad.wire
    evaluator = AccuracyEvaluator(
        recorded, AgreementAccuracy(REFERENCE), REFERENCE, 1.0, Cache(), "data"
    )
    assert evaluator.is_accurate(good)
    assert not evaluator.is_accurate(bad)
    assert evaluator.candidates == [good, bad]


def test_too_few_images_are_said_to_be_too_few() -> None:
    graph = branched_graph()
    from search.quantization.calibration import observe

    heads = Heads(rounded(graph, observe(graph, pictures(4))))
    unsure = RankedCandidate(candidate("unsure"), PREDICTION, 99.0, 16, most_lost=5.0)
    facts = SearchFacts(100.0, heads, enumerate_cuts(graph))
    message = nothing_fits([unsure], constraints(), facts)
    assert message.startswith("no plan keeps --max-drop 3")
    assert "loses least, 1.00 and at most 5.00 on 16 pictures (90 %), too few to be sure" in message
    assert "about 64 pictures to judge on, by --evaluation or as a quarter of 256" in message
    message = nothing_fits([unsure], constraints(), replace(facts, judged_by="evaluation"))
    assert "about 64 pictures under --evaluation, with --max-images 64" in message
