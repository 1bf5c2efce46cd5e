"""Limits on the size of files and functions; each test lists all offenders, one a line."""

from __future__ import annotations

import ast
from statistics import median

from source_tree import ROOT, Function, functions, modules

MAX_FUNCTION_LINES = 60  # without the docstring
MAX_PARAMETERS = 6
MAX_FILE_LINES = 400
MAX_MEDIAN_FILE_LINES = 120

#: public entry points: their keyword-only options stay named and typed, and are not counted
ENTRY_POINTS = {
    "generate",
    "generate_replies",
    "probe",
    "load",
    "fit",
    "fit_backbone",
    "fit_by_depth",
    "fit_depth_decoder",
    "fit_rounds",
    "stream_audio",
    "__init__",
}

#: functions with more parameters, and why
SIGNATURES = {
    "attend": "stands in for torch's scaled_dot_product_attention and takes its arguments",
}


def is_overload(function: Function) -> bool:
    return any("overload" in ast.unparse(d) for d in function.node.decorator_list)


def lines_of(function: Function) -> int:
    """Lines of a function without its docstring; of a command, the body only."""
    node = function.node
    body = node.body[1:] if ast.get_docstring(node) is not None else node.body
    if not body:
        return 0
    end = node.end_lineno or node.lineno
    if function.is_command:
        return end - body[0].lineno + 1
    return end - body[0].lineno + 1 + (node.body[0].lineno - node.lineno)


def parameters_of(function: Function) -> int:
    """Number of parameters without `self`; of an entry point, without keyword-only ones too."""
    arguments = function.node.args
    names = [a.arg for a in arguments.posonlyargs + arguments.args]
    names = names[1:] if names[:1] in (["self"], ["cls"]) else names
    if function.node.name in ENTRY_POINTS:
        return len(names)
    return len(names) + len(arguments.kwonlyargs)


def test_no_function_is_long():
    long = sorted(
        ((lines_of(f), str(f)) for f in functions() if lines_of(f) > MAX_FUNCTION_LINES),
        reverse=True,
    )
    assert not long, "\n".join(["", *(f"{lines} lines: {name}" for lines, name in long)])


def test_no_function_takes_many_parameters():
    """Except for commands: their parameters are options, which typer reads."""
    many = sorted(
        (
            (parameters_of(f), str(f))
            for f in functions()
            if parameters_of(f) > MAX_PARAMETERS
            and not f.is_command
            and not is_overload(f)
            and f.node.name not in SIGNATURES
        ),
        reverse=True,
    )
    assert not many, "\n".join(["", *(f"{count} parameters: {name}" for count, name in many)])


def sizes() -> dict[str, int]:
    return {
        str(path.relative_to(ROOT)): len(path.read_text(encoding="utf-8").splitlines())
        for path in modules().values()
    }


def test_no_file_is_long():
    long = {name: lines for name, lines in sizes().items() if lines > MAX_FILE_LINES}
    ordered = sorted(long.items(), key=lambda item: -item[1])
    assert not long, "\n".join(["", *(f"{lines} lines: {name}" for name, lines in ordered)])


def test_files_are_short_on_the_whole():
    assert median(sizes().values()) < MAX_MEDIAN_FILE_LINES


def test_listed_signatures_exist():
    names = {f.node.name for f in functions()}
    assert set(SIGNATURES) <= names
    assert names >= ENTRY_POINTS
