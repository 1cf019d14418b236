"""Floor 3. A fused matmul with everything bound but its tensors: what is left of a product once its form is known."""
from __future__ import annotations

from collections.abc import Callable

import torch

from ..qtensor import QTensor
from . import launcher as gpu
from .split_k import by_stream, partial_sums, reserve, scratch


class BoundMatmul:
    """``kernel`` for one weight and one form of x, bias and residual.

    Args:
        kernel: takes the tensors x, those of ``weight``, bias, residual, out, and with split-K partial sums and counters, in this order.
        grid: programs along its two axes.
        x: ``[M, K]`` of any strides; residual ``[M, N]`` of any strides; bias ``[N]``; None where absent.
        weight: what the kernel loads of the weight q, kept alive here; None where absent.
        shape: of the result; nothing is launched for an empty one.
        constants: the kernel's other arguments and launch options, but for those that follow from x, bias and residual. ``SPLIT_K`` among
            them marks a kernel with split-K.

    Attributes:
        run: ``(x, q, bias, residual, workspace=None)`` -> the product. ``workspace``: contiguous and large enough; None takes this
            stream's own.

    A call promises dtypes, shapes, strides and a device like those given here. It reads every address: a weight whose storage was replaced
    (``tensor.data = ...``) is multiplied as it is now.
    """

    __slots__ = ("run", "launcher", "_sums", "_like")

    def __init__(self, kernel, grid: tuple[int, int], x: torch.Tensor, q: QTensor, bias: torch.Tensor | None, residual: torch.Tensor | None,
                 *, weight: tuple[torch.Tensor | None, ...], shape: tuple[int, ...], constants: dict):  # fmt: skip
        (m, k), n, split = x.shape, q.shape[0], constants.get("SPLIT_K")
        self._sums = split * m * n if split and split > 1 else 0
        if 0 in shape:
            self.launcher, dtype, device = None, x.dtype, x.device
            self.run = lambda x, q, bias, residual, workspace=None: torch.empty(shape, dtype=dtype, device=device)
            return
        # What is not there has a step of None: a compiled kernel has no such argument, and every one costs a launch some nanoseconds.
        sizes = {"partial_size": m * n if self._sums else None} if split else {}
        added = (None, None) if residual is None else residual.stride()
        absent = (None, None) if split else ()
        self._like = weight, x.dtype, (torch.float32, torch.int32) if self._sums else absent
        self.launcher = gpu.Launcher(kernel, grid, self._tensors(x, bias, residual), {
            "M": m, "N": n, "K": k, "x_row": x.stride(0), "x_col": x.stride(1), "bias_step": None if bias is None else bias.stride(0),
            "residual_row": added[0], "residual_col": added[1],
            "enable_fp_fusion": True, **sizes, **constants,  # said aloud: the default is about to change in Triton
        })  # fmt: skip
        own = [*map(id, q.flat())]  # other tensors, such as a table of levels, stay where they are
        movable = [tensor.data_ptr for tensor in weight if id(tensor) in own]
        self.run = _runner(self.launcher, weight, movable, shape, x.dtype, x.device, self._sums, absent)

    def prepare(self, x: torch.Tensor, q: QTensor, bias: torch.Tensor | None, residual: torch.Tensor | None) -> None:
        """Compile and load for tensors like these, launching nothing."""
        if self.launcher is not None:
            if self._sums:
                reserve(x.device, self.launcher.device)
            self.launcher.prepare(*self._tensors(x, bias, residual))

    def _tensors(self, x, bias, residual) -> tuple:
        """The kernel's tensors, grouped as their addresses are; dtypes for those that a call allocates."""
        weight, out, split = self._like
        return x, weight, bias, residual, out, split


