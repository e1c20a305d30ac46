"""What public functions do with arrays at the edges: signalling NaNs, infinities, subnormals, masks, bools.

The table below names every public function that takes arrays, and is held to `precision_lab.__all__`.
"""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import ml_dtypes
import numpy as np
import pytest

import precision_lab as pl
from precision_lab.analysis.sums import SUM_METHODS, norm_every_way, sum_every_way, sum_tensors
from precision_lab.analysis.swamping_scan import scan_frozen, scan_updates
from precision_lab.analysis.updates import step_report, update_outcomes
from precision_lab.numerics.accumulation import METHODS, rounded_sum
from precision_lab.numerics.codes import code_dtype
from precision_lab.numerics.errors import CompilerDisabledError
from precision_lab.training.hyperparameters import stored_rates
from tests.conftest import CommandLine

Array: TypeAlias = np.ndarray[Any, Any]
Call: TypeAlias = Callable[[Any], object]

FORMATS = ("fp16", "bf16", "tf32", "fp32", "fp8_e4m3fn", "fp8_e4m3fnuz", "fp6_e3m2fn", "e5m10")
MODES = tuple(mode.value for mode in pl.RoundingMode)
MATRIX_OPTIONS: tuple[dict[str, Any], ...] = (
    {},
    {"round_products": True},
    {"mode": "toward_zero"},
    {"mode": "stochastic", "rng": 1},
    {"inputs": "bf16", "output": "fp8_e5m2"},
)


def each(function: Callable[..., object], *choices: tuple[Any, ...], **options: Any) -> Call:
    """Call a function of an array with every choice of its further arguments."""

    def call(x: Any) -> object:
        results: list[object] = []
        for fmt in choices[0]:
            for mode in choices[1] if len(choices) > 1 else ((),):
                results.append(function(x, fmt, *([mode] if mode else []), **options))
        return results

    return call


def products(function: Callable[..., object], options: tuple[dict[str, Any], ...]) -> Call:
    """Multiply x as a row, a column and a matrix."""

    def call(x: Any) -> object:
        x = only_float32(x)
        pairs = [(x[None, :], x[:, None]), (x[:, None], x[None, :]), (np.stack([np.ones_like(x), x]), x[:, None])]
        return [function(a, b, **chosen) for a, b in pairs for chosen in options]

    return call


def only_float32(x: Any) -> Any:
    """Doubles that float32 does not hold are refused without `inputs`: leave the others."""
    if x.dtype != np.float64 or isinstance(x, np.ma.MaskedArray):
        return x
    with np.errstate(all="ignore"):
        held = x.astype(np.float32).astype(np.float64) == x
    return x[held | np.isnan(x)]


def dots(x: Any) -> object:
    x = only_float32(x)
    return [pl.dot(x, x, accumulator=fmt, **options) for fmt in ("fp16", "bf16", "fp32") for options in MATRIX_OPTIONS]


def summed(x: Any) -> object:
    modes = ("ties_to_even", "toward_negative", "stochastic")
    return [
        (pl.accumulate(x, fmt, method=method, mode=mode, accumulator=wide, rng=1)).worst_case_bound
        for fmt in ("fp16", "fp8_e4m3fn")
        for wide in (None, "fp32")
        for method in METHODS
        for mode in modes
    ]


def exactly_summed(x: Any) -> object:
    if isinstance(x, np.ma.MaskedArray):
        return pl.exact_sum(x)
    finite: Any = np.isfinite(pl.round_to(x, "fp32"))
    return pl.exact_sum(x[finite])


def updated(x: Any) -> object:
    small = np.full(x.shape, 1e-3, np.float32)
    return [
        pl.update_report(w, u, fmt, mode=mode, rng=1 if mode == "stochastic" else None)
        for w, u in ((x, x), (x, small), (small, x), (small.astype(np.float64), x))
        for fmt in FORMATS
        for mode in ("ties_to_even", "toward_positive", "stochastic")
    ]


def quantized(x: Any) -> object:
    seed = {"stochastic": 1}
    return [pl.quantization_report(x, fmt, mode=m, rng=seed.get(m)).to_dict() for fmt in FORMATS for m in MODES]


def frozen(x: Any) -> object:
    return [pl.frozen_fraction(x, [1e-3, 1.0], fmt) for fmt in FORMATS]


