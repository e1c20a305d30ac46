"""What the casts of other libraries get wrong: `check_cast` on each, and a table of it in docs/peers.md.

Every cast is held to a single rounding, ties to even. Where a library documents something else (it saturates, say), the
table says so just the same: what matters here is what becomes of the number.
"""

from __future__ import annotations

import argparse
import platform
from collections.abc import Callable, Iterator
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from precision_lab import get_format
from precision_lab.testing.cast_report import CastReport
from precision_lab.testing.casts import check_cast

Array: TypeAlias = NDArray[Any]
OUTPUT = Path(__file__).parents[1] / "docs" / "peers.md"
SOURCES = ("fp32", "float64")
LIBRARIES = ("numpy", "ml_dtypes", "torch", "gfloat", "pychop", "apytypes", "numkong")

# what the libraries' own trackers say of it: by library, the beginning of a fault's name, and the source
KNOWN: dict[tuple[str, str, str], str] = {
    ("ml_dtypes", "rounds twice, via fp32", "float64"): "[#401](https://github.com/jax-ml/ml_dtypes/pull/401), open",
    ("torch", "saturates", "any"): "[#178817](https://github.com/pytorch/pytorch/pull/178817): meant so, since 2.12",
}


class Peer(NamedTuple):
    """One cast of a library."""

    library: str
    call: str
    target: str
    cast: Callable[[Array], Any]


def of_numpy() -> Iterator[Peer]:
    yield Peer("numpy", "astype(float16)", "fp16", lambda x: x.astype(np.float16))
    yield Peer("numpy", "astype(float32)", "fp32", lambda x: x.astype(np.float32))


def of_ml_dtypes() -> Iterator[Peer]:
    names = ("bf16", "fp8_e4m3fn", "fp8_e5m2", "fp8_e4m3fnuz", "fp6_e3m2fn", "fp4_e2m1fn")
    for fmt in map(get_format, names):
        yield Peer("ml_dtypes", f"astype({fmt.dtype})", fmt.name, partial(np.asarray, dtype=fmt.dtype))


def of_torch() -> Iterator[Peer]:
    import torch

    names = {"bfloat16": "bf16", "float16": "fp16", "float8_e4m3fn": "fp8_e4m3fn", "float8_e5m2": "fp8_e5m2"}
    for name, target in names.items():

        def cast(x: Array, name: str = name) -> Array:
            result = torch.from_numpy(x).to(getattr(torch, name))
            codes: Array = result.view(torch.uint8 if result.itemsize == 1 else torch.uint16).numpy()
            return codes

        yield Peer("torch", f"to({name})", target, cast)


def of_gfloat() -> Iterator[Peer]:
    import gfloat
    from gfloat import formats

    names = {"binary16": "fp16", "bfloat16": "bf16", "ocp_e4m3": "fp8_e4m3fn", "ocp_e5m2": "fp8_e5m2"}
    names |= {"ocp_e2m3": "fp6_e2m3fn", "ocp_e2m1": "fp4_e2m1fn"}

    def cast(x: Array, info: Any, saturate: bool) -> Array:
        finite = np.nan_to_num(x.astype(np.float64), nan=0.0, posinf=np.inf, neginf=-np.inf) if saturate else x
        return np.asarray(gfloat.round_ndarray(info, finite.astype(np.float64), sat=saturate))

    for name, target in names.items():
        info, saturate = getattr(formats, f"format_info_{name}"), get_format(target).saturates
        call = f"round_ndarray({name}{', sat=True' if saturate else ''})"
        yield Peer("gfloat", call, target, partial(cast, info=info, saturate=saturate))


def of_pychop() -> Iterator[Peer]:
    import pychop

    pychop.backend("numpy")
    for target in ("fp16", "bf16", "fp8_e5m2"):
        fmt = get_format(target)
        chop = pychop.Chop(exp_bits=fmt.exponent_bits, sig_bits=fmt.mantissa_bits)
        call = f"Chop({fmt.exponent_bits}, {fmt.mantissa_bits})"
        yield Peer("pychop", call, target, chop)


