"""How does this dot product add? Width, order and rounding of an accumulator, found out from its results alone.

"fp32 accumulation" in a data sheet says little. Tensor cores truncate where IEEE 754 rounds, libraries add in lanes or
in pairs, some round each product to the input's format before they add it, and the order changes with the length. All
of it can be measured through `dot(x, y)`, with vectors that are zero but for a few elements:

- *Width.* 2^b + 2^(b-t) - 2^b gives back 2^(b-t) as long as the accumulator has more than t bits. The large number
  cancels before the result is rounded for the caller, so this sees the accumulator, not the type of the result.
- *Order.* M and -M, so large that 1 is lost beside them, at places i and j, and 1 at place k: the 1 survives only if it
  is added after M and -M have met, so the result tells whether k is below the node of the tree of additions where i and
  j meet. From these nodes the whole tree follows (FPRev: Xie, Gao, Wang and Xue 2025, arXiv 2411.00442).
- *Rounding.* Sums a quarter, a half and three quarters of the way between two neighbours of the accumulator, even and
  odd, positive and negative, are told apart by each rounding mode in its own way.
- *Steps.* Where several products are added in one operation, 1 is lost beside M, or kept, whatever their order, up to
  the place where the next operation begins (accumulator_groups.py).
- *Products.* (1 + 2^-a)(1 + 2^-b) - (1 + 2^-a + 2^-b) leaves 2^-(a+b) only if the product came whole to the addition.

Fasi, Higham, Mikaitis and Pranesh 2021 (PeerJ Computer Science 7:e330) asked tensor cores such questions. At last all
that was found is put together again in exact arithmetic, and has to reproduce random dot products to the last bit: only
then can the answers be believed for other numbers than those that were asked.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from precision_lab.numerics.formats import FormatLike, get_format
from precision_lab.support.environment import require_gradual_underflow
from precision_lab.testing.accumulator_groups import Output, find_steps, result_of
from precision_lab.testing.accumulator_model import Model, Sample, reproduced, samples
from precision_lab.testing.accumulator_order import order_of
from precision_lab.testing.accumulator_probe import Dot, NoAnswerError, Probe, Scale, check_it_is_a_dot
from precision_lab.testing.accumulator_questions import (
    accumulator_bits,
    addition_mode,
    bits_of_products,
    largest_power,
    output_rounding,
    result_range,
    subnormals,
    widths_of_additions,
)
from precision_lab.testing.accumulator_report import AccumulatorReport, emin_of, named_width
from precision_lab.testing.addition_trees import nodes_of

NOTHING_LOST = "does not show: nothing is lost"
_TRIALS = 50
_WIDE = 12  # binades of the factors of random products, where alignment is to show


def check_accumulator(
    dot: Dot, source: FormatLike = "fp32", *, length: int = 64, lengths: Sequence[int] = (8, 17, 33), seed: int = 0
) -> AccumulatorReport:
    """Find out how a dot product adds.

    Parameters
    ----------
    dot : callable
        ``dot(x, y)`` takes two one-dimensional arrays and returns a number: a scalar, or anything without dimensions
        that `float` takes. It is called some thousand times.
    source : str, dtype or FloatFormat
        Of the elements: arrays of its dtype (float32 for formats without one). It has to have a mantissa bit. What its
        products do not reach, no vector shows: the widest accumulator that fp16 can tell from an exact one has some 50
        bits, fp8_e4m3fn 26, fp4 none.
    length : int
        Of the vectors, 5..256.
    lengths : sequence of int
        Other lengths, of which the order is found out too.
    seed : int
        For the random vectors of the last check.

    Raises
    ------
    ValueError
        A length or format that is not possible.
    FloatingPointError
        This thread flushes subnormal numbers to zero, or does so since `dot` was called.

    """
    require_gradual_underflow()
    fmt = get_format(source)
    if fmt.mantissa_bits == 0 or not 2 * fmt.emin <= 0 <= 2 * fmt.emax - 2:
        raise ValueError(f"source must have a mantissa bit and 1 well inside its range, got {fmt}")
    for n in (length, *lengths):
        if isinstance(n, bool) or not isinstance(n, int | np.integer) or not 5 <= n <= 256:
            raise ValueError(f"lengths must be integers in 5..256, got {n!r}")
    probe = Probe(dot, fmt, length)
    try:
        check_it_is_a_dot(probe)
        return _report(probe, lengths, seed)
    except NoAnswerError as error:
        return AccumulatorReport(fmt, length, failure=str(error))


def _report(probe: Probe, lengths: Sequence[int], seed: int) -> AccumulatorReport:
    fmt, n = probe.fmt, probe.length
    reach = 2 * fmt.emax
    vectors = np.random.default_rng(seed).standard_normal((8, 2, n))
    again = [len({probe.number(*pair) for _ in range(4)}) for pair in vectors]
    result_type = type(probe.ask(*vectors[0])).__name__

    largest = largest_power(probe)
    smallest, out_largest = result_range(probe)
    scale = Scale(max(largest - 1, 0), out_largest - 1)
    seen = accumulator_bits(probe, scale)
    bits, widest = seen or (None, None)
    tree, order = order_of(probe, widest, scale, seed)
    by_node = {} if tree is None else widths_of_additions(probe, tree, scale)
    counts = {width: list(by_node.values()).count(width) for width in sorted(set(by_node.values()))}
    mode = None if tree is None or bits is None else addition_mode(probe, tree, scale, by_node)
    product_bits, products = None, "not seen"
    if tree is not None and bits is not None and min(bits, fmt.precision) > 2:
        product_bits = bits_of_products(probe, tree, bits)
        products = "exact" if 2 * fmt.precision <= bits else "fused: exact, then added and rounded once"
    output_bits, output_mode = output_rounding(probe, bits)
    at_least = scale.top - 2 * fmt.emin
    output = named_width(
        output_bits or bits, at_least, out_largest, reach, smallest if smallest > 2 * fmt.emin else None
    )
    accumulator = named_width(bits, at_least, largest, reach)
    if output_bits is None and bits is not None:
        accumulator = output
    if product_bits is not None:
        of_products = accumulator if product_bits == bits else named_width(product_bits, 0, largest, reach)
        products = f"rounded before they are added, to {of_products}"
        if product_bits != bits and largest < reach:  # it was the products that overflowed
            accumulator = named_width(bits, at_least, largest, largest)
    inputs, sums = subnormals(probe, smallest, output)
    model = Model(
        tree,
        by_node,
        bits,
        mode or "ties_to_even",
        product_bits,
        output_bits,
        output_mode or "ties_to_even",
        emin_of(accumulator),
        emin_of(output),
    )
    drawn = samples(probe, min(largest, out_largest), seed, _TRIALS)
    known = tree is not None or bits is None
    report = AccumulatorReport(
        source=fmt,
        length=n,
        result_type=result_type,
        accumulator=accumulator,
        widths=tuple(counts.items()),
        mode=mode,
        products=products,
        tree=tree,
        order=order,
        output=output,
        output_mode=output_mode,
        subnormal_inputs=inputs,
        subnormal_sums=sums,
        deterministic=max(again) == 1,
        reproduced=reproduced(drawn, model) if known else 0,
        trials=_TRIALS,
    )
    in_groups = tree is not None and any(len(node) > 2 for node in nodes_of(tree))
    if in_groups or not report.explained:
        report = _with_steps(report, probe, scale, drawn, (output_bits, output_mode), seed)
    if bits is None and report.steps is None and report.explained:
        report = replace(report, order=NOTHING_LOST)
    shorter = (Probe(probe.dot, fmt, other) for other in lengths)
    return replace(report, orders=tuple(_elsewhere(report, other, scale, seed) for other in shorter))


def _elsewhere(report: AccumulatorReport, probe: Probe, scale: Scale, seed: int) -> tuple[int, int | None, str]:
    """Return another length, with the bits of the accumulator and the order there."""
    assert report.accumulator is not None
    assert report.output is not None
    drawn = samples(probe, min(report.accumulator.largest, report.output.largest), seed, _TRIALS // 5)
    if report.steps is not None:
        width = None if report.output_mode is None else report.output.bits
        rounding = Output(width, report.output_mode or "toward_zero", emin_of(report.output))
        if all(result_of(report.steps, sample, rounding) == sample.result for sample in drawn):
            return probe.length, report.accumulator.bits, report.order
    fewest, most = accumulator_bits(probe, scale) or (None, None)
    order = order_of(probe, most, scale, seed)[1]
    if fewest is None and report.explained and all(float(sum(sample.terms)) == sample.result for sample in drawn):
        order = NOTHING_LOST
    return probe.length, fewest, order


def _with_steps(
    report: AccumulatorReport,
    probe: Probe,
    scale: Scale,
    drawn: Sequence[Sample],
    rounding: tuple[int | None, str | None],
    seed: int,
) -> AccumulatorReport:
    """Return the report on a sum in steps, if there are any that give all random dot products, and more of them."""
    assert report.output is not None
    assert report.accumulator is not None
    top = min(report.accumulator.largest, report.output.largest)
    more = (samples(probe, top, seed, _TRIALS // 2, _WIDE, cancel) for cancel in (False, True))
    drawn = [*drawn, *itertools.chain(*more)]
    for bits, mode in dict.fromkeys([(None, None), rounding]):
        emin = emin_of(report.output)
        steps = find_steps(
            probe, scale, drawn, Output(bits, mode or "toward_zero", emin), emin if bits is None else None
        )
        if steps is None:
            continue
        accumulator = named_width(
            steps.kept, report.accumulator.at_least, report.accumulator.largest, 2 * probe.fmt.emax
        )
        return replace(
            report,
            accumulator=accumulator,
            widths=(),
            mode=None if steps.kept is None or "mode" in steps.open else steps.mode,
            products=steps.products,
            order=steps.order if steps.size < probe.length else "all in one operation",
            output=report.output if bits else replace(accumulator, largest=report.output.largest),
            output_mode=mode if bits else None,
            reproduced=report.trials,
            steps=steps,
        )
    return report
