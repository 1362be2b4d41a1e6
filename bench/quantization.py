"""What rounding a head costs: recipes compared, sensitivities checked, widths allocated.

    python -m bench.quantization --images DIR --annotations FILE --calibration DIR --json OUT

For one cut of YOLOv3-tiny, head in integers and tail in floating point, nothing lost on the wire:
COCO AP of every recipe at uniform widths; how well each sensitivity orders random configurations by
the AP that they lose (Spearman's rank correlation); and AP at equal weight memory of this search
(measured sensitivity, exact allocation, coordinate descent) against the original's (squared error,
Lagrangian, rounding to the nearest on ACIQ's ranges). Calibration sees no labels. The result names
the machine and all images.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import spearmanr

from common.manifest import CodecSpec
from search.accuracy import Agreement, CocoAccuracy
from search.adapt import distillation_loss
from search.allocate.exact import solve_exact
from search.allocate.lagrangian import lagrangian
from search.allocate.problem import Choice, Problem
from search.calibration import observe
from search.candidates import Candidate
from search.cuts import enumerate_cuts
from search.evaluate import Evaluator
from search.frames import load_frames
from search.heads import Heads
from search.importer import import_module
from search.passes import optimise
from search.prepare import detector_of
from search.quantization.network import QuantizedGraph
from search.quantization.recipe import DEFAULT, RECIPES, Recipe, rounded, rounded_together
from search.quantization.widths import WIDTHS, Configuration, Widths, uniform
from search.sensitivity import Sensitivity, fisher, measured, squared
from search.wire import code_tensor
from search.zoo.registry import load_model
from splitpoint import __version__
from splitpoint.machine import machine
from splitpoint.progress import Stages

UNIFORM = ((8, 8), (6, 8), (4, 8), (4, 4), (3, 8), (2, 8))
MEAN_BITS = (4.0, 3.5, 3.0, 2.5)
_SENSITIVITY_FRAMES = 16
_ROUNDING_FRAMES = 32
_QUICK = Recipe(rounding="nearest")
_QUICK_FRAMES = 8
_ORIGINAL = RECIPES["aciq"]


def main() -> None:
    """Measure, print and write the result."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--images", type=Path, required=True, help="images to evaluate on")
    parser.add_argument("--annotations", type=Path, required=True, help="their COCO instances file")
    parser.add_argument("--calibration", type=Path, required=True, help="images to calibrate on")
    parser.add_argument("--cut", default="conv_8", help="name of the cut")
    parser.add_argument("--configurations", type=int, default=30, help="random ones to order")
    parser.add_argument("--max-images", type=int, default=1000, help="used of each folder")
    parser.add_argument("--json", type=Path, required=True, help="where the result goes")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, Stages() as stages:
        result = _Bench(arguments, Path(folder), stages).run()
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    arguments.json.write_text(json.dumps(result, indent=1) + "\n")
    shown = {key: result[key] for key in ("reference", "uniform", "spearman", "equal_memory")}
    print(json.dumps(shown, indent=1))  # noqa: T201 - a command's output


class _Bench:
    """One cut, rounded in every way."""

    def __init__(self, arguments: argparse.Namespace, folder: Path, stages: Stages) -> None:
        self._arguments = arguments
        self._folder = folder
        self._stages = stages
        module = load_model("yolov3-tiny")
        self._graph = optimise(import_module(module, module.input_size))
        self._detector = detector_of(module)
        limit, size = arguments.max_images, module.input_size
        self._calibration = load_frames(
            arguments.calibration, size, limit, stages.stage("reading calibration images")
        )
        self._images = load_frames(
            arguments.images, size, limit, stages.stage("reading evaluation images")
        )
        self._truth = CocoAccuracy(arguments.annotations, self._images.names)
        self._statistics = observe(
            self._graph, self._calibration.pixels, stages.stage("observing activations")
        )
        cuts = enumerate_cuts(self._graph)
        self._cut = next(cut for cut in cuts if cut.name == arguments.cut)
        self._layers = [node.name for node in self._cut.head if node.op == "conv"]
        reference, _ = self._evaluator(rounded(self._graph, self._statistics)).reference(cuts[0])
        self._agreement = Agreement(reference)
        self._reference = {
            "ap": self._truth.accuracy(reference),
            "agreement_ap50": self._agreement.accuracy(reference),
        }

    def run(self) -> dict[str, Any]:
        """Everything, as JSON."""
        return {
            "machine": machine(),
            "software_version": __version__,
            "calibration_images": list(self._calibration.names),
            "evaluation_images": list(self._images.names),
            "cut": self._cut.name,
            "reference": self._reference,
            "uniform": self._uniform(),
            **self._sensitivities(),
        }

    def _evaluator(self, network: QuantizedGraph) -> Evaluator:
        return Evaluator(
            Heads(network),
            self._detector,
            self._images.pixels,
            self._images.letterboxes,
            self._folder,
            threads=2,
        )

    def _rounded(self, widths: Configuration, how: Recipe, frames: int) -> QuantizedGraph:
        network = rounded(self._graph, self._statistics, widths, how)
        pixels = self._calibration.pixels[:frames]
        return rounded_together(network, self._cut.tensors, pixels, how)

    def _judge(self, network: QuantizedGraph) -> dict[str, float]:
        """Accuracy of the head with the tail in floating point, and the time it took."""
        wire = tuple(code_tensor(self._graph[n], network.grids[n]) for n in self._cut.tensors)
        candidate = Candidate(self._cut, wire, CodecSpec(name="raw"), 0, 0, 0, 0, 0)
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
                network = self._rounded(widths, how, _ROUNDING_FRAMES)
                row = {"weight": weight, "activation": activation, "recipe": name}
                seconds = time.perf_counter() - start
                rows.append({**row, "rounding_s": seconds, **self._judge(network)})
                progress(len(rows), total)
        return rows

    def _sensitivities(self) -> dict[str, Any]:
        frames = self._calibration.pixels[:_SENSITIVITY_FRAMES]
        loss = distillation_loss(self._detector)
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
        """Widths drawn for each layer, and the AP that they lose."""
        rng = np.random.default_rng(0)
        drops, drawn = [], []
        progress = self._stages.stage("measuring random configurations")
        count = self._arguments.configurations
        for done in range(count):
            widths = {
                name: Widths(weight=int(rng.choice(WIDTHS)), activation=int(rng.choice(WIDTHS)))
                for name in self._layers
            }
            network = self._rounded(widths, _QUICK, _QUICK_FRAMES)
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
                ("squared, lagrangian, aciq", lagrange, _ORIGINAL),
                ("squared, lagrangian, descent", lagrange, DEFAULT),
            ):
                widths = {layer: Widths(weight=bits[layer]) for layer in self._layers}
                network = self._rounded(widths, how, _ROUNDING_FRAMES)
                rows.append(
                    {"mean_bits": mean, "way": name, "widths": bits, **self._judge(network)}
                )
            progress(done, len(MEAN_BITS))
        return rows

    def _choices(self, sensitivity: Sensitivity) -> list[Choice]:
        errors: Mapping[str, Mapping[int, float]] = sensitivity.weights
        return [
            Choice(
                name=name,
                elements=self._graph[name].parameters,
                widths=WIDTHS,
                errors=tuple(errors[name][bits] for bits in WIDTHS),
            )
            for name in self._layers
        ]


if __name__ == "__main__":
    main()
