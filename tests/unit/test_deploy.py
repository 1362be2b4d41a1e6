"""Deployment: plans that share a name are told apart, and each gets its own models."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from common.bundle.bundle import Bundle
from common.codec.spec import CodecSpec
from common.link.link import parse_link
from common.tables.timing import Timing
from common.tasks.decoders.yolov3 import AnchorMap
from search.constraints import constraints, restored
from search.export import write_plans
from search.network.cuts import Cut, enumerate_cuts
from search.prediction.candidates import Candidate, CostModel, RankedCandidate, named_apart, predict
from search.prediction.cut_times import CutTimes
from search.prediction.devices import device_profile
from search.quantization.calibration import observe
from search.quantization.heads import Heads
from search.quantization.recipe import rounded
from search.request import Request, SearchResult
from search.source import NetworkSource
from search.wire.quantizers import wire_tensor
from tests.networks import SIZE, branched_graph, pictures
from tests.tasks import yolo_task

DETECTOR = yolo_task(
    SIZE[0],
    SIZE[1],
    heads=tuple(AnchorMap(stride=stride, anchors=((8.0, 8.0), (16.0, 16.0))) for stride in (4, 2)),
    class_names=("cat", "dog"),
)
TIMES = CutTimes(Timing(1.0, 1.0, 9), Timing(2.0, 2.0, 9))


def adapted(cut: Cut, factor: float) -> Cut:
    """The cut with other weights behind it, under the same name."""
    tail = tuple(
        node if node.weight is None else replace(node, weight=node.weight * np.float32(factor))
        for node in cut.tail
    )
    return replace(cut, tail=tail, adapted_to="1.00 KB")


def test_plans_of_one_name_keep_their_own_tails(tmp_path: Path) -> None:
    graph, pixels = branched_graph(), pictures(4)
    heads = Heads(rounded(graph, observe(graph, pixels), reduced_range=True))
    cut = next(c for c in enumerate_cuts(graph) if c.kind == "split" and len(c.tensors) == 1)
    name = cut.tensors[0]
    counts = np.ones(256, np.int64)
    wire = (wire_tensor(graph[name], heads.network.grids[name], 4, counts),)
    same = [
        Candidate(each, wire, CodecSpec(name="packed"), 9.0, 1.0, 1.0, 0, 0, label="1.00 KB")
        for each in (adapted(cut, 1.5), adapted(cut, 2.0))
    ]
    assert same[0].name == same[1].name
    one, other = named_apart(same, dict(zip(same, ("a" * 64, "b" * 64), strict=True)))
    assert (one.name, other.name) == (
        f"{name} 1.00 KB aaaaaaaa packed adapted",
        f"{name} 1.00 KB bbbbbbbb packed adapted",
    )
    link, device = parse_link("1mbit/20ms"), device_profile("this-machine")
    cost_model = CostModel(link, device, 1.0, 1.0)
    kept = tuple(
        RankedCandidate(each, predict(each, TIMES, cost_model), 98.0, 16, most_lost=2.5)
        for each in (one, other)
    )
    limits = constraints(edge_memory="1MiB", no_raw_image=True, max_bytes="4KB")
    found = SearchResult(
        request=Request(NetworkSource("tiny"), link, device, tmp_path, constraints=limits),
        metric="AP50",
        reference_accuracy=99.0,
        cuts=9,
        calibration_images=48,
        evaluation_images=tuple("abcdefghijklmnop"),
        cost_model=cost_model,
        ranked=kept,
        measured=kept,
        kept=kept,
        curves={},
    )
    write_plans(tmp_path / "bundle", heads, DETECTOR, pixels[:1], "0" * 64, found)
    with Bundle.open(tmp_path / "bundle") as bundle:
        first, second = bundle.manifest.plans
        assert restored(bundle.manifest.search.limits) == limits
        assert bundle.manifest.search.edge_memory_bytes == 1 << 20
        assert first.name != second.name
        assert first.head == second.head
        assert first.tail is not None
        assert second.tail is not None
        files = bundle.manifest.files
        digests = [{files[n].sha256 for n in tail.files} for tail in (first.tail, second.tail)]
        assert digests[0] != digests[1]
        predicted = first.predicted
        report = bundle.file("report.md").read_text()
    assert predicted.accuracy_drop_upper == 2.5
    assert (predicted.judged_images, predicted.judged_by) == (16, "held-out")
    assert "Judged on 16 held-out calibration pictures." in report
    assert "--evaluation gives others to judge on" in report
