"""The virtual environment that the scripts here make for themselves, and the environment of what
they start."""

import os
import subprocess
import sys
import venv
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
_VENV = HERE / ".venv"
_REQUIREMENTS = HERE / "requirements.txt"
_PYTHON = _VENV / "bin" / "python"

# What would tune one library and not another.
_TUNING = ("OPENBLAS_", "OMP_", "GOMP_", "KMP_", "MKL_", "ONEDNN_", "DNNL_", "TORCH_", "ATEN_",
           "ORT_", "OPENVINO_", "OV_", "RAYON_", "HEADWISE_", "CANDLE_",
           "GGML_")


def enter():
    """Goes on in the virtual environment, which is made or brought up to date first."""
    if Path(sys.prefix) == _VENV:
        return
    installed = _VENV / "installed.txt"
    wanted = _REQUIREMENTS.read_text()
    if not installed.exists() or installed.read_text() != wanted:
        print(f"installing {_REQUIREMENTS.name} into {_VENV}", file=sys.stderr)
        venv.create(_VENV, clear=True, with_pip=True)
        pip = [_PYTHON, "-m", "pip", "install", "--quiet", "--no-deps", "-r", _REQUIREMENTS]
        subprocess.run(pip, check=True)
        installed.write_text(wanted)
    os.execve(_PYTHON, [str(_PYTHON), *sys.argv], clean())


def clean():
    """The environment without the variables that tune one library."""
    return {key: value for key, value in os.environ.items() if not key.startswith(_TUNING)}
