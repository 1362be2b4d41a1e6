"""Every decoder: known boxes written into outputs of its family, hostile values, wrong shapes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from common.errors import ModelError
from common.tasks.base import Floats, ImageInput, ResultSettings
from common.tasks.decoders.base import Decoder, grid, grid_sizes
from common.tasks.decoders.boxes import Boxes
from common.tasks.decoders.centernet import CenterNet
from common.tasks.decoders.detr import Detr
from common.tasks.decoders.picodet import PicoDet
from common.tasks.decoders.registry import DECODERS, guess, presets
from common.tasks.decoders.ssd import PriorMap, Ssd
from common.tasks.decoders.yolov3 import AnchorMap, YoloV3
from common.tasks.decoders.yolov5 import YoloV5
from common.tasks.decoders.yolov8 import YoloV8
from common.tasks.decoders.yolox import YoloX
from common.tasks.detections import Detections, DetectionTask, as_detections

SIZE = (64, 96)
NAMES = ("cat", "dog", "bird")
C = len(NAMES)
CENTRES = np.array([[20.0, 20.0], [70.0, 38.0]], np.float32)
SIDES = np.array([[24.0, 16.0], [30.0, 20.0]], np.float32)
BOXES = np.concatenate([CENTRES - SIDES / 2, CENTRES + SIDES / 2], axis=1)
CLASSES = (2, 0)
SCORES = (0.9, 0.6)
ANCHORS = ((10.0, 14.0), (30.0, 20.0))
HEADS = (AnchorMap(stride=32, anchors=ANCHORS), AnchorMap(stride=16, anchors=ANCHORS))
PRIORS = (PriorMap(rows=4, columns=6, sizes=ANCHORS), PriorMap(rows=2, columns=3, sizes=ANCHORS))

Outputs = list[Floats]


def logit(value: float) -> float:
    return float(np.log(value / (1 - value)))


def one_hot(classes: int = C, off: float = 0.0) -> Floats:
    """(2, C) scores of both boxes."""
    rows = np.full((2, classes), off, np.float32)
    for row, (index, score) in enumerate(zip(CLASSES, SCORES, strict=True)):
        rows[row, index] = score
    return rows


def cell_of(stride: int, row: int) -> tuple[int, int]:
    """(y, x) of the cell that a box's centre lies in."""
    x, y = CENTRES[row]
    return int(y // stride), int(x // stride)


def place_of(strides: Sequence[int], stride: int, row: int) -> int:
    """Index of that cell among the cells of all maps."""
    start = 0
    for each, (rows, columns) in zip(strides, grid_sizes(SIZE, strides), strict=True):
        if each == stride:
            y, x = cell_of(stride, row)
            return start + y * columns + x
        start += rows * columns
    raise AssertionError


def yolov3(_: Decoder) -> Outputs:
    outputs = [np.full(s, -20, np.float32) for s in YoloV3(heads=HEADS).map_shapes(SIZE, C)]
    for row in range(2):
        (y, x), anchor = cell_of(16, row), ANCHORS[1]
        cell = outputs[1][5 + C :, y, x]
        part = CENTRES[row] / 16 - (x, y)
        cell[:2] = [logit(float(p)) for p in part]
        cell[2:4] = np.log(SIDES[row] / anchor)
        cell[4] = 20
        cell[5 + CLASSES[row]] = logit(SCORES[row])
    return outputs


def yolov5(_: Decoder) -> Outputs:
    table = np.zeros((500, 5 + C), np.float32)
    table[[7, 300], :2], table[[7, 300], 2:4] = CENTRES, SIDES
    table[[7, 300], 4], table[[7, 300], 5:] = 1, one_hot()
    return [table]


def yolov5_raw(_: Decoder) -> Outputs:
    maps = [(SIZE[0] // h.stride, SIZE[1] // h.stride) for h in HEADS]
    outputs = [np.full((2, *cells, 5 + C), -20, np.float32) for cells in maps]
    for row in range(2):
        (y, x), anchor = cell_of(16, row), ANCHORS[1]
        cell = outputs[1][1, y, x]
        part = (CENTRES[row] / 16 - (x, y) + 0.5) / 2
        cell[:2] = [logit(float(p)) for p in part]
        cell[2:4] = [logit(float(s)) for s in np.sqrt(SIDES[row] / anchor) / 2]
        cell[4] = 20
        cell[5 + CLASSES[row]] = logit(SCORES[row])
    return outputs


def yolov5_flat(decoder: Decoder) -> Outputs:
    return [
        np.ascontiguousarray(o.transpose(0, 3, 1, 2)).reshape(-1, *o.shape[1:3])
        for o in yolov5_raw(decoder)
    ]


def yolov8(_: Decoder) -> Outputs:
    table = np.zeros((4 + C, 126), np.float32)
    table[:2, [3, 90]], table[2:4, [3, 90]], table[4:, [3, 90]] = CENTRES.T, SIDES.T, one_hot().T
    return [table]


def transposed(make: Callable[[Decoder], Outputs]) -> Callable[[Decoder], Outputs]:
    return lambda decoder: [np.ascontiguousarray(o.T) for o in make(decoder)]


def dfl(distances: Floats, bins: int) -> Floats:
    """Logits (4 x bins) whose expectation is these distances, between two neighbours."""
    logits = np.full((4, bins), -50, np.float32)
    for side, distance in enumerate(distances):
        low = int(distance)
        share = float(distance) - low
        logits[side, low] = np.log(1 - share)
        if share > 0:
            logits[side, low + 1] = np.log(share)
    return logits.reshape(-1)


def cells_with_dfl(strides: Sequence[int], bins: int, offset: float) -> tuple[Floats, Floats]:
    """Scores (N, C) and sides (N, 4 x bins) of all cells, with both boxes at stride 16."""
    cells, _ = grid(SIZE, strides)
    scores = np.zeros((len(cells), C), np.float32)
    sides = np.zeros((len(cells), 4 * bins), np.float32)
    for row in range(2):
        place = place_of(strides, 16, row)
        point = (cells[place] + offset) * 16
        ends = np.concatenate([point - BOXES[row, :2], BOXES[row, 2:] - point])
        sides[place] = dfl((ends / 16).astype(np.float32), bins)
        scores[place] = one_hot()[row]
    return scores, sides


def with_logits(scores: Floats) -> Floats:
    return np.where(scores > 0, np.log(scores.clip(1e-6, 1) / (1 - scores.clip(0, 0.999))), -20)


def yolov8_raw(_: Decoder) -> Outputs:
    scores, sides = cells_with_dfl((8, 16, 32), 16, 0.5)
    return [np.concatenate([sides, with_logits(scores)], axis=1).T.astype(np.float32)]


def yolov8_maps(decoder: Decoder) -> Outputs:
    (table,) = yolov8_raw(decoder)
    sizes = grid_sizes(SIZE, (8, 16, 32))
    ends = np.cumsum([h * w for h, w in sizes])[:-1]
    parts = np.split(table, ends, axis=1)
    return [part.reshape(-1, *size) for part, size in zip(parts, sizes, strict=True)]


def yolox(decoder: Decoder) -> Outputs:
    assert isinstance(decoder, YoloX)
    cells, strides = grid(SIZE, decoder.strides)
    table = np.zeros((len(cells), 5 + C), np.float32)
    for row in range(2):
        place = place_of(decoder.strides, 16, row)
        if decoder.decoded:
            table[place, :4] = [*CENTRES[row], *SIDES[row]]
        else:
            table[place, :2] = CENTRES[row] / strides[place] - cells[place]
            table[place, 2:4] = np.log(SIDES[row] / strides[place])
        table[place, 4], table[place, 5:] = 1, one_hot()[row]
    return [table]


def yolox_maps(decoder: Decoder) -> Outputs:
    """Logits, as the maps lie in memory."""
    assert isinstance(decoder, YoloX)
    (table,) = yolox(decoder)
    table[:, 4:] = with_logits(table[:, 4:])
    ends = np.cumsum([h * w for h, w in grid_sizes(SIZE, decoder.strides)])[:-1]
    return [np.concatenate([part.T.reshape(part.shape) for part in np.split(table, ends)])]


def picodet(_: Decoder) -> Outputs:
    strides = (8, 16, 32, 64)
    scores, sides = cells_with_dfl(strides, 8, 0.5)
    ends = np.cumsum([h * w for h, w in grid_sizes(SIZE, strides)])[:-1]
    return [*np.split(scores, ends), *np.split(sides, ends)]


def nanodet(_: Decoder) -> Outputs:
    return [np.concatenate(cells_with_dfl((8, 16, 32, 64), 8, 0.0), axis=1)]


def ssd(_: Decoder) -> Outputs:
    boxes, scores = np.zeros((60, 4), np.float32), np.zeros((60, C + 1), np.float32)
    scores[:, 0] = 1
    boxes[[5, 41]] = BOXES / (96, 64, 96, 64)
    scores[[5, 41], 1:] = one_hot()
    return [boxes, scores]


def ssd_priors(_: Decoder) -> Outputs:
    count = (4 * 6 + 2 * 3) * 2
    boxes, scores = np.zeros((count, 4), np.float32), np.full((count, C + 1), -20, np.float32)
    scores[:, 0] = 0
    for row in range(2):
        y, x = cell_of(16, row)
        place = (y * 6 + x) * 2 + 1
        prior = np.array([x + 0.5, y + 0.5]) * 16
        boxes[place, :2] = (CENTRES[row] - prior) / ANCHORS[1] / 0.1
        boxes[place, 2:] = np.log(SIDES[row] / ANCHORS[1]) / 0.2
        scores[place, 1 + CLASSES[row]] = logit(SCORES[row])
    return [scores, boxes]


def detr(_: Decoder) -> Outputs:
    logits, boxes = np.full((10, C + 1), -20, np.float32), np.full((10, 4), 0.5, np.float32)
    logits[:, C] = 0
    for row, query in enumerate((4, 8)):
        logits[query, CLASSES[row]] = logit(SCORES[row])
        boxes[query] = np.concatenate([CENTRES[row], SIDES[row]]) / (96, 64, 96, 64)
    return [logits, boxes]


def rt_detr(decoder: Decoder) -> Outputs:
    logits, boxes = detr(decoder)
    return [boxes, np.ascontiguousarray(logits[:, :C])]


def centernet(_: Decoder) -> Outputs:
    heat = np.zeros((C, 16, 24), np.float32)
    sizes, offsets = np.zeros((2, 16, 24), np.float32), np.zeros((2, 16, 24), np.float32)
    for row in range(2):
        y, x = cell_of(4, row)
        heat[CLASSES[row], y, x] = SCORES[row]
        heat[CLASSES[row], y, x + 1] = SCORES[row] - 0.1  # a slope, not a peak
        sizes[:, y, x] = SIDES[row] / 4
        offsets[:, y, x] = CENTRES[row] / 4 - (x, y)
    return [heat, sizes, offsets]


def centerface(decoder: Decoder) -> Outputs:
    heat, sizes, offsets = centernet(decoder)
    heat[:, :, 1:][heat[:, :, :-1] > 0] = 0
    sizes = np.log(sizes[::-1].clip(1e-3))
    offsets = np.where(heat.max(axis=0) > 0, offsets[::-1] - 0.5, 0).astype(np.float32)
    return [heat, sizes, offsets, np.zeros((10, 16, 24), np.float32)]


def table_of_six(_: Decoder) -> Outputs:
    rows = np.zeros((1, 20, 6), np.float32)
    rows[0, :2] = np.concatenate(
        [BOXES, np.array(SCORES)[:, None], np.array(CLASSES)[:, None]], axis=1
    )
    return [rows]


def table_of_seven(decoder: Decoder) -> Outputs:
    (rows,) = table_of_six(decoder)
    return [rows[0][:, [0, 0, 1, 2, 3, 5, 4]]]


def separate(_: Decoder) -> Outputs:
    boxes, scores = np.zeros((5, 4), np.float32), np.full(5, 0.99, np.float32)
    labels = np.full(5, 1, np.float32)
    boxes[:2] = (BOXES / (96, 64, 96, 64))[:, [1, 0, 3, 2]]
    scores[:2], labels[:2] = SCORES, np.array(CLASSES) + 1
    return [np.array([2], np.float32), boxes, scores, labels]  # the rest lies behind the count


@dataclass(frozen=True)
class Family:
    """A decoder, and how known boxes are written into its outputs."""

    decoder: Decoder
    encode: Callable[[Decoder], Outputs]


FAMILIES = {
    "yolov3": Family(YoloV3(heads=HEADS), yolov3),
    "yolov5": Family(YoloV5(), yolov5),
    "yolov5 raw": Family(YoloV5(heads=HEADS), yolov5_raw),
    "yolov5 flat": Family(YoloV5(heads=HEADS), yolov5_flat),
    "yolov8": Family(YoloV8(), yolov8),
    "yolov8 transposed": Family(YoloV8(), transposed(yolov8)),
    "yolov8 raw": Family(YoloV8(bins=16, logits=True), yolov8_raw),
    "yolov8 maps": Family(YoloV8(bins=16, logits=True), yolov8_maps),
    "yolox": Family(YoloX(), yolox),
    "yolox decoded": Family(YoloX(decoded=True), yolox),
    "yolox maps": Family(YoloX(layout="maps", logits=True), yolox_maps),
    "picodet": Family(PicoDet(), picodet),
    "nanodet": Family(PicoDet(kind="nanodet", cell_offset=0), nanodet),
    "ssd": Family(Ssd(), ssd),
    "ssd with priors": Family(Ssd(priors=PRIORS, scores="softmax", boxes_first=False), ssd_priors),
    "detr": Family(Detr(), detr),
    "rt-detr": Family(Detr(scores="sigmoid", boxes_first=True), rt_detr),
    "centernet": Family(CenterNet(), centernet),
    "centerface": Family(
        CenterNet(log_sizes=True, rows_first=True, centre=0.5, peaks=False), centerface
    ),
    "table of six": Family(Boxes(), table_of_six),
    "table of seven": Family(
        Boxes(columns=("ignored", "x1", "y1", "x2", "y2", "class", "score")), table_of_seven
    ),
    "separate outputs": Family(
        Boxes(
            outputs=("count", "boxes", "scores", "classes"),
            columns=("y1", "x1", "y2", "x2"),
            unit=True,
            first_class=1,
        ),
        separate,
    ),
}
every = pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES.keys())


def task_of(decoder: Decoder) -> DetectionTask:
    image = ImageInput(height=SIZE[0], width=SIZE[1])
    data = {"image": image, "decoder": decoder.model_dump(), "class_names": NAMES}
    return DetectionTask.model_validate(data)


def decode(family: Family, outputs: Outputs, **options: Any) -> Detections:
    task = task_of(family.decoder)
    where = task.image.place(96, 64)
    with np.errstate(all="raise", under="ignore"):
        return as_detections(task.decode(outputs, where, ResultSettings(**options)))


@every
def test_known_boxes_are_found(family: Family) -> None:
    found = decode(family, family.encode(family.decoder), score_threshold=0.3)
    assert found.classes.tolist() == list(CLASSES)
    np.testing.assert_allclose(found.scores, SCORES, atol=2e-3)
    np.testing.assert_allclose(found.boxes, BOXES, atol=0.02)


@every
def test_only_the_classes_that_are_asked_for(family: Family) -> None:
    found = decode(family, family.encode(family.decoder), score_threshold=0.3, classes=(0,))
    assert found.classes.tolist() == [0]


@every
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 3e38, -3e38, 1e-40, 88.8, 0.5, 0.0])
@pytest.mark.parametrize("threshold", [0.0, 0.25, 1.0])
def test_outputs_of_one_value_neither_warn_nor_overflow(
    family: Family, value: float, threshold: float
) -> None:
    outputs = [np.full_like(each, value) for each in family.encode(family.decoder)]
    found = decode(family, outputs, score_threshold=threshold)
    assert np.isfinite(found.boxes).all()
    assert len(found) <= 100


