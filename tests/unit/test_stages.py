"""The search's stages on their own: tables, configurations, collections, and early stopping."""

import csv
import json
from pathlib import Path

import numpy as np
import onnx
import pytest

from common.errors import CalibrationError, NoFeasiblePlanError, SettingsError
from common.imaging.placement import Placement
from common.link.link import parse_link
from common.progress import Progress
from common.tasks.decoders.yolov3 import AnchorMap
from search.cache import Cache
from search.measure.frames import Frames, load_frames
from search.measure.held_out import Judging
from search.prediction.devices import device_profile
from search.prepare import Prepared
from search.quantization.calibration import observe
from search.quantization.heads import Heads
from search.quantization.layer_table import layer_table, to_csv, to_json
from search.quantization.recipes import RECIPES
from search.quantization.sensitivity import HOWS, sensitivity_of
from search.quantization.widths import Widths
from search.stages.bit_configurations import (
    INDEX,
    METHODS,
    allocate,
    cut_of_widths,
    method_of,
    read,
    write,
)
from search.stages.profile import cut_rows, time_cuts, write_statistics, write_times
from search.stages.quantize_all import Collection, Setting, as_markdown, collect, write_summary
from tests.networks import SIZE, branched_graph, pictures
from tests.tasks import yolo_task

PIXELS = pictures(10)
NETWORK = "9" * 64
DETECTOR = yolo_task(
    SIZE[0],
    SIZE[1],
    heads=tuple(AnchorMap(stride=stride, anchors=((8.0, 8.0), (16.0, 16.0))) for stride in (4, 2)),
    class_names=("cat", "dog"),
)


class Silent:
    """Reports nothing."""

    def stage(self, _title: str, /) -> Progress:
        return lambda _done, _total, _note="", /: None


def prepared_in(cache: Path | None = None) -> Prepared:
    graph = branched_graph()
    boxes = tuple(Placement.fit(SIZE[1], SIZE[0], SIZE) for _ in PIXELS)
    frames = Frames(tuple(f"{k}.png" for k in range(len(PIXELS))), PIXELS, boxes, 0.1)
    return Prepared(
        graph, DETECTOR, "0" * 64, frames, observe(graph, PIXELS), Cache(cache), "origin"
    )


@pytest.fixture(scope="module")
def prepared() -> Prepared:
    return prepared_in()


@pytest.fixture(scope="module")
def heads(prepared: Prepared) -> Heads:
    return Heads(prepared.rounder().nearest({}))


def test_the_layer_table_has_every_layer_with_its_neighbours(prepared: Prepared) -> None:
    graph = prepared.graph
    rows = layer_table(graph, prepared.statistics)
    assert [row.rank for row in rows] == list(range(len(graph.nodes) - 1))
    for row in rows:
        assert all(row.name in graph[name].inputs for name in row.successors)
        assert row.volume_in == sum(graph[name].elements for name in row.predecessors)
        assert row.output.min <= row.output.mean <= row.output.max
        assert (row.weight is None) == (row.volume_weights == 0)
    conv = next(row for row in rows if row.weight is not None)
    weight = graph[conv.name].weight
    assert weight is not None
    assert conv.weight is not None
    assert conv.weight.std == pytest.approx(float(weight.std()), rel=1e-5)
    again = list(csv.DictReader(to_csv(rows).splitlines()))
    assert [row["name"] for row in again] == [row.name for row in rows]
    assert float(again[0]["output_max"]) == rows[0].output.max
    assert [row["name"] for row in json.loads(to_json(rows))] == [row.name for row in rows]


def test_a_profile_is_written_to_files(prepared: Prepared, tmp_path: Path) -> None:
    files = write_statistics(prepared, tmp_path) + write_times(prepared, tmp_path, 1, Silent())
    assert all(path.is_file() for path in files)
    rows = list(csv.DictReader((tmp_path / "cuts.csv").read_text().splitlines()))
    assert {"image"} < {row["cut"] for row in rows}
    assert all(float(row["head_ms"]) > 0 for row in rows if row["cut"] != "image")
    with np.load(tmp_path / "samples.npz", allow_pickle=False) as samples:
        assert set(samples.files) == {node.name for node in prepared.graph.nodes[1:]}


