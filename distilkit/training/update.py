"""One update of the weights: forward, backward, what is measured, the optimizer. All that a step does on the device.

Nothing here waits for the device, and nothing that changes from step to step is a plain number where the work is
written down for good, by `torch.compile` or as a CUDA graph.
"""

from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from distilkit.analysis.diversity import distances
from distilkit.errors import SettingError
from distilkit.groups.inference import Inference
from distilkit.learners.learner import Learner
from distilkit.learners.teacher import Teacher
from distilkit.recipe import Recipe
from distilkit.training.captured import CapturedStep, CudaGraph
from distilkit.training.compiled import compile_losses, failures_named
from distilkit.training.optimizer import make_optimizer


def check_graph(recipe: Recipe, device: torch.device, processes: int) -> None:
    """Raise `SettingError` where a step cannot be one CUDA graph."""
    problem = None
    if device.type != "cuda":
        problem = f"a CUDA graph needs a CUDA device, and this one is {device.type}"
    elif processes > 1:
        problem = f"a CUDA graph holds the step of one process, and here are {processes}"
    elif recipe.train.accumulation > 1:
        problem = "a CUDA graph holds a step that is not computed in parts, and train.accumulation is above 1"
    elif recipe.train.precision == "fp16":
        problem = "fp16 decides after every step whether to take it, which a CUDA graph cannot"
    if problem:
        raise SettingError("train.cuda_graph", problem, "leave train.cuda_graph out")


class Update:
    """Trains `learner` (on its device, in place) batch by batch; `clock` says at which rate and with which weights.

    `wrapped`: the learner as Accelerate has prepared it. `optimizer`: the plain one. `rate`: the learning rate now.
    `losses`: the names of what a batch gives first: "total" and the method's terms, known after the first batch.
    """

    def __init__(self, recipe: Recipe, learner: Learner, accelerator: Accelerator, teacher: Teacher | None) -> None:
        self.recipe, self.learner, self.accelerator = recipe, learner, accelerator
        settings, device = recipe.train, accelerator.device
        # A gradient scaler hands a fused optimizer gradients that are still scaled; that path is not tested anywhere.
        self.optimizer = make_optimizer(recipe.optimizer, learner, fused=accelerator.scaler is None)
        if settings.compile:
            compile_losses(learner)
        self.wrapped: nn.Module
        self.wrapped, self._prepared = accelerator.prepare(learner, self.optimizer)
        if teacher is not None:
            teacher = teacher.to(device).to(memory_format=torch.channels_last)
        self.teacher = None if teacher is None else Inference(teacher, precision=None)
        # Peers stand first, so that a slice takes them: a list of positions would have to wait for the device.
        self.peers = len(learner.method.peers(learner.group.members))
        self.rate, self.losses = 0.0, ("total",)
        self._weights: tuple[float, float] | tuple[Tensor, Tensor] = (1.0, 1.0)
        if settings.compile or settings.cuda_graph:
            self._weights = (torch.ones((), device=device), torch.ones((), device=device))
        self._captured: CapturedStep | None = None
        if settings.cuda_graph:
            for group in self.optimizer.param_groups:
                group["lr"] = torch.tensor(group["lr"], device=device)
            self._captured = CapturedStep(self._whole, CudaGraph(), self.optimizer)

    def clock(self, rate: float, ramp: float, teacher_weight: float) -> None:
        """Set the learning rate, and what the method's distillation and the teacher's term weigh from now on."""
        self.rate = rate
        for group in self.optimizer.param_groups:
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate
        ours, theirs = self._weights
        if isinstance(ours, Tensor) and isinstance(theirs, Tensor):
            ours.fill_(ramp)
            theirs.fill_(teacher_weight)
        else:
            self._weights = ramp, teacher_weight

    def __call__(self, images: Tensor, labels: Tensor, *, share: float = 1.0) -> Tensor:
        """Add a batch's gradients as `gradients` does, and take the step."""
        # Not by the first batch's size, which in a resumed run may be an epoch's last.
        if self._captured and len(images) == self.recipe.train.batch_size and self._captured.fits(images, labels):
            return self._captured(images, labels)
        values = self.gradients(images, labels, share=share)
        self.apply()
        return values

    def gradients(self, images: Tensor, labels: Tensor, *, share: float = 1.0) -> Tensor:
        """Add the gradients of a batch whose loss weighs `share`.

        `images` [B, channels, H, W] and `labels` (int64 [B], or the classes' shares [B, C]) on the device. Returns one
        number for each of `losses`, times B; each member's wrong answers; and the peers' distances, summed over B.
        """
        ramp, teacher_weight = self._weights
        with failures_named(self.recipe):
            output = self.wrapped(images, labels, ramp, **self._taught(images, teacher_weight))
            self.accelerator.backward(output.loss * share)
        self.losses = ("total", *output.terms)
        # A mixed image counts as one of the class with the largest share of it.
        classes_B = labels.argmax(-1) if labels.is_floating_point() else labels
        wrong_S = (output.logits_SBC.detach().argmax(-1) != classes_B).sum(-1)
        losses = torch.stack([output.loss.detach(), *(term.detach() for term in output.terms.values())])
        peers_SBC = output.logits_SBC.detach()[: self.peers]
        distance = distances(peers_SBC).sum() if self.peers > 1 else losses.new_zeros(())
        seen = torch.cat([wrong_S, distance[None]]).to(losses.dtype)
        return torch.cat([losses * len(labels), seen])

    def apply(self) -> None:
        """Take the step that the gradients ask for."""
        if self.recipe.train.clip_norm:
            self.accelerator.clip_grad_norm_(self.learner.parameters(), self.recipe.train.clip_norm)
        self._prepared.step()
        self._prepared.zero_grad(set_to_none=True)

    def _whole(self, images: Tensor, labels: Tensor) -> Tensor:
        values = self.gradients(images, labels)
        self.apply()
        return values

    def _taught(self, images: Tensor, weight: float | Tensor) -> dict[str, Any]:
        """What the teacher says of these images."""
        section = self.recipe.teacher
        if self.teacher is None or section is None:
            return {}
        with self.accelerator.autocast():
            logits = self.teacher(images)
        return {"teacher_logits": logits, "teacher_weight": weight, "teacher_temperature": section.temperature}
