"""Every option that reads, with a command for it; from a number to an input."""

from __future__ import annotations

from dataclasses import dataclass, field
from random import Random
from typing import Literal

import click

from precision_lab.cli import app
from tests.fuzz.mutations import nasty, spoil_file, spoil_word
from tests.fuzz.seeds import KINDS, TRAIN, UNDERFLOW, good

OUTPUTS = {"--json": "out.json", "--html": "out.html", "--figure": "out.svg", "--markdown": "out.md"}
"""Options that write, and a place."""

LEFT_OUT = {
    "--workers": "starts as many processes as it says",
    "--dask": "connects to what it says",
}

TENSORS = ("safetensors", "npz", "npy", "pt", "folder", "index", "raw npy", "ckpt", "codes", "torch folder")
FORMATS = ("fp16", "bf16", "fp8_e4m3fn", "e5m2", "e6m9", "float16")
NUMBERS = ("1e-3", "0.5", "2")
SCHEDULES = ("cosine,warmup=1,final=0.1", "linear", "constant,warmup=1")
STORAGES = ("pure_bf16", "weights=bf16,master=fp32", "weights=fp16,loss_scale=torch", "all")


@dataclass(frozen=True)
class Door:
    """One option of a command.

    Attributes
    ----------
    command, option : str
        As click has them; the name of an argument.
    words : tuple of str
        What stands behind the command; ``{}`` is what is fuzzed, ``{npz}`` a good file of that kind.
    kinds, values : tuple of str
        What is fuzzed: files of these kinds, or these texts.
    weight : int
        How often, beside others.
    writes : tuple of str
        What may be written besides the outputs.
    amount : bool
        The number says how much work there is: only small ones.

    """

    command: str
    option: str
    words: tuple[str, ...]
    kinds: tuple[str, ...] = ()
    values: tuple[str, ...] = ()
    weight: int = 10
    writes: tuple[str, ...] = ()
    amount: bool = False


def _texts(
    command: str,
    words: tuple[str, ...],
    more: dict[str, tuple[str, ...]] | None = None,
    *,
    weight: int = 3,
    **options: tuple[str, ...],
) -> tuple[Door, ...]:
    """Doors of options whose text is fuzzed: by their names with _ for -."""
    named = {f"--{name.replace('_', '-')}": values for name, values in ((more or {}) | options).items()}
    return tuple(Door(command, name, (*words, name, "{}"), (), values, weight) for name, values in named.items())


def _amounts(command: str, words: tuple[str, ...], *options: str) -> tuple[Door, ...]:
    return tuple(Door(command, o, (*words, o, "{}"), values=("1", "3"), weight=1, amount=True) for o in options)


_LEAST = ("--storage", "pure_bf16", "--model", "least_squares", "--steps", "1", "--seeds", "1", "--workers", "1")
_OPTIMIZER: dict[str, tuple[str, ...]] = {
    **{"optimizer": ("adamw", "sgd"), "lr": NUMBERS, "beta1": ("0.9",), "beta2": ("0.999",), "eps": ("1e-8",)},
    **{"weight_decay": ("0.01",), "steps": ("100",)},
}
_CAST = ("--cast", "numpy:float16", "--source", "fp16", "--target", "fp16")
_LR = ("--lr", "1e-3")
_REPLAY = ("--replay", "{trace}")

