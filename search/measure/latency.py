"""Measured latency of heads on the edge and of tails in the cloud.

Per-layer times do not add up once a runtime fuses operators, so the prefix and the suffix of every
cut are timed as the models that would be deployed.
"""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from common.codec.context import FAST
from common.machine import cpu_model, usable_cores
from common.runtime.registry import DEFAULT_RUNTIME, open_model, runtime_name
from common.tables.timing import NO_TIME, Timing, interleave
from search.cache import Cache
from search.network.cuts import Cut
from search.network.graph import IMAGE
from search.prediction.cut_times import CutTimes
from search.quantization.export import SharedWeights, head_model, tail_model, write_weights
from search.quantization.network import QuantizedGraph

_GROUP = 8
_GROUP_BYTES = 1 << 30
"""Weights of the models that are open at a time."""
_ROUNDS, _FEWEST_ROUNDS = 9, 3
_ROUND_MACS = 1e11
"""Multiplications of all rounds of one cut: a network of 11 GMACs has nine rounds, none under 3."""


class MeasuredLatency:
    """Times the models of each cut on this machine.

    Args:
        network: The quantized network.
        cache: For measured times.
        origin: Digest of what the network was made from.
        folder: For the tails and their weights while they are timed.
        head_threads: Threads of the edge's runtime.
        tail_threads: Threads of the cloud's runtime.
        runtime: Name of the runtime of both.
        rounds: Runs of each model; fewer of a network that takes seconds, if None.
    """

    def __init__(
        self,
        network: QuantizedGraph,
        folder: Path,
        *,
        cache: Cache,
        origin: str,
        head_threads: int = 1,
        tail_threads: int = 1,
        runtime: str = DEFAULT_RUNTIME,
        rounds: int | None = None,
    ) -> None:
        graph = network.graph
        macs = max(sum(node.macs for node in graph.nodes), 1)
        usual = max(_FEWEST_ROUNDS, min(_ROUNDS, int(_ROUND_MACS / macs)))
        rounds = usual if rounds is None else rounds
        stored = 5 * sum(node.parameters for node in graph.nodes)  # a head and a tail
        self._group = max(1, min(_GROUP, _GROUP_BYTES // max(stored, 1)))
        self._network = network
        self._folder = folder
        self._cache = cache
        place = timing_place(runtime)
        self._inputs = (origin, head_threads, tail_threads, rounds, place, Timing._fields)
        self._runtime = runtime
        self._head_threads = head_threads
        self._tail_threads = tail_threads
        self._rounds = rounds

    def times(
        self, cuts: Sequence[Cut], progress: Callable[[int, int], None]
    ) -> dict[str, CutTimes]:
        """Implement `LatencySource.times`; a few cuts are open at a time, to bound memory."""
        weights = SharedWeights.of(self._network.graph.nodes)
        write_weights(self._folder, weights)
        table: dict[str, CutTimes] = {}
        for start in range(0, len(cuts), self._group):
            group = cuts[start : start + self._group]
            rows = self._cache.json(
                "latency",
                [self._inputs, [cut.name for cut in group]],
                partial(self._measured, group, weights),
            )
            for cut, (head, tail) in zip(group, rows, strict=True):
                table[cut.name] = CutTimes(Timing(*head), Timing(*tail))
            progress(start + len(group), len(cuts))
        return table

    def _measured(self, cuts: Sequence[Cut], weights: SharedWeights) -> list[tuple[Timing, Timing]]:
        """Times of the heads and tails of some cuts, interleaved."""
        calls = [
            call for cut in cuts for call in (self._head(cut, weights), self._tail(cut, weights))
        ]
        measured = iter(interleave([c for c in calls if c is not None], rounds=self._rounds))
        each = [NO_TIME if call is None else next(measured) for call in calls]
        return list(zip(each[::2], each[1::2], strict=True))

    def _head(self, cut: Cut, weights: SharedWeights) -> Callable[[], object] | None:
        if not cut.head:
            return None
        data = head_model(self._network, cut.codes)
        model = open_model(data, threads=self._head_threads, runtime=self._runtime)
        shape = self._network.graph[IMAGE].shape
        image = np.random.default_rng(0).integers(0, 256, (1, *shape), np.uint8)
        if not cut.rest:
            return lambda: model.run({IMAGE: image})
        rest = self._behind(cut, weights, self._head_threads)
        return lambda: (model.run({IMAGE: image}), rest())

    def _tail(self, cut: Cut, weights: SharedWeights) -> Callable[[], object] | None:
        return self._behind(cut, weights, self._tail_threads) if cut.tail else None

    def _behind(self, cut: Cut, weights: SharedWeights, threads: int) -> Callable[[], object]:
        path = self._folder / "tail.onnx"
        path.write_bytes(tail_model(self._network.graph, cut, weights))
        model = open_model(path, threads=threads, runtime=self._runtime)
        rng = np.random.default_rng(0)
        inputs = {
            name: rng.standard_normal((1, *self._network.graph[name].shape), np.float32)
            for name in cut.codes
        }
        return lambda: model.run(inputs)


def timing_place(runtime: str = DEFAULT_RUNTIME) -> tuple[str, float, str, bool]:
    """Properties of the machine that times depend on, for the cache keys of times.

    Processor, cores that this process may use, runtime, and whether the context coder is compiled:
    a cache that is carried to another machine gives none of this one's times there.
    """
    return cpu_model(), usable_cores(), runtime_name(1, runtime), FAST
