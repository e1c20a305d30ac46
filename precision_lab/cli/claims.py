"""The folklore: `claims`."""

from __future__ import annotations

from pathlib import Path

import click

from precision_lab.cli.options import Output, command, json_option
from precision_lab.cli.show import progress_bar, show


@command()
@click.argument("keys", nargs=-1, metavar="[KEY]...")
@click.option("--mode", default="ties_to_even", show_default=True, metavar="M", help="Rounding, but for the trainings.")
@click.option("--flush-subnormals", is_flag=True, help="Subnormal results become zero, as on some hardware.")
@json_option
@click.option("--markdown", "page", type=Output(), metavar="OUT", help="Write them as a page.")
def claims(keys: tuple[str, ...], mode: str, flush_subnormals: bool, data: Path | None, page: Path | None) -> None:
    """Judge what people say about mixed precision.

    Each statement with a computed verdict: holds, holds only if ..., does not hold, cannot be tested here; and the
    numbers that it rests on. Without a KEY all of them, in about a minute. The status is 0 whatever they are.

    \b
    precision-lab claims
    precision-lab claims fp16-1e-7 bf16-chopped
    precision-lab claims fp16-1e-7 bf16-chopped --mode toward_zero --flush-subnormals
    """
    from precision_lab.experiments.claims.claim import Arithmetic
    from precision_lab.experiments.claims.experiment import CLAIMS, ClaimsConfig, run
    from precision_lab.presentation.tables.claims import claims_page, claims_tables
    from precision_lab.support.files import replacing, write_json

    config = ClaimsConfig(keys or tuple(CLAIMS), Arithmetic(mode, subnormals=not flush_subnormals))
    with progress_bar("Claims") as progress:
        result = run(config, progress=progress)
    for table in claims_tables(result):
        show(table)
    if data is not None:
        write_json(result.to_dict(), data)
    if page is not None:
        with replacing(page) as new:
            new.write_text(claims_page(result), encoding="utf-8")
