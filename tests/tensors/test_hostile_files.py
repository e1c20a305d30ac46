"""Files that mean no good, or change while they are read: one line, or what is right, and never without bounds."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from precision_lab import TensorFileError, list_tensors, read_tensors, scan
from precision_lab.analysis.recording import read_recording
from precision_lab.analysis.sums import sum_tensors
from precision_lab.analysis.swamping_scan import scan_frozen
from precision_lab.support import reading
from precision_lab.support.reading import InputError, read_small
from precision_lab.tensors import nested
from precision_lab.tensors.info import labels_of, names_of
from precision_lab.tensors.reading import open_tensors


def write_safetensors(file: Path, names: list[str]) -> None:
    head = {n: {"dtype": "F32", "shape": [1], "data_offsets": [4 * i, 4 * i + 4]} for i, n in enumerate(names)}
    text = json.dumps(head).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + np.arange(1, len(names) + 1, dtype=np.float32).tobytes())


def save_npy(file: Path) -> None:
    np.save(file, np.ones(1000, np.float32))


def save_npz(file: Path) -> None:
    np.savez(file, a=np.ones(1000, np.float32))


def save_safetensors(file: Path) -> None:
    write_safetensors(file, [f"w{i}" for i in range(1000)])


def save_torch(file: Path) -> None:
    import torch

    torch.save({"a": torch.ones(1000), "b": torch.ones(100_000)}, file)


def cut(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 2)


def grow(file: Path) -> None:
    with file.open("ab") as stream:
        stream.write(b"more")


def overwrite(file: Path) -> None:
    found = file.stat()
    with file.open("r+b") as stream:
        stream.seek(-4, os.SEEK_END)
        stream.write(b"next")
    os.utime(file, ns=(found.st_atime_ns, found.st_mtime_ns + 1))


def put_another(file: Path) -> None:
    other = file.with_name("other")
    other.write_bytes(file.read_bytes())
    os.utime(other, ns=(0, 0))
    other.replace(file)


SAVED = [
    pytest.param(save_npy, ".npy", id="npy"),
    pytest.param(save_npz, ".npz", id="npz"),
    pytest.param(save_safetensors, ".safetensors", id="safetensors"),
    pytest.param(save_torch, ".pt", id="pt", marks=pytest.mark.torch),
]


@pytest.mark.parametrize("change", [cut, grow, overwrite, put_another])
@pytest.mark.parametrize(("save", "suffix"), SAVED)
def test_a_file_that_changes_while_it_is_read(
    save: Callable[[Path], None], suffix: str, change: Callable[[Path], None], tmp_path: Path
) -> None:
    file = tmp_path / f"a{suffix}"
    save(file)
    tensors = read_tensors(file, chunk_bytes=400)
    _, chunks = next(tensors)
    next(iter(chunks))
    change(file)
    if change is put_another and suffix in (".npy", ".npz"):  # the file that is open is still the one it was
        assert sum(chunk.size for chunk in chunks) == 900
        return
    with pytest.raises(TensorFileError) as caught:
        exhaust(chunks if suffix in (".npy", ".npz") else (chunk for _, rest in tensors for chunk in rest))
    assert str(caught.value).isprintable()
    assert str(caught.value).startswith(str(file))


def exhaust(chunks: Iterable[object]) -> None:
    for _ in chunks:
        pass


def test_what_only_looks_as_if_it_changed(tmp_path: Path) -> None:
    """Reading, links and another mode are no changes, and neither is what happened before."""
    file = tmp_path / "a.npy"
    save_npy(file)
    opened = open_tensors(file)
    os.utime(file, ns=(0, file.stat().st_mtime_ns))
    os.link(file, tmp_path / "b.npy")
    file.chmod(0o600)
    assert scan(opened).total.count == 1000
    overwrite(file)
    assert scan(file).total.count == 1000
    with pytest.raises(TensorFileError, match="changed while it was read"):
        scan(opened)


def test_a_recording_that_changes_while_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "run.json"
    file.write_text("{}")
    assert read_small(file) == b"{}"
    states = iter([(2, 0), (3, 0), (2, 0), (3, 0)])
    monkeypatch.setattr(reading, "state_of", lambda _: next(states))
    with pytest.raises(InputError, match=r"changed while it was read; read it again"):
        read_small(file)
    with pytest.raises(TensorFileError, match="changed while it was read"):
        read_recording(file)


@pytest.mark.torch
def test_a_pt_cut_short_in_the_middle_of_a_tensor_ends_no_process(tmp_path: Path) -> None:
    """It would with SIGBUS, were the mapped pages looked at; views that are not contiguous are copied first."""
    import torch

    for name, tensor in {"plain": torch.ones(1 << 22), "turned": torch.ones(1 << 11, 1 << 11).T}.items():
        file = tmp_path / f"{name}.pt"
        torch.save({"w": tensor}, file)
        program = (
            "import os, sys, precision_lab\n"
            "tensors = precision_lab.read_tensors(sys.argv[1], chunk_bytes=1 << 16)\n"
            "_, chunks = next(tensors)\n"
            "os.truncate(sys.argv[1], 1 << 14)\n"
            "try:\n"
            "    list(chunks)\n"
            "except precision_lab.TensorFileError as error:\n"
            "    print(error)\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", program, str(file)], capture_output=True, text=True, check=False, timeout=300
        )
        assert done.returncode == 0, done.stderr
        assert "cut short while it was read" in done.stdout
        assert len(done.stdout.splitlines()) == 1


@pytest.mark.torch
def test_shared_containers_are_entered_once(tmp_path: Path) -> None:
    import torch

    for bottom in (1, torch.ones(2)):
        listed: Any = [bottom]
        mapped: Any = {"w": bottom}
        for _ in range(12):
            listed = [listed] * 10
            mapped = {str(i): mapped for i in range(10)}
        for content in (listed, mapped):
            torch.save(content, tmp_path / "a.pt")
            assert (tmp_path / "a.pt").stat().st_size < 5000
            assert len(list_tensors(tmp_path / "a.pt")) == (bottom is not 1)  # noqa: F632
    endless: list[Any] = [torch.ones(3)]
    endless.append(endless)
    torch.save({"a": endless, "b": {"c": endless, "d": torch.zeros(1)}}, tmp_path / "a.pt")
    assert [info.name for info in list_tensors(tmp_path / "a.pt")] == ["a.0", "b.d"]


@pytest.mark.torch
def test_the_number_of_tensors_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(nested, "MOST", 10)
    numbers = list(range(100))
    assert len(list(nested.leaves({"numbers": numbers, "w": torch.ones(1)}, torch.is_tensor))) == 1
    with pytest.raises(ValueError, match="more than 10 tensors"):
        list(nested.leaves([torch.ones(1) for _ in range(11)], torch.is_tensor))
    twice: Any = (1,)
    for _ in range(4):
        twice = (twice,) * 10
    ((name, *_),) = nested.leaves({twice: torch.ones(1)}, torch.is_tensor)
    assert len(name) < 1000


@pytest.mark.torch
@pytest.mark.filterwarnings("ignore")  # torch's, of what is a prototype
def test_one_tensor_that_cannot_be_read_does_not_refuse_the_file(tmp_path: Path) -> None:
    import torch

    negative = torch.randn(4, dtype=torch.complex64).conj().imag
    assert negative.is_neg()
    content = {
        "w": torch.ones(2),
        "negative": negative,
        "jagged": torch.nested.nested_tensor([torch.ones(2), torch.ones(3)], layout=torch.jagged),
        "nested": torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
        "csr": torch.eye(3).to_sparse_csr(),
        "quantized": torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8),
        "fp4": torch.zeros(4, dtype=torch.uint8).view(torch.float4_e2m1fn_x2),
        "scales": torch.zeros(4, dtype=torch.uint8).view(torch.float8_e8m0fnu),
        "bits": torch.zeros(4, dtype=torch.uint8).view(torch.bits8),
        "half": torch.zeros(4, dtype=torch.complex32),
    }
    torch.save(content, tmp_path / "a.pt")
    assert {info.name: info.skipped for info in list_tensors(tmp_path / "a.pt")} == {
        "w": None,
        "negative": None,
        "jagged": "nested tensor",
        "nested": "nested tensor",
        "csr": "sparse or quantized tensor",
        "quantized": "sparse or quantized tensor",
        "fp4": "packed elements of less than a byte",
        "scales": "F8_E8M0 holds block scales, not values",
        "bits": "raw bits, of no format",
        "half": "complex tensor",
    }
    torch.save({"negative": negative}, tmp_path / "a.pt")  # mapped
    ((_, chunks),) = read_tensors(tmp_path / "a.pt")
    assert np.concatenate(list(chunks)).tolist() == negative.tolist()


@pytest.mark.torch
@pytest.mark.filterwarnings("ignore")
def test_no_dtype_of_torch_is_taken_for_longdouble() -> None:
    import torch

    for dtype in {value for value in vars(torch).values() if isinstance(value, torch.dtype)}:
        tensor = torch.empty(2, dtype=dtype, device="meta")
        (info,) = list_tensors({"w": tensor})
        assert "longdouble" not in (info.skipped or "")
    assert "longdouble" in (list_tensors({"w": np.ones(2, np.longdouble)})[0].skipped or "")


@pytest.mark.torch
def test_the_cure_for_later_protocols(tmp_path: Path) -> None:
    import torch

    torch.save({"w": torch.ones(1)}, tmp_path / "a.pt", pickle_protocol=4)
    with pytest.raises(TensorFileError, match="save it with pickle_protocol=2"):
        list_tensors(tmp_path / "a.pt")


def test_long_and_hostile_names_are_shown_short_and_escaped(tmp_path: Path) -> None:
    names = ["x" * 10**6, "\x1b[2J", "\u202eright"]
    write_safetensors(tmp_path / "a.safetensors", names)
    infos = list_tensors(tmp_path / "a.safetensors")
    labels = labels_of(infos)
    assert all(label.isprintable() and len(label) < 250 for label in labels)
    assert list(names_of(infos)) == names
    result = scan(tmp_path / "a.safetensors")
    assert [tensor["name"] for tensor in result.to_dict()["tensors"]] == names


@pytest.mark.parametrize("many", [scan, lambda f: sum_tensors(f, "bf16"), lambda f: scan_frozen(f, [1e-4])])
def test_a_file_is_opened_and_checked_once(
    many: Callable[[Path], object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from precision_lab.tensors import reading

    write_safetensors(tmp_path / "a.safetensors", ["w"])
    asked = []
    reader = reading._READERS[".safetensors"]
    monkeypatch.setitem(reading._READERS, ".safetensors", lambda *a: asked.append(a) or reader(*a))  # type: ignore[func-returns-value]
    many(tmp_path / "a.safetensors")
    assert len(asked) == 1


@pytest.mark.checkpoint
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads memory from /proc")
def test_a_hundred_thousand_tensors(tmp_path: Path) -> None:
    """The worst hundred are printed; memory stays far below what all rows, or all of the JSON, would take."""
    write_safetensors(tmp_path / "a.safetensors", [f"layer.{i}.weight" for i in range(100_000)])
    program = (
        "import pathlib, sys\n"
        "from precision_lab.cli import main\n"
        "sys.argv = ['precision-lab', 'scan', sys.argv[1], '--json', sys.argv[2]]\n"
        "try:\n"
        "    main()\n"
        "finally:\n"
        "    status = pathlib.Path('/proc/self/status').read_text().split()\n"
        "    print(status[status.index('VmHWM:') + 1], file=sys.stderr)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "a.safetensors"), str(tmp_path / "o.json")],
        capture_output=True,
        text=True,
        check=True,
        timeout=600,
    )
    assert done.stdout.count("layer.") == 2 * 100  # of range, and of precision
    assert "99,900 more are not" in " ".join(done.stdout.split())
    assert int(done.stderr.split()[-1]) < 450 << 10  # KiB; what four formats cost of a tensor takes 2.3 of them
    assert len(json.loads((tmp_path / "o.json").read_text())["tensors"]) == 100_000
