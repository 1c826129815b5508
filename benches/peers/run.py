#!/usr/bin/env python3
"""Measures headwise beside other libraries: the shapes of a suite, all in one run, taking turns.
Writes tables, pictures and every sample."""

import environment

if __name__ == "__main__":
    environment.enter()

import argparse
import json
import random
import shlex
import signal
import sys
import tempfile
from contextlib import ExitStack, closing
from pathlib import Path
from time import perf_counter

import numpy as np

import dtypes
import groups
import pictures
import reference
import report
from contender import Headwise, Refused, start_peer
from suites import SUITES

CHECKED_ROWS = 16
# Work of more operations is one sample a round, shorter work five.
LONG_FLOPS = 10e9
# A way slower than the best by this much is not looked at twice.
HOPELESS = 2.0
START = perf_counter()


def log(text):
    print(f"{perf_counter() - START:5.0f} s  {text}", file=sys.stderr, flush=True)


def samples(shape):
    return 1 if shape["flops"] > LONG_FLOPS else 5


def make_inputs(shape, directory):
    """Writes standard-normal inputs; returns rows and what attention gives there."""
    random_numbers = np.random.default_rng(1)

    def array(name, heads, sequence):
        sizes = (shape["batch"], heads, sequence, shape["head_dim"])
        values = dtypes.rounded(
            random_numbers.standard_normal(sizes, dtype=np.float32), dtypes.dtype(shape))
        np.save(directory / f"{name}.npy", values)
        return values

    query = array("query", shape["q_heads"], shape["seq_q"])
    key, value = (array(name, shape["kv_heads"], shape["seq_kv"]) for name in ("key", "value"))
    rows = np.unique(np.linspace(0, shape["seq_q"] - 1, CHECKED_ROWS).astype(int))
    factor = reference.OWN_FACTOR if shape.get("term") == "own" else 1.0
    expected = reference.attention(
        query, key, value, scale=factor * shape["head_dim"] ** -0.5, causal=shape["causal"],
        left=shape["window_left"], rows=rows)
    return rows, expected


def error(directory, rows, expected):
    """The largest error of a peer's output in the checked rows, relative to their largest value."""
    batch, heads, _, dim = expected.shape
    out = np.load(directory / "out.npy").reshape(batch, heads, -1, dim)
    difference = np.abs(out[:, :, rows] - expected).max()
    return float(difference / np.abs(expected).max())


def choose_way(peer, shape, directory, rows, expected):
    """Prepares every way of a peer, checks its output, keeps the fastest; returns what it found."""
    found, best = {}, None
    for way in groups.ways(peer, shape):
        request = groups.request(shape, way)
        groups.lay_out_query(directory, request["shape"])
        try:
            first = peer.ask({"do": "prepare", **request, "directory": str(directory)})["seconds"]
            off = error(directory, rows, expected)
            seconds = None
            if off < dtypes.TOLERANCE[dtypes.dtype(shape)]:
                hopeless = best and first > HOPELESS * found[best]["seconds"] and first > 0.2
                seconds = first if hopeless else peer.sample(shape, way, samples(shape))
            found[way] = {"error": off, "seconds": seconds}
        except Refused as refused:
            found[way] = {"refused": str(refused)}
            continue
        loser = way
        if seconds is not None and (best is None or seconds < found[best]["seconds"]):
            best, loser = way, best
        if loser:
            peer.ask({"do": "drop", **groups.request(shape, loser)})
    return {"way": best, "ways": found}


def prepare(peers, shapes):
    """The chosen ways, by shape and peer."""
    ways = {}
    for shape in shapes:
        name = shape["shape"]
        with tempfile.TemporaryDirectory() as directory:
            directory = Path(directory)
            rows, expected = make_inputs(shape, directory)
            ways[name] = {peer.name: choose_way(peer, shape, directory, rows, expected)
                          for peer in peers}
        chosen = {peer: found["way"] for peer, found in ways[name].items()}
        log(f"{name}: {chosen}")
    return ways


