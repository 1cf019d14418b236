"""Runs the whole suite: one pytest process per way of running kernels, then one table.

    python tests/run.py                      everything
    python tests/run.py --quick              without the tests marked slow, stopping at the first failure
    python tests/run.py --only kernels -k nf4
    python tests/run.py --jobs 1 -- -x       what follows -- goes to pytest

Triton decides at import whether functions are compiled or interpreted, so these cannot share a process. The group ``oldest`` runs a
sample of tests/compiled on the oldest supported Triton, which `make test` puts into .triton36; elsewhere it is left out, with a word.
The exit status is 0 only where every process passed and every chosen group had tests to run.
"""
from __future__ import annotations

import argparse
import dataclasses
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from xml.etree import ElementTree

ROOT = pathlib.Path(__file__).resolve().parent.parent
NO_TESTS = 5  # pytest's exit status where nothing was collected or all was deselected
GROUPS = {
    "reference": ("tests/reference", "tests/oracles", "tests/cli", "tests/test_*.py"),
    "kernels": ("tests/kernels",),
    "compiled": ("tests/compiled",),
    "launch": ("tests/launch",),
    # Each kernel at least once, and what Triton 3.6 is known to have got wrong; `make test-oldest` runs all there.
    "oldest": (
        "tests/compiled/test_quantize_layouts.py::test_bit_for_bit",  # quantize_frag, quantize_ksplit
        "tests/compiled/test_quantize_layouts.py::test_sm_80",
        "tests/compiled/test_quantize_layouts.py::test_every_boundary",
        "tests/compiled/test_quantize_layouts.py::test_one_number_takes_the_long_way",
        "tests/compiled/test_dequantize.py",  # dequantize_rows, dequantize_tiles
        "tests/compiled/test_every_scheme.py::test_sm_90[int4-float16]",  # quantize_rows
        "tests/compiled/test_every_scheme.py::test_sm_90[uint4-bfloat16]",
        "tests/compiled/test_every_scheme.py::test_fewer_elements_than_threads_load_at_a_time",
        "tests/compiled/test_every_scheme.py::test_sm_90[nvfp4-float16]",  # range_partials
        "tests/compiled/test_every_scheme.py::test_sm_90_every_format_and_granularity[fp4_bnb.column-float32]",  # quantize_area
        "tests/compiled/test_every_scheme.py::test_sm_90_every_format_and_granularity[fp4_bnb.b3x5-bfloat16]",
        "tests/compiled/test_matmul.py::test_shapes_that_fill_no_tile[17-33-65-bfloat16-80]",  # matmul_tiles
        "tests/compiled/test_matmul_frag.py::test_bit_for_bit_where_every_sum_is_exact[int4.g32-90-late]",  # matmul_frag
        "tests/compiled/test_matmul_frag.py::test_every_format_and_group[nf4.channel-bfloat16]",
        "tests/compiled/test_matmul_frag.py::test_tiles_of_128_rows_of_w[nf4.g64-90-13-4]",  # mma.sync
        "tests/compiled/test_matmul_frag.py::test_tiles_of_128_rows_of_w[int4.g32-90-17-2]",  # wgmma
        "tests/compiled/test_matmul_frag.py::test_many_rows_on_hopper[nf4.g64-65-130-520]",  # wgmma, whose fence is the kernel's there
        "tests/compiled/test_matmul_frag.py::test_every_code_decodes_exactly[90-fp8_e4m3-torch.bfloat16]",
        "tests/compiled/test_matmul_ksplit.py::test_bit_for_bit_where_every_sum_is_exact[int4-late]",  # matmul_ksplit
        "tests/compiled/test_matmul_ksplit.py::test_every_kind_of_scheme[mxfp4-torch.bfloat16-90]",
        "tests/compiled/test_large_m.py::test_chunked_products_keep_their_guarantee[nf4.dq-dtype2-frag]",  # dequantize_range
        "tests/compiled/test_large_m.py::test_matmul_dx[80-frag-nf4-dtype3-2]",  # matmul_dx
        "tests/compiled/test_lint.py::test_instruction_budget[int4.g128]",  # a layout of threads that 3.6 would choose otherwise
        "tests/compiled/test_lint.py::test_instruction_budget[nf4.g64]",
    ),
}
OLDEST, OLDEST_RELEASE = ROOT / ".triton36", "3.6.0"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Result:
    """One finished pytest process."""

    group: str
    status: int
    passed: int
    failed: int
    skipped: int
    seconds: float


def paths_of(group: str) -> list[str]:
    """The folders and files of a group that hold tests, or single tests of them."""
    if any("::" in pattern for pattern in GROUPS[group]):
        return list(GROUPS[group])
    found = [path for pattern in GROUPS[group] for path in sorted(ROOT.glob(pattern))]
    return [str(path.relative_to(ROOT)) for path in found if path.is_file() or any(path.rglob("test_*.py"))]


