"""The worked vectors of the seed systems: every one is run here, run by a named test elsewhere, or listed with the reason why not.

A vector's recorded value is kept verbatim unless RECOMPUTED names it: then the numeric rules of this library give another value (ranges
without extent, tiny ranges, unclamped zero points, NaN), tests/oracles/plain_methods.py computes it one number at a time, and
the test insists that it differs from the record, so that the table cannot go stale. Integer vectors are held to that oracle in any case.
"""
from __future__ import annotations

import json
import math
import struct
from pathlib import Path

import pytest
import torch

import tritonq
from tests.oracles.plain_methods import Plain, f32, plain_columns, plain_group
from tritonq import Nf4Quantizer, QuantizationLevel, QuantizationMethod, QuantizedDataType, Scheme
from tritonq.errors import InvalidProblemError
from tritonq.formats import get_format
from tritonq.formats.nf4 import BOUNDS
from tritonq.plans import (
    FakeQuantizeArgs,
    FakeQuantizeBackwardArgs,
    FakeQuantizeBackwardPlan,
    FakeQuantizeDescriptor,
    FakeQuantizePlan,
)

VECTORS = json.loads((Path(__file__).parents[1] / "data" / "seed_vectors.json").read_text())["vectors"]
BY_ID = {v["id"]: v for v in VECTORS}
METHODS = {m.value: m for m in QuantizationMethod}

RECOMPUTED = {
    "scirs2.matrix.positive_2x3.Affine.b7": "range contains 0, zero point is a code",
    "scirs2.matrix.positive_2x3.PerChannelAffine.b7": "range contains 0, zero point is a code",
    "scirs2.matrix.constant_neg3_2x2.Affine.b8": "range contains 0, zero point is a code",
    "scirs2.matrix.constant_neg3_2x2.PerChannelAffine.b8": "range contains 0, zero point is a code",
    "scirs2.matrix.zeros_2x2.Uniform.b8": "no extent: scale 1",
    "scirs2.matrix.zeros_2x2.PowerOfTwo.b8": "no extent: scale 1",
    "scirs2.matrix.constant_neg3_2x2.UInt4.b4": "no extent: scale 1",
    "scirs2.matrix.constant3_2x2.Symmetric.b8": "a constant has a range of its own: absmax / S",
    "scirs2.matrix.constant3_2x2.Int4.b4": "a constant has a range of its own: absmax / S",
    "scirs2.matrix.constant3_2x2.PerChannelSymmetric.b8": "a constant has a range of its own: absmax / S",
    "scirs2.vector.single_0.5.Symmetric.b8": "a constant has a range of its own: absmax / S",
    "scirs2.vector.single_0.5.Int4.b4": "a constant has a range of its own: absmax / S",
    "scirs2.matrix.tiny_1x2.Symmetric.b8": "a small range is a range",
    "scirs2.matrix.tiny_1x2.Int4.b4": "a small range is a range",
    "scirs2.matrix.tiny_1x2.PerChannelSymmetric.b8": "a small range is a range",
    "oxicuda.minmax.zeros.Symmetric.b8": "no extent: scale 1",
    "oxicuda.minmax.nan.Asymmetric.b4": "NaN is coded as zero, which is the zero point",
    "oxicuda.minmax_group.three_groups.Symmetric.b4": "no extent: scale 1",
    "scirs2.matmul.AffinexAffine.b7": "range contains 0, zero point is a code",
    "scirs2.matmul.PerChannelAffinexPerChannelAffine.b8": "range contains 0, zero point is a code",
    "scirs2.matvec.Affine.b8": "range contains 0, zero point is a code",
    "oxicuda.minmax.inf.Asymmetric.b8": "Inf saturates and does not enter the range, instead of an error",
    "oxicuda.minmax.empty.Asymmetric.b8": "an empty tensor gives an empty result, instead of an error",
    "oxicuda.nf4.nan_bs4": "NaN is coded as zero, instead of the most negative level",
    "oxicuda.fp8.nonfinite.E5M2": "NaN is coded as zero, instead of the NaN code",
}
# No name of the public surface does this.
OUT_OF_SCOPE = {
    "oxicuda.gptq.identity.sym": "GPTQ needs calibration data; the library quantizes weights by rounding",
    "oxicuda.gptq.corr.asym": "GPTQ needs calibration data; the library quantizes weights by rounding",
    "oxicuda.smoothquant.scales": "migration of activation ranges into weights needs calibration data",
    "oxicuda.smoothquant.layer": "migration of activation ranges into weights needs calibration data",
    "oxicuda.magnitude_prune.L1.0.5": "pruning",
    "oxicuda.magnitude_prune.tie_anomaly": "pruning",
    "oxicuda.histogram.sym": "histogram observer of activations",
    "baracuda.gptq_to_marlin": "the code remap of one kernel's private layout",
    "hwaccel.training.7b_qlora4_gpu": "memory of training",
}
# Run here in part: what is left out, and why.
PARTIAL = {
    "oxicuda.compression": "the ratios of pruned layers: pruning",
    "oxicuda.observers": "the moving average of activation ranges: arithmetic of the caller",
    "oxicuda_new.ggml.q4_0": "the scale, max / -8 with the sign kept: no scheme",
}
PACKINGS = ("baracuda.s4.", "baracuda.awq.", "baracuda.gguf.")
ELSEWHERE = {
    "test_levels_planner.py": [i for i in BY_ID if i.startswith("hwaccel.") and i not in OUT_OF_SCOPE],
    "test_seed_plans.py": [i for i in BY_ID if i.startswith("baracuda.") and not i.startswith(PACKINGS) and i not in OUT_OF_SCOPE],
}
RUN_HERE: set[str] = set()


