"""Floor 7. The command line: ``tritonq demo | formats | quantize | inspect | verify | convert | plan | explain | bench | tune``.

Exit status: 0 done, 1 a check failed, 2 bad usage or input. Errors are one line on stderr.
"""
from __future__ import annotations

import io
import os
import sys
from collections.abc import Sequence

import torch

from .._version import __version__
from ..backend import backend
from ..errors import TritonQError
from . import bench, convert, demo, explain, formats, inspect, plan, quantize, tune, verify
from .output import reader_may_leave
from .parser import Parser, UsageError

COMMANDS = (demo, formats, quantize, inspect, verify, convert, plan, explain, bench, tune)


def build_parser() -> Parser:
    """The parser with every command; each command's module adds its own."""
    parser = Parser(prog="tritonq", description="Quantize LLM weights, check the result, and plan for memory.")
    parser.add_argument("--version", action="version", version=f"tritonq {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True, parser_class=Parser)
    for module in COMMANDS:
        module.add_command(commands)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status (``--help`` exits by itself, with 0)."""
    _open_streams()
    try:
        try:
            return _run(argv)
        finally:
            with reader_may_leave():
                sys.stdout.flush()
    except KeyboardInterrupt:
        return _complain("interrupted; run the same command again to go on", 130)
    except (UsageError, TritonQError) as error:
        return _complain(error, 2)
    except OSError as error:
        return _complain(f"{error.filename or 'input or output'}: {error.strerror or error}", 2)
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not _is_out_of_memory(error):
            raise
        return _complain("out of memory: the largest tensor and its quantized copy must fit", 2)


def _run(argv: Sequence[str] | None) -> int:
    args = build_parser().parse_args(argv)
    if backend("cpu") == "triton":
        raise UsageError("TRITONQ_BACKEND=triton compiles kernels for the CPU tensors of a file, which no GPU can read; unset it")
    return args.run(args)


def _open_streams() -> None:
    """Streams that take every text: one that is closed (``>&-``) takes it nowhere, one that is not UTF-8 takes escapes of what it lacks."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def _is_out_of_memory(error: RuntimeError) -> bool:
    """torch has a class for GPUs, and no more than a text for the CPU."""
    return isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error)


def _complain(error, status: int) -> int:
    print(f"tritonq: {' '.join(str(error).split())}", file=sys.stderr)
    return status
