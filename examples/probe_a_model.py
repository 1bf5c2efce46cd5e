# %% [markdown]
# # Notebook: probe a model
#
# This notebook reads every layer out at every token, and shows at which depth the model knows its next token.

# %%
import numpy as np

import eepolicy as ee

model = ee.load("pocket", threads="auto")
out = model.generate("What is the capital of France?")
result = ee.probe(model, out)
result

# %% [markdown]
# The table has averages over the tokens of each modality. Click on a heading to sort it. The heatmap shows the entropy
# of each readout: dark cells are certain.
#
# ## Statistics by depth
#
# Each line is the median over tokens, and each band spans the middle half of them.

# %%
result.plot.layers()

# %% [markdown]
# Plots also draw on axes of your own.

# %%
from matplotlib.figure import Figure

figure = Figure(figsize=(9, 3), layout="constrained")
left, right = figure.subplots(1, 2)
result.plot.layers("cosine_last", ax=left)
result.plot.layers("rank_last", ax=right)
figure

# %% [markdown]
# ## Text and speech
#
# A slice or a mask selects tokens. `saturation_depth` is the depth from which the most likely token no longer changes.

# %%
for modality in ee.Modality:
    some = result[result.modality == modality]
    depth = some.saturation_depth
    print(f"{modality.name.lower()}: mean depth {depth.mean():.1f}")

# %% [markdown]
# ## One document as a heatmap
#
# `kl` is the divergence of a readout from the last layer.

# %%
result[:30].plot.heatmap("kl")

# %% [markdown]
# ## Several documents
#
# The same statistics over three replies, as a pandas table.

# %%
replies = model.generate(
    [q["question"] for q in ee.held_out("dev")[:3]]
)
several = ee.probe(model, replies, statistics=("top1", "entropy", "kl"))
several.by_modality().loc["speech"].iloc[3::4].round(3)

# %% [markdown]
# ## Agreement with the full model
#
# The share of speech tokens whose readout at a depth has the full model's token. A fixed exit at this depth would change
# the other tokens.

# %%
speech = several[several.modality == ee.Modality.SPEECH]
for depth in (8, 12, 16, 18):
    share = np.nanmean(speech.agreement[depth - 1])
    print(f"depth {depth}: {share:.0%} of {len(speech)} tokens")
