"""Darknet's cfg format: what is read, and which line is blamed."""

import pytest

from common.errors import ModelError
from search.zoo.cfg import parse_cfg, sources


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
        ("[net]\n[convolutional]\ndilation=2\n", "line 3: dilation= .* not supported"),
        ("[net]\n[convolutional]\nfilters=8\nfilters=9\n", "line 4: filters= is given twice"),
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


def test_keys_of_training_are_passed_over() -> None:
    net, yolo = parse_cfg("[net]\nmomentum=0.9\nwidth=64\n[yolo]\njitter=.3\nmask=0\n")
    assert set(net.options) == {"width"}
    assert set(yolo.options) == {"mask"}


def test_references_are_relative_or_counted_from_the_first_layer() -> None:
    text = "[net]\n[convolutional]\n[maxpool]\n[route]\nlayers=-1,0\n[shortcut]\nfrom=-3\n"
    layers = parse_cfg(text)[1:]
    assert [sources(layers, index) for index in range(4)] == [(-1,), (0,), (1, 0), (2, 0)]


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("[route]\nlayers=1\n", "line 3: layers .* not all before"),  # itself
        ("[route]\nlayers=-2\n", "line 3: layers .* not all before"),  # the image
        ("[shortcut]\nfrom=-9\n", "line 4: from=-9"),  # before the image
        ("[shortcut]\nfrom=-1,-1\n", "line 4: from=-1,-1"),  # several
        ("[shortcut]\n", r"line 3: \[shortcut\] lacks from="),  # none
    ],
)
def test_a_reference_that_leads_nowhere_is_refused(reference: str, message: str) -> None:
    layers = parse_cfg("[net]\n[maxpool]\n" + reference)[1:]
    with pytest.raises(ModelError, match=message):
        sources(layers, 1)
