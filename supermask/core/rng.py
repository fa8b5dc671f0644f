"""Named random streams. Every random draw of the package comes from one of them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import numpy as np

Stream = np.random.Generator
Streams = Callable[..., Stream]


def random_stream(seed: int | str, *names: str | int) -> Stream:
    """Return the generator of these names.

    `random_stream(0, "init", "fc1.weight")` gives the same draws in every process and on every machine, independent of
    earlier draws. The key is the SHA-256 of the names, each with its type and length, so ("ab", "c") and ("a", "bc")
    differ. The generator is PCG64: its draws do not depend on the torch release, the thread count or the device.

    Differs from the paper: the authors' ties, shuffles and random criterion are not seeded.
    """
    key = hashlib.sha256()
    for name in (seed, *names):
        text = f"{type(name).__name__}:{name}".encode()
        key.update(len(text).to_bytes(8, "little") + text)
    words = np.frombuffer(key.digest(), dtype="<u4")
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence([int(w) for w in words])))


def child_streams(seed: int | str, *prefix: str | int) -> Streams:
    """Return a function that prefixes names: `child_streams(seed, "level", 3)("ties", "fc1.weight")` is
    `random_stream(seed, "level", 3, "ties", "fc1.weight")`.
    """
    return lambda *names: random_stream(seed, *prefix, *names)
