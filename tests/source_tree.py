"""The source files of this repository, their imports and functions, read with `ast`."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
#: folders of the repository that hold no source
NOT_SOURCE = {"build", "dist", "report", "site", "work"}


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def files(*suffixes: str) -> list[Path]:
    """All files with one of the suffixes; each once, so not through `eepolicy/analysis`."""
    tops = [p for p in ROOT.iterdir() if not p.is_symlink()]
    tops = [p for p in tops if p.name not in NOT_SOURCE and not p.name.startswith(".")]
    candidates = [
        path
        for top in [*tops, ROOT / ".ci"]
        for path in (top.rglob("*") if top.is_dir() else [top])
        if "__pycache__" not in path.parts and (ROOT / "eepolicy/analysis") not in path.parents
    ]
    return sorted(p for p in candidates if p.is_file() and p.suffix in suffixes)


@cache
def modules() -> dict[str, Path]:
    """Each module of the package by the name under which it is installed."""
    named = {}
    for top, prefix in (("eepolicy", ""), ("analysis", "eepolicy.")):
        for path in files(".py"):
            parts = path.relative_to(ROOT).with_suffix("").parts
            if parts[0] == top:
                parts = parts[:-1] if parts[-1] == "__init__" else parts
                named[prefix + ".".join(parts)] = path
    return named


class Import(NamedTuple):
    """One imported name: where, what, and when it is imported."""

    path: Path
    line: int
    target: str  # a module of the package, or any dotted name
    when: str  # "top", "late" (in a function) or "types" (under TYPE_CHECKING)

    def __str__(self) -> str:
        return f"{self.path.relative_to(ROOT)}:{self.line} imports {self.target} ({self.when})"


@cache
def imports(path: Path) -> list[Import]:
    """All imports of a file."""
    return [
        Import(path, node.lineno, target, when)
        for node, when in _walk(tree(path), "top")
        for target in _targets(node)
    ]


def _walk(node: ast.AST, when: str) -> Iterator[tuple[ast.AST, str]]:
    for child in ast.iter_child_nodes(node):
        inner = when
        if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            inner = "late"
        elif isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            inner = "types"
        if isinstance(child, (ast.Import, ast.ImportFrom)):
            yield child, inner
        yield from _walk(child, inner)


def _targets(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    assert isinstance(node, ast.ImportFrom)
    # ruff forbids relative imports; a leading dot stays visible if one comes in
    module = "." * node.level + (node.module or "")
    names = [f"{module}.{alias.name}" for alias in node.names]
    return [name if name in modules() else module for name in names]


class Function(NamedTuple):
    """A function or method of the package."""

    name: str  # module.Class.function
    path: Path
    node: ast.FunctionDef | ast.AsyncFunctionDef

    def __str__(self) -> str:
        return f"{self.path.relative_to(ROOT)}:{self.node.lineno} {self.node.name}"

    @property
    def is_command(self) -> bool:
        """Whether it is a command of the CLI, whose parameters are its options."""
        return any(".command(" in ast.unparse(d) for d in self.node.decorator_list)


def functions() -> Iterator[Function]:
    """All functions of the package, nested ones and methods too."""
    for module, path in modules().items():
        yield from _functions(tree(path), module, path)


def _functions(node: ast.AST, name: str, path: Path) -> Iterator[Function]:
    for child in ast.iter_child_nodes(node):
        inner = name
        if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            inner = f"{name}.{child.name}"
        if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield Function(inner, path, child)
        yield from _functions(child, inner, path)
