"""Reuse of bundles: a search is skipped if it would make the bundle that is there already.

    request, pictures by content -+
    code and libraries -----------+-> search_key -> BUNDLE.key, beside the bundle
    machine ----------------------+

The key stands beside the bundle, whose own files are all listed in its manifest, and names the
bundle that it is of: neither an older key nor a bundle from elsewhere is taken for the right one.
"""

import hashlib
import shutil
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

from common.bundle.bundle import Bundle
from common.bundle.manifest import Manifest
from common.errors import BundleError
from common.imaging.images import list_images
from common.progress import Reporter
from common.tables.store_file import read_tables
from search.cache import digest
from search.constraints import stored
from search.measure.latency import timing_place
from search.network.importers.factory import is_factory
from search.pipeline import search
from search.request import Request
from search.software import software_digest
from search.source import NetworkSource

_ELSEWHERE = {"cache", "constraints"}
"""Fields of a request that the bundle does not depend on, or that enter in another form."""


def search_unless_kept(
    request: Request,
    bundle: Path,
    reporter: Reporter,
    *,
    again: bool = False,
    before: Callable[[], object] = lambda: None,
) -> Manifest:
    """Reuse the bundle of an earlier run if the same search would make it now; else search.

    A search that is killed leaves its cache, and the bundle as it was.

    Args:
        request: What to search for.
        bundle: The bundle's folder; `bundle.key` beside it holds its key.
        reporter: Reports progress.
        again: Whether to search in any case.
        before: Called before a search, to fetch what only that needs.

    Raises:
        SplitpointError: As `search.pipeline.search`.
    """
    manifest = None if again else kept(request, bundle)
    if manifest is not None:
        reporter.stage("searching plans (kept)")(1, 1)
        return manifest
    before()
    part, older = (bundle.with_name(f"{bundle.name}.{end}") for end in ("part", "older"))
    for folder in (part, older):
        shutil.rmtree(folder, ignore_errors=True)
    # Before the search: what is edited meanwhile did not make this bundle.
    key = search_key(request)
    manifest, _ = search(request, part, reporter)
    try:
        if bundle.exists():
            bundle.replace(older)
        part.replace(bundle)
        _write(bundle, key)
    except OSError as error:
        raise BundleError(f"{bundle}: cannot be written: {error.strerror}") from error
    shutil.rmtree(older, ignore_errors=True)
    return manifest


def kept(request: Request, bundle: Path) -> Manifest | None:
    """Manifest of a bundle that is whole and that the same search would make now, or None.

    None of a torch module's, too: what its code computes cannot be told before it is run.
    """
    if is_factory(request.model):
        return None
    try:
        key, _, digest_of_bundle = _key_file(bundle).read_text().strip().partition(" ")
        with Bundle.open(bundle) as opened:
            whole = opened.digest.hex() == digest_of_bundle
            return opened.manifest if whole and key == search_key(request) else None
    except (OSError, ValueError, BundleError):
        return None


def keep(request: Request, bundle: Path) -> None:
    """Write the key of a bundle, so that it is reused.

    Raises:
        BundleError: If it is no bundle.
    """
    _write(bundle, search_key(request))


def search_key(request: Request) -> str:
    """SHA-256 of all that a bundle depends on: request, pictures, tables, software, machine."""
    values = {
        field.name: _content(getattr(request, field.name))
        for field in fields(request)
        if field.name not in _ELSEWHERE
    }
    values["constraints"] = stored(request.constraints)  # each with its name
    if request.tables is not None:
        values["tables"] = read_tables(request.tables)  # a store's bytes may change, its rows not
    return digest(values, software_digest(), timing_place(request.runtime))


def _content(value: object) -> object:
    """Content of a field: its value, or the digests of the file or pictures at a path."""
    if isinstance(value, NetworkSource):
        parts = {each.name: getattr(value, each.name) for each in fields(value)}
        parts |= {"card": value.card_file, "file": value.model_file}
        return {name: _content(part) for name, part in parts.items()}
    if not isinstance(value, Path):
        return value
    if value.is_dir():
        return [(path.name, _sha256(path)) for path in list_images(value)]
    return _sha256(value) if value.is_file() else None


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write(bundle: Path, key: str) -> None:
    with Bundle.open(bundle) as opened:
        made = opened.digest.hex()
    part = _key_file(bundle).with_suffix(".key.part")
    part.write_text(f"{key} {made}\n")
    part.replace(_key_file(bundle))


def _key_file(bundle: Path) -> Path:
    return bundle.with_name(f"{bundle.name}.key")