def of_apytypes() -> Iterator[Peer]:
    import apytypes

    def cast(x: Array, widths: tuple[int, int]) -> Array:
        return np.asarray(apytypes.APyFloatArray.from_array(x, *widths).to_numpy())

    for target in ("fp16", "bf16", "fp8_e5m2"):
        fmt = get_format(target)
        widths = fmt.exponent_bits, fmt.mantissa_bits
        yield Peer("apytypes", f"from_array{widths}", target, partial(cast, widths=widths))


def of_numkong() -> Iterator[Peer]:
    import numkong

    names = {"bfloat16": "bf16", "float16": "fp16", "e4m3": "fp8_e4m3fn", "e5m2": "fp8_e5m2"}
    names |= {"e2m3": "fp6_e2m3fn", "e3m2": "fp6_e3m2fn"}

    def cast(x: Array, name: Any) -> Array:
        return np.asarray(numkong.astype(x, name))

    for name, target in names.items():
        yield Peer("numkong", f"astype({name})", target, partial(cast, name=name))


def installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def known(library: str, fault: str, source: str) -> str:
    for (where, beginning, of), text in KNOWN.items():
        if where == library and fault.startswith(beginning) and of in ("any", source):
            return text
    return "–"


def rows(peer: Peer, source: str, report: CastReport) -> Iterator[tuple[str, ...]]:
    """One row a fault."""
    title = (peer.library, f"`{peer.call}`", source, peer.target)
    if report.ok:
        yield (*title, f"{report.checked:,}", "nothing", "0", "", "")
    for fault in report.faults:
        example = str(fault.examples[0]) if fault.examples else ""
        share = f"{fault.count:,}"
        if report.examined < report.wrong:
            share += f" of {report.examined:,} examined, {report.wrong:,} wrong in all"
        yield (
            *title,
            f"{report.checked:,}",
            f"{fault.name}: {fault.text}",
            share,
            example,
            known(peer.library, fault.name, source),
        )


def page(versions: dict[str, str], found: list[tuple[str, ...]], missing: list[str]) -> str:
    listed = ", ".join(f"{name} {number}" for name, number in versions.items())
    columns = ("library", "cast", "source", "target", "checked", "what is wrong", "results", "simplest input", "known")
    lines = [
        "# What the casts of other libraries get wrong",
        "",
        "Written by `make peers` (benchmarks/peers.py): each cast compared, bit for bit, with a single rounding, ties",
        "to even; overflow becomes infinity (NaN or the largest value where there is none), underflow is gradual, NaN",
        "stays some NaN. A difference from that may be what its authors meant; it is listed all the same. Slow casts",
        "are tried on fewer inputs. *known*: what the library's own tracker says of it; a dash: nothing found there.",
        "",
        f"{listed}; Python {platform.python_version()}, {platform.machine()}.",
        *([f"Not installed, and left out: {', '.join(missing)}."] if missing else []),
        "",
        f"| {' | '.join(columns)} |",
        f"|{'---|' * len(columns)}",
        *(f"| {' | '.join(row)} |" for row in found),
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=OUTPUT)
    parser.add_argument("--only", choices=LIBRARIES, action="append")
    arguments = parser.parse_args()
    versions: dict[str, str] = {}
    missing: list[str] = []
    found: list[tuple[str, ...]] = []
    for library in arguments.only or LIBRARIES:
        number = installed(library)
        if number is None:
            print(f"{library} is not installed: left out")
            missing.append(library)
            continue
        versions[library] = number
        for peer in globals()[f"of_{library}"]():
            for source in SOURCES:
                if source == peer.target:
                    continue
                report = check_cast(peer.cast, source, peer.target, time_limit=20)
                print(f"--- {library} {number}: {peer.call}\n{report}", flush=True)
                found += rows(peer, source, report)
    arguments.output.parent.mkdir(exist_ok=True)
    arguments.output.write_text(page(versions, found, missing), encoding="utf-8")
    print(f"wrote {arguments.output}")


if __name__ == "__main__":
    main()
