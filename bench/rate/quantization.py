"""Benchmark of quantization: recipes compared, sensitivities checked, widths allocated.

    python -m bench.rate.quantization --images DIR --annotations FILE --calibration DIR --json OUT

For one cut of YOLOv3-tiny, head in integers and tail in floating point, nothing lost on the wire:
COCO AP of every recipe at uniform widths, and with single steps of the default one switched; how
well each sensitivity orders random configurations by the AP that they lose (Spearman's rank
correlation); and AP at equal weight memory of this search (measured sensitivity, exact allocation,
coordinate descent) against the original's (squared error, Lagrangian, LAPQ or ACIQ). Calibration
sees no labels. The result names the machine and all images.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import spearmanr

from bench.machine import machine
from common.codec.spec import CodecSpec
from common.progress import Stages
from common.version import __version__
from search.allocate.exact import solve_exact
from search.allocate.lagrangian import lagrangian
from search.allocate.problem import Problem, TensorChoice
from search.cache import Cache
from search.measure.accuracy import AgreementAccuracy, CocoAccuracy
from search.measure.evaluate import Evaluator
from search.measure.frames import load_frames
from search.network.cuts import Cut, enumerate_cuts
from search.network.losses import distillation_loss
from search.prediction.candidates import Candidate
from search.prepare import prepare
from search.quantization.heads import Heads
from search.quantization.network import QuantizedGraph
from search.quantization.recipe import DEFAULT, RECIPES, Recipe, reconstructed
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


def main() -> None:
    """Measure, print and write the result."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--images", type=Path, required=True, help="images to evaluate on")
    parser.add_argument("--annotations", type=Path, required=True, help="their COCO instances file")
    parser.add_argument("--calibration", type=Path, required=True, help="images to calibrate on")
    parser.add_argument("--cut", default="conv_8", help="name of the cut")
    parser.add_argument(
        "--configurations", type=int, default=30, help="number of random configurations"
    )
    parser.add_argument(
        "--max-images", type=int, default=1000, help="most images used of each folder"
    )
    parser.add_argument("--json", type=Path, required=True, help="where the result goes")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, Stages() as stages:
        result = _QuantizationBench(arguments, Path(folder), stages).run()
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    arguments.json.write_text(json.dumps(result, indent=1) + "\n")
    keys = "reference", "uniform", "ablations", "spearman", "equal_memory"
    shown = {key: result[key] for key in keys}
    print(json.dumps(shown, indent=1))  # noqa: T201 - a command's output


