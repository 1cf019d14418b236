"""Floor 6. Modules that own quantized weights: their tensors as buffers, moved without a cast, saved in the canonical layout."""
from __future__ import annotations

import copy
import weakref
from dataclasses import replace

import torch

from ..checkpoints.native import Record, from_tensors, stored_name, stored_names, to_tensors
from ..errors import InvalidProblemError, TritonQError
from ..layouts import LAYOUTS
from ..layouts.row import TENSOR_FIELDS
from ..plans.core import Target
from ..qstack import QStack
from ..qtensor import STORED, QTensor, expected_flat, operands
from ..scheme import Scheme

# Fields of a QTensor, in its order, -> what a checkpoint adds to the weight's name. expanded_scale: dq schemes in a kernel's layout.
SUFFIXES = {field: stored_name("", STORED.get(field, field)) for field in (*TENSOR_FIELDS, "column_order")}


def best_layout(scheme: Scheme, dtype: torch.dtype, device: torch.device) -> str:
    """The layout whose product is made for a device; see :func:`layout_on`."""
    return layout_on(scheme, dtype, Target.of(device)) if device.type == "cuda" else "row"


def layout_on(scheme: Scheme, dtype: torch.dtype, target: Target) -> str:
    """``frag`` on CUDA from sm_80 on, ``ksplit`` on HIP; ``row`` elsewhere and where that cannot hold it."""
    arch = target.arch
    wanted = "ksplit" if isinstance(arch, str) else "frag" if arch is not None and arch >= 80 else "row"
    return "row" if LAYOUTS[wanted].refuses(scheme, dtype) else wanted


_SCHEMES = "tritonq_schemes"  # in the metadata of a state dict