@every
@pytest.mark.parametrize("seed", range(8))
def test_outputs_of_any_bits(family: Family, seed: int) -> None:
    rng = np.random.default_rng(seed)
    outputs = [
        rng.integers(0, 2**32, each.shape, dtype=np.uint32).view(np.float32)
        for each in family.encode(family.decoder)
    ]
    found = decode(family, outputs)
    assert np.isfinite(found.boxes).all()
    assert ((found.boxes >= 0) & (found.boxes <= (96, 64, 96, 64))).all()
    assert ((found.scores >= 0.25) & (found.scores <= 1)).all()
    assert (np.diff(found.scores) <= 0).all()
    assert set(found.classes.tolist()) <= set(range(C))


@every
def test_a_value_that_is_not_finite_spoils_its_own_box_only(family: Family) -> None:
    """Every value of the outputs in turn, of those that matter."""
    clean = family.encode(family.decoder)
    rng = np.random.default_rng(0)
    for number, output in enumerate(clean):
        for place in rng.integers(0, output.size, 10):
            spoiled = [each.copy() for each in clean]
            spoiled[number].reshape(-1)[place] = np.nan
            found = decode(family, spoiled, score_threshold=0.3)
            assert len(found) <= 2
            for box in found.boxes:
                assert (np.abs(BOXES - box) < 0.05).all(axis=1).any()


