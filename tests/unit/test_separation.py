"""The canary: pictures that judge leave no trace in anything that is fitted."""

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

import search.source
from common.errors import NoFeasiblePlanError
from common.link.link import parse_link
from common.progress import Progress
from common.version import __version__
from search.cache import Cache, digest
from search.constraints import constraints
from search.measure.held_out import digests, set_aside
from search.pipeline import search as run_search
from search.prediction.devices import device_profile
from search.prepare import Prepared, prepare
from search.quantization.export import head_model
from search.request import Request
from search.source import NetworkSource
from search.zoo.darknet import DarknetModule
from search.zoo.download import WeightsEntry
from search.zoo.registry import DarknetModel

SIZE = 32
OUTPUTS = 170  # two anchors of a box, its objectness and 80 classes
CFG = (
    f"[net]\nwidth={SIZE}\nheight={SIZE}\nchannels=3\n"
    + "".join(
        f"[convolutional]\nbatch_normalize=1\nfilters=8\nsize=3\nstride={stride}\npad=1\n"
        "activation=leaky\n"
        for stride in (4, 2)
    )
    + f"[convolutional]\nfilters={OUTPUTS}\nsize=1\nstride=1\npad=1\nactivation=linear\n"
    "[yolo]\nmask=0,1\nanchors=8,8,16,16\nclasses=80\nnum=2\n"
)
FITTED = "statistics", "sensitivity", "rounded", "curve", "options", "tail"


class Silent:
    """Reports nothing."""

    def stage(self, _title: str, /) -> Progress:
        return lambda _done, _total, _note="", /: None


class Small(DarknetModel):
    @property
    def cfg(self) -> str:
        return CFG


def weights() -> bytes:
    """Random weights; few positions hold an object, as in a trained network."""
    rng = np.random.default_rng(0)
    module = DarknetModule(CFG)
    values = []
    for tensor in module._file_order():
        if tensor.numel() == OUTPUTS:
            values.append(np.tile([0.0] * 4 + [-4.0] * 81, 2))
        elif tensor.ndim == 1:
            values.append(rng.uniform(0.5, 1.5, tensor.numel()))
        else:
            values.append(rng.normal(0, 3 / np.sqrt(tensor[0].numel()), tensor.numel()))
    header = struct.pack("<iiiQ", 0, 2, 0, 0)
    return header + np.concatenate(values).astype("<f4").tobytes()


def picture(rng: np.random.Generator) -> Image.Image:
    blocks = Image.fromarray(rng.integers(0, 256, (5, 5, 3), dtype=np.uint8))
    return blocks.resize((SIZE, SIZE), Image.Resampling.BICUBIC)


def as_seen(image: Image.Image) -> NDArray[np.uint8]:
    return np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1))


def request_of(calibration: Path, cache: Path) -> Request:
    """A search that no plan passes, so that whatever can be fitted is fitted."""
    return Request(
        source=NetworkSource("small"),
        link=parse_link("10kbit/20ms"),
        device=device_profile("this-machine-no-vnni"),
        calibration=calibration,
        constraints=constraints(max_drop=0.0, no_raw_image=True),
        refined_cuts=1,
        format_trials=1,
        adapt_steps=2,
        context_steps=20,
        cache=cache,
    )


def fit(calibration: Path, cache: Path) -> tuple[Prepared, bytes]:
    """Search; then the pictures on both sides, and the model of the whole network in integers."""
    with pytest.raises(NoFeasiblePlanError):
        run_search(request_of(calibration, cache), cache.with_name("bundle"), Silent())
    prepared = prepare(
        NetworkSource("small"),
        calibration,
        Cache(cache, __version__),
        Silent(),
        divide=set_aside,
    )
    quantized = prepared.rounder(reduced_range=True).nearest({})
    return prepared, head_model(quantized, quantized.graph.outputs)


def fitted(cache: Path) -> dict[str, dict[str, NDArray[Any]]]:
    """What was fitted, without the times that stand beside it."""
    found = {}
    for path in sorted(cache.iterdir()):
        if path.name.startswith(FITTED):
            with np.load(path, allow_pickle=False) as arrays:
                found[path.name] = {n: arrays[n] for n in arrays.files if n != "record"}
    return found


def test_other_judging_pictures_leave_what_is_fitted_bit_for_bit_alike(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "weights").write_bytes(weights())
    small = Small(name="small", weights=WeightsEntry("", None, None), image_size=(SIZE, SIZE))
    trained = small.load(tmp_path / "weights", small.image_size)
    monkeypatch.setattr(search.source, "load_model", lambda *_args, **_kwargs: trained)
    folder, rng = tmp_path / "pictures", np.random.default_rng(0)
    folder.mkdir()
    for number in range(32):
        picture(rng).save(folder / f"{number:02}.png")
    one, head = fit(folder, tmp_path / "cache one")
    assert one.held_out is not None
    assert len(one.held_out.names) == len(one.calibration.names) == 16

    least = min(digests(one.calibration))
    for name in one.held_out.names:
        other = picture(rng)
        while digest(as_seen(other)) >= least:  # it would fit in place of another
            other = picture(rng)
        other.save(folder / name)
    two, other_head = fit(folder, tmp_path / "cache two")
    assert two.held_out is not None
    assert two.held_out.names == one.held_out.names
    assert not set(digests(two.held_out)) & set(digests(one.held_out))

    assert head == other_head
    first, second = fitted(tmp_path / "cache one"), fitted(tmp_path / "cache two")
    assert {name.partition("-")[0] for name in first} >= {"statistics", "curve", "options", "tail"}
    assert first.keys() == second.keys()
    for name, arrays in first.items():
        assert arrays.keys() == second[name].keys()
        for each, array in arrays.items():
            np.testing.assert_array_equal(array, second[name][each], err_msg=f"{name} {each}")
