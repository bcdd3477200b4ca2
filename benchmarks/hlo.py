"""Read what a compiled program launches on a chip, from the text of its optimized HLO module.

`kernels` lists the instructions that run, each with the bytes it reads and writes in the chip's
memory: its operands and its results, each counted once. If a kernel needs only a part of an
operand, because it slices it, the part counts. An update in place reads and writes the updated part
alone. The body of a loop counts as often as the loop runs, and of the branches of a conditional the
one that moves the most bytes. Caches are not modelled.
"""

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

BITS = {"pred": 8, "s4": 4, "u4": 4, "bf16": 16, "token": 0}
"""Bits of the types whose name does not end with their number of bits."""
FREE = {
    "parameter",
    "constant",
    "bitcast",
    "get-tuple-element",
    "tuple",
    "after-all",
    "partition-id",
    "replica-id",
    "opt-barrier",
    "optimization-barrier",
}
"""Operations that launch nothing. So do the `-done` halves of asynchronous ones."""
SLICES = ("slice", "dynamic-slice", "gather")
"""Operations that read only a part of their first operand."""
MIXING = {
    "dot",
    "convolution",
    "reduce-window",
    "sort",
    "scatter",
    "custom-call",
    "fusion",
    "tuple",
}
"""Operations that may read all of an operand for a part of a result, even if both are as large."""
UPDATE = "dynamic-update-slice"
COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
ARRAY = re.compile(r"\b([a-z]+\d*\w*)\[([\d,]*)\](\{[^{}]*\})?")
OPERATION = re.compile(r"(?:^|[\s)}])([a-z][a-z0-9-]*)\(")
COMPUTATION = re.compile(r"(?:ENTRY )?%?([\w.-]+) \(.*\{$")


class Kernel(NamedTuple):
    """An instruction that runs on the chip."""

    kind: str
    """convolution, product, reduction, copy, collective or other."""
    bytes: int
    """Read and written, in one execution."""
    times: int
    """Executions in one call of the program."""
    place: str
    """The operation of the program it comes from, and "backward" or "forward"."""
    operation: str
    """The instruction's own name for what it does, such as "all-reduce"."""
    result_bytes: int
    """The bytes of its result, in the chip's memory or on the chip."""
    attributes: str
    """The end of the instruction, which names the groups of a collective."""


class Instruction(NamedTuple):
    """One line of a computation."""

    name: str
    shape: str
    operation: str
    operands: list[str]
    """Their names; of a parameter its number."""
    attributes: str


def array_bytes(shape: str, on_chip: bool = False) -> int:
    """The bytes of all arrays of a shape that are in the chip's memory.

    A layout with S(1) or higher puts an array into memory on the chip, which counts if `on_chip`.
    """
    total = 0
    for kind, dims, layout in ARRAY.findall(shape):
        if re.search(r"S\([1-9]", layout) and not on_chip:
            continue
        digits = re.search(r"\d+", kind)
        bits = BITS.get(kind) or (int(digits[0]) if digits else 0)
        total += _product(dims) * bits // 8
    return total


def array_size(shape: str) -> int:
    """The number of elements of all arrays of a shape."""
    return sum(_product(dims) for _, dims, _ in ARRAY.findall(shape))


def _product(dims: str) -> int:
    return math.prod(int(dim) for dim in dims.split(",") if dim)


def computations(text: str) -> dict[str, list[Instruction]]:
    """The instructions of each computation of a module, by its name; the entry's is "ENTRY"."""
    found: dict[str, list[Instruction]] = {}
    current: list[Instruction] = []
    for line in text.splitlines():
        head = COMPUTATION.match(line)
        if head:
            name = "ENTRY" if line.startswith("ENTRY") else head[1]
            current = found.setdefault(name, [])
        elif line.startswith("  "):
            current += filter(None, [instruction(line)])
    return found


def instruction(line: str) -> Instruction | None:
    """Read a line of a computation; None if it holds no instruction."""
    name, is_assignment, rest = line.strip().removeprefix("ROOT ").partition(" = ")
    operation = OPERATION.search(rest)
    if not is_assignment or operation is None:
        return None
    operands, _, attributes = rest[operation.end() :].partition("), ")
    shape = rest[: operation.start()]
    names = re.findall(r"%([\w.-]+)", operands) or [operands.rstrip(")")]
    return Instruction(name.lstrip("%"), shape, operation[1], names, attributes)