def runs(*names: str):
    """Parametrize over the vectors whose id is, or starts with, one of ``names``, and count them as run."""
    chosen = [v for v in VECTORS if v["id"].startswith(names)]
    assert chosen
    RUN_HERE.update(v["id"] for v in chosen)
    return pytest.mark.parametrize("vector", chosen, ids=[v["id"] for v in chosen])


def numbers(values: list) -> list[float]:
    """JSON numbers; NaN and the infinities are strings there."""
    return [float(v) for v in values]


def agrees(vector: dict, got: dict, recorded: dict) -> None:
    """``got`` equals the record in every field that both have, or, for a recomputed vector, differs in one."""
    fields = sorted(got.keys() & recorded.keys())
    assert fields, "nothing to compare"
    differing = [name for name in fields if got[name] != recorded[name]]
    if vector["id"] in RECOMPUTED:
        assert differing, "equals the record: it no longer belongs in RECOMPUTED"
    else:
        assert not differing, {name: (got[name], recorded[name]) for name in differing}


# scirs2-linalg -----------------------------------------------------------------------------------------------------------------

KIND = {"Symmetric": "symmetric", "Int4": "symmetric", "PerChannelSymmetric": "symmetric", "Affine": "affine", "PerChannelAffine": "affine",
        "Uniform": "float_zero", "PowerOfTwo": "float_zero", "UInt4": "float_zero"}  # fmt: skip


