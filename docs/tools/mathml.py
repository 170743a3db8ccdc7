"""Equations as MathML, made while the site is built: a page needs no script and no font from elsewhere to show them.

An extension of Python-Markdown. It takes what GitHub shows too: `$x$` in a line, and between lines of `$$` a displayed
equation, whose number stands in `\\tag{1}`. What is in code stays as it is.
"""

import re
from typing import Any

from latex2mathml.converter import convert
from markdown import Markdown
from markdown.extensions import Extension
from markdown.inlinepatterns import InlineProcessor
from markdown.preprocessors import Preprocessor

TAG = re.compile(r"\\tag\{(\w+)\}")
AFTER_FENCES = 24  # the priority of pymdownx.superfences is 25: by then no code is left to be mistaken for equations
AFTER_CODE = 185  # of Python-Markdown's code in a line 190, of its escapes 180


def mathml(latex: str, display: str) -> str:
    """The MathML of an equation. `display`: "inline" or "block". Raises ValueError naming what cannot be read."""
    try:
        return convert(latex, display=display)
    except Exception as error:
        raise ValueError(f"this equation cannot be read: {latex!r} ({type(error).__name__}: {error})") from error


def displayed(latex: str) -> str:
    """An equation on a line of its own, as HTML, with its number where it has one."""
    number = TAG.search(latex)
    equation = mathml(TAG.sub("", latex).strip(), "block")
    if number is None:
        return f'<div class="equation">{equation}</div>'
    name = number[1]
    return f'<div class="equation" id="eq-{name}">{equation}<span class="number">({name})</span></div>'


class _Displayed(Preprocessor):
    def run(self, lines: list[str]) -> list[str]:
        kept: list[str] = []
        equation: list[str] | None = None
        for line in lines:
            if line.strip() != "$$":
                (kept if equation is None else equation).append(line)
            elif equation is None:
                equation = []
            else:
                kept += ["", self.md.htmlStash.store(displayed("\n".join(equation))), ""]
                equation = None
        if equation is not None:
            raise ValueError(f"an equation does not end: {' '.join(equation)[:80]!r}")
        return kept


class _Inline(InlineProcessor):
    def handleMatch(self, m: re.Match[str], data: str) -> tuple[str, int, int]:  # type: ignore[override]  # noqa: N802
        # Stashed as it is: Python-Markdown's own serializer does not know MathML's namespace.
        return self.md.htmlStash.store(mathml(m[1], "inline")), m.start(0), m.end(0)


class MathML(Extension):
    """The extension itself."""

    def extendMarkdown(self, md: Markdown) -> None:  # noqa: N802
        """Add the two, each after what protects code."""
        md.preprocessors.register(_Displayed(md), "displayed-mathml", AFTER_FENCES)
        md.inlinePatterns.register(
            _Inline(r"(?<![\\$\w])\$(?=[^\s$])([^$]*?[^\s$\\])\$(?![$\w])", md), "inline-mathml", AFTER_CODE
        )


def makeExtension(**options: Any) -> MathML:  # noqa: N802
    """What Python-Markdown calls."""
    return MathML(**options)
