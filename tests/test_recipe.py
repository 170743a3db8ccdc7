"""What a recipe may say, and how its faults are told: all at once, each with its place, its key and a hint."""

import pickle
import string
import tempfile
import tomllib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import pytest
import tomli_w
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from distilkit import methods, recipe
from distilkit.data import datasets
from distilkit.errors import Fault, UserError
from distilkit.groups.outputs import GroupKind
from distilkit.methods.base import MethodOptions
from distilkit.models import registry
from distilkit.recipe import AdamWSection, CosineSection, Recipe, key_lines, load, place, resolve_epochs

BASE = """\
name = "base"

[data]
dataset = "digits"
root = "data"
download = true
validation = 0.1
augment = "crop"

[model]
architecture = "resnet32"

[group]
kind = "branches"
students = 3
split_at = "layer3"

[method]
name = "one"
temperature = 3.0
rampup_epochs = 0.25

[train]
epochs = 40
batch_size = 128
seed = 0
precision = "auto"
label_smoothing = 0.1
clip_norm = 1.0
checkpoint_epochs = 5

[optimizer]
name = "sgd"
lr = 0.1
momentum = 0.9
nesterov = true
weight_decay = 5e-4

[schedule]
name = "step"
milestones = [0.5, 0.75]
gamma = 0.1
warmup_epochs = 2
"""

