"""The model card: what an ONNX file does not say of itself, in a TOML file beside it.

    detector.onnx                labels = "coco"
    detector.toml                [input]
                                 mean = [123.7, 116.3, 103.5]      # of pixels, 0 to 255
                                 std = [58.4, 57.1, 57.4]
                                 [task]
                                 kind = "detection"
                                 [task.decoder]
                                 kind = "yolox"

Everything has a usual value; a decoder is guessed where the outputs leave no doubt, and images are
fitted and scaled as networks of its family are trained, where the card says nothing else.
"""

import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError

from common.errors import SettingsError
from common.imaging.placement import PADDING, Fit
from common.records import Record, first_problem
from common.tasks.base import Shapes, in_words
from common.tasks.decoders.base import Decoder
from common.tasks.decoders.registry import guess, presets, read_decoder
from common.tasks.labels import CLASS_NAMES
from common.tasks.registry import AnyTask, read_task
from search.network.importers.scaling import InputScaling

_MOST_BYTES = 1 << 20
_Three = Annotated[tuple[float, ...], Field(min_length=3, max_length=3)]
_Size = Annotated[int, Field(ge=1, le=4096)]


class InputCard(Record):
    """Geometry and scaling by which an image becomes the network's input.

    What a card leaves out is as in `USUAL_INPUTS` for the family of the network; the values here
    are those of other networks.

    Attributes:
        shape: Of the input, with the batch; the declared one, if it is left out.
        mean: Of a pixel of 0 to 255, by channel of the network's input.
        std: By channel: input = (pixel - mean) / std.
        channels: Order of the network's channels.
        layout: Order of its axes; by the place of the 3 channels in its shape, if it is left out.
        fit: How an image of another size is fitted.
        padding: Value of pixels that the image does not cover.
    """

    shape: Annotated[tuple[_Size, ...], Field(min_length=4, max_length=4)] | None = None
    mean: _Three = (0.0, 0.0, 0.0)
    std: _Three = (255.0, 255.0, 255.0)
    channels: Literal["rgb", "bgr"] = "rgb"
    layout: Literal["nchw", "nhwc"] | None = None
    fit: Fit = "letterbox"
    padding: int = Field(default=PADDING, ge=0, le=255)

    @property
    def size(self) -> tuple[int, int] | None:
        """(height, width) of the image; None if `shape` is left out."""
        if self.shape is None:
            return None
        height, width = self.shape[1:3] if self.layout == "nhwc" else self.shape[2:]
        return height, width

    @property
    def scaling(self) -> InputScaling:
        """Scaling and order, of an image in [0, 1]."""
        mean, std = ([value / 255 for value in values] for values in (self.mean, self.std))
        return InputScaling(
            (mean[0], mean[1], mean[2]),
            (std[0], std[1], std[2]),
            blue_first=self.channels == "bgr",
            channels_last=self.layout == "nhwc",
        )

    def with_layout(self, layout: Literal["nchw", "nhwc"]) -> "InputCard":
        """The card, with the order of the axes."""
        return self.model_copy(update={"layout": layout})

    def for_family(self, family: str) -> "InputCard":
        """The card, with what it leaves out as is usual for a family of networks.

        Args:
            family: Kind of decoder, or of task.
        """
        said = {name: getattr(self, name) for name in self.model_fields_set}
        if "mean" in said or "std" in said:
            said = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0), **said}
        return USUAL_INPUTS.get(family, InputCard()).model_copy(update=said)


_IMAGENET = InputCard(mean=(123.675, 116.28, 103.53), std=(58.395, 57.12, 57.375))
_BYTES = InputCard(std=(1.0, 1.0, 1.0))
USUAL_INPUTS: Mapping[str, InputCard] = MappingProxyType(
    {
        "centernet": _BYTES.model_copy(update={"fit": "stretch"}),
        "classification": _IMAGENET.model_copy(update={"fit": "imagenet-crop"}),
        "detr": _IMAGENET.model_copy(update={"fit": "stretch"}),
        "picodet": _IMAGENET.model_copy(update={"fit": "stretch"}),
        "ssd": InputCard(mean=(127.5,) * 3, std=(127.5,) * 3, fit="stretch"),
        "yolov5": InputCard(padding=114),
        "yolov8": InputCard(padding=114),
        "yolox": _BYTES.model_copy(
            update={"channels": "bgr", "fit": "letterbox-top-left", "padding": 114}
        ),
    }
)
"""Inputs that families of networks are trained with, by kind of decoder or task."""


