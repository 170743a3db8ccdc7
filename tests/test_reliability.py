"""docs/reliability.md counts what the tests try; here the two are compared."""

import re
from pathlib import Path

import pytest
import test_faults
import test_fuzz
import test_hostile_options
import test_hostile_recipes
import test_kills
import test_signals

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
ROWS = [line for line in PAGE.splitlines() if line.startswith("| ") and "`make " in line]


def row(word: str) -> str:
    (found,) = [line for line in ROWS if word in line]
    return found.split(" | ")[1]


def test_the_counts_are_those_of_the_tests() -> None:
    every = test_hostile_recipes.EVERY
    kinds, recipes = len({damage.what for _, damage in every}), len(test_hostile_recipes.recipes())
    assert row("shipped recipes damaged") == f"{len(every)} of {kinds} kinds, in {recipes} recipes"
    assert row("settings that contradict") == str(len(test_hostile_recipes.CONTRADICTIONS))
    places, values = len(set(test_hostile_options.cases())), len(test_hostile_options.WORST)
    more = len(test_hostile_options.ABSURD)
    assert row("every option of every command") == f"{places} places, {values} values; {more} with `make fuzz`"
    assert f"| {len(test_fuzz.LOADERS)} loaders with damaged files" in PAGE
    assert row("loaders with damaged files").startswith(f"{test_fuzz.A_FEW} inputs each")
    assert row("killed (SIGKILL)") == f"{len(test_kills.WRITING + test_kills.ELSEWHERE)} moments"
    assert row("full disk for pruning") == f"{len(test_faults.WRITING)} commands"
    assert f"each of {len(test_faults.LATER)} later commands" in PAGE
    assert row("before there is a run: recipe") == str(len(test_signals.BEFORE) + 1)
    during = f"{len(test_signals.DURING)} and {len(test_kills.SIGNALLED)}, {len(test_signals.MORE)} more"
    assert row("in a training: building") == during
    assert row("evaluate, ensemble-eval, prune-branches, robustness, export") == str(len(test_signals.COMMANDS) + 3)
    assert row("quantisation at each") == str(len(test_signals.EXPORTS + test_signals.QUANTIZE))


@pytest.mark.parametrize("line", ROWS)
def test_every_row_names_tests_that_are_there_and_a_command_that_runs_them(line: str) -> None:
    named = re.findall(r"`(test_\w+\.py|fuzzing\.py)`", line)
    texts = [(ROOT / "tests" / name).read_text(encoding="utf-8") for name in named]
    # What only `make test-long` runs is marked so.
    assert "make test-long" not in line or any("pytest.mark.long" in text for text in texts)
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"`make ([\w-]+)`", line):
        assert f"\n{target}: " in makefile
    assert named