SMALL = """\
[data]
dataset = "digits"
[model]
architecture = "resnet32"
[method]
name = "one"
[train]
epochs = 40
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder, so that places read "base.toml:7"."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(name: str, text: str) -> Path:
    Path(name).write_text(text, encoding="utf-8")
    return Path(name)


def refused(source: str | Path, overrides: Sequence[str] = ()) -> UserError:
    with pytest.raises(UserError) as caught:
        load(source, overrides)
    return caught.value


def faults(text: str, overrides: Sequence[str] = ()) -> tuple[Fault, ...]:
    return refused(write("base.toml", text), overrides).faults


def only_fault(text: str, overrides: Sequence[str] = ()) -> Fault:
    found = faults(text, overrides)
    assert len(found) == 1, [str(fault) for fault in found]
    return found[0]


def with_line(text: str, line: int, replacement: str) -> str:
    lines = text.split("\n")
    lines[line - 1] = replacement
    return "\n".join(lines)


def line_of(text: str, start: str) -> int:
    return next(number for number, line in enumerate(text.split("\n"), 1) if line.startswith(start))


# ------------------------------------------------------------------------------------------------------- single faults


class Damage(NamedTuple):
    """One line of `BASE`, replaced; the key that is at fault, and what must be said about it."""

    line: int
    text: str
    key: str
    problem: str
    hint: str | None = None


DAMAGES = [
    # outside of sections
    Damage(1, "name = 5", "name", "must be up to 100 letters", 'write name = "5"'),
    Damage(1, 'name = ""', "name", 'not ""'),
    Damage(1, 'name = ".hidden"', "name", "not starting with '.'"),
    Damage(1, 'name = "runs/one"', "name", 'not "runs/one"'),
    Damage(1, 'name = "größe"', "name", 'not "größe"'),
    Damage(1, "name = 'a\tb'", "name", r'not "a\tb"'),
    Damage(1, "naem = 'one'", "naem", "unknown key 'naem' outside of any section", "did you mean 'name'?"),
    Damage(2, "epochs = 3", "epochs", "unknown key 'epochs' outside of any section", "'epochs' belongs in [train]"),
    # [data]
    Damage(4, 'dataset = "digitz"', "data.dataset", "unknown data set 'digitz'; allowed: ", "did you mean 'digits'?"),
    Damage(4, 'dataset = "CIFAR-10"', "data.dataset", "unknown data set 'CIFAR-10'", "did you mean 'cifar10'?"),
    Damage(4, 'dataset = ""', "data.dataset", "unknown data set ''"),
    Damage(4, "dataset = 10", "data.dataset", "must be one of cifar10, "),
    Damage(4, 'dataset = ["digits"]', "data.dataset", 'not ["digits"]', 'write dataset = "digits"'),
    Damage(4, 'datset = "digits"', "data.datset", "unknown key 'datset' in [data]; allowed: dataset", "'dataset'"),
    Damage(5, "root = 3", "data.root", "must be text that is not empty, not 3", 'write root = "3"'),
    Damage(5, 'root = ""', "data.root", 'must be text that is not empty, not ""'),
    Damage(5, 'root = "a\\u0000b"', "data.root", "must be text"),
    Damage(6, "download = 1", "data.download", "must be true or false, not 1", "write download = true"),
    Damage(6, 'download = "no"', "data.download", 'must be true or false, not "no"', "write download = false"),
    Damage(6, "image_size = 32", "data.image_size", "'image-folder', 'imagenet', 'npz'", "leave image_size out"),
    Damage(7, "validation = -1", "data.validation", "an integer of 0 or more, or a number of 0 or more and below 1"),
    Damage(7, "validation = 1.0", "data.validation", "not 1.0"),
    Damage(7, "validation = 50.0", "data.validation", "not 50.0", "write validation = 50"),
    Damage(7, "validation = nan", "data.validation", "must be finite, not nan"),
    Damage(7, "validation = true", "data.validation", "not true"),
    Damage(8, 'augment = "crop_flip"', "data.augment", "must be one of none, crop, ", "did you mean 'crop-flip'?"),
    Damage(8, "augment = false", "data.augment", "must be one of none, crop"),
    # [model]
    Damage(11, 'architecture = "resnet31"', "model.architecture", "unknown architecture 'resnet31'; allowed", "resnet"),
    Damage(11, 'architecture = "ResNet-32"', "model.architecture", "unknown architecture 'ResNet-32'", "'resnet32'"),
    Damage(11, "architecture = 32", "model.architecture", "must be one of "),
    Damage(11, 'architectur = "resnet32"', "model.architectur", "unknown key 'architectur'", "'architecture'"),
    # [group]
    Damage(14, 'kind = "branch"', "group.kind", "must be one of branches, networks", "did you mean 'branches'?"),
    Damage(14, "kind = 2", "group.kind", "must be one of branches, networks, not 2"),
    Damage(15, "students = 0", "group.students", "must be an integer from 1 to 100, not 0"),
    Damage(15, "students = 101", "group.students", "must be an integer from 1 to 100, not 101"),
    Damage(15, "students = 3.0", "group.students", "not 3.0", "write students = 3"),
    Damage(15, "student = 3", "group.student", "unknown key 'student' in [group]", "did you mean 'students'?"),
    Damage(16, 'split_at = ""', "group.split_at", "must be text"),
    Damage(16, "split_at = 3", "group.split_at", "must be text", 'write split_at = "3"'),
    # [method]
    Damage(19, 'name = "on"', "method.name", "unknown method 'on'; allowed: ", "did you mean 'one'?"),
    Damage(19, "name = 1", "method.name", "method.name must be one of "),
    Damage(20, "temperatur = 3.0", "method.temperatur", "in [method]; 'one' knows: temperature, ", "'temperature'?"),
    Damage(20, "temperature = 0", "method.temperature", "must be a number above 0, not 0"),
    Damage(20, "temperature = inf", "method.temperature", "must be finite, not inf"),
    Damage(20, 'temperature = "3"', "method.temperature", 'not "3"', "write temperature = 3"),
    Damage(20, "temperature.value = 3", "method.temperature", "not a table"),
    Damage(21, "rampup_epochs = 80", "method.rampup_epochs", "longer than the run of 40 epochs", "a fraction"),
    Damage(21, "rampup_epochs = -1", "method.rampup_epochs", "must be an integer of 0 or more"),
    Damage(21, "rampup_epochs = 80.0", "method.rampup_epochs", "not 80.0", "write rampup_epochs = 80"),
    Damage(21, "gate = 'on'", "method.gate", "must be true or false", "write gate = true"),
    Damage(21, "epochs = 3", "method.epochs", "unknown key 'epochs' in [method]", "'epochs' belongs in [train]"),
    # [train]
    Damage(24, 'epochs = "many"', "train.epochs", 'must be an integer of 1 or more, not "many"'),
    Damage(24, 'epochs = "40"', "train.epochs", 'not "40"', "write epochs = 40"),
    Damage(24, "epochs = 0", "train.epochs", "must be an integer of 1 or more, not 0"),
    Damage(24, "epochs = 100001", "train.epochs", "must be an integer from 1 to 100000, not 100001"),
    Damage(24, "epochs = 40.0", "train.epochs", "not 40.0", "write epochs = 40"),
    Damage(24, "epochs = true", "train.epochs", "must be an integer of 1 or more, not true"),
    Damage(24, "epochs = [40]", "train.epochs", "not [40]", "write epochs = 40"),
    Damage(24, "epochs = 2024-01-01", "train.epochs", "not 2024-01-01"),
    Damage(24, "epoch = 40", "train.epoch", "unknown key 'epoch' in [train]; allowed: epochs, ", "mean 'epochs'?"),
    Damage(25, "batch_size = 1", "train.batch_size", "must be an integer of 2 or more, not 1"),
    Damage(25, "batch_size = 1e3", "train.batch_size", "not 1000.0", "write batch_size = 1000"),
    Damage(25, "batch-size = 128", "train.batch-size", "unknown key 'batch-size' in [train]", "'batch_size'?"),
    Damage(25, f"batch_size = 1{'0' * 50}", "train.batch_size", "not a number of more than 40 digits"),
    Damage(26, "seed = -1", "train.seed", "must be an integer of 0 or more, not -1"),
    Damage(26, "seed = 2147483648", "train.seed", "below 2147483648, not 2147483648"),
    Damage(27, 'precision = "fp8"', "train.precision", "must be one of auto, fp32, bf16, fp16"),
    Damage(27, 'precision = "FP16"', "train.precision", 'not "FP16"', "did you mean 'fp16'?"),
    Damage(27, "precision = 32", "train.precision", "not 32"),
    Damage(28, "label_smoothing = 1", "train.label_smoothing", "must be a number of 0 or more and below 1, not 1"),
    Damage(28, "label_smoothing = -0.1", "train.label_smoothing", "not -0.1"),
    Damage(29, "clip_norm = -1.0", "train.clip_norm", "must be a number of 0 or more, not -1.0"),
    Damage(29, "clip_norm = inf", "train.clip_norm", "must be finite, not inf"),
    Damage(29, "lr = 0.1", "train.lr", "unknown key 'lr' in [train]", "'lr' belongs in [optimizer]"),
    Damage(30, "checkpoint_epochs = 0", "train.checkpoint_epochs", "must be an integer of 1 or more, not 0"),
    # [optimizer]
    Damage(33, 'name = "sdg"', "optimizer.name", "unknown optimizer 'sdg'; allowed: sgd, adamw", "did you mean 'sgd'?"),
    Damage(33, "name = {}", "optimizer.name", "must be one of sgd, adamw, not a table"),
    Damage(34, "lr = 0", "optimizer.lr", "must be a number above 0, not 0"),
    Damage(34, "lr = -inf", "optimizer.lr", "must be finite, not -inf"),
    Damage(34, 'lr = "0.1"', "optimizer.lr", 'not "0.1"', "write lr = 0.1"),
    Damage(35, "momentum = 1.0", "optimizer.momentum", "must be a number of 0 or more and below 1, not 1.0"),
    Damage(35, "momentum = 0", "optimizer.momentum", "true needs optimizer.momentum above 0", "nesterov = false"),
    Damage(36, 'nesterov = "True"', "optimizer.nesterov", "must be true or false", "write nesterov = true"),
    Damage(36, "betas = [0.9, 0.999]", "optimizer.betas", "'sgd' knows: lr", "is a key of name = \"adamw\""),
    Damage(37, "weight_decay = -1e-4", "optimizer.weight_decay", "must be a number of 0 or more"),
    Damage(37, f"weight_decay = 1{'0' * 400}", "optimizer.weight_decay", "not a number of more than 40 digits"),
    # [schedule]
    Damage(40, 'name = "cosin"', "schedule.name", "unknown schedule 'cosin'; allowed: step, cosine, ", "'cosine'?"),
    Damage(41, "milestones = 0.5", "schedule.milestones", "must be a list, each item", "write milestones = [0.5]"),
    Damage(41, "milestones = [0.5, 1.5]", "schedule.milestones", "not [0.5, 1.5]"),
    Damage(41, "milestones = [0, 20]", "schedule.milestones", "each item an integer of 1 or more, or a"),
    Damage(41, "milestones = [0.5, nan]", "schedule.milestones", "must be finite, not [0.5, nan]"),
    Damage(41, "milestones = [20, 40]", "schedule.milestones", "before the end of the run of 40 epochs", "fractions"),
    Damage(41, "milestones = [150, 225]", "schedule.milestones", "not at 150, 225", "milestones = [0.5, 0.75]"),
    Damage(41, "milestones = [30, 20]", "schedule.milestones", "must rise", "write milestones = [20, 30]"),
    Damage(41, "milestones = [0.5, 0.5]", "schedule.milestones", "0.5 repeats 0.5", "write milestones = [0.5]"),
    Damage(41, "milestones = [0.5, 20]", "schedule.milestones", "must rise", "write milestones = [20]"),
    Damage(41, "final_lr = 0.1", "schedule.final_lr", "'step' knows: mil", "is a key of name = \"cosine\""),
    Damage(42, "gamma = 0", "schedule.gamma", "must be a number above 0 and at most 1, not 0"),
    Damage(42, "gama = 0.1", "schedule.gama", "unknown key 'gama' in [schedule]", "did you mean 'gamma'?"),
    Damage(43, "warmup_epochs = 40", "schedule.warmup_epochs", "must be shorter than the run of 40", "a fraction"),
    Damage(43, "warmup_epochs = 1.5", "schedule.warmup_epochs", "not 1.5"),
    # not TOML
    Damage(24, "epochs =", "train.epochs", "a value is missing here"),
    Damage(24, "epochs 40", "train.epochs", "expected '=' after a key"),
    Damage(24, "epochs = 40 50", "train.epochs", "expected newline or end of document"),
    Damage(24, "epochs = 1e", "train.epochs", "not TOML"),
    Damage(24, "epochs = 007", "train.epochs", "not TOML"),
    Damage(24, f"epochs = {'9' * 5000}", "train.epochs", "a number with too many digits"),
    Damage(11, "architecture = resnet32", "model.architecture", "a value is missing", 'write "resnet32", in quotes'),
    Damage(11, 'architecture = "resnet32', "model.architecture", "not TOML"),
    Damage(6, "download = True", "data.download", "not spelled as TOML asks", "write true, in small letters"),
    Damage(25, "epochs = 30", "train.epochs", "train.epochs is there twice, first on line 24", "keep one of them"),
    Damage(32, "[train]", "train", "[train] is there twice, first on line 23", "keep one of them"),
    Damage(41, f"milestones = {'[' * 5000}", "", "nested too deeply"),
    Damage(24, f"epochs{'.x' * 5000} = 1", "epochs", "too many dots"),
    Damage(38, "[a" + ".x" * 40 + "]", "a", "too many dots"),
]  # fmt: skip


def damage_id(damage: Damage) -> str:
    return f"{damage.line}: {damage.text[:40]}"


def test_the_undamaged_recipe_is_taken_as_it_stands() -> None:
    written, loaded = tomllib.loads(BASE), tomllib.loads(load(write("base.toml", BASE)).to_toml())
    assert set(loaded) == set(written) | {"tracking"}
    for section, value in written.items():
        # Keys that the file leaves out are there as well, with their defaults.
        assert loaded[section] == (loaded[section] | value if isinstance(value, dict) else value)
    assert loaded["method"] == written["method"] | {"distillation": True, "gate": True, "detach_target": True}


@pytest.mark.parametrize("damage", DAMAGES, ids=damage_id)
def test_a_damaged_line_is_named_with_its_key_what_is_allowed_and_a_hint(damage: Damage) -> None:
    fault = only_fault(with_line(BASE, damage.line, damage.text))
    assert fault.place == f"base.toml:{damage.line}"
    assert fault.key == damage.key
    assert damage.problem in fault.problem
    if damage.hint is not None:
        assert damage.hint in (fault.hint or "")


def test_there_are_at_least_sixty_damages_and_every_key_of_the_recipe_is_among_them() -> None:
    assert len(DAMAGES) >= 60
    damaged = {damage.key for damage in DAMAGES}
    tree = tomllib.loads(BASE)
    assert {f"{section}.{key}" for section, keys in tree.items() if section != "name" for key in keys} <= damaged


def as_override(damage: Damage) -> str | None:
    """The damage as a `--set`, where it is one key's bad value."""
    key, equals, value = damage.text.partition(" = ")
    section = damage.key.rpartition(".")[0]
    if not equals or not value or "\\u0000" in value or damage.key.rpartition(".")[2] != key:
        return None
    return f"{section}.{key}={value}" if section else f"{key}={value}"


