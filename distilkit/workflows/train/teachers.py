"""Opening the teachers that a recipe names. Training alone does this."""

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from distilkit.errors import SettingError, UserError
from distilkit.learners.pretrained import fit, read_weights
from distilkit.learners.teacher import Teacher
from distilkit.models import own, registry
from distilkit.models.outline import outline
from distilkit.recipe import ModelSection, Recipe, TeacherSection
from distilkit.runs.data_record import DataRecord
from distilkit.runs.run import PrunedModel, Run, find, finished_runs, stock_classifier


def resolve_teacher(recipe: Recipe, runs: Path) -> Recipe:
    """The recipe with its teachers' runs named by their folders, so that a resumed run opens the same ones.

    A name that is no folder means the newest finished run of that recipe below `runs`. Raises `SettingError` saying
    what is missing where there is none.
    """
    if recipe.teacher is None or recipe.teacher.run is None:
        return recipe
    paths = tuple(str(_run_folder(name, runs)) for name in _names(recipe.teacher))
    teacher = recipe.teacher.model_copy(update={"run": paths if len(paths) > 1 else paths[0]})
    return recipe.model_copy(update={"teacher": teacher})


def name_code(recipe: Recipe, runs: Path) -> None:
    """Tell people which modules a training of the recipe imports, its teachers' too, where code is trusted at all."""
    names = list(recipe.architectures)
    if recipe.teacher is not None and recipe.teacher.run is None:
        names.append(str(recipe.teacher.architecture))
    elif recipe.teacher is not None:
        # A teacher that is not there, or cannot be opened, is a fault that shows itself in its turn.
        with suppress(UserError):
            names += [
                name for path in _names(recipe.teacher) for name in find(_run_folder(path, runs), runs).architectures
            ]
    own.name_modules(names)


def open_teacher(recipe: Recipe, data: DataRecord, say: Callable[[str], None] | None = None) -> Teacher | None:
    """The teacher of a recipe, frozen, on the CPU; None where it has none. `say`: see `pretrained.fit`.

    Raises `SettingError` on "teacher.run" or "teacher.weights" where it cannot be opened or does not know the data's
    classes, all of them, in their order; `UntrustedCodeError` where opening it would execute code without leave.
    """
    section = recipe.teacher
    if section is None:
        return None
    if section.run is None:
        assert section.architecture is not None
        assert section.weights is not None
        network = ModelSection(architecture=section.architecture)
        file = Path(section.weights)
        own.require_trust(section.architecture, "opening the teacher")
        try:
            weights = read_weights(file)
            sizes = (section.architecture, len(data.classes), data.channels)
            outlined = outline(*sizes)  # None for a user's own
            own_state = outlined.state if outlined is not None else registry.create(*sizes).state_dict()
            return Teacher([stock_classifier(network, data, fit(weights, own_state, say=say), file)])
        except SettingError as error:
            # The architecture is the teacher's here, not the student's.
            raise SettingError("teacher.architecture", error.problem, error.hint) from error
        except UserError as error:
            raise SettingError("teacher.weights", error.problem, error.hint) from error
    models = []
    for name in _names(section):
        try:
            found = find(Path(name), Path(name).parent)
            model = found.model()
        except own.UntrustedCodeError as error:
            raise own.UntrustedCodeError(error.architecture, f"opening the teacher {name}") from None
        except UserError as error:
            raise SettingError(
                "teacher.run", f"the teacher {name} cannot be opened: {error.problem}", error.hint
            ) from error
        _check_same_task(name, model.data, data)
        models.append(model.classifier)
    return Teacher(models)


def _names(section: TeacherSection) -> tuple[str, ...]:
    assert section.run is not None
    return (section.run,) if isinstance(section.run, str) else section.run


def _run_folder(name: str, runs: Path) -> Path:
    path = Path(name)
    if path.exists():
        try:
            found = find(path, runs)
        except UserError as error:
            raise SettingError(
                "teacher.run", f"the teacher {name} cannot be opened: {error.problem}", error.hint
            ) from error
        if isinstance(found, PrunedModel) or found.record.get("state") == "done":
            return path
        raise SettingError(
            "teacher.run",
            f"the teacher {name} has not finished its training",
            f"continue it first: distilkit train --resume {name}",
        )
    try:
        candidates: list[Run] = [run for run in finished_runs(runs) if run.recipe.name == name]
    except UserError:
        candidates = []
    if not candidates:
        raise SettingError(
            "teacher.run",
            f"the teacher is not there yet: {name!r} is neither a folder nor the recipe of a finished run in {runs}/",
            f"train the teacher first: distilkit train {name}",
        )
    return candidates[-1].path


def _check_same_task(name: str, theirs: DataRecord, ours: DataRecord) -> None:
    for what, taught, needed in (
        ("classes", theirs.classes, ours.classes),
        ("channels", theirs.channels, ours.channels),
        ("image size", theirs.size, ours.size),
    ):
        if taught != needed:
            if isinstance(taught, tuple) and isinstance(needed, tuple):
                same = sorted(taught) == sorted(needed)
                detail = (
                    "the same ones in another order" if same else f"{len(taught)} instead of {len(needed)}, or others"
                )
            else:
                detail = f"{taught} instead of {needed}"
            raise SettingError(
                "teacher.run",
                f"the teacher {name} was trained for other images: its {what} differ ({detail})",
                "a teacher must have been trained on the student's data set",
            )
