"""Networks of the original's experiment, with the memory that it gives the edge for each."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from common.choices import one_of
from search.network.graph import Graph
from search.network.importers.factory import build_module
from search.network.importers.torch_module import import_module
from search.network.passes import optimise
from search.source import NetworkSource
from search.zoo.darknet import DarknetModule
from search.zoo.download import cached
from search.zoo.registry import DarknetModel, TorchModel, zoo_model

_SEED = 0


@dataclass(frozen=True)
class OriginalNetwork:
    """One network of the experiment.

    Attributes:
        model: Name in the zoo.
        size: Height and width of its input.
        memory_kib: Memory of the edge.
    """

    model: str
    size: int
    memory_kib: int

    @property
    def name(self) -> str:
        """Model and size of the input."""
        return f"{self.model} {self.size}"

    @property
    def source(self) -> NetworkSource:
        """Place that the trained network comes from."""
        return NetworkSource(self.model, image_size=(self.size, self.size))


NETWORKS = (
    OriginalNetwork("resnet-18", 224, 2**10),
    OriginalNetwork("resnet-50", 224, 2**12),
    OriginalNetwork("resnext-50", 224, 2**12),
    OriginalNetwork("googlenet", 224, 2**13),
    OriginalNetwork("mnasnet", 224, 2**12),
    OriginalNetwork("mobilenet-v2", 224, 2**10),
    *(OriginalNetwork("yolov3-tiny", size, 2**15) for size in (416, 512, 608)),
    *(
        OriginalNetwork(model, size, 2**power)
        for model in ("yolov3", "yolov3-spp")
        for size, power in ((416, 17), (512, 18), (608, 19))
    ),
)


def chosen_networks(models: Sequence[str]) -> list[OriginalNetwork]:
    """The networks of some models, or all of them if none are named.

    Raises:
        SettingsError: If a model is not of the experiment.
    """
    known = list(dict.fromkeys(network.model for network in NETWORKS))
    for model in models:
        one_of(model, known, "network")
    return [network for network in NETWORKS if not models or network.model in models]


def has_weights(network: OriginalNetwork) -> bool:
    """Whether its trained weights are in the cache of fetched ones."""
    return cached(zoo_model(network.model).weights) is not None


def is_trained(network: OriginalNetwork) -> bool:
    """Whether its weights are at hand, and were trained for its size."""
    trained_for = zoo_model(network.model).image_size
    return has_weights(network) and trained_for == network.source.image_size


def graph_of(network: OriginalNetwork) -> Graph:
    """The graph of a network, with seeded weights: simulated times and errors need only shapes."""
    model, size = zoo_model(network.model), (network.size, network.size)
    torch.manual_seed(_SEED)
    if isinstance(model, TorchModel):
        module = build_module(model.factory)
    elif isinstance(model, DarknetModel):
        module = DarknetModule(model.cfg, input_size=size).eval()
    else:
        raise TypeError(f"{network.model} is of a kind that cannot be built without weights")
    return optimise(import_module(module, size))