def test_times_of_cuts_are_rows_of_a_latency_table(prepared: Prepared) -> None:
    timed = time_cuts(prepared, 2, Silent())
    rows = {row.segment: row for row in cut_rows(timed, NETWORK, "box", 2, 5.0)}
    for cut in timed:
        head, tail = rows.get(f"head to {cut.name}"), rows.get(f"tail from {cut.name}")
        if cut.times.head.n:
            assert head is not None
            assert (head.side, head.threads, head.bits) == ("edge", 1, "8")
            assert head.median_ms == cut.times.head.median_ms
        if cut.times.tail.n:
            assert tail is not None
            assert (tail.side, tail.threads, tail.bits) == ("cloud", 2, "32")
    assert "head to image" not in rows
    assert {(row.network, row.device, row.source, row.last_seen_s) for row in rows.values()} == {
        (NETWORK, "box", "profiled", 5.0)
    }


@pytest.mark.parametrize("method", METHODS)
def test_allocated_heads_fit_and_come_back_from_their_files(
    method: str, prepared: Prepared, heads: Heads, tmp_path: Path
) -> None:
    limit = 15_000
    errors = prepared.sensitivity("squared", Silent()).weights
    found = allocate(prepared, heads, lambda: errors, method_of(method), limit, Silent())
    assert all(each.weight_bytes + each.activation_bytes <= limit for each in found)
    write(tmp_path, found)
    index = list(csv.DictReader((tmp_path / INDEX).read_text().splitlines()))
    assert [row["name"] for row in index] == [each.name for each in found]
    again = {name: (cut, widths) for name, cut, widths in read([tmp_path], prepared.graph)}
    for each in found:
        cut, widths = again[each.name]
        assert cut.name == each.cut
        assert widths == each.widths


def test_the_exact_program_is_never_worse_than_the_lagrangian(
    prepared: Prepared, heads: Heads
) -> None:
    errors = prepared.sensitivity("squared", Silent()).weights
    for limit in (12_500, 14_000, 15_000):
        exact, relaxed = (
            {each.cut: each.error for each in found}
            for method in ("exact", "lagrangian")
            for found in [
                allocate(prepared, heads, lambda: errors, method_of(method), limit, Silent())
            ]
        )
        assert set(exact) == set(relaxed)
        assert all(exact[cut] <= relaxed[cut] + 1e-9 for cut in exact)


def test_without_memory_for_any_head_the_smallest_need_is_told(
    prepared: Prepared, heads: Heads
) -> None:
    errors = prepared.sensitivity("squared", Silent()).weights
    with pytest.raises(NoFeasiblePlanError, match=r"the smallest head, up to conv_0, needs 0\.01"):
        allocate(prepared, heads, lambda: errors, "exact", 100, Silent())


def test_every_way_to_weigh_errors_gives_less_for_more_bits(prepared: Prepared) -> None:
    for how in HOWS:
        sensitivity = prepared.sensitivity(sensitivity_of(how), Silent())
        total = [sum(each[bits] for each in sensitivity.weights.values()) for bits in (2, 4, 8)]
        assert total[0] > total[1] > total[2] >= 0
    with pytest.raises(SettingsError, match="unknown sensitivity 'guess': choose one of measured"):
        sensitivity_of("guess")


@pytest.fixture(scope="module")
def collection(
    prepared: Prepared, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Collection, Path]:
    out = tmp_path_factory.mktemp("collected")
    graph = prepared.graph
    judging = Judging(prepared.calibration, "evaluation")
    setting = Setting(judging, None, parse_link("1mbit/20ms"), device_profile("quarter-core"))
    wide = {"conv_0": Widths(weight=8), "conv_2": Widths(weight=8), "conv_3": Widths(weight=8)}
    narrow = {name: Widths(weight=2, activation=4) for name in wide}
    configurations = [
        ("wide", cut_of_widths(graph, wide), wide),
        ("narrow", cut_of_widths(graph, narrow), narrow),
    ]
    rounder = prepared.rounder(RECIPES["nearest"])
    return collect(prepared, rounder, configurations, setting, out, Silent()), out


