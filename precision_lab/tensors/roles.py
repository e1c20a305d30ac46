"""What the tensors of a checkpoint are for: parameters, or what lies beside them.

A file has no list of its parameters. But nobody calls a parameter ``running_var``, ``exp_avg_sq`` or
``weight_scale_inv``: what is named so is a buffer, a state of the optimizer, a scale, and belongs in no total and in no
verdict about weights. A name that parameters have too (``scale``, ``step``, ``mu``, ``weight_u``, the ``bias`` of an
attention) says so only together with what lies beside it, or with its shape. What no rule knows counts as a parameter
(or what a file holds of one: a gradient, an update).

Names are those of torch (modules, ``torch.optim``, ``torch.ao``), of transformers, keras, flax and optax, DeepSpeed and
apex; which scales belong to codes is said in `codes`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from enum import StrEnum
from functools import cached_property

from precision_lab.tensors.codes import Named, plain_name


class Role(StrEnum):
    """What a tensor is for."""

    PARAMETER = "parameter"
    BUFFER = "buffer"
    MOMENT = "optimizer state"
    STEP = "step counter"
    SCALE = "scale"

    @property
    def beside_weights(self) -> str | None:
        """Why such a tensor is left out where weights are asked for; None for parameters."""
        return _BESIDE.get(self)


_BESIDE = {
    Role.BUFFER: "a buffer, no weights",
    Role.MOMENT: "state of the optimizer, no weights",
    Role.STEP: "state of the optimizer, no weights",
    Role.SCALE: "scales of codes, no weights",
}


# ---- names that are enough ----


def _each(names: dict[Role, str]) -> dict[str, Role]:
    return {name: role for role, several in names.items() for name in several.split()}


_SURE = _each(  # by the last part of a name
    {
        Role.BUFFER: """
            running_mean running_var num_batches_tracked moving_mean moving_variance
            inv_freq original_inv_freq freqs_cis freqs_cos freqs_sin _float_tensor
            cos_cached sin_cached cos_sin_cache cos_cache sin_cache rope_cache
            position_ids relative_position_index relative_coords_table masked_bias pixel_mean pixel_std
            alphas_cumprod alphas_cumprod_prev sqrt_alphas_cumprod sqrt_one_minus_alphas_cumprod
            log_one_minus_alphas_cumprod sqrt_recip_alphas_cumprod sqrt_recipm1_alphas_cumprod
            posterior_variance posterior_log_variance_clipped posterior_mean_coef1 posterior_mean_coef2
            n_averaged num_updates fake_quant_enabled observer_enabled _extra_state
            """,
        Role.MOMENT: """
            exp_avg exp_avg_sq exp_avg_sq_row exp_avg_sq_col exp_inf max_exp_avg_sq momentum_buffer
            """,
        Role.SCALE: "weight_scale_inv weight_scale_2 weight_global_scale input_global_scale",
    }
)
_BELOW = _each(  # by any part before the last
    {
        Role.BUFFER: "batch_stats mean_ema var_ema activation_post_process callbacks lr_schedulers loops",
        Role.MOMENT: """
            opt_state optim_state optimizer_state optimizer_states optimizer_state_dict base_optimizer_state
            param_groups master_params fp32_flat_groups fp32_groups_flat single_partition_of_fp32_groups
            fp32_from_fp16_params fp32_from_float16_params
            """,
    }
)
_STATES = ("step", "square_avg", "grad_avg", "acc_delta", "sum", "state1", "state2", "master_param", "ax", "prev")
"""What torch.optim, apex and bitsandbytes keep of a numbered parameter besides what is in `_SURE`."""


class _Place:
    """All tensors of a place, to ask what lies beside one of them."""

    def __init__(self, tensors: Sequence[Named]) -> None:
        self._tensors = tensors

    @cached_property
    def names(self) -> frozenset[str]:
        return frozenset(plain_name(tensor.name) for tensor in self._tensors)

    @cached_property
    def optimizers(self) -> frozenset[str]:
        """The names, up to ``state.``, below which all is the state of an optimizer."""
        found = set()
        for name in self.names:
            if "state." not in name:
                continue
            parts = name.split(".")
            for i, part in enumerate(parts[:-2]):
                numbered = parts[i + 1].isdecimal() and parts[-1] in _STATES and len(parts) == i + 3
                if part == "state" and (numbered or _SURE.get(parts[-1]) is Role.MOMENT):
                    found.add(".".join(parts[: i + 1]) + ".")
        return frozenset(found)

    @cached_property
    def trees(self) -> frozenset[str]:
        """The names, up to ``mu.`` and ``nu.``, of the moments of optax, which have their count beside them."""
        found = set()
        for name in self.names:
            if "mu." not in name:
                continue
            parts = name.split(".")
            for i, part in enumerate(parts):
                before = "".join(f"{p}." for p in parts[:i])
                twin = f"{before}nu.{'.'.join(parts[i + 1 :])}"
                if part == "mu" and f"{before}count" in self.names and twin in self.names:
                    found.add(before)
        return frozenset(found)

    def has(self, name: str) -> bool:
        return name in self.names


# ---- names that parameters have, too: each is asked with (place, what stands before the last part, the tensor) ----

_Asked = Callable[[_Place, str, Named], Role]


def _with(*others: str) -> _Asked:
    """Return what says that a tensor is a buffer where these are beside it, or it is one of them itself."""

    def ask(place: _Place, before: str, _tensor: Named) -> Role:
        return Role.BUFFER if all(place.has(before + other) for other in others) else Role.PARAMETER

    return ask


def _single(_place: _Place, _before: str, tensor: Named) -> Role:
    return Role.BUFFER if math.prod(tensor.shape) == 1 else Role.PARAMETER


def _quantizer(place: _Place, before: str, _tensor: Named) -> Role:
    """Tell what torch.ao observed, or has quantized by, from what is learned."""
    if place.has(f"{before}_packed_params._packed_params.0"):
        return Role.SCALE
    observed = place.has(f"{before}fake_quant_enabled") and not place.has(f"{before}learning_enabled")
    return Role.BUFFER if observed else Role.PARAMETER


def _attention_bias(_place: _Place, _before: str, tensor: Named) -> Role:
    """Tell GPT-2's triangle of ones, which no optimizer sees, from what is added: (1, 1, n, n)."""
    shape = tensor.shape
    triangle = len(shape) == 4 and shape[:2] == (1, 1) and shape[2] == shape[3] > 1
    return Role.BUFFER if triangle else Role.PARAMETER


