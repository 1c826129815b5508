"""What a library must offer to be measured."""

from typing import Callable, NamedTuple

import numpy as np


class Call(NamedTuple):
    """A prepared call: its inputs are laid out as the library likes them, outside the time."""

    run: Callable[[], object]
    # The result of the last run, [batch, q_heads, seq_q, head_dim].
    result: Callable[[], np.ndarray]
    # Called outside the time with the number of runs that follow.
    ready: Callable[[int], object] = lambda runs: None


class Peer:
    """A library. Its ways are the different calls that compute the same; the fastest counts."""

    name: str

    def __init__(self, threads):
        self.threads = threads

    def versions(self):
        """The versions of the packages that do the work."""
        raise NotImplementedError

    def ways(self, shape):
        """The names of the ways to compute `shape`, a row of `headwise bench --list --json`."""
        raise NotImplementedError

    def prepare(self, shape, way, query, key, value):
        """A `Call` on arrays [batch, heads, sequence, head_dim]."""
        raise NotImplementedError


def repeat_heads(array, shape):
    """Keys or values, one for each query head."""
    return np.repeat(array, shape["q_heads"] // shape["kv_heads"], axis=1)
