"""Replacement of a bundle by another, with the old one kept for rollback.

    CURRENT -> CURRENT.previous,  NEW -> CURRENT       two renames; the second undone, the first is

Nothing is copied, so no reader ever sees half a bundle. Processes that have opened the old one keep
what they have loaded until they are started again.
"""

import contextlib
import shutil
from pathlib import Path

from common.bundle.bundle import MANIFEST
from common.errors import BundleError, SettingsError


def previous_of(current: Path) -> Path:
    """Path where the replaced bundle is kept."""
    return current.with_name(f"{current.name}.previous")


def check_exchange(current: Path, new: Path) -> None:
    """Require paths that `exchange` can work with, before there is a bundle at `new`.

    Raises:
        SettingsError: If one is a zip file, or they are on different disks.
        BundleError: If something else is where the old bundle is to be kept.
    """
    if not current.is_dir() or new.suffix.lower() == ".zip":
        zipped = new if current.is_dir() else current
        raise SettingsError(
            f"{zipped}: --auto exchanges folders, not zip files: unzip the bundle, or deploy the "
            "proposal by hand"
        )
    parent = next(folder for folder in new.absolute().parents if folder.exists())
    if parent.stat().st_dev != current.absolute().parent.stat().st_dev:
        raise SettingsError(
            f"{new} is on another disk than {current}: choose an --out beside it, so that it can "
            "be put in its place at once"
        )
    previous = previous_of(current)
    if previous.exists() and not (previous / MANIFEST).is_file():
        raise BundleError(f"{previous} exists and is no bundle: move it away")


def exchange(current: Path, new: Path) -> Path:
    """Put `new` in the place of `current`; returns the new path of the latter.

    An older previous bundle is removed. If anything fails, all is as it was.

    Raises:
        BundleError: If they cannot be renamed.
    """
    previous = previous_of(current)
    older = current.with_name(f"{current.name}.older")
    shutil.rmtree(older, ignore_errors=True)
    moves = ((previous, older), (current, previous), (new, current))
    try:
        for source, target in moves:
            if source.exists():
                source.rename(target)
    except BaseException as error:
        for source, target in reversed(moves):
            if target.exists() and not source.exists():
                with contextlib.suppress(OSError):
                    target.rename(source)
        if isinstance(error, OSError):
            raise BundleError(f"{current} cannot be replaced: {error.strerror}") from error
        raise
    shutil.rmtree(older, ignore_errors=True)
    return previous