def looked_at(x: Any) -> object:
    return [pl.inspect_number(number, fmt) for number in x for fmt in FORMATS]


def decoded(x: Any) -> object:
    """Every code, or every so many-th; where x has a mask, codes with that mask."""
    if isinstance(x, np.ma.MaskedArray):
        return pl.decode(np.ma.array([1, 2, 3], mask=np.ma.getmaskarray(x)[:3]), "fp16")
    results = []
    for fmt in map(pl.get_format, FORMATS):
        codes = np.arange(2 ** min(fmt.bits, 16), dtype=np.int64) << max(fmt.bits - 16, 0)
        results.append(pl.decode(codes, fmt))
    return results


def scanned(x: Any) -> object:
    return pl.scan({"w": x}, formats=FORMATS).to_dict()


def read(x: Any) -> object:
    return [[chunk.sum() is None for chunk in chunks] for _, chunks in pl.read_tensors({"w": x}) if chunks is None]


def flown(x: Any) -> object:
    state = {"w.exp_avg": x, "w.exp_avg_sq": x}
    return [
        pl.preflight({"w": x}, lr=1e-3, **options).to_dict()
        for options in (
            {},
            {"updates": {"w": x}},
            {"optimizer": "sgd", "gradients": {"w": x}},
            {"gradients": {"w": x}},
            {"optimizer_state": state},
        )
    ]


def replayed(x: Any) -> object:
    if not isinstance(x, np.ma.MaskedArray):
        if x.dtype == ml_dtypes.bfloat16:  # not taken here
            return None
        x = np.where(x < 0, np.abs(x), x)  # magnitudes
    return pl.replay_loss_scale(pl.DynamicLossScale.torch(), x, "fp16").to_dict()


def stagnated(x: Any) -> object:
    """Terms that are no numbers are refused."""
    if isinstance(x, np.ma.MaskedArray):
        return pl.stagnation(pl.Series("masked", lambda n: np.ma.array(np.ones(n.size), mask=n > 1)), "fp16", most=4)
    with pytest.raises(ValueError, match="finite in fp16"):
        pl.stagnation(pl.Series("all", lambda n: x), "fp16", most=x.size)
    return None


TAKES_ARRAYS: dict[str, Call] = {
    "ExponentHistogram": lambda x: (pl.ExponentHistogram.of(x).to_dict(), pl.ExponentHistogram.of_chunks([x, x])),
    "Series": stagnated,
    "WeightGaps": each(pl.WeightGaps.of, FORMATS),
    "accumulate": summed,
    "count_conversion": lambda x: [pl.count_conversion(x, fmt, loss_scale=s) for fmt in FORMATS for s in (1, 1000)],
    "cast": each(pl.cast, ("fp16", "bf16", "fp32", "fp8_e4m3fn", "fp8_e4m3fnuz"), MODES),
    "decode": decoded,
    "dot": dots,
    "encode": each(pl.encode, FORMATS, MODES),
    "exact_sum": exactly_summed,
    "frozen_fraction": frozen,
    "inspect_number": looked_at,
    "is_representable": each(pl.is_representable, FORMATS),
    "list_tensors": lambda x: pl.list_tensors({"w": x}),
    "matmul": products(partial(pl.matmul, accumulator="fp16"), MATRIX_OPTIONS),
    "matmul_fp32_accumulate": products(pl.matmul_fp32_accumulate, ({}, {"output": "fp8_e4m3fn"})),
    "neighbours": each(pl.neighbours, FORMATS),
    "preflight": flown,
    "quantization_report": quantized,
    "read_tensors": read,
    "replay_loss_scale": replayed,
    "round_to": each(pl.round_to, FORMATS, MODES),
    "plan_files": lambda x: pl.plan_files({"w": x}, "fp16", loss_scales=[1000, 1024]).to_dict(),
    "scan": scanned,
    "spacing": each(pl.spacing, FORMATS),
    "stagnation": stagnated,
    "update_report": updated,
}
"""The public functions that take arrays, by name: what is to be called with one."""

