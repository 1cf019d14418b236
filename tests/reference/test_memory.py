"""The reference streams: peak memory beyond input and output stays below a quarter of the input."""
import subprocess
import sys

import pytest

# ru_maxrss of a fresh process: the peak before the call is what importing and making the weight took.
PROGRAM = """
import resource, sys, torch, tritonq
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
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


@pytest.mark.parametrize("scheme", ["int4.g128", "nf4.dq", "mxfp4", "nvfp4", "int3.g32", "uint4.tensor", "int8.column", "fp16"])
def test_peak_is_below_a_quarter_of_the_input(scheme):
    pytest.importorskip("resource", reason="ru_maxrss is POSIX's")
    answer = subprocess.run([sys.executable, "-c", PROGRAM, scheme], capture_output=True, text=True, check=True)
    for line in answer.stdout.splitlines():
        extra, weight = map(int, line.split())
        assert extra <= weight // 4, f"{extra / 1e6:.0f} MB beside a weight of {weight / 1e6:.0f} MB"
