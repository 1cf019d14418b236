"""The fused 4-bit matmul on layout ``frag``: its PTX, run by the simulator, keeps what it guarantees."""
import dataclasses

import pytest
import torch

import tritonq
from tests.support.poison import check_fence, fenced
from tests.support.schemes import same_bits
from tritonq import MatmulDesc, QTensor, Scheme, reference
from tritonq.kernels import matmul_frag as kernels

DTYPES = (torch.float16, torch.bfloat16)


def weight(scheme: str, n: int, k: int, dtype: torch.dtype, seed: int = 0, exact: bool = False) -> QTensor:
    """Random codes, and a different scale and zero point in every (row, group): one taken from a neighbour shows.

    ``exact``: scales are powers of two and float zeros small multiples of 1/8, so that small integer x give exact results.
    """
    generator = torch.Generator().manual_seed(seed)
    scheme = Scheme.parse(scheme)
    q = reference.quantize(torch.zeros(n, k, dtype=dtype), scheme)
    groups = scheme.scale_shape(n, k)
    count = groups[0] * groups[1]
    fields = {"packed": torch.randint(0, 256, q.packed.shape, dtype=torch.uint8, generator=generator)}
    if k % 2:
        fields["packed"][:, -1] &= 15
    spread = torch.randperm(count, generator=generator).view(groups)
    if "dq" in scheme.options:
        fields["stored_scale"] = (spread % 256).to(torch.uint8)
        fields["scale_offset"] = torch.tensor(0.05)
        fields["second_scale"] = 0.01 + torch.rand(q.second_scale.shape, generator=generator)
    else:
        scale = 2.0 ** (spread % 5 - 2) if exact else 0.02 + 0.1 * (spread + 0.5) / count
        fields["stored_scale"] = scheme.scale_format(dtype).encode_ref(scale.float())
    if scheme.float_zero:
        zero = torch.randint(-8, 9, groups, generator=generator) / 8 if exact else torch.rand(groups, generator=generator) - 0.5
        fields["zero_point"] = zero.to(scheme.zero_format(dtype).dtype)
    elif scheme.format.affine:
        fields["zero_point"] = torch.randint(0, 16, groups, dtype=torch.uint8, generator=generator)
    return dataclasses.replace(q, **fields)


def fence(q: QTensor) -> QTensor:
    """The same matrix with poison around each of its tensors."""
    fields = {f.name: getattr(q, f.name) for f in dataclasses.fields(q)}
    return dataclasses.replace(q, **{name: fenced(t) for name, t in fields.items() if isinstance(t, torch.Tensor) and t.dim()})


def expected(x, q, bias=None, activation=None, residual=None):
    y = x.double() @ reference.dequantize(q, torch.float64).T
    y = y if bias is None else y + bias.double()
    y = y if activation is None else getattr(torch.nn.functional, activation)(y)
    return y if residual is None else y + residual.double()


def check(scheme, m, n, k, dtype, simulator, exact=False, **config):
    """One product against float64: within the guarantee, or equal bit for bit where every sum is exact."""
    row = weight(scheme, n, k, dtype, seed=m + n + k, exact=exact)
    q = fence(row.relayout("frag"))
    generator = torch.Generator().manual_seed(1)
    x = torch.randint(-4, 5, (m, k), generator=generator).to(dtype) if exact else torch.randn(m, k, generator=generator).to(dtype)
    x = fenced(x)
    plan = tritonq.select(MatmulDesc.of(x, q))
    assert plan.kernel.name == "matmul_frag", tritonq.explain(MatmulDesc.of(x, q))
    plan = dataclasses.replace(plan, config=plan.config | config)
    runs = 2 if plan.config["SPLIT_K"] > 1 else 1
    results = [plan.run(x, q) for _ in range(runs)]
    assert simulator.launches == runs and "mma.sync" in simulator.last.asm["ptx"]
    assert all(same_bits(results[0], again) for again in results), "the same result again: counters are back at zero"
    want = expected(x, row)
    if exact:
        assert same_bits(results[0], want.to(dtype)), f"{int((results[0] != want.to(dtype)).sum())} differ"
    else:
        with pytest.MonkeyPatch.context() as patch:  # the judge decodes without the kernels that it judges
            patch.setenv("TRITONQ_BACKEND", "reference")
            bound = plan.precision_guarantee().bound(x, row)
        wrong = (results[0].double() - want).abs()
        assert bool((wrong <= bound).all()), f"{float((wrong / bound).max()):.2f} of the bound"
    assert not kernels.counters(torch.device("cpu")).any()
    for t in (x, q.packed, q.stored_scale):
        check_fence(t)


GROUPS = ("g32", "g64", "g128", "g256", "channel")
FORMATS = ("int4", "uint4", "uint4.fz", "nf4", "fp4_bnb", "fp4_e2m1")
SAMPLE = [
    pytest.param(f"{fmt}.{group}", dtype, id=f"{fmt}.{group}-{str(dtype).removeprefix('torch.')}")
    for i, fmt in enumerate(FORMATS) for j, group in enumerate(GROUPS) for d, dtype in enumerate(DTYPES) if (i + j + d) % 2 == 0
]  # fmt: skip


@pytest.mark.parametrize("scheme, dtype", SAMPLE)
def test_every_format_and_group(scheme, dtype, simulator):
    check(scheme, 3, 72, 520, dtype, simulator)


@pytest.mark.parametrize("simulator", [80], indirect=True)
@pytest.mark.parametrize("scheme, dtype", SAMPLE[::4])
def test_sm_80(scheme, dtype, simulator):
    check(scheme, 5, 65, 384, dtype, simulator, SPLIT_K=2)
