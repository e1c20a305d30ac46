"""Every line of the registry: what it names is there."""

from __future__ import annotations

import sys
from concurrent.futures import Executor
from types import ModuleType, SimpleNamespace
from typing import cast

import pytest

from precision_lab.experiments.registry import EXPERIMENTS, Experiment
from precision_lab.experiments.storage import StorageExperimentConfig, StorageResult
from precision_lab.presentation.plots.figures import figures_of
from precision_lab.presentation.tables.table import tables_of
from precision_lab.presentation.topics import load_topics


def test_every_part_of_every_experiment_is_there() -> None:
    load_topics("precision_lab.presentation.tables")
    for name, experiment in EXPERIMENTS.items():
        assert isinstance(experiment.configuration(), experiment.config)
        assert isinstance(experiment.configuration(quick=True), experiment.config)
        assert callable(experiment.result.from_dict)
        assert callable(experiment.run)
        assert experiment.question.endswith("?")
        assert tables_of.dispatch(experiment.result) is not tables_of.dispatch(object)
        assert name in figures_of(experiment.result)
    pictures = [picture for experiment in EXPERIMENTS.values() for picture in figures_of(experiment.result)]
    assert len(set(pictures)) == len(pictures)


def test_the_classes_are_read_off_the_function() -> None:
    storage = EXPERIMENTS["storage"]
    assert (storage.config, storage.result) == (StorageExperimentConfig, StorageResult)
    assert [name for name, experiment in EXPERIMENTS.items() if experiment.spread] == ["storage"]


def test_a_configuration_need_not_be_optional(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(config: int, *, executor: Executor | None = None) -> str:
        return str(config)

    monkeypatch.setitem(sys.modules, "somewhere", cast(ModuleType, SimpleNamespace(run=run)))
    found = Experiment("Why?", "somewhere")
    assert (found.config, found.result, found.spread, found.run(3)) == (int, str, True, "3")
