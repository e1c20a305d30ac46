"""Our training held beside real PyTorch; and faults that are planted there are found where they are."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from precision_lab import TrainingConfig
from precision_lab.numerics.codec import Codec, codec
from precision_lab.numerics.rounding import Array
from precision_lab.training import optimizers, update_rules
from precision_lab.training.comparison import LOSS, TrainingComparison
from precision_lab.training.loop import train
from precision_lab.training.models.places import library_products
from tests.torch.optimizers import codec_without_fma, has_fma

pytestmark = pytest.mark.torch


@pytest.fixture(scope="module")
def comparison() -> Any:
    from precision_lab.torch import comparison

    return comparison


def with_codec(monkeypatch: pytest.MonkeyPatch, other: Any) -> None:
    """Compute what optimizers do with another codec."""
    for module in (optimizers, update_rules):
        monkeypatch.setattr(module, "codec", other)
    monkeypatch.setattr(optimizers, "adam", adam_by_codecs)


def adam_by_codecs(
    first: Codec, second: Codec, weight: Any, beta: Any, rest: Any, *others: Any
) -> tuple[Array, Array, Array]:
    """Return what `codec.adam` does, in the three steps that it makes one call of."""
    *numbers, m, v, g = others
    m = first.compute("lerp_32", weight, m, g)
    v = second.compute("mean_square_32", beta, rest, v, g)
    return m, v, second.compute("adam_direction_32", *numbers, m, v)


@pytest.fixture(autouse=True)
def no_fma_where_torch_has_none(torch: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without its vectors torch parts at the optimizer; with its products and sums here, all else must be the same."""
    if not has_fma(torch):
        with_codec(monkeypatch, codec_without_fma)


STORAGES = ("fp32", "autocast_bf16", "autocast_fp16", "pure_bf16", "pure_bf16,sensitive=bf16")


SGD = TrainingConfig(steps=60)
OPTIMIZERS = {
    "sgd": SGD,
    "momentum": replace(SGD, momentum=0.9),
    "adamw": replace(SGD, optimizer="adamw", learning_rate=1e-3, weight_decay=0.01),
}
# what may be found first on some processor or other: sums in another order, and what torch does not round rightly
SUMS = ("matrix product", "sum over the batch", "gradient of the logits")


def compared(storage: str, optimizer: str = "sgd", **options: Any) -> TrainingComparison:
    from precision_lab.torch import compare_training

    return compare_training(TrainingConfig.from_dict(OPTIMIZERS[optimizer].to_dict() | options | {"storage": storage}))


def test_all_storages_are_tried(comparison: Any) -> None:
    assert comparison.STORAGES == STORAGES


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("storage", STORAGES)
def test_the_curves_are_the_same_but_for_the_order_of_sums(storage: str, optimizer: str) -> None:
    result = compared(storage, optimizer)
    # in pure bf16 a loss of torch has 8 bits
    apart = 1e-5 if storage == "fp32" else 0.005 if storage.startswith("autocast") else 0.02
    np.testing.assert_allclose(result.other_losses, result.losses, rtol=apart)
    assert result.losses[-1] < 0.7 * result.losses[0]
    assert result.distances[-1] < (1e-6 if storage == "fp32" else 1e-2)
    assert result.skipped == result.other_skipped
    assert abs(result.test_accuracy - result.other_test_accuracy) < 0.02
    parting = result.parting
    if parting is None:
        assert not result.distances.any()
        return
    # nothing differs before it
    assert not result.distances[: parting.step].any()
    assert {d.value for d in result.differences if d.step < parting.step} <= {LOSS}
    if parting.operation.startswith("optimizer: weights"):
        # the square roots of float32 Adam, and the last n mod 64 numbers of SGD in bf16
        assert (storage, optimizer) != ("fp32", "sgd")
        assert (optimizer == "adamw") == (not storage.startswith("pure_bf16"))
        if storage.startswith("pure_bf16"):
            assert parting.value.endswith(".bias")
    else:
        assert any(what in parting.operation for what in SUMS), parting
    if storage == "pure_bf16,sensitive=bf16":
        assert (parting.step, parting.value) == (0, "gradient of logits")


@pytest.mark.parametrize("schedule", ["constant,warmup=9", "linear,warmup=9", "cosine,final=0.1"])
@pytest.mark.parametrize(("storage", "optimizer"), [("fp32", "sgd"), ("pure_bf16", "adamw")])
def test_a_schedule_is_that_of_lambda_lr(storage: str, optimizer: str, schedule: str) -> None:
    result = compared(storage, optimizer, schedule=schedule)
    apart = 1e-5 if storage == "fp32" else 0.02
    np.testing.assert_allclose(result.other_losses, result.losses, rtol=apart)
    constant = compared(storage, optimizer)
    assert np.abs(constant.losses / result.losses - 1).max() > 2 * apart
    if result.parting is not None:
        assert any(what in result.parting.operation for what in SUMS), result.parting


