"""The original's experiment on a small network: rows, tables, plot, the steps of the README."""

import argparse
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from numpy.typing import NDArray

from bench.autosplit import networks, published, scale_sim, steps
from bench.autosplit.accuracy import PlanJudge, trained_widths
from bench.autosplit.networks import NETWORKS, OriginalNetwork, chosen_networks, has_weights
from bench.autosplit.published import PUBLISHED, compared
from bench.autosplit.report import plot, section, whole_table
from bench.harness import Result
from bench.processes import ProcessError
from bench.reproduce_autosplit import BENCH, UPLINKS_MBIT, SimulatedNetwork, measure
from common.errors import SettingsError
from common.progress import Stages
from search.network.graph import Graph, Node
from search.prediction.accelerators import EYERISS_LIKE, MatrixProduct
from search.strategies.simulated import SimulatedPlan
from search.zoo.download import fetch
from search.zoo.registry import zoo_model
from tests.conftest import REPOSITORY
from tests.zoo import pictures, small_zoo

SMALL = OriginalNetwork("yolov3-tiny", 64, 2**15)


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> Result:
    """The whole experiment on one small network."""
    parser = argparse.ArgumentParser()
    BENCH.options(parser)
    arguments = parser.parse_args([])
    arguments.json = tmp_path_factory.mktemp("results") / "autosplit.json"
    with pytest.MonkeyPatch.context() as patched, Stages() as stages:
        patched.setattr(networks, "NETWORKS", (SMALL,))
        patched.setattr(networks, "has_weights", lambda _: False)
        return {"table": arguments.json.with_suffix(".md"), **measure(arguments, stages)}


def test_every_strategy_has_a_row_on_every_uplink(result: Result) -> None:
    rows = result["rows"]
    assert len(rows) == 10 * len(UPLINKS_MBIT)
    for mbit in UPLINKS_MBIT:
        of = {row["strategy"]: row for row in rows if row["mbit"] == mbit}
        assert of["cloud-only"]["over_cloud"] == 1.0
        assert of["cloud-only"]["sent_kib"] == pytest.approx(64 * 64 * 3 / 1024, abs=0.1)
        assert of["U2"]["edge_kib"] < of["U4"]["edge_kib"] < of["U8"]["edge_kib"]
        assert of["U8"]["weight_bits"] == of["U8"]["activation_bits"] == 8.0
        assert of["Splitpoint"]["latency_ms"] <= of["Auto-Split"]["latency_ms"] * (1 + 1e-6)
        assert of["DADS"]["latency_ms"] == of["QDMP"]["latency_ms"]
        assert of["DADS"]["latency_ms"] <= of["Neurosurgeon"]["latency_ms"]
        assert {row["accuracy"] for row in of.values()} == {None}
        for own in ("Auto-Split", "Splitpoint"):
            assert of[own]["fits"]
            assert of[own]["allowed"]


