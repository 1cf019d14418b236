"""The reference streams: peak memory beyond input and output stays below a quarter of the input."""
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
