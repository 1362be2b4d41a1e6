"""Darknet's cfg format: what is read, and which line is blamed."""

import pytest

from common.errors import ModelError
from search.zoo.cfg import parse_cfg


def test_sections_options_and_comments() -> None:
    net, conv = parse_cfg("# a net\n[net]\nwidth = 64 ; pixels\n\n[convolutional]\nfilters=8\n")
    assert (net.kind, net.integer("width")) == ("net", 64)
    assert (conv.kind, conv.line, conv.integer("filters")) == ("convolutional", 5, 8)
    assert conv.integer("stride", 1) == 1
    assert conv.text("activation", "linear") == "linear"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "starts with"),  # nothing
        ("[net]\nwidth=64\n", "layers after it"),  # no layer
        ("[yolo]\nmask=0\n", "starts with"),  # a layer before the net
        ("[net]\nwidth=64\n[lstm]\n", r"line 3: \[lstm\]"),  # an unknown layer
        ("[net]\nwidth 64\n[yolo]\n", "line 2"),  # no equals sign
        ("width=64\n[net]\n", "line 1"),  # an option before any section
        ("[net\nwidth=64\n", "line 1"),  # an unclosed header
    ],
)
def test_malformed_text_is_blamed_on_its_line(text: str, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        parse_cfg(text)


def test_a_wrong_or_missing_number_is_blamed_on_its_line() -> None:
    _, conv = parse_cfg("[net]\nwidth=64\n[convolutional]\nfilters=many\nsize=0\n")
    with pytest.raises(ModelError, match="line 4: filters=many"):
        conv.integer("filters")
    with pytest.raises(ModelError, match="line 5: size=0"):
        conv.integer("size", least=1)
    with pytest.raises(ModelError, match=r"line 3.*lacks stride"):
        conv.integer("stride")
