"""Accuracy of simulated plans of networks whose weights are at hand: quantized, run and judged."""

import argparse
import tempfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path

from bench.autosplit.networks import OriginalNetwork, is_trained
from bench.harness import Result
from common.errors import SettingsError
from common.link.link import parse_link
from common.progress import Stages
from search.cache import Cache
from search.measure.held_out import fit_all, set_aside
from search.network.cuts import cut_of_head
from search.network.graph import Graph
from search.prediction.devices import device_profile
from search.prepare import Prepared, prepare
from search.quantization.recipes import recipe
from search.stages.quantize_all import Setting, collect
from search.strategies.baselines import head_widths
from search.strategies.simulated import SimulatedPlan

_LINK, _DEVICE = "3mbit/20ms", "this-machine"  # collected with the accuracies, and not used here


class PlanJudge:
    """Judge of plans in integers, each measured once.

    Args:
        arguments: Names `calibration`, `images`, `annotations`, `max_images` and `quantizer`;
            without `calibration` nothing is judged, without `images` on some set aside of it.
        stages: Reports progress.

    Attributes:
        metrics: What accuracies are measured in, by network, and that of floating point.
    """

    def __init__(self, arguments: argparse.Namespace, stages: Stages) -> None:
        if arguments.annotations and not arguments.images:
            raise SettingsError("--annotations needs --images, the folder of the annotated images")
        self._arguments = arguments
        self._stages = stages
        self._prepared = cache(self._prepare)
        self._known: dict[tuple[object, ...], float] = {}
        self.metrics: dict[str, Result] = {}

    def accuracies(
        self, network: OriginalNetwork, graph: Graph, plans: Mapping[str, SimulatedPlan]
    ) -> dict[str, float]:
        """Accuracy of each plan with a head in integers, by its name; none if it is not trained.

        Args:
            network: The network.
            graph: As it was simulated.
            plans: Of that graph, by name.
        """
        if self._arguments.calibration is None or not is_trained(network):
            return {}
        keys = {name: _key(network, plan) for name, plan in plans.items() if _is_integer(plan)}
        new = {key: plans[name] for name, key in keys.items() if key not in self._known}
        if new:
            self._known |= dict(
                zip(new, self._measured(network, graph, list(new.values())), strict=True)
            )
        return {name: self._known[key] for name, key in keys.items()}

    def _measured(
        self, network: OriginalNetwork, graph: Graph, plans: list[SimulatedPlan]
    ) -> list[float]:
        prepared, arguments = self._prepared(network), self._arguments
        configurations = []
        for number, plan in enumerate(plans):
            weights, activations = trained_widths(plan, graph, prepared.graph)
            cut = cut_of_head(prepared.graph, activations)
            widths = head_widths(prepared.graph, cut, weights, activations)
            configurations.append((str(number), cut, widths))
        judging = prepared.judging(arguments.images, self._stages, arguments.max_images)
        # The annotations are of a detector's pictures; of others the agreement is judged.
        truth = arguments.annotations if prepared.task.kind == "detection" else None
        setting = Setting(judging, truth, parse_link(_LINK), device_profile(_DEVICE))
        with tempfile.TemporaryDirectory(prefix="splitpoint-") as folder:
            rounder = prepared.rounder(recipe(arguments.quantizer))
            heads = Path(folder)
            found = collect(prepared, rounder, configurations, setting, heads, self._stages)
        self.metrics[network.name] = {
            "metric": found.metric,
            "reference": found.reference,
            "images": found.images,
        }
        accuracies = {row.name: row.accuracy for row in found.rows}
        return [accuracies[name] for name, _, _ in configurations]

    def _prepare(self, network: OriginalNetwork) -> Prepared:
        arguments = self._arguments
        return prepare(
            network.source,
            arguments.calibration,
            Cache(),
            self._stages,
            max_images=arguments.max_images,
            divide=fit_all if arguments.images else set_aside,
        )


def _is_integer(plan: SimulatedPlan) -> bool:
    return bool(plan.head) and max(plan.activations.values()) <= 8


def _key(network: OriginalNetwork, plan: SimulatedPlan) -> tuple[object, ...]:
    return network, plan.head, tuple(plan.weights.items()), tuple(plan.activations.items())


def trained_widths(
    plan: SimulatedPlan, graph: Graph, trained: Graph
) -> tuple[dict[str, int], dict[str, int]]:
    """Widths of a plan's weights and activations in the trained graph, by name.

    It has the nodes of the simulated graph, and may scale the image before them, in 8 bits.
    """
    first = 1 + len(trained.nodes) - len(graph.nodes)
    names = zip(trained.nodes[first:], graph.nodes[1:], strict=True)
    same = {ours.name: theirs.name for theirs, ours in names}
    activations = {node.name: 8 for node in trained.nodes[1:first]}
    activations |= {same[name]: bits for name, bits in plan.activations.items()}
    return {same[name]: bits for name, bits in plan.weights.items()}, activations
