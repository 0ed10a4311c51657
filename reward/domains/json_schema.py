"""JSON that fits a schema (JSON Schema, by the library jsonschema).

The reference is a schema, or ``{"schema": {...}, "equals": value}`` where the value is known too.
Read is the announced answer or the last fenced block; without either, all that follows the thought
has to be JSON. NaN, a name that stands twice in an object, and text around the value are refused. A
schema may refer to its own parts only; nothing is fetched.
"""

import re
from dataclasses import dataclass
from typing import Any

from reward.domains.base import Domain, Judgement, read_json, right
from reward.extract import extract
from reward.verdict import GradingPolicy

_FENCE = re.compile(r"```[ \t]*+(?:json|JSON)?[ \t]*+\n(.*?)```", re.DOTALL)
_ABSENT = object()


@dataclass(frozen=True)
class Schema:
    """A reference: what validates a value, and the value where it is known."""

    validator: Any
    equals: Any = _ABSENT


class JsonSchemaDomain(Domain):
    """JSON under a schema."""

    name = "json_schema"
    reads = "response"

    def reference(self, gold: str) -> Schema:
        """A schema, alone or in an object with ``equals``."""
        from jsonschema import FormatChecker, SchemaError
        from jsonschema.validators import Draft202012Validator, validator_for
        from referencing import Registry

        found = read_json(gold)
        if not isinstance(found, dict):
            raise ValueError("the reference is no JSON object")
        wrapped = "schema" in found and set(found) <= {"schema", "equals"}
        schema = found["schema"] if wrapped else found
        if not isinstance(schema, dict | bool):
            raise ValueError("the schema is no JSON object")
        _check_references(schema)
        kind = validator_for(schema, default=Draft202012Validator)
        try:
            kind.check_schema(schema)
        except SchemaError as error:
            raise ValueError(f"no JSON schema: {error.message[:200]}") from None
        validator = kind(schema, registry=Registry(), format_checker=FormatChecker())
        return Schema(validator, found.get("equals", _ABSENT) if wrapped else _ABSENT)

    def judge(self, text: str, reference: Schema, policy: GradingPolicy) -> Judgement:
        """Whether the value fits, and is the one that is known."""
        value = read_json(_json_in(text))
        fault = next(iter(reference.validator.iter_errors(value)), None)
        if fault is not None:
            return right(False, f"{fault.json_path}: {fault.message[:200]}")
        if reference.equals is not _ABSENT and not _same(value, reference.equals):
            return right(False, "it fits the schema and has another value")
        return right(True, "it fits the schema")


def _json_in(text: str) -> str:
    fences = _FENCE.findall(text)
    if fences:
        return str(fences[-1])
    marked = extract(text, "marked")
    return marked.answer if marked.source == "tag" and marked.answer else text


def _same(left: object, right: object) -> bool:
    """Equality of JSON values: true is not 1, but 1 is 1.0."""
    if isinstance(left, bool) or isinstance(right, bool):
        return left is right
    if isinstance(left, dict) and isinstance(right, dict):
        return left.keys() == right.keys() and all(_same(left[key], right[key]) for key in left)
    if isinstance(left, list) and isinstance(right, list):
        return len(left) == len(right) and all(map(_same, left, right))
    return left == right


def _check_references(schema: object) -> None:
    """Refuse references out of the schema.

    Raises:
        ValueError: there is one.
    """
    waiting = [schema]
    while waiting:
        item = waiting.pop()
        if isinstance(item, dict):
            for key in ("$ref", "$dynamicRef"):
                if isinstance(item.get(key), str) and not item[key].startswith("#"):
                    raise ValueError(f"the schema refers to {item[key]!r}, not to its own parts")
            waiting += item.values()
        elif isinstance(item, list):
            waiting += item


DOMAINS = {"json_schema": JsonSchemaDomain()}