@runs(*(v["id"] for v in VECTORS if v["id"].startswith(("scirs2.matrix.", "scirs2.vector.")) and not v["id"].endswith(".b16")))
def test_scirs2_integer_methods(vector: dict) -> None:
    params, values = vector["params"], numbers(vector["inputs"]["x"])
    method, bits, shape = METHODS[params["method"]], params["bits"], params["shape"]
    x = torch.tensor(values).view(shape)
    is_vector = len(shape) == 1
    quantize = tritonq.quantize_vector if is_vector else tritonq.quantize_matrix
    if method.per_channel:
        quantize = tritonq.quantize_matrix_per_channel
    q, chosen = quantize(x, bits, method, rounding="half_away")
    decode = tritonq.dequantize_vector if is_vector else tritonq.dequantize_matrix
    codes, decoded = q.codes().flatten().tolist(), decode(q, chosen).flatten().tolist()

    kind = KIND[params["method"]]
    if method.per_channel:
        columns = plain_columns(x.tolist(), bits, kind, away=True)
        assert codes == [column.codes[row] for row in range(shape[0]) for column in columns]
        assert decoded == [column.decoded[row] for row in range(shape[0]) for column in columns]
        assert list(chosen.channel_scales) == [column.scale for column in columns]
        assert list(chosen.channel_zero_points) == [column.zero_point for column in columns]
        assert chosen.scale == pytest.approx(sum(chosen.channel_scales) / len(columns), rel=1e-6)
    else:
        plain = plain_group(values, bits, kind, away=True, power_of_two=method is QuantizationMethod.POWER_OF_TWO)
        assert (chosen.scale, codes, decoded) == (plain.scale, plain.codes, plain.decoded)
        if kind == "affine":
            assert chosen.zero_point == plain.zero_point
        if kind == "float_zero":
            assert chosen.min_val == plain.offset
    assert chosen.method is method and chosen.bits == bits and not math.isnan(sum(decoded))

    got = {"scale": chosen.scale, "zero_point": chosen.zero_point, "min_val": chosen.min_val, "codes": codes, "dequantized": decoded,
           "code_range": list(method.code_range(bits))}  # fmt: skip
    if method.per_channel:
        got |= {"channel_scales": list(chosen.channel_scales), "channel_zero_points": list(chosen.channel_zero_points)}
    recorded = vector["expected_recommended"]
    agrees(vector, got, recorded)
    if "packed_bytes_low_nibble_first" in recorded and vector["id"] not in RECOMPUTED:
        flat = q.codes().flatten()
        assert tritonq.pack(flat, 4, order="low_first").tolist() == recorded["packed_bytes_low_nibble_first"]
        high = tritonq.pack(flat, 4, order="high_first").tolist()
        padding = len(recorded["packed_bytes_high_nibble_first"]) - len(high)  # upstream counts a byte per row
        assert high + [0] * padding == recorded["packed_bytes_high_nibble_first"]


@runs(*(v["id"] for v in VECTORS if v["id"].startswith(("scirs2.matrix.", "scirs2.vector.")) and v["id"].endswith(".b16")))
def test_scirs2_casts(vector: dict) -> None:
    params, record = vector["params"], vector["expected_upstream"]
    x = torch.tensor(numbers(vector["inputs"]["x"])).view(params["shape"])
    is_vector = x.dim() == 1
    q, chosen = (tritonq.quantize_vector if is_vector else tritonq.quantize_matrix)(x, params["bits"], METHODS[params["method"]])
    decoded = (tritonq.dequantize_vector if is_vector else tritonq.dequantize_matrix)(q, chosen)
    assert q.codes().flatten().tolist() == record["storage_bits_u16"] and decoded.flatten().tolist() == record["dequantized"]
    assert (chosen.bits, chosen.scale, chosen.zero_point) == (record["bits"], record["scale"], record["zero_point"])
    assert chosen.data_type is QuantizedDataType(params["method"])


@runs("scirs2.matmul.", "scirs2.matvec.", "scirs2.dot.")
def test_scirs2_products(vector: dict) -> None:
    params, inputs = vector["params"], vector["inputs"]
    a_method, b_method = (METHODS[params.get(f"{side}_method", params.get("method"))] for side in "ab")
    a, b = torch.tensor(inputs["a"]).float(), torch.tensor(inputs.get("b", inputs.get("x"))).float()
    rounding = "half_away"
    if vector["op"] == "quantized_dot":
        left = tritonq.quantize_vector(a, params["bits"], a_method, rounding)
        right = tritonq.quantize_vector(b, params["bits"], b_method, rounding)
        result = tritonq.quantized_dot(*left, *right)
    elif vector["op"] == "quantized_matvec":
        left = tritonq.quantize_matrix(a, params["bits"], a_method, rounding)
        right = tritonq.quantize_vector(b, params["bits"], b_method, rounding)
        result = tritonq.quantized_matvec(*left, *right)
    else:
        m, k, n = params["m"], params["k"], params["n"]
        left = tritonq.quantize_matrix(a.view(m, k), params["bits"], a_method, rounding)
        right = tritonq.quantize_matrix(b.view(k, n), params["bits"], b_method, rounding)
        result = tritonq.quantized_matmul(*left, *right)
    exact = vector["expected_recommended"]["result_from_dequantized_f64"]
    exact = torch.tensor(exact, dtype=torch.float64).flatten()
    # The record multiplies values decoded in float32, two roundings each; the result is rounded once more. All terms are positive here.
    bound = 5 * 2.0**-24 * exact
    within = (result.double().flatten() - exact).abs() <= bound
    if vector["id"] not in RECOMPUTED:
        assert within.all(), (result, exact)
        return
    assert not within.all()
    assert _plain_product(vector, a, b) == pytest.approx(result.flatten().tolist(), rel=2.0**-22)


