"""A network of the user's own: `package.module:builder`, a function that distilkit imports and calls.

To import a module is to execute it, and a run or a recipe that somebody else wrote can name any module there is. So
nothing is imported here unless the caller has said, around the very call that needs it, that code may be executed:

    with code_trusted():
        model = Run.open(path).model()

The command line says so where `--trust-code` was typed. That is the whole of the decision: it is kept in a context
variable of this file, which new threads do not inherit, and nowhere else; no recipe and no run can hold it.

Before the first module is imported, people read the names of all: whoever opens several networks calls `name_modules`.
"""

import functools
import importlib
import inspect
import keyword
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from torch import nn

from distilkit.errors import SettingError, UserError, did_you_mean
from distilkit.models.external import is_external

FORM = "package.module:builder"


class _Permission(NamedTuple):
    """Given for one block. `named`: the modules that `tell` has been told of."""

    tell: Callable[[str], object]
    named: set[str]


_trusted: ContextVar[_Permission | None] = ContextVar("code_trusted", default=None)


def _nobody(_: str) -> None:
    """Whoever trusts code from Python has named it there."""


@contextmanager
def code_trusted(trust: bool = True, tell: Callable[[str], object] = _nobody) -> Iterator[None]:
    """Inside the block the modules that build users' own networks may be imported, and so executed.

    `trust`: False takes the permission away inside the block, also where it was given around it. `tell`: is told, in
    one line, which modules will be imported, before the first of them is.
    """
    token = _trusted.set(_Permission(tell, set()) if trust else None)
    try:
        yield
    finally:
        _trusted.reset(token)


def is_trusted() -> bool:
    """Whether the caller has said so, and this is inside `code_trusted`."""
    return _trusted.get() is not None


def name_modules(architectures: Iterable[str]) -> None:
    """Tell people of the modules that these networks need, of each once; outside of `code_trusted` nothing is said.

    To be called with all that a command will build before it builds the first of them.
    """
    permission = _trusted.get()
    if permission is None:
        return
    needed = dict.fromkeys(_parts(name)[0] for name in architectures if is_own(name) and not fault(name))
    if new := [module for module in needed if module not in permission.named]:
        permission.named.update(new)
        permission.tell(f"--trust-code: importing {', '.join(new)}")


class UntrustedCodeError(UserError):
    """A network would have to be built by code that nobody has allowed to be executed.

    `architecture`: its name, "package.module:builder". `who`: what would execute it, the beginning of a sentence.
    """

    def __init__(self, architecture: str, who: str = "this run") -> None:
        module, builder = _parts(architecture)
        super().__init__(
            f"{who} would execute code from the module {module!r}, whose {builder!r} builds the network",
            "read that code; if you trust it, add --trust-code to the command (it holds for this one command)",
        )
        self.architecture = architecture


class Code(NamedTuple):
    """Where a network of the user's own comes from."""

    module: str
    builder: str


def is_own(name: str) -> bool:
    """Whether `name` means a function of the user's, by its form alone: it has a colon, and no library before it."""
    return ":" in name and not is_external(name)


def code(name: str) -> Code | None:
    """The module and function that `name` means; None for an architecture that is not the user's own."""
    return Code(*_parts(name)) if is_own(name) else None


def fault(name: str) -> tuple[str, str | None] | None:
    """What is wrong with the form of `name`, a user's own by `is_own`: (problem, hint), or None. Imports nothing."""
    module, builder = _parts(name)
    words = [*module.split("."), builder]
    if all(word.isidentifier() and not keyword.iskeyword(word) for word in words):
        return None
    hint = "write the module as Python imports it: nets.small, not nets/small.py" if "/" in name else None
    return f"{name!r} is not of the form {FORM}", hint


def require_trust(name: str, who: str = "this run") -> None:
    """Raise `UntrustedCodeError` if `name` is a user's own and this is not inside `code_trusted`."""
    if is_own(name) and not is_trusted():
        raise UntrustedCodeError(name, who)


