"""On a real Dask cluster of several processes, one of which is killed: the same bits, nothing twice (make test-all)."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from precision_lab import TensorFileError, scan
from precision_lab.numerics import verification
from precision_lab.numerics.verification import verify_against_ml_dtypes
from precision_lab.training.config import TrainingConfig
from precision_lab.training.storage import StorageConfig
from precision_lab.training.sweep import sweep
from tests.analysis.test_scan_spread import scan_module
from tests.conftest import CommandLine

pytestmark = [
    pytest.mark.distributed,
    pytest.mark.filterwarnings("ignore"),  # of Dask's own: ports in use, event loops
]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Four workers, because three tests kill one: Dask replaces them, but not always (two nannies for one name)."""
    from distributed import LocalCluster  # missing Dask is an error here, not a skip

    with LocalCluster(
        n_workers=4, threads_per_worker=1, processes=True, dashboard_address="127.0.0.1:0", silence_logs=50
    ) as c:
        yield c


@pytest.fixture
def client(cluster: Any) -> Iterator[Any]:
    from distributed import Client

    with Client(cluster, set_as_default=False) as connected:
        yield connected


class Killer:
    """As progress: kills a worker after so many tasks, once."""

    def __init__(self, client: Any, after: int) -> None:
        self.pids: set[int] = set(client.run(os.getpid).values())
        assert len(self.pids) >= 2  # others are left to go on
        self.after, self.told, self.killed = after, list[tuple[int, int]](), 0

    def __call__(self, done: int, total: int) -> None:
        self.told.append((done, total))
        if len(self.told) == self.after:
            self.killed = max(self.pids)
            os.kill(self.killed, signal.SIGKILL)

    def check(self, client: Any) -> None:
        """It was killed in the middle, it is gone, and progress went up step by step to the end."""
        assert self.killed
        assert len(self.told) > self.after
        assert self.killed not in client.run(os.getpid).values()
        dones = [done for done, _ in self.told]
        assert dones == sorted(set(dones))
        assert dones[-1] == self.told[-1][1]


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    rng = np.random.default_rng(1)
    for i in range(4):
        tensors = {f"w{k}": (rng.standard_normal(1 << 18) * 2.0 ** -(8 * k)).astype(np.float32) for k in range(4)}
        save_file(tensors, tmp_path / f"shard{i}.safetensors")
    return tmp_path


def test_a_scan_with_a_killed_worker(client: Any, shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = scan(shards)
    monkeypatch.setattr(scan_module, "_elements_per_task", lambda _: 1 << 15)  # 128 tasks
    killer = Killer(client, 20)
    found = scan(shards, executor=client.get_executor(), progress=killer)
    assert found == expected
    assert json.dumps(found.to_dict()) == json.dumps(expected.to_dict())
    assert found.total.count == 1 << 22
    killer.check(client)


def test_a_sweep_with_a_killed_worker(client: Any, tmp_path: Path) -> None:
    small = TrainingConfig(hidden=(3,), steps=60, batch_size=16, measure_every=20)
    storages = ("fp32", "pure_bf16", "bf16_stochastic", "collage_plus", "master_fp16", "bf16_kahan")
    configs = [replace(small, storage=StorageConfig.parse(s), seed=seed) for s in storages for seed in range(3)]

    def comparable(results: list[Any]) -> list[dict[str, Any]]:
        return [{k: v for k, v in result.to_dict().items() if k != "seconds"} for result in results]

    expected = comparable(sweep(configs))
    killer = Killer(client, 3)
    kept = tmp_path / "runs.jsonl"
    found = sweep(configs, executor=client.get_executor(), checkpoint=kept, progress=killer)
    assert comparable(found) == expected
    killer.check(client)
    lines = [json.loads(line)["config"] for line in kept.read_text().splitlines()]
    assert len(lines) == len({json.dumps(line, sort_keys=True) for line in lines}) == len(configs)


def test_the_exhaustive_check_with_a_killed_worker(client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verification, "_ALL", 1 << 25)
    monkeypatch.setattr(verification, "_TASK", 1 << 19)  # 64 tasks
    killer = Killer(client, 8)
    found = verify_against_ml_dtypes("bf16", exhaustive=True, executor=client.get_executor(), progress=killer)
    assert (found.checked, found.mismatches) == (1 << 25, 0)
    killer.check(client)


def test_one_worker_is_as_good_as_all(client: Any, shards: Path) -> None:
    alone = [next(iter(client.run(os.getpid)))]
    assert scan(shards, executor=client.get_executor(workers=alone)) == scan(shards, executor=client.get_executor())


def test_an_error_on_a_worker_names_the_tensor(client: Any, tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "bad.npz", z=np.arange(5000.0))
    content = bytearray((tmp_path / "bad.npz").read_bytes())
    content[len(content) // 2] ^= 0xFF
    (tmp_path / "bad.npz").write_bytes(content)
    with pytest.raises(TensorFileError, match=r"bad\.npz, tensor 'z'"):
        scan(tmp_path, executor=client.get_executor())


# ---- the command line ----


def test_the_commands_on_a_cluster(command_line: CommandLine, cluster: Any, shards: Path) -> None:
    alone = command_line("scan", shards)
    assert command_line("scan", shards, "--dask", cluster.scheduler_address) == alone


def test_a_cluster_of_ones_own(command_line: CommandLine, tmp_path: Path) -> None:
    options = ("--storage", "pure_bf16", "--steps", 20, "--seeds", 1, "--batch", 8)
    here, there = (command_line("train", *options, *more) for more in (("--workers", 1), ("--dask", "local")))
    assert here.status == there.status == 0
    assert there.err == ""
    assert without_seconds(there.out) == without_seconds(here.out)


def without_seconds(text: str) -> str:
    return "\n".join(line for line in text.splitlines() if "second" not in line)


@pytest.mark.parametrize("address", ["tcp://127.0.0.1:9", "nonsense://x", "tcp://no.such.host.invalid:8786"])
def test_a_scheduler_that_does_not_answer(
    command_line: CommandLine, shards: Path, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import precision_lab.cli.workers as door

    monkeypatch.setattr(door, "_ANSWER", 2)
    finished = command_line("scan", shards, "--dask", address)
    assert finished.status == 2
    assert finished.err.startswith(f"precision-lab: error: --dask {address}: no scheduler answers")
    assert finished.err.count("\n") == 1
