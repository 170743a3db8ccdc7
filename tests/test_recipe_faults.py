"""Many faults, shared keys of methods, and domain errors in the recipe's terms."""

import time
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Result

from distilkit import methods
from distilkit.errors import Fault, SettingError, UserError
from distilkit.methods.base import DistillationOptions, MethodOptions, RampupEpochs
from distilkit.methods.registry import register
from distilkit.recipe import Recipe, key_of, load, placed
from distilkit.recipe.faults import LISTED
from distilkit.recipe.sections import PLAIN_SECTIONS

BASE = '[data]\ndataset = "digits"\n[model]\narchitecture = "resnet8"\n[method]\nname = "one"\n[train]\nepochs = 3\n'


def refused(text: str, *overrides: str) -> UserError:
    file = Path("many.toml")
    file.write_text(text, encoding="utf-8")
    with pytest.raises(UserError) as caught:
        load(file, overrides)
    return caught.value


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


MANY = 4_000


@pytest.mark.parametrize(
    "text",
    [
        BASE + "".join(f"epo{number} = 1\n" for number in range(MANY)),
        BASE + "".join(f"[tra{number}]\n" for number in range(MANY)),
        "".join(f"epo{number} = 1\n" for number in range(MANY)) + BASE,
        BASE + '[tracking]\nname = "wandb"\n' + "".join(f"options.wan{number}.a = 1\n" for number in range(MANY)),
    ],
    ids=["keys", "sections", "outside", "trackers"],
)
def test_of_thousands_of_faults_the_first_are_listed_and_the_others_counted(text: str) -> None:
    begin = time.process_time()
    error = refused(text)
    assert time.process_time() - begin < 5, "it took a hundred times as long where each was looked up"
    assert error.problem == (
        f"many.toml: 4,000 faults in the recipe; these are the first {LISTED}, and there are {MANY - LISTED:,} more"
    )
    lines = [int(fault.place.rpartition(":")[2]) for fault in error.faults]
    assert len(lines) == LISTED
    assert lines == sorted(lines)
    assert len(str(error)) < 20_000


def test_a_list_of_thousands_of_names_is_one_fault_and_none_is_looked_up() -> None:
    names = ", ".join(f'"timm:resnet{number}"' for number in range(MANY))
    error = refused(BASE + f"[group]\nstudents = [{names}]\n")
    assert "group.students" in {fault.key for fault in error.faults}
    assert len(error.faults) <= 2
    assert len(str(error)) < 5_000


def test_every_unknown_architecture_of_a_list_is_a_fault_with_the_nearest_name() -> None:
    error = refused(BASE + '[group]\nstudents = ["resnett8", "resnet_20", "resnett8"]\n')
    hints = [fault.hint for fault in error.faults if fault.key == "group.students"]
    assert hints == ["did you mean 'resnet8'?", "did you mean 'resnet20'?"]


@pytest.mark.parametrize("method", ["baseline", "independent", "kd"])
def test_a_method_without_distillation_among_peers_refuses_rampup_epochs(method: str) -> None:
    more = "[teacher]\nrun = 'somewhere'\n" if method == "kd" else ""
    error = refused(BASE.replace('"one"', f'"{method}"\nrampup_epochs = 0.2') + more)
    (fault,) = error.faults
    assert fault.place == "many.toml:7"
    assert fault.problem == f"unknown key 'rampup_epochs' in [method]; {method!r} has none but name"
    assert fault.hint == ('\'rampup_epochs\' is a key of name = "cl-ilr", name = "dml", name = "okddip", name = "one"')


def test_the_methods_share_one_definition_of_their_common_keys() -> None:
    for name in methods.names():
        options = methods.options_model(name)
        if "rampup_epochs" in options.model_fields:
            assert issubclass(options, DistillationOptions), name
    defaults = {name: methods.options_model(name).model_fields["rampup_epochs"].default for name in ("one", "dml")}
    assert defaults == {"one": 80 / 300, "dml": 0}


class Misspelt(DistillationOptions):
    """One letter is missing, so that the shared key would be left at its default."""

    rampup_epoch: RampupEpochs = 0