def _plain_product(vector: dict, a: torch.Tensor, b: torch.Tensor) -> list[float]:
    """The product of what plain_methods decodes, for the affine methods of RECOMPUTED."""
    bits = vector["params"]["bits"]

    def decoded(values: torch.Tensor) -> list[list[float]]:
        if "PerChannel" in vector["id"]:
            columns = plain_columns(values.tolist(), bits, "affine", away=True)
            return [[column.decoded[row] for column in columns] for row in range(len(values))]
        flat = plain_group(values.flatten().tolist(), bits, "affine", away=True).decoded
        return torch.tensor(flat, dtype=torch.float64).view(values.shape).tolist()

    if vector["op"] == "quantized_matvec":
        b = b[:, None]
    left, right = decoded(a.view(2, 2)), decoded(b.view(2, -1))
    return [sum(left[i][k] * right[k][j] for k in range(2)) for i in range(2) for j in range(len(right[0]))]


@runs("scirs2.create_params.")
def test_scirs2_create_params(vector: dict) -> None:
    params, inputs, record = vector["params"], vector["inputs"], vector["expected_upstream"]
    chosen = tritonq.create_params_from_range(params["bits"], inputs["min"], inputs["max"], symmetric=params["symmetric"])
    assert (chosen.scale, chosen.zero_point, chosen.method.value) == (record["scale"], record["zero_point"], record["method"])


# oxicuda-quant -----------------------------------------------------------------------------------------------------------------


@runs(*(v["id"] for v in VECTORS if v["op"] == "MinMaxQuantizer calibrate+quantize+dequantize" and "group" not in v["id"]))
def test_oxicuda_minmax(vector: dict) -> None:
    symmetric, bits = vector["params"]["scheme"] == "Symmetric", vector["params"]["bits"]
    values = numbers(vector["inputs"]["x"])
    # The record of a symmetric vector is the upstream result, half away from zero; the recommended one is half to even.
    recorded = vector.get("expected_recommended", vector["expected_upstream"])
    away = "expected_recommended" not in vector
    q = tritonq.quantize(torch.tensor([values]), f"{'int' if symmetric else 'uint'}{bits}.tensor{'.away' * away}")
    plain = plain_group(values, bits, "symmetric" if symmetric else "affine", away=away)
    got = {"scale": q.scale.item(), "zero_point": 0 if symmetric else q.zero_point.item(), "codes": q.codes().flatten().tolist(),
           "dequantized": q.dequantize().flatten().tolist()}  # fmt: skip
    assert got == {"scale": plain.scale, "zero_point": plain.zero_point, "codes": plain.codes, "dequantized": plain.decoded}
    agrees(vector, got, recorded)


@runs("oxicuda.minmax_group.")
def test_oxicuda_minmax_groups(vector: dict) -> None:
    bits, group = vector["params"]["bits"], vector["params"]["group_size"]
    values = numbers(vector["inputs"]["x"])
    q = tritonq.quantize(torch.tensor([values]), f"int{bits}.g{group}.away")
    plain = [plain_group(values[i : i + group], bits, "symmetric", away=True) for i in range(0, len(values), group)]
    got = _collect(q, plain)
    agrees(vector, got, vector["expected_upstream"])
    nonzero = [i for i, p in enumerate(plain) if any(p.codes)]
    assert [got["scales"][i] for i in nonzero] == [vector["expected_upstream"]["scales"][i] for i in nonzero]
    assert got["codes"] == vector["expected_upstream"]["codes"] and got["dequantized"] == vector["expected_upstream"]["dequantized"]


