"""Runs grouped by their recipe, whatever their seeds: which are of one recipe, which count, which compare.

What is computed of the groups is in `group_statistics`.
"""

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from distilkit.errors import UserError
from distilkit.recipe import Recipe
from distilkit.runs import layout as files
from distilkit.runs import upgrade
from distilkit.runs.run import RECIPE, Run, find_run
from distilkit.runs.weights_digest import weights_digest

APART = frozenset(
    {
        "name",
        "train.seed",
        # Where the images are and how they are read: which images they are, the fingerprints tell.
        "data.root",
        "data.download",
        "data.storage",
        "data.workers",
        # With how many threads a CPU computes changes no more than the order of sums.
        "train.threads",
        # Whether a teacher may be weak is asked before the training.
        "teacher.allow_weak",
        # What is written on the way changes no result.
        "train.checkpoint_epochs",
        "train.checkpoint_steps",
        "train.checkpoint_minutes",
        "train.deterministic",
    }
)
"""Settings in which two runs of one group may differ."""

_STAMP = re.compile(r"-\d{8}T\d{6}Z(-\d+)?$")
_DEEPEST = 5  # teachers of teachers that are looked at


@dataclass(frozen=True)
class RecipeGroup:
    """Runs of one recipe on the same images, apart from their seeds. `label`: unique among the groups made together."""

    label: str
    runs: tuple[Run, ...]

    @property
    def trainings(self) -> tuple[Run, ...]:
        """The runs that count: the newest finished one of each seed, by seed.

        A training repeated with its seed is no second sample.
        """
        newest: dict[int, Run] = {}
        # By name as well: copies of one run began together, and every command has to choose the same one.
        for run in sorted(filter(is_finished, self.runs), key=lambda run: (files.begun(run.record), run.path.name)):
            newest[run.record["seed"]] = run
        return tuple(newest[seed] for seed in sorted(newest))

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seeds of the runs that count, ascending."""
        return tuple(run.record["seed"] for run in self.trainings)

    @property
    def repeated_seeds(self) -> tuple[int, ...]:
        """The seeds of several finished runs, ascending."""
        counts = Counter(run.record["seed"] for run in self.runs if is_finished(run))
        return tuple(sorted(seed for seed, count in counts.items() if count > 1))

    @property
    def first(self) -> Run:
        """Stands for the recipe: the first run that counts, or the first of all where none is finished."""
        return (self.trainings or self.runs)[0]


def is_finished(run: Run) -> bool:
    """Whether the run has its final figures."""
    return "final" in run.record


def named_runs(paths: Sequence[Path], runs: Path) -> list[Run]:
    """The runs at `paths`, each once, however often and in whatever spelling it is named."""
    found: dict[Path, Run] = {}
    for path in paths:
        run = find_run(path, runs)
        found.setdefault(run.path.resolve(), run)
    return list(found.values())


def grouped(runs: Sequence[Run]) -> list[RecipeGroup]:
    """Group runs whose recipes are the same apart from seed, name, data root and what is merely written (`APART`).

    Where `train.precision` was "auto", seeds for which it was decided otherwise are one recipe all the same. Runs that
    were trained or tested on different images stand in different groups, as their fingerprints tell. Groups
    and the runs in them keep the given order. A label is the recipe's name without "-seedN"; where several groups share
    one, the settings that tell them apart are added, but not those that most of them share.
    """
    decided: dict[str, set[str]] = {}
    for run in filter(_precision_left_open, runs):
        decided.setdefault(_identity(run, "auto"), set()).add(run.recipe.train.precision)
    found: dict[str, list[Run]] = {}
    for run in runs:
        mixed = _precision_left_open(run) and len(decided[_identity(run, "auto")]) > 1
        found.setdefault(_identity(run, "auto" if mixed else run.recipe.train.precision), []).append(run)
    members = [tuple(group) for group in found.values()]
    return [RecipeGroup(label, group) for label, group in zip(_labels(members), members, strict=True)]


def name_without_seed(run: Run) -> str:
    """The recipe's name without the "-seedN" that `train --seeds` adds."""
    return run.recipe.name.removesuffix(f"-seed{run.record['seed']}") or run.recipe.name


