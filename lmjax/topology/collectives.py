"""Collectives of a compiled program, read from the text of the optimised HLO.

The body of a loop counts once per iteration. The number of iterations is the trip count that the compiler notes, else
the constant that the counter is compared with. A count that is known only at run time comes from the caller.
"""

import math
import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute", "collective-broadcast")


class Collective(NamedTuple):
    """One collective of a program."""

    #: Operation: one of `KINDS`.
    kind: str
    #: Bytes of the result on a device.
    size: float
    #: Number of devices in a group.
    group: int
    #: Number of executions.
    times: float
    #: Whether a group has devices of several slices or nodes.
    far: bool
    #: Name of the operation that needs the collective.
    where: str

    @property
    def sent(self) -> float:
        """Bytes that a device sends per execution.

        They are those of the ring algorithms (Thakur et al. 2005, sections 4.1 to 4.5).
        """
        share = (self.group - 1) / self.group
        match self.kind:
            case "all-reduce":  # a reduce-scatter and an all-gather
                return 2 * self.size * share
            case "reduce-scatter":  # the result is one shard
                return self.size * (self.group - 1)
            case "collective-permute" | "collective-broadcast":
                return self.size
        return self.size * share


class Instruction(NamedTuple):
    """One instruction of a computation."""

    #: Name of the result.
    name: str
    #: Type of the result in HLO's notation.
    shape: str
    #: Operation code.
    operation: str
    #: Operands and attributes.
    arguments: str


