"""Progress of long work, shown on a terminal with one line per stage."""

import time
from types import TracebackType
from typing import Protocol, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars
from rich.progress import TimeElapsedColumn as Elapsed


class Progress(Protocol):
    """Called with steps done, steps in all, and what else is worth showing."""

    def __call__(self, done: int, total: int, note: str = "", /) -> None:
        """Show how far a stage is."""
        ...


class Reporter(Protocol):
    """Receiver of progress reports from long work."""

    def stage(self, title: str, /) -> Progress:
        """Begin a stage."""
        ...


class Silent:
    """Reporter that shows nothing."""

    def stage(self, title: str, /) -> Progress:
        """Begin a stage."""
        del title
        return self._show

    @staticmethod
    def _show(done: int, total: int, note: str = "", /) -> None:
        pass


class Stages:
    """Shows stages one below the other; without a terminal, prints a line per finished stage."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(stderr=True)
        self._progress = Bars(
            TextColumn("{task.description:<32}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            Elapsed(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=self._console,
            disable=not self._console.is_terminal,
        )

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._progress.stop()

    def stage(self, title: str) -> Progress:
        """Begin a stage; call the result with steps done, steps in all, and perhaps a note."""
        task = self._progress.add_task(title, total=None, note="")

        finished, began_s = False, time.monotonic()

        def update(done: int, total: int, note: str = "", /) -> None:
            nonlocal finished
            self._progress.update(task, completed=done, total=total, note=note)
            if done >= total and self._progress.disable and not finished:
                finished = True
                took = f"{title}: done in {time.monotonic() - began_s:.0f} s {note}"
                self._console.print(took.rstrip(), highlight=False)

        return update
