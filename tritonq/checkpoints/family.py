"""Where families of checkpoints plug in: how a method stores quantized weights, one file per family, listed in ``families.py``.

A :class:`Family` is read, a :class:`Target` is written; a class may be both.
"""
from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from math import prod

import torch

from ..dtypes import NAMED_DTYPES, dtype_name
from ..errors import CheckpointError, TritonQError, shorten
from ..qstack import QStack
from ..qtensor import QTensor
from ..scheme import Scheme
from .source import Source
from .writer import Stored

METADATA_KEY = "tritonq"  # of a file's header: the description of its quantized weights by our own family


@dataclass(frozen=True, kw_only=True)
class Record:
    """What a checkpoint says of one quantized weight: scheme (text), the shape and dtype that the weight had.

    A weight of another rank than 2 is quantized as the matrix ``[prod(shape[:-1]), shape[-1]]``: experts ``[E, N, K]`` as E*N rows.
    """

    scheme: str
    shape: tuple[int, ...]
    dtype: torch.dtype

    @classmethod
    def of(cls, q: QTensor | QStack) -> Record:
        """What a file says of a weight."""
        return cls(scheme=str(q.scheme), shape=tuple(q.shape), dtype=q.dtype)

    @property
    def matrix_shape(self) -> tuple[int, int]:
        return prod(self.shape[:-1]), self.shape[-1]

    def to_json(self) -> dict:
        return {"scheme": self.scheme, "shape": list(self.shape), "dtype": dtype_name(self.dtype)}

    @classmethod
    def from_json(cls, fields, where: str) -> Record:
        """Read and check ``{"scheme", "shape", "dtype"}``; ``where`` opens the error text."""
        if not isinstance(fields, dict) or set(fields) != {"scheme", "shape", "dtype"}:
            raise CheckpointError(f"{where}: needs exactly scheme, shape and dtype, got {shorten(fields)}")
        shape, dtype = checked_shape(fields["shape"], where), fields["dtype"]
        if not isinstance(dtype, str) or dtype not in NAMED_DTYPES:
            raise CheckpointError(f"{where}: dtype must be one of {', '.join(NAMED_DTYPES)}, got {shorten(dtype)}")
        try:
            Scheme.parse(fields["scheme"])
        except TritonQError as error:
            raise CheckpointError(f"{where}: {error}") from error
        return cls(scheme=fields["scheme"], shape=shape, dtype=NAMED_DTYPES[dtype])


def checked_shape(shape, where: str) -> tuple[int, ...]:
    """``shape`` of a description, a list of sizes."""
    if not isinstance(shape, list) or not shape or not all(isinstance(n, int) and not isinstance(n, bool) and n >= 0 for n in shape):
        raise CheckpointError(f"{where}: shape must be a list of at least one whole number >= 0, got {shorten(shape)}")
    return tuple(shape)


class Family(ABC):
    """One way to store quantized weights.

    Attributes:
        name: of the family, and its ``quant_method`` in config.json.
    """

    name: str

    @abstractmethod
    def read_records(self, source: Source) -> dict[str, Record] | None:
        """The quantized weights of ``source`` by name; None where it is not of this family.

        Reads headers and descriptions, no weights. What it returns holds: every stored tensor is there with the right dtype and size.

        Raises:
            CheckpointError: it is of this family, and malformed or of a kind that is not read.
        """

    @abstractmethod
    def stored_names(self, name: str) -> list[str]:
        """Names of the tensors that weight ``name`` may take in a file."""

    @abstractmethod
    def assemble(self, name: str, record: Record, tensors: dict[str, torch.Tensor]) -> QTensor:
        """The weight, from its stored tensors (``tensors`` may hold others too); no code and no scale changes its value.

        Raises:
            TritonQError: tensors that cannot be what the record says.
        """

    def act_order(self, name: str, source: Source) -> bool:
        """Whether the columns of weight ``name`` are packed in another order than its own."""
        return False


class Target(ABC):
    """One way to write weights that are quantized, without a change of any value.

    Attributes:
        name: as ``tritonq convert --to`` takes it.
    """

    name: str

    @abstractmethod
    def stored(self, name: str, record: Record, *, act_order: bool) -> Stored:
        """The tensors that weight ``name`` takes in a file, with shapes that need no less room in its header.

        Raises:
            CheckpointError: a weight that cannot be stored so.
        """

    @abstractmethod
    def tensors(self, name: str, record: Record, q: QTensor) -> dict[str, torch.Tensor]:
        """The weight's tensors."""

    def record(self, record: Record) -> Record | None:
        """The record of such a weight where it is stored so; None where it is quantized no more."""
        return record

    def metadata(self, metadata: dict[str, str], records: dict[str, Record]) -> dict[str, str]:
        """The header's metadata of a file that had ``metadata`` and now has the quantized weights ``records``."""
        return {"format": "pt", **{key: value for key, value in metadata.items() if key != METADATA_KEY}}

    def beside(self, records: dict[str, Record]) -> dict[str, dict]:
        """JSON files beside the weights: names and contents."""
        return {}

    def config(self, records: dict[str, Record], kept: list[str]) -> dict:
        """What goes into config.json, ``quantization_config`` or nothing. ``kept``: other tensors of two axes and more."""
        return {}
