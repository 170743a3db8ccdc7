"""The shipped recipes, damaged in hundreds of ways: exit status 2, one message that helps, no run folder, no traceback.

tests/test_recipe.py damages every line of one recipe and looks at every word of the answer. Here the command line is
asked, with each kind of damage done to many recipes, wherever that kind of damage can be done.
"""

import re
import tempfile
import tomllib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import tomli_w
from conftest import Result
from hypothesis import given, settings
from hypothesis import strategies as st

from distilkit.errors import Fault, UserError
from distilkit.recipe import Recipe, builtin, load
from distilkit.recipe.sections import SECTIONS, known_keys
from distilkit.workflows.train import train as workflow

Command = Callable[..., Result]


class Damaged(NamedTuple):
    """A recipe's new content, and what the message must have: the line, where one is known, and these words."""

    what: str
    content: bytes
    words: tuple[str, ...]
    line: int | None = None


def recipes() -> dict[str, str]:
    """Every eighth shipped recipe, and all small ones."""
    texts = {name: path.read_text(encoding="utf-8") for name, path in builtin().items()}
    names = [name for place, name in enumerate(texts) if place % 8 == 0 or name.startswith("quickstart")]
    return {name: texts[name] for name in names}


KEY = re.compile(r"^([a-z_]+) = (.+)$")
HEADER = re.compile(r"^\[([a-z]+)\]$")


def keys_of(text: str) -> list[tuple[int, str, str, str]]:
    """Line number, section, key, value of every key inside of a section."""
    found, section = [], ""
    for number, line in enumerate(text.splitlines(), 1):
        if header := HEADER.match(line):
            section = header[1]
        elif section and (key := KEY.match(line)):
            found.append((number, section, key[1], key[2]))
    return found


def put(text: str, number: int, line: str) -> bytes:
    lines = text.splitlines()
    lines[number - 1] = line
    return ("\n".join(lines) + "\n").encode()


def damages(name: str, text: str) -> Iterator[Damaged]:
    """One of each kind, of which the place depends on the recipe's name."""
    keys = keys_of(text)
    number, section, key, value = keys[sum(name.encode()) % len(keys)]
    whole = text.encode()
    slip = key[:2] + key[3:] if len(key) > 4 else key + "x"
    nearest = f"did you mean '{key}'" if key != "name" else ""
    yield Damaged("misspelt key", put(text, number, f"{slip} = {value}"), (slip, nearest), number)
    for what, wrong in (("a table", "{ a = 1 }"), ("a date", "1979-05-27"), ("tables in lists", "[[{ a = [] }]]")):
        yield Damaged(
            f"{what} as value", put(text, number, f"{key} = {wrong}"), (f"{section}.{key}", "must be"), number
        )
    yield Damaged("nan", put(text, number, f"{key} = nan"), (f"{section}.{key}", "must be"), number)
    yield Damaged("no value", put(text, number, f"{key} ="), ("a value is missing", key), number)
    yield Damaged("no equals", put(text, number, f"{key} {value}"), ("not TOML", key), number)
    yield Damaged("open string", put(text, number, f'{key} = "'), ("not TOML",), number)
    yield Damaged("twice", put(text, number, f"{key} = {value}\n{key} = {value}"), (key, "is there twice"), number + 1)
    header = next(line for line, word in enumerate(text.splitlines(), 1) if word == f"[{section}]")
    wrong = section[:-1] + "k"
    yield Damaged("misspelt section", put(text, header, f"[{wrong}]"), (wrong, f"did you mean '{section}'"), header)
    yield Damaged("section twice", whole + f"\n[{section}]\n".encode(), (f"[{section}] is there twice",))
    yield Damaged("section as list", put(text, header, f"[[{section}]]"), (section, "must be a section"), header)
    yield Damaged(
        "half a key", f"{text}\n[train]\nepo".encode() if "[train]" not in text else whole + b"\nepo", ("TOML",)
    )
    yield Damaged("UTF-16", text.encode("utf-16"), ("UTF-8",))
    yield Damaged("Latin-1", whole + "# größe\n".encode("latin-1"), ("UTF-8",), text.count("\n") + 1)
    yield Damaged("a zero byte", put(text, number, f"{key} = \0"), ("not TOML",), number)
    yield Damaged("deep", put(text, number, f"{key} = {'[' * 3000}"), ("nested too deeply",))
    yield Damaged("dots", put(text, number, f"{'a.' * 3000}b = 1"), ("too many dots",))
    yield Damaged("itself", put(text, 1, f'extends = "{name}.toml"').replace(b'\nextends = "', b'\n#"'), ("extends",))
    yield Damaged("extends nothing", f'extends = "no_such_recipe"\nname = "{name}"\n'.encode(), ("no_such_recipe",), 1)
    yield Damaged("below zero", put(text, number, f"{key} = -7"), (f"{section}.{key}", "must be"), number)


EVERY = [(name, damage) for name, text in recipes().items() for damage in damages(name, text)]


def test_there_are_more_than_two_hundred_of_more_than_twenty_kinds() -> None:
    assert len(EVERY) >= 200
    assert len({damage.what for _, damage in EVERY}) >= 20
    assert len({damage.content for _, damage in EVERY}) == len(EVERY)


