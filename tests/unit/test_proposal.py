"""Proposals: a served bundle is predicted anew, compared, and replaced only if that pays."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import pytest

from common.bundle.bundle import MANIFEST, Bundle, zip_bundle
from common.bundle.manifest import UNSEALED, Manifest, seal_manifest
from common.errors import (
    BundleError,
    NoFeasiblePlanError,
    SettingsError,
    SplitpointError,
    StoreError,
    WeightsError,
)
from common.link.link import parse_link
from common.progress import Progress, Reporter
from common.stages import PREDICTED
from common.tables.rows import LatencyRow, to_json
from common.tables.store_file import read_tables
from common.tables.timing import Timing
from search.constraints.edge_memory import EdgeMemory
from search.constraints.max_bytes import MaxBytes
from search.constraints.max_drop import MaxDrop
from search.constraints.no_raw_image import NoRawImage
from search.prediction.candidates import CostModel
from search.prediction.cut_times import CutTimes
from search.prediction.table_calibration import calibrate
from search.proposal.difference import compare, markdown, predict_again, verdict
from search.proposal.exchange import exchange, previous_of
from search.proposal.propose import DIFFERENCE, ProposalSpec, propose, repeat, request_of
from search.request import Request, SearchResult
from search.source import NamedShape, NetworkSource
from tests import tiny

INPUT = NamedShape("x", (1, 3, 32, 64))
OWN = {"cut": CutTimes(Timing(2.0, 2.0, 9), Timing(3.0, 3.0, 9))}


class Silent:
    """Reports nothing."""

    def stage(self, _title: str, /) -> Progress:
        return lambda _done, _total, _note="", /: None


def row(segment: str, median_ms: float, device: str = "test", **others: Any) -> LatencyRow:
    fields: dict[str, Any] = {
        "device": device,
        "runtime": "onnxruntime x1",
        "threads": 1,
        "side": "edge",
        "network": tiny.NETWORK,
        "segment": segment,
        "bits": "8",
        "n": 340,
        "median_ms": median_ms,
        "p90_ms": median_ms,
        "low_ms": median_ms,
        "high_ms": median_ms,
        "source": "served",
        "last_seen_s": 0.0,
    }
    return LatencyRow(**(fields | others))


def found_of(request: Request) -> SearchResult:
    """What a search would learn that knows the times of one cut."""
    assert request.tables is not None
    calibration = calibrate(
        read_tables(request.tables), request.device, OWN, preprocess_ms=1.0, postprocess_ms=1.0
    )
    return SearchResult(
        request=request,
        metric="none",
        reference_accuracy=90.0,
        cuts=3,
        calibration_images=8,
        evaluation_images=(),
        cost_model=CostModel(request.link, request.device, 1.0, 1.0, calibration),
        ranked=(),
        measured=(),
        kept=(),
        curves={},
        times=OWN,
    )


class Searching:
    """A search that finds the tiny network's plans, each of so many milliseconds."""

    def __init__(
        self, latency_ms: float, weights_sha256: str = tiny.weights_of(0), **asked: Any
    ) -> None:
        self.latency_ms = latency_ms
        self.weights_sha256 = weights_sha256
        self.asked = asked
        self.requests: list[Request] = []

    def __call__(self, out: Path, request: Request, _reporter: Reporter) -> SearchResult:
        self.requests.append(request)
        plans = [tiny.SPLIT_8, tiny.CLOUD_ONLY]
        tiny.build(out, plans, seed=1, weights_sha256=self.weights_sha256)
        rewrite(out, self._with_latency)
        return found_of(request)

    def _with_latency(self, manifest: dict[str, Any]) -> None:
        for index, plan in enumerate(manifest["plans"]):
            plan["predicted"]["latency_ms"] = self.latency_ms + index
        manifest["search"] |= self.asked


def rewrite(bundle: Path, change: Callable[[dict[str, Any]], None]) -> None:
    manifest = json.loads((bundle / MANIFEST).read_text()) | {"sha256": UNSEALED}
    change(manifest)
    (bundle / MANIFEST).write_bytes(seal_manifest(json.dumps(manifest).encode()))


