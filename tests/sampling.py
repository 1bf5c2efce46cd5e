"""Which combinations of family and other parameters run outside `make test-all`.

A test of F families and N other combinations runs max(F, N) of its F × N cases: each family and
each other combination at least once.  The rest is marked `exhaustive`.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from zlib import crc32

import pytest

PARAMETER = "family"


def mark_unsampled(items: Sequence[pytest.Item]) -> None:
    """Mark the combinations that are left to `make test-all`.

    A test whose cases are no product, such as a list of pairs, is left as it is.
    """
    cases: dict[str, list[tuple[pytest.Item, str, Hashable]]] = {}
    for item in items:
        callspec = getattr(item, "callspec", None)
        if callspec and PARAMETER in callspec.params and not item.get_closest_marker("exhaustive"):
            # the values are the same objects in each case; not all of them can be hashed
            params = callspec.params.items()
            others = tuple(id(value) for name, value in params if name != PARAMETER)
            function = item.nodeid.partition("[")[0]
            cases.setdefault(function, []).append((item, callspec.params[PARAMETER], others))
    for function, of_function in cases.items():
        families = list(dict.fromkeys(family for _, family, _ in of_function))
        rest = list(dict.fromkeys(others for _, _, others in of_function))
        if len(families) * len(rest) != len(of_function):
            continue
        # from another family on in each test, so that the first combinations do not share one
        shift = crc32(function.encode())
        for item, family, others in of_function:
            if not is_sampled(
                families.index(family), rest.index(others), len(families), len(rest), shift
            ):
                item.add_marker(pytest.mark.exhaustive)


def is_sampled(family: int, other: int, families: int, others: int, shift: int = 0) -> bool:
    """Whether a case, by the indices of its family and of its other parameters, is sampled."""
    if others >= families:
        return (other + shift) % families == family
    return (family + shift) % others == other
