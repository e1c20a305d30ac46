"""PyTorch's files: what is read, and that nothing in them is ever run. Most of it needs torch (make test-all)."""

from __future__ import annotations

import io
import pickle
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from precision_lab import TensorFileError, list_tensors, preflight, read_tensors, scan
from precision_lab.analysis.swamping_scan import scan_frozen


class Bomb:
    """Writes a file when it is unpickled, if anything lets it."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.place,))


def refusal(file: Path) -> str:
    with pytest.raises(TensorFileError) as caught:
        list_tensors(file)
    message = str(caught.value)
    assert message.startswith((f"{file}: ", f"{file}, tensor "))
    assert message.isprintable()
    assert len(message) < 500 + len(str(file))
    return message


def test_without_torch_the_cure_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    (tmp_path / "a.pt").write_bytes(pickle.dumps(Bomb(tmp_path / "boom")))
    assert "which is not installed; pip install 'precision-lab[torch]', or save it as .safetensors" in refusal(
        tmp_path / "a.pt"
    )
    assert not (tmp_path / "boom").exists()


def test_a_folder_is_read_without_them(tmp_path: Path) -> None:
    (tmp_path / "a.pt").write_bytes(b"anything")
    np.save(tmp_path / "w.npy", np.ones(3))
    assert [(info.name, info.skipped) for info in list_tensors(tmp_path)] == [
        ("w", None),
        ("a.pt", "not read beside .npy files"),
    ]


def values(file: Any) -> dict[str, np.ndarray]:
    return {
        info.name: np.concatenate([np.array(chunk) for chunk in chunks] or [np.zeros(0)]).reshape(info.shape)
        for info, chunks in read_tensors(file, chunk_bytes=16)
        if not info.skipped
    }


@pytest.mark.torch
def test_tensors_are_what_torch_saved(torch: Any, tmp_path: Path) -> None:
    wide = torch.randn(5, 7, dtype=torch.float64)
    content: dict[str, Any] = {
        "wide": wide,
        "turned": wide.float().T,
        "brain": torch.randn(9).bfloat16(),
        "half": torch.randn(3).half(),
        "small": torch.randn(4).to(torch.float8_e4m3fn),
        "deep": {"list": [torch.ones(2), torch.zeros(0)], "epoch": 3},
        "number": torch.tensor(2.5),
    }
    for legacy in (False, True):
        if legacy:  # torch does not read float8 back from its old format
            del content["small"]
        torch.save(content, tmp_path / "a.pt", _use_new_zipfile_serialization=not legacy)
        found = values(tmp_path / "a.pt")
        assert np.array_equal(found["wide"], wide.numpy())
        assert np.array_equal(found["turned"], wide.float().T.numpy())
        assert np.array_equal(found["brain"], content["brain"].float().numpy())
        assert legacy or np.array_equal(found["small"], content["small"].float().numpy())
        assert found["deep.list.0"].tolist() == [1, 1]
        assert found["deep.list.1"].size == 0
        assert found["number"] == 2.5
    dtypes = {info.name: info.dtype for info in list_tensors(tmp_path / "a.pt")}
    assert dtypes["wide"] == "float64"
    assert dtypes["brain"] == "bfloat16"


def rewrite(old: Path, new: Path, change: Callable[[str, bytes], bytes]) -> None:
    """Write an archive again, with what `change` makes of each member."""
    with zipfile.ZipFile(old) as archive:
        members = {name: change(name, archive.read(name)) for name in archive.namelist()}
    with zipfile.ZipFile(new, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)


@pytest.mark.torch
def test_what_torch_would_touch_is_not_mapped(torch: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that is cut short while its mapped elements are touched would end the process."""
    asked = []
    load = torch.load

    def seen(file: Path, mmap: bool, **more: Any) -> Any:
        asked.append(mmap)
        return load(file, mmap=mmap, **more)

    monkeypatch.setattr(torch, "load", seen)
    torch.save({"w": torch.ones(3)}, tmp_path / "plain.pt")
    torch.save({"w": torch.ones(3), "s": torch.eye(3).to_sparse()}, tmp_path / "sparse.pt")

    def turned(name: str, content: bytes) -> bytes:
        if name.endswith("/byteorder"):
            return b"big" if sys.byteorder == "little" else b"little"
        return np.frombuffer(content, np.uint32).byteswap().tobytes() if "/data/" in name else content

    rewrite(tmp_path / "plain.pt", tmp_path / "turned.pt", turned)
    for kind in ("plain", "sparse", "turned"):
        assert values(tmp_path / f"{kind}.pt")["w"].tolist() == [1, 1, 1]
    assert asked == [True, False, False]


