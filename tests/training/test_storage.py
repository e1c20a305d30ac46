"""Storage configurations: what follows from what, the text form and back, the refusals, the named ones."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from precision_lab.analysis.loss_scalers import SCALERS, DynamicLossScale, NoLossScale, StaticLossScale
from precision_lab.numerics.formats import FORMATS, get_format
from precision_lab.training.storage import CONFIGURATIONS, FP32, StorageConfig
from precision_lab.training.update_rules import UPDATE_RULES

BF16, FP16, FP32_FORMAT = get_format("bf16"), get_format("fp16"), get_format("fp32")


def test_what_is_left_out_follows_from_the_weights() -> None:
    config = StorageConfig(weights="bf16")  # type: ignore[arg-type]
    for role in ("activations", "activation_gradients", "gradients", "first_moment", "second_moment", "updated"):
        assert getattr(config, role) == BF16, role
    assert (config.accumulator, config.sensitive) == (FP32_FORMAT, FP32_FORMAT)
    assert (config.master, config.operands, config.gradient_operands, config.main_gradients) == (None,) * 4
    assert config.loss_scale == NoLossScale()


def test_moments_follow_the_master_copy_and_gradients_of_activations_the_activations() -> None:
    config = StorageConfig.parse("weights=bf16,activations=fp8_e4m3fn,master=fp32")
    assert config.first_moment == config.second_moment == config.updated == FP32_FORMAT
    assert config.activation_gradients == get_format("fp8_e4m3fn")
    assert config.gradients == BF16


@pytest.mark.parametrize(
    ("text", "scaled"),
    [
        ("weights=fp16", True),
        ("weights=fp16,gradients=fp32,master=fp32,transient_weights=yes", True),
        ("weights=bf16,activation_gradients=fp16", True),
        ("weights=bf16,gradients=fp16", True),
        ("weights=bf16,activations=fp16,activation_gradients=bf16", False),
        ("weights=bf16", False),
        ("weights=fp16,loss_scale=none", False),
    ],
)
def test_gradients_in_fp16_are_scaled_unless_one_says_no(text: str, scaled: bool) -> None:
    expected = DynamicLossScale.torch() if scaled else NoLossScale()
    assert StorageConfig.parse(text).loss_scale == expected


def test_the_named_ones() -> None:
    """Weights, gradients, master, first moment, update."""
    found = {
        name: (c.weights.name, c.gradients.name, c.master and c.master.name, c.first_moment.name, c.update)
        for name, c in CONFIGURATIONS.items()
    }
    assert found == {
        "fp32": ("fp32", "fp32", None, "fp32", "ties_to_even"),
        "autocast_fp16": ("fp16", "fp32", "fp32", "fp32", "ties_to_even"),
        "autocast_bf16": ("bf16", "fp32", "fp32", "fp32", "ties_to_even"),
        "master_fp16": ("fp16", "fp16", "fp32", "fp32", "ties_to_even"),
        "master_bf16": ("bf16", "bf16", "fp32", "fp32", "ties_to_even"),
        "megatron_bf16": ("bf16", "fp32", "fp32", "fp32", "ties_to_even"),
        "bf16_fp32_grads": ("bf16", "fp32", None, "fp32", "ties_to_even"),
        "bf16_fp32_moments": ("bf16", "bf16", None, "fp32", "ties_to_even"),
        "pure_bf16": ("bf16", "bf16", None, "bf16", "ties_to_even"),
        "pure_fp16": ("fp16", "fp16", None, "fp16", "ties_to_even"),
        "bf16_stochastic": ("bf16", "bf16", None, "bf16", "stochastic"),
        "bf16_kahan": ("bf16", "bf16", None, "bf16", "kahan"),
        "collage_light": ("bf16", "bf16", None, "bf16", "collage_light"),
        "collage_plus": ("bf16", "bf16", None, "bf16", "collage_plus"),
        "fp8_hybrid": ("bf16", "fp32", "fp32", "fp32", "ties_to_even"),
        "megatron_fp16": ("fp16", "fp16", "fp32", "fp32", "ties_to_even"),
        "bf16_stochastic_fp32_v": ("bf16", "bf16", None, "bf16", "stochastic"),
        "bf16_kahan_fp32_v": ("bf16", "bf16", None, "bf16", "kahan"),
    }
    second = {name for name, c in CONFIGURATIONS.items() if c.second_moment != c.first_moment}
    assert second == {"bf16_stochastic_fp32_v", "bf16_kahan_fp32_v"}
    assert {CONFIGURATIONS[name].second_moment for name in second} == {FP32_FORMAT}
    assert {name: c.read_gradients.name for name, c in CONFIGURATIONS.items() if c.main_gradients} == {
        "megatron_fp16": "fp32"
    }
    assert {name for name, c in CONFIGURATIONS.items() if c.transient_weights} == {
        "autocast_fp16",
        "autocast_bf16",
        "fp8_hybrid",
    }
    scaled = {name for name, c in CONFIGURATIONS.items() if c.loss_scale != NoLossScale()}
    assert scaled == {"autocast_fp16", "master_fp16", "megatron_fp16", "pure_fp16"}
    assert CONFIGURATIONS["fp32"] == FP32 == StorageConfig()


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_names_and_texts_make_the_same(name: str) -> None:
    config = CONFIGURATIONS[name]
    assert StorageConfig.parse(name) == config
    assert StorageConfig.parse(str(config)) == config
    assert hash(StorageConfig.parse(str(config))) == hash(config)


def test_the_text_of_the_documentation() -> None:
    assert StorageConfig.parse("weights=bf16,gradients=bf16,master=fp32,moments=fp32") == CONFIGURATIONS["master_bf16"]
    assert StorageConfig.parse(" weights = bf16 , master=fp32 ") == CONFIGURATIONS["master_bf16"]
    assert str(CONFIGURATIONS["bf16_fp32_moments"]) == "weights=bf16,moments=fp32"


def test_a_name_with_an_answer_changed() -> None:
    base = CONFIGURATIONS["pure_fp16"]
    assert StorageConfig.parse("pure_fp16,loss_scale=none") == replace(base, loss_scale=NoLossScale())
    assert StorageConfig.parse("pure_fp16,loss_scale=2^10") == replace(base, loss_scale=StaticLossScale(1024.0))
    assert StorageConfig.parse("pure_fp16,loss_scale=megatron").loss_scale == DynamicLossScale.megatron()
    assert StorageConfig.parse("master_bf16,update=stochastic").update == "stochastic"


formats = st.sampled_from([*FORMATS, "e6m9"])
maybe = st.none() | formats


@given(
    weights=formats,
    activations=maybe,
    activation_gradients=maybe,
    gradients=maybe,
    master=maybe,
    first_moment=maybe,
    second_moment=maybe,
    accumulator=formats,
    sensitive=formats,
    operands=maybe,
    main_gradients=maybe,
    transient_weights=st.booleans(),
    update=st.sampled_from(list(UPDATE_RULES)),
    loss_scale=st.none() | st.sampled_from(list(SCALERS.values())) | st.just(StaticLossScale(3.5)),
)
def test_every_text_can_be_read_back(**answers: object) -> None:
    if answers["master"] is None:
        answers["transient_weights"] = False
    else:
        answers["update"] = "ties_to_even"
    config = StorageConfig(**answers)  # type: ignore[arg-type]
    assert StorageConfig.parse(str(config)) == config
    for f in fields(config):
        given_ = answers.get(f.name)
        if isinstance(given_, str) and f.name != "update":
            assert getattr(config, f.name) == get_format(given_)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "name one of fp32, autocast_fp16"),
        ("pure_bf17", "'pure_bf17' is no storage configuration: name one of .* or give role=format pairs of weights"),
        ("weights=bf16,pure_bf16", "'pure_bf16' is no storage configuration"),
        ("wieghts=bf16", "'wieghts' is no role of a storage configuration; the keys are weights, activations"),
        ("weights=fp17", "unknown format 'fp17'"),
        ("moments=fp99", "fp99"),
        ("weights=none", "none"),
        ("update=nearest", "update must be one of ties_to_even, stochastic, kahan, collage_light, collage_plus"),
        ("loss_scale=often", "loss_scale must be dynamic, none, torch"),
        ("loss_scale=0", "loss_scale"),
        ("loss_scale=-2", "loss_scale"),
        ("loss_scale=2^9999", "loss_scale"),
        ("transient_weights=perhaps", "transient_weights must be yes or no, got 'perhaps'"),
        ("weights=bf16,transient_weights=yes", "needs a master copy"),
        ("weights=bf16,master=fp32,update=kahan", "without a master copy"),
        ("gradient_operands=fp8_e5m2", "needs operands too"),
    ],
)
def test_refusals_name_what_is_accepted(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        StorageConfig.parse(text)


def test_a_loss_scale_must_be_one_and_one_of_its_own_has_no_text() -> None:
    with pytest.raises(ValueError, match="text is for parse"):
        StorageConfig(loss_scale="dynamic")  # type: ignore[arg-type]
    custom = StorageConfig(loss_scale=DynamicLossScale(window=7))
    with pytest.raises(ValueError, match="no text"):
        str(custom)
