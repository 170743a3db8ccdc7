"""In what runs differ that is not the question: within a recipe, between two recipes, and in a whole comparison.

`compare`, `report` and the model cards take their remarks from here. What a run does not say is no difference, but for
fingerprints of images: where one is missing, nobody can know whether the images are the same.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from distilkit.runs.run import Run
from distilkit.workflows.comparison.recipe_groups import RecipeGroup, incomparable, on_same_images

CONDITIONS = {
    "precision": "precision",
    "epochs": "number of epochs",
    "device": "device",
    "torch": "version of PyTorch",
    "threads": "number of threads",
}
"""Kinds of remarks on how runs were trained, and what a person calls them."""

_IMAGES = {
    "test-images": "these were not tested on the same images, and their errors do not compare",
    "unknown-test-images": "whether these were tested on the same images cannot be known, and their errors are not "
    "compared",
    "data": "these were not trained on the same images",
    "unknown-data": "whether these were trained on the same images cannot be known",
}


@dataclass(frozen=True)
class Remark:
    """`groups`: the labels of the recipes that it concerns. `text`: a sentence without its full stop."""

    kind: str
    groups: tuple[str, ...]
    text: str


def within(group: RecipeGroup) -> list[Remark]:
    """In what the trainings of one recipe that count differ, and which seeds were trained more than once."""
    remarks = []
    for kind, name in CONDITIONS.items():
        seeds_of = _seeds_of(group, kind)
        if len(seeds_of) > 1:
            listed = "; ".join(f"{value} with seed {', '.join(map(str, seeds))}" for value, seeds in seeds_of.items())
            remarks.append(_about(group, kind, f"the {name} differs between its trainings: {listed}"))
    if group.repeated_seeds:
        seeds = ", ".join(map(str, group.repeated_seeds))
        text = f"seed {seeds} was trained more than once; a repetition is no second sample, and the newest counts"
        remarks.append(_about(group, "repeated-seed", text))
    return remarks


def between(ours: RecipeGroup, theirs: RecipeGroup) -> list[Remark]:
    """What a difference between two recipes may come from besides their recipes; or why there is none."""
    pair = (ours.label, theirs.label)
    apart = incomparable(ours.runs[0], theirs.runs[0])
    if apart is not None:
        return [Remark(apart.kind, pair, apart.reason)]
    remarks = []
    for kind, name in CONDITIONS.items():
        values = [list(_seeds_of(group, kind)) for group in (ours, theirs)]
        if all(values) and len({value for each in values for value in each}) > 1:
            against = " against ".join(", ".join(each) for each in values)
            remarks.append(Remark(kind, pair, f"the {name} differs: {against}"))
    trained = _trained_apart(ours, theirs)
    return remarks if trained is None else [*remarks, Remark(trained, pair, _IMAGES[trained])]


def overall(groups: Sequence[RecipeGroup], pairs: Sequence[tuple[RecipeGroup, RecipeGroup]]) -> list[Remark]:
    """What a reader has to know before comparing: one remark for each kind, and one for each recipe's repeated seeds.

    `pairs`: those that are compared.
    """
    found = [remark for group in groups for remark in within(group)]
    found += [remark for ours, theirs in pairs for remark in between(ours, theirs)]
    kinds = on_same_images(groups)
    remarks = list(_tested_apart(kinds))
    for kind in (*CONDITIONS, "data", "unknown-data"):
        concerned = {label for remark in found if remark.kind == kind for label in remark.groups}
        chosen = [group for group in groups if group.label in concerned]
        if not chosen:
            continue
        labels = tuple(group.label for group in chosen)
        if kind in _IMAGES:
            remarks.append(Remark(kind, labels, f"{_IMAGES[kind]}: {', '.join(labels)}"))
            continue
        labels_of: dict[str, list[str]] = {}
        for group in chosen:
            labels_of.setdefault(", ".join(_seeds_of(group, kind)), []).append(group.label)
        listed = "; ".join(f"{values} ({', '.join(which)})" for values, which in labels_of.items())
        remarks.append(Remark(kind, labels, f"the {CONDITIONS[kind]} differs: {listed}"))
    return remarks + [remark for remark in found if remark.kind == "repeated-seed"]


def _about(group: RecipeGroup, kind: str, text: str) -> Remark:
    return Remark(kind, (group.label,), f"{group.label}: {text}")


def _seeds_of(group: RecipeGroup, kind: str) -> dict[str, list[int]]:
    """Every value of a condition that is known, with the seeds of the trainings that had it."""
    seeds: dict[str, list[int]] = {}
    for run in group.trainings:
        value = _condition(run, kind)
        if value:
            seeds.setdefault(str(value), []).append(run.record["seed"])
    return seeds


def _condition(run: Run, kind: str) -> object:
    record = run.record

    def inside(key: str, name: str) -> object:
        table = record.get(key)
        return table.get(name) if isinstance(table, dict) else None

    match kind:
        case "precision":
            return inside("precision", "used")
        case "epochs":
            return record["final"]["epochs"]
        case "device":
            return record.get("device")
        case "torch":
            return inside("versions", "torch")
        case _:
            # On a GPU the number of the CPU's threads means nothing.
            on_cpu = str(record.get("device", "")).startswith("cpu")
            return inside("threads", "used") if on_cpu else None


def _trained_apart(ours: RecipeGroup, theirs: RecipeGroup) -> str | None:
    """The kind of remark on the training images of two recipes, None where they had the same."""
    first, second = ours.first.data, theirs.first.data
    if any(first.images.get(split) != second.images.get(split) for split in ("train", "validation")):
        return "data"
    # What is held out is drawn by the seed.
    prints = [
        {run.record["seed"] if run.data.validation else None: run.data.fingerprints.get("train") for run in group.runs}
        for group in (ours, theirs)
    ]
    both = [(prints[0][seed], prints[1][seed]) for seed in prints[0].keys() & prints[1].keys()]
    if first.storage != second.storage or any(None in pair for pair in both):
        return "unknown-data"
    return "data" if any(mine != other for mine, other in both) else None


def _tested_apart(kinds: Sequence[Sequence[RecipeGroup]]) -> Iterator[Remark]:
    """`kinds`: recipes whose errors compare, together."""
    firsts = [same[0].runs[0] for same in kinds]
    for kind in ("test-images", "unknown-test-images"):
        chosen = [
            same
            for same, run in zip(kinds, firsts, strict=True)
            if any((apart := incomparable(run, other)) and apart.kind == kind for other in firsts if other is not run)
        ]
        if chosen:
            listed = "; ".join(
                f"{same[0].runs[0].data.dataset}, {same[0].runs[0].data.images['test']:,} test images: "
                f"{', '.join(group.label for group in same)}"
                for same in chosen
            )
            labels = tuple(group.label for same in chosen for group in same)
            yield Remark(kind, labels, f"{_IMAGES[kind]}: {listed}")
