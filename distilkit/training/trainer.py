"""The training loop, over Accelerate.

One step: take the global batch's part that is this process's, augment it on the device, losses, backward, update.
Nothing is drawn from a running random stream, and no state lives outside `Progress`, the learner, its moving average
and the optimizer, so a run that was cut off continues from its checkpoint as if nothing had happened.
"""

import contextlib
import copy
import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from distilkit.data.datasets import DataSpec, ImageData
from distilkit.data.decoding import ImagesLostError
from distilkit.data.resident import TrainingSource, epoch_order
from distilkit.data.streaming import training_source
from distilkit.data.variation import VariedImages
from distilkit.errors import SettingError, UserError
from distilkit.learners.learner import Learner
from distilkit.learners.teacher import Teacher
from distilkit.methods.base import DistillationOptions
from distilkit.models.pooling import keep_layout
from distilkit.observer import Observer
from distilkit.randomness import derive_seed, seeded
from distilkit.recipe import DataSection, Recipe, SnapshotSection, resolve_epochs
from distilkit.runs import checkpoint as checkpoints
from distilkit.runs import layout as files
from distilkit.runs import metrics as log
from distilkit.training import schedule
from distilkit.training.average import MovingAverage
from distilkit.training.deployed import recalibrate
from distilkit.training.evaluate import evaluate_members
from distilkit.training.interrupt import Interrupted, StopRequest, stop_requests
from distilkit.training.processes import deterministic, lost_ones_named
from distilkit.training.tracking import Tracking
from distilkit.training.update import Update, check_graph


@dataclass
class Progress:
    """Where a run stands: all of its state that is neither weights nor optimizer state.

    `step`: global steps done. `sums`: over the unfinished epoch, losses by term and wrong answers by member, each
    summed over images, and `images` seen. `best`: the epoch with the leader's lowest validation error so far. `pins`:
    checkpoints that are kept, by the name of the pointer to each: `best`, and `cycle_1` and so on of a snapshot run.
    """

    step: int = 0
    sums: dict[str, float] = field(default_factory=dict)
    best: dict[str, float] = field(default_factory=dict)
    pins: dict[str, str] = field(default_factory=dict)


class _Pending(NamedTuple):
    """A step whose values have not been looked at: looking waits for the device.

    `values`: losses times images, wrong answers of every member, the peers' distances summed; this process's share.
    """

    step: int
    images: int
    names: tuple[str, ...]
    values: Tensor


def batch_bounds(count: int, batch_size: int, processes: int) -> list[tuple[int, int]]:
    """Where each global batch of an epoch starts and ends. The last, smaller one is kept.

    Batch norm needs two images on every process, so a last batch too small for that joins the one before it.
    """
    starts = list(range(0, count, batch_size))
    if len(starts) > 1 and count - starts[-1] < 2 * processes:
        starts.pop()
    return list(zip(starts, [*starts[1:], count], strict=True))


def check_settings(recipe: Recipe, images: int, device: torch.device, processes: int) -> None:
    """Raise `SettingError` for what this device, or this number of processes, cannot train."""
    settings = recipe.train
    if settings.sync_batch_norm and device.type != "cuda":
        raise SettingError(
            "train.sync_batch_norm", "batch norm is synchronised on CUDA devices only", "leave sync_batch_norm out"
        )
    if settings.cuda_graph:
        check_graph(recipe, device, processes)
    needed = 2 if recipe.model.norm == "batch" else 1
    bounds = batch_bounds(images, settings.batch_size, processes)
    if min(settings.batch_size, images) // (processes * settings.accumulation) < needed:
        raise SettingError(
            "train.batch_size",
            f"{settings.batch_size} images are too few for {processes} processes and {settings.accumulation} parts "
            f"each: every part needs {needed}",
            "raise train.batch_size, or lower train.accumulation or the number of processes",
        )
    if min(last - first for first, last in bounds) < needed * processes:
        raise SettingError("data.dataset", f"{images} training images are too few for {processes} processes")


