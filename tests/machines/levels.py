"""Environments that make one processor behave as others do, as far as the libraries let it be told."""

from __future__ import annotations

BLAS = ("Haswell", "Sandybridge", "Prescott")
NUMPY_BASELINE = {"NPY_DISABLE_CPU_FEATURES": "X86_V3 X86_V4 AVX512_ICL AVX512_SPR"}  # absent names pass in silence
NUMBA_GENERIC = {"NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": ""}
LIBM_WITHOUT_FMA = {"GLIBC_TUNABLES": "glibc.cpu.hwcaps=-AVX2,-FMA,-FMA4"}

COMBINED = "combined"
AS_IT_IS = "as it is"

LEVELS: dict[str, dict[str, str]] = {
    AS_IT_IS: {},
    **{f"OpenBLAS {name}": {"OPENBLAS_CORETYPE": name} for name in BLAS},
    "NumPy without AVX-512": {"NPY_DISABLE_CPU_FEATURES": "X86_V4 AVX512_ICL AVX512_SPR"},
    "NumPy baseline": NUMPY_BASELINE,
    "numba generic": NUMBA_GENERIC,
    "libm without FMA": LIBM_WITHOUT_FMA,
    COMBINED: {"OPENBLAS_CORETYPE": "Prescott", **NUMPY_BASELINE, **NUMBA_GENERIC, **LIBM_WITHOUT_FMA},
    "1 thread": {"OPENBLAS_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"},
    "2 threads": {"OPENBLAS_NUM_THREADS": "2", "NUMBA_NUM_THREADS": "2"},
}
"""What is added to the environment, by name; what is set there already counts as `AS_IT_IS`."""

WORKERS = {"1 thread": 1}
"""The processes that share the runs, where they are not two."""
