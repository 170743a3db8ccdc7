"""Write the table of docs/choosing.md from the measured one in docs/results/small.md.

python docs/tools/choosing.py
"""

import re
from collections.abc import Iterator
from pathlib import Path

from options import between_marks

DOCS = Path(__file__).parents[1]
FILE = DOCS / "choosing.md"
MEASURED = DOCS / "results" / "small.md"
ROWS = {
    # Of the measured table's rows: what they are called here, and what their training costs.
    "kd": ("[KD](methods/kd.md), teacher ResNet-14", "teacher's forward pass, and its own training"),
    "okddip_kd": ("[OKDDip](methods/okddip.md) with that teacher", "the same, and four branches"),
    "one": ("[ONE](methods/one.md)", "three branches"),
    "one_without_distillation": ("ONE without distillation", "three branches"),
    "okddip_networks": ("OKDDip as networks", "four networks"),
    "clilr": ("[CL-ILR](methods/cl-ilr.md)", "three branches"),
    "dml": ("[DML](methods/dml.md)", "whole networks"),
    "independent": ("[independent](methods/independent.md) branches", "three branches"),
    "okddip": ("OKDDip on branches", "four branches"),
}


def drawn() -> dict[Path, str]:
    """The page and what is to be in it. Raises KeyError if a row is no longer measured."""
    return {FILE: between_marks(FILE, _table())}


def _table() -> Iterator[str]:
    text = MEASURED.read_text(encoding="utf-8")
    part = text.partition("Difference to the baseline")[2].partition("\n\n")[2].partition("\n\n")[0]
    cells = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in part.splitlines() if line.startswith("|")
    ]
    head, _, *rows = cells
    assert head == ["row", "leader", "95 %", "members' mean", "95 %", "ensemble", "95 %", "seeds"], head
    measured = {row[0]: row for row in rows}
    yield "| method | deployed student | 95 % | its ensemble | 95 % | training cost | seeds |"
    yield "|---|---|---|---|---|---|---|"
    for row in sorted(ROWS, key=lambda name: float(measured[name][1])):
        name, cost = ROWS[row]
        _, leader, leader_interval, _, _, ensemble, ensemble_interval, seeds = measured[row]
        yield (
            f"| {name} | {_bold(leader, leader_interval)} | {leader_interval} | "
            f"{_bold(ensemble, ensemble_interval)} | {ensemble_interval} | {cost} | {seeds} |"
        )
    yield ""


def _bold(value: str, interval: str) -> str:
    """A difference whose interval leaves 0 out, in bold."""
    limits = [float(each) for each in re.findall(r"[-+]?[\d.]+", interval)]
    return f"**{value}**" if limits and limits[0] * limits[1] > 0 else value


if __name__ == "__main__":
    for file, text in drawn().items():
        file.write_text(text, encoding="utf-8")
