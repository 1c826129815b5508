"""Types of the compiled module."""

import sys
from collections.abc import Sequence
from typing import Any, Literal, TypedDict, Unpack, final

from headwise.typing import Array, ArrayT, Floats, Ints, Layout, Picks

class _Outputs(TypedDict, total=False):
    return_lse: bool | None
    return_weights: bool | None
    weights_of: Picks | None
    scores: Literal["scaled", "capped", "final"] | None
    scores_of: Picks | None
    column_sums: bool | Literal["q_heads", "kv_heads"] | None
    top_k: int | None

class _Shared(_Outputs, total=False):
    scale: float | None
    causal: bool | Literal["bottom_right", "top_left", "at_length"] | None
    causal_offset: int | None
    window: tuple[int | None, int | None] | None
    prefix: int | Ints | None
    key_lengths: Ints | None
    tree: Sequence[int | None] | Array | None
    blocks: tuple[int, int, Array] | None
    mask: Array | None
    packed_mask: Array | None
    bias: Array | None
    softcap: float | None
    alibi: bool | Floats | None
    relative_bias: RelativeBias | None
    sinks: Floats | None
    value_scales: Floats | None
    precision: Literal["full", "fast"] | None
    isa: str | None
    threads: int | None

class _Options(_Shared, total=False):
    key_starts: Ints | None
    documents: tuple[Ints, Ints] | Ints | None
    document_offsets: tuple[Ints, Ints] | Ints | None
    ragged: tuple[Ints, Ints] | Ints | None
    algorithm: Literal["auto", "unfused"] | None

class _CacheOptions(_Shared, total=False):
    query_offsets: Ints | None

class _AppendOptions(TypedDict, total=False):
    offsets: Ints | None
    positions: Ints | None
    rope: Rope | None
    norm: QkNorm | None
    value_scales: Floats | None
    layout: Layout | None

__version__: str

def scaled_dot_product_attention(
    query: ArrayT,
    key: Array,
    value: Array,
    attn_mask: Array | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    *,
    out: ArrayT | None = None,
) -> ArrayT: ...
def attention(
    query: Array,
    key: Array,
    value: Array,
    *,
    out: Array | None = None,
    layout: Layout = "bhsd",
    **options: Unpack[_Options],
) -> Attention: ...
def paged_attention(
    query: Array,
    key_pages: Array,
    value_pages: Array,
    tables: tuple[Ints, Ints, Ints] | tuple[Ints, Ints, Ints, Ints],
    *,
    out: Array | None = None,
    layout: Layout = "bhsd",
    pages_layout: Layout | None = None,
    **options: Unpack[_CacheOptions],
) -> Attention: ...
def merge_states(
    states: Sequence[tuple[ArrayT, Array]], *, layout: Layout = "bhsd"
) -> tuple[ArrayT, ArrayT]: ...
def available_isas() -> list[str]: ...
def reads_in_place(array: Array) -> bool: ...
def get_num_threads() -> int: ...
def set_num_threads(threads: int) -> None: ...
def after_fork_in_child() -> None: ...
def seconds_of_calls(shape: tuple[int, int, int, int], calls: int, pause: float) -> list[float]: ...

@final
class Attention:
    """What a call gives: arrays of the query's library, None where nothing was asked for."""

    @property
    def out(self) -> Any: ...
    @property
    def lse(self) -> Any | None: ...
    @property
    def weights(self) -> Any | None: ...
    @property
    def scores(self) -> Any | None: ...
    @property
    def column_sums(self) -> Any | None: ...
    @property
    def top_k(self) -> tuple[Any, Any] | None: ...
    @property
    def isa(self) -> str: ...

@final
class Tensor:
    """An array of headwise's own, for queries of no library that has arrays."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def strides(self) -> tuple[int, ...]: ...
    @property
    def ndim(self) -> int: ...
    @property
    def dtype(self) -> str: ...
    def __dlpack_device__(self) -> tuple[int, int]: ...
    def __dlpack__(
        self,
        *,
        stream: Literal[-1] | None = None,
        max_version: tuple[int, int] | None = None,
        dl_device: tuple[int, int] | None = None,
        copy: bool | None = None,
    ) -> Any: ...
    if sys.version_info >= (3, 12):
        def __buffer__(self, flags: int, /) -> memoryview: ...

@final
class RelativeBias:
    @staticmethod
    def by_distance(table: Array, low: int) -> RelativeBias: ...
    @staticmethod
    def t5(
        embedding: Array, max_distance: int = 128, bidirectional: bool = True
    ) -> RelativeBias: ...
    @property
    def heads(self) -> int: ...

@final
class Rope:
    def __new__(
        cls,
        rotary_dim: int,
        positions: int,
        *,
        base: float = 10_000.0,
        layout: Literal["half_split", "interleaved"] = "half_split",
        scaling: dict[str, Any] | None = None,
    ) -> Rope: ...
    def rotate(
        self,
        rows: ArrayT,
        *,
        start: int = 0,
        starts: Ints | None = None,
        positions: Ints | None = None,
        layout: Layout = "bhsd",
    ) -> ArrayT: ...
    @property
    def rotary_dim(self) -> int: ...
    @property
    def positions(self) -> int: ...

@final
class QkNorm:
    def __new__(cls, weight: Floats, eps: float = 1e-6) -> QkNorm: ...

@final
class SequenceId:
    def __hash__(self) -> int: ...

@final
class KvCache:
    @staticmethod
    def contiguous(
        *,
        batch: int,
        capacity: int,
        kv_heads: int,
        head_dim: int,
        value_dim: int | None = None,
        dtype: Any = None,
    ) -> KvCache: ...
    @staticmethod
    def ring(
        *,
        batch: int,
        capacity: int,
        kv_heads: int,
        head_dim: int,
        value_dim: int | None = None,
        dtype: Any = None,
    ) -> KvCache: ...
    @staticmethod
    def paged(
        *,
        pages: int,
        kv_heads: int,
        head_dim: int,
        value_dim: int | None = None,
        page_size: int = 16,
        sequences: int = 64,
        pages_per_sequence: int | None = None,
        dtype: Any = None,
    ) -> KvCache: ...
    @property
    def kind(self) -> Literal["contiguous", "ring", "paged"]: ...
    @property
    def dtype(self) -> Literal["float32", "float16", "bfloat16", "int8"]: ...
    @property
    def lengths(self) -> list[int]: ...
    @property
    def free_pages(self) -> int: ...
    def length(self, sequence: int | SequenceId) -> int: ...
    def create(self) -> SequenceId: ...
    def fork(self, sequence: SequenceId) -> SequenceId: ...
    def free(self, sequence: int | SequenceId) -> None: ...
    def truncate(self, sequence: int | SequenceId, length: int) -> None: ...
    def evict(self, sequence: SequenceId, before: int) -> None: ...
    def append(
        self,
        key: Array,
        value: Array,
        sequences: Sequence[int | SequenceId] | None = None,
        **options: Unpack[_AppendOptions],
    ) -> None: ...
    def attend(
        self,
        query: Array,
        sequences: Sequence[SequenceId] | None = None,
        *,
        out: Array | None = None,
        layout: Layout = "bhsd",
        **options: Unpack[_CacheOptions],
    ) -> Attention: ...
