"""Floor 6. QuantLinear, what is fused of several, and QuantEmbedding."""
from __future__ import annotations

from collections.abc import Sequence

import torch

from ..errors import InvalidProblemError, UnsupportedError
from ..ops import dequantize, matmul, quantize
from ..qtensor import QTensor
from ..scheme import Scheme
from ..shards import concatenate
from .weight import QuantizedWeight

_is_compiling = torch.compiler.is_compiling


class QuantLinear(QuantizedWeight):
    """``x @ w_hat.T + bias`` straight from a quantized weight; takes the place of :class:`torch.nn.Linear`.

    Args:
        q: weight ``[out_features, in_features]``.
        bias: ``[out_features]``, or None; a Parameter stays one, trainable.
        layout: of the weight in memory; ``"auto"`` takes that of the device's fastest kernel, and again wherever the module is moved.

    The weight is frozen: gradients flow to x and bias (see docs/matmul.md), so adapters train around it. x may be of any float dtype and
    of any shape ``[..., in_features]``.

    Example:
        >>> import torch, tritonq
        >>> layer = tritonq.nn.QuantLinear.from_linear(torch.nn.Linear(256, 64), "nf4")
        >>> layer
        QuantLinear(in_features=256, out_features=64, bias=True, scheme=nf4, layout=row)
        >>> layer(torch.randn(2, 3, 256)).shape
        torch.Size([2, 3, 64])
    """

    def __init__(self, q: QTensor, bias: torch.Tensor | None = None, layout: str = "auto"):
        super().__init__(q, layout)
        self.out_features, self.in_features = q.shape
        if bias is not None and tuple(bias.shape) != (self.out_features,):
            raise InvalidProblemError(f"bias must have shape ({self.out_features},), got {tuple(bias.shape)}")
        if bias is not None and not isinstance(bias, torch.nn.Parameter):
            bias = torch.nn.Parameter(bias, requires_grad=bias.requires_grad)
        self.register_parameter("bias", bias)

    @classmethod
    def from_linear(cls, linear: torch.nn.Linear, scheme: str | Scheme, *, layout: str = "auto",
                    g_idx: torch.Tensor | None = None) -> QuantLinear:  # fmt: skip
        """Quantize the weight of ``linear``, and take over its bias. ``linear`` is not changed; see :func:`tritonq.quantize` for errors."""
        if not isinstance(linear, torch.nn.Linear):
            raise InvalidProblemError(f"from_linear takes a torch.nn.Linear, got {type(linear).__name__}")
        return cls(quantize(linear.weight.detach(), scheme, g_idx=g_idx), linear.bias, layout).train(linear.training)

    @classmethod
    def fused(cls, layers: Sequence[QuantLinear], *, layout: str = "auto") -> QuantLinear:
        """One layer for several that read the same x, such as Q, K and V: its outputs are theirs, one after another in the last axis.

        Nothing is quantized again: codes and scales are joined. One product reads x once and is launched once.

        Raises:
            InvalidProblemError: layers of different schemes, dtypes or in_features, with and without bias, with act-order, or whose scales
                cannot be joined (see :func:`tritonq.shards.concatenate`).

        Example:
            >>> import torch, tritonq
            >>> q, k, v = (tritonq.nn.QuantLinear.from_linear(torch.nn.Linear(64, n), "nf4") for n in (64, 16, 16))
            >>> qkv = tritonq.nn.QuantLinear.fused([q, k, v])
            >>> [part.shape[-1] for part in qkv(torch.randn(2, 64)).split([64, 16, 16], -1)]
            [64, 16, 16]
        """
        layers = list(layers)
        wrong = next((type(layer).__name__ for layer in layers if not isinstance(layer, QuantLinear)), None)
        if wrong is not None:
            raise InvalidProblemError(f"fused takes QuantLinear layers, got {wrong}; quantize it first")
        biases = [layer.bias for layer in layers]
        if len({bias is None for bias in biases}) > 1:
            raise InvalidProblemError("layers with and without bias cannot be fused; give all of them one, maybe of zeros")
        if any(layer.qtensor.column_order is not None for layer in layers):
            raise InvalidProblemError("layers with act-order cannot be fused: each has an order of columns of its own")
        q = concatenate([layer.qtensor for layer in layers])
        if biases[0] is None:
            return cls(q, None, layout).train(layers[0].training)
        trained = any(bias.requires_grad for bias in biases)
        return cls(q, torch.nn.Parameter(torch.cat([b.detach() for b in biases]), requires_grad=trained), layout).train(layers[0].training)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if _is_compiling() or self._is_swapped():
            return torch.ops.tritonq.matmul(x, *self._operands(), self.bias)
        own = self._parameters  # self.bias is found only after a look-up that fails, a fifth of a call
        return matmul(x, self._q, own["bias"] if "bias" in own else self.bias)  # noqa: SIM401

    def to_linear(self, dtype: torch.dtype | None = None) -> torch.nn.Linear:
        """An ordinary Linear with the decoded weight (``dtype``: by default the one that was quantized)."""
        weight = dequantize(self.qtensor, dtype)
        linear = torch.nn.Linear(self.in_features, self.out_features, self.bias is not None, device="meta", dtype=weight.dtype)
        linear.weight = torch.nn.Parameter(weight, requires_grad=False)
        linear.bias = self.bias
        return linear.train(self.training)

    def extra_repr(self) -> str:
        sizes = f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"
        return f"{sizes}, scheme={self.scheme}, layout={self._q.layout}"


