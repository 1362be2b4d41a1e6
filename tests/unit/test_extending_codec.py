"""The wire codec that docs/extending.md writes, run as it stands there."""

import re
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common.codec.base import Codec
from common.errors import PayloadError

PAGE = Path(__file__).resolve().parents[2] / "docs" / "extending.md"
SYMBOLS = np.random.default_rng(0).integers(0, 16, (4, 6, 5), np.uint8)


@pytest.fixture(scope="module")
def codec() -> Codec:
    blocks: list[str] = re.findall(
        r"^```python\n(.*?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE
    )
    (source,) = [block for block in blocks if "class Deflated" in block]
    names: dict[str, Any] = {"__name__": "deflated"}
    exec(compile(source, "deflated", "exec"), names)  # noqa: S102 - our own page
    made: Codec = names["Deflated"]()
    return made


def test_it_gives_back_what_it_took(codec: Codec) -> None:
    data = codec.encode(SYMBOLS, 4)
    np.testing.assert_array_equal(codec.decode(data, SYMBOLS.shape, 4), SYMBOLS)


def test_it_trusts_nothing_that_it_reads(codec: Codec) -> None:
    data = codec.encode(SYMBOLS, 4)
    too_large = zlib.compress(bytes(10**6)), zlib.compress(b"\x10" * SYMBOLS.size)
    for damaged in (b"", b"hello", data[:-1], data + b"x", *too_large):
        with pytest.raises(PayloadError):
            codec.decode(damaged, SYMBOLS.shape, 4)
