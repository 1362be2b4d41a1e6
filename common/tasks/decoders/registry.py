"""All detection decoders: the one table of them, and which one a network's outputs may be of."""

from collections.abc import Sequence
from typing import Annotated, get_args

from pydantic import Field, TypeAdapter, ValidationError

from common.errors import SettingsError
from common.records import first_problem
from common.tasks.base import Shapes
from common.tasks.decoders.base import Decoder, Size
from common.tasks.decoders.boxes import Boxes
from common.tasks.decoders.centernet import CenterNet
from common.tasks.decoders.detr import Detr
from common.tasks.decoders.picodet import PicoDet
from common.tasks.decoders.ssd import Ssd
from common.tasks.decoders.yolov3 import YoloV3
from common.tasks.decoders.yolov5 import YoloV5
from common.tasks.decoders.yolov8 import YoloV8
from common.tasks.decoders.yolox import YoloX

_Any = YoloV3 | YoloV5 | YoloV8 | YoloX | PicoDet | Ssd | Detr | CenterNet | Boxes
AnyDecoder = Annotated[_Any, Field(discriminator="kind")]
"""Every decoder, told apart by `kind`."""

DECODERS: tuple[type[Decoder], ...] = get_args(_Any)


_ADAPTER: TypeAdapter[Decoder] = TypeAdapter(AnyDecoder)


def read_decoder(data: object) -> Decoder:
    """Read a decoder's settings.

    Raises:
        SettingsError: If they are none, or its kind is unknown.
    """
    try:
        return _ADAPTER.validate_python(data)
    except ValidationError as error:
        raise SettingsError(f"decoder: {first_problem(error)}") from error


def presets(shapes: Shapes, names: Sequence[str], size: Size) -> list[Decoder]:
    """Decoders, with usual parameters, that outputs of these shapes may be of."""
    found = [decoder.preset(shapes, names, size) for decoder in DECODERS]
    return [each for each in found if each is not None]


def guess(shapes: Shapes, names: Sequence[str], size: Size) -> Decoder | None:
    """The decoder of outputs that no other could be of, and of which nothing is left open.

    Args:
        shapes: Shapes of the outputs, without the batch.
        names: Names of the outputs.
        size: (height, width) of the network's input.

    Returns:
        None where it would be a gamble: the decoder must be said.
    """
    found = [decoder.guess(shapes, names, size) for decoder in DECODERS]
    sure = [each for each in found if each is not None]
    return sure[0] if len(sure) == 1 and len(presets(shapes, names, size)) == 1 else None


def with_near_presets(wrong: str, shapes: Shapes, size: Size) -> str:
    """A line about outputs that do not fit, with the decoders that come near them."""
    near = [each.kind for each in presets(shapes, (), size)]
    return f"{wrong}; outputs of these shapes may be of: {', '.join(near)}" if near else wrong
