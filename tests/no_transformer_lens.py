"""A pytest plugin, `-p no_transformer_lens`: hides the package, as if it were not installed.

tuned-lens 0.2 cannot be imported beside transformer-lens 4, so its tests have a separate run.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import cast

sys.modules["transformer_lens"] = cast(ModuleType, None)