# What --set takes for text: what is no TOML (there another fault, or none), and dates.
NO_OVERRIDE = ("True", "resnet32", "30", "40 50", "1e", "007", '"resnet32', "9" * 5000, "2024-01-01")
OVERRIDES = [
    (damage, typed)
    for damage in DAMAGES
    if (typed := as_override(damage)) and typed.partition("=")[2] not in NO_OVERRIDE and "[[[" not in typed
]


@pytest.mark.parametrize(("damage", "typed"), OVERRIDES, ids=[typed[:50] for _, typed in OVERRIDES])
def test_a_bad_override_is_named_as_it_was_typed(damage: Damage, typed: str) -> None:
    fault = only_fault(BASE, [typed])
    assert fault.place == f"--set {typed}"
    assert fault.key == damage.key
    assert damage.problem in fault.problem


def test_all_faults_are_told_at_once_in_the_order_of_the_file() -> None:
    text = BASE
    damaged: dict[int, Damage] = {}
    for damage in DAMAGES:
        # A section whose name is unknown has no known keys, and what is no TOML has no sections.
        toml = with_line(BASE, damage.line, damage.text)
        try:
            tomllib.loads(toml)
        except (ValueError, RecursionError):
            continue
        if damage.line not in damaged and damage.line not in (2, 19, 24, 33, 38, 40) and "twice" not in damage.problem:
            damaged[damage.line] = damage
            text = with_line(text, damage.line, damage.text)
    found = faults(text, ["group.kind=3", "shedule.gamma=1"])
    assert len(damaged) >= 20
    expected = [(f"base.toml:{line}", damaged[line].key) for line in sorted(damaged) if line != 14]
    expected += [("--set group.kind=3", "group.kind"), ("--set shedule.gamma=1", "shedule")]
    assert [(fault.place, fault.key) for fault in found] == expected


def test_the_error_prints_the_count_and_every_fault_with_place_and_hint() -> None:
    text = BASE.replace("epochs = 40", 'epochs = "many"').replace("temperature", "temperatur")
    error = refused(write("base.toml", text))
    assert str(error).split("\n") == [
        "base.toml: 2 faults in the recipe",
        "  base.toml:20: unknown key 'temperatur' in [method]; 'one' knows: temperature, rampup_epochs, distillation, "
        "gate, detach_target (hint: did you mean 'temperature'?)",
        '  base.toml:24: train.epochs must be an integer of 1 or more, not "many"',
    ]
    assert refused(write("base.toml", BASE.replace("40", "0"))).problem == "base.toml: 1 fault in the recipe"


def test_no_message_speaks_the_validator_s_jargon() -> None:
    for damage in DAMAGES:
        for fault in faults(with_line(BASE, damage.line, damage.text)):
            for jargon in ("pydantic", "http", "Input should", "validation error", "constrained", "type=", "Traceback"):
                assert jargon not in str(fault)
            assert len(str(fault)) < 600
            assert "\n" not in str(fault)


# ----------------------------------------------------------------------------------------- faults across keys, sections


@pytest.mark.parametrize("key", ["data.dataset", "model.architecture", "method.name", "train.epochs"])
def test_a_missing_required_key_is_told_at_its_section(key: str) -> None:
    section, _, name = key.partition(".")
    lines = SMALL.split("\n")
    header = lines.index(f"[{section}]")
    fault = only_fault("\n".join([*lines[: header + 1], f"# no {name}", *lines[header + 2 :]]))
    assert (fault.place, fault.key) == (f"base.toml:{header + 1}", key)
    assert f"{key} is missing; it must be " in fault.problem
    assert fault.hint == f"add {name} = ... under [{section}]"
    fault = only_fault("\n".join(lines[:header] + lines[header + 2 :]))
    assert (fault.place, fault.key) == ("base.toml", key)


def test_a_section_said_twice_in_two_ways_names_the_section() -> None:
    fault = only_fault(SMALL.replace("[data]", "train.seed = 3\n[data]"))
    assert (fault.place, fault.key) == ("base.toml:8", "train")
    assert fault.problem == "[train] is there twice, first on line 1"


def test_an_empty_recipe_misses_every_required_key() -> None:
    found = faults("")
    assert [fault.key for fault in found] == ["data.dataset", "model.architecture", "method.name", "train.epochs"]
    assert {fault.place for fault in found} == {"base.toml"}


def test_a_misspelled_section_is_one_fault_with_the_nearest_name() -> None:
    fault = only_fault(SMALL.replace("[train]", "[trian]"))
    assert (fault.place, fault.key, fault.hint) == ("base.toml:7", "trian", "did you mean 'train'?")
    assert fault.problem.startswith("unknown section [trian]; allowed: [data], [model], ")


def test_a_misspelled_section_hides_no_fault_of_the_real_one() -> None:
    found = faults(SMALL + "batch_size = 1\n[trian]\n")
    assert [fault.key for fault in found] == ["train.batch_size", "trian"]


def test_a_misspelled_method_name_key_is_reported() -> None:
    fault = only_fault(SMALL.replace("name =", "nam ="))
    assert (fault.key, fault.hint) == ("method.name", "did you mean 'name' where it says 'nam'?")


@pytest.mark.parametrize("section", ["data", "model", "group", "method", "train", "optimizer", "schedule"])
def test_a_section_that_is_a_value_or_a_list_is_a_fault(section: str) -> None:
    rest = "\n".join(line for line in SMALL.split("\n") if line)
    tree = {key: value for key, value in tomllib.loads(rest).items() if key != section}
    for text, shown in ((f"{section} = 5\n", "5"), (f"[[{section}]]\n", f"[[{section}]]")):
        body = text + tomli_w.dumps(tree) if shown == "5" else tomli_w.dumps(tree) + text
        found = faults(body)
        fault = next(fault for fault in found if fault.key == section)
        assert fault.place == f"base.toml:{line_of(body, text.strip())}"
        assert fault.problem == f"{section} must be a section, not {shown}"
        assert fault.hint == f"write [{section}] and its keys below"


def test_an_unknown_list_of_sections_is_a_fault() -> None:
    assert only_fault(SMALL + "[[teachers]]\n").problem.startswith("unknown section [[teachers]]; allowed: ")


