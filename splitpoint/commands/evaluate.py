"""`splitpoint evaluate`: measure the accuracy of a bundle's plans as they are deployed."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from common.runtime.registry import DEFAULT_RUNTIME
from splitpoint.commands import options

if TYPE_CHECKING:
    from rich.table import Table

    from splitpoint.evaluation import Evaluation, PlanScore

_WIDTH = 160
"""Columns of a table that is not shown on a terminal."""


def run(
    bundle: Annotated[Path, typer.Option(help="The bundle: a folder or its zip file.")],
    images: Annotated[Path, typer.Option(metavar="DIR", help="Folder of pictures to judge on.")],
    annotations: Annotated[
        Path | None, typer.Option(help="COCO instances file of a detector's pictures.")
    ] = None,
    labels: Annotated[
        Path | None,
        typer.Option(
            help="Labels of a classifier's pictures: lines of file and class, or the folder of "
            "class folders."
        ),
    ] = None,
    plans: Annotated[
        list[str] | None,
        typer.Option(
            "--plan",
            metavar="NAME",
            help="Only this plan, by name or start of its digest; may be repeated.",
        ),
    ] = None,
    score_threshold: Annotated[
        float, typer.Option(help="Lowest score of a detection, of the preset `serving`.")
    ] = 0.25,
    iou_threshold: options.IouThreshold = None,
    max_detections: Annotated[
        int, typer.Option(help="The most detections of a picture, of the preset `serving`.")
    ] = 100,
    classes: Annotated[
        list[str] | None,
        typer.Option("--class", metavar="NAME", help="Count only this class; may be repeated."),
    ] = None,
    max_images: Annotated[
        int | None, typer.Option(min=1, help="Most pictures used; default: all.")
    ] = None,
    threads: options.Threads = 1,
    runtime: options.Runtime = DEFAULT_RUNTIME,
    json_file: Annotated[
        Path | None,
        typer.Option("--json", help="Write all of it, with versions and digests, to this file."),
    ] = None,
) -> None:
    """Measure what every plan of a bundle finds in pictures, as edge and cloud run it."""
    from common.errors import SettingsError
    from common.places import require_file_place
    from common.progress import Stages
    from splitpoint.evaluating import evaluate  # brings pycocotools

    if json_file is not None:
        require_file_place(json_file)
    with Stages() as stages:
        found = evaluate(
            bundle,
            images,
            annotations=annotations,
            labels=labels,
            plans=plans or (),
            score_threshold=score_threshold,
            iou_threshold=iou_threshold,
            max_detections=max_detections,
            classes=classes or (),
            max_images=max_images,
            threads=threads,
            runtime=runtime,
            reporter=stages,
        )
    _show(found)
    if json_file is not None:
        try:
            json_file.write_text(json.dumps(found.to_json(), indent=1) + "\n", "utf-8")
        except OSError as error:
            raise SettingsError(f"{json_file}: cannot be written: {error.strerror}") from error
        typer.echo(f"wrote {json_file}")


def _show(found: "Evaluation") -> None:
    from rich.console import Console

    console = Console()
    console = console if console.is_terminal else Console(width=_WIDTH)
    for preset in found.presets:
        console.print(_accuracy_table(found, preset))
    console.print(_cost_table(found))
    console.print(
        "lost: points less than the network in floating point; at most: the end of a one-sided "
        f"90 % interval, on {found.images} pictures",
        highlight=False,
    )
    for line in (*found.warnings, *_left_out(found)):
        typer.echo(f"warning: {line}", err=True)


def _accuracy_table(found: "Evaluation", preset: str) -> "Table":
    """Accuracy of the plans under one preset: by metric, what each loses and loses at most."""
    from rich.table import Column, Table

    settings = found.presets[preset]
    title = f"Accuracy on {found.images} pictures, {preset} preset"
    if len(found.presets) > 1:
        title += (
            f": scores from {settings.score_threshold:g}, duplicates from IoU "
            f"{settings.iou_threshold:g}, at most {settings.max_detections} detections"
        )
    table = Table(Column("plan", no_wrap=True), title=title, title_justify="left")
    named = [("floating point", found.reference)] if found.reference else []
    named += [(plan.name, plan.scores) for plan in found.plans]
    for score in _of(preset, named[0][1]):
        for column in (score.metric, "lost", "at most"):
            table.add_column(column, justify="right")
    for name, scores in named:
        table.add_row(name, *_cells(_of(preset, scores)))
    return table


def _cost_table(found: "Evaluation") -> "Table":
    """Bytes of a frame and median times of the stages of every plan."""
    from rich.table import Column, Table

    from common.stages import COMPUTED

    table = Table(
        Column("plan", no_wrap=True),
        title="Bytes of a frame, and ms by stage (median)",
        title_justify="left",
    )
    for column in ("bytes", "p95", *COMPUTED):
        table.add_column(column, justify="right")
    for plan in found.plans:
        times = (plan.stages_ms.get(stage) for stage in COMPUTED)
        table.add_row(
            plan.name,
            f"{plan.uplink_bytes:,.0f}",
            f"{plan.uplink_bytes_p95:,.0f}",
            *("" if each is None else f"{each:.1f}" for each in times),
        )
    return table


def _of(preset: str, scores: "Sequence[PlanScore]") -> "list[PlanScore]":
    return [score for score in scores if score.preset == preset]


def _cells(scores: "Iterable[PlanScore]") -> list[str]:
    return [
        "" if value is None else f"{value:.2f}"
        for score in scores
        for value in (score.accuracy, score.lost, score.lost_at_most)
    ]


def _left_out(found: "Evaluation") -> list[str]:
    """Line on plans that this machine does not reproduce."""
    if not found.left_out:
        return []
    return [f"left out, as this machine does not reproduce them: {', '.join(found.left_out)}"]
