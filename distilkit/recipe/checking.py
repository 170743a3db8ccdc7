"""A merged recipe as a whole: what one setting makes the default of another, and what contradicts what."""

import itertools
from collections.abc import Collection, Iterator, Mapping
from typing import Any, TypeGuard

from pydantic import ValidationError

from distilkit import methods
from distilkit.data import datasets
from distilkit.errors import UserError, did_you_mean
from distilkit.methods.base import MethodOptions
from distilkit.models import registry
from distilkit.recipe.faults import Faults, key_of
from distilkit.recipe.sections import DEFAULT_NAMES, SECTIONS, Recipe, model_of, resolve_epochs
from distilkit.recipe.toml_lines import Key, quoted
from distilkit.recipe.tracker_options import to_type, withheld
from distilkit.recipe.wording import shown, span

Wrong = tuple[str | Key, str, str | None]
"""A key, also dotted, what is wrong with it, a hint."""


def check(found: Faults, default_name: str, typed: Collection[Key] | None) -> Recipe:
    """Make the recipe. Raises `UserError` with all faults, those that were `found` before among them.

    `typed`: the keys of `[tracking]` that no file set; None for a run's own record, which nobody asks for.
    """
    settings = _completed(found.tree, default_name)
    recipe, wrong = None, set[Key]()
    try:
        recipe = Recipe.model_validate(settings)
    except ValidationError as error:
        wrong = found.add_all(error, settings)
    good = _Good(settings, wrong)
    for key, problem, hint in itertools.chain(
        _contradictions(good, found), _on_group(good, found), _trackers(good, found, typed)
    ):
        found.add(tuple(key.split(".")) if isinstance(key, str) else key, problem, hint)
    found.refuse()
    assert recipe is not None
    return recipe


class _Good:
    """The settings that have a good value, by dotted key, defaults included; None for all others."""

    def __init__(self, settings: Mapping[str, Any], wrong: Collection[Key]) -> None:
        self.settings = settings
        self.wrong = wrong

    def __getitem__(self, dotted: str) -> Any:
        section, key = dotted.split(".")
        table = self.settings.get(section)
        if {(section,), (section, key)} & set(self.wrong) or not isinstance(table, dict):
            return None
        field = model_of(section, table).model_fields.get(key)
        return table.get(key, field.get_default()) if field else None

    @property
    def method(self) -> MethodOptions | None:
        """The method's options, where all are good."""
        return None if any(key[0] == "method" for key in self.wrong) else _options(self.settings["method"])

    @property
    def students(self) -> int | None:
        """How many students there are."""
        students = self["group.students"]
        return len(students) if isinstance(students, tuple) else students


# ------------------------------------------------------------------------------------------------------------ defaults


def _completed(tree: Mapping[str, Any], default_name: str) -> dict[str, Any]:
    """The recipe with the defaults that hang on another setting; arrays are tuples, which frozen sections hold."""
    full: dict[str, Any] = {section: {} for section in SECTIONS if section != "teacher"} | {"name": default_name}
    for section, table in tree.items():
        full[section] = {key: _tuples(value) for key, value in table.items()} if isinstance(table, dict) else table
    data, model, group, method = (
        full[section] if isinstance(full[section], dict) else {} for section in ("data", "model", "group", "method")
    )
    for section, name in DEFAULT_NAMES.items():
        if name and isinstance(full[section], dict):
            full[section].setdefault("name", name)
    traits = datasets.traits(data["dataset"]) if data.get("dataset") in datasets.names() else None
    data.setdefault("augment", traits.augment if traits else "crop-flip")
    if traits and traits.image_size and traits.default_size:
        data.setdefault("image_size", traits.default_size)
    if traits and traits.channels:
        data.setdefault("channels", 3)
    if data.get("rand_augment", 0) != 0:
        data.setdefault("rand_augment_magnitude", 9)
    options, students = _options_model(method), group.get("students")
    if isinstance(students, tuple):
        if "networks" in options.allowed_kinds:
            group.setdefault("kind", "networks")
        if _all_text(students):
            model.setdefault("architecture", students[_leader(method, len(students))])
    group.setdefault("kind", options.default_kind)
    group.setdefault("students", options.default_students)
    if group["kind"] == "branches" and model.get("architecture") in registry.names():
        group.setdefault("split_at", registry.default_split(model["architecture"]))
    return full


def _tuples(value: Any) -> Any:
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value


def _all_text(students: object) -> TypeGuard[tuple[str, ...]]:
    return isinstance(students, tuple) and bool(students) and all(isinstance(name, str) for name in students)


def _options_model(method: Mapping[str, Any]) -> type[MethodOptions]:
    return methods.options_model(method["name"]) if method.get("name") in methods.names() else MethodOptions


def _options(method: Mapping[str, Any]) -> MethodOptions | None:
    try:
        return _options_model(method).model_validate(method)
    except (ValidationError, UserError):
        return None