def test_split_at_with_networks_is_a_fault_because_nothing_is_shared() -> None:
    fault = only_fault(BASE.replace('kind = "branches"', 'kind = "networks"'))
    assert (fault.place, fault.key) == ("base.toml:16", "group.split_at")
    assert "nothing is shared between networks" in fault.problem
    assert fault.hint == 'leave split_at out, or set kind = "branches"'


def test_students_outside_the_method_s_limits_are_a_fault() -> None:
    limited = [name for name in methods.names() if methods.options_model(name).max_students is not None]
    assert limited
    for name in limited:
        options = methods.options_model(name)
        text = SMALL.replace('"one"', f'"{name}"') + f"[group]\nstudents = {(options.max_students or 0) + 1}\n"
        found = [fault for fault in faults(text) if fault.key == "group.students"]
        assert [fault.place for fault in found] == ["base.toml:10"]
        assert f"for method {name!r}, not " in found[0].problem
        assert found[0].hint == f"write students = {options.default_students}"


class PickyOptions(MethodOptions):
    """A method of few groups, as the real ones may be."""

    flavour: str = "plain"

    default_kind: ClassVar[GroupKind] = "networks"
    default_students: ClassVar[int] = 4
    allowed_kinds: ClassVar[tuple[GroupKind, ...]] = ("networks",)
    min_students: ClassVar[int] = 2
    max_students: ClassVar[int | None] = 6

    def faults(self, kind: GroupKind, students: int) -> Iterator[tuple[str, str, str | None]]:
        if students % 2:
            yield "group.students", f"'picky' pairs its students; {students} is odd", "set group.students = 4"


@pytest.fixture
def picky(monkeypatch: pytest.MonkeyPatch) -> str:
    """A recipe for a method whose limits are all in use."""
    real_names, real_model = methods.names, methods.options_model
    monkeypatch.setattr(methods, "names", lambda: (*real_names(), "picky"))
    monkeypatch.setattr(methods, "options_model", lambda name: PickyOptions if name == "picky" else real_model(name))
    return SMALL.replace('"one"', '"picky"')


def test_the_group_s_defaults_are_the_method_s_own(picky: str) -> None:
    loaded = load(write("base.toml", picky))
    assert (loaded.group.kind, loaded.group.students, loaded.group.split_at) == ("networks", 4, None)
    assert "split_at" not in loaded.to_toml()


def test_a_kind_that_the_method_does_not_allow_is_a_fault(picky: str) -> None:
    fault = only_fault(picky, ["group.kind=branches"])
    assert fault.problem == "group.kind must be networks for method 'picky', not \"branches\""
    assert fault.hint == "write --set group.kind='\"networks\"'"


@pytest.mark.parametrize("students", [1, 7])
def test_too_few_or_too_many_students_are_a_fault_with_the_range(picky: str, students: int) -> None:
    fault = only_fault(picky + f"[group]\nstudents = {students}\n")
    assert (fault.place, fault.key) == ("base.toml:10", "group.students")
    assert fault.problem == f"group.students must be 2 to 6 for method 'picky', not {students}"
    assert fault.hint == "write students = 4"


def test_the_method_s_own_faults_are_placed_and_told_with_the_others(picky: str) -> None:
    found = faults(picky + "[group]\nstudents = 3\n", ["train.seed=-1"])
    assert [(fault.place, fault.key) for fault in found] == [
        ("base.toml:10", "group.students"),
        ("--set train.seed=-1", "train.seed"),
    ]
    assert found[0].hint == "set group.students = 4"


def test_a_real_method_s_own_fault_has_the_place_of_its_key() -> None:
    fault = only_fault(BASE.replace("students = 3", "students = 1"), ["method.gate=false"])
    assert (fault.place, fault.key) == ("base.toml:15", "group.students")


def test_nesterov_by_default_without_momentum_is_a_fault_and_the_hint_mends_it() -> None:
    text = SMALL + "[optimizer]\nmomentum = 0\n"
    fault = only_fault(text)
    assert (fault.place, fault.key, fault.hint) == ("base.toml:10", "optimizer.momentum", "write nesterov = false")
    assert load(write("base.toml", text + "nesterov = false\n")).optimizer.lr == 0.1


def test_a_ramp_may_be_as_long_as_the_run_but_not_longer() -> None:
    write("base.toml", BASE)
    load("base.toml", ["method.rampup_epochs=40"])
    fault = refused("base.toml", ["method.rampup_epochs=41"]).faults[0]
    assert fault.hint == "write a fraction of the run, such as rampup_epochs = 0.25"


def test_a_shorter_run_by_override_reports_counts_of_epochs_that_no_longer_fit() -> None:
    text = with_line(with_line(BASE, 21, "rampup_epochs = 20"), 41, "milestones = [20, 30]")
    found = faults(text, ["train.epochs=2"])
    assert [(fault.place, fault.key) for fault in found] == [
        ("base.toml:21", "method.rampup_epochs"),
        ("base.toml:41", "schedule.milestones"),
        ("base.toml:43", "schedule.warmup_epochs"),
    ]


@pytest.mark.parametrize("epochs", [1, 2, 3])
def test_fractions_fit_any_run_even_where_they_round_to_one_epoch(epochs: int) -> None:
    write("base.toml", BASE)
    loaded = load(
        "base.toml", [f"train.epochs={epochs}", "schedule.warmup_epochs=0.9", "schedule.milestones=[0.8,0.9]"]
    )
    assert loaded.train.epochs == epochs


@pytest.mark.parametrize(
    ("value", "epochs", "expected"),
    [(80, 300, 80), (0, 300, 0), (0.5, 300, 150), (0.75, 300, 225), (0.0, 7, 0), (1, 300, 1), (0.29, 100, 29)],
)
def test_an_int_counts_epochs_and_a_float_is_a_fraction_of_the_run(
    value: int | float, epochs: int, expected: int
) -> None:
    resolved = resolve_epochs(value, epochs)
    assert resolved == expected
    assert type(resolved) is int


def test_an_image_folder_may_say_its_size_and_gets_one_without_being_looked_at() -> None:
    text = SMALL.replace("digits", "image-folder")
    loaded = load(write("base.toml", text))
    assert (loaded.data.image_size, loaded.data.augment) == (32, "crop-flip")
    assert load("base.toml", ["data.image_size=64"]).data.image_size == 64
    assert refused("base.toml", ["data.image_size=4"]).faults[0].problem == (
        "data.image_size must be an integer from 8 to 1024, not 4"
    )
    assert "image_size = 32" in loaded.to_toml()
    assert "image_size" not in load(write("base.toml", SMALL)).to_toml()


# -------------------------------------------------------------------------------------------------------------- values


def test_what_is_left_out_gets_the_default_of_its_data_set_architecture_and_method() -> None:
    loaded = load(write("base.toml", SMALL))
    assert loaded.name == "base"
    assert loaded.data.augment == datasets.spec("digits", Path("data")).default_augment
    assert loaded.group.split_at == registry.default_split("resnet32")
    options = methods.options_model("one")
    assert (loaded.group.kind, loaded.group.students) == (options.default_kind, options.default_students)
    assert loaded.optimizer == recipe.SgdSection()
    assert loaded.schedule == recipe.StepSection()
    assert loaded.method == options(name="one")


def test_optimizer_and_schedule_are_the_models_of_their_names() -> None:
    text = SMALL + '[optimizer]\nname = "adamw"\nbetas = [0.8, 0.9]\n[schedule]\nname = "cosine"\nfinal_lr = 1e-5\n'
    loaded = load(write("base.toml", text))
    assert loaded.optimizer == AdamWSection(lr=1e-3, betas=(0.8, 0.9))
    assert loaded.schedule == CosineSection(final_lr=1e-5)
    assert only_fault(text.replace("[0.8, 0.9]", "[0.8]")).problem == (
        "optimizer.betas must be a list of 2, each item a number of 0 or more and below 1, not [0.8]"
    )