TAKE_NONE = (
    "AccumulationTrace",
    "Adam",
    "AdamW",
    "CONFIGURATIONS",
    "Conversion",
    "Covers",
    "DynamicLossScale",
    "FORMATS",
    "Finding",
    "FloatFormat",
    "FormatLike",
    "Frozen",
    "HyperparameterAudit",
    "Inspection",
    "LossScalePlan",
    "METHODS",
    "MemoryLedger",
    "NoLossScale",
    "PreflightReport",
    "QuantizationReport",
    "RoundingMode",
    "SCALERS",
    "SGD",
    "ScaleTrace",
    "ScanResult",
    "Severity",
    "Stagnation",
    "StaticLossScale",
    "StorageConfig",
    "SwampingThresholds",
    "TensorFileError",
    "TensorInfo",
    "TrainingConfig",
    "TrainingResult",
    "UpdateReport",
    "World",
    "audit_hyperparameters",
    "get_format",
    "get_mode",
    "get_scaler",
    "memory_ledger",
    "plan_loss_scale",
    "plan_tensors",
    "swamping_thresholds",
    "sweep",
    "threads",
    "train",
)
"""Public names that take no arrays of the user's: results, configurations, numbers."""

BESIDE: dict[str, Call] = {
    "rounded_sum": lambda x: rounded_sum(x, "fp16").relative_error,
    "sum_every_way": lambda x: sum_every_way(x, "fp16"),
    "norm_every_way": lambda x: [norm_every_way(x, fmt) for fmt in FORMATS],
    "scan_frozen": lambda x: scan_frozen({"w": x}, [1e-3], formats=FORMATS).to_dict(),
    "scan_updates": lambda x: scan_updates({"w": x}, {"w": x}, formats=FORMATS).to_dict(),
    "step_report": lambda x: step_report(x, x[::-1], x, "fp8_e4m3fn").to_dict(),
    "stored_rates": lambda x: stored_rates(x, "fp16"),
    "update_outcomes": lambda x: update_outcomes(x, x, "fp8_e4m3fn"),
}
"""What is not at the top of the package."""


def test_every_public_name_is_in_one_of_the_lists() -> None:
    """Does a new function take arrays? Then it belongs to the first."""
    assert sorted([*TAKES_ARRAYS, *TAKE_NONE]) == sorted(pl.__all__)


# ---- no warnings ----


def specials(dtype: Any, quiet: bool) -> Array:
    """NaNs, of both signs, infinities, subnormals, extremes; signalling NaNs unless `quiet`."""
    kind = np.dtype(dtype)
    unsigned = np.dtype(f"u{kind.itemsize}")
    mantissa_bits = 52 if kind == np.float64 else pl.get_format(kind).mantissa_bits
    infinity = int(np.array(np.inf, kind).view(unsigned))
    sign = 1 << (8 * kind.itemsize - 1)
    nan = infinity | (1 << (mantissa_bits - 1) if quiet else 1)
    largest = infinity - 1
    positive = [nan, infinity, 0, 1, (1 << mantissa_bits) - 1, 1 << mantissa_bits, largest]
    ordinary = np.array([1, 0.1, 3], kind).view(unsigned).tolist()
    codes = [code | s for code in [*positive, *ordinary] for s in (0, sign)]
    return np.array(codes, unsigned).view(kind)


DTYPES = (np.float16, ml_dtypes.bfloat16, np.float32, np.float64)


@pytest.fixture
def _warnings_are_errors() -> Iterator[None]:
    with warnings.catch_warnings(), np.errstate(all="warn"):
        warnings.simplefilter("error")
        np.seterr(under="ignore")  # as NumPy starts
        yield


@pytest.mark.usefixtures("_warnings_are_errors")
@pytest.mark.parametrize("name", [*TAKES_ARRAYS, *BESIDE])
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: np.dtype(dtype).name)
@pytest.mark.parametrize("quiet", [False, True], ids=["signalling", "quiet"])
def test_specials_are_taken_in_silence(name: str, dtype: Any, quiet: bool) -> None:
    call = {**TAKES_ARRAYS, **BESIDE}[name]
    whole = specials(dtype, quiet)
    unsigned = np.dtype(f"u{whole.dtype.itemsize}")
    before = whole.view(unsigned).copy()
    call(whole)
    for one in whole[:2]:  # nothing but a NaN, of either sign
        call(np.array([one.view(unsigned)], unsigned).view(dtype))
    assert (whole.view(unsigned) == before).all()


