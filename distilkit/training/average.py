"""The moving average of the weights, which is deployed where the recipe asks for it."""

from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from distilkit.learners.learner import Learner

_Tensors = tuple[Tensor, ...] | list[Tensor]


class MovingAverage(AveragedModel):
    """theta_ema <- d theta_ema + (1 - d) theta after every step, batch norm's statistics likewise.

    `decay`: d, in [0, 1). `warmup`: in step n, counted from 0, d is min(decay, (1 + n) / (10 + n)), so that a short
    training does not deploy its first weights: the form that TensorFlow's `ExponentialMovingAverage` has. `steps`: how
    many steps it holds; a resumed training sets it.
    """

    def __init__(self, learner: Learner, decay: float, *, warmup: bool) -> None:
        super().__init__(learner, multi_avg_fn=self._mix, use_buffers=True)
        self.requires_grad_(False)
        self.decay, self.warmup = decay, warmup
        self._steps = 0  # As `n_averaged` says, which lies on the device.

    @property
    def steps(self) -> int:
        """How many steps it holds."""
        return self._steps

    @steps.setter
    def steps(self, count: int) -> None:
        self._steps = count
        self.n_averaged.fill_(count)

    def update_parameters(self, model: nn.Module) -> None:
        """Take in the weights after a step."""
        super().update_parameters(model)
        self._steps += 1

    def _mix(self, average: _Tensors, current: _Tensors, steps: Tensor | int) -> None:
        decay = min(self.decay, (1 + self._steps) / (10 + self._steps)) if self.warmup else self.decay
        get_ema_multi_avg_fn(decay)(average, current, steps)  # type: ignore[no-untyped-call]
