"""Floor 6. QuantExperts: the gated experts of a mixture, from quantized weights."""
from __future__ import annotations

import copy
from collections.abc import Callable

import torch

from ..errors import InvalidProblemError, UnsupportedError
from ..ops import dequantize, quantize
from ..qstack import QStack, refuses
from ..scheme import Scheme
from .weight import QuantizedModule

WEIGHTS = ("gate_up_proj", "down_proj")
# What Transformers says of an experts module (integrations/moe.py), where it is of the kind that QuantExperts computes.
_TRAITS = {"has_gate": True, "has_bias": False, "has_post_expert_norm": False, "is_transposed": False, "is_concatenated": True}


class QuantExperts(QuantizedModule):
    """``sum over the chosen experts of weight * down(act(gate(x)) * up(x))``; takes the place of a Transformers experts module.

    Args:
        gate_up: ``[E, 2 I, H]``, of each expert the gate's I rows and then up's.
        down: ``[E, H, I]``.
        act_fn: of the gate; SiLU is fused into the first product.
        layout: as for :class:`QuantLinear`.

    Buffers ``gate_up_proj``, ``gate_up_proj_scale``, ``down_proj`` and so on, ``[E, ...]``. The weights are frozen; gradients flow to the
    tokens and the routing weights.

    Example:
        >>> import torch, tritonq
        >>> gate_up, down = torch.randn(4, 2 * 64, 32), torch.randn(4, 32, 64)
        >>> experts = tritonq.nn.QuantExperts.from_weights(gate_up, down, "int8")
        >>> experts
        QuantExperts(4 experts, hidden=32, intermediate=64, gate_up_proj=int8, down_proj=int8, layout=row)
        >>> x, index, weight = torch.randn(5, 32), torch.randint(4, (5, 2)), torch.rand(5, 2)
        >>> experts(x, index, weight).shape
        torch.Size([5, 32])
    """

    def __init__(self, gate_up: QStack, down: QStack, act_fn: Callable = torch.nn.functional.silu, layout: str = "auto"):
        for name, stack in zip(WEIGHTS, (gate_up, down), strict=True):
            if not isinstance(stack, QStack):
                raise InvalidProblemError(f"{name} must be a QStack, got {type(stack).__name__}; from_weights makes one of a tensor")
        (count, twice, hidden), (others, out, inner) = gate_up.shape, down.shape
        if (others, out, 2 * inner) != (count, hidden, twice):
            rule = "gate_up_proj must be [E, 2 I, H] and down_proj [E, H, I]"
            raise InvalidProblemError(f"{rule}, got {list(gate_up.shape)} and {list(down.shape)}")
        super().__init__(dict(zip(WEIGHTS, (gate_up, down), strict=True)), layout)
        self.act_fn = act_fn
        self.num_experts, self.hidden_dim, self.intermediate_dim = count, hidden, inner
        self._origin: list[torch.nn.Module] = []  # the module that was replaced, without its weights; in a list, so that it is no child

    @classmethod
    def from_weights(cls, gate_up: torch.Tensor, down: torch.Tensor, scheme: str | Scheme | tuple[str | Scheme, str | Scheme],
                     act_fn: Callable = torch.nn.functional.silu, *, layout: str = "auto") -> QuantExperts:  # fmt: skip
        """Quantize ``[E, 2 I, H]`` and ``[E, H, I]``; ``scheme`` for both, or one for each.

        Raises:
            UnsupportedError: a scheme whose scales rows of several experts would share (``tensor``, ``column``, ``dq``, nvfp4).
        """
        schemes = scheme if isinstance(scheme, tuple) else (scheme, scheme)
        return cls(*(quantize_stack(w, s) for w, s in zip((gate_up, down), schemes, strict=True)), act_fn, layout)

    def forward(self, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor) -> torch.Tensor:
        """Tokens ``[T, H]``, for each the indices and weights ``[T, k]`` of its experts; an index of E, or a negative one, means none."""
        chosen = torch.where(top_k_index < 0, self.num_experts, top_k_index).reshape(-1)
        order = torch.argsort(chosen, stable=True)
        experts = torch.arange(self.num_experts, device=chosen.device, dtype=chosen.dtype)
        ends = torch.searchsorted(chosen[order], experts, right=True, out_int32=True)
        x = hidden_states[order // max(top_k_index.shape[1], 1)]
        if type(self.act_fn).__name__ in ("SiLU", "SiLUActivation") or self.act_fn is torch.nn.functional.silu:
            inner = self._product("gate_up_proj", x, ends, "swiglu")
        else:
            gate, up = self._product("gate_up_proj", x, ends).chunk(2, -1)
            inner = self.act_fn(gate) * up
        y = self._product("down_proj", inner, ends)
        wide = torch.promote_types(y.dtype, torch.float32)
        y = y.to(wide) * top_k_weights.reshape(-1)[order, None].to(wide)
        y = torch.zeros_like(y).index_copy(0, order, y)
        return y.view(*top_k_index.shape, y.shape[1]).sum(1).to(hidden_states.dtype)

    def _product(self, name: str, x: torch.Tensor, ends: torch.Tensor, activation: str | None = None) -> torch.Tensor:
        return torch.ops.tritonq.grouped_matmul(x, *self._operands(name), ends, activation)

    def weight(self, name: str, dtype: torch.dtype | None = None) -> torch.Tensor:
        """The decoded ``[E, N, K]`` of ``"gate_up_proj"`` or ``"down_proj"``."""
        stack = self.quantized[name]
        return dequantize(stack.matrix(), dtype).view(stack.shape)

    @classmethod
    def from_experts(cls, module: torch.nn.Module, gate_up: QStack, down: QStack, layout: str = "auto") -> QuantExperts:
        """For the experts module ``module`` of Transformers, with its weights quantized."""
        experts = cls(gate_up, down, module.act_fn, layout).train(module.training)
        origin = copy.copy(module)
        origin._parameters = dict.fromkeys(module._parameters)
        experts._origin.append(origin)
        return experts

    def to_experts(self, dtype: torch.dtype | None = None) -> torch.nn.Module:
        """The module that was replaced, with the decoded weights."""
        if not self._origin:
            raise UnsupportedError("these experts took the place of no module; weight() gives the decoded tensors")
        module = copy.copy(self._origin[0])
        module._parameters = {name: torch.nn.Parameter(self.weight(name, dtype), requires_grad=False) for name in WEIGHTS}
        return module.train(self.training)

    def extra_repr(self) -> str:
        schemes = ", ".join(f"{name}={stack.scheme}" for name, stack in self.quantized.items())
        sizes = f"{self.num_experts} experts, hidden={self.hidden_dim}, intermediate={self.intermediate_dim}"
        return f"{sizes}, {schemes}, layout={self.quantized['down_proj'].layout}"

    def __repr__(self) -> str:
        return f"QuantExperts({self.extra_repr()})"


def is_experts(module: torch.nn.Module) -> bool:
    """A Transformers module of gated experts whose two weights are ``[E, 2 I, H]`` and ``[E, H, I]``, and which gates as usual."""
    gate = getattr(module, "_apply_gate", None)
    return (
        set(dict(module.named_parameters(recurse=False))) == set(WEIGHTS)
        and all(getattr(module, trait, None) is value for trait, value in _TRAITS.items())
        and callable(getattr(module, "act_fn", None))
        and getattr(gate, "__name__", "") == "_default_apply_gate"
        and module.gate_up_proj.dim() == module.down_proj.dim() == 3
    )


def quantize_stack(weight: torch.Tensor, scheme: str | Scheme) -> QStack:
    """``[E, N, K]`` quantized, every expert as if alone."""
    if weight.dim() != 3:
        raise InvalidProblemError(f"experts must be a weight [E, N, K], got shape {tuple(weight.shape)}")
    if reason := refuses(Scheme.parse(scheme), weight.shape[1]):
        raise UnsupportedError(reason)
    return QStack.of(quantize(weight.detach().flatten(0, 1), scheme), weight.shape[0])
