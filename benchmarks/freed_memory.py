"""Compare training steps with freed memory kept by the process and returned to the system.

    python benchmarks/freed_memory.py [--recipes butterflies cifar10 mnist] [--pairs 7]

Each line is the time of steps whose freed memory glibc returns to the system, as it does by
default, divided by the time of those of train.py, which keeps it (`memory.keep_freed`): the median
ratio of interleaved pairs, with the lowest and the highest. Above 1, ours is faster. It needs
Linux, glibc and a CPU.
"""

import sys
from functools import partial

from beside_torch import work_by_row
from rows import OURS, Net, for_each_net
from sides import Side, ratio


def compare(net: Net, pairs: int) -> None:
    """Print the line of a network."""
    work = work_by_row(net)["training"]
    with Side(sys.executable, OURS) as returned, Side(sys.executable, OURS) as kept:
        returned.ask("load", net.recipe, net.batch_size, keeps_memory=False)
        kept.ask("load", net.recipe, net.batch_size)
        above, below = (
            partial(side.ask, work.function, *work.arguments) for side in (returned, kept)
        )
        print(f"{net.recipe}, {work.description}: {ratio(above, below, pairs)}", flush=True)


if __name__ == "__main__":
    for_each_net(__doc__, compare)
