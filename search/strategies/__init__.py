"""Strategies that choose a plan: our own search, published systems and simple baselines.

A new one is a file here, with a function from `StrategyInputs` to candidates, and an entry in
`BASELINES`. Entries are names, so that the command line can list them without loading any.
"""

from collections.abc import Mapping
from importlib import import_module
from types import MappingProxyType
from typing import TYPE_CHECKING

from common.choices import one_of

if TYPE_CHECKING:
    from search.strategies.base import Baseline

OWN = ("splitpoint", "cloud-only")
"""Our own search, and the same with a single cut."""

BASELINES: Mapping[str, str] = MappingProxyType(
    {
        "edge-only": "baselines:edge_only_plans",
        "neurosurgeon": "neurosurgeon:plans",
        "dads": "min_cut:dads_plans",
        "qdmp": "min_cut:qdmp_plans",
        "auto-split-v1": "baselines:auto_split_v1_plans",
        "auto-split-v2": "baselines:auto_split_v2_plans",
    }
)
"""Other strategies: module in this package, and the function that yields candidates."""

STRATEGIES = (*OWN, *BASELINES)


def known_strategy(name: str) -> str:
    """Check the name of a strategy.

    Raises:
        SettingsError: If there is none of that name.
    """
    return one_of(name, STRATEGIES, "strategy")


def baseline(name: str) -> "Baseline":
    """Load the function of a baseline."""
    module, _, function = BASELINES[name].partition(":")
    loaded: Baseline = getattr(import_module(f"{__name__}.{module}"), function)
    return loaded
