"""Benchmark of bit width allocation: time and error of the exact program and the Lagrangian.

Seeded networks of 100 layers in a chain with skip connections: weights and activations at 2, 4, 6
and 8 bits. No images are needed.
"""

import argparse
import time
from collections.abc import Iterator
from typing import Any

import numpy as np

from bench.harness import Bench, Lines, Result, record, table
from bench.scale.larger_networks import random_problem
from common.progress import Stages
from search.allocate.exact import solve_exact
from search.allocate.lagrangian import lagrangian_problem
from search.allocate.problem import Problem

LAYERS = 100


def measure(arguments: argparse.Namespace, _stages: Stages) -> Result:
    """Solve all problems by both."""
    rows = [_solved(made_up_problem(seed)) for seed in range(arguments.networks)]
    spreads = {key: _spread([row[key] for row in rows]) for key in rows[0]}
    return record(layers=LAYERS, **spreads, rows=rows)


def made_up_problem(seed: int) -> Problem:
    """Allocation problem of a network with sizes like those of detectors."""
    rng = np.random.default_rng(seed)

    def sizes(kind: str, low: float, high: float) -> Iterator[tuple[str, int]]:
        for layer in range(LAYERS):
            yield f"{kind}{layer}", int(np.exp(rng.uniform(np.log(low), np.log(high))))

    return random_problem(rng, sizes("w", 1e3, 1e6), sizes("a", 1e4, 3e6))


def _solved(problem: Problem) -> dict[str, float]:
    start = time.perf_counter()
    exact = solve_exact(problem)
    middle = time.perf_counter()
    relaxed = lagrangian_problem(problem)
    return {
        "exact_s": middle - start,
        "lagrangian_s": time.perf_counter() - middle,
        "error_share": exact.error / relaxed.error,
    }


def _spread(values: list[float]) -> dict[str, Any]:
    return {"median": float(np.median(values)), "least": min(values), "most": max(values)}


def section(result: Result) -> Lines:
    """Table of times and of the exact error over the Lagrangian's."""
    columns = {"": "{what}", **{name: f"{{{name}:.3g}}" for name in ("median", "least", "most")}}
    keys = ("exact_s", "lagrangian_s", "error_share")
    return table(({"what": key, **result[key]} for key in keys), columns)


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--networks", type=int, default=30, help="number of networks")


BENCH = Bench(__doc__, "allocation", _options, measure, section)
