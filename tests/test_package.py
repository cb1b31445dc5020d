"""The package as it is imported, installed and found."""

import subprocess
import sys
import tomllib
from importlib.metadata import entry_points, version
from pathlib import Path

import pytest

import moe_asr
from moe_asr.config import compose

ROOT = Path(__file__).parents[1]


def python(program: str) -> str:
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout


@pytest.fixture(scope="module")
def project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_the_version_is_said_once_and_for_all(project: dict) -> None:
    assert moe_asr.__version__ == project["project"]["version"] == version("moe-asr")


def test_the_console_script_is_the_door(project: dict) -> None:
    (script,) = entry_points(group="console_scripts", name="moe-asr")
    assert script.value == project["project"]["scripts"]["moe-asr"] == "moe_asr.cli.main:main"
    assert callable(script.load())


def test_importing_the_package_is_light() -> None:
    assert python("import sys, moe_asr\nprint(*{'torch', 'numpy', 'omegaconf'} & set(sys.modules))") == "\n"


def test_torchaudio_can_be_imported_after_the_package() -> None:
    program = """
import moe_asr, torchaudio, torch
print(torchaudio._extension._IS_TORCHAUDIO_EXT_AVAILABLE in (True, False))
print(torchaudio.functional.resample(torch.ones(160), 16000, 8000).shape[0])
"""
    assert python(program).split() == ["True", "80"]


def test_without_its_extension_torchaudio_says_why_it_cannot_align() -> None:
    """On any machine: the extension is made to fail as it does where CUDA is missing."""
    program = """
import importlib.machinery, moe_asr

def no_cuda(self, module):
    if module.__name__ == "torchaudio._extension":
        raise OSError("libcudart.so: cannot open shared object file")
    return original(self, module)

original = importlib.machinery.SourceFileLoader.exec_module
importlib.machinery.SourceFileLoader.exec_module = no_cuda
import torchaudio._extension as extension
print(extension._IS_TORCHAUDIO_EXT_AVAILABLE, extension._IS_ALIGN_AVAILABLE)
import torch, torchaudio.functional as F
try:
    F.forced_align(torch.zeros(1, 2, 3), torch.ones(1, 1, dtype=torch.int32))
except RuntimeError as error:
    print(error)
"""
    flags, reason = python(program).splitlines()
    assert flags == "False False"
    assert reason.startswith("torchaudio's compiled extension could not be loaded here: libcudart.so")


def test_configurations_travel_in_the_wheel_and_are_found_there_first(
    project: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert project["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"] == {"configs": "moe_asr/configs"}
    assert compose.config_folder() == ROOT / "configs"
    inside = tmp_path / "moe_asr" / "configs"
    inside.mkdir(parents=True)
    monkeypatch.setattr(compose, "__file__", str(tmp_path / "moe_asr" / "config" / "compose.py"))
    assert compose.config_folder() == inside
