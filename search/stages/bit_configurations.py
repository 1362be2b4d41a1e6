"""Configurations: widths for heads, listed by an allocation, kept as files that can be edited.

    cuts + memory limit --allocate--> Configured, ...  --write--> a YAML file each, and an index

Widths come from the exact program, from the Lagrangian, or from the original Auto-Split. A file
lists the layers of one head; its cut is the smallest head that holds them.
"""

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np

from common.choices import one_of
from common.errors import NoFeasiblePlanError, SettingsError
from common.progress import Reporter
from search.allocate.low_bit import LowBitAllocator, exact, relaxed
from search.constraints.edge_memory import smallest_head
from search.network.cuts import Cut, cut_of_head, enumerate_cuts, undominated
from search.network.graph import Graph
from search.network.operators.registry import maker_of, makes_values
from search.prepare import Prepared
from search.quantization.heads import Heads
from search.quantization.sensitivity import Errors
from search.quantization.widths import Configuration, Widths, read_widths, write_widths
from search.strategies.baselines import AutoSplit

Method = Literal["exact", "lagrangian", "auto-split-v1", "auto-split-v2"]
METHODS: tuple[Method, ...] = get_args(Method)

INDEX = "configurations.csv"
_UNLIMITED = 1 << 40


@dataclass(frozen=True)
class Configured:
    """One head with its widths.

    Attributes:
        name: Unique in a list.
        cut: Names of the tensors that travel.
        mean_weight_bits: Over the head's weights.
        error: Predicted, in the unit of the errors that the allocation was made with.
        weight_bytes: Of weights, scales and biases as stored.
        activation_bytes: Peak of the activations, a byte each.
        sent_bits: Nominal, of one image.
        widths: Bits by layer.
    """

    name: str
    cut: str
    mean_weight_bits: float
    error: float
    weight_bytes: int
    activation_bytes: int
    sent_bits: int
    widths: Configuration


def method_of(name: str) -> Method:
    """Look up a method by name.

    Raises:
        SettingsError: If there is none of that name.
    """
    return one_of(name, METHODS, "method")


def allocate(
    prepared: Prepared,
    heads: Heads,
    errors: Callable[[], Errors],
    method: Method,
    memory_bytes: int | None,
    reporter: Reporter,
) -> list[Configured]:
    """Allocate widths for every head that a memory limit allows.

    Args:
        prepared: The network.
        heads: Its integer networks.
        errors: Makes the errors of weights by layer and width; the original has its own.
        method: Method of allocation.
        memory_bytes: Limit on the edge.
        reporter: Receives progress.

    Raises:
        NoFeasiblePlanError: If no head fits.
    """
    if method == "exact" or method == "lagrangian":
        found = _by_limit(prepared, heads, errors(), method, memory_bytes)
    else:
        original = AutoSplit(heads, prepared.rounder(), prepared.calibration.pixels, reporter)
        version: Literal[1, 2] = 1 if method == "auto-split-v1" else 2
        found = [
            _configured(heads, cut, widths, each.error, each.name)
            for cut, each, widths in original.configurations(version, memory_bytes)
        ]
    if not found:
        cuts = enumerate_cuts(prepared.graph)
        raise NoFeasiblePlanError(f"no head fits at any width: {smallest_head(heads, cuts)}")
    return found


