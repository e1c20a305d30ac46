"""Where subnormal numbers are flushed to zero every answer is refused; each check is also shown to succeed without."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import precision_lab as lab
from precision_lab.analysis.recording import Recording, read_recording
from precision_lab.analysis.updates import step_report, update_outcomes
from precision_lab.numerics import fixed, layers
from precision_lab.numerics.accumulation import rounded_sum, sum_constants
from precision_lab.numerics.codec import Codec, codec, largest_magnitude
from precision_lab.numerics.codes import _way, _way_back
from precision_lab.numerics.environment import load_fixed_kernels, load_kernels, load_layer_kernels
from precision_lab.numerics.plans import (
    by_fields,
    decode_plan,
    decode_table,
    encode_plan,
    even_encode_plan,
    plan_of,
    stored_plan,
)
from precision_lab.numerics.rounding import _chosen
from precision_lab.numerics.verification import verify_against_ml_dtypes, verify_against_reference
from precision_lab.support.environment import require_gradual_underflow
from precision_lab.support.files import write_json
from precision_lab.testing.accumulators import check_accumulator
from precision_lab.testing.casts import check_cast
from precision_lab.training.models import MLP
from precision_lab.training.optimizer_state import start, update
from precision_lab.training.optimizers import SGD
from precision_lab.training.step import Recipe, begin, training_step
from precision_lab.training.storage import CONFIGURATIONS
from tests.flushing import SWITCHES, in_a_thread, mxcsr, needs_glibc_x86, reset, switch_on

pytestmark = needs_glibc_x86
Call = Callable[[], Any]

SUBNORMAL = np.array([2.0**-130, -(2.0**-140), 1.0], np.float32)
SMALL = lab.TrainingConfig(model="least_squares", steps=1)
FLAT = np.ones(4, np.float32)
FP32 = lab.get_format("fp32")
MODEL = MLP((3, 2))


@cache
def made() -> SimpleNamespace:
    """What some calls need: made where nothing is flushed, and compiles loops."""
    shapes = {name: x.shape for name, x in MODEL.init().items()}
    recipe = Recipe(MODEL, SGD(0.1), CONFIGURATIONS["fp32"], shapes)
    return SimpleNamespace(
        histogram=lab.ExponentHistogram.of(np.array([2.0**-1070, 1.0])),
        state=start(FLAT, SGD(0.1), CONFIGURATIONS["fp32"]),
        trace=lab.accumulate([2.0**-1070], "fp32"),
        codec=codec(lab.get_format("bf16")),
        same=codec(FP32),
        recipe=recipe,
        begun=begin(MODEL.init(), recipe),
    )


@pytest.fixture(autouse=True, scope="module")
def everything_is_made() -> None:
    made()


PUBLIC: dict[str, Call] = {
    "accumulate": lambda: lab.accumulate(SUBNORMAL, "bf16"),
    "audit_hyperparameters": lambda: lab.audit_hyperparameters("bf16"),
    "cast": lambda: lab.cast(SUBNORMAL, "bf16"),
    "count_conversion": lambda: lab.count_conversion(SUBNORMAL, "bf16", loss_scale=1000),
    "decode": lambda: lab.decode([1, 2], "bf16"),
    "dot": lambda: lab.dot(SUBNORMAL, SUBNORMAL, accumulator="bf16"),
    "encode": lambda: lab.encode(SUBNORMAL, "bf16"),
    "exact_sum": lambda: lab.exact_sum(SUBNORMAL),
    "frozen_fraction": lambda: lab.frozen_fraction(SUBNORMAL, 2.0**-140, "bf16"),
    "inspect_number": lambda: lab.inspect_number(Fraction(1, 2**130), "bf16"),
    "is_representable": lambda: lab.is_representable(SUBNORMAL, "bf16"),
    "matmul": lambda: lab.matmul(SUBNORMAL[None], SUBNORMAL[:, None], accumulator="fp32"),
    "matmul_fp32_accumulate": lambda: lab.matmul_fp32_accumulate(SUBNORMAL[None], SUBNORMAL[:, None]),
    "neighbours": lambda: lab.neighbours(0.0, "bf16"),
    "plan_files": lambda: lab.plan_files({"g": SUBNORMAL}, "fp16", loss_scales=[1000]),
    "plan_tensors": lambda: lab.plan_tensors([("g", made().histogram)], "fp16"),
    "plan_loss_scale": lambda: lab.plan_loss_scale(made().histogram, "fp16"),
    "preflight": lambda: lab.preflight({"w": SUBNORMAL}, lr=1e-3),
    "quantization_report": lambda: lab.quantization_report(SUBNORMAL, "bf16"),
    "replay_loss_scale": lambda: lab.replay_loss_scale(lab.DynamicLossScale(), [2.0**-1070], "fp16"),
    "round_to": lambda: lab.round_to(SUBNORMAL, "bf16"),
    "scan": lambda: lab.scan({"g": SUBNORMAL}),
    "spacing": lambda: lab.spacing(0.0, "bf16"),
    "stagnation": lambda: lab.stagnation(lab.Series.counting(), "bf16"),
    "sweep": lambda: lab.sweep([SMALL]),
    "train": lambda: lab.train(SMALL),
    "update_report": lambda: lab.update_report(SUBNORMAL, SUBNORMAL, "bf16"),
}
EXEMPT = (
    "get_mode",
    "get_scaler",
    "get_format",  # no number of a format is subnormal in a double
    "list_tensors",  # reads headers
    "memory_ledger",  # counts bytes
    "read_tensors",  # gives the bits as they are, see below
    "swamping_thresholds",  # ratios from 2 to 2^25
)
OTHERS: dict[str, Call] = {
    "ExponentHistogram.of": lambda: lab.ExponentHistogram.of(SUBNORMAL),
    "ExponentHistogram.of_chunks": lambda: lab.ExponentHistogram.of_chunks([SUBNORMAL]),
    "ExponentHistogram + ": lambda: made().histogram + made().histogram,
    "WeightGaps.of": lambda: lab.WeightGaps.of(SUBNORMAL, "bf16"),
    "DynamicLossScale": lambda: lab.DynamicLossScale(2.0**-140),
    "LossScalePlan": lambda: lab.LossScalePlan(made().histogram, lab.get_format("fp16"), 0).smallest_sufficient,
    "AccumulationTrace.exact_sum": lambda: made().trace.exact_sum,
    "rounded_sum": lambda: rounded_sum(SUBNORMAL, "bf16"),
    "step_report": lambda: step_report(SUBNORMAL, SUBNORMAL, SUBNORMAL, "bf16"),
    "update_outcomes": lambda: update_outcomes(SUBNORMAL, SUBNORMAL, "bf16"),
    "codec.round": lambda: made().codec.round(SUBNORMAL),
    "codec.encode": lambda: made().codec.encode(FLAT),
    "codec.decode": lambda: made().codec.decode(np.ones(2, made().codec.encode(FLAT).dtype)),
    "codec.compute": lambda: made().codec.compute("scaled_sum_32", np.float32(1), FLAT, FLAT),
    "codec.compute_pair": lambda: made().codec.compute_pair("kahan_32", FLAT, FLAT),
    "largest_magnitude": lambda: largest_magnitude(FLAT),
    "codec of fp32": lambda: made().same.round(SUBNORMAL),
    "start": lambda: start(FLAT, SGD(0.1), CONFIGURATIONS["fp32"]),
    "update": lambda: update(made().state, FLAT, SGD(0.1), CONFIGURATIONS["fp32"]),
    "kernels": load_kernels,
    "fixed_kernels": load_fixed_kernels,
    "layer_kernels": load_layer_kernels,
    "fixed.matmul": lambda: fixed.matmul(SUBNORMAL[None], SUBNORMAL[:, None]),
    "fixed.sum": lambda: fixed.sum(SUBNORMAL),
    "fixed.exp": lambda: fixed.exp(np.float32(-90)),
    "layers.linear": lambda: layers.linear(FLAT[None], FLAT[:, None], FLAT[:1], FP32),
    "layers.gelu": lambda: layers.gelu(FLAT),
    "MLP.loss": lambda: MODEL.loss(MODEL.init(), SUBNORMAL[None], np.zeros(1, np.int64)),
    "training_step": lambda: training_step(made().begun, made().recipe, SUBNORMAL[None], np.zeros(1, np.int64)),
    "verify_against_reference": lambda: verify_against_reference("fp4_e2m1fn"),
    "verify_against_ml_dtypes": lambda: verify_against_ml_dtypes("fp16"),
    "check_cast": lambda: check_cast(lambda x: x.astype(np.float16), "fp8_e5m2", "fp16"),
    "check_cast, in process": lambda: check_cast(lambda x: x.astype(np.float16), "fp8_e5m2", "fp16", isolate=False),
    "check_cast, stochastic": lambda: check_cast(lambda x: x.copy(), "fp8_e5m2", "fp8_e5m2", mode="stochastic"),
    "check_cast, E8M0": lambda: check_cast(lambda x: np.full(x.shape, 127, np.uint8), "fp8_e5m2", "float8_e8m0fnu"),
    "check_accumulator": lambda: check_accumulator(np.dot, "fp8_e5m2", length=5, lengths=()),
}
CALLS = PUBLIC | OTHERS


# ---- every entry ----


def test_every_public_function_is_tried_or_exempt() -> None:
    values = {name: getattr(lab, name) for name in lab.__all__}
    functions = {name for name, value in values.items() if callable(value) and not isinstance(value, type)}
    assert functions == {*PUBLIC, *EXEMPT}
    assert not set(PUBLIC) & set(EXEMPT)


@pytest.mark.parametrize("name", CALLS)
def test_it_succeeds_without(name: str) -> None:
    in_a_thread(CALLS[name])


@pytest.mark.parametrize("switch", SWITCHES)
@pytest.mark.parametrize("name", CALLS)
def test_it_is_refused(name: str, switch: str) -> None:
    with pytest.raises(FloatingPointError, match="flushed to zero in this thread"):
        in_a_thread(CALLS[name], SWITCHES[switch])


def test_only_the_environment_loads_the_kernels() -> None:
    """So that no entry can forget to ask."""

    def loads(source: str) -> bool:
        imports = (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Import | ast.ImportFrom))
        return any(re.search(r"numerics(\.| import .*)kernels", ast.unparse(node)) for node in imports)

    root = Path(lab.__file__).parent
    loading = {p.stem for p in root.rglob("*.py") if p.parent.name != "kernels" and loads(p.read_text())}
    assert loading == {"environment"}
    assert loads("def f():\n    from precision_lab.numerics import kernels")
    assert loads("import precision_lab.numerics.kernels")


def test_the_message_is_one_line_with_a_cure_that_works() -> None:
    def program() -> str:
        for bits in SWITCHES.values():
            switch_on(bits)
            with pytest.raises(FloatingPointError) as caught:
                require_gradual_underflow()
            reset()
            require_gradual_underflow()
            assert not mxcsr() & SWITCHES["both"]
        return str(caught.value)

    message = in_a_thread(program)
    assert "\n" not in message
    assert "ctypes.CDLL(None).fesetenv(ctypes.c_void_p(-1))" in message
    assert "torch.set_flush_denormal(False)" in message


def test_it_is_asked_after_the_code_of_others_has_run() -> None:
    """An argument that becomes an array may load anything."""

    class Lazy:
        def __array__(self, *args: Any, **kwargs: Any) -> Any:
            switch_on(SWITCHES["both"])
            return SUBNORMAL

    for call in (lambda: lab.round_to(Lazy(), "bf16"), lambda: lab.ExponentHistogram.of(Lazy())):
        with pytest.raises(FloatingPointError):
            in_a_thread(call)


# ---- what stays ----


def fresh_answers() -> list[Any]:
    return [
        [lab.round_to(SUBNORMAL, "bf16", mode, rng=0).tolist() for mode in lab.RoundingMode],
        lab.round_to(SUBNORMAL, "fp32", "toward_positive").tolist(),
        lab.encode(SUBNORMAL, "bf16").tolist(),
        lab.decode([1, 2, 0x8001], "bf16").tolist(),
        lab.accumulate(SUBNORMAL, "bf16").partial_sums.tolist(),
        codec(lab.get_format("bf16")).round(SUBNORMAL).tolist(),
        lab.spacing(0.0, "bf16"),
        lab.ExponentHistogram.of(SUBNORMAL).to_dict(),
    ]


def test_no_cache_remembers_what_was_refused() -> None:
    of_formats = (plan_of, by_fields, encode_plan, even_encode_plan, decode_plan, stored_plan, decode_table, codec)
    caches = (*of_formats, _chosen, _way, _way_back, sum_constants)
    for each in caches:
        each.cache_clear()
    expected = in_a_thread(fresh_answers)
    for bits in SWITCHES.values():
        for each in caches:
            each.cache_clear()
        for call in PUBLIC.values():
            with pytest.raises(FloatingPointError):
                in_a_thread(call, bits)
        assert [each.cache_info().currsize for each in caches] == [0] * len(caches)
        assert in_a_thread(fresh_answers) == expected


def run(program: str, **environment: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(Path(lab.__file__).parents[1]), str(Path(__file__).parents[1])])
    return subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | {"PYTHONPATH": path} | environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


# a copy of the process, which ends with that status; it is started without importing anything anew
IN_A_CHILD = """
import os, sys, warnings
warnings.simplefilter("ignore", DeprecationWarning)  # Python from 3.12 on warns of the threads of NumPy's BLAS
child = os.fork()
if not child:
    {}
    sys.exit()
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == {}
"""


@pytest.fixture(scope="module")
def bytecode(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where Python keeps compiled modules: those of NumPy and others are made under the first switch."""
    return tmp_path_factory.mktemp("bytecode")