class _QuantizationBench:
    """Measurements of one cut, quantized in every way."""

    def __init__(self, arguments: argparse.Namespace, folder: Path, stages: Stages) -> None:
        self._arguments = arguments
        self._folder = folder
        self._stages = stages
        limit = arguments.max_images
        self._prepared, self._equalised = (
            prepare(
                "yolov3-tiny",
                arguments.calibration,
                Cache(),
                stages,
                max_images=limit,
                equalised=equalised,
            )
            for equalised in (False, True)
        )
        self._graph = self._prepared.graph
        self._calibration = self._prepared.calibration
        self._statistics = self._prepared.statistics
        geometry, progress = self._prepared.task.image, stages.stage("reading evaluation images")
        self._images = load_frames(arguments.images, geometry, limit, progress)
        self._truth = CocoAccuracy(arguments.annotations, self._images.names)
        cuts = enumerate_cuts(self._graph)
        self._cut = next(cut for cut in cuts if cut.name == arguments.cut)
        self._equalised_cut = next(
            cut for cut in enumerate_cuts(self._equalised.graph) if cut.name == arguments.cut
        )
        self._layers = [node.name for node in self._cut.head if node.op == "conv"]
        eight_bits = self._prepared.rounder().nearest({})
        reference, _ = self._evaluator(eight_bits).reference(cuts[0])
        self._agreement = AgreementAccuracy(reference)
        self._reference = {
            "ap": self._truth.accuracy(reference),
            "agreement_ap50": self._agreement.accuracy(reference),
        }

    def run(self) -> dict[str, Any]:
        """Measure everything; returns the result as JSON."""
        return {
            "machine": machine(),
            "software_version": __version__,
            "calibration_images": list(self._calibration.names),
            "evaluation_images": list(self._images.names),
            "cut": self._cut.name,
            "reference": self._reference,
            "uniform": self._uniform(),
            "ablations": self._ablations(),
            **self._sensitivities(),
        }

    def _evaluator(self, network: QuantizedGraph) -> Evaluator:
        return Evaluator(
            Heads(network),
            self._prepared.task,
            self._images.pixels,
            self._images.letterboxes,
            self._folder,
            workers=2,
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
        pixels = self._calibration.pixels[:_QUICK_FRAMES]
        return reconstructed(network, self._cut.tensors, pixels, _QUICK)

    def _judge(self, network: QuantizedGraph, cut: Cut | None = None) -> dict[str, float]:
        """Accuracy of the head with the tail in floating point, and the time of evaluation."""
        wire = tuple(code_tensor(self._graph[n], network.grids[n]) for n in self._cut.tensors)
        candidate = Candidate(cut or self._cut, wire, CodecSpec(name="raw"), 0, 0, 0, 0, 0)
        start = time.perf_counter()
        found = self._evaluator(network).detections(candidate)
        accuracy = self._truth.accuracy(found)
        seconds = time.perf_counter() - start
        return {
            "ap": accuracy,
            "drop": self._reference["ap"] - accuracy,
            "agreement_ap50": self._agreement.accuracy(found),
            "evaluation_s": seconds,
        }

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
                rows.append({**row, "rounding_s": seconds, **self._judge(network)})
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
                rows.append({**row, **self._judge(network, cut)})
                progress(len(rows), len(_ABLATED) * len(_ABLATIONS))
        return rows

    def _sensitivities(self) -> dict[str, Any]:
        frames = self._calibration.pixels[:_SENSITIVITY_FRAMES]
        loss = distillation_loss(self._prepared.task)
        ways: dict[str, tuple[Sensitivity, float]] = {}
        makers: dict[str, Callable[[], Sensitivity]] = {
            "measured": lambda: measured(self._graph, self._statistics, frames, loss),
            "fisher": lambda: fisher(self._graph, self._statistics, frames, loss),
            "squared": lambda: squared(self._graph, self._statistics),
        }
        for name, make in makers.items():
            start = time.perf_counter()
            ways[name] = make(), time.perf_counter() - start
        drops, widths = self._random_configurations()
        correlations = {
            name: {
                "spearman": float(
                    spearmanr([way.of(each, self._layers) for each in widths], drops).statistic
                ),
                "seconds": seconds,
            }
            for name, (way, seconds) in ways.items()
        }
        return {
            "random": [
                {
                    "drop": drop,
                    "widths": {n: each[n].model_dump() for n in self._layers},
                    "predicted": {n: way.of(each, self._layers) for n, (way, _) in ways.items()},
                }
                for drop, each in zip(drops, widths, strict=True)
            ],
            "spearman": correlations,
            "equal_memory": self._equal_memory(ways["measured"][0], ways["squared"][0]),
        }

    def _random_configurations(self) -> tuple[list[float], list[dict[str, Widths]]]:
        """Draw widths for each layer at random, and measure the AP that they lose."""
        rng = np.random.default_rng(0)
        drops, drawn = [], []
        progress = self._stages.stage("measuring random configurations")
        count = self._arguments.configurations
        for done in range(count):
            widths = {
                name: Widths(weight=int(rng.choice(WIDTHS)), activation=int(rng.choice(WIDTHS)))
                for name in self._layers
            }
            network = self._roughly(widths)
            drops.append(self._judge(network)["drop"])
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
                    {"mean_bits": mean, "way": name, "widths": bits, **self._judge(network)}
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


if __name__ == "__main__":
    main()
