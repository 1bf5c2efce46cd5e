"""Time replies on request, in a process that imports the library of any commit.

    python -c "import runpy; runpy.run_path('replies.py', run_name='__main__')" JSON

`benchmarks.reliability.cost` starts it.  It imports nothing of the benchmarks, since an earlier
commit does not have them.  JSON has the keys `policies`, `tokens`, `compile` and `threads`.  Each
line of stdin is the index of a policy.  The answer is the milliseconds per token and the tokens of
the replies to some questions, one at a time.
"""

from __future__ import annotations

import gc
import json
import sys
import time
from typing import Any

import torch

import eepolicy

QUESTIONS = (
    "What is the capital of France?",
    "What color is snow?",
    "What is two plus three?",
    "How many days are in a week?",
)
#: rounds before the first measurement: the compiler runs in the first one
WARM_UPS = 3


def main(settings: dict[str, Any]) -> None:
    torch.set_num_threads(settings["threads"])
    model = eepolicy.load("pocket")

    def replies(policy: str) -> tuple[float, list[int]]:
        gc.collect()
        began = time.perf_counter()
        outputs = [
            model.generate(question, policy, settings["tokens"], compile=settings["compile"])
            for question in QUESTIONS
        ]
        seconds = time.perf_counter() - began
        tokens = [int(token) for output in outputs for token in output.tokens]
        return 1e3 * seconds / len(tokens), tokens

    for policy in settings["policies"]:
        for _ in range(WARM_UPS):
            replies(policy)
    print(json.dumps(eepolicy.__file__), flush=True)
    for line in sys.stdin:
        print(json.dumps(replies(settings["policies"][int(line)])), flush=True)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
