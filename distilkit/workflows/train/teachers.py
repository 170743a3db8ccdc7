"""Opening the teachers that a recipe names. Training alone does this."""

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from distilkit.analysis import teacher_check
from distilkit.data.base import ImageData
from distilkit.errors import SettingError, UserError
from distilkit.groups.normalize import Classifier
from distilkit.learners.pretrained import fit, read_weights
from distilkit.learners.teacher import ResizedClassifier, Teacher
from distilkit.models import external, own, registry
from distilkit.models.outline import outline
from distilkit.observer import Observer
from distilkit.reading import UnreadableError, read_text
from distilkit.recipe import ModelSection, Recipe, TeacherSection
from distilkit.runs.data_record import DataRecord, data_record
from distilkit.runs.run import PrunedModel, Run, find, finished_runs, stock_classifier
from distilkit.runs.weights_digest import weights_digest


def resolve_teacher(recipe: Recipe, runs: Path) -> Recipe:
    """The recipe with its teachers' runs named by their folders, so that a resumed run opens the same ones.

    A name that is no folder means the newest finished run of that recipe below `runs`. Weights for a network of
    torchvision or timm get that library's mean and deviation, unless the recipe has others. Raises `SettingError`
    saying what is missing where there is no such run.
    """
    if recipe.teacher is None:
        return recipe
    if recipe.teacher.run is None:
        return recipe.model_copy(update={"teacher": _with_constants_and_classes(recipe.teacher)})
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
        return Teacher([_from_weights(section, data, say)])
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


def _with_constants_and_classes(section: TeacherSection) -> TeacherSection:
    assert section.architecture is not None
    found = external.constants(section.architecture) if external.is_external(section.architecture) else None
    update: dict[str, object] = {}
    if found is not None and section.mean is None:
        update = {"mean": found[0], "std": found[1]}
    if isinstance(section.classes, str):
        update["classes"] = _classes_in(Path(section.classes))
    return section.model_copy(update=update)


def _from_weights(
    section: TeacherSection, data: DataRecord, say: Callable[[str], None] | None
) -> Classifier | ResizedClassifier:
    """The classifier of a file of weights, with the constants, the classes and the size that the recipe gives it."""
    assert section.architecture is not None
    assert section.weights is not None
    own.require_trust(section.architecture, "opening the teacher")
    file, places = Path(section.weights), None
    if section.classes is not None:
        assert not isinstance(section.classes, str), "resolve_teacher has read the file"
        theirs = section.classes
        places = [_place(name, theirs) for name in data.classes]
        data = data.model_copy(update={"classes": theirs})
    if section.mean is not None and section.std is not None:
        for key, numbers in (("mean", section.mean), ("std", section.std)):
            if len(numbers) != data.channels:
                raise SettingError(
                    f"teacher.{key}",
                    f"{len(numbers)} numbers for images of {data.channels} channels",
                    "give one for every channel",
                )
        data = data.model_copy(update={"mean": section.mean, "std": section.std})
    try:
        weights = read_weights(file)
        sizes = (section.architecture, len(data.classes), data.channels)
        outlined = outline(*sizes)  # None for a user's own
        own_state = outlined.state if outlined is not None else registry.create(*sizes).state_dict()
        network = ModelSection(architecture=section.architecture)
        classifier = stock_classifier(network, data, fit(weights, own_state, say=say), file)
    except SettingError as error:
        # The architecture is the teacher's here, not the student's.
        raise SettingError("teacher.architecture", error.problem, error.hint) from error
    except UserError as error:
        raise SettingError("teacher.weights", error.problem, error.hint) from error
    if places is None and section.image_size is None:
        return classifier
    return ResizedClassifier(classifier, section.image_size, places)


def _classes_in(file: Path) -> tuple[str, ...]:
    """The classes that a text file has in its lines. No message says what stands in it: it may be any file."""
    wanted = "a list of names, or a text file with one name to a line"
    try:
        text = read_text(file)
    except (OSError, UnreadableError) as error:
        reason = getattr(error, "strerror", None) or getattr(error, "problem", error)
        raise SettingError("teacher.classes", f"{file} cannot be read: {reason}", wanted) from error
    return tuple(line.strip() for line in text.splitlines() if line.strip())


def _place(name: str, theirs: tuple[str, ...]) -> int:
    if theirs.count(name) == 1:
        return theirs.index(name)
    problem = "twice among" if name in theirs else "not among"
    raise SettingError(
        "teacher.classes",
        f"the data's class {name!r} is {problem} the {len(theirs)} that are given for the teacher",
        "give the names that the data have, each once, in the order of the teacher's logits",
    )


def is_there(recipe: Recipe) -> bool:
    """Whether a recipe's teacher is a file: one that cannot be opened then is no matter of a training still to come."""
    return recipe.teacher is not None and recipe.teacher.weights is not None and Path(recipe.teacher.weights).exists()


def check_teacher(
    recipe: Recipe,
    teacher: Teacher,
    data: ImageData,
    device: torch.device,
    observer: Observer,
    most: int = teacher_check.IMAGES,
) -> list[dict[str, Any]]:
    """Measure the teacher on labelled images that are not the test's, say how it does, and return it for run.json.

    Raises `SettingError` on "teacher.weights" where they are useless or read wrongly, see
    `teacher_check.require_right_reading`. A teacher from a run knows its own constants: of it this is only said.
    """
    section = recipe.teacher
    assert section is not None
    known = data_record(recipe, data)
    split, images = teacher_check.choose_images(data.splits, len(known.classes), most)
    found = teacher_check.measure_teacher(teacher, split, images, device)
    names = list(_names(section)) if section.run is not None else [str(section.weights)]
    documents = []
    for name, measured, classifier in zip(names, found, teacher.classifiers, strict=False):
        assert isinstance(classifier, Classifier | ResizedClassifier)
        observer.note(
            f"teacher {name}: error {measured.error:.1f} %, cross-entropy {measured.cross_entropy:.3f}, on "
            f"{measured.images:,} images of the {split} split"
        )
        if section.run is None:
            assert section.architecture is not None
            try:
                teacher_check.require_right_reading(
                    classifier, measured, images, known.classes, section.architecture, (known.mean, known.std), device
                )
            except SettingError as error:
                if not section.allow_weak:
                    raise
                observer.note(f"warning: {error.problem}")
        elif measured.knows_nothing:
            observer.note(f"warning: naming the largest class always has {measured.chance:.1f} % error there")
        digest = teacher_check.digest(classifier)
        documents.append({"name": name, "sha256": digest, "data": data.fingerprints[split], **measured.document()})
    if len(found) > len(names):
        together = found[-1]
        observer.note(f"their mean: error {together.error:.1f} %, cross-entropy {together.cross_entropy:.3f}")
    return documents


def teacher_digests(recipe: Recipe) -> list[str | None]:
    """The digest of every teacher's weights, in their order; none where a recipe has no teacher."""
    if recipe.teacher is None:
        return []
    names = _names(recipe.teacher) if recipe.teacher.run is not None else (str(recipe.teacher.weights),)
    return [weights_digest(Path(name)) for name in names]


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