def kernels(text: str) -> list[Kernel]:
    """The kernels that one call of a program launches, in the order of the text.

    Raise ValueError for a loop of unknown length.
    """
    all_computations = computations(text)
    return list(_kernels(all_computations, "ENTRY", 1))


def totals(
    some_kernels: Iterable[Kernel], label: Callable[[Kernel], str]
) -> tuple[Counter[str], Counter[str]]:
    """How often kernels are launched, and the bytes that they move, by a label of each kernel."""
    launched: Counter[str] = Counter()
    moved: Counter[str] = Counter()
    for kernel in some_kernels:
        launched[label(kernel)] += kernel.times
        moved[label(kernel)] += kernel.bytes * kernel.times
    return launched, moved


def _kernels(
    all_computations: dict[str, list[Instruction]], name: str, times: int
) -> Iterator[Kernel]:
    shapes = {each.name: each.shape for each in all_computations[name]}
    for each in all_computations[name]:
        if each.operation in FREE or each.operation.endswith("-done"):
            continue
        if each.operation in ("while", "call", "conditional"):
            runs = times * _trip_count(all_computations, each)
            inside = [list(_kernels(all_computations, inner, runs)) for inner in _called(each)]
            yield from max(inside, key=_bytes_moved, default=[])
            continue
        body = _body(all_computations, each, shapes)
        read = bytes_read(each, body, shapes)
        result = array_bytes(each.shape)
        whole = array_bytes(each.shape, on_chip=True)
        if each.operation.endswith("-start") and each.operation != "all-reduce-start":
            # The first half of the other asynchronous operations returns its operands, too.
            result = max(result - read, 0)
            given = (array_bytes(shapes[name], on_chip=True) for name in each.operands)
            whole = max(whole - sum(given), 0)
        moved = read + result - bytes_kept(body)
        kind = _kind(each, _operations_within(all_computations, each))
        operation = each.operation.removesuffix("-start")
        yield Kernel(kind, moved, times, _place(each), operation, whole, each.attributes)


def _bytes_moved(some_kernels: list[Kernel]) -> int:
    return sum(kernel.bytes * kernel.times for kernel in some_kernels)


def _body(
    all_computations: dict[str, list[Instruction]], each: Instruction, shapes: dict[str, str]
) -> list[Instruction]:
    """The computation that a kernel runs: the one it calls, or its operands and itself."""
    fused = re.search(r"calls=%?([\w.-]+)", each.attributes)
    if fused:
        return all_computations[fused[1]]
    operands = [
        Instruction(name, shapes.get(name, ""), "parameter", [str(number)], "")
        for number, name in enumerate(each.operands)
    ]
    return [*operands, each]


def bytes_read(each: Instruction, body: list[Instruction], shapes: dict[str, str]) -> int:
    """The bytes that a kernel reads of its operands, which have these shapes."""
    shares = shares_read(body)
    parameters = {inner.operands[0]: inner.name for inner in body if inner.operation == "parameter"}
    return sum(
        round(array_bytes(shapes.get(operand, "")) * shares[parameters[str(number)]])
        for number, operand in enumerate(each.operands)
        if str(number) in parameters
    )


def shares_read(body: list[Instruction]) -> dict[str, float]:
    """The share of each array of a computation that its results need, from 0 to 1.

    It passes from the results to the operands: a slice needs less of its operand, and so do the
    elementwise operations and concatenations before it.
    """
    sizes = {each.name: array_size(each.shape) for each in body}
    in_place = [each.name for each in updates_in_place(body)]
    shares = dict.fromkeys(sizes, 0.0) | {body[-1].name: 1.0}
    for each in reversed(body):
        for position, operand in enumerate(each.operands):
            if operand not in sizes or (each.name in in_place and position == 0):
                continue
            share = _share_needed(each, position, shares[each.name], sizes)
            shares[operand] = min(1.0, shares[operand] + share)
    return shares


