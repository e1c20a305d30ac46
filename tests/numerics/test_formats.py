"""Formats: every property against ml_dtypes, against all decoded codes and against the reference rounding."""

import copy
import dataclasses
import math
import pickle
import re
import subprocess
import sys
from fractions import Fraction
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from precision_lab.numerics import reference
from precision_lab.numerics.codes import encode
from precision_lab.numerics.formats import _REFUSED, ALIASES, FORMATS, SPECIALS, FloatFormat, FormatLike, get_format
from precision_lab.numerics.modes import RoundingMode
from tests.numerics.helpers import REGISTERED, UP_TO_16_BITS, WITH_DTYPE

IEEE = [(e, m) for e in range(2, 9) for m in range(24)]
CUSTOM = [FloatFormat.ieee(e, m) for e, m in IEEE]
# the ends of the other kinds of code space, which no registered format reaches
UNUSUAL = [
    FloatFormat("fn_without_exponents", 2, 1, 1, "fn"),
    FloatFormat("fnuz_without_fraction", 4, 0, 8, "fnuz"),
    FloatFormat("finite_without_fraction", 3, 0, 3, "finite"),
    FloatFormat("fn_wide", 5, 9, 15, "fn"),
]


def one_line(error: pytest.ExceptionInfo[ValueError]) -> str:
    message = str(error.value)
    assert message
    assert "\n" not in message
    return message


# --- properties ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fmt", WITH_DTYPE, ids=str)
def test_finfo_agrees(fmt: FloatFormat) -> None:
    assert fmt.dtype is not None
    info = ml_dtypes.finfo(fmt.dtype)  # type: ignore[no-untyped-call]
    assert fmt.bits == info.bits
    for name in ("max", "min", "eps", "smallest_normal", "smallest_subnormal"):
        assert getattr(fmt, name) == float(getattr(info, name)), name
    assert fmt.mantissa_bits == info.nmant
    assert fmt.emin == info.minexp


@pytest.mark.parametrize("fmt", [*UP_TO_16_BITS, *UNUSUAL, *(f for f in CUSTOM if f.bits <= 10)], ids=str)
def test_properties_are_those_of_the_codes(fmt: FloatFormat) -> None:
    codes = range(2**fmt.bits)
    values = [reference.decode(code, fmt) for code in codes]
    finite = [v for v in values if math.isfinite(v)]
    assert fmt.max == max(finite)
    assert fmt.min == min(finite)
    assert fmt.smallest_subnormal == min(v for v in finite if v > 0)
    first_normal = 1 << fmt.mantissa_bits  # exponent field 1, fraction 0
    assert fmt.smallest_normal == values[first_normal]
    assert fmt.has_infinity == any(math.isinf(v) for v in values)
    assert fmt.has_nan == any(math.isnan(v) for v in values)
    assert fmt.has_negative_zero == any(v == 0 and math.copysign(1, v) < 0 for v in finite)
    assert fmt.saturates == (len(finite) == len(values))
    if fmt.min <= 1 < fmt.max and fmt.emin <= 0:
        assert fmt.eps == min(v for v in finite if v > 1) - 1


@pytest.mark.parametrize("fmt", [FORMATS["fp32"], FORMATS["tf32"]], ids=str)
def test_properties_of_the_wide_formats(fmt: FloatFormat) -> None:
    infinity = (2**fmt.exponent_bits - 1) << fmt.mantissa_bits
    assert fmt.max == reference.decode(infinity - 1, fmt)
    assert fmt.smallest_subnormal == reference.decode(1, fmt)
    assert fmt.smallest_normal == reference.decode(1 << fmt.mantissa_bits, fmt)
    assert reference.decode(infinity, fmt) == math.inf
    assert math.isnan(reference.decode(infinity + 1, fmt))
    assert (fmt.has_infinity, fmt.has_nan, fmt.has_negative_zero, fmt.saturates) == (True, True, True, False)


