"""Experts and a gated MLP in layout ``frag``: their products, as PTX in the simulator, are those of the reference."""
import torch
from torch import nn

from tests.kernels.test_modules import on_reference
from tritonq.nn import QuantExperts, QuantGatedMLP, QuantLinear


def test_experts_and_gated_mlp(simulator, monkeypatch):
    generator = torch.Generator().manual_seed(0)
    gate_up, down = torch.randn(2, 128, 128, generator=generator).half(), torch.randn(2, 128, 64, generator=generator).half()
    x = torch.randn(3, 128, generator=generator).half()
    index, shares = torch.tensor([[0], [1], [0]]), torch.rand(3, 1, generator=generator)
    make = lambda layout: QuantExperts.from_weights(gate_up, down, "nf4", layout=layout)  # noqa: E731
    row, frag = (on_reference(monkeypatch, lambda layout=layout: make(layout)) for layout in ("row", "frag"))
    want = on_reference(monkeypatch, lambda: row(x, index, shares))
    got = frag(x, index, shares)
    assert simulator.launches == 4 and "mma.sync" in simulator.last.asm["ptx"], "two experts, two products each"
    torch.testing.assert_close(got, want, rtol=1e-2, atol=1e-2 * float(want.abs().max()))

    linears = [nn.Linear(*sizes, bias=False).half() for sizes in ((128, 64), (128, 64), (64, 128))]
    gate, up, out = (on_reference(monkeypatch, lambda one=one: QuantLinear.from_linear(one, "int4.g64")) for one in linears)
    mlp = QuantGatedMLP(QuantLinear.fused([gate, up], layout="frag"), QuantLinear(out.qtensor, layout="frag"))
    want = on_reference(monkeypatch, lambda: out(nn.functional.silu(gate(x)) * up(x)))
    got = mlp(x)
    assert simulator.launches == 6
    torch.testing.assert_close(got, want, rtol=1e-2, atol=1e-2 * float(want.abs().max()))