def _runner(launcher: gpu.Launcher, weight: tuple[torch.Tensor | None, ...], movable: list[Callable], shape: tuple[int, ...],
            dtype: torch.dtype, device: torch.device, sums: int, absent: tuple) -> Callable:  # fmt: skip
    """:attr:`BoundMatmul.run`. ``movable``: give the addresses that may be others tomorrow; ``absent``: partial sums without split-K.

    One function with everything at hand, since a call of another, or a look into an object, costs as much as reading an address.
    """
    index, kernel, grid, constants = launcher.device, launcher.kernel, launcher.grid, launcher.constants
    strides, empty = torch.empty(shape, device="meta").stride(), gpu.empty_strided(device)

    def through_jit(x, bias, residual, out, workspace):
        """``kernel[grid]`` inspects every argument, and takes any."""
        split = partial_sums(workspace, sums, grid[0], device) if sums else absent
        kernel[grid](x, *weight, bias, residual, out, *split, **constants)
        return out

    if index is None:
        return lambda x, q, bias, residual, workspace=None: through_jit(x, bias, residual, empty(shape, strides, dtype), workspace)

    get_device, raw_stream, streams = gpu.get_device, gpu.raw_stream, by_stream(index)
    enter, leave, settings, unaligned = gpu.ENTER_CALLS, gpu.EXIT_CALLS, gpu.SETTINGS, gpu.UNALIGNED
    hooks = getattr(kernel, "pre_run_hooks", ())  # whatever has none is not launched from here
    # Three are spelled out, since a step of a loop takes as long as an address; act-order has one more.
    first, second, third, *others = movable if len(movable) > 2 else [*movable, None, None][:3]
    addresses, first_at, second_at, third_at, others_at = (), None, None, None, []

    def look_again() -> int:
        """Read the weight's addresses, all of them or-ed; they are known from now on if they are aligned."""
        nonlocal addresses, first_at, second_at, third_at, others_at
        addresses = tuple(None if tensor is None else tensor.data_ptr() for tensor in weight)
        bits = 0
        for at in addresses:
            bits |= at or 0
        at, second_at, third_at, *others_at = (address and address() for address in (first, second, third, *others))
        first_at = None if bits & unaligned else at  # last, and at once: another thread may be comparing
        return bits

    def run(x, q, bias, residual, workspace=None):
        elsewhere = None
        if get_device() != index:
            elsewhere = torch.cuda.device(index)  # which leaves no context on a device that had none, as set_device would
            elsewhere.__enter__()
        try:
            out = empty(shape, strides, dtype)
            bits = x_at = x.data_ptr()
            bias_at = residual_at = None
            if bias is not None:
                bias_at = bias.data_ptr()
                bits |= bias_at
            if residual is not None:
                residual_at = residual.data_ptr()
                bits |= residual_at
            stream, split = raw_stream(index), absent
            if sums:
                own = streams.get(stream)
                if stream or own is None or workspace is None and own.sums < sums:
                    own = scratch(device, index, stream, sums if workspace is None else 0, grid[0])
                if workspace is None:
                    split = own.addresses
                else:
                    sums_at = workspace.data_ptr()
                    bits |= sums_at
                    split = sums_at, own.addresses[1]
            if (first() != first_at or second is not None and second() != second_at or third is not None and third() != third_at
                    or others and [address() for address in others] != others_at):  # fmt: skip
                bits |= look_again()
            ready = launcher.ready or launcher.prepare()
            if not ready or bits & unaligned or enter or leave or hooks or settings and gpu.watched():
                return through_jit(x, bias, residual, out, workspace)
            launch, gx, gy, gz, function, cooperative, pdl, metadata, annotations, signature, tail = ready
            tensors = x_at, addresses, bias_at, residual_at, out.data_ptr(), split
            if annotations is None:  # Triton 3.6
                launch(gx, gy, gz, stream, function, cooperative, pdl, None, None, metadata, None, None, None, tensors, tail)
            else:
                launch(gx, gy, gz, stream, function, cooperative, pdl, metadata, None, None, None, None, None, annotations, signature,
                       (tensors, tail))  # fmt: skip
            return out
        finally:
            if elsewhere is not None:
                elsewhere.__exit__(None, None, None)

    return run
