"""The figures of a run: medians over its rounds, and the spread of ratios within a round."""

from typing import NamedTuple

import numpy as np


class Ratio(NamedTuple):
    """How many times as fast as a peer we are: quartiles over the rounds."""

    low: float
    median: float
    high: float


def contenders(found):
    """The names, ours first."""
    return ["headwise", *found["versions"]]


def gflops(found, shape, contender):
    """Useful operations a second by the median time, or None where it computed nothing."""
    seconds = found["seconds"][shape["shape"]].get(contender)
    return shape["flops"] / np.median(seconds) / 1e9 if seconds else None


def milliseconds(found, shape, contender):
    """The median time, or None where it computed nothing."""
    seconds = found["seconds"][shape["shape"]].get(contender)
    return np.median(seconds) * 1e3 if seconds else None


def gbps(found, shape, contender):
    """Gigabytes of keys and values a second, each byte counted once, or None likewise."""
    seconds = found["seconds"][shape["shape"]].get(contender)
    return shape["bytes"] / np.median(seconds) / 1e9 if seconds else None


def percent_of_read(found, shape, contender):
    """The share of the rate at which a loop read the same keys and values in the same round."""
    seconds = found["seconds"][shape["shape"]].get(contender)
    if not seconds:
        return None
    rates = [record["read_gbps"] for record in found["ours"][shape["shape"]]]
    return float(np.median(shape["bytes"] / np.array(seconds) / np.array(rates) / 1e9 * 100))


def times_ours(found, shape, peer, ours="headwise"):
    """Each round's time of the peer over ours, or over another contender's, or None."""
    seconds = found["seconds"][shape["shape"]]
    if peer not in seconds or ours not in seconds:
        return None
    ratios = np.array(seconds[peer]) / np.array(seconds[ours])
    return Ratio(*np.percentile(ratios, [25, 50, 75]))


def percent_of_peak(found, shape):
    """Our share of the multiply-add rate, measured in the same rounds."""
    return float(np.median([record["pct_peak"] for record in found["ours"][shape["shape"]]]))


def machine_rate(found, field):
    """A limit of the machine over the rounds."""
    return float(np.median([machine[field] for machine in found["machine"]]))


def intensity(shape):
    """Useful operations for each byte of queries, keys, values and output."""
    rows = shape["q_heads"] * shape["seq_q"] + shape["kv_heads"] * shape["seq_kv"]
    numbers = shape["batch"] * rows * (shape["head_dim"] + shape["value_dim"])
    return shape["flops"] / (4 * numbers)
