"""The codecs by name: one line registers one, and all that choose codecs read it here.

To add a codec: a module beside this one with a class that has `encode` and `decode` (base.py), and
an entry in `KINDS`. The search then measures it, plans may name it, and both ends run it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal

from common.codec.base import Codec
from common.codec.context import ContextCoded
from common.codec.context_model import ContextModel
from common.codec.image import JpegCodec, PngCodec, WebPCodec
from common.codec.packed import Packed
from common.codec.raw import Raw
from common.codec.zstd import Zstd


@dataclass(frozen=True)
class CodecKind:
    """A codec that plans may name.

    Attributes:
        name: Its name in plans and reports.
        make: Makes one; takes the quality if it has one, or the model of the tensor and that of
            frames in sequence if it has models.
        codes: What it is made for; symbols of any tensor, or the pixels of an image.
        has_quality: Whether it loses something, by a quality of 1 to 100.
        has_model: Whether it needs a model of each tensor.
        least_bits: Narrowest symbols for which the search measures it.
    """

    name: str
    make: Callable[..., Codec]
    codes: Literal["symbols", "pixels"] = "symbols"
    has_quality: bool = False
    has_model: bool = False
    least_bits: int = 1


def _context(model: ContextModel, after: ContextModel | None) -> Codec:
    return ContextCoded(model, after)


KINDS: Final = {
    kind.name: kind
    for kind in (
        CodecKind("packed", Packed),
        CodecKind("packed+zstd", lambda: Zstd(Packed())),
        CodecKind("symbols+zstd", lambda: Zstd(Raw())),
        # A byte per symbol is as small as packing at 8 bits only.
        CodecKind("raw", Raw, least_bits=8),
        CodecKind("context", _context, has_model=True),
        CodecKind("jpeg", JpegCodec, codes="pixels", has_quality=True),
        CodecKind("webp", WebPCodec, codes="pixels", has_quality=True),
        CodecKind("png", PngCodec, codes="pixels"),
    )
}
