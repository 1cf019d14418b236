"""The seed plans compiled for sm_80 and sm_90, their PTX executed: the bits of the torch reference."""
from __future__ import annotations

import pytest
import torch

from tests.support import seed_cases

F64, F32, F16, BF16 = torch.float64, torch.float32, torch.float16, torch.bfloat16


def on(*pairs):
    """Runs of (dtype, architecture): every dtype on sm_90, one on sm_80."""
    return pytest.mark.parametrize("dtype, simulator", pairs, indirect=["simulator"])


def compare(cases, monkeypatch) -> None:
    for name, plan, args in cases:
        got = plan.run(None, None, args)
        with monkeypatch.context() as patch:
            patch.setenv("TRITONQ_BACKEND", "reference")
            seed_cases.assert_same_bits(got, plan.run(None, None, args), name)


@on((F64, 90), (F32, 90), (F16, 90), (BF16, 90), (F32, 80))
def test_affine_plans(dtype, simulator, monkeypatch):
    cases = list(seed_cases.affine(dtype, torch.int8 if dtype != torch.float16 else torch.uint8))
    some = cases[:8] + cases[32:36] + cases[40:44] + cases[-2:]  # per tensor, channel, token, group, fake
    compare(some if simulator.arch == 90 else some[::5], monkeypatch)  # on sm_80 each of four kinds with another granularity
    assert simulator.launches


@on((F64, 90), (F32, 90), (F16, 90), (BF16, 90), (F32, 80))
def test_dynamic_range(dtype, simulator, monkeypatch):
    cases = list(seed_cases.dynamic_range(dtype, torch.int8, d=1100 if dtype == F32 else 70))
    compare(cases[1::4] if dtype != F32 else cases if simulator.arch == 90 else cases[::3], monkeypatch)
    assert simulator.launches


@on((F32, 90), (BF16, 80))
def test_linear_plans(dtype, simulator, monkeypatch):
    compare(list(seed_cases.linear(dtype))[:6:1 if dtype == F32 else 2], monkeypatch)
    assert simulator.launches


@on((F16, 90))
def test_nf4(dtype, simulator, monkeypatch):
    compare(seed_cases.nf4(dtype, matmul=False), monkeypatch)
    for name, plan, args in seed_cases.nf4(torch.float32, matmul=True):
        got = plan.run(None, None, args)
        with monkeypatch.context() as patch:
            patch.setenv("TRITONQ_BACKEND", "reference")
            torch.testing.assert_close(got, plan.run(None, None, args), rtol=1e-5, atol=1e-5, msg=lambda m, name=name: f"{name}: {m}")
    assert simulator.launches
