"""Pre-flight: what would 16 bits lose of the updates of these parameters? Asked of the checkpoint itself.

Which weights would stand still follows from the gaps around them and the updates (`analysis.updates`): those that are
given, or follow from an optimizer's moments or from SGD's gradients. Without any only the first are known: Adam's are
as large as the learning rate then, whatever the gradients are. In a run on the digits the median of |u|/lr was 1 at
step 0, .34 at 100, .08 at 1,000 and .04 at 3,000. So weights and lr tell what is lost at the start of training, and
that smaller updates lose more; not that anything is kept later.

Which constants survive follows from their formats (`training.hyperparameters`), what it costs in bytes from the
optimizer (`training.memory`). `preflight` asks all of it of every named storage configuration. What losing means is
said in `criterion`, what is known about the optimizer and its updates in `evidence`.
"""

from precision_lab.training.preflight.report import PreflightReport
from precision_lab.training.preflight.run import preflight

__all__ = ["PreflightReport", "preflight"]
