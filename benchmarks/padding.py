"""The share of padding in an update's passes, which packed sequences would spare.

    python benchmarks/padding.py [--traces 512]

Traces of drawn lengths are cut into micro-batches as an update cuts them: in order of length, up to a budget of padded
tokens. The last line is JSON: the share of padding by lengths and budget, mean over draws.
"""

import argparse
import json

import numpy as np

from score_cli.tables.records import Trace
from score_cli.training.batching import micro_batches

DRAWS = 10
BUDGETS = (2048, 4096, 8192, 16384)


def lengths(name: str, count: int, random: np.random.Generator) -> np.ndarray:
    if name == "log-uniform 64 to 2,048":
        return np.exp(random.uniform(np.log(64), np.log(2048), count)).astype(int)
    if name == "log-uniform 256 to 2,048":
        return np.exp(random.uniform(np.log(256), np.log(2048), count)).astype(int)
    return np.clip(random.normal(900, 200, count), 200, 2048).astype(int)


def trace(length: int) -> Trace:
    owners = np.ones(length, np.int8)
    owners[0] = 0
    return Trace("p", 0, [""], ["stop"], np.zeros(length, np.int32), owners, np.zeros(length, np.float32), 0)


def padding(sizes: np.ndarray, budget: int) -> float:
    batches = micro_batches([trace(int(size)) for size in sizes], budget)
    return 1 - float(sizes.sum()) / sum(batch.token_ids.numel() for batch in batches)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--traces", type=int, default=512)
    options = parser.parse_args()
    random = np.random.default_rng(0)
    found: dict[str, dict[int, float]] = {}
    for name in ("log-uniform 64 to 2,048", "log-uniform 256 to 2,048", "normal, 900 ± 200"):
        draws = [lengths(name, options.traces, random) for _ in range(DRAWS)]
        found[name] = {budget: float(np.mean([padding(draw, budget) for draw in draws])) for budget in BUDGETS}
        print(name, " ".join(f"{budget}: {share:.2%}" for budget, share in found[name].items()))
    print(json.dumps(found))


if __name__ == "__main__":
    main()
