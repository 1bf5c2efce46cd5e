"""Check the arguments of public functions against their annotations."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from functools import cache, wraps
from typing import Any, TypeVar, cast

from pydantic import PydanticSchemaGenerationError, PydanticUserError
from pydantic_core import SchemaError

from eepolicy.fields import check_value, single_field

F = TypeVar("F", bound=Callable[..., Any])


def checked(*skipped: str) -> Callable[[F], F]:
    """A decorator: a function checks its arguments against its annotations.

    Arguments are passed on as they are, but for numbers of numpy.  An annotation that pydantic
    cannot check, such as an array, is left out.  A wrong name of an argument stays a `TypeError`.

    Args:
        *skipped: arguments that the function checks itself.

    Raises:
        EepolicyError: from the function: an argument has another type or is out of range.
    """

    def decorate(function: F) -> F:
        signature = inspect.signature(function)

        @wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            bound = signature.bind(*args, **kwargs)
            for name, hint in _parameters(function).items():
                if name in bound.arguments and name not in skipped:
                    bound.arguments[name] = check_value(name, hint, bound.arguments[name])
            return function(*bound.args, **bound.kwargs)

        return cast(F, call)

    return decorate


@cache
def _parameters(function: Callable[..., Any]) -> dict[str, Any]:
    """The parameters of a function that can be checked, with their types."""
    scope = vars(sys.modules[function.__module__])
    hints: dict[str, Any] = {}
    for parameter in inspect.signature(function).parameters.values():
        hint = parameter.annotation
        if hint is parameter.empty or parameter.kind in (
            parameter.VAR_POSITIONAL,
            parameter.VAR_KEYWORD,
        ):
            continue
        try:
            hints[parameter.name] = eval(hint, scope) if isinstance(hint, str) else hint
            single_field(parameter.name, hints[parameter.name])
        except (
            NameError,
            TypeError,
            SchemaError,
            PydanticSchemaGenerationError,
            PydanticUserError,
        ):
            hints.pop(parameter.name, None)
    return hints
