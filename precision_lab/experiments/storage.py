"""Why keep the parameters in float32, why not in 16 bits? The same training, stored in many ways.

The same model, data, seed and optimizer; only *where* values are rounded differs. Every run has its float32 control of
the same seed beside it, and what is said of it follows from their ratios over the seeds, with an interval (`paired`):
it keeps float32's result, loses, ends lower, breaks, or that is not decided. What is cheapest is the cheapest *of those
tried*, with the constants that were tried.

What to look for
----------------
*It is the update that is lost.* Fine-tuning a real matrix (`fine_tuning`) in bf16 moves it nowhere: nearly every update
is smaller than half a spacing of its weight, R(w + u) is w. A float32 master copy gets float32's result, and so does
Kahan's compensation if the second moment is right; stochastic rounding moves the matrix too, and pays for its noise. A
transformer that learns characters under a schedule does well in bf16 at first, and stands still when the learning rate
decays. With SGD on the digits it is the same from the start; to keep the moments in float32 does not help. Least
squares says where it happens (the ablation of Zamirai et al. 2020; the figures are this project's): rounding the weight
update costs far more than rounding forward and backward, and compensation or stochastic rounding take most of it back.

*Adam's second moment.* In bf16 R(.999*v) = v, whatever v is: the second moment never decays. Once gradients shrink,
steps become too small, and the repaired weight update alone is not enough. With the beta2 of large language models,
.95, it does decay, and bf16 is enough for it. The effective descent quality does not see that: it compares with the
step that the narrow optimizer proposes. The second one compares with the step of the float32 optimizer.

*Range against precision.* Sixteen bits can be spent in other ways than fp16 (e5m10) and bf16 (e8m7).

*A ratio depends on the steps.* Float32's loss falls on where a narrow run stands still, so that their ratio grows
without end; the loss at which it stands still, and the step, say more.

*What did not hurt.* fp16 without loss scaling, with a float32 master copy, learns the digits as well as float32. So do
gradients of 64 micro-batches added up in bf16, and the transformer's softmax, layer norm and loss in 16 bits, at this
size and length. At a learning rate at which float32 does not settle (.01 with beta2 = .95) the seeds differ so much
that ten of them decide nothing, not even for bf16 alone. And a high imprecision, with its words, does not imply a low
descent quality: with stochastic rounding eight in ten updates leave their weight alone, and the step is made all the
same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar, Self, TypeAlias

from precision_lab.experiments.outcomes import ConfigurationSummary, Run, beside_control
from precision_lab.experiments.paired import MORE_SEEDS, SEEDS
from precision_lab.experiments.questions import AXES, MINIATURES, SECTIONS, Group
from precision_lab.support.arguments import check_integer
from precision_lab.support.plain import Layout, PlainData
from precision_lab.support.shown import Shown
from precision_lab.training.config import TrainingConfig
from precision_lab.training.optimizers import title
from precision_lab.training.storage import CONFIGURATIONS, StorageConfig, configuration_names
from precision_lab.training.sweep import sweep
from precision_lab.training.update_rules import UPDATE_RULES

Place: TypeAlias = tuple[str, ...]
"""Where a group of trainings stands in the result: its kind, and its name there."""

Groups: TypeAlias = dict[str, tuple[ConfigurationSummary, ...]]
"""What came out of each group of trainings, the control first."""


@dataclass(frozen=True)
class Setting:
    """An optimizer and its learning rate."""

    optimizer: str
    learning_rate: float

    def __str__(self) -> str:
        """Return a name for tables."""
        return f"{title(self.optimizer)}, lr {self.learning_rate:g}"


DISTINCT = tuple(n for n in CONFIGURATIONS if n not in ("autocast_fp16", "autocast_bf16", "megatron_fp16"))
"""Of `CONFIGURATIONS` one of each that are the same in every digit of a run, as autocast and a master copy are."""


@dataclass(frozen=True)
class StorageExperimentConfig(PlainData):
    """What to train.

    Attributes
    ----------
    configurations : tuple of str
        Names of `CONFIGURATIONS` or texts; ``all`` stands for all names. The control, ``fp32``, is put first. Default:
        `DISTINCT`.
    settings : tuple of Setting
        Optimizers and learning rates.
    base : TrainingConfig
        Everything else that the runs under the settings have in common: their storage, optimizer and learning rate are
        not looked at, and run number k has its seed plus k.
    seeds, more_seeds : int
        Runs of each, and of each whose log ratios deviate by more than `paired.LARGE_DEVIATION`; the same: no more.
    miniatures, sections, axes : tuple of str
        Which of `questions.MINIATURES`, `SECTIONS` and `AXES` to ask as well. They have seeds of their own where they
        say so, at most `seeds`.
    section_steps : int
        Steps of the sections: twice as many for the horizon, a quarter for micro-batches and the transformer, half as
        many for the rest.
    axis_steps : int
        Steps of the runs along the axes.

    """

    configurations: tuple[str, ...] = DISTINCT
    settings: tuple[Setting, ...] = (Setting("sgd", 0.01), Setting("adam", 1e-3))
    base: TrainingConfig = field(default_factory=lambda: TrainingConfig(steps=2000, against_fp32=True))
    seeds: int = SEEDS
    more_seeds: int = MORE_SEEDS
    miniatures: tuple[str, ...] = tuple(MINIATURES)
    sections: tuple[str, ...] = tuple(SECTIONS)
    axes: tuple[str, ...] = tuple(AXES)
    section_steps: int = 2000
    axis_steps: int = 800

    def __post_init__(self) -> None:
        check_integer("seeds", self.seeds, 1)
        check_integer("more_seeds", self.more_seeds, self.seeds)
        if not self.configurations or not self.settings:
            raise ValueError("configurations and settings must have at least one member")
        for name, known in (("miniatures", MINIATURES), ("sections", SECTIONS), ("axes", AXES)):
            if unknown := [chosen for chosen in getattr(self, name) if chosen not in known]:
                raise ValueError(f"{name} must be among {', '.join(known)}; got {unknown[0]!r}")
        check_integer("section_steps", self.section_steps, 10)
        check_integer("axis_steps", self.axis_steps, 10)
        object.__setattr__(self, "configurations", configuration_names(("fp32", *self.configurations)))
        for setting in self.settings:
            for name in self.configurations:
                self.training(setting, name)

    @classmethod
    def quick(cls) -> Self:
        """Return a smaller configuration: fewer ways of storing and seeds, no transformer, which learns too slowly."""
        return cls(
            configurations=(
                *("master_bf16", "master_fp16", "pure_bf16", "pure_fp16"),
                *("bf16_stochastic", "bf16_stochastic_fp32_v", "bf16_kahan", "collage_plus"),
            ),
            base=TrainingConfig(steps=1000, against_fp32=True),
            seeds=3,
            more_seeds=3,
            miniatures=("fine-tuning",),
            sections=("ablation", "accumulation", "noise"),
            axes=(),
            section_steps=500,
        )

    def training(self, setting: Setting, storage: str) -> TrainingConfig:
        """Return the configuration of the first run of a storage under a setting; raises its ValueErrors."""
        return replace(
            self.base,
            storage=StorageConfig.parse(storage),
            optimizer=setting.optimizer,
            learning_rate=setting.learning_rate,
        )

    def groups(self) -> dict[Place, tuple[Group, int]]:
        """Return all that is trained, and with how many seeds at first: by kind, name and, for an axis, value."""
        found: dict[Place, tuple[Group, int]] = {}
        for name in self.miniatures:
            make, seeds = MINIATURES[name]
            found["miniatures", name] = make(), seeds
        for setting in self.settings:
            group = {name: self.training(setting, name) for name in self.configurations}
            found["outcomes", str(setting)] = group, self.seeds
        for name in self.sections:
            make_section, seeds = SECTIONS[name]
            found["sections", name] = make_section(self.section_steps), seeds
        for name in self.axes:
            for value, make_value in AXES[name].items():
                found["axes", name, value] = make_value(self.axis_steps), self.seeds
        return {place: (group, min(seeds, self.seeds)) for place, (group, seeds) in found.items()}


@dataclass(frozen=True, eq=False)
class StorageResult(PlainData, Shown):
    """What the experiment found.

    Attributes
    ----------
    config : StorageExperimentConfig
        What was asked.
    miniatures : dict of str to tuple of ConfigurationSummary
        Per miniature one for each way of storing.
    outcomes : dict of str to tuple of ConfigurationSummary
        Per setting one for each configuration.
    sections : dict of str to tuple of ConfigurationSummary
        Per smaller question one for each of its configurations.
    axes : dict of str to dict of str to tuple of ConfigurationSummary
        Per axis and value one for each of its configurations.

    """

    layout: ClassVar = Layout("experiment storage", version=2)

    config: StorageExperimentConfig
    miniatures: Groups
    outcomes: Groups
    sections: Groups
    axes: dict[str, Groups]

    def __post_init__(self) -> None:
        for name in ("miniatures", "outcomes", "sections"):
            object.__setattr__(self, name, _beside_controls(getattr(self, name)))
        object.__setattr__(self, "axes", {name: _beside_controls(groups) for name, groups in self.axes.items()})

    @property
    def answer(self) -> str:
        """What came out, in a line: can parameters be stored in bf16?"""
        groups = {**self.miniatures, **self.outcomes}
        return ". ".join(f"{name}: {verdict(group)}" for name, group in groups.items())


def _beside_controls(groups: Groups) -> Groups:
    return {name: beside_control(group) for name, group in groups.items()}


def verdict(group: tuple[ConfigurationSummary, ...]) -> str:
    """Say what becomes of the narrow storage, and what is the cheapest of the group that is not worse than fp32."""
    control = group[0]
    if control.undecided:
        return control.undecided
    narrow = alone(group) or group[-1]
    named = f"{narrow.label} ({narrow.bytes_per_parameter:g} bytes a parameter)"
    said = f"{named} {narrow.finding}, {narrow.paired.text}, {narrow.lost:.0%} of its updates lost"
    best = cheapest(group)
    if best is None:
        return f"{said}; none of those tried is known to keep fp32's result"
    return f"{said}; the cheapest of those tried that keeps it is {best.label} ({best.bytes_per_parameter:g} bytes)"


def alone(group: tuple[ConfigurationSummary, ...]) -> ConfigurationSummary | None:
    """Return bf16 alone, or else the first whose new weights are narrow and rounded plainly; None if there is none."""
    plain = [o for o in group[1:] if _rounds_plainly(o.runs[0].config.storage)]
    return next((o for o in plain if o.label == "pure_bf16"), plain[0] if plain else None)


def _rounds_plainly(storage: StorageConfig) -> bool:
    """Whether new weights are rounded into a narrow format, and nothing keeps what that loses."""
    return storage.updated.bits < 32 and UPDATE_RULES[storage.update].plain


def cheapest(group: tuple[ConfigurationSummary, ...]) -> ConfigurationSummary | None:
    """Return the one with the fewest bytes that is not worse than the control, which is none of them; None if none."""
    keep = [o for o in group[1:] if o.keeps]
    return min(keep, key=lambda o: o.bytes_per_parameter, default=None)


def run(
    config: StorageExperimentConfig | None = None,
    *,
    executor: Executor | None = None,
    checkpoint: str | Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> StorageResult:
    """Train everything; then more seeds of what deviates much from seed to seed.

    Parameters
    ----------
    config : StorageExperimentConfig, optional
        Default: the runs of the documentation.
    executor, checkpoint, progress
        As for `sweep`.

    Raises
    ------
    ValueError
        The configuration is none that can be run; as `sweep`.

    """
    config = config or StorageExperimentConfig()
    groups = config.groups()
    seeds = {place: dict.fromkeys(group, few) for place, (group, few) in groups.items()}
    done: dict[TrainingConfig, Run] = {}

    def train() -> dict[Place, tuple[ConfigurationSummary, ...]]:
        """Train what is missing, and return all groups."""
        wanted = (one for place in groups for label in seeds[place] for one in seeded(place, label))
        missing = [training for training in dict.fromkeys(wanted) if training not in done]
        before = len(done)

        def tell(finished: int, total: int) -> None:
            if progress is not None:
                progress(before + finished, before + total)

        if missing:
            results = sweep(missing, executor=executor, checkpoint=checkpoint, progress=tell)
            done.update(zip(missing, map(Run.of, results), strict=True))
        return {
            place: beside_control(
                ConfigurationSummary(label, tuple(done[one] for one in seeded(place, label))) for label in group
            )
            for place, (group, _) in groups.items()
        }

    def seeded(place: Place, label: str) -> Iterator[TrainingConfig]:
        training = groups[place][0][label]
        return (replace(training, seed=training.seed + k) for k in range(seeds[place][label]))

    for place, found in train().items():
        unsteady = [o.label for o in found if o.paired.needs_more]
        if unsteady and groups[place][1] == config.seeds:
            seeds[place] |= dict.fromkeys((found[0].label, *unsteady), config.more_seeds)
    judged = train()

    def of(*kind: str) -> Groups:
        return {place[-1]: found for place, found in judged.items() if place[:-1] == kind}

    axes = {name: of("axes", name) for name in config.axes}
    return StorageResult(config, of("miniatures"), of("outcomes"), of("sections"), axes)
