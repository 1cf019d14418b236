"""The operators on DTensors."""
from __future__ import annotations

import torch
from torch.distributed.tensor import Partial, Replicate, Shard, distribute_tensor
from torch.utils._pytree import tree_map_only

import tritonq
from tritonq import distributed, shards
from tritonq.errors import InvalidProblemError, UnsupportedError

from .common import near, random, refused


def operators_on_dtensors(mesh, folder):
    matmul, ranks = torch.ops.tritonq.matmul, mesh.size()
    for scheme in ("nf4.g32", "uint4.g16.fz", "int3.g32", "int8.tensor", "nf4.dq"):
        q, x, bias = tritonq.quantize(random(128, 512), scheme), random(2, 8, 512), random(128)
        everywhere = distribute_tensor(bias, mesh, [Replicate()])
        for axis in (0, 1):
            if ranks not in shards.legal_parts(q.scheme, q.shape, axis):
                refused(InvalidProblemError, "Legal numbers of parts", lambda: distributed.distribute_weight(q, mesh, axis))  # noqa: B023
                continue
            weight = distributed.distribute_weight(q, mesh, axis)
            for lies in (Replicate(), Shard(2), Shard(1)):
                a = x.clone().requires_grad_()
                mine = distribute_tensor(x, mesh, [lies]).requires_grad_()
                want, y = tritonq.matmul(a, q), matmul(mine, *weight)
                assert y.placements == (Shard(2) if axis == 0 else Partial(),) and y.shape == want.shape
                near(y.full_tensor().detach(), want.detach())
                near(matmul(mine, *weight, everywhere).full_tensor().detach(), (want + bias).detach())
                want.square().sum().backward()
                y.redistribute(placements=[Replicate()]).square().sum().backward()
                near(mine.grad.full_tensor(), a.grad)
            if axis == 0:
                near(matmul(mine.detach(), *weight, everywhere, "silu").full_tensor(), tritonq.matmul(x, q, bias, "silu"))
        kept = tree_map_only(torch.Tensor, lambda t: distribute_tensor(t, mesh, [Replicate()]), q.operands)
        y = matmul(distribute_tensor(x, mesh, [Shard(1)]), *kept, everywhere)
        assert y.placements == (Shard(1),)
        near(y.full_tensor(), tritonq.matmul(x, q, bias))
        near(tritonq.matmul(distribute_tensor(x, mesh, [Shard(1)]), q, everywhere).full_tensor(), tritonq.matmul(x, q, bias))
    compiled = torch.compile(lambda x, *weight: matmul(x, *weight), fullgraph=True, backend="aot_eager")
    q = tritonq.quantize(random(128, 512), "int4.g32")
    want, weight, x = tritonq.matmul(x, q), distributed.distribute_weight(q, mesh, 1), distribute_tensor(x, mesh, [Replicate()])
    near(compiled(x, *weight).full_tensor(), want)
    refused(UnsupportedError, "partial sums", lambda: matmul(x, *weight, None, "silu"))
    refused(UnsupportedError, "swiglu", lambda: matmul(x, *distributed.distribute_weight(q, mesh, 0), None, "swiglu"))
    refused(InvalidProblemError, "stored_scale of .* must be S.*distribute_weight", lambda: matmul(
        x, weight[0], distribute_tensor(q.stored_scale, mesh, [Replicate()]), None, None, q.form))  # fmt: skip
    refused(InvalidProblemError, "has the tensors packed, stored_scale, got 1", lambda: matmul(x, weight[0], None, None, None, q.form))
    refused(InvalidProblemError, "x must be a DTensor", lambda: matmul(random(2, 8, 512), *weight))