@pytest.fixture
def asked(tmp_path: Path) -> ProposalSpec:
    """A served bundle, searched for 3 Mbit/s, and a table that knows its head as slow."""
    tiny.build(tmp_path / "current")
    (tmp_path / "tables.json").write_text(to_json([row("head to cut", 61.0)]))
    return ProposalSpec(
        tmp_path / "current", tmp_path / "tables.json", tmp_path / "images", tmp_path / "new"
    )


def here(asked: ProposalSpec) -> set[str]:
    return {path.name for path in asked.bundle.parent.iterdir()}


def manifest_of(bundle: Path) -> Manifest:
    with Bundle.open(bundle) as opened:
        return opened.manifest


def test_a_better_bundle_is_written_with_its_difference_inside(asked: ProposalSpec) -> None:
    outcome = propose(asked, Silent(), Searching(20.0))
    assert outcome.written == asked.out
    with Bundle.open(asked.out) as opened:
        assert DIFFERENCE in opened.manifest.files
        text = opened.file(DIFFERENCE).read_text()
    assert text == markdown(outcome.difference)
    assert here(asked) == {"current", "new", "tables.json"}


def test_too_small_a_gain_writes_nothing(asked: ProposalSpec) -> None:
    best = propose(asked, Silent(), Searching(1.0)).difference.old[0].now.latency_ms
    shutil.rmtree(asked.out)
    outcome = propose(asked, Silent(), Searching(0.96 * best))
    assert outcome.written is None
    assert here(asked) == {"current", "tables.json"}
    assert propose(replace(asked, threshold=0.03), Silent(), Searching(0.96 * best)).written


def test_a_zip_can_be_proposed_and_proposed_from(asked: ProposalSpec, tmp_path: Path) -> None:
    zip_bundle(asked.bundle, tmp_path / "current.zip")
    zipped = replace(asked, bundle=tmp_path / "current.zip", out=tmp_path / "new.zip")
    assert propose(zipped, Silent(), Searching(1.0)).written == zipped.out
    assert DIFFERENCE in manifest_of(zipped.out).files
    assert not zipped.out.with_name("new.zip.part").exists()


def test_the_same_is_searched_for_as_the_bundle_was(asked: ProposalSpec) -> None:
    rewrite(
        asked.bundle,
        lambda m: m["search"].update(
            limits={"max_drop": 1, "edge_memory": 5 << 20, "max_bytes": 4000}, video=True
        ),
    )
    search = Searching(1.0)
    present = manifest_of(asked.bundle)
    propose(asked, Silent(), search)
    (request,) = search.requests
    assert (request.model, str(request.link), request.device.name) == ("tiny", "3mbit/20ms", "test")
    assert request.constraints == (MaxDrop(1.0), EdgeMemory(5 << 20), MaxBytes(4000))
    assert request.video
    assert request.tables == asked.tables
    assert request.source == NetworkSource("tiny", image_size=present.task.image.size)


def test_a_network_is_described_as_for_a_search(asked: ProposalSpec, tmp_path: Path) -> None:
    of_file = replace(
        asked, weights=tmp_path / "w", card=tmp_path / "c.toml", image_size=(32, 64), input=INPUT
    )
    request = request_of(of_file, manifest_of(asked.bundle), read_tables(asked.tables))
    assert request.source == NetworkSource(
        "tiny", tmp_path / "w", tmp_path / "c.toml", (32, 64), INPUT
    )


def test_link_and_device_can_be_others(asked: ProposalSpec) -> None:
    rows = [row("head to cut", 61.0, "cam")]
    other = replace(asked, link=parse_link("1mbit/5ms"), device="cam")
    request = request_of(other, manifest_of(asked.bundle), rows)
    assert (str(request.link), request.device.name) == ("1mbit/5ms", "cam")


def test_pixels_stay_where_no_plan_sends_them(asked: ProposalSpec, tmp_path: Path) -> None:
    tiny.build(tmp_path / "private", [tiny.SPLIT, tiny.EDGE_ONLY])
    rows = read_tables(asked.tables)
    assert request_of(asked, manifest_of(tmp_path / "private"), rows).constraints == (
        MaxDrop(1.0),
        NoRawImage(),
    )


