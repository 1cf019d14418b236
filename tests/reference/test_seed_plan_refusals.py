"""Every way in which a seed plan can be refused: the error class and its whole text."""
from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from tritonq import plans as P
from tritonq.errors import InvalidProblemError, UnsupportedError, WorkspaceTooSmallError
from tritonq.plans.core import PlanPreference

INT8 = {"q_min": -128, "q_max": 127}


def int32(*values) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32)


def select(kind: str, **fields):
    return getattr(P, f"{kind}Plan").select(None, getattr(P, f"{kind}Descriptor")(**fields))


def tensor_case(**changes) -> dict:
    args = {"input": torch.ones(4), "scale": 1.0, "zero_point": 0, **changes}
    return {"kind": "QuantizePerTensor", "desc": {"numel": 4, **INT8}, "args": args}


def group_case(**changes) -> dict:
    args = {"input": torch.ones(2, 8), "scale": torch.ones(2, 2), "zero_point": torch.zeros(2, 2, dtype=torch.int32), **changes}
    return {"kind": "QuantizePerGroup", "desc": {"outer_size": 2, "axis_size": 8, "group_size": 4, **INT8}, "args": args}


DESCRIPTORS = [
    ("QuantizePerTensor", {"numel": -1, **INT8}, InvalidProblemError, "numel must be at least 0, got -1"),
    ("QuantizePerTensor", {"numel": 2.5, **INT8}, InvalidProblemError, "numel must be an int, got float 2.5"),
    ("QuantizePerTensor", {"numel": 4, "q_min": 3, "q_max": 2}, InvalidProblemError, "q_min must not exceed q_max, got q_min=3, q_max=2"),
    ("QuantizePerTensor", {"numel": 4, "q_min": 0, "q_max": 255}, InvalidProblemError,
     "codes 0..255 do not fit int8, which holds -128..127; narrow the range or change output_dtype"),
    ("QuantizePerTensor", {"numel": 4, "q_min": -1, "q_max": 8, "output_dtype": torch.uint8}, InvalidProblemError,
     "codes -1..8 do not fit uint8, which holds 0..255; narrow the range or change output_dtype"),
    ("QuantizePerTensor", {"numel": 4, **INT8, "input_dtype": torch.int32}, UnsupportedError,
     "input_dtype int32 is not supported; it must be one of float64, float32, float16, bfloat16"),
    ("QuantizePerTensor", {"numel": 4, **INT8, "output_dtype": torch.int32}, UnsupportedError,
     "output_dtype int32 is not supported; it must be one of int8, uint8"),
    ("QuantizePerTensor", {"numel": 4, **INT8, "input_dtype": "float32"}, InvalidProblemError,
     "input_dtype must be a dtype, got str 'float32'"),
    ("DequantizePerTensor", {"numel": 4, "input_dtype": torch.int8, "output_dtype": torch.uint8}, UnsupportedError,
     "dequantize goes from int8 or uint8 to a floating type, got int8 to uint8"),
    ("QuantizePerChannel", {"shape": (1, 2, 3, 4, 5), "axis": 0, **INT8}, InvalidProblemError,
     "shape must have 1 to 4 dimensions, got [1, 2, 3, 4, 5]; merge neighbours beside the channel axis"),
    ("QuantizePerChannel", {"shape": (2, -3), "axis": 0, **INT8}, InvalidProblemError, "shape[1] must be at least 0, got -3"),
    ("QuantizePerChannel", {"shape": 5, "axis": 0, **INT8}, InvalidProblemError, "shape must be a tuple or list, got int 5"),
    ("QuantizePerChannel", {"shape": (2, 3), "axis": 2, **INT8}, InvalidProblemError, "axis must be in -2..1 for shape [2, 3], got 2"),
    ("QuantizePerChannel", {"shape": (2, 3, 4, 1), "rank": 2, "axis": 1, **INT8}, InvalidProblemError,
     "rank 2 does not describe shape [2, 3, 4, 1]: dimensions behind the rank must be 1"),
    ("QuantizePerToken", {"n": -2, "d": 3, **INT8}, InvalidProblemError, "n must be at least 0, got -2"),
    ("QuantizePerGroup", {"outer_size": 2, "axis_size": 8, "group_size": 0, **INT8}, InvalidProblemError,
     "group_size must be at least 1, got 0"),
    ("QuantizePerGroup", {"outer_size": 2, "axis_size": 8, "group_size": 2**31, **INT8}, UnsupportedError,
     "group_size is limited to 1073741824, got 2147483648; PerToken plans have one scale per row"),
    ("FakeQuantize", {"numel": 3, "q_min": 5, "q_max": 4}, InvalidProblemError,
     "-2**22 <= q_min <= q_max <= 2**22 is required, got q_min=5, q_max=4"),
    ("FakeQuantize", {"numel": 3, "q_min": 5, "q_max": 2**22 + 1}, InvalidProblemError,
     "-2**22 <= q_min <= q_max <= 2**22 is required, got q_min=5, q_max=4194305"),
    ("DynamicRangeQuantize", {"n": 2, "d": 2, "q_min": -5, "q_max": 0}, InvalidProblemError,
     "a symmetric scale is absmax / q_max, so q_max must be at least 1, got 0"),
    ("DynamicRangeQuantize", {"n": 2, "d": 2, "q_min": 5, "q_max": 5, "mode": "asymmetric"}, InvalidProblemError,
     "an asymmetric range needs at least two codes, got q_min = q_max = 5"),
    ("DynamicRangeQuantize", {"n": 2, "d": 2, **INT8, "mode": "affine"}, InvalidProblemError,
     "mode must be symmetric or asymmetric, got 'affine'"),
    ("DynamicRangeQuantize", {"n": 2, "d": 2, **INT8, "mode": []}, InvalidProblemError,
     "mode must be a DynamicRangeMode or str, got list []"),
    ("DynamicRangeQuantize", {"n": 1, "d": 1, "q_min": 3, "q_max": 5}, InvalidProblemError,
     "a symmetric scale has code 0 for zeros, so q_min must be at most 0, got 3"),
    ("DynamicRangeQuantize", {"n": 2, "d": 2, **INT8, "scope": "token"}, InvalidProblemError,
     "scope must be a DynamicRangeScope, got str 'token'"),
    ("DynamicRangeQuantize", {"n": 2, "d": 2, **INT8, "scope": P.DynamicRangeScope(kind="row")}, InvalidProblemError,
     "scope must be tensor, channel, token or group, got 'row'"),
    ("DynamicRangeQuantize", {"n": 2, "d": 2, **INT8, "scope": P.DynamicRangeScope.channel(2)}, InvalidProblemError,
     "scope.axis must be 0 or 1 (or -2, -1) for a tensor [n, d], got 2"),
    ("DynamicRangeQuantize", {"n": 2, "d": 2, **INT8, "scope": P.DynamicRangeScope.group(0, 0)}, InvalidProblemError,
     "scope.group_size must be at least 1, got 0"),
    ("QuantizedLinear", {"m": 1, "c_out": 1, "k": 1, "weight_dtype": torch.uint8}, UnsupportedError,
     "weight_dtype uint8 is not supported; it must be one of int8"),
    ("QuantizedLinear", {"m": 1, "c_out": 1, "k": 1, "q_min": 0, "q_max": 0}, InvalidProblemError,
     "the activation's scale is absmax / q_max, so q_max must be at least 1, got 0"),
    ("QuantizedLinear", {"m": 1, "c_out": 1, "k": 1, "q_min": 3, "q_max": 5}, InvalidProblemError,
     "the activation's scale has code 0 for zeros, so q_min must be at most 0, got 3"),
    ("QuantizedLinear", {"m": 1, "c_out": 1, "k": 132105}, UnsupportedError,
     "k=132105 could overflow the int32 sum of codes up to 127 times -128; k <= 132104 cannot, split k"),
    ("SmoothQuantLinear", {"m": 1, "n": 1, "k": 131072, "act_scale": 1.0}, UnsupportedError,
     "k=131072 could overflow the int32 sum of codes up to 128 times -128; k <= 131071 cannot, split k"),
    ("SmoothQuantLinear", {"m": 1, "n": 1, "k": 1, "act_scale": float("inf")}, InvalidProblemError,
     "act_scale must be a finite float32 greater than 0, got inf"),
    ("SmoothQuantLinear", {"m": 1, "n": 1, "k": 1, "act_scale": 10**400}, InvalidProblemError,
     "act_scale must be a finite float32 greater than 0, got inf"),
    ("SmoothQuantLinear", {"m": 1, "n": 1, "k": 1, "act_scale": True}, InvalidProblemError,
     "act_scale must be a float or int, got bool True"),
    ("SmoothQuantLinear", {"m": 1, "n": 1, "k": 1, "act_scale": 1e-60}, InvalidProblemError,
     "act_scale must be a finite float32 greater than 0, got 1e-60"),
    ("Nf4Dequantize", {"n": 3, "k": 64}, InvalidProblemError,
     "a byte holds two neighbouring rows, so n must be even, got 3; add a row of zeros (code 7)"),
    ("Nf4Dequantize", {"n": 2, "k": 65}, InvalidProblemError,
     "k must be a multiple of block_size, got k=65, block_size=64; pad k with code 7"),
    ("Nf4Matmul", {"m": 1, "n": 2, "k": 64, "activation_dtype": torch.float64}, UnsupportedError,
     "activation_dtype float64 is not supported; it must be one of float32, float16, bfloat16"),
]  # fmt: skip