def environment(group: str, folder: str, jobs: int) -> dict[str, str]:
    """The caller's environment without what would change which implementation runs; with the oldest Triton for the group of that name."""
    env = {k: v for k, v in os.environ.items() if k not in ("TRITON_INTERPRET", "TRITONQ_BACKEND")}
    env.setdefault("TRITON_CACHE_DIR", os.path.join(folder, "triton-cache"))
    if group == "oldest":
        env |= {"TRITON_CACHE_DIR": os.path.join(folder, "oldest-cache"),
                "PYTHONPATH": os.pathsep.join(filter(None, (str(OLDEST), env.get("PYTHONPATH"))))}  # fmt: skip
    env.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // jobs)))  # the workers share the cores
    return env


def _counts(report: pathlib.Path) -> tuple[int, int, int]:
    """Passed, failed (with errors) and skipped, from pytest's junit report; a process that died early leaves none."""
    if not report.exists():
        return 0, 0, 0
    suites = list(ElementTree.parse(report).iter("testsuite"))
    total, failures, errors, skipped = (sum(int(s.get(key, 0)) for s in suites) for key in ("tests", "failures", "errors", "skipped"))
    return total - failures - errors - skipped, failures + errors, skipped


def run_group(group: str, jobs: int, extra: list[str], env: dict[str, str], folder: str, *, may_be_empty: bool) -> Result:
    """Run one group in its own pytest."""
    print(f"\n== {group} ==", flush=True)
    if group == "oldest":
        script = f"import triton; assert triton.__version__ == {OLDEST_RELEASE!r}, triton.__version__"
        if status := subprocess.run([sys.executable, "-c", script], cwd=ROOT, env=env).returncode:
            return Result(group=group, status=status, passed=0, failed=0, skipped=0, seconds=0.0)
    report = pathlib.Path(folder, f"{group}.xml")
    command = [sys.executable, "-m", "pytest", f"--junitxml={report}", "--durations=5", *paths_of(group), *extra]
    if jobs > 1:
        # Contiguous shares, so that tests of one kernel share a process; who is done takes from the other.
        command += ["-n", str(jobs), "--dist", "worksteal"]
    started = time.perf_counter()
    status = subprocess.run(command, cwd=ROOT, env=env).returncode
    if status == NO_TESTS and may_be_empty:
        status = 0
    passed, failed, skipped = _counts(report)
    return Result(group=group, status=status, passed=passed, failed=failed, skipped=skipped, seconds=time.perf_counter() - started)


def default_groups(quick: bool) -> list[str]:
    """All that this machine can run; ``oldest`` is no part of a quick run."""
    return [group for group in GROUPS if group != "oldest" or ((OLDEST / "triton").is_dir() and not quick)]


def _table(results: list[Result]) -> str:
    lines = [f"{'group':12}{'passed':>8}{'failed':>8}{'skipped':>8}{'seconds':>9}"]
    for r in results:
        note = "" if r.status == 0 or r.failed else f"  pytest exit status {r.status}"
        lines.append(f"{r.group:12}{r.passed:8}{r.failed:8}{r.skipped:8}{r.seconds:9.1f}{note}")
    sums = [sum(getattr(r, key) for r in results) for key in ("passed", "failed", "skipped", "seconds")]
    lines.append(f"{'all':12}{sums[0]:8}{sums[1]:8}{sums[2]:8}{sums[3]:9.1f}")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """Run the chosen groups; returns the exit status."""
    parser = argparse.ArgumentParser(description="run tritonq's tests, one process per way of running kernels")
    parser.add_argument("--only", nargs="+", choices=GROUPS, help="groups to run")
    parser.add_argument("--jobs", type=int, default=2, help="pytest-xdist workers per group (default 2)")
    parser.add_argument("--quick", action="store_true", help="skip tests marked slow, stop at the first failure")
    parser.add_argument("-k", dest="keyword", help="pytest's -k")
    parser.add_argument("pytest_args", nargs="*", metavar="-- ARGS", help="more arguments for pytest")
    options = parser.parse_args(arguments)
    extra = list(options.pytest_args)
    if options.quick:
        extra += ["-m", "not slow", "-x"]
    if options.keyword:
        extra += ["-k", options.keyword]
    with tempfile.TemporaryDirectory(prefix="tritonq-tests-") as folder:
        results = []
        groups = options.only or default_groups(options.quick)
        for group in groups:
            env = environment(group, folder, options.jobs)
            results.append(run_group(group, options.jobs, extra, env, folder, may_be_empty=bool(extra)))
            if options.quick and results[-1].status:
                break
    print("\n" + _table(results))
    if "oldest" not in groups and not (options.only or options.quick):
        print(f"oldest: left out, there is no Triton {OLDEST_RELEASE} in {OLDEST.name}; `make test` installs it")
    return 1 if any(r.status for r in results) else 0


if __name__ == "__main__":
    sys.exit(main())
