"""Simulated accelerators: milliseconds of a layer on a systolic array, by its shape and bit widths.

    convolution -> matrix product (pixels x taps) by (taps x channels) -> cycles of the array
    weights, inputs, output at their widths -> bytes -> cycles of the DMA
    ms = 1000 (cycles of the array / utilisation + cycles of the DMA) / clock

The array keeps weights in place, as SCALE-Sim models both Eyeriss and the TPU: a fold of `rows`
taps and `columns` channels is loaded, then a pixel enters in each cycle (A. Samajdar, J. M. Joseph,
Y. Zhu, P. Whatmough, M. Mattina and T. Krishna, "A Systematic Methodology for Characterizing
Scalability of DNN Accelerators using SCALE-Sim", ISPASS 2020, equations 1 to 4):

    cycles = groups x ceil(taps / rows) x ceil(channels / columns) x (2 rows + columns + pixels - 2)

A multiplication takes a cycle whatever its widths: fewer bits are faster because less is moved. The
DMA moves weights once; tensors too, once for each layer that reads or makes them, unless the chip
keeps them. It takes turns with the array. So times of layers add up, and each is a constant plus a
term for each tensor in proportion to its width. Joins, slices and reshapes are addresses only.

`EYERISS_LIKE` and `TPU_LIKE` are the designs of the original Auto-Split's experiment: its arrays,
clocks and DMA, which are edited here. Its edge is slower than its array could be, and its latencies
fall with the widths of weights alone: `utilisation` and `keeps_tensors` are chosen so that the one
chart of it that could be verified comes out (bench/autosplit/published.py).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from common.errors import SettingsError
from search.network.graph import Graph, Node

_ADDRESSES_ONLY = frozenset({"concat", "input", "reshape", "slice"})


@dataclass(frozen=True)
class MatrixProduct:
    """A layer as an array computes it: `groups` products of (pixels, taps) by (taps, channels)."""

    pixels: int
    taps: int
    channels: int
    groups: int = 1


@dataclass(frozen=True)
class Accelerator:
    """A systolic array with a DMA.

    Attributes:
        name: Of the design.
        rows: Processing elements that the taps of a kernel are spread over.
        columns: Processing elements that output channels are spread over.
        clock_hz: Clock of the array and of the DMA.
        dma_cycles_per_byte: Cycles to move a byte from or to memory.
        utilisation: Share of the array's cycles that do work; below 1 for what its shape does not
            say, such as a schedule that stalls.
        keeps_tensors: Whether what layers read and make stays on the chip, so that the DMA moves
            weights alone.

    Raises:
        SettingsError: If a number is not positive, or the utilisation exceeds 1.
    """

    name: str
    rows: int
    columns: int
    clock_hz: float
    dma_cycles_per_byte: float
    utilisation: float = 1.0
    keeps_tensors: bool = False

    def __post_init__(self) -> None:
        numbers = (self.rows, self.columns, self.clock_hz, self.dma_cycles_per_byte)
        if min(numbers) <= 0 or not 0 < self.utilisation <= 1:
            raise SettingsError(
                f"{self.name}: rows, columns, clock and DMA have to be positive, and the "
                f"utilisation at most 1; got {numbers} and {self.utilisation}"
            )

    def product_cycles(self, product: MatrixProduct) -> int:
        """Cycles of the array at full utilisation."""
        folds = math.ceil(product.taps / self.rows) * math.ceil(product.channels / self.columns)
        return product.groups * folds * (2 * self.rows + self.columns + product.pixels - 2)

    def array_ms(self, node: Node) -> float:
        """Time of the array alone, whatever the widths; 0 of a node without products."""
        product = matrix_product(node)
        cycles = 0 if product is None else self.product_cycles(product)
        return 1e3 * cycles / self.utilisation / self.clock_hz

    def moving_ms(self, bits: float) -> float:
        """Time to move a number of bits."""
        return 1e3 * bits / 8 * self.dma_cycles_per_byte / self.clock_hz

    def layer_ms(
        self, graph: Graph, node: Node, weight_bits: int, tensor_bits: Mapping[str, int]
    ) -> float:
        """Time of one node.

        Args:
            graph: Its network.
            node: The node.
            weight_bits: Width of its weights.
            tensor_bits: Widths of what it reads and makes, by name.
        """
        bits = weight_volume(node) * weight_bits
        bits += sum(graph[name].elements * tensor_bits[name] for name in self.moved(node))
        return self.array_ms(node) + self.moving_ms(bits)

    def moved(self, node: Node) -> tuple[str, ...]:
        """Names of the tensors that a node moves: all that it reads, and what it makes."""
        stays = self.keeps_tensors or node.op in _ADDRESSES_ONLY
        return () if stays else (*node.inputs, node.name)


EYERISS_LIKE = Accelerator("Eyeriss-like", 7 * 4, 12, 202.38e6, 0.202, 0.2625, keeps_tensors=True)
TPU_LIKE = Accelerator("TPU-like", 7 * 6, 128, 1464.84e6, 0.113, keeps_tensors=True)


def matrix_product(node: Node) -> MatrixProduct | None:
    """The product that a node is; None of a node without one."""
    if not node.macs or node.weight is None:
        return None
    groups = int(node.attributes.get("groups", 1))
    channels = len(node.weight)
    return MatrixProduct(
        pixels=node.macs // node.weight.size,
        taps=node.weight.size // channels,
        channels=channels // groups,
        groups=groups,
    )


def weight_volume(node: Node) -> int:
    """Number of weights, biases apart."""
    return 0 if node.weight is None else node.weight.size