@pytest.fixture
def refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, distilkit: Command) -> Callable[..., Result]:
    """refused(file): `distilkit train` with it ends with 2 and leaves nothing."""

    def begins(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("this recipe was taken")

    monkeypatch.setattr(workflow, "train", begins)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")

    def check(file: str, *arguments: str) -> Result:
        before = set(tmp_path.rglob("*"))
        result = distilkit("train", file, *arguments, "--json")
        assert result.status == 2, (file, result)
        error = result.json["error"]
        assert error["kind"] == "user"
        assert result.err.count("error: ") == 1, result.err
        assert set(tmp_path.rglob("*")) == before
        return result

    return check


@pytest.mark.parametrize("name", list(recipes()))
def test_a_damaged_recipe_is_refused_with_what_helps(name: str, refused: Callable[..., Result]) -> None:
    for owner, damage in EVERY:
        if owner != name:
            continue
        Path(f"{name}.toml").write_bytes(damage.content)
        result = refused(f"{name}.toml")
        for word in damage.words:
            assert word in result.err, (damage.what, word, result.err)
        if damage.line is not None:
            assert f"{name}.toml:{damage.line}: " in result.err, (damage.what, damage.line, result.err)


CONTRADICTIONS = [
    ("quickstart", ["group.students=0"], "group.students must be an integer from 1 to 100"),
    ("quickstart", ["group.kind=networks", "group.split_at=layer3"], "group.split_at is only for"),
    ("quickstart", ["method.rampup_epochs=31"], "longer than the run of 30 epochs"),
    ("quickstart", ["schedule.milestones=[30]"], "before the end of the run"),
    ("quickstart", ["schedule.name=cosine", "schedule.warmup_epochs=30"], "shorter than the run"),
    ("quickstart", ["schedule.name=cosine", "schedule.milestones=[3]"], 'name = "step"'),
    ("quickstart", ["optimizer.momentum=0"], "nesterov"),
    ("quickstart", ["optimizer.name=adamw", "optimizer.momentum=0.9"], "momentum"),
    ("quickstart", ["optimizer.decay_norms_and_biases=false", "optimizer.weight_decay=0"], "changes nothing"),
    ("quickstart", ["data.rand_augment_magnitude=3"], "changes nothing"),
    ("quickstart", ["data.image_size=32"], "data.image_size is only for"),
    ("quickstart", ['group.students=["resnet8","resnet20"]'], "must be networks where group.students lists"),
    ("quickstart", ["teacher.run=a", "teacher.weights=b"], "teacher.run names a whole classifier"),
    ("quickstart", ["tracking.name=none", "tracking.options.wandb.mode=offline"], "as nothing is tracked"),
    ("quickstart_baseline", ["group.students=3"], "group.students must be 1"),
    ("quickstart_kd", ["teacher.temperature=0"], "above 0"),
]


@pytest.mark.parametrize(("name", "changes", "words"), CONTRADICTIONS)
def test_settings_that_contradict_each_other_are_named(
    name: str, changes: list[str], words: str, refused: Callable[..., Result]
) -> None:
    result = refused(name, *(word for change in changes for word in ("--set", change)))
    assert words in result.err, result.err


def test_ten_megabytes_are_refused_at_once(tmp_path: Path, refused: Callable[..., Result]) -> None:
    text = builtin()["quickstart"].read_text(encoding="utf-8")
    for name, filling in (
        ("comment", "# " + "x" * 10**7),
        ("keys", "a = 1\n" * 10**6),
        ("string", f'a = "{"x" * 10**7}"'),
    ):
        (tmp_path / f"{name}.toml").write_text(f"{filling}\n{text}", encoding="utf-8")
        assert f"{name}.toml" in refused(f"{name}.toml").err


def test_recipes_that_extend_each_other_are_refused(tmp_path: Path, refused: Callable[..., Result]) -> None:
    for name, base in (("a", "b"), ("b", "c"), ("c", "a")):
        (tmp_path / f"{name}.toml").write_text(f'extends = "{base}.toml"\n', encoding="utf-8")
    assert "a.toml" in refused("a.toml").err
    for number in range(300):
        (tmp_path / f"n{number}.toml").write_text(f'extends = "n{number + 1}.toml"\n', encoding="utf-8")
    refused("n0.toml")
    (tmp_path / "loop.toml").symlink_to("loop.toml")
    assert "loop.toml" in refused("loop.toml").err


def test_what_is_no_file_is_refused(tmp_path: Path, refused: Callable[..., Result]) -> None:
    refused("/dev/null")
    refused("/dev/zero")
    refused("")
    refused("\udcff.toml")


# Any value at any key

plain = (
    st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
    | st.datetimes()
    | st.dates()
    | st.times()
)
values = st.recursive(
    plain,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"]), max_size=6), inner, max_size=3)
    ),
    max_leaves=6,
)
places = st.sampled_from(sorted((section, key) for section in SECTIONS for key in {*known_keys(section), "name", "x"}))
SMALL = tomllib.loads(builtin()["quickstart"].read_text(encoding="utf-8"))


@settings(deadline=None, max_examples=300)
@given(
    st.lists(st.tuples(places, values), min_size=1, max_size=3),
    st.none() | st.tuples(st.sampled_from(SECTIONS), values),
)
def test_any_value_at_any_key_loads_or_is_named(
    changes: list[tuple[tuple[str, str], Any]], section: tuple[str, Any] | None
) -> None:
    tree: dict[str, Any] = {name: dict(keys) if isinstance(keys, dict) else keys for name, keys in SMALL.items()}
    for (name, key), value in changes:
        tree.setdefault(name, {})[key] = value
    if section:
        tree[section[0]] = section[1]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "any.toml"
        file.write_text(tomli_w.dumps(tree), encoding="utf-8")
        loaded, faults = attempt(file)
        if loaded is None:
            assert faults
            assert all(fault.problem and fault.place for fault in faults)
        else:
            file.write_text(loaded.to_toml(), encoding="utf-8")
            assert load(file) == loaded


def attempt(file: Path) -> tuple[Recipe | None, Sequence[Fault]]:
    try:
        return load(file), ()
    except UserError as error:
        return None, error.faults
