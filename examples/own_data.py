# %% [markdown]
# # Your own images
#
# A study names its data by kind and place: `npz:FILE`, `idx:FOLDER`, `parquet:FOLDER`, `images:FOLDER`, or
# `module:function`. This file makes a small set of images with four classes (bars in four directions, in noise), writes
# it as a NumPy archive and as a folder of PNG files, and prunes a network on it.
#
# It is a notebook: Jupyter (with jupytext), VS Code and Spyder open it as cells.

# %%
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

import supermask as sm

folder = Path(tempfile.mkdtemp())

# %% [markdown]
# ## Images and labels
#
# Pixels are uint8, 0 to 255; labels are integers from 0 on. Grey images have the shape (images, height, width), colored
# ones (images, height, width, 3) or (images, 3, height, width).


# %%
def draw_bars(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return images of 12x12 pixels with a bar through a random point, and the direction of the bar."""
    draws = np.random.default_rng(seed)
    labels = np.arange(count) % 4
    images = draws.integers(0, 120, (count, 12, 12))
    for image, label in zip(images, labels, strict=True):
        center = draws.integers(4, 8, 2)
        row_step, column_step = [(0, 1), (1, 0), (1, 1), (1, -1)][label]
        for step in range(-4, 5):
            row, column = center[0] + step * row_step, center[1] + step * column_step
            if 0 <= row < 12 and 0 <= column < 12:
                image[row, column] += 110
    return images.astype(np.uint8), labels


x_train, y_train = draw_bars(1200, seed=0)
x_test, y_test = draw_bars(400, seed=1)

# %% [markdown]
# ## A NumPy archive
#
# `validation` images are held out of the training set: here a tenth by default. Shapes, classes and a contact sheet of
# any data: `supermask data inspect npz:bars.npz`.

# %%
np.savez(folder / "bars.npz", x_train=x_train, y_train=y_train, x_test=x_test, y_test=y_test)
study = {
    "title": "Bars in noise",
    "network": "fc-40-20",
    "dataset": f"npz:{folder}/bars.npz",
    "seeds": 2,
    "train": {"epochs": 8, "evaluate_every": 20},
    "prune": {"levels": 3, "rates": {"hidden": 0.5, "output": 0.3}},
    "treatments": [{"criterion": ["large_final", "random"]}],
}
result = sm.run(study, store=folder / "store")
print(result)

# %%
runs = sm.table(study, store=folder / "store")
print(
    runs.filter("level = 3").aggregate(
        "treatment, 100 * avg(density) AS remaining, 100 * avg(final_test_accuracy) AS accuracy", "treatment"
    )
)

# %% [markdown]
# ## Fewer images, and wrong labels
#
# `train_images` takes a random subset per seed, `label_noise` replaces a share of the training labels by another class.
# Validation and test labels stay as they are.

# %%
for changes in ({"train_images": 200}, {"label_noise": 0.4}):
    changed = sm.run({**study, **changes, "treatments": [{}]}, store=folder / "store")
    print(changes, changed, sep="\n")

# %% [markdown]
# ## A folder of images
#
# One folder per class below `train` and `test`. Images of several sizes are scaled by `#side=`.

# %%
for part, images, labels in (("train", x_train[:200], y_train[:200]), ("test", x_test[:40], y_test[:40])):
    for index, (image, label) in enumerate(zip(images, labels, strict=True)):
        place = folder / "bars" / part / ("across", "down", "falling", "rising")[label]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(place / f"{index}.png")
small = {**study, "dataset": f"images:{folder}/bars#side=8", "treatments": [{}], "seeds": 1}
print(sm.run(small, store=folder / "store"))
