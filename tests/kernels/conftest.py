"""The Triton kernels: on the GPU where there is one, else in the repaired interpreter."""
import os

import torch

from tests.support.process import require_compiled, require_interpreted

if torch.cuda.is_available() and os.environ.get("TRITON_INTERPRET") != "1":
    require_compiled("tests/kernels")
else:
    require_interpreted("tests/kernels")
    from tests.support import interpreter

    interpreter.repair()
