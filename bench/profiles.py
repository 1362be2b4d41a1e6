"""Latency tables of both sides of a bench, by the product's own profile, before it measures."""

import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path


def profile_both(
    bundle: Path, edges: Mapping[str, Sequence[str]], tables: Path, budget_s: float
) -> None:
    """Profile edges, perhaps slowed, and the cloud, which is not.

    Args:
        bundle: Bundle whose plans are timed.
        edges: Prefix of the profile's command line by name of the edge in the tables; see
            `bench.slow`.
        tables: File to write.
        budget_s: Largest duration of each profile.

    Raises:
        subprocess.CalledProcessError: If a profile fails; it has printed the reason.
    """
    command = [sys.executable, "-m", "splitpoint.cli", "profile", "--bundle", str(bundle)]
    command += ["--tables", str(tables), "--budget", f"{budget_s:g}"]
    sides = [([*prefix, *command], ["--device", device]) for device, prefix in edges.items()]
    sides += [(command, ["--device", "cloud-machine", "--cloud-side"])]
    for start, options in sides:
        subprocess.run([*start, *options], check=True, stdout=subprocess.DEVNULL)  # noqa: S603
