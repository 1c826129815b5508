"""Builds what is not Python: headwise, and the peers in other languages."""

import json
import subprocess

from environment import HERE


def cargo(directory, arguments, env):
    """Builds a Rust command and returns the path of its executable."""
    command = ["cargo", "build", "--release", "--locked", "--message-format=json", *arguments]
    output = subprocess.run(command, cwd=directory, env=env, check=True, stdout=subprocess.PIPE)
    messages = map(json.loads, output.stdout.splitlines())
    executables = [m["executable"] for m in messages if m.get("executable")]
    if len(executables) != 1:
        raise RuntimeError(f"{' '.join(command)}: expected one executable, got {executables}")
    return executables[0]


def candle(env):
    """Builds the peer candle and returns the path of its executable."""
    # The flags in the environment would replace those of its own configuration.
    return cargo(HERE / "candle", [], {k: v for k, v in env.items() if k != "RUSTFLAGS"})