_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.-]+) = (.*?) ([a-z][\w-]*)\((.*)$")
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.-]+) \(.*\{$")
_CALLED = re.compile(r"\b(?:calls|to_apply|true_computation|false_computation)=%?([\w.-]+)")
_BRANCHES = re.compile(r"\bbranch_computations=\{([^}]*)\}")


def collectives(text: str, *, dynamic: float = 1, islands: Sequence[int] = ()) -> list[Collective]:
    """Return every collective of a program.

    The collectives of a computation precede those of its callees.

    Args:
        text: The optimised HLO.
        dynamic: Number of iterations of a loop whose count is not in the text.
        islands: The slice or node of each device, in the order of the program's device numbers.
    """
    program, entry = computations(text)
    devices = len(islands) or int((re.search(r"num_partitions=(\d+)", text) or [0, 1])[1])
    by_key: dict[object, Collective] = {}
    for name, times, fused in _calls(program, entry, 1.0, dynamic):
        named = {instruction.name: instruction for instruction in program[name]}
        for number, instruction in enumerate(program[name]):
            collective = _collective(instruction, named, program, times, devices, islands)
            if collective is None:
                continue
            # A TPU spreads one collective over several fusions, which share its channel.
            channel = re.search(r"channel_id=(\d+)", instruction.arguments) if fused else None
            key = (collective.kind, channel[1]) if channel else (name, number)
            if key not in by_key or not channel:
                before = by_key.get(key)
                by_key[key] = collective._replace(times=collective.times + (before.times if before else 0))
    return list(by_key.values())


def computations(text: str) -> tuple[dict[str, list[Instruction]], str]:
    """Return the instructions of each computation of an HLO text, and the name of the entry."""
    program: dict[str, list[Instruction]] = {}
    entry = name = ""
    for line in text.splitlines():
        if head := _COMPUTATION.match(line):
            name = head[2]
            program[name] = []
            entry = name if head[1] else entry
        elif name and (match := _INSTRUCTION.match(line)):
            program[name].append(Instruction(*match.groups()))
    return program, entry


def _calls(
    program: dict[str, list[Instruction]], name: str, times: float, dynamic: float, fused: bool = False
) -> Iterator[tuple[str, float, bool]]:
    """Yield (computation, executions, whether in a fusion) of `name` and its callees.

    All sides of a branch are callees.
    """
    yield name, times, fused
    for instruction in program[name]:
        arguments = instruction.arguments
        if instruction.operation == "while":
            body = re.search(r"\bbody=%?([\w.-]+)", arguments)
            assert body
            yield from _calls(program, body[1], times * _trips(instruction, program, dynamic), dynamic, fused)
            continue
        if _scatters(instruction):
            continue
        branches = ",".join(_BRANCHES.findall(arguments)).split(",")
        inside = fused or instruction.operation == "fusion"
        for callee in _CALLED.findall(arguments) + [part.strip(" %") for part in branches]:
            if callee in program:
                yield from _calls(program, callee, times, dynamic, inside)


def _trips(loop: Instruction, program: dict[str, list[Instruction]], dynamic: float) -> float:
    noted = re.search(r'"known_trip_count":\{"n":"(\d+)"\}', loop.arguments)
    if noted:
        return int(noted[1])
    condition, body = (re.search(rf"\b{part}=%?([\w.-]+)", loop.arguments) for part in ("condition", "body"))
    assert condition is not None
    assert body is not None
    for _, counter, last in _counted(program[condition[1]], "compare", "direction=LT"):
        after = next((i.arguments for i in reversed(program[body[1]]) if i.operation == "tuple"), "")
        results = re.findall(r"%([\w.-]+)", after.split(")")[0])
        steps = [
            step
            for name, index, step in _counted(program[body[1]], "add")
            if index == counter and results[index : index + 1] == [name]
        ]
        return math.ceil(last / (steps[0] if steps else 1))  # 2: the compiler has unrolled the loop
    return dynamic


def _counted(
    instructions: Sequence[Instruction], operation: str, attribute: str = ""
) -> Iterator[tuple[str, int, int]]:
    """Yield the operations on an element of the loop's state and a constant.

    Each is (name of the result, index of the element, constant).
    """
    named = {instruction.name: instruction for instruction in instructions}
    for instruction in instructions:
        if instruction.operation != operation or attribute not in instruction.arguments:
            continue
        operands = [named.get(name) for name in re.findall(r"%([\w.-]+)", instruction.arguments.split(")")[0])]
        indices = [re.search(r"index=(\d+)", i.arguments) for i in operands if i and i.operation == "get-tuple-element"]
        numbers = [i.arguments.split(")")[0] for i in operands if i and i.operation == "constant"]
        if indices and indices[0] and numbers and numbers[0].isdecimal() and int(numbers[0]):
            yield instruction.name, int(indices[0][1]), int(numbers[0])


def _scatters(instruction: Instruction) -> bool:
    """Whether an instruction is a TPU's reduce-scatter.

    It is a fusion of an all-reduce and a slice of its result.
    """
    return instruction.operation == "fusion" and "calls=%all-reduce-scatter" in instruction.arguments


def _collective(
    instruction: Instruction,
    named: dict[str, Instruction],
    program: dict[str, list[Instruction]],
    times: float,
    devices: int,
    islands: Sequence[int],
) -> Collective | None:
    kind, shape, attributes = instruction.operation, instruction.shape, instruction.arguments
    if kind == "recv" and "_xla_megascale_transfer_type" in attributes:
        return _between_slices(instruction, times)
    if _scatters(instruction):
        inner = program["all-reduce-scatter" + attributes.split("calls=%all-reduce-scatter")[1].split(",")[0]]
        kind = "reduce-scatter"
        attributes = next(i.arguments for i in inner if i.operation == "all-reduce")
    elif kind.endswith("-done") and kind.removesuffix("-done") in KINDS:  # it has the result of the collective
        kind, start = kind.removesuffix("-done"), re.search(r"%([\w.-]+)", attributes)
        attributes = named[start[1]].arguments if start else ""
    if kind not in KINDS:
        return None
    groups = _groups(attributes, kind, devices)
    at = np.asarray(islands) if len(islands) else np.zeros(devices, int)
    far = bool((at[groups] != at[groups[:, :1]]).any())
    where = re.search(r'op_name="([^"]*)"', attributes + instruction.arguments)
    return Collective(kind, _bytes(shape), groups.shape[1], times, far, where[1] if where else "")


def _between_slices(instruction: Instruction, times: float) -> Collective:
    """Return a collective between TPU slices.

    Each slice runs its own program and receives from the network.
    """
    kind = re.search(r'_xla_megascale_transfer_type="(\w+)"', instruction.arguments)
    target = re.search(r'_xla_megascale_target="\{([\d,:]+)\}', instruction.arguments)
    assert kind is not None
    assert target is not None
    name = kind[1].lower().replace("_", "-")
    slices = 0
    for part in target[1].split(","):
        first, _, last = part.partition(":")
        slices += int(last or first) - int(first) + 1
    result = instruction.shape.split(" u32[]")[0]
    return Collective(name if name in KINDS else "collective-permute", _bytes(result), slices, times, True, "")


def _bytes(shape: str) -> float:
    """Return the bytes of a type in HLO's notation.

    It is an array, such as `bf16[8,128]{1,0}`, or several arrays in parentheses.
    """
    total = 0.0
    for kind, sizes in re.findall(r"\b(pred|[a-z]+\d+\w*)\[([\d,]*)\]", shape):
        bits = 8 if kind == "pred" else int((re.search(r"\d+", kind) or [8])[0])
        total += bits / 8 * math.prod(int(size) for size in sizes.split(",") if size)
    return total


def _groups(attributes: str, kind: str, devices: int) -> np.ndarray:
    """Parse the groups of devices (groups, members) from any of HLO's notations."""
    if kind == "collective-permute":
        pairs = re.search(r"source_target_pairs=\{(\{.*?\})\}", attributes)
        assert pairs, attributes
        return np.asarray([[int(n) for n in pair.split(",")] for pair in re.findall(r"\{([\d, ]+)\}", pairs[1])])
    if lists := re.search(r"replica_groups=\{(\{.*?\})\}", attributes):
        return np.asarray([[int(n) for n in group.split(",")] for group in re.findall(r"\{([\d, ]+)\}", lists[1])])
    if iota := re.search(r"replica_groups=\[(\d+),(\d+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", attributes):
        shape = [int(n) for n in iota[3].split(",")]
        order = [int(n) for n in iota[4].split(",")] if iota[4] else range(len(shape))
        return np.arange(math.prod(shape)).reshape(shape).transpose(order).reshape(int(iota[1]), int(iota[2]))
    if mesh := re.search(r"replica_groups=mesh\[([^\]]*)\][^{]*\{([^}]*)\}", attributes):
        return _mesh_groups(mesh[1], mesh[2])
    return np.arange(devices)[None]


def _mesh_groups(mesh: str, over: str) -> np.ndarray:
    """Parse groups in mesh notation.

    `'x'=4,'y'=2` are the axes of the mesh; `'x'` or `'x':(1)2` are the axes, or parts of axes, of a group. The part
    `(before)size` is the middle part of an axis that is cut into `before`, `size` and the rest.
    """
    sizes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", mesh)}
    parts = [(name, before, size) for name, before, size in re.findall(r"'([^']+)'(?::\((\d+)\)(\d+))?", over)]
    shape, chosen = [], []
    for name, length in sizes.items():
        cuts = sorted((int(b or 1), int(s or length)) for n, b, s in parts if n == name)
        done = 1
        for before, size in cuts:
            shape += [before // done, size]
            chosen.append(len(shape) - 1)
            done = before * size
        shape.append(length // done)
    unchosen = [axis for axis in range(len(shape)) if axis not in chosen]
    members = math.prod(shape[axis] for axis in chosen)
    return np.arange(math.prod(shape)).reshape(shape).transpose(unchosen + chosen).reshape(-1, members)
