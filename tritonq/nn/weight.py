"""Floor 6. A module that owns one quantized weight: its tensors as buffers, moved without a cast, saved in the canonical layout."""
from __future__ import annotations

from dataclasses import replace

import torch

from ..checkpoints.native import Record, from_tensors, stored_names, to_tensors
from ..errors import InvalidProblemError, TritonQError
from ..layouts import LAYOUTS
from ..plans.core import Target
from ..qtensor import QTensor, expected_flat
from ..scheme import Scheme

# Fields of a QTensor, in its order, -> buffers named as in a checkpoint. expanded_scale: dq schemes in a kernel's layout.
BUFFERS = {
    "packed": "weight", "stored_scale": "weight_scale", "zero_point": "weight_zero_point", "second_scale": "weight_second_scale",
    "scale_offset": "weight_scale_offset", "expanded_scale": "weight_expanded_scale", "column_order": "weight_column_order",
}  # fmt: skip


def best_layout(scheme: Scheme, dtype: torch.dtype, device: torch.device) -> str:
    """The layout whose product is made for a device: ``frag`` on CUDA from sm_80 on, ``ksplit`` on HIP; ``row`` where it cannot hold it."""
    if device.type != "cuda":
        return "row"
    arch = Target.of(device).arch
    wanted = "ksplit" if isinstance(arch, str) else "frag" if arch is not None and arch >= 80 else "row"
    return "row" if LAYOUTS[wanted].refuses(scheme, dtype) else wanted


class QuantizedWeight(torch.nn.Module):
    """What :class:`QuantLinear` and :class:`QuantEmbedding` share.

    Buffers ``weight`` (packed codes), ``weight_scale``, ``weight_zero_point`` and so on are the tensors of :attr:`qtensor`. ``to``,
    ``cuda``, ``half`` and the like move them and never change their dtypes. ``state_dict`` holds the layout ``row``, with the names and
    bytes of :func:`tritonq.save`; loading takes the same and turns it into this module's layout.
    """

    def __init__(self, q: QTensor, layout: str):
        super().__init__()
        if not isinstance(q, QTensor):
            raise InvalidProblemError(f"the weight must be a QTensor, got {type(q).__name__}; from_linear and from_embedding make one")
        if layout != "auto" and layout not in LAYOUTS:
            raise InvalidProblemError(f"layout must be 'auto' or one of {', '.join(map(repr, LAYOUTS))}, got {layout!r}")
        self.layout = layout
        for name in BUFFERS.values():
            self.register_buffer(name, None)
        self._hold(q)

    @property
    def qtensor(self) -> QTensor:
        """The weight. It can be replaced by another of the same shape, which is then held in this module's layout."""
        return self._q

    @qtensor.setter
    def qtensor(self, q: QTensor) -> None:
        if not isinstance(q, QTensor) or q.shape != self._q.shape:
            got = f"shape {q.shape}" if isinstance(q, QTensor) else type(q).__name__
            raise InvalidProblemError(f"the weight must be a QTensor of shape {self._q.shape}, got {got}")
        self._hold(q)

    @property
    def scheme(self) -> Scheme:
        return self._q.scheme

    def _hold(self, q: QTensor) -> None:
        if q.device.type != "meta":
            q = q.relayout(best_layout(q.scheme, q.dtype, q.device) if self.layout == "auto" else self.layout)
        for field, name in BUFFERS.items():
            self._buffers[name] = getattr(q, field)
        self._q, self._form = q, q.form

    def complete(self) -> None:
        """Take the tensors that a loader put into the buffers for the weight, and turn them into this module's layout.

        Raises:
            InvalidProblemError: a tensor of the wrong shape or dtype.
        """
        self._hold(replace(self._q, **{field: self._buffers[name] for field, name in BUFFERS.items()}))

    def _flat(self) -> list[torch.Tensor]:
        """``qtensor.flat()`` from the buffers, so that a compiled graph takes them as its inputs."""
        tensors = [getattr(self, name) for name in BUFFERS.values()]
        return [tensor for tensor in tensors if tensor is not None]

    def _apply(self, fn, recurse=True):
        mine = self._set_aside()
        super()._apply(fn, recurse)
        moved = {}
        for field, name in BUFFERS.items():
            tensor = mine[name]
            placed = None if tensor is None else fn(tensor)
            # what a model is cast to says nothing of codes and scales
            moved[field] = placed if placed is None or placed.dtype == tensor.dtype else tensor.to(placed.device)
        self._hold(replace(self._q, **moved))
        return self

    def _set_aside(self) -> dict[str, torch.Tensor | None]:
        """Leave the weight's buffers empty; returns what they held."""
        mine = {name: self._buffers[name] for name in BUFFERS.values()}
        self._buffers.update(dict.fromkeys(mine))
        return mine

    def _save_to_state_dict(self, destination, prefix, keep_vars):
        mine = self._set_aside()
        super()._save_to_state_dict(destination, prefix, keep_vars)
        self._buffers.update(mine)
        destination.update(to_tensors(prefix + "weight", self._q.relayout("row")))

    def _load_from_state_dict(self, state_dict, prefix, local_metadata, strict, missing, unexpected, errors):
        q, name = self._q, prefix + "weight"
        record = Record(scheme=str(q.scheme), shape=q.shape, dtype=q.dtype)
        stored = stored_names(name, record)
        mine = self._set_aside()
        rest = {key: value for key, value in state_dict.items() if key not in stored}
        super()._load_from_state_dict(rest, prefix, local_metadata, strict, missing, unexpected, errors)
        self._buffers.update(mine)
        wanted = [prefix + BUFFERS[field] for field in expected_flat(q.scheme, q.shape, q.dtype, "row")]
        absent = [key for key in wanted if key not in state_dict]
        missing.extend(absent)
        if absent:
            return
        tensors = {key: state_dict[key].detach() for key in stored if key in state_dict}
        if not local_metadata.get("assign_to_params_buffers", False):
            tensors = {key: tensor.clone() for key, tensor in tensors.items()}
        try:
            loaded = from_tensors(name, record, tensors)
        except TritonQError as error:
            errors.append(f"{name}: {error}")
            return
        self._hold(loaded if q.device.type == "meta" else loaded.to(q.device))

    def __getstate__(self):
        """The weight as its QTensor, which can be pickled also where torch cannot pickle its tensors (8-bit floats)."""
        return self.__dict__ | {"_buffers": {name: value for name, value in self._buffers.items() if name not in BUFFERS.values()}}

    def __setstate__(self, state):
        super().__setstate__(state)
        self._hold(self._q)
