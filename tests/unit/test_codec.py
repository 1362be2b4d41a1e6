"""Codecs: what goes in comes out, and what never came out of an encoder is refused in one way."""

import io
import math
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from pydantic import ValidationError

from common.codec import Codec, ContextModel, check, make_codec, seal
from common.codec.raw import Raw
from common.codec.registry import KINDS, CodecKind
from common.codec.spec import CodecSpec
from common.errors import BundleError, PayloadError
from common.imaging.images import read_image
from common.imaging.placement import fit_image
from search.network.graph import Node
from search.network.quant_params import QuantParams
from search.wire.quantizers import tensor_codecs, wire_tensor
from tests.contexts import random_model

Symbols = NDArray[np.uint8]
Shape = tuple[int, int, int]

RAW, PACKED, ZSTD, SYMBOLS_ZSTD, PNG = (
    make_codec(CodecSpec(name=name))
    for name in ("raw", "packed", "packed+zstd", "symbols+zstd", "png")
)
JPEG, WEBP = (
    make_codec(CodecSpec(name="jpeg", quality=75)),
    make_codec(CodecSpec(name="webp", quality=75)),
)
TENSOR_CODECS = pytest.mark.parametrize(
    "codec",
    [RAW, PACKED, ZSTD, SYMBOLS_ZSTD],
    ids=["raw", "packed", "packed+zstd", "symbols+zstd"],
)
IMAGE_CODECS = pytest.mark.parametrize("codec", [JPEG, WEBP, PNG], ids=["jpeg", "webp", "png"])
WIDTHS = pytest.mark.parametrize("bits", range(1, 9))

SHAPE = (4, 12, 12)  # 576 symbols: compressible, a whole number of bytes at every width


@pytest.mark.parametrize(
    ("fields", "model"),
    [
        # of a newer version, or misspelt: never coded as something else
        ({"name": "gzip"}, None),
        ({"name": "Raw"}, None),
        ({"name": ""}, None),
        ({"name": "jpeg"}, None),
        ({"name": "png", "quality": 75}, None),
        ({"name": "context"}, None),
        ({"name": "packed"}, random_model(4, 16, seed=1)),
    ],
)
def test_a_codec_that_there_is_not_is_refused(
    fields: dict[str, Any], model: ContextModel | None
) -> None:
    spec = CodecSpec.model_construct(**{"quality": None, **fields})
    with pytest.raises(BundleError, match=f"no codec {fields['name']!r}"):
        make_codec(spec, model)


def test_every_codec_that_a_manifest_may_name_is_there() -> None:
    """None raises."""
    for kind in KINDS.values():
        quality = 75 if kind.has_quality else None
        model = random_model(4, 16, seed=1) if kind.has_model else None
        make_codec(CodecSpec(name=kind.name, quality=quality), model)


@pytest.mark.parametrize("name", [kind.name for kind in KINDS.values() if kind.codes == "symbols"])
def test_every_codec_of_symbols_gives_them_back_and_trusts_no_bytes(name: str) -> None:
    model = random_model(4, 16, seed=1) if KINDS[name].has_model else None
    codec = make_codec(CodecSpec(name=name), model)
    rng = np.random.default_rng(0)
    symbols = rng.integers(0, 16, (4, 6, 5), np.uint8)
    data = codec.encode(symbols, 4)
    np.testing.assert_array_equal(codec.decode(data, symbols.shape, 4), symbols)
    for damaged in (b"", data[:-1], data + bytes(9), rng.bytes(len(data)), rng.bytes(5000)):
        try:
            read = codec.decode(damaged, symbols.shape, 4)
        except PayloadError:
            continue
        assert read.shape == symbols.shape
        assert read.max() < 16


