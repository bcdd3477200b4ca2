"""Compare XLA's two orders of a CPU program's operations: for parallelism and for little memory.

    python benchmarks/memory_order.py [--recipes butterflies cifar10 mnist] [--pairs 7]

Each line is the time with XLA's default order, which is for parallelism, divided by the time with
the order that train.py and sample.py choose (`platform.order_for_memory`): the median ratio of
interleaved pairs, with the lowest and the highest. Above 1, ours is faster. `memory.py` shows the
memory with our order; with XLA_FLAGS=--xla_cpu_enable_concurrency_optimized_scheduler=true it shows
the memory with XLA's.
"""

import os
import sys
from functools import partial

from beside_torch import work_by_row
from rows import OURS, Net, for_each_net
from sides import Side, ratio

PARALLEL = "--xla_cpu_enable_concurrency_optimized_scheduler=true"


def compare(net: Net, pairs: int) -> None:
    """Print a line for each kind of work."""
    env = {"XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {PARALLEL}".strip()}
    for name in ("training", "forward"):
        work = work_by_row(net)[name]
        with Side(sys.executable, OURS, env) as parallel, Side(sys.executable, OURS) as ours:
            for side in (parallel, ours):
                side.ask("load", net.recipe, net.batch_size, sampling=name == "forward")
            above, below = (
                partial(side.ask, work.function, *work.arguments) for side in (parallel, ours)
            )
            print(f"{net.recipe}, {work.description}: {ratio(above, below, pairs)}", flush=True)


if __name__ == "__main__":
    for_each_net(__doc__, compare)
