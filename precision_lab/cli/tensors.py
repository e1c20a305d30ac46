"""The commands that read tensor files: `scan`, `loss-scale`, `accumulation`, `swamping`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from precision_lab.cli.options import Input, Output, command, dtype_option, figure_option, formats_option, json_option
from precision_lab.cli.show import progress_bar, say, say_skipped, show
from precision_lab.cli.workers import dask_option, executor, workers_option

if TYPE_CHECKING:
    from precision_lab.analysis.recording import Recording


@command()
@click.argument("files", nargs=-1, required=True, type=Input(), metavar="FILE...")
@formats_option
@click.option("-s", "--loss-scale", type=float, default=1.0, metavar="S", help="A power of two; default 1.")
@json_option
@figure_option
@click.option(
    "--html",
    "page",
    type=Output(),
    metavar="OUT",
    help="Write a page to search, sort and ask: one file.",
)
@dtype_option
@workers_option
@dask_option
def scan(
    files: tuple[Path, ...],
    chosen: tuple[str, ...],
    loss_scale: float,
    data: Path | None,
    figure: Path | None,
    page: Path | None,
    dtype: str | None,
    processes: int | None,
    dask: str | None,
) -> None:
    """Report what each format would do to tensors.

    Range: how many elements of every tensor would be flushed to zero, become subnormal or overflow. Precision: the
    signal-to-quantization-noise ratio, and how many elements would be changed. Parameters, optimizer state, buffers and
    scales each have a total, and so has each recorded run; step counters have none. A FILE is .safetensors, .npz, .npy,
    .pt, .pth, .bin, .ckpt or .pkl (the last five need torch, and nothing in them is run), an index of shards, a folder
    of them (files of torch are read where it has no others), or the .json of a run that
    precision_lab.torch.GradientRecorder saved, of which is told too, and first, which weights stood still. Memory does
    not grow with the files. Large ones may be counted by several processes or a cluster; the counts are the same.

    \b
    precision-lab scan model.safetensors -f fp16 -f bf16 --figure histogram.png
    precision-lab scan gradients.npz --loss-scale 65536 --json counts.json
    precision-lab scan model.safetensors --html model.html
    precision-lab scan /shared/checkpoint --dask tcp://scheduler:8786
    """
    from precision_lab.analysis.recording import is_recording, read_recording
    from precision_lab.analysis.scan import DEFAULT_FORMATS
    from precision_lab.analysis.scan import scan as scan_files
    from precision_lab.presentation.tables.histograms import narrow_text, scan_tables
    from precision_lab.support.files import write_json

    formats = chosen or DEFAULT_FORMATS
    with executor(processes, dask) as pool, progress_bar("Scanning") as progress:
        result = scan_files(
            files, formats=formats, loss_scale=loss_scale, dtype=dtype, executor=pool, progress=progress
        )
    recordings = {file: read_recording(file) for file in files if is_recording(file)}
    for file, recording in recordings.items():
        if text := narrow_text(recording):
            say(f"{file.name}: {text}")
    for table in scan_tables(result):
        show(table)
    say_skipped(result.skipped, (tensor.info for tensor in result.tensors))
    for file, recording in recordings.items():
        _show_recording(file, recording)
    if data is not None:
        write_json(result.parts(), data)
    if figure is not None:
        from precision_lab.presentation.plots.histograms import scan_figure
        from precision_lab.presentation.plots.style import save_figure

        save_figure(scan_figure(result), figure)
    if page is not None:
        from precision_lab.presentation.report import write_scan_page

        write_scan_page(result, page)


def _show_recording(file: Path, recording: Recording) -> None:
    from precision_lab.analysis.loss_scale_plan import Covers
    from precision_lab.analysis.swamping_scan import recorded_updates
    from precision_lab.presentation.tables.histograms import recording_text
    from precision_lab.presentation.tables.swamping import updates_table

    updates = recorded_updates(recording, file)
    if updates.tensors or updates.skipped:
        show(updates_table(updates))
    say(f"{file.name}: {recording_text(recording)} {Covers.PARAMETERS.sentence}")


@command("loss-scale")
@click.argument("files", nargs=-1, type=Input(), metavar="FILE...")
@click.option("-f", "--format", "fmt", default="fp16", show_default=True, metavar="F", help="Of the scaled gradients.")
@click.option(
    "--margin", type=click.IntRange(min=0), metavar="N", help="Headroom below the overflow, in binades; default 1."
)
@click.option(
    "--scale",
    "loss_scales",
    type=float,
    multiple=True,
    metavar="S",
    help="Count what this loss scale does, any positive number; repeatable. No power of two: another pass.",
)
@click.option("--replay", "recorded", type=Input(), metavar="TRACE", help="A recorded run.")
@click.option(
    "--scaler",
    "scalers",
    multiple=True,
    metavar="NAME",
    help="With --replay, as often as you like: torch, apex, megatron, deepspeed, jmp, flax, keras (Keras 2), keras3, "
    "fairseq, none, all, or a number that never changes. Default torch.",
)
@json_option
@figure_option
@dtype_option
def loss_scale(
    files: tuple[Path, ...],
    fmt: str,
    margin: int | None,
    loss_scales: tuple[float, ...],
    recorded: Path | None,
    scalers: tuple[str, ...],
    data: Path | None,
    figure: Path | None,
    dtype: str | None,
) -> None:
    """Report which loss scale gradients need, or replay how a framework moves it.

    With FILEs of gradients (as for scan): the loss scales at which nothing is flushed, those at which nothing
    overflows, and which to choose. Planned are the numbers in the files: a run that GradientRecorder saved has the
    gradients of the parameters, and those of activations are often smaller; weights need no loss scale. With a TRACE,
    the largest unscaled |gradient| of each step: which steps a framework's dynamic loss scaling would have skipped. A
    TRACE is JSON, [0.5, 0.25, ...] or {"max_abs": [...]}, where NaN, Infinity and null stand for an overflow, or a
    one-dimensional .npy.

    \b
    precision-lab loss-scale gradients.safetensors --figure scales.png
    precision-lab loss-scale gradients.safetensors --scale 1000 --scale 1024
    precision-lab loss-scale --replay trace.json --scaler torch --scaler deepspeed
    """
    if bool(files) == (recorded is not None):
        raise click.UsageError("name either FILEs of gradients or a trace with --replay")
    if recorded is not None and (margin is not None or dtype is not None or loss_scales):
        raise click.UsageError("--margin, --scale and --dtype are for FILEs, not for --replay")
    if recorded is None and scalers:
        raise click.UsageError("--scaler is for --replay")
    if recorded is None:
        _plan_loss_scale(files, fmt, 1 if margin is None else margin, loss_scales, dtype, data, figure)
    else:
        _replay_loss_scale(recorded, fmt, scalers or ("torch",), data, figure)


def _plan_loss_scale(
    files: tuple[Path, ...],
    fmt: str,
    margin: int,
    loss_scales: tuple[float, ...],
    dtype: str | None,
    data: Path | None,
    figure: Path | None,
) -> None:
    from precision_lab.analysis.loss_scale_files import plan_files
    from precision_lab.presentation.tables.loss_scaling import loss_scale_tables
    from precision_lab.support.files import write_json

    with progress_bar("Scanning") as progress:
        plans = plan_files(files, fmt, margin=margin, loss_scales=loss_scales, dtype=dtype, progress=progress)
    for table in loss_scale_tables(plans):
        show(table)
    say_skipped(plans.left_out)
    if data is not None:
        write_json(plans.parts(), data)
    if figure is not None:
        from precision_lab.presentation.plots.loss_scaling import loss_scale_figure
        from precision_lab.presentation.plots.style import save_figure

        save_figure(loss_scale_figure(plans), figure)


def _replay_loss_scale(
    recorded: Path, fmt: str, names: tuple[str, ...], data: Path | None, figure: Path | None
) -> None:
    from precision_lab.analysis.loss_scale_replay import read_trace, replay_loss_scale
    from precision_lab.analysis.loss_scalers import SCALERS, get_scaler
    from precision_lab.presentation.tables.loss_scaling import scale_trace_tables
    from precision_lab.support.files import write_json
    from precision_lab.support.plain import header

    scalers = [s for name in names for s in (SCALERS.values() if name == "all" else [get_scaler(name)])]
    max_abs = read_trace(recorded)
    traces = [replay_loss_scale(scaler, max_abs, fmt) for scaler in dict.fromkeys(scalers)]
    for table in scale_trace_tables(traces):
        show(table)
    if data is not None:
        write_json(header("loss-scale replays") | {"traces": (trace.to_dict() for trace in traces)}, data)
    if figure is not None:
        from precision_lab.presentation.plots.loss_scaling import scale_trace_figure
        from precision_lab.presentation.plots.style import save_figure

        save_figure(scale_trace_figure(traces), figure)


@command()
@click.argument("files", nargs=-1, required=True, type=Input(), metavar="FILE...")
@click.option("-f", "--format", "fmt", default="bf16", show_default=True, metavar="F", help="Of all partial sums.")
@click.option("--squares", is_flag=True, help="The norm: the root of the sum of the squares.")
@click.option("-n", "--limit", type=int, default=2**18, show_default=True, metavar="N", help="Elements per tensor.")
@click.option("--seed", type=int, default=0, show_default=True, metavar="N", help="Of stochastic rounding.")
@json_option
@dtype_option
def accumulation(
    files: tuple[Path, ...], fmt: str, squares: bool, limit: int, seed: int, data: Path | None, dtype: str | None
) -> None:
    """Report what summing a tensor in a narrow format comes to.

    Adds up the first elements of every tensor in seven ways, every step rounded, and compares with the exact sum: one
    after the other, stochastically rounded, in blocks, compensated (Kahan, Neumaier), in pairs, with a float32
    accumulator. With --squares it is a norm: the root is taken in the accumulator's format, before the cast. Worst
    tensor first. The experiment of the same name: precision-lab report accumulation.

    \b
    precision-lab accumulation gradients.safetensors -f bf16 --squares
    """
    from precision_lab.analysis.sums import sum_tensors
    from precision_lab.presentation.tables.accumulation import sums_table
    from precision_lab.support.files import write_json

    with progress_bar("Adding up") as progress:
        result = sum_tensors(files, fmt, squares=squares, limit=limit, seed=seed, dtype=dtype, progress=progress)
    show(sums_table(result))
    say_skipped(result.skipped, (tensor.info for tensor in result.tensors))
    if data is not None:
        write_json(result.parts(), data)


@command()
@click.option("--weights", type=Input(), required=True, metavar="W", help="A file or a folder.")
@click.option("--updates", type=Input(), metavar="U", help="Their updates, by the same names.")
@click.option("--update-size", "sizes", type=float, multiple=True, metavar="X", help="A magnitude |u|; repeatable.")
@click.option("--lr", type=float, metavar="X", help="Adam's learning rate, about the largest |u| that it makes.")
@formats_option
@json_option
@figure_option
@dtype_option
def swamping(
    weights: Path,
    updates: Path | None,
    sizes: tuple[float, ...],
    lr: float | None,
    chosen: tuple[str, ...],
    data: Path | None,
    figure: Path | None,
    dtype: str | None,
) -> None:
    """Report which weights would stand still.

    Which parameters of a checkpoint lose their updates when they are stored in a format, worst first: the real updates,
    or any of a given size. Buffers, scales, and what an optimizer keeps are no weights, and left out. The default
    format is the 16-bit one that the weights are stored in, or bf16. Files are read as by scan.

    \b
    precision-lab swamping --weights model.safetensors --lr 1e-4
    precision-lab swamping --weights model.safetensors --update-size 1e-5 --update-size 1e-6 -f bf16 -f fp16
    precision-lab swamping --weights before.npz --updates updates.npz --figure updates.png
    """
    from precision_lab.analysis.swamping_scan import FrozenScan, UpdateScan, scan_frozen, scan_updates
    from precision_lab.presentation.tables.swamping import frozen_table, updates_table
    from precision_lab.support.files import write_json

    update_sizes = sizes if lr is None else (*sizes, lr)
    if (updates is None) == (not update_sizes):
        raise click.UsageError("give the updates, either --updates U or their size, --update-size X or --lr X")
    with progress_bar("Scanning") as progress:
        result: FrozenScan | UpdateScan
        if updates is None:
            result = scan_frozen(weights, update_sizes, formats=chosen, dtype=dtype, progress=progress)
        else:
            result = scan_updates(weights, updates, formats=chosen, dtype=dtype, progress=progress)
    show(frozen_table(result) if isinstance(result, FrozenScan) else updates_table(result))
    if lr is not None:
        say("Adam's updates are about as large as the learning rate at first, and smaller later: more is lost then.")
    say_skipped(result.skipped, (info for info, _ in result.tensors))
    if data is not None:
        write_json(result.parts(), data)
    if figure is not None:
        from precision_lab.presentation.plots.style import save_figure
        from precision_lab.presentation.plots.swamping import swamping_scan_figure

        save_figure(swamping_scan_figure(result), figure)
