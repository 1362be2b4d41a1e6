"""Networks by where they come from: the zoo, or an ONNX file with a model card beside it."""

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from common.errors import SettingsError
from common.tasks.base import ImageInput, Shapes
from common.tasks.decoders.yolov3 import AnchorMap, YoloV3
from common.tasks.detections import DetectionTask
from common.tasks.labels import CLASS_NAMES
from common.tasks.registry import AnyTask
from search.card import ModelCard, family_of, read_card
from search.network.graph import Graph
from search.network.importers.onnx_file import InputScaling, import_onnx, read_onnx
from search.network.importers.torch_module import import_module
from search.network.passes import optimise
from search.zoo.darknet import DarknetModule
from search.zoo.registry import load_model

_SIZE = re.compile(r"([0-9]{1,5})(?:x([0-9]{1,5}))?")
_INPUT = re.compile(r"(.+)=([0-9]{1,5}(?:x[0-9]{1,5}){3})")


@dataclass(frozen=True)
class NamedShape:
    """Shape of a network's input, by its name.

    Attributes:
        name: Name of the input.
        shape: With the batch.
    """

    name: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class NetworkSource:
    """Place that a network comes from, with what is said of it beside.

    Attributes:
        model: Name in the zoo, or path of an ONNX file.
        weights: A weights file, if not the cached one.
        card: A model card, if not the one beside an ONNX file.
        image_size: (height, width) of the network's image, if not the usual one.
        input: Shape of an ONNX file's input in place of the declared one.
    """

    model: str
    weights: Path | None = None
    card: Path | None = None
    image_size: tuple[int, int] | None = None
    input: NamedShape | None = None

    @classmethod
    def parse(
        cls,
        model: str,
        *,
        weights: Path | None = None,
        card: Path | None = None,
        image_size: str | None = None,
        input: str | None = None,  # noqa: A002 - the option's name
    ) -> Self:
        """Read the settings as users write them: "512" or "512x384", "NAME=1x3x416x416".

        Raises:
            SettingsError: If a text cannot be read.
        """
        size = None if image_size is None else parse_image_size(image_size)
        named = None if input is None else parse_input(input)
        return cls(model, weights, card, size, named)

    @property
    def model_file(self) -> Path | None:
        """The ONNX file; None for other networks."""
        return Path(self.model) if self.model.endswith(".onnx") else None

    @property
    def card_file(self) -> Path | None:
        """The model card: the one that was given, or one beside an ONNX file."""
        if self.card is not None or self.model_file is None:
            return self.card
        beside = self.model_file.with_suffix(".toml")
        return beside if beside.exists() else None


def parse_image_size(text: str) -> tuple[int, int]:
    """Height and width of "512" or "512x384".

    Raises:
        SettingsError: If it is neither, or a side is 0.
    """
    found = _SIZE.fullmatch(text)
    size = (0, 0) if found is None else (int(found[1]), int(found[2] or found[1]))
    if min(size) < 1:
        raise SettingsError(f"--image-size {text}: expected a size such as 512, or HEIGHTxWIDTH")
    return size


def parse_input(text: str) -> NamedShape:
    """Name and shape of "NAME=1x3x416x416".

    Raises:
        SettingsError: If it is not that, or a side is 0.
    """
    found = _INPUT.fullmatch(text)
    shape = () if found is None else tuple(int(side) for side in found[2].split("x"))
    if found is None or min(shape) < 1:
        raise SettingsError(f"--input {text}: expected NAME=SHAPE, such as images=1x3x416x416")
    return NamedShape(found[1], shape)


@dataclass(frozen=True, eq=False)
class SourceNetwork:
    """A network as it came.

    Attributes:
        graph: Optimised.
        task: What it is for.
        sha256: Digest of the file that it came from.
        outputs: Names of the outputs in that file.
        output_shapes: Of these without the batch; None for a side that depends on the image.
    """

    graph: Graph
    task: AnyTask
    sha256: str
    outputs: tuple[str, ...]
    output_shapes: Shapes


def open_network(source: NetworkSource, *, raw: bool = False) -> SourceNetwork:
    """Open a network.

    Args:
        source: Place that it comes from.
        raw: Whether the outputs of an ONNX file are taken as tensors, whatever the card says.

    Raises:
        SplitpointError: A model, card or weights that cannot be worked with.
    """
    if source.model_file is not None:
        if source.weights is not None:
            raise SettingsError("--weights is for models of the zoo: an ONNX file has its own")
        return _of_onnx(source.model_file, source.card_file, raw=raw)
    module = load_model(source.model, weights=source.weights)
    graph = optimise(import_module(module, module.input_size))
    shapes = [graph[name].shape for name in graph.outputs]
    return SourceNetwork(graph, task_of(module), module.digest, graph.outputs, shapes)


def _of_onnx(path: Path, card_file: Path | None, *, raw: bool) -> SourceNetwork:
    card = ModelCard() if card_file is None else read_card(card_file)
    if raw:
        card = card.model_copy(update={"task": {"kind": "tensors"}})
    network = read_onnx(path, card.input.shape)
    layout = card.input.layout or ("nchw" if network.input_shape[1] == 3 else "nhwc")
    unscaled = import_onnx(network, InputScaling(channels_last=layout == "nhwc"))
    nodes = [unscaled[name] for name in unscaled.outputs]
    shapes = [
        node.shape if node.batched else whole
        for node, whole in zip(nodes, network.output_shapes, strict=True)
    ]
    height, width = unscaled.nodes[0].shape[1:]
    try:
        folder = (card_file or path).parent
        task = card.task_for((height, width), shapes, network.outputs, folder, network.labels)
    except SettingsError as error:
        raise SettingsError(f"{path}: {error}") from error
    given = card.input.for_family(family_of(task)).model_copy(update={"layout": layout})
    graph = optimise(import_onnx(network, given.scaling))
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return SourceNetwork(graph, task, digest, network.outputs, shapes)


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