def test_a_codec_that_is_registered_is_named_made_and_measured(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(ValidationError, match="no codec 'bytes'; there are packed, "):
        CodecSpec(name="bytes")
    monkeypatch.setitem(KINDS, "bytes", CodecKind("bytes", Raw))
    spec = CodecSpec(name="bytes")
    assert isinstance(make_codec(spec), Raw)
    node, counts = Node("t", "conv", (), (1, 2, 2)), np.ones(256, np.int64)
    wire = wire_tensor(node, QuantParams.over(-1.0, 1.0), 4, counts)
    assert [each.name for each in tensor_codecs([wire])] == [
        "packed",
        "packed+zstd",
        "symbols+zstd",
        "bytes",
    ]


def sparse(bits: int, shape: Shape = SHAPE, seed: int = 0) -> Symbols:
    """Symbols like those behind a ReLU: mostly zero, few large."""
    values = np.random.default_rng(seed).laplace(0, (1 << bits) / 12, shape)
    return np.clip(values, 0, (1 << bits) - 1).astype(np.uint8)


def picture(height: int = 24, width: int = 40) -> Symbols:
    rows, columns = np.mgrid[0:height, 0:width]
    return np.stack([rows * 5, columns * 3, rows + columns]).astype(np.uint8)


@st.composite
def tensors(draw: st.DrawFn) -> tuple[Symbols, int]:
    """A tensor of any small shape, 1 element included, and its width."""
    bits = draw(st.integers(1, 8))
    shape = draw(st.tuples(*[st.integers(1, 9)] * 3))
    count = math.prod(shape)
    flat = draw(st.lists(st.integers(0, (1 << bits) - 1), min_size=count, max_size=count))
    return np.array(flat, np.uint8).reshape(shape), bits


class TestTensors:
    @TENSOR_CODECS
    @given(tensor=tensors())
    def test_nothing_is_lost(self, codec: Codec, tensor: tuple[Symbols, int]) -> None:
        symbols, bits = tensor
        decoded = codec.decode(codec.encode(symbols, bits), symbols.shape, bits)
        assert decoded.dtype == np.uint8
        np.testing.assert_array_equal(decoded, symbols, strict=True)

    @TENSOR_CODECS
    @WIDTHS
    def test_a_large_sparse_tensor_comes_back(self, codec: Codec, bits: int) -> None:
        symbols = sparse(bits, (64, 104, 104))
        decoded = codec.decode(codec.encode(symbols, bits), symbols.shape, bits)
        np.testing.assert_array_equal(decoded, symbols)

    @TENSOR_CODECS
    def test_memory_order_does_not_matter(self, codec: Codec) -> None:
        symbols = sparse(4)
        strided = np.asfortranarray(symbols)
        assert codec.encode(strided, 4) == codec.encode(symbols, 4)

    @TENSOR_CODECS
    @WIDTHS
    def test_truncated_data_is_refused(self, codec: Codec, bits: int) -> None:
        data = codec.encode(sparse(bits), bits)
        for length in {0, 1, 2, 5, 9, len(data) // 2, len(data) - 1}:
            with pytest.raises(PayloadError):
                codec.decode(data[:length], SHAPE, bits)

    @TENSOR_CODECS
    @WIDTHS
    @pytest.mark.parametrize("extra", [b"\0", b"\xff", b"more"])
    def test_appended_bytes_are_refused(self, codec: Codec, bits: int, extra: bytes) -> None:
        with pytest.raises(PayloadError):
            codec.decode(codec.encode(sparse(bits), bits) + extra, SHAPE, bits)

    @TENSOR_CODECS
    @given(data=st.data())
    def test_flipped_bits_are_refused_or_give_symbols(
        self, codec: Codec, data: st.DataObject
    ) -> None:
        bits = data.draw(st.integers(1, 8))
        encoded = bytearray(codec.encode(sparse(bits), bits))
        for _ in range(data.draw(st.integers(1, 3))):
            encoded[data.draw(st.integers(0, len(encoded) - 1))] ^= 1 << data.draw(
                st.integers(0, 7)
            )
        assert_symbols_or_refused(codec, bytes(encoded), SHAPE, bits)

    @TENSOR_CODECS
    @given(data=st.binary(max_size=200), bits=st.integers(1, 8))
    def test_any_bytes_are_refused_or_give_symbols(
        self, codec: Codec, data: bytes, bits: int
    ) -> None:
        for shape in ((1, 1, 1), (3, 5, 7), (65536, 65536, 65536)):
            assert_symbols_or_refused(codec, data, shape, bits)

    @pytest.mark.parametrize("bits", range(1, 8))
    def test_a_raw_symbol_over_the_width_is_refused(self, bits: int) -> None:
        with pytest.raises(PayloadError):
            RAW.decode(bytes([0, 1 << bits]), (1, 1, 2), bits)

    @pytest.mark.parametrize("bits", [3, 5, 6, 7])
    def test_a_padding_bit_that_is_set_is_refused(self, bits: int) -> None:
        data = bytearray(PACKED.encode(np.zeros((1, 1, 3), np.uint8), bits))
        data[-1] |= 1
        with pytest.raises(PayloadError):
            PACKED.decode(bytes(data), (1, 1, 3), bits)

    @WIDTHS
    @pytest.mark.parametrize("codec", [ZSTD, SYMBOLS_ZSTD])
    def test_zstd_costs_at_most_one_byte_more_than_packing(self, codec: Codec, bits: int) -> None:
        noise = np.random.default_rng(0).integers(0, 1 << bits, SHAPE, dtype=np.uint8)
        assert len(codec.encode(noise, bits)) <= len(PACKED.encode(noise, bits)) + 1

    @WIDTHS
    @pytest.mark.parametrize("codec", [ZSTD, SYMBOLS_ZSTD])
    def test_zstd_makes_sparse_tensors_smaller(self, codec: Codec, bits: int) -> None:
        symbols = sparse(bits)
        assert len(codec.encode(symbols, bits)) < len(PACKED.encode(symbols, bits))


GOLDEN = np.array([[[0, 1, 2, 3, 4, 5, 6, 7]], [[7, 7, 0, 0, 0, 0, 1, 6]]], np.uint8)
ZEROS = np.zeros((1, 8, 8), np.uint8)


class TestGolden:
    """Bytes written once: an edge and a cloud of different releases must agree on them."""

    @pytest.mark.parametrize(
        ("codec", "bits", "data"),
        [
            (RAW, 3, "00010203040506070707000000000106"),
            (PACKED, 3, "053977fc000e"),
            (PACKED, 4, "0123456777000016"),
            (PACKED, 5, "00443214c739c0000026"),
            (PACKED, 8, "00010203040506070707000000000106"),
        ],
    )
    def test_written_and_read(self, codec: Codec, bits: int, data: str) -> None:
        assert codec.encode(GOLDEN, bits).hex() == data
        np.testing.assert_array_equal(codec.decode(bytes.fromhex(data), GOLDEN.shape, bits), GOLDEN)

    @pytest.mark.parametrize(
        ("codec", "symbols", "bits", "data"),
        [
            (ZSTD, GOLDEN, 4, "000123456777000016"),  # packed, because a frame would be larger
            (ZSTD, ZEROS, 4, "0128b52ffd2020450000100000010022c002"),
            (SYMBOLS_ZSTD, ZEROS, 6, "0128b52ffd20404500001000000100930016"),
        ],
    )
    def test_a_zstd_frame_is_read(
        self, codec: Codec, symbols: Symbols, bits: int, data: str
    ) -> None:
        # How zstd compresses may change between its releases; what a frame means may not.
        np.testing.assert_array_equal(
            codec.decode(bytes.fromhex(data), symbols.shape, bits), symbols
        )


CONTENT = bytes(288)  # what 576 zeros of 4 bits pack to


def zstd_frame(content: bytes = CONTENT, *, with_size: bool = True) -> bytes:
    return zstandard.ZstdCompressor(level=1, write_content_size=with_size).compress(content)


def with_window(window_descriptor: int) -> bytes:
    """A frame of CONTENT as one RLE block, with an explicit window (RFC 8878, 3.1.1.1.2)."""
    header = zstandard.FRAME_HEADER + bytes([0x40, window_descriptor])
    return header + struct.pack("<H", len(CONTENT) - 256) + rle_block(len(CONTENT))


def rle_block(length: int) -> bytes:
    return ((length << 3) | (1 << 1) | 1).to_bytes(3, "little") + b"\0"


def promising(size_bytes: int) -> bytes:
    """A frame that says how much it holds, and holds CONTENT."""
    header = zstandard.FRAME_HEADER + bytes([0xE0]) + struct.pack("<Q", size_bytes)
    return header + rle_block(len(CONTENT))


class TestZstdFrames:
    def test_the_frames_of_these_tests_are_read_when_they_are_honest(self) -> None:
        for frame in (zstd_frame(), promising(len(CONTENT))):
            assert not ZSTD.decode(b"\x01" + frame, SHAPE, 4).any()

    @pytest.mark.parametrize(
        "body",
        [
            # zip bombs: 64 MiB of zeros, honestly announced; a terabyte that is not there
            zstd_frame(bytes(1 << 26)),
            promising(1 << 40),
            promising(len(CONTENT) - 1),
            promising(len(CONTENT) + 1),
            # the size is not said, so it would have to be found out
            zstd_frame(with_size=False),
            # a window of 2 GiB (exponent 21) for 288 bytes
            with_window(21 << 3),
            # content beyond what the plan needs, in a frame of its own
            zstd_frame() + zstd_frame(),
            zstd_frame() + b"\x50\x2a\x4d\x18\x00\x00\x00\x00",
            # a skippable frame that promises the right size, alone and in front
            b"\x50\x2a\x4d\x18" + struct.pack("<I", len(CONTENT)) + CONTENT,
            b"\x50\x2a\x4d\x18\x00\x00\x00\x00" + zstd_frame(),
            # a dictionary that nobody has
            zstandard.FRAME_HEADER + b"\x61\x07\x20\x00" + rle_block(len(CONTENT)),
            # larger than packing alone: the encoder would not have sent it
            zstd_frame(np.random.default_rng(0).bytes(288)),
        ],
    )
    def test_a_frame_that_asks_for_more_is_refused(self, body: bytes) -> None:
        with pytest.raises(PayloadError):
            ZSTD.decode(b"\x01" + body, SHAPE, 4)

    def test_symbols_over_the_width_are_refused(self) -> None:
        frame = zstd_frame(bytes([64]) * math.prod(SHAPE))
        with pytest.raises(PayloadError):
            SYMBOLS_ZSTD.decode(b"\x01" + frame, SHAPE, 6)

    @pytest.mark.parametrize("mode", [2, 255])
    def test_an_unknown_mode_is_refused(self, mode: int) -> None:
        with pytest.raises(PayloadError, match="mode"):
            ZSTD.decode(bytes([mode]) + CONTENT, SHAPE, 4)


class TestImages:
    def test_png_loses_nothing(self) -> None:
        pixels = picture()
        np.testing.assert_array_equal(PNG.decode(PNG.encode(pixels, 8), pixels.shape, 8), pixels)

    @pytest.mark.parametrize(("codec", "worst"), [(JPEG, 8.0), (WEBP, 6.0)], ids=["jpeg", "webp"])
    def test_a_photo_stays_close(self, codec: Codec, worst: float, data_dir: Path) -> None:
        path = next(iter(sorted((data_dir / "coco_val" / "images").glob("*.jpg"))))
        pixels = fit_image(read_image(path), (416, 416))

        data = codec.encode(pixels, 8)
        decoded = codec.decode(data, pixels.shape, 8)

        assert len(data) < pixels.size / 10
        assert np.abs(decoded.astype(int) - pixels).mean() < worst

    @IMAGE_CODECS
    def test_one_pixel(self, codec: Codec) -> None:
        pixels = np.full((3, 1, 1), 200, np.uint8)
        decoded = codec.decode(codec.encode(pixels, 8), (3, 1, 1), 8)
        assert np.abs(decoded.astype(int) - 200).max() < 8

    @pytest.mark.parametrize("name", ["jpeg", "webp"])
    @pytest.mark.parametrize("quality", [1, 5, 20, 50, 75, 90, 95, 100])
    @pytest.mark.parametrize("noise", [False, True], ids=["smooth", "noise"])
    def test_every_quality_is_read_back(self, name: str, quality: int, noise: bool) -> None:
        codec = make_codec(CodecSpec.model_validate({"name": name, "quality": quality}))
        pixels = picture()
        if noise:
            pixels = np.random.default_rng(0).integers(0, 256, pixels.shape, dtype=np.uint8)
        assert codec.decode(codec.encode(pixels, 8), pixels.shape, 8).shape == pixels.shape

    @IMAGE_CODECS
    @pytest.mark.parametrize("shape", [(3, 24, 41), (3, 23, 40), (3, 40, 24), (3, 65536, 65536)])
    def test_another_size_is_refused(self, codec: Codec, shape: Shape) -> None:
        with pytest.raises(PayloadError):
            codec.decode(codec.encode(picture(), 8), shape, 8)

    @IMAGE_CODECS
    def test_another_format_is_refused(self, codec: Codec) -> None:
        for other in {JPEG, WEBP, PNG} - {codec}:
            with pytest.raises(PayloadError):
                codec.decode(other.encode(picture(), 8), picture().shape, 8)

    @IMAGE_CODECS
    @pytest.mark.parametrize(
        ("shape", "bits"),
        [((3, 24, 40), 4), ((4, 24, 40), 8)],
        ids=["four bits", "four channels"],
    )
    def test_only_rgb_of_8_bits_is_carried(self, codec: Codec, shape: Shape, bits: int) -> None:
        with pytest.raises(PayloadError, match="carries"):
            codec.encode(np.zeros(shape, np.uint8), bits)
        with pytest.raises(PayloadError, match="carries"):
            codec.decode(codec.encode(picture(), 8), shape, bits)

    @IMAGE_CODECS
    def test_truncated_data_is_refused(self, codec: Codec) -> None:
        data = codec.encode(picture(), 8)
        for length in {0, 4, 20, 29, 40, len(data) // 2, len(data) - 20}:
            with pytest.raises(PayloadError):
                codec.decode(data[:length], picture().shape, 8)

    @IMAGE_CODECS
    @given(data=st.data())
    def test_damaged_data_is_refused_or_gives_pixels(
        self, codec: Codec, data: st.DataObject
    ) -> None:
        encoded = bytearray(codec.encode(picture(), 8))
        for _ in range(data.draw(st.integers(1, 4))):
            encoded[data.draw(st.integers(0, len(encoded) - 1))] = data.draw(st.integers(0, 255))
        assert_symbols_or_refused(codec, bytes(encoded), (3, 24, 40), 8)

    @IMAGE_CODECS
    @given(data=st.binary(max_size=300))
    def test_any_bytes_are_refused(self, codec: Codec, data: bytes) -> None:
        with pytest.raises(PayloadError):
            codec.decode(data, (3, 24, 40), 8)

    @pytest.mark.parametrize(
        ("codec", "save"),
        [
            # many passes over the picture
            (JPEG, lambda p, f: p.save(f, "JPEG", progressive=True)),
            (JPEG, lambda p, f: p.convert("L").save(f, "JPEG")),
            (JPEG, lambda p, f: p.convert("CMYK").save(f, "JPEG")),
            # an alpha plane, an animation, a lossless one, metadata: none is what an edge sends
            (WEBP, lambda p, f: p.convert("RGBA").save(f, "WEBP", exact=True, lossless=True)),
            (WEBP, lambda p, f: p.save(f, "WEBP", save_all=True, append_images=[p.rotate(180)])),
            (WEBP, lambda p, f: p.save(f, "WEBP", exif=b"Exif\0\0" + bytes(20))),
            (PNG, lambda p, f: p.convert("P").save(f, "PNG")),
            (PNG, lambda p, f: p.convert("RGBA").save(f, "PNG")),
            (PNG, lambda p, f: p.save(f, "PNG", save_all=True, append_images=[p.rotate(180)])),
            (PNG, lambda p, f: p.save(f, "PNG", icc_profile=b"profile")),
        ],
    )
    def test_other_pictures_of_the_format_are_refused(
        self, codec: Codec, save: Callable[[Image.Image, io.BytesIO], None]
    ) -> None:
        file = io.BytesIO()
        save(Image.fromarray(np.ascontiguousarray(picture().transpose(1, 2, 0))), file)
        with pytest.raises(PayloadError):
            codec.decode(file.getvalue(), (3, 24, 40), 8)

    @IMAGE_CODECS
    def test_appended_bytes_are_refused(self, codec: Codec) -> None:
        with pytest.raises(PayloadError):
            codec.decode(codec.encode(picture(), 8) + b"more", (3, 24, 40), 8)

    def test_compressed_text_in_a_png_is_not_inflated(self) -> None:
        data = PNG.encode(picture(), 8)
        text = b"zTXta\0\0" + zlib.compress(bytes(1 << 20))
        chunk = struct.pack(">I", len(text) - 4) + text + struct.pack(">I", zlib.crc32(text))
        with pytest.raises(PayloadError):
            PNG.decode(data[:33] + chunk * 50 + data[33:], (3, 24, 40), 8)


class TestSeal:
    def test_it_is_the_crc_of_zlib(self) -> None:
        assert seal(b"123456789") == 0xCBF43926  # the check value of CRC-32/ISO-HDLC

    @given(data=st.binary(min_size=1, max_size=50), position=st.integers(0, 399))
    def test_one_flipped_bit_is_found(self, data: bytes, position: int) -> None:
        sealed = seal(data)
        check(data, sealed)
        damaged = bytearray(data)
        damaged[position // 8 % len(data)] ^= 1 << position % 8
        with pytest.raises(PayloadError, match="damaged"):
            check(bytes(damaged), sealed)


def assert_symbols_or_refused(codec: Codec, data: bytes, shape: Shape, bits: int) -> None:
    """Whatever comes in, what comes out is a tensor of the plan, or a PayloadError of one line."""
    try:
        symbols = codec.decode(data, shape, bits)
    except PayloadError as error:
        assert "\n" not in str(error)  # noqa: PT017 - both outcomes are right
    else:
        assert symbols.shape == shape
        assert symbols.dtype == np.uint8
        assert int(symbols.max()) < 1 << bits
