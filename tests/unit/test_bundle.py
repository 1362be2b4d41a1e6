"""Bundles: what is written is read back."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from common.bundle.bundle import Bundle, BundleWriter, open_codecs, read_vector, zip_bundle
from common.bundle.manifest import Plan
from common.codec.spec import CodecSpec
from common.errors import BundleError, UnknownPlanError
from tests.bundles import CUT, DETECTOR, INPUT, OUTPUT, PLAN, files, npy, write
from tests.contexts import random_model, sparse_symbols


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(tmp_path / "bundle")
    return tmp_path / "bundle"


class TestOpen:
    @pytest.mark.parametrize("zipped", [False, True], ids=["folder", "zip"])
    def test_what_was_written_is_read(self, folder: Path, tmp_path: Path, zipped: bool) -> None:
        path = folder
        if zipped:
            path = tmp_path / "bundle.zip"
            zip_bundle(folder, path)

        with Bundle.open(path) as bundle:
            assert bundle.manifest.plans == (PLAN,)
            assert bundle.manifest.task == DETECTOR
            assert bundle.digest == hashlib.sha256((folder / "manifest.json").read_bytes()).digest()
            for name, data in files().items():
                assert bundle.file(name).read_bytes() == data

    def test_plans_are_found_by_digest(self, folder: Path) -> None:
        bundle = Bundle.open(folder)
        (digest,) = bundle.plans
        assert digest == bundle.manifest.digests[0]
        assert bundle.plan(digest) == PLAN

    def test_an_unknown_digest_is_named_with_those_that_are_known(self, folder: Path) -> None:
        bundle = Bundle.open(folder)
        (digest,) = bundle.plans
        with pytest.raises(UnknownPlanError, match="abababababab") as unknown:
            bundle.plan(b"\xab" * 32)
        assert digest.hex()[:12] in str(unknown.value)

    def test_the_folder_of_a_zip_goes_with_the_bundle(self, folder: Path, tmp_path: Path) -> None:
        zip_bundle(folder, tmp_path / "bundle.zip")
        work = tmp_path / "work"
        work.mkdir()
        with Bundle.open(tmp_path / "bundle.zip", workdir=work) as bundle:
            assert bundle.root.is_relative_to(work)
        assert not list(work.iterdir())

    def test_closing_a_folder_leaves_it(self, folder: Path) -> None:
        Bundle.open(folder).close()
        Bundle.open(folder).close()

    def test_a_zip_that_is_refused_leaves_nothing_behind(self, tmp_path: Path) -> None:
        work = tmp_path / "work"
        work.mkdir()
        (tmp_path / "bundle.zip").write_bytes(b"PK\x03\x04 is not enough")
        with pytest.raises(BundleError):
            Bundle.open(tmp_path / "bundle.zip", workdir=work)
        assert not list(work.iterdir())

    def test_a_path_with_no_bundle_says_what_to_do(self, tmp_path: Path) -> None:
        with pytest.raises(BundleError, match="splitpoint search"):
            Bundle.open(tmp_path / "nowhere")


class TestWrite:
    def test_an_older_bundle_is_replaced_whole(self, folder: Path) -> None:
        write(folder, files() | {"report.md": b"newer"})
        assert Bundle.open(folder).file("report.md").read_bytes() == b"newer"
        assert [path.name for path in folder.parent.iterdir()] == ["bundle"]

    def test_an_empty_folder_is_taken(self, tmp_path: Path) -> None:
        write(tmp_path / "parent" / "bundle")
        Bundle.open(tmp_path / "parent" / "bundle")

    def test_a_folder_that_is_no_bundle_is_kept(self, tmp_path: Path) -> None:
        (tmp_path / "photos").mkdir()
        (tmp_path / "photos" / "cat.jpg").write_bytes(b"cat")
        with pytest.raises(BundleError, match="photos"):
            write(tmp_path / "photos")
        assert (tmp_path / "photos" / "cat.jpg").read_bytes() == b"cat"

    def test_until_it_is_finished_nothing_is_seen(self, folder: Path) -> None:
        before = (folder / "manifest.json").read_bytes()
        writer = BundleWriter(folder)
        writer.add("report.md", b"half")
        assert (folder / "manifest.json").read_bytes() == before
        assert (folder / "report.md").read_bytes() == b"why"

    @pytest.mark.parametrize(
        "name", ["../evil", "{tmp_path}/evil", "a\\b", "", ".", "a/../b", "manifest.json"]
    )
    def test_a_name_that_leads_out_is_refused(self, tmp_path: Path, name: str) -> None:
        writer = BundleWriter(tmp_path / "bundle")
        with pytest.raises(BundleError, match="relative path"):
            writer.add(name.format(tmp_path=tmp_path), b"x")
        assert not list(tmp_path.rglob("*evil*"))


class TestVector:
    def test_it_is_read(self, folder: Path) -> None:
        assert PLAN.head is not None
        image, outputs = read_vector(Bundle.open(folder), PLAN.head)
        np.testing.assert_array_equal(image, INPUT, strict=True)
        np.testing.assert_array_equal(outputs, [OUTPUT], strict=True)

    @pytest.mark.parametrize(
        "data",
        [
            pytest.param(b"", id="empty"),
            pytest.param(b"nonsense", id="not an array"),
            # a pickle runs code when it is read
            pytest.param(npy(np.array([print], object), allow_pickle=True), id="pickle"),
            pytest.param(b"\x80\x04N.", id="bare pickle"),
            pytest.param(npy(OUTPUT.astype(np.float32)), id="another type"),
            pytest.param(npy(OUTPUT[0]), id="another shape"),
            pytest.param(npy(OUTPUT)[:-1], id="cut off"),
            # a header that promises a petabyte
            pytest.param(
                npy(OUTPUT).replace(b"(1, 2, 4, 4)", b"(1, 10**15,)"), id="formula for a shape"
            ),
            pytest.param(
                npy(OUTPUT).replace(b"(1, 2, 4, 4), }   ", b"(1, 99999999, 9),}"), id="huge"
            ),
        ],
    )
    def test_another_array_is_refused(self, tmp_path: Path, data: bytes) -> None:
        write(tmp_path / "bundle", files() | {"vectors/cut/output-0.npy": data})
        assert PLAN.head is not None
        with pytest.raises(BundleError, match="output-0") as refused:
            read_vector(Bundle.open(tmp_path / "bundle"), PLAN.head)
        assert "\n" not in str(refused.value)


CONTEXT = "contexts/cut.bin"
CONTEXT_PLAN = PLAN.model_copy(
    update={
        "codec": CodecSpec(name="context"),
        "wire": (PLAN.wire[0].model_copy(update={"context": CONTEXT}),),
    }
)


class TestContexts:
    def test_a_plan_s_codecs_know_their_tensors(self, tmp_path: Path) -> None:
        model = random_model(2, 2)
        write(tmp_path / "b", files() | {CONTEXT: model.to_bytes()}, CONTEXT_PLAN)
        with Bundle.open(tmp_path / "b") as bundle:
            (codec,) = open_codecs(bundle, bundle.manifest.plans[0])
        symbols = sparse_symbols(CUT, 2)
        data = codec.encode(symbols, 1)
        np.testing.assert_array_equal(codec.decode(data, CUT, 1), symbols)

    @pytest.mark.parametrize(
        "data",
        [b"", b"SPCX", random_model(3, 2).to_bytes(), random_model(2, 4).to_bytes()],
        ids=["empty", "cut off", "other channels", "other levels"],
    )
    def test_a_model_of_another_tensor_is_refused(self, tmp_path: Path, data: bytes) -> None:
        write(tmp_path / "b", files() | {CONTEXT: data}, CONTEXT_PLAN)
        with (
            Bundle.open(tmp_path / "b") as bundle,
            pytest.raises(BundleError, match=f"{CONTEXT}.*search again"),
        ):
            open_codecs(bundle, bundle.manifest.plans[0])

    def test_another_model_is_another_plan(self, tmp_path: Path) -> None:
        digests = set()
        for seed in range(2):
            model = random_model(2, 2, seed)
            manifest = write(tmp_path / "b", files() | {CONTEXT: model.to_bytes()}, CONTEXT_PLAN)
            digests |= set(manifest.digests)
        assert len(digests) == 2

    @pytest.mark.parametrize(
        "change",
        [{"codec": CodecSpec(name="packed")}, {"wire": PLAN.wire}],
        ids=["no coder", "no model"],
    )
    def test_coder_and_model_come_together(self, change: dict[str, Any]) -> None:
        plan = CONTEXT_PLAN.model_copy(update=change)
        with pytest.raises(ValidationError, match="model for every tensor"):
            Plan.model_validate(plan.model_dump())
