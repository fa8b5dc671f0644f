"""Costs of the sparse engine's kernels on this machine, as in supermask/engines/sparse/default_costs.json.

    python benchmarks/sparse_costs.py [--repeats 9] [--without-avx512]

Prints medians of several measurements, rounded to two digits, and the range of each. The shipped tables were made with
it. `--without-avx512` compiles the kernels for AVX2 on a machine that has AVX-512.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
from typing import Any

from llvmlite.binding import get_host_cpu_features, get_host_cpu_name


def flat(costs: dict[str, Any], prefix: str = "") -> dict[str, float]:
    """Return a nested dict of costs as `{"layers.unit_sums.dense": ...}`."""
    values: dict[str, float] = {}
    for key, value in costs.items():
        if isinstance(value, dict):
            values |= flat(value, f"{prefix}{key}.")
        elif isinstance(value, float):
            values[prefix + key] = value
    return values


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--without-avx512", action="store_true")
    arguments = parser.parse_args()
    if arguments.without_avx512 and "NUMBA_CPU_FEATURES" not in os.environ:
        features = {name: on for name, on in get_host_cpu_features().items() if not name.startswith(("avx512", "evex"))}
        os.environ["NUMBA_CPU_FEATURES"] = ",".join(f"{'+' if on else '-'}{name}" for name, on in features.items())
        os.environ["NUMBA_CPU_NAME"] = "x86-64-v3"
        # numba reads its configuration at import, and kernels are compiled when their modules are imported.
        os.execv(sys.executable, [sys.executable, *sys.argv])  # noqa: S606
    from supermask.core.environment import cpu_name
    from supermask.engines.sparse.autotune import measure_costs

    tables = [flat(measure_costs().to_data()) for _ in range(arguments.repeats)]
    print(f"{cpu_name()}; LLVM target {os.environ.get('NUMBA_CPU_NAME', get_host_cpu_name())}")
    medians: dict[str, Any] = {}
    for key, first in tables[0].items():
        values = [table[key] for table in tables]
        median = float(f"{statistics.median(values):.2g}")
        print(f"{key:32} {median:8.4g} ({min(values):.4g} to {max(values):.4g}, first {first:.4g})")
        *path, last = key.split(".")
        entry = medians
        for part in path:
            entry = entry.setdefault(part, {})
        entry[last] = median
    print(json.dumps(medians))


if __name__ == "__main__":
    main()
