"""QuantizationLevel, memory estimates and sharding plans, against the worked vectors of ai-hwaccel."""
from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import tritonq
from tritonq.errors import InvalidProblemError
from tritonq.levels import QuantizationLevel
from tritonq.planner import (
    DeviceProfile,
    ModelShard,
    ShardingStrategy,
    estimate_memory,
    plan_sharding,
    suggest_quantization,
)
from tritonq.sizes import format_bytes, parse_bytes

VECTORS = {v["id"]: v for v in json.loads((Path(__file__).parents[1] / "data" / "seed_vectors.json").read_text())["vectors"]}
ESTIMATES = [v for i, v in VECTORS.items() if i.startswith("hwaccel.estimate_memory.")]
SUGGESTIONS = [v for i, v in VECTORS.items() if i.startswith("hwaccel.suggest.")]
KINDS = {"tpu": "tpu_v5p", "npu": "npu", "cpu": "cpu", "gpu": "cuda"}
GIB = 2**30


def test_level_table():
    for row in VECTORS["hwaccel.levels"]["expected_upstream"]:
        level = QuantizationLevel(row["serde"])
        assert (level.bits_per_param, str(level), level.memory_reduction_factor) == (
            row["bits_per_param"],
            row["display"],
            row["memory_reduction_factor"],
        )
        assert QuantizationLevel.parse(row["display"].lower()) is level and QuantizationLevel.parse(row["serde"]) is level
    assert len(QuantizationLevel) == 5


def test_from_bits():
    vector = VECTORS["hwaccel.try_from_u32"]
    for bits, expected in zip(vector["inputs"]["bits"], vector["expected_upstream"], strict=True):
        if isinstance(expected, dict):
            with pytest.raises(InvalidProblemError, match=f"{bits} bits; known: 32, 16, 8, 4"):
                QuantizationLevel.from_bits(bits)
        else:
            assert QuantizationLevel.from_bits(bits) is QuantizationLevel(expected)


@pytest.mark.parametrize("bits", [True, "8", 8.0, None, -4])
def test_from_bits_refuses(bits):
    with pytest.raises(InvalidProblemError):
        QuantizationLevel.from_bits(bits)


@pytest.mark.parametrize(
    "level, spellings",
    [
        ("NONE", "fp32 F32 none Float32"),
        ("FLOAT16", "fp16 F16 float16"),
        ("BFLOAT16", "bf16 BFloat16"),
        ("INT8", "int8 i8 Q8"),
        ("INT4", "INT4 i4 q4"),
    ],
)
def test_parse_spellings(level, spellings):
    for text in spellings.split():
        assert QuantizationLevel.parse(f" {text} ") is QuantizationLevel[level]


@pytest.mark.parametrize("text", ["int5", "", 4, None])
def test_parse_refuses(text):
    with pytest.raises(InvalidProblemError, match="unknown quantization level: .* \\(expected FP32, FP16, BF16, INT8, or INT4\\)"):
        QuantizationLevel.parse(text)


def test_vectors_are_there():
    assert len(ESTIMATES) >= 3 and len(SUGGESTIONS) >= 5


@pytest.mark.parametrize("vector", ESTIMATES, ids=lambda v: v["id"])
def test_estimate_memory_vectors(vector):
    for level, expected in vector["expected_recommended"].items():
        if level != "rule":
            assert estimate_memory(vector["inputs"]["params"], level) == expected


def test_estimate_memory_is_exact_beyond_64_bits():
    assert estimate_memory(10**30, QuantizationLevel.NONE) == 48 * 10**29
    assert estimate_memory(1, "int4") == 1  # 0.6 bytes, rounded up


def test_estimate_memory_counts_scales():
    from tritonq.scheme import Scheme

    # int4 with an fp16 scale per 128: 4.125 bits; nf4 with an fp32 absmax per 64: 4.5 bits
    assert estimate_memory(10**9, "int4.g128.s16") == 618_750_000
    assert estimate_memory(10**9, Scheme.parse("nf4.g64")) == estimate_memory(10**9, "nf4.g64") == 675_000_000


@pytest.mark.parametrize("params", [-1, 1.5, "7B", True, None])
def test_params_refused(params):
    for call in (lambda: estimate_memory(params, "int8"), lambda: suggest_quantization(params, "1GiB")):
        with pytest.raises(InvalidProblemError, match="params must be a whole number"):
            call()


@pytest.mark.parametrize("level", ["int4.q128", "elephant", 4, None, tritonq.quantize(torch.ones(1, 2), "int8")])
def test_level_refused(level):
    with pytest.raises(InvalidProblemError):
        estimate_memory(10, level)


