"""Our own processes: servers that are waited for and ended by their own pid, profiles, CPU time."""

import contextlib
import json
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn, Self

from common.errors import SplitpointError

_POLL_S = 0.05
_START_TIMEOUT_S = 120.0
_STOP_TIMEOUT_S = 15.0
_OURS = (sys.executable, "-m", "splitpoint.cli")


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
        self.ready: dict[str, Any] = {}

    @classmethod
    def cloud(
        cls, bundle: Path, log: Path, *options: str, host: str = "", prefix: Sequence[str] = ()
    ) -> Self:
        """A cloud on ports that are free, on loopback unless a host is named."""
        command = ["cloud", "--bundle", str(bundle), "--grpc-port", "0", "--rest-port", "0"]
        command += ["--host", host] if host else []
        return cls([*command, *options], log, prefix=prefix)

    def __enter__(self) -> Self:
        with tempfile.TemporaryDirectory(prefix="splitpoint-") as folder:
            ready_file = Path(folder) / "ready.json"
            arguments = [*self._prefix, *_OURS, *self._command, "--ready-file", str(ready_file)]
            with self._log.open("wb") as log:
                self._process = subprocess.Popen(arguments, stdout=log, stderr=log)  # noqa: S603
            try:
                self._wait(ready_file)
            except BaseException:
                end(self._process)
                raise
            self.ready = json.loads(ready_file.read_text())
        return self

    def __exit__(self, *_: object) -> None:
        end(self._process)

    def _wait(self, ready_file: Path) -> None:
        """Wait for the ready file, or for the process to end."""
        deadline = time.monotonic() + _START_TIMEOUT_S
        while not ready_file.exists():
            if self._process.poll() is not None or time.monotonic() > deadline:
                lines = self._log.read_text(errors="replace").strip().splitlines()
                reason = lines[-1] if lines else "it said nothing"
                raise ProcessError(f"`splitpoint {self._command[0]}` did not start: {reason}")
            time.sleep(_POLL_S)


def end(process: "subprocess.Popen[Any]") -> None:
    """End a process: close its input and ask it to, and kill it after a timeout."""
    if process.stdin is None:
        process.terminate()
    try:
        process.communicate(timeout=_STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()


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


def profile_both(
    bundle: Path, edges: Mapping[str, Sequence[str]], tables: Path, budget_s: float
) -> None:
    """Make latency tables by the product's own profile of edges, and of the cloud.

    Args:
        bundle: Bundle whose plans are timed.
        edges: Prefix of the profile's command line by name of the edge in the tables; see
            `bench.slow`.
        tables: File to write.
        budget_s: Largest duration of each profile.

    Raises:
        subprocess.CalledProcessError: If a profile fails; it has printed the reason.
    """
    command = [*_OURS, "profile", "--bundle", str(bundle)]
    command += ["--tables", str(tables), "--budget", f"{budget_s:g}"]
    sides = [([*prefix, *command], ["--device", device]) for device, prefix in edges.items()]
    sides += [(command, ["--device", "cloud-machine", "--cloud-side"])]
    for start, options in sides:
        subprocess.run([*start, *options], check=True, stdout=subprocess.DEVNULL)  # noqa: S603


def cpu_ms(pid: int) -> float:
    """CPU time of all running threads of a process so far, as the kernel counts it."""
    total_ns = 0
    for path in Path(f"/proc/{pid}/task").glob("*/schedstat"):
        try:
            total_ns += int(path.read_text().split()[0])
        except (OSError, ValueError, IndexError):
            continue  # a thread that has just ended
    return total_ns / 1e6


def memory_mib(pid: int, *, peak: bool = False) -> float:
    """Resident memory of a process: now, or the most that it has ever had."""
    field = "VmHWM:" if peak else "VmRSS:"
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    kib = next(int(line.split()[1]) for line in lines if line.startswith(field))
    return round(kib / 1024, 1)