def _collect(q: tritonq.QTensor, plain: list[Plain]) -> dict:
    got = {"scales": q.scale.flatten().tolist(), "codes": q.codes().flatten().tolist(), "dequantized": q.dequantize().flatten().tolist()}
    assert got["scales"] == [p.scale for p in plain]
    assert got["codes"] == [code for p in plain for code in p.codes]
    assert got["dequantized"] == [value for p in plain for value in p.decoded]
    return got


@runs("oxicuda.minmax.calibrate_2d")
def test_oxicuda_channels_are_rows(vector: dict) -> None:
    rows, record = vector["params"]["rows"], vector["expected_upstream"]
    q = tritonq.quantize(torch.tensor(numbers(vector["inputs"]["x"])).view(rows, -1), "int8.channel")
    assert q.scale.flatten().tolist() == record["scales"] and q.zero_point is None and set(record["zero_points"]) == {0}


@runs(*(v["id"] for v in VECTORS if v["op"] == "MinMaxQuantizer::calibrate"))
def test_oxicuda_minmax_refusals(vector: dict) -> None:
    bits, values = vector["params"]["bits"], numbers(vector["inputs"]["x"])
    assert "error" in vector["expected_upstream"]
    name = f"{'int' if vector['params']['scheme'] == 'Symmetric' else 'uint'}{bits}.tensor"
    if vector["id"] not in RECOMPUTED:
        with pytest.raises(InvalidProblemError, match="unknown format 'int1'; known formats and presets: .*int2"):
            tritonq.quantize(torch.tensor([values]), name)
        return
    q = tritonq.quantize(torch.tensor([values]), name)
    plain = plain_group(values, bits, "affine", away=False)
    assert q.codes().flatten().tolist() == plain.codes and q.dequantize().flatten().tolist() == plain.decoded
    assert q.scale.flatten().tolist() == [plain.scale] * bool(values)


@runs("oxicuda.fake_quantize.")
def test_oxicuda_fake_quantize(vector: dict) -> None:
    params, record = vector["params"], vector["expected_recommended"]
    x, gradient = (torch.tensor(numbers(vector["inputs"][name])) for name in ("x", "grad_output"))
    low, high = vector["expected_upstream"]["quant_range"]
    desc = FakeQuantizeDescriptor(numel=x.numel(), q_min=low, q_max=high)
    given = {"input": x, "scale": params["scale"], "zero_point": params["zero_point"]}
    assert FakeQuantizePlan.select(None, desc).run(None, None, FakeQuantizeArgs(**given)).tolist() == record["forward"]
    backward = FakeQuantizeBackwardPlan.select(None, desc).run(None, None, FakeQuantizeBackwardArgs(**given, d_output=gradient))
    assert backward.tolist() == record["backward"]


@runs("oxicuda.observers")
def test_oxicuda_minmax_observer(vector: dict) -> None:
    """Ranges over finite values, and the parameters of a range; the moving average itself is arithmetic of the caller."""
    inputs, record = vector["inputs"], vector["expected_upstream"]
    for data, symmetric in (("minmax_sym_data", True), ("minmax_asym_data", False)):
        low, high = tritonq.find_min_max(torch.tensor(numbers(inputs[data])))
        chosen = tritonq.create_params_from_range(8, low, high, symmetric=symmetric)
        assert [chosen.scale, chosen.zero_point] == record["minmax_sym" if symmetric else "minmax_asym"]
    moving = record["moving"]
    chosen = tritonq.create_params_from_range(8, moving["min"], moving["max"], symmetric=True)
    assert (chosen.scale, chosen.zero_point) == (moving["scale"], moving["zp"])


@runs("oxicuda.nf4.lut")
def test_nf4_table(vector: dict) -> None:
    levels = get_format("nf4").levels
    assert levels.tolist() == vector["expected_recommended"]["values"]
    assert _hex(levels.tolist()) == vector["expected_recommended"]["f32_hex"]