def write(folder: Path, found: Sequence[Configured]) -> None:
    """Write a widths file for each configuration, and their index."""
    folder.mkdir(parents=True, exist_ok=True)
    text = io.StringIO()
    columns = [name for name in asdict(found[0]) if name != "widths"]
    writer = csv.DictWriter(text, columns, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    for each in found:
        write_widths(folder / f"{each.name}.yaml", each.widths)
        writer.writerow(asdict(each))
    (folder / INDEX).write_text(text.getvalue(), "utf-8")


def cut_of_widths(graph: Graph, widths: Configuration, behind: Sequence[str] = ()) -> Cut:
    """The cut of the smallest head that holds all layers of a configuration.

    Args:
        graph: The network.
        widths: Bits by layer.
        behind: Nodes that the head is to hold, too, such as a pooling behind the last layer.

    Raises:
        SettingsError: If there is no such node, or no layer at all.
    """
    unknown = [name for name in behind if name not in graph.by_name]
    if unknown:
        raise SettingsError(f"the network has no node {', '.join(unknown)}")
    if not (widths or behind):
        raise SettingsError("a configuration without layers has no head: name at least one")
    return cut_of_head(graph, {node.name for node in graph.ancestors([*widths, *behind])})


def _by_limit(
    prepared: Prepared,
    heads: Heads,
    errors: Errors,
    method: Literal["exact", "lagrangian"],
    memory_bytes: int | None,
) -> list[Configured]:
    limit = _UNLIMITED if memory_bytes is None else memory_bytes
    allocator = LowBitAllocator(heads, errors, limit, prepared.rounder())
    found = []
    for cut in undominated(prepared.graph, enumerate_cuts(prepared.graph)):
        bits = allocator.allocated(cut, exact if method == "exact" else relaxed)
        if not bits:
            continue
        widths = {
            node.name: Widths(weight=bits.get(node.name, 8))
            for node in cut.head
            if makes_values(node)
        }
        error = sum(errors[name][width] for name, width in bits.items())
        found.append(_configured(heads, cut, widths, error, cut.name))
    return found


def _configured(
    heads: Heads, cut: Cut, widths: Configuration, error: float, name: str
) -> Configured:
    graph, convs = heads.network.graph, heads.network.convs
    sizes = {n.name: convs[n.name].weight.size for n in cut.head if n.name in convs}
    stored, activation_bytes = heads.memory_bytes(cut)
    packed = {n: -(-size * widths[n].weight // 8) for n, size in sizes.items()}
    sent = sum(graph[n].elements * widths[maker_of(graph, n)].activation for n in cut.tensors)
    return Configured(
        name=name,
        cut=cut.name,
        mean_weight_bits=round(
            float(np.average([widths[n].weight for n in sizes], weights=list(sizes.values()))), 3
        ),
        error=error,
        weight_bytes=stored - sum(sizes.values()) + sum(packed.values()),
        activation_bytes=activation_bytes,
        sent_bits=sent if cut.tail else 0,
        widths=widths,
    )


def read(
    paths: Sequence[Path], graph: Graph, behind: str | None = None
) -> list[tuple[str, Cut, Configuration]]:
    """Configurations from files, and from folders that `write` made: (name, cut, widths) of each.

    Args:
        paths: Files and folders.
        graph: The network.
        behind: A node that every head is to hold, too.

    Raises:
        SettingsError: If a file cannot be read, names are not unique, or there is no configuration.
    """
    found: dict[str, tuple[Cut, Configuration]] = {}
    for path in paths:
        ends = _ends(path) if path.is_dir() else {}
        files = sorted(path.glob("*.yaml")) if path.is_dir() else [path]
        if not files:
            raise SettingsError(f"{path}: no files of widths (*.yaml) in this folder")
        for file in files:
            if file.stem in found:
                raise SettingsError(f"{file}: a second configuration of the name {file.stem}")
            widths = read_widths(file, graph)
            last = ends.get(file.stem, ()) if behind is None else (behind,)
            found[file.stem] = cut_of_widths(graph, widths, last), widths
    return [(name, cut, widths) for name, (cut, widths) in found.items()]


def _ends(folder: Path) -> dict[str, tuple[str, ...]]:
    """Cut tensors listed in a folder's index, by configuration; empty without an index."""
    try:
        rows = list(csv.DictReader((folder / INDEX).read_text("utf-8").splitlines()))
        return {row["name"]: tuple(row["cut"].split("+")) for row in rows}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError) as error:
        raise SettingsError(f"{folder / INDEX}: not an index of configurations") from error
