"""Reproduction of the original Auto-Split's experiment on a simulated pair of accelerators.

    python -m bench.reproduce_autosplit [--networks resnet-50,yolov3-tiny] [--calibration IMAGES]

    networks x uplinks -> cloud-only, edge-only at 8, 6, 4 and 2 bits, Neurosurgeon, DADS, QDMP,
                          Auto-Split, Splitpoint -> latency over cloud-only, cut, edge size, widths

The accelerators are in search/prediction/accelerators.py, where they are edited; the strategies in
search/strategies/simulated.py. A plan may err as much as the whole network at --error-bits, by
Auto-Split's own measure. With pictures, plans of networks whose weights are at hand are quantized,
run and judged, too. `--all` also runs every step of the original as our commands do it, on those
networks; `--scale-sim` compares the arrays' cycles with SCALE-Sim (extra `sim`).
"""

import argparse
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path

from bench.autosplit import published, steps
from bench.autosplit.accuracy import PlanJudge
from bench.autosplit.networks import OriginalNetwork, chosen_networks, graph_of
from bench.autosplit.report import plot, section, whole_table
from bench.autosplit.scale_sim import compared_cycles
from bench.harness import Bench, Result, listed, record
from common.errors import SettingsError
from common.progress import Stages
from search.allocate.auto_split import auto_split
from search.allocate.table import Table, fused_layers, random_errors, uniform_error
from search.network.graph import Graph
from search.prediction.accelerators import (
    EYERISS_LIKE,
    TPU_LIKE,
    Accelerator,
    MatrixProduct,
    matrix_product,
    weight_volume,
)
from search.strategies.min_cut import dads, qdmp
from search.strategies.neurosurgeon import neurosurgeon
from search.strategies.simulated import SimulatedPair, SimulatedPlan, Simulation, cuts_of

UPLINKS_MBIT = (1, 3, 20)
WIDTHS = (8, 6, 4, 2)
_SEED = 0
_MBIT = 2**20
_KIB = 8 * 2**10


def measure(arguments: argparse.Namespace, stages: Stages) -> Result:
    """Simulate every network on every uplink."""
    if arguments.all and arguments.calibration is None:
        raise SettingsError("--all needs --calibration, a folder of pictures")
    chosen = chosen_networks(arguments.networks)
    edge = replace(EYERISS_LIKE, utilisation=arguments.utilisation)
    judge = PlanJudge(arguments, stages)
    progress = stages.stage("simulating")
    rows: list[Result] = []
    chart: Result | None = None
    products: set[MatrixProduct] = set()
    for count, network in enumerate(chosen):
        simulated = SimulatedNetwork(network, edge, arguments.error_bits)
        products |= {product for node in simulated.graph.nodes if (product := matrix_product(node))}
        for mbit in UPLINKS_MBIT:
            plans = dict(simulated.plans(mbit))
            accuracies = judge.accuracies(network, simulated.graph, plans)
            rows += [
                simulated.row(mbit, name, plan, plans["cloud-only"], accuracies.get(name))
                for name, plan in plans.items()
            ]
        if network.model == published.MODEL:
            chart = published.compared(simulated.published_case())
        progress(count + 1, len(chosen))
    result = record(
        edge=asdict(edge),
        cloud=asdict(TPU_LIKE),
        error_bits=arguments.error_bits,
        rows=rows,
        quantizer=arguments.quantizer,
        accuracy=judge.metrics,
        published=chart,
        scale_sim=compared_cycles(products, stages) if arguments.scale_sim else None,
    )
    arguments.json.with_suffix(".md").write_text("\n".join(whole_table(result)) + "\n")
    if arguments.all:
        steps.run_all(chosen, arguments.calibration, arguments.out)
    return result


