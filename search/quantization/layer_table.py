"""The layer table: properties of every layer, one row each, as CSV and as JSON.

Ranks are places in the execution order, volumes are elements, and minimum, maximum, mean and
standard deviation are those of the weights and, on calibration images, of the output.
"""

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields

import numpy as np

from search.network.graph import Graph, Node
from search.quantization.calibration import Statistics


@dataclass(frozen=True)
class TensorSummary:
    """Minimum, maximum, mean and standard deviation of a tensor."""

    min: float
    max: float
    mean: float
    std: float


@dataclass(frozen=True)
class LayerRow:
    """One layer.

    Attributes:
        rank: Place in the execution order, from zero.
        name: Of the layer and of its output.
        op: What it computes; a fused activation is named behind it.
        predecessors: Layers, or the image, that it reads.
        successors: Layers that read it; empty for the network's outputs.
        volume_in: Elements read.
        volume_out: Elements of the output.
        volume_weights: Weights, without biases.
        macs: Multiply-accumulates for one image.
        weight: Of its weights, if it has any.
        output: Of its output.
    """

    rank: int
    name: str
    op: str
    predecessors: tuple[str, ...]
    successors: tuple[str, ...]
    volume_in: int
    volume_out: int
    volume_weights: int
    macs: int
    weight: TensorSummary | None
    output: TensorSummary


def layer_table(graph: Graph, statistics: Statistics) -> list[LayerRow]:
    """The rows of a network, in the order of execution."""
    return [_row(graph, statistics, rank, node) for rank, node in enumerate(graph.nodes[1:])]


def to_csv(rows: Sequence[LayerRow]) -> str:
    """The table with a column for each number; names in one cell are joined by spaces."""
    text = io.StringIO()
    parts = [field.name for field in fields(TensorSummary)]
    plain = [field.name for field in fields(LayerRow)][:-2]
    writer = csv.writer(text, lineterminator="\n")
    spread = [f"{side}_{part}" for side in ("weight", "output") for part in parts]
    writer.writerow([*plain, *spread])
    for row in rows:
        cells = [getattr(row, name) for name in plain]
        cells = [" ".join(cell) if isinstance(cell, tuple) else cell for cell in cells]
        for summary in (row.weight, row.output):
            cells += [""] * len(parts) if summary is None else asdict(summary).values()
        writer.writerow(cells)
    return text.getvalue()


def to_json(rows: Sequence[LayerRow]) -> str:
    """The table as a list of objects."""
    return json.dumps([asdict(row) for row in rows], indent=1) + "\n"


def _row(graph: Graph, statistics: Statistics, rank: int, node: Node) -> LayerRow:
    seen = statistics.after[node.name]
    activation = "" if node.activation is None else f"+{node.activation.name}"
    return LayerRow(
        rank=rank,
        name=node.name,
        op=node.op + activation,
        predecessors=node.inputs,
        successors=tuple(graph.consumers[node.name]),
        volume_in=sum(graph[name].elements for name in node.inputs),
        volume_out=node.elements,
        volume_weights=0 if node.weight is None else node.weight.size,
        macs=node.macs,
        weight=None if node.weight is None else _summary(node.weight),
        output=TensorSummary(seen.low, seen.high, seen.mean, seen.std),
    )


def _summary(values: np.ndarray[tuple[int, ...], np.dtype[np.float32]]) -> TensorSummary:
    wide = values.astype(np.float64)
    return TensorSummary(
        *(float(each) for each in (wide.min(), wide.max(), wide.mean(), wide.std()))
    )
