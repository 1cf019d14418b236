"""Floor 6. Capacity planning: how much memory a model takes, which precision fits, how to spread it over devices.

Estimates are heuristics (parameters plus 20 % for activations and buffers), in exact integer arithmetic, byte counts rounded up.
Pass a scheme (``"nf4.g64"``) instead of a level to count scales and zero points too: int4 with a scale per 128 is 4.125 bits or more.
"""
from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

from .devices import DEVICE_KINDS, DeviceProfile, ModelShard, ShardingKind, ShardingPlan, ShardingStrategy
from .errors import InvalidProblemError
from .levels import QuantizationLevel
from .plans.core import expect_type
from .scheme import Scheme
from .sizes import format_bytes, parse_bytes

__all__ = [
    "DEVICE_KINDS", "FAMILY_LEVELS", "DeviceProfile", "ModelShard", "ShardingKind", "ShardingPlan", "ShardingStrategy",
    "bits_per_param", "estimate_memory", "plan_sharding", "suggest_quantization",
]

OVERHEAD = Fraction(12, 10)  # activations and buffers on top of the parameters
PARAMS_PER_LAYER = 250_000_000

_FP16, _BF16, _INT8, _INT4 = (QuantizationLevel.FLOAT16, QuantizationLevel.BFLOAT16, QuantizationLevel.INT8, QuantizationLevel.INT4)

# The levels to try on each family of devices, best first; families in order of preference.
FAMILY_LEVELS: dict[str, tuple[QuantizationLevel, ...]] = {
    "tpu": (_BF16, _INT8),
    "gaudi": (_BF16, _INT8),
    "gpu": (_FP16, _INT8, _INT4),
    "npu": (_INT8, _INT4),
    "cpu": (_FP16, _INT8, _INT4),
}


