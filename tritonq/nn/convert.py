"""Floor 6. ``tritonq.quantize_``: quantized modules in place of a model's own, one layer at a time."""
from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial

import torch

from ..checkpoints.rules import Rules
from ..checkpoints.tensorfile import DTYPE_NAMES, Entry
from ..errors import InvalidProblemError, TritonQError, UnsupportedError
from ..ops import quantize
from ..qstack import QStack, refuses
from ..qtensor import QTensor
from ..scheme import Scheme
from ..sizes import format_bytes
from .experts import WEIGHTS, QuantExperts, is_experts, quantize_stack
from .modules import QuantEmbedding, QuantLinear
from .readers import why_read


@dataclass(frozen=True, kw_only=True)
class Decided:
    """One parameter: the scheme that its weight got, or why it stayed as it was. One that is tied to an earlier one has no bytes."""

    name: str
    shape: tuple[int, ...]
    scheme: str | None
    reason: str | None
    bytes_before: int
    bytes_after: int

    @classmethod
    def of(cls, one: FoundParameter, scheme: str | None, reason: str | None, after: int) -> Decided:
        before, after = (0, 0) if one.tied else (one.tensor.nbytes, after)
        return cls(name=one.name, shape=tuple(one.tensor.shape), scheme=scheme, reason=reason, bytes_before=before, bytes_after=after)


@dataclass(frozen=True)
class QuantizationReport:
    """What :func:`quantize_` did to every parameter; ``str()`` of it sums up and names whatever of two or more axes was kept."""

    decided: tuple[Decided, ...]

    @property
    def quantized(self) -> tuple[Decided, ...]:
        return tuple(one for one in self.decided if one.scheme is not None)

    @property
    def kept(self) -> tuple[Decided, ...]:
        return tuple(one for one in self.decided if one.scheme is None)

    def __str__(self) -> str:
        before, after = (sum(getattr(one, name) for one in self.decided) for name in ("bytes_before", "bytes_after"))
        schemes = ", ".join(f"{count} x {scheme}" for scheme, count in Counter(one.scheme for one in self.quantized).most_common())
        lines = [f"{len(self.quantized)} weights quantized ({schemes or 'none'}), {len(self.kept)} parameters kept; "
                 f"{format_bytes(before)} -> {format_bytes(after)}"]  # fmt: skip
        lines += [f"  kept {one.name} {list(one.shape)}: {one.reason}" for one in self.kept if len(one.shape) > 1]
        return "\n".join(lines)


def quantize_(model: torch.nn.Module, scheme: str | Scheme | dict[str, str | Scheme],
              filter_fn: Callable[[torch.nn.Module, str], bool] | None = None, *, include: Iterable[str] = (), exclude: Iterable[str] = (),
              layout: str = "auto") -> QuantizationReport:  # fmt: skip
    """Replace a model's Linear layers, in place, by :class:`QuantLinear` ones, one after another: at no time are there two models.

    Args:
        model: any module; its own weights may be on any device, where they are quantized.
        scheme: for every weight, or ``{glob of parameter names: scheme}``, of which the first that matches counts; weights that none
            matches are kept.
        filter_fn: ``(module, name) -> bool``, asked for every Linear and Embedding in place of the rule below.
        include: globs of parameter names to quantize although the rule keeps them. An Embedding becomes a :class:`QuantEmbedding`; a
            Linear that is tied to it (lm_head) then shares its codes.
        exclude: globs of parameter names to keep.
        layout: see :class:`QuantLinear`.

    The rule is that of ``tritonq quantize``: norms, biases, embeddings, an lm_head tied to one, and expert routers are kept, and so are
    layers whose weight the model's own code reads (``wo`` of T5, ``dt_proj`` of Mamba, ``torch.nn.TransformerEncoderLayer``): as far as
    its source says ``self.wo.weight``, so that some are kept that need not be; ``include`` and ``filter_fn`` quantize them. Only modules
    that are exactly ``torch.nn.Linear`` or ``torch.nn.Embedding`` are replaced, because what a subclass does with its weight is not
    known, and the gated experts of Transformers, both of their 3-D weights together (:class:`QuantExperts`). Weights of two or more axes
    that other modules hold, such as experts with biases or of another form, cannot be replaced: they are kept, named in the report, and
    a warning is given.

    Returns:
        QuantizationReport: for every parameter, what happened and why.

    Raises:
        InvalidProblemError: a glob that matches no parameter, an unknown scheme; the model is unchanged.
        UnsupportedError: a scheme that cannot hold a weight; names the weight. Layers before it are quantized already.

    Example:
        >>> import torch, tritonq
        >>> model = torch.nn.Sequential(torch.nn.Linear(256, 512), torch.nn.ReLU(), torch.nn.Linear(512, 64))
        >>> print(tritonq.quantize_(model, {"0.*": "nf4", "*": "int8"}))
        2 weights quantized (1 x nf4, 1 x int8), 2 parameters kept; 642.25 KiB -> 106.50 KiB
        >>> model[0]
        QuantLinear(in_features=256, out_features=512, bias=True, scheme=nf4, layout=row)
    """
    if not isinstance(model, torch.nn.Module):
        raise InvalidProblemError(f"quantize_ takes a torch.nn.Module, got {type(model).__name__}; quantize takes a tensor")
    if type(model) in _REPLACE:
        raise InvalidProblemError(f"the model is itself a {type(model).__name__}, which cannot be replaced in place; use from_linear")
    if filter_fn is not None and not callable(filter_fn):
        got = f"{type(filter_fn).__name__} {filter_fn!r}"
        raise InvalidProblemError(f"filter_fn must be a function (module, name) -> bool or None, got {got}"[:300])
    found = parameters_of(model)
    decisions = decide(found, Rules.parse(scheme, include, exclude), filter_fn)
    making = _Making(layout, Counter(id(one.tensor) for one in found))
    todo = list(zip(found, decisions, strict=True))[::-1]
    del found  # what was replaced must not be kept alive
    decided = []
    while todo:
        one, (chosen, reason) = todo.pop()
        after = one.tensor.nbytes
        if chosen is not None:
            try:
                q = making.weight(one, chosen)
                new = making.module(one, q)
            except TritonQError as error:
                raise type(error)(f"{one.name}: {error}") from error
            if new is not None:
                one.replace(model, new)
            after = q.nbytes
        decided.append(Decided.of(one, chosen, reason, after))
    for module in model.modules():
        if any(base.__name__ == "PreTrainedModel" for base in type(module).__mro__):  # of Transformers, which is not imported here
            module.save_pretrained = partial(_save_pretrained, module)
    return QuantizationReport(tuple(decided))


