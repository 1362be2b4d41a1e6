"""Latency tables of both sides of a bench, by the product's own profile, before it measures."""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path


def profile_both(
    bundle: Path, device: str, tables: Path, prefix: Sequence[str], budget_s: float
) -> None:
    """Profile the edge, perhaps slowed, and the cloud, which is not.

    Args:
        bundle: Whose plans are timed.
        device: What the edge is called in the tables.
        tables: Where they are written.
        prefix: Of the command line of the edge's profile; see `bench.slow`.
        budget_s: For either side, at the most.

    Raises:
        subprocess.CalledProcessError: If a profile fails; it has said why.
    """
    command = [sys.executable, "-m", "splitpoint.cli", "profile", "--bundle", str(bundle)]
    command += ["--tables", str(tables), "--budget", f"{budget_s:g}"]
    sides = [([*prefix, *command], ["--device", device])]
    sides += [(command, ["--device", "cloud-machine", "--cloud-side"])]
    for start, options in sides:
        subprocess.run([*start, *options], check=True, stdout=subprocess.DEVNULL)  # noqa: S603
