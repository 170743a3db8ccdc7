"""Model cards after a command: a run's README.md, and the one beside an exported file."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from distilkit.errors import UserError
from distilkit.observer import Observer
from distilkit.reading import read_json
from distilkit.report.card import CardKeptError, SeedSpread, write_card, write_export_card
from distilkit.runs.run import RECORD, PrunedModel, Run
from distilkit.workflows.comparison.group_statistics import error_spreads
from distilkit.workflows.comparison.recipe_groups import RecipeGroup, grouped, is_finished
from distilkit.workflows.comparison.remarks import within

_ALIKE = ("method", "architecture")


def finished_card(run: Run, observer: Observer) -> None:
    """Write the card of a run that has its final figures. Raises `UserError` when it cannot be written.

    The observer is told of a card that was left as it is, for the sake of what somebody else wrote there.
    """
    try:
        write_card(run, _over_seeds(run))
    except CardKeptError as error:
        observer.note(f"warning: {error.problem}")


def refresh(path: Path, observer: Observer) -> None:
    """Write a finished run's card again, with what a command has added to its folder; `path` may be its pruned model's.

    What is no finished run has no card. A card that cannot be written is told to the observer: the command has done
    what it was asked for.
    """
    run = _run_of(path)
    if run is None:
        return
    try:
        finished_card(run, observer)
    except (UserError, KeyError) as error:
        observer.note(f"warning: the model card is as it was: {_why(error)}")


def beside_export(
    found: Run | PrunedModel, export: Mapping[str, Any], observer: Observer, *, inside: bool, final: bool
) -> str | None:
    """Write the card of an exported file that is right; its path, None without one.

    `inside`: the file lies in the run's own folder, whose card is then written again too. `final`: its weights are
    those that the training's figures are of.
    """
    card = None
    # The floating-point file is whole, even where the 8-bit file beside it fails what was asked of it.
    if export["passed"] or "quantized" in export:
        try:
            seeds = _over_seeds(found) if isinstance(found, Run) and is_finished(found) else None
            card = str(write_export_card(found, export, seeds, final=final))
        except (UserError, KeyError) as error:
            observer.note(f"warning: the export has no model card: {_why(error)}")
    if inside:
        refresh(found.path, observer)
    return card


def same_recipe(run: Run) -> RecipeGroup:
    """The finished runs of this run's recipe in its runs folder. Damaged ones are passed over."""
    alike = [run]
    for file in sorted(run.path.resolve().parent.glob(f"*/{RECORD}")):
        if file.parent.name == run.path.name:
            continue
        try:
            record = read_json(file)
            # Opening a run reads its whole recipe; most can be told apart without.
            if record["state"] != "done" or any(record[key] != run.record[key] for key in _ALIKE):
                continue
            alike.append(Run.open(file.parent))
        except (KeyError, TypeError, UserError):
            continue
    return next(group for group in grouped(alike) if run in group.runs)


def _over_seeds(run: Run) -> SeedSpread:
    group = same_recipe(run)
    remarks = tuple(remark.text for remark in within(group))
    return SeedSpread(group.seeds, error_spreads(group), counted=run in group.trainings, remarks=remarks)


def _why(error: UserError | KeyError) -> str:
    return error.problem if isinstance(error, UserError) else f"{RECORD} lacks {error}"


def _run_of(path: Path) -> Run | None:
    for folder in (path, path.resolve().parent):
        if (folder / RECORD).is_file():
            try:
                run = Run.open(folder)
            except UserError:
                return None
            return run if run.record["state"] == "done" else None
    return None