@every
def test_other_shapes_are_refused_by_name(family: Family) -> None:
    outputs = family.encode(family.decoder)
    wrong: list[Outputs] = [
        [],
        outputs[:2] if len(outputs) > 2 else [*outputs, np.zeros((3, 3, 3), np.float32)],
        [np.zeros((*each.shape, 1, 2), np.float32) for each in outputs],
    ]
    for each in wrong:
        with pytest.raises(ModelError, match=f"^{family.decoder.kind}: expected output"):
            decode(family, each)
    with pytest.raises(ModelError, match="float64"):
        decode(family, [each.astype(np.float64) for each in outputs])


@every
def test_a_decoder_survives_json(family: Family) -> None:
    task = task_of(family.decoder)
    assert DetectionTask.model_validate_json(task.model_dump_json()) == task


def test_what_is_found_and_what_comes_near_is_said() -> None:
    shapes = [(8400, 85)]
    task = DetectionTask(
        image=ImageInput(height=640, width=640), decoder=YoloV8(), class_names=("a",) * 80
    )
    message = task.misfit(shapes)
    assert message is not None
    assert "(84, N)" in message
    assert "found (8400, 85)" in message
    assert "yolox" in message


COCO_SHAPES = [
    pytest.param([(25200, 85)], (640, 640), "yolov5", True, id="yolov5"),
    pytest.param(
        [(255, 80, 80), (255, 40, 40), (255, 20, 20)], (640, 640), "yolov5", False, id="raw"
    ),
    pytest.param([(255, 13, 13), (255, 26, 26)], (416, 416), "yolov3", False, id="yolov3-tiny"),
    pytest.param([(84, 8400)], (640, 640), "yolov8", True, id="yolov8"),
    pytest.param([(56, 8400)], (640, 640), "yolov8", False, id="yolov8 pose, which looks alike"),
    pytest.param([(144, 8400)], (640, 640), "yolov8", False, id="yolov8 raw"),
    pytest.param([(8400, 85)], (640, 640), "yolox", False, id="yolox, decoded or not"),
    pytest.param(
        [(2704, 80), (676, 80), (169, 80), (49, 80), (2704, 32), (676, 32), (169, 32), (49, 32)],
        (416, 416),
        "picodet",
        False,
        id="picodet",
    ),
    pytest.param([(3598, 112)], (416, 416), "nanodet", False, id="nanodet"),
    pytest.param([(4420, 4), (4420, 2)], (240, 320), "ssd", False, id="ssd"),
    pytest.param([(100, 92), (100, 4)], (800, 1066), "detr", False, id="detr"),
    pytest.param(
        [(1, 104, 104), (2, 104, 104), (2, 104, 104), (10, 104, 104)],
        (416, 416),
        "centernet",
        True,
        id="centerface",
    ),
    pytest.param([(300, 6)], (640, 640), "boxes", False, id="boxes"),
    pytest.param([(None, 7)], (640, 640), "boxes", False, id="boxes of any number"),
]


