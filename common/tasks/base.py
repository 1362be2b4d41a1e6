"""The seam of tasks: what a network is for, from the image that it takes to what people are given.

    image -> Task.image (geometry) -> network -> outputs -> Task.decode -> TaskResult
    TaskResult -> Result or Report on the wire, JSON over REST, a drawing, a table, agreement

A `Task` is a record of the bundle's manifest, told apart by its `kind`; `common.tasks.registry` has
all of them. Edge, cloud, REST, commands and the demo call these methods and never ask which task it
is. Networks take RGB as uint8: their normalisation is a part of the graph.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Final, Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import Field

from common.errors import ModelError, PayloadError, SettingsError
from common.imaging.placement import PADDING, Fit, Placement, fit_image
from common.records import Record
from common.rpc import splitpoint_pb2 as pb

Floats = NDArray[np.float32]
Integers = NDArray[np.int32]
Shapes = Sequence[tuple[int | None, ...]]
"""Shapes of a network's outputs without the batch; None for a side that depends on the image."""
Carrier = pb.Result | pb.Report
"""Messages that carry the result of a frame."""

MAX_CLASSES: Final = 65536
MOST_SETTING: Final = 1000
"""Most detections of a result, and most classes that a caller may name."""
MAX_REPORTED_BYTES: Final = 48_000
"""Largest result that an edge reports of a frame it served alone; the cloud keeps no more of all
that one edge reported."""
_NAMED: Final = 8


@dataclass(frozen=True)
class ResultSettings:
    """Settings of a result that a caller chooses frame by frame; a task ignores what is not its.

    Attributes:
        score_threshold: Lowest score of a detection to report, 0 to 1.
        iou_threshold: A detection that overlaps a better one of its class by more is dropped, 0 to
            1.
        max_detections: The most detections to report, best first.
        classes: Indices of the classes to report; all of them, if empty.

    Raises:
        SettingsError: If one is out of range.
    """

    score_threshold: float = 0.25
    iou_threshold: float = 0.45
    max_detections: int = 100
    classes: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        thresholds_fit = 0 <= self.score_threshold <= 1 and 0 <= self.iou_threshold <= 1
        if not (thresholds_fit and 1 <= self.max_detections <= MOST_SETTING):
            raise SettingsError(
                f"expected thresholds from 0 to 1 and 1 to {MOST_SETTING} detections, got score "
                f"{self.score_threshold}, IoU {self.iou_threshold}, "
                f"{self.max_detections} detections"
            )
        if len(self.classes) > MOST_SETTING or not all(
            0 <= each < MAX_CLASSES for each in self.classes
        ):
            raise SettingsError(
                f"expected at most {MOST_SETTING} classes, each an index from 0, "
                f"got {list(self.classes[:8])}"
            )

    def check_on_the_wire(self) -> None:
        """Require thresholds above 0, as 0 stands for the default in a Frame.

        Raises:
            SettingsError: If one is 0.
        """
        for name, value in (("score", self.score_threshold), ("IoU", self.iou_threshold)):
            if value <= 0:
                raise SettingsError(f"{name} threshold {value}: expected a number in (0, 1]")

    @classmethod
    def from_frame(cls, frame: pb.Frame) -> Self:
        """Read the settings of a Frame; what is 0 stands for the default.

        Raises:
            PayloadError: If one is out of range.
        """
        try:
            return cls(
                score_threshold=frame.score_threshold or DEFAULTS.score_threshold,
                iou_threshold=frame.iou_threshold or DEFAULTS.iou_threshold,
                max_detections=frame.max_detections or DEFAULTS.max_detections,
                classes=tuple(frame.classes),
            )
        except SettingsError as error:
            raise PayloadError(f"settings of the frame: {error}") from error

    def to_frame(self, frame: pb.Frame) -> None:
        """Write the settings into a Frame; defaults other than the score threshold cost nothing."""
        frame.score_threshold = self.score_threshold
        if self.iou_threshold != DEFAULTS.iou_threshold:
            frame.iou_threshold = self.iou_threshold
        if self.max_detections != DEFAULTS.max_detections:
            frame.max_detections = self.max_detections
        frame.classes.extend(self.classes)


DEFAULTS: Final = ResultSettings()


@dataclass(frozen=True)
class Agreement:
    """Counts of findings that two results share, or only the expected or the found one has.

    Counts of several images add up.
    """

    matched: int = 0
    missing: int = 0
    extra: int = 0

    def __add__(self, other: "Agreement") -> "Agreement":
        return Agreement(
            self.matched + other.matched, self.missing + other.missing, self.extra + other.extra
        )


@dataclass(frozen=True)
class ResultTable:
    """A result as a table for people.

    Attributes:
        columns: Titles.
        rows: Cells of each row, as text.
    """

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


