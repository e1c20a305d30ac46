"""What was found out about an accumulator."""

from __future__ import annotations

from dataclasses import dataclass

from precision_lab.numerics.formats import FORMATS, FloatFormat
from precision_lab.testing.addition_trees import Tree

_UNKNOWN = "rounded in no known mode, or it does not show"
_KNOWN: tuple[tuple[str, int, int, int], ...] = (
    ("fp64", 53, -1022, 1023),
    *((f.name, f.precision, f.emin, f.emax) for f in FORMATS.values() if f.bits > 4),
)


@dataclass(frozen=True)
class Width:
    """A format as far as it could be seen.

    Attributes
    ----------
    bits : int or None
        Significand bits; None if nothing was seen to be lost, however far apart the summands.
    at_least : int
        How many bits there are at least.
    name : str
        Of the registered formats that fit (fp64 too), joined by "or"; empty if none does.
    overflows : int or None
        The smallest k with 2^k out of range; None if no product is as large.
    largest : int
        The largest k with 2^k in range, of those that products reach.

    """

    bits: int | None
    at_least: int
    name: str
    overflows: int | None
    largest: int

    def __str__(self) -> str:
        bits = f"{self.bits} bits" if self.bits else f"at least {self.at_least} bits"
        named = f"{self.name}: " if self.name else ""
        end = f"no overflow up to 2^{self.largest}" if self.overflows is None else f"2^{self.overflows} overflows"
        return f"{named}{bits}; {end}"


def named_width(bits: int | None, at_least: int, largest: int, reach: int, smallest: int | None = None) -> Width:
    """Name a format by its bits, the largest and, where it is known, the smallest power of two."""
    overflows = largest + 1 if largest < reach else None
    names = [
        name
        for name, precision, emin, emax in _KNOWN
        if precision == bits
        and (emax == largest if overflows is not None else emax >= largest)
        and (smallest is None or smallest in (emin, emin - precision + 1))
    ]
    return Width(bits, at_least, " or ".join(names) if bits else "", overflows, largest)


def emin_of(width: Width) -> int | None:
    """Return the exponent of the smallest normal number of a named width; None of one without a name."""
    return max((emin for name, _, emin, _ in _KNOWN if name in width.name.split(" or ")), default=None)


@dataclass(frozen=True)
class Steps:
    """How a sum is made in steps, each of several products.

    Attributes
    ----------
    size : int
        Products of a step.
    cut : int or None
        Bits of the largest addend to which all are cut; None where a step is exact.
    aligned : str
        To the largest exponent of ``products``, or of ``factors``: the sum of theirs, one less where the product of two
        significands is 2 or more.
    joined : bool
        Whether the sum so far is one of the addends, or is added to the step's afterwards.
    bits : int or None
        To which the sum is rounded after every step; None where it is not.
    mode : str
        In which it is.
    emin : int or None
        The exponent of its smallest normal number; None where that is out of reach.
    open : tuple of str
        Those of the others that may be something else: they do not show.

    """

    size: int
    cut: int | None
    aligned: str
    joined: bool
    bits: int | None
    mode: str
    emin: int | None
    open: tuple[str, ...] = ()

    @property
    def kept(self) -> int | None:
        """The bits of the accumulator, as far as they show."""
        return None if "bits" in self.open else self.bits

    @property
    def additions(self) -> str:
        """What becomes of the sum, in words."""
        within = f"exact within {self.size} products; " if self.cut is None else ""
        if self.kept is None:
            return f"{within}no rounding after each {self.size} shows"
        mode = "in a mode that does not show" if "mode" in self.open else self.mode.replace("_", " ")
        return f"{within}{self.bits} bits after each {self.size}, {mode}"

    @property
    def products(self) -> str:
        """What becomes of the products, in words."""
        if self.cut is None:
            return "exact"
        to = {"products": ", of products", "factors": ", of factors' exponents added"}[self.aligned]
        return f"aligned and truncated to {self.cut} bits below the largest{'' if 'aligned' in self.open else to}"

    @property
    def order(self) -> str:
        """Which products are added in one step, in words."""
        so_far = "" if "joined" in self.open else " with the sum so far" if self.joined else ", then to the sum so far"
        return f"groups of {self.size}, each in one operation{so_far}"


