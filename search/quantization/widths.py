"""Widths: how many bits every layer's weights and activations get; a file that people edit.

    conv_8: {weight: 4, activation: 8}
    conv_10: {weight: 2, activation: 8}

A layer that a file does not name has 8 bits. The file is YAML, or JSON by its ending.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import yaml
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from common.errors import SettingsError
from common.records import first_problem
from search.network.graph import Graph
from search.network.operators.registry import makes_values

WIDTHS = (2, 4, 6, 8)

Bits = Annotated[int, Field(ge=2, le=8)]


class Widths(BaseModel):
    """Bits of one layer: of its weights as stored, and of the codes that it makes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    weight: Bits = 8
    activation: Bits = 8


FULL = Widths()

Configuration = Mapping[str, Widths]
"""Widths by node; nodes that are not in it have 8 bits."""

_FILE = TypeAdapter(dict[str, Widths])


def uniform(graph: Graph, weight: int = 8, activation: int = 8) -> dict[str, Widths]:
    """Equal widths for all nodes that make values: one for weights, one for activations."""
    widths = Widths(weight=weight, activation=activation)
    return {node.name: widths for node in graph.nodes if makes_values(node)}


def read_widths(path: Path, graph: Graph) -> dict[str, Widths]:
    """Read a configuration.

    Raises:
        SettingsError: If it cannot be read, names a layer that the network does not have, or has
            an invalid width.
    """
    try:
        found = _FILE.validate_python(yaml.safe_load(path.read_text("utf-8")))
    except OSError as error:
        raise SettingsError(f"{path}: cannot be read: {error.strerror}") from error
    except (ValueError, yaml.YAMLError) as error:
        raise SettingsError(f"{path}: no configuration of widths: {_reason(error)}") from error
    known = {node.name for node in graph.nodes if makes_values(node)}
    unknown = [name for name in found if name not in known]
    if unknown:
        raise SettingsError(
            f"{path}: the network has no layer {', '.join(unknown)}; it has "
            + ", ".join(sorted(known, key=lambda name: [n.name for n in graph.nodes].index(name)))
        )
    return found


def write_widths(path: Path, widths: Configuration) -> None:
    """Write a configuration, JSON if the name ends so, else YAML."""
    plain = {name: each.model_dump() for name, each in widths.items()}
    if path.suffix.lower() == ".json":
        path.write_text(json.dumps(plain, indent=1) + "\n", "utf-8")
    else:
        lines = (f"{name}: {_flow(each)}\n" for name, each in plain.items())
        path.write_text("".join(lines), "utf-8")


def _flow(widths: dict[str, int]) -> str:
    return "{" + ", ".join(f"{key}: {value}" for key, value in widths.items()) + "}"


def _reason(error: Exception) -> str:
    if isinstance(error, ValidationError):
        return first_problem(error)
    return " ".join(str(error).split())[:200]
