"""Draw who teaches whom, one SVG for every method, into docs/pictures/methods/.

    python docs/tools/draw_methods.py

A picture reads from left to right: images, the network (a trunk and branches, or whole networks), and on the right what
is made of the students' answers. Each picture brings its own light ground, so that it can be read on a dark page too.
"""

from collections.abc import Callable
from pathlib import Path
from xml.sax.saxutils import escape

FOLDER = Path(__file__).parents[1] / "pictures" / "methods"
WIDTH = 760
INK, SOFT, LINE, GROUND = "#1f2933", "#52606d", "#7b8794", "#fafbfc"
NETWORK, TEACHER, DEPLOYED, TEACHES = "#dbe7f5", "#fdecc8", "#1a7f4b", "#b4430f"
BOX = 130, 44  # a student's width and height
GAP = 64  # between the tops of two students
TOP = 46


class Picture:
    """An SVG that grows: boxes, arrows, words."""

    def __init__(self, title: str, height: int) -> None:
        self.height = height
        self.parts = [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" '
            'font-family="system-ui, sans-serif" font-size="14">',
            f"<title>{escape(title)}</title>",
            "<defs>"
            + "".join(
                f'<marker id="{name}" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="7" markerHeight="7" '
                f'orient="auto-start-reverse"><path d="M0 0 10 5 0 10z" fill="{colour}"/></marker>'
                for name, colour in (("flows", LINE), ("teaches", TEACHES))
            )
            + "</defs>",
            f'<rect x="0.5" y="0.5" width="{WIDTH - 1}" height="{height - 1}" rx="10" fill="{GROUND}" '
            'stroke="#d9dee4"/>',
        ]

    def words(self, x: float, y: float, text: str, colour: str = INK, size: int = 14, anchor: str = "middle") -> None:
        """A line of words; `y` is its middle."""
        self.parts.append(
            f'<text x="{x:g}" y="{y:g}" fill="{colour}" font-size="{size}" text-anchor="{anchor}" '
            f'dominant-baseline="central">{escape(text)}</text>'
        )

    def box(
        self, x: float, y: float, width: float, height: float, lines: list[str], fill: str = NETWORK, edge: str = LINE
    ) -> None:
        """A box with centred lines, the first of them larger."""
        thick = 2.5 if edge == DEPLOYED else 1.2
        self.parts.append(
            f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="6" fill="{fill}" stroke="{edge}" '
            f'stroke-width="{thick:g}"/>'
        )
        first = y + height / 2 - 9 * (len(lines) - 1)
        for place, line in enumerate(lines):
            self.words(x + width / 2, first + 18 * place, line, INK if place == 0 else SOFT, 14 if place == 0 else 12)

    def flow(self, *points: tuple[float, float]) -> None:
        """What is computed from what."""
        self._path("M" + " L".join(f"{x:g} {y:g}" for x, y in points), LINE, "flows", "")

    def teach(self, path: str, both: bool = False) -> None:
        """Who learns from whom; the arrow ends at the one that learns."""
        self._path(path, TEACHES, "teaches", ' stroke-dasharray="6 4"', both)

    def _path(self, path: str, colour: str, end: str, more: str, both: bool = False) -> None:
        start = f' marker-start="url(#{end})"' if both else ""
        self.parts.append(
            f'<path d="{path}" fill="none" stroke="{colour}" stroke-width="1.6"{more} marker-end="url(#{end})"{start}/>'
        )

    def finished(self) -> str:
        """The whole document, with its legend."""
        y = self.height - 22
        self.flow((24, y), (60, y))
        self.words(68, y, "computes", SOFT, 12, "start")
        self.teach(f"M150 {y} H190")
        self.words(198, y, "teaches (KL)", SOFT, 12, "start")
        self._labels(300, y)
        self.words(314, y, "learns from the labels (CE)", SOFT, 12, "start")
        self.parts.append(
            f'<rect x="494" y="{y - 8}" width="24" height="16" rx="4" fill="{NETWORK}" stroke="{DEPLOYED}" '
            'stroke-width="2.5"/>'
        )
        self.words(526, y, "deployed", SOFT, 12, "start")
        return "\n".join([*self.parts, "</svg>", ""])

    def _labels(self, x: float, y: float) -> None:
        """The mark of what learns from the labels."""
        self.parts.append(f'<circle cx="{x:g}" cy="{y:g}" r="9" fill="#fff" stroke="{INK}"/>')
        self.words(x, y, "y", INK, 12)

    def student(self, row: int, name: str, note: str = "", deployed: bool = False, labels: bool = True) -> None:
        """A student in its row of the column in the middle."""
        width, height = BOX
        x, y = STUDENTS, TOP + GAP * row
        self.box(x, y, width, height, [name, note] if note else [name], edge=DEPLOYED if deployed else LINE)
        if labels:
            self._labels(x + width, y)


