"""The text of a recipe for a user's own images: every line with the reason for it, in plain words."""

import re
import textwrap
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import tomli_w

from distilkit import methods
from distilkit.spelling import plain

WIDTH = 100
_MOST_NAMES = 8
_MEANINGS = {
    "baseline": "baseline: nobody teaches; one network learns from the labels alone.",
    "independent": "independent: not at all; what an ensemble gains by itself.",
    "kd": "kd: a trained teacher does (Hinton et al. 2015).",
    "dml": "dml: each learns from what the others answer (Zhang et al. 2018).",
    "cl-ilr": "cl-ilr: all learn from the mean of their answers (Song and Chai 2018).",
    "one": "one: a gate weighs their answers, image by image, into an ensemble that teaches them (Lan et al. 2018).",
    "okddip": "okddip: each peer weighs the others by attention, and a leader learns from them (Chen et al. 2020).",
}


class Facts(NamedTuple):
    """What the comments tell of the images.

    `pixels`: of their sizes, a clause; empty where there is nothing to say. `memory`: what they take as pixels. `side`:
    of the squares that the network sees. `theirs`: whether they are the user's own, not a published set.
    """

    classes: tuple[str, ...]
    train: int
    test: int
    pixels: str
    memory: str
    side: int
    theirs: bool


def slug(text: str) -> str:
    """Make a recipe's name of any text."""
    return re.sub(r"[^A-Za-z0-9._-]+", "_", text).strip("._")[:100] or "recipe"


def recipe_text(settings: Mapping[str, Any], facts: Facts) -> str:
    """Write the recipe that `settings` (dotted keys, in the order of their sections) make, commented line by line."""
    lines = [*_comment(_head(settings, facts)), _setting("name", settings["name"])]
    sections: dict[str, dict[str, Any]] = {}
    for key, value in settings.items():
        section, _, inner = key.partition(".")
        if inner:
            sections.setdefault(section, {})[inner] = value
    comments = _comments(settings, facts)
    for section, table in sections.items():
        lines += ["", f"[{section}]"]
        for key, value in table.items():
            if comment := comments.get(f"{section}.{key}"):
                lines += _comment(comment)
            lines.append(_setting(key, value))
    return "\n".join([*lines, ""])


def _head(settings: Mapping[str, Any], facts: Facts) -> str:
    students, architecture, method = (
        settings[f"{key}"] for key in ("group.students", "model.architecture", "method.name")
    )
    who = f"{students} x {architecture} together" if students > 1 else f"{architecture} alone"
    names = ", ".join(facts.classes[:_MOST_NAMES]) + (", ..." if len(facts.classes) > _MOST_NAMES else "")
    pixels = f"; {facts.pixels}" if facts.pixels else ""
    return (
        f"Trains {who} ({method}) on {facts.train:,} training and {facts.test:,} test images of {len(facts.classes)} "
        f"classes ({names}){pixels}. Written by distilkit init; every line may be changed. Every other key is in the "
        "documentation, and with its default in what distilkit recipes show FILE --resolved prints."
    )


def _comments(settings: Mapping[str, Any], facts: Facts) -> dict[str, str]:
    """What is said before each key."""
    method, validation = settings["method.name"], settings["data.validation"]
    others = ", ".join(name for name in methods.names() if name != method)
    return {
        "data.dataset": "What the images are: a folder per class (image-folder), arrays (npz), or a published set.",
        "data.root": "Where they are; a relative path starts from the folder that you type the command in.",
        "data.image_size": "Every image is brought to a square of so many pixels to a side: its shorter side is "
        "scaled to that, then the middle is cut out. Larger shows more detail and costs the square of it in time.",
        "data.channels": "3 reads images in colour, 1 as grey.",
        "data.augment": "Random changes to training images. crop-flip shifts and mirrors them; where left and right "
        "matter, as in signs and writing, take crop. random-resized-crop suits large photographs; none changes "
        "nothing.",
        "data.validation": f"Held out of the training images to choose the best epoch by: {_share(validation)}. The "
        "test images are for the final figure alone.",
        "data.storage": f"All pixels take {facts.memory}. resident keeps them in memory, stream reads the files again "
        "in every epoch, auto decides when training starts.",
        "data.workers": "Processes that read image files ahead of the network.",
        "model.architecture": f"The network, for images of {facts.side} x {facts.side} pixels. distilkit models lists "
        "all; torchvision: and timm: names work too.",
        "group.students": "Students that learn together and from one another. One of them is deployed, so more of "
        "them cost time in training and nothing afterwards.",
        "method.name": f"How they teach one another. {_MEANINGS.get(method, '')} The others: {others}.",
        "teacher.run": "A trained run, or the name of a recipe, that every student also learns from.",
        "train.epochs": "How often every training image is seen. For a first look: --set train.epochs=5.",
        "train.batch_size": "Images in one step. Halve it where memory runs out, and the learning rate with it.",
        "train.precision": "Number format: auto is bf16 where the machine has hardware for it, else fp32.",
        "optimizer.name": "Stochastic gradient descent with momentum, as in the papers; adamw suits transformers.",
        "optimizer.lr": "Learning rate at its highest; it goes with the batch size.",
        "optimizer.weight_decay": "Pulls weights towards zero, against learning the training images by heart.",
        "schedule.name": "The learning rate falls along half a cosine to nothing at the end.",
        "schedule.warmup_epochs": "Before that it rises, for this fraction of the run.",
    }


def _share(validation: float) -> str:
    if not validation:
        return "none, since there are few or the set is published; 0.1 is a tenth"
    return f"{validation:.0%} of each class" if 0 < validation < 1 else f"{validation:g} images"


def _setting(key: str, value: Any) -> str:
    return tomli_w.dumps({key: value}).rstrip("\n")


def _comment(text: str) -> Iterator[str]:
    # A name with a line feed in it must not end its comment.
    for line in textwrap.wrap(plain(text), WIDTH - 2, break_long_words=False, break_on_hyphens=False):
        yield f"# {line}"
