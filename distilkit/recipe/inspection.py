"""A merged recipe, checked: section by section, so that a fault in one hides none in another, then as a whole."""

import itertools
import re
from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from distilkit import methods
from distilkit.data import datasets
from distilkit.errors import SettingError, UserError, did_you_mean, nearest
from distilkit.methods.base import MethodOptions
from distilkit.models import registry
from distilkit.recipe.checking import validate
from distilkit.recipe.findings import Findings
from distilkit.recipe.sections import (
    DEFAULT_NAMES,
    SECTIONS,
    DataSection,
    GroupSection,
    ModelSection,
    Name,
    Recipe,
    TeacherSection,
    TrackingSection,
    TrainSection,
    known_keys,
    resolve_epochs,
    tracker_names,
    variants,
)
from distilkit.recipe.toml_lines import Key, quoted
from distilkit.recipe.tracker_options import to_type, withheld
from distilkit.recipe.wording import describe, shown, span


class _Named(BaseModel):
    """What stands outside of any section."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    name: Name


def checked(found: Findings, default_name: str) -> Recipe | None:
    """Build the recipe, or None if there was a fault."""
    _top_level(found)
    sections: dict[str, Any] = {
        "data": _data(found),
        "model": _model(found),
        "method": (method := _variant(found, "method")),
        "group": _group(found),
        "train": _train(found),
        "optimizer": _variant(found, "optimizer"),
        "schedule": _variant(found, "schedule"),
        "tracking": _tracking(found),
    }
    teacher = _teacher(found)
    name = _name(found, default_name)
    _nesterov(found)
    _spared(found)
    _epochs(found)
    if isinstance(method, MethodOptions):
        _method_on_group(found, method)
        if method.needs_teacher and "teacher" not in found.tree:
            hint = "add a section [teacher] with run = \"...\", or use method 'baseline'"
            found.fault(("method", "name"), f"method {method.name!r} needs a [teacher]", hint)
    if found.faults or None in sections.values():
        return None
    return Recipe(name=name, teacher=teacher, **sections)


# ------------------------------------------------------------------------------------------------- outside of sections


def _top_level(found: Findings) -> None:
    for key, value in found.tree.items():
        if key in SECTIONS or key == "name":
            continue
        is_tables = isinstance(value, list) and any(isinstance(item, dict) for item in value)
        if isinstance(value, dict) or is_tables:
            allowed = ", ".join(f"[{section}]" for section in SECTIONS)
            header = f"[[{quoted(key)}]]" if is_tables else f"[{quoted(key)}]"
            found.fault((key,), f"unknown section {header}; allowed: {allowed}", did_you_mean(key, SECTIONS))
            if not is_tables and (match := nearest(key, SECTIONS)):
                found.meant.add((match,))
            continue
        homes = [section for section in SECTIONS if key in known_keys(section)]
        hint = f"{key!r} belongs in [{homes[0]}]" if homes else did_you_mean(key, ("name", "extends"))
        found.fault((key,), f"unknown key {key!r} outside of any section; allowed there: name, extends", hint)


def _name(found: Findings, default: str) -> str:
    if "name" in found.tree:
        named = validate(found, (), _Named, {"name": found.tree["name"]})
        return named.name if isinstance(named, _Named) else ""
    try:
        return _Named(name=default).name
    except ValidationError:
        slug = re.sub(r"[^A-Za-z0-9._-]+", "_", default).lstrip("._")[:100] or "recipe"
        wording = describe(_Named.model_fields["name"])
        problem = f"the file's name {default!r} cannot name the recipe, which takes {wording}"
        found.fault(("name",), problem, f'write name = "{slug}" at the top of the file')
        return ""


# ------------------------------------------------------------------------------------------------------------ sections


def _table(found: Findings, section: str) -> dict[str, Any] | None:
    """Get a section's keys; empty if it is left out, None if it is no section at all."""
    table = found.tree.get(section, {})
    if isinstance(table, dict):
        return dict(table)
    what = f"[[{section}]]" if isinstance(table, list) and table and isinstance(table[0], dict) else shown(table)
    found.fault((section,), f"{section} must be a section, not {what}", f"write [{section}] and its keys below")
    return None


