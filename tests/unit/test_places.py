"""Places: what stands where a result should go is found out before anything is computed."""

import zipfile
from pathlib import Path

import pytest

from common.bundle.bundle import zip_bundle
from common.errors import BundleError, SettingsError
from common.places import require_bundle_place, require_file_place, require_folder
from tests import tiny


def test_free_places_and_older_bundles_will_do_and_nothing_is_left_there(tmp_path: Path) -> None:
    tiny.build(tmp_path / "older")
    zip_bundle(tmp_path / "older", tmp_path / "older.zip")
    (tmp_path / "empty").mkdir()
    before = sorted(tmp_path.rglob("*"))
    for name in ("older", "older.zip", "empty", "new", "new.zip", "deep/er/new", "deep/new.zip"):
        require_bundle_place(tmp_path / name)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("name", ["notes.txt", "notes.zip", "pictures.zip", "full", "folder.zip"])
def test_what_is_no_bundle_is_not_replaced(tmp_path: Path, name: str) -> None:
    (tmp_path / "notes.txt").write_text("notes")
    (tmp_path / "notes.zip").write_text("notes")
    with zipfile.ZipFile(tmp_path / "pictures.zip", "w") as archive:
        archive.writestr("picture.png", b"")
    for folder in ("full", "folder.zip"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "file").touch()
    with pytest.raises(BundleError, match="exists and is no bundle: choose another place"):
        require_bundle_place(tmp_path / name)


def test_places_that_cannot_be_written_are_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SettingsError, match="nothing can be written there"):
        require_bundle_place(tmp_path / "file" / "bundle")
    with pytest.raises(SettingsError, match="nothing can be written there"):
        require_folder(Path("/proc/self/nowhere"))
    with pytest.raises(SettingsError, match="is a file: give a folder"):
        require_folder(tmp_path / "file")
    with pytest.raises(SettingsError, match="is a folder: give the name of a file"):
        require_file_place(tmp_path)