@pytest.mark.parametrize(("shapes", "size", "kind", "is_sure"), COCO_SHAPES)
def test_presets_of_published_networks(
    shapes: list[tuple[int | None, ...]], size: tuple[int, int], kind: str, *, is_sure: bool
) -> None:
    names = [f"output{k}" for k in range(len(shapes))]
    assert kind in [each.kind for each in presets(shapes, names, size)]
    found = guess(shapes, names, size)
    assert (found is not None and found.kind == kind) == is_sure


def test_outputs_by_name() -> None:
    names = ["num_detections", "detection_boxes", "detection_scores", "detection_classes"]
    (found,) = presets([(1,), (100, 4), (100,), (100,)], names, (320, 320))
    assert isinstance(found, Boxes)
    assert found.outputs == ("count", "boxes", "scores", "classes")


@pytest.mark.parametrize("shapes", [[(1000,)], [(1, 3)], [(2, 2, 2, 2)], [(21, 65, 65)], [()], []])
def test_outputs_of_no_detector_have_no_preset(shapes: list[tuple[int, ...]]) -> None:
    assert presets(shapes, ["output"] * len(shapes), (416, 416)) == []


def test_every_decoder_is_tested() -> None:
    assert {type(each.decoder) for each in FAMILIES.values()} == set(DECODERS)


def test_duplicates_of_a_network_that_suppresses_them_itself_stay() -> None:
    rows: NDArray[np.float32] = np.tile(np.array([10, 10, 30, 30, 0.8, 1], np.float32), (3, 1))
    assert len(decode(FAMILIES["table of six"], [rows])) == 3