@pytest.mark.parametrize("fmt", [*REGISTERED, *CUSTOM, *UNUSUAL], ids=str)
def test_the_codes_of_infinity_and_nan_and_what_lies_beyond_max(fmt: FloatFormat) -> None:
    if fmt.infinity_code is not None:
        assert reference.decode(fmt.infinity_code, fmt) == math.inf
    if fmt.nan_code is not None:
        assert math.isnan(reference.decode(fmt.nan_code, fmt))
        assert fmt.specials != "ieee" or fmt.nan_code >> (fmt.mantissa_bits - 1) & 1  # quiet
    assert (fmt.infinity_code is None, fmt.nan_code is None) == (not fmt.has_infinity, not fmt.has_nan)
    if fmt.nan_code is not None:
        assert encode(math.nan, fmt) & (2 ** (fmt.bits - fmt.has_negative_zero) - 1) == fmt.nan_code  # of any sign
    beyond = reference.round_to(2 * fmt.overflow_threshold, fmt)
    assert np.array_equal(beyond, fmt.overflow_value, equal_nan=True)


@pytest.mark.parametrize("fmt", [FORMATS["fp16"], FORMATS["fp8_e4m3fn"], FloatFormat.ieee(3, 0)], ids=str)
@pytest.mark.parametrize("mode", RoundingMode)
def test_the_facts_about_modes(mode: RoundingMode, fmt: FloatFormat) -> None:
    uniform = Fraction(0) if mode is RoundingMode.STOCHASTIC else None
    for sign in (1, -1):
        beyond = reference.round_to(sign * 2 * fmt.overflow_threshold, fmt, mode, uniform=uniform)
        assert mode.clamps(negative=sign < 0) == math.isfinite(beyond)
    near = [reference.round_to(1 + x * fmt.eps, fmt, mode, uniform=uniform) for x in (0.25, 0.75)]
    assert mode.to_nearest == (near == [1, 1 + fmt.eps])


@pytest.mark.parametrize("fmt", [*REGISTERED, *CUSTOM, *UNUSUAL], ids=str)
def test_simple_formulas(fmt: FloatFormat) -> None:
    assert fmt.bits == 1 + fmt.exponent_bits + fmt.mantissa_bits
    assert fmt.precision == fmt.mantissa_bits + 1
    assert fmt.unit_roundoff == fmt.eps / 2 == 2.0**-fmt.precision
    assert math.frexp(fmt.max)[1] - 1 == fmt.emax
    assert math.frexp(fmt.smallest_normal)[1] - 1 == fmt.emin
    assert fmt.max_significand * 2.0 ** (fmt.emax - fmt.mantissa_bits) == fmt.max


@pytest.mark.parametrize("fmt", [*REGISTERED, *CUSTOM, *UNUSUAL], ids=str)
def test_flush_threshold(fmt: FloatFormat) -> None:
    threshold = fmt.flush_threshold
    assert reference.round_to(math.nextafter(threshold, 0), fmt) == 0
    assert reference.round_to(threshold, fmt) == 0
    assert reference.round_to(math.nextafter(threshold, math.inf), fmt) == fmt.smallest_subnormal


# without mantissa bits the threshold is the flush threshold and its tie goes to zero
@pytest.mark.parametrize("fmt", [f for f in (*REGISTERED, *CUSTOM, *UNUSUAL) if f.mantissa_bits], ids=str)
def test_subnormal_threshold(fmt: FloatFormat) -> None:
    threshold = fmt.subnormal_threshold
    assert reference.round_to(math.nextafter(threshold, 0), fmt) < fmt.smallest_normal
    assert reference.round_to(threshold, fmt) == fmt.smallest_normal
    assert reference.round_to(math.nextafter(threshold, math.inf), fmt) == fmt.smallest_normal


