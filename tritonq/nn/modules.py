"""Floor 6. QuantLinear and QuantEmbedding."""
from __future__ import annotations

import torch

from ..errors import InvalidProblemError, UnsupportedError
from ..ops import dequantize, matmul, quantize
from ..qtensor import QTensor
from ..scheme import Scheme
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

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if _is_compiling():
            return torch.ops.tritonq.matmul(x, self._flat(), self._form, self.bias)
        return matmul(x, self._q, self.bias)

    def to_linear(self, dtype: torch.dtype | None = None) -> torch.nn.Linear:
        """An ordinary Linear with the decoded weight (``dtype``: by default the one that was quantized)."""
        weight = dequantize(self._q, dtype)
        linear = torch.nn.Linear(self.in_features, self.out_features, self.bias is not None, device="meta", dtype=weight.dtype)
        linear.weight = torch.nn.Parameter(weight, requires_grad=False)
        linear.bias = self.bias
        return linear.train(self.training)

    def extra_repr(self) -> str:
        sizes = f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"
        return f"{sizes}, scheme={self.scheme}, layout={self._q.layout}"


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
        return torch.ops.tritonq.embedding(ids, self._flat(), self._form).to(self.dtype)

    def _apply(self, fn, recurse=True):
        self.dtype = fn(torch.empty(0, dtype=self.dtype, device=self.weight.device)).dtype
        return super()._apply(fn, recurse)

    def extra_repr(self) -> str:
        return f"{self.num_embeddings}, {self.embedding_dim}, scheme={self.scheme}"