class Alone(MethodOptions):
    """The right name, without the class that the trainer asks for it."""

    rampup_epochs: RampupEpochs = 0


class Smoothing(MethodOptions):
    """What every method is handed."""

    label_smothing: float = 0.0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (Misspelt, "method 'new' has an option 'rampup_epoch'; 'rampup_epochs' alone is heeded"),
        (Alone, "method 'new' has an option 'rampup_epochs'; .* inherit from methods.base.DistillationOptions"),
        (Smoothing, "method 'new' has an option 'label_smothing'; `train.label_smoothing` is handed to every method"),
    ],
)
def test_a_method_that_misspells_a_shared_key_cannot_be_registered(options: type[MethodOptions], words: str) -> None:
    with pytest.raises(RuntimeError, match=words):
        register("new", options)


def test_an_error_of_a_lower_package_names_its_argument_and_the_recipe_the_key_and_line() -> None:
    Path("fine.toml").write_text(BASE, encoding="utf-8")
    recipe = load("fine.toml")

    def fault(recipe: Recipe, setting: str) -> Fault:
        with pytest.raises(UserError) as caught, placed(recipe):
            raise SettingError(setting, "it is wrong", "mend it")
        (found,) = caught.value.faults
        return found

    assert fault(recipe, "architecture") == Fault("fine.toml:4", "model.architecture", "it is wrong", "mend it")
    assert fault(recipe, "train.precision").key == "train.precision"
    mixed = load("fine.toml", ['group.students=["resnet8", "resnet14", "resnet20"]', "group.kind=networks"])
    assert fault(mixed, "architecture").key == "group.students", "each student's own stands there"


def test_every_argument_has_one_key() -> None:
    names = [key for section in ("data", "model", "group") for key in PLAIN_SECTIONS[section].model_fields]
    assert len(names) == len(set(names))
    assert [key_of(name) for name in ("split_at", "augment", "norm", "peer_targets", "teacher.run")] == [
        "group.split_at", "data.augment", "model.norm", "method.peer_targets", "teacher.run",
    ]  # fmt: skip


def test_lower_packages_do_not_name_keys_of_a_recipe() -> None:
    """What they raise is in their own terms; `recipe.placed` alone knows sections."""
    package = Path(methods.__file__).parents[1]
    for folder in ("data", "models", "groups", "methods"):
        for file in (package / folder).rglob("*.py"):
            text = file.read_text(encoding="utf-8")
            for section in ("data", "model", "group", "method"):
                for key in PLAIN_SECTIONS.get(section, MethodOptions).model_fields:
                    assert f'SettingError("{section}.{key}"' not in text, file


def test_a_layer_that_switches_randaugment_off_takes_its_magnitude_along_and_one_that_sets_it_does_not() -> None:
    Path("base.toml").write_text(BASE.replace("[model]", "rand_augment = 2\nrand_augment_magnitude = 5\n[model]"))
    Path("child.toml").write_text('extends = "base.toml"\n[data]\nrand_augment = 0\n')
    assert load("child.toml").data.rand_augment_magnitude is None
    with pytest.raises(UserError, match="changes nothing while"):
        load("child.toml", ["data.rand_augment_magnitude=3"])


def test_a_runs_own_recipe_says_whose_settings_it_has(folder: Path) -> None:
    (folder / "recipe.toml").write_text(BASE + '[tracking]\nname = "wandb"\noptions.wandb.entity = "us"\n')
    typed = "--set tracking.options.wandb.entity=..."
    for hint in (typed, f"the run had it typed by its user; for a new one type it again: {typed}"):
        with pytest.raises(UserError) as caught:
            load("recipe.toml")
        assert [fault.hint for fault in caught.value.faults] == [hint]
        (folder / "run.json").write_text("{}")


def test_messages_have_neither_the_validators_words_nor_brackets_twice(distilkit: Callable[..., Result]) -> None:
    for words in (("export", "x", "--format", "exe"), ("train", "a", "b"), ("evaluate", "a", "b")):
        result = distilkit(*words)
        assert result.status == 2
        assert "Value error" not in result.err
        assert "[[" not in result.err
    result = distilkit("train", "quickstart", "--set", "train.epochs=many")
    assert "Value error" not in result.err