def test_a_schedule_that_is_a_step_late_is_found_at_the_weights(
    comparison: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(comparison, "_share", lambda config: lambda step: step / 3)  # as in transformers
    parting = compared("autocast_bf16", schedule="constant,warmup=3", steps=3).parting
    assert parting is not None
    assert (parting.step, parting.value) == (0, "weights of layer1.weight")


@pytest.mark.parametrize("storage", ["fp32", "autocast_bf16"])
def test_permuted_rows_are_the_same_on_both_sides(storage: str) -> None:
    plain, permuted = compared(storage, steps=5), compared(storage, steps=5, permuted=True)
    assert not np.array_equal(plain.losses, permuted.losses)
    np.testing.assert_allclose(permuted.other_losses, permuted.losses, rtol=0.02)
    assert permuted.distances[-1] < (1e-6 if storage == "fp32" else 1e-2)


@pytest.mark.parametrize("schedule", ["constant", "linear,warmup=3"])
def test_steps_that_the_scaler_skips_are_the_same(schedule: str) -> None:
    options: dict[str, Any] = {"learning_rate": 1e-4, "batch_size": 1, "hidden": [256, 256], "schedule": schedule}
    result = compared("autocast_fp16", steps=12, **options)
    assert 0 < len(result.skipped) < 12
    assert result.skipped == result.other_skipped


def test_who_is_right_can_be_told(torch: Any) -> None:
    """Torch takes the gradient of the logits from log-probabilities in bf16; ours is rounded once."""
    parting = compared("pure_bf16", steps=1)
    spoilt = compared("pure_bf16,sensitive=bf16", steps=1).parting
    assert spoilt is not None
    assert spoilt.theirs_right is not None
    assert spoilt.theirs_right < 0.5 * spoilt.differing
    assert parting.distances[0] == 0 or parting.parting is not None


def test_torch_takes_the_gradient_of_bf16_logits_from_log_probabilities_in_bf16(torch: Any) -> None:
    logits = torch.randn(64, 10, generator=torch.Generator().manual_seed(0)).bfloat16().requires_grad_()
    labels = torch.arange(64) % 10
    torch.nn.functional.cross_entropy(logits, labels).backward()
    stored = torch.log_softmax(logits.detach(), 1)
    start = torch.zeros(64, 10)
    start[torch.arange(64), labels] = -1 / 64
    from_stored = (start - stored.float().exp() * start.sum(1, keepdim=True)).bfloat16()
    assert torch.equal(from_stored, logits.grad)
    wide = torch.log_softmax(logits.detach().double(), 1)
    assert 0.05 < (wide.float().bfloat16() != stored).float().mean() < 0.4


# ---- planted faults ----


def parting_of(storage: str, optimizer: str = "sgd") -> tuple[int, str]:
    parting = compared(storage, optimizer, steps=3).parting
    assert parting is not None
    return parting.step, parting.value


def test_another_learning_rate_is_found_at_the_weights(comparison: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    original = comparison._optimizer

    def other(config: TrainingConfig, model: Any) -> Any:
        return original(replace(config, learning_rate=1.5 * config.learning_rate), model)

    monkeypatch.setattr(comparison, "_optimizer", other)
    assert parting_of("autocast_bf16") == (0, "weights of layer1.weight")


def test_another_momentum_is_found_at_the_first_moment(comparison: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    original = comparison._optimizer

    def other(config: TrainingConfig, model: Any) -> Any:
        return original(replace(config, beta1=0.8), model)

    monkeypatch.setattr(comparison, "_optimizer", other)
    assert parting_of("autocast_bf16", "adamw") == (0, "first_moment of layer1.weight")


def test_an_fma_on_one_side_alone_is_found_at_the_weights(torch: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """So much for the builds of torch with vectors and without."""
    with_codec(monkeypatch, codec_without_fma if has_fma(torch) else codec)
    assert parting_of("autocast_bf16") == (0, "weights of layer1.weight")
    assert parting_of("pure_bf16") == (0, "weights of layer1.weight")


def test_another_activation_is_found_there(torch: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.nn, "ReLU", torch.nn.LeakyReLU)
    assert parting_of("autocast_bf16") == (0, "layer1.output")


def test_another_loss_is_found_there(torch: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    original = torch.nn.functional.cross_entropy

    def smoothed(logits: Any, labels: Any) -> Any:
        return original(logits, labels, label_smoothing=0.1)

    monkeypatch.setattr(torch.nn.functional, "cross_entropy", smoothed)
    result = compared("autocast_bf16", steps=1)
    assert result.first is not None
    assert result.first.value == LOSS
    assert parting_of("autocast_bf16") == (0, "gradient of logits")


def test_a_gradient_that_is_tampered_with_is_found(comparison: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    original = comparison._Other.step

    def tampered(self: Any, *arguments: Any) -> Any:
        values = original(self, *arguments)
        return replace(values, gradients=values.gradients | {"layer2.bias": -values.gradients["layer2.bias"]})

    monkeypatch.setattr(comparison._Other, "step", tampered)
    assert parting_of("autocast_bf16") == (0, "gradient of layer2.bias")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"storage": "collage_plus"}, "storage must be one of fp32; autocast_bf16"),
        ({"activation": "sigmoid"}, "an mlp with relu"),
        ({"micro_batches": 2}, "micro_batches=1"),
        ({"model": "least_squares", "learning_rate": 0.01}, "an mlp"),
    ],
)
def test_what_pytorch_cannot_say(comparison: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        comparison.compare_training(TrainingConfig.from_dict(SGD.to_dict() | options))


def test_our_products_are_fixed_or_those_of_blas(comparison: Any) -> None:
    """The stated order is the same in every run and beside `train`; BLAS's is asked for by name."""
    config = TrainingConfig(steps=20)
    ours = comparison.compare_training(config)
    assert ours.losses.tolist() == train(config).losses.tolist()
    by_blas = comparison.compare_training(config, products="blas")
    with library_products():
        assert by_blas.losses.tolist() == train(config).losses.tolist()
    np.testing.assert_allclose(by_blas.losses, ours.losses, rtol=1e-4)
    with pytest.raises(ValueError, match="products must be one of fixed, blas; got 'mkl'"):
        comparison.compare_training(config, products="mkl")


def test_the_number_of_threads_is_left_alone(torch: Any) -> None:
    before = torch.get_num_threads()
    compared("fp32", steps=1)
    assert torch.get_num_threads() == before
