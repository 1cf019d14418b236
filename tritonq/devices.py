"""Floor 1. The vocabulary of placement: device profiles, sharding strategies, shards and plans."""
from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from .errors import InvalidProblemError
from .sizes import format_bytes, parse_bytes

# kind -> (family, throughput relative to a CPU)
DEVICE_KINDS: dict[str, tuple[str, float]] = {
    "cpu": ("cpu", 1.0),
    "cuda": ("gpu", 20.0),
    "rocm": ("gpu", 15.0),
    "metal": ("gpu", 12.0),
    "vulkan": ("gpu", 10.0),
    "tpu_v4": ("tpu", 25.0),
    "tpu_v5e": ("tpu", 18.0),
    "tpu_v5p": ("tpu", 35.0),
    "gaudi2": ("gaudi", 22.0),
    "gaudi3": ("gaudi", 30.0),
    "npu": ("npu", 8.0),
}


@dataclass(frozen=True, kw_only=True)
class DeviceProfile:
    """One accelerator (or the CPU): its ``kind`` (a key of ``DEVICE_KINDS``) and memory (bytes or text such as ``"80GiB"``)."""

    name: str
    kind: str
    memory: int | str
    chips: int = 1  # TPU: chips that share ``memory``
    numa_node: int | None = None

    def __post_init__(self):
        if not isinstance(self.name, str):
            raise InvalidProblemError(f"the name of a device must be a str, got {type(self.name).__name__} {self.name!r}"[:200])
        if not isinstance(self.kind, str) or self.kind not in DEVICE_KINDS:
            raise InvalidProblemError(f"device {self.name!r} has unknown kind {self.kind!r}; known: {', '.join(DEVICE_KINDS)}")
        if isinstance(self.chips, bool) or not isinstance(self.chips, int) or self.chips < 1:
            raise InvalidProblemError(f"device {self.name!r} must have at least 1 chip, got {self.chips!r}")
        if self.numa_node is not None and (isinstance(self.numa_node, bool) or not isinstance(self.numa_node, int)):
            raise InvalidProblemError(f"device {self.name!r} must have a whole number or None as numa_node, got {self.numa_node!r}")
        parse_bytes(self.memory)

    @property
    def memory_bytes(self) -> int:
        return parse_bytes(self.memory)

    @property
    def family(self) -> str:
        return DEVICE_KINDS[self.kind][0]

    @property
    def speed(self) -> float:
        return DEVICE_KINDS[self.kind][1]


class ShardingKind(Enum):
    """How the devices share a model."""

    NONE = "None"
    PIPELINE_PARALLEL = "Pipeline Parallel"
    TENSOR_PARALLEL = "Tensor Parallel"
    DATA_PARALLEL = "Data Parallel"


_PART = {ShardingKind.PIPELINE_PARALLEL: "stages", ShardingKind.TENSOR_PARALLEL: "devices", ShardingKind.DATA_PARALLEL: "replicas"}


@dataclass(frozen=True)
class ShardingStrategy:
    """A kind and how many devices it takes: ``ShardingStrategy.pipeline(4)``; ``str()`` is ``"Pipeline Parallel (4 stages)"``."""

    kind: ShardingKind = ShardingKind.NONE
    count: int = 1

    @classmethod
    def none(cls) -> ShardingStrategy:
        return cls()

    @classmethod
    def pipeline(cls, num_stages: int) -> ShardingStrategy:
        return cls(ShardingKind.PIPELINE_PARALLEL, num_stages)

    @classmethod
    def tensor(cls, num_devices: int) -> ShardingStrategy:
        return cls(ShardingKind.TENSOR_PARALLEL, num_devices)

    @classmethod
    def data(cls, num_replicas: int) -> ShardingStrategy:
        return cls(ShardingKind.DATA_PARALLEL, num_replicas)

    def min_devices(self) -> int:
        """Devices that this strategy needs at least."""
        return self.count

    def __str__(self) -> str:
        if self.kind is ShardingKind.NONE:
            return self.kind.value
        return f"{self.kind.value} ({self.count} {_PART[self.kind]})"


@dataclass(frozen=True, kw_only=True)
class ModelShard:
    """What one device holds: layers ``layer_range[0]`` to ``layer_range[1]`` inclusive, ``memory_bytes`` of them."""

    shard_id: int
    layer_range: tuple[int, int]
    device: str
    memory_bytes: int

    def num_layers(self) -> int:
        """Layers in this shard; 0 where the range is not valid."""
        first, last = self.layer_range
        return max(0, last - first + 1)

    def is_valid(self) -> bool:
        return 0 <= self.layer_range[0] <= self.layer_range[1]

    def __str__(self) -> str:
        first, last = self.layer_range
        return f"shard {self.shard_id}: layers {first}-{last} on {self.device}, {format_bytes(self.memory_bytes)}"


@dataclass(frozen=True, kw_only=True)
class ShardingPlan:
    """Where a model goes. ``shards`` is empty, and ``fits`` False with the ``reason``, where no device or group of devices holds it."""

    strategy: ShardingStrategy
    shards: tuple[ModelShard, ...]
    total_memory_bytes: int
    estimated_tokens_per_sec: float | None = None
    reason: str | None = None

    @property
    def fits(self) -> bool:
        return self.reason is None

    def __str__(self) -> str:
        lines = [f"Strategy: {self.strategy}", f"Total memory: {self.total_memory_bytes / 2**30:.1f} GiB"]
        if self.reason:
            lines.append(f"Does not fit: {self.reason}")
        if self.estimated_tokens_per_sec is not None:
            lines.append(f"Est. throughput: {self.estimated_tokens_per_sec:.0f} tok/s")
        return "\n".join(lines + [f"  {shard}" for shard in self.shards])
