"""Progress on a terminal: one line per stage, with a bar and the time left."""

from collections.abc import Callable
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.progress import TimeElapsedColumn as Elapsed


class Stages:
    """Shows stages one below the other; without a terminal, prints a line per finished stage."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(stderr=True)
        self._progress = Progress(
            TextColumn("{task.description:<32}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            Elapsed(),
            TimeRemainingColumn(),
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

    def stage(self, title: str) -> Callable[[int, int], None]:
        """Begin a stage; call the result with steps done and steps in all."""
        task = self._progress.add_task(title, total=None)

        def update(done: int, total: int) -> None:
            self._progress.update(task, completed=done, total=total)
            if done >= total and self._progress.disable:
                self._console.print(f"{title}: done", highlight=False)

        return update
