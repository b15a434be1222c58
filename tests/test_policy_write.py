"""Writing a policy: the old file or the new one, never half of one."""

import errno
import os
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from planner.case.goal import Goal
from planner.errors import PlannerError, UsageError
from planner.policy.file import read_policy, write_policy
from tests.policies import a_policy

OLD = a_policy()
NEW = a_policy(goal=Goal(budget_seconds=3.0, max_lpips=0.1))


def failing_at(count: int, real: Callable[..., Any]) -> Callable[..., Any]:
    """Return a system call that says « no space » at its n-th use, as a full disk does."""
    calls = iter(range(count + 1))

    def call(*args: Any, **kwargs: Any) -> Any:
        if next(calls) == count:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(*args, **kwargs)

    return call


@pytest.mark.parametrize(("module", "name", "count"), [
    (os, "open", 0), (os, "fsync", 0), (Path, "chmod", 0), (Path, "replace", 0),
])  # fmt: skip
def test_whatever_fails_the_old_policy_stays_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: Any, name: str, count: int
) -> None:
    path = tmp_path / "2s.yaml"
    write_policy(OLD, path)
    with monkeypatch.context() as patch:
        patch.setattr(module, name, failing_at(count, getattr(module, name)))
        with pytest.raises(PlannerError) as caught:
            write_policy(NEW, path)
    assert caught.value.exit_code == 1 and caught.value.value == str(path)
    assert "No space left" in caught.value.what
    assert "make room on the disk" in caught.value.way_out
    assert read_policy(path) == OLD
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_system_that_takes_no_more_leaves_the_old_policy(tmp_path: Path) -> None:
    path = tmp_path / "2s.yaml"
    write_policy(OLD, path)
    script = (
        "import resource, sys\n"
        "from pathlib import Path\n"
        "from planner.errors import PlannerError\n"
        "from planner.policy.atomic import replace\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "try:\n"
        "    replace(Path(sys.argv[1]), b'x' * 5000)\n"
        "except PlannerError as error:\n"
        "    print(error); sys.exit(error.exit_code)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(path)], capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    assert "make room on the disk" in done.stdout
    assert read_policy(path) == OLD
    assert list(tmp_path.iterdir()) == [path]


def test_a_failure_after_the_rename_is_told_and_leaves_the_new_policy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "2s.yaml"
    write_policy(OLD, path)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", failing_at(1, os.fsync))  # the folder's
        with pytest.raises(PlannerError):
            write_policy(NEW, path)
    assert read_policy(path) == NEW


def test_a_folder_that_cannot_be_made_is_a_usage_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="name a folder that this user may write to") as caught:
        write_policy(NEW, tmp_path / "file" / "2s.yaml")
    assert caught.value.value == str(tmp_path / "file" / "2s.yaml")


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder_is_a_usage_error(tmp_path: Path) -> None:
    tmp_path.chmod(0o555)
    with pytest.raises(UsageError, match="may write"):
        write_policy(NEW, tmp_path / "2s.yaml")
    tmp_path.chmod(0o755)


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a file system without writes")
def test_a_file_system_without_writes_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="cannot write /proc/self"):
        write_policy(NEW, Path("/proc/self/2s.yaml"))


def test_folders_are_made_and_the_file_is_readable_by_others(tmp_path: Path) -> None:
    path = tmp_path / "policies" / "shapes" / "cpu" / "2s.yaml"
    write_policy(NEW, path)
    mask = os.umask(0)
    os.umask(mask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~mask


def test_an_interrupt_in_mid_write_leaves_the_old_policy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "2s.yaml"
    write_policy(OLD, path)

    def interrupted(descriptor: int) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", interrupted)
        with pytest.raises(KeyboardInterrupt):
            write_policy(NEW, path)
    assert read_policy(path) == OLD
    assert list(tmp_path.iterdir()) == [path]
