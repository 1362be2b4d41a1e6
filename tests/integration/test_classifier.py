"""A user's own torch module as a classifier: searched, deployed on two processes, answers top-k."""

from pathlib import Path

import httpx
import pytest
import torch

from bench.processes import Service
from common.bundle.bundle import Bundle
from common.bundle.manifest import Plan
from common.tasks.classification import ClassificationTask
from splitpoint.cli import main
from splitpoint.demo.ways import infer
from tests.classifiers import NAMES, pictures, trained

CARD = """
labels = "colours.txt"
[input]
mean = [127.5, 127.5, 127.5]
std = [127.5, 127.5, 127.5]
fit = "centre-crop"
[task]
kind = "classification"
top = 3
"""


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("classifier")
    pictures(folder / "pictures", 48)
    (folder / "colours.txt").write_text("\n".join(NAMES))
    (folder / "card.toml").write_text(CARD)
    torch.save(trained().state_dict(), folder / "weights.pth")
    arguments = ["search", "--model", "tests.classifiers:ColourClassifier"]
    arguments += ["--weights", str(folder / "weights.pth"), "--card", str(folder / "card.toml")]
    arguments += ["--image-size", "32x48", "--calibration", str(folder / "pictures")]
    arguments += ["--link", "100kbit/20ms", "--max-drop", "30", "--refined-cuts", "0", "--no-cache"]
    with pytest.raises(SystemExit) as ended:
        main([*arguments, "--out", str(folder / "bundle")])
    assert ended.value.code == 0
    return folder / "bundle"


@pytest.fixture(scope="module")
def plans(bundle: Path) -> tuple[Plan, ...]:
    with Bundle.open(bundle) as opened:
        task = opened.manifest.task
        assert isinstance(task, ClassificationTask)
        assert (task.class_names, task.image.size, task.top) == (NAMES, (32, 48), 3)
        assert opened.manifest.search.model == "tests.classifiers:ColourClassifier"
        assert opened.manifest.search.accuracy_metric == "top-1 agreement"
        plans = opened.manifest.plans
    assert {plan.kind for plan in plans} == {"cloud-only", "split", "edge-only"}
    return plans


def test_every_plan_answers_with_the_best_classes(
    bundle: Path, plans: tuple[Plan, ...], tmp_path: Path
) -> None:
    pictures(tmp_path / "pictures", 12)
    with (
        Service.cloud(bundle, tmp_path / "cloud.log") as cloud,
        Service(
            [
                *("edge", "--bundle", str(bundle), "--listen", "127.0.0.1:0"),
                *("--cloud", f"127.0.0.1:{cloud.ready['grpc']}"),
            ],
            tmp_path / "edge.log",
        ) as edge,
        httpx.Client(trust_env=False) as client,
    ):
        url = "http://127.0.0.1:{}/v1/infer"
        for picture in sorted((tmp_path / "pictures").iterdir()):
            colour = picture.name.partition("-")[0]
            whole = infer(client, url.format(cloud.ready["rest"]), picture)
            answers = [
                infer(client, url.format(edge.ready["rest"]), picture, plan=plan.name)
                for plan in plans
            ]
            for answer in (whole, *answers):
                scores = [each["score"] for each in answer["result"]]
                assert answer["result"][0]["class_name"] == colour
                assert len(scores) == 3
                assert scores == sorted(scores, reverse=True)
            assert [answer["plan"]["name"] for answer in answers] == [each.name for each in plans]