@pytest.mark.parametrize("switch", SWITCHES)
def test_a_package_that_was_imported_under_it_is_right_after_the_cure(switch: str, bytecode: Path) -> None:
    """Not even the compiled modules remember: they are made anew here."""
    shutil.rmtree(bytecode.joinpath(*Path(lab.__file__).parent.parts[1:]), ignore_errors=True)
    kept = {"PYTHONPYCACHEPREFIX": str(bytecode), "PYTHONDONTWRITEBYTECODE": ""}
    show = "from tests.test_flush_to_zero import fresh_answers; print(fresh_answers())"
    set_it = f"from tests.flushing import switch_on, reset; switch_on({SWITCHES[switch]}); import precision_lab\n"
    refused = "precision_lab.round_to(1.0, 'bf16')"
    done = run(set_it + IN_A_CHILD.format(refused, 1) + f"reset()\n{show}", **kept)
    assert done.stdout == f"{fresh_answers()}\n", done.stderr
    assert "FloatingPointError: subnormal numbers are flushed" in done.stderr
    assert run(show, **kept).stdout == f"{fresh_answers()}\n"


def test_reading_gives_the_bits_as_they_are(tmp_path: Path) -> None:
    file = tmp_path / "a.npy"
    np.save(file, SUBNORMAL)

    def bits() -> list[int]:
        (_, chunks), *_ = lab.read_tensors(file)
        return [int(b) for chunk in chunks for b in chunk.view(np.uint32)]

    assert in_a_thread(bits, SWITCHES["both"]) == SUBNORMAL.view(np.uint32).tolist()