def test_every_method_and_every_architecture_loads_with_its_defaults() -> None:
    write("base.toml", SMALL)
    for method in methods.names():
        teacher = ["teacher.run=somewhere"] if methods.options_model(method).needs_teacher else []
        assert load("base.toml", [f"method.name={method}", *teacher]).method.name == method
    for architecture in registry.names():
        assert load("base.toml", [f"model.architecture={architecture}"]).model.architecture == architecture
    for dataset in datasets.names():
        assert load("base.toml", [f"data.dataset={dataset}"]).data.dataset == dataset


def test_a_recipe_cannot_be_changed() -> None:
    loaded = load(write("base.toml", SMALL))
    with pytest.raises(ValueError, match="frozen"):
        loaded.name = "other"  # type: ignore[misc]
    with pytest.raises(ValueError, match="frozen"):
        loaded.train.epochs = 3  # type: ignore[misc]


def test_the_file_s_name_is_the_recipe_s_unless_it_cannot_be() -> None:
    assert load(write("wide_2.1.toml", SMALL)).name == "wide_2.1"
    fault = refused(write("my recipe (2).toml", SMALL)).faults[0]
    assert (fault.place, fault.key) == ("my recipe (2).toml", "name")
    assert fault.hint == 'write name = "my_recipe_2_" at the top of the file'
    assert load("my recipe (2).toml", ["name=mine"]).name == "mine"


def test_every_key_of_every_section_is_described_for_the_reference() -> None:
    sections: list[type[BaseModel]] = [
        recipe.DataSection, recipe.ModelSection, recipe.GroupSection, recipe.TrainSection, recipe.SgdSection,
        AdamWSection, recipe.StepSection, CosineSection, recipe.ConstantSection,
    ]  # fmt: skip
    for section in sections:
        for name, field in section.model_fields.items():
            assert field.description, (section, name)
            assert "a different value" not in recipe.describe(field), (section, name)


def test_every_key_of_every_method_can_be_put_into_words() -> None:
    for method in methods.names():
        for name, field in methods.options_model(method).model_fields.items():
            assert "a different value" not in recipe.describe(field), (method, name)


# -------------------------------------------------------------------------------------------------------------- places


def test_a_key_s_place_is_the_line_or_override_that_set_it_or_its_section_or_the_file() -> None:
    loaded = load(write("base.toml", SMALL), ["method.temperature=4", "optimizer.lr=0.05"])
    assert place(loaded, "train.epochs") == "base.toml:8"
    assert place(loaded, "train.seed") == "base.toml:7"
    assert place(loaded, "method.temperature") == "--set method.temperature=4"
    assert place(loaded, "method.gate") == "base.toml:5"
    assert place(loaded, "schedule.gamma") == "base.toml"
    assert place(loaded, "name") == "base.toml"


def test_files_outside_the_working_folder_are_named_by_their_full_path(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "here").mkdir()
    file = write("base.toml", SMALL + "epoch = 1\n").absolute()
    assert refused(file).faults[0].place == "base.toml:9"
    monkeypatch.chdir(folder / "here")
    assert refused(file).faults[0].place == f"{file}:9"


def test_dotted_keys_quoted_keys_and_inline_tables_have_places() -> None:
    text = 'data.dataset = "digits"\nmodel = { architecture = "resnet31" }\nmethod."name" = "one"\n'
    text += "train.epochs = 'x' # comment = 1\n\"tr ain\" = 1\n"
    assert [(fault.place, fault.key) for fault in faults(text)] == [
        ("base.toml:2", "model.architecture"),
        ("base.toml:4", "train.epochs"),
        ("base.toml:5", "tr ain"),
    ]


# ----------------------------------------------------------------------------------------------------------- overrides


def test_overrides_are_toml_or_failing_that_plain_text() -> None:
    write("base.toml", BASE)
    loaded = load(
        "base.toml",
        [
            "model.architecture=resnet20", 'data.root="with spaces" # note', "schedule.milestones=[10, 0.5]",
            "train = { seed = 7, clip_norm = 2 }", " optimizer.lr = 1e-2 ", 'method."temperature"=4', "name=007",
        ],
    )  # fmt: skip
    assert loaded.model.architecture == "resnet20"
    assert loaded.data.root == "with spaces"
    assert loaded.schedule == recipe.StepSection(milestones=(10, 0.5), warmup_epochs=2)
    assert (loaded.train.seed, loaded.train.clip_norm, loaded.train.epochs) == (7, 2.0, 40)
    assert loaded.optimizer.lr == 0.01
    assert loaded.name == "007"
    assert place(loaded, "train.seed") == "--set train = { seed = 7, clip_norm = 2 }"
    assert place(loaded, "train.epochs") == "base.toml:24"


@pytest.mark.parametrize("text", ["2024-01-01", "12:30:00", "1\nb = 1", "[half", "it's", "x=y"])
def test_an_override_that_is_not_one_value_is_text(text: str) -> None:
    assert load(write("base.toml", SMALL), [f"data.root={text}"]).data.root == text


def test_the_later_of_two_overrides_of_one_key_counts() -> None:
    loaded = load(write("base.toml", SMALL), ["train.epochs=5", "train.epochs=6"])
    assert loaded.train.epochs == 6
    assert place(loaded, "train.epochs") == "--set train.epochs=6"


@pytest.mark.parametrize(
    "typed",
    ["", "train.epochs", "=4", ".=4", "train.=4", "train..epochs=4", ".epochs=4", "train epochs=4", "a b", "ä=1"],
)
def test_a_malformed_override_is_a_fault_as_typed(typed: str) -> None:
    fault = only_fault(SMALL, [typed])
    assert (fault.place, fault.key) == (f"--set {typed}", "")
    assert fault.problem == "must read KEY=VALUE, with the key's section and a dot before the key"
    assert fault.hint == "write it like --set method.temperature=4"


@pytest.mark.parametrize(
    ("typed", "problem"),
    [
        ("train.epochs=", "train.epochs is given no value"),
        ("extends=other.toml", "extends can only be said in the recipe's file"),
        ("epochs=4", "unknown key 'epochs' outside of any section"),
        ("trian.epochs=4", "unknown section [trian]"),
        ("train=4", "train must be a section, not 4"),
        ("train.epochs.x=4", "must be an integer of 1 or more, not a table"),
        ("a" + ".a" * 50 + "=1", "too many dots in the key"),
        ("method.temperature=" + "[" * 3000, "must be a number above 0"),
        ("data.root=\udcff", "not valid UTF-8 text"),
    ],
)
def test_a_wrong_override_is_told_as_typed(typed: str, problem: str) -> None:
    fault = next(fault for fault in faults(SMALL, [typed]) if problem in fault.problem)
    assert fault.place == f"--set {typed.encode(errors='backslashreplace').decode()}"
    str(fault).encode()


def test_overrides_that_contradict_each_other_are_a_fault() -> None:
    fault = only_fault(SMALL, ["train.seed=1", "train.seed.x=1"])
    assert fault.place == "--set train.seed.x=1"
    assert "contradicts an earlier --set, which gave train.seed a value" in fault.problem


def test_a_hint_for_an_override_can_be_pasted() -> None:
    fault = only_fault(SMALL, ["train.batch_size=64.0"])
    assert fault.hint == "write --set train.batch_size=64"
    assert load("base.toml", ["train.batch_size=64"]).train.batch_size == 64


# ------------------------------------------------------------------------------------------------------------- extends


