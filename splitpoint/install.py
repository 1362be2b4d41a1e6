"""Installs the packages that a command of the Makefile needs, with one line of progress.

    python splitpoint/install.py .venv EXTRA[,EXTRA...]

pip's own output goes to a log, which is named if it fails. The Makefile runs this before anything
is installed, so it needs nothing but the standard library.
"""

import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import IO

_TICK_S = 0.2
_LAST_LINES = 5
_INTERRUPTED = 130


def main(arguments: list[str]) -> int:
    """Install the extras into the environment; returns pip's exit code."""
    environment, extras = Path(arguments[0]), arguments[1]
    log = environment / "install.log"
    # A range may resolve to a build of torch with gigabytes of CUDA; it is pinned exactly.
    torch = [line for line in _lines(Path("constraints.txt")) if line.startswith("torch==")]
    command = [environment / "bin" / "python", "-m", "pip", "install", "--no-compile"]
    command += [
        "--disable-pip-version-check",
        "-c",
        "constraints.txt",
        *torch,
        "-e",
        f".[{extras}]",
    ]
    show = _shower(sys.stderr, f"installing into {environment}")
    with log.open("w+") as output:
        started_s = time.monotonic()
        pip = subprocess.Popen(list(map(str, command)), stdout=output, stderr=output)  # noqa: S603
        try:
            while pip.poll() is None:
                time.sleep(_TICK_S)
                show(progress(_lines(log)), time.monotonic() - started_s)
        except KeyboardInterrupt:
            return _INTERRUPTED
        finally:
            pip.terminate()
            pip.wait()
    if pip.returncode:
        print(f"\nerror: pip failed; the end of {log} says:", file=sys.stderr)  # noqa: T201
        print("\n".join(_lines(log)[-_LAST_LINES:]), file=sys.stderr)  # noqa: T201
        print("if the environment is half made, `make clean` removes it", file=sys.stderr)  # noqa: T201
    else:
        took_s = time.monotonic() - started_s
        show("done", took_s)
        print(file=sys.stderr)  # noqa: T201
    return pip.returncode


def progress(lines: Iterable[str]) -> str:
    """Progress of pip in a few words, from its output so far."""
    found: set[str] = set()
    for line in lines:
        word, _, rest = line.strip().partition(" ")
        if word in {"Collecting", "Obtaining"}:
            found.add(rest.split("=", maxsplit=1)[0].split(">", maxsplit=1)[0].split("[")[0])
        elif line.startswith("Installing collected packages: "):
            return f"unpacking {rest.count(',') + 1} packages"
    return f"{len(found)} packages found"


def _shower(stream: IO[str], title: str) -> Callable[[str, float], None]:
    """Return a progress display: one line on a terminal, elsewhere a line per new kind of state."""
    shown = ""

    def show(state: str, seconds: float) -> None:
        nonlocal shown
        if stream.isatty():
            stream.write(f"\r\033[K{title}: {state}, {seconds:.0f} s")
        elif state.split(" ")[0] != shown and not state[0].isdigit():
            shown = state.split(" ")[0]
            stream.write(f"{title}: {state}, {seconds:.0f} s\n")
        stream.flush()

    return show


def _lines(path: Path) -> list[str]:
    return path.read_text(errors="replace").splitlines()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
