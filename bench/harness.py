"""Parts that all benches share: command line, record, tables and targets.

    Bench.main: options -> measure -> bench/results/NAME.json -> section, printed

`section` makes Markdown of a result; `bench.performance` joins the sections into one page.
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from rich.console import Console
from rich.markdown import Markdown

from bench.machine import machine
from bench.processes import ended_by_sigterm
from common.errors import SplitpointError
from common.progress import Stages
from common.version import __version__

RESULTS = Path(__file__).parent / "results"

Result = dict[str, Any]
Lines = Iterable[str]
Columns = Mapping[str, str | Callable[[Result], str]]
T = TypeVar("T")


@dataclass(frozen=True)
class Bench:
    """One bench.

    Attributes:
        doc: Description; the first line counts, so that a module's docstring does.
        result: Name of its result, which is the JSON's name.
        options: Adds the options of its command.
        measure: Measures; returns the result.
        section: Makes lines of Markdown of a result.
        plot: Draws a result, if it can be drawn, into a file of --plot.
    """

    doc: str
    result: str
    options: Callable[[argparse.ArgumentParser], None]
    measure: Callable[[argparse.Namespace, Stages], Result]
    section: Callable[[Result], Lines]
    plot: Callable[[Result, Path], None] | None = None

    def main(self, words: Sequence[str] | None = None) -> None:
        """Run the command: measure, write and print."""
        parser = argparse.ArgumentParser(description=self.doc.partition("\n")[0])
        self.options(parser)
        usual = RESULTS / f"{self.result}.json"
        parser.add_argument("--json", type=Path, default=usual, help="where the result goes")
        if self.plot is not None:
            parser.add_argument("--plot", type=Path, help="where a plot goes (.svg or .png)")
        arguments = parser.parse_args(words)
        try:
            with ended_by_sigterm(), Stages() as stages:
                result = self.measure(arguments, stages)
        except SplitpointError as error:
            sys.exit(f"error: {error}")
        write(result, arguments.json)
        show(self.section(result))
        if self.plot is not None and arguments.plot is not None:
            self.plot(result, arguments.plot)


@dataclass(frozen=True)
class Target:
    """A target of a bench, and its worst measured case.

    Attributes:
        what: The target in words.
        worst: The worst value that was measured.
        where: The case of the worst value.
        met: Whether it is good enough.
    """

    what: str
    worst: str
    where: str
    met: bool

    @property
    def line(self) -> str:
        """The target as an item of a list."""
        return f"- {'met' if self.met else 'MISSED'}: {self.what}: {self.worst} ({self.where})"


def add_bundle_options(parser: argparse.ArgumentParser) -> None:
    """Add options for a bundle and the pictures to send."""
    parser.add_argument("--bundle", type=Path, required=True, help="bundle that is served")
    parser.add_argument("--images", type=Path, required=True, help="folder of pictures to send")


def add_coco_options(parser: argparse.ArgumentParser) -> None:
    """Add options for pictures to evaluate and to calibrate on."""
    parser.add_argument("--images", type=Path, required=True, help="pictures to evaluate on")
    parser.add_argument("--annotations", type=Path, required=True, help="their COCO instances file")
    add_calibration_options(parser)


def add_calibration_options(parser: argparse.ArgumentParser) -> None:
    """Add options for pictures to calibrate on."""
    parser.add_argument("--calibration", type=Path, required=True, help="pictures to calibrate on")
    parser.add_argument("--max-images", type=int, default=1000, help="most of each folder")


def in_turn(count: int, rounds: int) -> Iterator[tuple[int, int]]:
    """Rounds of all of `count` things, each round in another order; pairs of round and thing.

    Times depend on what went before, and what else the machine does should hit all alike.
    """
    order = np.random.default_rng(0)
    for round_ in range(rounds):
        yield from ((round_, int(thing)) for thing in order.permutation(count))


def listed(kind: Callable[[str], T]) -> Callable[[str], tuple[T, ...]]:
    """Type of an option that takes several values, separated by commas."""
    return lambda text: tuple(kind(word) for word in text.split(",") if word)


def spread(values: Sequence[T], count: int) -> list[T]:
    """Some of the values, at most `count`, spread evenly."""
    return list(values[:: max(1, len(values) // count)][:count])


def record(**measured: Any) -> Result:
    """Result with a description of the machine and the software."""
    return {"machine": machine(), "software_version": __version__, **measured}


def write(result: Result, path: Path) -> None:
    """Write a result as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n")


def show(lines: Lines) -> None:
    """Print Markdown on the terminal."""
    terminal = Console()
    console = Console(width=terminal.width if terminal.is_terminal else 160)
    console.print(Markdown("\n".join(lines)))


def table(rows: Iterable[Result], columns: Columns) -> Lines:
    """Lines of a Markdown table.

    Args:
        rows: A mapping for each row.
        columns: By head, what is in a cell: a format such as "{p50_ms:.1f}" or a function of the
            row. What a row lacks, or has as None, is left empty. Columns are numbers, but the first
            and those whose head ends with ":".
    """
    words = [name.endswith(":") or not place for place, name in enumerate(columns)]
    yield "| " + " | ".join(name.rstrip(":") for name in columns) + " |"
    yield "|" + "|".join("---" if each else "--:" for each in words) + "|"
    for row in rows:
        yield "| " + " | ".join(_cell(row, how) for how in columns.values()) + " |"


def _cell(row: Result, how: str | Callable[[Result], str]) -> str:
    if not isinstance(how, str):
        return how(row)
    try:
        return how.format_map(row)
    except (KeyError, TypeError):  # None takes no format
        return ""
