"""Naive attention in double precision, for what PyTorch has no word for."""

import math

import numpy as np


def attention(query, key, value, *, visible=None, bias=None, scale=None, softcap=None, sinks=None):
    """Output, log-sum-exp and weights of `[batch, heads, seq, dim]`; kv heads are repeated."""
    query, key, value = (np.asarray(x, dtype=np.float64) for x in (query, key, value))
    group = query.shape[1] // key.shape[1]
    key, value = (np.repeat(x, group, axis=1) for x in (key, value))
    scale = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    scores = scale * np.einsum("bhqd,bhkd->bhqk", query, key)
    if softcap is not None:
        scores = softcap * np.tanh(scores / softcap)
    if bias is not None:
        scores = scores + bias
    if visible is not None:
        scores = np.where(visible, scores, -np.inf)
    with np.errstate(divide="ignore", invalid="ignore"):
        top = scores.max(axis=-1, keepdims=True, initial=-np.inf)
        if sinks is not None:
            top = np.maximum(top, np.reshape(sinks, (1, -1, 1, 1)))
        top = np.where(np.isfinite(top), top, 0)
        terms = np.exp(scores - top)
        total = terms.sum(axis=-1, keepdims=True)
        if sinks is not None:
            total = total + np.exp(np.reshape(sinks, (1, -1, 1, 1)) - top)
        weights = np.where(total > 0, terms / np.where(total > 0, total, 1), 0)
        lse = (np.log(total) + top)[..., 0]
    return weights @ value, lse, weights


def positions(seq_q, seq_kv, offset=None):
    """Where queries stand among the keys, as a column, and the keys, as a row."""
    offset = seq_kv - seq_q if offset is None else offset
    return np.arange(seq_q)[:, None] + offset, np.arange(seq_kv)[None, :]