@pytest.mark.parametrize("fmt", [*REGISTERED, *CUSTOM, *UNUSUAL], ids=str)
def test_overflow_threshold(fmt: FloatFormat) -> None:
    # where overflow saturates, one more exponent bit shows the rounding behind the clamp
    finite = dataclasses.replace(fmt, exponent_bits=fmt.exponent_bits + 1) if fmt.saturates else fmt
    threshold = fmt.overflow_threshold

    def overflows(x: float) -> bool:
        return not reference.round_to(x, finite) <= fmt.max

    assert reference.round_to(math.nextafter(threshold, 0), finite) == fmt.max
    assert overflows(threshold) == fmt.overflow_inclusive
    assert overflows(math.nextafter(threshold, math.inf))


def test_only_e4m3fn_keeps_the_tie_at_its_threshold() -> None:
    assert [f.name for f in REGISTERED if not f.overflow_inclusive] == ["fp8_e4m3fn"]


def test_every_format_names_its_source() -> None:
    assert all(len(f.source) > 10 and f.source != "custom" for f in REGISTERED)
    assert FloatFormat.ieee(4, 3).source == "custom"
    assert all(name == f.name == str(f) for name, f in FORMATS.items())


# --- get_format ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fmt", REGISTERED, ids=str)
def test_get_format_by_name_and_dtype(fmt: FloatFormat) -> None:
    assert get_format(fmt) is fmt
    assert get_format(fmt.name) is fmt
    assert get_format(f" {fmt.name.upper().replace('_', '-')} ") is fmt
    if fmt.dtype is not None:
        assert get_format(fmt.dtype) is fmt
        assert get_format(fmt.dtype.type) is fmt
        assert get_format(fmt.dtype.name) is fmt


@pytest.mark.parametrize(("alias", "name"), ALIASES.items())
def test_aliases_in_any_case(alias: str, name: str) -> None:
    for spelling in (alias, alias.upper(), alias.title()):
        assert get_format(spelling) is FORMATS[name]


@pytest.mark.parametrize(
    ("spec", "name"),
    [
        ("half", "fp16"),
        ("Float32", "fp32"),
        ("bfloat16", "bf16"),
        ("TensorFloat-32", "tf32"),
        ("E4M3FN", "fp8_e4m3fn"),
        ("float8_e5m2", "fp8_e5m2"),
        ("float6_e2m3fn", "fp6_e2m3fn"),
        ("float4_e2m1fn", "fp4_e2m1fn"),
        (np.float32, "fp32"),
        (np.dtype(">f2"), "fp16"),
        (ml_dtypes.bfloat16, "bf16"),
        (ml_dtypes.float8_e4m3fn, "fp8_e4m3fn"),
    ],
)
def test_spellings_that_people_use(spec: FormatLike, name: str) -> None:
    assert get_format(spec).name == name


@pytest.mark.parametrize(
    ("short", "name", "largest"),
    [
        ("e4m3", "fp8_e4m3fn", 448),
        ("e5m2", "fp8_e5m2", 57344),
        ("e3m2", "fp6_e3m2fn", 28),
        ("e2m3", "fp6_e2m3fn", 7.5),
        ("e2m1", "fp4_e2m1fn", 6),
    ],
)
def test_a_short_name_is_the_usual_format_and_the_ieee_one_says_so(short: str, name: str, largest: float) -> None:
    fmt = get_format(short)
    assert (fmt.name, fmt.max) == (name, largest)
    bits = fmt.bits
    for spelled in (f"fp{bits}_{short}", f"F{bits}_{short.upper()}", f"OFP8_{short}", f" {short} "):
        if spelled == "fp8_e4m3":
            assert get_format(spelled).max == 240  # ml_dtypes' name of the IEEE-like one, as it always was
        elif bits == 8 or "OFP8" not in spelled:
            assert get_format(spelled) is fmt
    ieee = get_format(f"{short}_ieee")
    assert ieee == FloatFormat.ieee(fmt.exponent_bits, fmt.mantissa_bits)
    assert (ieee.name, ieee.specials) == (f"{short}_ieee", "ieee")
    assert ieee.max == (2 - ieee.eps) * 2.0 ** (2 ** (ieee.exponent_bits - 1) - 1)