class QuantizedModule(torch.nn.Module):
    """A module that owns quantized weights: each is a name, its tensors are buffers.

    A weight ``W`` has the buffers ``W`` (packed codes), ``W_scale``, ``W_zero_point`` and so on. ``to``, ``cuda``, ``half`` and the like
    move them and never change their dtypes. ``state_dict`` holds the layout ``row``, with the names and bytes of :func:`tritonq.save`;
    loading takes the same and turns it into this module's layout. The buffers decide: what is assigned to them is the weight, everywhere.
    """

    def __init__(self, weights: dict[str, QTensor | QStack], layout: str):
        super().__init__()
        if layout != "auto" and layout not in LAYOUTS:
            raise InvalidProblemError(f"layout must be 'auto' or one of {', '.join(map(repr, LAYOUTS))}, got {layout!r}")
        self.layout = layout
        self._held: dict[str, QTensor | QStack] = {}  # the weights of the tensors that were the buffers when they were last put there
        for name, q in weights.items():
            # torch.export counts the buffers of the module that it is given, those that are None among them
            for _, suffix in sorted(_suffixes(q).items(), key=lambda item: getattr(q, item[0]) is None):
                self.register_buffer(name + suffix, None)
            self._hold(name, q)

    @property
    def quantized(self) -> dict[str, QTensor | QStack]:
        """The weights by name, of the tensors that the buffers hold now."""
        return {name: self._current(name) for name in self._held}

    def _current(self, name: str) -> QTensor | QStack:
        q, own = self._held[name], self._buffers
        held = {field: own[name + suffix] for field, suffix in _suffixes(q).items()}
        if all(tensor is getattr(q, field) for field, tensor in held.items()):
            return q
        return type(q).from_flat([tensor for tensor in held.values() if tensor is not None], q.form)

    def _hold(self, name: str, q: QTensor | QStack) -> None:
        if q.device.type != "meta":
            q = q.relayout(best_layout(q.scheme, q.dtype, q.device) if self.layout == "auto" else self.layout)
        for field, suffix in _suffixes(q).items():
            self._buffers[name + suffix] = getattr(q, field)
        self._held[name] = q

    def complete(self) -> None:
        """Take the tensors that a loader put into the buffers for the weights, and turn them into this module's layout.

        Raises:
            InvalidProblemError: a tensor of the wrong shape or dtype.
        """
        for name, q in self._held.items():
            held = {field: self._buffers[name + suffix] for field, suffix in _suffixes(q).items()}
            if isinstance(q, QStack):  # as files hold it: all rows of all experts
                held = {field: t if t is None or t.dim() == 3 else t.unflatten(0, (len(q), -1)) for field, t in held.items()}
            self._hold(name, replace(q, **held))

    def _operands(self, name: str = "weight") -> tuple:
        """``operands`` of a weight from the buffers, so that a compiled graph takes them as its inputs."""
        q = self._held[name]
        return operands({field: getattr(self, name + suffix) for field, suffix in _suffixes(q).items()}, q.form)

    def _apply(self, fn, recurse=True):
        weights = self.quantized
        self._set_aside()
        super()._apply(fn, recurse)
        for name, q in weights.items():
            # Modules that share a weight share what becomes of it: it is noted on the old one, which is gone once all of them have moved.
            # A call upon a whole model hands every module the same fn.
            by, heir = vars(q).get("_heir", (None, None))
            self._hold(name, (heir() if by is fn else None) or _placed(q, fn))
            vars(q)["_heir"] = fn, weakref.ref(self._held[name])
        return self

    def _set_aside(self) -> dict[str, torch.Tensor | None]:
        """Leave the weights' buffers empty; returns what they held."""
        mine = {name: self._buffers[name] for name in self._own_buffers()}
        self._buffers.update(dict.fromkeys(mine))
        return mine

    def _own_buffers(self) -> list[str]:
        return [name + suffix for name, q in self._held.items() for suffix in _suffixes(q).values()]

    def _save_to_state_dict(self, destination, prefix, keep_vars):
        mine = self._set_aside()
        super()._save_to_state_dict(destination, prefix, keep_vars)
        self._buffers.update(mine)
        for name, q in self.quantized.items():
            destination.update(to_tensors(prefix + name, q.relayout("row")))
        if hasattr(destination, "_metadata"):  # the tensors of nf4 and int4.g64 look alike
            destination._metadata[prefix[:-1]][_SCHEMES] = {name: str(q.scheme) for name, q in self.quantized.items()}

    def _load_from_state_dict(self, state_dict, prefix, local_metadata, strict, missing, unexpected, errors):
        stored = {name: stored_names(prefix + name) for name in self._held}
        mine = self._set_aside()
        rest = {key: value for key, value in state_dict.items() if not any(key in names for names in stored.values())}
        super()._load_from_state_dict(rest, prefix, local_metadata, strict, missing, unexpected, errors)
        self._buffers.update(mine)
        for name, q in self.quantized.items():
            wanted = [prefix + name + SUFFIXES[field] for field in expected_flat(q.scheme, q.shape[-2:], q.dtype, "row")]
            absent = [key for key in wanted if key not in state_dict]
            missing.extend(absent)
            if absent:
                continue
            stored_scheme = local_metadata.get(_SCHEMES, {}).get(name, str(q.scheme))
            if Scheme.parse(stored_scheme) != q.scheme:
                errors.append(f"{prefix}{name}: the state is of scheme {stored_scheme}, this layer of {q.scheme}; make it with that scheme")
                continue
            tensors = {key: state_dict[key].detach() for key in stored[name] if key in state_dict}
            try:
                loaded = _read(prefix + name, q, tensors)
            except TritonQError as error:
                errors.append(f"{prefix}{name}: {error}")
                continue
            if q.device.type != "meta":
                loaded = loaded.to(q.device)
            if local_metadata.get("assign_to_params_buffers", False):
                self._hold(name, loaded)
            elif not _overwritten(q, loaded):
                self._hold(name, copy.deepcopy(loaded))

    def __getstate__(self):
        """The weights as they are, which can be pickled also where torch cannot pickle their tensors (8-bit floats)."""
        names = self._own_buffers()
        buffers = {name: value for name, value in self._buffers.items() if name not in names}
        return self.__dict__ | {"_buffers": buffers, "_held": self.quantized}

    def __setstate__(self, state):
        super().__setstate__(state)
        for name, q in self._held.items():
            self._hold(name, q)


