"""Report of an inspection in Markdown, and the first model card."""

import json
from collections.abc import Iterable, Mapping
from typing import Any, get_args

from common.imaging.placement import Fit
from common.tasks.base import in_words
from common.tasks.decoders.base import Decoder
from common.tasks.labels import CLASS_NAMES
from search.card import InputCard, family_of
from search.inspection import CutFacts, Inspection

_MEGA = 1e6
_KILO = 1e3


def markdown(found: Inspection) -> str:
    """The whole report."""
    return "\n".join(
        [
            *_about(found),
            "",
            "## Operators",
            "",
            "| operator | count | MMAC | where it can run |",
            "|---|---|---|---|",
            *(
                f"| {use.name} | {use.count} | {use.macs / _MEGA:.0f} | {use.place}"
                f"{f': {use.reason}' if use.reason else ''} |"
                for use in found.operators
            ),
            "",
            "## Cuts",
            "",
            *_cuts(found),
        ]
    )


def _about(found: Inspection) -> Iterable[str]:
    graph = found.network.graph
    height, width = found.network.task.image.size
    parameters = sum(node.parameters for node in graph.nodes)
    yield f"Image: {height} x {width} pixels (height x width)"
    yield ""
    yield f"Outputs, without the batch: {in_words(found.network.output_shapes)}"
    yield ""
    yield f"{parameters / _MEGA:.2f} M parameters, {found.whole.macs / _MEGA:.0f} M multiplications"
    yield ""
    if found.task is None:
        yield f"Task: not known. {found.problem}"
        return
    classes = len(getattr(found.task, "class_names", ()))
    named = f", {classes} classes" if classes else ""
    yield f"Task: {found.task.kind} ({family_of(found.task)}){named}"


def _cuts(found: Inspection) -> Iterable[str]:
    height, width = found.network.task.image.size
    limit = "" if found.complete else "; more would send much, and were not looked at"
    yield (
        f"{found.cuts} cuts{limit}. The image has {3 * height * width / _KILO:.0f} kB; these send "
        "fewer bytes, before they are coded, than all cuts with a smaller head:"
    )
    yield ""
    yield "| cut | kB | share of the multiplications | memory of the head (MiB) |"
    yield "|---|---|---|---|"
    for cut in found.thinnest:
        yield _cut_row(cut.name, cut, found.whole)
    if all(use.place != "tail only" for use in found.operators):
        yield _cut_row("edge-only", found.whole, found.whole)


def _cut_row(name: str, cut: CutFacts, whole: CutFacts) -> str:
    share = cut.macs / max(whole.macs, 1)
    return f"| {name} | {cut.bytes / _KILO:.1f} | {share:.0%} | {cut.memory_bytes / 2**20:.2f} |"


def first_card(found: Inspection) -> str:
    """Text of a model card with what is known, to be checked and completed."""
    kind = "detection" if found.task is None else found.task.kind
    image = InputCard().for_family(kind if found.decoder is None else found.decoder.kind)
    lines = [
        "# What an ONNX file does not say of itself. Check every line against the training code.",
        _labels_line(found),
        "",
        "[input]",
        "# Of pixels from 0 to 255, by channel: input = (pixel - mean) / std.",
        f"mean = {list(image.mean)}",
        f"std = {list(image.std)}",
        f'channels = "{image.channels}"  # "rgb" or "bgr"',
        f'fit = "{image.fit}"  # one of: {", ".join(get_args(Fit))}',
        f"padding = {image.padding}  # value of pixels around a letterbox",
        "",
        "[task]",
        f'kind = "{kind}"  # "detection", "classification" or "tensors"',
    ]
    if kind == "detection":
        lines += ["", *_decoder_lines(found)]
    return "\n".join(lines) + "\n"


def _labels_line(found: Inspection) -> str:
    names: tuple[str, ...] = getattr(found.task, "class_names", ())
    if names == CLASS_NAMES:
        return 'labels = "coco"  # or a file of one name per line'
    if not names or names == tuple(str(index) for index in range(len(names))):
        return '# labels = "labels.txt"  # a file of one name per line beside this one, or "coco"'
    return f"labels = {_toml(list(names))}"


def _decoder_lines(found: Inspection) -> Iterable[str]:
    if found.decoder is not None:
        yield "# By shapes and names of the outputs; the parameters are the usual ones."
        yield from _decoder_table(found.decoder)
        return
    yield f"# The outputs are {in_words(found.network.output_shapes)}."
    if not found.near:
        yield '# No decoder takes these: see the list of decoders, or set kind to "tensors".'
    for decoder in found.near:
        yield "# They may be:"
        yield from (f"# {line}" for line in _decoder_table(decoder))


def _decoder_table(decoder: Decoder) -> Iterable[str]:
    yield "[task.decoder]"
    for name, value in decoder.model_dump(mode="json", exclude_none=True).items():
        yield f"{name} = {_toml(value)}"


def _toml(value: Any) -> str:
    """A value as TOML writes it: as JSON, but for keys of tables."""
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{name} = {_toml(each)}' for name, each in value.items())}}}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(_toml(each) for each in value)}]"
    return json.dumps(value)
