"""Networks by where they come from: the zoo, or an ONNX file with a model card beside it."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from common.errors import SettingsError
from common.tasks.base import ImageInput
from common.tasks.decoders.yolov3 import AnchorMap, YoloV3
from common.tasks.detections import DetectionTask
from common.tasks.labels import CLASS_NAMES
from common.tasks.registry import AnyTask
from search.card import ModelCard, read_card
from search.network.graph import Graph
from search.network.importers.onnx_file import import_onnx, read_onnx
from search.network.importers.torch_module import import_module
from search.network.passes import optimise
from search.zoo.darknet import DarknetModule
from search.zoo.registry import load_model


@dataclass(frozen=True, eq=False)
class SourceNetwork:
    """A network as it came.

    Attributes:
        graph: Optimised.
        task: What it is for.
        sha256: Digest of the file that it came from.
    """

    graph: Graph
    task: AnyTask
    sha256: str


def open_network(
    model: str, weights: Path | None = None, shape: Sequence[int] | None = None
) -> SourceNetwork:
    """Open a network.

    Args:
        model: Name in the zoo, or path of an ONNX file.
        weights: A weights file for a model of the zoo, if not the cached one.
        shape: Shape of an ONNX file's input in place of the declared one.

    Raises:
        SplitpointError: A model, card or weights that cannot be worked with.
    """
    if model.endswith(".onnx"):
        if weights is not None:
            raise SettingsError("--weights is for models of the zoo: an ONNX file has its own")
        return _of_onnx(Path(model), shape)
    module = load_model(model, weights=weights)
    graph = optimise(import_module(module, module.input_size))
    return SourceNetwork(graph, task_of(module), module.digest)


def _of_onnx(path: Path, shape: Sequence[int] | None) -> SourceNetwork:
    beside = path.with_suffix(".toml")
    card = read_card(beside) if beside.exists() else ModelCard()
    network = read_onnx(path, shape or card.input.shape)
    graph = optimise(import_onnx(network, card.input.scaling))
    shapes = [graph[name].shape for name in graph.outputs]
    height, width = graph.nodes[0].shape[1:]
    try:
        task = card.task_for((height, width), shapes, network.outputs, path.parent)
    except SettingsError as error:
        raise SettingsError(f"{path}: {error}") from error
    return SourceNetwork(graph, task, hashlib.sha256(path.read_bytes()).hexdigest())


def task_of(module: DarknetModule) -> DetectionTask:
    """Task of a zoo model: its input, heads and classes."""
    height, width = module.input_size
    return DetectionTask(
        image=ImageInput(height=height, width=width),
        decoder=YoloV3(
            heads=tuple(AnchorMap(stride=h.stride, anchors=h.anchors) for h in module.heads)
        ),
        class_names=CLASS_NAMES,
    )
