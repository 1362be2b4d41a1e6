"""Sensitivity: what rounding one layer does to the network's output, for every layer and width.

    measured   the loss of the network's maps with this layer alone rounded: exact, but expensive
    fisher     sum of E[g^2] times the squared rounding error, g the gradient of the loss: the
               diagonal of the Fisher information (Theis et al., "Faster gaze prediction with dense
               networks and Fisher pruning", 2018), half of it the loss to second order
    squared    the squared rounding error per element of the network: the original's criterion

All three are sums over layers when it comes to a whole configuration. They order configurations;
accuracy is measured.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray

from common.choices import one_of
from common.imaging.images import unit_range
from search.network import execute
from search.network.graph import Graph, Node
from search.network.losses import Loss, feature_loss
from search.network.operators.registry import last_computable
from search.network.quant_params import QuantParams
from search.quantization.calibration import Statistics
from search.quantization.grids import least_error_range
from search.quantization.network import QuantizedGraph
from search.quantization.recipe import rounded
from search.quantization.recipes import Recipe
from search.quantization.widths import WIDTHS, Configuration, uniform

Progress = Callable[[int, int], None]
Errors = dict[str, dict[int, float]]
"""Errors by layer and width."""

_BATCH = 4


@dataclass(frozen=True)
class Sensitivity:
    """Error that each layer's weights, and its output tensor, add at each width."""

    weights: Errors
    activations: Errors

    def of(self, widths: Configuration, layers: Sequence[str]) -> float:
        """The error of a configuration of some layers."""
        return sum(
            self.weights[name][widths[name].weight]
            + self.activations[name][widths[name].activation]
            for name in layers
        )

    def to_arrays(self) -> dict[str, NDArray[np.float64]]:
        """Convert to arrays for the cache: the errors of each layer at `WIDTHS`."""
        return {
            f"{side}:{name}": np.array([errors[bits] for bits in WIDTHS])
            for side in _SIDES
            for name, errors in getattr(self, side).items()
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[np.float64]]) -> "Sensitivity":
        """Restore the errors from the arrays of `to_arrays`."""
        sides: dict[str, Errors] = {side: {} for side in _SIDES}
        for key, values in arrays.items():
            side, _, name = key.partition(":")
            sides[side][name] = dict(zip(WIDTHS, values.tolist(), strict=True))
        return cls(**sides)


_SIDES = ("weights", "activations")

How = Literal["measured", "fisher", "squared"]
HOWS: tuple[How, ...] = get_args(How)


def sensitivity_of(name: str) -> How:
    """Check the name of a way to weigh errors.

    Raises:
        SettingsError: If there is none of that name.
    """
    return one_of(name, HOWS, "sensitivity")


class _Rounded:
    """Every layer's weights and tensors at every width."""

    def __init__(self, graph: Graph, statistics: Statistics) -> None:
        self.graph = graph
        self.layers = [node for node in graph.nodes if node.op == "conv"]
        plain = Recipe(rounding="nearest")
        self._networks: dict[int, QuantizedGraph] = {
            bits: rounded(graph, statistics, uniform(graph, bits), plain) for bits in WIDTHS
        }
        self._grids = {
            (node.name, bits): QuantParams.over(
                *least_error_range(statistics.after[node.name], bits), bits
            )
            for node in self.layers
            for bits in WIDTHS
        }

    def weight(self, node: Node, bits: int) -> NDArray[np.float32]:
        return self._networks[bits].convs[node.name].real

    def tensor(self, node: Node, bits: int, values: torch.Tensor) -> torch.Tensor:
        grid = self._grids[node.name, bits]
        steps = torch.round(values / grid.scale) + grid.zero_point
        return (steps.clamp(0, grid.top) - grid.zero_point) * grid.scale


def measured(
    graph: Graph,
    statistics: Statistics,
    frames: NDArray[np.uint8],
    loss: Loss = feature_loss,
    progress: Progress = lambda _done, _total: None,
) -> Sensitivity:
    """Round one layer at a time and measure the loss per image.

    Args:
        graph: The network.
        statistics: Distributions of its tensors.
        frames: (N, 3, H, W) calibration images; 16 are enough.
        loss: Of maps against those of the network in floating point, per image.
        progress: Called with trials done and in all.
    """
    sides = _Rounded(graph, statistics)
    weights: Errors = {node.name: dict.fromkeys(WIDTHS, 0.0) for node in sides.layers}
    activations: Errors = {node.name: dict.fromkeys(WIDTHS, 0.0) for node in sides.layers}
    batches = [frames[start : start + _BATCH] for start in range(0, len(frames), _BATCH)]
    done, total = 0, len(batches) * len(sides.layers)
    for batch in batches:
        share = len(batch) / len(frames)
        values = _all_values(graph, batch)
        teacher = [values[name] for name in last_computable(graph)]
        for node in sides.layers:
            for bits in WIDTHS:
                for table, changed in (
                    (weights, _with_weight(sides, node, bits, values)),
                    (activations, sides.tensor(node, bits, values[node.name])),
                ):
                    maps = _outputs_with(graph, node, changed, values)
                    table[node.name][bits] += share * max(0.0, float(loss(maps, teacher)))
            done += 1
            progress(done, total)
    return Sensitivity(weights, activations)


