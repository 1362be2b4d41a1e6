"""Networks of others by the front door: time and memory of a search, accuracy as deployed.

    python -m bench.networks --models DIR --images DIR --annotations FILE --calibration DIR

Each network goes through `splitpoint search` and `splitpoint evaluate`, processes of their own. Two
are published detectors in ONNX, searched on 64 pictures with accuracy and fine-tuned tails, and
evaluated on pictures that fitted nothing. The third is YOLOv3 at 608 pixels, whose weights are
seeded as its published ones are not to be had everywhere: a search without accuracy on 16.
"""

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from bench.harness import Bench, Lines, Result, Target, add_coco_options, listed, record, table
from bench.processes import ProcessError
from common.progress import Stages
from search.zoo.darknet import Convolution, DarknetModule
from search.zoo.registry import MODELS, DarknetModel

_CARDS = Path(__file__).parent / "cards"
_LINK, _DEVICE = "3mbit/20ms", "quarter-core"
_LARGE, _LARGE_SIZE, _LARGE_IMAGES = "yolov3", 608, 16


@dataclass(frozen=True)
class PublishedDetector:
    """A detector in ONNX.

    Attributes:
        file: Its name in the folder of models.
        card: Its card in `bench/cards`.
    """

    file: str
    card: str


DETECTORS = {
    "yolox-nano": PublishedDetector("kiven_yolox_nano.onnx", "yolox-nano.toml"),
    "picodet-s": PublishedDetector("picodet_s_416_coco.onnx", "picodet-s.toml"),
}
CFGS = {name: model for name, model in MODELS.items() if isinstance(model, DarknetModel)}
NETWORKS = (*DETECTORS, _LARGE)
MOST_S = {"yolox-nano": 720.0, _LARGE: 300.0}
MOST_MIB = {_LARGE: 6 * 1024.0}
MOST_LOST = 0.5
"""Points of AP that an 8-bit head may lose at the cut of the fastest split."""


def measure(arguments: argparse.Namespace, stages: Stages) -> Result:
    """Search each network, and evaluate the plans of those with weights of their own."""
    rows = []
    for name in arguments.networks:
        with tempfile.TemporaryDirectory(prefix="splitpoint-") as scratch:
            progress = stages.stage(name)
            rows.append({"network": name, **_measured(name, arguments, Path(scratch))})
            progress(1, 1)
    return record(networks=rows, link=_LINK, device=_DEVICE, calibration_images=arguments.searched)


def _measured(name: str, arguments: argparse.Namespace, folder: Path) -> Result:
    bundle = folder / "bundle"
    common = ["--link", _LINK, "--device", _DEVICE, "--calibration", str(arguments.calibration)]
    common += ["--no-cache", "--out", str(bundle)]
    if name == _LARGE:
        weights = folder / "seeded.weights"
        weights.write_bytes(seeded_weights(name))
        model = ["--model", name, "--weights", str(weights), "--image-size", str(_LARGE_SIZE)]
        few = ["--max-images", str(_LARGE_IMAGES), "--no-accuracy"]
        return _run(["search", *model, *common, *few]) | _report(bundle)
    detector = DETECTORS[name]
    model = [
        "--model",
        str(arguments.models / detector.file),
        "--card",
        str(_CARDS / detector.card),
    ]
    pictures = ["--max-images", str(arguments.searched)]
    searched = _run(["search", *model, *common, *pictures]) | _report(bundle)
    truth = ["--images", str(arguments.images), "--annotations", str(arguments.annotations)]
    out = folder / "evaluation.json"
    _run(["evaluate", "--bundle", str(bundle), *truth, "--json", str(out)])
    return searched | {"evaluation": json.loads(out.read_text())}


def _run(words: Sequence[str]) -> Result:
    """Run a command of ours; returns its time in seconds and peak memory in MiB."""
    with tempfile.TemporaryFile() as log:
        began_s = time.monotonic()
        command = [sys.executable, "-m", "splitpoint.cli", *words]
        process = subprocess.Popen(command, stdout=log, stderr=log)  # noqa: S603
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            log.seek(0)
            last = log.read().decode(errors="replace").strip().rpartition("\n")[2]
            raise ProcessError(f"splitpoint {words[0]} failed: {last}")
    return {"seconds": time.monotonic() - began_s, "peak_mib": usage.ru_maxrss / 1024}


def _report(bundle: Path) -> Result:
    report = json.loads((bundle / "report.json").read_text())
    kept = [each for each in report["candidates"] if each["kept"]]
    return {
        "cuts": report["cuts"],
        "fastest": report["fastest"],
        "plans": [
            {
                "plan": each["name"],
                "kind": each["kind"],
                "latency_ms": each["predicted"]["latency_ms"],
                "uplink_bytes": each["payload_bytes"],
                "edge_memory_bytes": each["predicted"]["edge_memory_bytes"],
            }
            for each in kept
        ],
    }


