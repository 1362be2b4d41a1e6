"""Benchmark of bit width allocation: time and error of the exact program and the Lagrangian.

    python -m bench.micro.allocation --json OUT

Seeded networks of 100 layers in a chain with skip connections: weights and activations at 2, 4, 6
and 8 bits, errors that fall about fourfold with each bit, and a memory limit between the narrowest
and the widest widths. No images are needed.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np

from bench.machine import machine
from common.version import __version__
from search.allocate.exact import solve_exact
from search.allocate.lagrangian import lagrangian_problem
from search.allocate.problem import Problem, TensorChoice, narrowest
from search.quantization.widths import WIDTHS

LAYERS = 100


def main() -> None:
    """Measure, print and write the result."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--networks", type=int, default=30, help="number of networks")
    parser.add_argument("--json", type=Path, required=True, help="where the result goes")
    arguments = parser.parse_args()
    rows = [_solved(seed) for seed in range(arguments.networks)]
    result = {
        "machine": machine(),
        "software_version": __version__,
        "layers": LAYERS,
        "exact_s": _spread([row["exact_s"] for row in rows]),
        "lagrangian_s": _spread([row["lagrangian_s"] for row in rows]),
        "error_share": _spread([row["error_share"] for row in rows]),
        "rows": rows,
    }
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    arguments.json.write_text(json.dumps(result, indent=1) + "\n")
    for key in ("exact_s", "lagrangian_s", "error_share"):
        print(key, result[key])  # noqa: T201 - a command's output


def _solved(seed: int) -> dict[str, float]:
    problem = _problem(np.random.default_rng(seed))
    start = time.perf_counter()
    exact = solve_exact(problem)
    exact_s = time.perf_counter() - start
    start = time.perf_counter()
    relaxed = lagrangian_problem(problem)
    lagrangian_s = time.perf_counter() - start
    return {
        "exact_s": exact_s,
        "lagrangian_s": lagrangian_s,
        "error_share": exact.error / relaxed.error,
    }


def _problem(rng: np.random.Generator) -> Problem:
    weights = tuple(_choice(rng, f"w{k}", 1e3, 1e6) for k in range(LAYERS))
    activations = tuple(_choice(rng, f"a{k}", 1e4, 3e6) for k in range(LAYERS))
    live = tuple(
        tuple(sorted({k, max(0, k - 1), max(0, k - int(rng.integers(1, 9)))}))
        for k in range(LAYERS)
    )
    free = Problem(weights, activations, live, memory_bits=None)
    least = narrowest(free)
    needed = least.weight_bits + least.peak_bits
    return Problem(weights, activations, live, memory_bits=int(needed * rng.uniform(1.05, 3.0)))


def _choice(rng: np.random.Generator, name: str, low: float, high: float) -> TensorChoice:
    elements = int(np.exp(rng.uniform(np.log(low), np.log(high))))
    scale = float(np.exp(rng.normal(0, 2)))
    errors = tuple(scale * 4.0**-bits * float(rng.uniform(0.7, 1.3)) for bits in WIDTHS)
    return TensorChoice(name, elements, WIDTHS, errors)


def _spread(values: list[float]) -> dict[str, Any]:
    return {
        "median": float(np.median(values)),
        "least": float(min(values)),
        "most": float(max(values)),
    }


if __name__ == "__main__":
    main()