def test_an_extended_recipe_is_merged_table_by_table_and_every_key_keeps_its_place() -> None:
    Path("sub").mkdir()
    write("sub/parent.toml", BASE)
    write("middle.toml", 'extends = "sub/parent.toml"\n[train]\nbatch_size = 64\n')
    write("child.toml", 'extends = "middle.toml"\n[train]\nepochs = 80\n[data]\naugment = "none"\n')
    loaded = load("child.toml", ["train.seed=3"])
    assert loaded.name == "child"
    assert (loaded.train.epochs, loaded.train.batch_size, loaded.train.seed) == (80, 64, 3)
    assert (loaded.data.augment, loaded.data.validation) == ("none", 0.1)
    assert place(loaded, "train.epochs") == "child.toml:3"
    assert place(loaded, "train.batch_size") == "middle.toml:3"
    assert place(loaded, "train.clip_norm") == f"{Path('sub/parent.toml')}:29"
    assert place(loaded, "train.seed") == "--set train.seed=3"


def test_faults_are_found_in_every_file_of_a_chain_the_named_one_first() -> None:
    write("parent.toml", BASE.replace("seed = 0", "seed = -1"))
    write("child.toml", 'extends = "parent.toml"\n[train]\nepochs = 0\n')
    error = refused("child.toml", ["train.batch_size=1"])
    assert error.problem == "child.toml: 3 faults in the recipe"
    assert [fault.place for fault in error.faults] == ["child.toml:3", "parent.toml:26", "--set train.batch_size=1"]


def test_another_method_optimizer_or_schedule_drops_the_keys_that_it_does_not_know() -> None:
    write("parent.toml", BASE)
    write(
        "child.toml",
        'extends = "parent.toml"\n[method]\nname = "baseline"\n[group]\nstudents = 1\n'
        '[optimizer]\nname = "adamw"\n[schedule]\nname = "cosine"\n',
    )
    loaded = load("child.toml")
    assert loaded.method == methods.options_model("baseline")(name="baseline")
    # What both know is merged: lr and weight_decay, warmup_epochs.
    assert loaded.optimizer == AdamWSection(lr=0.1, weight_decay=5e-4)
    assert loaded.schedule == CosineSection(warmup_epochs=2)
    assert place(loaded, "schedule.warmup_epochs") == "parent.toml:43"


def test_the_same_name_merges_and_an_override_switches_like_a_file() -> None:
    write("parent.toml", BASE)
    write("child.toml", 'extends = "parent.toml"\n[method]\nname = "one"\ngate = false\n')
    loaded = load("child.toml")
    assert loaded.method.model_dump()["temperature"] == 3.0
    assert loaded.method.model_dump()["rampup_epochs"] == 0.25
    assert load("child.toml", ["schedule.name=constant"]).schedule == recipe.ConstantSection(warmup_epochs=2)


def test_a_default_name_counts_as_the_name_that_is_switched_from() -> None:
    write("parent.toml", SMALL + "[schedule]\nmilestones = [0.5]\n[optimizer]\nmomentum = 0.8\n")
    write("child.toml", 'extends = "parent.toml"\n[schedule]\nname = "cosine"\n[optimizer]\nname = "adamw"\n')
    assert load("child.toml").schedule == CosineSection()


def test_a_switch_keeps_keys_that_are_faults_of_their_own() -> None:
    write("parent.toml", BASE.replace("gamma", "gama"))
    write("child.toml", 'extends = "parent.toml"\n[schedule]\nname = "cosine"\n')
    assert [(fault.place, fault.key) for fault in refused("child.toml").faults] == [("parent.toml:42", "schedule.gama")]


def test_an_override_given_beside_a_switch_is_not_dropped_but_reported() -> None:
    write("base.toml", BASE)
    overrides = ["schedule.gamma=0.2", "schedule.name=cosine"]
    for order in (overrides, overrides[::-1]):
        error = refused("base.toml", order)
        assert [fault.place for fault in error.faults] == ["--set schedule.gamma=0.2"]
        assert error.faults[0].hint == "'gamma' is a key of name = \"step\""


def test_recipes_that_extend_each_other_are_refused_with_the_circle() -> None:
    write("a.toml", '# first\nextends = "b.toml"\n')
    write("b.toml", 'extends = "a.toml"\n')
    fault = refused("a.toml").faults[0]
    assert (fault.place, fault.key) == ("b.toml:1", "extends")
    assert fault.problem == "extends leads back to itself: a.toml -> b.toml -> a.toml"
    write("self.toml", 'extends = "self.toml"\n')
    assert "self.toml -> self.toml" in refused("self.toml").faults[0].problem


@pytest.mark.parametrize(
    ("value", "problem", "hint"),
    [
        ('"parnet.toml"', "which is neither a file (looked for parnet.toml) nor a built-in recipe", "'parent.toml'?"),
        ("5", "must be the path of a recipe or the name of a built-in one, not 5", 'write extends = "one.toml"'),
        ('""', 'not ""', 'write extends = "one.toml"'),
        ('["parent.toml"]', 'not ["parent.toml"]', None),
        ('"."', "which is no plain file", None),
        (f'"{"x" * 5000}"', "neither a file", None),
        ('"a\\u0000b"', "neither a file", None),
    ],
)
def test_a_wrong_extends_is_told_at_its_line(value: str, problem: str, hint: str | None) -> None:
    write("parent.toml", BASE)
    fault = refused(write("child.toml", f"\nextends = {value}\n")).faults[0]
    assert (fault.place, fault.key) == ("child.toml:2", "extends")
    assert problem in fault.problem
    assert hint is None or hint in (fault.hint or "")


def test_a_parent_that_is_not_toml_is_named_itself() -> None:
    write("parent.toml", "\n[train\n")
    error = refused(write("child.toml", 'extends = "parent.toml"\n'))
    assert error.faults[0].place == "parent.toml:2"


# ------------------------------------------------------------------------------------------------ files that are wrong


