"""Darknet's cfg format: `[section]` headers with `key=value` lines, `#` and `;` start comments."""

from dataclasses import dataclass

from common.errors import ModelError

SECTIONS = {"net", "convolutional", "maxpool", "route", "upsample", "shortcut", "yolo"}


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
            raise self._wrong(key, f"one whole number of at least {least}")
        return values[0]

    def integers(self, key: str) -> tuple[int, ...]:
        """An option as a list of whole numbers."""
        try:
            return tuple(int(part) for part in self.text(key).split(","))
        except ValueError:
            raise self._wrong(key, "whole numbers") from None

    def _wrong(self, key: str, wanted: str) -> ModelError:
        text, line = self.options[key]
        return ModelError(f"cfg line {line}: {key}={text}: expected {wanted}")


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
        sections[-1].options[key] = (value, number)
    if not sections or sections[0].kind != "net":
        raise ModelError("a cfg starts with [net]")
    if len(sections) == 1 or any(section.kind == "net" for section in sections[1:]):
        raise ModelError("a cfg has one [net], and layers after it")
    return sections
