"""Where networks come from: torch modules, their weights and cards, sizes, and the options."""

import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from common.errors import ModelError, SettingsError, SplitpointError, WeightsError
from common.tasks.base import ImageInput
from common.tasks.decoders.yolov3 import AnchorMap, YoloV3
from common.tasks.detections import DetectionTask
from common.tasks.labels import CLASS_NAMES
from search.network.importers.factory import build_module, is_factory
from search.network.importers.state_dict import load_state_dict
from search.source import NetworkSource, open_network, parse_image_size, parse_input
from search.zoo.download import WeightsEntry
from search.zoo.registry import MODELS, TorchModel
from splitpoint.cli import main
from tests import zoo
from tests.classifiers import ColourClassifier

FACTORY = "tests.classifiers:ColourClassifier"
CARD = """
labels = ["a", "b", "c", "d"]
[input]
std = [255, 255, 255]
[task]
kind = "classification"
"""

NETWORKS = """
import sys
import torch
from torch import nn

number = 3
made = nn.Conv2d(3, 4, 1)

def plain():
    return nn.Conv2d(3, 4, 1)

def wanting(depth, *, width):
    return None

def listed():
    return [1, 2]

def failing():
    raise KeyError("no\\nsuch thing")

def leaving():
    sys.exit("goodbye")

class Branching(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x

class Wanting(nn.Module):
    def forward(self, image, scale):
        return image * scale

class Counting(nn.Module):
    def forward(self, image):
        return image * 2, 7

class Pyramid(nn.Module):
    def forward(self, image):
        small = nn.functional.max_pool2d(image, 8)
        return image + nn.functional.interpolate(small, scale_factor=8)

class Rolling(nn.Module):
    def forward(self, image):
        return torch.roll(image, 1, 2)
"""


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A folder with networks of a user's own."""
    (tmp_path / "my_networks.py").write_text(NETWORKS)
    (tmp_path / "my_broken.py").write_text("import nowhere_to_be_found\n")
    (tmp_path / "my_failing.py").write_text("raise OSError('no\\ndisk')\n")
    monkeypatch.chdir(tmp_path)
    yield
    for name in [name for name in sys.modules if name.startswith("my_")]:
        del sys.modules[name]


def test_a_factory_is_told_from_files_and_names() -> None:
    assert is_factory("package.module:make")
    for other in ("yolov3-tiny", "model.onnx", "C:\\model.onnx", "a:b:c", "1a:b", ":b", "a:"):
        assert not is_factory(other)


@pytest.mark.parametrize("name", ["plain", "made"])
def test_a_function_or_a_module_is_found_in_the_current_folder(name: str) -> None:
    module = build_module(f"my_networks:{name}")
    assert isinstance(module, nn.Conv2d)
    assert not module.training
    assert str(Path.cwd()) not in sys.path


def test_initial_weights_are_the_same_every_time() -> None:
    before = torch.random.get_rng_state()
    first, second = (build_module("my_networks:plain") for _ in range(2))
    assert torch.equal(first.weight, second.weight)  # type: ignore[arg-type]
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("my_nothing:make", "no module my_nothing in the current folder, nor is it installed"),
        ("my_nothing.inner:make", "no module my_nothing in the current folder"),
        ("my_broken:make", "my_broken cannot be imported: ModuleNotFoundError: .*nowhere_to_be"),
        ("my_failing:make", "my_failing cannot be imported: OSError: no disk"),
        ("my_networks:absent", "my_networks has no absent"),
        ("my_networks:number", "number is a int, and no function"),
        ("my_networks:wanting", r"needs arguments \(depth, width\): name a function that needs"),
        ("my_networks:listed", r"makes a list: expected a torch\.nn\.Module"),
        ("my_networks:failing", "fails: KeyError: 'no.*such thing'"),
        ("my_networks:leaving", "fails: SystemExit: goodbye"),
        ("no name", "expected package.module:factory"),
    ],
)
def test_a_factory_that_makes_nothing_is_one_line(name: str, message: str) -> None:
    with pytest.raises(ModelError, match=message) as caught:
        build_module(name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Branching", "cannot be exported.*control flow that depends on the image"),
        ("Wanting", "cannot be exported.*with one float32 image of 64x32 pixels.*scale"),
        ("Counting", "gives 7 among its outputs: only tensors"),
        ("Rolling", r"operator aten\.roll.* is not supported for torch modules: export"),
    ],
)
def test_a_module_that_has_no_graph_is_one_line(name: str, message: str) -> None:
    with pytest.raises(ModelError, match=message) as caught:
        open_network(NetworkSource(f"my_networks:{name}", image_size=(64, 32)))
    assert "\n" not in str(caught.value)