@pytest.mark.torch
def test_what_is_skipped_and_why(torch: Any, tmp_path: Path) -> None:
    w = torch.randn(3, 4)
    content = {"w": w, "tied": w, "part": w[1:], "ids": torch.arange(3), "sparse": torch.eye(3).to_sparse()}
    torch.save(content | {"endless": torch.ones(1).expand(10**12)}, tmp_path / "a.pth")
    assert {info.name: info.skipped for info in list_tensors(tmp_path / "a.pth")} == {
        "w": None,
        "tied": "the same data as 'w'",
        "part": None,
        "ids": "integer tensor",
        "sparse": "sparse or quantized tensor",
        "endless": "an expanded view: it has more elements than are stored",
    }
    assert scan(tmp_path / "a.pth").total.count == 12 + 8


@pytest.mark.torch
def test_code_is_refused_and_not_run(torch: Any, tmp_path: Path) -> None:
    boom = tmp_path / "boom"
    torch.save({"w": torch.ones(2), "x": Bomb(boom)}, tmp_path / "a.pt")
    torch.load(tmp_path / "a.pt", weights_only=False)
    boom.unlink()  # the bomb works
    assert "nothing of it was run; save the state_dict() alone" in refusal(tmp_path / "a.pt")
    for protocol in (2, 4, 5):
        (tmp_path / "b.pt").write_bytes(pickle.dumps(Bomb(boom), protocol))
        refusal(tmp_path / "b.pt")
    torch.save(torch.nn.Linear(2, 2), tmp_path / "c.pth")
    assert "torch.nn.modules.linear.Linear" in refusal(tmp_path / "c.pth")
    with pytest.raises(TensorFileError):
        preflight({"w": np.ones(2)}, optimizer_state=tmp_path / "a.pt")
    assert not boom.exists()


@pytest.mark.torch
def test_corrupt_files(torch: Any, tmp_path: Path) -> None:
    torch.save({"w": torch.ones(1000)}, tmp_path / "good.pt")
    good = (tmp_path / "good.pt").read_bytes()
    wrong = bytearray(good)
    wrong[200:260] = b"\xff" * 60
    for content in (good[:900], good[:-1], bytes(wrong), b"text " * 100, b"\x80\x02.", b"PK\x03\x04"):
        (tmp_path / "bad.pt").write_bytes(content)
        assert "torch cannot read it as tensors only" in refusal(tmp_path / "bad.pt")
    (tmp_path / "bad.pt").write_bytes(b"")
    assert "empty" in refusal(tmp_path / "bad.pt")
    nested: Any = torch.ones(1)
    for _ in range(20):
        nested = {"a": nested}
    torch.save(nested, tmp_path / "bad.pt")
    assert "within each other" in refusal(tmp_path / "bad.pt")
    torch.save({"a.b": torch.ones(1), "a": {"b": torch.ones(2)}}, tmp_path / "bad.pt")
    assert "two tensors of this name" in refusal(tmp_path / "bad.pt")