def _share_needed(user: Instruction, position: int, share: float, sizes: dict[str, int]) -> float:
    """The share of an operand that this share of an instruction's result needs."""
    size = sizes[user.name]
    operand_size = sizes[user.operands[position]]
    if share == 0:
        return 0.0
    if user.operation in SLICES and position == 0:
        return share * size / max(operand_size, 1)
    is_elementwise = size == operand_size and user.operation not in MIXING
    return share if is_elementwise or user.operation == "concatenate" else 1.0


def updates_in_place(body: list[Instruction]) -> list[Instruction]:
    """The results of a computation that are one of its operands with a part updated."""
    by_name = {each.name: each for each in body}

    def source(name: str) -> Instruction:
        found = by_name[name]
        return source(found.operands[0]) if found.operation == "bitcast" else found

    root = body[-1]
    results = map(source, root.operands if root.operation == "tuple" else [root.name])
    updates = [each for each in results if each.operation == UPDATE]
    return [each for each in updates if source(each.operands[0]).operation == "parameter"]


def bytes_kept(body: list[Instruction]) -> int:
    """The bytes of the results that updates in place leave as they are."""
    sizes = {each.name: array_size(each.shape) for each in body}
    return sum(
        round(array_bytes(each.shape) * (1 - sizes[each.operands[1]] / sizes[each.name]))
        for each in updates_in_place(body)
    )


def _called(each: Instruction) -> list[str]:
    """The computations of which a loop, a call or a conditional runs one."""
    if each.operation == "while":
        return re.findall(r"body=%?([\w.-]+)", each.attributes)
    listed = re.search(r"branch_computations=\{([^}]*)\}", each.attributes)
    branches = re.findall(r"%?([\w.-]+)", listed[1]) if listed else []
    return branches + re.findall(r"(?:to_apply|_computation)=%?([\w.-]+)", each.attributes)


def _trip_count(all_computations: dict[str, list[Instruction]], each: Instruction) -> int:
    """How often a loop runs; 1 for a call or a conditional. Raise ValueError if it is unknown."""
    if each.operation != "while":
        return 1
    known = re.search(r'known_trip_count":\{"n":"(\d+)"', each.attributes)
    if known:
        return int(known[1])
    # Programs for a TPU do not say it. JAX's scans count from 0 by 1 while the number is below a
    # limit.
    named = re.search(r"condition=%?([\w.-]+)", each.attributes)
    condition = all_computations.get(named[1], []) if named else []
    limits = {one.name: one.operands[0] for one in condition if one.operation == "constant"}
    test = condition[-1] if condition else each
    if "direction=LT" in test.attributes and test.operands[1] in limits:
        return int(limits[test.operands[1]])
    raise ValueError(
        f"The length of the loop {each.name} is unknown: count a program whose loops are of "
        "fixed length."
    )


def _operations_within(
    all_computations: dict[str, list[Instruction]], each: Instruction
) -> set[str]:
    """The operations of an instruction and of the computations it calls."""
    found = {each.operation.removesuffix("-start")}
    for name in re.findall(r"calls=%?([\w.-]+)", each.attributes):
        for inner in all_computations.get(name, []):
            found |= _operations_within(all_computations, inner)
    return found


def _kind(each: Instruction, inside: set[str]) -> str:
    """The kind of a kernel, from the operations within it."""
    target = re.search(r'custom_call_target="([^"]*)"', each.attributes)
    library = target[1].lower() if target else ""
    if inside & set(COLLECTIVES):
        return "collective"
    if "convolution" in inside or "conv" in library:
        return "convolution"
    if "dot" in inside or any(name in library for name in ("gemm", "matmul", "fmha")):
        return "product"
    if inside & {"reduce", "reduce-window"}:
        return "reduction"
    if inside <= {*FREE, "fusion", "copy", "transpose", "reshape", "slice", "concatenate"}:
        return "copy"
    return "other"


def _place(each: Instruction) -> str:
    """Where in the program a kernel comes from, without the numbers of its layers."""
    source = re.search(r'op_name="([^"]*)"', each.attributes)
    if source is None:
        return "unnamed"
    direction = "backward" if "transpose(" in source[1] else "forward"
    parts = re.sub(r"_\d+", "", source[1]).split("/")[-3:]
    return f"{direction} {'/'.join(parts)}"