def _check_known(found: Findings, key: Key, value: str, word: str, allowed: Sequence[str]) -> bool:
    if value not in allowed:
        found.fault(key, f"unknown {word} {value!r}; allowed: {', '.join(allowed)}", did_you_mean(value, allowed))
    return value in allowed


def _data(found: Findings) -> BaseModel | None:
    table = _table(found, "data")
    if table is None:
        return None
    name = table.get("dataset")
    known = isinstance(name, str) and _check_known(found, ("data", "dataset"), name, "data set", datasets.names())
    if isinstance(name, str) and known:
        traits = datasets.traits(name)
        table.setdefault("augment", traits.augment)
        if traits.image_size and traits.default_size:
            table.setdefault("image_size", traits.default_size)
        if traits.channels:
            table.setdefault("channels", 3)
        for key, chosen, own in (
            ("image_size", traits.image_size, "size"),
            ("channels", traits.channels, "number of channels"),
        ):
            if key in table and not chosen:
                sets = ", ".join(repr(other) for other in datasets.names() if getattr(datasets.traits(other), key))
                problem = f"data.{key} is only for {sets}; the images of {name!r} have a {own} of their own"
                found.fault(("data", key), problem, f"leave {key} out")
    else:
        table.setdefault("augment", "crop-flip")
    _magnitude(found, table)
    section = validate(found, ("data",), DataSection, table)
    return section if known else None


def _magnitude(found: Findings, table: dict[str, Any]) -> None:
    """RandAugment's magnitude has a default where there is one, and no place where there is none.

    A layer that switches RandAugment off takes with it the magnitude of a layer below, which nothing else could remove.
    """
    key = ("data", "rand_augment_magnitude")
    if table.get("rand_augment", 0) != 0:
        table.setdefault("rand_augment_magnitude", 9)
    elif "rand_augment" in table and found.place(key).source != found.place(("data", "rand_augment")).source:
        table.pop("rand_augment_magnitude", None)
    elif "rand_augment_magnitude" in table:
        problem = "data.rand_augment_magnitude changes nothing while data.rand_augment is 0"
        found.fault(key, problem, "set data.rand_augment = 2, or leave rand_augment_magnitude out")


def _model(found: Findings) -> BaseModel | None:
    """`[model]`, whose architecture is the leader's where every student has its own."""
    table = _table(found, "model")
    if table is None:
        return None
    key, students = ("model", "architecture"), _architectures(found)
    if students:
        place = _leader(found, len(students))
        name = table.setdefault("architecture", students[place])
        known = name == students[place]  # and looked at where the students are
        if isinstance(name, str) and not known:
            which = f"the leader's, which is number {place + 1} in group.students, {shown(students[place])}"
            hint = f"{found.correction(key, students[place])}, or leave it out"
            found.fault(key, f"model.architecture must be {which}, not {shown(name)}", hint)
    else:
        if isinstance(_students(found), list | str):
            found.meant.add(key)  # a list that is wrong is one fault
        name = table.get("architecture")
        known = isinstance(name, str) and _check_architecture(found, key, name)
    section = validate(found, ("model",), ModelSection, table)
    return section if known else None


def _students(found: Findings) -> object:
    """What `group.students` says, whatever it is."""
    group = found.tree.get("group")
    return group.get("students") if isinstance(group, dict) else None


def _architectures(found: Findings) -> list[str]:
    """The architectures that `group.students` lists; empty where it lists none, or something else."""
    students = _students(found)
    if isinstance(students, list) and all(isinstance(name, str) for name in students):
        return students
    return []


