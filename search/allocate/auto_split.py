"""The original Auto-Split's search: candidate cuts, then widths for each by Lagrange multipliers.

A. Banitalebi-Dehkordi, N. Vedula, J. Pei, F. Xia, L. Wang and Y. Zhang, "Auto-Split: A General
Framework of Collaborative Edge-Cloud AI", KDD 2021 (arXiv 2108.13041).

    Table -> candidate cuts -> for each cut and average activation width: three configurations
          -> edge-only at uniform widths, cloud-only -> the list that a user chooses from

What differs from the original, on purpose:

- A configuration sends every tensor that crosses its cut. The original counts them when it chooses
  candidates, but only the cut layer's own output when it predicts latency.
- A tensor that is sent keeps its allocated width when other activations are raised: the raise is
  free in memory, not on the wire.
- Layers in the cloud have no error: at 16 bits theirs is some 2^-16 of that at 8 bits.
- Edge-only sends nothing. Nothing is dropped for exceeding memory that the original keeps; the flag
  "over-memory" says so.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from common.errors import NoFeasiblePlanError
from search.allocate.lagrangian import lagrangian
from search.allocate.problem import TensorChoice
from search.allocate.table import WIDTHS, FusedLayer, Table, total_error, uniform_error

AVERAGES = (2, 4, 6, 8)
"""Average widths tried for activations, and the widths of uniform edge-only networks."""
_FALLBACKS = 5
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Configuration:
    """One way to run the network: a row of the list that the user chooses from.

    Attributes:
        name: Average weight width, cut, activation width and flags.
        cut: The last layer on the edge; empty for cloud-only, the last layer of all for edge-only.
        weights: Width of the weights of each layer on the edge, by name.
        activations: Width of the output of each layer on the edge, by name.
        transmitted_bits: Sent to the cloud for one image.
        error: Sum of the errors of the layers on the edge.
        edge_bits: Weights, and the larger of the image and the largest activation.
        flags: Which of the kinds "8-bit" (all but what is sent), "raised", "allocated", "uniform"
            or "cloud-only" it is; "over-memory" if `edge_bits` exceeds the device's.
    """

    name: str
    cut: str
    weights: dict[str, int]
    activations: dict[str, int]
    transmitted_bits: int
    error: float
    edge_bits: int
    flags: tuple[str, ...]


def auto_split(
    table: Table, memory_bits: int, widths: tuple[int, ...] = WIDTHS
) -> list[Configuration]:
    """Every configuration that the original would consider, for a device's memory.

    Args:
        table: The layers with their errors at `widths`, and at 8 bits.
        memory_bits: Of the edge device, for weights and activations.
        widths: Bits per element that the edge may use, ascending.

    Returns:
        Three configurations for each candidate cut and average activation width, then edge-only at
        uniform widths, then cloud-only.
    """
    found = [
        configuration
        for rank in candidate_ranks(table, widths)
        for configuration in _split(table, rank, memory_bits, widths)
    ]
    last = table.layers[-1].rank
    for width in (width for width in AVERAGES if width in widths):
        uniform = {layer.name: width for layer in table.layers}
        weights = {c.name: width for c in table.layers if c.weight_volume}
        found.append(_configure(table, last, weights, uniform, width, "uniform", memory_bits))
    cloud = ("cloud-only",)
    return [*found, Configuration("cloud-only", "", {}, {}, table.image_bits, 0.0, 0, cloud)]


def candidate_ranks(table: Table, widths: tuple[int, ...] = WIDTHS) -> list[int]:
    """The cuts that send less than the image, the one that sends least first.

    Judged at the widths that activations get for the smallest feasible average over the whole
    network. Of cuts that send equally many bits the earliest stays. If none sends less than the
    image, the best five.
    """
    activations = next(
        allocated
        for average in (*AVERAGES, widths[-1])
        if (allocated := _allocate_activations(table.layers, average, widths)) is not None
    )
    earliest: dict[int, int] = {}
    for layer in table.layers:
        excess = table.sent_bits(layer.rank, activations) - table.image_bits
        earliest.setdefault(excess, layer.rank)
    ranked = sorted(earliest.items())
    smaller = [rank for excess, rank in ranked if excess < 0]
    if not smaller:
        _LOG.warning("no cut sends less than the image: keeping the best %d", _FALLBACKS)
    return smaller or [rank for _, rank in ranked[:_FALLBACKS]]


def below_uniform(
    configurations: Sequence[Configuration], table: Table, bits: int = 2
) -> list[Configuration]:
    """Configurations of less error than the whole network at `bits`: no others need simulating."""
    limit = uniform_error(table, bits)
    return [configuration for configuration in configurations if configuration.error < limit]


def _split(
    table: Table, rank: int, memory_bits: int, widths: tuple[int, ...]
) -> list[Configuration]:
    """The configurations of one cut, until what is sent is no smaller than the image.

    The first average stays even so: of a cut that is kept for want of a better one.
    """
    head = table.layers[: rank + 1]
    sent = {layer.name for layer in table.crossing(rank)}
    found: list[Configuration] = []
    for average in AVERAGES:
        allocated = _allocate_activations(head, average, widths)
        if allocated is None:
            continue
        if average > AVERAGES[0] and table.sent_bits(rank, allocated) >= table.image_bits:
            break
        peak = table.peak_bits(allocated)
        weights = _allocate_weights(head, memory_bits - peak, widths)
        if weights is None:
            continue
        raised = {
            layer.name: allocated[layer.name]
            if layer.name in sent
            else max(w for w in widths if w * layer.volume_out <= peak)
            for layer in head
        }
        eight = {name: width if name in sent else 8 for name, width in allocated.items()}
        found += [
            _configure(table, rank, weights, activations, average, kind, memory_bits)
            for activations, kind in (
                (eight, "8-bit"),
                (raised, "raised"),
                (allocated, "allocated"),
            )
        ]
    return found


def _configure(
    table: Table,
    rank: int,
    weights: dict[str, int],
    activations: dict[str, int],
    average: int,
    kind: str,
    memory_bits: int,
) -> Configuration:
    head = table.layers[: rank + 1]
    cut = head[-1].name
    weight_bits = sum(layer.weight_volume * weights.get(layer.name, 0) for layer in head)
    edge_bits = weight_bits + table.peak_bits(activations)
    width = weight_bits / max(sum(layer.weight_volume for layer in head), 1)
    flags = (kind, "over-memory") if edge_bits > memory_bits else (kind,)
    is_edge_only = rank == table.layers[-1].rank
    return Configuration(
        name="-".join((f"w{width:.2f}", cut, f"a{average}", *flags)),
        cut=cut,
        weights=weights,
        activations=activations,
        transmitted_bits=0 if is_edge_only else table.sent_bits(rank, activations),
        error=total_error(head, weights, activations),
        edge_bits=edge_bits,
        flags=flags,
    )


def _allocate_activations(
    layers: Sequence[FusedLayer], average: float, widths: tuple[int, ...]
) -> dict[str, int] | None:
    choices = [_choice(c.name, c.volume_out, c.activation_errors, widths) for c in layers]
    return _allocate(choices, average * sum(choice.elements for choice in choices))


def _allocate_weights(
    layers: Sequence[FusedLayer], limit_bits: int, widths: tuple[int, ...]
) -> dict[str, int] | None:
    weighted = [layer for layer in layers if layer.weight_volume]
    return _allocate(
        [_choice(c.name, c.weight_volume, c.weight_errors, widths) for c in weighted], limit_bits
    )


def _allocate(choices: Sequence[TensorChoice], limit_bits: float) -> dict[str, int] | None:
    if limit_bits < 0:
        return None
    try:
        found = lagrangian(choices, limit_bits)
    except NoFeasiblePlanError:
        return None
    return {choice.name: width for choice, width in zip(choices, found, strict=True)}


def _choice(
    name: str, elements: int, errors: Mapping[int, float], widths: tuple[int, ...]
) -> TensorChoice:
    return TensorChoice(name, elements, widths, tuple(errors[width] for width in widths))
