"""Tail adaptation: fine-tuning a copy of the tail for the input that a wire format leaves.

A coarse wire format takes detail away, and a tail that never saw such input makes too little of
what is left. It is trained to give, from dequantized symbols, the maps that the floating-point
network gives from the pixels: self-distillation, without labels (Hinton et al., 2015). For a
detector, every anchor's objectness counts, and its classes and box by how much of an object the
teacher saw there; for other networks, the squared error of the maps in units of their deviation.

The loss on held-out images decides: the best state seen is returned, the unadapted tail
among them, so adaptation never makes a tail worse there.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from common.codec.spec import WireTensor
from search.network.cuts import Cut
from search.network.execute import apply
from search.network.graph import Node
from search.network.losses import Loss
from search.wire.training_data import Examples

Wire = tuple[WireTensor, ...]
Progress = Callable[[int, int, str], None]

ADAPTATION_GAIN = 2.0
"""Least factor by which adaptation cuts the loss; YOLOv3-tiny: 2.4, 25 steps on 24 pictures."""
BATCH = 8
# Between two that were compared on YOLOv3-tiny's conv_8, in one run each: 2e-5 is better by some
# percent for a fine format (loss of 1.3 before), 6e-5 for a coarse one (4.7).
LEARNING_RATE = 3e-5
_WARM_UP = 0.1
# A schedule that warms up over a step or none divides by zero; a shorter run stops on its way up.
_LEAST_STEPS = round(2 / _WARM_UP)
_CHECK_EVERY = 25


@dataclass(frozen=True, eq=False)
class Adapted:
    """An adapted tail.

    Attributes:
        cut: The cut, its tail's weights replaced.
        before: Loss on held-out images, unadapted.
        after: Loss on held-out images of the state that is returned.
        steps: Number of steps from the first state to this one.
    """

    cut: Cut
    before: float
    after: float
    steps: int

    @property
    def is_better(self) -> bool:
        """Whether adaptation has reduced the held-out loss."""
        return self.after < self.before


def adapt_tail(
    outputs: Sequence[str],
    cut: Cut,
    wire: Wire,
    examples: Examples,
    loss: Loss,
    *,
    steps: int,
    adapted_to: str,
    start: Cut | None = None,
    progress: Progress = lambda _done, _total, _note: None,
) -> Adapted:
    """Adapt the tail of a cut to a wire format; on a GPU if there is one.

    Args:
        outputs: Names of the tensors that the loss compares.
        cut: A cut with a tail.
        wire: How its tensors travel.
        examples: With codes of the cut's tensors.
        loss: Of the tail's maps against the teacher's, per image.
        steps: Steps of Adam, each on 8 examples.
        adapted_to: Name of the wire format.
        start: The cut with a tail adapted to another format, to begin with if it is better here.
        progress: Called with steps done, in total, and the loss on held-out images.
    """
    tail = _TorchTail(outputs, cut, wire, _device())
    before = best = tail.held_out_loss(examples, loss)
    kept, kept_steps = tail.snapshot(), 0
    if start is not None:
        neighbour = _TorchTail(outputs, start, wire, _device())
        now = neighbour.held_out_loss(examples, loss)
        if now < best:
            tail, best, kept = neighbour, now, neighbour.snapshot()
    if not tail.parameters:  # a tail that only reshapes, behind a classifier's last layer
        return Adapted(cut, before, before, 0)
    optimizer = torch.optim.Adam(tail.parameters.values(), lr=LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=LEARNING_RATE, total_steps=max(steps, _LEAST_STEPS), pct_start=_WARM_UP
    )
    rng = np.random.default_rng(0)
    order: list[int] = []
    for step in range(1, steps + 1):
        if len(order) < BATCH:
            order = rng.permutation(np.arange(examples.held_out, len(examples))).tolist()
        batch, order = order[:BATCH], order[BATCH:]
        optimizer.zero_grad()
        torch.autograd.backward(tail.loss(examples, batch, loss))
        optimizer.step()
        schedule.step()
        if step % _CHECK_EVERY == 0 or step == steps:
            now = tail.held_out_loss(examples, loss)
            if now < best:
                best, kept, kept_steps = now, tail.snapshot(), step
        progress(step, steps, f"loss {before:.3f} -> {best:.3f}")
    nodes = tuple(_with(node, kept) for node in cut.tail)
    return Adapted(replace(cut, tail=nodes, adapted_to=adapted_to), before, best, kept_steps)


def wire_error(
    outputs: Sequence[str], cut: Cut, wire: Wire, examples: Examples, loss: Loss
) -> float:
    """Loss of the unadapted tail on held-out images behind a wire format."""
    return _TorchTail(outputs, cut, wire, _device()).held_out_loss(examples, loss)


def _needed(cut: Cut, outputs: Sequence[str]) -> tuple[Node, ...]:
    """The nodes of a tail that make some tensors."""
    wanted = set(outputs)
    nodes = []
    for node in reversed(cut.tail):
        if node.name in wanted:
            wanted.update(node.inputs)
            nodes.append(node)
    return tuple(reversed(nodes))


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _with(node: Node, parameters: Mapping[str, NDArray[np.float32]]) -> Node:
    if f"{node.name}.weight" not in parameters:
        return node
    weight, bias = (parameters.get(f"{node.name}.{part}") for part in ("weight", "bias"))
    return replace(node, weight=weight, bias=bias)


def _channels_last(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor laid out as depthwise convolutions are fastest."""
    return tensor.contiguous(memory_format=torch.channels_last) if tensor.ndim == 4 else tensor


class _TorchTail:
    """The tail in torch, its weights trainable, fed with dequantized codes."""

    def __init__(self, outputs: Sequence[str], cut: Cut, wire: Wire, device: torch.device) -> None:
        self._outputs = outputs
        self._nodes = _needed(cut, outputs)
        self._device = device
        self._tables = {
            tensor.name: torch.tensor(
                [tensor.to_value[symbol] for symbol in tensor.to_symbol], device=device
            )
            for tensor in wire
        }
        self.parameters = {
            f"{node.name}.{part}": _channels_last(
                torch.tensor(array, device=device)
            ).requires_grad_()
            for node in self._nodes
            if node.op == "conv"
            for part, array in (("weight", node.weight), ("bias", node.bias))
            if array is not None
        }

    def loss(self, examples: Examples, batch: list[int], loss: Loss) -> torch.Tensor:
        teacher = [torch.from_numpy(maps[batch]).to(self._device).float() for maps in examples.maps]
        return loss(self._run(examples, batch), teacher)

    def held_out_loss(self, examples: Examples, loss: Loss) -> float:
        total = 0.0
        with torch.inference_mode():
            for start in range(0, examples.held_out, BATCH):
                batch = list(range(start, min(start + BATCH, examples.held_out)))
                total += len(batch) * float(self.loss(examples, batch, loss))
        return total / examples.held_out

    def snapshot(self) -> dict[str, NDArray[np.float32]]:
        return {name: p.detach().cpu().numpy().copy() for name, p in self.parameters.items()}

    def _run(self, examples: Examples, batch: list[int]) -> list[torch.Tensor]:
        values = {}
        for name, table in self._tables.items():
            codes = torch.from_numpy(examples.codes[name][batch]).to(self._device)
            values[name] = _channels_last(table[codes.long()])
        for node in self._nodes:
            inputs = [values[name] for name in node.inputs]
            values[node.name] = apply(node, inputs, self.parameters)
        return [values[name] for name in self._outputs]