class Trainer:
    """Trains a learner as a recipe says and leaves metrics and checkpoints in a run's folder.

    `learner`'s weights are trained in place. Every process of a distributed training has its own trainer; the main one
    alone writes. Raises `Interrupted` after saving when a signal asked for it, and `UserError` when a loss is not
    finite, the folder cannot be written or another process is gone.
    """

    def __init__(
        self,
        recipe: Recipe,
        learner: Learner,
        data: ImageData,
        accelerator: Accelerator,
        folder: Path,
        observer: Observer,
        teacher: Teacher | None = None,
    ) -> None:
        self.recipe, self.data, self.accelerator, self.observer = recipe, data, accelerator, observer
        self.folder, self.checkpoints = folder, folder / files.CHECKPOINTS
        device, seed, settings = accelerator.device, recipe.train.seed, recipe.train
        if settings.sync_batch_norm:
            learner = nn.SyncBatchNorm.convert_sync_batchnorm(learner)  # type: ignore[no-untyped-call]
        # Channels last is how the convolutions of CPUs and tensor cores read memory: 1.2 to 1.5 x on two Zen 5 cores.
        self.learner = learner.to(device).to(memory_format=torch.channels_last)
        keep_layout(self.learner)
        self.average = MovingAverage(self.learner, settings.ema, warmup=settings.ema_warmup) if settings.ema else None
        self.recalibrated = copy.deepcopy(self.learner) if settings.recalibrate else None
        self.recalibrated_at = -1
        source = training_source(
            data.splits["train"], recipe.data.storage, augment=recipe.data.augment, seed=seed, device=device
        )
        self.images = _varied(source, recipe.data, data.spec, seed, device)
        self.bounds = batch_bounds(len(self.images), settings.batch_size, accelerator.num_processes)
        self.update = Update(recipe, self.learner, accelerator, teacher)
        named = self.learner.named_parameters()
        self.parameter_names: dict[Tensor, str] = {parameter: name for name, parameter in named}
        rampup = recipe.method.rampup_epochs if isinstance(recipe.method, DistillationOptions) else 0
        self.rampup_epochs = resolve_epochs(rampup, settings.epochs)
        self.progress = Progress()
        self.pending: list[_Pending] = []
        self.look_every = 1 if device.type == "cpu" else 50
        self.saved_at, self.saved_name = time.monotonic(), ""

    @property
    def steps_per_epoch(self) -> int:
        """Updates in one epoch."""
        return len(self.bounds)

    def deployed(self) -> Learner:
        """What is evaluated and deployed now.

        The moving average of the weights where there is one; with `recalibrate` a copy whose batch norm has its
        statistics from fixed training images. All processes call this together.
        """
        learner: Learner = self.average.module if self.average else self.learner  # type: ignore[assignment]
        if self.recalibrated is None:
            return learner
        if self.recalibrated_at != self.progress.step:
            self.recalibrated.load_state_dict(learner.state_dict())
            settings, split = self.recipe.train, self.data.splits["train"]
            # As many images as batch norm normalises together in training.
            size = max(2, settings.batch_size // (self.accelerator.num_processes * settings.accumulation))
            recalibrate(self.recalibrated.group, split, settings.recalibrate, size, self.accelerator)
            self.recalibrated_at = self.progress.step
        return self.recalibrated

    def fit(self) -> None:
        """Train from where `progress` stands to the last epoch."""
        first_epoch = self.progress.step // self.steps_per_epoch
        settings = self.recipe.train
        if self.accelerator.is_main_process:
            log.keep_until(self.folder / files.METRICS, first_epoch)
        tracked = self.recipe.tracking.names if self.accelerator.is_main_process else ()
        self.tracking = Tracking(tracked, self.recipe, self.folder, first_epoch, self.observer)
        try:
            # Before images are read ahead: trackers are started with another working folder.
            self.tracking.start()
            self.images.upcoming(self._upcoming(self.progress.step))
            with (
                stop_requests() as stop,
                seeded(settings.seed, "training"),
                deterministic(settings.deterministic),
                lost_ones_named(self.folder),
            ):
                for epoch in range(first_epoch, settings.epochs):
                    self._epoch(epoch, stop)
        finally:
            self.images.close()
            self.tracking.finish()

    def _upcoming(self, start: int) -> Iterator[tuple[int, Tensor, slice]]:
        """Every step from `start` on, with its global batch and this process's share of it."""
        for epoch in range(start // self.steps_per_epoch, self.recipe.train.epochs):
            order = epoch_order(self.recipe.train.seed, epoch, len(self.images))
            for step, (first, last) in enumerate(self.bounds, epoch * self.steps_per_epoch):
                if step >= start:
                    yield step, order[first:last], slice(*self._share(last - first))

    def _share(self, count: int) -> tuple[int, int]:
        """Where this process's part of a global batch of `count` images starts and ends."""
        rank, world = self.accelerator.process_index, self.accelerator.num_processes
        return rank * count // world, (rank + 1) * count // world

    def _epoch(self, epoch: int, stop: StopRequest) -> None:
        recipe, per_epoch = self.recipe.train, self.steps_per_epoch
        order = epoch_order(recipe.seed, epoch, len(self.images))
        ramp = schedule.ramp(epoch, self.rampup_epochs)
        start, images_before = time.perf_counter(), self.progress.sums.get("images", 0.0)
        self.update.wrapped.train()
        for step in range(self.progress.step, (epoch + 1) * per_epoch):
            first, last = self.bounds[step % per_epoch]
            try:
                self._step(step, order[first:last], ramp)
            except ImagesLostError as error:
                raise self._without_images(error, epoch, step, stop) from error
            self.progress.step = step + 1
            # After an epoch's last step its line has to be written first, or a resumed run would never write it.
            unfinished = self.progress.step < (epoch + 1) * per_epoch
            due = recipe.checkpoint_steps and self.progress.step % recipe.checkpoint_steps == 0
            # Several processes learn only when they look that one of them was asked to stop.
            asked = stop.signum and self.accelerator.num_processes == 1
            if len(self.pending) >= self.look_every or due or asked:
                self._look(epoch, step % per_epoch + 1)
                if unfinished:
                    self._save_or_stop(stop)
        self._look(epoch, per_epoch)
        seconds = time.perf_counter() - start
        line = {
            "epoch": epoch + 1,
            "step": self.progress.step,
            "lr": self.update.rate,
            "ramp": ramp,
            "images_per_second": (self.progress.sums["images"] - images_before) / seconds,
            "seconds": seconds,
            **self._epoch_means(),
        }
        if (epoch + 1) % recipe.evaluate_epochs == 0 or epoch + 1 == recipe.epochs:
            self._share_buffers()
            deployed = self.deployed()
            for split in ("validation", "test"):
                if split in self.data.splits:
                    line[split] = evaluate_members(deployed, self.data.splits[split], self.accelerator)
        self.progress.sums = {}
        self._finish_epoch(epoch + 1, line)
        signum, due = self._agree(stop)
        if due:
            self.save()
        if signum and epoch + 1 < recipe.epochs:
            raise Interrupted(signum, self.save(), self.folder)

    def _without_images(self, error: ImagesLostError, epoch: int, step: int, stop: StopRequest) -> Exception:
        """What to raise where images cannot be had: nothing of this step is done yet, so what was done is saved."""
        hint = f"{error.hint}; continue with: distilkit train --resume {self.folder}"
        if self.accelerator.num_processes == 1 and step:
            self._look(epoch, step % self.steps_per_epoch)
            saved = self.save()
            if stop.signum:  # Sent to the whole process group, it has ended the workers' server as well.
                return Interrupted(stop.signum, saved, self.folder)
        return UserError(error.problem, hint, files=error.files)

    def _step(self, step: int, indices: Tensor, ramp: float) -> None:
        recipe, accelerator = self.recipe, self.accelerator
        rank, world, count = accelerator.process_index, accelerator.num_processes, len(indices)
        first, last = self._share(count)
        # A last, smaller batch is not cut finer than batch norm can bear; and as many times on every process.
        parts = max(1, min(recipe.train.accumulation, count // world // 2))
        torch.manual_seed(derive_seed(recipe.train.seed, f"step-{rank}", step))  # For dropout inside the model.
        rate = schedule.learning_rate(
            recipe.optimizer,
            recipe.schedule,
            step=step,
            steps_per_epoch=self.steps_per_epoch,
            epochs=recipe.train.epochs,
        )
        self.update.clock(rate, ramp, self._teacher_weight(step))
        values: list[Tensor] = []
        for part in range(parts):
            bounds = [first + (last - first) * edge // parts for edge in (part, part + 1)]
            images, labels = self.images.batch(indices, step, slice(*bounds))
            # Processes average their gradients; parts must weigh by their images to give the global batch's mean.
            share = len(labels) * world / count
            # Processes exchange their gradients once a step, with the last part's.
            waiting = accelerator.no_sync(self.update.wrapped) if part + 1 < parts else contextlib.nullcontext()
            work = self.update.gradients if part + 1 < parts else self.update
            with waiting:
                values.append(work(images, labels, share=share))
        if self.average:
            self.average.update_parameters(self.learner)
        self.pending.append(_Pending(step, count, self.update.losses, torch.stack(values).sum(0)))

    def _teacher_weight(self, step: int) -> float:
        section = self.recipe.teacher
        if section is None:
            return 0.0
        rampup_epochs = resolve_epochs(section.rampup_epochs, self.recipe.train.epochs)
        return section.weight * schedule.ramp(step // self.steps_per_epoch, rampup_epochs)

    def _look(self, epoch: int, step_in_epoch: int) -> None:
        """Read the values of the pending steps, check that losses are finite, and add them up."""
        if not self.pending:
            return
        names = self.pending[0].names
        values = self.accelerator.reduce(torch.stack([step.values for step in self.pending]), "sum").double().tolist()
        sums = self.progress.sums
        members = self.learner.group.members
        keys = [*(f"loss/{name}" for name in names), *(f"wrong/{name}" for name in members), "distance"]
        for pending, row in zip(self.pending, values, strict=True):
            if not all(math.isfinite(value) for value in row):
                raise self._not_finite(pending.step, epoch, dict(zip(names, row, strict=False)))
            for key, value in zip(keys, row, strict=True):
                sums[key] = sums.get(key, 0.0) + value
            sums["images"] = sums.get("images", 0.0) + pending.images
        self.pending.clear()
        means = {name: sums[f"loss/{name}"] / sums["images"] for name in names}
        self.observer.steps_finished(epoch + 1, step_in_epoch, means)

    def _not_finite(self, step: int, epoch: int, losses: Mapping[str, float]) -> UserError:
        bad = [name for name, value in losses.items() if name != "total" and not math.isfinite(value)]
        last = checkpoints.pointed(self.checkpoints, "last")
        saved = f"the last good checkpoint is {self.checkpoints / last}" if last else "no checkpoint was written yet"
        return UserError(
            f"the loss is not finite at step {step + 1} (epoch {epoch + 1}): {', '.join(bad) or 'total'}; {saved}",
            "lower optimizer.lr, or add schedule.warmup_epochs or train.clip_norm",
        )

    def _epoch_means(self) -> dict[str, Any]:
        sums, images = self.progress.sums, self.progress.sums["images"]
        return {
            "loss": {key.removeprefix("loss/"): sums[key] / images for key in sums if key.startswith("loss/")},
            # Of the augmented images, while the weights were changing: cheap, and what the papers' figures show.
            "train": {
                "errors": {
                    key.removeprefix("wrong/"): {"top1": 100 * sums[key] / images}
                    for key in sums
                    if key.startswith("wrong/")
                },
                **({"diversity": sums["distance"] / images} if self.update.peers > 1 else {}),
            },
        }

    def _finish_epoch(self, epoch: int, line: dict[str, Any]) -> None:
        best = False
        if "validation" in line:
            error = line["validation"]["errors"][self.learner.leader]["top1"]
            best = error < self.progress.best.get("top1", float("inf"))
            if best:
                self.progress.best = {"epoch": epoch, "top1": error}
                self.progress.pins["best"] = f"step_{self.progress.step}"
        cycle = self._cycle_that_ends(epoch)
        if cycle:
            self.progress.pins[f"cycle_{cycle}"] = f"step_{self.progress.step}"
        if self.accelerator.is_main_process:
            # The line before the checkpoint: were it the other way round, a kill between the two would lose the line.
            log.append(self.folder / files.METRICS, line)
            self.tracking.log(_flat(line), epoch)
        if best or cycle or epoch % self.recipe.train.checkpoint_epochs == 0 or epoch == self.recipe.train.epochs:
            self.save()
        self.observer.epoch_finished(line)

    def _save_or_stop(self, stop: StopRequest) -> None:
        """In mid-epoch, everything looked at: save if it is time to, stop if a signal asked for it."""
        signum, due = self._agree(stop)
        if signum or due:
            name = self.save()
            if signum:
                raise Interrupted(signum, name, self.folder)

    def _agree(self, stop: StopRequest) -> tuple[int, bool]:
        """The signal that asks to stop, or 0, and whether a checkpoint is due.

        All processes must leave and save at the same step. What another process was sent is not written into `stop`,
        where this process's own, which a launcher sends to each in turn, would count as the second.
        """
        settings = self.recipe.train
        due = bool(settings.checkpoint_steps) and self.progress.step % settings.checkpoint_steps == 0
        if settings.checkpoint_minutes:
            due = due or time.monotonic() - self.saved_at >= 60 * settings.checkpoint_minutes
        if self.accelerator.num_processes > 1:
            asked = torch.tensor([[stop.signum, int(due)]], device=self.accelerator.device)
            signum, any_due = self.accelerator.gather(asked).amax(0).tolist()
            return signum, bool(any_due)
        return stop.signum, due

    def _share_buffers(self) -> None:
        """Give every process the main one's batch norm statistics, which each has measured on its own images."""
        if self.accelerator.num_processes > 1:
            # In one order on every process, which a set would not have.
            for module in (self.learner, self.average) if self.average else (self.learner,):
                for buffer in module.buffers():
                    torch.distributed.broadcast(buffer, src=0)

    def _cycle_that_ends(self, epoch: int) -> int:
        """The number, from 1, of the snapshot cycle that ends with this many epochs; 0 if none does."""
        section = self.recipe.schedule
        if not isinstance(section, SnapshotSection):
            return 0
        ends = schedule.cycle_edges(self.recipe.train.epochs, section.cycles)[1:]
        return ends.index(epoch) + 1 if epoch in ends else 0

    def save(self) -> str:
        """Write a checkpoint of this moment; returns its name. Everything pending must have been looked at."""
        name = f"step_{self.progress.step}"
        if name == self.saved_name:
            return name
        deployed = self.deployed()
        if self.accelerator.is_main_process:
            scaler = self.accelerator.scaler
            state = {
                "step": self.progress.step,
                "steps_per_epoch": self.steps_per_epoch,
                "sums": self.progress.sums,
                "best": self.progress.best,
                "pins": self.progress.pins,
                "scaler": scaler.state_dict() if scaler else None,
            }
            tensors = {
                "group": deployed.group.state_dict(),
                "method": deployed.method.state_dict(),
                "optimizer": checkpoints.optimizer_tensors(self.update.optimizer, self.parameter_names),
            }
            if self.average or self.recalibrated is not None:
                tensors["raw"] = self.learner.state_dict()
                state["averaged_steps"] = self.average.steps if self.average else 0
            if self.average and self.recalibrated is not None:
                tensors["average"] = self.average.module.state_dict()
            checkpoints.save(self.checkpoints, name, checkpoints.Checkpoint(tensors, state), self.progress.pins)
        self.accelerator.wait_for_everyone()
        self.saved_at, self.saved_name = time.monotonic(), name
        return name

    def restore(self, saved: checkpoints.Checkpoint) -> None:
        """Continue from a checkpoint, with the main process's pointers on it.

        Raises `UserError` if its steps, its weights or its optimizer's state do not fit the recipe and the data.
        """
        if saved.state["steps_per_epoch"] != self.steps_per_epoch:
            raise UserError(
                f"the checkpoint has {saved.state['steps_per_epoch']} steps an epoch, this data and recipe give "
                f"{self.steps_per_epoch}",
                "resume with the data, the batch size and the number of processes that the run began with",
            )
        deployed = {
            f"{part}.{key}": value for part in ("group", "method") for key, value in saved.tensors[part].items()
        }
        try:
            # An average that the recipe has only now begins with the next step; one that it has no more is dropped.
            self.learner.load_state_dict(saved.tensors.get("raw", deployed))
            if self.average and saved.state.get("averaged_steps"):
                self.average.module.load_state_dict(saved.tensors.get("average", deployed))
                self.average.steps = saved.state["averaged_steps"]
        except RuntimeError as error:
            raise UserError(
                f"the checkpoint's weights do not fit the recipe: {' '.join(str(error).split())[:500]}",
                "resume with the model, the group and the method that the run began with",
            ) from error
        checkpoints.restore_optimizer(self.update.optimizer, saved.tensors["optimizer"], self.parameter_names)
        if self.accelerator.scaler and saved.state["scaler"]:
            self.accelerator.scaler.load_state_dict(saved.state["scaler"])
        self.saved_name = f"step_{saved.state['step']}"
        state = saved.state
        self.progress = Progress(state["step"], dict(state["sums"]), dict(state["best"]), dict(state.get("pins", {})))
        if self.accelerator.is_main_process:
            checkpoints.repoint(self.checkpoints, {"last": self.saved_name, **self.progress.pins})


def _varied(
    source: TrainingSource, section: DataSection, spec: DataSpec, seed: int, device: torch.device
) -> TrainingSource | VariedImages:
    """The source with what the recipe does to its images after the crop; the source itself where that is nothing."""
    if not (section.rand_augment or section.random_erasing or section.mixup or section.cutmix):
        return source
    return VariedImages(
        source,
        spec=spec,
        seed=seed,
        device=device,
        rand_augment=section.rand_augment,
        rand_augment_magnitude=section.rand_augment_magnitude,
        random_erasing=section.random_erasing,
        mixup=section.mixup,
        cutmix=section.cutmix,
    )


def _flat(line: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """Nested figures as "test/errors/student_0/top1": 12.3, for trackers."""
    flat: dict[str, float] = {}
    for key, value in line.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}/")
        elif key not in ("epoch", "step") and isinstance(value, int | float):
            flat[prefix + key] = value
    return flat
