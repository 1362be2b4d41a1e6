"""Wire codecs: the symbols of a tensor as bytes.

    codes -> WireTable.symbols -> Codec.encode -> seal -> Payload
    Payload -> check -> Codec.decode -> WireTable.values -> tail

Shape and width come from the plan, never from the bytes.
"""

import zlib

from common.codec.base import Codec
from common.codec.context import ContextCoded
from common.codec.context_model import ContextModel
from common.codec.registry import KINDS
from common.codec.spec import CodecSpec
from common.errors import BundleError, PayloadError

__all__ = ["Codec", "ContextCoded", "ContextModel", "check", "make_codec", "seal"]


def make_codec(
    spec: CodecSpec, model: ContextModel | None = None, after: ContextModel | None = None
) -> Codec:
    """Make the codec that a plan names, with the models of the tensor if it needs any.

    Raises:
        BundleError: If there is no such codec, or quality and models are not what it takes.
    """
    kind = KINDS.get(spec.name)
    fits = (
        kind is not None
        and kind.has_quality == (spec.quality is not None)
        and kind.has_model == (model is not None)
    )
    if kind is None or not fits:
        with_model = "without" if model is None else "with"
        raise BundleError(
            f"no codec {spec.name!r} with quality {spec.quality} and {with_model} a context model: "
            "search again with this version, or install the one that wrote the bundle"
        )
    if kind.has_model:
        return kind.make(model, after)
    return kind.make(spec.quality) if kind.has_quality else kind.make()


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
