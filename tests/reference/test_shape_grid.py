"""The reference product on the grid of tests/support/shapes.py, against the formula of a scheme written out column by column."""
import pytest
import torch

import tritonq
from tests.support.shapes import COLUMNS, FEATURES, FIXED, GROUPS, KINDS, ROWS, grid, scheme_of
from tests.support.weights import weight


def written_out(q: tritonq.QTensor) -> torch.Tensor:
    """float64 ``[N, K]``: column k has the scale and zero point of group ``k // group size``."""
    fmt, (n, k) = q.scheme.format, q.shape
    group = torch.arange(k) // q.scheme.group_shape(n, k)[1]
    level = fmt.levels.double()[q.codes().long() % 2**fmt.bits]
    scale = (q.scale.float() * q.second_scale if q.scheme.recipe == "nv" else q.scale).double()[:, group]
    if q.scheme.float_zero:
        return q.zero_point.double()[:, group] + scale * level
    return scale * (level - q.zero_point.double()[:, group]) if fmt.affine else scale * level


@pytest.mark.parametrize("kind", KINDS)
def test_every_shape(kind):
    for i, (scheme, m, n, k) in enumerate(grid(kind)):
        q = weight(scheme, n, k, torch.float32, seed=i)
        x = torch.randn(m, k, dtype=torch.float64)
        got, want = tritonq.matmul(x, q), x @ written_out(q).T
        assert got.shape == (m, n) and got.dtype == torch.float64
        assert torch.allclose(got, want, rtol=1e-11, atol=1e-11 * k), f"{scheme} {m} x {n} x {k}"


def test_the_grid_holds_every_value_for_every_kind():
    for kind in KINDS:
        schemes, *axes = (set(values) for values in zip(*grid(kind)))
        assert all(set(axis) <= seen for axis, seen in zip((ROWS, FEATURES, COLUMNS), axes)), kind
        assert kind in FIXED or schemes == {scheme_of(kind, group) for group in GROUPS}, kind