DOORS: tuple[Door, ...] = (
    # files
    Door("scan", "files", ("{}",), (*TENSORS, "recording"), weight=300),
    Door("scan", "files", ("{}", "--dtype", "bf16", "-f", "e4m3", "-s", "1024"), (*TENSORS, "recording"), weight=100),
    Door("loss-scale", "files", ("{}",), (*TENSORS, "recording"), weight=60),
    Door("loss-scale", "--replay", ("--replay", "{}"), ("trace", "trace npy"), weight=120),
    Door("loss-scale", "--replay", ("--scaler", "all", "--replay", "{}"), ("trace", "trace npy"), weight=60),
    Door("accumulation", "files", ("{}", "-n", "64"), (*TENSORS, "recording"), weight=60),
    Door("swamping", "--weights", ("--lr", "1e-3", "--weights", "{}"), TENSORS, weight=60),
    Door("swamping", "--updates", ("--weights", "{npz}", "--updates", "{}"), (*TENSORS, "recording"), weight=60),
    Door("preflight", "checkpoint", ("{}", *_LR), (*TENSORS, "saved optimizer"), weight=60),
    Door("preflight", "checkpoint", ("{}",), ("saved optimizer",), weight=30),
    Door("preflight", "--updates", ("{npz}", *_LR, "--updates", "{}"), TENSORS, weight=60),
    *(
        Door("preflight", "--optimizer-state", ("{npz}", *words, "--optimizer-state", "{}"), kinds, weight=40)
        for words, kinds in ((_LR, ("moments npz", "moments pt")), ((), ("moments pt", "saved optimizer")))
    ),
    Door(
        *(
            "preflight",
            "--parameter-names",
            ("{npz}", "--optimizer-state", "{saved optimizer}", "--parameter-names", "{}"),
        ),
        ("names",),
        weight=20,
    ),
    Door("preflight", "--gradients", ("{npz}", *_LR, "--gradients", "{}"), (*TENSORS, "recording"), weight=60),
    Door(
        *("train", "--data", ("--model", "transformer", *_LEAST[:2], *_LEAST[4:], "--batch", "1", "--data", "{}")),
        ("text",),
        weight=30,
    ),
    Door(
        "train", "--checkpoint", (*TRAIN[1:], "--checkpoint", "{}"), ("checkpoint",), weight=80, writes=("runs.jsonl",)
    ),
    Door("report", "--output", ("memory", "--workers", "1", "-o", "{}"), ("kept memory",), weight=16, writes=("r/",)),
    Door(
        *("report", "--output", ("hyperparameters", "--workers", "1", "-o", "{}"), ("kept hyperparameters",)),
        weight=5,
        writes=("r/",),
    ),
    Door("underflow", "--output", (*UNDERFLOW[1:], "-o", "{}"), ("kept underflow",), weight=5, writes=("u/",)),
    # text
    Door("inspect", "values", ("{}",), values=("1e-7", "1/3", "2^-25", "1.5*2^-14", "0x1.8p-3", "inf"), weight=60),
    Door("inspect", "--format", ("1e-7", "-f", "{}"), values=FORMATS, weight=30),
    *_texts("scan", ("{npz}",), format=FORMATS, loss_scale=("1024",)),
    Door("scan", "--dtype", ("{raw npy}", "--dtype", "{}"), values=("bf16", "fp16"), weight=6),
    *_texts("loss-scale", ("{npz}",), format=FORMATS, margin=("1",), scale=("1000", "1024")),
    Door("loss-scale", "--dtype", ("{raw npy}", "--dtype", "{}"), values=("bf16",), weight=2),
    *_texts("loss-scale", _REPLAY, scaler=("torch", "all", "1024", "deepspeed", "fairseq"), weight=20),
    *_texts("accumulation", ("{npz}",), format=FORMATS, seed=("1",)),
    Door("accumulation", "--dtype", ("{raw npy}", "--dtype", "{}"), values=("bf16",), weight=2),
    *_amounts("accumulation", ("{npz}",), "--limit"),
    *_texts("swamping", ("--weights", "{npz}"), update_size=NUMBERS, lr=NUMBERS),
    *_texts("swamping", ("--weights", "{npz}", "--lr", "1e-3"), format=FORMATS),
    Door("swamping", "--dtype", ("--weights", "{raw npy}", "--lr", "1", "--dtype", "{}"), values=("bf16",), weight=2),
    *_texts("hyperparameters", ("-f", "bf16"), _OPTIMIZER),
    *_texts("hyperparameters", ("-f", "bf16", "--optimizer", "sgd"), momentum=("0.9",)),
    *_texts("hyperparameters", (), format=FORMATS),
    *_texts("memory", (), parameters=("7e9", "124_000_000"), optimizer=("adamw", "momentum"), activations=("1e6",)),
    *_texts("memory", (), storage=STORAGES, weight=30),
    *_texts("memory", (), ranks=("8",)),
    *_texts("preflight", ("{npz}", *_LR), _OPTIMIZER, tolerance=("0.1",)),
    *_texts("preflight", ("{npz}", *_LR, "--optimizer", "sgd", "--gradients", "{npz}"), momentum=("0.9",)),
    *_texts("preflight", ("{npz}", *_LR), storage=STORAGES, weight=10),
    Door("preflight", "--dtype", ("{raw npy}", *_LR, "--dtype", "{}"), values=("bf16",), weight=2),
    *_texts("train", _LEAST[2:], storage=STORAGES[:3], weight=10),
    *_texts("train", _LEAST, model=("least_squares",), optimizer=("sgd", "adamw"), lr=NUMBERS),
    *_texts("train", _LEAST, schedule=SCHEDULES, beta2=("0.95",), weight_decay=("0.1",)),
    *_amounts("train", _LEAST, "--steps", "--seeds", "--batch"),
    Door("claims", "keys", ("{}",), values=("fp16-1e-7", "fp16-2^-24", "bf16-range"), weight=20),
    *_texts("claims", ("fp16-1e-7",), mode=("ties_to_even", "toward_zero")),
    Door(
        "report",
        "names",
        ("--workers", "1", "-o", "r", "memory", "{}"),
        values=("memoryx", "nothing"),
        weight=6,
        writes=("r/",),
    ),
    Door(
        "underflow", "--steps", ("-o", "u", "--steps", "{}"), values=("3", "30"), weight=1, writes=("u/",), amount=True
    ),
    Door("underflow", "--seed", (*UNDERFLOW[1:], "-o", "u", "--seed", "{}"), values=("x",), weight=1, writes=("u/",)),
    Door(
        "verify", "--cast", (*_CAST[2:], "--cast", "{}"), values=("numpy:float99", "nothing:there", "json:x"), weight=30
    ),
    Door("verify", "--format", ("-f", "{}"), values=("fp99", "e99m99"), weight=6),
    *_texts("verify", _CAST[:2] + _CAST[4:], source=("fp16x",)),
    *_texts("verify", _CAST[:4], target=("fp16x",)),
    *_texts("verify", _CAST, mode=("up",), nan=("quietly",)),
)

