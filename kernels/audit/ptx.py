"""Which argument each global load and store of a kernel goes to, and how wide it is, read from its PTX."""

import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

_INSTRUCTION = re.compile(r"(?:@!?%\w+\s+)?(?P<opcode>[a-z][\w.:]*)\s+(?P<operands>.*)")
_REGISTER = re.compile(r"%[a-z]+\d+")
_PARAMETER = re.compile(r"\[\w+_param_(\d+)")
_WIDTH = re.compile(r"(?:\.v(?P<elements>\d+))?\.[bfsu](?P<bits>\d+)$")
_ADDRESS = re.compile(r"\[([^\]]*)\]")
_ASYNCHRONOUS = re.compile(r"cp\.async\.c[ag]\.shared\.global")  # a load into shared memory
_BYTES = re.compile(r"\],\s*(0x[0-9a-f]+|\d+)")
_BESIDES = {"param", "shared", "local", "const"}  # state spaces that are not global memory
_MEMORY = "memory"  # shared and local memory, seen as one register


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """One load or store of global memory by a thread."""

    parameters: frozenset[int]  # of the kernel, that its address was computed from
    store: bool
    bits: int


def accesses(ptx: str) -> list[Access]:
    """All global loads and stores of a kernel, each with the parameters that its address comes from.

    What a register holds is followed from the parameters through every instruction: a result comes from all that its
    operands come from, and so on around loops until nothing changes. Global loads end the way (no kernel here keeps
    pointers in memory); shared memory does not, as the compiler may exchange addresses through it. An address that
    mixes pointers counts for each, so that no narrow access of an argument can be missed.
    """
    instructions = list(_instructions(ptx))
    origins: defaultdict[str, frozenset[int]] = defaultdict(frozenset)
    while sum(_follow(opcode, operands, origins) for opcode, operands in instructions):
        pass
    return [
        Access(
            parameters=frozenset().union(*(origins[register] for register in _REGISTER.findall(address))),
            store=opcode.startswith("st."),
            bits=bits,
        )
        for opcode, operands in instructions
        for address, bits in _global_access(opcode, operands)
    ]


def _instructions(ptx: str) -> Iterator[tuple[str, str]]:
    """Opcode and operands of each instruction; predicates, labels, directives and comments are left out."""
    for line in ptx.splitlines():
        for statement in line.partition("//")[0].split(";"):
            if found := _INSTRUCTION.fullmatch(statement.strip(" \t{}")):
                yield found["opcode"], found["operands"]


def _follow(opcode: str, operands: str, origins: defaultdict[str, frozenset[int]]) -> bool:
    """Note where the results of an instruction come from; whether that was news."""
    kind, *modifiers = opcode.split(".")
    if _global_access(opcode, operands):
        return False
    registers = _REGISTER.findall(operands)
    if kind == "st":
        targets, sources = [_MEMORY], registers
    else:
        results = len(_REGISTER.findall(operands.partition("}")[0])) if operands.startswith("{") else 1
        targets, sources = registers[:results], registers[results:]
    if kind == "ld" and "param" not in modifiers:
        sources = [_MEMORY]
    found = frozenset(map(int, _PARAMETER.findall(operands))).union(*(origins[source] for source in sources))
    news = [target for target in targets if not found <= origins[target]]
    for target in news:
        origins[target] |= found
    return bool(news)


def _global_access(opcode: str, operands: str) -> list[tuple[str, int]]:
    """The address and width in bits of a global load or store; empty for any other instruction."""
    addresses = _ADDRESS.findall(operands)
    if _ASYNCHRONOUS.match(opcode):
        return [(addresses[1], 8 * int(_BYTES.findall(operands)[0], 0))]
    kind, *modifiers = opcode.split(".")
    if kind not in ("ld", "st") or {modifier.partition("::")[0] for modifier in modifiers} & _BESIDES:
        return []
    width = _WIDTH.search(opcode)
    assert width is not None, f"a load or store of unknown width: {opcode}"  # noqa: S101
    return [(addresses[0], int(width["elements"] or 1) * int(width["bits"]))]