def take_turns(headwise, peers, shapes, ways, rounds):
    """The seconds of every contender on every shape, and our whole records, round by round."""
    times = {shape["shape"]: {} for shape in shapes}
    records = {shape["shape"]: [] for shape in shapes}
    machine = []
    order = random.Random(1)
    for number in range(rounds):
        log(f"round {number + 1} of {rounds}")
        machine.append(headwise.machine())
        for shape in order.sample(shapes, len(shapes)):
            name = shape["shape"]
            for contender in order.sample([headwise, *peers], 1 + len(peers)):
                if contender is headwise:
                    record = headwise.measure(shape, samples(shape))
                    records[name].append(record)
                    seconds = record["median_ms"] / 1e3
                else:
                    way = ways[name][contender.name]["way"]
                    if way is None:
                        continue
                    seconds = contender.sample(shape, way, samples(shape))
                times[name].setdefault(contender.name, []).append(seconds)
    log("done")
    return {"seconds": times, "ours": records, "machine": machine}


def measure(arguments):
    """Everything that a run finds, as it is written to the file of results."""
    headwise = Headwise(arguments.threads)
    suite = SUITES[arguments.suite]
    shapes = [shape for shape in headwise.shapes(suite.rows)
              if suite.shapes is None or shape["shape"] in suite.shapes]
    known = [shape["shape"] for shape in shapes]
    for name in arguments.shapes or []:
        if name not in known:
            sys.exit(f"error: --shapes: no shape {name!r}, expected some of {', '.join(known)}")
    shapes = [s for s in shapes if not arguments.shapes or s["shape"] in arguments.shapes]
    with ExitStack() as stack:
        peers = [stack.enter_context(closing(start_peer(name, arguments.threads)))
                 for name in arguments.peers]
        versions = {peer.name: peer.versions for peer in peers}
        ways = prepare(peers, shapes)
        found = take_turns(headwise, peers, shapes, ways, arguments.rounds)
    return {"command": arguments.command, "threads": arguments.threads, "shapes": shapes,
            "versions": versions, "ways": ways, **found}


def names(text):
    return text.split(",")


def parse():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--suite", choices=list(SUITES), default="prefill",
                        help="shapes and peers: attention without and with a causal mask, a window "
                             "and a term of the caller's, one query for each sequence, PyTorch's call "
                             "from Python, or tensors narrower than f32 (default: %(default)s)")
    parser.add_argument("--shapes", type=names, metavar="NAME,...", help="some of its shapes")
    peers = "; ".join(f"{name}: {', '.join(suite.peers)}" for name, suite in SUITES.items())
    parser.add_argument("--peers", type=names, metavar="NAME,...",
                        help=f"some of the suite's peers ({peers})")
    parser.add_argument("--rounds", type=int, default=7, metavar="N", help="(default: 7)")
    parser.add_argument("--threads", type=int, default=2, metavar="N", help="(default: 2)")
    parser.add_argument("--out", type=Path, metavar="DIR",
                        help="where tables, pictures and results go, instead of docs/ and, for "
                             "the results, benches/peers/")
    parser.add_argument("--redraw", action="store_true",
                        help="measure nothing: tables and pictures of the results there are")
    arguments = parser.parse_args()
    if arguments.rounds < 1 or arguments.threads < 1:
        parser.error("--rounds and --threads start at 1")
    known = SUITES[arguments.suite].peers
    arguments.peers = arguments.peers or known
    for name in arguments.peers:
        if name not in known:
            parser.error(f"--peers: no peer {name!r}, expected some of {', '.join(known)}")
    arguments.command = shlex.join(["python3", "benches/peers/run.py", *sys.argv[1:]])
    return arguments


def main():
    arguments = parse()
    # Ends by an exception, so that no stopped process is left behind.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    results = {name: (arguments.out or environment.HERE) / suite.results
               for name, suite in SUITES.items()}
    out = arguments.out or environment.ROOT / "docs"
    out.mkdir(parents=True, exist_ok=True)
    if not arguments.redraw:
        results[arguments.suite].write_text(json.dumps(measure(arguments), indent=1) + "\n")
    found = {name: json.loads(path.read_text()) for name, path in results.items() if path.exists()}
    (out / "pictures").mkdir(exist_ok=True)
    pictures.draw(found, out / "pictures")
    text = report.markdown(found)
    (out / "peers.md").write_text(text)
    print(text, end="")


if __name__ == "__main__":
    main()
