"""What a report says in sentences: what can be concluded, what cannot, and what is missing."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from distilkit.report.measured import TestedRun
from distilkit.report.page import Board
from distilkit.report.views import GroupView, RunView
from distilkit.runs.deployed_check import describe

ON_TEST_IMAGES = "errors by class, confusion, reliability"
"""What the sections are called that need the test images."""

LEFT_OUT = "left out, as asked (--no-evaluate)"

SAID = 4
"""So many differences are sentences; all are in the table."""

MINUS = "\N{MINUS SIGN}"


def counted(count: int, what: str) -> str:
    """ "1 run", "2 runs"."""
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def summary(boards: Sequence[Board]) -> Iterator[str]:
    """What can be said, and what cannot, in a sentence or two for each data set."""
    for board in boards:
        finished = [group for group in board.groups if group.facts["finished"]]
        trainings = sum(group.facts["finished"] for group in finished)
        if not finished:
            yield f"{board.dataset}: no finished training yet."
            continue
        yield (f"{board.dataset}: {counted(trainings, 'finished training')} of {counted(len(finished), 'recipe')}.")
        if len(finished) > 1:
            if max(group.facts["finished"] for group in finished) == 1:
                yield "Every recipe was trained with a single seed: nothing can be concluded about which is better."
                continue
            yield from _what_pairs_say(board.differences)
        elif trainings == 1:
            yield "One training says nothing of the spread over seeds: nothing can be concluded about the recipe."


def _what_pairs_say(differences: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Every pair where there are few; of many those that differ."""
    sure = [d for d in differences if d["conclusive"]]
    said = sorted(differences, key=lambda d: not d["conclusive"]) if len(differences) <= SAID else sure[:SAID]
    yield from (_said(d) for d in said)
    if len(sure) > SAID:
        yield f"{counted(len(sure) - SAID, 'further difference')}: see the table."
    left = len(differences) - len(sure) if len(differences) > SAID else 0
    if left:
        yield f"{counted(left, 'other comparison' if sure else 'comparison')}: nothing can be concluded."


def _said(difference: Mapping[str, Any]) -> str:
    what = "leader" if difference["role"] == "leader" else "ensemble"
    more = "fewer" if difference["difference"] < 0 else "more"
    ours, theirs = difference["counts"]
    said = (
        f"{difference['ours_label']}: its {what} makes {abs(difference['difference']):.2f} points {more} errors than "
        f"that of {difference['theirs_label']} ({ours} and {theirs} trainings"
    )
    if difference["low"] is None:
        return f"{said}): nothing can be concluded."
    ends = f"{difference['low']:+.2f} to {difference['high']:+.2f}".replace("-", MINUS)
    if difference["conclusive"]:
        return f"{said}; 95 % interval of the difference {ends})."
    return f"{said}), but the difference's 95 % interval, {ends}, holds 0: no difference is shown."


def notes(groups: Sequence[GroupView], remarks: Sequence[str]) -> Iterator[str]:
    """What is missing, and what makes a figure worth less than it looks; `remarks`: sentences without full stops."""
    yield from (f"{remark[0].upper()}{remark[1:]}." for remark in remarks)
    views = [view for group in groups for view in group.runs]
    for view in views:
        if not view.facts["selected"]:
            state = view.facts["state"]
            yield f"{view.name} is not finished ({state}): its curves are shown, and it counts in no mean."
        if lag := describe(view.run.record.get("deployed_check", {})):
            yield f"{view.name}: {lag}."
        if view.facts["uncounted"]:
            yield f"{view.name}: operators that fvcore does not know are not counted, so its costs are too low."
        if view.tested:
            yield from _doubts(view, view.tested)
    hidden = sum(not view.detailed for view in views)
    if hidden:
        yield f"{hidden} of {len(views)} runs are not shown in full (--details N shows more)."
    reasons: dict[str, list[str]] = {}
    for view in views:
        if why := view.missing.get(ON_TEST_IMAGES):
            reasons.setdefault(why, []).append(view.name)
    for why, names in reasons.items():
        which = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
        yield f"No {ON_TEST_IMAGES}" + (f": {why}." if why == LEFT_OUT else f" of {which}: {why}.")


def _doubts(view: RunView, tested: TestedRun) -> Iterator[str]:
    """Where the test images seen now do not give what the training gave."""
    if not tested.same_data:
        yield f"{view.name}: the test images are not the ones that it was trained beside."
    for name, classifier in view.facts["classifiers"].items():
        known, now = classifier["top1_error"], tested.classifiers[name].top1_error
        if known is not None and abs(known - now) > 1e-6:
            yield f"{view.name}, {name}: {now:.2f} % of the test images are wrong here, {known:.2f} % in run.json."
