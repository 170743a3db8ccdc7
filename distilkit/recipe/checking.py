"""One section of a recipe against its model: a fault for each key that is wrong, with what was probably meant."""

import math
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel, ValidationError

from distilkit.errors import SettingError, UserError, did_you_mean, nearest
from distilkit.recipe.findings import Findings
from distilkit.recipe.removed import REMOVED
from distilkit.recipe.sections import DEFAULT_NAMES, SECTIONS, known_keys, variants
from distilkit.recipe.toml_lines import Key, NotToml, dotted, parse
from distilkit.recipe.wording import allowed_words, describe, shown


def validate(found: Findings, section: Key, model: type[BaseModel], table: dict[str, Any]) -> BaseModel | None:
    """Check the keys of a section, `table`: give it back, or None after noting a fault for each key that is wrong."""
    table = {key: _tuples(value) for key, value in table.items()}
    instance, errors = _try(model, table)
    wrong: dict[str, str | None] = dict.fromkeys(key for key in table if not _finite(table[key]))
    for key, message in errors.items():
        wrong.setdefault(key, message)
    unknown = [key for key in table if key not in model.model_fields]
    for key in unknown:
        _unknown(found, section[0], key, model, table.get("name"))
    for key, message in wrong.items():
        path = (*section, key) if key else section
        if key in unknown:
            continue
        if key and key not in table:
            found.missing(path, describe(model.model_fields[key]))
        elif message is not None:
            found.fault(path, f"{dotted(path)}: {message}")
        else:
            _wrong_value(found, path, model, table)
    if "" not in wrong:
        for key, field in model.model_fields.items():
            if key not in wrong:
                found.good[*section, key] = table.get(key, field.get_default())
    return None if wrong or unknown else instance


def _try(model: type[BaseModel], table: dict[str, Any]) -> tuple[BaseModel | None, dict[str, str | None]]:
    """Validate; key -> message of what is wrong, None where the field's own description says it better."""
    try:
        return model.model_validate(table), {}
    except UserError as error:  # from a model's own validator
        key = error.key.rpartition(".")[2] if isinstance(error, SettingError) else ""
        return None, {key: error.problem + (f" ({error.hint})" if error.hint else "")}
    except ValidationError as error:
        wrong: dict[str, str | None] = {}
        for detail in error.errors(include_url=False, include_input=False):
            key = str(detail["loc"][0]) if detail["loc"] else ""
            own_words = detail["type"] in ("value_error", "assertion_error")
            wrong[key] = str(detail.get("ctx", {}).get("error", detail["msg"])) if own_words else None
        return None, wrong


def _unknown(found: Findings, section: str, key: str, model: type[BaseModel], name: object) -> None:
    if removed := REMOVED.get((section, key)):
        found.fault((section, key), f"{section}.{key} was removed in this version", removed.remedy)
        return
    varies = section in DEFAULT_NAMES
    known = [field for field in model.model_fields if not (varies and field == "name")]
    owners = [other for other, rival in variants(section).items() if key in rival.model_fields] if varies else []
    elsewhere = [other for other in SECTIONS if other != section and key in known_keys(other)]
    match = nearest(key, known)
    hint = f"did you mean {match!r}?" if match else None
    if owners:
        hint = f"{key!r} is a key of {', '.join(f'name = {shown(owner)}' for owner in owners)}"
    elif elsewhere and key != "name":
        hint = f"{key!r} belongs in [{elsewhere[0]}]"
    elif match:
        found.meant.add((section, match))
    allowed = f"{name!r} knows: {', '.join(known)}" if varies else f"allowed: {', '.join(known)}"
    if not known:
        allowed = f"{name!r} has none but name"
    found.fault((section, key), f"unknown key {key!r} in [{section}]; {allowed}", hint)


def _wrong_value(found: Findings, key: Key, model: type[BaseModel], table: dict[str, Any]) -> None:
    value = table[key[-1]]
    if not _finite(value):
        found.fault(key, f"{dotted(key)} must be finite, not {shown(value)}")
        return
    field = model.model_fields[key[-1]]
    hint = did_you_mean(value, allowed_words(field)) if isinstance(value, str) else None
    if hint is None:
        candidates = (read for read in _readings(value) if key[-1] not in _try(model, {**table, key[-1]: read})[1])
        hint = next((found.correction(key, read) for read in candidates), None)
    found.fault(key, f"{dotted(key)} must be {describe(field, value)}, not {shown(value)}", hint)


def _readings(value: object) -> Iterator[object]:
    """Guess what a value of the wrong type was meant to be."""
    if isinstance(value, str):
        if value.casefold() in ("true", "yes", "on", "false", "no", "off"):
            yield value.casefold() in ("true", "yes", "on")
        try:
            tree, _ = parse(f"value = {value}")
        except NotToml:
            return
        if len(tree) == 1:
            yield _tuples(tree["value"])
    elif isinstance(value, bool):
        yield str(value).lower()
    elif isinstance(value, int | float):
        # 1.0 may be the whole of something or one of them: no guess.
        if isinstance(value, float) and value.is_integer() and abs(value) > 1:
            yield int(value)
        if value in (0, 1):
            yield bool(value)
        yield (value,)
        yield str(value)
    elif isinstance(value, tuple) and len(value) == 1:
        yield value[0]


def _tuples(value: Any) -> Any:
    """Arrays as tuples: what frozen sections hold, and strict models ask for."""
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value


def _finite(value: object) -> bool:
    if isinstance(value, float):
        return math.isfinite(value)
    if isinstance(value, dict):
        return all(_finite(item) for item in value.values())
    return all(_finite(item) for item in value) if isinstance(value, list | tuple) else True