def test_configurations_are_collected_with_accuracy_and_latency(
    collection: tuple[Collection, Path],
) -> None:
    found, out = collection
    rows = {row.name: row for row in found.rows}
    assert rows["narrow"].payload_bytes < rows["wide"].payload_bytes
    assert rows["narrow"].edge_memory_bytes < rows["wide"].edge_memory_bytes
    assert rows["narrow"].accuracy < rows["wide"].accuracy
    assert [row.latency_ms for row in found.rows] == sorted(row.latency_ms for row in found.rows)
    for name in rows:
        onnx.checker.check_model(onnx.load(out / f"{name}.onnx"))
    write_summary(found, out)
    table = list(csv.DictReader((out / "summary.csv").read_text().splitlines()))
    assert [row["name"] for row in table] == [row.name for row in found.rows]
    assert json.loads((out / "summary.json").read_text())["metric"] == found.metric
    assert (out / "summary.svg").read_text().startswith("<?xml")
    assert "| narrow |" in as_markdown(found)


def test_a_killed_collection_finds_its_weights_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared = prepared_in(tmp_path)
    widths = {"conv_0": Widths(weight=3)}
    names = cut_of_widths(prepared.graph, widths).tensors
    rounder = prepared.rounder()
    network = rounder.reconstruct(rounder.nearest(widths), names, lambda *_: None)

    def forbidden(*_arguments: object) -> None:
        raise AssertionError("rounded again")

    monkeypatch.setattr("search.quantization.rounding.reconstructed", forbidden)
    again = rounder.reconstruct(rounder.nearest(widths), names, lambda *_: None)
    np.testing.assert_array_equal(again.convs["conv_0"].weight, network.convs["conv_0"].weight)


def test_joint_ranges_give_a_head_grids_of_its_own(prepared: Prepared) -> None:
    widths = {"conv_0": Widths(weight=4, activation=3)}
    tensors = cut_of_widths(prepared.graph, widths).tensors
    apart = prepared.rounder(RECIPES["nearest"]).nearest(widths)
    joint = prepared.rounder(RECIPES["lapq"]).reconstruct(apart, tensors, lambda *_: None)
    assert joint.widths["conv_0"] == widths["conv_0"]
    assert joint.grids["conv_0"].scale != apart.grids["conv_0"].scale


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("conv_99: {weight: 4}\n", "the network has no layer conv_99"),
        ("conv_0: {weight: 1}\n", "greater than or equal to 2"),
        ("{}\n", "a configuration without layers has no head"),
        ("conv_0: [", "no configuration of widths"),
    ],
)
def test_a_bad_file_of_widths_is_told_in_one_line(
    text: str, message: str, prepared: Prepared, tmp_path: Path
) -> None:
    (tmp_path / "bad.yaml").write_text(text)
    with pytest.raises(SettingsError, match=message):
        read([tmp_path / "bad.yaml"], prepared.graph)


def test_folders_without_configurations_and_doubled_names_are_refused(
    prepared: Prepared, tmp_path: Path
) -> None:
    with pytest.raises(SettingsError, match="no files of widths"):
        read([tmp_path], prepared.graph)
    (tmp_path / "a.yaml").write_text("conv_0: {weight: 4}\n")
    with pytest.raises(SettingsError, match="a second configuration of the name a"):
        read([tmp_path, tmp_path / "a.yaml"], prepared.graph)
    (tmp_path / INDEX).write_text("who,what\n1,2\n")
    with pytest.raises(SettingsError, match="not an index of configurations"):
        read([tmp_path], prepared.graph)
    with pytest.raises(SettingsError, match="the network has no node conv_99"):
        cut_of_widths(prepared.graph, {}, ["conv_99"])


def test_every_broken_calibration_image_is_named(tmp_path: Path) -> None:
    from PIL import Image

    for index in range(9):
        Image.fromarray(PIXELS[0].transpose(1, 2, 0)).save(tmp_path / f"{index}.png")
    (tmp_path / "4.png").write_bytes(b"no picture")
    (tmp_path / "7.png").write_bytes(b"")
    with pytest.raises(CalibrationError, match=r"2 of 9 images .*4\.png.*7\.png"):
        load_frames(tmp_path, DETECTOR.image, 64, lambda _done, _total: None)
