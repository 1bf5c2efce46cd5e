"""The package and the help of the command line start without torch and transformers."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module

import pytest

import eepolicy

#: modules that take seconds to import
SLOW = ("torch", "transformers", "scipy", "numpy", "pandas", "matplotlib")

SCRIPT = f"""
import sys
sys.argv = ["eepolicy", *sys.argv[1:]]
try:
    from eepolicy.cli import main
    main()
finally:
    print("imported:", *sorted({set(SLOW)!r} & set(sys.modules)), file=sys.stderr)
"""


def in_new_process(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", script, *arguments], capture_output=True, text=True, timeout=120
    )


@pytest.mark.parametrize(
    ("arguments", "code", "shown"),
    [
        (["--help"], 0, "compare"),
        ([], 2, "compare"),
        (["compare", "--help"], 0, "--prompts"),
        (["models"], 0, "glm-4-voice"),
        (["compere"], 2, "No such command"),
        (["compare", "--prompt", "3"], 2, "No such option"),
    ],
)
def test_help_lists_and_typos_import_nothing_slow(arguments, code, shown):
    done = in_new_process(SCRIPT, *arguments)
    assert done.returncode == code, done.stderr
    assert shown in done.stdout + done.stderr
    assert done.stderr.splitlines()[-1] == "imported:"


def test_import_is_lazy_and_complete():
    script = "import sys, eepolicy; print('torch' in sys.modules); print(*dir(eepolicy))"
    imported, names = in_new_process(script).stdout.splitlines()
    assert imported == "False"
    assert set(eepolicy.__all__) < set(names.split())


def test_every_public_name_resolves():
    for name in eepolicy.__all__:
        module = import_module(f"eepolicy.{eepolicy._MODULE_OF[name]}")
        assert getattr(eepolicy, name) is getattr(module, name)
    space: dict = {}
    exec("from eepolicy import *", space)
    assert set(eepolicy.__all__) < set(space)
    assert set(eepolicy._MODULE_OF) == set(eepolicy.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'lode'"):
        eepolicy.lode  # noqa: B018
