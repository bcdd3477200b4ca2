"""Read what a compiled program launches on a chip, from the text of its optimized HLO module.

`kernels` lists the instructions that run, each with the bytes it reads and writes in the chip's
memory: its operands and its results, each counted once. Of an operand that a kernel only slices,
the slices count. The body of a loop counts as often as the loop runs. Caches are not modelled.
"""

import math
import re
from collections.abc import Iterator
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
SLICES = ("slice", "dynamic-slice")
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
    """The bytes of its result."""


class Instruction(NamedTuple):
    """One line of a computation."""

    name: str
    shape: str
    operation: str
    operands: list[str]
    """Their names; of a parameter its number."""
    attributes: str


def array_bytes(shape: str) -> int:
    """The bytes of all arrays of a shape that are in the chip's memory.

    A layout with S(1) or higher puts an array into memory on the chip, which is not counted.
    """
    total = 0
    for kind, dims, layout in ARRAY.findall(shape):
        if re.search(r"S\([1-9]", layout):
            continue
        digits = re.search(r"\d+", kind)
        bits = BITS.get(kind) or (int(digits[0]) if digits else 0)
        total += math.prod(int(dim) for dim in dims.split(",") if dim) * bits // 8
    return total


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
    """The kernels that one call of a program launches, in the order of the text."""
    all_computations = computations(text)
    return list(_kernels(all_computations, "ENTRY", 1))


def _kernels(
    all_computations: dict[str, list[Instruction]], name: str, times: int
) -> Iterator[Kernel]:
    shapes = {each.name: each.shape for each in all_computations[name]}
    for each in all_computations[name]:
        if each.operation in FREE or each.operation.endswith("-done"):
            continue
        if each.operation in ("while", "call", "conditional"):
            for inner in _called(each):
                yield from _kernels(all_computations, inner, times * _trip_count(each))
            continue
        result = array_bytes(each.shape)
        read = bytes_read(all_computations, each, shapes)
        if each.operation.endswith("-start") and each.operation != "all-reduce-start":
            # The first half of the other asynchronous operations returns its operands, too.
            result = max(result - read, 0)
        inside = _operations_within(all_computations, each)
        operation = each.operation.removesuffix("-start")
        yield Kernel(_kind(each, inside), result + read, times, _place(each), operation, result)


def bytes_read(
    all_computations: dict[str, list[Instruction]], each: Instruction, shapes: dict[str, str]
) -> int:
    """The bytes that a kernel reads of its operands, which have these shapes."""
    if each.operation in SLICES:
        return array_bytes(each.shape)
    fused = re.search(r"calls=%?([\w.-]+)", each.attributes)
    body = all_computations.get(fused[1], []) if fused else []
    parameters = {inner.operands[0]: inner.name for inner in body if inner.operation == "parameter"}
    total = 0
    for number, operand in enumerate(each.operands):
        whole = array_bytes(shapes.get(operand, ""))
        total += min(whole, _bytes_sliced(body, parameters.get(str(number), ""), whole))
    return total


def _bytes_sliced(body: list[Instruction], name: str, whole: int) -> int:
    """The bytes that a computation reads of an array: all of it, unless all its users slice it."""
    users = [inner for inner in body if name in inner.operands]
    if not users:
        return whole
    return sum(
        array_bytes(user.shape)
        if user.operation in SLICES
        else _bytes_sliced(body, user.name, whole)
        if user.operation == "bitcast"
        else whole
        for user in users
    )


def _called(each: Instruction) -> list[str]:
    """The computations that a loop, a call or a conditional runs."""
    if each.operation == "while":
        return re.findall(r"body=%?([\w.-]+)", each.attributes)
    called = re.findall(r"(?:to_apply|_computation)=%?([\w.-]+)", each.attributes)
    # Either branch runs; the first stands for both.
    listed = re.findall(r"branch_computations=\{%?([\w.-]+)", each.attributes)
    return (called + listed)[:1]


def _trip_count(each: Instruction) -> int:
    """How often a loop runs; 1 where the compiler does not know it."""
    known = re.search(r'known_trip_count":\{"n":"(\d+)"', each.attributes)
    return int(known[1]) if known else 1


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
    if "dot" in inside or "gemm" in library or "matmul" in library:
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
