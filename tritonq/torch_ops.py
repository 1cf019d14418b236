"""Floor 5. The verbs as operators of PyTorch, ``torch.ops.tritonq.*``: for torch.compile, torch.export and autograd.

An operator takes tensors and plain values, so a weight goes in as ``*q.operands``. Keep ``q`` alive meanwhile, and what was prepared for it
is found again, because that lives on it; a weight of which only the tensors are left is put together anew in every call. Defined with the
low-level ``torch.library.Library``, whose calls cost less than those of ``custom_op``. The fakes give shape, dtype and strides of a result
without a weight, also for a symbolic number of rows.
"""
from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from operator import is_not

import torch
from torch.autograd import forward_ad
from torch.utils.flop_counter import register_flop_formula

from .backend import reshaped
from .errors import InvalidProblemError, UnsupportedError
from .plans.bound import find, made
from .plans.descriptors import DequantizeDesc, MatmulBackwardDesc, MatmulDesc, QuantizeDesc, features
from .plans.select import Plan, select
from .qstack import QStack
from .qtensor import WEIGHT, QTensor, expected_flat, find_of_packed, flat_operands, parse_form
from .reference.matrix import activation_backward

library = torch.library.Library("tritonq", "DEF")
_ops = torch.ops.tritonq
_is_grad_enabled, _any_requires_grad = torch.is_grad_enabled, torch._C._any_requires_grad
_is_profiled, _has_function_modes = torch._C._autograd._profiler_enabled, torch._C._is_torch_function_mode_enabled


def choose_product(activation: str | None, x, q, bias, residual) -> Plan:
    """The plan of ``activation(x @ w_hat.T + bias) + residual``."""
    return select(MatmulDesc.of(x, q, bias, activation, residual))


def _weight(packed, scale, zero_point, others, form) -> QTensor:
    return QTensor.from_flat(flat_operands(packed, scale, zero_point, others), form)


def _kept_weight(packed, scale, zero_point, others, form) -> QTensor | None:
    """The weight whose operands these are, the same objects, if somebody keeps one."""
    alive = find_of_packed(id(packed))
    q = None if alive is None else alive()
    if q is not None:  # compared by hand, since a key of form and tensors would take longer than all this
        _, own_scale, own_zero_point, own_others, own_form = q.operands
        if (own_scale is not scale or own_zero_point is not zero_point or own_form != form
                or own_others is not others and not _same(own_others, others)):  # fmt: skip
            return None
    return q


def _same(some: Sequence | None, others: Sequence | None) -> bool:
    return some is not None and type(others) in (list, tuple) and len(some) == len(others) and not any(map(is_not, some, others))


def _kept_product(choose, x, packed, scale, zero_point, others, form, bias=None, activation=None, residual=None):
    """The product of a weight that is kept and plain tensors, where nobody watches operators; else None. ``choose``: see :func:`find`."""
    q = _kept_weight(packed, scale, zero_point, others, form)
    product = None if q is None else find(activation, choose, x, q, bias, residual)
    return None if product is None else product.run(x, q, bias, residual)


def _matmul(x, packed, scale, zero_point, others, form, bias=None, activation=None, residual=None):
    result = _kept_product(choose_product, x, packed, scale, zero_point, others, form, bias, activation, residual)
    if result is not None:
        return result
    weight = packed, scale, zero_point, others, form
    q = _kept_weight(*weight) or _weight(*weight)
    return made(activation, choose_product, x, q, bias, residual).run(x, q, bias, residual)


def _matmul_fake(x, packed, scale, zero_point, others, form, bias=None, activation=None, residual=None):
    n, k = parse_form(form)[1]
    _expect_last(x, k, "x", form)
    return x.new_empty((*x.shape[:-1], features(n, activation)))


def _matmul_dx(dy, *weight):
    q = _weight(*weight)
    return select(MatmulBackwardDesc.of(dy, q)).run(dy, q)


def _matmul_dx_fake(dy, packed, scale, zero_point, others, form):
    n, k = parse_form(form)[1]
    _expect_last(dy, n, "dy", form)
    return dy.new_empty((*dy.shape[:-1], k))


def _dequantize(packed, scale, zero_point, others, form, dtype=None):
    q = _weight(packed, scale, zero_point, others, form)
    return select(DequantizeDesc.of(q, dtype)).run(q)


