"""Scaling of the search's stages with the size of the network.

Only stages that depend on a network's structure, for the zoo's networks with random weights:
structure alone decides how long they take, so no weights need be fetched. Costs of the minimum cut
and errors of the allocation are made up, from a seed.
"""

import argparse
import statistics
import struct
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from bench.harness import Bench, Lines, Result, no_options, record, table
from common.progress import Stages
from search.allocate.exact import solve_exact
from search.allocate.problem import Problem, TensorChoice, narrowest
from search.network.cuts import enumerate_cuts, undominated
from search.network.graph import Graph
from search.network.importers.torch_module import import_module
from search.network.passes import optimise
from search.quantization.widths import WIDTHS
from search.strategies.costs import CostGraph
from search.strategies.min_cut import dads, qdmp
from search.zoo.registry import load_model, zoo_model

NETWORKS = ("yolov3-tiny", "yolov3", "yolov3-spp")
_ROUNDS = 3
_HEADER = struct.pack("<iiiQ", 0, 2, 0, 0)
"""Header of a Darknet weights file: version 0.2.0, no images seen."""
_CHUNK = 1 << 20
T = TypeVar("T")


def measure(_arguments: argparse.Namespace, stages: Stages) -> Result:
    """Measure the time of the search's stages, by network."""
    rows = []
    progress = stages.stage("searching larger networks")
    for done, name in enumerate(NETWORKS, 1):
        rows.append(_network_row(name))
        progress(done, len(NETWORKS))
    return record(weights="random", rounds=_ROUNDS, rows=rows)


def _network_row(name: str) -> dict[str, Any]:
    """Median times of all stages for one network."""
    with random_weights(name) as weights:
        read_s, graph = _median_s(lambda: read_graph(name, weights))
    cuts_s, (cuts, kept) = _median_s(lambda: _cuts(graph))
    costs = [made_up_costs(graph, seed) for seed in range(_ROUNDS)]
    problems = [made_up_problem(graph, seed) for seed in range(_ROUNDS)]
    exact_s = [_timed_s(partial(solve_exact, problem))[0] for problem in problems]
    return {
        "network": name,
        "nodes": len(graph.nodes) - 1,
        "convolutions": sum(node.op == "conv" for node in graph.nodes),
        "parameters": sum(node.parameters for node in graph.nodes),
        "read_s": read_s,
        "cuts": cuts,
        "undominated_cuts": kept,
        "cuts_s": cuts_s,
        "dads_s": statistics.median(_timed_s(partial(dads, each))[0] for each in costs),
        "qdmp_s": statistics.median(_timed_s(partial(qdmp, each))[0] for each in costs),
        "allocation_s": statistics.median(exact_s),
        "allocations_s": exact_s,
    }


@contextmanager
def random_weights(name: str, seed: int = 0) -> Iterator[Path]:
    """Write a weights file as long as a network's own, removed after the block.

    All values are positive, because variances are among them.
    """
    size_bytes = zoo_model(name).weights.size_bytes
    rng = np.random.default_rng(seed)
    with tempfile.TemporaryDirectory(prefix="splitpoint-") as folder:
        path = Path(folder) / f"{name}.weights"
        with path.open("wb") as file:
            file.write(_HEADER)
            left = (size_bytes - len(_HEADER)) // 4
            while left:
                values = rng.random(min(left, _CHUNK), np.float32) + np.float32(0.5)
                file.write(values.astype("<f4").tobytes())
                left -= len(values)
        yield path


def read_graph(name: str, weights: Path) -> Graph:
    """Read a weights file into the graph that the search works on."""
    module = load_model(name, weights=weights)
    return optimise(import_module(module, module.input_size))


def made_up_costs(graph: Graph, seed: int) -> CostGraph:
    """Random costs like those of a slow edge, a fast cloud and 3 Mbit/s at 1 bit per element."""
    rng = np.random.default_rng(seed)

    def around(value: float) -> float:
        return value * float(rng.lognormal(0, 0.5))

    edge_ms = {n.name: around(n.macs / 4e7 + n.elements / 1e6) for n in graph.nodes}
    return CostGraph(
        graph,
        edge_ms=edge_ms,
        cloud_ms={name: around(ms / 8) for name, ms in edge_ms.items()},
        transmit_ms={n.name: around(n.elements / 3e3) for n in graph.nodes},
        rtt_ms=20.0,
    )


def made_up_problem(graph: Graph, seed: int) -> Problem:
    """Allocation problem: a width for the weights and the output of every convolution."""
    layers = [(node, node.weight) for node in graph.nodes if node.weight is not None]
    return random_problem(
        np.random.default_rng(seed),
        ((f"w {node.name}", weight.size) for node, weight in layers),
        ((f"a {node.name}", node.elements) for node, _ in layers),
    )


def random_problem(
    rng: np.random.Generator,
    weights: Iterable[tuple[str, int]],
    activations: Iterable[tuple[str, int]],
) -> Problem:
    """Problem of layers in a chain with skip connections, with errors and a limit from `rng`.

    Errors fall about fourfold with each bit; the limit on memory is between the narrowest and the
    widest widths.

    Args:
        rng: Source of chance.
        weights: Name and number of elements of the weights of each layer.
        activations: Those of its output.
    """
    stored = tuple(_choice(rng, name, elements) for name, elements in weights)
    outputs = tuple(_choice(rng, name, elements) for name, elements in activations)
    live = tuple(
        tuple(sorted({k, max(0, k - 1), max(0, k - int(rng.integers(1, 9)))}))
        for k in range(len(stored))
    )
    least = narrowest(Problem(stored, outputs, live, memory_bits=None))
    needed_bits = least.weight_bits + least.peak_bits
    limit_bits = int(needed_bits * rng.uniform(1.05, 3.0))
    return Problem(stored, outputs, live, memory_bits=limit_bits)


def _choice(rng: np.random.Generator, name: str, elements: int) -> TensorChoice:
    scale = float(np.exp(rng.normal(0, 2)))
    errors = tuple(scale * 4.0**-bits * float(rng.uniform(0.7, 1.3)) for bits in WIDTHS)
    return TensorChoice(name, elements, WIDTHS, errors)


def _cuts(graph: Graph) -> tuple[int, int]:
    """Numbers of all cuts, and of the undominated ones."""
    cuts = enumerate_cuts(graph)
    return len(cuts), len(undominated(graph, cuts))


def _median_s(call: Callable[[], T]) -> tuple[float, T]:
    """Median time of a few calls, and the result of the last one."""
    times_s = []
    for _ in range(_ROUNDS):
        took_s, result = _timed_s(call)
        times_s.append(took_s)
    return statistics.median(times_s), result


def _timed_s(call: Callable[[], T]) -> tuple[float, T]:
    started_s = time.perf_counter()
    result = call()
    return time.perf_counter() - started_s, result


def section(found: Result) -> Lines:
    """Section of the page."""
    yield (
        "Stages of a search that depend on a network's structure alone, with random weights, in "
        "seconds."
    )
    yield ""
    columns = {
        "network": "{network}",
        "convolutions": "{convolutions}",
        "cuts": "{cuts}",
        "read": "{read_s:.2f}",
        "enumerate": "{cuts_s:.4f}",
        "min-cut (DADS)": "{dads_s:.4f}",
        "exact widths": "{allocation_s:.3f}",
    }
    yield from table(found["rows"], columns)


BENCH = Bench(__doc__, "larger_networks", no_options, measure, section)
