"""Constraints: the limits that a search keeps. A new one is a file here, and registered below."""

from collections.abc import Iterable, Mapping
from typing import TypedDict, TypeVar, Unpack, cast

from common.bundle.manifest import Limit
from common.errors import BundleError
from search.constraints.base import Constraint
from search.constraints.edge_memory import EdgeMemory
from search.constraints.max_bytes import MaxBytes
from search.constraints.max_drop import MaxDrop
from search.constraints.no_raw_image import NoRawImage

CONSTRAINTS: dict[str, type[Constraint]] = {
    kind.name: kind for kind in (MaxDrop, EdgeMemory, NoRawImage, MaxBytes)
}
"""All constraints by name, in the order in which they are listed to people."""


class Limits(TypedDict, total=False):
    """Limits as the caller of a search gives them; `CONSTRAINTS` says what each means.

    Attributes:
        max_drop: Largest loss of accuracy, in points of its metric, that a plan may have at the
            upper end of a one-sided interval; 3 unless given.
        edge_memory: Limit on weights and peak activations of the head, in bytes or as "16MiB".
        no_raw_image: Whether pixels must stay on the edge.
        max_bytes: Limit on the bytes of a frame on the uplink, a number or a size such as "4KB".
    """

    max_drop: float | None
    edge_memory: str | int | None
    no_raw_image: bool
    max_bytes: str | int | None


Kind = TypeVar("Kind", bound=Constraint)


def constraints(**limits: Unpack[Limits]) -> tuple[Constraint, ...]:
    """Constraints of limits; those that are not given or None limit nothing.

    Raises:
        SettingsError: If a limit cannot be read.
    """
    unknown = sorted(limits.keys() - CONSTRAINTS.keys())
    if unknown:
        raise TypeError(f"there are no limits {', '.join(unknown)}")
    defaults = {name: kind.default for name, kind in CONSTRAINTS.items()}
    return _parsed(cast("dict[str, str | Limit | None]", defaults | limits))


def stored(constraints: Iterable[Constraint]) -> dict[str, Limit]:
    """Limits by name, as the manifest keeps them."""
    return {each.name: each.limit for each in constraints}


def restored(limits: Mapping[str, Limit]) -> tuple[Constraint, ...]:
    """Constraints of a manifest's limits.

    Raises:
        BundleError: If one of them is unknown here: a search without it would not be the same.
    """
    unknown = sorted(limits.keys() - CONSTRAINTS.keys())
    if unknown:
        raise BundleError(
            f"the bundle was searched under limits unknown to this version ({', '.join(unknown)}): "
            "use the version that wrote it"
        )
    return _parsed(limits)


def find(kind: type[Kind], constraints: Iterable[Constraint]) -> Kind | None:
    """The constraint of one kind, if it is among some."""
    return next((each for each in constraints if isinstance(each, kind)), None)


def in_words(constraints: Iterable[Constraint]) -> str:
    """Options of constraints, as a list in words."""
    return " and ".join(each.option for each in constraints)


def _parsed(limits: Mapping[str, str | Limit | None]) -> tuple[Constraint, ...]:
    given = ((kind, limits.get(name)) for name, kind in CONSTRAINTS.items())
    made = (kind.parse(limit) for kind, limit in given if limit is not None)
    return tuple(each for each in made if each is not None)
