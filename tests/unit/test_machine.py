"""The machine that times depend on: its processor and the cores that a process may use."""

import platform
from pathlib import Path

import pytest

from common.machine import _quotas, cpu_model, cpu_name, saturates_int8, usable_cores
from tests.affinity import one_core


def test_the_processor_has_a_name_and_a_model() -> None:
    assert cpu_name()
    assert cpu_model().startswith(cpu_name())
    assert cpu_model() == cpu_model()


@pytest.mark.parametrize(
    ("board", "name"), [("Raspberry Pi 5\0", "Raspberry Pi 5"), ("", None), (None, None)]
)
def test_a_processor_without_a_name_is_called_after_its_board(
    board: str | None, name: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if board is not None:
        (tmp_path / "board").write_text(board)
    monkeypatch.setattr("common.machine._PROC", tmp_path)
    monkeypatch.setattr("common.machine._BOARD", tmp_path / "board")
    assert cpu_name() == name if name else cpu_name()
    assert saturates_int8() == (platform.machine().lower() in {"x86_64", "amd64"})


def test_who_is_bound_to_one_core_has_no_more() -> None:
    assert usable_cores() > 0
    with one_core():
        assert usable_cores() <= 1


@pytest.mark.parametrize(
    ("membership", "files", "quotas"),
    [
        # version 2: the tightest of the group and those above it counts
        ("0::/\n", {"cpu.max": "50000 100000\n"}, [0.5]),
        ("0::/a/b\n", {"a/b/cpu.max": "max 100000", "a/cpu.max": "150000 100000"}, [1.5]),
        ("0::/a/b\n", {"a/b/cpu.max": "25000 100000", "cpu.max": "400000 100000"}, [0.25, 4.0]),
        # a container is shown a path that it does not see
        ("0::/../other\n", {"cpu.max": "50000 100000"}, [0.5]),
        # version 1
        (
            "4:memory:/x\n3:cpu,cpuacct:/docker/1\n",
            {"cpu,cpuacct/cpu.cfs_quota_us": "50000", "cpu,cpuacct/cpu.cfs_period_us": "100000"},
            [0.5],
        ),
        ("3:cpu:/\n", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, []),
        # nothing, or nonsense
        ("0::/\n", {}, []),
        ("", {"cpu.max": "50000 100000"}, []),
        ("0::/\n", {"cpu.max": "soon"}, []),
    ],
)
def test_quotas_of_control_groups(
    tmp_path: Path, membership: str, files: dict[str, str], quotas: list[float]
) -> None:
    for name, text in files.items():
        path = tmp_path / "groups" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (tmp_path / "cgroup").write_text(membership)
    assert list(_quotas(tmp_path / "cgroup", tmp_path / "groups")) == quotas


def test_a_system_without_control_groups_has_no_quota(tmp_path: Path) -> None:
    assert list(_quotas(tmp_path / "none", tmp_path)) == []


@pytest.mark.parametrize(
    ("architecture", "flags", "saturates"),
    [
        ("x86_64", "fma avx2", True),
        ("AMD64", "avx2 avx512f avx512_vnni", False),
        ("x86_64", "avx2 avx_vnni", False),
        ("x86_64", "", True),  # not known: what is safe on all
        ("aarch64", "", False),
    ],
)
def test_products_of_8_bits_saturate_without_vnni(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, architecture: str, flags: str, saturates: bool
) -> None:
    (tmp_path / "cpuinfo").write_text(f"model name\t: X\nflags\t\t: {flags}\n\nprocessor\t: 1\n")
    monkeypatch.setattr("common.machine._PROC", tmp_path)
    monkeypatch.setattr("platform.machine", lambda: architecture)
    assert saturates_int8() == saturates
