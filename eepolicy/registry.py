"""Registries of plug-ins: policies, fills, acceptance rules, heads and model families.

A plug-in is looked up by name, first among the registered ones, then among the entry points of
installed packages.  Entry points are read on demand, so importing eepolicy imports no plug-in.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import Any, ClassVar, Generic, Protocol, TypeVar

from eepolicy.errors import EepolicyError, WithLine

_NAME = re.compile(r"[a-z_-]+")

D = TypeVar("D", bound="Declared")


class Plugin(Protocol):
    """What a class declares to be written as a spec string.

    Attributes:
        name: leading letters of the spec string, `[a-z_-]+`.
        usage: grammar of the spec string, such as `"static@DEPTH"`.
        example: spec string for tables, such as `"static@16"`.
        summary: one line for help and tables.
        paper: short reference, or `""`.
        source: link to the paper or to the authors' code, or `""`.
    """

    name: ClassVar[str]
    usage: ClassVar[str]
    example: ClassVar[str]
    summary: ClassVar[str]
    paper: ClassVar[str]
    source: ClassVar[str]

    @classmethod
    def from_spec(cls, rest: str) -> Any:
        """Build an instance from the text of the spec string after the name."""

    @property
    def spec(self) -> str:
        """The spec string that `from_spec` reads."""


class Declared:
    """Base of a plug-in class: no spec string until it declares a name, and then no arguments."""

    name: ClassVar[str] = ""
    usage: ClassVar[str] = ""
    example: ClassVar[str] = ""
    summary: ClassVar[str] = ""
    paper: ClassVar[str] = ""
    source: ClassVar[str] = ""

    @classmethod
    def from_spec(cls: type[D], rest: str) -> D:
        """Build an instance from the text of the spec string after the name.

        Raises:
            EepolicyError: the text does not follow `usage`.
        """
        if rest:
            raise EepolicyError(f"it takes no argument; got {rest!r}")
        return cls()

    @property
    def spec(self) -> str:
        """The instance as a spec string, which `from_spec` reads."""
        return self.name


@dataclass(frozen=True)
class Entry:
    """One line of a table of plug-ins.

    Attributes:
        name: name of the plug-in.
        usage: grammar of its spec string.
        example: a spec string.
        summary: what that spec string does.
        paper: short reference, or `""`.
        source: link, or `""`.
    """

    name: str
    usage: str
    example: str
    summary: str
    paper: str = ""
    source: str = ""


T = TypeVar("T")
P = TypeVar("P", bound=Plugin)
C = TypeVar("C", bound=Plugin)


class NameTable(Generic[T]):
    """Objects by name; entry points of installed packages add to them.

    Args:
        kind: noun for messages, such as `"policy"`.
        group: entry-point group, such as `"eepolicy.policies"`.
    """

    def __init__(self, kind: str, group: str) -> None:
        self.kind = kind
        self.group = group
        self._objects: dict[str, T] = {}

    def __contains__(self, name: object) -> bool:
        return name in self._objects or name in self.names()  # entry points are on disk

    def add(self, name: str, value: T) -> T:
        """Register an object under a name.

        Raises:
            EepolicyError: another object has the name.
        """
        known = self._objects.setdefault(name, value)
        if _identity(known) != _identity(value):
            raise EepolicyError(
                f"the {self.kind} {name!r} is already {_identity(known)}; "
                f"give {_identity(value)} another name"
            )
        self._objects[name] = value  # a notebook cell may define the same class again
        return value

    def get(self, name: str) -> T:
        """The object of a name.

        Raises:
            EepolicyError: no object has the name, or two installed packages offer it.
        """
        if name in self._objects:
            return self._objects[name]
        points = {point.value: point for point in entry_points(group=self.group, name=name)}
        if len(points) > 1:
            raise EepolicyError(
                f"several packages offer a {self.kind} {name!r}: {', '.join(sorted(points))}; "
                "uninstall all but one"
            )
        if not points:
            raise EepolicyError(
                f"{name!r} is no {self.kind}; the names are {', '.join(self.names())}"
            )
        return self._load(next(iter(points.values())))

    def names(self) -> tuple[str, ...]:
        """Names of the registered objects, then of those that installed packages offer."""
        offered = {point.name for point in entry_points(group=self.group)}
        return (*self._objects, *sorted(offered - set(self._objects)))

    def _load(self, point: EntryPoint) -> T:
        with WithLine(lambda: f"The {self.kind} {point.name!r} is the plug-in {point.value}."):
            value: T = point.load()
        return value


class Registry(NameTable[type[P]]):
    r"""Plug-in classes by the name in front of their spec strings.

    Args:
        kind: noun for messages, such as `"policy"`.
        group: entry-point group, such as `"eepolicy.policies"`.
        note: sentence after the grammar, for what all spec strings of the kind share.

    Examples:
        >>> from dataclasses import dataclass
        >>> from eepolicy.registry import Registry, parse_rest
        >>> colours = Registry(kind="colour", group="example.colours")
        >>> @colours.register
        ... @dataclass(frozen=True)
        ... class Grey:
        ...     share: float
        ...     name = "grey"
        ...     usage = "grey:SHARE"
        ...     example = "grey:0.5"
        ...     summary = "a share of white in black"
        ...     paper = source = ""
        ...
        ...     @classmethod
        ...     def from_spec(cls, rest):
        ...         return cls(float(parse_rest(r":(\d*[.]?\d+)", rest)[0]))
        ...
        ...     @property
        ...     def spec(self):
        ...         return f"grey:{self.share}"
        >>> colours.create("grey:0.25")
        Grey(share=0.25)
    """

    def __init__(self, kind: str, group: str, note: str = "") -> None:
        super().__init__(kind, group)
        self.note = note

    def register(self, cls: type[C]) -> type[C]:
        """Register a class under its `name`; a decorator.

        Raises:
            EepolicyError: the class lacks a declaration, or its name is taken.
        """
        self._check(cls, cls.__qualname__)
        self.add(cls.name, cls)  # type: ignore[arg-type]
        return cls

    def create(self, spec: str) -> P:
        """The plug-in of a spec string.

        Raises:
            EepolicyError: no plug-in has the name, or the plug-in does not take the rest.
        """
        match = _NAME.match(spec)
        if match is None or match[0] not in self:
            raise EepolicyError(
                f"{spec!r} is no {self.kind}; {_article(self.kind)} is one of: {self.usage()}"
            )
        cls = self.get(match[0])
        whose = f"{self.kind} {match[0]!r} ({_identity(cls)})"
        with WithLine(lambda: f"The {whose} failed on the spec {spec!r}.", unless=EepolicyError):
            try:
                plugin: P = cls.from_spec(spec[match.end() :])
            except ValueError as error:
                if type(error) not in (EepolicyError, ValueError):
                    raise
                reason = f": {error}" if str(error) else ""
                raise EepolicyError(
                    f"{spec!r} is no {self.kind}{reason}; write {cls.usage}, such as "
                    f"{cls.example}{self._after_usage()}"
                ) from error
        return plugin

    def usage(self) -> str:
        """The grammar of all spec strings, for messages and help."""
        offered = self.names()[len(self._objects) :]
        forms = [cls.usage for cls in self._objects.values()]
        return ", ".join((*forms, *offered)) + self._after_usage()

    def entries(self, installed: bool = False) -> tuple[Entry, ...]:
        """Lines of a table, in order of registration.

        Args:
            installed: also list the plug-ins of installed packages, which imports them.
        """
        names = self.names() if installed else tuple(self._objects)
        return tuple(entry for name in names for entry in _entries(self.get(name)))

    def _after_usage(self) -> str:
        return f"; {self.note}" if self.note else ""

    def _load(self, point: EntryPoint) -> type[P]:
        cls = super()._load(point)
        self._check(cls, point.value)
        if cls.name != point.name:
            raise EepolicyError(
                f"the entry point {point.name!r} of the group {self.group!r} loads {point.value}, "
                f"whose name is {cls.name!r}; give both the same name"
            )
        return cls

    def _check(self, cls: type[Plugin], what: str) -> None:
        """Refuse what is no plug-in class."""
        declared = ("name", "usage", "example", "summary", "paper", "source")
        missing = [field for field in declared if not isinstance(getattr(cls, field, None), str)]
        missing += [field for field in declared[:4] if getattr(cls, field, None) == ""]
        if missing or not callable(getattr(cls, "from_spec", None)):
            raise EepolicyError(
                f"{_article(self.kind)} plug-in is a class that declares {', '.join(declared)} and "
                f"a classmethod from_spec(rest); {what} lacks {', '.join(missing) or 'from_spec'}"
            )
        if not _NAME.fullmatch(cls.name):
            raise EepolicyError(
                f"the name of {_article(self.kind)} has lower-case letters, '_' and '-' only; "
                f"{what} has {cls.name!r}"
            )


def parse_rest(pattern: str, rest: str) -> tuple[Any, ...]:
    r"""Groups of a pattern that matches the whole rest of a spec string.

    Raises:
        EepolicyError: the pattern does not match; the registry adds the usage.

    Examples:
        >>> parse_rest(r"@(\d+)", "@16")
        ('16',)
    """
    match = re.fullmatch(pattern, rest)
    if match is None:
        raise EepolicyError("")
    return match.groups()


def _entries(cls: type[Plugin]) -> tuple[Entry, ...]:
    """One entry, or one for each pair of spec and summary in `examples`."""
    pairs = getattr(cls, "examples", ()) or ((cls.example, cls.summary),)
    return tuple(
        Entry(cls.name, cls.usage, example, summary, cls.paper, cls.source)
        for example, summary in pairs
    )


def _identity(value: object) -> str:
    """Module and name of a class or function."""
    return f"{getattr(value, '__module__', '?')}:{getattr(value, '__qualname__', repr(value))}"


def _article(kind: str) -> str:
    return f"{'an' if kind[0] in 'aeiou' else 'a'} {kind}"
