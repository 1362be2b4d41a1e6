"""Slow processes on this machine's kernel, where it can freeze them."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench import slow
from bench.slow import FREEZERS, SIGNALS, SlowCpu, SlowCpuError, slowed


@pytest.fixture(scope="module", params=FREEZERS, ids="cgroups v{}".format)
def tenth(request: pytest.FixtureRequest) -> Iterator[SlowCpu]:
    try:
        inside = slowed(0.1, versions=[request.param])
        given = inside.__enter__()
    except SlowCpuError as error:
        pytest.skip(str(error))
    yield given
    inside.__exit__(None, None, None)


def _folder(given: SlowCpu) -> Path:
    return Path(given.prefix[-1]).parent


def test_a_process_inside_gets_its_share(tenth: SlowCpu) -> None:
    assert tenth.measured == pytest.approx(0.1, rel=0.2)


def test_arguments_pass_as_they_are(tenth: SlowCpu) -> None:
    script = "import sys; print(sys.argv[1:])"
    command = [*tenth.prefix, sys.executable, "-c", script, "a b", "$HOME", ""]
    assert subprocess.check_output(command, text=True) == "['a b', '$HOME', '']\n"  # noqa: S603


def test_its_cgroup_is_removed_even_with_a_process_inside(tenth: SlowCpu) -> None:
    with slowed(0.1, strict=False) as given:
        command = [*given.prefix, "sh", "-c", "echo inside && exec sleep 60"]
        sleeper = subprocess.Popen(command, stdout=subprocess.PIPE)  # noqa: S603
        assert sleeper.stdout is not None
        assert sleeper.stdout.readline() == b"inside\n"
    try:
        assert sleeper.poll() is None
        assert not _folder(given).exists()
        assert _folder(tenth).exists()
    finally:
        sleeper.kill()
        sleeper.communicate()


def test_a_share_that_is_not_kept_is_an_error(
    tenth: SlowCpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slow, "_ENTER", 'exec "$@"')
    monkeypatch.setattr(slow, "_BURN_S", 0.02)
    with pytest.raises(SlowCpuError, match=r"not kept|others use"), slowed(0.05):
        pass


def test_without_root_processes_are_stopped_and_continued(tmp_path: Path) -> None:
    with slowed(0.25, versions=[SIGNALS], strict=False) as given:
        command = [*given.prefix, "sh", "-c", "echo inside && exec sleep 60"]
        sleeper = subprocess.Popen(command, stdout=subprocess.PIPE)  # noqa: S603
        try:
            assert sleeper.stdout is not None
            assert sleeper.stdout.readline() == b"inside\n"
            status = Path(f"/proc/{sleeper.pid}/status")
            while "\nState:\tT" not in status.read_text():
                pass
            while "\nState:\tT" in status.read_text():
                pass
        except BaseException:
            sleeper.kill()
            raise
    try:
        assert "\nState:\tT" not in status.read_text()
        assert not _folder(given).exists()
    finally:
        sleeper.kill()
        sleeper.communicate()


def test_a_process_that_runs_already_can_be_slowed() -> None:
    sleeper = subprocess.Popen(["sleep", "60"])  # noqa: S607
    status = Path(f"/proc/{sleeper.pid}/status")
    try:
        with slowed(0.25, versions=[SIGNALS], strict=False) as given:
            given.take(sleeper.pid)
            while "\nState:\tT" not in status.read_text():
                pass
    finally:
        sleeper.kill()
        sleeper.communicate()


@pytest.mark.parametrize("share", [0.0, -1.0, 1e-6, 1.0, float("nan")])
def test_a_share_that_makes_no_sense_is_refused(share: float) -> None:
    with pytest.raises(SlowCpuError, match=r"expected 0\.01 to below 1"), slowed(share):
        pass


def test_no_cgroups_that_freeze_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mounts = tmp_path / "mounts"
    mounts.write_text("cgroup /sys/fs/cgroup/cpu cgroup rw,relatime,cpu 0 0\n")
    monkeypatch.setattr(slow, "_MOUNTS", mounts)
    monkeypatch.setattr("os.geteuid", lambda: 0)
    with pytest.raises(SlowCpuError, match="version 2 or 1 that freeze"), slowed(0.5):
        pass


def test_without_root_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    with pytest.raises(SlowCpuError, match="needs root"), slowed(0.5):
        pass
