"""All tasks: the one table of them. A `kind` that is not in it is an error."""

from typing import Annotated

from pydantic import Field, TypeAdapter, ValidationError

from common.errors import SettingsError
from common.records import first_problem
from common.tasks.classification import ClassificationTask
from common.tasks.detections import DetectionTask
from common.tasks.tensors import TensorsTask

AnyTask = Annotated[DetectionTask | ClassificationTask | TensorsTask, Field(discriminator="kind")]
"""Every task, told apart by `kind`."""

_ADAPTER: TypeAdapter[AnyTask] = TypeAdapter(AnyTask)


def read_task(data: object) -> AnyTask:
    """Read a task's specification, as a JSON file holds it.

    Args:
        data: The specification, parsed.

    Raises:
        SettingsError: If it is none, or its kind is unknown.
    """
    try:
        return _ADAPTER.validate_python(data)
    except ValidationError as error:
        raise SettingsError(f"task: {first_problem(error)}") from error
