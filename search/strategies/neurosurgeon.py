"""Neurosurgeon: cut a network after the best of its layers, as if the layers were a chain.

Y. Kang, J. Hauswald, C. Gao, A. Rovinski, T. Mudge, J. Mars and L. Tang, "Neurosurgeon:
Collaborative Intelligence Between the Cloud and Mobile Edge", ASPLOS 2017.

It was made for chains. On a network with branches it orders the layers topologically and sees only
the chosen layer's own output on the wire, not the skip connections that cross beside it. So what it
predicts may be less than what its choice costs: `CostGraph.latency_ms` says the latter.
"""

from collections.abc import Iterator
from itertools import accumulate

from search.prediction.candidates import Candidate
from search.strategies.base import StrategyInputs
from search.strategies.baselines import one_cut
from search.strategies.costs import CostGraph


def neurosurgeon(costs: CostGraph) -> tuple[str, ...]:
    """The head of the layer with the least predicted latency, in topological order.

    Cloud-only counts as a cut after the image. Edge-only sends nothing and waits for nothing. Of
    equal predictions the smallest head wins.
    """
    names = tuple(node.name for node in costs.body)
    edge = list(accumulate((costs.edge_ms[name] for name in names), initial=0.0))
    cloud = list(accumulate((costs.cloud_ms[name] for name in reversed(names)), initial=0.0))[::-1]
    sent = [costs.transmit_ms[name] + costs.rtt_ms for name in (costs.image, *names[:-1])]
    predicted = [sum(parts) for parts in zip(edge, [*sent, 0.0], cloud, strict=True)]
    return names[: predicted.index(min(predicted))]


def plans(inputs: StrategyInputs) -> Iterator[Candidate]:
    """The plan of that head."""
    return one_cut(neurosurgeon, inputs)
