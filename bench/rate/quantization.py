"""Benchmark of quantization: recipes compared, sensitivities checked, widths allocated.

    python -m bench.rate.quantization --images DIR --annotations FILE --calibration DIR

For one cut of YOLOv3-tiny, head in integers and tail in floating point, nothing lost on the wire:
COCO AP of every recipe at uniform widths; how well each sensitivity orders random configurations by
the AP that they lose (Spearman's rank correlation); and AP at equal weight memory of this search
(measured sensitivity, exact allocation, coordinate descent) against the original's (squared error,
Lagrangian, LAPQ). Calibration sees no labels. The result names the machine and all images.
"""

import argparse
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import spearmanr

from bench.harness import Bench, Lines, Result, add_coco_options, record, table
from bench.rate.setup import CutSetup, Judge, add_cut_option
from common.codec.spec import CodecSpec
from common.progress import Stages
from search.allocate.exact import solve_exact
from search.allocate.lagrangian import lagrangian
from search.allocate.problem import Problem, TensorChoice
from search.prediction.candidates import Candidate
from search.quantization.network import QuantizedGraph
from search.quantization.recipe import reconstructed
from search.quantization.recipes import DEFAULT, RECIPES, Recipe
from search.quantization.sensitivity import Sensitivity, fisher, measured, squared
from search.quantization.widths import WIDTHS, Configuration, Widths, uniform
from search.wire.quantizers import code_tensor

UNIFORM = ((8, 8), (6, 8), (4, 8), (4, 4), (3, 8), (2, 8))
MEAN_BITS = (4.0, 3.0, 2.5)
_SENSITIVITY_FRAMES = 16
_QUICK = Recipe(rounding="nearest")
_QUICK_FRAMES = 8