class Incomparable(NamedTuple):
    """`kind`: of the remark that says so. `reason`: in words."""

    kind: Literal["test-images", "unknown-test-images"]
    reason: str


def incomparable(ours: Run, theirs: Run) -> Incomparable | None:
    """Why the errors of two runs do not compare, None where they do: they must be of the same test images."""
    if ours.data.dataset != theirs.data.dataset:
        return Incomparable("test-images", "other data sets")
    if ours.data.classes != theirs.data.classes:
        return Incomparable("test-images", "other classes")
    if ours.data.images.get("test") != theirs.data.images.get("test"):
        return Incomparable("test-images", "other test images")
    prints = [run.data.fingerprints.get("test") for run in (ours, theirs)]
    if None in prints:
        return Incomparable("unknown-test-images", "perhaps other test images: a fingerprint is missing")
    if prints[0] == prints[1]:
        return None
    if ours.data.storage != theirs.data.storage:
        reason = "perhaps other test images: the fingerprints of streamed and of resident ones do not compare"
        return Incomparable("unknown-test-images", reason)
    return Incomparable("test-images", "other test images")


def on_same_images(groups: Sequence[RecipeGroup]) -> list[list[RecipeGroup]]:
    """The groups whose errors compare, together; in the given order."""
    kinds: list[list[RecipeGroup]] = []
    for group in groups:
        for kind in kinds:
            if incomparable(group.runs[0], kind[0].runs[0]) is None:
                kind.append(group)
                break
        else:
            kinds.append([group])
    return kinds


def _precision_left_open(run: Run) -> bool:
    """Whether the recipe had "auto", and the machine decided: run.json then has the reason, or times of a probe."""
    precision = run.record.get("precision", {})
    return any(precision.get(key) is not None for key in ("reason", "probe_seconds"))


def _identity(run: Run, precision: str) -> str:
    settings = _settings(run) | {"train.precision": precision}
    return json.dumps([settings, _images(run)], sort_keys=True, default=str)


def _settings(run: Run) -> dict[str, Any]:
    """What the recipe says, apart from `APART`, with files named by what is in them."""
    digests = run.record.get("teacher_sha256")
    settings = _own_settings(run.recipe, digests if isinstance(digests, list) else ())
    # A run whose recipe was changed in its middle is no run of the recipe that it ended with.
    if changes := run.record.get("recipe_changes"):
        settings["changed"] = [change.get("changes") for change in changes]
    digest = (run.record.get("pretrained") or {}).get("sha256")
    if digest is not None:
        settings["model.pretrained"] = f"sha256 {digest[:12]}"
    return settings


def _own_settings(recipe: Recipe, digests: Sequence[str | None] = (), depth: int = 0) -> dict[str, Any]:
    """`digests`: of the weights of its teachers, where they are known."""
    settings = {key: value for key, value in recipe.settings().items() if key not in APART}
    taught = settings.get("teacher.run")
    if taught is not None:
        names = [taught] if isinstance(taught, str) else list(taught)
        known = digests if len(digests) == len(names) else [None] * len(names)
        settings["teacher.run"] = [_teacher(*each, depth) for each in zip(names, known, strict=True)]
    elif digests and digests[0] is not None:
        settings["teacher.weights"] = f"sha256 {digests[0][:12]}"
    return settings


def _teacher(folder: str, digest: str | None, depth: int) -> Any:
    """A teacher by its recipe, since every seed may have its own.

    Where other weights lie in its folder now, or none, by the digest of those that taught; of a run that does not know
    it, by the folder's name.
    """
    if digest is not None and weights_digest(Path(folder)) != digest:
        return f"sha256 {digest[:12]}"
    path = Path(folder)
    # A pruned model lies in the folder of its run.
    path = path.parent if path.name == "pruned" else path
    try:
        recipe = upgrade.load(path / RECIPE)[0] if depth < _DEEPEST and (path / RECIPE).is_file() else None
    except UserError:
        recipe = None
    if recipe is None:
        return re.sub(r"-seed\d+$", "", _STAMP.sub("", path.name))
    return _own_settings(recipe, depth=depth + 1)


