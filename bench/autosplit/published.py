"""Chart of the original that could be verified, and our simulation of the same configurations.

ResNet-50 at 3 Mbit/s, latency over cloud-only in 16 bits. Our rows are simulated twice: on the edge
as it is documented, and on one whose array works for the share of its cycles with which edge-only
at 8 bits takes as long as published. One number is fitted; the other rows follow from it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from bench.harness import Result
from search.allocate.auto_split import Configuration
from search.allocate.table import Table
from search.network.graph import Graph
from search.prediction.accelerators import weight_volume
from search.strategies.simulated import SimulatedPair, SimulatedPlan, Simulation

MODEL = "resnet-50"
MBIT = 3
_LAYER = 12
_AFTER_LAYER_12 = f"8-bit activations, cut after layer {_LAYER}"
PUBLISHED = {_AFTER_LAYER_12: 0.82, "U8": 0.96, "U6": 0.94, "U4": 0.93, "U2": 0.91}
TOP1 = "top-1 75.9 against 76.1 in floating point"


@dataclass(frozen=True, eq=False)
class PublishedCase:
    """The network of the chart, simulated.

    Attributes:
        graph: The network.
        errors: Its layers with their errors.
        configurations: Those of Auto-Split.
        pair: The accelerators at the chart's bandwidth.
    """

    graph: Graph
    errors: Table
    configurations: Sequence[Configuration]
    pair: SimulatedPair


def compared(case: PublishedCase) -> Result:
    """Ratios to cloud-only of every row of the chart, on the edge as documented and as fitted."""
    documented = Simulation(case.graph, case.errors, case.pair)
    cloud_ms, whole = documented.cloud_only().latency_ms, documented.edge_only(8)
    array_ms = sum(case.pair.edge.array_ms(case.graph[name]) for name in whole.head)
    fitted_ms = PUBLISHED["U8"] * cloud_ms - (whole.latency_ms - array_ms)
    slower = replace(case.pair.edge, utilisation=case.pair.edge.utilisation * array_ms / fitted_ms)
    fitted = Simulation(case.graph, case.errors, replace(case.pair, edge=slower))
    stored = sum(weight_volume(node) for node in case.graph.nodes)
    return {
        "cloud_only_ms": cloud_ms,
        "array_ms": array_ms,
        "utilisation": slower.utilisation,
        "weights_share": case.pair.edge.moving_ms(6 * stored) / cloud_ms,
        "rows": [
            {
                "configuration": name,
                "published": ratio,
                "documented": _ratio(documented, case, name, cloud_ms),
                "fitted": _ratio(fitted, case, name, cloud_ms),
            }
            for name, ratio in PUBLISHED.items()
        ],
    }


def _ratio(simulated: Simulation, case: PublishedCase, name: str, cloud_ms: float) -> float:
    if name != _AFTER_LAYER_12:
        return simulated.edge_only(int(name[1:])).latency_ms / cloud_ms
    return _after_layer_12(simulated, case).latency_ms / cloud_ms


def _after_layer_12(simulated: Simulation, case: PublishedCase) -> SimulatedPlan:
    """The fastest of Auto-Split's configurations of that layer with activations of 8 bits.

    Layers are counted as convolutions, since the original fuses everything else into them.
    """
    weighted = [node.name for node in case.graph.nodes if node.macs]
    last = weighted[_LAYER - 1]
    plans = [
        simulated.plan(each.activations, each.weights, each.activations)
        for each in case.configurations
        if each.cut == last and "8-bit" in each.flags
    ]
    return min(plans, key=lambda plan: plan.latency_ms)
