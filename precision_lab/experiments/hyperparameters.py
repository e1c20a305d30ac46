"""Which of an optimizer's usual constants are lost in 16 bits or fewer?

Three settings that people copy from each other, in the formats that they might keep an optimizer in.
`audit_hyperparameters` says of each number what it becomes, what follows and what helps, twice: with constants held in
the format, and as torch has them, as doubles; nothing is trained here.

What to look for
----------------
*Near 1* bf16 has no values: held in it, beta2 = 0.999 becomes 1, and so does 1 - lr*weight_decay, whatever the setting.
torch keeps both as doubles, and it helps neither: R(beta2*v) is v, and R((1 - lr*weight_decay)*w) is w. 0.95, which
large language models use, is stored as 0.949 and does its work either way.

*Near 0* fp16 has none: an epsilon (`eps`) of 1e-8 becomes 0. One of 1e-5 survives, as a subnormal.

*SGD* is not spared: its momentum of 0.9 survives everywhere, its weight decay in no narrow format.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from precision_lab.numerics.formats import get_format
from precision_lab.support.plain import Layout, PlainData
from precision_lab.support.shown import Shown
from precision_lab.training.hyperparameters import (
    Finding,
    HyperparameterAudit,
    Severity,
    World,
    audit_hyperparameters,
)
from precision_lab.training.optimizers import OPTIMIZERS


@dataclass(frozen=True)
class UsualSetting:
    """An optimizer and its constants, as somebody published them.

    Attributes
    ----------
    name : str
        Whose.
    optimizer : str
        One of `training.optimizers.OPTIMIZERS`.
    hyperparameters : tuple of (str, float)
        Those that are not the default of torch.optim.

    """

    name: str
    optimizer: str
    hyperparameters: tuple[tuple[str, float], ...] = ()


SETTINGS = (
    UsualSetting("AdamW, torch's defaults", "adamw"),
    UsualSetting("AdamW of Llama 2", "adamw", (("lr", 3e-4), ("beta2", 0.95), ("eps", 1e-5), ("weight_decay", 0.1))),
    UsualSetting("SGD of ResNet", "sgd", (("lr", 0.1), ("momentum", 0.9), ("weight_decay", 1e-4))),
)
"""Touvron et al. 2023 (arXiv 2307.09288, section 2.2), He et al. 2016 (arXiv 1512.03385, section 3.4), torch.optim."""


@dataclass(frozen=True)
class HyperparametersConfig(PlainData):
    """What to audit.

    Attributes
    ----------
    formats : tuple of str
        Formats in which an optimizer would be kept.
    settings : tuple of UsualSetting
        The settings.
    steps : int
        Length of the run, for the bias corrections and the decay in the end.

    """

    formats: tuple[str, ...] = ("bf16", "fp16", "fp8_e4m3fn")
    settings: tuple[UsualSetting, ...] = SETTINGS
    steps: int = 10_000

    def __post_init__(self) -> None:
        if not self.formats or not self.settings:
            raise ValueError("formats and settings must have at least one member")
        for fmt in self.formats:
            get_format(fmt)
        for setting in self.settings:
            if setting.optimizer not in OPTIMIZERS:
                raise ValueError(f"optimizer must be one of {', '.join(OPTIMIZERS)}; got {setting.optimizer!r}")

    @classmethod
    def quick(cls) -> Self:
        """Return the same: it takes no time."""
        return cls()


@dataclass(frozen=True)
class HyperparametersResult(PlainData, Shown):
    """What the experiment found.

    Attributes
    ----------
    config : HyperparametersConfig
        What was asked.
    audits : dict of str to tuple of HyperparameterAudit
        Per setting one for each format.

    """

    layout: ClassVar = Layout("experiment hyperparameters")

    config: HyperparametersConfig
    audits: dict[str, tuple[HyperparameterAudit, ...]]

    def fatal(self, setting: str, fmt: str, world: World = World.HELD) -> tuple[str, ...]:
        """Return the expressions of a setting that are fatal in a format, in a world."""
        one = next(a for a in self.audits[setting] if a.format.name == get_format(fmt).name)
        return tuple(f.expression for f in one.of(world) if f.severity is Severity.FATAL)

    @property
    def answer(self) -> str:
        """What came out, in a line."""
        first = self.config.settings[0].name
        audits = self.audits[first]
        changes = [
            f"{a.format}: {', '.join(f'{f.name} = {f.exact:g} becomes {f.stored:g}' for f in lost)}"
            for a in audits
            if (lost := [f for f in a.of(World.HELD) if _itself(f)])
        ]

        def counts(world: World) -> str:
            names = ((a, len(self.fatal(first, a.format.name, world))) for a in audits)
            return ", ".join(f"{count} of {len(a.of(world))} in {a.format}" for a, count in names)

        held = f"fatal numbers {counts(World.HELD)} ({'; '.join(changes)})"
        return f"{first}: {held}; with torch's doubles as constants {counts(World.TORCH)}"


def _itself(finding: Finding) -> bool:
    """Return whether a hyperparameter itself, not what is computed from it, is lost."""
    return finding.severity is Severity.FATAL and finding.expression == finding.name


def run(
    config: HyperparametersConfig | None = None, *, progress: Callable[[int, int], None] | None = None
) -> HyperparametersResult:
    """Audit every setting in every format.

    Parameters
    ----------
    config : HyperparametersConfig, optional
        Default: the settings of the documentation.
    progress : callable, optional
        Called with the number of audits done and of all audits.

    Raises
    ------
    ValueError
        As `audit_hyperparameters`.

    """
    config = config or HyperparametersConfig()
    everything = len(config.settings) * len(config.formats)
    audits: dict[str, list[HyperparameterAudit]] = {setting.name: [] for setting in config.settings}
    for setting in config.settings:
        for fmt in config.formats:
            given: dict[str, Any] = dict(setting.hyperparameters)
            audits[setting.name].append(
                audit_hyperparameters(fmt, optimizer=setting.optimizer, steps=config.steps, **given)
            )
            if progress is not None:
                progress(sum(map(len, audits.values())), everything)
    return HyperparametersResult(config, {name: tuple(group) for name, group in audits.items()})
