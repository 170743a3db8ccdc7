"""What takes part in the benchmarks. Each function is called in a process of its own and gives a `racing.Work`."""

import itertools
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import plain
import torch
from racing import Work
from torch import Tensor

from distilkit.data.base import DataSpec, ImageData, Split
from distilkit.data.resident import epoch_order
from distilkit.groups.normalize import Classifier, Normalize
from distilkit.learners.build import build_learner
from distilkit.learners.learner import Learner
from distilkit.models import registry
from distilkit.observer import Observer
from distilkit.recipe import Recipe, load
from distilkit.training.processes import make_accelerator
from distilkit.training.trainer import Trainer

METHODS = {
    "baseline": "baseline_resnet32",
    "one": "one_resnet32",
    "okddip": "okddip_resnet32",
    "okddip_networks": "okddip_networks_resnet32",
}
IMAGES = 5_000
MEAN, STD = (0.507, 0.487, 0.441), (0.267, 0.256, 0.276)


def recipe_of(method: str, *overrides: str) -> Recipe:
    """The ResNet-32 recipe of a method with a constant ramp of 1."""
    name = METHODS[method]
    ramp = [] if method == "baseline" else ["method.rampup_epochs=0"]
    return load(name, [*ramp, *overrides])


def data(count: int, classes: int = plain.CLASSES) -> ImageData:
    """The same random images in both splits."""
    images, labels = plain.pictures(count)
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2)
    split = Split(pixels, torch.from_numpy(labels) % classes)
    names = tuple(f"class_{c}" for c in range(classes))
    spec = DataSpec("random", names, 3, plain.SIZE, count, count, MEAN, STD, "crop-flip")
    return ImageData(spec, {"train": split, "test": split}, {})


def learner_of(recipe: Recipe, images: ImageData) -> Learner:
    """Freshly initialised."""
    return build_learner(recipe, images.spec)


def _threads(threads: int | None) -> None:
    if threads:
        torch.set_num_threads(threads)


def our_training(
    method: str,
    precision: str,
    count: int = IMAGES,
    overrides: Sequence[str] = (),
    threads: int | None = None,
    device: str = "cpu",
) -> Work:
    """Training steps of the real trainer, metrics included: images a second.

    Losses are read as often as a training reads them, and at the end, which waits for the device.
    """
    _threads(threads)
    recipe = recipe_of(method, f"train.precision={precision}", *overrides)
    images = data(count)
    learner = learner_of(recipe, images)
    folder = Path(tempfile.mkdtemp())
    trainer = Trainer(recipe, learner, images, make_accelerator(precision, device), folder, Observer())
    trainer.update.wrapped.train()
    steps = itertools.count()
    order = epoch_order(0, 0, count)

    def work(number: int) -> int:
        done = 0
        for step in itertools.islice(steps, number):
            at = step % trainer.steps_per_epoch
            first, last = trainer.bounds[at]
            trainer._step(step, order[first:last], 1.0)
            if len(trainer.pending) >= trainer.look_every:
                trainer._look(0, at + 1)
            done += last - first
        trainer._look(0, 1)
        return done

    return work


def our_processes(processes: int, count: int = 2_000, overrides: Sequence[str] = ()) -> Work:
    """A training of ONE in several processes that torchrun starts, one thread each: images a second of its epochs."""
    import json
    import os
    import subprocess
    import sys

    import numpy as np

    folder = Path(tempfile.mkdtemp())
    images, labels = plain.pictures(count)
    np.savez(folder / "random.npz", x_train=images, y_train=labels, x_test=images[:100], y_test=labels[:100])
    settings = ["data.dataset=npz", f"data.root={folder}", "train.precision=fp32", "method.rampup_epochs=0", *overrides]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    train = ["-m", "distilkit", "train", METHODS["one"], "--device", "cpu", "--json", "--runs", str(folder / "runs")]
    changed = [part for setting in settings for part in ("--set", setting)]

    def work(number: int) -> tuple[int, float]:
        words = [*launcher, *train, *changed, "--set", f"train.epochs={number}"]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(words, capture_output=True, text=True, check=True, env=environment)
        rate = json.loads(done.stdout)["images_per_second"]
        return number * count, number * count / rate

    return work


def plain_training(method: str, workers: int, count: int = IMAGES, device: str = "cpu") -> Work:
    """Training steps of the plain loop."""
    learner = learner_of(recipe_of(method), data(10))
    model = plain.PlainGroup(learner).train().to(device)
    name = "okddip" if method == "okddip_networks" else method
    step = plain.training_step(name, model)
    batches = plain.endless(plain.loader(count, workers, train=True))

    def work(number: int) -> int:
        done = 0
        for images, labels in itertools.islice(batches, number):
            step(images, labels)
            done += len(labels)
        return done

    return work


def our_input(count: int = IMAGES) -> Work:
    """Training batches alone: cropped, mirrored, shuffled, normalised."""
    from distilkit.data.resident import TrainingImages
    from distilkit.groups.normalize import Normalize

    source = TrainingImages(data(count).splits["train"], augment="crop-flip", seed=0, device=torch.device("cpu"))
    normalise = Normalize(MEAN, STD)
    steps = itertools.count()

    def work(number: int) -> int:
        done = 0
        for step in itertools.islice(steps, number):
            order = torch.randperm(count)[: plain.BATCH_SIZE]
            images, _ = source.batch(order, step)
            done += len(normalise(images))
        return done

    return work


def plain_input(workers: int, count: int = IMAGES) -> Work:
    """Training batches of the plain loop alone."""
    batches = plain.endless(plain.loader(count, workers, train=True))
    return lambda number: sum(len(labels) for _, labels in itertools.islice(batches, number))


