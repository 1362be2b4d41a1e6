"""A network small enough to search for in a test."""

from common.imaging.placement import Placement
from common.tasks.decoders.yolov3 import AnchorMap
from search.cache import Cache
from search.measure.frames import Frames
from search.network.cuts import enumerate_cuts
from search.prepare import Prepared
from search.quantization.calibration import observe
from search.quantization.heads import Heads
from search.ranking.search_run import Network
from tests.networks import SIZE, branched_graph, pictures
from tests.tasks import yolo_task


def small_network() -> Network:
    """A network prepared on eight pictures."""
    graph, pixels = branched_graph(), pictures(8)
    boxes = (Placement.fit(SIZE[1], SIZE[0], SIZE),) * len(pixels)
    frames = Frames(tuple("abcdefgh"), pixels, boxes, 0.5)
    heads = [AnchorMap(stride=stride, anchors=((4.0, 4.0), (8.0, 8.0))) for stride in (4, 2)]
    task = yolo_task(SIZE[0], SIZE[1], heads=tuple(heads), class_names=("cat", "dog"))
    statistics = observe(graph, pixels)
    prepared = Prepared(graph, task, "0" * 64, frames, statistics, Cache(), "origin")
    return Network(prepared, Heads(prepared.rounder().nearest({})), enumerate_cuts(graph))
