"""Floor 3. A fused matmul with everything bound but its tensors: what is left of a product once its form is known."""
from __future__ import annotations

from functools import reduce
from operator import or_

import torch

from ..qtensor import QTensor
from . import launcher as gpu
from .split_k import reserve, scratch

_address = torch.Tensor.data_ptr


class BoundMatmul:
    """``kernel`` for one weight and one form of x, bias and residual.

    Args:
        kernel: takes the tensors x, those of ``weight``, bias, residual, out, and with split-K partial sums and counters, in this order.
        grid: programs along its two axes.
        x: ``[M, K]`` of any strides; residual ``[M, N]`` of any strides; bias ``[N]``; None where absent.
        weight: what the kernel loads of the weight q: tensors that q holds, which are kept alive here, or None.
        shape: of the result; nothing is launched for an empty one.
        constants: the kernel's other arguments and launch options, but for those that follow from x, bias and residual. ``SPLIT_K`` among
            them marks a kernel with split-K.

    A call promises dtypes, shapes, strides and a device like those given here. It reads every address: a weight whose storage was replaced
    (``tensor.data = ...``) is multiplied as it is now.
    """

    __slots__ = (
        "launcher", "weight", "shape", "strides", "dtype", "device", "sums", "_empty", "_unsplit", "_present", "_known", "_weight_at",
    )  # fmt: skip

    def __init__(self, kernel, grid: tuple[int, int], x: torch.Tensor, q: QTensor, bias: torch.Tensor | None, residual: torch.Tensor | None,
                 *, weight: tuple[torch.Tensor | None, ...], shape: tuple[int, ...], constants: dict):  # fmt: skip
        (m, k), n = x.shape, q.shape[0]
        self.weight, self.shape, self.dtype, self.device = weight, shape, x.dtype, x.device
        self.strides, self._empty = torch.empty(shape, device="meta").stride(), gpu.empty_strided(x.device)
        self._present, self._known, self._weight_at = [tensor for tensor in weight if tensor is not None], None, ()
        self.sums, self._unsplit, sizes = 0, (), {}
        if split := constants.get("SPLIT_K"):
            self.sums, self._unsplit, sizes = split * m * n if split > 1 else 0, (None, None), {"partial_size": m * n}
        self.launcher = None if 0 in shape else gpu.Launcher(kernel, grid, self._like(x, bias, residual), {
            "M": m, "N": n, "K": k, "x_row": x.stride(0), "x_col": x.stride(1), "bias_step": 0 if bias is None else bias.stride(0),
            "residual_row": 0 if residual is None else residual.stride(0), "residual_col": 0 if residual is None else residual.stride(1),
            "enable_fp_fusion": True, **sizes, **constants,  # said aloud: the default is about to change in Triton
        })  # fmt: skip

    def run(self, x: torch.Tensor, q: QTensor, bias: torch.Tensor | None, residual: torch.Tensor | None,
            workspace: torch.Tensor | None = None) -> torch.Tensor:  # fmt: skip
        """The product with the bound weight. ``workspace``: contiguous, aligned and large enough; None takes this stream's own."""
        launcher = self.launcher
        if launcher is None:
            return torch.empty(self.shape, dtype=self.dtype, device=self.device)
        index = launcher.device
        if index is not None and gpu._get_device() != index:
            with torch.cuda.device(index):
                return self.run(x, q, bias, residual, workspace)
        out, split, split_at = self._empty(self.shape, self.strides, self.dtype), self._unsplit, self._unsplit
        if self.sums:
            own = scratch(self.device, index, 0 if workspace is not None else self.sums, launcher.grid[0])
            split, split_at = own.tensors, own.addresses
            if workspace is not None:
                split, split_at = (workspace, split[1]), (workspace.data_ptr(), split_at[1])
        bits = x_at = x.data_ptr()
        bias_at = residual_at = None
        if bias is not None:
            bias_at = bias.data_ptr()
            bits |= bias_at
        if residual is not None:
            residual_at = residual.data_ptr()
            bits |= residual_at
        if [*map(_address, self._present)] != self._known:
            bits |= self._look_again()
        # New memory is aligned, and a workspace that is not was refused.
        if index is None or not launcher.launch(bits, (x_at, *self._weight_at, bias_at, residual_at, out.data_ptr(), *split_at)):
            if workspace is not None and self.sums:
                split = workspace.view(-1).view(torch.uint8)[: 4 * self.sums].view(torch.float32), split[1]
            launcher.kernel[launcher.grid](x, *self.weight, bias, residual, out, *split, **launcher.constants)
        return out

    def prepare(self, x: torch.Tensor, q: QTensor, bias: torch.Tensor | None, residual: torch.Tensor | None) -> None:
        """Compile and load for tensors like these, launching nothing."""
        if self.launcher is not None:
            if self.sums:
                reserve(self.device, self.launcher.device)
            self.launcher.prepare(*self._like(x, bias, residual))

    def _look_again(self) -> int:
        """Read the weight's addresses; they are known from now on if they are aligned. Returns them or-ed."""
        self._weight_at = tuple(None if tensor is None else tensor.data_ptr() for tensor in self.weight)
        known = [at for at in self._weight_at if at is not None]
        bits = reduce(or_, known)
        self._known = None if bits & gpu.ALIGNED else known
        return bits

    def _like(self, x, bias, residual) -> tuple:
        """The kernel's tensors; dtypes for those that a call allocates."""
        split = (torch.float32, torch.int32) if self.sums else self._unsplit
        return (x, *self.weight, bias, residual, self.dtype, *split)
