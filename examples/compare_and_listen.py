# %% [markdown]
# # Notebook: compare and listen
#
# This notebook compares three policies on a few questions, and plays the replies side by side.

# %%
from pathlib import Path
from tempfile import mkdtemp

import eepolicy as ee
from eepolicy.analysis.evaluation.records import RunFolder
from eepolicy.analysis.evaluation.run import RunConfig, run

model = ee.load("pocket", threads="auto")
questions = ee.held_out("test")[:4]
[q["question"] for q in questions]

# %% [markdown]
# ## Compare
#
# The first row is full depth. All rows answer the same questions, so differences are paired. The run is stored in a
# folder, and the same call continues a run that was stopped. `timed=2` times two questions, each reply alone.

# %%
policies = ["spark:triple@14", "static@12"]
config = RunConfig(policies=policies, timed=2)
folder = RunFolder(Path(mkdtemp()))
comparison = run(model, questions, folder, config)
comparison

# %% [markdown]
# Click on a heading to sort the table. Intervals in brackets are 95 % intervals over the questions. Four questions decide
# nothing: the verdict of a real comparison needs about a hundred. `eepolicy compare` asks them, and also recognises the
# speech to count word errors.
#
# ## Listen
#
# The same question under each policy.

# %%
question = questions[0]["question"]
model.generate(question)

# %%
model.generate(question, "spark:triple@14")

# %%
model.generate(question, "static@12")

# %% [markdown]
# ## All measurements
#
# `table()` has the estimates, their intervals, and the differences from full depth.

# %%
import pandas as pd

columns = ["policy", "speech_depth", "layer_calls", "status"]
pd.DataFrame(comparison.table())[columns].round(2)