def test_plans_of_a_trained_network_are_judged_in_integers(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SPLITPOINT_CACHE", str(tmp_path / "cache"))
    pictures(tmp_path / "pictures", 32)
    given = {"calibration": tmp_path / "pictures", "images": None, "annotations": None}
    with small_zoo(tmp_path), Stages() as stages:
        monkeypatch.setattr("bench.autosplit.accuracy.is_trained", has_weights)
        judge = PlanJudge(argparse.Namespace(**given, max_images=32, quantizer="nearest"), stages)
        simulated = SimulatedNetwork(SMALL, EYERISS_LIKE, 6)
        plans = dict(simulated.plans(3))
        some = {name: plans[name] for name in ("cloud-only", "U8", "U2", "DADS", "Splitpoint")}
        assert judge.accuracies(SMALL, simulated.graph, some) == {}
        fetch(zoo_model(SMALL.model).weights)
        accuracies = judge.accuracies(SMALL, simulated.graph, some)
        assert judge.accuracies(SMALL, simulated.graph, some) == accuracies
    assert sorted(accuracies) == ["Splitpoint", "U2", "U8"]
    assert accuracies["U8"] > accuracies["U2"]
    assert judge.metrics[SMALL.name]["images"] == 16


def test_a_plan_is_found_again_behind_the_scaling_of_a_trained_network() -> None:
    image = Node("image", "input", (), (3, 8, 8))
    simulated = Graph((image, node("a_0", "image"), node("b_1", "a_0")), ("b_1",))
    scaled = (node("s_0", "image"), node("a_1", "s_0"), node("b_2", "a_1"))
    plan = SimulatedPlan(("a_0",), ("a_0",), {"a_0": 4}, {"a_0": 2}, 1.0, 1, 1, 0.0)
    assert trained_widths(plan, simulated, simulated) == ({"a_0": 4}, {"a_0": 2})
    found = trained_widths(plan, simulated, Graph((image, *scaled), ("b_2",)))
    assert found == ({"a_1": 4}, {"s_0": 8, "a_1": 2})


def node(name: str, source: str) -> Node:
    return Node(name, "activation", (source,), (3, 8, 8))


def test_the_table_has_a_line_for_each_uplink_and_the_plot_is_drawn(
    result: Result, tmp_path: Path
) -> None:
    lines = list(whole_table(result))
    assert result["table"].read_text() == "\n".join(lines) + "\n"
    assert len([line for line in lines if line.startswith("| yolov3-tiny 64 |")]) == 3
    assert "3 cells" in "\n".join(section(result))
    plot(result, tmp_path / "plot.svg")
    assert "<svg" in (tmp_path / "plot.svg").read_text()


def test_the_chart_of_the_original_is_met_by_one_number(
    result: Result, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(published, "_LAYER", 8)  # a route of this network crosses beside it
    case = SimulatedNetwork(SMALL, EYERISS_LIKE, 6).published_case()
    fitted = replace(case.pair.edge, utilisation=compared(case)["fitted_utilisation"])
    chart = compared(replace(case, pair=replace(case.pair, edge=fitted)))
    rows = {row["plan"]: row for row in chart["rows"]}
    assert list(rows) == list(PUBLISHED)
    assert rows["U8"]["simulated"] == pytest.approx(0.96)
    assert chart["utilisation"] == pytest.approx(chart["fitted_utilisation"])
    # A busier array is faster by the same at all widths; moving tensors takes longer at wide ones.
    drops = {c: rows["U8"][c] - rows["U2"][c] for c in ("simulated", "busy", "moving")}
    assert drops["busy"] == pytest.approx(drops["simulated"])
    assert 0 < drops["simulated"] < drops["moving"]
    its_output, everything = list(rows.values())[:2]
    assert its_output["simulated"] < everything["simulated"]
    lines = list(section({**result, "published": chart, "scale_sim": None}))
    assert any(line.startswith("| U8 | 0.96 | 0.96 |") for line in lines)


class ListedArray:
    """An array of SCALE-Sim that has one row of operands for each pixel."""

    def set_params(self, *, ifmap_op_mat: NDArray[np.float64], **_: object) -> None:
        self._pixels = len(ifmap_op_mat)

    def create_ifmap_demand_mat(self) -> None:
        self.ifmap_demand_matrix = np.zeros((self._pixels, 1))


def test_cycles_are_compared_layer_by_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    config = SimpleNamespace(set_arr_dims=max, set_dataflow=str, force_valid=int)
    monkeypatch.setattr(scale_sim, "_scale_sim", lambda: (config, ListedArray()))
    monkeypatch.setattr(scale_sim, "MOST_BYTES", 10**8)
    whole, part = MatrixProduct(100, 9, 5, groups=8), MatrixProduct(100, 9, 5)
    with Stages() as stages:
        edge, cloud = scale_sim.compared_cycles([whole, part, replace(part, pixels=10**6)], stages)
    assert (edge["layers"], edge["left_out"]) == (cloud["layers"], cloud["left_out"]) == (1, 1)
    assert edge["least"] == edge["median"] == edge["most"] == (2 * 28 + 12 + 100 - 2) / 100
    assert cloud["median"] == (2 * 42 + 128 + 100 - 2) / 100


def test_without_scale_sim_it_is_said_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "scalesim.scale_config", None)
    with pytest.raises(SettingsError, match=r"pip install 'splitpoint\[sim\]'"):
        scale_sim.simulated_cycles(EYERISS_LIKE, MatrixProduct(1, 1, 1))


def test_networks_are_chosen_by_name() -> None:
    assert len(chosen_networks(())) == len(NETWORKS) == 15
    assert [n.size for n in chosen_networks(["yolov3-tiny"])] == [416, 512, 608]
    with pytest.raises(SettingsError, match="unknown network 'vgg'"):
        chosen_networks(["vgg"])


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["--all"], "--all needs --calibration"),
        (["--annotations", "a.json"], "--annotations needs --images"),
        (["--networks", "vgg"], "unknown network 'vgg'"),
    ],
)
def test_bad_options_are_one_line(words: list[str], why: str, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=f"error: {why}"):
        BENCH.main([*words, "--json", str(tmp_path / "a.json")])


def test_the_readme_has_every_step() -> None:
    assert "\n".join(steps.as_table()) in (REPOSITORY / "README.md").read_text()


def test_all_steps_run_for_networks_with_weights(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    ran: list[list[str]] = []

    def run(words: Sequence[str], *, check: bool) -> SimpleNamespace:
        assert not check
        ran.append(list(words[3:]))
        if "auto-split-v2" in words and words[3] == "allocate":
            (tmp_path / "yolov3-tiny" / "v2").mkdir(parents=True)
            (tmp_path / "yolov3-tiny" / "v2" / "w4.yaml").touch()
        return SimpleNamespace(returncode=int(words[3] == "search"))

    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr(steps, "has_weights", lambda network: network.model == "yolov3-tiny")
    two = [SMALL, replace(SMALL, model="yolov3"), replace(SMALL, size=96)]
    with pytest.raises(ProcessError, match=r"`splitpoint search .*` failed"):
        steps.run_all(two, tmp_path / "some pictures", tmp_path)
    assert [words[0] for words in ran] == [
        *("profile", "allocate", "allocate", "quantize", "quantize", "search")
    ]
    assert all(str(tmp_path / "some pictures") in words for words in ran)
    assert f"{tmp_path}/yolov3-tiny/v2/w4.yaml" in ran[3]
