"""The decoder of docs/extending.md, as it stands there."""

import re
from pathlib import Path
from typing import Any

import numpy as np

from common.tasks.decoders.base import Decoder

PAGE = Path(__file__).resolve().parents[2] / "docs" / "extending.md"


def decoder() -> Decoder:
    (code,) = re.findall(
        r"`common/tasks/decoders/corners\.py`:\n\n```python\n(.*?)```", PAGE.read_text(), re.DOTALL
    )
    names: dict[str, Any] = {"__name__": "corners"}
    exec(compile(code, "corners.py", "exec"), names)  # noqa: S102 - our own page
    made: Decoder = names["Corners"]()
    return made


def test_it_decodes() -> None:
    rows = np.array([[1, 2, 11, 22, 0.1, 0.9], [np.nan, 2, 3, 4, 1, 1]], np.float32)
    boxes, scores, classes = decoder().candidates([rows], (32, 32), 2, 0.5)
    assert boxes.tolist() == [[1, 2, 11, 22]]
    np.testing.assert_allclose(scores, [0.9])
    assert classes.tolist() == [1]


def test_it_says_what_fits() -> None:
    made = decoder()
    assert made.fits([(100, 6)], (32, 32), 2) is None
    assert made.fits([(100, 7)], (32, 32), 2) == ("corners: expected output (N, 6), found (100, 7)")
    assert made.classes_in([(100, 6)]) == 2
