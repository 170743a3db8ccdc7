"""What `import distilkit` offers beside `load`: training a recipe, and methods for someone else's training loop."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomli_w
from pydantic import ValidationError
from torch import Tensor, nn

from distilkit import methods
from distilkit.errors import UserError, did_you_mean
from distilkit.groups.build import branch_group, network_group
from distilkit.groups.group import Group
from distilkit.learners.learner import Learner
from distilkit.methods.base import Method, MethodOptions
from distilkit.models import own
from distilkit.observer import Observer
from distilkit.randomness import seeded
from distilkit.recipe import Recipe, load, must_be
from distilkit.workflows.deploy.load import LoadedClassifier
from distilkit.workflows.deploy.load import load as load_classifier
from distilkit.workflows.train import train as training

Overrides = Mapping[str, object] | Sequence[str]
Source = Recipe | str | Path | Mapping[str, Any]


@dataclass(frozen=True)
class Trained:
    """A finished training.

    `path`: the run's folder. `errors`: by member and ensemble, `top1` and `top5` in percent on the test images.
    `images_per_second`: over the whole run.
    """

    path: Path
    epochs: int
    images_per_second: float
    errors: Mapping[str, Mapping[str, Any]]

    def load(self, member: str | None = None) -> LoadedClassifier:
        """Load the leader, or another member, as `distilkit.load` does."""
        return load_classifier(self.path, member=member, checkpoint=None, trust_code=False)


def load_recipe(source: str | Path | Mapping[str, Any], overrides: Overrides = ()) -> Recipe:
    """Read, complete and check a recipe: a file, a shipped recipe's name, or tables as in TOML.

    `overrides`: {"train.epochs": 5}, or as after `--set` on the command line, ["train.epochs=5"]. Raises `UserError`
    with all faults, each with its place.
    """
    if isinstance(overrides, Mapping):
        overrides = [
            f"{key}={tomli_w.dumps({'v': value}).partition('=')[2].strip()}" for key, value in overrides.items()
        ]
    return load(source, overrides)


def train(
    recipe: Source,
    *,
    overrides: Overrides = (),
    runs: Path | str = "runs",
    device: str = "auto",
    observer: Observer | None = None,
    trust_code: bool = False,
) -> Trained:
    """Train a recipe as `distilkit train` does, in a new folder below `runs`.

    `recipe`: what `load_recipe` gives, or what it takes. `overrides`: only with the latter. `device`: "auto", "cpu" or
    "cuda". `observer`: hears how far it is. `trust_code`: allows the module of a network of the user's own to be
    executed. Raises `UserError` for what the recipe asks and cannot be had.
    """
    if isinstance(recipe, Recipe):
        if overrides:
            raise UserError("overrides are for a recipe that is yet to be read", "load_recipe(source, overrides)")
    else:
        recipe = load_recipe(recipe, overrides)
    with own.code_trusted(trust_code):
        document = training.train(
            recipe, Path(runs), device=device, command="distilkit.train", observer=observer or Observer()
        )
    return Trained(
        Path(document["run"]), int(document["epochs"]), float(document["images_per_second"]), document["errors"]
    )


def create_method(name: str, group: Group, *, label_smoothing: float = 0.0, seed: int = 0, **options: Any) -> Method:
    """Make a method for a group: a `torch.nn.Module` from the group's output and labels to losses.

    `name`: "one", "okddip", "dml", "cl-ilr", "independent", "baseline" or "kd". `options`: the keys that a recipe's
    `[method]` takes, such as temperature = 4.0. `seed`: of its own parameters, which belong into the optimizer. Raises
    `UserError` for a method or an option that there is not, and for a group that the method cannot teach.
    """
    settings = method_options(name, options)
    shape = group.shape
    _check_group(settings, shape.kind, len(shape.members))
    expected = methods.members(settings, len(shape.members))
    if expected != tuple(shape.members) and "leader" in expected:
        raise UserError(
            f"the members of {name!r} are called {', '.join(expected)}",
            "give the group these names, or take make_learner",
        )
    with seeded(seed, "method"):
        return methods.create(settings, shape, label_smoothing)


def make_learner(
    network: nn.Module | Callable[[], nn.Module] | Sequence[nn.Module],
    images: Tensor,
    method: str = "one",
    *,
    students: int | None = None,
    split_at: str | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    label_smoothing: float = 0.0,
    seed: int = 0,
    **options: Any,
) -> Learner:
    """Make students of a network and a method that has them teach one another, in one module to train in any loop.

    Called with images, labels and the weight of the distillation terms (`ramp`, or 1.0) the learner gives `loss`, its
    unweighted `terms` and every student's logits [S, B, C]. `learner.leader` names the student to keep, and
    `learner.group.member_state_dict(learner.leader)` are its weights, under the network's own names.

    `network`: see `branch_group`; a list of networks makes a group that shares nothing, see `network_group`. `images`:
    an example batch. `students`: how many; the method's usual number without it. `options`: see `create_method`. Raises
    `UserError` as these do.
    """
    settings = method_options(method, options)
    if isinstance(network, Sequence):
        if students is not None or split_at is not None:
            raise UserError("students and split_at are for one network that is shared", "leave them out")
        names = methods.members(settings, len(network))
        _check_group(settings, "networks", len(network))
        group: Group = network_group(network, images, members=names, mean=mean, std=std)
    else:
        count = settings.default_students if students is None else students
        _check_group(settings, "branches", count)
        names = methods.members(settings, count)
        group = branch_group(network, images, students=names, split_at=split_at, mean=mean, std=std, seed=seed)
    with seeded(seed, "method"):
        return Learner(group, methods.create(settings, group.shape, label_smoothing))


def method_options(name: str, options: Mapping[str, Any]) -> MethodOptions:
    """Check a method's options. Raises `UserError` naming each that is wrong."""
    if name not in methods.names():
        allowed = methods.names()
        raise UserError(f"there is no method {name!r}; there are {', '.join(allowed)}", did_you_mean(name, allowed))
    model = methods.options_model(name)
    known = [key for key in model.model_fields if key != "name"]
    if unknown := [key for key in options if key not in known]:
        raise UserError(
            f"method {name!r} has no option {', '.join(unknown)}; it has {', '.join(known) or 'none'}",
            did_you_mean(unknown[0], known),
        )
    try:
        return model.model_validate({"name": name, **options})
    except ValidationError as error:
        wrong = dict.fromkeys(str(each["loc"][0]) for each in error.errors())
        faults = [must_be(key, model.model_fields[key], options[key]) for key in wrong]
        raise UserError(
            f"method {name!r}: {'; '.join(faults)}", "docs/recipes.md says what each option takes"
        ) from error


def _check_group(options: MethodOptions, kind: Any, students: int) -> None:
    if kind not in options.allowed_kinds:
        raise UserError(f"method {options.name!r} needs a group of {' or '.join(options.allowed_kinds)}, not {kind}")
    most = options.max_students
    if students < options.min_students or (most is not None and students > most):
        limits = f"at least {options.min_students}" if most is None else f"{options.min_students} to {most}"
        raise UserError(f"method {options.name!r} takes {limits} students, not {students}")
    for _, problem, hint in options.faults(kind, students):
        raise UserError(problem, hint)