def estimate_memory(params: int, level: QuantizationLevel | Scheme | str) -> int:
    """Bytes that ``params`` parameters need at ``level``, with 20 % overhead, rounded up.

    ``level`` is a :class:`QuantizationLevel` or one of its spellings (bits alone), or a :class:`tritonq.Scheme` or its text
    (``"nf4.g64"``: scales and zero points counted). ``"int8"`` and ``"int4"`` are levels; write ``"int8.channel"``, ``"int4.g128"``
    for the schemes.

    Raises:
        InvalidProblemError: ``params`` is no whole number from 0 on, or ``level`` neither a level nor a scheme.

    >>> estimate_memory(1_000_000_000, "INT4")
    600000000
    """
    exact = _params(params) * bits_per_param(level) * OVERHEAD / 8
    return -(-exact.numerator // exact.denominator)


def bits_per_param(level: QuantizationLevel | Scheme | str) -> Fraction:
    """Bits per parameter of a level or scheme, exactly; a scheme with scales per row or tensor is counted on a 4096 x 4096 weight."""
    if isinstance(level, str):
        try:
            level = QuantizationLevel.parse(level)
        except InvalidProblemError:
            level = Scheme.parse(level)
    if isinstance(level, QuantizationLevel):
        return Fraction(level.bits_per_param)
    if not isinstance(level, Scheme):
        raise InvalidProblemError(f"level must be a QuantizationLevel, a Scheme or text, got {type(level).__name__} {level!r}")
    return Fraction(level.bits_per_weight(4096, 4096))


def suggest_quantization(params: int, memory: int | str | Sequence[DeviceProfile]) -> QuantizationLevel | None:
    """The most precise level at which ``params`` parameters (with overhead) fit, or None: nothing fits.

    ``memory`` is a number of bytes or text such as ``"24GiB"`` (tries FP16, INT8, INT4), or a sequence of :class:`DeviceProfile`:
    the largest device of each family is tried, TPU first, then Gaudi, GPU, NPU, CPU, each with the levels that it runs
    (``FAMILY_LEVELS``). FP32 is never suggested.

    Raises:
        InvalidProblemError: ``params`` is no whole number from 0 on, ``memory`` no number of bytes, no text of one, no devices.

    >>> str(suggest_quantization(7_000_000_000, "24GiB")), suggest_quantization(70_000_000_000, "2GiB")
    ('FP16', None)
    """
    _params(params)
    if isinstance(memory, (int, str)):
        largest = {"gpu": parse_bytes(memory)}
    else:
        largest = {}
        for device in _devices(memory):
            largest[device.family] = max(largest.get(device.family, 0), device.memory_bytes)
    for family, levels in FAMILY_LEVELS.items():
        for level in levels:
            if family in largest and estimate_memory(params, level) <= largest[family]:
                return level
    return None


def plan_sharding(
    params: int,
    level: QuantizationLevel | Scheme | str,
    devices: Sequence[DeviceProfile],
    *,
    num_layers: int | None = None,
    nvswitch: bool = False,
    bandwidth_gbps: float | None = None,
) -> ShardingPlan:
    """Place ``params`` parameters at ``level`` on ``devices``.

    One device if it fits (the fastest that does); else all TPU chips, tensor parallel; else all accelerators: tensor parallel with an
    NVSwitch or more than 100 GB/s between at most 8 of them, where each holds an equal share, pipeline parallel otherwise; else the
    CPU. Never more stages than layers (``num_layers``, by default one per 250 M parameters), and no device gets more than it has: a
    small device takes fewer layers, and where nothing holds the model the plan says so (``fits`` False, ``reason``).

    Raises:
        InvalidProblemError: arguments that are not of these kinds, negative numbers, no device.

    >>> plan_sharding(1_000_000_000, "INT4", [DeviceProfile(name="a", kind="cuda", memory="1GiB")]).shards[0].memory_bytes
    600000000
    """
    needed = estimate_memory(params, level)
    devices = _devices(devices)
    known = isinstance(bandwidth_gbps, (int, float)) and not isinstance(bandwidth_gbps, bool)
    if bandwidth_gbps is not None and not (known and bandwidth_gbps >= 0):
        raise InvalidProblemError(f"bandwidth_gbps must be a number >= 0 or None, got {bandwidth_gbps!r}")
    expect_type(nvswitch, bool, "nvswitch")
    layers = num_layers if num_layers is not None else max(1, params // PARAMS_PER_LAYER)
    if isinstance(layers, bool) or not isinstance(layers, int) or layers < 1:
        raise InvalidProblemError(f"num_layers must be a whole number >= 1, got {num_layers!r}")
    # Tokens per second of a device of speed 1, from a CPU's 1 token/s on 1 G fp32 parameters.
    unit = 10**9 / params * 32 / float(bits_per_param(level)) if params else 0.0

    single = _fastest([d for d in devices if d.family != "cpu" and d.memory_bytes >= needed])
    if single is not None:
        return _whole(single, needed, layers, single.speed * unit)

    tpus = [d for d in devices if d.family == "tpu"]
    chips = sum(d.chips for d in tpus)
    share = -(-needed // chips) if chips else 0
    if tpus and all(d.memory_bytes >= share * d.chips for d in tpus):
        owners = [d for d in tpus for _ in range(d.chips)]
        return _tensor(owners, needed, layers, min(d.speed for d in tpus) * chips * unit * 2.0)

    group = [d for d in devices if d.family in ("gpu", "gaudi", "tpu")]
    if len(group) > 1 and sum(d.memory_bytes for d in group) >= needed:
        plan = _spread(group, needed, layers, unit, nvswitch, bandwidth_gbps)
        if plan is not None:
            return plan

    cpu = _fastest([d for d in devices if d.family == "cpu" and d.memory_bytes >= needed])
    if cpu is not None:
        return _whole(cpu, needed, layers, cpu.speed * unit)
    largest = max(d.memory_bytes for d in devices)
    reason = f"{format_bytes(needed)} are needed, the largest of {len(devices)} devices has {format_bytes(largest)}, and no split holds it"
    return ShardingPlan(strategy=ShardingStrategy.none(), shards=(), total_memory_bytes=needed, reason=reason)


def _spread(group, needed, layers, unit, nvswitch, bandwidth) -> ShardingPlan | None:
    """Tensor parallel over ``group`` where it is fast and every device holds its share, else pipeline parallel; None: neither holds it."""
    slowest = min(d.speed for d in group)
    if nvswitch or (bandwidth is not None and bandwidth > 100 and len(group) <= 8):
        bonus = 1.8 if nvswitch else 1 + min(bandwidth / 200, 0.8)
        plan = _tensor(group, needed, layers, slowest * len(group) * unit * bonus)
        if _holds(plan, group):
            return plan
    ordered = sorted(group, key=lambda d: (d.numa_node is None, d.numa_node or 0))
    counts = _layers_per_stage([d.memory_bytes * layers // needed for d in ordered], layers)
    if counts is None:
        return None
    stages, shards, first = [(d, n) for d, n in zip(ordered, counts, strict=True) if n], [], 0
    for i, (device, count) in enumerate(stages):
        memory = -(-needed * count // layers)
        shards.append(ModelShard(shard_id=i, layer_range=(first, first + count - 1), device=device.name, memory_bytes=memory))
        first += count
    strategy = ShardingStrategy.pipeline(len(stages))
    speed = slowest * len(stages) * unit * (0.85 if bandwidth else 0.65)
    return ShardingPlan(strategy=strategy, shards=tuple(shards), total_memory_bytes=needed, estimated_tokens_per_sec=speed)


def _layers_per_stage(room: list[int], layers: int) -> list[int] | None:
    """Equal shares of ``layers``, except where a device has ``room`` for fewer: the others take its rest. None: no room for all."""
    counts, left = [0] * len(room), layers
    for position, i in enumerate(sorted(range(len(room)), key=lambda i: room[i])):
        counts[i] = min(room[i], -(-left // (len(room) - position)) if left else 0)
        left -= counts[i]
    return counts if left == 0 else None


def _holds(plan: ShardingPlan, devices) -> bool:
    return all(shard.memory_bytes <= device.memory_bytes for shard, device in zip(plan.shards, devices, strict=True))


def _whole(device, needed, layers, speed) -> ShardingPlan:
    shard = ModelShard(shard_id=0, layer_range=(0, layers - 1), device=device.name, memory_bytes=needed)
    return ShardingPlan(strategy=ShardingStrategy.none(), shards=(shard,), total_memory_bytes=needed, estimated_tokens_per_sec=speed)


def _tensor(devices, needed, layers, speed) -> ShardingPlan:
    share = -(-needed // len(devices))
    shards = tuple(
        ModelShard(shard_id=i, layer_range=(0, layers - 1), device=device.name, memory_bytes=share) for i, device in enumerate(devices)
    )
    strategy = ShardingStrategy.tensor(len(devices))
    return ShardingPlan(strategy=strategy, shards=shards, total_memory_bytes=needed, estimated_tokens_per_sec=speed)


def _fastest(devices):
    return max(devices, key=lambda d: (d.speed, d.memory_bytes), default=None)


def _params(params) -> int:
    if isinstance(params, bool) or not isinstance(params, int) or params < 0:
        raise InvalidProblemError(f"params must be a whole number >= 0, got {params!r}")
    return params


def _devices(devices) -> list[DeviceProfile]:
    items = list(devices) if isinstance(devices, (list, tuple)) else None
    if not items or not all(isinstance(d, DeviceProfile) for d in items):
        raise InvalidProblemError(f"devices must be a sequence of at least one DeviceProfile, got {devices!r}"[:300])
    return items