class _Making:
    """Quantized weights on their way into modules: tied ones are quantized once, both weights of experts go in together."""

    def __init__(self, layout: str, shared: Counter):
        self.layout, self.shared, self.tied, self.halves = layout, shared, {}, {}

    def weight(self, one: FoundParameter, scheme: str) -> QTensor | QStack:
        """The parameter, quantized."""
        if is_experts(one.module):
            return quantize_stack(one.tensor, scheme)
        key = id(one.tensor), scheme
        q = self.tied.get(key) or quantize(one.tensor.detach(), scheme)
        if self.shared[id(one.tensor)] > 1:
            self.tied[key] = q
        return q

    def module(self, one: FoundParameter, q: QTensor | QStack) -> torch.nn.Module | None:
        """The module in place of the parameter's own; None where the other weight of these experts is to come."""
        if not is_experts(one.module):
            return _REPLACE[type(one.module)](one.module, q, self.layout).train(one.module.training)
        both = self.halves.setdefault(one.path, {})
        both[one.own_name] = q
        if len(both) < len(WEIGHTS):
            return None
        del self.halves[one.path]
        return QuantExperts.from_experts(one.module, *(both[name] for name in WEIGHTS), self.layout)


# What lets a model of a framework say, when it is saved, how it was quantized: integrations/transformers.py puts it there.
before_saving: list[Callable[[torch.nn.Module], None]] = []


def _save_pretrained(model: torch.nn.Module, *args, **more):
    """``save_pretrained`` of a model that was quantized in place: its class alone would write what nothing reads."""
    if not before_saving:
        rule = "a model that quantize_ changed is saved in a form that can be loaded once the framework knows tritonq"
        raise UnsupportedError(f"{type(model).__name__}.save_pretrained: {rule}; import tritonq.integrations.transformers (TritonQConfig) "
                               "first, or take tritonq.save(model, path)")  # fmt: skip
    for describe in before_saving:
        describe(model)
    return type(model).save_pretrained(model, *args, **more)


_REPLACE = {
    torch.nn.Linear: lambda module, q, layout: QuantLinear(q, module.bias, layout),
    torch.nn.Embedding: lambda module, q, layout: QuantEmbedding(q),
}


@dataclass(frozen=True, kw_only=True)
class FoundParameter:
    """A parameter and the module that holds it; tied ones appear once for each.

    Attributes:
        others: further paths of the same module, where a model has it in several places.
        tied: whether it is the same tensor as an earlier one.
        read: why the module cannot be replaced, see :func:`tritonq.nn.readers.why_read`.
    """

    name: str
    path: str
    others: tuple[str, ...]
    module: torch.nn.Module
    tensor: torch.nn.Parameter
    tied: bool
    read: str | None

    @property
    def is_weight(self) -> bool:
        """Of a module that can be replaced."""
        return is_experts(self.module) or (type(self.module) in _REPLACE and self.own_name == "weight")

    @property
    def own_name(self) -> str:
        """Within its module."""
        return self.name.rpartition(".")[2]

    def replace(self, model: torch.nn.Module, new: torch.nn.Module) -> None:
        """Put ``new`` in every place of the module."""
        put(model, (self.path, *self.others), self.module, new)