def seeded_weights(name: str) -> bytes:
    """Weights file of a Darknet network of the zoo: random, of normalised outputs."""
    torch.manual_seed(0)
    module = DarknetModule(CFGS[name].cfg)
    for layer in module.modules():
        if isinstance(layer, Convolution):
            weight = layer.conv.weight
            nn.init.normal_(weight, 0, math.sqrt(2 / weight[0].numel()))
        elif isinstance(layer, nn.BatchNorm2d):
            layer.momentum = 1.0
    with torch.no_grad():
        module.train()(torch.rand(2, 3, *module.input_size))  # its normalisations see one batch
    return module.to_weights()


def section(result: Result) -> Lines:
    """Markdown of a result."""
    yield (
        f"`splitpoint search` with {result['calibration_images']} pictures ({_LARGE}: "
        f"{_LARGE_IMAGES}) for {result['link']} and {result['device']}, nothing cached. Drops of "
        "AP as deployed are against the network in floating point, on pictures that fitted "
        "nothing; at most: 90 %, one-sided."
    )
    yield ""
    yield from table(
        result["networks"],
        {
            "network": "{network}",
            "cuts": "{cuts}",
            "search s": "{seconds:.0f}",
            "peak MiB": "{peak_mib:,.0f}",
            "plans": lambda row: str(len(row["plans"])),
            "fastest:": lambda row: row["plans"][0]["plan"],
        },
    )
    yield ""
    for row in result["networks"]:
        if "evaluation" in row:
            yield from _accuracies(row)
    yield from (target.line for target in targets(result))
    yield ""


def _accuracies(row: Result) -> Lines:
    whole = _score(row["evaluation"]["reference"])
    yield f"{row['network']}: AP {whole['accuracy']:.1f} in floating point."
    yield ""
    yield from table(
        _plans(row),
        {
            "plan": "{plan}",
            "ms": "{latency_ms:.0f}",
            "bytes": "{sent_bytes:,.0f}",
            "edge MiB": lambda plan: f"{plan['edge_memory_bytes'] / 2**20:.2f}",
            "AP": "{accuracy:.1f}",
            "drop": "{lost:.2f}",
            "at most": "{lost_at_most:.2f}",
        },
    )
    yield ""


def _plans(row: Result) -> list[Result]:
    """Plans with their predictions and what was measured of them."""
    evaluated = {each["name"]: each for each in row["evaluation"]["plans"]}
    return [
        {**plan, "sent_bytes": found["uplink_bytes"], **_score(found["scores"])}
        for plan in row["plans"]
        for found in [evaluated[plan["plan"]]]
    ]


def _score(scores: Sequence[Result]) -> Result:
    return next(each for each in scores if each["preset"] == "evaluation")


def targets(result: Result) -> list[Target]:
    """Targets: time and memory of searches, and the drop of 8-bit heads."""
    found = []
    for row in result["networks"]:
        name = row["network"]
        if name in MOST_S:
            least = MOST_S[name]
            words = f"search of {name} in {least / 60:.0f} minutes"
            found.append(Target(words, f"{row['seconds']:.0f} s", name, row["seconds"] <= least))
        if name in MOST_MIB:
            words = f"search of {name} in {MOST_MIB[name] / 1024:.0f} GiB"
            met = row["peak_mib"] <= MOST_MIB[name]
            found.append(Target(words, f"{row['peak_mib']:,.0f} MiB", name, met))
        if "evaluation" in row:
            found += _drop_target(row)
    return found


def _drop_target(row: Result) -> list[Target]:
    splits = [plan for plan in _plans(row) if plan["kind"] == "split"]
    exact = [plan for plan in splits if " 8-bit " in plan["plan"]] or splits
    if not exact:
        return []
    worst = exact[0]
    what = f"an 8-bit head of {row['network']} loses at most {MOST_LOST} points of AP"
    return [Target(what, f"{worst['lost']:.2f}", worst["plan"], worst["lost"] <= MOST_LOST)]


def _options(parser: argparse.ArgumentParser) -> None:
    add_coco_options(parser)
    parser.add_argument("--models", type=Path, required=True, help="folder of the ONNX files")
    parser.add_argument("--networks", type=listed(str), default=NETWORKS, help="some of them")
    parser.add_argument("--searched", type=int, default=64, help="pictures of each search")


BENCH = Bench(__doc__, "networks", _options, measure, section)

if __name__ == "__main__":
    BENCH.main()
