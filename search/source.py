"""Networks by where they come from: the zoo, an ONNX file, or a torch module by its factory.

A model card says what the network itself does not: beside an ONNX file, or named by --card. Of a
model of the zoo it replaces what it says of the zoo's own card.
"""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from common.errors import SettingsError
from common.tasks.registry import AnyTask
from search.cache import digest
from search.card import ModelCard, read_card
from search.network.graph import Graph
from search.network.importers.factory import build_module, is_factory
from search.network.importers.onnx_file import import_onnx, read_onnx
from search.network.importers.state_dict import load_state_dict
from search.network.importers.torch_module import import_module
from search.network.passes import optimise
from search.zoo.registry import load_model

_SIZE = re.compile(r"([0-9]{1,5})(?:x([0-9]{1,5}))?")
_MOST_SIDE = 4096
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
        model: Name in the zoo, path of an ONNX file, or a torch module's "package.module:factory".
        weights: A weights file, if not the cached one; a torch module's state dict.
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
        SettingsError: If it is neither, or a side is 0 or over 4096.
    """
    found = _SIZE.fullmatch(text)
    size = (0, 0) if found is None else (int(found[1]), int(found[2] or found[1]))
    if not 1 <= min(size) <= max(size) <= _MOST_SIDE:
        raise SettingsError(
            f"--image-size {text}: expected a size such as 512, or HEIGHTxWIDTH, of at most "
            f"{_MOST_SIDE} pixels"
        )
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
        sha256: Digest of the file that it came from; of the graph, if it came from none.
        note: Remark for the user; mostly empty.
    """

    graph: Graph
    task: AnyTask
    sha256: str
    note: str = ""


def open_network(source: NetworkSource) -> SourceNetwork:
    """Open a network. A factory's code is run.

    Raises:
        SplitpointError: A model, card or weights that cannot be worked with.
    """
    card = ModelCard() if source.card_file is None else read_card(source.card_file)
    if source.model_file is not None:
        return _of_onnx(source, source.model_file, card)
    if source.input is not None:
        raise SettingsError("--input is for ONNX files: give --image-size")
    size = source.image_size or card.input.size
    return (_of_factory if is_factory(source.model) else _of_zoo)(source, card, size)


def _of_onnx(source: NetworkSource, path: Path, card: ModelCard) -> SourceNetwork:
    if source.weights is not None:
        raise SettingsError(
            "--weights is for the zoo and for torch modules: an ONNX file has its own"
        )
    network = read_onnx(path, card.input.shape, source.image_size)
    graph = optimise(import_onnx(network, card.input.scaling))
    task = _task_of(source, card, graph, network.outputs)
    return SourceNetwork(graph, task, hashlib.sha256(path.read_bytes()).hexdigest())


def _of_factory(
    source: NetworkSource, card: ModelCard, size: tuple[int, int] | None
) -> SourceNetwork:
    if size is None:
        raise SettingsError(
            f"{source.model}: a torch module does not say how large its image is: give "
            "--image-size, such as 224, or input.shape in a model card"
        )
    module = build_module(source.model)
    if source.weights is not None:
        load_state_dict(module, source.weights)
    graph = optimise(import_module(module, size, card.input.scaling))
    task = _task_of(source, card, graph, graph.outputs)
    return SourceNetwork(graph, task, digest(graph.nodes, graph.outputs))


def _of_zoo(source: NetworkSource, card: ModelCard, size: tuple[int, int] | None) -> SourceNetwork:
    trained = load_model(source.model, weights=source.weights, image_size=size)
    whole = card.over(ModelCard.model_validate(trained.card))
    graph = optimise(import_module(trained.module, trained.image_size, whole.input.scaling))
    task = _task_of(source, whole, graph, graph.outputs)
    return SourceNetwork(graph, task, trained.sha256, trained.note)


def _task_of(source: NetworkSource, card: ModelCard, graph: Graph, names: Sequence[str]) -> AnyTask:
    """Task of a network by its card; `names` are those of its outputs."""
    beside = source.card_file or source.model_file or Path()
    shapes = [graph[name].shape for name in graph.outputs]
    height, width = graph.nodes[0].shape[1:]
    try:
        return card.task_for((height, width), shapes, names, beside.parent)
    except SettingsError as error:
        raise SettingsError(f"{source.model}: {error}") from error
