"""What a live PyTorch model does to its numbers (extra ``torch``): record a run, or hold one beside ours."""

from precision_lab.torch.comparison import compare_training
from precision_lab.torch.recorder import GradientRecorder

__all__ = ["GradientRecorder", "compare_training"]
