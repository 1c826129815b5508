"""Builds what is not Python: headwise, and the peers in other languages."""

import json
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

from environment import HERE, ROOT

# llama.cpp has no releases on a package registry, but its Python package ships its sources.
LLAMA_PACKAGE = "llama-cpp-python"
LLAMA_VERSION = "0.3.36"
# Of them the tensor library, the JSON library that the peer speaks by, and the licence.
_LLAMA_PARTS = ("ggml/", "vendor/nlohmann/", "LICENSE")


def cargo(directory, arguments, env):
    """Builds a Rust command and returns the path of its executable."""
    executables = [m["executable"] for m in _messages(directory, arguments, env)
                   if m.get("executable")]
    if len(executables) != 1:
        raise RuntimeError(f"{directory}: expected one executable, got {executables}")
    return executables[0]


def python(env):
    """Builds the Python package and returns the directory from which it can be imported."""
    directory = ROOT / "bindings" / "python"
    messages = _messages(directory, [], {**env, "PYO3_PYTHON": sys.executable})
    library, = (file for m in messages if m.get("target", {}).get("name") == "_headwise"
                for file in m.get("filenames", []) if Path(file).suffix in (".so", ".dylib"))
    place = directory / "target" / "peers"
    shutil.copytree(directory / "python", place, dirs_exist_ok=True)
    shutil.copy(library, place / "headwise" / "_headwise.abi3.so")
    return place


def _messages(directory, arguments, env):
    """What cargo says of what it builds."""
    command = ["cargo", "build", "--release", "--locked", "--message-format=json", *arguments]
    output = subprocess.run(command, cwd=directory, env=env, check=True, stdout=subprocess.PIPE)
    return [json.loads(line) for line in output.stdout.splitlines()]


def candle(env):
    """Builds the peer candle and returns the path of its executable."""
    # The flags in the environment would replace those of its own configuration.
    return cargo(HERE / "candle", [], {k: v for k, v in env.items() if k != "RUSTFLAGS"})


def llama(env):
    """Builds the peer llama.cpp, for this machine, and returns the path of its executable."""
    if shutil.which("g++") is None:
        raise FileNotFoundError("llama.cpp is built with g++: apt-get install g++")
    target = HERE / "llama" / "target"
    sources = target / f"{LLAMA_PACKAGE}-{LLAMA_VERSION}"
    if not sources.exists():
        target.mkdir(exist_ok=True)
        print(f"fetching the sources of {LLAMA_PACKAGE} into {sources}", file=sys.stderr)
        _fetch_llama(sources, env)
    # From the virtual environment, whose directory of programs is not in the path.
    tools = Path(sys.executable).parent
    build = target / "build"
    _run([tools / "cmake", "-S", HERE / "llama", "-B", build, "-G", "Ninja",
          f"-DCMAKE_MAKE_PROGRAM={tools / 'ninja'}", "-DCMAKE_BUILD_TYPE=Release",
          f"-DLLAMA_CPP={sources}", f"-DPACKAGE_VERSION={LLAMA_VERSION}"], env)
    _run([tools / "cmake", "--build", build, "--target", "headwise-peer-llama"], env)
    return build / "headwise-peer-llama"


def _run(command, env):
    """Runs a command that prints much; shows what it printed where it failed."""
    done = subprocess.run(command, env=env, text=True, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT)
    if done.returncode:
        print(done.stdout, file=sys.stderr)
        done.check_returncode()


def _fetch_llama(sources, env):
    """Unpacks the parts of llama.cpp's sources that are built; `sources` appears once all are
    there."""
    with tempfile.TemporaryDirectory(dir=sources.parent) as scratch:
        # Only a source archive has them, and what it is built with may come as wheels.
        _run([sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary",
              LLAMA_PACKAGE, "--dest", scratch, f"{LLAMA_PACKAGE}=={LLAMA_VERSION}"], env)
        archive, = Path(scratch).glob("*.tar.gz")
        parts = Path(scratch) / "parts"
        with tarfile.open(archive) as file:
            for member in file:
                _, _, name = member.name.partition("/vendor/llama.cpp/")
                if name.startswith(_LLAMA_PARTS):
                    member.name = name
                    file.extract(member, parts, filter="data")
        parts.rename(sources)
