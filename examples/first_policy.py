# %% [markdown]
# # Notebook: a first policy
#
# This notebook decodes with early exit, shows the depth of each token, and writes an exit policy. The
# page "Your first policy" explains the same steps in more detail.

# %%
from dataclasses import dataclass

import torch

import eepolicy as ee

model = ee.load("pocket", threads="auto")
model

# %% [markdown]
# ## A reply at full depth
#
# The pocket model answers in text and speech. A reply shows its text, a player, and a bar for each token. At full depth
# all bars have the same height.

# %%
question = "What is the capital of France?"
model.generate(question)

# %% [markdown]
# ## An early exit
#
# `spark:triple@14` is a schedule of SPAR-K: of four speech tokens, three exit at depth 14. Text runs at full depth.

# %%
out = model.generate(question, "spark:triple@14")
out

# %% [markdown]
# The trace has a row for each token. `layer_calls` counts the layers that ran for it, with the layers of earlier
# positions that had to catch up.

# %%
columns = ["modality", "chunk", "phase", "depth", "layer_calls"]
out.trace.to_pandas()[columns].head(12)

# %% [markdown]
# ## A policy of your own
#
# A policy is a class with the method `depths`. This one runs all layers at both ends of a speech chunk, and exits
# between them.


# %%
@dataclass(frozen=True)
class Middle(ee.ExitPolicy):
    """Full depth at both ends of a chunk, exits between them."""

    exit_depth: int
    chunk: int
    margin: int = 3
    on: str = "speech"

    def depths(self, step):  # (rows,)
        phase = step.phase % self.chunk
        last = self.chunk - self.margin
        inside = (phase >= self.margin) & (phase < last)
        exits = step.is_on(self.on) & inside
        return torch.where(exits, self.exit_depth, step.full_depth)


middle = Middle(12, chunk=model.layout.speech_chunk)
model.generate(question, middle)

# %% [markdown]
# ## Drafts that the full model verifies
#
# With `accept="exact"`, the full model verifies each early token, and replaces it where it disagrees. The reply is then
# that of full depth. A dot marks each replacement.

# %%
verified = model.generate(question, middle, accept="exact")
full = model.generate(question)
assert verified.tokens.tolist() == full.tokens.tolist()
verified

# %% [markdown]
# ## Right answers of several questions
#
# A list of questions is decoded as one batch.

# %%
import pandas as pd

from eepolicy.analysis.evaluation.scoring import is_right

questions = ee.held_out("dev")[:6]
rows = {}
policies = {
    "full": "full",
    "spark": "spark:triple@14",
    "middle": middle,
}
for name, policy in policies.items():
    outs = model.generate([q["question"] for q in questions], policy)
    calls = sum(o.trace.layer_calls.sum() for o in outs)
    right = [
        is_right(o.text, q["keys"])
        for o, q in zip(outs, questions, strict=True)
    ]
    tokens = sum(len(o.trace) for o in outs)
    rows[name] = {
        "layer calls a token": f"{calls / tokens:.2f}",
        "right": f"{sum(right)} of {len(right)}",
    }
pd.DataFrame(rows).T

# %% [markdown]
# Six questions cannot separate policies. `eepolicy compare` asks 100 questions and gives each policy a verdict.