def _leader(found: Findings, students: int) -> int:
    """The leader's place among so many students; the first where the method is not known, which is a fault there."""
    section = found.tree.get("method")
    name = section.get("name") if isinstance(section, dict) else None
    if name not in methods.names():
        return 0
    try:
        return methods.leader(methods.options_model(name).model_validate(section), students)
    except (ValidationError, UserError):
        return 0


def _check_architecture(found: Findings, key: Key, name: str) -> bool:
    """One of ours, of a library's list, or what has the form of a user's own, of which nothing is imported."""
    if ":" not in name:
        return _check_known(found, key, name, "architecture", registry.names())
    try:
        registry.check(name)
    except SettingError as error:
        found.fault(key, error.problem, error.hint)
        return False
    return True


def _variant(found: Findings, section: str) -> BaseModel | None:
    """Check a section whose keys depend on its `name`."""
    table = _table(found, section)
    if table is None:
        return None
    models, default, key = variants(section), DEFAULT_NAMES[section], (section, "name")
    if default:
        table.setdefault("name", default)
    if "name" not in table:
        slip = nearest("name", table)
        hint = f"did you mean 'name' where it says {slip!r}?" if slip else None
        found.missing(key, f"one of {', '.join(models)}", hint)
        return None
    name = table["name"]
    if not isinstance(name, str):
        found.fault(key, f"{section}.name must be one of {', '.join(models)}, not {shown(name)}")
        return None
    known = _check_known(found, key, name, section, tuple(models))
    return validate(found, (section,), models[name], table) if known else None


def _group(found: Findings) -> BaseModel | None:
    """`[group]`, whose defaults are the method's and the architecture's."""
    table = _table(found, "group")
    if table is None:
        return None
    section = found.tree.get("method")
    method = section.get("name") if isinstance(section, dict) else None
    options = methods.options_model(method) if method in methods.names() else None
    if isinstance(table.get("students"), list):
        _own_architectures(found, table, str(method), options)
    kind = table.setdefault("kind", (options or MethodOptions).default_kind)
    table.setdefault("students", (options or MethodOptions).default_students)
    architecture = found.good.get(("model", "architecture"))
    if kind == "branches" and architecture in registry.names():
        table.setdefault("split_at", registry.default_split(str(architecture)))
    validated = validate(found, ("group",), GroupSection, table)
    if kind == "networks" and "split_at" in table:
        problem = 'group.split_at is only for kind = "branches": nothing is shared between networks'
        found.fault(("group", "split_at"), problem, 'leave split_at out, or set kind = "branches"')
    if options is not None:
        _group_limits(found, str(method), options)
    return validated


def _own_architectures(
    found: Findings, table: dict[str, Any], method: str, options: type[MethodOptions] | None
) -> None:
    """Students that have an architecture each: they share nothing, so their group is of networks."""
    key = ("group", "students")
    for name in dict.fromkeys(_architectures(found)):
        _check_architecture(found, key, name)
    model = found.tree.get("model")
    if isinstance(model, dict) and "pretrained" in model:
        problem = "model.pretrained is one architecture's weights, and group.students lists several architectures"
        found.fault(("model", "pretrained"), problem, "leave pretrained out, or set students to a number")
    if options and "networks" not in options.allowed_kinds:
        problem = f"method {method!r} has its students share a trunk, so that group.students must be a number"
        found.fault(key, f"{problem}, not {shown(table['students'])}", found.correction(key, len(table["students"])))
    elif table.setdefault("kind", "networks") == "branches":
        problem = 'group.kind must be networks where group.students lists architectures, not "branches"'
        found.fault(("group", "kind"), problem, found.correction(("group", "kind"), "networks"))