@pytest.mark.parametrize("kind, fields, error, text", DESCRIPTORS, ids=range(len(DESCRIPTORS)))
def test_select_refuses(kind, fields, error, text):
    with pytest.raises(error) as caught:
        select(kind, **fields)
    assert str(caught.value) == text


LINEAR = {"activation": torch.ones(2, 4), "weight_q": torch.ones(3, 4, dtype=torch.int8), "weight_scale": torch.ones(3)}
NF4 = {"weight": torch.zeros(1, 4, dtype=torch.uint8), "absmax": torch.ones(2, 1)}
PERMUTED = torch.ones(2, 3, 4, 5).permute(3, 1, 0, 2)

ARGUMENTS = [
    (tensor_case(input=torch.ones(5)), "input must hold numel=4 elements, got 5 in shape [5]"),
    (tensor_case(input=torch.ones(4).half()), "input must be float32, got float16; pass input.to(torch.float32)"),
    (tensor_case(output=torch.empty(4)), "output must be int8, got float32; pass output.to(torch.int8)"),
    (tensor_case(output=torch.empty(2, 2, dtype=torch.int8)), "output must have shape [4], got [2, 2]"),
    (tensor_case(output=torch.empty(8, dtype=torch.int8)[::2]), "output must be contiguous, got strides [2]; pass output.contiguous()"),
    (tensor_case(output=torch.empty(4, dtype=torch.int8, device="meta")),
     "output is on meta, but the input is on cpu; move it with .to('cpu')"),
    (tensor_case(scale=0.0), "scale must be finite and greater than 0, found 0.0; an all-zero group takes 1"),
    (tensor_case(scale=-2), "scale must be finite and greater than 0, found -2.0; an all-zero group takes 1"),
    (tensor_case(scale=float("nan")), "scale must be finite and greater than 0, found nan; an all-zero group takes 1"),
    (tensor_case(scale=1e60), "scale must be finite and greater than 0, found inf; an all-zero group takes 1"),
    (tensor_case(scale=10**400), "scale must be finite and greater than 0, found inf; an all-zero group takes 1"),
    (tensor_case(scale=-(10**400)), "scale must be finite and greater than 0, found -inf; an all-zero group takes 1"),
    (tensor_case(scale=torch.ones(1)), "scale must have shape [], got [1]"),
    (tensor_case(scale=torch.tensor(2)), "scale must be a floating type, got torch.int64"),
    (tensor_case(zero_point=2**31), "zero_point must fit int32, got 2147483648"),
    (tensor_case(zero_point=torch.tensor(2)), "zero_point must be int32, got int64; pass zero_point.to(torch.int32)"),
    (group_case(input=torch.ones(2, 7)), "input must have shape [2, 8], got [2, 7]"),
    (group_case(scale=torch.ones(2, 3)), "scale must have shape [2, 2], got [2, 3]"),
    (group_case(scale=torch.ones(2, 2).double()), "scale must be float32, got float64; pass scale.to(torch.float32)"),
    (group_case(scale=torch.ones(2, 4)[:, ::2]), "scale must be contiguous, got strides [4, 2]; pass scale.contiguous()"),
    (group_case(scale=torch.tensor([[1.0, 2.0], [float("inf"), 1.0]])),
     "scale must be finite and greater than 0, found inf; an all-zero group takes 1"),
    (group_case(scale=torch.tensor([[1.0, 2.0], [float("nan"), 1.0]])),
     "scale must be finite and greater than 0, found nan; an all-zero group takes 1"),
    (group_case(zero_point=torch.zeros(2, 2)), "zero_point must be int32, got float32; pass zero_point.to(torch.int32)"),
    ({"kind": "QuantizePerChannel", "desc": {"shape": (5, 3, 2, 4), "axis": 1, **INT8},
      "args": {"input": PERMUTED, "scale": torch.ones(3), "zero_point": int32(0, 0, 0)}},
     "strides cannot be viewed as [outer, axis, inner] = [5, 3, 8] without a copy: input [1, 20, 60, 5]; pass .contiguous() tensors"),
    ({"kind": "QuantizePerTokenBackward", "desc": {"n": 1, "d": 4, **INT8},
      "args": {"input": torch.ones(1, 4), "scale": torch.ones(1), "zero_point": int32(0), "d_output": torch.ones(4, 1)}},
     "d_output must have shape [1, 4], got [4, 1]"),
    ({"kind": "DequantizePerTokenBackward", "desc": {"n": 1, "d": 4},
      "args": {"scale": torch.ones(1), "d_output": torch.ones(1, 4).double()}},
     "d_output must be float32, got float64; pass d_output.to(torch.float32)"),
    ({"kind": "DynamicRangeQuantize", "desc": {"n": 1, "d": 4, **INT8}, "args": {"input": torch.ones(1, 4), "scale_out": torch.ones(2)}},
     "scale_out must have shape [1], got [2]"),
    ({"kind": "QuantizedLinear", "desc": {"m": 2, "c_out": 3, "k": 4}, "args": {**LINEAR, "weight_scale": torch.zeros(3)}},
     "weight_scale must be finite and greater than 0, found 0.0; an all-zero group takes 1"),
    ({"kind": "QuantizedLinear", "desc": {"m": 2, "c_out": 3, "k": 4}, "args": {**LINEAR, "weight_q": torch.ones(3, 4, dtype=torch.uint8)}},
     "weight_q must be int8, got uint8; pass weight_q.to(torch.int8)"),
    ({"kind": "SmoothQuantLinear", "desc": {"m": 2, "n": 3, "k": 4, "act_scale": 1.0},
      "args": {"act_q": torch.ones(2, 5, dtype=torch.int8), "weight_q": LINEAR["weight_q"], "weight_scale": torch.ones(3)}},
     "act_q must have shape [2, 4], got [2, 5]"),
    ({"kind": "Nf4Dequantize", "desc": {"n": 2, "k": 4, "block_size": 4}, "args": {**NF4, "absmax": torch.tensor([-1.0, 0.0])}},
     "absmax must be finite and not negative, found -1.0; an all-zero group takes 0"),
    ({"kind": "Nf4Dequantize", "desc": {"n": 2, "k": 4, "block_size": 4}, "args": {**NF4, "absmax": torch.ones(3)}},
     "absmax must have shape [2, 1] or [2], got [3]"),
    ({"kind": "Nf4Matmul", "desc": {"m": 1, "n": 2, "k": 4, "block_size": 4}, "args": {**NF4, "activation": torch.ones(5)}},
     "activation must have shape [1, 4] or [4], got [5]"),
]  # fmt: skip


