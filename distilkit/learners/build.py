"""From a recipe and the shape of its data to a learner."""

from distilkit import methods
from distilkit.data.datasets import DataSpec
from distilkit.groups.build import build_group
from distilkit.learners.learner import Learner
from distilkit.models.outline import outline, require_room
from distilkit.randomness import seeded
from distilkit.recipe import Recipe, placed
from distilkit.threads import threads


def build_learner(recipe: Recipe, spec: DataSpec) -> Learner:
    """Group and method, initialised by the recipe's seed. Raises `UserError` naming the setting that does not fit.

    `spec.mean` and `spec.std` may be unknown (an image folder that has not been read): then the group normalises
    with neutral constants, which is good for counting only.
    """
    # Many small tensors: several threads would wait for each other, on a busy machine for a minute.
    with placed(recipe), threads(1):
        members = methods.members(recipe.method, recipe.group.count)
        for each in dict.fromkeys(recipe.architectures):
            found = outline(each, len(spec.classes), spec.channels, recipe.model.norm)
            if found is not None:
                # Every member is built as a whole network, and one more to compare them with.
                require_room(each, found, len(spec.classes), recipe.architectures.count(each) + 1)
        group = build_group(
            kind=recipe.group.kind,
            architecture=recipe.architectures
            if isinstance(recipe.group.students, tuple)
            else recipe.model.architecture,
            members=members,
            split_at=recipe.group.split_at,
            num_classes=len(spec.classes),
            channels=spec.channels,
            size=spec.size,
            mean=spec.mean or (0.0,) * spec.channels,
            std=spec.std or (1.0,) * spec.channels,
            seed=recipe.train.seed,
            norm=recipe.model.norm,
        )
        with seeded(recipe.train.seed, "method"):
            method = methods.create(recipe.method, group.shape, recipe.train.label_smoothing)
    return Learner(group, method)
