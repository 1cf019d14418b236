"""Random problems through compiled code, against the reference, until time is up: quantize, dequantize, products and their gradients, and
the plans of the seed systems.

The plan's kernel and config, and others that take the problem, as a tuner might choose them.

    python -m tests.support.fuzz [--seconds 300] [--first 0]

Every case follows from its number, which is printed where it fails; ``--first NUMBER --seconds 0`` runs that one again. The PTX simulator
executes them, for sm_80, sm_89 and sm_90 in turn. Status 1 where a case failed.
"""
from __future__ import annotations

import argparse
import dataclasses
import os
import random
import sys
import tempfile
import time
import traceback
from unittest.mock import patch

import torch

from tests.support import seed_cases, simulator
from tests.support.schemes import DTYPES, EVERY_GEOMETRY, SCHEMES, hostile, same_bits
from tests.support.weights import bound, fence, weight, within
from tritonq import DequantizeDesc, MatmulBackwardDesc, MatmulDesc, QuantizeDesc, Scheme, reference, select
from tritonq.errors import TritonQError
from tritonq.kernels import split_k
from tritonq.plans.core import Target
from tritonq.plans.descriptors import Desc
from tritonq.plans.registry import REFERENCE
from tritonq.plans.select import Plan, candidates

NAMES = [*SCHEMES, *(case.values[0] for case in EVERY_GEOMETRY), *(f"{f}.g{g}" for f in ("int4", "uint4.fz", "nf4") for g in (16, 48, 128))]
LAYOUTS = ("row", "frag", "ksplit")
ARCHITECTURES = (80, 89, 90)
ROWS = (1, 2, 3, 5, 8, 16, 17, 33, 64, 130)
COLUMNS = (1, 7, 16, 31, 40, 64, 72, 96, 127, 128, 200, 256, 384, 512, 1024, 1100, 2048)
TOKENS = (1, 2, 7, 8, 9, 16, 17, 33, 65)
MOST_WORK = 3_000_000  # products of a product: the simulator takes some seconds for them


def matrix(rnd: random.Random, scheme: Scheme, shape: tuple[int, int], dtype: torch.dtype) -> torch.Tensor:
    """Ordinary, tiny, huge or mostly zero numbers, special ones, or levels and bounds under a scale and their neighbours."""
    generator = torch.Generator().manual_seed(rnd.randrange(2**31))
    limits, kind = torch.finfo(dtype), rnd.choice(("hostile", "normal", "bounds", "small", "rows", "zeros", "large"))
    x = torch.randn(shape, generator=generator, dtype=torch.float64)
    if kind == "hostile":
        return hostile(shape, dtype, rnd.randrange(100))
    if kind == "small":
        x *= 2.0 ** rnd.uniform(-24 if dtype == torch.float16 else -140, -8)
    elif kind == "large":
        x *= limits.max / rnd.uniform(2, 64)
    elif kind == "rows":
        most = 8 if dtype == torch.float16 else 70
        x *= 2.0 ** torch.randint(-most, most, (shape[0], 1), generator=generator)
    elif kind == "zeros":
        x[torch.rand(shape, generator=generator) < 0.5] = 0.0
        x[torch.rand(shape, generator=generator) < 0.3] = -0.0
    elif kind == "bounds":
        levels = scheme.format.levels.double()
        levels = levels[levels.isfinite()].unique()
        levels = torch.cat((levels, (levels[1:] + levels[:-1]) / 2))
        scales = torch.randint(1, 2 ** rnd.choice((1, 5, 8, 11)), (shape[0], 1), generator=generator) * 2.0 ** rnd.randint(-11, -3)
        x = (levels[torch.randint(len(levels), shape, generator=generator)] * scales).to(dtype).double()
        x *= 1 + torch.randint(-1, 2, shape, generator=generator) * limits.eps / 2
    x = x.clamp(limits.min, limits.max).to(dtype)
    return x.T.contiguous().T if rnd.random() < 0.3 else x