def _leader(method: Mapping[str, Any], students: int) -> int:
    """The leader's place among so many students; the first where the method is not known, which is a fault there."""
    options = _options(method) if method.get("name") in methods.names() else None
    return methods.leader(options, students) if options else 0


# ------------------------------------------------------------------------------------------------------ contradictions


def _contradictions(good: _Good, found: Faults) -> Iterator[Wrong]:
    tables = {section: table if isinstance(table, dict) else {} for section, table in good.settings.items()}
    model = tables["model"]
    yield from _data(tables["data"])
    students = tables["group"].get("students")
    if _all_text(students):
        place = _leader(tables["method"], len(students))
        if isinstance(given := model.get("architecture"), str) and given != students[place]:
            which = f"the leader's, which is number {place + 1} in group.students, {shown(students[place])}"
            hint = f"{found.correction(('model', 'architecture'), students[place])}, or leave it out"
            yield "model.architecture", f"model.architecture must be {which}, not {shown(given)}", hint
    if isinstance(students, tuple) and "pretrained" in model:
        problem = "model.pretrained is one architecture's weights, and group.students lists several architectures"
        yield "model.pretrained", problem, "leave pretrained out, or set students to a number"
    yield from _teacher(tables.get("teacher"))
    if good["optimizer.nesterov"] and good["optimizer.momentum"] == 0:
        named = "momentum" if "momentum" in tables["optimizer"] else "nesterov"
        problem = "optimizer.nesterov = true needs optimizer.momentum above 0"
        yield f"optimizer.{named}", problem, found.correction(("optimizer", "nesterov"), False)
    if good["optimizer.decay_norms_and_biases"] is False and good["optimizer.weight_decay"] == 0:
        problem = "optimizer.decay_norms_and_biases = false changes nothing while optimizer.weight_decay is 0"
        hint = "leave decay_norms_and_biases out, or set weight_decay"
        yield "optimizer.decay_norms_and_biases", problem, hint
    if (epochs := good["train.epochs"]) is not None:
        yield from _epochs(good, found, epochs)


def _data(data: Mapping[str, Any]) -> Iterator[Wrong]:
    if (name := data.get("dataset")) in datasets.names():
        for key, own in (("image_size", "size"), ("channels", "number of channels")):
            if key in data and not getattr(datasets.traits(name), key):
                sets = ", ".join(repr(other) for other in datasets.names() if getattr(datasets.traits(other), key))
                problem = f"data.{key} is only for {sets}; the images of {name!r} have a {own} of their own"
                yield f"data.{key}", problem, f"leave {key} out"
    if "rand_augment_magnitude" in data and data.get("rand_augment", 0) == 0:
        problem = "data.rand_augment_magnitude changes nothing while data.rand_augment is 0"
        hint = "set data.rand_augment = 2, or leave rand_augment_magnitude out"
        yield "data.rand_augment_magnitude", problem, hint


def _teacher(teacher: Mapping[str, Any] | None) -> Iterator[Wrong]:
    if teacher is None:
        return
    given = [key for key in ("architecture", "weights") if key in teacher]
    if "run" in teacher and given:
        problem = "teacher.run names a whole classifier, so teacher.architecture and teacher.weights have no place"
        yield "teacher.run", problem, "leave out either run, or architecture and weights"
    elif "run" not in teacher and len(given) < 2:
        missing = {"architecture": "weights", "weights": "architecture"}[given[0]] if given else "run"
        hint = 'write run = "runs/...", or architecture = "..." and weights = "..."'
        yield ".".join(["teacher", *given]), f"teacher.{missing} is missing", hint
    if "run" in teacher:
        for key in [key for key in ("mean", "std", "classes", "image_size") if key in teacher]:
            yield f"teacher.{key}", f"teacher.{key} is for teacher.weights; a run knows its own", f"leave {key} out"
    elif ("mean" in teacher) != ("std" in teacher):
        there, other = ("mean", "std") if "mean" in teacher else ("std", "mean")
        yield f"teacher.{there}", f"teacher.{other} is missing", "mean and std belong together"


