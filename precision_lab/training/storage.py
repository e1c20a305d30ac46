"""Where a training step stores its values, and in which format.

Mixed precision is a set of answers to one question, asked for each kind of tensor: in which format is it kept? A
`StorageConfig` holds the answers. The arithmetic between two roundings is float32; a value is rounded where it is
stored, and nowhere else. `CONFIGURATIONS` has the recipes that people use, from fp32 everywhere to bf16 everywhere:

====================  =========  =======================================================================================
name                  bytes      what it is (bytes per parameter with Adam: weights, gradients, master, moments)
====================  =========  =======================================================================================
`fp32`                16         4 + 4 + 0 + 8
`autocast_fp16/bf16`  16         4 + 4 + 0 + 8: float32 parameters and gradients, cast anew in every step
`master_fp16/bf16`    16         2 + 2 + 4 + 8 (Micikevicius et al. 2018, section 3.1)
`megatron_bf16`       18         2 + 4 + 4 + 8: gradients are accumulated in float32
`megatron_fp16`       20         2 + 2 + 4 + 4 + 8: the optimizer has a float32 copy of the gradients too
`bf16_fp32_grads`     14         2 + 4 + 0 + 8: no master copy
`bf16_fp32_moments`   12         2 + 2 + 0 + 8 (Yu et al. 2024, option D without master weights)
`pure_bf16/fp16`      8          2 + 2 + 0 + 4
`bf16_stochastic`     8          as `pure_bf16`, the new weight is rounded stochastically (Zamirai et al. 2020)
`..._fp32_v`          10         and a float32 second moment: `bf16_stochastic_fp32_v`
`bf16_kahan`          10         and 2 for what the rounding of the weight lost (Zamirai et al. 2020)
`..._fp32_v`          12         and a float32 second moment: `bf16_kahan_fp32_v`
`collage_light`       10         and 2 for a second word of the weight (Yu et al. 2024)
`collage_plus`        12         and 2 more for a second word of the second moment (Yu et al. 2024)
`fp8_hybrid`          16         as `autocast_bf16`; operands of matrix products in fp8, e4m3 forward, e5m2 backward,
                                 each tensor with a scale of its own (Micikevicius et al. 2022, arXiv 2209.05433)
====================  =========  =======================================================================================

The master copy (Micikevicius et al. 2018, apex) is Megatron's and DeepSeek's *main* parameters, and the float32 copy of
the gradients their main gradients; the two Megatron rows are those of Megatron Core's guide "Distributed Optimizer".

*autocast* here casts **all** weights, and the gradients leave the backward pass in the cast weights' format: what apex
calls O2, without a copy that is kept. torch's autocast casts operation by operation; norms, softmax and loss, and the
parameters of some of them, stay in float32.

Names are ways to *hold* numbers; some of them compute the same ones. Where the batch is not divided into parts,
`autocast_bf16` and `master_bf16` agree in every digit, and so do `autocast_fp16`, `master_fp16` and `megatron_fp16`:
what differs is what is kept. Of an optimizer without a second moment a ``_fp32_v`` is what it is without, and
`collage_plus` is `collage_light`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from fractions import Fraction
from typing import Any

from precision_lab.analysis.loss_scalers import SCALERS, DynamicLossScale, LossScale, NoLossScale, StaticLossScale
from precision_lab.numerics.formats import FloatFormat, get_format
from precision_lab.support.plain import register
from precision_lab.support.shown import Shown
from precision_lab.training.update_rules import UPDATE_RULES

_FP32 = get_format("fp32")
_YES = {"yes": True, "no": False}


@dataclass(frozen=True)
class StorageConfig(Shown):
    """A format for each role. Formats may be given by name; what is left out follows from the others.

    Attributes
    ----------
    weights : FloatFormat
        What forward and backward see of the parameters. Default fp32.
    activations : FloatFormat
        Outputs of the layers. Default: the weights' format.
    activation_gradients : FloatFormat
        Gradients of the activations. Default: the activations' format.
    gradients : FloatFormat
        Gradients of the parameters, as they are kept for the optimizer. Default: the weights' format.
    master : FloatFormat or None
        The copy of the parameters that the optimizer updates; None: it updates the weights themselves.
    first_moment, second_moment : FloatFormat
        The optimizer's running averages (momentum of SGD: the first). Default: the format of what is updated. In text
        ``moments`` stands for both.
    accumulator : FloatFormat
        Of the sums in matrix products. fp32, the default: float32 products and sums in a stated order (see `product` in
        models/places.py); in any other format the product is exact and each sum rounded.
    sensitive : FloatFormat
        Softmax, layer norm and loss: each of their results. Default fp32.
    main_gradients : FloatFormat or None
        A copy of the gradients, the loss scale divided out, that the optimizer reads, as Megatron's does. In fp32 the
        step is the same in every digit, and the copy costs 4 bytes. None: it reads the gradients themselves.
    operands, gradient_operands : FloatFormat or None
        What the operands of matrix products are cast to, each tensor with a power-of-two scale of its own that brings
        its largest magnitude below the format's; the second for the gradients among them. None: taken as they are.
    transient_weights : bool
        The weights are cast from the master copy in every step and not kept, as autocast does. Gradients then leave the
        backward pass in the weights' format, and are kept in their own.
    update : str
        One of `update_rules.UPDATE_RULES`. Default ``ties_to_even``.
    loss_scale : LossScale
        In text: ``none``, ``dynamic`` (torch's rule), a framework's name, or a number for a static one (``2^16``).
        Default: dynamic where a gradient is kept in fp16, else none.

    Raises
    ------
    ValueError
        Unknown formats or names, or roles that contradict each other.

    """

    weights: FloatFormat = _FP32
    activations: FloatFormat = field(default=None)  # type: ignore[assignment]  # these follow from the others
    activation_gradients: FloatFormat = field(default=None)  # type: ignore[assignment]
    gradients: FloatFormat = field(default=None)  # type: ignore[assignment]
    master: FloatFormat | None = None
    first_moment: FloatFormat = field(default=None)  # type: ignore[assignment]
    second_moment: FloatFormat = field(default=None)  # type: ignore[assignment]
    accumulator: FloatFormat = _FP32
    sensitive: FloatFormat = _FP32
    operands: FloatFormat | None = None
    gradient_operands: FloatFormat | None = None
    main_gradients: FloatFormat | None = None
    transient_weights: bool = False
    update: str = "ties_to_even"
    loss_scale: LossScale = field(default=None)  # type: ignore[assignment]

    def __post_init__(self) -> None:
        for role in _FORMATS:
            if getattr(self, role) is not None:
                object.__setattr__(self, role, get_format(getattr(self, role)))
        for key in _FOLLOWING:
            if getattr(self, key) is None:
                object.__setattr__(self, key, self._following(key))
        if self.update not in tuple(UPDATE_RULES):
            raise ValueError(f"update must be one of {', '.join(UPDATE_RULES)}; got {self.update!r}")
        if not isinstance(self.loss_scale, NoLossScale | StaticLossScale | DynamicLossScale):
            raise ValueError(f"loss_scale must be a loss scaler, got {self.loss_scale!r}; text is for parse()")
        if self.transient_weights and self.master is None:
            raise ValueError("transient_weights=yes needs a master copy to cast from: add master=fp32")
        if self.master is not None and UPDATE_RULES[self.update].words:
            raise ValueError(f"update={self.update} is for weights without a master copy: leave master out")
        if self.gradient_operands is not None and self.operands is None:
            raise ValueError("gradient_operands needs operands too")

    def _following(self, key: str) -> Any:
        """Return what a key is where it is left out; it follows from keys before it."""
        match key:
            case "activations" | "gradients":
                return self.weights
            case "activation_gradients":
                return self.activations
            case "first_moment" | "second_moment":
                return self.updated
            case "loss_scale":
                formats = (self.weights, self.activation_gradients, self.gradients)
                return DynamicLossScale.torch() if get_format("fp16") in formats else NoLossScale()
        return next(f.default for f in fields(self) if f.name == key)

    @property
    def updated(self) -> FloatFormat:
        """The format of the parameters that the optimizer updates."""
        return self.master or self.weights

    @property
    def read_gradients(self) -> FloatFormat:
        """The format of the gradients that the optimizer reads: of their copy if there is one."""
        return self.main_gradients or self.gradients

    @classmethod
    def parse(cls, text: str) -> StorageConfig:
        """Return the configuration of a name, of a text ``role=format,...``, or of a name with some answers changed.

        ``pure_bf16``; ``weights=bf16,gradients=bf16,master=fp32,moments=fp32``; ``pure_fp16,loss_scale=none``.

        Raises
        ------
        ValueError
            The text is none of these; the message names what is accepted.

        """
        chosen: dict[str, Any] = {}
        for i, part in enumerate(part.strip() for part in text.split(",")):
            key, equals, value = (x.strip() for x in part.partition("="))
            if not equals and i == 0 and key in _TEXTS:
                chosen = _pairs(_TEXTS[key])
            elif equals:
                chosen |= _pair(key, value)
            else:
                raise ValueError(
                    f"{part!r} is no storage configuration: name one of {', '.join(_TEXTS)}, or give role=format pairs "
                    f"of {', '.join(_KEYS)}"
                )
        return cls(**chosen)

    def __str__(self) -> str:
        """Return the text that `parse` makes this configuration of: the weights, and what does not follow from them."""
        parts = {f.name: getattr(self, f.name) for f in fields(self)}
        given = {key: value for key, value in parts.items() if key == "weights" or value != self._following(key)}
        if "first_moment" in given and self.first_moment == self.second_moment:
            given = {"moments" if k == "first_moment" else k: v for k, v in given.items() if k != "second_moment"}
        return ",".join(f"{key}={_text(value)}" for key, value in given.items())


register(StorageConfig, str, StorageConfig.parse)


_KEYS = (*(f.name for f in fields(StorageConfig)), "moments")
_FORMATS = _KEYS[: _KEYS.index("transient_weights")]
_FOLLOWING = ("activations", "activation_gradients", "gradients", "first_moment", "second_moment", "loss_scale")
_LOSS_SCALES: dict[str, LossScale] = {"dynamic": DynamicLossScale.torch(), **SCALERS}


def _pairs(text: str) -> dict[str, Any]:
    """Return the arguments of a text that is known to be right."""
    chosen: dict[str, Any] = {}
    for part in text.split(","):
        key, _, value = part.partition("=")
        chosen |= _pair(key, value)
    return chosen


def _pair(key: str, value: str) -> dict[str, Any]:
    """Return the arguments that ``key=value`` stands for."""
    if key not in _KEYS:
        raise ValueError(f"{key!r} is no role of a storage configuration; the keys are {', '.join(_KEYS)}")
    if key == "moments":
        return {"first_moment": get_format(value), "second_moment": get_format(value)}
    if key == "update":
        return {key: value}
    if key == "transient_weights":
        if value not in _YES:
            raise ValueError(f"transient_weights must be yes or no, got {value!r}")
        return {key: _YES[value]}
    if key == "loss_scale":
        return {key: _LOSS_SCALES.get(value) or StaticLossScale(_number(value))}
    if value == "none" and key in ("master", "operands", "gradient_operands", "main_gradients"):
        return {key: None}
    return {key: get_format(value)}


def _number(text: str) -> float:
    base, power, exponent = text.partition("^")
    try:
        if power and abs(int(exponent)) <= 2000:  # beyond any loss scale
            return float(Fraction(base) ** int(exponent))
        return float(text)
    except (ValueError, ArithmeticError):
        raise ValueError(
            f"loss_scale must be {', '.join(_LOSS_SCALES)}, or a number such as 2^16; got {text!r}"
        ) from None


def _text(value: Any) -> str:
    """Write an answer as `_pair` reads it."""
    if isinstance(value, bool):
        return next(text for text, meaning in _YES.items() if meaning is value)
    if isinstance(value, StaticLossScale):
        return f"{value.loss_scale!r}"
    if isinstance(value, NoLossScale | DynamicLossScale):
        name = next((name for name, scaler in SCALERS.items() if scaler == value), None)
        if name is None:
            raise ValueError("a dynamic loss scale with parameters of its own has no text")
        return name
    return "none" if value is None else str(value)


_TEXTS = {
    "fp32": "weights=fp32",
    "autocast_fp16": "weights=fp16,gradients=fp32,master=fp32,transient_weights=yes",
    "autocast_bf16": "weights=bf16,gradients=fp32,master=fp32,transient_weights=yes",
    "master_fp16": "weights=fp16,master=fp32",
    "master_bf16": "weights=bf16,master=fp32",
    "megatron_bf16": "weights=bf16,gradients=fp32,master=fp32",
    "megatron_fp16": "weights=fp16,main_gradients=fp32,master=fp32",
    "bf16_fp32_grads": "weights=bf16,gradients=fp32,moments=fp32",
    "bf16_fp32_moments": "weights=bf16,moments=fp32",
    "pure_bf16": "weights=bf16",
    "pure_fp16": "weights=fp16",
    "bf16_stochastic": "weights=bf16,update=stochastic",
    "bf16_stochastic_fp32_v": "weights=bf16,second_moment=fp32,update=stochastic",
    "bf16_kahan": "weights=bf16,update=kahan",
    "bf16_kahan_fp32_v": "weights=bf16,second_moment=fp32,update=kahan",
    "collage_light": "weights=bf16,update=collage_light",
    "collage_plus": "weights=bf16,update=collage_plus",
    "fp8_hybrid": "weights=bf16,gradients=fp32,master=fp32,operands=fp8_e4m3fn,gradient_operands=fp8_e5m2,"
    "transient_weights=yes",
}

CONFIGURATIONS: Mapping[str, StorageConfig] = {name: StorageConfig.parse(name) for name in _TEXTS}
"""The recipes that people use, by name."""


def configuration_names(names: Iterable[str]) -> tuple[str, ...]:
    """Return names of configurations, or texts, each once; ``all`` stands for those of `CONFIGURATIONS`."""
    return tuple(dict.fromkeys(n for name in names for n in (CONFIGURATIONS if name == "all" else [name])))


FP32 = CONFIGURATIONS["fp32"]
"""Nothing is rounded but by float32 arithmetic."""
