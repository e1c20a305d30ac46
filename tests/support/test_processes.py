"""How many processes: by affinity and control groups, in files made here; that they end with their parent."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from precision_lab.support import processes
from precision_lab.support.processes import number_of_processes, usable_cores


@pytest.fixture
def many(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine of 128 cores, all of which may be used."""
    monkeypatch.setattr(os, "cpu_count", lambda: 128)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(128)), raising=False)
    monkeypatch.setattr(os, "process_cpu_count", lambda: 128, raising=False)


def files(root: Path, **texts: str) -> Path:
    """Write files below `root`, whose names have ``__`` for slashes and ``_dot_`` for dots."""
    for name, text in texts.items():
        file = root / name.replace("__", "/").replace("_dot_", ".")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return root


MAX = "sys__fs__cgroup__cpu_dot_max"
V1 = "sys__fs__cgroup__cpu,cpuacct__"


@pytest.mark.usefixtures("many")
@pytest.mark.parametrize(
    ("texts", "cores"),
    [
        ({}, 128),
        # version 2: quota and period
        ({"proc__self__cgroup": "0::/\n", MAX: "200000 100000\n"}, 2),
        ({"proc__self__cgroup": "0::/\n", MAX: "250000 100000\n"}, 3),
        ({"proc__self__cgroup": "0::/\n", MAX: "10000 100000\n"}, 1),
        ({"proc__self__cgroup": "0::/\n", MAX: "max 100000\n"}, 128),
        ({"proc__self__cgroup": "0::/\n", MAX: "99999999 100000\n"}, 128),
        # of a group and of those that it is in, whichever is least
        ({"proc__self__cgroup": "0::/a/b\n", "sys__fs__cgroup__a__cpu_dot_max": "300000 100000\n", MAX: "max 1"}, 3),
        (
            {
                "proc__self__cgroup": "0::/a/b\n",
                "sys__fs__cgroup__a__cpu_dot_max": "900000 100000\n",
                "sys__fs__cgroup__a__b__cpu_dot_max": "400000 100000\n",
            },
            4,
        ),
        # a container that knows the host's name of its group
        ({"proc__self__cgroup": "0::/docker/0123\n", MAX: "500000 100000\n"}, 5),
        # version 1
        (
            {
                "proc__self__cgroup": "2:cpuset:/\n1:cpu,cpuacct:/x\n0::/\n",
                f"{V1}x__cpu_dot_cfs_quota_us": "600000\n",
                f"{V1}x__cpu_dot_cfs_period_us": "100000\n",
            },
            6,
        ),
        (
            {
                "proc__self__cgroup": "1:cpu,cpuacct:/host/name\n",
                f"{V1}cpu_dot_cfs_quota_us": "150000\n",
                f"{V1}cpu_dot_cfs_period_us": "100000\n",
            },
            2,
        ),
        (
            {
                "proc__self__cgroup": "1:cpu,cpuacct:/\n",
                f"{V1}cpu_dot_cfs_quota_us": "-1\n",
                f"{V1}cpu_dot_cfs_period_us": "100000\n",
            },
            128,
        ),
        # what is no such file
        ({"proc__self__cgroup": "0::/\n", MAX: "200000 0\n"}, 128),
        ({"proc__self__cgroup": "nonsense\n\n:::\n", MAX: "2 1 0\n"}, 128),
        ({"proc__self__cgroup": "0::/\n", MAX: "2" * 100_000}, 128),
        ({"proc__self__cgroup": "0::/../../..\n", MAX: "200000 100000\n"}, 2),
    ],
)
def test_the_quota_of_the_control_groups(tmp_path: Path, texts: dict[str, str], cores: int) -> None:
    assert usable_cores(files(tmp_path, **texts)) == cores


@pytest.mark.usefixtures("many")
def test_a_quota_that_is_no_regular_file_keeps_nobody_waiting(tmp_path: Path) -> None:
    files(tmp_path, proc__self__cgroup="0::/\n", **{MAX: ""})
    place = tmp_path / "sys/fs/cgroup/cpu.max"
    place.unlink()
    os.mkfifo(place)
    assert usable_cores(tmp_path) == 128


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="affinity can be set on Linux only")
def test_the_affinity_of_the_process() -> None:
    program = (
        "import os; os.sched_setaffinity(0, [min(os.sched_getaffinity(0))]); "
        "from precision_lab.support.processes import usable_cores; print(usable_cores())"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == "1\n"


@pytest.mark.usefixtures("many")
def test_the_number_of_processes() -> None:
    assert number_of_processes(1) == 1
    assert number_of_processes(512) == 512
    with pytest.raises(ValueError, match=r"^workers must be an integer of at least 1, got 0$"):
        number_of_processes(0)
    with pytest.raises(ValueError, match=r"^workers must be at most 512 on this machine of 128 cores, got 513; take "):
        number_of_processes(513)


@pytest.mark.usefixtures("many")
def test_windows_waits_for_no_more_than_61(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    class Windows:
        name = "nt"

        def __getattr__(self, name: str) -> object:
            return getattr(os, name)

    monkeypatch.setattr(processes, "os", Windows())
    assert usable_cores(tmp_path) == 61
    assert number_of_processes(61) == 61
    with pytest.raises(ValueError, match="at most 61"):
        number_of_processes(62)