def _group_limits(found: Findings, method: str, options: type[MethodOptions]) -> None:
    kind, students = found.good.get(("group", "kind")), _count(found)
    if kind is not None and kind not in options.allowed_kinds:
        key = ("group", "kind")
        problem = f"group.kind must be {' or '.join(options.allowed_kinds)} for method {method!r}, not {shown(kind)}"
        found.fault(key, problem, found.correction(key, options.allowed_kinds[0]))
    least, most = options.min_students, options.max_students
    if students is not None and (students < least or (most is not None and students > most)):
        key = ("group", "students")
        problem = f"group.students must be {span(least, most)} for method {method!r}, not {students}"
        listed = isinstance(found.good[key], tuple)
        hint = "name fewer architectures" if listed and students > least else None
        hint = "name more architectures" if listed and students < least else hint
        found.fault(key, problem, hint or found.correction(key, options.default_students))


def _count(found: Findings) -> int | None:
    """How many students there are, where that is known."""
    students = found.good.get(("group", "students"))
    return len(students) if isinstance(students, tuple) else students


def _teacher(found: Findings) -> TeacherSection | None:
    """`[teacher]`, which may be left out."""
    if "teacher" not in found.tree:
        return None
    table = _table(found, "teacher")
    if table is None:
        return None
    name = table.get("architecture")
    if isinstance(name, str):
        _check_architecture(found, ("teacher", "architecture"), name)
    by_run, by_file = "run" in table, "architecture" in table or "weights" in table
    if by_run and by_file:
        problem = "teacher.run names a whole classifier, so teacher.architecture and teacher.weights have no place"
        found.fault(("teacher", "run"), problem, "leave out either run, or architecture and weights")
    elif not by_run and not {"architecture", "weights"} <= table.keys():
        given = next((key for key in ("architecture", "weights") if key in table), None)
        missing = (
            "teacher.run" if given is None else f"teacher.{'weights' if given == 'architecture' else 'architecture'}"
        )
        hint = 'write run = "runs/...", or architecture = "..." and weights = "..."'
        found.fault(("teacher", given) if given else ("teacher",), f"{missing} is missing", hint)
    if by_run:
        for key in [key for key in ("mean", "std", "classes", "image_size") if key in table]:
            problem = f"teacher.{key} is for teacher.weights; a run knows its own"
            found.fault(("teacher", key), problem, f"leave {key} out")
    elif ("mean" in table) != ("std" in table):
        there, other = ("mean", "std") if "mean" in table else ("std", "mean")
        found.fault(("teacher", there), f"teacher.{other} is missing", "mean and std belong together")
    section = validate(found, ("teacher",), TeacherSection, table)
    return section if isinstance(section, TeacherSection) else None


def _train(found: Findings) -> BaseModel | None:
    table = _table(found, "train")
    return None if table is None else validate(found, ("train",), TrainSection, table)


def _tracking(found: Findings) -> BaseModel | None:
    """`[tracking]`, whose trackers are Accelerate's and whose options are by tracker."""
    table = _table(found, "tracking")
    if table is None:
        return None
    key = ("tracking", "name")
    given = table.get("name", "tensorboard")
    names = given if isinstance(given, list) else [given]
    words = [name for name in names if isinstance(name, str)]
    unknown = False
    if "tracking" in found.tree:
        for name in dict.fromkeys(words):
            unknown |= not _check_known(found, key, name, "tracker", (*tracker_names(), "none"))
    known = not unknown
    if known and len(set(words)) < len(words):
        found.fault(key, f"tracking.name names a tracker twice: {shown(names)}", "name each of them once")
    elif known and len(words) > 1 and "none" in words:
        found.fault(key, f'tracking.name cannot be "none" beside others: {shown(names)}', 'leave "none" out')
    options = table.get("options")
    if known and isinstance(options, dict):
        table["options"] = _tracker_options(found, options, words)
    if known and not found.of_a_run:
        for wrong, problem in withheld(table, found.typed):
            found.fault(wrong, problem, to_type(wrong))
    section = validate(found, ("tracking",), TrackingSection, table)
    return section if known else None


