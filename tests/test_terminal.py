"""What is printed where it is read: files and pipes, narrow terminals, terminals without colours or letters."""

import io
import json
import os
import pty
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import TINY, Result, train_tiny
from rich.console import Console

import distilkit as package
from distilkit import cli
from distilkit.cli import console

Command = Callable[..., Result]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_tiny(
        tmp_path_factory.mktemp("terminal"), "train.epochs=1", "tracking.name=none", "method.name=baseline"
    )


def commands(run: Path, folder: Path) -> list[list[object]]:
    """Some of each kind: tables, bars, plans, messages, usage errors, help."""
    return [
        ["compare", run],
        ["models", "resnet8"],
        ["train", "no_such_recipe"],
        ["train", "quickstart", "--set", "train.epoch=3"],
        ["evaluate", folder / "größe \u4f60\u597d \u0394"],
        ["evaluate", "--no-such-option"],
        ["train", "--help"],
    ]


def test_files_and_pipes_have_no_colour_codes(
    run: Path, tmp_path: Path, distilkit: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in ("FORCE_COLOR", "TTY_COMPATIBLE", "CLICOLOR_FORCE"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    for words in commands(run, tmp_path):
        result = distilkit(*words)
        assert "\x1b" not in result.out + result.err, words


def test_a_terminal_of_twenty_columns_loses_no_figure(
    run: Path, tmp_path: Path, distilkit: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    figures = distilkit("compare", run).out
    monkeypatch.setattr(console, "stdout", Console(highlight=False, width=20))
    monkeypatch.setattr(console, "stderr", Console(stderr=True, highlight=False, width=20))
    for words in commands(run, tmp_path):
        assert distilkit(*words).status in (0, 2), words
    folded = re.sub(r"\s", "", distilkit("compare", run).out)
    for figure in re.findall(r"\d+\.\d+", figures):
        assert figure in folded, figure


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_what_an_encoding_has_no_letters_for_is_spelled_out(
    encoding: str, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Strict streams, as PYTHONIOENCODING=ascii makes them."""
    for words in commands(run, tmp_path):
        streams = [io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors="strict") for _ in range(2)]
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stdout", streams[0])
            patch.setattr(sys, "stderr", streams[1])
            with pytest.raises(SystemExit) as left:
                cli.main([str(word) for word in words])
            for stream in streams:
                stream.flush()
        said = b"".join(stream.buffer.getvalue() for stream in streams).decode(encoding)  # type: ignore[attr-defined]
        assert left.value.code in (0, 2), (words, said)
        assert said
        if "größe" in str(words[1:]):
            assert {"ascii": "gr\\xf6\\xdfe"}.get(encoding, "größe") in said


def test_a_name_cannot_steer_the_terminal(tmp_path: Path, distilkit: Command) -> None:
    result = distilkit("evaluate", tmp_path / "\x1b]0;title\x07\x1b[2J\u202egnp.exe")
    assert result.status == 2
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e]", result.err)
    assert "\\x1b]0;title\\x07" in result.err


def test_markup_in_names_is_text(tmp_path: Path, distilkit: Command) -> None:
    assert "[bold red]x[/]" in distilkit("evaluate", "[bold red]x[/]").err


@pytest.mark.parametrize(("variables", "coloured"), [({"NO_COLOR": "1"}, False), ({"TERM": "dumb"}, False), ({}, True)])
def test_no_color_is_heeded_in_a_terminal(
    variables: dict[str, str], coloured: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in ({"TERM": "xterm-256color"} | variables).items():
        monkeypatch.setenv(name, value)

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    screen = Terminal()
    monkeypatch.setattr(console, "stderr", Console(file=screen, highlight=False))
    console.tell("error: something", "red")
    assert ("\x1b[31m" in screen.getvalue()) == coloured
    assert "error: something" in screen.getvalue()


def test_a_locale_without_letters_and_a_real_terminal_of_twenty_columns(tmp_path: Path) -> None:
    """As a process of its own, with LC_ALL=C, on a pseudo-terminal."""
    (tmp_path / "größe.toml").write_text("[train]\nepochs = 'größe'\n", encoding="utf-8")
    master, slave = pty.openpty()
    environment: dict[str, Any] = {
        **{name: value for name, value in os.environ.items() if not name.startswith(("LC_", "LANG", "PYTHON"))},
        "PYTHONPATH": str(Path(package.__file__).parents[1]),
        "LC_ALL": "C",
        "PYTHONCOERCECLOCALE": "0",
        "PYTHONUTF8": "0",
        "PYTHONIOENCODING": "ascii",
        "COLUMNS": "20",
        "TERM": "xterm",
        "NO_COLOR": "1",
    }
    with subprocess.Popen(
        [sys.executable, "-m", "distilkit", "train", "größe.toml"],
        cwd=tmp_path, env=environment, stdin=slave, stdout=slave, stderr=slave,
    ) as process:  # fmt: skip
        os.close(slave)
        said = b""
        while True:
            try:
                part = os.read(master, 4096)
            except OSError:  # Linux says so where the other side is closed
                break
            if not part:
                break
            said += part
    os.close(master)
    text = said.decode("ascii")
    assert process.returncode == 2, text
    assert "Traceback" not in text
    assert "\x1b[3" not in text
    assert "gr\\xf6\\xdfe" in text or "gr\\udcc3" in text


# Streams that are closed or full


def in_a_shell(command: str, folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run `command`, in which $D is distilkit, by a shell in `folder`."""
    kept = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "PYTHONUNBUFFERED")}
    path = str(Path(package.__file__).parents[1])
    environment = {**kept, "PYTHONPATH": path, "D": f"{sys.executable} -m distilkit", **variables}
    return subprocess.run(
        ["sh", "-c", command],
        cwd=folder, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip


needs_full = pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")


@needs_full
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_an_answer_that_finds_no_room_is_said(unbuffered: str, tmp_path: Path) -> None:
    for words in ("recipes --json", "--version", "recipes --help", "recipes show nosuch --json"):
        done = in_a_shell(f"$D {words} > /dev/full", tmp_path, PYTHONUNBUFFERED=unbuffered)
        assert done.returncode == 2, (words, done.stderr)
        assert "Traceback" not in done.stderr
        wanted = "there is no recipe 'nosuch'" if "nosuch" in words else f"cannot be written: {os.strerror(28)}"
        assert wanted in done.stderr, words


@needs_full
def test_a_log_without_room_ends_no_training(tmp_path: Path) -> None:
    (tmp_path / "tiny.toml").write_text(TINY.replace("epochs = 2", "epochs = 1"), encoding="utf-8")
    done = in_a_shell("$D train tiny.toml --device cpu --json 2> /dev/full", tmp_path)
    assert done.returncode == 0, done.stdout
    assert json.loads(done.stdout)["state"] == "done"
    assert in_a_shell("$D recipes show nosuch 2> /dev/full", tmp_path).returncode == 2


def test_closed_streams_are_nothing_to_fail_of(run: Path, tmp_path: Path) -> None:
    for command, status in (
        ("$D recipes >&-", 0),
        ("$D recipes show nosuch --json >&- 2>&-", 2),
        (f"$D runs prune --runs {run.parent} --name '*' <&-", 2),
    ):
        done = in_a_shell(command, tmp_path)
        assert done.returncode == status, (command, done.stderr)
        assert "Traceback" not in done.stderr
        assert "fault" not in done.stderr
    assert run.is_dir()
    # A file that is opened then does not take the place of stderr, where libraries print.
    code = "from distilkit.cli import streams; streams.prepare(); file = open('x', 'w'); file.write(str(file.fileno()))"
    in_a_shell(f'{sys.executable} -c "{code}" <&- >&- 2>&-', tmp_path)
    assert int((tmp_path / "x").read_text()) > 2


def test_a_reader_that_leaves_is_no_failure(tmp_path: Path) -> None:
    done = in_a_shell("{ $D recipes; echo $? > status; } | head -1", tmp_path)
    assert done.stdout.count("\n") == 1
    assert done.stderr == ""
    assert int((tmp_path / "status").read_text()) in (0, 141)


@pytest.mark.parametrize("columns", ["0", "-5", "\u00b2", "9" * 12])
def test_a_width_that_is_none_is_no_failure(columns: str, tmp_path: Path) -> None:
    done = in_a_shell("$D recipes show quickstart --help", tmp_path, COLUMNS=columns)
    assert done.returncode == 0, done.stderr


def test_a_working_folder_that_is_gone_is_named(tmp_path: Path) -> None:
    done = in_a_shell("mkdir gone && cd gone && rmdir ../gone && $D compare --json", tmp_path)
    assert done.returncode == 2
    assert "the working folder is not there any more" in json.loads(done.stdout)["error"]["message"]
    assert "Traceback" not in done.stderr