@pytest.mark.parametrize("case, text", ARGUMENTS, ids=range(len(ARGUMENTS)))
def test_can_implement_says_why_not_and_run_raises_it(case, text):
    name = case["kind"].removesuffix("Backward") if case["kind"].startswith("Quantize") else case["kind"]
    plan = getattr(P, f"{case['kind']}Plan").select(None, getattr(P, f"{name}Descriptor")(**case["desc"]))
    args = getattr(P, f"{case['kind']}Args")(**case["args"])
    status = plan.can_implement(args)
    assert not status and status.reason == text
    with pytest.raises(InvalidProblemError) as caught:
        plan.run(None, None, args)
    assert str(caught.value) == f"{case['kind']}Plan cannot run: {text}"


@pytest.mark.parametrize(
    "case, text",
    [
        (tensor_case(input=[1.0, 2.0, 3.0, 4.0]), "input must be a Tensor, got list [1.0, 2.0, 3.0, 4.0]"),
        (tensor_case(scale="0.1"), "scale must be a float or int or Tensor, got str '0.1'"),
        (tensor_case(scale=True), "scale must be a float or int or Tensor, got bool True"),
        (tensor_case(zero_point=True), "zero_point must be an int or Tensor, got bool True"),
        (tensor_case(zero_point=1.5), "zero_point must be an int or Tensor, got float 1.5"),
        (group_case(scale=1.0), "scale must be a Tensor, got float 1.0"),
        (group_case(output=7), "output must be a Tensor, got int 7"),
    ],
)
def test_wrong_python_types_raise(case, text):
    with pytest.raises(InvalidProblemError) as caught:
        select(case["kind"], **case["desc"]).can_implement(getattr(P, f"{case['kind']}Args")(**case["args"]))
    assert str(caught.value) == text


