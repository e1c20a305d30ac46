"""Mutation score: how many changes of one token do the tests of a module see? `make mutants`; results: docs/mutants.md.

A script of our own. mutmut 3 leaves out decorated functions (compiled loops, caches, properties), fields of dataclasses
and constants of modules; cosmic-ray writes into the working tree and runs one command for all modules; neither knows
numba's cache. Here each of two slots has a copy of the repository, where one mutant at a time is written and taken out
again. A mutant of a compiled module gets a cache of its own, so that it is compiled; the others share the slot's.

First every file of tests has to pass there, and it is noted how long each test takes and which functions it calls. Then
a mutant is run against the tests of its module: those first that call the function, the quick before the slow, up to
the first failure. A test that uses ten times its seconds (of the processor) and thirty more hangs: killed.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import hashlib
import io
import json
import os
import queue
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import tokenize
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from types import CodeType, FrameType
from typing import Any, TypeAlias

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE, KEPT, DOCUMENT = ROOT / "precision_lab", ROOT / ".mutants", ROOT / "docs" / "mutants.md"
FOLDERS = ("numerics", "tensors", "analysis", "training", "testing")
SLOTS = 2
COMPILED = "numerics/kernels/"
ALL = "test_frozen.py"  # files of tests that look at every module
LOOPS = (
    "numerics/test_rounding.py numerics/test_codes.py numerics/test_codec.py numerics/test_accumulation.py "
    "numerics/test_stochastic.py numerics/test_integers.py numerics/test_rounding_arguments.py "
    "numerics/test_inspection.py analysis/test_histogram.py analysis/test_swamping.py training/test_optimizers.py"
)
MORE = {  # files of tests that do not name the module
    **{str(path.relative_to(PACKAGE)): LOOPS for path in (PACKAGE / COMPILED).glob("*.py")},
    "numerics/kernels/compiled.py": "numerics/test_compiled.py",
    "numerics/kernels/fixed.py": "numerics/test_fixed.py",
    "numerics/kernels/layers.py": "training/models/test_one_call.py",
    "numerics/kernels/quantization.py": "analysis/test_quantization.py",
    "numerics/layers.py": "training/models/test_one_call.py",
    "numerics/accumulation.py": "test_flush_to_zero.py",
    "numerics/environment.py": "test_flush_to_zero.py",
    **{f"tensors/{part}.py": "tensors/test_tensor_files.py" for part in ("npy", "safetensors")},
    "tensors/slices.py": "analysis/test_scan_spread.py",
    "tensors/pairs.py": "analysis/test_swamping_scan.py",
    "tensors/codes.py": "tensors/test_roles.py analysis/test_swamping_scan.py",
    "tensors/nested.py": "tensors/test_in_memory.py tensors/test_hostile_files.py",
    "training/preflight/adam_state.py": "tensors/test_torch_files.py training/test_memory.py "
    "training/preflight/test_run.py training/test_optimizers.py",
    "testing/__init__.py": "testing/test_exports.py",
    **{f"testing/accumulator_{part}.py": "testing/test_accumulators.py" for part in ("order", "probe")},
    "testing/accumulator_model.py": "testing/test_accumulators.py testing/test_accumulator_groups.py",
    **{f"testing/cast_{part}.py": "testing/test_casts.py" for part in ("check", "course")},
    **{
        f"testing/cast_{part}.py": "testing/test_casts_zoo.py testing/test_clamps_and_decoders.py"
        for part in ("faults", "models", "suspects")
    },
    "testing/cast_chance.py": "testing/test_chance.py",
    "testing/isolation.py": "testing/test_casts.py testing/test_accumulators.py testing/test_flush_watch.py",
}
MARKS = "not (exhaustive or machines or browser or distributed or notebooks or docs or checkpoint)"
OTHER = {"+": "-", "-": "+", "*": "+", "/": "*", "//": "*", "%": "*", "**": "*", "@": "*", "<<": ">>", ">>": "<<"}
OTHER |= {"&": "|", "|": "&", "^": "&", "and": "or", "or": "and"}
OTHER |= {"==": "!=", "!=": "==", "<": "<=", "<=": "<", ">": ">=", ">=": ">", "is": "is not", "is not": "is"}
OTHER |= {"in": "not in", "not in": "in", "not": "", "~": "", "break": "continue", "continue": "break"}
Plan: TypeAlias = dict[str, tuple[float, list[str]]]  # of each test: its seconds, and the functions that it calls


@dataclass(frozen=True)
class Mutant:
    module: str
    start: int  # of the bytes that are replaced
    end: int
    new: str
    function: str  # module:line

    def source(self) -> bytes:
        old = (PACKAGE / self.module).read_bytes()
        return old[: self.start] + self.new.encode() + old[self.end :]

    def name(self) -> str:
        """Return what it is called in the document: the line that was and the line that is."""
        old, new = (PACKAGE / self.module).read_bytes(), self.source()
        begin = old.rfind(b"\n", 0, self.start) + 1
        was, now = (" ".join(text[begin:].split(b"\n")[0].decode().split()) for text in (old, new))
        return f"`{self.module}`: `{was}` → `{now}`"


def mutants_of(module: str) -> list[Mutant]:
    source = (PACKAGE / module).read_bytes()
    begin = [0]
    for line in source.splitlines(keepends=True):
        begin.append(begin[-1] + len(line))
    tokens = [
        (begin[token.start[0] - 1] + len(token.line[: token.start[1]].encode()), token.string)
        for token in tokenize.tokenize(io.BytesIO(source).readline)
        if token.type in (tokenize.OP, tokenize.NAME) and token.string not in "()"
    ]
    found = []

    def ends(node: Any) -> tuple[int, int]:
        return begin[node.lineno - 1] + node.col_offset, begin[node.end_lineno - 1] + node.end_col_offset

    def change(start: int, end: int, function: str) -> None:
        words = [(at, text) for at, text in tokens if start <= at < end]
        old = " ".join(text for _, text in words)
        plain = old if old in OTHER else old.removesuffix("=")  # of `x += 1`
        found.append(
            Mutant(module, words[0][0], words[-1][0] + len(words[-1][1]), OTHER[plain] + old[len(plain) :], function)
        )

    def visit(node: ast.AST, function: str, is_default: bool = False) -> None:
        match node:
            case ast.FunctionDef(lineno=line, decorator_list=decorators):
                function = f"{module}:{min([line, *(part.lineno for part in decorators)])}"
            case ast.JoinedStr() | ast.Call(func=ast.Name("njit")) | ast.AnnAssign(annotation=ast.Name("TypeAlias")):
                return
            case ast.BinOp():
                change(ends(node.left)[1], ends(node.right)[0], function)
            case ast.AugAssign():
                change(ends(node.target)[1], ends(node.value)[0], function)
            case ast.Compare() | ast.BoolOp():
                parts = node.values if isinstance(node, ast.BoolOp) else [node.left, *node.comparators]
                for left, right in pairwise(parts):
                    change(ends(left)[1], ends(right)[0], function)
            case ast.UnaryOp(op=ast.USub()):
                found.append(Mutant(module, ends(node)[0], ends(node)[0] + 1, "", function))
            case ast.UnaryOp(op=ast.Not() | ast.Invert()):
                change(ends(node)[0], ends(node.operand)[0], function)
            case ast.Break() | ast.Continue():
                change(*ends(node), function)
            case ast.Constant(value=bool() | int() | float() as value):
                others = [type(value)(1 - value)] if value in (0, 1) else [value + 1, value - 1]
                for other in others:
                    found.append(Mutant(module, *ends(node), f"{other}" if other >= 0 else f"({other})", function))
            case ast.Constant(value=str()) if is_default:
                found.append(Mutant(module, *ends(node), "None", function))
        for field, child in ast.iter_fields(node):
            for part in child if isinstance(child, list) else [child]:
                if isinstance(part, ast.AST) and field not in ("annotation", "returns"):
                    visit(part, function, field in ("defaults", "kw_defaults"))

    visit(ast.parse(source), f"{module}:0")
    return found


def sample(count: int, seed: int) -> list[Mutant]:
    modules = sorted(str(path.relative_to(PACKAGE)) for folder in FOLDERS for path in (PACKAGE / folder).rglob("*.py"))
    every = [mutant for module in modules for mutant in mutants_of(module)]
    return random.Random(seed).sample(every, min(count, len(every)))


def tests_of(module: str) -> list[Path]:
    """Return the files of its own name, those of its folder that import it, and those of the table."""
    folder, name = module.removesuffix(".py").rsplit("/", 1)
    files = sorted((ROOT / "tests" / folder).glob("test_*.py"))
    package = folder.replace("/", r"\.")
    imports = re.compile(rf"^ *from precision_lab\.{package}(\.{name} import| import .*\b{name}\b)", re.MULTILINE)
    own = [path for path in files if path.stem == f"test_{name}"]
    near = [path for path in files if imports.search(path.read_text("utf-8"))]
    more = [ROOT / "tests" / path for path in MORE.get(module, "").split()]
    return list(dict.fromkeys([*own, *near, *more, *(ROOT / "tests").glob(ALL)]))


def digest(*paths: Path) -> str:
    return hashlib.sha256(b"".join(hashlib.sha256(path.read_bytes()).digest() for path in paths)).hexdigest()[:16]


def run(copy: Path, files: list[Path], plan: Plan, seconds: float, cache: Path | None = None) -> str:
    """Run tests in a copy; return what failed, '' for nothing."""
    (copy / "plan").write_text(json.dumps(plan), encoding="utf-8")
    command = [sys.executable, "-m", "pytest", "-x", "--tb=no", "-p", "no:cacheprovider", "-p", "tests.mutants", "-m"]
    command += [MARKS, *(str(path.relative_to(ROOT)) for path in files)]
    # where CI is set, Hypothesis draws the same examples again
    environment = os.environ | {"PYTHONPATH": str(copy), "CI": "true", "PYTHONHASHSEED": "0"}
    environment |= {"PYTHONDONTWRITEBYTECODE": "1"} | ({"NUMBA_CACHE_DIR": str(cache)} if cache else {})
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    with subprocess.Popen(command, cwd=copy, env=environment, start_new_session=True, **pipes) as child:
        try:
            out = str(child.communicate(timeout=seconds)[0])
        except subprocess.TimeoutExpired:
            out = f"FAILED: no end within {seconds:.0f} s"
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)  # what a test has left, too
    if child.returncode in (0, 5):
        return ""
    if child.returncode == -signal.SIGPROF:
        return f"hangs: {out[-200:].split()[-1]}"
    failed = re.search(r"^(FAILED|ERROR) .*", out, re.MULTILINE)
    return failed[0][:200] if failed else f"status {child.returncode}: {out[-200:]}"


def baseline(copy: Path, path: Path) -> Plan:
    """Run a file of tests, which has to pass; return how long its tests take and what they call."""
    files = [
        *PACKAGE.rglob("*.py"),
        *(ROOT / "tests").rglob("conftest.py"),
        *(ROOT / "tests").rglob("helpers.py"),
        path,
    ]
    kept = KEPT / f"{path.stem}-{digest(*sorted(files))}.json"
    if not kept.exists():
        if failed := run(copy, [path], {}, 3600):
            sys.exit(f"{path.relative_to(ROOT)} fails without a mutant: {failed}")
        shutil.copy(copy / "plan", kept)
    plan: Plan = json.loads(kept.read_text(encoding="utf-8"))
    return plan


def try_mutant(copy: Path, mutant: Mutant, plans: list[Plan], patience: float) -> str:
    """Return the test that kills it, '' for none."""
    target, called = copy / "precision_lab" / mutant.module, mutant.function
    source, changed = target.read_bytes(), target.stat().st_mtime_ns
    with tempfile.TemporaryDirectory() as cache:
        try:
            target.write_bytes(mutant.source())
            os.utime(target, ns=(changed + 10**10, changed + 10**10))  # nothing that was compiled before fits
            for plan in (plans[0], {name: test for more in plans[1:] for name, test in more.items()}):
                files = sorted({ROOT / name.split("::")[0] for name in plan})
                limits = {name: (patience + 10 * s, [called][: called in calls]) for name, (s, calls) in plan.items()}
                seconds = 120 + 20 * sum(seconds for seconds, _ in plan.values())
                own_cache = Path(cache) if mutant.module.startswith(COMPILED) else None
                if plan and (failed := run(copy, files, limits, seconds, own_cache)):
                    return failed
            return ""
        finally:
            target.write_bytes(source)
            os.utime(target, ns=(changed, changed))


def explained() -> str:
    """Return the document, where the name of a survivor stands beside the reason why nothing can see it."""
    return DOCUMENT.read_text(encoding="utf-8") if DOCUMENT.exists() else ""


def table(results: list[dict[str, Any]]) -> Iterator[str]:
    """Write what was killed, by folder; a survivor whose name is in the document is explained there."""
    known = explained()
    yield "| folder | mutants | killed | change no result | survive | share killed, of the others |"
    yield "|---|---:|---:|---:|---:|---:|"
    for folder in (*FOLDERS, "all"):
        here = [r for r in results if folder in ("all", r["folder"])]
        killed = sum(bool(r["by"]) for r in here)
        same = sum(not r["by"] and r["name"] in known for r in here)
        share = killed / max(len(here) - same, 1)
        yield f"| {folder} | {len(here)} | {killed} | {same} | {len(here) - killed - same} | {share:.1%} |"
    yield from (f"- {r['name']}" for r in results if not r["by"] and r["name"] not in known)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=200, help="how many mutants")
    parser.add_argument("--seed", type=int, default=0, help="which of them")
    parser.add_argument(
        "--patience", type=float, default=30, help="seconds of the processor that a test may always use"
    )
    arguments = parser.parse_args()
    mutants = sample(arguments.count, arguments.seed)
    KEPT.mkdir(exist_ok=True)
    log = KEPT / "results.jsonl"
    kept = [json.loads(line) for line in log.read_text("utf-8").splitlines()] if log.exists() else []
    done = {result["key"]: result for result in kept}
    results: list[dict[str, Any]] = []
    known = explained()
    copies: queue.SimpleQueue[Path] = queue.SimpleQueue()

    def with_copy(work: Callable[..., Any], *arguments: Any) -> Any:
        copy = copies.get()
        try:
            return work(copy, *arguments)
        finally:
            copies.put(copy)

    def one(mutant: Mutant) -> None:
        files = tests_of(mutant.module)
        key, tests = f"{digest(PACKAGE / mutant.module)}-{mutant.start}-{mutant.end}-{mutant.new}", digest(*files)
        if key not in done or not (done[key]["by"] or done[key]["tests"] == tests or done[key]["name"] in known):
            began = time.monotonic()
            by = with_copy(try_mutant, mutant, [plans[path] for path in files], arguments.patience)
            folder = mutant.module.split("/")[0]
            seconds = round(time.monotonic() - began, 1)
            done[key] = {
                "key": key,
                "tests": tests,
                "name": mutant.name(),
                "folder": folder,
                "by": by,
                "seconds": seconds,
            }
            with log.open("a", encoding="utf-8") as file:
                print(json.dumps(done[key]), file=file)
            print(f"{len(results) + 1}: {'killed  ' if by else 'SURVIVED'} {mutant.name()}", flush=True)
        results.append(done[key])

    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(SLOTS) as pool:
        for slot in range(SLOTS):
            away = shutil.ignore_patterns(".*", "build", "dist", "*.egg-info", "site")
            copies.put(shutil.copytree(ROOT, Path(folder) / str(slot) / "lab", ignore=away))
        files = sorted({path for mutant in mutants for path in tests_of(mutant.module)})
        plans = dict(zip(files, pool.map(lambda path: with_copy(baseline, path), files), strict=True))
        list(pool.map(one, mutants))
    print("\n".join(table(results)))
    return int(any(not result["by"] and result["name"] not in explained() for result in results))


# What follows is a plugin of pytest, in the copies: without a plan it makes one
made: Plan = {}


def the_plan(config: pytest.Config) -> Plan:
    plan: Plan = json.loads((config.rootpath / "plan").read_text(encoding="utf-8"))
    return plan


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    plan = the_plan(config)
    items.sort(key=lambda item: (not plan[item.nodeid][1], plan[item.nodeid][0]) if item.nodeid in plan else (True, 0))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    plan, package = the_plan(item.config), str(item.config.rootpath / "precision_lab") + os.sep
    calls: dict[int, CodeType] = {}

    def called(frame: FrameType, event: str, _: Any) -> None:
        if event == "call":
            calls[id(frame.f_code)] = frame.f_code

    if plan:
        signal.setitimer(signal.ITIMER_PROF, plan.get(item.nodeid, (60, []))[0])  # SIGPROF ends the process
    else:
        sys.setprofile(called)
    began = time.perf_counter()
    try:
        return (yield)
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        sys.setprofile(None)
        functions = {
            f"{code.co_filename.removeprefix(package)}:{code.co_firstlineno}"
            for code in calls.values()
            if code.co_filename.startswith(package)
        }
        made[item.nodeid] = round(time.perf_counter() - began, 3), sorted(functions)


def pytest_sessionfinish(session: pytest.Session) -> None:
    if not the_plan(session.config):
        (session.config.rootpath / "plan").write_text(json.dumps(made), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