def _hex(values: list[float]) -> list[str]:
    return [struct.pack(">f", value).hex() for value in values]


@runs("oxicuda.nf4.upstream_ramp128_bs64", "oxicuda.nf4.levels_times3_bs16")
def test_nf4_encode_decode(vector: dict) -> None:
    record, values = vector["expected_recommended"], numbers(vector["inputs"]["x"])
    quantizer = Nf4Quantizer(block_size=vector["params"]["block_size"])
    packed, absmax = quantizer.encode(values)
    assert packed.tolist() == record["packed_low_nibble_first"] and absmax.tolist() == record["absmax"]
    codes = tritonq.unpack(packed, 4, len(values))
    assert codes.tolist() == record["codes"]
    assert tritonq.pack(codes, 4, order="high_first").tolist() == record["packed_high_nibble_first_bitsandbytes"]
    decoded = quantizer.decode(packed, absmax).tolist()
    assert decoded == record["dequantized"]
    mse = sum((a - b) ** 2 for a, b in zip(decoded, values, strict=True)) / len(values)
    assert quantizer.quantization_mse(values) == pytest.approx(mse, rel=1e-12)
    assert mse == pytest.approx(vector["expected_upstream"]["mse"], rel=1e-4, abs=1e-12)  # another table, by one unit in the last place


@runs("oxicuda.nf4.nan_bs4")
def test_nf4_nan(vector: dict) -> None:
    quantizer = Nf4Quantizer(block_size=4)
    packed, absmax = quantizer.encode(numbers(vector["inputs"]["x"]))
    record = vector["expected_upstream"]
    codes = [7 if math.isnan(float(x)) else code for x, code in zip(vector["inputs"]["x"], record["codes"], strict=True)]
    assert tritonq.unpack(packed, 4, 4).tolist() == codes != record["codes"]
    assert absmax.tolist() == record["absmax"] and quantizer.decode(packed, absmax)[1].item() == 0.0


@runs("oxicuda.nf4.mismatch")
def test_nf4_length(vector: dict) -> None:
    with pytest.raises(InvalidProblemError, match="x has 65 elements, no multiple of the block size 64"):
        Nf4Quantizer().encode(numbers(vector["inputs"]["x"]))


@runs("oxicuda.fp8.decode_all.E4M3")
def test_fp8_decode(vector: dict) -> None:
    record = numbers(vector["expected_recommended"]["decoded"])
    codes = torch.arange(256, dtype=torch.uint8)[None]
    q = tritonq.QTensor.from_tensors("fp8_e4m3.tensor", (1, 256), torch.float32, {"packed": codes, "scale": torch.ones(1, 1)})
    decoded = q.dequantize()[0].tolist()
    assert [c for c in range(256) if math.isnan(record[c])] == [c for c in range(256) if math.isnan(decoded[c])] == [127, 255]
    assert all(_hex([decoded[c]]) == _hex([record[c]]) for c in range(256) if c not in (127, 255))  # hex: -0 is not 0


@runs("oxicuda.fp8.encode.E4M3")
def test_fp8_encode(vector: dict) -> None:
    record, values = vector["expected_recommended"], torch.tensor(numbers(vector["inputs"]["x"]))
    fmt = get_format("fp8_e4m3")
    codes = fmt.encode_ref(values)
    assert codes.tolist() == record["codes"] and _hex(fmt.decode_ref(codes).tolist()) == _hex(record["decoded"])
    within = values.abs() <= 448  # through the front door: the largest value in the row fixes the scale at 1
    q = tritonq.quantize(torch.cat([values[within], torch.tensor([448.0])])[None], "fp8_e4m3.tensor")
    assert q.scale.item() == 1.0 and q.codes()[0, :-1].tolist() == codes[within].tolist()


@runs("oxicuda.fp8.nonfinite.E5M2")
def test_fp8_nonfinite(vector: dict) -> None:
    x = torch.tensor([[*numbers(vector["inputs"]["x"]), 57344.0]])
    q = tritonq.quantize(x, "fp8_e5m2.tensor")
    assert q.codes().tolist() == [[0, 0x7B, 0x7B]] and q.dequantize().tolist() == [[0.0, 57344.0, 57344.0]]


