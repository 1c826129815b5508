"""What a call from Python takes beyond the library's own: the aim is less than 5 us.

    python benches/overhead.py

Prints the median of each, on shapes small enough that nothing else counts. Between two calls from
Python there is what Python does, in which threads that share a call wait, and begin the next one
later: "paused" is the library's own call with as long a pause before it. Run it on an idle machine:
of a busy one it says nothing.
"""

import statistics
import time

import numpy as np

import headwise
from headwise import _headwise

SHAPES = [(1, 1, 1, 8), (1, 4, 8, 16), (1, 8, 32, 32)]
CALLS = 20_000


def of_python(arrays, **keywords):
    """The seconds of each call."""
    times = []
    for _ in range(CALLS):
        start = time.perf_counter()
        headwise.scaled_dot_product_attention(*arrays, is_causal=True, **keywords)
        times.append(time.perf_counter() - start)
    return times


def kinds(shape):
    """A query, key and value of each library that is installed, and an output."""
    arrays = [np.random.default_rng(n).standard_normal(shape).astype(np.float32) for n in range(4)]
    yield "numpy", arrays
    try:
        import torch
    except ImportError:
        return
    yield "torch", [torch.from_numpy(x) for x in arrays]


def main():
    titles = " ".join(
        f"{title:>10}"
        for title in ("Python us", "library us", "beyond us", "paused us", "beyond us")
    )
    print(f"{'shape':<16} {'':<12} {titles}")
    for shape in SHAPES:
        library = statistics.median(_headwise.seconds_of_calls(shape, CALLS, 0.0))
        for name, (*inputs, out) in kinds(shape):
            for label, keywords in ((name, {}), (f"{name}, out=", {"out": out})):
                call = statistics.median(of_python(inputs, **keywords))
                pause = max(call - library, 0.0)
                paused = statistics.median(_headwise.seconds_of_calls(shape, CALLS, pause))
                figures = (call, library, call - library, paused, call - paused)
                row = " ".join(f"{1e6 * seconds:>10.2f}" for seconds in figures)
                print(f"{shape!s:<16} {label:<12} {row}")


if __name__ == "__main__":
    main()
