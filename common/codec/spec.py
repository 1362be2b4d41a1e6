"""Wire format of a tensor in a plan: the quantizer's tables and the codec's name."""

from typing import Annotated, Self

from pydantic import Field, model_validator

from common.codec.registry import KINDS, CodecKind
from common.records import Record

Shape = tuple[
    Annotated[int, Field(ge=1, le=65536)],
    Annotated[int, Field(ge=1, le=65536)],
    Annotated[int, Field(ge=1, le=65536)],
]
"""(C, H, W)."""


class CodecSpec(Record):
    """A wire codec by name; `quality` is for the lossy image codecs only."""

    name: str
    quality: int | None = Field(default=None, ge=1, le=100)

    @model_validator(mode="after")
    def _is_known_and_has_its_quality(self) -> Self:
        if self.name not in KINDS:
            raise ValueError(f"no codec {self.name!r}; there are {', '.join(KINDS)}")
        if (self.quality is not None) != KINDS[self.name].has_quality:
            lossy = ", ".join(kind.name for kind in KINDS.values() if kind.has_quality)
            raise ValueError(f"quality belongs to {lossy}, and they need one")
        return self

    @property
    def kind(self) -> CodecKind:
        """Properties of the codec."""
        return KINDS[self.name]

    def __str__(self) -> str:
        return self.name if self.quality is None else f"{self.name} q{self.quality}"


USUAL_UPLOAD = CodecSpec(name="jpeg", quality=75)
"""Baseline upload without Splitpoint, kept in every bundle for comparison."""

LOSSLESS_UPLOADS = (CodecSpec(name="raw"), CodecSpec(name="png"))
"""Image codecs behind which the network sees every pixel as it was."""


class WireTensor(Record):
    """Wire format of one tensor of the cut: bit width, quantizer tables, context models.

    Attributes:
        name: The tensor's name in the graph; also the tail's input name.
        shape: (C, H, W).
        bits: Width of a symbol; symbols are below 2^bits.
        to_symbol: 256 symbols, indexed by the head's uint8 output.
        to_value: 2^bits float values, indexed by symbol: what the tail sees.
        context: The file of its context model, if the codec is the context coder.
        context_after: The same for frames of a sequence, which may look back at earlier ones.
    """

    name: str
    shape: Shape
    bits: int = Field(ge=1, le=8)
    to_symbol: tuple[Annotated[int, Field(ge=0, le=255)], ...] = Field(
        min_length=256, max_length=256
    )
    to_value: tuple[float, ...]
    context: str | None = None
    context_after: str | None = None

    @model_validator(mode="after")
    def _tables_fit_the_width(self) -> Self:
        if len(self.to_value) != 1 << self.bits:
            raise ValueError(f"{self.name}: to_value needs {1 << self.bits} entries")
        if max(self.to_symbol) >= 1 << self.bits:
            raise ValueError(f"{self.name}: a symbol does not fit into {self.bits} bits")
        if self.context_after is not None and self.context is None:
            raise ValueError(f"{self.name}: the first frame of a sequence needs a model too")
        return self

    @property
    def elements(self) -> int:
        """Number of symbols per frame."""
        channels, height, width = self.shape
        return channels * height * width
