"""Darknet networks: layers against hand-computed values, files against their exact length."""

import struct
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from common.errors import ModelError, WeightsError
from search.network.importers.torch_module import import_module
from search.network.passes import optimise
from search.zoo.cfg import Section, parse_cfg
from search.zoo.darknet import DarknetModule, MaxPool, load_darknet
from search.zoo.registry import MODELS, DarknetModel, load_model

HEADER = struct.pack("<iiiQ", 0, 2, 0, 0)
NET = "[net]\nwidth=64\nheight=64\nchannels=3\n"
YOLO = "[yolo]\nmask=0\nanchors=4,6\nclasses=1\nnum=1\n"


def _conv(filters: int, size: int = 1, stride: int = 1, *, norm: bool = True) -> str:
    return (
        f"[convolutional]\nbatch_normalize={int(norm)}\nfilters={filters}\nsize={size}\n"
        f"stride={stride}\npad=1\nactivation={'leaky' if norm else 'linear'}\n"
    )


EVERYTHING = (
    NET
    + _conv(8, 3)
    + "[maxpool]\nsize=2\nstride=2\n"
    + _conv(16, 3, 2)
    + _conv(16)
    + "[shortcut]\nfrom=-2\nactivation=linear\n"
    + "[maxpool]\nsize=2\nstride=1\n"
    + "[maxpool]\nsize=5\nstride=1\n"
    + _conv(8)
    + "[upsample]\nstride=2\n"
    + "[route]\nlayers=-1,1\n"
    + _conv(6, norm=False)
    + YOLO
)


def _random_weights(cfg: str, seed: int = 0) -> bytes:
    module = DarknetModule(cfg)
    rng = np.random.default_rng(seed)
    values = []
    for tensor in module._file_order():
        # Variances are positive; small kernels keep values near one, where 1e-4 means something.
        draw = rng.uniform(0.5, 1.5, tensor.numel()) if tensor.ndim == 1 else None
        kernel = rng.normal(0, 1 / np.sqrt(tensor[0].numel()), tensor.numel())
        values.append((kernel if draw is None else draw).astype("<f4"))
    return HEADER + np.concatenate(values).tobytes()


def _with_weights(cfg: str, seed: int = 0) -> DarknetModule:
    module = DarknetModule(cfg)
    module.load_weights(_random_weights(cfg, seed))
    return module.eval()


def _assert_agrees_with_opencv(cfg: str, layer: str, size: int, tmp_path: Path) -> None:
    (tmp_path / "net.cfg").write_text(cfg)
    (tmp_path / "net.weights").write_bytes(_random_weights(cfg))
    image = np.random.default_rng(1).random((1, 3, size, size), np.float32)
    network = cv2.dnn.readNetFromDarknet(str(tmp_path / "net.cfg"), str(tmp_path / "net.weights"))
    network.enableWinograd(False)
    network.setInput(image)
    theirs = network.forward(layer)
    module = load_darknet(cfg, tmp_path / "net.weights")
    with torch.inference_mode():
        (ours,) = module(torch.from_numpy(image))
    assert ours.shape == theirs.shape
    np.testing.assert_allclose(ours.numpy(), theirs, atol=1e-4, rtol=0)


def test_every_layer_agrees_with_opencv(tmp_path: Path) -> None:
    _assert_agrees_with_opencv(EVERYTHING, "conv_10", 64, tmp_path)


CFGS = {name: model for name, model in MODELS.items() if isinstance(model, DarknetModel)}


@pytest.mark.parametrize("name", CFGS)
def test_shipped_cfgs_need_exactly_the_published_files(name: str) -> None:
    module = DarknetModule(CFGS[name].cfg)
    assert CFGS[name].weights.size_bytes == len(HEADER) + 4 * module.weight_count
    assert CFGS[name].image_size == module.input_size


def test_weights_are_written_as_they_are_read() -> None:
    module = _with_weights(EVERYTHING)
    assert module.to_weights() == _random_weights(EVERYTHING)
    again = DarknetModule(EVERYTHING)
    again.load_weights(module.to_weights())
    assert again.digest == module.digest


def test_tiny_has_the_anchors_that_its_weights_were_trained_with() -> None:
    coarse, fine = DarknetModule(CFGS["yolov3-tiny"].cfg).heads
    assert (coarse.stride, coarse.anchors) == (32, ((81, 82), (135, 169), (344, 319)))
    assert (fine.stride, fine.anchors) == (16, ((23, 27), (37, 58), (81, 82)))