def test_sizes_that_would_fit_are_named() -> None:
    source = NetworkSource("my_networks:Pyramid", image_size=(20, 64))
    with pytest.raises(ModelError, match=r"20x64 does not fit .*, 24x64 would: .* multiples of 8"):
        open_network(source)


def saved(folder: Path, state: Any, name: str = "w.pth") -> Path:
    torch.save(state, folder / name)
    return folder / name


def test_a_state_dict_is_loaded(tmp_path: Path) -> None:
    torch.manual_seed(1)
    trained, module = ColourClassifier(), build_module(FACTORY)
    state = {**trained.state_dict(), "norm.num_batches_tracked": torch.tensor(3)}
    for wrapped in (state, {"state_dict": state, "epoch": 3}, {"model": state}):
        loaded = load_state_dict(module, saved(tmp_path, wrapped))
        assert len(loaded.sha256) == 64
        assert loaded.unused == ()
        assert torch.equal(module.state_dict()["first.weight"], trained.first.weight)


def test_torch_s_older_format_is_loaded(tmp_path: Path) -> None:
    path = tmp_path / "old.pth"
    torch.save(ColourClassifier().state_dict(), path, _use_new_zipfile_serialization=False)
    load_state_dict(build_module(FACTORY), path)


def test_names_that_are_known_not_to_be_needed_are_left_out(tmp_path: Path) -> None:
    state = {**ColourClassifier().state_dict(), "aux1.weight": torch.zeros(2)}
    loaded = load_state_dict(build_module(FACTORY), saved(tmp_path, state), unused=("aux1.",))
    assert loaded.unused == ("aux1.weight",)


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return print, ("run",)


def without(name: str) -> dict[str, torch.Tensor]:
    return {n: t for n, t in ColourClassifier().state_dict().items() if n != name}


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (without("first.weight"), r"another network: 1 missing \(first\.weight\)$"),
        (
            {**ColourClassifier().state_dict(), **{f"x{k}": torch.zeros(1) for k in range(5)}},
            r"5 unexpected \(x0, x1, x2, \.\.\.\)$",
        ),
        (
            {**ColourClassifier().state_dict(), "first.bias": torch.zeros(9)},
            r"1 of another shape \(first\.bias is 9, not 8\)$",
        ),
        (
            {**ColourClassifier().state_dict(), "first.bias": torch.full((8,), torch.nan)},
            "not finite: it is damaged",
        ),
        ({}, "8 missing"),
        ([torch.zeros(1)], "not a state dict: save one by"),
        ({"epoch": 3}, "not a state dict: save one by"),
        ({"first.weight": Evil()}, "can be loaded without running"),
    ],
)
def test_weights_of_another_network_are_one_line(
    state: Any, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = saved(tmp_path, state)
    with pytest.raises(WeightsError, match=message) as caught:
        load_state_dict(build_module(FACTORY), path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)
    assert "run" not in capsys.readouterr().out


def test_a_file_that_is_none_is_one_line(tmp_path: Path) -> None:
    module = build_module(FACTORY)
    with pytest.raises(WeightsError, match="cannot be read: No such file"):
        load_state_dict(module, tmp_path / "none.pth")
    (tmp_path / "text.pth").write_text("no weights\n")
    with pytest.raises(WeightsError, match="not a state dict"):
        load_state_dict(module, tmp_path / "text.pth")


def test_what_a_file_takes_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(tmp_path, ColourClassifier().state_dict())
    monkeypatch.setattr("search.network.importers.state_dict.MAX_BYTES", 20_000)
    packed = tmp_path / "packed.pth"
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(30_000))
    with pytest.raises(WeightsError, match="when unpacked"):
        load_state_dict(build_module(FACTORY), packed)
    monkeypatch.setattr("search.network.importers.state_dict.MAX_BYTES", 1000)
    with pytest.raises(WeightsError, match="more than weights may have"):
        load_state_dict(build_module(FACTORY), path)