@pytest.mark.torch
def test_memory_does_not_grow_with_the_file(torch: Any, tmp_path: Path) -> None:
    """Mapped pages come and go; what is allocated stays at a chunk."""
    torch.save({f"w{i}": torch.zeros(1 << 23) for i in range(4)}, tmp_path / "big.pt")
    program = (
        "import sys, precision_lab, torch, pathlib\n"
        "def anonymous():\n"
        "    lines = pathlib.Path('/proc/self/status').read_text().splitlines()\n"
        "    return int(next(line.split()[1] for line in lines if line.startswith('RssAnon')))\n"
        "from precision_lab.numerics.environment import load_kernels\n"
        "load_kernels()\n"  # which takes memory, too
        "precision_lab.ExponentHistogram.of([1.0])\n"
        "before = anonymous()\n"
        "assert precision_lab.scan(sys.argv[1]).total.count == 1 << 25\n"
        "print(anonymous() - before)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "big.pt")], capture_output=True, text=True, check=True
    )
    assert int(done.stdout) < 40 << 10  # KiB, of 128 MiB in the file


@pytest.mark.torch
def test_a_module_in_memory(torch: Any) -> None:
    class Tied(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.a = torch.nn.Linear(3, 4).to(torch.bfloat16)
            self.b = torch.nn.BatchNorm1d(4)
            self.again = self.a

    model = Tied()
    assert [(t.info.name, t.info.dtype) for t in scan(model).tensors] == [
        *(("a.weight", "bfloat16"), ("a.bias", "bfloat16"), ("b.weight", "float32"), ("b.bias", "float32"))
    ]
    assert scan(model.state_dict()).total.count == 2 * (12 + 4) + 8  # under every name, without the running averages
    frozen = scan_frozen(model, [1e-3])
    assert [str(fmt) for fmt in frozen.formats] == ["bf16"]


# ---- other names of files, folders ----


def tied(torch: Any) -> Any:
    """A model whose output layer is its embedding, as most have."""
    model = torch.nn.Sequential(torch.nn.Embedding(8, 4), torch.nn.Linear(4, 8, bias=False))
    model[1].weight = model[0].weight
    return model


@pytest.mark.torch
@pytest.mark.parametrize("suffix", [".bin", ".ckpt", ".pkl", ".pth", ".BIN"])
def test_the_content_decides_and_not_the_name(torch: Any, tmp_path: Path, suffix: str) -> None:
    torch.save(tied(torch).state_dict(), tmp_path / "a.pt")
    file = tmp_path / f"a{suffix}"
    file.write_bytes((tmp_path / "a.pt").read_bytes())
    assert [info.name for info, _ in read_tensors(file)] == ["0.weight", "1.weight"]
    assert scan(file).total == scan(tmp_path / "a.pt").total
    assert scan(file).total.count == 32  # once, though tied
    assert scan_frozen(file, [1e-3]).total == scan_frozen(tmp_path / "a.pt", [1e-3]).total
    boom = tmp_path / "boom"
    torch.save({"w": torch.ones(2), "x": Bomb(boom)}, file)
    assert "nothing of it was run" in refusal(file)
    for content in (b"GGUF\x03\0\0\0" + bytes(100), pickle.dumps({"w": [1.0]}, 2), b"text", b"\x93NUMPY" + bytes(90)):
        file.write_bytes(content)
        assert "torch cannot read it as tensors only" in refusal(file)
    assert not boom.exists()


@pytest.mark.torch
def test_a_checkpoint_of_lightning(torch: Any, tmp_path: Path) -> None:
    """As its trainer writes them: the weights beside all else that it keeps."""
    model, optimizer = trained(torch, named=False)
    callback = "ModelCheckpoint{'monitor': 'loss', 'mode': 'min'}"
    content = {
        "epoch": 3,
        "pytorch-lightning_version": "2.5.0",
        "state_dict": {f"model.{name}": tensor for name, tensor in model.state_dict().items()},
        "loops": {"fit_loop": {"state_dict": {}}},
        "callbacks": {callback: {"best_model_score": torch.tensor(0.5), "monitor": "loss"}},
        "optimizer_states": [optimizer.state_dict()],
        "lr_schedulers": [{"base_lrs": [1e-3], "last_epoch": 3}],
        "hyper_parameters": {"width": 8},
    }
    torch.save(content, tmp_path / "last.ckpt")
    result = scan_frozen(tmp_path / "last.ckpt", [1e-3])
    assert {info.name for info, _ in result.tensors} == {f"state_dict.model.{name}" for name in model.state_dict()}
    assert result.total[0].count == sum(p.numel() for p in model.parameters())
    assert {info.skipped for info in result.skipped} == {"state of the optimizer, no weights", "a buffer, no weights"}


@pytest.mark.torch
def test_cures_that_are_printed(torch: Any, tmp_path: Path) -> None:
    model = tied(torch)
    torch.save(model, tmp_path / "whole.pt")
    assert "save the state_dict() alone" in refusal(tmp_path / "whole.pt")
    torch.save(model.state_dict(), tmp_path / "alone.pt")
    assert scan(tmp_path / "alone.pt").total.count == 32
    torch.save(model.state_dict(), tmp_path / "late.pt", pickle_protocol=4)
    assert "save it with pickle_protocol=2" in refusal(tmp_path / "late.pt")
    torch.save(model.state_dict(), tmp_path / "late.pt", pickle_protocol=2)
    assert scan(tmp_path / "late.pt").total.count == 32
    deep: Any = model.state_dict()
    for _ in range(20):
        deep = {"a": deep}
    torch.save(deep, tmp_path / "deep.pt")
    assert "save the state_dict() alone" in refusal(tmp_path / "deep.pt")
    codes = {"l.weight": model[0].weight.detach().to(torch.float8_e4m3fn), "l.weight_scale": torch.tensor([0.5])}
    torch.save(codes, tmp_path / "codes.pt")
    with pytest.raises(TensorFileError, match="dequantize them to bf16 and save that"):
        scan(tmp_path / "codes.pt")
    values = codes["l.weight"].float() * codes["l.weight_scale"]
    torch.save({"l.weight": values.bfloat16()}, tmp_path / "values.pt")
    assert scan(tmp_path / "values.pt").total.max_abs == values.abs().max().item()


@pytest.mark.torch
def test_the_extra_state_of_layers_is_bytes_and_left_out(torch: Any, tmp_path: Path) -> None:
    extra = io.BytesIO(b"history of fp8 scales")
    torch.save({"l.weight": torch.ones(3), "l._extra_state": extra}, tmp_path / "a.pt")
    torch.save({"l.weight": torch.ones(3), "l._extra_state": torch.zeros(9, dtype=torch.uint8)}, tmp_path / "b.pt")
    assert [(info.name, info.skipped) for info in list_tensors(tmp_path / "a.pt")] == [("l.weight", None)]
    assert [(info.name, info.skipped) for info in list_tensors(tmp_path / "b.pt")] == [
        ("l.weight", None),
        ("l._extra_state", "integer tensor"),
    ]
    torch.save({"l.weight": torch.ones(3), "x": io.StringIO("text")}, tmp_path / "c.pt")
    assert "io.StringIO, not tensors only" in refusal(tmp_path / "c.pt")
    with pytest.raises(pickle.UnpicklingError):
        torch.load(tmp_path / "a.pt", weights_only=True)  # what was let through was let through there only


@pytest.mark.torch
def test_a_folder_of_torch(torch: Any, tmp_path: Path) -> None:
    """As a trainer leaves one: the weights, the optimizer, and arguments that are no tensors."""
    model, optimizer = trained(torch, named=False)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")
    torch.save({"last_epoch": 3}, tmp_path / "scheduler.pt")
    torch.save(Bomb(tmp_path / "boom"), tmp_path / "training_args.bin")
    result = scan_frozen(tmp_path, [1e-3])
    assert {info.file.name for info, _ in result.tensors} == {"pytorch_model.bin"}
    assert result.total[0].count == sum(p.numel() for p in model.parameters())
    skipped = {info.file.name: info.skipped for info in result.skipped}
    assert skipped["optimizer.pt"] == "state of the optimizer, no weights"
    assert "not tensors only" in str(skipped["training_args.bin"])
    assert not (tmp_path / "boom").exists()

    from safetensors.torch import save_file

    save_file(model.state_dict(), tmp_path / "model.safetensors")
    infos = list_tensors(tmp_path)
    assert {info.file.name for info in infos if not info.skipped} == {"model.safetensors"}
    assert {info.name: info.skipped for info in infos if info.skipped} == dict.fromkeys(
        ("optimizer.pt", "pytorch_model.bin", "scheduler.pt", "training_args.bin"), "not read beside .safetensors files"
    )
    whole = (tmp_path / "pytorch_model.bin").read_bytes()
    (tmp_path / "pytorch_model.bin").write_bytes(whole[: len(whole) // 2])
    assert scan_frozen(tmp_path, [1e-3]).total == result.total
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(TensorFileError, match="torch cannot read it"):  # a truncated model does not pass
        list_tensors(tmp_path)
    (tmp_path / "pytorch_model.bin").unlink()
    (tmp_path / "optimizer.pt").unlink()
    (tmp_path / "scheduler.pt").unlink()
    with pytest.raises(TensorFileError, match="not tensors only"):
        list_tensors(tmp_path)


# ---- optimizers ----


def trained(torch: Any, named: bool, **options: Any) -> tuple[Any, Any]:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(5, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3))
    parameters = model.named_parameters() if named else model.parameters()
    optimizer = torch.optim.Adam(parameters, lr=1e-3, betas=(0.9, 0.95), eps=1e-6, **options)
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.randn(16, 5)).square().mean().backward()
        optimizer.step()
    return model, optimizer


@pytest.mark.torch
@pytest.mark.parametrize("kind", ["object", "state_dict", "file", "named file", "checkpoint"])
def test_the_moments_of_torch_give_its_next_update(torch: Any, tmp_path: Path, kind: str) -> None:
    """With the gradient at zero, torch's own next update differs by the decay of the moments alone; so compare t."""
    model, optimizer = trained(torch, named=kind == "named file")
    torch.save(model.state_dict(), tmp_path / "w.pt")
    torch.save(optimizer.state_dict(), tmp_path / "o.pt")
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "both.pt")
    weights, state = {
        "object": (model, optimizer),
        "state_dict": (model, optimizer.state_dict()),
        "file": (tmp_path / "w.pt", tmp_path / "o.pt"),
        "named file": (tmp_path / "w.pt", tmp_path / "o.pt"),
        "checkpoint": (model, tmp_path / "both.pt"),
    }[kind]
    h: dict[str, Any] = {"lr": 1e-3, "beta1": 0.9, "beta2": 0.95, "eps": 1e-6}
    report = preflight(weights, optimizer="adam", optimizer_state=state, **h)
    for name, p in model.named_parameters():
        s = optimizer.state[p]
        m, v = s["exp_avg"].double() / (1 - 0.9**3), s["exp_avg_sq"].double() / (1 - 0.95**3)
        u = (-1e-3 * m / (v.sqrt() + 1e-6)).float()
        expected = preflight({name: p}, optimizer="adam", updates={name: u}, **h)
        found = next(t for t in report.tensors if t.info.name == name)
        ours = [n for way, n in found.standstill.items() if way.reach == 1]
        theirs = [n for way, n in expected.total.items() if way.reach == 1]
        assert ours == theirs


