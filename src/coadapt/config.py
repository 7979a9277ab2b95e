"""YAML and the frozen dataclasses: the only place where configuration is read and checked.

A file is read by `load_yaml`, changed by `apply_overrides` (the command line's ``--set``), and made
into an instance of a plain dataclass by `parse`; `to_plain` and `dump_yaml` lead back. Scalars
follow YAML 1.2: ``1e-3`` is a number, ``no``, ``010`` and ``2024-01-01`` are text.
"""

import copy
import dataclasses
import json
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml
from pydantic import TypeAdapter, ValidationError
from yaml.reader import ReaderError

from coadapt._errors import InputError, nearest
from coadapt._yaml import YamlDumper, YamlLoader

T = TypeVar("T")


def load_yaml(path: str | Path) -> dict[str, Any]:
    """Read a YAML file whose top is a mapping.

    Args:
        path: the file, in UTF-8.

    Returns:
        The file's content as plain data; keys are text.

    Raises:
        InputError: with file and line, if the file is missing, empty, not UTF-8, not YAML, has a
            key twice in one mapping, or does not hold a mapping.
    """
    try:
        raw = Path(path).read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); check the path") from error
    data = _load(decode_utf8(raw, str(path)), str(path))
    if data is None:
        raise InputError(f"{path}: the file is empty; write 'key: value' lines")
    if not isinstance(data, dict):
        kind = type(data).__name__
        raise InputError(f"{path}: found a {kind} at the top; write 'key: value' lines")
    return data


def decode_utf8(raw: bytes, where: str) -> str:
    """Decode UTF-8, with or without a byte order mark; the error names line and byte offset."""
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise InputError(
            f"{where}, line {line}: not UTF-8 at byte offset {error.start} "
            f"(0x{raw[error.start]:02x}); save the file as UTF-8"
        ) from error


