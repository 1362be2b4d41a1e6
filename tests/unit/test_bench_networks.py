"""The bench of other networks: its seeded weights, and what it makes of its measurements."""

import pytest
import torch

from bench import networks
from bench.harness import Result
from common.errors import SplitpointError
from search.card import read_card
from search.zoo.darknet import DarknetModule


def _score(preset: str, accuracy: float, lost: float | None) -> Result:
    metric = "AP"
    most = None if lost is None else lost + 1
    return {
        "preset": preset,
        "metric": metric,
        "accuracy": accuracy,
        "lost": lost,
        "lost_at_most": most,
    }


def _plan(name: str, kind: str, latency_ms: float) -> Result:
    return {
        "plan": name,
        "kind": kind,
        "latency_ms": latency_ms,
        "uplink_bytes": 900.0,
        "edge_memory_bytes": 1 << 20,
    }


def _result(lost: float, seconds: float = 60.0) -> Result:
    plans = [
        _plan("cloud-only jpeg q60", "cloud-only", 90.0),
        _plan("conv_3 8-bit context", "split", 120.0),
        _plan("conv_3 searched context adapted", "split", 130.0),
    ]
    drops = (0.3, lost, 2.0)
    evaluation = {
        "reference": [_score("serving", 20.0, None), _score("evaluation", 25.0, None)],
        "plans": [
            {
                "name": plan["plan"],
                "uplink_bytes": 1000.0,
                "scores": [
                    _score("serving", 19.0, 1.0),
                    _score("evaluation", 25.0 - drop, drop),
                ],
            }
            for plan, drop in zip(plans, drops, strict=True)
        ],
    }
    searched = {"seconds": seconds, "peak_mib": 900.0, "cuts": 9, "fastest": []}
    return {
        "link": "3mbit/20ms",
        "device": "quarter-core",
        "calibration_images": 64,
        "networks": [
            {"network": "yolox-nano", "plans": plans, "evaluation": evaluation, **searched},
            {"network": "yolov3", "plans": plans[:1], **searched},
        ],
    }


def test_its_section_has_each_plan_as_deployed() -> None:
    text = "\n".join(networks.section(_result(0.25)))
    assert "| yolox-nano | 9 | 60 | 900 | 3 | cloud-only jpeg q60 |" in text
    assert "| conv_3 8-bit context | 120 | 1,000 | 1.00 | 24.8 | 0.25 | 1.25 |" in text
    assert "MISSED" not in text


def test_its_targets_are_about_eight_bits_and_time() -> None:
    found = networks.targets(_result(0.75, seconds=400.0))
    missed = {target.what for target in found if not target.met}
    assert missed == {
        "an 8-bit head of yolox-nano loses at most 0.5 points of AP",
        "search of yolov3 in 5 minutes",
    }


def test_seeded_weights_keep_the_size_of_tensors() -> None:
    module = DarknetModule(networks.CFGS["yolov3-tiny"].cfg)
    module.load_weights(networks.seeded_weights("yolov3-tiny"))
    with torch.inference_mode():
        maps = module.eval()(torch.rand(1, 3, 416, 416, generator=torch.manual_seed(1)))
    assert all(0.1 < float(each.std()) < 10 for each in maps)


@pytest.mark.parametrize("name", networks.DETECTORS)
def test_its_cards_can_be_read(name: str) -> None:
    card = read_card(networks._CARDS / networks.DETECTORS[name].card)
    assert card.labels == "coco"


def test_a_command_that_fails_says_why() -> None:
    with pytest.raises(SplitpointError, match=r"splitpoint search failed: .*nope"):
        networks._run(
            ["search", "--model", "nope", "--link", "1mbit", "--calibration", ".", "--out", "x"]
        )
