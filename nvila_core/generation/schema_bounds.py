"""Bound a JSON schema, so that an answer that follows it comes to an end.

What a schema leaves open, a model may fill until its tokens run out: more keys, a longer string,
one more item. The bounds admit only part of what the schema admits, never anything else.
"""

import json
from collections.abc import Iterator
from typing import Any

MAX_STRING = 500
"""Characters of a string whose schema has no `maxLength`."""

MAX_ITEMS = 50
"""Items of an array whose schema has no `maxItems`."""

MAX_NUMBER = 10**15
"""Size of a number whose schema has no `minimum` or `maximum`: a float holds no more digits."""

NUMBER_STEP = 1e-6
"""`multipleOf` of a number whose schema has none: its decimals end."""

_EMPTY = 6
"""Bytes of an empty value and what separates it from others."""

_MAPS = ("properties", "patternProperties", "$defs", "definitions")
_LISTS = ("prefixItems",)
_VALUES = ("items", "additionalItems", "additionalProperties", "contains", "propertyNames")
_BRANCHES = ("allOf", "anyOf", "oneOf")
_OPEN = ("additionalProperties", "unevaluatedProperties")
_OWN_RULES = frozenset({"type", "properties", "patternProperties", "required", *_OPEN})


def bounded(schema: dict[str, Any]) -> dict[str, Any]:
    """Return `schema` with bounds where it has none.

    An object that names its properties admits no others, as in OpenAI's strict mode, unless
    `additionalProperties` says so. Strings get `maxLength`, arrays `maxItems`, numbers `minimum`,
    `maximum` and a number of decimals. An object without `properties`, and a schema without a type,
    stay open.
    """
    made: dict[str, Any] = _Bounds(schema).value(schema, "#")
    return made


def least_rest(schema: Any) -> int:
    """Estimate the bytes that complete an answer from any point in it: the names of all properties,
    the longest of fixed values, and empty values."""
    if isinstance(schema, list):
        return sum(least_rest(each) for each in schema)
    if not isinstance(schema, dict):
        return 0
    fixed = [schema["const"]] if "const" in schema else schema.get("enum")
    if isinstance(fixed, list) and fixed:
        return max(len(json.dumps(value).encode()) for value in fixed) + 2
    size = _EMPTY
    for key in (*_MAPS, *_LISTS, *_VALUES, *_BRANCHES):
        inner = schema.get(key)
        if key in _MAPS and isinstance(inner, dict):
            size += sum(len(json.dumps(name)) + _EMPTY + least_rest(s) for name, s in inner.items())
        else:
            size += least_rest(inner)
    for key, each in (("minLength", 1), ("minItems", least_rest(schema.get("items")))):
        if isinstance(schema.get(key), int):
            size += schema[key] * each
    return size


