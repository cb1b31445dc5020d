"""How the kernel is had: where it is kept, and what happens without; what it computes is in the tests of its users."""

import stat

import pytest
import torch
import torch.nn.functional as F

from moe_asr.config.inference import InferencePrecision
from moe_asr.modules import fused


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """An empty cache; compilers can be put into it."""
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "cache"))
    fused.library.cache_clear()
    yield tmp_path
    fused.library.cache_clear()


def compiler(path, script):
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


def test_without_a_compiler_there_is_no_kernel(elsewhere, monkeypatch, capsys):
    monkeypatch.setenv("CXX", str(elsewhere / "none"))
    assert not any(fused.supported(precision) for precision in InferencePrecision)
    assert capsys.readouterr().err == ""


def test_a_compiler_that_fails_is_told_of_in_one_line(elsewhere, monkeypatch, capsys):
    failing = compiler(elsewhere / "c++", 'case "$*" in *-dM*) exit 0;; esac; echo "no such header" >&2; exit 1')
    monkeypatch.setenv("CXX", failing)
    assert not fused.supported(InferencePrecision.fp32)
    assert not fused.supported(InferencePrecision.fp32)
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(",")[0] for line in lines] == ["compiling a kernel for this CPU", "no fused kernel"]
    assert lines[1].endswith("no such header")
    assert list((elsewhere / "cache" / "moe_asr").iterdir()) == []


def test_a_file_that_is_no_library_costs_only_speed(elsewhere, monkeypatch, capsys):
    odd = compiler(elsewhere / "c++", 'for out; do :; done; case "$*" in *-dM*) ;; *) echo odd > "$out";; esac')
    monkeypatch.setenv("CXX", odd)
    assert not fused.supported(InferencePrecision.fp32)
    assert "no fused kernel, which only costs speed" in capsys.readouterr().err


def test_it_is_compiled_once(elsewhere, capsys):
    if not fused.supported(InferencePrecision.fp32):
        pytest.skip("no compiler on this machine")
    assert capsys.readouterr().err.count("\n") == 1
    assert len(list((elsewhere / "cache" / "moe_asr").iterdir())) == 1
    fused.library.cache_clear()
    assert fused.supported(InferencePrecision.fp32)
    assert capsys.readouterr().err == ""


def test_plain_instructions_compute_the_same(elsewhere, monkeypatch):
    """What other CPUs run: no AVX-512, no bf16 or int8 instructions."""
    if fused.library() is None:
        pytest.skip("no compiler on this machine")
    torch.manual_seed(0)
    weight, bias, x = torch.randn(1, 70, 45), torch.randn(1, 70), torch.randn(31, 45)
    exact = F.gelu(F.linear(x.double(), weight[0].double(), bias[0].double()))
    monkeypatch.setattr(fused, "FLAGS", tuple(flag.replace("-march=native", "-O1") for flag in fused.FLAGS))
    monkeypatch.setattr(fused, "supported", lambda precision: True)
    fused.library.cache_clear()
    for precision, error in {"fp32": 1e-6, "bf16": 5e-3, "int8": 2e-2}.items():
        y = fused.linear(fused.pack(weight, bias, InferencePrecision(precision), F.gelu), x)
        assert (y - exact).norm() / exact.norm() < error


@pytest.mark.parametrize("precision", list(InferencePrecision))
def test_threads_change_nothing(precision):
    if not fused.supported(precision):
        pytest.skip(f"no {precision} kernel on this machine")
    torch.manual_seed(1)
    maps_in = fused.pack(torch.randn(3, 160, 96), torch.randn(3, 160), precision, F.silu)
    maps_out = fused.pack(torch.randn(3, 96, 160), torch.randn(3, 96), precision)
    rows, ids, weights = torch.randn(203, 96), torch.randint(-1, 3, (203, 2)), torch.rand(203, 2)
    threads, found = torch.get_num_threads(), []
    for number in (1, 3):
        torch.set_num_threads(number)
        found.append((fused.linear(maps_in, rows), fused.experts(maps_in, maps_out, rows, ids, weights)))
    torch.set_num_threads(threads)
    assert found[0][0].equal(found[1][0])
    assert found[0][1].equal(found[1][1])
