"""Attention in float64, by its definition."""

import numpy as np

# What the term "own" of `headwise bench` multiplies scores by.
OWN_FACTOR = 0.75


def attention(query, key, value, *, scale, causal, left=None, rows=None):
    """softmax(scale q k^T) v of [batch, heads, sequence, dim]; query heads share key heads in
    consecutive groups, `causal` is bottom-right, `left` the keys visible before a query's own
    position. With `rows`, the results of those queries."""
    seq_q, seq_kv = query.shape[2], key.shape[2]
    group = query.shape[1] // key.shape[1]
    rows = np.arange(seq_q) if rows is None else rows
    query = query[:, :, rows].astype(np.float64)
    key, value = (np.repeat(x.astype(np.float64), group, axis=1) for x in (key, value))
    scores = scale * (query @ key.swapaxes(2, 3))
    distance = (rows + seq_kv - seq_q)[:, None] - np.arange(seq_kv)
    if causal:
        scores[:, :, distance < 0] = -np.inf
    if left is not None:
        scores[:, :, distance > left] = -np.inf
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True) @ value
