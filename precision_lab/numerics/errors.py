"""Errors of this floor that are no ValueError: nothing is wrong with the arguments."""


class CompilerDisabledError(RuntimeError):
    """numba's compiler is switched off, by NUMBA_DISABLE_JIT or its configuration file; in one line, with the cure."""
