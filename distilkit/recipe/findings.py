"""What an inspection carries from check to check: the merged recipe, and what has been found in it so far."""

from collections.abc import Mapping
from typing import Any

from distilkit.errors import Fault
from distilkit.recipe.layers import Place
from distilkit.recipe.toml_lines import Key, dotted
from distilkit.recipe.tracker_options import typed_by_the_user
from distilkit.recipe.wording import shown


class Findings:
    """A merged recipe, `tree`, and what has been found in it so far; `source` is its file.

    `of_a_run`: it is a run's own record, not what somebody asks for. `typed`: keys of `[tracking]` that no file set.
    """

    def __init__(
        self,
        tree: dict[str, Any],
        places: Mapping[Key, Place],
        source: str,
        faults: list[Fault],
        *,
        of_a_run: bool = False,
    ) -> None:
        self.tree = tree
        self.places = places
        self.source = source
        self.faults = faults
        # A run's recipe keeps what its user had typed, which counts again only where it is typed again.
        self.of_a_run = of_a_run
        self.typed = typed_by_the_user({key: place.line for key, place in places.items()})
        # Section or key that an unknown one was probably meant to be: that it is missing is then no second fault.
        self.meant: set[Key] = set()
        # Valid values by key, defaults included, for the checks across keys and sections.
        self.good: dict[Key, Any] = {}

    def fault(self, key: Key, problem: str, hint: str | None = None) -> None:
        """Note what is wrong with `key`, at the place that set it or the nearest known one above it."""
        self.faults.append(Fault(str(self.place(key)), ".".join(key), problem, hint))

    def missing(self, key: Key, wanted: str, hint: str | None = None) -> None:
        """Note that `key` is not there."""
        if key not in self.meant and key[:1] not in self.meant:
            problem = f"{dotted(key)} is missing; it must be {wanted}"
            self.fault(key, problem, hint or f"add {key[-1]} = ... under [{key[0]}]")

    def place(self, key: Key) -> Place:
        """Where `key` was set, or the nearest table around it."""
        while key:
            if key in self.places:
                return self.places[key]
            key = key[:-1]
        return Place(self.source)

    def correction(self, key: Key, value: object) -> str:
        """Hint what to type instead, in the way in which the key was typed."""
        text = shown(value)
        if self.place(key).source.startswith("--set "):
            return f"write --set {dotted(key)}=" + (f"'{text}'" if isinstance(value, str) else text)
        return f"write {key[-1]} = {text}"
