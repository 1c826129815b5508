"""A process that runs one Python peer: `worker.py MODULE THREADS`, requests on standard input,
answers on standard output, one JSON object a line. README.md has the protocol."""

import importlib
import json
import os
import sys
from time import perf_counter

import numpy as np

# As `headwise bench` measures, a sample repeats short work for LEAST_SAMPLE. The warm-up is longer:
# after standing still a pool of threads may need 60 ms to reach its speed.
LEAST_SAMPLE = 5e-3
WARM_UP = 0.1
# What takes longer has left any cache several times over: warming it would only take time.
NO_WARM_UP = 0.5


class Timed:
    """A call with the time of its shortest run so far."""

    def __init__(self, call):
        self.call = call
        self.shortest = self.once()

    def once(self):
        self.call.ready(1)
        start = perf_counter()
        self.call.run()
        return perf_counter() - start

    def samples(self, count):
        """Seconds per run, `count` times."""
        start = perf_counter()
        while self.shortest < NO_WARM_UP:
            self.shortest = min(self.shortest, self.once())
            if perf_counter() - start >= WARM_UP:
                break
        repeats = max(1, int(np.ceil(LEAST_SAMPLE / self.shortest)))
        return [self.sample(repeats) for _ in range(count)]

    def sample(self, repeats):
        run = self.call.run
        self.call.ready(repeats)
        start = perf_counter()
        for _ in range(repeats):
            run()
        return (perf_counter() - start) / repeats


class Worker:
    """Answers requests."""

    def __init__(self, peer):
        self.peer = peer
        self.calls = {}

    def hello(self, request):
        return {"name": self.peer.name, "versions": self.peer.versions()}

    def ways(self, request):
        return {"ways": self.peer.ways(request["shape"])}

    def prepare(self, request):
        shape, way, directory = request["shape"], request["way"], request["directory"]
        arrays = [np.load(f"{directory}/{name}.npy") for name in ("query", "key", "value")]
        timed = Timed(self.peer.prepare(shape, way, *arrays))
        np.save(f"{directory}/out.npy", np.ascontiguousarray(timed.call.result()))
        self.calls[shape["shape"], way] = timed
        return {"seconds": timed.shortest}

    def sample(self, request):
        call = self.calls[request["shape"]["shape"], request["way"]]
        return {"seconds": call.samples(request["samples"])}

    def drop(self, request):
        del self.calls[request["shape"]["shape"], request["way"]]
        return {}


def main():
    module, threads = sys.argv[1], int(sys.argv[2])
    # Libraries may print: that goes to standard error.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    worker = Worker(importlib.import_module(module).PEER(threads))
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = getattr(worker, request["do"])(request)
        except Exception as error:  # A library may refuse a shape in any way.
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