@pytest.mark.torch
def test_numbers_that_say_too_little_are_refused(torch: Any, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    model, optimizer = trained(torch, named=False)
    save_file(model.state_dict(), tmp_path / "w.safetensors")
    torch.save(optimizer.state_dict(), tmp_path / "o.pt")
    state = tmp_path / "o.pt"
    report = preflight(tmp_path / "w.safetensors", optimizer_state=state)  # all shapes differ
    assert report.total == preflight(model, optimizer_state=optimizer).total
    alike = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Linear(3, 3))
    twice = torch.optim.Adam(alike.parameters())
    alike(torch.ones(1, 3)).sum().backward()
    twice.step()
    save_file(alike.state_dict(), tmp_path / "alike.safetensors")
    with pytest.raises(TensorFileError, match=r"numbered, not named, and the weights are not in the model's order"):
        preflight(tmp_path / "alike.safetensors", optimizer_state=twice)
    with pytest.raises(TensorFileError, match="there are 4 for 5 tensors of weights"):
        preflight(model.state_dict() | {"more": torch.ones(1)}, optimizer_state=state)
    other = torch.nn.Sequential(torch.nn.Linear(5, 9), torch.nn.Tanh(), torch.nn.Linear(9, 3))
    with pytest.raises(TensorFileError, match="are not those of the weights in their places"):
        preflight(other, optimizer_state=state)
    groups = torch.optim.Adam([{"params": [p]} for p in model.parameters()])
    model(torch.randn(2, 5)).sum().backward()
    groups.step()
    assert preflight(model, optimizer_state=groups).parameters == sum(p.numel() for p in model.parameters())


