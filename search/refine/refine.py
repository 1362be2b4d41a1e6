"""Refinement: a search for the best wire formats of a cut.

    cut -> rate curve -> cheapest point that is accurate enough as it is -> candidates
                      -> cheaper ones, each with a tail adapted to it    -> candidates

Accuracy depends on a point and its tail alone, so points are measured as they are, in seconds,
before context models are fitted to any, in a minute. Adapting a tail takes minutes, so few points
are tried, from the finest down.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeVar

from common.codec import Codec, ContextModel, make_codec
from common.codec.context import ContextCoded
from common.codec.spec import CodecSpec
from common.progress import Progress, Reporter
from search.network.cuts import Cut
from search.network.losses import Loss
from search.network.operators.registry import last_computable
from search.prediction.candidates import Candidate
from search.quantization.heads import Heads
from search.wire.context_fitting import fit_context
from search.wire.quantizers import tensor_codecs
from search.wire.rate_curve import RateCurve, rate_curve, symbols_of
from search.wire.sampling import code
from search.wire.tail_adaptation import Wire, adapt_tail
from search.wire.training_data import Examples, Pairs

Option = TypeVar("Option")

CONTEXT = CodecSpec(name="context")


class Refiner:
    """Searches wire formats of cuts.

    Args:
        heads: The integer networks.
        examples: With codes of the cuts' tensors.
        loss: Loss of the tail's maps against the teacher's.
        adapt_steps: Steps of tail adaptation; 0 leaves the tails unadapted.
        reporter: Receives progress.
        pairs: Frames and those before them, if frames will come in sequence.
        context_steps: Steps of fitting context models to a cut; half as many for each format.
    """

    def __init__(
        self,
        heads: Heads,
        examples: Examples,
        loss: Loss,
        adapt_steps: int,
        reporter: Reporter,
        *,
        pairs: Pairs | None = None,
        context_steps: int = 500,
    ) -> None:
        self._heads = heads
        self._network = heads.network
        self._examples = examples
        self._loss = loss
        self._adapt_steps = adapt_steps
        self._reporter = reporter
        self._pairs = pairs
        self._context_steps = context_steps
        self._adapted: dict[str, Cut] = {}

    def curve(self, cut: Cut) -> RateCurve:
        """Rate curve of a cut: its best wire formats."""
        return rate_curve(
            self._network,
            cut,
            self._examples,
            self._loss,
            context_steps=self._context_steps,
            progress=self._reporter.stage(f"searching formats of {cut.name}"),
        )

    def options(self, cut: Cut, curve: RateCurve, wire: Wire) -> tuple[Candidate, ...]:
        """Candidates of one wire format: the context coder, then other codecs, all unadapted.

        The format need not be on the curve, whose context models only initialise the fit.
        """
        contexts = self._fit(cut, wire, curve.contexts)
        in_context = self._candidate(cut, wire, CONTEXT, contexts)
        # The bytes of a format distinguish it from the others of its cut.
        label = f"{in_context.payload_bytes / 1000:.2f} KB"
        if self._pairs is not None:
            after = self._fit_after(self._pairs, label, wire, contexts)
            more = sum(len(model.to_bytes()) for model in after)
            in_context = replace(
                in_context, contexts_after=after, weight_bytes=in_context.weight_bytes + more
            )
        others = (self._candidate(cut, wire, spec, ()) for spec in tensor_codecs(wire))
        return tuple(replace(option, label=label) for option in (in_context, *others))

    def adapted(self, cut: Cut, wire: Wire, label: str) -> Cut:
        """The cut with a tail adapted to a wire format; the same cut if that is no better."""
        if not self._adapt_steps:
            return cut
        adapted = adapt_tail(
            last_computable(self._network.graph),
            cut,
            wire,
            self._examples,
            self._loss,
            steps=self._adapt_steps,
            adapted_to=label,
            start=self._adapted.get(cut.name),
            progress=self._reporter.stage(f"adapting the tail to {label}"),
        )
        if not adapted.is_better:
            return cut
        self._adapted[cut.name] = adapted.cut
        return adapted.cut

    def _fit(
        self, cut: Cut, wire: Wire, start: tuple[ContextModel, ...]
    ) -> tuple[ContextModel, ...]:
        progress = self._reporter.stage(f"fitting contexts of {cut.name}")
        return tuple(
            fit_context(
                symbols_of(tensor, self._examples.codes[tensor.name][self._examples.held_out :]),
                1 << tensor.bits,
                start=known,
                most_steps=self._context_steps // 2,
                progress=_part(progress, index, len(wire)),
            )
            for index, (tensor, known) in enumerate(zip(wire, start, strict=True))
        )

    def _fit_after(
        self, pairs: Pairs, label: str, wire: Wire, start: tuple[ContextModel, ...]
    ) -> tuple[ContextModel, ...]:
        progress = self._reporter.stage(f"fitting sequences to {label}")
        return tuple(
            fit_context(
                symbols_of(tensor, pairs.codes[tensor.name]),
                1 << tensor.bits,
                previous=symbols_of(tensor, pairs.before[tensor.name]),
                start=known,
                most_steps=self._context_steps // 2,
                progress=_part(progress, index, len(wire)),
            )
            for index, (tensor, known) in enumerate(zip(wire, start, strict=True))
        )

    def _candidate(
        self,
        cut: Cut,
        wire: Wire,
        spec: CodecSpec,
        contexts: tuple[ContextModel, ...],
    ) -> Candidate:
        weight_bytes, activation_bytes = self._heads.memory_bytes(cut)
        codecs: Sequence[Codec] = [ContextCoded(model) for model in contexts]
        costs = [
            code(self._examples.codes[tensor.name][: self._examples.held_out], tensor, codec)
            for tensor, codec in zip(wire, codecs or [make_codec(spec)] * len(wire), strict=True)
        ]
        return Candidate(
            cut=cut,
            wire=wire,
            codec=spec,
            payload_bytes=sum(cost.payload_bytes for cost in costs),
            encode_ms=sum(cost.encode_ms for cost in costs),
            decode_ms=sum(cost.decode_ms for cost in costs),
            weight_bytes=weight_bytes + sum(len(model.to_bytes()) for model in contexts),
            activation_bytes=activation_bytes,
            contexts=contexts,
        )


def _part(progress: Progress, index: int, parts: int) -> Callable[[int, int], None]:
    """Progress of one of several equal parts."""
    return lambda done, total: progress(index * total + done, parts * total)


def cheapest(
    options: Sequence[Option],
    is_feasible: Callable[[Option], bool],
    *,
    trials: int,
    is_affordable: Callable[[Option], bool] = lambda _option: True,
) -> Option | None:
    """Bisect options, cheapest first, for the first feasible one.

    Args:
        options: To choose from: each is more accurate than those before it, and costs more.
        is_feasible: Whether one is; asked at most `trials` times.
        trials: Options looked at, at the most.
        is_affordable: Whether one keeps a limit on its cost: above one that does not, none does,
            so the search goes on below it, and `is_feasible` is not asked.
    """
    low, high, found = 0, len(options), None
    for _ in range(trials):
        if low >= high:
            break
        middle = (low + high) // 2
        if not is_affordable(options[middle]):
            high = middle
        elif is_feasible(options[middle]):
            high, found = middle, options[middle]
        else:
            low = middle + 1
    return found


def cheaper(
    options: Sequence[Option], is_feasible: Callable[[Option], bool], *, start: int, trials: int
) -> Option | None:
    """Exponential search for the cheapest feasible option, for trials that are few and noisy.

    Options are in order of cost, cheapest first. From a feasible one it goes down, twice as far
    each time, until one is not; from another one up, until one is. With nothing above the start it
    goes down from there too, so one unlucky trial does not end the search.

    Args:
        options: To choose from.
        is_feasible: Whether one is; asked at most `trials` times.
        start: Index of the first that is tried.
        trials: How many are tried at the most.
    """
    found, index, stride = None, start, 1
    for _ in range(trials):
        if not 0 <= index < len(options):
            break
        if is_feasible(options[index]):
            found = options[index]
            if index > start:
                break
        elif found is not None:
            break
        goes_down = found is not None or start == len(options) - 1
        index += -stride if goes_down else stride
        stride *= 2
    return found