def test_a_missing_recipe_is_refused_with_the_nearest_file_and_all_built_in_names(
    monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    monkeypatch.setattr(recipe, "builtin", lambda: {"one_resnet32": folder / "x", "okddip_vgg16": folder / "y"})
    error = refused("one_resnet23")
    assert "'one_resnet23', neither a file nor a built-in one" in error.problem
    assert "built-in recipes: one_resnet32, okddip_vgg16" in error.problem
    assert error.hint == "did you mean 'one_resnet32'?"
    write("mine.toml", SMALL)
    assert refused("mein.toml").hint == "did you mean 'mine.toml'?"
    assert refused("nowhere/one_resnet3.toml").hint == "did you mean 'one_resnet32'?"
    assert refused("zzz").hint is not None


def test_of_many_built_in_recipes_a_message_names_those_most_like_what_was_typed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    names = [f"{method}_resnet{depth}" for method in ("one", "dml") for depth in range(20, 120, 2)]
    monkeypatch.setattr(recipe, "builtin", lambda: dict.fromkeys([*names, "quickstart"], Path("x")))
    error = refused("one_resnet33")
    assert "of 101 built-in recipes, most like it are one_resnet" in error.problem
    assert len(error.problem) < 400
    assert "of 101 built-in recipes, for a first look: quickstart" in refused("zzz").problem


def test_a_folder_is_refused_and_a_run_s_recipe_is_hinted_at(folder: Path) -> None:
    Path("runs").mkdir()
    error = refused("runs")
    hint = "name the file in it, or have a recipe for the images in it written: distilkit init runs"
    assert (error.problem, error.hint) == ("'runs' is a folder, not a recipe", hint)
    write("runs/recipe.toml", SMALL)
    assert refused("runs").hint == f"its recipe is {Path('runs/recipe.toml')}"


@pytest.mark.parametrize("source", ["", "x" * 5000, "a\0b", "/", "..", "no/such/folder/x.toml"])
def test_an_impossible_path_is_refused(source: str) -> None:
    assert refused(source).problem


def test_a_file_that_is_not_utf_8_is_refused_with_the_line() -> None:
    Path("latin.toml").write_bytes(b'# ok\nname = "gr\xf6\xdfe"\n')
    fault = refused("latin.toml").faults[0]
    assert (fault.place, fault.problem) == ("latin.toml:2", "not UTF-8 text")
    assert fault.hint == "save the file as UTF-8"
    Path("wide.toml").write_bytes(SMALL.encode("utf-16"))
    assert "not UTF-8" in refused("wide.toml").faults[0].problem


def test_a_byte_order_mark_and_windows_line_ends_are_taken() -> None:
    Path("base.toml").write_bytes(SMALL.replace("\n", "\r\n").encode("utf-8-sig"))
    loaded = load("base.toml")
    assert place(loaded, "train.epochs") == "base.toml:8"


def test_a_huge_file_is_refused_without_being_parsed() -> None:
    error = refused(write("huge.toml", "#" * 1_000_001))
    assert error.problem == "huge.toml is larger than 1,000,000 bytes: no recipe"
    assert load(write("long.toml", SMALL + "#" * 900_000)).train.epochs == 40


@pytest.mark.parametrize(
    "text",
    [
        "a = " + "[" * 100_000,
        "a = " + "{a = " * 50_000,
        "a = {b" + ".b" * 100_000 + " = 1}",
        "a" + ".a" * 100_000 + " = 1",
        "[a" + ".a" * 100_000 + "]",
        "[" * 100_000,
    ],
    ids=["arrays", "inline tables", "dots inside", "dots", "header", "brackets"],
)
def test_nesting_without_end_is_refused_with_its_line(text: str) -> None:
    fault = refused(write("deep.toml", f"\n{text}\n")).faults[0]
    assert fault.place == "deep.toml:2"
    assert "too" in fault.problem


def test_an_unclosed_list_is_told_at_its_own_key() -> None:
    fault = only_fault(BASE.replace("[0.5, 0.75]", "[0.5, 0.75"))
    assert fault.key == "schedule.milestones"
    assert "not TOML" in fault.problem


# ------------------------------------------------------------------------------------------------------------ built in


def test_a_built_in_recipe_is_named_with_or_without_its_ending_and_a_file_goes_first(
    monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    (folder / "shipped").mkdir()
    shipped = write("shipped/one_digits.toml", SMALL)
    monkeypatch.setattr(recipe, "builtin", lambda: {"one_digits": shipped})
    assert load("one_digits") == load("one_digits.toml") == load(shipped)
    write("child.toml", 'extends = "one_digits"\n')
    assert load("child.toml").train.epochs == 40
    fault = refused(write("wrong.toml", 'extends = "one_digit"\n')).faults[0]
    assert fault.hint == "did you mean 'one_digits'?"
    Path("one_digits").mkdir()
    assert load("one_digits").train.epochs == 40
    write("one_digits.toml", SMALL.replace("40", "50"))
    assert load("one_digits.toml").train.epochs == 50


def test_recipes_are_found_in_folders_below_and_a_copy_there_hides_none(folder: Path) -> None:
    for path in ("shipped/one.toml", "shipped/cifar10/one_cifar10.toml", "shipped/a/one.toml", "shipped/a/b/c.toml"):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        write(path, SMALL)
    shipped = folder / "shipped"
    found = recipe.named_in(shipped)
    assert list(found.items()) == [
        ("one", shipped / "one.toml"),
        ("one_cifar10", shipped / "cifar10" / "one_cifar10.toml"),
        ("c", shipped / "a" / "b" / "c.toml"),
    ]


def test_a_recipe_in_a_folder_extends_a_built_in_one_by_its_name(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    (folder / "shipped" / "below").mkdir(parents=True)
    write("shipped/one.toml", SMALL)
    write("shipped/below/other.toml", 'extends = "one"\n[train]\nepochs = 41\n')
    monkeypatch.setattr(recipe, "builtin", lambda: recipe.named_in(folder / "shipped"))
    loaded = load("other")
    assert (loaded.name, loaded.train.epochs) == ("other", 41)
    assert place(loaded, "train.epochs") == "shipped/below/other.toml:3"
    assert place(loaded, "data.dataset").startswith("shipped/one.toml:")


# ---------------------------------------------------------------------------------------------------------- round trip


def fractions_or(counts: st.SearchStrategy[int], **bounds: Any) -> st.SearchStrategy[int | float]:
    return counts | st.floats(0, 1, exclude_max=True, **bounds)


def positive(**bounds: Any) -> st.SearchStrategy[float]:
    return st.floats(0, exclude_min=True, allow_nan=False, allow_infinity=False, **bounds)


def some(**keys: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    """Any selection of these keys."""
    return st.fixed_dictionaries({}, optional=keys)


EPOCHS = 50
texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=20)
warmups = fractions_or(st.integers(0, EPOCHS - 1))
milestones = st.lists(st.integers(1, EPOCHS - 1), unique=True, max_size=5).map(sorted) | st.lists(
    st.floats(0, 1, exclude_min=True, exclude_max=True), unique=True, max_size=5
).map(sorted)
optimizers = some(
    lr=positive(), momentum=st.floats(0.01, 1, exclude_max=True), nesterov=st.booleans(), weight_decay=positive()
) | some(lr=positive(), betas=st.lists(st.floats(0, 1, exclude_max=True), min_size=2, max_size=2), eps=positive()).map(
    lambda keys: {"name": "adamw", **keys}
)
schedules = (
    some(milestones=milestones, gamma=positive(max_value=1), warmup_epochs=warmups)
    | some(final_lr=positive(), warmup_epochs=warmups).map(lambda keys: {"name": "cosine", **keys})
    | some(warmup_epochs=warmups).map(lambda keys: {"name": "constant", **keys})
)
trees = st.fixed_dictionaries(
    {
        "data": some(
            root=texts,
            download=st.booleans(),
            validation=fractions_or(st.integers(0, 10_000)),
            augment=st.sampled_from(["none", "crop", "crop-flip", "random-resized-crop"]),
        ).flatmap(
            lambda keys: (
                st.sampled_from(datasets.names()).map(lambda name: {"dataset": name, **keys})
                | st.integers(8, 1024).map(lambda size: {"dataset": "image-folder", "image_size": size, **keys})
            )
        ),
        "model": st.sampled_from(registry.names()).map(lambda name: {"architecture": name}),
        "group": some(students=st.integers(2, 9)).flatmap(
            lambda keys: (
                some(split_at=texts).map(lambda split: {"kind": "branches", **keys, **split})
                | st.just({"kind": "networks", **keys})
            )
        ),
        "method": some(
            temperature=positive(), rampup_epochs=fractions_or(st.integers(0, EPOCHS)), detach_target=st.booleans()
        ).map(lambda keys: {"name": "one", **keys}),
        "train": some(
            batch_size=st.integers(2, 4096),
            seed=st.integers(0, 2**31 - 1),
            precision=st.sampled_from(["auto", "fp32", "bf16", "fp16"]),
            label_smoothing=st.floats(0, 1, exclude_max=True),
            clip_norm=positive(),
            checkpoint_epochs=st.integers(1, 100),
            evaluate_epochs=st.integers(1, 100),
        ).map(lambda keys: {"epochs": EPOCHS, **keys}),
    },
    optional={
        "name": st.from_regex(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,20}", fullmatch=True),
        "optimizer": optimizers,
        "schedule": schedules,
    },
)


def load_text(text: str, folder: Path, overrides: Sequence[str] = ()) -> Recipe:
    file = folder / "base.toml"
    file.write_bytes(text.encode())
    return load(file, overrides)


def attempt(text: str, folder: Path, overrides: Sequence[str] = ()) -> tuple[Any, UserError | None]:
    """Load, and give back the recipe or why there is none; any other exception fails the test."""
    try:
        return load_text(text, folder, overrides), None
    except UserError as error:
        return None, error


@settings(deadline=None, max_examples=150)
@given(trees)
def test_what_a_recipe_writes_of_itself_loads_as_an_equal_recipe(tree: dict[str, Any]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        loaded = load_text(tomli_w.dumps(tree), Path(folder))
        again = load_text(loaded.to_toml(), Path(folder))
    assert again == loaded
    assert (hash(again), again.digest(), again.to_toml()) == (hash(loaded), loaded.digest(), loaded.to_toml())
    assert again.model_dump() == loaded.model_dump()
    written = tomllib.loads(loaded.to_toml())
    for section, keys in tree.items():
        if section != "name":
            for key, value in keys.items():
                assert written[section][key] == value
                if isinstance(value, float):
                    assert isinstance(written[section][key], float)
                if key == "milestones":
                    assert [type(item) for item in written[section][key]] == [type(item) for item in value]
                if key in ("validation", "rampup_epochs", "warmup_epochs"):
                    assert type(written[section][key]) is type(value)


def test_a_written_recipe_has_its_sections_in_order_and_every_default() -> None:
    loaded = load(write("base.toml", SMALL))
    written = tomllib.loads(loaded.to_toml())
    assert list(written) == ["name", "data", "model", "group", "method", "train", "optimizer", "schedule", "tracking"]
    for section in ("data", "group", "method", "train", "optimizer", "schedule", "tracking"):
        fields = type(getattr(loaded, section)).model_fields
        without_value = {"image_size", "channels", "workers", "rand_augment_magnitude"}
        assert set(written[section]) == set(fields) - without_value
    assert written["schedule"]["milestones"] == [0.5, 0.75]


def test_recipes_are_equal_if_they_say_the_same_wherever_they_were_read() -> None:
    short, full = load(write("base.toml", SMALL)), load(write("full.toml", SMALL + "seed = 0\n"), ["name=base"])
    assert short == full
    assert len({short, full}) == 1
    assert short != load("base.toml", ["train.seed=1"])
    assert short != "base"
    one = load("base.toml", ["data.validation=0"])
    assert one != load("base.toml", ["data.validation=0.0"])
    assert pickle.loads(pickle.dumps(short)) == short


# ---------------------------------------------------------------------------------------------------------- properties


@settings(deadline=None, max_examples=200)
@given(st.data())
def test_a_recipe_with_random_damage_loads_or_is_refused_with_a_reason(data: st.DataObject) -> None:
    text = BASE
    for _ in range(data.draw(st.integers(1, 3))):
        start = data.draw(st.integers(0, len(text)))
        end = min(len(text), start + data.draw(st.integers(0, 12)))
        junk = data.draw(st.text(st.sampled_from("\n\r\t #=.,[]{}\"'\\_-+0123456789abenortsuxé\0\x7f"), max_size=6))
        text = text[:start] + junk + text[end:]
    with tempfile.TemporaryDirectory() as folder:
        loaded, error = attempt(text, Path(folder))
        if error is None:
            assert load_text(loaded.to_toml(), Path(folder)) == loaded
        else:
            assert error.faults
            assert all(fault.problem and fault.place.startswith(folder) for fault in error.faults)


@settings(deadline=None, max_examples=200)
@given(st.text(max_size=30) | st.text(max_size=20).map("train.seed={}".format))
def test_any_override_loads_or_is_told_as_typed(typed: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        _, error = attempt(BASE, Path(folder), [typed])
    assert error is None or any(fault.place.startswith("--set ") for fault in error.faults)


# Values as a recipe or a devil would write them, with what looks like keys, headers and comments inside.
VALUES = [
    "1", "-0.5e3", "true", "inf", "1979-05-27T07:32:00Z", '"text"', "'literal'", '"# no comment"', "'[no.header]'",
    r'"a \" quote = 1"', r'"ends in \\"', "''", '""', '"""one line"""', '"""\nkey = 1\n[table]\n# no\n"""',
    '"""a\n""quotes""\n\\"""\n"""', '"""two at the end"""""', "'''\nkey = 1\n[table]\n'''", "'''it''s\n'''''",
    "[]", "[\n  1, # one\n  2,\n]", '[\n"""\n]\n""",\n"]",\n]', "[[1], [\n2]]", "{}", "{a = 1, b.c = [1,\n2]}",
    '{ "x = 1" = "}" }', '["""a""""]', "['''a'''']",
]  # fmt: skip
NOISE = ["", "   ", "# comment", "# key = 1", "\t# [table]", '# """', "# '''"]


@st.composite
def documents(draw: Callable[..., Any]) -> tuple[str, dict[tuple[str, ...], int]]:
    """A TOML document, and the lines on which its keys and tables first appear."""
    lines: dict[tuple[str, ...], int] = {}
    text = ""
    words = st.text(st.sampled_from("abyz019_-"), min_size=1, max_size=4) | st.text(
        st.sampled_from("a .=#[]'\"\\é\t"), max_size=4
    )

    def spelled(part: str) -> str:
        spellings = ['"' + part.replace("\\", "\\\\").replace('"', '\\"') + '"']
        if part and not set(part) - set(string.ascii_letters + string.digits + "_-"):
            spellings.append(part)
        if "'" not in part:
            spellings.append(f"'{part}'")
        return str(draw(st.sampled_from(spellings)))

    def dotted(parts: Sequence[str]) -> str:
        return str(draw(st.sampled_from([".", " . "]))).join(map(spelled, parts))

    def add(statement: str, key: tuple[str, ...]) -> None:
        nonlocal text
        for _ in range(draw(st.integers(0, 2))):
            text += str(draw(st.sampled_from(NOISE))) + "\n"
        for length in range(1, len(key) + 1):
            lines.setdefault(key[:length], text.count("\n") + 1)
        text += draw(st.sampled_from(["", "  "])) + statement + str(draw(st.sampled_from(["", "  # end = 1"]))) + "\n"

    def keys(table: tuple[str, ...]) -> None:
        for first in draw(st.lists(words, max_size=4, unique=True)):
            parts = (first, *draw(st.lists(words, max_size=2)))
            add(f"{dotted(parts)} = {draw(st.sampled_from(VALUES))}", table + parts)

    keys(())
    taken = {key[0] for key in lines}
    for number, rest in enumerate(draw(st.lists(st.lists(words, max_size=2), max_size=4))):
        table = (f"table{number}", *rest)
        assert table[0] not in taken
        is_list = draw(st.booleans())
        add(f"[[ {dotted(table)} ]]" if is_list else f"[{dotted(table)}]", table)
        keys(table)
    if draw(st.booleans()):
        text = text.removesuffix("\n")
    if draw(st.booleans()):
        text = text.replace("\n", "\r\n")
    return text, lines


@settings(deadline=None, max_examples=300)
@given(documents())
def test_the_scanner_finds_the_line_of_every_key_of_any_document(
    document: tuple[str, dict[tuple[str, ...], int]],
) -> None:
    text, lines = document
    # The parser itself agrees that this is a document.
    tree = tomllib.loads(text)
    assert key_lines(text) == lines
    for key in lines:
        found: Any = tree
        for part in key:
            found = found[0] if isinstance(found, list) else found
            found = found[part]


# --------------------------------------------------------------------------------------------------------------- speed


def test_loading_builds_no_network_and_reads_no_image(monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("a recipe is checked without building anything")

    monkeypatch.setattr(registry, "create", forbidden)
    monkeypatch.setattr(datasets, "load", forbidden)
    monkeypatch.setattr(methods, "create", forbidden)
    assert load(write("base.toml", BASE)).name == "base"