def _load(text: str, where: str) -> object:
    try:
        return yaml.load(text, Loader=YamlLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f", line {mark.line + 1}" if mark else ""
        raise InputError(f"{where}{line}: {error.problem or error.context}") from error
    except ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise InputError(f"{where}, line {line}: {error.reason}") from error


def apply_overrides(data: Mapping[str, Any], assignments: Iterable[str]) -> dict[str, Any]:
    """Return a copy of ``data`` with each ``a.b.c=value`` applied, in order.

    Args:
        data: plain data, left as it is.
        assignments: dotted key and YAML value; mappings that are missing on the way are made.

    Raises:
        InputError: if an assignment is malformed or a key on the way holds no mapping.
    """
    result: dict[str, Any] = copy.deepcopy(dict(data))
    for assignment in assignments:
        key, equals, value = assignment.partition("=")
        parts = key.strip().split(".")
        if not equals or not all(parts):
            raise InputError(f"--set {assignment}: write key=value, as in training.seed=1")
        node = result
        for depth, part in enumerate(parts[:-1], start=1):
            if node.get(part) is None:
                node[part] = {}
            node = node[part]
            if not isinstance(node, dict):
                found = ".".join(parts[:depth])
                raise InputError(f"--set {assignment}: '{found}' is {node!r}, not a mapping")
        node[parts[-1]] = _load(value, f"--set {assignment}")
    return result


def parse(cls: type[T], data: object, where: str) -> T:
    """Make an instance of a plain dataclass from plain data, and check it.

    Nested dataclasses, tuples, mappings and unions of dataclasses are followed. A union is told
    apart by the ``kind`` field, a ``Literal`` with one value in each member, and ``kind`` has to be
    given there. Integers pass for floats and lists for tuples; no other type is converted.

    Args:
        cls: the dataclass.
        data: plain data, as from `load_yaml` or `to_plain`.
        where: what the data comes from (a file), to begin an error message with.

    Raises:
        InputError: naming ``where``, the dotted key, the value found and what would do.
    """
    _check_keys(cls, data, where, "")
    try:
        # In JSON mode "strict" takes lists for tuples and mappings for dataclasses, nothing else.
        return _adapter(cls).validate_json(json.dumps(data), strict=True)
    except ValidationError as error:
        raise InputError(_describe(error, data, where)) from error
    except TypeError as error:
        raise InputError(f"{where}: holds something YAML cannot express ({error})") from error


@cache
def _adapter(cls: type[T]) -> TypeAdapter[T]:
    return TypeAdapter(cls)


def _check_keys(hint: object, data: object, where: str, key: str) -> None:
    """Refuse unknown keys and kinds; everything else is pydantic's to check."""
    if isinstance(data, dict):
        hint = _pick(hint, data, where, key)
        if dataclasses.is_dataclass(hint) and isinstance(hint, type):
            hints = get_type_hints(hint)
            known = {f.name: hints[f.name] for f in dataclasses.fields(hint) if f.init}
            for name, value in data.items():
                if name not in known:
                    raise InputError(
                        f"{where}: unknown key '{_join(key, name)}'{nearest(name, known)}"
                    )
                _check_keys(known[name], value, where, _join(key, name))
        elif get_origin(hint) in (dict, Mapping):
            for name, value in data.items():
                _check_keys(get_args(hint)[1], value, where, _join(key, name))
    elif isinstance(data, (list, tuple)):
        for option in _options(hint):
            if get_origin(option) in (list, tuple, Sequence):
                for index, value in enumerate(data):
                    name = _item(value, index)
                    _check_keys(get_args(option)[0], value, where, _join(key, name))
                break


def _pick(hint: object, data: dict[str, object], where: str, key: str) -> object:
    """Return the member of a union that a mapping is meant for."""
    options = _options(hint)
    parts = [o for o in options if isinstance(o, type) and dataclasses.is_dataclass(o)]
    if len(parts) < 2:
        mappings = [option for option in options if get_origin(option) in (dict, Mapping)]
        return (parts or mappings or [hint])[0]
    by_kind = {kind: part for part in parts for kind in _kinds(part)}
    kind = data.get("kind")
    if isinstance(kind, str) and kind in by_kind:
        return by_kind[kind]
    place = f"{where}: {key}" if key else where
    if kind is None:
        raise InputError(f"{place}: add 'kind'; known: {', '.join(by_kind)}")
    raise InputError(f"{place}: unknown kind '{kind}'{nearest(str(kind), by_kind)}")


def _options(hint: object) -> tuple[object, ...]:
    """Return the members of a union, or the one type."""
    if get_origin(hint) is typing.Annotated:
        hint = get_args(hint)[0]
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


def _kinds(part: type) -> tuple[str, ...]:
    hint = get_type_hints(part).get("kind")
    assert get_origin(hint) is Literal, f"{part.__name__} in a union needs a Literal field 'kind'"
    return get_args(hint)


def _join(key: str, name: object) -> str:
    return f"{key}.{name}" if key else str(name)


def _item(value: object, index: int) -> object:
    """Name an item of a list by its own name, where it has one."""
    return value["name"] if isinstance(value, dict) and "name" in value else index


def _describe(error: ValidationError, data: object, where: str) -> str:
    """Turn pydantic's errors into lines of place, key, value and remedy."""
    errors = error.errors(include_url=False)
    # The members of a union that were not meant complain too; their `kind` gives them away.
    foreign = [e["loc"][:-1] for e in errors if e["loc"][-1:] == ("kind",)]
    meant = [e for e in errors if all(e["loc"][: len(loc)] != loc for loc in foreign)] or errors
    lines: dict[str, str] = {}
    for found in meant:
        key, value = _locate(found["loc"], data)
        cause = found.get("ctx", {}).get("error")
        if isinstance(cause, ValueError):
            lines[key] = str(cause)
        elif found["type"] == "missing":
            lines[_join(key, found["loc"][-1])] = "is missing; add it"
        else:
            shown = repr(value) if len(repr(value)) <= 80 else repr(value)[:77] + "..."
            remedy = _WORDS.get(found["type"], found["msg"].removeprefix("Input should be "))
            line = lines.setdefault(key, f"found {shown}; give {remedy}")
            if remedy not in line:
                lines[key] += f" or {remedy}"
    return f"{where}: " + "\n  ".join(f"{k}: {line}" if k else line for k, line in lines.items())


# What pydantic calls by its JSON name.
_WORDS = {
    "dataclass_type": "a mapping",
    "dict_type": "a mapping",
    "tuple_type": "a list",
    "list_type": "a list",
    "string_type": "a text",
    "int_type": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "none_required": "nothing",
}


def _locate(loc: tuple[int | str, ...], data: object) -> tuple[str, object]:
    """Follow pydantic's location, less its names of union members, to a dotted key and value."""
    key = ""
    for part in loc:
        if isinstance(data, (list, tuple)) and isinstance(part, int):
            data, key = data[part], _join(key, _item(data[part], part))
        elif isinstance(data, dict) and part in data:
            data, key = data[part], _join(key, part)
    return key, data


# Of a dataclass' field that came after results had been kept under hashes: `field(metadata=LATER)`.
LATER: Mapping[str, bool] = {"later": True}


def to_plain(value: object, *, hashed: bool = False) -> Any:
    """Turn dataclasses, tuples and mappings into plain data that `parse` reads back.

    Args:
        value: what to turn.
        hashed: leave out the fields marked `LATER` that have their default, so that what was
            described before they existed has the same description still.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {
            field.name: to_plain(getattr(value, field.name), hashed=hashed)
            for field in dataclasses.fields(value)
            if field.init and not (hashed and _is_later(field, getattr(value, field.name)))
        }
    if isinstance(value, Mapping):
        return {str(key): to_plain(item, hashed=hashed) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_plain(item, hashed=hashed) for item in value]
    if isinstance(value, Path):
        return str(value)
    assert value is None or isinstance(value, (str, int, float, bool)), repr(value)
    return value


def _is_later(field: "dataclasses.Field[Any]", value: object) -> bool:
    made = field.default_factory
    default = field.default if made is dataclasses.MISSING else made()
    return bool(field.metadata.get("later")) and value == default


def dump_yaml(plain: object) -> str:
    """Write plain data as YAML, keys in their order."""
    return yaml.dump(plain, Dumper=YamlDumper, sort_keys=False, allow_unicode=True, width=100)


def changed_keys(key: str, old: Any, new: Any) -> list[str]:
    """Return the dotted keys, below and with ``key``, under which two plain values differ."""
    if json.dumps(old, sort_keys=True) == json.dumps(new, sort_keys=True):  # 1 is not 1.0 here
        return []
    if isinstance(old, dict) and isinstance(new, dict):
        names = {**old, **new}
        return [name for k in names for name in changed_keys(f"{key}.{k}", old.get(k), new.get(k))]
    return [key]
