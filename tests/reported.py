"""Results of a search, made up for tests of its reports."""

from pathlib import Path

from common.codec.spec import USUAL_UPLOAD, CodecSpec
from common.link.link import parse_link
from common.tables.timing import Timing
from search.network.cuts import Cut
from search.network.graph import Node
from search.prediction.candidates import Candidate, CostModel, RankedCandidate, predict
from search.prediction.cut_times import CutTimes
from search.prediction.devices import DeviceProfile
from search.request import Request, SearchResult
from search.source import NetworkSource
from search.wire.rate_curve import RatePoint

COST_MODEL = CostModel(parse_link("3mbit/20ms"), DeviceProfile("slow", 4.0), 2.0, 1.0)


def judged(
    kind: str, accuracy: float, sent: float, head_ms: float, name: str = "t", label: str = ""
) -> RankedCandidate:
    """A candidate of a kind, measured, whose head takes `head_ms` and whose tail the rest of 20."""
    node = Node(name, "conv", (), (4, 2, 2))
    cut = Cut(
        (name,),
        () if kind == "cloud-only" else (node,),
        () if kind == "edge-only" else (node,),
    )
    split = CodecSpec(name="context")
    codec = {"cloud-only": USUAL_UPLOAD, "split": split, "edge-only": None}[kind]
    memory = 0 if kind == "cloud-only" else round(head_ms) << 18
    encode_ms, decode_ms = (0.5, 1.5) if codec else (0.0, 0.0)
    label = (label or "searched") if kind == "split" else ""
    candidate = Candidate(cut, (), codec, sent, encode_ms, decode_ms, memory, 1000, label=label)
    tail_ms = 0.0 if kind == "edge-only" else max(20 - head_ms, 0.0)
    times = CutTimes(Timing(head_ms, head_ms, 9), Timing(tail_ms, tail_ms, 9))
    return RankedCandidate(candidate, predict(candidate, times, COST_MODEL), accuracy)


def found_by_search(split: str = "conv_8", cut: str = "conv_8") -> SearchResult:
    """A result with a plan of each kind."""
    kept = (
        judged("split", 44.1, 5300, 10, split),
        judged("cloud-only", 44.5, 21_700, 0),
        judged("edge-only", 43.0, 0, 30),
    )
    other = judged("split", 40.0, 86_500, 10, split, "8-bit")
    points = tuple(
        RatePoint(step, 0.5, 4.0, (), sent, error)
        for step, sent, error in ((5.0, 1800, 2.5), (2.5, 5300, 0.7), (0.25, 30_600, 0.01))
    )
    return SearchResult(
        request=Request(
            NetworkSource("tiny"), COST_MODEL.link, COST_MODEL.device, Path("calibration")
        ),
        metric="AP50",
        reference_accuracy=45.0,
        cuts=9,
        calibration_images=8,
        evaluation_images=("a.jpg",),
        cost_model=COST_MODEL,
        ranked=(*kept, other),
        measured=(*kept, other),
        kept=kept,
        curves={cut: points},
    )