def chosen(rnd: random.Random, desc: Desc) -> Plan:
    """The plan of ``select``, or of any kernel that takes the problem with any config that a tuner may give it."""
    if rnd.random() < 0.4:
        return select(desc)
    kernel = rnd.choice([row.kernel for row in candidates(desc) if row.status and row.kernel not in REFERENCE.values()])
    return Plan.of(desc, kernel, rnd.choice(kernel.space(desc)))


def quantizes(rnd: random.Random, scheme: Scheme, shape: tuple[int, int]) -> str:
    """Bit for bit the reference, into a layout at once and back."""
    dtype, layout, out = rnd.choice(DTYPES), rnd.choice(LAYOUTS), rnd.choice(DTYPES)
    x = matrix(rnd, scheme, shape, dtype)
    row = reference.quantize(x, scheme)
    want = row.relayout(layout)
    plan = chosen(rnd, QuantizeDesc.of(x, scheme, layout))
    got = plan.run(x)
    for name, tensor in want.tensors().items():
        assert same_bits(got.tensors()[name], tensor), f"{name} of {dtype}: {plan.sku()}"
    back = chosen(rnd, DequantizeDesc.of(got, out))
    assert same_bits(back.run(got), reference.dequantize(row, out)), f"values of {dtype}: {back.sku()}"
    return f"{plan.sku()} and back"


