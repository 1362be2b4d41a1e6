"""Images as networks take them: scaling from [0, 1], red first, and sizes that would fit."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from search.network.graph import IMAGE
from search.network.importers.calls import GraphBuilder

_MULTIPLES = (2, 4, 8, 16, 32, 64, 128)


@dataclass(frozen=True)
class InputScaling:
    """Scaling and order that make the network's input of an image in [0, 1], red first.

    Attributes:
        mean: By channel of the network's input, in units of the image.
        std: By channel: input = (image - mean) / std.
        blue_first: Whether the network's channels are blue, green, red.
        channels_last: Whether the input is (N, H, W, C).
    """

    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    std: tuple[float, ...] = (1.0, 1.0, 1.0)
    blue_first: bool = False
    channels_last: bool = False


def scale_image(builder: GraphBuilder, name: str, scaling: InputScaling) -> None:
    """Append the nodes that make the network's input `name` of the image."""
    made = IMAGE
    if scaling.blue_first:
        order = {"order": (2, 1, 0)}
        made = builder.append(f"{name}/ordered", "gather", (made,), attributes=order)
    if scaling.mean != (0.0, 0.0, 0.0) or scaling.std != (1.0, 1.0, 1.0):
        gain = 1 / np.array(scaling.std, np.float64)
        offset = -np.array(scaling.mean) * gain
        made = builder.append(
            f"{name}/scaled",
            "scale",
            (made,),
            weight=gain.astype(np.float32),
            bias=offset.astype(np.float32),
        )
    if scaling.channels_last:
        last = {"order": (0, 2, 3, 1)}
        made = builder.append(f"{name}/moved", "transpose", (made,), attributes=last)
    builder.rename(made, name)


def size_advice(size: tuple[int, int], fits: Callable[[tuple[int, int]], bool]) -> str:
    """Say which size would fit instead; empty if rounding up to multiples does not help.

    Args:
        size: (height, width) that does not.
        fits: Whether the network takes a size.
    """
    for multiple in _MULTIPLES:
        height, width = (-(-side // multiple) * multiple for side in size)
        if (height, width) != size and fits((height, width)):
            return (
                f"an image of {size[0]}x{size[1]} does not fit this network, {height}x{width} "
                f"would: give an --image-size of multiples of {multiple}"
            )
    return ""
