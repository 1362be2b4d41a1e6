"""Strategies that choose a plan: our own search, published systems and simple baselines."""

from typing import Literal, get_args

from common.choices import one_of

Strategy = Literal[
    "splitpoint",
    "cloud-only",
    "edge-only",
    "neurosurgeon",
    "dads",
    "qdmp",
    "auto-split-v1",
    "auto-split-v2",
]
STRATEGIES: tuple[Strategy, ...] = get_args(Strategy)


def known_strategy(name: str) -> Strategy:
    """Check the name of a strategy.

    Raises:
        SettingsError: If there is none of that name.
    """
    return one_of(name, STRATEGIES, "strategy")
