"""What a result must name: device, driver, versions, commit, clocks."""
from __future__ import annotations

import os
import platform
import subprocess
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from .._triton import triton
from .._version import __version__

_PEERS = ("numpy", "torchao", "bitsandbytes", "gemlite")  # whose versions a result names where they are installed


def facts(device: torch.device) -> dict[str, object]:
    """Versions, device, commit and time, as plain values; ``state`` holds clocks, power and temperature."""
    about: dict[str, object] = {
        "tritonq": __version__, "torch": torch.__version__, "triton": getattr(triton, "__version__", None),
        "python": platform.python_version(), "commit": _commit(), "time": datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
    }  # fmt: skip
    about |= {name: found for name in _PEERS if (found := _version(name))}
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        driver, state = _nvidia_smi()
        about |= {"device": torch.cuda.get_device_name(device), "multiprocessors": properties.multi_processor_count, "driver": driver,
                  "state": state}  # fmt: skip
    else:
        about |= {"device": cpu_name(), "cores": os.cpu_count(), "threads": torch.get_num_threads(), "driver": None, "state": None}
    return about


def state(device: torch.device) -> str | None:
    """``clock, power, temperature`` now; None off CUDA."""
    return _nvidia_smi()[1] if device.type == "cuda" else None


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def cpu_name() -> str:
    """The processor's model as the operating system calls it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _commit() -> str | None:
    """Of the checkout that this package lies in; None where it is installed."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    done = _output(["git", "-C", str(root), "rev-parse", "--short", "HEAD"])
    return done if done and not done.startswith("unknown") else None


def _nvidia_smi() -> tuple[str, str]:
    """(driver, state), or the reason why they are not known, twice."""
    text = _output(["nvidia-smi", "--query-gpu=driver_version,clocks.sm,power.draw,temperature.gpu", "--format=csv,noheader"])
    if text.startswith("unknown"):
        return text, text
    driver, _, rest = text.splitlines()[0].partition(",")
    return driver.strip(), rest.strip()


def _output(command: list[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"unknown: {type(error).__name__}"
    return done.stdout.strip() or f"unknown: {done.stderr.strip()[:100]}"
