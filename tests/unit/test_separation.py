"""The canary: pictures that judge leave no trace in anything that is fitted."""

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

import search.prepare
from common.bundle import Bundle
from common.link import parse_link
from search.cache import digest
from search.devices import device_profile
from search.frames import load_frames
from search.held_out import set_aside
from search.pipeline import search as run_search
from search.request import Found, Progress, Request
from search.zoo.darknet import DarknetModule, load_darknet

SIZE = 32
CFG = (
    f"[net]\nwidth={SIZE}\nheight={SIZE}\nchannels=3\n"
    + "".join(
        f"[convolutional]\nbatch_normalize=1\nfilters={filters}\nsize=3\nstride=2\npad=1\n"
        "activation=leaky\n"
        for filters in (8, 8)
    )
    + "[convolutional]\nfilters=170\nsize=1\nstride=1\npad=1\nactivation=linear\n"
    "[yolo]\nmask=0,1\nanchors=8,8,16,16\nclasses=80\nnum=2\n"
)
FITTED = "statistics", "sensitivity", "rounded", "curve", "options", "tail"


class Silent:
    """Reports nothing."""

    def stage(self, _title: str, /) -> Progress:
        return lambda _done, _total, _note="", /: None


def network() -> DarknetModule:
    rng = np.random.default_rng(0)
    module = DarknetModule(CFG)
    values = [
        rng.uniform(0.5, 1.5, tensor.numel())
        if tensor.ndim == 1
        else rng.normal(0, 2 / np.sqrt(tensor[0].numel()), tensor.numel())
        for tensor in module._file_order()
    ]
    header = struct.pack("<iiiQ", 0, 2, 0, 0)
    return load_darknet(CFG, header + np.concatenate(values).astype("<f4").tobytes())


def picture(rng: np.random.Generator) -> Image.Image:
    blocks = Image.fromarray(rng.integers(0, 256, (5, 5, 3), dtype=np.uint8))
    return blocks.resize((SIZE, SIZE), Image.Resampling.BICUBIC)


def as_seen(image: Image.Image) -> NDArray[np.uint8]:
    return np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1))


def searched(calibration: Path, out: Path, cache: Path) -> Found:
    request = Request(
        model="small",
        link=parse_link("100kbit/20ms"),
        device=device_profile("this-machine-no-vnni"),
        calibration=calibration,
        max_drop=0.0,  # so that the tails of cheaper formats are tried
        format_trials=1,
        adapt_steps=2,
        video=False,
        cache=cache,
    )
    return run_search(request, out, Silent())[1]


def fitted(cache: Path) -> dict[str, dict[str, NDArray[Any]]]:
    """What was fitted, without the times that stand beside it."""
    found = {}
    for path in sorted(cache.iterdir()):
        if path.name.startswith(FITTED):
            with np.load(path, allow_pickle=False) as arrays:
                found[path.name] = {n: arrays[n] for n in arrays.files if n != "record"}
    return found


def models(bundle: Path) -> dict[str, str]:
    with Bundle.open(bundle) as opened:
        files = opened.manifest.files
        return {name: e.sha256 for name, e in files.items() if name.endswith((".onnx", ".npy"))}


def test_other_judging_pictures_leave_what_is_fitted_bit_for_bit_alike(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = network()
    monkeypatch.setattr(search.prepare, "load_model", lambda *_args, **_kwargs: module)
    folder, rng = tmp_path / "pictures", np.random.default_rng(0)
    folder.mkdir()
    for number in range(32):
        picture(rng).save(folder / f"{number:02}.png")
    frames = load_frames(folder, (SIZE, SIZE), 64, lambda *_: None)
    division = set_aside(frames)
    assert division.judging is not None
    first = searched(folder, tmp_path / "one", tmp_path / "cache one")
    assert first.evaluation_images == division.judging.names
    assert first.calibration_images == 16

    least = min(digest(pixels) for pixels in division.fitting.pixels)
    for name in division.judging.names:
        other = picture(rng)
        while digest(as_seen(other)) >= least:  # it would fit in place of another
            other = picture(rng)
        other.save(folder / name)
    second = searched(folder, tmp_path / "two", tmp_path / "cache two")
    assert second.evaluation_images == first.evaluation_images

    one, two = fitted(tmp_path / "cache one"), fitted(tmp_path / "cache two")
    assert {name.partition("-")[0] for name in one} >= {"statistics", "curve", "options", "tail"}
    assert one.keys() == two.keys()
    for name, arrays in one.items():
        assert arrays.keys() == two[name].keys()
        for each, array in arrays.items():
            np.testing.assert_array_equal(array, two[name][each], err_msg=f"{name} {each}")
    assert models(tmp_path / "one") == models(tmp_path / "two")