@runs("oxicuda.compression")
def test_compression(vector: dict) -> None:
    """The unpruned half of the record."""
    for name in ("int8", "int4"):
        assert QuantizationLevel.parse(name).memory_reduction_factor == vector["expected_upstream"][name]


@runs("oxicuda.sensitivity")
def test_sensitivity(vector: dict) -> None:
    x = torch.tensor([numbers(vector["inputs"]["weights"])])
    mse = [(tritonq.quantize(x, f"int{bits}.tensor.away").dequantize() - x).square().mean().item() for bits in vector["params"]["bits"]]
    assert mse == pytest.approx(vector["expected_upstream"]["mse"], rel=1e-4)


@runs("oxicuda_new.ggml.q8_0")
def test_ggml_q8_0(vector: dict) -> None:
    record = vector["expected_upstream"]
    q = tritonq.quantize(torch.tensor([numbers(vector["inputs"]["x"])]), "int8.g32.narrow.away.s16")
    assert q.scale.item() == record["d"] and q.scale.view(torch.int16).item() == record["d_f16_bits"]
    assert q.codes()[0].tolist() == record["q"] and q.dequantize()[0].tolist() == record["dequantized"]


@runs("oxicuda_new.ggml.q4_0")
def test_ggml_q4_0(vector: dict) -> None:
    """Bytes and values of the block; its scale, max / -8 with the sign kept, is no scheme here."""
    record, codes = vector["expected_upstream"], torch.tensor(vector["expected_recommended"]["ggml_reference_codes"])
    packed = tritonq.pack(codes, 4, order="ggml")
    assert packed.tolist() == record["packed_low_nibble_is_i_high_is_i_plus_16"] == vector["expected_recommended"]["packed"]
    assert ((tritonq.unpack(packed, 4, 32, order="ggml").float() - 8) * record["d"]).tolist() == record["dequantized"]


# references, recommendations and packings ------------------------------------------------------------------------------------


@runs("rounding.modes")
def test_rounding_modes(vector: dict) -> None:
    x = torch.tensor([vector["inputs"]["x"]])
    for option, name in (("", "half_to_even"), (".away", "half_away_from_zero")):
        q = tritonq.quantize(x, f"int8.tensor{option}")
        assert q.scale.item() == vector["params"]["scale"] and q.codes()[0].tolist() == vector["expected_recommended"][name]


@runs("bitsandbytes.nf4.thresholds")
def test_nf4_thresholds(vector: dict) -> None:
    record = vector["expected_recommended"]
    assert list(BOUNDS) == record["thresholds"] and _hex(list(BOUNDS)) == record["thresholds_f32_hex"]
    up, down = (torch.nextafter(torch.tensor(record["thresholds"]), torch.tensor(end)) for end in (2.0, -2.0))
    for i, x in enumerate(record["thresholds"]):
        q = tritonq.quantize(torch.tensor([[1.0, down[i], x, up[i]]]), "nf4.g4")  # the 1 fixes absmax
        assert q.codes()[0].tolist() == [15, i, i, i + 1]


@runs("ocp.fp4_e2m1.levels")
def test_e2m1_levels(vector: dict) -> None:
    record = vector["expected_recommended"]
    levels = get_format("fp4_e2m1").levels
    assert levels[:8].tolist() == record["levels"] and _hex(levels[8:].tolist()) == _hex([-v for v in record["levels"]])
    ties = [(a + b) / 2 for a, b in zip(record["levels"], record["levels"][1:])]
    codes = tritonq.quantize(torch.tensor([[record["max"], *ties]]), "fp4_e2m1.tensor").codes()[0].tolist()
    assert codes == [7, *(i if i % 2 == 0 else i + 1 for i in range(7))]


