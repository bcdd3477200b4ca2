"""Compare training steps with freed memory kept by the process and returned to the system.

    python benchmarks/freed_memory.py [--recipes butterflies cifar10_small] [--pairs 7]

Each ratio is the time of other steps divided by that of the steps of train.py, which keeps what
they free in large pages (`memory.keep_freed`): the median of interleaved pairs, with the lowest and
the highest. Above 1, ours is faster. The others return it to the system, as glibc does by default,
or keep it in small pages. It needs Linux, glibc and a CPU.
"""

import sys
from functools import partial

from beside_torch import work_by_row
from rows import NETS, OURS, Net, for_each_net
from sides import Side, ratio

SMALL = Net("cifar10_small", 32, 16, 4, 1.0)


def compare(net: Net, pairs: int) -> None:
    """Print the two lines of a network."""
    work = work_by_row(net)["training"]
    with Side(sys.executable, OURS) as ours:
        ours.ask("load", net.recipe, net.batch_size)
        for how, options in (
            ("returned", {"keeps_memory": False}),
            ("kept in small pages", {"large_pages": False}),
        ):
            with Side(sys.executable, OURS) as other:
                other.ask("load", net.recipe, net.batch_size, **options)
                above, below = (
                    partial(side.ask, work.function, *work.arguments) for side in (other, ours)
                )
                result = ratio(above, below, pairs)
                print(f"{net.recipe}, {work.description}, {how}: {result}", flush=True)


if __name__ == "__main__":
    for_each_net(__doc__, compare, [*NETS, SMALL])