def test_a_float64_scale_is_not_rounded_to_float32_first():
    tiny = P.QuantizePerTensorArgs(input=torch.ones(4).double(), scale=1e-60, zero_point=0)
    assert select("QuantizePerTensor", numel=4, **INT8, input_dtype=torch.float64).can_implement(tiny)


def test_wrong_records_streams_and_preferences():
    desc = P.QuantizePerTensorDescriptor(numel=4, **INT8)
    other = P.QuantizePerTokenDescriptor(n=2, d=2, **INT8)
    args = P.QuantizePerTensorArgs(input=torch.ones(4), scale=1.0, zero_point=0)
    plan = P.QuantizePerTensorPlan.select(None, desc)
    with pytest.raises(InvalidProblemError, match="^desc must be a QuantizePerTensorDescriptor, got QuantizePerTokenDescriptor"):
        P.QuantizePerTensorPlan.select(None, other)
    with pytest.raises(InvalidProblemError, match="^args must be a QuantizePerTensorArgs, got dict"):
        plan.run(None, None, vars(args))
    with pytest.raises(InvalidProblemError, match="^pref must be a PlanPreference, got str"):
        P.QuantizePerTensorPlan.select(None, desc, "fast")
    for call in (lambda: plan.run(0, None, args), lambda: P.QuantizePerTensorPlan.select(0, desc)):
        with pytest.raises(InvalidProblemError) as caught:
            call()
        assert str(caught.value) == "stream must be a torch.cuda.Stream or None (the current one), got int"
    pref = PlanPreference(prefer_kernel="marlin")
    with pytest.raises(UnsupportedError) as caught:
        P.QuantizePerTensorPlan.select(None, desc, pref)
    assert str(caught.value) == "QuantizePerTensorPlan runs the kernel 'reference' here, prefer_kernel asks for 'marlin'; leave it None"


