"""Coverage-guided fuzzing of everything that reads bytes from a network or a file.

    python -m tests.fuzz.decoders [options of libFuzzer, e.g. -max_total_time=60]

The first byte chooses the decoder, the others are what it reads. Whatever they are, it must return
what it promises or raise an error of ours of one line, and the two halves of the context coder must
agree. libFuzzer stops at anything else, and at whatever takes over 5 s or 1 GiB.
"""

import contextlib
import io
import resource
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import atheris
import numpy as np
from google.protobuf.message import DecodeError
from PIL import Image, ImageCms

with atheris.instrument_imports(include=["common"]):
    from cloud.envelope import parse_edge_message
    from common.bundle.bundle import parse_manifest
    from common.bundle.manifest import SCHEMA_VERSION, UNSEALED, seal_manifest
    from common.bundle.packed_weights import Packable, pack_weights, unpack_weights
    from common.codec import ContextModel, context, make_codec, slow_context
    from common.codec.base import Codec
    from common.codec.spec import CodecSpec
    from common.errors import SplitpointError
    from common.imaging.images import ImageLimits, decode_image
    from common.rpc import splitpoint_pb2 as pb
    from tests import tiny
    from tests.contexts import random_model, sparse_symbols
    from tests.unit.test_codec import picture

TENSOR, PIXELS = (8, 12, 12), (3, 24, 40)
MODEL = random_model(8, 16, seed=7)
AFTER = random_model(8, 16, seed=8, looks_back=True)
BEFORE = sparse_symbols(TENSOR, 16, seed=4)
LIMITS = ImageLimits(max_bytes=1 << 16, max_decoded_bytes=1 << 19)


def _codec(codec: Codec, shape: tuple[int, int, int], bits: int) -> Callable[[bytes], None]:
    def read(data: bytes) -> None:
        symbols = codec.decode(data, shape, bits)
        if symbols.shape != shape or symbols.dtype != np.uint8 or symbols.max() >> bits:
            raise AssertionError(f"{type(codec).__name__} made {symbols.shape} {symbols.dtype}")

    return read


def _either_context(data: bytes) -> None:
    for model, previous in ((MODEL, None), (AFTER, BEFORE)):
        results = []
        for decode in (context._decode, lambda m, d, p, s: slow_context.decode(d, p, m, s)):
            try:
                results.append(decode(model, data, previous, TENSOR).tobytes())
            except ValueError:
                results.append(b"refused")
        if results[0] != results[1]:
            raise AssertionError("C and Python read different symbols")


def _image(data: bytes) -> None:
    image = decode_image(data, LIMITS)
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise AssertionError(f"an image of {image.shape} {image.dtype}")


def _message(data: bytes) -> None:
    with contextlib.suppress(DecodeError):
        parse_edge_message(data, 2)


def _result(data: bytes) -> None:
    with contextlib.suppress(DecodeError):
        carrier = pb.Result.FromString(data)
        task = {"classes": tiny.CLASSES, "tensors": tiny.TENSORS}.get(
            carrier.WhichOneof("outcome") or "", tiny.DETECTOR
        )
        found = task.read(carrier)
        found.to_json(task.class_names)
        found.to_table(task.class_names)
        found.agreement(found)


_TENSOR_CODECS = [
    make_codec(CodecSpec(name="raw")),
    make_codec(CodecSpec(name="packed")),
    make_codec(CodecSpec(name="packed+zstd")),
    make_codec(CodecSpec(name="symbols+zstd")),
    make_codec(CodecSpec(name="context"), MODEL),
]
_IMAGE_CODECS = [
    make_codec(CodecSpec(name="png")),
    make_codec(CodecSpec(name="jpeg", quality=75)),
    make_codec(CodecSpec(name="webp", quality=75)),
]
READERS: list[Callable[[bytes], object]] = [
    *(_codec(codec, TENSOR, 4) for codec in _TENSOR_CODECS),
    *(_codec(codec, PIXELS, 8) for codec in _IMAGE_CODECS),
    _either_context,
    lambda data: ContextModel.from_bytes(data, "file"),
    _image,
    parse_manifest,
    lambda data: parse_manifest(seal_manifest(data)),
    lambda data: unpack_weights(data, "file"),
    _message,
    _result,
]


def seeds() -> list[bytes]:
    """Something valid for every reader."""
    symbols = sparse_symbols(TENSOR, 16, seed=3)
    tensors = [codec.encode(symbols, 4) for codec in _TENSOR_CODECS]
    pictures = [codec.encode(picture(), 8) for codec in _IMAGE_CODECS]
    weights = pack_weights({"conv.weight": Packable(np.ones((4, 3), np.int8), 3)})
    manifest = f'{{"schema_version": {SCHEMA_VERSION}, "sha256": "{UNSEALED}"}}'.encode()
    message = pb.EdgeMessage(frame=pb.Frame(payloads=[pb.Payload(data=b"x")]))
    rest = [tensors[-1][1:], MODEL.to_bytes(), pictures[0], manifest, manifest, weights]
    rest.append(message.SerializeToString())
    result = pb.Result(tensors=pb.Tensors(ranks=[2, 0], sides=[1, 2], data=bytes(12)))
    rest.append(result.SerializeToString())
    made = [bytes([k]) + data for k, data in enumerate((*tensors, *pictures, *rest))]
    return made + [bytes([READERS.index(_image)]) + data for data in _pictures()]


def _pictures() -> list[bytes]:
    """A picture in every format, with what is read besides the pixels."""
    exif = Image.Exif()
    exif[0x0112] = 6
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    made = []
    for kind in ("JPEG", "PNG", "WEBP", "TIFF", "GIF", "BMP"):
        for options in ({}, {"progressive": True}, {"compression": "tiff_lzw"}):
            buffer = io.BytesIO()
            Image.new("RGB", (16, 8), "navy").save(
                buffer, kind, exif=exif, icc_profile=profile, **options
            )
            made.append(buffer.getvalue())
    return made


def read(data: bytes) -> None:
    """Read one input."""
    if not data:
        return
    try:
        READERS[data[0] % len(READERS)](data[1:])
    except SplitpointError as error:
        if "\n" in str(error) or not str(error):
            raise AssertionError(f"not one line: {error!r}") from error


def main() -> None:
    """Fuzz until libFuzzer's limits."""
    with tempfile.TemporaryDirectory() as corpus:
        for number, seed in enumerate(seeds()):
            Path(corpus, f"seed-{number}").write_bytes(seed)
        # libFuzzer judges the peak, which on Linux a process inherits from the one that started it.
        inherited_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
        options = ["-timeout=60", f"-rss_limit_mb={inherited_mb + 1024}", "-max_len=8192"]
        atheris.Setup([sys.argv[0], *options, *sys.argv[1:], corpus], read)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