def test_files_with_numbers_are_neither_written_nor_read(tmp_path: Path) -> None:
    """Python's own texts of subnormal numbers are wrong there."""
    file = tmp_path / "a.json"
    for bits in SWITCHES.values():
        with pytest.raises(FloatingPointError):
            in_a_thread(lambda: write_json([2.0**-1070], file), bits)
    assert not list(tmp_path.iterdir())
    write_json(Recording("Linear", (), 0, 0, 0, 1).to_dict(), file)
    assert read_recording(file).model == "Linear"
    with pytest.raises(FloatingPointError):
        in_a_thread(lambda: read_recording(file), SWITCHES["DAZ"])


# ---- threads and processes ----


@pytest.mark.parametrize("name", ["scan", "sweep"])
def test_a_worker_looks_at_its_own_thread(name: str, tmp_path: Path) -> None:
    """Threads that were made under it keep it, whatever the thread that made them does later."""
    np.save(tmp_path / "a.npy", SUBNORMAL)
    work: dict[str, Callable[[Any], Any]] = {
        "scan": lambda pool: lab.scan(tmp_path, executor=pool),
        "sweep": lambda pool: lab.sweep([SMALL], executor=pool),
    }

    def spread(bits: int) -> Any:
        switch_on(bits)
        with ThreadPoolExecutor(1) as pool:
            assert bool(pool.submit(mxcsr).result() & SWITCHES["both"]) == bool(bits)
            reset()
            lab.round_to(1.0, "bf16")  # here it is well
            return work[name](pool)

    in_a_thread(lambda: spread(0))
    for bits in SWITCHES.values():
        with pytest.raises(FloatingPointError):
            in_a_thread(lambda bits=bits: spread(bits))  # type: ignore[misc]


