# %% [markdown]
# # A question of your own
#
# Does a pruned network need its initial values, or only their signs? Zhou et al. (2019, Sec. 3) asked this on MNIST.
# Here the question becomes a study file, is run on scikit-learn's digits, and is answered with intervals.

# %%
from pathlib import Path

import supermask as sm

# %% [markdown]
# ## Write the study
#
# A treatment is a mask criterion, a mask-1 action (what kept weights are set to) and a mask-0 action (where pruned
# weights are frozen). A list of values stands for one treatment per value. All keys have defaults except `treatments`.

# %%
Path("signs.yaml").write_text("""
title: Initial values, or only their signs?
dataset: digits
seeds: 5
train: {epochs: 5, evaluate_every: 20}
prune: {levels: 3, rates: {hidden: 0.5, output: 0.25}}
treatments:
  - criterion: large_final
    mask1: [rewind, signed_constant, constant]
reference: {mask1: rewind}
""")
study = sm.load_study("signs.yaml")
print([treatment.label for treatment in study.treatments])

# %% [markdown]
# `signed_constant` keeps only the sign of each initial value and gives all weights of a layer the same magnitude;
# `constant` gives them random signs too. A wrong key or value is refused before anything runs:

# %%
try:
    sm.load_study("signs.yaml", ["train.learning_rate=0.1"])
except sm.UserError as error:
    print(error)

# %% [markdown]
# ## Plan and run it
#
# The plan has each run once: the dense network of a seed belongs to all three treatments.

# %%
plan = sm.make_plan(study)
print(f"{len(plan.treatment_runs)} roles, {len(plan.runs)} runs")
sm.run(study)

# %% [markdown]
# ## Look at the answer
#
# The line is the mean over seeds, the band its 95% interval. A star marks a level at which a treatment differs from
# the reference.

# %%
sm.figure(study, "accuracy")

# %%
means = (
    sm.table(study)
    .filter("level > 0")
    .aggregate("level, mask1, 100 * avg(early_stop_test_accuracy) AS accuracy, count(*) AS n", "level, mask1")
)
for row in means.order("level, accuracy DESC").fetchall():
    print("level {}  {:16} {:.2f}%  n = {}".format(*row))

# %% [markdown]
# ## Ask for more
#
# More seeds or levels are overrides; finished runs are not trained again. Each run has a certificate: checks of its
# tensors against what the treatment says.

# %%
more = sm.run("signs.yaml", seeds=6)
print(more)
verdicts = list(sm.api.verify())
passed = sum(verdict.verdict == "held" for verdict in verdicts)
print(f"{passed} of {len(verdicts)} runs passed")
