"""What a report is made of: its runs and their groups, with all that was read of them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from distilkit.report.history import History
from distilkit.report.measured import Robustness, TestedRun
from distilkit.runs.run import Run


@dataclass(frozen=True)
class RunView:
    """One training. `id`: what the page calls it; `facts`: see `facts.run_facts`; `missing`: section -> reason.

    `counted`: whether it is one of those that its recipe's means are taken over.
    """

    id: str
    group: str
    style: int
    run: Run
    facts: Mapping[str, Any]
    history: History
    robustness: Robustness | None
    tested: TestedRun | None
    detailed: bool
    counted: bool
    missing: Mapping[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Its folder's name."""
        return self.run.path.name

    @property
    def leader(self) -> str:
        """The member that is deployed."""
        return str(self.run.record["leader"])


@dataclass(frozen=True)
class GroupView:
    """The trainings of one recipe. `facts`: see `facts.group_facts`; `style`: its colour and mark."""

    id: str
    style: int
    label: str
    facts: Mapping[str, Any]
    runs: tuple[RunView, ...]

    @property
    def mean_error(self) -> float:
        """Of the leader; infinite where no training is finished."""
        for entry in self.facts["classifiers"].values():
            if entry["role"] == "leader" and entry["top1_error"]:
                return float(entry["top1_error"]["mean"])
        return float("inf")
