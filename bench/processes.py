"""Our own servers as child processes: started, waited for by readiness, ended by their own pid."""

import contextlib
import json
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, NoReturn, Self

from common.errors import SplitpointError

_POLL_S = 0.05
_START_TIMEOUT_S = 120.0
_STOP_TIMEOUT_S = 15.0


class ProcessError(SplitpointError):
    """A server that did not start; the message ends with its own last line."""


class Service:
    """One `splitpoint` server in a process of its own, for the length of a `with` block.

    Args:
        command: Arguments of `splitpoint`, without `--ready-file`.
        log: File for its output.
        prefix: A command that runs the rest of its arguments in its own place, such as
            `ip netns exec NAME`; see `bench.slow` and `bench.links.shaped`.
    """

    def __init__(self, command: Sequence[str], log: Path, *, prefix: Sequence[str] = ()) -> None:
        self._command = list(command)
        self._log = log
        self._prefix = list(prefix)
        self._process: subprocess.Popen[bytes] | None = None
        self.ready: dict[str, Any] = {}

    def __enter__(self) -> Self:
        with tempfile.TemporaryDirectory(prefix="splitpoint-") as folder:
            ready_file = Path(folder) / "ready.json"
            arguments = [*self._prefix, sys.executable, "-m", "splitpoint.cli", *self._command]
            with self._log.open("wb") as log:
                self._process = subprocess.Popen(  # noqa: S603 - our own command, no shell
                    [*arguments, "--ready-file", str(ready_file)], stdout=log, stderr=log
                )
            try:
                self._wait(ready_file)
            except BaseException:
                self._stop()
                raise
            self.ready = json.loads(ready_file.read_text())
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop()

    def _wait(self, ready_file: Path) -> None:
        """Wait for the ready file, or for the process to end."""
        deadline = time.monotonic() + _START_TIMEOUT_S
        process = self._started()
        while not ready_file.exists():
            if process.poll() is not None or time.monotonic() > deadline:
                lines = self._log.read_text(errors="replace").strip().splitlines()
                reason = lines[-1] if lines else "it said nothing"
                raise ProcessError(f"`splitpoint {self._command[0]}` did not start: {reason}")
            time.sleep(_POLL_S)

    def _stop(self) -> None:
        process = self._started()
        process.terminate()
        try:
            process.wait(_STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def _started(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            raise RuntimeError("the service was not started")
        return self._process


@contextlib.contextmanager
def ended_by_sigterm() -> Iterator[None]:
    """End the block on SIGTERM as on Ctrl-C, so that no process it started outlives it."""

    def leave(number: int, _frame: FrameType | None) -> NoReturn:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
