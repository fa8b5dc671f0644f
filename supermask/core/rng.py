"""Named random streams: every draw of the project comes from one of these, and from nothing else."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import numpy as np

Stream = np.random.Generator
Streams = Callable[..., Stream]


def random_stream(seed: int | str, *names: str | int) -> Stream:
    """The generator that belongs to these names, and to no others.

    `stream(0, "init", "fc1.weight")` gives the same draws in every process, on every machine, whatever was drawn
    before. The key is the SHA-256 of the names, each with its length, so ("ab", "c") and ("a", "bc") differ; the
    generator is PCG64, whose draws do not depend on the torch release, thread count or device.

    Source: paper.md section 10, "every draw from a named, seeded stream".
    """
    key = hashlib.sha256()
    for name in (seed, *names):
        text = f"{type(name).__name__}:{name}".encode()
        key.update(len(text).to_bytes(8, "little") + text)
    words = np.frombuffer(key.digest(), dtype="<u4")
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence([int(w) for w in words])))


def child_streams(seed: int | str, *prefix: str | int) -> Streams:
    """`streams(seed, "level", 3)("ties", "fc1.weight")` is `stream(seed, "level", 3, "ties", "fc1.weight")`."""
    return lambda *names: random_stream(seed, *prefix, *names)
