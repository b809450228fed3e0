"""Strict JSON (RFC 8259): bodies are checked before the framework's lenient parser reads them."""

import json
import math
from collections import Counter
from collections.abc import Iterator
from functools import partial
from itertools import islice
from typing import Any, NoReturn

from app.errors import InvalidRequest, UnreadableBody
from app.web.problems import pointer_to

MAX_NESTING = 64

_Container = dict[str, Any] | list[Any]
_Place = tuple[str | int, ...]


def check_json(body: bytes) -> None:
    """
    Raise UnreadableBody for a body that is not strict JSON, and InvalidRequest for repeated names.

    RFC 8259 §4 leaves open which of two members of one name counts, and a paid request
    must not depend on the parser.
    """
    ambiguous: list[_Ambiguous] = []
    read_object = partial(_object, ambiguous)
    try:
        document = json.loads(
            body.decode(), object_pairs_hook=read_object, parse_float=_double, parse_constant=_refuse_constant
        )
        # Lone surrogates can be escaped in JSON, but not encoded.
        json.dumps(document, ensure_ascii=False).encode()
    except (ValueError, RecursionError):
        raise UnreadableBody from None
    if _nests_too_deep(document):
        raise UnreadableBody
    if ambiguous:
        places = islice(_repeated_names(document), 20)
        raise InvalidRequest(
            errors=[{"pointer": pointer_to(p), "detail": "This name is used more than once"} for p in places]
        )


class _Ambiguous(dict[str, Any]):
    """An object in which some names occur more than once."""

    repeated: list[str]


def _object(ambiguous: list[_Ambiguous], members: list[tuple[str, Any]]) -> dict[str, Any]:
    unique = dict(members)
    if len(unique) == len(members):
        return unique
    ambiguous.append(_Ambiguous(members))
    ambiguous[-1].repeated = [name for name, uses in Counter(name for name, _ in members).items() if uses > 1]
    return ambiguous[-1]


def _double(literal: str) -> float:
    number = float(literal)
    if math.isinf(number):
        raise ValueError("beyond a double")
    return number


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(name)


def _nests_too_deep(document: Any) -> bool:
    level: list[_Container] = [[document]]
    for _ in range(MAX_NESTING + 1):
        if not level:
            break
        collections = [value.values() if isinstance(value, dict) else value for value in level]
        level = [member for members in collections for member in members if isinstance(member, dict | list)]
    return bool(level)


def _repeated_names(value: _Container, place: _Place = ()) -> Iterator[_Place]:
    if isinstance(value, _Ambiguous):
        yield from ((*place, name) for name in value.repeated)
    for name, member in value.items() if isinstance(value, dict) else enumerate(value):
        if isinstance(member, dict | list):
            yield from _repeated_names(member, (*place, name))
