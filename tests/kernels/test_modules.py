"""Modules whose products and quantizers are kernels: what they give is what the reference gives them."""
import copy

import pytest
import torch
from torch import nn

import tritonq
from tests.support.schemes import same_bits
from tritonq.nn import FakeQuantLinear, QuantExperts, QuantGatedMLP, QuantLinear

F16 = torch.float16


def on_reference(monkeypatch, call):
    with monkeypatch.context() as patch:
        patch.setenv("TRITONQ_BACKEND", "reference")
        return call()


@pytest.mark.parametrize("layout", ["row", "ksplit"])
@pytest.mark.parametrize("scheme", ["nf4.g32", "uint4.g32"])
def test_experts(scheme, layout, device, monkeypatch):
    generator = torch.Generator().manual_seed(0)
    gate_up, down = torch.randn(3, 64, 64, generator=generator).half(), torch.randn(3, 64, 32, generator=generator).half()
    experts = on_reference(monkeypatch, lambda: QuantExperts.from_weights(gate_up, down, scheme, layout=layout)).to(device)
    x = torch.randn(4, 64, generator=generator).half().to(device)
    index, shares = torch.tensor([[0, 2], [2, 0], [3, 2], [0, 3]], device=device), torch.rand(4, 2, generator=generator).to(device)
    x.requires_grad_()
    ours = experts(x, index, shares)
    (grad,) = torch.autograd.grad(ours.float().sum(), x)
    theirs = on_reference(monkeypatch, lambda: copy.deepcopy(experts)(x, index, shares))
    (want,) = torch.autograd.grad(theirs.float().sum(), x)
    torch.testing.assert_close(ours, theirs, rtol=1e-2, atol=2e-2 * float(theirs.abs().max()))
    torch.testing.assert_close(grad, want, rtol=2e-2, atol=2e-2 * float(want.abs().max()))


@pytest.mark.parametrize("layout", ["row", "ksplit"])
def test_gated_mlp_of_fused_layers(layout, device, monkeypatch):
    torch.manual_seed(0)
    linears = [nn.Linear(*sizes, bias=False, dtype=F16) for sizes in ((64, 48), (64, 48), (48, 64))]
    gate, up, down = (on_reference(monkeypatch, lambda one=one: QuantLinear.from_linear(one, "nf4.g16")) for one in linears)
    mlp = QuantGatedMLP(QuantLinear.fused([gate, up], layout=layout), QuantLinear(down.qtensor, layout=layout)).to(device)
    x = torch.randn(3, 64, dtype=F16, device=device)
    want = on_reference(monkeypatch, lambda: down.to(device)(nn.functional.silu(gate.to(device)(x)) * up.to(device)(x)))
    torch.testing.assert_close(mlp(x), want, rtol=1e-2, atol=1e-2 * float(want.abs().max()))


@pytest.mark.parametrize("scheme", ["int4.g32", "nf4.g32", "mxfp4"])
def test_fake_quantized_weights_are_the_kernels_own(scheme, device, monkeypatch):
    torch.manual_seed(0)
    layer = FakeQuantLinear(nn.Linear(64, 24, dtype=torch.bfloat16), scheme).to(device)
    w_hat, weight = layer.fake_weight(), layer.weight.detach().cpu()
    assert same_bits(w_hat.detach().cpu(), on_reference(monkeypatch, lambda: tritonq.quantize(weight, scheme).dequantize()))
    (grad,) = torch.autograd.grad(w_hat.float().sum(), layer.weight)
    assert bool((grad == 1).all())
    assert same_bits(layer.to_quant_linear("row").qtensor.dequantize(), w_hat.detach())
