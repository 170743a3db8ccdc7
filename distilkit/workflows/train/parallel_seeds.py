"""Several seeds of one recipe at once on one device, a process each: `distilkit train RECIPE --seeds 0,1,2 --together`.

A small network leaves most of a device idle, and several trainings of it side by side take hardly longer than one.
Each is the training that it would be alone, in a process of its own, with its own share of the cores; nothing of one
reaches another. What they tell goes through one queue to the process that was called.
"""

import multiprocessing
import os
import queue
import signal
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch

from distilkit.errors import Fault, UserError
from distilkit.hardware import usable_cores
from distilkit.models import own
from distilkit.observer import Observer, TrainingPlan
from distilkit.recipe import Recipe
from distilkit.training.interrupt import Interrupted, stop_requests
from distilkit.workflows.train.seeds import sibling, summary_of_seeds
from distilkit.workflows.train.teachers import name_code
from distilkit.workflows.train.train import train
from distilkit.working_folder import SAFE_PATH, environment

_LOOK_SECONDS = 0.2


def train_together(
    recipe: Recipe, seeds: Sequence[int], runs: Path, *, device: str, command: str, observer: Observer
) -> dict[str, Any]:
    """Do what `seeds.train_seeds` does, all seeds at once; on a CPU with an equal share of the cores each.

    Raises `UserError` where one of them does, after the others have saved; `Interrupted` for the first that a signal
    stopped, whose `run` is its; the observer is told of the others. `RuntimeError` if one ended without a word.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError(
            "--together starts a process for each seed by itself", "leave torchrun or accelerate launch out"
        )
    # The processes have nobody to tell.
    name_code(recipe, runs)
    context = multiprocessing.get_context("spawn")
    messages: Any = context.Queue()
    children: dict[int, BaseProcess] = {}
    threads = os.environ.get("OMP_NUM_THREADS", str(max(1, usable_cores() // len(seeds))))
    with environment({"OMP_NUM_THREADS": threads, **SAFE_PATH}):
        for seed in seeds:
            given = (messages, sibling(recipe, seed), runs, device, command, seed, own.is_trusted())
            children[seed] = context.Process(target=_child, args=given, name=f"seed {seed}")
            children[seed].start()
    told = _Told(observer, seeds)
    with stop_requests() as request:
        forwarded = 0
        try:
            while children.keys() - told.ended:
                if request.signum and not forwarded:
                    forwarded = request.signum
                    _stop(children.values(), forwarded)
                try:
                    told.hear(*messages.get(timeout=_LOOK_SECONDS))
                except queue.Empty:
                    told.notice_lost(children)
                if told.failed and not forwarded:
                    forwarded = signal.SIGTERM
                    _stop(children.values(), forwarded)
        finally:
            # Whatever ends this process ends its children; what they trained is in their checkpoints.
            _stop(children.values(), signal.SIGTERM if told.ended != set(children) else 0)
            for child in children.values():
                child.join()
    told.raise_first_failure()
    documents = [told.documents[seed] for seed in seeds]
    return summary_of_seeds(seeds, documents, observer)


@dataclass
class _Told:
    """What the processes have said so far."""

    observer: Observer
    seeds: Sequence[int]
    documents: dict[int, dict[str, Any]] = field(default_factory=dict)
    ended: set[int] = field(default_factory=set)
    failed: list[tuple[int, Exception]] = field(default_factory=list)
    steps: dict[int, int] = field(default_factory=dict)
    all_steps: dict[int, int] = field(default_factory=dict)

    def hear(self, seed: int, what: str, said: Any) -> None:
        if what == "note":
            self.observer.note(f"seed {seed}: {said}")
        elif what == "steps":
            self.steps[seed], self.all_steps[seed] = said
            # A seed that has not begun yet has as many as the others.
            total = max(self.all_steps.values()) * len(self.seeds)
            self.observer.progress(f"steps of {len(self.seeds)} trainings", sum(self.steps.values()), total)
        else:
            self.ended.add(seed)
            if what == "done":
                self.documents[seed] = said
            else:
                self.failed.append((seed, _exception(what, said)))

    def notice_lost(self, children: Mapping[int, BaseProcess]) -> None:
        for seed, child in children.items():
            if seed not in self.ended and not child.is_alive():
                self.ended.add(seed)
                self.failed.append((seed, RuntimeError(f"the training of seed {seed} ended with {child.exitcode}")))

    def raise_first_failure(self) -> None:
        # What went wrong before what was stopped because of it.
        ordered = sorted(self.failed, key=lambda each: isinstance(each[1], Interrupted))
        for _, other in ordered[1:]:
            if isinstance(other, Interrupted):
                self.observer.note(f"{other}; continue with: distilkit train --resume {other.run}")
        if ordered:
            raise ordered[0][1]


class _Wire(Observer):
    """Sends what matters of one training among several."""

    def __init__(self, messages: Any, seed: int) -> None:
        self.messages = messages
        self.seed = seed
        self.plan: TrainingPlan | None = None

    def note(self, message: str) -> None:
        self.messages.put((self.seed, "note", message))

    def training_started(self, plan: TrainingPlan) -> None:
        self.plan = plan
        self.note(f"{plan.run}: {plan.epochs} epochs, {plan.precision} on {plan.device}")
        self._steps(plan.start_step)

    def steps_finished(self, epoch: int, step_in_epoch: int, losses: Mapping[str, float]) -> None:
        assert self.plan is not None
        self._steps((epoch - 1) * self.plan.steps_per_epoch + step_in_epoch)

    def epoch_finished(self, line: Mapping[str, Any]) -> None:
        assert self.plan is not None
        if "test" in line:
            errors = ", ".join(f"{name} {error['top1']:.2f}" for name, error in line["test"]["errors"].items())
            speed = f"{line['images_per_second']:,.0f} images/s"
            self.note(f"epoch {line['epoch']}/{self.plan.epochs}  test error % {errors}  {speed}")

    def _steps(self, done: int) -> None:
        assert self.plan is not None
        self.messages.put((self.seed, "steps", (done, self.plan.epochs * self.plan.steps_per_epoch)))


def _child(messages: Any, recipe: Recipe, runs: Path, device: str, command: str, seed: int, trust: bool) -> None:
    """Train one seed; the last message is the figures, or why there are none."""
    # A terminal's Ctrl-C would come to all; so it comes to the one that started them, which hands it on once.
    if hasattr(os, "setsid"):
        os.setsid()
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    try:
        with own.code_trusted(trust):
            document = train(recipe, runs, device=device, command=command, observer=_Wire(messages, seed))
        messages.put((seed, "done", document))
    except UserError as error:
        messages.put((seed, "user", (error.problem, error.hint, error.faults)))
    except Interrupted as error:
        messages.put((seed, "interrupted", (error.signum, error.saved, error.run)))
    except BaseException as error:
        messages.put((seed, "fault", f"seed {seed}: {type(error).__name__}: {error}"))
        raise


def _exception(what: str, said: Any) -> Exception:
    if what == "user":
        problem, hint, faults = said
        return UserError(problem, hint, tuple(faults) if all(isinstance(each, Fault) for each in faults) else ())
    if what == "interrupted":
        return Interrupted(*said)
    return RuntimeError(said)


def _stop(children: Any, signum: int) -> None:
    for child in children:
        if signum and child.is_alive() and child.pid is not None:
            with suppress(ProcessLookupError):
                os.kill(child.pid, signum)
