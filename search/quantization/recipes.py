"""Registry of recipes: named settings of post-training quantization, to choose and compare.

Nothing is imported that computes, so that the command line can list the names.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

from common.choices import one_of

if TYPE_CHECKING:
    from search.quantization.grids import Clipping
    from search.quantization.network import Rounding


@dataclass(frozen=True)
class Recipe:
    """Settings of post-training quantization.

    Attributes:
        clipping: How ranges of activations are chosen.
        weight_clipping: How those of weights are chosen, where they have fewer than 8 bits.
        rounding: How weights of 6 bits and less are rounded.
        correct_bias: Whether the mean error of each channel is taken out of its bias.
        joint: Whether the ranges of a head are chosen together, by the loss of the network.
    """

    clipping: "Clipping" = "mse"
    weight_clipping: "Clipping" = "mse"
    rounding: "Rounding" = "descent"
    correct_bias: bool = True
    joint: bool = False


DEFAULT = Recipe()
RECIPES: Mapping[str, Recipe] = MappingProxyType(
    {
        "default": DEFAULT,
        "adaround": Recipe(rounding="adaround"),
        # Clips activations only: weights keep their range and get their biases corrected.
        "aciq": Recipe("aciq", "minmax", "nearest"),
        "nearest": Recipe(rounding="nearest"),
        "lapq": Recipe(rounding="nearest", joint=True),
        "minmax": Recipe("minmax", "minmax", "nearest", correct_bias=False),
    }
)


def recipe(name: str) -> Recipe:
    """Look a recipe up.

    Raises:
        SettingsError: If there is none of that name.
    """
    return RECIPES[one_of(name, RECIPES, "quantizer")]