class _QuantizationBench:
    """Measurements of one cut, by every recipe."""

    def __init__(self, arguments: argparse.Namespace, folder: Path, stages: Stages) -> None:
        self._stages, self._configurations = stages, arguments.configurations
        setup = CutSetup(arguments, folder, stages)
        self._prepared, self._cut = setup.prepared, setup.cut
        self._graph = self._prepared.graph
        self._layers = [node.name for node in self._cut.head if node.op == "conv"]
        self._judge = Judge(arguments, self._prepared, folder, stages)

    def run(self) -> Result:
        """Measure everything."""
        return record(
            calibration_images=list(self._prepared.calibration.names),
            evaluation_images=list(self._judge.images.names),
            cut=self._cut.name,
            reference=self._judge.reference,
            uniform=self._uniform(),
            **self._sensitivities(),
        )

    def _rounded(self, widths: Configuration, how: Recipe) -> QuantizedGraph:
        rounder = self._prepared.rounder(how)
        network = rounder.nearest(widths)
        return rounder.reconstruct(network, self._cut.tensors, lambda _done, _total, _note="": None)

    def _roughly(self, widths: Configuration) -> QuantizedGraph:
        """Quantize by rounding to nearest, biases corrected on few images: quick, for ranking."""
        network = self._prepared.rounder(_QUICK).nearest(widths)
        pixels = self._prepared.calibration.pixels[:_QUICK_FRAMES]
        return reconstructed(network, self._cut.tensors, pixels, _QUICK)

    def _measure(self, network: QuantizedGraph) -> dict[str, float]:
        """Accuracy of the head with the tail in floating point."""
        wire = tuple(code_tensor(self._graph[n], network.grids[n]) for n in self._cut.tensors)
        candidate = Candidate(self._cut, wire, CodecSpec(name="raw"), 0, 0, 0, 0, 0)
        accuracy = self._judge.accuracy(self._judge.evaluator(network).detections(candidate))
        return {**accuracy, "drop": self._judge.reference["ap"] - accuracy["ap"]}

    def _uniform(self) -> list[dict[str, Any]]:
        rows = []
        progress = self._stages.stage("rounding by every recipe")
        total = len(UNIFORM) * len(RECIPES)
        for weight, activation in UNIFORM:
            widths = uniform(self._graph, weight, activation)
            for name, how in RECIPES.items():
                row = {"weight": weight, "activation": activation, "recipe": name}
                rows.append({**row, **self._measure(self._rounded(widths, how))})
                progress(len(rows), total)
        return rows

    def _sensitivities(self) -> dict[str, Any]:
        prepared = self._prepared
        frames, statistics = prepared.calibration.pixels[:_SENSITIVITY_FRAMES], prepared.statistics
        loss = prepared.loss
        made = {
            "measured": measured(self._graph, statistics, frames, loss),
            "fisher": fisher(self._graph, statistics, frames, loss),
            "squared": squared(self._graph, statistics),
        }
        drops, widths = self._random_configurations()
        predicted = {
            name: [each.of(some, self._layers) for some in widths] for name, each in made.items()
        }
        return {
            "random": [
                {
                    "drop": drop,
                    "widths": {n: some[n].model_dump() for n in self._layers},
                    "predicted": {name: values[k] for name, values in predicted.items()},
                }
                for k, (drop, some) in enumerate(zip(drops, widths, strict=True))
            ],
            "spearman": {
                name: float(spearmanr(each, drops).statistic) for name, each in predicted.items()
            },
            "equal_memory": self._equal_memory(made["measured"], made["squared"]),
        }

    def _random_configurations(self) -> tuple[list[float], list[dict[str, Widths]]]:
        """Draw widths for each layer at random, and measure the AP that they lose."""
        rng = np.random.default_rng(0)
        drops, drawn = [], []
        progress = self._stages.stage("measuring random configurations")
        count = self._configurations
        for done in range(count):
            widths = {
                name: Widths(weight=int(rng.choice(WIDTHS)), activation=int(rng.choice(WIDTHS)))
                for name in self._layers
            }
            network = self._roughly(widths)
            drops.append(self._measure(network)["drop"])
            drawn.append(widths)
            progress(done + 1, count)
        return drops, drawn

    def _equal_memory(self, ours: Sensitivity, original: Sensitivity) -> list[dict[str, Any]]:
        rows = []
        progress = self._stages.stage("allocating at equal memory")
        for done, mean in enumerate(MEAN_BITS, 1):
            choices = self._choices(ours)
            limit = int(mean * sum(choice.elements for choice in choices))
            exact = solve_exact(Problem(tuple(choices), (), (), memory_bits=limit)).weights
            plain = self._choices(original)
            lagrange = dict(zip(self._layers, lagrangian(plain, limit), strict=True))
            for name, bits, how in (
                ("measured, exact, descent", exact, DEFAULT),
                ("squared, lagrangian, lapq", lagrange, RECIPES["lapq"]),
            ):
                widths = {layer: Widths(weight=bits[layer]) for layer in self._layers}
                network = self._rounded(widths, how)
                rows.append(
                    {"mean_bits": mean, "method": name, "widths": bits, **self._measure(network)}
                )
            progress(done, len(MEAN_BITS))
        return rows

    def _choices(self, sensitivity: Sensitivity) -> list[TensorChoice]:
        errors: Mapping[str, Mapping[int, float]] = sensitivity.weights
        return [
            TensorChoice(
                name=name,
                elements=self._graph[name].parameters,
                widths=WIDTHS,
                errors=tuple(errors[name][bits] for bits in WIDTHS),
            )
            for name in self._layers
        ]


def section(result: Result) -> Lines:
    """Tables of AP by recipe at uniform widths, and at equal memory."""
    rows: dict[str, dict[str, Any]] = {}
    for row in result["uniform"]:
        name = f"W{row['weight']}A{row['activation']}"
        rows.setdefault(name, {"widths": name})[row["recipe"]] = row["ap"]
    columns = {"widths": "{widths}", **{name: f"{{{name}:.1f}}" for name in RECIPES}}
    yield from table(rows.values(), columns)
    yield ""
    columns = {"mean bits": "{mean_bits}", "method:": "{method}", "AP": "{ap:.1f}"}
    yield from table(result["equal_memory"], columns)


def measure(arguments: argparse.Namespace, stages: Stages) -> Result:
    """Compare recipes, sensitivities and allocations."""
    with tempfile.TemporaryDirectory() as folder:
        return _QuantizationBench(arguments, Path(folder), stages).run()


def _options(parser: argparse.ArgumentParser) -> None:
    add_coco_options(parser)
    add_cut_option(parser)
    parser.add_argument(
        "--configurations", type=int, default=30, help="number of random configurations"
    )


BENCH = Bench(__doc__, "quantization", _options, measure, section)

if __name__ == "__main__":
    BENCH.main()