def _dequantize_fake(packed, scale, zero_point, others, form, dtype=None):
    _, shape, stored, _, _ = parse_form(form)
    return packed.new_empty(shape, dtype=dtype or stored)


def _embedding(ids, *weight):
    rows = _weight(*weight).rows(ids.reshape(-1))
    return reshaped(select(DequantizeDesc.of(rows)).run(rows), (*ids.shape, rows.shape[1]))


def _embedding_fake(ids, packed, scale, zero_point, others, form):
    _, (_, k), dtype, _, _ = parse_form(form)
    return packed.new_empty((*ids.shape, k), dtype=dtype)


def _quantize(x, scheme, layout="row"):
    return select(QuantizeDesc.of(x, scheme, layout)).run(x.detach()).flat()


def _quantize_fake(x, scheme, layout="row"):
    desc = QuantizeDesc.of(x, scheme, layout)
    return [x.new_empty(shape, dtype=dtype) for shape, dtype in expected_flat(desc.scheme, (desc.n, desc.k), desc.dtype, layout).values()]


def _by_expert(rows, stack, ends, columns, run):
    """``run(rows of the expert, its weight)`` for each expert that has rows, one after another; rows beyond the last end become zero."""
    if rows.dim() != 2 or ends.dtype != torch.int32 or tuple(ends.shape) != (len(stack),):
        got = f"{list(rows.shape)} and {ends.dtype} {list(ends.shape)}"
        raise InvalidProblemError(f"a grouped product takes rows [T, features] and ends int32 [{len(stack)}], got {got}")
    stops = ends.tolist()
    if any(stop < start for start, stop in zip([0, *stops], [*stops, rows.shape[0]])):
        raise InvalidProblemError(f"ends must rise from 0 to at most the {rows.shape[0]} rows, got {stops}"[:300])
    out, start = rows.new_empty(rows.shape[0], columns), 0
    for q, stop in zip(stack, stops):
        if stop > start:
            out[start:stop] = run(rows[start:stop], q)
        start = stop
    if not start:  # arguments that do not fit are refused also where no expert has rows
        run(rows[:0], stack[0])
    out[start:] = 0
    return out


def _stack(packed, scale, zero_point, others, form) -> QStack:
    return QStack.from_flat(flat_operands(packed, scale, zero_point, others), form)


def _grouped_matmul(x, packed, scale, zero_point, others, form, ends, activation=None):
    def run(rows, q):
        arguments = activation, choose_product, rows, q, None, None
        return (find(*arguments) or made(*arguments)).run(rows, q, None, None)

    stack = _stack(packed, scale, zero_point, others, form)
    return _by_expert(x, stack, ends, features(stack.shape[1], activation), run)


def _grouped_matmul_fake(x, packed, scale, zero_point, others, form, ends, activation=None):
    n, k = parse_form(form)[1]
    _expect_last(x, k, "x", form)
    return x.new_empty((x.shape[0], features(n, activation)))


def _grouped_matmul_dx(dy, packed, scale, zero_point, others, form, ends):
    stack = _stack(packed, scale, zero_point, others, form)
    return _by_expert(dy, stack, ends, stack.shape[2], lambda rows, q: select(MatmulBackwardDesc.of(rows, q)).run(rows, q))


def _expect_last(tensor, size, name, form):
    if tensor.dim() < 1 or tensor.shape[-1] != size:
        raise InvalidProblemError(f"{name} has shape {tuple(tensor.shape)}; its last dimension must be {size} for a weight {form!r}")


_NONE = (None,) * 5  # the gradients of a weight's operands


def _keep(ctx, inputs, *more) -> None:
    """Save the packed weight of these inputs, and more tensors or None."""
    _, packed, scale, zero_point, others, ctx.form, *_ = inputs
    ctx.others = None if others is None else len(others)
    ctx.save_for_backward(packed, scale, zero_point, *(others or ()), *more)


def _kept(ctx) -> tuple[tuple, list[torch.Tensor | None]]:
    """The weight's operands, and what else was saved."""
    packed, scale, zero_point, *rest = ctx.saved_tensors
    number = ctx.others or 0
    return (packed, scale, zero_point, None if ctx.others is None else rest[:number], ctx.form), rest[number:]


