# %% [markdown]
# # Lottery tickets, in five minutes
#
# Train a network, prune it, and rewind what is left to where it started: often it trains as well as before. Zhou et al.
# (2019) ask why. Which weights does it matter to keep? Here the question is put to a small network and scikit-learn's
# digits, so all of it takes seconds. With MNIST at hand, `scale="laptop"` asks it in earnest.
#
# This file is a notebook: Jupyter (with jupytext), VS Code and Spyder open it as cells, and
# `python examples/lottery_tickets.py` runs it from top to bottom.

# %%
from pathlib import Path

import supermask as sm

# %% [markdown]
# ## Run a study
#
# `mask-criteria` ships with the package: nine ways to choose the weights that stay, five seeds each. What is stored is
# never trained again: run this cell twice, and the second time takes no time.

# %%
ran = sm.run("mask-criteria", scale="digits", seeds=3)
print(ran)

# %% [markdown]
# ## Its table
#
# One row a run, as a DuckDB relation: SQL at once, and `.df()`, `.pl()` or `.arrow()` for pandas, Polars or Arrow.

# %%
runs = sm.table("mask-criteria", scale="digits", seeds=3)
deepest = runs.filter("level = 4").aggregate(
    "treatment, 100 * avg(density) AS remaining, 100 * avg(early_stop_test_accuracy) AS accuracy, count(*) AS n",
    "treatment",
)
print(deepest.order("accuracy DESC"))

# %% [markdown]
# Weights that end large are worth keeping, those that end small are worth less than random ones. That is the paper's
# first finding, on a network that trains in a tenth of a second.
#
# ## Its figure

# %%
accuracy = sm.figure("mask-criteria", "accuracy", scale="digits", seeds=3)
accuracy.save("figures")
accuracy  # in a notebook this shows it

# %% [markdown]
# ## What a mask looks like
#
# A run can be named by its id. `sm.look` draws masks: where they are, what they share, which pixels they look at.

# %%
chosen = [
    runs.filter(f"treatment = '{treatment}' AND level = 4 AND seed = 0").project("id").fetchall()[0][0]
    for treatment in ("large_final", "magnitude_increase", "random")
]
looked = sm.analyze_masks(chosen, store=Path("supermask-store"), out=Path("figures"), only="overlap,pixels")
print(looked.text)

# %% [markdown]
# ## A criterion of your own
#
# It is a function in a file, `score(layer, rng)`: one score for each weight, the highest stay. Its text is part of a
# run's identity: change it, and it is another run.

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
# With half or a quarter of the weights left it does as well as `large_final`; with a sixteenth it does not. Is that
# more than chance? The stars below say so, level by level.

# %%
sm.figure(mine, "accuracy")
