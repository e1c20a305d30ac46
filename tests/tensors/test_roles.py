"""What the tensors of a checkpoint are for, by their names, their shapes, and what lies beside them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from precision_lab import get_format, list_tensors, scan
from precision_lab.tensors.info import TensorInfo
from precision_lab.tensors.roles import Role, find_roles

PARAMETER, BUFFER, MOMENT, STEP, SCALE = Role

# name | what lies beside it | shape | role; half of them are parameters after all
ROWS: list[tuple[str, str, tuple[int, ...], Role]] = [
    # statistics of norms
    ("bn.running_mean", "", (8,), BUFFER),
    ("bn.running_var", "", (8,), BUFFER),
    ("running_mean", "", (8,), BUFFER),
    ("batch_normalization/moving_variance:0", "", (8,), BUFFER),
    ("batch_stats.BatchNorm_0.mean", "", (8,), BUFFER),
    ("resnet/~/batch_norm/~/var_ema.average", "", (8,), BUFFER),
    ("bn.mean", "bn.var bn.scale bn.bias", (8,), BUFFER),
    ("running_var_head.weight", "", (8, 8), PARAMETER),
    ("running_mean.weight", "running_mean.bias", (8, 8), PARAMETER),
    ("gaussian.mean", "gaussian.var", (8,), PARAMETER),
    ("gaussian.mean", "gaussian.scale", (8,), PARAMETER),
    ("batch_stats_proj.kernel", "", (8,), PARAMETER),
    ("batch_normalization/gamma:0", "batch_normalization/moving_mean:0", (8,), PARAMETER),
    ("moving_mean_predictor/kernel:0", "", (8,), PARAMETER),
    # positions
    ("rotary_emb.inv_freq", "", (32,), BUFFER),
    ("layers.0.attn.rotary.cos_cached", "", (128, 32), BUFFER),
    ("attn.relative_position_index", "", (49, 49), BUFFER),
    ("freqs_cis", "", (128, 32, 2), BUFFER),
    ("embed_positions._float_tensor", "", (1,), BUFFER),
    ("attn.relative_position_bias_table", "attn.relative_position_index", (169, 3), PARAMETER),
    ("rotary.freqs", "", (32,), PARAMETER),
    ("embed_positions.weight", "embed_positions._float_tensor", (128, 32), PARAMETER),
    ("inv_freq_mlp.weight", "", (32, 2), PARAMETER),
    ("pos_embed", "", (1, 197, 64), PARAMETER),
    # masks
    ("h.0.attn.bias", "h.0.attn.c_attn.weight", (1, 1, 16, 16), BUFFER),
    ("h.0.attn.masked_bias", "", (), BUFFER),
    ("layers.1.attn_mask", "", (4, 49, 49), BUFFER),
    ("h.0.attn.bias", "", (16,), PARAMETER),
    ("h.0.attn.bias", "", (1, 4, 16, 16), PARAMETER),
    ("h.0.attn.bias", "", (1, 1, 1, 1), PARAMETER),
    ("h.0.attn.bias", "", (1, 1, 16, 8), PARAMETER),
    ("attn_mask.weight", "", (16, 16), PARAMETER),
    ("attn_mask", "", (16,), PARAMETER),
    # spectral norm
    ("conv.weight_u", "conv.weight_orig", (8,), BUFFER),
    ("conv.parametrizations.weight.0._v", "conv.parametrizations.weight.original", (8,), BUFFER),
    ("lstm.weight_hh_l0_v", "lstm.weight_hh_l0_orig", (8,), BUFFER),
    ("conv.weight_mask", "conv.weight_orig", (8, 8), BUFFER),  # of pruning
    ("fc.parametrizations.weight.0.base", "fc.parametrizations.weight.original", (8, 8), BUFFER),
    ("conv.weight_mask", "conv.weight", (8, 8), PARAMETER),
    ("weight_mask", "other.weight_orig", (8, 8), PARAMETER),
    ("backbone.base", "backbone.head.weight", (8, 8), PARAMETER),
    ("conv.weight_u", "conv.weight", (8,), PARAMETER),
    ("conv.weight_v", "conv.weight_g", (8, 8), PARAMETER),  # of weight norm
    ("conv.weight_orig", "conv.weight_u", (8, 8), PARAMETER),
    ("conv.parametrizations.weight.original", "conv.parametrizations.weight.0._u", (8, 8), PARAMETER),
    ("conv.parametrizations.weight.original1", "conv.parametrizations.weight.original0", (8, 8), PARAMETER),
    # quantization while training, averages, schedules, queues
    ("fc.activation_post_process.min_val", "", (), BUFFER),
    ("fc.weight_fake_quant.scale", "fc.weight_fake_quant.fake_quant_enabled", (1,), BUFFER),
    ("obs.max_val", "obs.min_val", (1,), BUFFER),
    ("betas", "alphas_cumprod", (1000,), BUFFER),
    ("queue", "queue_ptr", (128, 64), BUFFER),
    ("vq.embed_avg", "vq.embed vq.cluster_size", (8, 16), BUFFER),
    ("model_ema.decay", "model_ema.num_updates", (), BUFFER),
    ("fc.scale", "fc.fake_quant_enabled fc.learning_enabled", (1,), PARAMETER),
    ("fc.scale", "fc.zero_point", (1,), PARAMETER),
    ("clip.max_val", "", (1,), PARAMETER),
    ("betas", "", (10,), PARAMETER),
    ("queue", "", (128, 64), PARAMETER),
    ("vq.embed", "vq.head.weight", (8, 16), PARAMETER),
    ("decay", "", (64,), PARAMETER),
    ("queue_ptr_mlp.weight", "queue", (8, 16), PARAMETER),
    # optimizers
    ("optimizer.state.24.exp_avg", "", (8, 8), MOMENT),
    ("exp_avg_sq", "", (8,), MOMENT),
    ("fc.weight.exp_avg_sq_row", "fc.weight", (8,), MOMENT),
    ("state.fc.weight.momentum_buffer", "", (8,), MOMENT),
    ("state.0.sum", "state.0.step", (8,), MOMENT),
    ("opt.state.3.square_avg", "", (8,), MOMENT),
    ("opt.state.3.anything", "opt.state.3.exp_avg", (8,), MOMENT),
    ("opt.state.layers.0.weight.master", "opt.state.layers.0.weight.exp_avg", (8,), MOMENT),
    ("param_groups.0.lr", "", (), MOMENT),
    ("opt_state.0.mu.Dense_0.kernel", "", (8,), MOMENT),
    ("1.nu.Dense_0.kernel", "1.mu.Dense_0.kernel 1.count", (8,), MOMENT),
    ("optimizer_state_dict.single_partition_of_fp32_groups.0", "", (8,), MOMENT),
    ("state.exp_avg.weight", "", (8,), PARAMETER),
    ("exp_avg_mlp.weight", "", (8,), PARAMETER),
    ("ssm.state.proj.weight", "ssm.state.proj.bias", (8,), PARAMETER),
    ("ssm.state.0.weight", "other.state.0.exp_avg", (8,), PARAMETER),
    ("head.mu.weight", "head.nu.weight", (8,), PARAMETER),
    ("head.nu.weight", "head.mu.weight count", (8,), PARAMETER),
    ("mu", "nu count", (8,), PARAMETER),
    ("optimizer.net.weight", "", (8,), PARAMETER),
    ("fc.weight", "fc.weight.exp_avg fc.weight.exp_avg_sq", (8,), PARAMETER),
    ("sum", "", (8,), PARAMETER),
    ("ema.module.fc.weight", "module.fc.weight", (8,), PARAMETER),
    # counters
    ("optimizer.state.24.step", "", (), STEP),
    ("fc.weight.step", "fc.weight.exp_avg", (), STEP),
    ("step", "", (), STEP),
    ("opt_state.0.count", "", (), STEP),
    ("0.count", "0.mu.w 0.nu.w", (), STEP),
    ("step.weight", "step.bias", (8, 8), PARAMETER),
    ("quantizer.step", "quantizer.weight", (), PARAMETER),
    ("delta.step", "delta.exp_avg", (8,), PARAMETER),
    ("count", "", (), PARAMETER),
    ("head.count", "head.mu.weight", (), PARAMETER),
    # scales without codes
    ("l.weight_scale_inv", "", (1, 1), SCALE),
    ("l.weight_scale_2", "l.weight", (), SCALE),
    ("attn.k_scale", "attn.v_scale", (1,), SCALE),
    ("fc.scale", "fc._packed_params._packed_params.0", (), SCALE),
    ("l.weight_scale", "l.weight", (8, 1), PARAMETER),
    ("l.input_scale", "l.weight", (), PARAMETER),
    ("norm.scale", "", (64,), PARAMETER),
    ("scales", "", (64,), PARAMETER),
    ("scale_weight", "", (64,), PARAMETER),
    ("logit_scale", "", (), PARAMETER),
    ("attn.k_scale", "attn.v_scale", (64,), PARAMETER),
    ("attn.k_scale", "attn.q_scale", (1,), PARAMETER),
    ("l.weight_g", "l.weight_v", (8, 1), PARAMETER),
]


def roles(named: dict[str, tuple[int, ...]], dtype: str = "float32") -> dict[str, Role]:
    infos = [TensorInfo(Path("f"), name, dtype, shape) for name, shape in named.items()]
    found = dict(find_roles(infos))
    return {info.name: found.get(i, PARAMETER) for i, info in enumerate(infos)}


@pytest.mark.parametrize(("name", "others", "shape", "role"), ROWS)
def test_what_a_tensor_is_for(name: str, others: str, shape: tuple[int, ...], role: Role) -> None:
    for dtype in ("float32", "bfloat16"):
        beside = dict.fromkeys(others.split(), (1,))
        assert roles({name: shape, **beside}, dtype)[name] is role
        assert roles({**beside, name: shape}, dtype)[name] is role  # in any order
        further = {"blocks.7.weight": (3,), "blocks.7.bias": (3,), "blocks.7.scale": (3,)}
        assert roles({**further, name: shape, **beside}, dtype)[name] is role  # and among others
        prefixed = {f"model.{other}": (1,) for other in beside}
        if name.endswith((".step", ".count")) or "." in name.rstrip(":0"):  # a prefix changes nothing
            assert roles({f"model.{name}": shape, **prefixed}, dtype)[f"model.{name}"] is role


def test_the_table_has_as_many_parameters_as_others() -> None:
    parameters = sum(role is PARAMETER for *_, role in ROWS)
    assert len(ROWS) >= 60
    assert parameters >= len(ROWS) - parameters


@pytest.mark.torch
@pytest.mark.filterwarnings("ignore")  # torch's, of what is old in it
@pytest.mark.parametrize("prefix", ["", "model."])
def test_what_torch_calls_parameters_and_buffers(torch: Any, prefix: str) -> None:
    """The control: of modules in memory it is known; their state_dict() has names and shapes alone."""
    from torch.nn.utils import parametrizations, prune
    from torch.optim.swa_utils import AveragedModel

    nn, quantization = torch.nn, torch.ao.quantization
    watched = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()).train()
    watched.qconfig = quantization.get_default_qat_qconfig("fbgemm")
    modules = [
        *(
            nn.BatchNorm2d(3),
            nn.BatchNorm1d(3, affine=False),
            nn.InstanceNorm2d(3, affine=True, track_running_stats=True),
        ),
        *(nn.LayerNorm(3), nn.GroupNorm(1, 3), nn.PReLU(), nn.Bilinear(2, 3, 4), nn.Embedding(3, 4)),
        *(nn.MultiheadAttention(4, 2), nn.TransformerEncoderLayer(4, 2, 8), nn.LSTM(3, 4, 2), nn.GRU(3, 4)),
        nn.AdaptiveLogSoftmaxWithLoss(8, 20, [4, 10]),
        *(nn.utils.spectral_norm(nn.Linear(3, 4)), nn.utils.spectral_norm(nn.LSTM(3, 4), "weight_hh_l0")),
        *(nn.utils.weight_norm(nn.Linear(3, 4)), prune.l1_unstructured(nn.Linear(3, 4), "weight", 2)),
        *(parametrizations.spectral_norm(nn.Linear(3, 4)), parametrizations.weight_norm(nn.Linear(3, 4))),
        *(parametrizations.orthogonal(nn.Linear(4, 4)), quantization.prepare_qat(watched)),
        AveragedModel(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))),
    ]
    kinds = set()
    for module in modules:
        parameters = {f"{prefix}{name}" for name, _ in module.named_parameters()}
        state = {f"{prefix}{name}": tensor for name, tensor in module.state_dict().items()}
        for info in list_tensors(state):
            assert (info.role is PARAMETER) == (info.name in parameters), info
            kinds.add(info.role)
        assert {info.role for info in list_tensors(module)} <= {PARAMETER}
        assert {info.name for info in list_tensors(module)} == {name for name, _ in module.named_parameters()}
    assert kinds == {PARAMETER, BUFFER}


def test_the_role_is_that_of_the_tensor_in_a_place() -> None:
    arrays = {"bn.running_mean": np.ones(2), "bn.num_batches_tracked": np.array(3), "bn.weight": np.ones(2)}
    found = {info.name: (info.role, info.skipped) for info in list_tensors(arrays)}
    assert found == {
        "bn.running_mean": (BUFFER, None),
        "bn.num_batches_tracked": (BUFFER, "integer tensor"),
        "bn.weight": (PARAMETER, None),
    }
    described = [info.described() for info in list_tensors(arrays)]
    assert [place.get("role") for place in described] == ["buffer", "buffer", None]


def test_what_is_left_out_where_weights_are_asked_for_says_why() -> None:
    for role in Role:
        info = TensorInfo(Path("f"), "x", "float32", (1,), role=role)
        assert (info.left_out().skipped is None) == (role is PARAMETER)
    assert (
        TensorInfo(Path("f"), "x", "int8", (1,), "integer tensor", role=BUFFER).left_out().skipped == "integer tensor"
    )


# ---- codes ----

FP8, BF16 = (get_format(name).dtype for name in ("fp8_e4m3fn", "bf16"))
ONE = np.array([1], np.float32)

# the tensors | which are codes | which are scales
LAYOUTS: list[tuple[dict[str, Any], set[str], set[str]]] = [
    ({"l.weight": np.ones((4, 4), FP8), "l.weight_scale_inv": np.ones((1, 1))}, {"l.weight"}, {"l.weight_scale_inv"}),
    ({"l.weight": np.ones((4, 4), FP8), "l.weight_scale": np.ones((4, 1), BF16)}, {"l.weight"}, {"l.weight_scale"}),
    ({"l.weight": np.ones((4, 4), FP8), "l.scale_weight": ONE}, {"l.weight"}, {"l.scale_weight"}),
    ({"l.weight": np.ones((4, 4), FP8), "l.scale": ONE, "n.scale": np.ones(4)}, {"l.weight"}, {"l.scale"}),
    (
        {"l.weight": np.ones((4, 4), FP8), "l.weight_scale": ONE, "l.input_scale": ONE, "l.bias": np.ones(4)},
        {"l.weight"},
        {"l.weight_scale", "l.input_scale"},
    ),
    ({"e.up": np.ones((2, 4, 4), FP8), "e.up_scale": np.ones((2, 1))}, {"e.up"}, {"e.up_scale"}),
    (
        {
            "l.weight_packed": np.ones((4, 8), np.uint8),
            "l.weight_scale": np.ones((4, 1), FP8),
            "l.weight_global_scale": ONE,
        },
        {"l.weight_packed"},
        {"l.weight_scale", "l.weight_global_scale"},
    ),
    (
        {"l.weight": np.ones((4, 8), np.uint8), "l.weight_scale": np.ones((4, 1), FP8), "l.weight_scale_2": ONE},
        {"l.weight"},
        {"l.weight_scale", "l.weight_scale_2"},
    ),
    (
        {"mlp_blocks": np.ones((2, 2, 16), np.uint8), "mlp_scales": np.ones((2, 2), np.uint8)},
        {"mlp_blocks"},
        {"mlp_scales"},
    ),
    (
        {"l.qweight": np.ones((4, 4), np.int32), "l.scales": np.ones((1, 4), np.float16)},
        {"l.qweight"},
        {"l.scales"},
    ),
    ({"l.weight": np.ones((4, 4), np.int8), "l.SCB": np.ones(4)}, {"l.weight"}, {"l.SCB"}),
    (
        {
            "l.weight": np.ones((8, 1), np.uint8),
            "l.weight.absmax": np.ones(1),
            "l.weight.quant_map": np.ones(16),
        },
        {"l.weight"},
        {"l.weight.absmax", "l.weight.quant_map"},
    ),
    ({"l.weight._data": np.ones((4, 4), FP8), "l.weight._scale": ONE}, {"l.weight._data"}, {"l.weight._scale"}),
    (
        {
            "l.weight_packed": np.ones((4, 2), np.int32),
            "l.weight_scale": np.ones((4, 1), BF16),
            "l.weight_zero_point": np.ones((4, 1), np.int8),
            "l.weight_shape": np.array([4, 16]),
        },
        {"l.weight_packed"},
        {"l.weight_scale", "l.weight_zero_point"},
    ),
    (
        {"l.weight": np.ones((4, 64), FP8), "l.weight_scale": np.ones((4, 2), np.uint8), "l.weight_zero_point": ONE},
        {"l.weight"},
        {"l.weight_scale", "l.weight_zero_point"},
    ),
    # no codes: no scale, a scale elsewhere, more scales than codes, floats
    ({"l.weight": np.ones((4, 4), FP8), "k.weight_scale": ONE}, set(), set()),
    ({"l.weight": np.ones((4, 4), FP8), "l.scale": np.ones(17)}, set(), set()),
    ({"l.weight": np.ones((4, 4), BF16), "l.weight_scale": np.ones((4, 1)), "l.scale": ONE}, set(), set()),
    (
        {"heads": np.array([4], np.int32), "heads_scale": ONE, "n.weight": np.ones(4, np.uint8), "n.scale": np.ones(4)},
        set(),
        set(),
    ),
    ({"ids": np.ones(4, np.int32), "scales": np.ones(4), "scale": ONE, "ids_bias": np.ones(4)}, set(), set()),
]


@pytest.mark.parametrize(("tensors", "codes", "scales"), LAYOUTS)
def test_codes_are_no_weights(tensors: dict[str, Any], codes: set[str], scales: set[str]) -> None:
    for arrays in (tensors, dict(reversed(tensors.items()))):
        infos = {info.name: info for info in list_tensors(arrays)}
        assert {name for name, info in infos.items() if (info.skipped or "").startswith("codes: ")} == codes
        assert {name for name, info in infos.items() if info.role is SCALE} == scales
        for name in codes:
            assert "which is not computed here; dequantize them to bf16 and save that" in str(infos[name].skipped)
            assert any(f"'{scale.rpartition('.')[2]}'" in str(infos[name].skipped) for scale in scales)


def test_fp8_that_nothing_scales_is_read_and_said_to_be_so() -> None:
    values = np.arange(8).astype(FP8)
    result = scan({"w": values, "b": np.ones(3, np.float32)})
    assert result.total.count == 11
    assert [tensor.info.note for tensor in result.tensors] == ["fp8 without a scale beside it: read as values", None]
    assert list_tensors({"w": values})[0].described()["note"] == "fp8 without a scale beside it: read as values"
