"""Floor 4. A product bound to its weight: arguments like those of an earlier call are known to be right, and need no plan.

Every check of a product looks at dtypes, shapes, strides, devices, the environment, and which operands are there. These are the key under
which a weight keeps what was made for them, so that to find an entry is to know that every check would pass again. Entries live on the
QTensor (``q._products``) and die with it; they hold no tensor of the weight, so there is no address that could outlive its memory.
"""
from __future__ import annotations

import threading
from collections.abc import Callable

import torch

from ..backend import environment
from ..kernels.bound import BoundMatmul
from ..qtensor import QTensor

# Products kept per weight: one per number of tokens and epilogue. An entry takes about 3 KB.
LIMIT = 64
_PLAIN = (torch.Tensor, torch.nn.Parameter)
_NEVER = None, None
_lock = threading.RLock()
_variables, (_backend, _interpret) = environment()
_dispatch_modes = torch._C._len_torch_dispatch_stack


def find(owner, choose: Callable, x: torch.Tensor, q: QTensor, bias: torch.Tensor | None, residual: torch.Tensor | None) -> Product:
    """The product of these arguments, from the weight where it keeps one like it.

    Args:
        owner: tells apart who asks: the name of an activation, or the identity of a plan.
        choose: (owner, x, q, bias, residual) -> the plan, after every check.
    """
    key = None
    # Subclasses of Tensor, and everything while a dispatch mode is active, are judged every time.
    if type(x) in _PLAIN and not _dispatch_modes():
        try:
            key = x.dtype, x.shape, x.is_contiguous() or x.stride(), x.device, _variables(_backend), _variables(_interpret)
            if bias is not None or residual is not None:
                key = *key, _facts(bias), _facts(residual)
            latest, product = q._products.get(owner, _NEVER)
            if latest == key:
                return product
        except (AttributeError, RuntimeError):  # no tensor, no QTensor, a layout without strides
            key = None
    if key is not None and (product := q._products.get((owner, key))) is not None:
        q._products[owner] = key, product
        return product
    if key is None:
        return Product(choose(owner, x, q, bias, residual), x, q, bias, residual)
    with _lock:  # threads that ask for the same at once share one, which compiles and loads once
        product = q._products.get((owner, key))
        if product is None:
            product = Product(choose(owner, x, q, bias, residual), x, q, bias, residual)
            _keep(q._products, owner, key, product)
    return product


def _keep(products: dict, owner, key: tuple, product: Product) -> None:
    while len(products) >= LIMIT:
        del products[next(iter(products))]
    products[owner, key] = product
    products[owner] = key, product  # the latest, found without hashing what is in the key


def _facts(tensor: torch.Tensor | None) -> tuple | None:
    if tensor is None:
        return None
    return type(tensor) in _PLAIN or type(tensor), tensor.dtype, tensor.shape, tensor.is_contiguous() or tensor.stride(), tensor.device


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
        matrix, added = self._matrices(x, q, residual)
        return self.kernel.run(matrix, q, bias, added, workspace).view(self.shape)

    def prepare(self, x: torch.Tensor, q: QTensor, bias: torch.Tensor | None, residual: torch.Tensor | None) -> None:
        """Compile and load, launching nothing."""
        matrix, added = self._matrices(x, q, residual)
        self.kernel.prepare(matrix, q, bias, added)

    def _matrices(self, x: torch.Tensor, q: QTensor, residual: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor | None]:
        desc = self.plan.desc
        x = x.index_select(-1, q.column_order) if self.gathered else x
        return x.reshape(desc.m, desc.k), None if residual is None else residual.reshape(desc.m, desc.features)