def _on_group(good: _Good, found: Faults) -> Iterator[Wrong]:
    """What the method does not do with this group, and the group not with itself."""
    method, group = good.settings["method"], good.settings["group"]
    options = _options_model(method) if isinstance(method, dict) else MethodOptions
    known, name = options is not MethodOptions, method.get("name") if isinstance(method, dict) else None
    kind, students, broken = good["group.kind"], good.students, False
    if isinstance(group, dict) and isinstance(listed := group.get("students"), tuple):
        if "networks" not in options.allowed_kinds:
            problem = f"method {name!r} has its students share a trunk, so that group.students must be a number"
            hint = found.correction(("group", "students"), len(listed))
            yield "group.students", f"{problem}, not {shown(listed)}", hint
            broken = True
        elif group["kind"] == "branches":
            problem = 'group.kind must be networks where group.students lists architectures, not "branches"'
            yield "group.kind", problem, found.correction(("group", "kind"), "networks")
            broken = True
    if kind == "networks" and "split_at" in group:
        problem = 'group.split_at is only for kind = "branches": nothing is shared between networks'
        yield "group.split_at", problem, 'leave split_at out, or set kind = "branches"'
    if known and kind is not None and kind not in options.allowed_kinds:
        problem = f"group.kind must be {' or '.join(options.allowed_kinds)} for method {name!r}, not {shown(kind)}"
        yield "group.kind", problem, found.correction(("group", "kind"), options.allowed_kinds[0])
        broken = True
    least, most = options.min_students, options.max_students
    if known and students is not None and (students < least or (most is not None and students > most)):
        problem = f"group.students must be {span(least, most)} for method {name!r}, not {students}"
        hint = found.correction(("group", "students"), options.default_students)
        if isinstance(group["students"], tuple):
            hint = f"name {'more' if students < least else 'fewer'} architectures"
        yield "group.students", problem, hint
        broken = True
    if (valid := good.method) is None or not known:
        return
    if kind is not None and students is not None and not broken:
        for setting, problem, hint_or_none in valid.faults(kind, students):
            yield key_of(setting), problem, hint_or_none
    if valid.needs_teacher and "teacher" not in good.settings:
        hint = "add a section [teacher] with run = \"...\", or use method 'baseline'"
        yield "method.name", f"method {name!r} needs a [teacher]", hint


def _epochs(good: _Good, found: Faults, epochs: int) -> Iterator[Wrong]:
    """Counts of epochs against the length of the run."""
    for section in ("method", "teacher"):
        ramp = good[f"{section}.rampup_epochs"]
        if ramp is not None and resolve_epochs(ramp, epochs) > epochs:
            problem = f"{section}.rampup_epochs = {shown(ramp)} is longer than the run of {epochs} epochs"
            yield f"{section}.rampup_epochs", problem, "write a fraction of the run, such as rampup_epochs = 0.25"
    warmup, cycles = good["schedule.warmup_epochs"], good["schedule.cycles"]
    if isinstance(warmup, int) and warmup >= epochs:
        problem = f"schedule.warmup_epochs = {shown(warmup)} must be shorter than the run of {epochs} epochs"
        yield "schedule.warmup_epochs", problem, "write a fraction of the run, such as warmup_epochs = 0.05"
    if cycles is not None and cycles > epochs:
        problem = f"schedule.cycles = {cycles} needs at least one epoch each, and the run has {epochs}"
        hint = found.correction(("schedule", "cycles"), min(5, max(2, epochs)))
        yield "schedule.cycles", problem, hint
    milestones = good["schedule.milestones"] or ()
    late = [milestone for milestone in milestones if isinstance(milestone, int) and milestone >= epochs]
    if late:
        where = f"before the end of the run of {epochs} epochs, not at {', '.join(map(shown, late))}"
        hint = "write fractions of the run, such as milestones = [0.5, 0.75]"
        yield "schedule.milestones", f"schedule.milestones must lie {where}", hint
        return
    for first, second in itertools.pairwise(milestones):
        # In a short run fractions may round to one epoch; as fractions they still differ.
        both_fractions = isinstance(first, float) and isinstance(second, float)
        a, b = (first, second) if both_fractions else (resolve_epochs(m, epochs) for m in (first, second))
        if a >= b:
            which = "repeats" if a == b else "comes before"
            problem = f"schedule.milestones must rise, each above the last: {second} {which} {first}"
            one_type = len({type(milestone) for milestone in milestones}) == 1
            tidy = {milestone if one_type else resolve_epochs(milestone, epochs) for milestone in milestones}
            yield "schedule.milestones", problem, found.correction(("schedule", "milestones"), sorted(tidy))
            return


def _trackers(good: _Good, found: Faults, typed: Collection[Key] | None) -> Iterator[Wrong]:
    if (given := good["tracking.name"]) is None:
        return
    names = given if isinstance(given, tuple) else (given,)
    if len(set(names)) < len(names):
        yield "tracking.name", f"tracking.name names a tracker twice: {shown(names)}", "name each of them once"
    elif len(names) > 1 and "none" in names:
        yield "tracking.name", f'tracking.name cannot be "none" beside others: {shown(names)}', 'leave "none" out'
    table = good.settings["tracking"]
    options = table.get("options") if isinstance(table.get("options"), dict) else {}
    for name in options:
        if name not in names:
            allowed = ", ".join(name for name in names if name != "none") or "none, as nothing is tracked"
            problem = f"tracking.options.{quoted(name)} is of no tracker that tracking.name names: {allowed}"
            hint = did_you_mean(name, names) or "leave it out, or name the tracker"
            yield ("tracking", "options", name), problem, hint
    if typed is not None:
        named = {name: option for name, option in options.items() if name in names}
        for key, problem in withheld({**table, "options": named}, typed):
            yield key, problem, to_type(key, found.place(key).source)
