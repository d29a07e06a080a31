"""Reads from a compiled program (HLO text) how many bytes its collectives move."""

import math
import re
from collections import Counter
from typing import NamedTuple

_BYTES = {"pred": 1, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "bf16": 2, "f16": 2, "s32": 4}
_BYTES |= {"u32": 4, "f32": 4, "s64": 8, "u64": 8, "f64": 8}
_KINDS = ("all-reduce", "all-gather", "reduce-scatter", "collective-permute", "all-to-all")
_OPERATION = re.compile(rf"= (?P<result>.*?) (?P<kind>{'|'.join(_KINDS)})(?P<start>-start)?\(")
_ARRAY = re.compile(r"\b([a-z]+\d*)\[([\d,]*)\]")
_COMPUTATION = re.compile(r"^(ENTRY )?%?(?P<name>[\w.\-]+) .*\{$")
_CALLED = re.compile(r"(?:body|calls|true_computation|false_computation)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_CHAIN = re.compile(r'chain_id="\d+"')
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_CONDITION = re.compile(r"condition=%?([\w.\-]+)")
_CONSTANT = re.compile(r"%?([\w.\-]+) = s32\[\]\S* constant\((\d+)\)")
_BELOW = re.compile(r"ROOT .* compare\(%?[\w.\-]+, %?([\w.\-]+)\), direction=LT")
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
_ORIGIN = re.compile(r'op_name="([^"]*)"')


class Traffic(NamedTuple):
    """Traffic of one kind of collective in one run of the program.

    Attributes:
      calls: number of calls.
      bytes_sent: bytes that each device sends, over all calls.
    """

    calls: int
    bytes_sent: int


def collective_traffic(
    text: str, num_devices: int, unknown_trip_count: int = 1
) -> dict[str, Traffic]:
    """Adds up the collectives of a program by kind, as ring algorithms would do them.

    With n devices and a result of S bytes each device sends 2 (n - 1) / n S for an all-reduce,
    (n - 1) / n S for an all-gather or all-to-all, (n - 1) S for a reduce-scatter, and S for a
    permutation.

    Args:
      text: `compiled.as_text()`.
      num_devices: for collectives that don't name their groups.
      unknown_trip_count: how often a loop runs whose number of turns depends on data.
    """
    lines = _lines_by_computation(text)
    times = _times_called(lines, unknown_trip_count)
    found: dict[str, tuple[str, int, int]] = {}
    for name, body in lines.items():
        for line in body:
            match = _OPERATION.search(line)
            if match is None:
                continue
            share = _sent_per_byte(match["kind"], _group_size(line, num_devices))
            sent = round(times[name] * share * _result_bytes(match))
            # The TPU's compiler cuts a collective into steps that it fuses with products; each
            # names the whole one again, and the chain that it belongs to.
            chain = _CHAIN.search(line)
            found[chain[0] if chain else f"{name} {line}"] = (match["kind"], times[name], sent)
    return {
        kind: Traffic(*map(sum, zip(*(entry[1:] for entry in entries), strict=True)))
        for kind in _KINDS
        if (entries := [entry for entry in found.values() if entry[0] == kind])
    }


def estimated_cycles(text: str, unknown_trip_count: int = 1) -> list[tuple[str, int]]:
    """What the TPU's compiler expects of each operation, over all its turns.

    Args:
      text: `compiled.as_text()` of a program for TPUs; programs for others have no estimates.
      unknown_trip_count: how often a loop runs whose number of turns depends on data.

    Returns:
      Where the operation comes from ("jit(train_step)/.../dot_general"), and its clock cycles.
    """
    lines = _lines_by_computation(text)
    times = _times_called(lines, unknown_trip_count)
    found = []
    for name, body in lines.items():
        for line in body:
            cycles, origin = _CYCLES.search(line), _ORIGIN.search(line)
            if cycles:
                found.append((origin[1] if origin else "", times[name] * int(cycles[1])))
    return found


def _lines_by_computation(text: str) -> dict[str, list[str]]:
    lines: dict[str, list[str]] = {}
    current: list[str] = []
    for line in text.splitlines():
        start = _COMPUTATION.match(line)
        if start:
            current = lines.setdefault("ENTRY" if start[1] else start["name"], [])
        else:
            current.append(line)
    return lines


def _times_called(lines: dict[str, list[str]], unknown_trip_count: int) -> Counter[str]:
    times: Counter[str] = Counter()

    def visit(name: str, number: int) -> None:
        times[name] += number
        for line in lines[name]:
            trips = 1
            if " while(" in line:
                trips = _turns(line, lines) or unknown_trip_count
            called = _CALLED.findall(line)
            for branches in _BRANCHES.findall(line):
                called += [branch.strip(" %") for branch in branches.split(",")]
            for other in called:
                visit(other, number * trips)

    visit("ENTRY", 1)
    return times


def _turns(line: str, lines: dict[str, list[str]]) -> int | None:
    """How often a loop runs that counts from 0; None if that depends on data."""
    if known := _TRIPS.search(line):
        return int(known[1])
    condition = _CONDITION.search(line)
    of_condition = "\n".join(lines[condition[1]]) if condition else ""
    below = _BELOW.search(of_condition)
    constants = dict(_CONSTANT.findall(of_condition))
    return int(constants[below[1]]) if below and below[1] in constants else None


def _result_bytes(match: re.Match[str]) -> int:
    arrays = [
        _BYTES[kind] * math.prod(int(n) for n in shape.split(",") if n)
        for kind, shape in _ARRAY.findall(match["result"])
    ]
    if not match["start"] or match["kind"] == "all-reduce":
        return sum(arrays)
    # An asynchronous start returns its operands, its results, and for permutations two counters.
    if match["kind"] == "collective-permute":
        return arrays[1]
    return sum(arrays[len(arrays) // 2 :])


def _group_size(line: str, num_devices: int) -> int:
    """Devices of a group, from any of XLA's three ways to write groups.

    Raises:
      ValueError: if the groups are written in another way.
    """
    if "replica_groups=" not in line or "replica_groups={}" in line:
        return num_devices
    iota = re.search(r"replica_groups=\[\d+,(\d+)\]", line)
    if iota:
        return int(iota[1])
    first = re.search(r"replica_groups=\{\{([\d,]+)\}", line)
    if first:
        return len(first[1].split(","))
    mesh = re.search(r"replica_groups=mesh\[([^\]]*)\] *\{([^}]*)\}", line)  # from JAX 0.12 on
    if mesh is None:
        raise ValueError(f"The devices of this collective are written in an unknown way: {line}")
    sizes = dict(re.findall(r"'(\w+)'=(\d+)", mesh[1]))
    return math.prod(int(sizes[axis]) for axis in re.findall(r"'(\w+)'", mesh[2]))


def _sent_per_byte(kind: str, size: int) -> float:
    return {
        "all-reduce": 2 * (size - 1) / size,
        "all-gather": (size - 1) / size,
        "all-to-all": (size - 1) / size,
        "reduce-scatter": size - 1,
        "collective-permute": 1,
    }[kind]