def _tracker_options(found: Findings, options: dict[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """The options of the trackers that are named.

    A layer that names other trackers takes with it the options of a layer below, which nothing else could remove.
    """
    kept = {}
    for name, value in options.items():
        key = ("tracking", "options", name)
        source = found.place(key).source
        below = source != found.place(("tracking", "name")).source and not source.startswith("--set ")
        if name in names:
            kept[name] = value
        elif not (below and name in tracker_names() and ("tracking", "name") in found.places):
            allowed = ", ".join(name for name in names if name != "none") or "none, as nothing is tracked"
            problem = f"tracking.options.{quoted(name)} is of no tracker that tracking.name names: {allowed}"
            found.fault(key, problem, did_you_mean(name, names) or "leave it out, or name the tracker")
    return kept


# ------------------------------------------------------------------------------------- what no section can see alone


def _method_on_group(found: Findings, method: MethodOptions) -> None:
    kind, students = found.good.get(("group", "kind")), _count(found)
    broken = {fault.key for fault in found.faults} & {"group.kind", "group.students"}
    if kind is None or students is None or broken:
        return
    for key, problem, hint in method.faults(kind, students):
        found.fault(tuple(key.split(".")), problem, hint)


def _nesterov(found: Findings) -> None:
    if found.good.get(("optimizer", "nesterov")) and found.good.get(("optimizer", "momentum")) == 0:
        named = "momentum" if ("optimizer", "momentum") in found.places else "nesterov"
        problem = "optimizer.nesterov = true needs optimizer.momentum above 0"
        found.fault(("optimizer", named), problem, found.correction(("optimizer", "nesterov"), False))


def _spared(found: Findings) -> None:
    key = ("optimizer", "decay_norms_and_biases")
    if found.good.get(key) is False and found.good.get(("optimizer", "weight_decay")) == 0:
        problem = "optimizer.decay_norms_and_biases = false changes nothing while optimizer.weight_decay is 0"
        found.fault(key, problem, "leave decay_norms_and_biases out, or set weight_decay")


def _epochs(found: Findings) -> None:
    """Counts of epochs against the length of the run."""
    epochs = found.good.get(("train", "epochs"))
    if epochs is None:
        return
    for section in ("method", "teacher"):
        ramp = found.good.get((section, "rampup_epochs"))
        # What cannot be counted is a default of None or the like, which means no ramp.
        if isinstance(ramp, int | float) and resolve_epochs(ramp, epochs) > epochs:
            problem = f"{section}.rampup_epochs = {shown(ramp)} is longer than the run of {epochs} epochs"
            hint = "write a fraction of the run, such as rampup_epochs = 0.25"
            found.fault((section, "rampup_epochs"), problem, hint)
    warmup = found.good.get(("schedule", "warmup_epochs"))
    if isinstance(warmup, int) and warmup >= epochs:
        problem = f"schedule.warmup_epochs = {shown(warmup)} must be shorter than the run of {epochs} epochs"
        hint = "write a fraction of the run, such as warmup_epochs = 0.05"
        found.fault(("schedule", "warmup_epochs"), problem, hint)
    cycles = found.good.get(("schedule", "cycles"))
    if isinstance(cycles, int) and cycles > epochs:
        problem = f"schedule.cycles = {cycles} needs at least one epoch each, and the run has {epochs}"
        found.fault(("schedule", "cycles"), problem, found.correction(("schedule", "cycles"), min(5, max(2, epochs))))
    _milestones(found, found.good.get(("schedule", "milestones"), ()), epochs)


def _milestones(found: Findings, milestones: Sequence[int | float], epochs: int) -> None:
    key = ("schedule", "milestones")
    late = [milestone for milestone in milestones if isinstance(milestone, int) and milestone >= epochs]
    if late:
        problem = (
            f"schedule.milestones must lie before the end of the run of {epochs} epochs, "
            f"not at {', '.join(map(shown, late))}"
        )
        found.fault(key, problem, "write fractions of the run, such as milestones = [0.5, 0.75]")
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
            found.fault(key, problem, found.correction(key, sorted(tidy)))
            return
