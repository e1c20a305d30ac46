"""`python -m tests.fuzz`: so many inputs of a seed, or one of them alone."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from tests.fuzz.doors import Case, case, unspoilt
from tests.fuzz.harness import Outcome, run, run_all, warm_up
from tests.fuzz.regressions import regressions


def table(outcomes: Iterable[Outcome]) -> str:
    """What became of the inputs, by their kind."""
    rows: dict[str, list[Outcome]] = {}
    for one in outcomes:
        rows.setdefault(one.kind, []).append(one)
    rows = dict(sorted(rows.items()))
    lines = [
        "| kind | inputs | refused | read | tracebacks | control characters | other | peak MiB | slowest s |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for kind, found in [*rows.items(), ("all", [one for row in rows.values() for one in row])]:
        said = [" ".join(one.complaints) for one in found]
        tracebacks, odd = (sum(word in text for text in said) for word in ("a traceback", " has ["))
        other = sum(bool(text) and "a traceback" not in text and " has [" not in text for text in said)
        counts = (len(found), sum(one.status == 2 for one in found), sum(one.status == 0 for one in found))
        peak, slowest = max(one.mib for one in found), max(one.seconds for one in found)
        cells = (*counts, tracebacks, odd, other, f"{peak:.0f}", f"{slowest:.1f}")
        lines.append(f"| {kind} | " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description="Fuzz the command line.")
    parser.add_argument("--seed", type=int, default=0, help="of all inputs")
    parser.add_argument("--count", type=int, default=2000, help="how many inputs")
    parser.add_argument("--first", type=int, default=0, help="number of the first input")
    parser.add_argument("--set", choices=("random", "good", "regressions"), default="random", help="which inputs")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--log", type=Path, help="keep what became of each input here, and go on from there")
    parser.add_argument("--new", action="store_true", help="a new process for each input, not a fork")
    parser.add_argument("--only", type=int, metavar="N", help="this input alone: say what it does, and keep its files")
    asked = parser.parse_args()
    warm_up()
    if asked.only is not None:
        return _alone(asked.seed, asked.only, new=asked.new)
    found: dict[int, Outcome] = {}
    if asked.log is not None and asked.log.exists():
        lines = asked.log.read_text("utf-8").splitlines()
        found = {one.number: one for one in (Outcome(**json.loads(line)) for line in lines)}
    chosen = unspoilt() if asked.set == "good" else regressions() if asked.set == "regressions" else None
    numbers = range(asked.first, asked.first + asked.count) if chosen is None else range(len(chosen))
    missing = [number for number in numbers if number not in found]

    def one_of(number: int) -> Case:
        return case(asked.seed, number) if chosen is None else replace(chosen[number], number=number)

    start = time.monotonic()
    log = asked.log.open("a", encoding="utf-8") if asked.log is not None else None
    for done, one in enumerate(run_all(one_of, missing, asked.workers, new=asked.new), start=1):
        found[one.number] = one
        if log is not None:
            print(json.dumps(one.to_dict()), file=log, flush=True)
        if one.complaints:
            print(f"{one.number} ({one.kind}, {one.what}): {'; '.join(one.complaints)}"[:400], flush=True)
        if done % 1000 == 0:
            print(f"{done} of {len(missing)}, {time.monotonic() - start:.0f} s", file=sys.stderr, flush=True)
    print(table(found.values()))
    wrong = sorted(one.number for one in found.values() if one.complaints)
    print(f"{len(found)} inputs, {time.monotonic() - start:.0f} s; one alone: --seed {asked.seed} --only NUMBER")
    if wrong:
        print(f"{len(wrong)} failed: {', '.join(map(str, wrong[:50]))}")
    return bool(wrong)


def _alone(seed: int, number: int, *, new: bool) -> int:
    one = case(seed, number)
    keep = Path(f"fuzz-{seed}-{number}")
    keep.mkdir()
    outcome = run(one, new=new, keep=keep)
    print(f"input {number} of seed {seed}: {one.kind}, {one.what}; its files are in {keep}/")
    print("precision-lab", *(repr(word) for word in one.words))
    print(f"status {outcome.status}, {outcome.seconds} s, {outcome.mib} MiB")
    for name, text in (("stdout", outcome.out), ("stderr", outcome.err)):
        print(f"--- {name}", *map(ascii, text.splitlines()), sep="\n")
    print(*outcome.complaints or ["nothing to object to"], sep="\n")
    return bool(outcome.complaints)


if __name__ == "__main__":
    sys.exit(main())
