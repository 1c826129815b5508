"""The types of arguments: what is an array here, and what is a list of numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, Protocol, TypeAlias, TypeVar

__all__ = [
    "Array",
    "ArrayT",
    "Floats",
    "Ints",
    "Layout",
    "Picks",
    "SupportsBuffer",
    "SupportsDLPack",
]


class SupportsDLPack(Protocol):
    """Whatever has a capsule of DLPack, or a table of its C functions."""

    def __dlpack__(self, *, stream: Any = ...) -> Any: ...
    def __dlpack_device__(self) -> tuple[Any, int]: ...


class SupportsBuffer(Protocol):
    """Whatever has the buffer protocol, as ``collections.abc.Buffer`` says from Python 3.12 on."""

    def __buffer__(self, flags: int, /) -> memoryview: ...


Array: TypeAlias = SupportsDLPack | SupportsBuffer
ArrayT = TypeVar("ArrayT", bound=Array)
Ints: TypeAlias = Sequence[int] | Array
Floats: TypeAlias = Sequence[float] | Array
#: Query heads and queries: a list each, or None for all.
Picks: TypeAlias = tuple[Ints | None, Ints | None]
Layout: TypeAlias = Literal["bhsd", "bshd"]
