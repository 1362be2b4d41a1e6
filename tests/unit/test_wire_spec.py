"""Wire formats of a manifest that contradict themselves are refused when they are read."""

from typing import Any

import pytest
from pydantic import ValidationError

from common.codec.spec import CodecSpec, WireTensor

GOOD: dict[str, Any] = {
    "name": "cut",
    "shape": (2, 4, 4),
    "bits": 1,
    "to_symbol": tuple(code >> 7 for code in range(256)),
    "to_value": (0.0, 1.0),
}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"to_value": (0.0,)}, "to_value needs 2 entries"),
        ({"to_symbol": (2,) * 256}, "a symbol does not fit into 1 bits"),
        ({"context_after": "after.bin"}, "the first frame of a sequence needs a model too"),
        ({"to_symbol": (0,) * 255}, "at least 256 items"),
        ({"bits": 9}, "less than or equal to 8"),
    ],
)
def test_a_tensor_whose_tables_do_not_fit(change: dict[str, Any], message: str) -> None:
    assert WireTensor.model_validate(GOOD).elements == 32
    with pytest.raises(ValidationError, match=message):
        WireTensor.model_validate(GOOD | change)


@pytest.mark.parametrize(
    ("codec", "message"),
    [
        ({"name": "gzip"}, "no codec 'gzip'; there are packed"),
        ({"name": "jpeg"}, "they need one"),
        ({"name": "raw", "quality": 75}, "quality belongs to jpeg"),
    ],
)
def test_a_codec_that_is_not_there_or_lacks_its_quality(
    codec: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValidationError, match=message):
        CodecSpec.model_validate(codec)
