"""Which hyperparameters are used: given ones, saved ones, torch's defaults."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from precision_lab import preflight
from precision_lab.tensors.reading import open_tensors
from precision_lab.training.optimizers import OPTIMIZERS, usual_values
from precision_lab.training.preflight.recipe import recipe_of
from precision_lab.training.preflight.report import Origin
from precision_lab.training.preflight.saved_optimizer import SavedGroup, SavedOptimizer

SAVED = SavedOptimizer("o.pt", "adam", "adam", (SavedGroup(values={"lr": 5e-4, "beta2": 0.98}),), open_tensors({}), {})


def test_what_is_given_goes_before_what_was_saved_before_torchs_defaults() -> None:
    recipe = recipe_of(None, {"lr": 1e-3, "eps": None}, 10, SAVED)
    (group,) = recipe.groups
    assert recipe.optimizer == "adam"
    assert group.hyperparameters == {"lr": 1e-3, "beta1": 0.9, "beta2": 0.98, "eps": 1e-8, "weight_decay": 0.0}
    assert group.origins == {
        "lr": Origin.GIVEN,
        "beta1": Origin.DEFAULT,
        "beta2": Origin.FILE,
        "eps": Origin.DEFAULT,
        "weight_decay": Origin.DEFAULT,
    }
    assert recipe.notes == ("lr 0.001 as given; the file says 0.0005",)
    assert recipe_of(None, {"lr": 5e-4}, 10, SAVED).notes == ()
    assert recipe_of("adamw", {}, 10, SAVED).notes == ("adamw as given; o.pt says adam",)
    assert recipe_of("adamw", {}, 10, SAVED).groups[0].hyperparameters["lr"] == 5e-4


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_there_is_no_default_for_lr(name: str) -> None:
    recipe = recipe_of(name, {}, 10, None)
    assert not recipe.knows_lr
    assert recipe.groups[0].hyperparameters == {s: x for s, x in usual_values(name).items() if s != "lr"}
    assert recipe.notes == ()
    assert recipe_of(name, {"lr": 0.5}, 10, None).knows_lr
    assert recipe_of(None, {}, 10, None).notes == ("adamw is assumed",)


def test_groups_that_differ_are_each_audited_and_a_contradiction_names_them_all() -> None:
    groups = tuple(SavedGroup(values={"lr": lr, "weight_decay": decay}) for lr, decay in ((1e-3, 0.1), (1e-4, 0.0)))
    saved = replace(SAVED, name="adamw", groups=groups)
    recipe = recipe_of(None, {}, 10, saved)
    assert [audit.hyperparameters["lr"] for audit in recipe.audits] == [1e-3, 1e-4]
    expressions = [{f.expression for f in audit.findings} for audit in recipe.audits]
    assert expressions[0] - expressions[1] == {"1 - lr*weight_decay"}
    assert "lr 0.5 as given; the file says 0.001 and 0.0001" in recipe_of(None, {"lr": 0.5}, 10, saved).notes


def test_hyperparameters_of_another_optimizer_are_not_used_and_that_is_said() -> None:
    recipe = recipe_of("sgd", {}, 10, SAVED)
    assert recipe.notes == ("sgd as given; o.pt says adam: its hyperparameters are not used",)
    assert not recipe.knows_lr


def test_the_verdicts_recipe_says_what_was_not_given() -> None:
    report = preflight({"w": np.ones(2)}, lr=1e-3, beta2=0.95)
    assert report.taken_from == "Not given, so torch's defaults: beta1 0.9, eps 1e-08, weight_decay 0.01."
    sgd = preflight({"w": np.ones(2)}, lr=1e-3, optimizer="sgd", updates={"w": np.ones(2)}, momentum=0.0)
    assert sgd.taken_from == "Not given, so torch's defaults: weight_decay 0."


def test_unknown_optimizers_and_numbers_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match="unknown optimizer 'lion'"):
        recipe_of("lion", {}, 10, SAVED)
    with pytest.raises(ValueError, match="lr must be a number above 0"):
        recipe_of(None, {"lr": 0.0}, 10, None)
    with pytest.raises(ValueError, match="adam has no momentum"):
        recipe_of(None, {"momentum": 0.9}, 10, SAVED)