class QuantGatedMLP(torch.nn.Module):
    """``down(silu(gate(x)) * up(x))`` with gate and up as one weight, whose product ends with the gating; for models of one's own.

    Args:
        gate_up: ``[2 I, H]``, the gate's rows and then up's: ``QuantLinear.fused([gate, up])``. Without bias.
        down: ``[H, I]``.

    Example:
        >>> import torch, tritonq
        >>> linears = [torch.nn.Linear(*sizes, bias=False) for sizes in ((32, 64), (32, 64), (64, 32))]
        >>> gate, up, down = (tritonq.nn.QuantLinear.from_linear(linear, "int8") for linear in linears)
        >>> mlp = tritonq.nn.QuantGatedMLP(tritonq.nn.QuantLinear.fused([gate, up]), down)
        >>> x = torch.randn(2, 32)
        >>> torch.allclose(mlp(x), down(torch.nn.functional.silu(gate(x)) * up(x)), atol=1e-5)
        True
    """

    def __init__(self, gate_up: QuantLinear, down: QuantLinear):
        super().__init__()
        for name, layer in (("gate_up", gate_up), ("down", down)):
            if not isinstance(layer, QuantLinear):
                raise InvalidProblemError(f"{name} must be a QuantLinear, got {type(layer).__name__}")
        if gate_up.bias is not None:
            raise InvalidProblemError("gate_up must have no bias; the gating follows the product directly")
        if gate_up.out_features != 2 * down.in_features:
            rule = "gate_up must have twice the outputs that down has inputs"
            raise InvalidProblemError(f"{rule}, got {gate_up.out_features} and {down.in_features}")
        self.gate_up_proj, self.down_proj = gate_up, down

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        layer = self.gate_up_proj
        if _is_compiling() or layer._is_swapped():
            return self.down_proj(torch.ops.tritonq.matmul(x, *layer._operands(), None, "swiglu"))
        return self.down_proj(matmul(x, layer.qtensor, activation="swiglu"))


class QuantEmbedding(QuantizedWeight):
    """Looks up rows of a quantized table and decodes those alone; takes the place of :class:`torch.nn.Embedding`.

    Args:
        q: table ``[num_embeddings, embedding_dim]`` in which every row has scales of its own (a group size or ``channel``).

    Rows come in ``dtype``, at first the dtype that was quantized; ``half()``, ``to(dtype)`` and the like change it.

    Example:
        >>> import torch, tritonq
        >>> table = tritonq.nn.QuantEmbedding.from_embedding(torch.nn.Embedding(1000, 64), "int8")
        >>> table(torch.tensor([[3, 999]])).shape
        torch.Size([1, 2, 64])
    """

    def __init__(self, q: QTensor):
        super().__init__(q, "row")
        q.rows(torch.empty(0, dtype=torch.int64, device=q.device))  # refuses what has no rows of its own
        self.num_embeddings, self.embedding_dim = q.shape
        self.dtype = q.dtype

    @classmethod
    def from_embedding(cls, embedding: torch.nn.Embedding, scheme: str | Scheme) -> QuantEmbedding:
        """Quantize the table of ``embedding``, which is not changed."""
        if not isinstance(embedding, torch.nn.Embedding):
            raise InvalidProblemError(f"from_embedding takes a torch.nn.Embedding, got {type(embedding).__name__}")
        if embedding.max_norm is not None:
            raise UnsupportedError("max_norm changes the table while it is read, and a quantized table is frozen; keep this embedding")
        return cls(quantize(embedding.weight.detach(), scheme)).train(embedding.training)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return torch.ops.tritonq.embedding(ids, *self._operands()).to(self.dtype)

    def _apply(self, fn, recurse=True):
        self.dtype = fn(torch.empty(0, dtype=self.dtype, device=self.weight.device)).dtype
        return super()._apply(fn, recurse)

    def extra_repr(self) -> str:
        return f"{self.num_embeddings}, {self.embedding_dim}, scheme={self.scheme}"
