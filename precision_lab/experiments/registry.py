"""The experiments: what each asks, and the module whose `run` answers.

Another experiment is a line in `EXPERIMENTS`. Its module has ``run(config, *, progress) -> result``, with annotations:
they say which its classes are, ``config()``, ``config.quick()``, ``result.to_dict()``, ``result.from_dict(data)`` and
``result.answer``. Its tables and figures are found by the type of the result, see `presentation`.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from types import NoneType
from typing import Any, get_args, get_type_hints


@dataclass(frozen=True)
class Experiment:
    """A question and where it is answered; nothing is imported before it is needed.

    Attributes
    ----------
    question : str
        What it asks.
    module : str
        Where its `run` is.

    """

    question: str
    module: str

    @property
    def run(self) -> Callable[..., Any]:
        """What runs it, from a configuration to a result."""
        run: Callable[..., Any] = importlib.import_module(self.module).run
        return run

    @property
    def config(self) -> Any:
        """The class of its configurations."""
        hint = get_type_hints(self.run)["config"]
        (kind,) = (kind for kind in get_args(hint) or (hint,) if kind is not NoneType)
        return kind

    @property
    def result(self) -> Any:
        """The class of its results."""
        return get_type_hints(self.run)["return"]

    @property
    def spread(self) -> bool:
        """Whether it takes ``executor=`` and spreads its own work over processes; else it is run in one of them."""
        return "executor" in get_type_hints(self.run)

    def configuration(self, *, quick: bool = False) -> Any:
        """Return the configuration of the documentation, or the quick one."""
        return self.config.quick() if quick else self.config()


_HERE = "precision_lab.experiments"

EXPERIMENTS: dict[str, Experiment] = {
    "underflow": Experiment("Which gradients would each format lose?", f"{_HERE}.underflow"),
    "swamping": Experiment("Would the weights stand still?", f"{_HERE}.swamping"),
    "accumulation": Experiment("How much of a sum survives?", f"{_HERE}.accumulation"),
    "loss_scaling": Experiment("Which loss scale saves a training in fp16?", f"{_HERE}.loss_scaling"),
    "storage": Experiment("Why keep the parameters in fp32?", f"{_HERE}.storage"),
    "averages": Experiment("Does an average of the weights follow them?", f"{_HERE}.averages"),
    "hyperparameters": Experiment("Do the optimizer's constants survive?", f"{_HERE}.hyperparameters"),
    "memory": Experiment("How many bytes does each way of storing take?", f"{_HERE}.memory"),
    "claims": Experiment("What of the folklore is true?", f"{_HERE}.claims.experiment"),
}
"""The experiments of the report, in its order."""
