"""Attention in float64, by its definition."""

import numpy as np


def attention(query, key, value, *, scale, causal, rows=None):
    """softmax(scale q k^T) v of [batch, heads, sequence, dim]; query heads share key heads in
    consecutive groups, `causal` is bottom-right. With `rows`, the results of those queries."""
    seq_q, seq_kv = query.shape[2], key.shape[2]
    group = query.shape[1] // key.shape[1]
    rows = np.arange(seq_q) if rows is None else rows
    query = query[:, :, rows].astype(np.float64)
    key, value = (np.repeat(x.astype(np.float64), group, axis=1) for x in (key, value))
    scores = scale * (query @ key.swapaxes(2, 3))
    if causal:
        last = rows + seq_kv - seq_q
        scores[:, :, np.arange(seq_kv) > last[:, None]] = -np.inf
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True) @ value
