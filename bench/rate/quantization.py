"""Benchmark of quantization: recipes compared, sensitivities checked, widths allocated.

    python -m bench.rate.quantization --images DIR --annotations FILE --calibration DIR

For one cut of YOLOv3-tiny, head in integers and tail in floating point, nothing lost on the wire:
COCO AP of every recipe at uniform widths, and with single steps of the default one switched; how
well each sensitivity orders random configurations by the AP that they lose (Spearman's rank
correlation); and AP at equal weight memory of this search (measured sensitivity, exact allocation,
coordinate descent) against the original's (squared error, Lagrangian, LAPQ or ACIQ). Calibration
sees no labels. The result names the machine and all images.
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import spearmanr

from bench.harness import Bench, Lines, Result, add_coco_options, record, table
from bench.rate.setup import MODEL, CutSetup, Judge, add_cut_option
from common.codec.spec import CodecSpec
from common.progress import Stages
from search.allocate.exact import solve_exact
from search.allocate.lagrangian import lagrangian
from search.allocate.problem import Problem, TensorChoice
from search.cache import Cache
from search.network.cuts import Cut, enumerate_cuts
from search.network.losses import distillation_loss
from search.prediction.candidates import Candidate
from search.prepare import prepare
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
_ABLATED = ((4, 8), (4, 4))
_ABLATIONS: Mapping[str, tuple[Recipe, bool]] = {
    "no bias correction": (replace(DEFAULT, correct_bias=False), False),
    "percentile clipping": (replace(DEFAULT, clipping="percentile"), False),
    "joint clipping": (replace(DEFAULT, joint=True), False),
    "equalised": (DEFAULT, True),
    "equalised, nearest": (_QUICK, True),
    "analytic clipping of weights, nearest": (replace(_QUICK, weight_clipping="aciq"), False),
}
"""Recipes with one step switched, and whether channels are equalised before."""


class _QuantizationBench:
    """Measurements of one cut, by every recipe."""

    def __init__(self, arguments: argparse.Namespace, folder: Path, stages: Stages) -> None:
        self._stages, self._configurations = stages, arguments.configurations
        setup = CutSetup(arguments, folder, stages)
        self._prepared, self._cut = setup.prepared, setup.cut
        limit = arguments.max_images
        self._equalised = prepare(
            MODEL, arguments.calibration, Cache(), stages, max_images=limit, equalised=True
        )
        self._graph = self._prepared.graph
        cuts = enumerate_cuts(self._equalised.graph)
        self._equalised_cut = next(cut for cut in cuts if cut.name == arguments.cut)
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
            ablations=self._ablations(),
            **self._sensitivities(),
        )

    def _rounded(
        self, widths: Configuration, how: Recipe, *, equalised: bool = False
    ) -> QuantizedGraph:
        prepared = self._equalised if equalised else self._prepared
        rounder = prepared.rounder(how)
        network = rounder.nearest(widths)
        return rounder.reconstruct(network, self._cut.tensors, lambda _done, _total, _note="": None)

    def _roughly(self, widths: Configuration) -> QuantizedGraph:
        """Quantize by rounding to nearest, biases corrected on few images: quick, for ranking."""
        network = self._prepared.rounder(_QUICK).nearest(widths)
        pixels = self._prepared.calibration.pixels[:_QUICK_FRAMES]
        return reconstructed(network, self._cut.tensors, pixels, _QUICK)

    def _measure(self, network: QuantizedGraph, cut: Cut | None = None) -> dict[str, float]:
        """Accuracy of the head with the tail in floating point, and the time of evaluation."""
        wire = tuple(code_tensor(self._graph[n], network.grids[n]) for n in self._cut.tensors)
        candidate = Candidate(cut or self._cut, wire, CodecSpec(name="raw"), 0, 0, 0, 0, 0)
        start = time.perf_counter()
        accuracy = self._judge.accuracy(self._judge.evaluator(network).detections(candidate))
        seconds = time.perf_counter() - start
        drop = self._judge.reference["ap"] - accuracy["ap"]
        return {**accuracy, "drop": drop, "evaluation_s": seconds}

    def _uniform(self) -> list[dict[str, Any]]:
        rows = []
        progress = self._stages.stage("rounding by every recipe")
        total = len(UNIFORM) * len(RECIPES)
        for weight, activation in UNIFORM:
            widths = uniform(self._graph, weight, activation)
            for name, how in RECIPES.items():
                start = time.perf_counter()
                network = self._rounded(widths, how)
                row = {"weight": weight, "activation": activation, "recipe": name}
                seconds = time.perf_counter() - start
                rows.append({**row, "rounding_s": seconds, **self._measure(network)})
                progress(len(rows), total)
        return rows

    def _ablations(self) -> list[dict[str, Any]]:
        rows = []
        progress = self._stages.stage("switching single steps")
        for weight, activation in _ABLATED:
            widths = uniform(self._graph, weight, activation)
            for name, (how, equalised) in _ABLATIONS.items():
                network = self._rounded(widths, how, equalised=equalised)
                cut = self._equalised_cut if equalised else self._cut
                row = {"weight": weight, "activation": activation, "switched": name}
                rows.append({**row, **self._measure(network, cut)})
                progress(len(rows), len(_ABLATED) * len(_ABLATIONS))
        return rows

    def _sensitivities(self) -> dict[str, Any]:
        prepared = self._prepared
        frames, statistics = prepared.calibration.pixels[:_SENSITIVITY_FRAMES], prepared.statistics
        loss = distillation_loss(prepared.detector)
        made: dict[str, tuple[Sensitivity, float]] = {}
        makers: dict[str, Callable[[], Sensitivity]] = {
            "measured": lambda: measured(self._graph, statistics, frames, loss),
            "fisher": lambda: fisher(self._graph, statistics, frames, loss),
            "squared": lambda: squared(self._graph, statistics),
        }
        for name, make in makers.items():
            start = time.perf_counter()
            made[name] = make(), time.perf_counter() - start
        drops, widths = self._random_configurations()
        predicted = {
            name: [each.of(some, self._layers) for some in widths]
            for name, (each, _) in made.items()
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
                name: {
                    "spearman": float(spearmanr(predicted[name], drops).statistic),
                    "seconds": seconds,
                }
                for name, (_, seconds) in made.items()
            },
            "equal_memory": self._equal_memory(made["measured"][0], made["squared"][0]),
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
                ("measured, exact, adaround", exact, RECIPES["adaround"]),
                ("squared, lagrangian, lapq", lagrange, RECIPES["lapq"]),
                ("squared, lagrangian, aciq", lagrange, RECIPES["aciq"]),
                ("squared, lagrangian, descent", lagrange, DEFAULT),
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
