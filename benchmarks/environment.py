"""What this machine is and can do, as JSON: device, driver, versions, and the measured roofs that every result is held against.

    python benchmarks/environment.py [FILE]
"""
from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

from tritonq.bench.timing import machine, roofs
from tritonq.files import write_atomic


def main() -> int:
    if not torch.cuda.is_available():
        print("benchmarks/environment.py: needs a CUDA or HIP device, none is visible", file=sys.stderr)
        return 2
    device = torch.device("cuda")
    text = json.dumps({"about": machine(device), "roofs": roofs(device)}, indent=1) + "\n"
    print(text, end="")
    if len(sys.argv) > 1:
        write_atomic(Path(sys.argv[1]), text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