def test_a_digest_in_the_name_is_checked(tmp_path: Path) -> None:
    module = build_module(FACTORY)
    plain = saved(tmp_path, ColourClassifier().state_dict())
    digest = load_state_dict(module, plain).sha256
    right = plain.rename(tmp_path / f"net-{digest[:8]}.pth")
    load_state_dict(module, right)
    wrong = right.rename(tmp_path / "net-0badcafe.pth")
    with pytest.raises(WeightsError, match=f"begins {digest[:8]}, and its name says 0badcafe"):
        load_state_dict(module, wrong)


@pytest.fixture
def card(tmp_path: Path) -> Path:
    (tmp_path / "classifier.toml").write_text(CARD)
    return tmp_path / "classifier.toml"


def test_a_factory_with_a_card_is_a_network(card: Path, tmp_path: Path) -> None:
    weights = saved(tmp_path, ColourClassifier().state_dict())
    found = open_network(NetworkSource(FACTORY, weights, card, (48, 64)))
    assert found.graph.nodes[0].shape == (3, 48, 64)
    assert found.task.image.size == (48, 64)
    assert found.task.kind == "classification"
    assert found.task.class_names == ("a", "b", "c", "d")
    again = open_network(NetworkSource(FACTORY, weights, card, (48, 64)))
    other = open_network(NetworkSource(FACTORY, None, card, (48, 64)))
    assert again.sha256 == found.sha256 != other.sha256


def test_a_card_can_say_the_size(card: Path) -> None:
    card.write_text(CARD.replace("std =", "shape = [1, 3, 40, 48]\nstd ="))
    assert open_network(NetworkSource(FACTORY, card=card)).task.image.size == (40, 48)
    found = open_network(NetworkSource(FACTORY, card=card, image_size=(64, 64)))
    assert found.task.image.size == (64, 64)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (NetworkSource(FACTORY), "does not say how large its image is: give --image-size"),
        (
            NetworkSource(FACTORY, image_size=(64, 64)),
            r"ColourClassifier: the outputs \(4\) do not say which decoder",
        ),
        (
            NetworkSource(FACTORY, input=parse_input("x=1x3x64x64")),
            "--input is for ONNX files: give --image-size",
        ),
        (NetworkSource("vgg"), "unknown model 'vgg'.*or a torch module as package"),
    ],
)
def test_what_is_missing_is_said(source: NetworkSource, message: str) -> None:
    with pytest.raises(SplitpointError, match=message):
        open_network(source)


def test_sizes_and_inputs_are_read_as_written() -> None:
    assert parse_image_size("512") == (512, 512)
    assert parse_image_size("512x384") == (512, 384)
    named = parse_input("serving_default_x:0=1x416x416x3")
    assert (named.name, named.shape) == ("serving_default_x:0", (1, 416, 416, 3))


@pytest.mark.parametrize("text", ["", "0", "512x", "512x0", "-1", "1x2x3", "99999", "big"])
def test_a_size_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(SettingsError, match="--image-size"):
        parse_image_size(text)


@pytest.mark.parametrize("text", ["", "1x3x416x416", "x=416", "x=1x3x0x4", "=1x3x4x4", "x=axbxcxd"])
def test_an_input_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(SettingsError, match="--input"):
        parse_input(text)