def test_the_graph_of_every_operator_can_be_imported() -> None:
    graph = optimise(import_module(_with_weights(EVERYTHING), (64, 64)))
    assert graph.outputs == ("conv_10",)
    assert {node.op for node in graph.nodes} >= {"conv", "max_pool", "upsample", "concat", "add"}


def test_stride_one_pooling_keeps_the_size_and_looks_right_and_down() -> None:
    pool = MaxPool(_section("[maxpool]\nsize=2\nstride=1\n"))
    values = torch.tensor([[[[1.0, -2.0], [3.0, -4.0]]]])
    assert pool(values).tolist() == [[[[3.0, -2.0], [3.0, -4.0]]]]


@pytest.mark.parametrize(
    ("size", "stride"),
    [
        (2, 2),  # halves the map; padding is never reached
        (3, 2),  # symmetric padding
        (3, 3),  # tiles the map, but from one pixel outside it
        (4, 4),  # the same, with more padding after than before
        (2, 1),  # keeps the map; looks right and down
        (5, 1),  # keeps the map, symmetric
    ],
)
def test_pooling_agrees_with_opencv(size: int, stride: int, tmp_path: Path) -> None:
    net = NET.replace("64", "96")
    pool = f"[maxpool]\nsize={size}\nstride={stride}\n"
    # The last layer is linear: OpenCV gives a normalised one's values before its normalisation.
    cfg = net + _conv(8, 3) + pool + _conv(6, norm=False) + YOLO
    _assert_agrees_with_opencv(cfg, "conv_2", 96, tmp_path)


def test_upsampling_repeats_and_shortcut_adds() -> None:
    cfg = NET + _conv(6, 3, 2) + "[upsample]\nstride=2\n" + _conv(6)
    module = _with_weights(cfg + "[shortcut]\nfrom=1\n" + YOLO)
    image = torch.rand(1, 3, 64, 64)
    with torch.inference_mode():
        half = module.layers[0](image)
        whole = half.repeat_interleave(2, 2).repeat_interleave(2, 3)
        (found,) = module(image)
        assert torch.equal(found, whole + module.layers[2](whole))


def test_one_value_through_convolution_norm_and_leaky_relu() -> None:
    cfg = "[net]\nwidth=32\nheight=32\n" + _conv(6) + YOLO
    offset, scale, mean, variance, kernel = 0.5, 2.0, 1.0, 4.0, -3.0
    per_filter = [np.full(6, v, "<f4") for v in (offset, scale, mean, variance)]
    values = np.concatenate([*per_filter, np.full(18, kernel, "<f4")])
    module = load_darknet(cfg, HEADER + values.tobytes())
    with torch.inference_mode():
        (found,) = module(torch.ones(1, 3, 32, 32))
    expected = 0.1 * ((3 * kernel - mean) / np.sqrt(variance) * scale + offset)
    assert torch.allclose(found, torch.full_like(found, expected), atol=1e-5)


def test_torch_export_keeps_the_maps() -> None:
    module = _with_weights(EVERYTHING)
    image = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        exported = torch.export.export(module, (image,)).module()
        (found,), (expected,) = exported(image), module(image)
    assert torch.equal(found, expected)


def test_the_size_of_the_input_can_be_chosen() -> None:
    module = DarknetModule(CFGS["yolov3-tiny"].cfg, input_size=(320, 320))
    assert module.input_size == (320, 320)
    for size in (0, -32, 300):
        with pytest.raises(ModelError, match="multiples of 32"):
            DarknetModule(CFGS["yolov3-tiny"].cfg, input_size=(size, 320))


def test_unknown_models_and_missing_weights_say_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SPLITPOINT_CACHE", str(tmp_path))
    with pytest.raises(ModelError, match=r"choose one of yolov3-tiny, yolov3, .*; or give an ONNX"):
        load_model("yolov9")
    with pytest.raises(WeightsError, match=r"run: splitpoint models fetch yolov3-tiny$"):
        load_model("yolov3-tiny")
    with pytest.raises(WeightsError, match=r"run: splitpoint models fetch yolov3-spp --file PATH$"):
        load_model("yolov3-spp")