def builder(name: str) -> Callable[..., nn.Module]:
    """Import the module of `name` and find its builder: (num_classes, channels) -> network with fresh weights.

    The working folder goes before all else that is importable while the module is imported and while the network is
    built. Raises `UntrustedCodeError`, before anything is imported, outside of `code_trusted`; `SettingError` on
    "architecture" where there is no such module or function, where importing or building fails, or where what is
    built is no `torch.nn.Module`.
    """
    require_trust(name)
    if wrong := fault(name):
        raise SettingError("architecture", *wrong)
    name_modules([name])
    where, what = _parts(name)
    function = _function(_module(where), what)

    def build(*arguments: Any, **keywords: Any) -> nn.Module:
        try:
            with _working_folder_first():
                network = function(*arguments, **keywords)
        except (Exception, SystemExit) as error:  # any kind: it is not our code
            raise SettingError(
                "architecture", f"{name} fails to build the network: {_told(error, where)}", "mend the builder"
            ) from error
        if not isinstance(network, nn.Module):
            raise SettingError(
                "architecture",
                f"{name} returns something of type {type(network).__name__}, not a torch.nn.Module",
                "its builder must return the network",
            )
        return network

    with suppress(ValueError, TypeError):  # what is written in C may have no signature
        signature = inspect.signature(function)
        try:
            signature.bind(10, 3)
        except TypeError as error:
            raise SettingError(
                "architecture",
                f"{name} cannot be called with (num_classes, channels): {error}",
                f"define it as {what}(num_classes, channels)",
            ) from error
        functools.update_wrapper(build, function, assigned=("__name__", "__doc__"), updated=())
    return build


def _parts(name: str) -> tuple[str, str]:
    module, _, function = name.partition(":")
    return module, function


def _module(name: str) -> ModuleType:
    importlib.invalidate_caches()  # the file may be younger than the finder's knowledge of its folder
    try:
        with _working_folder_first():
            return importlib.import_module(name)
    except (Exception, SystemExit) as error:  # any kind: importing executes what the file says
        if isinstance(error, ModuleNotFoundError) and error.name and f"{name}.".startswith(f"{error.name}."):
            near = did_you_mean(name, [file.stem for file in Path.cwd().glob("*.py")])
            raise SettingError(
                "architecture",
                f"there is no module {name!r}, neither in the working folder {Path.cwd()} nor installed",
                near or "type the command in the folder that holds it, or install the package that it belongs to",
            ) from error
        raise SettingError(
            "architecture", f"the module {name!r} cannot be imported: {_told(error, name)}", "mend the module"
        ) from error


def _function(module: ModuleType, name: str) -> Callable[..., Any]:
    function = getattr(module, name, None)
    if callable(function):
        return function  # type: ignore[no-any-return]
    there = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
    problem = f"the module {module.__name__!r} has no function {name!r}"
    if function is not None:
        problem = f"{name!r} in the module {module.__name__!r} is a {type(function).__name__}, not a function"
    raise SettingError("architecture", problem, did_you_mean(name, there) or f"define {name} in {module.__file__}")


def _told(error: BaseException, module: str) -> str:
    """The exception in one line, with the last line of the user's module that led to it."""
    told = ": ".join(filter(None, [type(error).__name__, next(iter(str(error).splitlines()), "")]))
    path = tuple(module.split("."))
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        file = Path(frame.filename).with_suffix("")
        if file.parts[-len(path) :] == path or (file.name == "__init__" and file.parts[-len(path) - 1 : -1] == path):
            return f"{told} ({frame.filename}, line {frame.lineno})"
    return told


@contextmanager
def _working_folder_first() -> Iterator[None]:
    """As `python -m` has it; the script `distilkit` has its own folder there. Only for as long as it is needed."""
    folder = str(Path.cwd())
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        with suppress(ValueError):  # the user's module may have changed the path itself
            sys.path.remove(folder)
