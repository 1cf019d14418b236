"""Floor 4. A product bound to its weight: arguments like those of an earlier call are known to be right, and need no plan.

Every check of a product looks at dtypes, shapes, strides, devices, the environment, and which operands are there. These are the key under
which a weight keeps what was made for them, so that to find an entry is to know that every check would pass again. Entries live on the
QTensor (``q._products``) and die with it; they hold no tensor of the weight, so there is no address that could outlive its memory.
"""
from __future__ import annotations

import threading
from collections.abc import Callable

import torch
from torch.autograd import forward_ad

from ..backend import environment, reshaped
from ..kernels.bound import BoundMatmul
from ..qtensor import QTensor

# Products kept per weight: one per number of tokens and epilogue. An entry takes about 3 KB.
LIMIT = 64
_PLAIN = (torch.Tensor, torch.nn.Parameter)
_lock = threading.RLock()
_variable, _backend = environment()
_dispatch_modes = torch._C._len_torch_dispatch_stack
_TensorGuards = getattr(torch._C._dynamo.guards, "TensorGuards", None)


def find(owner, choose: Callable | None, x: torch.Tensor, q: QTensor, bias: torch.Tensor | None, residual: torch.Tensor | None,
         workspace: torch.Tensor | None = None) -> Product | None:  # fmt: skip
    """The product of these arguments, from the weight where it keeps one like it.

    None where a tensor is more than a plain one, or operators are watched or replaced (dispatch modes, torch.func): such a call must not
    be remembered.

    Args:
        owner: tells apart who asks: the name of an activation, or a plan's own ``choose``.
        choose: (owner, x, q, bias, residual) -> the plan, after every check. None: look no further than the latest call of this kind.
        workspace: what :meth:`Product.run` will be given; the plan checks it, all but its address, which ``run`` looks at.
    """
    try:  # the latest of its kind; kinds are spelled out, since a key of several and a list of tensors take as long as the check
        latest = q._products[owner]
        if residual is None:
            if workspace is None:
                if bias is None:
                    check, backend, product = latest.plain
                    same = check(x)
                else:
                    check, backend, product = latest.bias
                    same = check(x, bias)
            elif bias is None:
                check, backend, product = latest.workspace
                same = check(x, workspace)
            else:
                check, backend, product = latest.bias_workspace
                same = check(x, bias, workspace)
        else:
            check, backend, product = latest.residual[bias is None, workspace is None]
            same = check(*[tensor for tensor in (x, bias, residual, workspace) if tensor is not None])
        # The check passes under some modes, make_fx's for one, and does not see tangents.
        if same and _variable(_backend) == backend and not _dispatch_modes() and forward_ad._current_level < 0:
            return product
    except (KeyError, AttributeError, TypeError):  # none yet, no tensor, no QTensor
        pass
    product = None if choose is None else _look_up(owner, choose, x, q, bias, residual)
    if product is not None:
        if workspace is not None:
            product.plan.check_workspace(workspace, x, q, bias, residual)
        q._products.setdefault(owner, Latest()).put(product, x, bias, residual, workspace)
    return product


def made(owner, choose: Callable, x, q, bias, residual, workspace=None) -> Product:
    """As :func:`find`, and nothing is kept."""
    product = Product(choose(owner, x, q, bias, residual), x, q, bias, residual)
    if workspace is not None:
        product.plan.check_workspace(workspace, x, q, bias, residual)
    return product


def _look_up(owner, choose, x, q, bias, residual) -> Product | None:
    tensors = [x, *(tensor for tensor in (bias, residual) if tensor is not None)]
    if not isinstance(q, QTensor) or not all(isinstance(tensor, torch.Tensor) for tensor in tensors):
        choose(owner, x, q, bias, residual)  # which refuses it
    if not all(map(is_plain, (*tensors, *q.flat()))) or is_watched():
        return None
    key = x.dtype, x.shape, x.is_contiguous() or x.stride(), x.device, _variable(_backend)
    if bias is not None or residual is not None:
        key = *key, _facts(bias), _facts(residual)
    if (product := q._products.get((owner, key))) is not None:
        return product
    with _lock:  # threads that ask for the same at once share one, which compiles and loads once
        product = q._products.get((owner, key))
        if product is None:
            product = Product(choose(owner, x, q, bias, residual), x, q, bias, residual)
            while len(q._products) >= LIMIT:
                del q._products[next(iter(q._products))]
            q._products[owner, key] = product
    return product