def test_weights_of_seven_bits_stay_so(asked: ProposalSpec) -> None:
    rewrite(asked.bundle, lambda m: m["search"].update(device="this-machine-no-vnni"))
    other = replace(asked, device="test")
    request = request_of(other, manifest_of(asked.bundle), read_tables(asked.tables))
    assert request.device.reduced_range


def test_old_plans_are_predicted_by_rows_then_own_times_then_old_predictions(
    asked: ProposalSpec,
) -> None:
    asked.tables.write_text(
        to_json(
            [
                row("head to cut", 61.0),
                row("letterbox", 5.0),
                row("tail from cut", 6.0, "rack", side="cloud"),
            ]
        )
    )
    present = manifest_of(asked.bundle)
    request = request_of(asked, present, read_tables(asked.tables))
    found = found_of(replace(request, link=parse_link("1mbit/50ms")))
    split, cloud_only, edge_only = present.plans
    now = predict_again(split, present.search, found)
    assert (now.preprocess_ms, now.head_ms, now.tail_ms, now.rtt_ms) == (5.0, 61.0, 6.0, 50.0)
    assert now.uplink_ms == pytest.approx(split.predicted.uplink_bytes * 8 / 1000)
    assert now.encode_ms == pytest.approx(61.0 / 2)  # assumed 1 ms; slower by the head's ratio
    assert predict_again(cloud_only, present.search, found).tail_ms == pytest.approx(2 * 2.0)
    assert predict_again(edge_only, present.search, found).head_ms == pytest.approx(61.0 / 2)
    # A search that knew of a slowdown had it in its predictions already.
    slow = present.search.model_copy(update={"edge_slowdown": 4.0})
    assert predict_again(edge_only, slow, found).head_ms == pytest.approx(61.0 / 2 / 4)
    profile = present.search.model_copy(update={"device": "quarter-core"})
    assert predict_again(edge_only, profile, found).head_ms == pytest.approx(61.0 / 2 / 4)
    assert now.latency_ms == pytest.approx(sum(getattr(now, f"{stage}_ms") for stage in PREDICTED))


def test_the_difference_tells_what_was_assumed(asked: ProposalSpec) -> None:
    present = propose(asked, Silent(), Searching(4.0)).difference
    text = markdown(present)
    assert "- head to cut: 1.0 ms assumed, 61.0 ms served (n = 340)" in text
    gaps = [abs(each.now_ms - each.assumed_ms) for each in present.assumptions()]
    assert gaps == sorted(gaps, reverse=True)
    assert f"| {tiny.SPLIT} | 9.0 |" in text
    assert f"| {tiny.SPLIT_8} | 4.0 |" in text
    assert "| latency | 9.0 |" in text
    assert "% less" in verdict(present)
    assert "Accuracy was measured" not in text


def test_another_link_and_another_metric_are_told(asked: ProposalSpec) -> None:
    other = replace(asked, link=parse_link("1mbit/20ms"))
    made = propose(other, Silent(), Searching(1.0, accuracy_metric="AP50")).difference
    assert "- link: 3mbit/20ms assumed, 1mbit/20ms now" in markdown(made)
    assert "Accuracy was measured in none and is now measured in AP50" in markdown(made)


def test_a_slower_proposal_is_no_gain(asked: ProposalSpec) -> None:
    made = propose(asked, Silent(), Searching(1e6)).difference
    assert made.gain < 0
    assert "% more" in verdict(made)


def test_a_search_without_tables_compares_with_nothing(asked: ProposalSpec) -> None:
    present = manifest_of(asked.bundle)
    found = found_of(request_of(asked, present, read_tables(asked.tables)))
    with pytest.raises(ValueError, match="without tables"):
        compare(
            present, present, replace(found, cost_model=replace(found.cost_model, calibration=None))
        )


def test_deploying_exchanges_the_bundles_and_keeps_the_old_one(asked: ProposalSpec) -> None:
    old = (asked.bundle / MANIFEST).read_bytes()
    deploying = replace(asked, deploy=True)
    outcome = propose(deploying, Silent(), Searching(1.0))
    assert outcome.written == asked.bundle
    assert outcome.previous == previous_of(asked.bundle)
    assert DIFFERENCE in manifest_of(asked.bundle).files
    assert (asked.bundle.with_name("current.previous") / MANIFEST).read_bytes() == old
    assert here(asked) == {"current", "current.previous", "tables.json"}
    # Once more: the previous one is now the first proposal.
    first = (asked.bundle / MANIFEST).read_bytes()
    propose(replace(deploying, threshold=-1e9), Silent(), Searching(1.0))
    assert (asked.bundle.with_name("current.previous") / MANIFEST).read_bytes() == first
    assert here(asked) == {"current", "current.previous", "tables.json"}


