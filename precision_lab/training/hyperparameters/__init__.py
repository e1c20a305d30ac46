"""Do the numbers of an optimizer survive in 16 bits or fewer?

An optimizer has a handful of constants: lr, beta1, beta2, epsilon (`eps` is torch's name of it, and the word in tables
and options here), weight_decay. In float32 nobody looks at them. A format of few bits has few values near 1 and an
early end near 0, and these constants sit exactly there:

- **Near 1** the values are 2^-p apart. bf16 (p = 8) goes from 0.99609375 to 1 in one step, so that beta2 = 0.999
  becomes 1, and so does 1 - lr*weight_decay = 0.99999: there is no weight decay.
- **Near 0** fp16 ends at 2^-24. An epsilon of 1e-8 becomes 0, and a parameter whose gradient is 0 gets 0/0. The square
  of a gradient is twice as far down as the gradient: half of the format's exponents are lost to the second moment.
- **In between** a running average beta2*v + (1 - beta2)*g^2 adds a small number to a large one. The sum is rounded back
  to v before v reaches g^2 (*swamping*), even where beta2 itself survives: with 0.999 in fp16 v stops at 0.75 g^2 for
  g = 1, and for other g, depending on where g^2 lies in its binade, anywhere between 0.61 and 1.02.

`audit_hyperparameters` asks all of this about one format, in two worlds:

- **held**: everything is kept in the format, constants too. Each number is computed exactly from the hyperparameters
  and rounded **once** (ties_to_even), which is the kindest that an implementation can be; bias corrections are those of
  the *stored* beta, and running averages round each product and each sum. "Exactly" means from the doubles that were
  given: 0.999 is the double closest to 0.999.
- **torch**: torch.optim, where only tensors have the format. beta1, beta2, lr, weight_decay and the bias corrections
  are doubles, the step counter is float32, and it is the operations that round (`arithmetic.torch_average`). Of the
  constants the format sees epsilon, a weight decay that is added to the gradient, and SGD's lr.

torch's beta2 is never 1, but R(beta2*v) = v is what freezes v: in bf16 every v at 0.999, 95 % of all v at 0.998, none
at 0.996. What follows depends on when. While v climbs from 0 it stops too low, in bf16 at 0.999 at 0.5 g^2, and steps
are 41 % too large; once gradients shrink it does not decay, and steps become too small.

Which torch: its own loops (``foreach=False, fused=False``), the default on a CPU, as `optimizers` has them. On a CPU
``foreach=True`` differs in v: beta2 is rounded to the format before it multiplies, as in the held world. ``fused=True``
computes in float32 and rounds m, v and w once a step: epsilon stays float32, and v settles elsewhere (bf16, 0.999: at
0.25 g^2). On a GPU ``foreach=True`` is the default, with kernels of its own: what they round is not known here; it
takes running tests/torch/test_hyperparameters.py on one.

A severity says how far the *effect* is from the one that was asked for (`severity_of`). The effect of beta2 is its
window of 1/(1 - beta2) steps, so that 0.999 becoming 1 is a relative error of 0.1 %, and fatal.

What helps is nearly always the same: keep the optimizer's constants, its moments and a copy of the weights in float32
(Micikevicius et al. 2018, arXiv 1710.03740, section 3.1). Another value is named only where it is one that people use.

Sources: Kingma and Ba 2015, arXiv 1412.6980 (Adam, algorithm 1); Loshchilov and Hutter 2019, arXiv 1711.05101 (AdamW);
the defaults are those of torch.optim.
"""

from precision_lab.training.hyperparameters.arithmetic import (
    frozen_share,
    held_average,
    settling_value,
    stored_rates,
    stored_value,
    torch_average,
)
from precision_lab.training.hyperparameters.audit import HyperparameterAudit, audit_hyperparameters
from precision_lab.training.hyperparameters.finding import Finding, Severity, World, severity_of

__all__ = [
    "Finding",
    "HyperparameterAudit",
    "Severity",
    "World",
    "audit_hyperparameters",
    "frozen_share",
    "held_average",
    "settling_value",
    "severity_of",
    "stored_rates",
    "stored_value",
    "torch_average",
]