@pytest.mark.parametrize("vector", SUGGESTIONS, ids=lambda v: v["id"])
def test_suggest_vectors(vector):
    devices = [DeviceProfile(name=kind, kind=KINDS[kind], memory=size) for kind, size in vector["params"].items()]
    level = QuantizationLevel(vector["expected_upstream"]["level"])
    if vector["id"] == "hwaccel.suggest.70b_cpu2":
        level = None  # 42 GB of INT4 do not fit 2 GiB; the upstream says INT4 all the same
    assert suggest_quantization(vector["inputs"]["params"], devices) is level


def test_suggest_by_memory():
    assert suggest_quantization(7 * 10**9, 4 * GIB) is QuantizationLevel.INT4  # 4.2e9 <= 4.295e9
    assert suggest_quantization(7 * 10**9, 4_199_999_999) is None
    assert suggest_quantization(7 * 10**9, "24GiB") is QuantizationLevel.FLOAT16
    assert suggest_quantization(7 * 10**9, 8_400_000_000) is QuantizationLevel.INT8  # exactly as much as it needs


def gpus(*gib, kind="cuda", **more):
    return [DeviceProfile(name=f"{kind}{i}", kind=kind, memory=f"{size}GiB", **more) for i, size in enumerate(gib)]


CPU16 = DeviceProfile(name="cpu", kind="cpu", memory="16GiB")


def test_plan_fits_one_device():
    vector = VECTORS["hwaccel.plan.7b_fp16_1x80g"]["expected_upstream"]
    plan = plan_sharding(7 * 10**9, "fp16", [CPU16, *gpus(80)])
    assert plan.fits and str(plan.strategy) == vector["strategy"] and plan.shards[0].device == "cuda0"
    assert plan.total_memory_bytes == vector["total_memory_bytes"]
    assert plan.estimated_tokens_per_sec == pytest.approx(vector["estimated_tokens_per_sec"], rel=1e-12)


def test_plan_two_devices():
    vector = VECTORS["hwaccel.plan.7b_fp16_2x8g_cuda"]["expected_upstream"]
    plan = plan_sharding(7 * 10**9, "fp16", [CPU16, *gpus(8, 8)])
    assert str(plan.strategy) == vector["strategy"] and plan.total_memory_bytes == vector["total_memory_bytes"]
    assert [list(s.layer_range) for s in plan.shards] == vector["layer_ranges"]
    assert [s.memory_bytes for s in plan.shards] == [vector["per_shard_bytes"]] * 2
    # The upstream forgets to divide by the size of the model wherever there are several devices.
    assert plan.estimated_tokens_per_sec == pytest.approx(vector["estimated_tokens_per_sec"] / 7, rel=1e-12)
    assert str(plan) == (
        "Strategy: Pipeline Parallel (2 stages)\nTotal memory: 15.6 GiB\nEst. throughput: 7 tok/s\n"
        "  shard 0: layers 0-13 on cuda0, 7.82 GiB\n  shard 1: layers 14-27 on cuda1, 7.82 GiB"
    )


def test_plan_interconnect():
    devices = gpus(8, 8)
    for links, bonus in (({"nvswitch": True}, 1.8), ({"bandwidth_gbps": 300}, 1.8), ({"bandwidth_gbps": 120}, 1.6)):
        fast = plan_sharding(7 * 10**9, "fp16", devices, **links)
        assert fast.strategy == ShardingStrategy.tensor(2) and fast.estimated_tokens_per_sec == pytest.approx(20 * 2 * 2 / 7 * bonus)
    slow = plan_sharding(7 * 10**9, "fp16", devices, bandwidth_gbps=50)
    assert slow.strategy == ShardingStrategy.pipeline(2) and slow.estimated_tokens_per_sec == pytest.approx(20 * 2 * 2 / 7 * 0.85)


@pytest.mark.parametrize("fast", [{}, {"nvswitch": True}, {"bandwidth_gbps": 200}])
def test_plan_of_unequal_devices_is_a_pipeline_whatever_links_them(fast):
    plan = plan_sharding(40_000_000_000, "FP16", gpus(80, 24), num_layers=40, **fast)
    assert plan.strategy == ShardingStrategy.pipeline(2) and [s.num_layers() for s in plan.shards] == [30, 10]


def test_plan_tpu_chips():
    plan = plan_sharding(70 * 10**9, "bf16", gpus(384, kind="tpu_v5p", chips=4) + gpus(64, kind="tpu_v5p"))
    assert plan.fits  # one device holds it
    plan = plan_sharding(70 * 10**9, "bf16", gpus(100, 100, kind="tpu_v5p", chips=4))
    assert plan.strategy == ShardingStrategy.tensor(8) and {s.memory_bytes for s in plan.shards} == {21 * 10**9}
    assert plan.estimated_tokens_per_sec == pytest.approx(35 * 8 * 2 / 70 * 2)