_EVERY = [door for door in DOORS for _ in range(door.weight)]


def parameters() -> dict[tuple[str, str], click.Parameter]:
    """Return every parameter of every command: the long option, or the name of an argument."""
    return {(name, p.opts[-1]): p for name, command in app.commands.items() for p in command.params}


# ---- inputs ----

Special = Literal["folder", "fifo", "zeros", "null", "full", "dangling", "loop", "empty", "unreadable", "socket"]
SPECIALS: tuple[Special, ...] = (
    *("folder", "fifo", "zeros", "null", "full", "dangling", "loop", "empty", "unreadable", "socket"),
)
"""What may be where a file is expected."""


@dataclass(frozen=True)
class Case:
    """One input.

    Attributes
    ----------
    number : int
        Which one.
    kind, what : str
        What is spoilt, and how.
    words : tuple of str
        Behind ``precision-lab``.
    files : dict of str to bytes or str
        What is in the folder before: contents, or one of `SPECIALS`.
    writes : tuple of str
        Which paths may be written.

    """

    number: int
    kind: str
    what: str
    words: tuple[str, ...]
    files: dict[str, bytes | Special] = field(repr=False)
    writes: tuple[str, ...] = ()


def unspoilt() -> list[Case]:
    """Return the good inputs of every door that reads files: they must be read."""
    found = []
    for door in DOORS:
        for kind in door.kinds:
            files: dict[str, bytes | Special] = dict(good(kind))
            words = ("--dtype", "bf16") if kind == "raw npy" and "--dtype" not in door.words else ()
            found.append(
                _case(door, -1, kind, f"{door.command} {door.option}", KINDS[kind].main, files, Random(0), words)
            )
    return found


def case(seed: int, number: int) -> Case:
    """Return an input: the same one for the same two numbers."""
    rng = Random(f"{seed} {number}")
    door = rng.choice(_EVERY)
    if not door.kinds:
        text = rng.choice(door.values)
        if rng.random() < 0.95:
            text = spoil_word(text, rng, door.values).replace("\0", "")
        if door.amount:
            text = text[:3]
        text = text.encode("utf-8", "surrogatepass").decode("utf-8", "surrogateescape")  # as words of a command are
        return _case(door, number, f"{door.command} {door.option}", "text", text, {}, rng)
    kind = rng.choice(door.kinds)
    files: dict[str, bytes | Special] = dict(good(kind))
    main = KINDS[kind].main
    path = rng.choice(list(files))
    content = files[path]
    assert isinstance(content, bytes)
    choice = rng.random()
    if choice < 0.05:
        what: str = rng.choice(SPECIALS)
        place = rng.choice((main, path))
        files = {name: c for name, c in files.items() if not f"{name}/".startswith(f"{place}/")}
        files[place] = what  # type: ignore[assignment]
    elif choice < 0.08 and main == path:  # the name
        what = "name"
        text = nasty(rng).encode("utf-8", "surrogatepass").decode("utf-8", "surrogateescape")
        main = "".join(c for c in text if c not in "/\0")[:60] + main
        files[main] = files.pop(path)
    elif choice < 0.11:
        what = "splice"
        other = next(c for c in good(rng.choice(list(KINDS))).values())
        files[path] = content[: rng.randrange(len(content))] + other[rng.randrange(len(other)) :]
    else:
        what, files[path] = spoil_file(path, content, rng)
    return _case(door, number, kind, what, main, files, rng)


def _case(
    door: Door,
    number: int,
    kind: str,
    what: str,
    word: str,
    files: dict[str, bytes | Special],
    rng: Random,
    more: tuple[str, ...] = (),
) -> Case:
    words = [door.command]
    for part in door.words:
        if part == "{}":
            words.append(word)
        elif part.startswith("{"):
            other = part[1:-1]
            beside = {f"beside/{name}": content for name, content in good(other).items()}
            files = files | beside
            words.append(f"beside/{KINDS[other].main}")
        else:
            words.append(part)
    often = {"--json": 0.3, "--html": 0.05, "--figure": 0.03, "--markdown": 0.1}
    taken = {option for command, option in parameters() if command == door.command}
    for option, place in OUTPUTS.items():
        if option in taken and rng.random() < often[option]:
            more = (*more, option, place)
    writes = (*door.writes, *(place for place in more if place in OUTPUTS.values()))
    return Case(number, kind, what, (*words, *more), files, (word, *writes) if door.writes else writes)