@pytest.mark.parametrize("fmt", [*REGISTERED, *CUSTOM], ids=str)
def test_the_text_of_a_format_is_that_format(fmt: FloatFormat) -> None:
    assert get_format(str(fmt)) == fmt
    assert get_format(str(fmt).upper()) == fmt
    assert get_format(str(fmt)).specials == fmt.specials


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("e8m0", "block scales"),
        ("float8_e8m0fnu", "block scales"),
        ("F8_E8M0", "e8m0_ieee"),
        (ml_dtypes.float8_e8m0fnu, "block scales"),
        ("mxfp4", "ask about its elements, fp4_e2m1fn"),
        ("NVFP4", "ask about its elements, fp4_e2m1fn"),
        ("mxfp8", "fp8_e4m3fn or fp8_e5m2"),
        ("mxfp8_e4m3", "ask about its elements, fp8_e4m3fn"),
        ("mxfp6_e3m2", "ask about its elements, fp6_e3m2fn"),
        ("fp8", "fp8_e4m3fn, fp8_e5m2"),
        ("fp4", "fp4_e2m1fn"),
        ("nf4", "no floating-point format"),
    ],
)
def test_names_of_what_is_no_format_say_what_it_is(spec: Any, words: str) -> None:
    with pytest.raises(ValueError, match="unknown format") as error:
        get_format(spec)
    assert words in one_line(error)


def test_what_is_offered_instead_is_there() -> None:
    """Every name in the messages can be given."""
    for key, message in _REFUSED.items():
        for name in re.findall(r"\b(?:fp\d|e\d)\w*", message):
            assert get_format(name).bits <= 16, (key, name)


def test_e6m9() -> None:
    fmt = get_format("E6M9")
    assert fmt == FloatFormat.ieee(6, 9)
    assert get_format("e6m9_ieee") == fmt
    assert (fmt.name, fmt.bits, fmt.bias, fmt.specials) == ("e6m9", 16, 31, "ieee")
    # same fields as a registered format, another name: not the same format
    assert get_format("e5m10") != get_format("fp16")


@pytest.mark.parametrize(
    "spec",
    ["fp17", "", "e", "e6", "e6m", "float64", "e4m3fn2", np.float64, np.int8, float, None, 16, object(), complex, []],
    ids=lambda spec: repr(spec).split(" at ")[0],
)
def test_unknown_formats_are_refused_with_the_list(spec: Any) -> None:
    with pytest.raises(ValueError, match="unknown format") as error:
        get_format(spec)
    message = one_line(error)
    assert all(name in message for name in FORMATS)
    assert "e6m9" in message


@pytest.mark.parametrize("spec", ["e1m3", "e9m3", "e0m0", "e5m24", "e5m99"])
def test_custom_names_out_of_range(spec: str) -> None:
    with pytest.raises(ValueError, match=r"(exponent|mantissa)_bits must be an integer in \d\.\.\d+") as error:
        get_format(spec)
    one_line(error)


# --- construction ----------------------------------------------------------------------------------------------------


def test_all_ieee_formats_can_be_made() -> None:
    assert len(CUSTOM) == 7 * 24
    for (e, m), fmt in zip(IEEE, CUSTOM, strict=True):
        ending = "_ieee" if (e, m) in ((4, 3), (5, 2), (3, 2), (2, 3), (2, 1), (8, 0)) else ""
        assert (fmt.name, fmt.exponent_bits, fmt.mantissa_bits) == (f"e{e}m{m}{ending}", e, m)
        assert fmt.bias == fmt.emax == 2 ** (e - 1) - 1
        assert get_format(fmt.name) == fmt
    assert FloatFormat.ieee(3, 4, name="mine").name == "mine"


