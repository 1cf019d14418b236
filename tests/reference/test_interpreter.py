"""``TRITON_INTERPRET=1`` as users set it: Triton's interpreter with what tritonq mends, without what the tests add to it."""
import os
import subprocess
import sys

import pytest

pytest.importorskip("triton")
SCRIPT = """
import torch, tritonq
from tritonq import MatmulDesc, Scheme, reference, select
assert tritonq.backend("cpu") == "interpreter"
generator = torch.Generator().manual_seed(0)
w, x = (torch.randn(*shape, generator=generator).bfloat16() for shape in ((16, 128), (2, 128)))
for scheme in ("int4.g64", "nf4.g64", "fp8_e4m3"):
    want = reference.quantize(w, Scheme.parse(scheme))
    q = tritonq.quantize(w, scheme)
    for mine, theirs in zip(q.flat(), want.flat(), strict=True):
        assert torch.equal(mine.view(torch.uint8), theirs.view(torch.uint8)), scheme
    exact = x.double() @ reference.dequantize(want, torch.float64).T
    for layout in ("row", "ksplit"):
        q = q.relayout(layout)
        assert torch.equal(tritonq.dequantize(q), reference.dequantize(want, torch.bfloat16)), (scheme, layout)
        plan = select(MatmulDesc.of(x, q))
        error, bound = (plan.run(x, q).double() - exact).abs(), plan.precision_guarantee().bound(x, q)
        assert (error <= bound).all(), (scheme, layout, (error / bound).max())
"""


def test_bfloat16():
    env = {name: value for name, value in os.environ.items() if name != "TRITONQ_BACKEND"} | {"TRITON_INTERPRET": "1"}
    done = subprocess.run([sys.executable, "-c", SCRIPT], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
