"""The compiled inner loops; only this folder imports numba.

Which rounding serves whom, that is, why there are twelve:

===================================  ======================================================================
`rounding.mask_*`                    arrays, deterministic modes, formats with float32's exponents (bf16, tf32)
`rounding.ADD`                       arrays, deterministic modes, where C of the addition is in range
`rounding.directed_*`                arrays, deterministic modes, every format, the slowest
`stochastic.random`, ``seeded``      arrays, stochastic, with given numbers or those of a seed
`optimizers._even`                   one float32, ties to even, every format: between other operations
`optimizers.round_even`              the same of arrays: after an operation, in the call that has made it
`sums.add`                           one sum of two float64, every mode: each depends on the one before
`sums.rounded`                       the same without branches: many at a time, and what `add` leaves aside
`tiles._round`                       the same in vectors, where sums are doubles and none overflows
`sums.add_in_turn`                   one positive float64, every mode: endless sums, as fast as may be
`codes.encode_*`                     arrays of float32 straight to codes, ties to even
`tiles._round_normal`                the same where none is subnormal either: most sums of matrix products
===================================  ======================================================================
"""

from __future__ import annotations

from precision_lab.numerics.kernels import (
    addresses,
    codes,
    counts,
    histogram,
    lanes,
    optimizers,
    product_sums,
    products,
    quantization,
    rounding,
    stochastic,
    sums,
    tiles,
    updates,
    weights,
)

__all__ = [
    "addresses",
    "codes",
    "counts",
    "histogram",
    "lanes",
    "optimizers",
    "product_sums",
    "products",
    "quantization",
    "rounding",
    "stochastic",
    "sums",
    "tiles",
    "updates",
    "weights",
]
