"""Operators as custom operations of torch, which compilers call as they stand; see whole.py.

A compiler is told the form of a result before there is one (forms.py), and whatever computes it must comply.
"""

from __future__ import annotations

import functools
import inspect
import threading
import types
from collections.abc import Callable, Collection, Iterator, Mapping
from types import MappingProxyType
from typing import Any, Union, get_args, get_origin, get_type_hints

import torch
from torch import Tensor

from lib_accel.blocks.operators.forms import FORMS
from lib_accel.blocks.operators.operator import Arguments, Operator, Result, run_several
from lib_accel.blocks.operators.table import OPERATORS
from lib_accel.blocks.operators.whole import NAMESPACE, holding, identifier

_SCHEMA_TYPES: Mapping[Any, str] = MappingProxyType(
    {Tensor: "Tensor", torch.dtype: "ScalarType", bool: "bool", int: "int", float: "float", str: "str"}
)

_lock = threading.Lock()


def why_not() -> str | None:
    """Why this torch has no operation that a compiler leaves whole, or None."""
    if hasattr(torch.library, "register_fake"):
        return None
    return f"torch {torch.__version__.split('+')[0]} compiles around no operators, 2.4 does"


def definable(names: Collection[str]) -> tuple[str, ...]:
    """Those of these operators that can be left whole, sorted."""
    return tuple(sorted(name for name in set(names) if name in FORMS and _schema(OPERATORS[name])))


def define(names: Collection[str]) -> None:
    """Makes torch know the operations of these operators."""
    for name in names:
        with _lock:
            _define(name)


@functools.cache
def _define(name: str) -> Any:
    operator = OPERATORS[name]
    library: Any = torch.library
    own = library.Library(NAMESPACE, "FRAGMENT")
    schema = _schema(operator)
    assert schema is not None, f"{name} has arguments that torch knows no type for"
    own.define(schema, tags=_tags())
    own.impl(identifier(name), _body(operator), "CompositeExplicitAutograd")
    library.register_fake(f"{NAMESPACE}::{identifier(name)}", _fake(operator), lib=own)
    return own  # kept: with it the operation goes


def _tags() -> tuple[torch.Tag, ...]:
    """What tells a compiler to lay arguments in memory as they were traced."""
    names = ("needs_exact_strides", "needs_fixed_stride_order")  # the former since torch 2.7
    return tuple([getattr(torch.Tag, name) for name in names if hasattr(torch.Tag, name)][:1])


def _schema(operator: Operator) -> str | None:
    """The operation's, of the annotations of plain torch; None if they say too little."""
    try:
        kinds = _kinds(operator)
        given = [each for kind in kinds for each in _schema_types(kind)]
        result = _schema_types(get_type_hints(operator.plain)["return"])
    except (KeyError, TypeError):
        return None
    arguments = ", ".join(f"{kind} a{number}" for number, kind in enumerate(given))
    returned = result[0] if len(result) == 1 else f"({', '.join(result)})"
    return f"{identifier(operator.name)}({arguments}) -> {returned}"


def _kinds(operator: Operator) -> list[Any]:
    """The types of its arguments. Raises KeyError or TypeError if they are not told one by one."""
    hints, parameters = get_type_hints(operator.plain), inspect.signature(operator.plain).parameters
    if any(each.kind is each.VAR_POSITIONAL for each in parameters.values()):
        raise TypeError(f"{operator.name} takes any number of arguments")
    return [hints[name] for name in parameters]


def _schema_types(kind: Any) -> list[str]:
    """The types of a value and of those in it. Raises KeyError for what torch has none for."""
    if (parts := _parts(kind)) is not None:
        return [each for part in parts for each in _schema_types(part)]
    if get_origin(kind) in (Union, types.UnionType):
        (inner,) = {*get_args(kind)} - {type(None)}
        return [f"{_SCHEMA_TYPES[inner]}?"]
    return [_SCHEMA_TYPES[kind]]


@functools.cache  # to read annotations takes longer than most operators
def _parts(kind: Any) -> tuple[Any, ...] | None:
    """The types in a tuple, or None for any other type."""
    if isinstance(kind, type) and hasattr(kind, "_fields"):
        return tuple(get_type_hints(kind).values())
    return get_args(kind) if get_origin(kind) is tuple else None


def _taken(kind: Any, values: Iterator[Any]) -> Any:
    """The next value of this type, of flattened ones."""
    if (parts := _parts(kind)) is None:
        return next(values)
    found = [_taken(part, values) for part in parts]
    return kind(*found) if isinstance(kind, type) and hasattr(kind, "_fields") else tuple(found)


def _reader(operator: Operator) -> Callable[[tuple[Any, ...]], Arguments]:
    """Makes the operator's arguments of flattened ones."""
    kinds = _kinds(operator)

    def read(flat: tuple[Any, ...]) -> Arguments:
        values = iter(flat)
        return tuple([_taken(kind, values) for kind in kinds])

    return read


def _body(operator: Operator) -> Callable[..., Any]:
    """The operation where there are values: by what holds on the thread."""
    read, forms_of = _reader(operator), FORMS[operator.name]

    def compute(*flat: Any) -> Any:
        args = read(flat)
        forms = forms_of(*args)
        result = run_several(operator, holding(), *args)
        found = result if isinstance(result, tuple) else (result,)
        return _several(
            [own.contiguous(memory_format=form.layout) for own, form in zip(found, forms, strict=True)]
        )

    return compute


def _fake(operator: Operator) -> Callable[..., Any]:
    """The operation where there are none."""
    read, forms_of = _reader(operator), FORMS[operator.name]

    def make(*flat: Any) -> Any:
        args = read(flat)
        device = args[0].device
        return _several(
            [
                torch.empty(form.shape, dtype=form.dtype, device=device, memory_format=form.layout)
                for form in forms_of(*args)
            ]
        )

    return make


def _several(results: list[Tensor]) -> Result:
    return results[0] if len(results) == 1 else tuple(results)
