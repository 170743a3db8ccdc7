"""Methods by the name that a recipe gives them."""

from typing import NamedTuple

from distilkit.methods.base import GroupShape, Method, MethodOptions
from distilkit.methods.baseline import BaselineOptions, Independent, IndependentOptions, KdOptions
from distilkit.methods.cl_ilr import ClIlr, ClIlrOptions
from distilkit.methods.dml import Dml, DmlOptions
from distilkit.methods.okddip import Okddip, OkddipOptions
from distilkit.methods.one import One, OneOptions


class _Entry(NamedTuple):
    options: type[MethodOptions]
    method: type[Method]


_METHODS: dict[str, _Entry] = {
    "baseline": _Entry(BaselineOptions, Independent),
    "independent": _Entry(IndependentOptions, Independent),
    "kd": _Entry(KdOptions, Independent),
    "dml": _Entry(DmlOptions, Dml),
    "cl-ilr": _Entry(ClIlrOptions, ClIlr),
    "one": _Entry(OneOptions, One),
    "okddip": _Entry(OkddipOptions, Okddip),
}


def names() -> tuple[str, ...]:
    """Every method's name, as a recipe spells it."""
    return tuple(_METHODS)


def options_model(name: str) -> type[MethodOptions]:
    """The pydantic model of a method's `[method]` section. Raises `KeyError` for a name that `names` has not."""
    return _METHODS[name].options


def members(options: MethodOptions, students: int) -> tuple[str, ...]:
    """The names of a group's members, in order, as the method calls them."""
    return _METHODS[options.name].method.member_names(options, students)


def leader(options: MethodOptions, students: int) -> int:
    """The place of the leader among the members of a group of so many students."""
    names = members(options, students)
    return names.index(_METHODS[options.name].method.leader(names))


def create(options: MethodOptions, shape: GroupShape, label_smoothing: float = 0.0) -> Method:
    """The method's module for a group of this shape; parameters come from the global random stream.

    Raises `SettingError` where the method's mathematics does not allow this group.
    """
    return _METHODS[options.name].method(options, shape, label_smoothing)