def test_grouped_route_takes_its_part_of_the_channels() -> None:
    cfg = NET + _conv(12) + "[route]\nlayers=-1\ngroups=2\ngroup_id=1\n" + YOLO
    module = _with_weights(cfg)
    image = torch.rand(1, 3, 64, 64)
    with torch.inference_mode():
        whole = module.layers[0](image)
        (part,) = module(image)
    assert torch.equal(part, whole[:, 6:])


@pytest.mark.parametrize(
    ("cfg", "message"),
    [
        (NET + _conv(6) + "[route]\nlayers=3\n" + YOLO, "not all before"),  # a layer to come
        (NET + _conv(6), "no \\[yolo\\]"),  # nothing to decode
        (NET + _conv(7) + YOLO, "needs 6 channels"),  # channels that do not fit the anchors
        (NET + _conv(6) + YOLO.replace("mask=0", "mask=1"), "mask"),  # an anchor that is not there
        (NET + _conv(6).replace("leaky", "mish") + YOLO, "mish"),  # an unknown activation
        (
            NET + _conv(6) + _conv(4) + "[shortcut]\nfrom=-2\n" + YOLO,
            "unequal channels",
        ),  # a sum of 6 and 4
        (NET + _conv(8) + _conv(8, 3, 2) + "[route]\nlayers=-1,0\n" + YOLO, "unequal strides"),
        (NET + _conv(6) + "[upsample]\nstride=2\n" + YOLO, "stride 1"),  # more than the image
        (NET + _conv(13) + "[route]\nlayers=-1\ngroups=2\n" + YOLO, "divisor of the 13"),
        (NET + _conv(12) + "[route]\nlayers=-1\ngroups=2\ngroup_id=2\n" + YOLO, "group_id=2"),
        (NET + _conv(6) + YOLO + _conv(6) + YOLO, "output only"),  # a layer that reads boxes
        (NET + _conv(6, 4) + YOLO, "size=4, stride=1"),  # a map one pixel larger
        (NET + _conv(6) + "[shortcut]\nfrom=-1\nactivation=leaky\n" + YOLO, "expected linear"),
        (NET + _conv(6) + YOLO.replace("num=1", "num=3"), "as many pairs"),  # anchors missing
        (NET + _conv(6) + YOLO.replace("4,6", "4,-6"), "positive"),  # an anchor of no size
        (NET.replace("channels=3", "channels=1") + _conv(6) + YOLO, "RGB"),  # a grey image
        (NET.replace("64", "60") + _conv(6) + YOLO, "multiples of 32"),  # a size that cannot be
        (NET + _conv(8, 3, 3) + _conv(6) + YOLO, "multiples of 96"),  # nor this, with thirds
    ],
)
def test_impossible_networks_are_refused(cfg: str, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        DarknetModule(cfg)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data[:-4], "184 bytes, this network needs 188: they were cut off"),
        (lambda data: data + bytes(4), "192 bytes, this network needs 188: .* another cfg"),
        (lambda data: data[:-2], "186 bytes"),  # half a value
        (lambda data: data[:12], "12 bytes"),  # no values
        (lambda data: data[:8], "cut off in the header: 188 bytes"),  # not even a header
        (lambda data: data[:-4] + struct.pack("<f", float("nan")), "not finite"),  # damaged
        (lambda data: data[:-4] + struct.pack("<f", float("inf")), "not finite"),  # the same
    ],
)
def test_wrong_weights_are_refused(change: Callable[[bytes], bytes], message: str) -> None:
    module = DarknetModule(NET + _conv(6) + YOLO)
    data = change(_random_weights(NET + _conv(6) + YOLO))
    with pytest.raises(WeightsError, match=message):
        module.load_weights(data)


def test_the_old_header_has_a_shorter_counter() -> None:
    data = _random_weights(EVERYTHING)
    old = struct.pack("<iiiI", 0, 1, 0, 0) + data[len(HEADER) :]
    image = torch.rand(1, 3, 64, 64)
    with torch.inference_mode():
        (expected,) = load_darknet(EVERYTHING, data)(image)
        (found,) = load_darknet(EVERYTHING, old)(image)
    assert torch.equal(found, expected)


def test_missing_weights_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="cannot be read"):
        load_darknet(EVERYTHING, tmp_path / "none.weights")


def _section(text: str) -> Section:
    return parse_cfg(NET + text)[1]