@pytest.mark.torch
def test_a_parameter_that_never_got_a_gradient(torch: Any) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))
    model[0].requires_grad_(False)
    optimizer = torch.optim.AdamW(model.parameters(), foreach=False)
    model(torch.randn(4, 2)).sum().backward()
    optimizer.step()
    report = preflight(model, optimizer_state=optimizer)
    assert [i.name for i in report.skipped] == ["0.weight", "0.bias"]
    assert [t.info.name for t in report.tensors] == ["1.weight", "1.bias"]


def bomb(calls: bytes, depth: int = 12) -> bytes:
    """A pickle of lists that hold the one before ten times, which is then passed to a call."""
    lists = b"".join(b"](" + b"h%c" % (k + 9) * 10 + b"eq%c" % (k + 10) for k in range(depth))
    return b"\x80\x02}(X\x01\x00\x00\x00w(]q\x09" + lists + calls + b"tu."


@pytest.mark.torch
@pytest.mark.parametrize("calls", [b"h\x09h\x15R", b"ccollections\nOrderedDict\nh\x15R", b"h\x15Q", b"h\x15h\x09\x81"])
@pytest.mark.parametrize("old", [False, True])
def test_lists_without_end_are_not_passed_to_a_call(torch: Any, tmp_path: Path, calls: bytes, old: bool) -> None:
    """torch refuses the call with a message that would write them all out: 10^12 of them."""
    file = tmp_path / "a.pt"
    torch.save({"w": torch.ones(3)}, file, _use_new_zipfile_serialization=not old)
    if old:
        content = file.read_bytes()
        file.write_bytes(content[: content.index(b"}q\x00X\x01\x00\x00\x00w")] + bomb(calls))
    else:
        rewrite(file, file, lambda name, content: bomb(calls) if name.endswith("data.pkl") else content)
    assert "torch cannot read it as tensors only (ValueError: a call in it is given lists without end); " in refusal(
        file
    )


@pytest.mark.torch
def test_lists_without_end_that_no_call_is_given_are_entered_once(torch: Any, tmp_path: Path) -> None:
    """Here they are put into what a call has made of some text."""
    torch.save({"w": torch.ones(3)}, tmp_path / "good.pt")
    held = b"ccollections\nCounter\nX\x01\x00\x00\x00a\x85RK\x01h\x15s"
    rewrite(tmp_path / "good.pt", tmp_path / "a.pt", lambda name, old: bomb(held) if name.endswith("data.pkl") else old)
    assert list_tensors(tmp_path / "a.pt") == []