def test_stages_follow_the_numa_nodes():
    devices = [DeviceProfile(name=f"node {node}", kind="cuda", memory="8GiB", numa_node=node) for node in (None, 2, 0, 1)]
    plan = plan_sharding(12 * 10**9, "fp16", devices)
    assert [s.device for s in plan.shards] == ["node 0", "node 1", "node 2", "node None"]


def test_plan_never_has_more_stages_than_layers():
    plan = plan_sharding(500_000_000, "fp32", gpus(*[1.5] * 6))
    assert plan.strategy == ShardingStrategy.pipeline(2)
    assert [s.layer_range for s in plan.shards] == [(0, 0), (1, 1)]


def test_plan_gives_small_devices_fewer_layers():
    plan = plan_sharding(7 * 10**9, "fp16", gpus(4, 14))
    assert [s.num_layers() for s in plan.shards] == [7, 21]
    assert all(s.memory_bytes <= size * GIB for s, size in zip(plan.shards, (4, 14), strict=True))
    assert sum(s.memory_bytes for s in plan.shards) == plan.total_memory_bytes


def test_plan_falls_back_to_cpu_and_says_does_not_fit():
    assert plan_sharding(7 * 10**9, "fp16", [CPU16, *gpus(2)]).shards[0].device == "cpu"
    plan = plan_sharding(70 * 10**9, "fp16", [CPU16, *gpus(8, 8)])
    assert not plan.fits and plan.shards == () and "156.46 GiB are needed" in plan.reason
    assert "Does not fit" in str(plan)


def test_plan_zero_params():
    plan = plan_sharding(0, "int8", gpus(8))
    assert plan.total_memory_bytes == 0 and plan.estimated_tokens_per_sec == 0


@pytest.mark.parametrize(
    "call, text",
    [
        (lambda: plan_sharding(10, "int8", []), "at least one DeviceProfile"),
        (lambda: plan_sharding(10, "int8", ["cuda"]), "at least one DeviceProfile"),
        (lambda: plan_sharding(10, "int8", gpus(1), num_layers=0), "num_layers must be a whole number >= 1, got 0"),
        (lambda: plan_sharding(12 * 10**9, "int8", gpus(8, 8), nvswitch="no"), "nvswitch must be a bool, got str 'no'"),
        (lambda: DeviceProfile(name=5, kind="cuda", memory=1), "the name of a device must be a str, got int 5"),
        (lambda: DeviceProfile(name="x", kind="gpu9", memory=1), "unknown kind 'gpu9'; known: cpu, cuda"),
        (lambda: DeviceProfile(name="x", kind="cuda", memory="much"), "cannot read 'much' as a number of bytes"),
        (lambda: DeviceProfile(name="x", kind="tpu_v4", memory=1, chips=0), "at least 1 chip, got 0"),
        (lambda: DeviceProfile(name="x", kind="tpu_v4", memory=1, chips="2"), "at least 1 chip, got '2'"),
        (lambda: DeviceProfile(name="x", kind=["c"], memory=1), "unknown kind \\['c'\\]"),
        (lambda: DeviceProfile(name="x", kind="cuda", memory=1, numa_node="a"), "numa_node, got 'a'"),
        (lambda: plan_sharding(10, "int8", gpus(1), bandwidth_gbps="x"), "bandwidth_gbps must be a number >= 0 or None, got 'x'"),
        (lambda: plan_sharding(10, "int8", gpus(1), bandwidth_gbps=-1), "bandwidth_gbps must be a number >= 0 or None, got -1"),
        (lambda: suggest_quantization(10, -1), "cannot read -1"),
    ],
)
def test_bad_plans(call, text):
    with pytest.raises(InvalidProblemError, match=text):
        call()


def test_strategies_and_shards():
    assert [str(s) for s in (ShardingStrategy(), ShardingStrategy.pipeline(3), ShardingStrategy.tensor(2), ShardingStrategy.data(4))] == [
        "None",
        "Pipeline Parallel (3 stages)",
        "Tensor Parallel (2 devices)",
        "Data Parallel (4 replicas)",
    ]
    assert ShardingStrategy.none().min_devices() == 1 and ShardingStrategy.data(4).min_devices() == 4
    shard = ModelShard(shard_id=0, layer_range=(5, 3), device="cpu", memory_bytes=1)
    assert shard.num_layers() == 0 and not shard.is_valid()


def test_sizes():
    assert [parse_bytes(t) for t in ("24GiB", "24gb", "1.5 KiB", "7", "2T", 9)] == [24 * GIB, 24 * 10**9, 1536, 7, 2**41, 9]
    assert [format_bytes(n) for n in (0, 1023, 1024, 3 << 29, 1 << 40, 10**18)] == [
        "0 B", "1023 B", "1.00 KiB", "1.50 GiB", "1.00 TiB", "909494.70 TiB",
    ]
    assert format_bytes(10**5000) == "at least 2^16609 B"