def test_results_are_not_put_together_under_it(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", SUBNORMAL)
    with ThreadPoolExecutor(1) as pool:
        pool.submit(int).result()
        with pytest.raises(FloatingPointError):
            in_a_thread(lambda: lab.scan(tmp_path, executor=pool), SWITCHES["both"])
        assert lab.scan(tmp_path, executor=pool).total.nonzero == 3


def test_threads_of_the_blas_may_keep_it() -> None:
    """They are made when NumPy is imported; on one core there are none, and the product is right."""
    program = f"""if True:
        from tests.flushing import reset, switch_on
        switch_on({SWITCHES["both"]})
        import numpy
        reset()
        import precision_lab
        small, large = (numpy.full((512, 512), 2.0**power, numpy.float32) for power in (-70, -30))
        print((precision_lab.matmul_fp32_accumulate(large, large) == 2.0**-51).all())
        print((precision_lab.matmul_fp32_accumulate(small, small) == 2.0**-131).all())
    """
    done = run(program)
    refused = "FloatingPointError: subnormal numbers are flushed to zero in threads of NumPy's BLAS" in done.stderr
    assert (done.stdout, refused) in (("True\n", True), ("True\nTrue\n", False)), done
    assert run(program.replace("switch_on(", "max(0, ")).stdout == "True\nTrue\n"


# ---- functions of the user ----


def to_bf16(x: Any) -> Any:
    return lab.encode(x, "bf16")


def test_a_cast_that_switches_it_on_here_is_not_judged() -> None:
    def cast(x: Any) -> Any:
        codes = to_bf16(x)
        switch_on(SWITCHES["both"])
        return codes

    with pytest.raises(FloatingPointError, match="since the function was called"):
        in_a_thread(lambda: check_cast(cast, "fp32", "bf16", isolate=False))


def test_a_cast_that_flushes_in_its_own_process_is_told_so() -> None:
    def cast(x: Any) -> Any:
        switch_on(SWITCHES["both"])
        return x * np.float32(1)

    report = in_a_thread(lambda: check_cast(cast, "fp32", "fp32"))
    assert "flushes" in str(report)
    assert in_a_thread(lambda: check_cast(to_bf16, "fp32", "bf16")).ok


@pytest.mark.parametrize("fails", [False, True])
def test_a_dot_product_that_switches_it_on_is_not_judged(fails: bool) -> None:
    calls = 0

    def dot(x: Any, y: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 20:
            switch_on(SWITCHES["FTZ"])
            if fails:
                raise ValueError
        return np.dot(x, y)

    with pytest.raises(FloatingPointError, match="since the function was called"):
        in_a_thread(lambda: check_accumulator(dot, "fp16"))
    assert calls == 20


# ---- the command line, and a library that does it ----

FAST_MATH = "double nothing(void) { return 0; }\n"


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A shared library whose constructor switches it on, because of how it was linked."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        pytest.skip("needs a C compiler")
    folder = tmp_path_factory.mktemp("library")
    (folder / "fast.c").write_text(FAST_MATH)
    command = [compiler, "-O2", "-ffast-math", "-shared", "-fPIC", "fast.c", "-o", "libfast.so"]
    subprocess.run(command, cwd=folder, check=True, timeout=60)
    path = folder / "libfast.so"
    if run(f"import ctypes; ctypes.CDLL({str(path)!r}); print(5e-324 * float('1') == 0)").stdout != "True\n":
        pytest.skip("this compiler does not link crtfastmath.o into shared libraries (gcc from 13 on, clang)")
    return path


def test_a_library_built_with_fast_math(library: Path) -> None:
    load = f"import ctypes, precision_lab\nctypes.CDLL({str(library)!r})\n"
    ask = "print(precision_lab.round_to(2.0**-130, 'bf16') != 0)"
    assert "FloatingPointError: subnormal numbers are flushed" in run(load + ask).stderr
    assert run(f"{load}ctypes.CDLL(None).fesetenv(ctypes.c_void_p(-1))\n{ask}").stdout == "True\n"


@pytest.mark.parametrize(
    "arguments",
    [
        ["inspect", "2^-130", "-f", "bf16"],
        ["verify", "-f", "fp4_e2m1fn"],
        ["verify", "--cast", "numpy:float16", "--source", "fp8_e5m2", "--target", "fp16"],
    ],
)
def test_the_command_line_says_it_in_one_line(arguments: list[str]) -> None:
    program = f"import sys; from precision_lab.cli import main; sys.argv[1:] = {arguments!r}\n"
    under_it = f"from tests.flushing import switch_on; switch_on({SWITCHES['both']}); main()"
    done = run(program + IN_A_CHILD.format(under_it, 2) + "main()")
    assert done.returncode == 0, done.stderr  # of the one that is not under it
    assert done.stderr.startswith("precision-lab: error: subnormal numbers are flushed to zero")
    assert done.stderr.count("\n") == 1


def test_this_thread_was_never_touched() -> None:
    assert not mxcsr() & SWITCHES["both"]
    assert isinstance(made().codec, Codec)