STUDENTS, RIGHT = 280, 560


def middle(row: float) -> float:
    """The height of a row's middle."""
    return TOP + GAP * row + BOX[1] / 2


def _height(rows: int) -> int:
    return TOP + GAP * (rows - 1) + BOX[1] + 66


def _branches(picture: Picture, rows: int) -> None:
    """Images and a trunk that `rows` branches share."""
    centre = middle((rows - 1) / 2)
    picture.words(50, centre, "images")
    picture.box(110, centre - 38, 100, 76, ["trunk", "shared"])
    picture.flow((78, centre), (108, centre))
    for row in range(rows):
        picture.flow((210, centre), (STUDENTS - 2, middle(row)))


def _networks(picture: Picture, rows: int) -> None:
    """Images that `rows` whole networks see."""
    centre = middle((rows - 1) / 2)
    picture.words(70, centre, "images")
    for row in range(rows):
        picture.flow((100, centre), (STUDENTS - 2, middle(row)))


def _answers(picture: Picture, rows: int, to: float, first: int = 0) -> None:
    for row in range(first, rows):
        picture.flow((STUDENTS + BOX[0], middle(row)), (RIGHT - 2, to + 5 * (row - (rows - 1) / 2)))


def _taught(picture: Picture, rows: int, start: float, first: int = 0) -> None:
    """From the lower edge of a box on the right back to students."""
    for row in range(first, rows):
        end = middle(row) + 12
        picture.teach(f"M{RIGHT} {start + 4 * row:g} C{RIGHT - 70} {start + 4 * row:g} 490 {end:g} 412 {end:g}")


def baseline() -> Picture:
    """Draw one network."""
    picture = Picture("baseline: one network learns from the labels", _height(1))
    _networks(picture, 1)
    picture.student(0, "student_0", "whole network", deployed=True)
    picture.flow((STUDENTS + BOX[0], middle(0)), (540, middle(0)))
    picture.words(550, middle(0), "logits", SOFT, anchor="start")
    return picture


def independent() -> Picture:
    """Draw branches that only share their trunk."""
    picture = Picture("independent: three branches on a trunk, none of which sees what another predicts", _height(3))
    _branches(picture, 3)
    for row in range(3):
        picture.student(row, f"student_{row}", "branch", deployed=row == 0)
    picture.box(RIGHT, middle(1) - 24, 160, 48, ["mean of logits", "the ensemble"], TEACHER)
    _answers(picture, 3, middle(1))
    return picture


def one() -> Picture:
    """Draw branches, their gate, and the ensemble that teaches them."""
    picture = Picture("ONE: a gated ensemble of all branches teaches every branch", _height(3) + 52)
    _branches(picture, 3)
    for row in range(3):
        picture.student(row, f"student_{row}", "branch", deployed=row == 0)
    picture.box(RIGHT, middle(0.35) - 30, 160, 60, ["gated ensemble", "sum of gate x logits"], TEACHER)
    picture._labels(RIGHT + 160, middle(0.35) - 30)
    _answers(picture, 3, middle(0.35) - 8)
    _taught(picture, 3, middle(0.35) + 16)
    gate = middle(2) + 56
    picture.box(STUDENTS, gate - 17, BOX[0], 34, ["gate"], TEACHER)
    picture.flow((160, middle(1) + 38), (160, gate), (STUDENTS - 2, gate))
    picture.flow((STUDENTS + BOX[0], gate), (RIGHT + 80, gate), (RIGHT + 80, middle(0.35) + 32))
    picture.words(RIGHT + 72, gate - 12, "weighs each image anew", SOFT, 12, "end")
    return picture


def okddip() -> Picture:
    """Draw peers, their attention, and the leader."""
    picture = Picture("OKDDip: peers learn from attention over peers, the leader from the peers' mean", _height(4) + 10)
    _branches(picture, 4)
    for row in range(3):
        picture.student(row, f"peer_{row}", "branch")
    picture.student(3, "leader", "branch", deployed=True)
    picture.box(RIGHT, middle(0.6) - 32, 170, 64, ["attention over peers", "a mixture for each peer"], TEACHER)
    _answers(picture, 3, middle(0.6) - 10)
    _taught(picture, 3, middle(0.6) + 12)
    low = middle(2.6)
    picture.box(RIGHT, low - 26, 170, 52, ["mean of the peers", "the ensemble, too"], TEACHER)
    for row in range(3):
        picture.flow((STUDENTS + BOX[0], middle(row) + 4), (RIGHT - 2, low - 14 + 4 * row))
    picture.teach(f"M{RIGHT} {low + 12:g} C{RIGHT - 60} {low + 12:g} 480 {middle(3):g} 412 {middle(3):g}")
    return picture


