"""Floor 6. Quantization-aware training: Linear layers that compute with their weight as it will be once it is quantized."""
from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
import torch.nn.functional as F

from ..checkpoints.rules import Rules
from ..errors import InvalidProblemError, TritonQError, UnsupportedError
from ..fake_quantize_op import fake_quantize, quantize_for_training, refuses_learned_scale
from ..ops import quantize
from ..qtensor import QTensor
from ..scheme import Scheme
from .convert import Decided, QuantizationReport, decide, parameters_of, places, put
from .modules import QuantLinear


class FakeQuantLinear(torch.nn.Linear):
    """``x @ w_hat.T + bias`` where ``w_hat = dequantize(quantize(weight, scheme))``; ``weight`` is an ordinary Parameter and is trained.

    Args:
        linear: whose weight and bias are taken over, the same Parameters.
        scheme: of any kind.
        learn_scale: make the scales a Parameter ``weight_scale`` (float32, one per group), begun as quantize would take them from the
            weight, and learned with it; zero points stay as they were then, in the buffer ``weight_zero_point``. Without it the scales
            follow the weight.

    Gradients are straight-through (see :func:`tritonq.fake_quantize_op.fake_quantize`). :meth:`to_quant_linear` gives a layer
    whose decoded weight is ``w_hat``, bit for bit.

    Raises:
        UnsupportedError: ``learn_scale`` with a scheme that stores scales as powers of two, in 8 bits or in two levels.

    Example:
        >>> import torch, tritonq
        >>> layer = tritonq.nn.FakeQuantLinear(torch.nn.Linear(128, 64), "int4.g32", learn_scale=True)
        >>> layer(torch.randn(2, 128)).sum().backward()
        >>> layer.weight.grad.shape, layer.weight_scale.grad.shape
        (torch.Size([64, 128]), torch.Size([64, 4]))
        >>> torch.equal(layer.to_quant_linear().qtensor.dequantize(), layer.fake_weight())
        True
    """

    def __init__(self, linear: torch.nn.Linear, scheme: str | Scheme, *, learn_scale: bool = False):
        if not isinstance(linear, torch.nn.Linear):
            raise InvalidProblemError(f"FakeQuantLinear takes a torch.nn.Linear, got {type(linear).__name__}")
        super().__init__(linear.in_features, linear.out_features, linear.bias is not None, device="meta", dtype=linear.weight.dtype)
        self.weight, self.bias = linear.weight, linear.bias
        self.scheme = Scheme.parse(scheme)
        self.train(linear.training)
        self.register_parameter("weight_scale", None)
        self.register_buffer("weight_zero_point", None)
        if learn_scale:
            if reason := refuses_learned_scale(self.scheme, self.weight.dtype):
                raise UnsupportedError(reason)
            q = quantize(self.weight.detach(), self.scheme)
            self.weight_scale = torch.nn.Parameter(q.scale.float())
            self.weight_zero_point = q.zero_point

    def fake_weight(self) -> torch.Tensor:
        """``[N, K]``: the weight as it is once quantized, differentiable."""
        return fake_quantize(self.weight, self.scheme, self.weight_scale, self.weight_zero_point)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, self.fake_weight(), self.bias)

    def qtensor(self) -> QTensor:
        """The quantized weight as of now."""
        return quantize_for_training(self.weight, self.scheme, self.weight_scale, self.weight_zero_point)

    def to_quant_linear(self, layout: str = "auto") -> QuantLinear:
        """The quantized layer, with the same bias."""
        return QuantLinear(self.qtensor(), self.bias, layout).train(self.training)

    def _apply(self, fn, recurse=True):
        zero_point = self.weight_zero_point
        super()._apply(fn, recurse)
        if zero_point is not None:  # of the dtype that the scheme has for the weight's, which a cast of all tensors does not know
            self.weight_zero_point = zero_point.to(self.weight_zero_point.device, self.scheme.zero_dtype(self.weight.dtype))
        return self

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, scheme={self.scheme}{', learned scale' * (self.weight_scale is not None)}"


def prepare_qat_(model: torch.nn.Module, scheme: str | Scheme | dict[str, str | Scheme],
                 filter_fn: Callable[[torch.nn.Module, str], bool] | None = None, *, include: Iterable[str] = (),
                 exclude: Iterable[str] = (), learn_scale: bool = False) -> QuantizationReport:  # fmt: skip
    """Put :class:`FakeQuantLinear` in place of a model's Linear layers: those that :func:`tritonq.quantize_` would quantize.

    Args:
        model, scheme, filter_fn, include, exclude: as for :func:`tritonq.quantize_`. Embeddings and experts stay as they are.
        learn_scale: see :class:`FakeQuantLinear`.

    Returns:
        QuantizationReport: sizes after are those of the quantized weights that :func:`convert_qat_` makes.

    Example:
        >>> import torch, tritonq
        >>> model = torch.nn.Sequential(torch.nn.Linear(128, 64), torch.nn.ReLU(), torch.nn.Linear(64, 8))
        >>> report = tritonq.nn.prepare_qat_(model, "int4.g32")
        >>> tritonq.nn.convert_qat_(model)
        2
        >>> model[2]
        QuantLinear(in_features=64, out_features=8, bias=True, scheme=int4.g32, layout=row)
    """
    if not isinstance(model, torch.nn.Module) or type(model) is torch.nn.Linear:
        raise InvalidProblemError(f"prepare_qat_ takes a model that holds Linear layers, got {type(model).__name__}")
    found, decided = parameters_of(model), []
    for one, (chosen, reason) in zip(found, decide(found, Rules.parse(scheme, include, exclude), filter_fn), strict=True):
        after = one.tensor.nbytes
        if chosen is not None and type(one.module) is not torch.nn.Linear:
            chosen, reason = None, f"held by {type(one.module).__name__}; only Linear layers are trained this way"
        if chosen is not None:
            try:
                layer = FakeQuantLinear(one.module, chosen, learn_scale=learn_scale)
            except TritonQError as error:
                raise type(error)(f"{one.name}: {error}") from error
            one.replace(model, layer)
            after = round(layer.scheme.bits_per_weight(*one.tensor.shape, one.tensor.dtype) * one.tensor.numel() / 8)
        decided.append(Decided.of(one, chosen, reason, after))
    return QuantizationReport(tuple(decided))


def convert_qat_(model: torch.nn.Module, layout: str = "auto") -> int:
    """Turn every :class:`FakeQuantLinear` of ``model`` into the QuantLinear of its weight, one after another; returns how many."""
    if isinstance(model, FakeQuantLinear):
        raise InvalidProblemError("the model is itself a FakeQuantLinear, which cannot be replaced in place; use to_quant_linear")
    layers = {module: paths for module, paths in places(model).items() if isinstance(module, FakeQuantLinear)}
    for module, paths in layers.items():
        put(model, paths, module, module.to_quant_linear(layout))
    return len(layers)
