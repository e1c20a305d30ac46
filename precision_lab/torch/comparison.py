"""Train the same perceptron here and in real PyTorch, and name the operation at which the two first part.

Both sides get the same initial weights and the same batches; PyTorch gets them as anybody would write it, with
``torch.nn.Linear``, ``torch.nn.functional.cross_entropy``, ``torch.autocast``, ``model.to(torch.bfloat16)``,
``torch.amp.GradScaler`` and ``torch.optim.lr_scheduler.LambdaLR`` (told of every step, also of one that is skipped), on
the CPU with one thread. Its values are looked at on the way by hooks.

===========================  =====================================================================================
storage                      what PyTorch does
===========================  =====================================================================================
`fp32`                       nothing special
`autocast_bf16`              forward and loss under ``torch.autocast("cpu", torch.bfloat16)``
`autocast_fp16`              the same with ``torch.float16``, and a ``GradScaler``
`pure_bf16`                  ``model.to(torch.bfloat16)``, the loss of ``logits.float()``
`pure_bf16,sensitive=bf16`   ``model.to(torch.bfloat16)``, the loss of the logits as they are
===========================  =====================================================================================

What we found with torch 2.13 on one processor (`tests/torch/test_comparison.py` holds what does not depend on it): both
round at the same places, and in 16 bits they are the same to the last bit for the first steps, until a sum that was
added in another order comes out on the other side of the middle between two values. They part

- in fp32 in the first step, at a matrix product: torch's library adds in an order of its own, ours is stated;
- with autocast, and SGD, after some tens of steps (fp16: in the first), where one element of the gradient of the logits
  or of a matrix product is one unit away; either side can be the one that is right (float64, rounded once);
- with Adam or AdamW and float32 weights in the first step, at the weights: of torch's float32 square roots one in six
  is a unit off. In pure bf16 they are rounded, and the two are the same for tens of steps;
- in pure bf16 with SGD in the second step, at a bias of ten elements: the last n mod 64 elements of a tensor are
  rounded twice there (see `precision_lab.training.optimizers`);
- with the loss in bf16 in the first step, at the gradient of the logits: torch keeps the log-probabilities in bf16, one
  in five a unit off, and takes the gradient from those;
- with SGD and bf16 in the first step, at the weights, where torch uses neither AVX2 nor AVX-512
  (``ATEN_CPU_CAPABILITY=default``): it has no fma there.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import torch

from precision_lab.numerics.codec import codec
from precision_lab.training.comparison import (
    LOSS,
    Difference,
    StepValues,
    TrainingComparison,
    first_differences,
    relative_distance,
)
from precision_lab.training.config import TrainingConfig, load_data
from precision_lab.training.datasets import Dataset
from precision_lab.training.flat import Views
from precision_lab.training.loop import batches
from precision_lab.training.models import MLP, Array
from precision_lab.training.models.places import library_products
from precision_lab.training.optimizer_state import visible_weights
from precision_lab.training.optimizers import by_symbol
from precision_lab.training.step import Recipe, StepRecord, TrainingState, begin, parameters_of, training_step
from precision_lab.training.storage import StorageConfig

STORAGES = ("fp32", "autocast_bf16", "autocast_fp16", "pure_bf16", "pure_bf16,sensitive=bf16")
"""The storages that PyTorch has a way to say."""


PRODUCTS = ("fixed", "blas")
"""The accepted values of `products`."""


def compare_training(config: TrainingConfig, *, products: str = "fixed") -> TrainingComparison:
    """Train a perceptron on the digits here and in PyTorch, side by side.

    Parameters
    ----------
    config : TrainingConfig
        Of an ``mlp`` with ReLU, its storage one of `STORAGES`, any optimizer (in PyTorch with ``foreach=False,
        fused=False``), `micro_batches` 1.
    products : str
        How our side sums its float32 matrix products: ``fixed``, in the stated order of every training here
        (`precision_lab.numerics.fixed`), or ``blas``, by NumPy's BLAS, whose order is its own on each processor.

    Returns
    -------
    TrainingComparison

    Raises
    ------
    ValueError
        The configuration is another one, or `products` neither of these.

    """
    name = next((name for name in STORAGES if StorageConfig.parse(name) == config.storage), None)
    if name is None:
        raise ValueError(f"storage must be one of {'; '.join(STORAGES)}, which PyTorch can say; got {config.storage}")
    if config.model != "mlp" or config.activation != "relu" or config.micro_batches != 1:
        raise ValueError("compare_training takes an mlp with relu and micro_batches=1")
    train_part, test_part = load_data(config)
    model = config.build_model(train_part)
    assert isinstance(model, MLP)
    if products not in PRODUCTS:
        raise ValueError(f"products must be one of {', '.join(PRODUCTS)}; got {products!r}")
    with library_products() if products == "blas" else nullcontext(), _one_torch_thread():
        return _compare(config, name, model, train_part, test_part)


def _compare(
    config: TrainingConfig, name: str, model: MLP, train_part: Dataset, test_part: Dataset
) -> TrainingComparison:
    parameters = model.init(config.seed)
    shapes = {key: array.shape for key, array in parameters.items()}
    recipe = Recipe(model, config.build_optimizer(), config.storage, shapes, config.seed)
    state = begin(parameters, recipe)
    other = _Other(config, name, parameters)
    differences: tuple[Difference, ...] = ()
    curves: list[tuple[float, float, float]] = []
    skipped: list[int] = []
    every_batch = batches(
        len(train_part.labels), config.batch_size, config.steps, config.seed, permuted=config.permuted
    )
    for step, rows in enumerate(every_batch):
        inputs, labels = train_part.inputs[rows], train_part.labels[rows]
        before, rate = state, config.learning_rate * config.schedule.factor(step, config.steps)
        state, record = training_step(before, recipe, inputs, labels, learning_rate=rate)
        theirs = other.step(step, inputs, labels)
        if all(difference.value == LOSS for difference in differences):
            ours = _values(before, state, record, recipe, inputs)
            scale = before.scaler.loss_scale
            differences += first_differences(step, ours, theirs, config, inputs, labels, scale)
        if record.skipped:
            skipped.append(step)
        distance = relative_distance(parameters_of(state, recipe), other.parameters())
        curves.append((record.loss, theirs.loss, distance))
    ours_losses, other_losses, distances = np.array(curves, np.float64).T
    accuracies = [
        model.accuracy(values, test_part.inputs, test_part.labels)
        for values in (parameters_of(state, recipe), other.parameters())
    ]
    return TrainingComparison(
        config,
        f"torch {torch.__version__.partition('+')[0]}",
        ours_losses,
        other_losses,
        tuple(skipped),
        tuple(other.skipped),
        distances,
        differences,
        *accuracies,
    )


def _values(
    before: TrainingState, after: TrainingState, record: StepRecord, recipe: Recipe, inputs: Array
) -> StepValues:
    """Return what our side computed in a step."""
    storage, shapes = recipe.storage, recipe.shapes
    weights = Views(visible_weights(before.optimizer, storage), shapes)
    buffers: dict[str, Mapping[str, Array]] = {}
    if not record.skipped:
        for name, fmt in (("first_moment", storage.first_moment), ("second_moment", storage.second_moment)):
            if name in after.optimizer.buffers:
                buffers[name] = Views(codec(fmt).decode(after.optimizer.buffers[name]), shapes)
        buffers["weights"] = parameters_of(after, recipe)
    return StepValues(
        weights,
        recipe.model.forward(weights, inputs, storage),
        record.loss,
        record.gradients.weights,
        record.gradients.activations,
        buffers,
    )


class _Other:
    """The training in PyTorch."""

    def __init__(self, config: TrainingConfig, storage: str, parameters: Mapping[str, Array]) -> None:
        self.names = list(parameters)
        depth = len(self.names) // 2
        layers: list[Any] = []
        for k in range(1, depth + 1):
            weight, bias = parameters[f"layer{k}.weight"], parameters[f"layer{k}.bias"]
            linear = torch.nn.Linear(*weight.shape)
            with torch.no_grad():
                linear.weight.copy_(torch.from_numpy(weight.T.copy()))
                linear.bias.copy_(torch.from_numpy(bias))
            layers += [linear, torch.nn.ReLU()]
        self.model = torch.nn.Sequential(*layers[:-1])
        self.dtype = torch.bfloat16 if storage.startswith("pure_bf16") else torch.float32
        self.wide_loss = storage == "pure_bf16"
        self.model.to(self.dtype)
        self.seen: dict[str, Any] = {}
        for i, layer in enumerate(self.model):
            k, what = i // 2 + 1, "output" if i % 2 else "preactivation"
            layer.register_forward_hook(self._keeping("logits" if i == len(self.model) - 1 else f"layer{k}.{what}"))
        self.optimizer = _optimizer(config, self.model)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, _share(config))
        self.narrow = {"autocast_bf16": torch.bfloat16, "autocast_fp16": torch.float16}.get(storage)
        self.scaler = torch.amp.GradScaler("cpu", enabled=storage == "autocast_fp16")
        self.skipped: list[int] = []

    def _keeping(self, name: str) -> Any:
        def keep(_module: Any, _inputs: Any, output: Any) -> None:
            output.retain_grad()
            self.seen[name] = output

        return keep

    def step(self, number: int, inputs: Array, labels: Array) -> StepValues:
        """Make a step as a training script does; return what it computed."""
        before = self._by_name(lambda p: p)
        self.optimizer.zero_grad()
        with torch.autocast("cpu", self.narrow) if self.narrow is not None else nullcontext():
            logits = self.model(torch.from_numpy(inputs).to(self.dtype))
            if self.wide_loss:
                logits = logits.float()
            loss = torch.nn.functional.cross_entropy(logits, torch.from_numpy(labels))
        self.scaler.scale(loss).backward()
        gradients = self._by_name(lambda p: p.grad)
        scale = self.scaler.get_scale()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        with warnings.catch_warnings():  # if the first steps are skipped, torch takes the order to be wrong
            warnings.filterwarnings("ignore", "Detected call of .lr_scheduler", UserWarning)
            self.schedule.step()
        buffers: dict[str, dict[str, Array]] = {}
        if self.scaler.get_scale() < scale:
            self.skipped.append(number)
        else:
            for name, keys in _BUFFERS.items():
                held = next((key for key in keys if any(s.get(key) is not None for s in self._states())), None)
                if held is not None:
                    buffers[name] = self._by_name(lambda p, key=held: self.optimizer.state[p][key])
            buffers["weights"] = self.parameters()
        return StepValues(
            before,
            {name: _float32(value) for name, value in self.seen.items()},
            float(loss.detach()),
            gradients,
            {name: _float32(value.grad) for name, value in self.seen.items()},
            buffers,
        )

    def parameters(self) -> dict[str, Array]:
        """Return the weights as they are now, in our names and layout."""
        return self._by_name(lambda p: p)

    def _states(self) -> list[Any]:
        return [self.optimizer.state[p] for p in self.model.parameters()]

    def _by_name(self, of: Any) -> dict[str, Array]:
        values = zip(self.names, self.model.parameters(), strict=True)
        arrays = {name: _float32(of(p)) for name, p in values}
        return {name: array.T.copy() if array.ndim == 2 else array for name, array in arrays.items()}


_BUFFERS = {"first_moment": ("exp_avg", "momentum_buffer"), "second_moment": ("exp_avg_sq",)}


def _optimizer(config: TrainingConfig, model: Any) -> Any:
    optimizer = config.build_optimizer()
    options: dict[str, Any] = by_symbol(optimizer)
    if betas := tuple(options.pop(name) for name in ("beta1", "beta2") if name in options):
        options["betas"] = betas
    kind = getattr(torch.optim, type(optimizer).__name__)
    return kind(model.parameters(), foreach=False, fused=False, **options)


def _share(config: TrainingConfig) -> Callable[[int], float]:
    """Return what LambdaLR asks for: also for the step after the last, which nobody makes."""
    return lambda step: config.schedule.factor(min(step, config.steps - 1), config.steps)


def _float32(tensor: Any) -> Array:
    array: Array = tensor.detach().float().clone().numpy()
    return array


@contextmanager
def _one_torch_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