@runs("recommended.metadata.")
def test_bits_with_metadata(vector: dict) -> None:
    params, record = vector["params"], vector["expected_recommended"]
    scheme = Scheme.parse("nf4.g64" if "nf4" in vector["id"] else "int4.g128.s16")
    assert scheme.group_size == params.get("group_size", params.get("block_size"))
    assert scheme.bits_per_weight() == record["effective_bits_per_param"]
    assert scheme.bits_per_weight() * params["params"] / 8 == record["bytes"]
    q = tritonq.quantize(torch.randn(8, 1024), scheme)
    assert q.bits_per_weight == record["effective_bits_per_param"]


@runs("baracuda.s4.pack")
def test_s4_pack(vector: dict) -> None:
    values = torch.tensor(vector["inputs"]["values"])
    assert tritonq.pack(values, 4).tolist() == vector["expected_upstream"]["bytes"]
    assert tritonq.pack(values, 4, order="high_first").tolist() == vector["expected_recommended"]["high_nibble_first"]
    assert tritonq.pack(values[:5], 4).tolist() == vector["expected_recommended"]["odd_length_5_low_first"]
    for length, order in ((6, "low_first"), (5, "low_first"), (6, "high_first")):
        packed = tritonq.pack(values[:length], 4, order=order)
        assert tritonq.unpack(packed, 4, length, order=order).tolist() == [v % 16 for v in vector["inputs"]["values"][:length]]


@runs("baracuda.awq.pack_order", "gptq.pack_order")
def test_word_orders(vector: dict) -> None:
    order = "awq" if "awq" in vector["id"] else "gptq_int32"
    word = tritonq.pack(torch.tensor(vector["inputs"]["values"]), 4, order=order)
    assert [w % 2**32 for w in word.tolist()] == [vector["expected_upstream"]["word_u32"]]
    assert f"{word.item():08x}" == vector["expected_upstream"]["word_hex"]
    assert tritonq.unpack(word, 4, 8, order=order).tolist() == vector["inputs"]["values"]


@runs("baracuda.gguf.")
def test_gguf_blocks(vector: dict) -> None:
    inputs = vector["inputs"]
    if "q4_0" in vector["id"]:
        values = tritonq.unpack(torch.tensor(inputs["qs"], dtype=torch.uint8), 4, 32, order="ggml").float() - 8
    else:
        values = tritonq.unpack(torch.tensor(inputs["qs"], dtype=torch.int8).view(torch.uint8), 8, 32).view(torch.int8).float()
    assert (values * inputs["d"]).tolist() == vector["expected_upstream"]["y"]


# accounting ------------------------------------------------------------------------------------------------------------------


def test_every_vector_is_accounted_for() -> None:
    elsewhere = [i for names in ELSEWHERE.values() for i in names]
    parts = [RUN_HERE, set(OUT_OF_SCOPE), set(elsewhere)]
    assert set().union(*parts) == set(BY_ID), set().union(*parts) ^ set(BY_ID)
    assert sum(map(len, parts)) == len(BY_ID) == len(VECTORS), "a vector is in two lists"
    assert set(RECOMPUTED) | set(PARTIAL) <= RUN_HERE and not set(RECOMPUTED) & set(PARTIAL)
    verbatim = RUN_HERE - set(RECOMPUTED) - set(PARTIAL)
    assert (len(verbatim), len(PARTIAL), len(RECOMPUTED), len(elsewhere), len(OUT_OF_SCOPE)) == (67, 3, 25, 37, 9)


@pytest.mark.parametrize("file", ELSEWHERE)
def test_vectors_left_to_another_file_are_named_there(file: str) -> None:
    source = (Path(__file__).parent / file).read_text()

    def named(i: str) -> bool:
        return any(f'"{name}"' in source for name in (i, i.removeprefix("baracuda."), i[: i.rindex(".") + 1]))

    assert not [i for i in ELSEWHERE[file] if not named(i)]


def test_the_oracle_rounds_to_float32() -> None:
    assert f32(0.1) == torch.tensor(0.1).item() and f32(1e39) == math.inf
    assert plain_group([-2.5, 127.0], 8, "symmetric", away=True).codes == [-3, 127]
    assert plain_group([-2.5, 127.0], 8, "symmetric", away=False).codes == [-2, 127]