class QuantizedWeight(QuantizedModule):
    """What :class:`QuantLinear` and :class:`QuantEmbedding` share: one weight, called ``weight``."""

    def __init__(self, q: QTensor, layout: str):
        if not isinstance(q, QTensor):
            raise InvalidProblemError(f"the weight must be a QTensor, got {type(q).__name__}; from_linear and from_embedding make one")
        super().__init__({"weight": q}, layout)

    @property
    def qtensor(self) -> QTensor:
        """The weight. It can be replaced by another of the same shape, which is then held in this module's layout."""
        return self._current("weight")

    @qtensor.setter
    def qtensor(self, q: QTensor) -> None:
        if not isinstance(q, QTensor) or q.shape != self._q.shape:
            got = f"shape {q.shape}" if isinstance(q, QTensor) else type(q).__name__
            raise InvalidProblemError(f"the weight must be a QTensor of shape {self._q.shape}, got {got}")
        self._hold("weight", q)

    @property
    def scheme(self) -> Scheme:
        return self._q.scheme

    def _is_swapped(self) -> bool:
        """Whether the buffers are no longer the weight's tensors, as under ``torch.func.functional_call``."""
        own, q = self._buffers, self._q
        if (own["weight"] is not q.packed or own["weight_scale"] is not q.stored_scale
                or own["weight_zero_point"] is not q.zero_point):  # fmt: skip
            return True
        for name, tensor in self._others:  # noqa: SIM110 -- a generator costs every call 0.2 us, and few have more than those three
            if own[name] is not tensor:
                return True
        return False

    def __getstate__(self):
        return super().__getstate__() | {"_q": None, "_others": ()}  # which may be no longer the weight

    def _hold(self, name: str, q: QTensor) -> None:
        super()._hold(name, q)
        self._q = self._held[name]  # for forward, without a look-up
        more = {name + SUFFIXES[field]: getattr(self._q, field) for field in (*SUFFIXES,)[3:]}
        self._others = tuple((name, tensor) for name, tensor in more.items() if tensor is not None)


def _read(name: str, like: QTensor | QStack, tensors: dict[str, torch.Tensor]) -> QTensor | QStack:
    """A weight such as ``like`` of the tensors that a state holds."""
    if not isinstance(like, QStack):
        return from_tensors(name, Record.of(like), tensors)
    flat = {key: tensor.flatten(0, 1) if tensor.dim() == 3 else tensor for key, tensor in tensors.items()}
    return QStack.of(from_tensors(name, Record.of(like), flat), len(like))


def _placed(q: QTensor | QStack, fn) -> QTensor | QStack:
    """The weight of ``fn(tensor)`` for its tensors; what a model is cast to says nothing of codes and scales."""
    moved = {field: tensor for field in _suffixes(q) if (tensor := getattr(q, field)) is not None}
    for field, tensor in moved.items():
        placed = fn(tensor)
        moved[field] = placed if placed.dtype == tensor.dtype else tensor.to(placed.device)
    return replace(q, **moved)


@torch.no_grad()
def _overwritten(q: QTensor | QStack, new: QTensor | QStack) -> bool:
    """Copy a weight into the tensors of another, which modules may share and graphs of kernels read; False where it cannot be."""
    # Torch does not count what is written to tensors of inference mode, and what is made of them would stay.
    fixed = q.device.type == "meta" or any(tensor.is_inference() for tensor in q.flat())
    if fixed or (new := new.relayout(q.layout)).form != q.form:
        return False
    for mine, tensor in zip(q.flat(), new.flat(), strict=True):
        mine.copy_(tensor)
    return True


def _suffixes(q: QTensor | QStack) -> dict[str, str]:
    return {field: suffix for field, suffix in SUFFIXES.items() if hasattr(q, field)}