def places(model: torch.nn.Module) -> dict[torch.nn.Module, list[str]]:
    """Every module of a model with all of its paths."""
    found: dict[torch.nn.Module, list[str]] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        found.setdefault(module, []).append(path)
    return found


_HOOKS = ("_forward_hooks", "_forward_hooks_with_kwargs", "_forward_hooks_always_called", "_forward_pre_hooks",
          "_forward_pre_hooks_with_kwargs", "_backward_hooks", "_backward_pre_hooks", "_is_full_backward_hook")  # fmt: skip


def put(model: torch.nn.Module, paths: Iterable[str], old: torch.nn.Module, new: torch.nn.Module) -> None:
    """``new`` in all of the places of ``old``, whose hooks it takes over: the same dicts, so that their handles remove them."""
    for name in _HOOKS:
        setattr(new, name, getattr(old, name))
    for path in paths:
        model.set_submodule(path, new)


def decode_what_is_read(model: torch.nn.Module) -> None:
    """Put decoded layers where a model's code reads the weight of quantized ones: a file may hold them quantized."""
    for module, paths in places(model).items():
        if type(module) is QuantLinear and any(why_read(model, path, f"{path}.weight") for path in paths):
            put(model, paths, module, module.to_linear())


def parameters_of(model: torch.nn.Module) -> list[FoundParameter]:
    found, tensors = [], set()
    for module, (path, *others) in places(model).items():
        for own, parameter in module.named_parameters(recurse=False):
            name = f"{path}.{own}" if path else own
            read = [why_read(model, place, name) for place in (path, *others)] if type(module) is torch.nn.Linear else []
            found.append(FoundParameter(name=name, path=path, others=tuple(others), module=module, tensor=parameter,
                                        tied=parameter in tensors, read=next(filter(None, read), None)))  # fmt: skip
            tensors.add(parameter)
    return found


def decide(found: list[FoundParameter], rules: Rules, filter_fn: Callable | None = None) -> list[tuple[str | None, str | None]]:
    """(scheme, None) or (None, reason to keep it) for every parameter; nothing is changed. Warns of those that cannot be replaced."""
    entries = [Entry(name=one.name, dtype=DTYPE_NAMES.get(one.tensor.dtype, str(one.tensor.dtype)), shape=tuple(one.tensor.shape),
                     start=0, stop=one.tensor.nbytes) for one in found]  # fmt: skip
    by_rule = rules.decide(entries)
    decisions = [(by_rule[one.name].scheme, by_rule[one.name].reason) for one in found]
    if filter_fn is not None:
        for i, one in enumerate(found):
            if one.is_weight:
                chosen = rules.scheme_for(one.name) if filter_fn(one.module, one.path) else None
                decisions[i] = chosen, None if chosen else "filter_fn says no"
    tables = {id(one.tensor): (one.name, chosen if type(one.module) is torch.nn.Embedding else None)
              for one, (chosen, _) in zip(found, decisions, strict=True) if isinstance(one.module, torch.nn.Embedding)}  # fmt: skip
    unreachable = []
    for i, one in enumerate(found):
        chosen, _ = decisions[i]
        if chosen is None:
            continue
        if one.read is not None and filter_fn is None and not any(fnmatchcase(one.name, glob) for glob in rules.include):
            decisions[i] = None, one.read
        elif getattr(one.module, "max_norm", None) is not None:
            decisions[i] = None, "max_norm changes the table while it is read"
        elif is_experts(one.module) and (reason := refuses(Scheme.parse(chosen), one.tensor.shape[1])):
            decisions[i] = None, f"held by experts: {reason}"
            unreachable.append(one.name)
        elif not one.is_weight:
            decisions[i] = None, f"held by {type(one.module).__name__}, which is not exactly torch.nn.Linear"
            unreachable.append(one.name)
        elif type(one.module) is torch.nn.Linear and id(one.tensor) in tables:
            table, of_table = tables[id(one.tensor)]
            decisions[i] = of_table, None if of_table else f"tied to the embedding {table}"
    for path in {one.path for one in found if is_experts(one.module)}:  # both of their weights are replaced, or none
        both = [i for i, one in enumerate(found) if one.path == path]
        kept = next((decisions[i][1] for i in both if decisions[i][0] is None), None)
        for i in both if kept else ():
            decisions[i] = None, decisions[i][1] or f"the other weight of these experts is kept ({kept})"
    if unreachable:
        warnings.warn(f"not quantized, because no Linear holds them: {', '.join(unreachable)}", stacklevel=3)
    return decisions
