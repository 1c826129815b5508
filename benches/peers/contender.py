"""What takes turns in a run: processes that hold a peer, and headwise itself."""

import json
import os
import signal
import subprocess
import sys
from statistics import median

import build
import environment
import groups
from environment import HERE, ROOT


class Refused(Exception):
    """An answer that says why there is none."""


class PeerProcess:
    """A process that holds a peer's prepared calls and stands still unless it is asked: no thread
    of it spins while another's time is taken."""

    def __init__(self, command, env):
        self.process = subprocess.Popen(
            command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        hello = self.ask({"do": "hello"})
        self.name, self.versions = hello["name"], hello["versions"]

    def ask(self, request):
        """The answer to a request."""
        self.process.send_signal(signal.SIGCONT)
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.process.args}: ended with {self.process.wait()}")
        self.process.send_signal(signal.SIGSTOP)
        os.waitpid(self.process.pid, os.WUNTRACED)
        answer = json.loads(line)
        if "error" in answer:
            raise Refused(answer["error"])
        return answer

    def sample(self, shape, way, samples):
        """Seconds per run: the median of `samples`."""
        request = {"do": "sample", **groups.request(shape, way), "samples": samples}
        return median(self.ask(request)["seconds"])

    def close(self):
        """Ends the process, which holds nothing that wants to be saved."""
        self.process.kill()
        self.process.wait()


class Headwise:
    """Ours: a process for each measurement."""

    name = "headwise"

    def __init__(self, threads):
        self.threads = threads
        self.env = environment.clean()
        self.command = build.cargo(ROOT, ["-p", "headwise-cli"], self.env)

    def objects(self, *arguments):
        """The lines that a command prints."""
        command = [self.command, *arguments, "--json", "--threads", str(self.threads)]
        output = subprocess.run(command, env=self.env, check=True, stdout=subprocess.PIPE)
        return [json.loads(line) for line in output.stdout.splitlines()]

    def shapes(self, suites):
        """The rows of some suites."""
        lists = [self.objects("bench", "--list", "--suite", suite) for suite in suites]
        return [row for rows in lists for row in rows]

    def machine(self):
        """What the machine has and can do at most."""
        return self.objects("info")[0]

    def measure(self, shape, samples):
        """The record of a measurement."""
        record, = self.objects("bench", "--shape", shape["shape"], "--samples", str(samples))
        return record


def start_peer(name, threads):
    """A process that holds the peer of that name and stands still."""
    env = environment.clean()
    env |= {"OMP_NUM_THREADS": str(threads), "RAYON_NUM_THREADS": str(threads)}
    if name == "patched":
        env |= {"PYTHONPATH": str(build.python(env))}
    return PeerProcess(command(name, threads, env), env)


def command(name, threads, env):
    """What runs a peer; one in another language is built first."""
    if name == "candle":
        return [build.candle(env)]
    if name == "llama":
        return [str(build.llama(env)), str(threads)]
    return [sys.executable, str(HERE / "worker.py"), f"peer_{name}", str(threads)]