@pytest.mark.usefixtures("_warnings_are_errors")
@pytest.mark.parametrize("dtype", [">f4", ">f8"])
@pytest.mark.parametrize("name", ["round_to", "spacing", "accumulate", "ExponentHistogram", "update_report", "scan"])
def test_foreign_byte_order_is_taken_in_silence(name: str, dtype: str) -> None:
    native = specials(np.dtype(dtype).newbyteorder("="), quiet=False)
    TAKES_ARRAYS[name](native.byteswap().view(dtype))


@pytest.mark.usefixtures("_warnings_are_errors")
def test_signalling_nans_come_out_quiet() -> None:
    for dtype, pattern in ((np.float32, 0x7F800001), (np.float64, 0x7FF0000000000001)):
        x = np.array([pattern], f"u{np.dtype(dtype).itemsize}").view(dtype)
        for result in (pl.round_to(x, "fp16"), pl.spacing(x, "fp16"), *pl.neighbours(x, "fp16")):
            assert np.isnan(result).all()
            assert result.dtype == dtype
        assert np.isnan(pl.accumulate(x, "fp16").result)
        assert np.isnan(pl.dot(x, x, accumulator="fp16"))


@pytest.mark.usefixtures("_warnings_are_errors")
def test_sums_of_squares_are_taken_in_silence(tmp_path: Path) -> None:
    for dtype in (np.float32, np.float64):
        np.save(tmp_path / "x.npy", specials(dtype, quiet=False))
        result = sum_tensors(tmp_path / "x.npy", "fp16", squares=True)
        assert len(result.tensors[0].sums) == len(SUM_METHODS)


def test_the_lists_would_notice_a_warning() -> None:
    """What the functions above do is what NumPy warns about: at least the cast, on every machine."""
    x = np.array([0x7F800001], np.uint32).view(np.float32)
    with pytest.warns(RuntimeWarning, match="invalid value"):
        x.astype(np.float64)


# ---- masked arrays ----


@pytest.mark.parametrize("name", [n for n in [*TAKES_ARRAYS, *BESIDE] if n != "inspect_number"])
def test_masked_arrays_are_refused_with_a_cure(name: str) -> None:
    x = np.ma.array(np.array([1e-9, 1.0, 2.0], np.float32), mask=[True, False, False])
    with pytest.raises(ValueError, match="masked array") as error:
        {**TAKES_ARRAYS, **BESIDE}[name](x)
    assert "\n" not in str(error.value)
    assert "x.compressed()" in str(error.value)
    assert "x.filled(0)" in str(error.value)


def test_the_cures_for_masked_arrays_work() -> None:
    x = np.ma.array([1e-9, 1.0], mask=[True, False])
    assert pl.ExponentHistogram.of(x.compressed()).flushed("fp16") == 0
    assert pl.round_to(x.filled(0), "fp16").tolist() == [0, 1]


@pytest.mark.parametrize(
    "x",
    [
        np.ma.array([1.0, 2.0]),  # nothing is masked now, but the next array may be
        np.ma.masked,
        [1.0, np.ma.masked],
        [np.ma.array([1.0, 2.0], mask=[True, False])],
        ((0.5, 1.0), np.ma.array([1.0, 2.0], mask=[True, False])),
        np.ma.array([1, 2], mask=[True, False]),
    ],
    ids=repr,
)
def test_masks_are_found_in_lists_too(x: Any) -> None:
    with pytest.raises(ValueError, match="cannot take a masked array"):
        pl.round_to(x, "fp16")
    with pytest.raises(ValueError, match="masked array"):
        pl.scan({"w": x})


def test_masked_results_are_refused() -> None:
    with pytest.raises(ValueError, match="masked array"):
        pl.round_to(np.ones(2), "fp16", out=np.ma.array([0.0, 0.0], mask=[True, False]))
    with pytest.raises(ValueError, match="masked array"):
        pl.frozen_fraction([1.0], np.ma.array([0.5, 1.0], mask=[True, False]), "fp16")


# ---- bools ----

BOOLS = [True, False, np.True_, np.False_]


