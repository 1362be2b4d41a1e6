"""Steps of the original, each a script of its own there, and our command for each."""

import shlex
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from bench.autosplit.networks import OriginalNetwork, has_weights
from bench.processes import ProcessError

_OURS = (sys.executable, "-m", "splitpoint.cli")
_NETWORK = "--model {model} --calibration {pictures}"
_ALLOCATE = f"splitpoint allocate {_NETWORK} --edge-memory {{memory}}"
_CHOICE = "--link 3mbit/20ms --strategy auto-split-v2"
STEPS = (
    (
        "statistics sampled, layers fused, table post-processed, latencies collected",
        f"splitpoint profile {_NETWORK} --out {{out}}profile/",
    ),
    ("Auto-Split v1", f"{_ALLOCATE} --method auto-split-v1 --out {{out}}v1/"),
    (
        "Auto-Split v2, bit configurations written",
        f"{_ALLOCATE} --method auto-split-v2 --out {{out}}v2/",
    ),
    (
        "one configuration quantized",
        f"splitpoint quantize {_NETWORK} --widths {{out}}v2/{{one}}.yaml --out {{out}}one/",
    ),
    (
        "all quantized, results collected",
        f"splitpoint quantize {_NETWORK} --widths {{out}}v2/ --out {{out}}all/",
    ),
    (
        "a configuration chosen",
        f"splitpoint search {_NETWORK} --edge-memory {{memory}} {_CHOICE} --out {{out}}bundle/",
    ),
)
"""Each step of the original, and our command."""
_EXAMPLE = {"model": "yolov3-tiny", "pictures": "PICTURES", "memory": "32MiB", "out": ""}


def as_table() -> Iterator[str]:
    """Lines of Markdown: every step with our command for YOLOv3-tiny, and the loop over all."""
    yield "| step of the original | command |"
    yield "|---|---|"
    for step, command in STEPS:
        yield f"| {step} | `{command.format(**_EXAMPLE, one='ONE')}` |"
    loop = "python -m bench.reproduce_autosplit --all --calibration PICTURES"
    yield f"| latencies simulated, every step for every network | `{loop}` |"


def run_all(networks: Iterable[OriginalNetwork], pictures: Path, out: Path) -> None:
    """Run every step for every network whose weights are at hand.

    Args:
        networks: The networks; of equal models the first counts.
        pictures: Folder of calibration images.
        out: Folder for a folder of each network.

    Raises:
        ProcessError: If a step fails; what it printed says why.
    """
    for network in {network.model: network for network in reversed(list(networks))}.values():
        if not has_weights(network):
            continue
        folder = out / network.model
        folder.mkdir(parents=True, exist_ok=True)
        for _, command in STEPS:
            given = {
                "model": network.model,
                "pictures": shlex.quote(str(pictures)),
                "memory": f"{network.memory_kib}KiB",
                "out": shlex.quote(f"{folder}/"),
                "one": next((path.stem for path in sorted(folder.glob("v2/*.yaml"))), ""),
            }
            words = shlex.split(command.format(**given))[1:]
            if subprocess.run([*_OURS, *words], check=False).returncode:  # noqa: S603
                raise ProcessError(f"`splitpoint {shlex.join(words)}` failed")
