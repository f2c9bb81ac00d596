"""Reads from the PTX of a kernel which argument each global load and store goes to, and how wide it is."""

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
_OTHER_SPACES = {"param", "shared", "local", "const"}  # state spaces that are not global memory
_MEMORY = "memory"  # shared and local memory, seen as one register


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """One load or store of global memory by a thread."""

    parameters: frozenset[int]  # of the kernel, from which its address was computed
    store: bool
    bits: int


def accesses(ptx: str) -> list[Access]:
    """List all global loads and stores of a kernel, each with the parameters from which its address was computed.

    Values are followed from the parameters through every instruction, around loops until nothing changes: a result
    depends on all parameters that its operands depend on. A global load breaks the chain (no kernel here keeps pointers
    in memory); shared memory does not, as the compiler may pass addresses through it. An address that mixes pointers
    counts for each, so that no narrow access to an argument can be missed.
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
    """Yield the opcode and operands of each instruction, without predicates, labels, directives and comments."""
    for line in ptx.splitlines():
        for statement in line.partition("//")[0].split(";"):
            if match := _INSTRUCTION.fullmatch(statement.strip(" \t{}")):
                yield match["opcode"], match["operands"]


def _follow(opcode: str, operands: str, origins: defaultdict[str, frozenset[int]]) -> bool:
    """Update the parameters that the results of an instruction depend on; return whether that changed any."""
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
    parameters = frozenset(map(int, _PARAMETER.findall(operands))).union(*(origins[source] for source in sources))
    changed = [target for target in targets if not parameters <= origins[target]]
    for target in changed:
        origins[target] |= parameters
    return bool(changed)


def _global_access(opcode: str, operands: str) -> list[tuple[str, int]]:
    """Return the address and width in bits of a global load or store; nothing for any other instruction."""
    addresses = _ADDRESS.findall(operands)
    if _ASYNCHRONOUS.match(opcode):
        return [(addresses[1], 8 * int(_BYTES.findall(operands)[0], 0))]
    kind, *modifiers = opcode.split(".")
    if kind not in ("ld", "st") or {modifier.partition("::")[0] for modifier in modifiers} & _OTHER_SPACES:
        return []
    width = _WIDTH.search(opcode)
    assert width is not None, f"a load or store of unknown width: {opcode}"  # noqa: S101
    return [(addresses[0], int(width["elements"] or 1) * int(width["bits"]))]
