"""Query parameters of routes that run an image: what to report of it.

?score_threshold=0.5&classes=person,car -> ResultSettings
"""

from collections.abc import Callable
from typing import Annotated

from fastapi import Query

from common.tasks.base import DEFAULTS, ResultSettings, Task

_Classes = Annotated[
    str | None,
    Query(
        max_length=4096,
        description="Names or indices of the classes to report, with commas; all, if not given.",
    ),
]


def settings_query(
    task: Task, defaults: ResultSettings = DEFAULTS
) -> Callable[..., ResultSettings]:
    """Make the dependency of a route that reads its settings.

    Args:
        task: The bundle's task, which knows the names of classes.
        defaults: For requests that give none.
    """
    score, iou = defaults.score_threshold, defaults.iou_threshold

    def read(
        score_threshold: Annotated[
            float,
            Query(gt=0, le=1, allow_inf_nan=False, description="Lowest score of a detection."),
        ] = score,
        iou_threshold: Annotated[
            float,
            Query(
                gt=0,
                le=1,
                allow_inf_nan=False,
                description="A detection that overlaps a better one of its class by more is "
                "dropped.",
            ),
        ] = iou,
        max_detections: Annotated[
            int, Query(ge=1, le=1000, description="The most detections, best first.")
        ] = defaults.max_detections,
        classes: _Classes = None,
    ) -> ResultSettings:
        wanted = defaults.classes if classes is None else task.class_indices(classes.split(","))
        return ResultSettings(score_threshold, iou_threshold, max_detections, wanted)

    return read