@dataclass(frozen=True)
class AccumulatorReport:
    """What a dot product does, as far as its results show it.

    Attributes
    ----------
    source : FloatFormat
        Of the elements of the vectors.
    length : int
        Of the vectors.
    failure : str or None
        Why nothing could be found out: it raised, returned something that is no number, or is no dot product. All
        that follows is then None or empty.
    result_type : str
        Type of what it returned.
    accumulator : Width or None
        In which the sums are held; where not all additions are alike, the narrowest.
    widths : tuple of (int, int)
        For each precision that was found, how many of the additions have it (the last one shows its result's only).
    mode : str or None
        Rounding mode of the additions; None where it could not be seen or is none of the seven.
    products : str
        ``exact``, ``fused ...`` (exact too, where they may have more bits than the accumulator), ``rounded before they
        are added, to`` a width, or ``not seen``.
    tree : nested tuple of int, or None
        Which sums are added to which; None where nothing is ever lost, or what is lost makes no tree.
    order : str
        The tree, or the steps, in words.
    steps : Steps or None
        Where several products are added in one operation: how. `accumulator` is then what is left after each.
    orders : tuple of (int, int or None, str)
        Some other lengths, with the bits of the accumulator and the order there.
    output : Width or None
        Of the result.
    output_mode : str or None
        How the accumulator's sum is rounded to it; None where the result is the accumulator's sum.
    subnormal_inputs, subnormal_sums : str
        ``kept``, ``flushed`` or ``not reached``; a sum is that of the result.
    deterministic : bool
        Whether the same vectors gave the same result again.
    reproduced, trials : int
        How many of how many random dot products the description gives to the last bit.

    """

    source: FloatFormat
    length: int
    failure: str | None = None
    result_type: str = ""
    accumulator: Width | None = None
    widths: tuple[tuple[int, int], ...] = ()
    mode: str | None = None
    products: str = ""
    tree: Tree | None = None
    order: str = ""
    orders: tuple[tuple[int, int | None, str], ...] = ()
    output: Width | None = None
    output_mode: str | None = None
    subnormal_inputs: str = ""
    subnormal_sums: str = ""
    deterministic: bool = True
    reproduced: int = 0
    trials: int = 0
    steps: Steps | None = None

    @property
    def depends_on_length(self) -> bool:
        """Whether other lengths are added in another way."""
        return any((bits, order) != self._own for _, bits, order in self.orders)

    @property
    def _own(self) -> tuple[int | None, str]:
        return (self.accumulator.bits if self.accumulator else None, self.order)

    @property
    def explained(self) -> bool:
        """Whether the description reproduces every random dot product."""
        return 0 < self.trials == self.reproduced

    def __str__(self) -> str:
        head = f"dot product of {self.source} vectors, n = {self.length}"
        if self.failure:
            return f"{head}\ncould not be probed: {self.failure}"
        several = ", ".join(f"{count} additions with {bits} bits" for bits, count in self.widths)
        same, others = [], []
        for n, bits, order in self.orders:
            if (bits, order) == self._own:
                same.append(f"{n}")
            else:
                others.append(f"n = {n}: " + (f"{bits} bits, " if bits not in (None, self._own[0]) else "") + order)
        whole = ", nothing was lost" if self.explained and not self._own[0] and self.steps is None else ""
        rows = [
            ("accumulator", f"{self.accumulator}{whole}"),
            ("", several if len(self.widths) > 1 else ""),
            ("additions", self._additions()),
            ("products", self.products),
            ("order", self.order + (f" (also n = {', '.join(same)})" if same else "")),
            *(("", line) for line in others),
            ("result", f"{self.result_type}, {self.output}"),
            ("", f"rounded {self.output_mode}" if self.output_mode else ""),
            ("subnormals", f"inputs {self.subnormal_inputs}, sums {self.subnormal_sums}"),
            ("repeated", "the same result" if self.deterministic else "another result for the same vectors"),
            ("checked", f"{self.reproduced} of {self.trials} random dot products come out like this, bit for bit"),
        ]
        doubt = [] if self.explained else [f"  not understood: {self._doubt()}"]
        return "\n".join([head, *doubt, *(f"  {name:<13}{text}" for name, text in rows if text)])

    def _additions(self) -> str:
        if self.steps is not None:
            return self.steps.additions
        if self.mode is not None:
            return self.mode
        return "exact, as far as it shows" if self.explained and not self._own[0] else _UNKNOWN

    def _doubt(self) -> str:
        if not self.deterministic:
            return "the same vectors give another result each time; what follows is what single answers looked like"
        return f"only {self.reproduced} of {self.trials} random dot products come out as follows: there is more to it"