class _Bounds:
    """Walks one schema. `at` is the JSON pointer of a subschema."""

    def __init__(self, root: dict[str, Any]) -> None:
        self._root = root
        self._parts = set(self._parts_of(root))

    def value(self, schema: Any, at: str) -> Any:
        """Bound the subschema at `at` that describes a whole value."""
        if not isinstance(schema, dict):
            return schema
        if at in self._parts:
            return self.part(schema, at)
        if _is_combined(schema):
            return self._closed_together(schema, self.part(schema, at))
        new = self._inner(schema, at)
        for key in _BRANCHES:
            if isinstance(schema.get(key), list):
                new[key] = [self.value(s, f"{at}/{key}/{i}") for i, s in enumerate(schema[key])]
        return _bound_numbers(_bound_text(_bound_items(_close(new))))

    def part(self, schema: Any, at: str) -> Any:
        """Bound what is inside the subschema at `at`, which describes a value along with others."""
        if not isinstance(schema, dict):
            return schema
        new = self._inner(schema, at)
        for key in _BRANCHES:
            if isinstance(schema.get(key), list):
                new[key] = [self.part(s, f"{at}/{key}/{i}") for i, s in enumerate(schema[key])]
        return new

    def _inner(self, schema: dict[str, Any], at: str) -> dict[str, Any]:
        new = dict(schema)
        for key in _MAPS:
            if isinstance(schema.get(key), dict):
                named = schema[key].items()
                new[key] = {name: self.value(s, f"{at}/{key}/{_escape(name)}") for name, s in named}
        for key in (*_LISTS, *_VALUES):
            inner = schema.get(key)
            if isinstance(inner, list):
                new[key] = [self.value(s, f"{at}/{key}/{i}") for i, s in enumerate(inner)]
            elif isinstance(inner, dict):
                new[key] = self.value(inner, f"{at}/{key}")
        return new

    def _closed_together(self, schema: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
        """Close an object that several subschemas describe: to the properties of all of them."""
        names = self._names(schema, set())
        if not names:
            return new
        own = new.get("properties", {})
        properties = {**own, **{name: {} for name in names if name not in own}}
        return {**new, "properties": properties, "additionalProperties": False}

    def _names(self, schema: Any, seen: set[str]) -> list[str] | None:
        """Return the properties that `schema` and its parts name; None if one is open."""
        if not isinstance(schema, dict):
            return []
        if any(key in schema for key in (*_OPEN, "patternProperties")):
            return None
        found = [*schema.get("properties", {}), *schema.get("required", [])]
        parts = [part for key in _BRANCHES for part in schema.get(key, [])]
        if isinstance(ref := schema.get("$ref"), str) and ref not in seen:
            seen.add(ref)
            parts.append(self._resolve(ref))
        for part in parts:
            names = self._names(part, seen)
            if names is None:
                return None
            found += names
        return found

    def _resolve(self, ref: str) -> Any:
        place: Any = self._root
        for step in ref.removeprefix("#").split("/")[1:]:
            key = step.replace("~1", "/").replace("~0", "~")
            if isinstance(place, list) and key.isdecimal() and int(key) < len(place):
                place = place[int(key)]
            elif isinstance(place, dict):
                place = place.get(key)
            else:
                return None
        return place

    def _parts_of(self, schema: Any) -> Iterator[str]:
        """Yield the references to subschemas that describe a value along with others."""
        if isinstance(schema, list):
            for inner in schema:
                yield from self._parts_of(inner)
        elif isinstance(schema, dict):
            if _is_combined(schema):
                yield from self._references(schema, set())
            for inner in schema.values():
                yield from self._parts_of(inner)

    def _references(self, schema: Any, seen: set[str]) -> Iterator[str]:
        if not isinstance(schema, dict):
            return
        for key in _BRANCHES:
            for part in schema.get(key, []) if isinstance(schema.get(key), list) else []:
                yield from self._references(part, seen)
        if isinstance(ref := schema.get("$ref"), str) and ref not in seen:
            seen.add(ref)
            yield ref
            yield from self._references(self._resolve(ref), seen)


def _is_combined(schema: dict[str, Any]) -> bool:
    """Whether several subschemas describe the same value at once."""
    groups = [key for key in _BRANCHES if schema.get(key)]
    if isinstance(schema.get("allOf"), list) and len(schema["allOf"]) > 1:
        return True
    combined = len(groups) + ("$ref" in schema)
    return combined > 1 or (combined == 1 and not _OWN_RULES.isdisjoint(schema))


def _close(schema: dict[str, Any]) -> dict[str, Any]:
    named = schema.get("properties") or schema.get("patternProperties")
    if not isinstance(named, dict) or any(key in schema for key in _OPEN):
        return schema
    properties = dict(schema.get("properties") or {})
    required = schema.get("required")
    for name in required if isinstance(required, list) else []:
        properties.setdefault(name, {})  # required, but described nowhere: any value
    return {**schema, "properties": properties, "additionalProperties": False}


def _bound_text(schema: dict[str, Any]) -> dict[str, Any]:
    least = schema.get("minLength", 0)
    if (
        not _may_be(schema, "string", ("minLength", "pattern", "format"))
        or not {"maxLength", "enum", "const"}.isdisjoint(schema)
        or not isinstance(least, int)
    ):
        return schema
    return {**schema, "maxLength": max(MAX_STRING, least)}


def _bound_items(schema: dict[str, Any]) -> dict[str, Any]:
    least = schema.get("minItems", 0)
    first = schema.get("prefixItems", [])
    if (
        not _may_be(schema, "array", ("items", "prefixItems", "minItems"))
        or not {"maxItems", "enum", "const"}.isdisjoint(schema)
        or not isinstance(least, int)
        or not isinstance(first, list)
    ):
        return schema
    return {**schema, "maxItems": max(MAX_ITEMS, least, len(first))}


def _bound_numbers(schema: dict[str, Any]) -> dict[str, Any]:
    lower, upper = ("minimum", "exclusiveMinimum"), ("maximum", "exclusiveMaximum")
    given = {key: schema[key] for key in (*lower, *upper, "multipleOf") if key in schema}
    decimals = _may_be(schema, "number", tuple(given))
    if (
        not (decimals or _may_be(schema, "integer", ()))
        or not {"enum", "const"}.isdisjoint(schema)
        or not all(type(value) in (int, float) for value in given.values())
    ):
        return schema
    new, sizes = dict(schema), [abs(value) for value in given.values() if value]
    most = max([MAX_NUMBER, *sizes])
    if given.keys().isdisjoint(lower):
        new["minimum"] = -most
    if given.keys().isdisjoint(upper):
        new["maximum"] = most
    if decimals and "multipleOf" not in given and min(sizes, default=1) >= 1000 * NUMBER_STEP:
        new["multipleOf"] = NUMBER_STEP
    return new


def _may_be(schema: dict[str, Any], kind: str, keywords: tuple[str, ...]) -> bool:
    types = schema.get("type")
    if types is None:
        return any(keyword in schema for keyword in keywords)
    return types == kind or (isinstance(types, list) and kind in types)


def _escape(name: str) -> str:
    return name.replace("~", "~0").replace("/", "~1")