@pytest.fixture
def small_zoo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A zoo of one classifier of four classes; a file of its weights."""
    model = TorchModel(
        name="colours",
        factory=FACTORY,
        weights=WeightsEntry("colours.pth", None, None),
        image_size=(32, 32),
        unused=("aux.",),
    )
    monkeypatch.setattr("search.zoo.registry.MODELS", {"colours": model})
    state = {**ColourClassifier().state_dict(), "aux.weight": torch.zeros(1)}
    return saved(tmp_path, state)


def test_a_classifier_of_the_zoo_has_a_card(small_zoo: Path) -> None:
    found = open_network(NetworkSource("colours", small_zoo))
    assert found.task.kind == "classification"
    assert found.task.class_names == ("0", "1", "2", "3")
    assert found.task.image.fit == "imagenet-crop"
    assert found.task.image.size == (32, 32)
    assert found.graph.nodes[1].op == "scale"
    assert found.note == "does without 1 tensors of its weights (aux)"


def test_a_detector_of_the_zoo_takes_images_in_zero_to_one(tmp_path: Path) -> None:
    with zoo.small_zoo(tmp_path) as weights:
        found = open_network(NetworkSource("yolov3-tiny", weights))
        larger = open_network(NetworkSource("yolov3-tiny", weights, image_size=(96, 128)))
    assert found.graph.nodes[1].op == "conv"
    assert isinstance(found.task, DetectionTask)
    assert found.task.class_names == CLASS_NAMES
    assert found.task.image == ImageInput(height=64, width=64)
    head = AnchorMap(stride=4, anchors=((12.0, 16.0), (24.0, 20.0)))
    assert found.task.decoder == YoloV3(heads=(head,))
    assert larger.task.image.size == (96, 128)
    assert larger.sha256 == found.sha256


def test_a_card_says_only_what_is_another(small_zoo: Path, tmp_path: Path) -> None:
    (tmp_path / "labels.txt").write_text("red\ngreen\nblue\nyellow\n")
    card = tmp_path / "mine.toml"
    card.write_text('labels = "labels.txt"\n[input]\nfit = "stretch"\n')
    found = open_network(NetworkSource("colours", small_zoo, card))
    assert found.task.kind == "classification"
    assert found.task.class_names == ("red", "green", "blue", "yellow")
    assert found.task.image.fit == "stretch"
    assert found.graph.nodes[1].op == "scale"  # the zoo's mean and deviation


@pytest.mark.parametrize("command", ["search", "profile", "quantize", "allocate"])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--image-size", "500"], "yolov3-tiny takes sides of at least 32 and multiples of 32"),
        (["--image-size", "large"], "--image-size large: expected a size such as 512"),
        (["--card", "none.toml"], "none.toml: cannot be read"),
        (["--input", "images=1x3x416x416"], "--input is for ONNX files: give --image-size"),
        (["--input", "416"], "--input 416: expected NAME=SHAPE"),
        (["--weights", "none.weights"], "none.weights: cannot be read"),
    ],
)
def test_every_command_takes_the_options_of_a_network(
    command: str, options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    more = {"search": ["--link", "1mbit/1ms"], "quantize": ["--widths", "none"]}
    arguments = [command, "--model", "yolov3-tiny", "--calibration", ".", "--out", "out"]
    assert main([*arguments, "--no-cache", *more.get(command, []), *options]) in (64, 65, 66)
    assert message in capsys.readouterr().err


def test_published_files_are_named_after_their_digest() -> None:
    for model in MODELS.values():
        digest = Path(model.weights.name).stem.rpartition("-")[2]
        if isinstance(model, TorchModel):
            assert (model.weights.sha256 or "").startswith(digest)
            assert len(digest) in (8, 10)
            source = str(model.weights.sources[0])
            assert f"models/{model.weights.name}" in source or source.startswith("package ")
