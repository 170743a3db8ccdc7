"""docs/recipes.md says what the program does: its list of keys is the program's own, its examples work."""

import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Result

from distilkit import methods
from distilkit.recipe import load
from distilkit.recipe.reference import BEGIN, END, PAGE, reference, renewed
from distilkit.recipe.sections import SECTIONS, known_keys

TEXT = PAGE.read_text(encoding="utf-8")
EXAMPLES = dict(re.findall(r"^```toml\n# (\S+)\n(.*?)^```", TEXT, flags=re.DOTALL | re.MULTILINE))
COMMANDS = re.findall(r"^distilkit (train .*)$", TEXT, flags=re.MULTILINE)


def test_the_page_s_reference_is_the_present_one() -> None:
    _, _, rest = TEXT.partition(f"{BEGIN}\n\n")
    written, _, _ = rest.partition(f"\n{END}")
    assert written == reference(), "docs/recipes.md is stale; renew it with: python -m distilkit.recipe.reference"
    assert renewed(TEXT) == TEXT


def test_the_reference_is_put_between_the_marks_and_nowhere_else() -> None:
    assert renewed(f"before\n{BEGIN}\nold\n{END}\nafter\n") == f"before\n{BEGIN}\n\n{reference()}\n{END}\nafter\n"
    with pytest.raises(ValueError, match="lost its marks"):
        renewed(f"before\n{BEGIN}\nold\n")


@pytest.mark.parametrize("section", SECTIONS)
def test_every_key_of_a_section_has_a_row_that_says_what_it_takes_and_means(section: str) -> None:
    page = reference()
    part = page[page.index(f"### `[{section}]`") :].partition("\n### ")[0]
    rows = dict(re.findall(r"^\| `(\w+)` \| (.*) \|$", part, flags=re.MULTILINE))
    named = section in ("method", "optimizer", "schedule")
    assert set(rows) == known_keys(section) - ({"name"} if named else set())
    for key, row in rows.items():
        takes, default, meaning = row.split(" | ")
        assert takes, key
        assert default not in ("", "`None`"), key
        assert meaning, key


def test_every_method_has_its_own_part() -> None:
    for name in methods.names():
        assert f'#### `[method] name = "{name}"`' in reference()


def test_the_reference_shows_limits_and_defaults() -> None:
    page = reference()
    assert "| `temperature` | a number above 0 | `3.0` | " in page
    assert "| `epochs` | an integer of 1 or more | required | " in page
    assert "| `split_at` | text that is not empty | the architecture's own | " in page
    assert "`networks` (default) or `branches`; students: 1 (default 1)" in page


@pytest.fixture
def examples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name, text in EXAMPLES.items():
        Path(name).write_text(text, encoding="utf-8")


@pytest.mark.usefixtures("examples")
def test_the_page_s_examples_load_and_extend_each_other_as_it_says() -> None:
    assert list(EXAMPLES) == ["mine.toml", "adam.toml"]
    mine, adam = load("mine.toml"), load("adam.toml")
    assert (mine.optimizer.name, adam.optimizer.name, adam.schedule.name) == ("sgd", "adamw", "cosine")
    assert (adam.optimizer.lr, adam.optimizer.weight_decay) == (mine.optimizer.lr, mine.optimizer.weight_decay)
    assert adam.name == "adam"


@pytest.mark.usefixtures("examples")
@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_of_the_page_works(command: str, distilkit: Callable[..., Result]) -> None:
    """As printed; a training that takes hours is checked with --dry-run."""
    result = distilkit(*shlex.split(command), *([] if "--dry-run" in command else ["--dry-run"]))
    assert result.status == 0, result.err
    assert "nothing was trained" in result.out


def test_the_page_shows_each_way_to_change_a_recipe() -> None:
    assert len(COMMANDS) == 4
