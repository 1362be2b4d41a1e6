"""Darknet's cfg format: `[section]` headers with `key=value` lines, `#` and `;` start comments.

A key that changes what the network computes is either understood or refused with its line; keys
that only matter in training are passed over, so that a published cfg can be read as it is.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from common.errors import ModelError

_TRAINING = frozenset(
    {"batch", "subdivisions", "momentum", "decay", "learning_rate", "burn_in", "max_batches"}
    | {"policy", "steps", "scales", "angle", "saturation", "exposure", "hue"}
    | {"jitter", "ignore_thresh", "truth_thresh", "random"}
)
_KERNEL = frozenset({"size", "stride", "padding"})
SECTIONS = {
    "net": frozenset({"width", "height", "channels"}),
    "convolutional": _KERNEL | {"batch_normalize", "filters", "pad", "groups", "activation"},
    "maxpool": _KERNEL,
    "route": frozenset({"layers", "groups", "group_id"}),
    "upsample": frozenset({"stride"}),
    "shortcut": frozenset({"from", "activation"}),
    "yolo": frozenset({"mask", "anchors", "classes", "num"}),
}


@dataclass(frozen=True)
class Section:
    """One section; `line` is that of its header."""

    kind: str
    line: int
    options: dict[str, tuple[str, int]]

    def text(self, key: str, default: str | None = None) -> str:
        """An option as written.

        Raises:
            ModelError: If it is missing and has no default.
        """
        if key in self.options:
            return self.options[key][0]
        if default is None:
            raise ModelError(f"cfg line {self.line}: [{self.kind}] lacks {key}=")
        return default

    def integer(self, key: str, default: int | None = None, *, least: int = 0) -> int:
        """An option as one whole number of at least `least`."""
        if key not in self.options and default is not None:
            return default
        values = self.integers(key)
        if len(values) != 1 or values[0] < least:
            raise self.wrong(key, f"one whole number of at least {least}")
        return values[0]

    def integers(self, key: str) -> tuple[int, ...]:
        """An option as a list of whole numbers."""
        try:
            return tuple(int(part) for part in self.text(key).split(","))
        except ValueError:
            raise self.wrong(key, "whole numbers") from None

    def sizes(self, key: str) -> tuple[float, ...]:
        """An option as a list of positive numbers."""
        try:
            values = tuple(float(part) for part in self.text(key).split(","))
        except ValueError:
            raise self.wrong(key, "numbers") from None
        if not all(0 < value < math.inf for value in values):
            raise self.wrong(key, "positive numbers")
        return values

    def wrong(self, key: str, wanted: str) -> ModelError:
        """The error for an option that is there but makes no sense."""
        text, line = self.options[key]
        return ModelError(f"cfg line {line}: {key}={text}: expected {wanted}")

    def error(self, message: str) -> ModelError:
        """An error about the section as a whole."""
        return ModelError(f"cfg line {self.line}: {message}")


def parse_cfg(text: str) -> list[Section]:
    """Split a cfg into sections, the first of them [net].

    Raises:
        ModelError: With the line's number, for anything that is not the format.
    """
    sections: list[Section] = []
    for number, raw in enumerate(text.splitlines(), 1):
        line = raw.partition("#")[0].partition(";")[0].strip()
        if not line:
            continue
        if line.startswith("["):
            kind = line.strip("[] ")
            if not line.endswith("]") or kind not in SECTIONS:
                known = ", ".join(sorted(SECTIONS))
                raise ModelError(f"cfg line {number}: {line} is not supported; known are {known}")
            sections.append(Section(kind, number, {}))
            continue
        key, equals, value = (part.strip() for part in line.partition("="))
        if not equals or not key or not value or not sections:
            raise ModelError(f"cfg line {number}: expected key=value in a section, found {line!r}")
        section = sections[-1]
        if key in _TRAINING:
            continue
        if key not in SECTIONS[section.kind]:
            known = ", ".join(sorted(SECTIONS[section.kind]))
            raise ModelError(
                f"cfg line {number}: {key}= in [{section.kind}] is not supported; known are {known}"
            )
        if key in section.options:
            raise ModelError(f"cfg line {number}: {key}= is given twice in [{section.kind}]")
        section.options[key] = (value, number)
    if not sections or sections[0].kind != "net":
        raise ModelError("a cfg starts with [net]")
    if len(sections) == 1 or any(section.kind == "net" for section in sections[1:]):
        raise ModelError("a cfg has one [net], and layers after it")
    return sections


def sources(sections: Sequence[Section], index: int) -> tuple[int, ...]:
    """Indices of the layers that layer `index` reads; -1 is the image.

    Args:
        sections: All layers, without [net].
        index: Of one of them.

    Raises:
        ModelError: If it reads a layer that does not come before it, or one of kind [yolo].
    """
    section = sections[index]
    if section.kind == "route":
        named = section.integers("layers")
    elif section.kind == "shortcut":
        named = (-1, section.integer("from", least=-index))
    else:
        named = (-1,)
    found = tuple(index + n if n < 0 else n for n in named)
    if section.kind in ("route", "shortcut") and not all(0 <= n < index for n in found):
        raise section.error(f"layers {named} are not all before this one")
    if any(n >= 0 and sections[n].kind == "yolo" for n in found):
        raise section.error(f"[{section.kind}] reads a [yolo] layer, which is an output only")
    return found
