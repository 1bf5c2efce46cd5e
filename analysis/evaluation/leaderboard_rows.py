"""The rows of the leaderboard: a list for the pocket model, which has 20 layers.

The list has the built-in policies, and every fill and acceptance rule on `spark:triple@14`.  It has
at most 24 rows, because each further row costs time and power: the verdicts are adjusted for all
rows together.
"""

from __future__ import annotations

#: rows as `parse_row` reads them, full depth first
ROWS = (
    "full",
    # one exit depth
    "static@16",
    "static@14",
    "static@12",
    "static@10",
    # the schedules of SPAR-K; the mean speech depth of the first three is about 16
    "spark:even@12",
    "spark:odd@12",
    "spark:triple@14",
    "spark:triple@10",
    # exits at text, and at text and speech
    "text=spark:even@12",
    "text=static@18,speech=spark:even@12",
    # adaptive policies; on 16 development questions, their mean speech depths are 15.6 to 16.7
    "entropy<1.22@[12,14,16,18]",
    "confidence>0.618@[12,14,16,18]",
    "margin>0.44@[12,14,16,18]",
    "saturation>0.955@[12,14,16,18]",
    "patience:3@[12,14,16,18]",
    # controls: depths at random, and the smallest depth that gives the full model's token
    "random:16.0@12",
    "oracle@[12,14,16,18]",
    # fills; the rows above have catch_up
    "spark:triple@14, fill=propagate",
    "spark:triple@14, fill=mask",
    # acceptance rules; the rows above have all
    "spark:triple@14, accept=exact",
    "spark:triple@14, accept=ratio:0.3",
    "spark:triple@14, accept=top:5",
    "spark:triple@14, accept=acoustic:20",
)

#: acceptance rules without a row, and why
LEFT_OUT = {
    "sampling": "the leaderboard decodes greedily, and there it equals accept=exact",
    "block": "the leaderboard decodes greedily, and there it equals accept=exact",
    "tolerance": "the leaderboard decodes greedily, and there it equals accept=exact",
    "groups": "the leaderboard decodes greedily, and there it equals accept=acoustic",
    "regret": "not measured yet",
}

#: policies without a row, and why
POLICIES_LEFT_OUT = {
    "draft": "it needs a rule that verifies; docs/findings/branches.md has a row",
    "drift": "docs/findings/drift.md has rows; a row here costs time and power",
    "predictor": "the pocket model ships no exit predictor",
    "dynamic-draft": "it needs a rule that verifies, and each rule has its row on spark:triple@14",
    "steady": "docs/findings/safe-exits.md compares it at equal cost",
    "silence": "docs/findings/safe-exits.md compares it at equal cost",
}