@pytest.mark.parametrize("truth", BOOLS, ids=repr)
@pytest.mark.parametrize(
    "call",
    [
        lambda b: pl.round_to([1.0], "fp16", "sr", rng=b),
        lambda b: pl.round_to([1.0], "fp16", "sr", rng=(b, 0)),
        lambda b: pl.round_to([1.0], "fp16", "sr", rng=(0, b)),
        lambda b: pl.encode([1.0], "fp16", "sr", rng=b),
        lambda b: pl.cast([1.0], "fp16", "sr", rng=b),
        lambda b: pl.accumulate([1.0], "fp16", mode="sr", rng=b),
        lambda b: pl.accumulate([1.0], "fp16", block=b),
        lambda b: pl.accumulate([1.0], "fp16").probabilistic_bound(b),
        lambda b: pl.matmul([[1.0]], [[1.0]], accumulator="fp16", mode="sr", rng=b),
        lambda b: pl.dot([1.0], [1.0], accumulator="fp16", mode="sr", rng=b),
        lambda b: pl.update_report([1.0], [1.0], "fp16", mode="sr", rng=b),
        lambda b: pl.stagnation(pl.Series.harmonic(), "fp16", mode="sr", rng=b),
        lambda b: pl.stagnation(pl.Series.harmonic(), "fp16", most=b),
        lambda b: pl.Series.counting(b),
        lambda b: pl.frozen_fraction([1.0], b, "fp16"),
        lambda b: pl.frozen_fraction([1.0], [b], "fp16"),
        lambda b: pl.frozen_fraction([1.0], [0.5, b], "fp16"),
        lambda b: pl.WeightGaps.of([1.0], "fp16").frozen(b),
        lambda b: scan_frozen({"w": np.ones(1)}, [b]),
        lambda b: pl.inspect_number(b, "fp16"),
        lambda b: pl.decode(b, "fp16"),
        lambda b: pl.decode([1, b], "fp16"),
        lambda b: pl.round_to(b, "fp16"),
        lambda b: pl.round_to([b, 2], "fp16"),
        lambda b: pl.round_to([[0.5, 1.0], (1.0, b)], "fp16"),
        lambda b: pl.round_to([np.array([b]), np.array([0.5])], "fp16"),
        lambda b: pl.accumulate([b, 0.5], "fp16"),
        lambda b: pl.matmul([[1.0, b]], [[1.0], [2.0]], accumulator="fp16"),
        lambda b: pl.update_report([1.0, 0.5], [b, 0.5], "fp16"),
        lambda b: pl.ExponentHistogram.of([b, 0.5]),
        lambda b: pl.ExponentHistogram.of([1.0]).flushed("fp16", b),
        lambda b: pl.ExponentHistogram.of([1.0]).conversion("fp16", b),
        lambda b: pl.ExponentHistogram.from_dict(pl.ExponentHistogram.of([1.0]).to_dict() | {"zero": b}),
        lambda b: pl.ExponentHistogram.from_dict(pl.ExponentHistogram.of([1.0]).to_dict() | {"max_abs": b}),
        lambda b: pl.scan({"w": np.ones(1)}, loss_scale=b),
        lambda b: pl.scan({"w": [1.0, b]}),
        lambda b: list(pl.read_tensors({"w": np.ones(1)}, chunk_bytes=b)),
        lambda b: pl.preflight({"w": np.ones(1)}, lr=1e-3, tolerance=b),
        lambda b: pl.plan_loss_scale(pl.ExponentHistogram.of([1.0]), "fp16", margin=b),
        lambda b: pl.replay_loss_scale(pl.DynamicLossScale.torch(), [1.0, b], "fp16"),
        lambda b: pl.StaticLossScale(b),
        lambda b: pl.DynamicLossScale(init_scale=b),
        lambda b: pl.DynamicLossScale(window=b),
        lambda b: pl.DynamicLossScale.torch(growth_factor=b),
        lambda b: pl.DynamicLossScale.flax(min_scale=b),
        lambda b: pl.FloatFormat.ieee(b, 3),
        lambda b: pl.FloatFormat("f", 5, b, 15),
        lambda b: pl.FloatFormat("f", b, 3, 15),
        lambda b: pl.FloatFormat("f", 5, 3, b),
        lambda b: pl.audit_hyperparameters("fp16", lr=b),
        lambda b: pl.audit_hyperparameters("fp16", beta1=b),
        lambda b: pl.audit_hyperparameters("fp16", steps=b),
        lambda b: stored_rates([0.5, b], "fp16"),
        lambda b: sum_every_way([1.0], "fp16", seed=b),
    ],
)
def test_bools_are_no_numbers(call: Callable[[Any], object], truth: Any) -> None:
    with pytest.raises(ValueError) as error:  # noqa: PT011  # each has a message of its own
        call(truth)
    assert "\n" not in str(error.value)