class TaskResult(ABC):
    """Result of one image. Its length is the number of its findings."""

    @abstractmethod
    def __len__(self) -> int: ...

    @property
    @abstractmethod
    def size_bytes(self) -> int:
        """Memory that its arrays take."""

    @abstractmethod
    def write(self, carrier: Carrier) -> None:
        """Put it into the Result or Report that carries it."""

    @abstractmethod
    def to_json(self, class_names: Sequence[str]) -> list[dict[str, Any]]:
        """Records of a REST answer, one per finding.

        Raises:
            ModelError: If a class has no name.
        """

    @abstractmethod
    def to_records(self, image_id: int, class_names: Sequence[str]) -> list[dict[str, Any]]:
        """Entries of a results file over several images, in the format of the task's data sets.

        Raises:
            ModelError: If a class has no name.
        """

    @abstractmethod
    def to_table(self, class_names: Sequence[str]) -> ResultTable:
        """The findings for people."""

    @abstractmethod
    def draw(self, picture: Image.Image, class_names: Sequence[str]) -> None:
        """Draw it onto its picture."""

    def within(self, settings: ResultSettings) -> Self:
        """The findings that stricter settings leave of it: a higher threshold, fewer detections.

        It equals the result of decoding with these settings. Results without thresholds stay.
        """
        del settings
        return self

    @abstractmethod
    def agreement(self, found: Self) -> Agreement:
        """Compare with another result of the same image; this one is the expected one."""


class ImageInput(Record):
    """Geometry of the network's input, and how images are fitted into it.

    Attributes:
        height: In pixels.
        width: In pixels.
        fit: How images of other sizes are fitted.
        padding: Value of pixels that the image does not cover.
    """

    height: int = Field(ge=1, le=65536)
    width: int = Field(ge=1, le=65536)
    fit: Fit = "letterbox"
    padding: int = Field(default=PADDING, ge=0, le=255)

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return self.height, self.width

    def place(self, image_width: int, image_height: int) -> Placement:
        """Placement of an image of this size in the input."""
        return Placement.fit(image_width, image_height, self.size, self.fit)

    def pixels(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Fit an image (H, W, 3) into the input: (3, height, width)."""
        return fit_image(image, self.size, self.fit, self.padding)


class Task(Record, ABC):
    """Purpose of a network; part of a bundle's manifest.

    Attributes:
        kind: The task's name.
        image: Geometry of the network's input.
        class_names: One per class, in the order of the network's outputs.
        message: Name of the task's message within a Result or Report.
    """

    kind: str
    image: ImageInput
    class_names: tuple[str, ...] = Field(default=(), max_length=MAX_CLASSES)
    message: ClassVar[str]

    @abstractmethod
    def misfit(self, shapes: Shapes) -> str | None:
        """Say in one line why outputs of these shapes are not the task's; None if they are."""

    @abstractmethod
    def empty(self) -> TaskResult:
        """The result of an image with nothing in it."""

    @abstractmethod
    def from_json(self, records: Iterable[Any]) -> TaskResult:
        """Read the records of a REST answer.

        Raises:
            PayloadError: If they are not the task's.
        """

    def class_indices(self, names: Iterable[str]) -> tuple[int, ...]:
        """Indices of classes by their names, or by the indices themselves.

        Raises:
            SettingsError: If there is no such class.
        """
        return tuple(self._class_index(name.strip()) for name in names)

    def _class_index(self, name: str) -> int:
        if name in self.class_names:
            return self.class_names.index(name)
        if name.isascii() and name.isdecimal() and int(name) < len(self.class_names):
            return int(name)
        known = ", ".join(self.class_names[:_NAMED]) + ", ..." * (len(self.class_names) > _NAMED)
        raise SettingsError(
            f"no class {name[:100]!r}; there are {len(self.class_names)}: {known or 'none'}"
        )

    def decode(
        self, outputs: Sequence[Floats], where: Placement, settings: ResultSettings = DEFAULTS
    ) -> TaskResult:
        """Decode a network's outputs, which may hold anything.

        Args:
            outputs: One float32 array per output of the network, without the batch.
            where: Where the image lies in the network's input.
            settings: What to report.

        Raises:
            ModelError: If the outputs are not float32 of the task's shapes.
        """
        wrong = self.misfit([values.shape for values in outputs])
        kinds = {str(values.dtype) for values in outputs} - {"float32"}
        if wrong is None and kinds:
            wrong = f"expected outputs of float32, got {', '.join(sorted(kinds))}"
        if wrong is not None:
            raise ModelError(wrong)
        return self._decode(outputs, where, settings)

    def read(self, carrier: Carrier) -> TaskResult:
        """Read the result that a Result or Report carries; nothing in it is believed.

        Raises:
            PayloadError: If it carries none, that of another task, or one that cannot be.
        """
        found = carrier.WhichOneof("outcome")
        if found != self.message:
            raise PayloadError(f"{self.message}: expected, got {found or 'no result'}")
        return self._read(getattr(carrier, self.message))

    @abstractmethod
    def _decode(
        self, outputs: Sequence[Floats], where: Placement, settings: ResultSettings
    ) -> TaskResult: ...

    @abstractmethod
    def _read(self, message: Any) -> TaskResult: ...


def in_words(shapes: Shapes) -> str:
    """Shapes of outputs for a message, such as "(255, 13, 13) and (1000)"."""
    each = [f"({', '.join('?' if side is None else str(side) for side in s)})" for s in shapes]
    return " and ".join(each) or "none"


def label_of(index: int, class_names: Sequence[str]) -> str:
    """Name of a class for people; its number where it has none."""
    return class_names[index] if 0 <= index < len(class_names) else f"class {index}"