def _keep_for_backward(ctx, inputs, output):
    """The packed weight alone; x and bias where an activation's argument must be computed again."""
    x, packed, scale, zero_point, others, form, bias, ctx.activation, residual = inputs
    if any(tensor.requires_grad for tensor in flat_operands(packed, scale, zero_point, others)):
        raise InvalidProblemError(f"the tensors of a quantized weight ({form}) have no gradients; train adapters or FakeQuantLinear")
    _keep(ctx, inputs, *((x, bias) if ctx.activation is not None else (None, None)))
    ctx.bias_dtype, ctx.residual_dtype = (None if tensor is None else tensor.dtype for tensor in (bias, residual))


def _matmul_backward(ctx, grad):
    weight, (x, bias) = _kept(ctx)
    needs = ctx.needs_input_grad
    scheme, (n, _), _, _, _ = parse_form(ctx.form)
    compute = scheme.decode_dtype(grad.dtype)
    needs_x, needs_bias, needs_residual = needs[0], needs[6], needs[8]
    d_sum = grad
    if ctx.activation is not None and (needs_x or needs_bias):
        # What the forward had in float32 may be beyond x's dtype, where a derivative would be NaN.
        limit = torch.finfo(x.dtype)
        before = _ops.matmul(x, *weight, bias).clamp(limit.min, limit.max)
        d_sum = activation_backward(grad.to(compute), before.to(compute), ctx.activation)
    d_bias = d_sum.reshape(-1, n).sum(0, dtype=compute).to(ctx.bias_dtype) if needs_bias else None
    d_x = _ops.matmul_dx(d_sum.to(grad.dtype), *weight) if needs_x else None
    d_residual = grad.to(ctx.residual_dtype) if needs_residual else None
    return d_x, *_NONE, d_bias, None, d_residual


def _keep_for_grouped_backward(ctx, inputs, output):
    """As for ``matmul``."""
    x, *_, ends, ctx.activation = inputs
    _keep(ctx, inputs, ends, x if ctx.activation is not None else None)


def _grouped_backward(ctx, grad):
    weight, (ends, x) = _kept(ctx)
    d_sum = grad
    if ctx.activation is not None:
        compute, limit = parse_form(ctx.form)[0].decode_dtype(grad.dtype), torch.finfo(x.dtype)
        before = _ops.grouped_matmul(x, *weight, ends).clamp(limit.min, limit.max)
        d_sum = activation_backward(grad.to(compute), before.to(compute), ctx.activation).to(grad.dtype)
    return _ops.grouped_matmul_dx(d_sum, *weight, ends), *_NONE, None, None


def _matmul_dx_backward(ctx, grad):
    weight, _ = _kept(ctx)
    return _ops.matmul(grad, *weight), *_NONE


def define(schema: str, implementation, fake) -> None:
    """One operator of ``torch.ops.tritonq`` for every device, and what it gives without data."""
    name = schema.partition("(")[0]
    tags = (torch.Tag.pt2_compliant_tag, torch.Tag.needs_fixed_stride_order)
    library.define(schema, tags=tags)
    library.impl(name, implementation, "CompositeExplicitAutograd")
    torch.library.register_fake(f"tritonq::{name}", fake, lib=library)


def _refuse_tangents(name: str, arguments: tuple) -> None:
    for argument in arguments:
        if isinstance(argument, torch.Tensor) and forward_ad.unpack_dual(argument).tangent is not None:
            rule = "has gradients in reverse mode alone, and an argument has a tangent of forward mode (torch.func.jvp, dual_level)"
            raise UnsupportedError(f"torch.ops.tritonq.{name} {rule}; use torch.autograd, or dequantize the weight")