class SimulatedNetwork:
    """One network with its errors, Auto-Split's list and the heads of it.

    Args:
        network: The network.
        edge: The edge.
        error_bits: Width of the whole network whose error is the largest allowed.
    """

    def __init__(self, network: OriginalNetwork, edge: Accelerator, error_bits: int) -> None:
        self.network = network
        self._edge = edge
        self.graph: Graph = graph_of(network)
        layers = random_errors(fused_layers(self.graph), _SEED)
        self._errors = Table(layers, self.graph.nodes[0].elements)
        self._error_limit = uniform_error(self._errors, error_bits)
        self._memory_bits = network.memory_kib * _KIB
        self._configurations = auto_split(self._errors, self._memory_bits)
        self._cuts = cuts_of(self.graph)

    def plans(self, mbit: float) -> Iterator[tuple[str, SimulatedPlan]]:
        """The plan of each strategy, by its name."""
        simulated = Simulation(self.graph, self._errors, pair(mbit, self._edge))
        yield "cloud-only", simulated.cloud_only()
        for bits in WIDTHS:
            yield f"U{bits}", simulated.edge_only(bits)
        yield "Neurosurgeon", simulated.one_cut(neurosurgeon)
        yield "DADS", simulated.one_cut(dads)
        yield "QDMP", simulated.one_cut(qdmp)
        yield "Auto-Split", simulated.auto_split(self._configurations, self._error_limit)
        yield (
            "Splitpoint",
            simulated.fastest(self._cuts, self._memory_bits, self._error_limit),
        )

    def row(
        self,
        mbit: float,
        strategy: str,
        plan: SimulatedPlan,
        cloud: SimulatedPlan,
        accuracy: float | None,
    ) -> Result:
        """Record of one strategy on one uplink."""
        graph = self.graph
        volumes = {name: weight_volume(graph[name]) for name in plan.weights}
        elements = {name: graph[name].elements for name in plan.activations}
        whole = len(plan.head) == len(graph.nodes) - 1
        return {
            "network": self.network.name,
            "mbit": mbit,
            "strategy": strategy,
            "latency_ms": round(plan.latency_ms, 3),
            "over_cloud": round(plan.latency_ms / cloud.latency_ms, 4),
            "cut": "edge-only" if whole else "+".join(plan.sent) if plan.head else "cloud-only",
            "sent_kib": round(plan.sent_bits / _KIB, 1),
            "edge_kib": round(plan.edge_bits / _KIB, 1),
            "fits": plan.edge_bits <= self._memory_bits,
            "weight_bits": _mean(plan.weights, volumes),
            "activation_bits": _mean(plan.activations, elements),
            "error": plan.error,
            "allowed": plan.error <= self._error_limit * (1 + 1e-6),
            "accuracy": accuracy,
        }

    def published_case(self) -> published.PublishedCase:
        """The network on the uplink of the published chart."""
        return published.PublishedCase(self.graph, self._errors, pair(published.MBIT, self._edge))


def pair(mbit: float, edge: Accelerator) -> SimulatedPair:
    """The accelerators of the experiment at an uplink in units of 2^20 bit/s, as the original's."""
    return SimulatedPair(edge, TPU_LIKE, mbit * _MBIT)


def _mean(widths: Mapping[str, int], volumes: Mapping[str, int]) -> float | None:
    """Mean width of all elements; None if there are none."""
    total = sum(volumes.values())
    return round(sum(widths[n] * volumes[n] for n in volumes) / total, 2) if total else None


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--networks", type=listed(str), default=(), help="their names in the zoo")
    parser.add_argument("--error-bits", type=int, choices=WIDTHS, default=6, help="error allowed")
    usual = EYERISS_LIKE.utilisation
    parser.add_argument("--utilisation", type=float, default=usual, help="of the edge's array")
    parser.add_argument("--scale-sim", action="store_true", help="compare with SCALE-Sim")
    parser.add_argument("--calibration", type=Path, help="pictures to calibrate on")
    parser.add_argument("--images", type=Path, help="pictures to evaluate on")
    parser.add_argument("--annotations", type=Path, help="their COCO instances file")
    parser.add_argument("--max-images", type=int, default=128, help="most of each folder")
    parser.add_argument("--quantizer", default="default", help="recipe of those that are judged")
    parser.add_argument("--all", action="store_true", help="run every step of the original, too")
    parser.add_argument("--out", type=Path, default=Path("reproduced"), help="folder of the steps")


BENCH = Bench(__doc__, "autosplit", _options, measure, section, plot)

if __name__ == "__main__":
    BENCH.main()
