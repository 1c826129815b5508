"""One query a head, where heads share keys: the queries of a group are also several queries of one
head, in the same memory. Libraries without grouped heads then read each key once."""

import numpy as np

# Of the names of ways and shapes that are meant so.
SUFFIX = ", groups as queries"


def ways(peer, shape):
    """The names of a peer's ways to compute `shape`, on its queries as they are or by groups."""
    names = peer.ask({"do": "ways", "shape": shape})["ways"]
    if foldable(shape):
        folded = peer.ask({"do": "ways", "shape": fold(shape)})["ways"]
        names += [f"{way}{SUFFIX}" for way in folded]
    return names


def request(shape, way):
    """What a peer is asked for when a way of that name is meant."""
    if way.endswith(SUFFIX):
        return {"shape": fold(shape), "way": way.removesuffix(SUFFIX)}
    return {"shape": shape, "way": way}


def foldable(shape):
    masked = shape["causal"] or any(shape[term] is not None for term in ("window_left", "document"))
    return shape["seq_q"] == 1 and shape["q_heads"] > shape["kv_heads"] and not masked


def fold(shape):
    group = shape["q_heads"] // shape["kv_heads"]
    return {**shape, "shape": f"{shape['shape']}{SUFFIX}", "q_heads": shape["kv_heads"],
            "seq_q": group}


def lay_out_query(directory, shape):
    """Gives the array of queries the sizes of `shape`, folded or not."""
    path = directory / "query.npy"
    sizes = [shape[size] for size in ("batch", "q_heads", "seq_q", "head_dim")]
    np.save(path, np.load(path).reshape(sizes))
