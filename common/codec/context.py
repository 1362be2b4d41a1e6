"""Context coding: symbols behind a range coder whose probabilities depend on symbols already coded.

    byte 0      0: packed symbols follow; 1: range-coded symbols follow; 2: the same, of a frame
                that is coded after an earlier one
    bytes 1...

Features are sparse, and what is active nearby, in any channel, says what will be active here. The
positions are coded row by row, at each position its channels in order. Before a symbol of channel
c is coded, both ends can compute its *activity*:

    activity(c) = bias(c) + sum over neighbours n, channels k of weight(n, k, c) x magnitude(n, k)

The neighbours are west, north-west, north and north-east with all channels, and the earlier
channels of the position itself. In a sequence, the 3 x 3 positions around it in an earlier frame,
each with channel c alone, are neighbours too. An activity is a log-odds in 1/32 nat; a static table
per class of activities, a quarter of a nat wide, gives the probabilities of the symbols, in
1/32768. Weights, biases and tables are fitted on calibration images and shipped in the bundle,
never in a payload.

Only magnitudes above zero add anything, so the cost follows the number of active symbols and not
the 5 x C x C weights. Everything is integer arithmetic, activities wrap at 16 bits: all machines
make the same bytes. `_context.c` does the work; `slow_context.py` does the same where it could not
be built.

The range coder is the one of LZMA (Pavlov 1999, after Martin 1979 and Schindler 1998), with 15-bit
tables in place of adaptive bits, and as few bytes at the end as decode when zeros follow.
"""

import math

import numpy as np

from common.codec import slow_context
from common.codec.base import Shape, Symbols
from common.codec.context_model import ContextModel
from common.codec.packed import Packed
from common.errors import PayloadError

try:
    from common.codec import _context

    FAST = True
except ImportError:  # no compiler where it was installed
    FAST = False

_PACKED, _CODED, _AFTER = b"\x00", b"\x01", b"\x02"
# The frame before is another picture altogether where more symbols differ from it than are active,
# by this factor: of unrelated pictures about twice as many do.
_UNRELATED = 1.3


class ContextCoded:
    """Never more than one byte larger than packed symbols.

    Args:
        model: Of the tensor.
        after: Of the tensor where an earlier frame is available; None if none is ever used.
    """

    def __init__(self, model: ContextModel, after: ContextModel | None = None) -> None:
        self.model = model
        self.after = after
        self._packed = Packed()

    def encode(self, symbols: Symbols, bits: int) -> bytes:
        """Encode without an earlier frame; see `Codec.encode`."""
        return self.encode_after(symbols, bits, None)

    def decode(self, data: bytes, shape: Shape, bits: int) -> Symbols:
        """Decode without an earlier frame; see `Codec.decode`."""
        return self.decode_after(data, shape, bits, None)

    def encode_after(self, symbols: Symbols, bits: int, previous: Symbols | None) -> bytes:
        """Encode, looking back at the symbols (C, H, W) of an earlier frame if they are like it."""
        limit = self._packed.size(symbols.size, bits) - 1
        if previous is not None and not _alike(self.model, symbols, previous):
            previous = None
        if previous is not None and self.after is not None:
            mode, coded = _AFTER, _encode(self.after, symbols, previous, limit)
        else:
            mode, coded = _CODED, _encode(self.model, symbols, None, limit)
        return _PACKED + self._packed.encode(symbols, bits) if coded is None else mode + coded

    def decode_after(
        self, data: bytes, shape: Shape, bits: int, previous: Symbols | None
    ) -> Symbols:
        """Decode what `encode_after` made with the same earlier frame.

        Raises:
            PayloadError: If `data` is not what it makes of such a tensor.
        """
        mode, body = data[:1], data[1:]
        if mode == _PACKED:
            return self._packed.decode(body, shape, bits)
        if mode == _AFTER and (self.after is None or previous is None):
            raise PayloadError("the payload needs an earlier frame, and names none")
        if mode not in {_CODED, _AFTER}:
            raise PayloadError(f"expected mode 0, 1 or 2, found {mode.hex() or 'no bytes'}")
        longest = self._packed.size(math.prod(shape), bits) - 1
        if len(body) > longest:
            raise PayloadError(f"expected at most {longest} coded bytes, found {len(body)}")
        try:
            if mode == _AFTER and self.after is not None:
                return _decode(self.after, body, previous, shape)
            return _decode(self.model, body, None, shape)
        except ValueError as error:
            raise PayloadError(f"{len(body)} coded bytes are damaged") from error


def _alike(model: ContextModel, symbols: Symbols, previous: Symbols) -> bool:
    active = int(np.count_nonzero(symbols != model.magnitudes.argmin()))
    changed = int(np.count_nonzero(symbols != previous))
    return changed < _UNRELATED * max(active, 1)


def _encode(
    model: ContextModel, symbols: Symbols, previous: Symbols | None, limit: int
) -> bytes | None:
    if not FAST:
        return slow_context.encode(symbols, previous, model, limit)
    return _context.encode(
        np.ascontiguousarray(symbols),
        None if previous is None else np.ascontiguousarray(previous),
        model.weights,
        model.before,
        model.bias,
        model.magnitudes,
        model.cumulative,
        symbols.shape,
        limit,
    )


def _decode(model: ContextModel, data: bytes, previous: Symbols | None, shape: Shape) -> Symbols:
    if not FAST:
        return slow_context.decode(data, previous, model, shape)
    symbols = _context.decode(
        data,
        None if previous is None else np.ascontiguousarray(previous),
        model.weights,
        model.before,
        model.bias,
        model.magnitudes,
        model.cumulative,
        shape,
        0,
    )
    return np.frombuffer(symbols, np.uint8).reshape(shape)
