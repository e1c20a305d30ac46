"""What does each way of storing cost in bytes, and what do several devices save?

The ledgers of all storage configurations for models of three sizes; nothing is trained here. What each of them costs in
loss is the question of `storage`.

What to look for
----------------
*A master copy eats what narrow weights save.* 16 bytes per parameter with Adam, in fp32 everywhere as well as in 16
bits with a float32 master copy (Rajbhandari et al. 2020, section 3.1); `megatron_bf16` takes 18, `megatron_fp16` 20.
Only where *everything* is narrow does the sum fall: 8 bytes, 10 with Kahan's compensation, Collage's second word or an
fp32 second moment, 12 with two of these.

*Autocast is not smaller within a step.* It casts the weights anew and holds the casts until the backward pass: 16 bytes
from step to step, 18 at the peak, where gradients of an earlier micro-batch lie beside them.

*Dividing saves more than rounding.* On 8 ranks ZeRO-3 leaves 2 of the 16 bytes on each, with no rounding at all; what
it costs is traffic.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Self

from precision_lab.support.arguments import check_integer
from precision_lab.support.plain import Layout, PlainData
from precision_lab.support.shown import Shown
from precision_lab.training.memory import MemoryLedger, ledgers
from precision_lab.training.storage import CONFIGURATIONS

_EXAMPLES = ("fp32", "autocast_bf16", "master_bf16", "bf16_stochastic_fp32_v", "pure_bf16")


@dataclass(frozen=True)
class MemoryConfig(PlainData):
    """Which models, and how they are trained.

    Attributes
    ----------
    sizes : tuple of (str, int)
        Models and their numbers of parameters; the last is the one that the tables and the figure show.
    optimizer : str
        One of `training.memory.named_optimizers`.
    configurations : tuple of str
        Names of `CONFIGURATIONS` or texts.
    ranks : int
        Data-parallel ranks, for ZeRO.

    """

    sizes: tuple[tuple[str, int], ...] = (
        ("GPT-2, 124 million", 124_000_000),
        ("GPT-2 XL, 1.5 billion", 1_500_000_000),
        ("7 billion", 7_000_000_000),
    )
    optimizer: str = "adamw"
    configurations: tuple[str, ...] = tuple(CONFIGURATIONS)
    ranks: int = 8

    def __post_init__(self) -> None:
        if not self.sizes or not self.configurations:
            raise ValueError("sizes and configurations must have at least one member")
        check_integer("ranks", self.ranks, 1)

    @classmethod
    def quick(cls) -> Self:
        """Return the same: it takes no time."""
        return cls()


@dataclass(frozen=True)
class MemoryResult(PlainData, Shown):
    """What the experiment found.

    Attributes
    ----------
    config : MemoryConfig
        What was asked.
    ledgers : dict of str to dict of str to MemoryLedger
        Per size and configuration.

    """

    layout: ClassVar = Layout("experiment memory")

    config: MemoryConfig
    ledgers: dict[str, dict[str, MemoryLedger]]

    @property
    def shown(self) -> dict[str, MemoryLedger]:
        """The ledgers of the last size."""
        return self.ledgers[self.config.sizes[-1][0]]

    @property
    def answer(self) -> str:
        """What came out, in a line."""
        size, pairs = self.config.sizes[-1][0], list(self.shown.items())
        examples = [x for x in pairs if x[0] in _EXAMPLES] or pairs
        each = ", ".join(
            f"{name} {ledger.bytes_per_parameter} bytes a parameter ({ledger.total / 2**30:.0f} GiB"
            + (f", {ledger.peak_bytes_per_parameter} bytes at the peak)" if ledger.casts else ")")
            for name, ledger in examples
        )
        name, first = examples[0]
        ranks, share = self.config.ranks, first.per_rank(self.config.ranks, 3) / 2**30
        return (
            f"{size} parameters with {self.config.optimizer}: {each}; ZeRO-3 leaves {share:.0f} GiB of {name} "
            f"on each of {ranks} ranks"
        )


def run(config: MemoryConfig | None = None, *, progress: Callable[[int, int], None] | None = None) -> MemoryResult:
    """Make the ledgers.

    Parameters
    ----------
    config : MemoryConfig, optional
        Default: those of the documentation.
    progress : callable, optional
        Called with the number of sizes done and of all sizes.

    Raises
    ------
    ValueError
        As `ledgers`.

    """
    config = config or MemoryConfig()
    by_size = {}
    for done, (name, parameters) in enumerate(config.sizes, start=1):
        by_size[name] = ledgers(config.configurations, config.optimizer, parameters)
        if progress is not None:
            progress(done, len(config.sizes))
    return MemoryResult(config, by_size)