def dml() -> Picture:
    """Draw networks that teach each other."""
    picture = Picture("DML: every network teaches every other", _height(3))
    _networks(picture, 3)
    for row in range(3):
        picture.student(row, f"student_{row}", "whole network", deployed=row == 0)
    edge = STUDENTS + BOX[0] + 2
    for first, second, bow in ((0, 1, 40), (1, 2, 40), (0, 2, 120)):
        start, end = middle(first) + 6, middle(second) - 6
        picture.teach(f"M{edge} {start:g} C{edge + bow} {start:g} {edge + bow} {end:g} {edge} {end:g}", both=True)
    picture.words(edge + 106, middle(1), "each KL target: one other student", SOFT, 12, "start")
    return picture


def cl_ilr() -> Picture:
    """Draw branches, each of which has the others' mean for a target."""
    picture = Picture("CL-ILR: each branch learns from the mean of the others", _height(3))
    _branches(picture, 3)
    for row in range(3):
        picture.student(row, f"student_{row}", "branch", deployed=row == 0)
        others = " and ".join(str(each) for each in range(3) if each != row)
        picture.box(RIGHT, middle(row) - 18, 160, 36, [f"mean of {others}"], TEACHER)
        picture.teach(f"M{RIGHT} {middle(row):g} H{STUDENTS + BOX[0] + 4}")
    picture.words(160, middle(1) + 56, "its gradient is", SOFT, 12)
    picture.words(160, middle(1) + 72, "divided by 3", SOFT, 12)
    return picture


def kd() -> Picture:
    """Draw a teacher and its student."""
    picture = Picture("KD: a trained network that no longer changes teaches the student", _height(2))
    _networks(picture, 2)
    picture.box(STUDENTS, TOP, BOX[0], BOX[1], ["teacher", "trained, frozen"], TEACHER)
    picture.student(1, "student_0", "whole network", deployed=True)
    x = STUDENTS + BOX[0] + 2
    picture.teach(f"M{x} {middle(0):g} C{x + 70} {middle(0):g} {x + 70} {middle(1):g} {x + 2} {middle(1):g}")
    picture.words(x + 66, middle(0.5), "with any other method: every student", SOFT, 12, "start")
    return picture


def snapshot() -> Picture:
    """Draw the learning rate of a training and the weights that are kept."""
    picture = Picture("Snapshot ensemble: one training, its weights kept at the end of every cycle", 250)
    left, right, top, bottom, cycles = 60, 540, 50, 150, 5
    width = (right - left) / cycles
    picture.words(left - 12, top - 22, "learning rate", SOFT, 12, "start")
    for cycle in range(cycles):
        x = left + cycle * width
        picture.parts.append(
            f'<path d="M{x:g} {top} C{x + width * 0.36:g} {top} {x + width * 0.64:g} {bottom} {x + width:g} {bottom}" '
            f'fill="none" stroke="{INK}" stroke-width="1.8"/>'
        )
        picture.box(x + width - 42, bottom + 10, 44, 26, [f"w{cycle + 1}"], NETWORK, DEPLOYED)
        picture.parts.append(
            f'<path d="M{x + width:g} {top} V{bottom}" stroke="{LINE}" stroke-dasharray="2 4" fill="none"/>'
        )
    picture.flow((right + 4, bottom + 23), (594, bottom + 23))
    picture.box(596, bottom - 6, 140, 58, ["mean of softmax", "five networks' cost"], TEACHER)
    return picture


PICTURES: dict[str, Callable[[], Picture]] = {
    "baseline": baseline,
    "independent": independent,
    "one": one,
    "okddip": okddip,
    "dml": dml,
    "cl-ilr": cl_ilr,
    "kd": kd,
    "snapshot": snapshot,
}


def drawn() -> dict[Path, str]:
    """Every picture's file and what is to be in it."""
    return {FOLDER / f"{name}.svg": draw().finished() for name, draw in PICTURES.items()}


if __name__ == "__main__":
    FOLDER.mkdir(parents=True, exist_ok=True)
    for file, text in drawn().items():
        file.write_text(text, encoding="utf-8")
