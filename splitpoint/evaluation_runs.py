"""Runs of an evaluation: every picture through every plan, and through the network as it was.

    folder -> read_pictures -> run_pictures -> PlanRuns: results, bytes and times of each picture

Each picture runs through all plans before the next one is read, so that what else the machine does
is shared among them, and no more than one picture is held.
"""

import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from common.errors import ImageError, SettingsError
from common.imaging.images import read_image
from common.progress import Reporter
from common.tasks.base import ResultSettings, Task, TaskResult
from search.measure.frames import list_pictures, names_of, refuse_broken, spread
from splitpoint.deployed import DeployedPlans, DeployedResult

_MOST_RESULT_BYTES: Final = 2 << 30
_MS: Final = 1e3


@dataclass(frozen=True)
class EvaluationPictures:
    """Pictures to evaluate on: their paths and names, and the digest of names and contents."""

    paths: Sequence[Path]
    names: tuple[str, ...]
    sha256: str


@dataclass(frozen=True)
class PlanRuns:
    """Results of all pictures: of the network in floating point, and of each plan."""

    preprocess_ms: list[float] = field(default_factory=list)
    reference: list[TaskResult] = field(default_factory=list)
    plans: dict[bytes, list[DeployedResult]] = field(default_factory=dict)

    def check_size(self, pictures: int) -> None:
        """Require that the results of all pictures fit into memory, as one picture's take it.

        Raises:
            SettingsError: If they do not.
        """
        size = sum(each.size_bytes for each in self.reference[:1])
        size += sum(done[0].result.size_bytes for done in self.plans.values())
        if size * pictures > _MOST_RESULT_BYTES:
            raise SettingsError(
                f"results of {pictures} pictures by {len(self.plans)} plans take "
                f"{size * pictures >> 20} MiB, more than {_MOST_RESULT_BYTES >> 20}: give fewer "
                f"by --max-images {_MOST_RESULT_BYTES // size}, or one plan by --plan"
            )


def read_pictures(folder: Path, limit: int | None, reporter: Reporter) -> EvaluationPictures:
    """Read all pictures once: a broken one is found out before the work.

    Args:
        folder: Of pictures, or of folders of them, one per class.
        limit: The most pictures, spread evenly; all, if None.
        reporter: Shows progress.

    Raises:
        SettingsError: If the limit leaves none.
        CalibrationError: If there are no pictures, or broken ones.
    """
    if limit is not None and limit < 1:
        raise SettingsError(f"--max-images {limit}: expected 1 or more")
    progress = reporter.stage("reading pictures")
    paths = spread(list_pictures(folder), limit)
    names = names_of(folder, paths)
    state = hashlib.sha256()
    broken: list[ImageError] = []
    for done, (path, name) in enumerate(zip(paths, names, strict=True), 1):
        try:
            read_image(path)
        except ImageError as error:
            broken.append(error)
            continue
        with path.open("rb") as file:
            content = hashlib.file_digest(file, "sha256")
        state.update(f"{name}\n{content.hexdigest()}\n".encode("utf-8", "surrogateescape"))
        progress(done, len(paths))
    refuse_broken(folder, broken, len(paths))
    return EvaluationPictures(paths, names, state.hexdigest())


def run_pictures(
    deployed: DeployedPlans,
    task: Task,
    pictures: EvaluationPictures,
    settings: ResultSettings,
    reporter: Reporter,
) -> PlanRuns:
    """Run all pictures through the plans, and through the network in floating point if it is there.

    Raises:
        SettingsError: If the results are too large.
    """
    runs = PlanRuns(plans={digest: [] for digest in deployed.digests})
    progress = reporter.stage("running plans")
    for done, path in enumerate(pictures.paths, 1):
        image = read_image(path)
        began_s = time.perf_counter()
        pixels = task.image.pixels(image)
        runs.preprocess_ms.append(_MS * (time.perf_counter() - began_s))
        where = task.image.place(image.shape[1], image.shape[0])
        if deployed.has_reference:
            runs.reference.append(deployed.reference(pixels, where, settings))
        for digest, results in runs.plans.items():
            results.append(deployed.run(digest, pixels, where, settings))
        if done == 1:
            runs.check_size(len(pictures.paths))
        progress(done, len(pictures.paths))
    return runs
