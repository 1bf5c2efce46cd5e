"""Registries: names, spec strings, entry points, and what goes wrong with them."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import EntryPoint
from typing import ClassVar

import pytest

from eepolicy import EepolicyError, registry
from eepolicy.registry import Entry, NameTable, Registry, parse_rest

GROUP = "eepolicy.test_things"


@dataclass(frozen=True)
class Box:
    """A plug-in with one number."""

    size: int
    name: ClassVar[str] = "box"
    usage: ClassVar[str] = "box@SIZE"
    example: ClassVar[str] = "box@3"
    summary: ClassVar[str] = "a box"
    paper: ClassVar[str] = "1234.56789"
    source: ClassVar[str] = "https://arxiv.org/abs/1234.56789"

    @classmethod
    def from_spec(cls, rest: str) -> Box:
        return cls(int(parse_rest(r"@(\w+)", rest)[0]))

    @property
    def spec(self) -> str:
        return f"box@{self.size}"


class Broken(Box):
    """A plug-in with a bug."""

    name = "broken"

    @classmethod
    def from_spec(cls, rest):
        return len(3)


class Several(Box):
    """A plug-in with two lines in tables."""

    name = "several"
    examples: ClassVar[tuple[tuple[str, str], ...]] = (
        ("several@1", "one"),
        ("several@2", "two"),
    )


class Renamed(Box):
    name = "other"


@pytest.fixture
def things():
    return Registry(kind="thing", group=GROUP, note="SIZE is a number")


@pytest.fixture
def offer(monkeypatch):
    """Entry points as installed packages have them."""

    def install(*points: tuple[str, str]) -> list[str | None]:
        lookups: list[str | None] = []
        installed = [EntryPoint(name, value, GROUP) for name, value in points]

        def entry_points(group, name=None):
            lookups.append(name)
            return [p for p in installed if p.group == group and name in (None, p.name)]

        monkeypatch.setattr(registry, "entry_points", entry_points)
        return lookups

    return install


def test_a_registered_class_is_created_from_its_spec(things):
    assert things.register(Box) is Box
    assert things.create("box@3") == Box(3)
    assert things.create(Box(4).spec) == Box(4)
    assert things.get("box") is Box
    assert things.names() == ("box",)
    assert "box" in things
    assert "sack" not in things


@pytest.mark.parametrize(
    ("spec", "sentence"),
    [
        ("", "'' is no thing; a thing is one of: box@SIZE; SIZE is a number"),
        ("Box@3", "'Box@3' is no thing; a thing is one of: box@SIZE"),
        ("sack@3", "'sack@3' is no thing; a thing is one of: box@SIZE"),
        ("box", "'box' is no thing; write box@SIZE, such as box@3; SIZE is a number"),
        ("box@x", "'box@x' is no thing: invalid literal .* write box@SIZE, such as box@3"),
    ],
)
def test_a_wrong_spec_gets_the_usage(things, spec, sentence):
    things.register(Box)
    with pytest.raises(EepolicyError, match=sentence):
        things.create(spec)


def test_a_bug_of_a_plugin_keeps_its_type_and_names_the_plugin(things):
    things.register(Broken)
    with pytest.raises(TypeError) as error:
        things.create("broken@3")
    text = "\n".join([str(error.value), *getattr(error.value, "__notes__", [])])
    assert "object of type 'int' has no len()" in text
    assert f"The thing 'broken' ({__name__}:Broken) failed on the spec 'broken@3'." in text


def test_entry_points_are_loaded_on_demand(things, offer):
    lookups = offer(("box", f"{__name__}:Box"), ("absent", "no_such_package:Thing"))
    assert things.names() == ("absent", "box")
    assert things.usage() == "absent, box; SIZE is a number"
    assert things.create("box@5") == Box(5)
    assert "box" in lookups
    assert "absent" not in lookups
    with pytest.raises(ModuleNotFoundError) as error:
        things.create("absent@1")
    text = "\n".join([str(error.value), *getattr(error.value, "__notes__", [])])
    assert "The thing 'absent' is the plug-in no_such_package:Thing." in text


def test_a_registered_class_takes_precedence_over_an_entry_point(things, offer):
    offer(("box", "no_such_package:Thing"))
    things.register(Box)
    assert things.get("box") is Box


def test_invalid_entry_points_give_clear_errors(things, offer):
    offer(
        ("box", f"{__name__}:Renamed"),
        ("twice", f"{__name__}:Box"),
        ("twice", f"{__name__}:Several"),
        ("function", f"{__name__}:pytest"),
    )
    with pytest.raises(EepolicyError, match=r"'box' .* loads .*:Renamed, whose name is 'other'"):
        things.get("box")
    with pytest.raises(EepolicyError, match="several packages offer a thing 'twice'"):
        things.get("twice")
    with pytest.raises(EepolicyError, match=r"declares name, usage, .*:pytest lacks name, usage"):
        things.get("function")


def test_a_class_that_lacks_a_declaration_is_refused(things):
    class Bare:
        name = "bare"

    with pytest.raises(EepolicyError, match="Bare lacks usage, example, summary, paper, source"):
        things.register(Bare)

    class Capital(Box):
        name = "Box 3"

    with pytest.raises(EepolicyError, match=r"lower-case letters.*Capital has 'Box 3'"):
        things.register(Capital)


def test_a_name_is_unique_but_its_class_may_be_redefined(things):
    things.register(Box)

    class Other(Box):
        pass

    with pytest.raises(EepolicyError, match=r"thing 'box' is already .*:Box; give .*Other another"):
        things.register(Other)
    again = type("Box", (Box,), {"__qualname__": "Box", "__module__": __name__})
    assert things.register(again) is again
    assert things.get("box") is again


def test_entries_are_lines_of_a_table(things, offer):
    offer(("broken", f"{__name__}:Broken"))
    things.register(Box)
    things.register(Several)
    link = "https://arxiv.org/abs/1234.56789"
    own = (
        Entry("box", "box@SIZE", "box@3", "a box", "1234.56789", link),
        Entry("several", "box@SIZE", "several@1", "one", "1234.56789", link),
        Entry("several", "box@SIZE", "several@2", "two", "1234.56789", link),
    )
    assert things.entries() == own
    installed = things.entries(installed=True)
    assert installed[:3] == own
    assert [e.name for e in installed[3:]] == ["broken"]


def test_a_table_of_names_has_no_specs(offer):
    offer(("far", f"{__name__}:Box"))
    table: NameTable[object] = NameTable(kind="adapter", group=GROUP)
    assert table.add("near", len) is len
    assert table.get("near") is len
    assert table.get("far") is Box
    with pytest.raises(EepolicyError, match="'none' is no adapter; the names are near, far"):
        table.get("none")
