"""Methods by the name that a recipe gives them."""

from distilkit.methods import registry
from distilkit.methods.base import GroupShape, Method, MethodOptions


def names() -> tuple[str, ...]:
    """Every method's name, as a recipe spells it, in the order of the alphabet."""
    return tuple(registry.entries())


def options_model(name: str) -> type[MethodOptions]:
    """The pydantic model of a method's `[method]` section. Raises `KeyError` for a name that `names` has not."""
    return registry.find(name).options


def members(options: MethodOptions, students: int) -> tuple[str, ...]:
    """The names of a group's members, in order, as the method calls them."""
    return registry.find(options.name).method.member_names(options, students)


def leader(options: MethodOptions, students: int) -> int:
    """The place of the leader among the members of a group of so many students."""
    names = members(options, students)
    return names.index(registry.find(options.name).method.leader(names))


def create(options: MethodOptions, shape: GroupShape, label_smoothing: float = 0.0) -> Method:
    """The method's module for a group of this shape; parameters come from the global random stream.

    Raises `SettingError` where the method's mathematics does not allow this group.
    """
    return registry.find(options.name).method(options, shape, label_smoothing)
