"""What the checks share: small layers, comparisons."""
from __future__ import annotations

import re

import torch
from torch import nn

from tritonq.distributed import ColwiseParallel, RowwiseParallel
from tritonq.nn import QuantLinear

STYLES = {0: ColwiseParallel, 1: RowwiseParallel}


def near(mine: torch.Tensor, whole: torch.Tensor, relative: float = 1e-5) -> None:
    """Equal but for the order of float32 sums."""
    assert mine.shape == whole.shape and mine.dtype == whole.dtype, (mine.shape, whole.shape)
    worst = (mine - whole).abs().max() / whole.abs().max()
    assert worst <= relative, f"{worst:.2e} of the largest value"


def refused(error: type, text: str, call) -> None:
    try:
        call()
    except error as caught:
        assert re.search(text, str(caught)), str(caught)
        return
    raise AssertionError(f"not refused: {text}")


def random(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def layer(scheme: str, n: int = 64, k: int = 256, bias: bool = True, **more) -> QuantLinear:
    torch.manual_seed(0)
    return QuantLinear.from_linear(nn.Linear(k, n, bias), scheme, **more)


class MLP(nn.Module):
    def __init__(self, scheme: str, bias: bool = True):
        super().__init__()
        torch.manual_seed(0)
        self.gate, self.up, self.down = (
            QuantLinear.from_linear(nn.Linear(k, n, bias), scheme) for n, k in ((512, 128), (512, 128), (128, 512)))  # fmt: skip

    def forward(self, x):
        return self.down(nn.functional.silu(self.gate(x)) * self.up(x))

MLP_PLAN = {"gate": ColwiseParallel(), "up": ColwiseParallel(), "down": RowwiseParallel()}


def zeroed(model: nn.Module) -> nn.Module:
    with torch.no_grad():
        for tensor in [*model.buffers(), *model.parameters()]:
            tensor.zero_() if tensor.dtype.itemsize > 1 else tensor.view(torch.uint8).zero_()
    return model