def _mask(_place: _Place, _before: str, tensor: Named) -> Role:
    square = len(tensor.shape) >= 2 and tensor.shape[-1] == tensor.shape[-2]
    return Role.BUFFER if square else Role.PARAMETER


def _parametrized(place: _Place, before: str, _tensor: Named) -> Role:
    """Tell what a parametrization keeps: ``parametrizations.weight.0._u`` with ``parametrizations.weight.original``."""
    parent = before.rstrip(".").rpartition(".")[0]
    return Role.BUFFER if place.has(f"{parent}.original") else Role.PARAMETER


def _step(place: _Place, before: str, tensor: Named) -> Role:
    """Tell a counter, alone at the top or beside moments, from a layer's learned size of a step."""
    beside = any(place.has(before + other) for other in _MOMENTS)
    counter = math.prod(tensor.shape) == 1 and (not before or beside or tensor.dtype.startswith(("int", "uint")))
    return Role.STEP if counter else Role.PARAMETER


def _cache_scale(place: _Place, before: str, tensor: Named) -> Role:
    """Tell the scales of a quantized cache, one number each for keys and values, from those of a norm."""
    single = math.prod(tensor.shape) == 1 and place.has(f"{before}k_scale") and place.has(f"{before}v_scale")
    return Role.SCALE if single else Role.PARAMETER


_MOMENTS = tuple(name for name, role in _SURE.items() if role is Role.MOMENT)
_ASKED: dict[str, _Asked] = {
    "bias": _attention_bias,
    **dict.fromkeys(("attn_mask", "causal_mask"), _mask),
    **dict.fromkeys(("_u", "_v", "base"), _parametrized),
    **dict.fromkeys(("min_val", "max_val"), _with("min_val", "max_val")),
    **dict.fromkeys(("mean", "var"), _with("mean", "var", "scale", "bias")),
    **dict.fromkeys(("embed", "embed_avg", "cluster_size"), _with("embed", "embed_avg", "cluster_size")),
    **dict.fromkeys(("scale", "zero_point"), _quantizer),
    "betas": _with("alphas_cumprod"),
    "queue": _with("queue_ptr"),
    "decay": _with("num_updates"),
    "version": _single,
    "step": _step,
    **dict.fromkeys(("k_scale", "v_scale"), _cache_scale),
}
_ENDS = "uvk"
_OF_ORIGINAL = ("_u", "_v", "_mask")  # of spectral norm and of pruning: weight_u, with weight_orig beside it
_SUSPECT = frozenset((*_BELOW, "state", "mu", "nu", "count"))


def _by_place(place: _Place, parts: list[str]) -> Role:
    """Say what a tensor is by where it lies: among the state of an optimizer or the statistics of a model."""
    role = next((_BELOW[part] for part in parts[:-1] if part in _BELOW), Role.PARAMETER)
    before = ""
    for i, part in enumerate(parts):
        in_state = f"{before}{part}." in place.optimizers and i + 1 < len(parts)
        if in_state or (part in ("mu", "nu", "count") and before in place.trees):
            role = Role.MOMENT
        before += f"{part}."
    return role_in_optimizer(parts[-1]) if role is Role.MOMENT else role


def find_roles(tensors: Sequence[Named]) -> Iterator[tuple[int, Role]]:
    """Yield the number and the role of each tensor of a place, all shards together, that is no parameter."""
    place = _Place(tensors)
    for number, tensor in enumerate(tensors):  # with few calls: there may be very many
        name = tensor.name
        if "/" in name or ":" in name:
            name = plain_name(name)
        parts = name.split(".")
        last = parts[-1]
        role = Role.PARAMETER
        if last in _SURE:
            role = _SURE[last]
        elif last in _ASKED:
            role = _ASKED[last](place, name.removesuffix(last), tensor)
        elif last[-1:] in _ENDS and last.endswith(_OF_ORIGINAL) and place.has(f"{name.rpartition('_')[0]}_orig"):
            role = Role.BUFFER
        if role is Role.PARAMETER and not _SUSPECT.isdisjoint(parts):
            role = _by_place(place, parts)
        if role is not Role.PARAMETER:
            yield number, role


def role_in_optimizer(name: str) -> Role:
    """Return what a tensor is that is known to lie in the state of an optimizer."""
    return Role.STEP if name.rpartition(".")[2] in ("step", "count") else Role.MOMENT