def our_evaluation(method: str, precision: str, count: int = IMAGES, device: str = "cpu") -> Work:
    """All members, the ensemble and diversity in one pass over the test images, as a training does it."""
    from distilkit.training.evaluate import evaluate_members

    images = data(count)
    accelerator = make_accelerator("fp32", device)
    learner = learner_of(recipe_of(method), images).to(accelerator.device).to(memory_format=torch.channels_last)

    def work(number: int) -> int:
        for _ in range(number):
            evaluate_members(learner, images.splits["test"], accelerator, precision=precision)
        return number * count

    return work


def plain_evaluation(
    method: str, workers: int, count: int = IMAGES, batch_size: int = plain.BATCH_SIZE, device: str = "cpu"
) -> Work:
    """The same figures but for diversity, as scripts compute them."""
    model = plain.PlainGroup(learner_of(recipe_of(method), data(10))).to(device)
    batches: Any = plain.loader(count, workers, train=False, batch_size=batch_size)

    def work(number: int) -> int:
        for _ in range(number):
            plain.evaluate(model, batches)
        return number * count

    return work


def _logits(students: int, count: int) -> Tensor:
    return torch.randn(students, count, plain.CLASSES, generator=torch.Generator().manual_seed(0))


def our_diversity(students: int, count: int) -> Work:
    """Diversity of given logits."""
    from distilkit.analysis.diversity import diversity

    logits = _logits(students, count)

    def work(number: int) -> int:
        for _ in range(number):
            diversity(logits)
        return number * count

    return work


def plain_diversity(students: int, count: int) -> Work:
    """Diversity of given logits in loops."""
    logits = _logits(students, count)

    def work(number: int) -> int:
        for _ in range(number):
            plain.diversity(logits)
        return number * count

    return work


def our_perturbation(count: int, precision: str) -> Work:
    """Points of a perturbation curve of ResNet-32."""
    from distilkit.analysis.perturbation import curve, directions
    from distilkit.data.resident import EvaluationImages

    classifier, images = _deployed(), data(count)
    (direction,) = directions(classifier, 1, seed=0)
    device = torch.device("cpu")

    def work(number: int) -> int:
        splits = {"test": EvaluationImages(images.splits["test"], device)}
        curve(classifier, splits, direction, [float(d) for d in range(number)], precision=precision)
        return number * count

    return work


def plain_perturbation(count: int, workers: int) -> Work:
    """The same points as scripts compute them: the state loaded anew, evaluated by the plain loop."""
    classifier = _deployed().to(memory_format=torch.contiguous_format)
    backbone = classifier.backbone
    batches = plain.loader(count, workers, train=False)
    original = {name: value.clone() for name, value in backbone.state_dict().items()}
    directions = {name: torch.randn_like(value) for name, value in backbone.named_parameters()}

    @torch.no_grad()
    def work(number: int) -> int:
        backbone.eval()
        for d in range(number):
            moved = {
                name: value + d * directions[name] if name in directions else value for name, value in original.items()
            }
            backbone.load_state_dict(moved)
            for images, labels in batches:
                plain.accuracy(backbone(images), labels)
        backbone.load_state_dict(original)
        return number * count

    return work


def _deployed() -> Classifier:
    learner = learner_of(recipe_of("baseline"), data(10))
    backbone = registry.create("resnet32", plain.CLASSES, 3)
    backbone.load_state_dict(learner.group.member_state_dict(learner.leader))
    return Classifier(Normalize(MEAN, STD), backbone).eval().to(memory_format=torch.channels_last)


def exported(batch: int, runtime: str, quantized: bool = False) -> Work:
    """Answers of ResNet-32 at one batch size: `runtime` "eager" (PyTorch as it stands) or "onnxruntime"."""
    from distilkit.export.latency import file_call, opened_for_timing, random_pixels
    from distilkit.export.onnx import SingleForExport, export_onnx

    classifier = _deployed()
    pixels = random_pixels((batch, 3, plain.SIZE, plain.SIZE))
    if runtime == "eager":
        images = (pixels.float() / 255).contiguous(memory_format=torch.channels_last)

        @torch.inference_mode()
        def answer(number: int) -> int:
            for _ in range(number):
                classifier(images)
            return number * batch

        return answer
    file = Path(tempfile.mkdtemp()) / "resnet32.onnx"
    network = SingleForExport(classifier)
    export_onnx(network, file, size=(3, plain.SIZE, plain.SIZE), output_names=network.output_names, metadata={})
    if quantized:
        from distilkit.export.quantize import quantize_static

        target = file.with_name("int8.onnx")
        quantize_static(file, target, random_pixels((200, 3, plain.SIZE, plain.SIZE)), {})
        file = target
    call = file_call(opened_for_timing(file, None), batch)

    def work(number: int) -> int:
        for _ in range(number):
            call()
        return number * batch

    return work


def command(arguments: Sequence[str], until: str | None = None) -> Work:
    """A whole command in a process of its own, to its end or until it prints a line that contains `until`."""
    import subprocess
    import sys

    def work(number: int) -> int:
        for _ in range(number):
            with tempfile.TemporaryDirectory() as folder:
                started = subprocess.Popen(
                    [sys.executable, *arguments],
                    cwd=folder,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.PIPE,
                    text=True,
                )
                assert started.stderr is not None
                if until is None:
                    started.communicate()
                else:
                    for line in started.stderr:
                        if until in line:
                            break
                    started.kill()
                    started.communicate()
        return number

    return work
