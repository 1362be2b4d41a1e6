"""Wire codecs: the symbols of a tensor as bytes.

    codes -> WireTable.symbols -> Codec.encode -> seal -> Payload
    Payload -> check -> Codec.decode -> WireTable.values -> tail

Shape and width come from the plan, never from the bytes.
"""

import zlib

from common.codec.base import Codec
from common.codec.context import ContextCoded
from common.codec.context_model import ContextModel
from common.codec.image import JpegCodec, PngCodec, WebPCodec
from common.codec.packed import Packed
from common.codec.raw import Raw
from common.codec.zstd import Zstd
from common.errors import PayloadError
from common.manifest import CodecSpec

__all__ = ["Codec", "ContextCoded", "ContextModel", "check", "make_codec", "seal"]


def make_codec(
    spec: CodecSpec, model: ContextModel | None = None, after: ContextModel | None = None
) -> Codec:
    """The codec that a plan names, with the context models of the tensor if it needs any."""
    if model is not None:
        return ContextCoded(model, after)
    match spec.name, spec.quality:
        case "jpeg", int(quality):
            return JpegCodec(quality)
        case "webp", int(quality):
            return WebPCodec(quality)
        case "png", _:
            return PngCodec()
        case "packed+zstd", _:
            return Zstd(Packed())
        case "symbols+zstd", _:
            return Zstd(Raw())
        case "packed", _:
            return Packed()
        case _:
            return Raw()


def seal(data: bytes) -> int:
    """CRC-32 of a payload."""
    return zlib.crc32(data)


def check(data: bytes, crc32: int) -> None:
    """Compare a payload with its CRC-32.

    Raises:
        PayloadError: If it was damaged on the way.
    """
    if zlib.crc32(data) != crc32:
        raise PayloadError(
            f"a payload of {len(data)} bytes was damaged on the way (CRC-32 differs)"
        )