def multiplies(rnd: random.Random, scheme: Scheme, shape: tuple[int, int]) -> str:
    """Within the guarantee: a product with whatever epilogue, or a gradient."""
    n, k = shape
    m, layout = rnd.choice(TOKENS), rnd.choice(LAYOUTS)
    dtype, stored = rnd.choice(DTYPES[:3]), rnd.choice(DTYPES[:3])
    if scheme.has_scale:
        row = weight(str(scheme), n, k, stored, seed=rnd.randrange(1000))
    else:
        row = reference.quantize(torch.randn((n, k), generator=torch.Generator().manual_seed(rnd.randrange(1000))).to(stored), scheme)
    if rnd.random() < 0.2:
        row = dataclasses.replace(row, column_order=torch.randperm(k, generator=torch.Generator().manual_seed(k)).int())
    q = row.relayout(layout)
    generator = torch.Generator().manual_seed(rnd.randrange(2**31))
    draw = lambda *size: torch.randn(size, generator=generator).to(dtype)  # noqa: E731
    if m * n * k > MOST_WORK:
        return "nothing"
    q = fence(q) if rnd.random() < 0.3 else q
    if rnd.random() < 0.2:
        dy = draw(m, n)
        plan = chosen(rnd, MatmulBackwardDesc.of(dy, q))
        error = (plan.run(dy, q).double() - dy.double() @ reference.dequantize(row, torch.float64)).abs()
        assert bool((error <= bound(plan, dy, row)).all()), f"gradient {plan.sku()}"
        return str(plan.sku())
    x = rnd.choice((lambda: draw(m, k), lambda: draw(k, m).T, lambda: draw(m, 2 * k)[:, ::2], lambda: draw(1, m, k)))()
    bias = draw(n) if rnd.random() < 0.3 else None
    activation = rnd.choice((None, None, "silu", "gelu", "relu", *(["swiglu"] if n % 2 == 0 else [])))
    residual = draw(*x.shape[:-1], n // 2 if activation == "swiglu" else n) if rnd.random() < 0.2 else None
    plan = chosen(rnd, MatmulDesc.of(x, q, bias, activation, residual))
    assert within(plan.run(x, q, bias=bias, residual=residual), x, row, plan, bias, residual), f"product {plan.sku()}"
    return str(plan.sku())


def granularity(rnd: random.Random) -> tuple[str, dict, tuple[int, ...], tuple[int, ...] | None]:
    """A problem of the affine plans: (name, descriptor fields, tensor shape, scale shape)."""
    n, k, name = rnd.choice(ROWS), rnd.choice(COLUMNS), rnd.choice(("PerTensor", "PerChannel", "PerToken", "PerGroup"))
    if name == "PerTensor":
        return name, {"numel": n * k}, (n, k), None
    if name == "PerToken":
        return name, {"n": n, "d": k}, (n, k), (n,)
    if name == "PerGroup":
        group = rnd.choice((1, 2, 3, 7, 16, 48, 128, 1000))
        return name, {"outer_size": n, "axis_size": k, "group_size": group}, (n, k), (n, -(-k // group))
    shape = rnd.choice(((n, k), (k,), (2, n, 3, k % 37 + 1), (n, k % 50 + 1, 2)))
    axis = rnd.randrange(-len(shape), len(shape))
    return name, {"shape": shape, "axis": axis}, shape, (shape[axis],)


def seed_plans(rnd: random.Random, _scheme: Scheme, _shape: tuple[int, int]) -> str:
    """Bit for bit the reference: plans that are given scales and zero points, and those that find them."""
    torch.manual_seed(rnd.randrange(2**31))
    dtype, codes = rnd.choice(seed_cases.FLOATS), rnd.choice(seed_cases.CODES)
    if rnd.random() < 0.3:
        cases = list(seed_cases.dynamic_range(dtype, codes, n=rnd.randrange(9, 40), d=rnd.choice([d for d in COLUMNS if d >= 7])))
    else:
        cases = list(seed_cases.granularity_cases(*granularity(rnd), dtype, codes))
    name, plan, args = rnd.choice(cases)
    got = plan.run(None, None, args)
    with patch.dict(os.environ, TRITONQ_BACKEND="reference"):
        seed_cases.assert_same_bits(got, plan.run(None, None, args), f"{name} {dtype} {codes}")
    return f"{name} {dtype} {codes}"


def run(number: int) -> str:
    """What case ``number`` was; "nothing" where the library refuses such a thing, by one of its own errors.

    Raises:
        RuntimeError: it failed; the cause says how.
    """
    rnd = random.Random(number)
    name, shape, arch = rnd.choice(NAMES), (rnd.choice(ROWS), rnd.choice(COLUMNS)), ARCHITECTURES[number % len(ARCHITECTURES)]
    machine = simulator.install(arch=arch, lazy=rnd.random() < 0.3)  # what is asynchronous happens as late as it may
    if rnd.random() < 0.3:
        machine.order = lambda count: rnd.sample(range(count), count)
    of = Target.of
    known = lambda device=None: dataclasses.replace(of(device), arch=arch if os.environ["TRITONQ_BACKEND"] == "triton" else None)  # noqa: E731
    try:
        with patch.object(split_k, "_scratch", {}), patch.dict(os.environ, TRITONQ_BACKEND="triton"), patch.object(Target, "of", known):
            done = rnd.choices((quantizes, multiplies, seed_plans), (4, 4, 1))[0](rnd, Scheme.parse(name), shape)
    except TritonQError:
        return "nothing"
    except Exception as error:
        raise RuntimeError(f"case {number}: {name} {shape[0]}x{shape[1]} on sm_{arch}") from error
    finally:
        simulator.uninstall()
    return f"{name} {shape[0]}x{shape[1]} {done}"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=300, help="how long new cases are begun (default 300); 0: one")
    parser.add_argument("--first", type=int, default=0, metavar="NUMBER", help="of the first case (default 0)")
    options = parser.parse_args(arguments)
    os.environ.setdefault("TRITON_CACHE_DIR", tempfile.mkdtemp(prefix="tritonq-fuzz-"))  # what the compiler makes today
    end, number, ran, failed = time.monotonic() + options.seconds, options.first, 0, []
    while True:
        try:
            ran += run(number) != "nothing"
        except RuntimeError:
            failed.append(number)
            traceback.print_exc()
        number += 1
        if time.monotonic() >= end:
            break
    print(f"cases {options.first} to {number - 1}: {ran} ran, {number - options.first - ran - len(failed)} had nothing to run, "
          f"{len(failed)} failed{': ' if failed else ''}{', '.join(map(str, failed))}")  # fmt: skip
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
