"""Fields in the configs of checkpoints: sizes, and values that are supported."""

from __future__ import annotations

from dataclasses import fields
from typing import Any, TypeVar

from eepolicy.errors import EepolicyError

S = TypeVar("S")


def read_size(data: dict[str, Any], name: str, where: str) -> int:
    """Return a size from a config.

    Args:
        data: the config.
        name: key of the size.
        where: the part of a file that contains the config, for messages.

    Raises:
        EepolicyError: the size is missing, or is not a whole number from 1.

    Examples:
        >>> from eepolicy.speech.config_fields import read_size
        >>> read_size({"d_model": 1280}, "d_model", "encoder_config")
        1280
    """
    if name not in data:
        raise EepolicyError(f"the {where} has no {name!r}")
    value = data[name]
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise EepolicyError(f"the {where} has {name} = {value!r}; expected a whole number from 1")
    return value


def read_sizes(cls: type[S], data: dict[str, Any], where: str) -> S:
    """Make a dataclass of sizes from a config; other keys of the config are ignored.

    Args:
        cls: the dataclass, whose fields are sizes.
        data: the config.
        where: the part of a file that contains the config, for messages.

    Raises:
        EepolicyError: a size is missing, or is not a whole number from 1.
    """
    names = [field.name for field in fields(cls)]  # type: ignore[arg-type]
    return cls(**{name: read_size(data, name, where) for name in names})


def check_supported(config: dict[str, Any], supported: dict[str, Any], where: str) -> None:
    """Check that fields of a config have the values that the native class implements.

    Args:
        config: the config.
        supported: fields and their values; a config may lack a field.
        where: the file or part of a file that contains the config, for messages.

    Raises:
        EepolicyError: a field has another value.
    """
    for name, value in supported.items():
        if config.get(name, value) != value:
            raise EepolicyError(
                f"the {where} has {name} = {config[name]}; only "
                f"{'none' if value is None else value} is supported"
            )
