"""The reference streams: peak memory beyond input and output stays below a quarter of the input."""
import os
import pathlib
import subprocess
import sys

import pytest

# VmHWM of a fresh process: ru_maxrss would start from the parent's peak. The peak before the call is what making the weight took.
PROGRAM = """
import sys, torch, tritonq
def peak():
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith("VmHWM"))
torch.set_num_threads(1)
tritonq.quantize(torch.ones(2, 256), sys.argv[1]).dequantize()
w = torch.empty(8192, 8192).normal_()
before = peak()
q = tritonq.quantize(w, sys.argv[1])
print(peak() - before - q.nbytes, w.nbytes)
before = peak()
y = q.dequantize(torch.bfloat16)
print(peak() - before - y.nbytes, w.nbytes)
"""


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["int4.g128", "nf4.dq", "nvfp4", "uint4.tensor"])
def test_peak_is_below_a_quarter_of_the_input(scheme):
    if not pathlib.Path("/proc/self/status").exists():
        pytest.skip("peak memory is read from Linux' /proc")
    answer = subprocess.run([sys.executable, "-c", PROGRAM, scheme], capture_output=True, text=True, check=True)
    for line in answer.stdout.splitlines():
        extra, weight = map(int, line.split())
        assert extra <= weight // 4, f"{extra / 1e6:.0f} MB beside a weight of {weight / 1e6:.0f} MB"


MODEL = """
import sys, torch, tritonq
from torch import nn
def peak():
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith("VmHWM"))
torch.set_num_threads(1)
tritonq.quantize_(nn.Sequential(nn.Linear(64, 64)), sys.argv[1])
width, layers = 4096, 12
model = nn.Sequential(*[nn.Linear(width, width, bias=False, dtype=torch.bfloat16) for _ in range(layers)])
before = peak()
report = tritonq.quantize_(model, sys.argv[1])
assert len(report.quantized) == layers
print(peak() - before, 2 * width * width, sum(one.bytes_after for one in report.quantized))
"""


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["nf4", "int8"])
def test_a_model_is_quantized_in_its_own_memory_and_one_layer(scheme):
    """Packed weights take the place of those that they were made from: beside the model there is one layer, not all that was packed."""
    if not pathlib.Path("/proc/self/status").exists():
        pytest.skip("peak memory is read from Linux' /proc")
    # glibc: freed memory goes back at once, so that the peak is what was alive
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": str(1 << 20)}
    answer = subprocess.run([sys.executable, "-c", MODEL, scheme], capture_output=True, text=True, check=True, env=environment)
    extra, layer, packed = map(int, answer.stdout.split())
    assert packed > 3 * layer
    assert extra <= layer, f"{extra / layer:.1f} layers beside the model"
