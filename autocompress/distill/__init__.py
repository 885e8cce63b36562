"""Recovery by distillation: losses, the teacher's predictions, further terms, and the training loop."""

from __future__ import annotations

from autocompress.distill.learner import learning_rate_share
from autocompress.distill.losses import Prediction, distillation_loss, soft_loss
from autocompress.distill.recovery import divergence, recover
from autocompress.distill.students import by_depth, by_width
from autocompress.distill.teacher import TeacherCache

__all__ = [
    "Prediction",
    "TeacherCache",
    "by_depth",
    "by_width",
    "distillation_loss",
    "divergence",
    "learning_rate_share",
    "recover",
    "soft_loss",
]
