"""Options whose choices are the search's: edge and cloud do without its packages."""

from typing import Annotated

import typer

from common.choices import in_words
from search.quantization.recipes import RECIPES
from search.strategies import BASELINES, OWN

Strategy = Annotated[
    str,
    typer.Option(
        help=f"Search strategy: ours ({in_words(OWN)}), or a baseline ({in_words(BASELINES)})."
    ),
]
Quantizer = Annotated[
    str | None,
    typer.Option(
        help=f"Quantization recipe for layers below 8 bits: {in_words(RECIPES)}; unset: "
        "`default`, or that of the baseline strategy."
    ),
]