def test_workspace_rules():
    desc = P.DynamicRangeQuantizeDescriptor(n=3, d=4, scope=P.DynamicRangeScope.tensor(), **INT8)
    plan = P.DynamicRangeQuantizePlan.select(None, desc)
    args = P.DynamicRangeQuantizeArgs(input=torch.ones(3, 4))
    assert plan.workspace_size() == 24
    with pytest.raises(WorkspaceTooSmallError) as caught:
        plan.run(None, torch.empty(23, dtype=torch.uint8), args)
    assert str(caught.value) == "DynamicRangeQuantizePlan needs a workspace of 24 bytes, got 23; allocate plan.workspace_size() bytes"
    for odd in (torch.empty(1000, dtype=torch.uint8)[1:], torch.empty(1000, dtype=torch.uint8)[::2], torch.empty(8, 8).T[1:]):
        with pytest.raises(InvalidProblemError, match="workspace must be contiguous and start at a multiple of 16 bytes"):
            plan.run(None, odd, args)
    with pytest.raises(InvalidProblemError, match="^workspace must be a Tensor, got bytes"):
        plan.run(None, b"", args)
    with pytest.raises(UnsupportedError) as caught:
        P.DynamicRangeQuantizePlan.select(None, desc, PlanPreference(max_workspace_bytes=8))
    assert str(caught.value) == "DynamicRangeQuantizePlan needs 24 bytes of workspace, max_workspace_bytes allows 8; raise the limit"
    assert P.QuantizePerTokenPlan.select(None, P.QuantizePerTokenDescriptor(n=1, d=1, **INT8)).workspace_size() == 0


def test_names_of_the_seed_plans_are_imported_when_they_are_used():
    code = """
import sys, tritonq
assert "tritonq.plans.affine" not in sys.modules and "tritonq.plans.nf4" not in sys.modules
assert set(tritonq.plans.__all__) <= set(dir(tritonq.plans))
assert all(getattr(tritonq.plans, name).__name__ == name for name in tritonq.plans.__all__)
from tritonq.plans import *
assert Nf4MatmulPlan is tritonq.plans.Nf4MatmulPlan and not hasattr(tritonq.plans, "Nf5MatmulPlan")
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_tensors_without_elements_in_memory():
    x = torch.ones(3, 4)
    whole = P.DynamicRangeQuantizeDescriptor(n=3, d=4, scope=P.DynamicRangeScope.tensor(), **INT8)
    for wrong, text in ((x.to("meta"), "a meta tensor"), (x.to_sparse(), "sparse_coo")):
        for plan, args in (
            (P.DynamicRangeQuantizePlan.select(None, whole), P.DynamicRangeQuantizeArgs(input=wrong)),
            (P.QuantizePerTokenPlan.select(None, P.QuantizePerTokenDescriptor(n=3, d=4, **INT8)),
             P.QuantizePerTokenArgs(input=wrong, scale=torch.ones(3), zero_point=torch.zeros(3, dtype=torch.int32))),
        ):  # fmt: skip
            with pytest.raises(InvalidProblemError, match=text):
                plan.run(None, None, args)
