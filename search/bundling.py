"""A search whose bundle goes to a folder, or to one zip file."""

import tempfile
from pathlib import Path

from common.bundle.bundle import zip_bundle
from common.places import require_bundle_place
from common.progress import Reporter
from search.pipeline import search
from search.request import Request, SearchResult


def search_to(out: Path, request: Request, reporter: Reporter) -> SearchResult:
    """Search and write a bundle to `out`: a zip file if its name ends so, else a folder."""
    if out.suffix.lower() != ".zip":
        return search(request, out, reporter)[1]
    require_bundle_place(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="splitpoint-") as scratch:
        folder = Path(scratch) / "bundle"
        result = search(request, folder, reporter)[1]
        zip_bundle(folder, out)
    return result