def is_watched() -> bool:
    """Whether a dispatch mode (FakeTensorMode, for one), a transform of torch.func, a tracer or forward-mode AD sees the operators that
    run now."""
    return (bool(_dispatch_modes()) or torch._C._functorch.peek_interpreter_stack() is not None
            or torch._C._dispatch_tls_is_dispatch_key_included(torch._C.DispatchKey.PreDispatch)
            or torch._C._get_tracing_state() is not None or forward_ad._current_level >= 0)  # fmt: skip


def is_plain(tensor) -> bool:
    """A tensor whose elements lie in memory as they are: no subclass, not nested or sparse, not negated when it is read, no zeros
    without memory, not wrapped by functionalization."""
    return (type(tensor) in _PLAIN and tensor.layout is torch.strided and not tensor.is_nested and not tensor.is_neg()
            and not tensor._is_zerotensor() and not torch._is_functional_tensor(tensor))  # fmt: skip


class Latest:
    """The product that was asked for last, by which tensors there were beside x: (check of all tensors, backend, product) each."""

    __slots__ = ("plain", "bias", "workspace", "bias_workspace", "residual")

    def __init__(self):
        self.residual = {}

    def put(self, product: Product, x, bias, residual, workspace) -> None:
        """Let the next call of this kind find the product without a key."""
        tensors = [tensor for tensor in (x, bias, residual, workspace) if tensor is not None]
        entry = _like(*tensors), _variable(_backend), product
        if residual is not None:
            self.residual[bias is None, workspace is None] = entry
        else:
            there = [name for name, tensor in (("bias", bias), ("workspace", workspace)) if tensor is not None]
            setattr(self, "_".join(there) or "plain", entry)


def _unlike(*_) -> bool:
    return False


def _like(*tensors: torch.Tensor) -> Callable:
    """A check in C++ whether others have the same types, dispatch keys (modes among them), dtypes, devices, sizes, strides and
    requires_grad as these: torch.compile's own. Where torch has none, or a subclass is among them, nothing is like them."""
    if _TensorGuards is None or any(type(tensor) not in _PLAIN for tensor in tensors):
        return _unlike
    sizes, strides = ([[*size] for size in each] for each in ([t.shape for t in tensors], [t.stride() for t in tensors]))
    return _TensorGuards(*tensors, dynamic_dims_sizes=sizes, dynamic_dims_strides=strides).check


def _facts(tensor: torch.Tensor | None) -> tuple | None:
    if tensor is None:
        return None
    return tensor.dtype, tensor.shape, tensor.is_contiguous() or tensor.stride(), tensor.device


class Product:
    """A plan for one weight and one form of the other arguments."""

    __slots__ = ("plan", "kernel", "run", "gathered", "shape")

    def __init__(self, plan, x: torch.Tensor, q: QTensor, bias: torch.Tensor | None, residual: torch.Tensor | None):
        """The arguments must be what the plan is for."""
        desc, entry = plan.desc, plan.kernel
        self.plan, self.shape = plan, (*x.shape[:-1], desc.features)
        self.gathered = desc.act_order and not entry.act_order(desc)  # the columns of x are put in the packed order first
        matrix, added = self._matrices(x, q, residual)
        self.kernel = entry.product(desc, plan.config, matrix, q, bias, added, self.shape)
        # A view has the address of what it views: a bound kernel, which has its strides already, can do without it.
        views = all(a is None or a.data_ptr() == b.data_ptr() for a, b in ((x, matrix), (residual, added)))
        bound = isinstance(self.kernel, BoundMatmul)
        self.run = self.kernel.run if bound and views and not self.gathered else self._run

    def _run(self, x: torch.Tensor, q: QTensor, bias: torch.Tensor | None, residual: torch.Tensor | None,
             workspace: torch.Tensor | None = None) -> torch.Tensor:  # fmt: skip
        if workspace is not None:
            self.plan.check_workspace(workspace, x, q, bias, residual)
        matrix, added = self._matrices(x, q, residual)
        return reshaped(self.kernel.run(matrix, q, bias, added, workspace), self.shape)

    def prepare(self, x: torch.Tensor, q: QTensor, bias: torch.Tensor | None, residual: torch.Tensor | None) -> None:
        """Compile and load, launching nothing."""
        matrix, added = self._matrices(x, q, residual)
        self.kernel.prepare(matrix, q, bias, added)

    def _matrices(self, x: torch.Tensor, q: QTensor, residual: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor | None]:
        desc = self.plan.desc
        x = x.index_select(-1, q.column_order) if self.gathered else x
        return x.reshape(desc.m, desc.k), None if residual is None else residual.reshape(desc.m, desc.features)
