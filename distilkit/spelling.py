r"""Names that somebody else chose, as they are shown to people and written for programs.

A class, a picture, a folder, a student, a device or a version may be called anything. `plain` spells out what would
steer a terminal, hide itself or begin a line: `\x1b`, `\u202e`, `\n`. What is written for a program goes through that
program's own function here, at the point where it is written. JSON needs none: it holds every name as it is.
"""

import os
import re
import unicodedata
from functools import partial
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

if TYPE_CHECKING:
    from markupsafe import Markup

_UNSEEN = ("Cc", "Cf", "Cs", "Zl", "Zp")
"""Control, format (bidirectional ones among them), lone surrogates, line and paragraph separators."""

_NONE = "\ufffe\uffff"  # which no XML may hold
_BEYOND_ASCII = re.compile(r"[^ -~]")
# Persian and the scripts of India need joiners inside and at the end of words, emoji between two pictures.
_JOINING = re.compile(
    "(?<=[\u0600-\u109f\u1780-\u18af])[\u200c\u200d]"
    "|(?<=[\u2190-\u2bff\ufe0f\U0001f000-\U0001faff])\u200d(?=[\u2190-\u2bff\U0001f000-\U0001faff])"
)
# GitHub's runner obeys these at the beginning of any line that a step prints, the older form anywhere in it.
_COMMANDS = (
    "add-mask|add-matcher|add-path|debug|echo|endgroup|error|group|notice|remove-matcher|save-state|set-env|set-output|"
    "stop-commands|warning"
)
_COMMAND = re.compile(rf":(?=:(?:{_COMMANDS})[ :])|#(?=#\[(?:{_COMMANDS})[ \]])", re.IGNORECASE)


def plain(text: str, keep: str = "") -> str:
    r"""Spell out what people cannot see or must not obey; accents, all scripts and emoji stay as they are.

    What is left is one line. `keep`: characters that are no danger where the text goes, such as `\n`.
    """
    if not text.isprintable():
        text = _BEYOND_ASCII.sub(partial(_spelled, keep), text)
    return _COMMAND.sub(lambda found: f"\\x{ord(found[0]):02x}", text)


def _spelled(keep: str, found: re.Match[str]) -> str:
    sign = found[0]
    seen = unicodedata.category(sign) not in _UNSEEN and sign not in _NONE
    if seen or sign in keep or _JOINING.match(found.string, found.start()):
        return sign
    return sign.encode("unicode_escape").decode()


# ------------------------------------------------------------------------------------------------------ CSV, XML, YAML


def csv_cell(text: str) -> str:
    """A cell that no spreadsheet takes for a formula: an apostrophe stands before what would begin one."""
    text = plain(text)
    return f"'{text}" if re.match(r"\s*[=+\-@\uff1d\uff0b\uff0d\uff20]", text) else text


def xml(text: str) -> str:
    """Text that XML may hold. Whoever writes the XML escapes its own signs."""
    return plain(text, keep="\n\t")


def yaml_values(value: Any) -> Any:
    """Lists and mappings whose texts are plain. Whoever writes the YAML quotes them."""
    if isinstance(value, dict):
        return {key: yaml_values(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [yaml_values(inner) for inner in value]
    return plain(value) if isinstance(value, str) else value


# -------------------------------------------------------------------------------------------------------------- GitHub


def github(text: str) -> str:
    """The message of a workflow command."""
    return plain(text, keep="\r\n").replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def github_property(text: str) -> str:
    """A property of a workflow command, such as its title."""
    return github(text).replace(":", "%3A").replace(",", "%2C")


# ---------------------------------------------------------------------------------------------------------------- HTML


def html(text: str) -> "Markup":
    """Text between tags, or in an attribute's quotation marks."""
    from markupsafe import escape

    return escape(plain(text))


def html_lines(text: str) -> "Markup":
    """Text of several lines."""
    from markupsafe import Markup

    return Markup("\n").join(html(line) for line in text.split("\n"))


# --------------------------------------------------------------------------------------------------- Markdown and LaTeX

# Everything that Markdown or the HTML in it would take for markup inside a line.
_MARKDOWN_SPECIAL = re.compile(r"([\\`*_{}\[\]<>|#~$&])")
# Of these a card needs few: `student_0` stays as it is, and so does what stands alone. Addresses become links.
_MARKDOWN_MARKUP = re.compile(
    r"[\\`*\[\]<>|#~$&@{}^]|(?<![^\W_])_|_(?![^\W_])|:[\w+-]+:|://|www\.|\w:[^\s:]+@", re.IGNORECASE
)
_LATEX = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "&": r"\&",
    "%": r"\%",
    "#": r"\#",
    "_": r"\_",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
    "`": r"\textasciigrave{}",
    # Behind the line before it in a table, these would be arguments of that line's end.
    "[": "{[}",
    "]": "{]}",
    "*": "{*}",
}
_LATEX_SPECIAL = re.compile("|".join(map(re.escape, _LATEX)))


def escape_markdown(text: str) -> str:
    """Plain text that Markdown shows as it stands, in a table's cell too; of addresses it makes no links."""
    escaped = _MARKDOWN_SPECIAL.sub(r"\\\1", " ".join(text.split()))
    return re.sub(r"(?<=:)(?=//)|(?<=www)(?=\.)", r"\\", escaped, flags=re.IGNORECASE)


def markdown(text: object) -> str:
    """A name in a card's text, cell or heading: as it is where that is no markup, else as code, in which nothing is."""
    shown = " ".join(plain(str(text)).split())
    return markdown_code(shown) if _MARKDOWN_MARKUP.search(shown) else shown


def markdown_code(text: object) -> str:
    """A name as code, in a table's cell too."""
    # Of a bar in code a table would make a new cell; an escaped one shows its backslash where there is no table.
    shown = plain(str(text)).replace("|", r"\x7c")
    longest = max(map(len, re.findall("`+", shown)), default=0)
    room = " " if longest or not shown.strip() else ""
    return f"{'`' * (longest + 1)}{room}{shown}{room}{'`' * (longest + 1)}"


def markdown_target(path: str) -> str:
    """Where a link leads: a path inside the card's own folder."""
    return re.sub(r"[^\w./-]", lambda found: quote(os.fsencode(found[0]), safe=""), path)


def escape_latex(text: str) -> str:
    """Plain text that LaTeX sets as it stands."""
    escaped = _LATEX_SPECIAL.sub(lambda found: _LATEX[found[0]], " ".join(text.split()))
    # Two hyphens would become a dash, two apostrophes a quotation mark.
    return re.sub(r"([-',])(?=\1)", r"\1{}", escaped)