def test_the_cure_for_bools_among_numbers_works() -> None:
    with pytest.raises(ValueError, match=r"np\.asarray\(x, float\)"):
        pl.round_to([True, 0.1], "fp16")
    assert pl.round_to(np.asarray([True, 0.1], float), "fp16").tolist() == [1, 0.0999755859375]


# ---- without a compiler ----


def without_compiler(program: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"NUMBA_DISABLE_JIT": "1"}
    return subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=60, check=False
    )


def test_the_import_needs_no_compiler() -> None:
    done = without_compiler("import precision_lab as pl; print(pl.get_format('fp16').max, pl.memory_ledger.__name__)")
    assert (done.returncode, done.stdout) == (0, "65504.0 memory_ledger\n")


def test_loops_without_a_compiler_say_so() -> None:
    program = """if True:
        import numpy as np
        import precision_lab as pl
        from precision_lab.numerics.errors import CompilerDisabledError
        assert pl.ExponentHistogram.of([1.0]).count == 1  # a small one needs none
        large = np.ones(5_000_000, np.float32)
        for call in (lambda: pl.round_to(0.1, "fp16"), lambda: pl.ExponentHistogram.of(large)):
            try:
                call()
            except CompilerDisabledError as error:
                print(error)
    """
    first, second = without_compiler(program).stdout.splitlines()
    assert first == second
    assert "unset NUMBA_DISABLE_JIT" in first
    assert issubclass(CompilerDisabledError, RuntimeError)


def test_the_command_line_without_a_compiler() -> None:
    program = "import sys; from precision_lab.cli import main; sys.argv = ['precision-lab', {}]; main()"
    done = without_compiler(program.format("'inspect', '0.1'"))  # one number needs none
    assert (done.returncode, done.stderr) == (0, "")
    done = without_compiler(program.format("'verify', '-f', 'fp16'"))
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("precision-lab: error: numba's compiler is switched off")


# ---- what docstrings say ----


def test_nan_codes_are_as_the_docstring_of_encode_says() -> None:
    patterns = np.array([0x7F800001, 0xFF800001, 0x7FC00000, 0xFFC00000, 0x7FC12345, 0xFFFFFFFF], np.uint32)
    x = patterns.view(np.float32)
    for fmt in pl.FORMATS.values():
        if not fmt.has_nan:
            continue
        codes = np.asarray(pl.encode(x, fmt))
        negative = patterns >> 31 == 1
        assert len(set(codes[negative].tolist())) == len(set(codes[~negative].tolist())) == 1
        quiet = pl.encode(np.array([np.nan, -np.nan], np.float32), fmt)
        assert codes[[0, 1]].tolist() == quiet.tolist()
        if fmt.dtype is None:
            continue
        with np.errstate(invalid="ignore"):
            theirs = x.astype(fmt.dtype).view(code_dtype(fmt))
        if fmt.name in ("fp16", "fp32"):  # NumPy's own casts keep the payload
            assert theirs[4] != codes[4]
        else:
            assert theirs.tolist() == codes.tolist()


def test_to_odd_beyond_the_largest_value_is_that_value_even_if_it_is_even() -> None:
    for fmt in pl.FORMATS.values():
        assert pl.round_to(fmt.max * 1.5, fmt, "to_odd") == fmt.max
    assert pl.encode(450.0, "fp8_e4m3fn", "to_odd") == pl.encode(448.0, "fp8_e4m3fn") == 0x7E  # even
    assert pl.encode(70000.0, "fp16", "to_odd") % 2 == 1


def test_flushing_is_of_results() -> None:
    x = float.fromhex("0x1.ffcp-15")
    assert x < pl.get_format("fp16").smallest_normal
    assert pl.round_to(x, "fp16", subnormals=False) == pl.round_to(x, "fp16", subnormals=True) == 2.0**-14
    assert pl.round_to(x, "fp16", "toward_zero", subnormals=False) == 0


def test_the_command_line_refuses_no_number(command_line: CommandLine) -> None:
    finished = command_line("inspect", "True")
    assert finished.status == 2
    assert "cannot read 'True'" in finished.err