def differentiable(name: str, keep, backward, plain=None) -> None:
    """Gradients for an operator of ``torch.ops.tritonq``, as ``torch.library.register_autograd`` gives them, for less.

    That one dispatches every call a second time, whether or not gradients are wanted: with a kernel that does nothing 9.5 us under
    ``torch.no_grad``, where an operator without gradients takes 3.1 (torch 2.13, fastest of 21 rounds).

    Args:
        keep: (ctx, inputs, output); all inputs, those that have their defaults too.
        backward: (ctx, grad) -> a gradient or None for each input.
        plain: takes the operator's arguments -> a result, or None; tried where no gradient is wanted, before a further dispatch.
    """
    operator = getattr(_ops, name).default
    defaults = [argument.default_value for argument in operator._schema.arguments]

    def below(*arguments):
        with torch._C._AutoDispatchBelowAutograd():
            return operator(*arguments)

    class Gradients(torch.autograd.Function):
        @staticmethod
        def forward(ctx, *inputs):
            output = below(*inputs)
            keep(ctx, inputs, output)
            return output

    def either(*arguments):  # without those at the end that equal their defaults
        if forward_ad._current_level >= 0:
            _refuse_tangents(name, arguments)
        if _is_grad_enabled() and _any_requires_grad(*arguments):
            return Gradients.apply(*arguments, *defaults[len(arguments) :])
        result = None if plain is None else plain(*arguments)
        return below(*arguments) if result is None else result

    Gradients.backward = staticmethod(backward)
    library.impl(name, either, "Autograd")


def straight(name: str, warm) -> None:
    """Let calls of an operator from Python, those in compiled graphs among them, try ``warm`` before PyTorch's dispatcher, which takes
    longer than all else in a warm call (docs/launch.md).

    The dispatcher gets what ``warm`` does not know, arguments by name, calls that want gradients, and all calls under a profiler or a mode
    of ``__torch_function__``.
    The operator's two Python objects are given a class with a call of its own, as PyTorch has one for operators on script objects;
    what they wrap, schema and kernels, stays as it is.

    Args:
        warm: takes the operator's arguments in their order -> a result, or None for what the dispatcher is to do.
    """
    packet = getattr(_ops, name)
    arguments = packet.default._schema.arguments
    fewest, most = sum(not argument.has_default_value() for argument in arguments), len(arguments)

    def call(self, /, *arguments, **named):
        if (named or not fewest <= len(arguments) <= most or _is_profiled() or _has_function_modes()
                or _is_grad_enabled() and _any_requires_grad(*arguments)):  # fmt: skip
            return self._op(*arguments, **named)
        result = warm(*arguments)
        return self._op(*arguments) if result is None else result

    for operator in (packet, packet.default):
        parent = type(operator)
        operator.__class__ = type(parent.__name__, (parent,), {"__call__": call})


define(f"matmul(Tensor x, {WEIGHT}, Tensor? bias=None, str? activation=None, Tensor? residual=None) -> Tensor",
       _matmul, _matmul_fake)  # fmt: skip
define(f"matmul_dx(Tensor dy, {WEIGHT}) -> Tensor", _matmul_dx, _matmul_dx_fake)
define(f"grouped_matmul(Tensor x, {WEIGHT}, Tensor ends, str? activation=None) -> Tensor", _grouped_matmul, _grouped_matmul_fake)
define(f"grouped_matmul_dx(Tensor dy, {WEIGHT}, Tensor ends) -> Tensor",
        _grouped_matmul_dx, lambda dy, *weight_and_ends: _matmul_dx_fake(dy, *weight_and_ends[:-1]))  # fmt: skip
define(f"dequantize({WEIGHT}, ScalarType? dtype=None) -> Tensor", _dequantize, _dequantize_fake)
define(f"embedding(Tensor ids, {WEIGHT}) -> Tensor", _embedding, _embedding_fake)
define("quantize(Tensor x, str scheme, str layout='row') -> Tensor[]", _quantize, _quantize_fake)
differentiable("matmul", _keep_for_backward, _matmul_backward, partial(_kept_product, choose_product))
straight("matmul", partial(_kept_product, None))
differentiable("grouped_matmul", _keep_for_grouped_backward, _grouped_backward)
differentiable("matmul_dx", lambda ctx, inputs, output: _keep(ctx, inputs), _matmul_dx_backward)


@register_flop_formula([_ops.matmul, _ops.matmul_dx, _ops.grouped_matmul])
def _flops(x_shape, packed_shape, scale_shape, zero_point_shape, others_shapes, form, *_, **__) -> int:
    """Of the product alone, as torch counts those of a Linear."""
    n, k = parse_form(form)[1][-2:]
    return 2 * math.prod(x_shape[:-1]) * n * k
