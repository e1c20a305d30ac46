"""Floating-point formats as frozen data: what a format can hold, each property by its formula.

A value of a format is ``(-1)^sign * significand * 2^exponent``. With ``m`` mantissa bits and bias ``b`` a stored
exponent field ``f`` and fraction field ``k`` mean ``(1 + k/2^m) * 2^(f - b)`` for ``f >= 1`` (normal) and
``(k/2^m) * 2^(1 - b)`` for ``f == 0`` (zero and subnormal). The formats differ in what the top of the code space means:

=========  =============================================================  ===========================
specials   infinities and NaN                                             overflow becomes
=========  =============================================================  ===========================
``ieee``   top exponent field: fraction 0 is infinity, the rest NaN       infinity
``fn``     no infinity; NaN only where all exponent and fraction bits     NaN
           are ones
``fnuz``   no infinity, no negative zero; its code is the only NaN        NaN
``finite`` neither infinity nor NaN                                       the largest value (saturates)
=========  =============================================================  ===========================

An ``ieee`` format without mantissa bits has an infinity but no code left for NaN.

Sources are those of the encoding. That bf16 has subnormal numbers is a choice of this project: what is cited for it
does not define gradual underflow, TPUs and AVX512-BF16 flush results and inputs, ml_dtypes and torch on a CPU have
them. All formats have them here; ``subnormals=False`` flushes results.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any, Literal, Protocol, TypeAlias

import numpy as np

# isort: split
import ml_dtypes  # after NumPy, which it imports from C: there a Ctrl-C would become an ImportError

from precision_lab.support.arguments import check_integer, is_integer
from precision_lab.support.plain import register
from precision_lab.support.shown import Shown


class TorchDtype(Protocol):
    """A dtype of torch, as far as it is looked at here: its text names it."""

    @property
    def is_floating_point(self) -> bool:
        """Whether its elements are floats."""

    @property
    def itemsize(self) -> int:
        """Bytes of an element."""

    def __hash__(self) -> int:
        """Return a hash, as every dtype has one."""


FormatLike: TypeAlias = "FloatFormat | str | np.dtype[Any] | type | TorchDtype"
"""What `get_format` takes: a format, one of its names, or the dtype of one, of NumPy, ml_dtypes or torch."""

Specials: TypeAlias = Literal["ieee", "fn", "fnuz", "finite"]
SPECIALS: tuple[Specials, ...] = ("ieee", "fn", "fnuz", "finite")


@dataclass(frozen=True)
class FloatFormat(Shown):
    """A binary floating-point format of at most 32 bits.

    Attributes
    ----------
    name : str
        The project's name for it (``fp16``, ``fp8_e4m3fn``, ``e6m9`` ...).
    exponent_bits, mantissa_bits : int
        Widths of the exponent field (2..8) and of the stored fraction (0..23), the implicit bit not counted.
    bias : int
        What is subtracted from the exponent field.
    specials : {"ieee", "fn", "fnuz", "finite"}
        What the top of the code space means, see the module's table.
    source : str
        Where the format is defined.
    dtype : numpy.dtype or None
        The NumPy or ml_dtypes dtype that stores it; None where there is none (tf32, custom formats).

    """

    name: str
    exponent_bits: int
    mantissa_bits: int
    bias: int
    specials: Specials = "ieee"
    source: str = field(default="custom", compare=False)
    dtype: np.dtype[Any] | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        for label in ("exponent_bits", "mantissa_bits", "bias"):
            value = getattr(self, label)
            if not is_integer(value):
                raise ValueError(f"{label} must be an integer, got {value!r}")
        if not 2 <= self.exponent_bits <= 8:
            raise ValueError(f"exponent_bits must be 2..8, got {self.exponent_bits}")
        if not 0 <= self.mantissa_bits <= 23:
            raise ValueError(f"mantissa_bits must be 0..23, got {self.mantissa_bits}")
        if self.specials not in SPECIALS:
            raise ValueError(f"specials must be one of {', '.join(SPECIALS)}, got {self.specials!r}")
        if self.specials == "fn" and self.mantissa_bits == 0:
            raise ValueError("an 'fn' format needs a mantissa bit: its only NaN is the code of all ones")
        smallest = self.emin - self.mantissa_bits
        of_float32 = self.emin == -126 and self.emax <= 127
        if not of_float32 and not (-110 <= smallest <= 0 and self.emax <= 127):
            raise ValueError(
                f"bias {self.bias} puts the smallest subnormal at 2^{smallest} and emax at {self.emax}; supported are "
                "smallest subnormals in 2^-110..2^0 and emax <= 127, or float32's own exponents (8 bits, bias 127)"
            )

    @classmethod
    def ieee(cls, exponent_bits: int, mantissa_bits: int, name: str | None = None) -> FloatFormat:
        """Build an IEEE-like format: bias ``2^(exponent_bits-1) - 1``, infinities, NaN, gradual underflow.

        Parameters
        ----------
        exponent_bits : int
            2..8.
        mantissa_bits : int
            0..23.
        name : str, optional
            Default ``e{exponent_bits}m{mantissa_bits}``; with ``_ieee`` behind it where that usually names another
            format of these widths (``e4m3_ieee``). `get_format` makes the same format of it.

        Raises
        ------
        ValueError
            A width is out of range.

        """
        for label, value, low, high in (
            ("exponent_bits", exponent_bits, 2, 8),
            ("mantissa_bits", mantissa_bits, 0, 23),
        ):
            check_integer(label, value, low, high)
        bias = 2 ** (exponent_bits - 1) - 1
        short = f"e{exponent_bits}m{mantissa_bits}"
        usual = short in _SHORT or short in _SCALES
        return cls(name or (f"{short}_ieee" if usual else short), exponent_bits, mantissa_bits, bias)

    def __str__(self) -> str:
        return self.name

    def __hash__(self) -> int:
        return self._hash

    def __reduce__(self) -> tuple[Any, ...]:
        # A registered format stays the one object that it is, so that `is` may compare formats. Of another what is
        # cached stays behind: hashes of strings differ between processes.
        if FORMATS.get(self.name) is self:
            return get_format, (self.name,)
        return FloatFormat, tuple(getattr(self, f.name) for f in fields(self))

    @cached_property
    def _hash(self) -> int:
        # kept, because every rounding looks its constants up by format
        return hash((self.name, self.exponent_bits, self.mantissa_bits, self.bias, self.specials))

    @cached_property
    def bits(self) -> int:
        """Width of a code: 1 + exponent_bits + mantissa_bits."""
        return 1 + self.exponent_bits + self.mantissa_bits

    @cached_property
    def precision(self) -> int:
        """Significand bits with the implicit one, p = mantissa_bits + 1."""
        return self.mantissa_bits + 1

    @cached_property
    def eps(self) -> float:
        """Distance from 1 to the next value, 2^(1-p)."""
        return 2.0 ** (1 - self.precision)

    @cached_property
    def unit_roundoff(self) -> float:
        """Unit roundoff: the largest relative error of a ties mode in the normal range, eps/2 = 2^-p."""
        return self.eps / 2

    @cached_property
    def emin(self) -> int:
        """Exponent of the smallest normal, 1 - bias."""
        return 1 - self.bias

    @cached_property
    def emax(self) -> int:
        """Exponent of the largest finite value: the top exponent field (``ieee``: the one below it) minus bias."""
        top = (1 << self.exponent_bits) - 1
        return (top - 1 if self.specials == "ieee" else top) - self.bias

    @cached_property
    def max_significand(self) -> int:
        """Significand of the largest finite value as an integer of p bits: 2^p - 1, for ``fn`` 2^p - 2."""
        return (1 << self.precision) - (2 if self.specials == "fn" else 1)

    @cached_property
    def max(self) -> float:
        """Largest finite value, max_significand * 2^(emax - mantissa_bits)."""
        return self.max_significand * 2.0 ** (self.emax - self.mantissa_bits)

    @cached_property
    def min(self) -> float:
        """Smallest (most negative) finite value, -max."""
        return -self.max

    @cached_property
    def smallest_normal(self) -> float:
        """Smallest positive normal value, 2^emin."""
        return 2.0**self.emin

    @cached_property
    def smallest_subnormal(self) -> float:
        """Smallest positive value, 2^(emin - mantissa_bits); without mantissa bits it is the smallest normal."""
        return 2.0 ** (self.emin - self.mantissa_bits)

    @cached_property
    def flush_threshold(self) -> float:
        """Largest magnitude that ties_to_even rounds to zero, smallest_subnormal / 2 (the tie itself goes to zero)."""
        return self.smallest_subnormal / 2

    @cached_property
    def subnormal_threshold(self) -> float:
        """Smallest magnitude that ties_to_even rounds to a normal, smallest_normal - smallest_subnormal / 2.

        Without mantissa bits there are no subnormals, and this tie goes to zero: it is `flush_threshold`.
        """
        return self.smallest_normal - self.smallest_subnormal / 2

    @cached_property
    def overflow_threshold(self) -> float:
        """Magnitude from which ties_to_even does not stay finite (or is clamped), max + spacing(max) / 2.

        The tie itself overflows where `overflow_inclusive` is true. It is false for fp8_e4m3fn alone, whose largest
        value 448 has an even significand: 464 still becomes 448, and all above it NaN.
        """
        return self.max + 2.0 ** (self.emax - self.mantissa_bits - 1)

    @cached_property
    def overflow_inclusive(self) -> bool:
        """Whether `overflow_threshold` itself overflows: the significand of max is odd, so that the tie goes up."""
        return self.max_significand % 2 == 1

    @cached_property
    def has_infinity(self) -> bool:
        """Whether there are codes for the infinities."""
        return self.specials == "ieee"

    @cached_property
    def has_nan(self) -> bool:
        """Whether there is a code for NaN."""
        return self.specials in ("fn", "fnuz") or (self.specials == "ieee" and self.mantissa_bits > 0)

    @cached_property
    def has_negative_zero(self) -> bool:
        """Whether -0.0 and +0.0 have different codes."""
        return self.specials != "fnuz"

    @cached_property
    def infinity_code(self) -> int | None:
        """Code of +infinity, an exponent field of ones with a fraction of zero; None without infinities."""
        return ((1 << self.exponent_bits) - 1) << self.mantissa_bits if self.has_infinity else None

    @cached_property
    def nan_code(self) -> int | None:
        """Code of a quiet NaN: its first fraction bit set; ``fn``: all ones; ``fnuz``: -0.0; None without NaN."""
        if not self.has_nan:
            return None
        if self.infinity_code is not None:
            return self.infinity_code | 1 << (self.mantissa_bits - 1)
        return (1 << (self.bits - 1)) - (1 if self.specials == "fn" else 0)

    @cached_property
    def overflow_value(self) -> float:
        """What lies beyond max: infinity, NaN where there is none, max itself where there is neither."""
        return math.inf if self.has_infinity else math.nan if self.has_nan else self.max

    @cached_property
    def saturates(self) -> bool:
        """Whether overflow is clamped to max for want of anything else."""
        return self.specials == "finite"


def _dtype(name: str) -> np.dtype[Any]:
    return np.dtype(getattr(ml_dtypes, name, name))


_IEEE = "IEEE 754-2019, table 3.5"
_OFP8 = "OCP 8-bit Floating Point Specification (OFP8) 1.0, 2023"
_MX = "OCP Microscaling Formats (MX) Specification 1.0, 2023"
_FNUZ = "Noune et al. 2022, arXiv 2206.02915"

FORMATS: dict[str, FloatFormat] = {
    f.name: f
    for f in (
        FloatFormat("fp32", 8, 23, 127, "ieee", f"{_IEEE} (binary32)", _dtype("float32")),
        FloatFormat("tf32", 8, 10, 127, "ieee", "NVIDIA A100 Tensor Core GPU Architecture, 2020"),
        FloatFormat("fp16", 5, 10, 15, "ieee", f"{_IEEE} (binary16)", _dtype("float16")),
        FloatFormat("bf16", 8, 7, 127, "ieee", "Kalamkar et al. 2019, arXiv 1905.12322", _dtype("bfloat16")),
        FloatFormat("fp8_e4m3fn", 4, 3, 7, "fn", f"{_OFP8} (E4M3)", _dtype("float8_e4m3fn")),
        FloatFormat("fp8_e5m2", 5, 2, 15, "ieee", f"{_OFP8} (E5M2)", _dtype("float8_e5m2")),
        FloatFormat("fp8_e4m3", 4, 3, 7, "ieee", "ml_dtypes float8_e4m3 (IEEE-like)", _dtype("float8_e4m3")),
        FloatFormat("fp8_e3m4", 3, 4, 3, "ieee", "ml_dtypes float8_e3m4 (IEEE-like)", _dtype("float8_e3m4")),
        FloatFormat("fp8_e4m3fnuz", 4, 3, 8, "fnuz", _FNUZ, _dtype("float8_e4m3fnuz")),
        FloatFormat("fp8_e5m2fnuz", 5, 2, 16, "fnuz", _FNUZ, _dtype("float8_e5m2fnuz")),
        FloatFormat(
            "fp8_e4m3b11fnuz", 4, 3, 11, "fnuz", "Sun et al. 2019, NeurIPS (HFP8)", _dtype("float8_e4m3b11fnuz")
        ),
        FloatFormat("fp6_e2m3fn", 2, 3, 1, "finite", f"{_MX} (FP6 E2M3)", _dtype("float6_e2m3fn")),
        FloatFormat("fp6_e3m2fn", 3, 2, 3, "finite", f"{_MX} (FP6 E3M2)", _dtype("float6_e3m2fn")),
        FloatFormat("fp4_e2m1fn", 2, 1, 1, "finite", f"{_MX} (FP4 E2M1)", _dtype("float4_e2m1fn")),
    )
}
"""The registered formats, by name."""

register(FloatFormat, str, lambda name: get_format(name))

ALIASES: dict[str, str] = {
    **dict.fromkeys(("float32", "binary32", "single", "f32"), "fp32"),
    **dict.fromkeys(("float16", "binary16", "half", "f16"), "fp16"),
    **dict.fromkeys(("bfloat16", "brain"), "bf16"),
    **dict.fromkeys(("tensorfloat32", "tensorfloat_32"), "tf32"),
    # without a width: what cards, torch and OCP mean; the IEEE-like ones are e4m3_ieee, e2m1_ieee ...
    **dict.fromkeys(("e4m3", "ofp8_e4m3", "f8_e4m3"), "fp8_e4m3fn"),
    **dict.fromkeys(("e5m2", "ofp8_e5m2", "f8_e5m2"), "fp8_e5m2"),
    **{f"{start}e2m3": "fp6_e2m3fn" for start in ("", "fp6_", "f6_", "float6_")},
    **{f"{start}e3m2": "fp6_e3m2fn" for start in ("", "fp6_", "f6_", "float6_")},
    **dict.fromkeys(("e2m1", "fp4_e2m1", "f4_e2m1", "float4_e2m1", "f4", "float4_e2m1fn_x2"), "fp4_e2m1fn"),
    # float8_e4m3fn, float6_e2m3fn, float4_e2m1fn ...: the names of ml_dtypes; e4m3fn, f8_e4m3fnuz ...: of safetensors
    **{name.replace("fp", "float", 1): name for name in FORMATS if re.match(r"fp[468]_", name)},
    **{name.replace("fp", "f", 1): name for name in FORMATS if re.match(r"fp[468]_\w+(fn|fnuz)$", name)},
    **{name[4:]: name for name in FORMATS if re.match(r"fp[468]_\w+(fn|fnuz)$", name)},
}

_SHORT = ("e4m3", "e5m2", "e3m2", "e2m3", "e2m1")
_BLOCKS = "a scaled format, blocks of elements that share a scale; ask about its elements,"
_SCALES = dict.fromkeys(
    ("e8m0", "e8m0fnu", "f8_e8m0", "f8_e8m0fnu", "fp8_e8m0", "fp8_e8m0fnu", "float8_e8m0fnu"),
    "the format of block scales: powers of two alone, without sign and zero; the IEEE-like one is e8m0_ieee",
)
_REFUSED = {
    **_SCALES,
    **dict.fromkeys(("mxfp4", "mxf4", "nvfp4", "nvf4"), f"{_BLOCKS} fp4_e2m1fn"),
    **dict.fromkeys(("mxfp6", "mxf6"), f"{_BLOCKS} fp6_e2m3fn or fp6_e3m2fn"),
    **dict.fromkeys(("mxfp8", "mxf8"), f"{_BLOCKS} fp8_e4m3fn or fp8_e5m2"),
    **{f"mx{ALIASES[short].removesuffix('fn')}": f"{_BLOCKS} {ALIASES[short]}" for short in _SHORT},
    **dict.fromkeys(("fp8", "float8", "f8"), "the name of several formats: fp8_e4m3fn, fp8_e5m2 ..."),
    **dict.fromkeys(("fp6", "float6", "f6"), "the name of several formats: fp6_e2m3fn, fp6_e3m2fn"),
    **dict.fromkeys(("fp4", "float4"), "the name of several formats: fp4_e2m1fn, or blocks of it with a scale"),
    "nf4": "a table of 16 numbers with a scale, no floating-point format",
}
"""Names that people have for what is none of the formats, and what it is."""


def get_format(spec: FormatLike) -> FloatFormat:
    """Return the format that `spec` names.

    Parameters
    ----------
    spec : str, numpy.dtype, type, torch.dtype or FloatFormat
        A registered name (``fp16``), an alias (``float16``, ``half``, ``float8_e4m3fn``, ``F8_E4M3``; case does not
        matter), a NumPy, ml_dtypes or torch dtype or scalar type, or a FloatFormat, which is returned as it is. Or
        ``e<exponent bits>m<mantissa bits>``: for ``e4m3``, ``e5m2``, ``e3m2``, ``e2m3`` and ``e2m1`` the usual format
        of that name (OCP's: 448, 57344, 28, 7.5 and 6 at most), for other widths the IEEE-like one (``e6m9``); with
        ``_ieee`` behind it always the IEEE-like one (``e4m3_ieee``).

    Raises
    ------
    ValueError
        Nothing of that name; the message lists the registered ones, or says what a name means that others use.

    """
    if isinstance(spec, FloatFormat):
        return spec
    name = spec if isinstance(spec, str) else _dtype_name(spec)
    if name in FORMATS:
        return FORMATS[name]
    key = name.strip().lower().replace("-", "_").removeprefix("torch.")
    if ALIASES.get(key, key) in FORMATS:
        return FORMATS[ALIASES.get(key, key)]
    if key in _REFUSED:
        raise ValueError(f"unknown format {spec!r}: {key} is {_REFUSED[key]}")
    if custom := re.fullmatch(r"e(\d)m(\d{1,2})(?:_ieee)?", key):
        return FloatFormat.ieee(int(custom[1]), int(custom[2]))
    raise ValueError(
        f"unknown format {spec!r}; choose one of {', '.join(FORMATS)}, or e<exponent bits>m<mantissa bits> such as e6m9"
    )


def _dtype_name(spec: Any) -> str:
    if type(spec).__module__ == "torch":
        return str(spec)
    if spec is None:  # NumPy's default
        return ""
    try:
        return str(np.dtype(spec).name)
    except TypeError:
        return ""