def fisher(
    graph: Graph,
    statistics: Statistics,
    frames: NDArray[np.uint8],
    loss: Loss = feature_loss,
    progress: Progress = lambda _done, _total: None,
) -> Sensitivity:
    """Weigh squared rounding errors by half the mean squared gradient of the loss.

    The loss of a network against itself has no gradient, so it is taken against a teacher that saw
    the image with a little noise (seeded): the direction in which outputs can move at all.

    Args: as for `measured`.
    """
    sides = _Rounded(graph, statistics)
    weights: Errors = {node.name: dict.fromkeys(WIDTHS, 0.0) for node in sides.layers}
    activations: Errors = {node.name: dict.fromkeys(WIDTHS, 0.0) for node in sides.layers}
    generator = torch.Generator().manual_seed(0)
    parameters = {
        f"{node.name}.{part}": torch.from_numpy(array).clone().requires_grad_()
        for node in sides.layers
        for part, array in (("weight", node.weight), ("bias", node.bias))
        if array is not None
    }
    squares = {name: torch.zeros_like(value) for name, value in parameters.items()}
    for done, frame in enumerate(frames, 1):
        image = torch.from_numpy(unit_range(frame[None]))
        noisy = image + 0.02 * torch.randn(image.shape, generator=generator)
        maps = execute.run(graph, {graph.nodes[0].name: noisy}, last_computable(graph))
        teacher = [maps[name].clone() for name in last_computable(graph)]
        values = {graph.nodes[0].name: image}
        for node in graph.nodes[1:]:
            values[node.name] = execute.apply(node, [values[n] for n in node.inputs], parameters)
            if node in sides.layers:
                values[node.name].retain_grad()
        for parameter in parameters.values():
            parameter.grad = None
        torch.autograd.backward(loss([values[name] for name in last_computable(graph)], teacher))
        for name, parameter in parameters.items():
            if parameter.grad is not None:
                squares[name] += parameter.grad**2 / len(frames)
        for node in sides.layers:
            gradient, plain = values[node.name].grad, values[node.name].detach()
            for bits in WIDTHS:
                off = sides.tensor(node, bits, plain) - plain
                if gradient is not None:
                    added = 0.5 * float((gradient**2 * off**2).sum()) / len(frames)
                    activations[node.name][bits] += added
        progress(done, len(frames))
    for node in sides.layers:
        square = squares[f"{node.name}.weight"]
        for bits in WIDTHS:
            off = torch.from_numpy(sides.weight(node, bits)) - torch.from_numpy(_weight(node))
            weights[node.name][bits] = 0.5 * float((square * off**2).sum())
    return Sensitivity(weights, activations)


def squared(graph: Graph, statistics: Statistics) -> Sensitivity:
    """Squared errors summed over a layer's elements, per element of the network.

    Args:
        graph: The network.
        statistics: Distributions of its tensors.
    """
    sides = _Rounded(graph, statistics)
    volumes = (
        sum(_weight(node).size for node in sides.layers),
        sum(node.elements for node in sides.layers),
    )
    weights: Errors = {}
    activations: Errors = {}
    for node in sides.layers:
        distribution = statistics.after[node.name]
        centres = torch.from_numpy(distribution.centres).float()
        share = torch.from_numpy(distribution.counts / distribution.counts.sum())
        weights[node.name], activations[node.name] = {}, {}
        for bits in WIDTHS:
            off = sides.weight(node, bits) - _weight(node)
            weights[node.name][bits] = float(np.square(off).sum()) / volumes[0]
            noise = (sides.tensor(node, bits, centres) - centres) ** 2
            mean = float((noise * share).sum())
            activations[node.name][bits] = mean * node.elements / volumes[1]
    return Sensitivity(weights, activations)


def _weight(node: Node) -> NDArray[np.float32]:
    if node.weight is None:
        raise ValueError(f"{node.name} is no convolution")
    return node.weight


def _all_values(graph: Graph, frames: NDArray[np.uint8]) -> dict[str, torch.Tensor]:
    values = {graph.nodes[0].name: torch.from_numpy(unit_range(frames))}
    with torch.inference_mode():
        for node in graph.nodes[1:]:
            values[node.name] = execute.apply(node, [values[name] for name in node.inputs])
    return values


def _with_weight(
    sides: _Rounded, node: Node, bits: int, values: dict[str, torch.Tensor]
) -> torch.Tensor:
    """The layer's tensor with rounded weights, the mean error of each channel taken out."""
    changed = replace(node, weight=sides.weight(node, bits), activation=None)
    exact = replace(node, activation=None)
    inputs = [values[name] for name in node.inputs]
    with torch.inference_mode():
        sums, wanted = execute.apply(changed, inputs), execute.apply(exact, inputs)
        sums = sums - (sums - wanted).mean((0, 2, 3), keepdim=True)
        return node.activate(sums)


def _outputs_with(
    graph: Graph, changed: Node, tensor: torch.Tensor, values: dict[str, torch.Tensor]
) -> list[torch.Tensor]:
    """Maps with one tensor replaced; only what depends on it is computed."""
    current = {changed.name: tensor}
    with torch.inference_mode():
        for node in graph.nodes:
            if node.name not in current and any(name in current for name in node.inputs):
                inputs = [current.get(name, values[name]) for name in node.inputs]
                current[node.name] = execute.apply(node, inputs)
    return [current.get(name, values[name]) for name in last_computable(graph)]


def weigh(
    how: How,
    graph: Graph,
    statistics: Statistics,
    frames: NDArray[np.uint8],
    loss: Loss,
    progress: Progress,
) -> Sensitivity:
    """Errors by one of the ways; arguments as for `measured`."""
    if how == "squared":
        return squared(graph, statistics)
    weighed = measured if how == "measured" else fisher
    return weighed(graph, statistics, frames, loss, progress)