class ModelCard(Record):
    """A model card.

    Attributes:
        input: How the network's input is made of an image.
        labels: Names of the classes, or "coco", or a file of one name per line beside the card.
        task: The task's settings, as a bundle keeps them; kind and decoder are guessed from the
            outputs, if they are left out.
    """

    input: InputCard = InputCard()
    labels: tuple[str, ...] | str = ()
    task: dict[str, Any] = Field(default_factory=dict)

    @property
    def family(self) -> str:
        """Kind of the decoder, or of the task, as far as the card says it."""
        return _family(self.task)

    def over(self, other: "ModelCard") -> "ModelCard":
        """Return this card, with what it leaves out as another one says it."""
        said = {name: getattr(self, name) for name in self.model_fields_set - {"input"}}
        of_input = {name: getattr(self.input, name) for name in self.input.model_fields_set}
        return other.model_copy(update={**said, "input": other.input.model_copy(update=of_input)})

    def task_for(
        self,
        size: tuple[int, int],
        shapes: Shapes,
        names: Sequence[str],
        folder: Path,
        usual_labels: tuple[str, ...] = (),
    ) -> AnyTask:
        """The task of a network.

        Args:
            size: (height, width) of the network's input.
            shapes: Shapes of its outputs, without the batch.
            names: Names of its outputs.
            folder: Folder of the card, for a file of labels.
            usual_labels: Names of the classes, if the card has none.

        Raises:
            SettingsError: If the card leaves open what cannot be guessed, or does not fit.
        """
        labels = _class_names(self.labels, folder) or usual_labels
        settings = {"kind": _guessed_kind(shapes), **self.task}
        if settings.get("kind") == "detection" and "decoder" not in settings:
            settings["decoder"] = _guessed(shapes, names, size).model_dump()
        image = self.input.for_family(_family(settings))
        settings["image"] = {
            "height": size[0],
            "width": size[1],
            "fit": image.fit,
            "padding": image.padding,
        }
        if settings.get("kind") in ("classification", "detection"):
            settings["class_names"] = labels or _numbered(settings, shapes)
        task = read_task(settings)
        wrong = task.misfit(shapes)
        if wrong is not None:
            raise SettingsError(wrong)
        return task


def family_of(task: AnyTask) -> str:
    """Kind of a task's decoder, or of the task where it has none."""
    return task.decoder.kind if task.kind == "detection" else task.kind


def read_card(path: Path) -> ModelCard:
    """Read a card.

    Raises:
        SettingsError: If it cannot be read, or holds a key or value that no card has.
    """
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise SettingsError(f"{path}: over 1 MiB, which no model card needs")
        data = tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise SettingsError(f"{path}: cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path}: no TOML: {error}") from error
    try:
        return ModelCard.model_validate(data)
    except ValidationError as error:
        raise SettingsError(f"{path}: {first_problem(error)}") from error


def _family(settings: Mapping[str, Any]) -> str:
    decoder = settings.get("decoder")
    found = decoder.get("kind") if isinstance(decoder, Mapping) else settings.get("kind")
    return str(found or "")


def _guessed_kind(shapes: Shapes) -> str:
    """A vector of scores is a classifier's; anything else is taken for a detector's."""
    return "classification" if len(shapes) == 1 and len(shapes[0]) == 1 else "detection"


def _guessed(shapes: Shapes, names: Sequence[str], size: tuple[int, int]) -> Decoder:
    guessed = guess(shapes, names, size)
    if guessed is None:
        near = [each.kind for each in presets(shapes, names, size)]
        advice = f"; they may be of {', '.join(near)}" if near else ""
        raise SettingsError(
            f"the outputs {in_words(shapes)} do not say which decoder they need{advice}: "
            "name it in the model card, as [task.decoder]"
        )
    return guessed


def _class_names(labels: tuple[str, ...] | str, folder: Path) -> tuple[str, ...]:
    """Names of the classes; none, if the card has none."""
    if not isinstance(labels, str):
        return labels
    if labels == "coco":
        return CLASS_NAMES
    path = folder / labels
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path}: no file of labels, one in each line: {error}") from error
    return tuple(line.strip() for line in lines if line.strip())


def _numbered(settings: dict[str, Any], shapes: Shapes) -> tuple[str, ...]:
    """Numbers as names of classes, as many as the outputs have; COCO's own names for 80."""
    count = None
    if settings.get("kind") == "classification" and shapes:
        count = max((side or 0 for side in shapes[0]), default=0)
    elif settings.get("kind") == "detection":
        count = read_decoder(settings["decoder"]).classes_in(shapes)
    if not count:
        raise SettingsError("the outputs do not say how many classes there are: give labels")
    return CLASS_NAMES if count == len(CLASS_NAMES) else tuple(str(k) for k in range(count))