@pytest.mark.parametrize(
    ("e", "m"), [(1, 3), (9, 3), (5, -1), (5, 24), (True, 3), (5, True), (5.0, 3), ("5", 3), (5, None)]
)
def test_ieee_refuses_other_widths(e: int, m: int) -> None:
    with pytest.raises(ValueError, match=r"_bits must be an integer in (2\.\.8|0\.\.23), got") as error:
        FloatFormat.ieee(e, m)
    one_line(error)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("x", 1, 3, 1), "exponent_bits must be 2..8, got 1"),
        (("x", 9, 3, 1), "exponent_bits must be 2..8, got 9"),
        (("x", 5, 24, 15), "mantissa_bits must be 0..23, got 24"),
        (("x", 5, -1, 15), "mantissa_bits must be 0..23, got -1"),
        (("x", 5, 2, 15, "posit"), ", ".join(SPECIALS)),
        (("x", 5, 0, 15, "fn"), "'fn' format needs a mantissa bit"),
        (("x", 8, 3, 128), "bias 128"),
        (("x", 8, 3, 126), "bias 126"),
        (("x", 8, 3, 127, "fn"), "bias 127"),
        (("x", 5, 10, 102), "smallest subnormal"),
        (("x", 5, 10, -10), "bias -10"),
    ],
)
def test_the_constructor_refuses(arguments: tuple[str, int, int, int], message: str) -> None:
    with pytest.raises(ValueError, match=r".") as error:
        FloatFormat(*arguments)
    assert message in one_line(error)


@pytest.mark.parametrize(
    "arguments",
    # one inside each of the bounds above
    [("x", 2, 3, 1), ("x", 8, 23, 127), ("x", 5, 10, 101), ("x", 5, 10, -9), ("x", 5, 1, 15, "fn"), ("x", 7, 0, 127)],
)
def test_the_constructor_accepts(arguments: tuple[str, int, int, int]) -> None:
    assert FloatFormat(*arguments).max <= FORMATS["fp32"].max


# --- as a value ------------------------------------------------------------------------------------------------------


def test_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        FORMATS["fp16"].bias = 3  # type: ignore[misc]


def test_equality_and_hash() -> None:
    fp16 = FORMATS["fp16"]
    same = dataclasses.replace(fp16, source="elsewhere", dtype=None)
    assert same == fp16
    assert hash(same) == hash(fp16)
    for change in ({"name": "x"}, {"bias": 14}, {"mantissa_bits": 9}, {"exponent_bits": 4}, {"specials": "fn"}):
        other = dataclasses.replace(fp16, **change)
        assert other != fp16
        assert hash(other) != hash(fp16)
    assert len(set(REGISTERED)) == len(FORMATS)


@pytest.mark.parametrize("fmt", [*REGISTERED, FloatFormat.ieee(6, 9)], ids=str)
def test_copies(fmt: FloatFormat) -> None:
    assert fmt.max > 0  # a cached property must not get in the way
    for twin in (pickle.loads(pickle.dumps(fmt)), copy.copy(fmt), copy.deepcopy(fmt)):
        assert twin == fmt
        assert hash(twin) == hash(fmt)
        assert (twin.source, twin.dtype, twin.max) == (fmt.source, fmt.dtype, fmt.max)
        assert (twin is fmt) == (fmt in REGISTERED)


def test_a_twin_of_a_registered_format_is_not_taken_for_it() -> None:
    twin = dataclasses.replace(FORMATS["fp16"], dtype=None)
    assert pickle.loads(pickle.dumps(twin)).dtype is None


@pytest.mark.parametrize("name", ["fp16", "e6m9"])
def test_a_pickle_hashes_right_in_another_process(name: str) -> None:
    # hashes of strings differ between processes: a hash that travels along is wrong on arrival
    fmt = get_format(name)
    hash(fmt)
    code = (
        "import pickle, sys; from precision_lab.numerics.formats import get_format; "
        f"fmt = pickle.load(sys.stdin.buffer); sys.exit(0 if fmt in {{get_format('{name}')}} else 1)"
    )
    done = subprocess.run([sys.executable, "-c", code], input=pickle.dumps(fmt), capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
