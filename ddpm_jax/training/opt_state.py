"""Fields of an optimizer's state, which is a tree of optax's NamedTuples and of parameters."""

from typing import Any

import optax


def get_field(opt_state: Any, name: str, default: Any = None) -> Any:
    """The field `name` of the NamedTuple that has it, or the default. Parameters do not count.

    Raise KeyError if several have it.
    """
    return optax.tree.get(opt_state, name, default, filtering=is_field)


def is_field(path: tuple, value: Any) -> bool:
    """Whether a path of optax's ends in a field of a NamedTuple, and not in a parameter."""
    return isinstance(path[-1], optax.tree_utils.NamedTupleKey)
