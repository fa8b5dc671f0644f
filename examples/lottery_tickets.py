# %% [markdown]
# # Lottery tickets in five minutes
#
# Train a network, prune it, and rewind the remaining weights to their initial values: the pruned network often trains
# as well as the full one. Zhou et al. (2019) ask why, and which weights to keep. This notebook trains a small network
# on scikit-learn's digits, so everything takes seconds. With MNIST available, `scale="laptop"` is a serious experiment.
#
# This file is a notebook: Jupyter (with jupytext), VS Code and Spyder open it as cells, and
# `python examples/lottery_tickets.py` runs it from top to bottom.

# %%
from pathlib import Path

import supermask as sm

# %% [markdown]
# ## Run a study
#
# `mask-criteria` is a study of the package: nine criteria for the weights to keep, five seeds each. Stored runs are
# never trained again: a second run of this cell takes no time.

# %%
result = sm.run("mask-criteria", scale="digits", seeds=3)
print(result)

# %% [markdown]
# ## Table of runs
#
# One row per run, as a DuckDB relation: query it with SQL, or convert it with `.df()`, `.pl()` or `.arrow()` to pandas,
# Polars or Arrow.

# %%
runs = sm.table("mask-criteria", scale="digits", seeds=3)
deepest = runs.filter("level = 4").aggregate(
    "treatment, 100 * avg(density) AS remaining, 100 * avg(early_stop_test_accuracy) AS accuracy, count(*) AS n",
    "treatment",
)
print(deepest.order("accuracy DESC"))

# %% [markdown]
# Keeping the weights with large final values works; keeping those with small final values is worse than a random
# choice. That is the first finding of the paper, on a network that trains in a tenth of a second.
#
# ## Figure

# %%
accuracy = sm.figure("mask-criteria", "accuracy", scale="digits", seeds=3)
accuracy.save("figures")
accuracy  # A notebook displays the figure.

# %% [markdown]
# ## Masks
#
# Runs are identified by their ids. `sm.analyze_masks` draws masks: their density, their overlap, and the pixels that
# they keep.

# %%
chosen = [
    runs.filter(f"treatment = '{treatment}' AND level = 4 AND seed = 0").project("id").fetchall()[0][0]
    for treatment in ("large_final", "magnitude_increase", "random")
]
analysis = sm.analyze_masks(chosen, store=Path("supermask-store"), out=Path("figures"), only="overlap,pixels")
print(analysis.text)

# %% [markdown]
# ## A criterion of your own
#
# A criterion is a function in a file, `score(layer, rng)`: it returns one score per weight, and the weights with the
# highest scores are kept. The file's hash is part of a run's identity: a changed criterion gives new runs.

# %%
Path("my_criterion.py").write_text('''
def relative(layer, rng):
    """Keep the weights that moved away from zero the most, relative to where they started."""
    return layer.w_final.abs() / (layer.w_init.abs() + 1e-3)
''')

mine = {
    "title": "Relative to where it started",
    "dataset": "digits",
    "seeds": 3,
    "train": {"epochs": 5, "evaluate_every": 20},
    "prune": {"levels": 4, "rates": {"hidden": 0.5, "output": 0.25}},
    "treatments": [{"criterion": ["large_final", "my_criterion:relative", "random"]}],
}
print(sm.run(mine))
print(
    sm.table(mine)
    .filter("level > 0")
    .aggregate("level, criterion, 100 * avg(early_stop_test_accuracy) AS accuracy", "level, criterion")
    .order("level, accuracy DESC")
)

# %% [markdown]
# With half or a quarter of the weights remaining it is as good as `large_final`; with a sixteenth it is not. Stars in
# the figure mark significant differences, level by level.

# %%
sm.figure(mine, "accuracy")
