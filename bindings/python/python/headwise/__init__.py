"""Fused attention on the CPU, on arrays of PyTorch, NumPy and others, where they lie.

``scaled_dot_product_attention`` has PyTorch's signature and meaning, ``attention`` all that the
library can do, ``KvCache`` keeps the keys and values of past tokens. ``headwise.torch`` brings
whole models onto it.
"""

import os as _os

from headwise._headwise import (
    Attention,
    KvCache,
    QkNorm,
    RelativeBias,
    Rope,
    SequenceId,
    Tensor,
    __version__,
    attention,
    available_isas,
    get_num_threads,
    merge_states,
    paged_attention,
    reads_in_place,
    scaled_dot_product_attention,
    set_num_threads,
)
from headwise._headwise import after_fork_in_child as _after_fork_in_child

__all__ = [
    "Attention",
    "KvCache",
    "QkNorm",
    "RelativeBias",
    "Rope",
    "SequenceId",
    "Tensor",
    "__version__",
    "attention",
    "available_isas",
    "get_num_threads",
    "merge_states",
    "paged_attention",
    "reads_in_place",
    "scaled_dot_product_attention",
    "set_num_threads",
]

# A forked child has none of its parent's threads.
if hasattr(_os, "register_at_fork"):
    _os.register_at_fork(after_in_child=_after_fork_in_child)