def _images(run: Run) -> dict[str, Any]:
    """Which images the run saw. Where some were held out, which ones depends on the seed, and so do their prints."""
    data = run.data
    prints = {split: data.fingerprints.get(split) for split in (("test",) if data.validation else ("train", "test"))}
    return {"classes": data.classes, "size": data.size, "images": data.images, "fingerprints": prints}


# -------------------------------------------------------------------------------------------------------------- labels


def _labels(groups: Sequence[tuple[Run, ...]]) -> list[str]:
    names = [Counter(map(name_without_seed, group)).most_common(1)[0][0] for group in groups]
    labels = list(names)
    for name, count in Counter(names).items():
        if count > 1:
            places = [place for place, other in enumerate(names) if other == name]
            for place, said in zip(places, _told_apart([groups[place] for place in places]), strict=True):
                labels[place] = f"{name} ({said})" if said else name
    return _unique(labels)


def _told_apart(groups: Sequence[tuple[Run, ...]]) -> list[str]:
    """For each of several groups of one name, the few settings that tell it from the others."""
    traits = [{**_words(_settings(group[0])), **_words(_image_traits(group[0]))} for group in groups]
    for each, group in zip(traits, groups, strict=True):
        if len({run.recipe.train.precision for run in group}) > 1:
            each["train.precision"] = "auto"
    keys = [key for key in dict.fromkeys(key for each in traits for key in each) if _differ(traits, key)]
    chosen: list[str] = []
    for key in keys:
        if len(_distinct(traits, [*chosen, key])) > len(_distinct(traits, chosen)):
            chosen.append(key)
    # What an earlier key tells apart, later ones may tell apart alone.
    for key in list(chosen):
        rest = [other for other in chosen if other != key]
        if len(_distinct(traits, rest)) == len(_distinct(traits, chosen)):
            chosen = rest
    short = {key: _short(key) for key in chosen}
    repeated = {word for word, count in Counter(short.values()).items() if count > 1}
    shown = {key: key if word in repeated else word for key, word in short.items()}
    # What most of them say needs no saying.
    usual = {key: _majority([each.get(key) for each in traits]) for key in chosen}
    return [
        ", ".join(f"{shown[key]}={each[key]}" for key in chosen if key in each and each[key] != usual[key])
        for each in traits
    ]


def _image_traits(run: Run) -> dict[str, Any]:
    data = run.data
    return {
        **{f"{split} images": count for split, count in data.images.items()},
        "pixels": data.size,
        "data.storage": data.storage,
        # Last: whatever else differs says more to a person.
        **{f"{split} data": (data.fingerprints.get(split) or "unknown")[:8] for split in ("train", "test")},
    }


def _words(settings: Mapping[str, Any]) -> dict[str, str]:
    return {key: _word(value) for key, value in settings.items() if value is not None}


def _word(value: Any) -> str:
    if isinstance(value, dict):
        return str(value.get("model.architecture", "another"))
    if isinstance(value, list | tuple):
        return "+".join(map(_word, value))
    return str(value).lower() if isinstance(value, bool) else str(value)


def _majority(values: Sequence[str | None]) -> str | None:
    """What more than half of them are, or None."""
    value, count = Counter(values).most_common(1)[0]
    return value if 2 * count > len(values) else None


def _differ(traits: Sequence[Mapping[str, str]], key: str) -> bool:
    return len({each.get(key) for each in traits}) > 1


def _distinct(traits: Sequence[Mapping[str, str]], keys: Sequence[str]) -> set[tuple[str | None, ...]]:
    return {tuple(each.get(key) for key in keys) for each in traits}


def _short(key: str) -> str:
    """ "method.temperature" -> "temperature", "method.name" -> "method"."""
    section, _, word = key.rpartition(".")
    return section if word == "name" else word


def _unique(labels: Sequence[str]) -> list[str]:
    """The labels, with " #2" and so on where they still repeat."""
    made: list[str] = []
    for label in labels:
        candidate, number = label, 1
        while candidate in made or (number > 1 and candidate in labels):
            number += 1
            candidate = f"{label} #{number}"
        made.append(candidate)
    return made