@pytest.mark.parametrize("fails_at", [1, 2, 3])
def test_an_exchange_that_fails_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails_at: int
) -> None:
    for name in ("current", "current.previous", "new"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "name").write_text(name)
    plain, calls = Path.rename, 0

    def rename(self: Path, target: Path) -> Path:
        nonlocal calls
        calls += 1
        if calls == fails_at:
            raise PermissionError(13, "Permission denied")
        return plain(self, target)

    monkeypatch.setattr(Path, "rename", rename)
    with pytest.raises(BundleError, match="cannot be replaced: Permission denied"):
        exchange(tmp_path / "current", tmp_path / "new")
    for name in ("current", "current.previous", "new"):
        assert (tmp_path / name / "name").read_text() == name
    assert len(list(tmp_path.iterdir())) == 3


def never(_out: Path, _request: Request, _reporter: Reporter) -> NoReturn:
    raise AssertionError("the search was begun")


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"bundle": "none"}, BundleError, "no such bundle"),
        ({"tables": "none"}, StoreError, "cannot be read"),
        ({"tables": "current/manifest.json"}, StoreError, "no latency table"),
        ({"device": "camera"}, SettingsError, "nothing of the device 'camera': they know test"),
        ({"out": "current"}, SettingsError, "not beside the bundle"),
        ({"out": "current/new"}, SettingsError, "not beside the bundle"),
        ({"out": "full"}, BundleError, "is no bundle"),
        ({"deploy": True, "out": "new.zip"}, SettingsError, "exchanges folders"),
        ({"deploy": True, "bundle": "current.zip"}, SettingsError, "exchanges folders"),
    ],
)
def test_mistakes_are_told_before_the_search(
    asked: ProposalSpec, change: dict[str, Any], error: type[SplitpointError], message: str
) -> None:
    folder = asked.bundle.parent
    zip_bundle(asked.bundle, folder / "current.zip")
    (folder / "full").mkdir()
    (folder / "full" / "file").touch()
    before = here(asked)
    paths: dict[str, Any] = {
        name: folder / value if name in {"bundle", "tables", "out"} else value
        for name, value in change.items()
    }
    with pytest.raises(error, match=message):
        propose(replace(asked, **paths), Silent(), never)
    assert here(asked) == before


def test_what_is_kept_of_old_must_be_a_bundle(asked: ProposalSpec) -> None:
    previous_of(asked.bundle).mkdir()
    with pytest.raises(BundleError, match="move it away"):
        propose(replace(asked, deploy=True), Silent(), never)


def test_a_failed_search_and_other_weights_leave_nothing(asked: ProposalSpec) -> None:
    def fails(out: Path, _request: Request, _reporter: Reporter) -> SearchResult:
        out.mkdir()
        raise NoFeasiblePlanError("nothing fits")

    with pytest.raises(NoFeasiblePlanError):
        propose(asked, Silent(), fails)
    with pytest.raises(WeightsError, match="--weights"):
        propose(asked, Silent(), Searching(1.0, weights_sha256="1" * 64))
    assert here(asked) == {"current", "tables.json"}


def test_rounds_are_repeated_and_later_mistakes_outlived() -> None:
    events: list[str] = []

    def make() -> None:
        events.append("make")
        if events.count("make") == 2:
            raise StoreError("away")

    def pause(seconds: float) -> None:
        events.append(f"pause {seconds:g}")
        if events.count("make") == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        repeat(make, 60.0, lambda error: events.append(str(error)), pause=pause)
    assert events == ["make", "pause 60", "make", "away", "pause 60", "make", "pause 60"]


def test_a_mistake_in_the_first_round_ends_it() -> None:
    def make() -> None:
        raise SettingsError("wrong")

    with pytest.raises(SettingsError):
        repeat(make, 60.0, lambda _error: None, pause=lambda _seconds: None)
