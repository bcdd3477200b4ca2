"""The size of images: one number for squares, or height and width."""

import numbers
from typing import Any

ImageSize = int | tuple[int, int]


def sides(size: Any) -> tuple[int, int]:
    """The height and width of a size. Raise ValueError for anything else than an `ImageSize`."""
    pair = (size, size) if isinstance(size, numbers.Integral) else size
    is_pair = isinstance(pair, tuple | list) and len(pair) == 2
    if not is_pair or not all(map(_is_side, pair)):
        raise ValueError(
            f"An image size is one number from 1, or a height and a width, not {str(size)[:80]}."
        )
    return int(pair[0]), int(pair[1])


def _is_side(side: Any) -> bool:
    return isinstance(side, numbers.Integral) and not isinstance(side, bool) and int(side) >= 1


def simplest(size: Any) -> ImageSize:
    """The same size, as one number if it is a square. Raise ValueError as `sides` does."""
    height, width = sides(size)
    return height if height == width else (height, width)


def size_text(size: ImageSize) -> str:
    """The size as text: 64 for a square, 64x128 for a height of 64 and a width of 128."""
    return "x".join(map(str, dict.fromkeys(sides(size))))


def check_image_size(image_size: ImageSize, halvings: int) -> None:
    """Raise ValueError, with sizes that fit, unless image_size can be halved `halvings` times."""
    unit = 2**halvings
    height, width = sides(image_size)
    if height % unit == 0 and width % unit == 0:
        return
    remedy = f"a multiple of {unit}, such as {_multiples(height, unit)}"
    if height != width:
        remedy = (
            f"multiples of {unit}, such as a height of {_multiples(height, unit)} and a width of "
            f"{_multiples(width, unit)}"
        )
    raise ValueError(
        f"Image size {size_text(image_size)} does not fit a network that halves it {halvings} "
        f"times: use {remedy}."
    )


def _multiples(side: int, unit: int) -> str:
    """The multiples of `unit` that are nearest to a side: one if it is a multiple, else two."""
    below = side // unit * unit
    nearest = [below] if side == below else [below, below + unit]
    return " or ".join(str(size) for size in nearest if size)
