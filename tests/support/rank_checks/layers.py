"""Split layers: their parts, styles, layouts, gradients, compilation, and what is refused."""
from __future__ import annotations

import copy

import torch
from torch import nn
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import parallelize_module

from tests.support.schemes import SCHEMES, same_bits, same_tensors
from tritonq import distributed, shards
from tritonq.distributed import ColwiseParallel, RowwiseParallel, ShardedLinear
from tritonq.errors import InvalidProblemError, UnsupportedError
from tritonq.nn import QuantEmbedding, QuantLinear
from tritonq.nn.weight import SUFFIXES

from .common import MLP, MLP_PLAN, STYLES, layer, near, random, refused


def parts_are_pieces_of_the_whole(mesh, folder):
    rank, ranks, split = mesh.get_local_rank(), mesh.size(), 0
    for scheme in SCHEMES:
        for axis in (0, 1):
            whole = layer(scheme)
            q = whole.qtensor
            if ranks not in shards.legal_parts(q.scheme, q.shape, axis):
                refused(InvalidProblemError, r"QuantLinear\(in_features=256, out_features=64\): .*along [NK].*Legal numbers of parts: 1",
                        lambda: parallelize_module(layer(scheme), mesh, STYLES[axis]()))  # noqa: B023
                continue
            mine = parallelize_module(layer(scheme), mesh, STYLES[axis]())
            length = q.shape[axis] // ranks
            piece = shards.narrow(q, axis, rank * length, length)
            assert type(mine) is ShardedLinear and mine.part.shape == piece.shape
            assert same_tensors(mine.part.flat(), piece.flat()), scheme
            state, stored = mine.state_dict(), whole.state_dict()
            assert list(state) == list(stored)
            placed = distributed.weight_placements(q.scheme, q.shape, axis, ranks)
            for field, placement in placed.items():
                if (name := "weight" + SUFFIXES[field]) in stored:
                    assert state[name].placements == (placement,) and state[name].shape == stored[name].shape, (scheme, name)
            gathered = mine.gather()
            assert same_tensors(gathered.flat(), q.flat()), scheme
            near(_whole(mine(_local(random(3, 256), mesh, axis)), mesh, axis), whole(random(3, 256)))
            split += 1
    assert split > 100


def _local(x: torch.Tensor, mesh, axis: int) -> torch.Tensor:
    """What a layer before a Rowwise one would give."""
    return x if axis == 0 else x.chunk(mesh.size(), -1)[mesh.get_local_rank()].contiguous()


def _whole(y: torch.Tensor, mesh, axis: int) -> torch.Tensor:
    return DTensor.from_local(y.detach(), mesh, [Shard(y.dim() - 1)], run_check=False).full_tensor() if axis == 0 else y.detach()


def layouts_and_moves(mesh, folder):
    for name in ("frag", "ksplit"):
        whole, mine = layer("nf4.g32", layout=name), layer("nf4.g32", layout=name)
        parallelize_module(mine, mesh, ColwiseParallel(output_layouts=Replicate()))
        assert mine.part.layout == name and mine.weight is mine.part.packed
        assert same_tensors(mine.gather().flat(), whole.qtensor.relayout("row").flat())
        other = parallelize_module(layer("nf4.g32", layout=name), mesh, ColwiseParallel(output_layouts=Replicate()))
        other.load_state_dict(mine.state_dict())
        near(other(random(3, 256)), whole(random(3, 256)))
        half = mine.half()
        assert half.bias.dtype == torch.float16 and half.part.layout == name and half(random(3, 256).half()).dtype == torch.float16
    assert "part=" in repr(mine) and "in_features=256, out_features=64" in repr(mine)


def styles_take_and_give_what_they_are_told(mesh, folder):
    x = random(2, 8, 256)
    want = layer("int4.g32")(x)
    sequence = x.chunk(mesh.size(), 1)[mesh.get_local_rank()]
    col = parallelize_module(layer("int4.g32"), mesh, ColwiseParallel(input_layouts=Shard(1), output_layouts=Replicate()))
    near(col(sequence), want)
    near(col(distribute_tensor(x, mesh, [Shard(0)]) if mesh.size() == 2 else x.chunk(mesh.size(), 1)[mesh.get_local_rank()]), want)
    row = parallelize_module(layer("int4.g32"), mesh, RowwiseParallel(input_layouts=Replicate(), output_layouts=Shard(1)))
    near(row(x), want.chunk(mesh.size(), 1)[mesh.get_local_rank()])
    for style in (ColwiseParallel, RowwiseParallel):
        mine = parallelize_module(layer("int4.g32"), mesh, style(input_layouts=Replicate(), use_local_output=False))
        y = mine(x)
        assert y.placements == (Shard(2) if style is ColwiseParallel else Replicate(),) and y.shape == want.shape
        near(y.full_tensor(), want)
    style = RowwiseParallel(input_layouts=Replicate(), output_layouts=Partial(), use_local_output=False)
    y = parallelize_module(layer("int4.g32", bias=False), mesh, style)(x)
    assert y.placements == (Partial(),)
    near(y.full_tensor(), layer("int4.g32", bias=False)(x))
    refused(UnsupportedError, "without bias", lambda: parallelize_module(layer("int4.g32"), mesh, style))


def gradients_are_those_of_the_whole(mesh, folder):
    for scheme in ("nf4.g32", "uint4.g32", "int8"):
        whole, mine = MLP(scheme), parallelize_module(MLP(scheme), mesh, MLP_PLAN)
        a, b = (random(5, 128).requires_grad_() for _ in range(2))
        want, got = whole(a), mine(b)
        near(got, want)
        want.square().sum().backward()
        got.square().sum().backward()
        near(b.grad, a.grad)
        for one, other in zip(mine.parameters(), whole.parameters(), strict=True):
            near(one.grad.full_tensor(), other.grad)
    assert mine.gate.bias.placements == (Shard(0),) and mine.down.bias.placements == (Replicate(),)
    sequence = {"gate": ColwiseParallel(input_layouts=Shard(0)), "up": ColwiseParallel(input_layouts=Shard(0)),
                "down": RowwiseParallel(output_layouts=Shard(0))}  # fmt: skip
    mine, rank, ranks = parallelize_module(MLP("int8"), mesh, sequence), mesh.get_local_rank(), mesh.size()
    whole, a = MLP("int8"), random(8, 128).requires_grad_()
    b = a.detach().chunk(ranks)[rank].clone().requires_grad_()
    whole(a).square().sum().backward()
    mine(b).square().sum().backward()
    near(b.grad, a.grad.chunk(ranks)[rank])
    near(mine.down.bias.grad.full_tensor(), whole.down.bias.grad)


def half_precision_is_as_near_as_partial_sums_allow(mesh, folder):
    whole, x = MLP("nf4.g32").bfloat16(), random(5, 128).bfloat16()
    mine = parallelize_module(MLP("nf4.g32").bfloat16(), mesh, MLP_PLAN)
    exact = MLP("nf4.g32").double()
    for name in ("gate", "up", "down"):
        getattr(exact, name).bias.data.copy_(getattr(whole, name).bias)
    exact = exact(x.double())
    theirs, ours = ((m(x).double() - exact).norm() for m in (whole, mine))
    assert ours < 2 * theirs, (ours, theirs)


def a_split_mlp_compiles_whole(mesh, folder):
    for scheme in ("nf4.g32", "int8"):
        mine = parallelize_module(MLP(scheme), mesh, MLP_PLAN)
        torch._dynamo.reset()
        compiled = torch.compile(mine, fullgraph=True, backend="aot_eager")
        x = random(5, 128).requires_grad_()
        y = compiled(x)
        near(y, MLP(scheme)(random(5, 128)))
        y.sum().backward()
        eager = random(5, 128).requires_grad_()
        MLP(scheme)(eager).sum().backward()
        near(x.grad, eager.grad)


def dq_weights_are_expanded_on_request(mesh, folder):
    refused(InvalidProblemError, "dq scales 256 neighbouring.*expand_scales", lambda: parallelize_module(
        layer("nf4.dq", 1024, 256), mesh, RowwiseParallel()))  # fmt: skip
    whole = layer("nf4.dq", 1024, 256)
    mine = parallelize_module(layer("nf4.dq", 1024, 256), mesh, RowwiseParallel(input_layouts=Replicate(), expand_scales=True))
    assert str(mine.scheme) == "nf4.g64" and same_bits(mine.gather().dequantize(), whole.qtensor.dequantize())
    near(mine(random(3, 256)), whole(random(3, 256)))


def adapters_learn_as_around_the_whole(mesh, folder):
    """LoRA of peft, whose own layers are whole: the split layers take and give whole tensors."""
    import peft

    import tritonq.integrations.peft  # noqa: F401 (registers)

    whole = {"output_layouts": Replicate()}
    plan = {"gate": ColwiseParallel(**whole), "up": ColwiseParallel(**whole), "down": RowwiseParallel(input_layouts=Replicate())}
    ends = []
    for split in (False, True):
        model = parallelize_module(MLP("nf4.g32"), mesh, plan) if split else MLP("nf4.g32")
        torch.manual_seed(5)
        model = peft.get_peft_model(model, peft.LoraConfig(target_modules=["gate", "up", "down"], r=4, init_lora_weights=False))
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        optimizer = torch.optim.SGD(trained, lr=1.0)
        for _ in range(3):
            loss = model(random(5, 128)).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        ends.append([loss.detach(), *(parameter.detach() for parameter in trained)])
    assert len(ends[0]) == 7
    for mine, other in zip(*ends, strict=True):
        near(mine, other, 1e-4)


def other_modules_are_refused(mesh, folder):
    style = r"tritonq.distributed.ColwiseParallel splits a QuantLinear, got "
    for module, text in ((nn.Linear(64, 64), "Linear; take torch.distributed.tensor.parallel.ColwiseParallel"),
                         (QuantEmbedding.from_embedding(nn.Embedding(64, 64), "int8"), "QuantEmbedding; leave it out of the plan"),
                         (nn.LayerNorm(64), "LayerNorm; what it does"),
                         (parallelize_module(layer("int8"), mesh, ColwiseParallel()), "ShardedLinear; it holds a part")):  # fmt: skip
        refused(UnsupportedError, style + text, lambda: parallelize_module(module, mesh, ColwiseParallel()))  # noqa: B023
    ranks = mesh.size()
    refused(InvalidProblemError, rf"nf4 \[64, 192\] cannot be cut into {ranks} equal parts along K.*Legal numbers of parts: 1, 3",
            lambda: parallelize_module(layer("nf4", 64, 192), mesh, RowwiseParallel()))  # fmt: skip
    g_idx = torch.arange(256) % 8
    ordered = QuantLinear.from_linear(nn.Linear(256, 64), "int4.g32", g_idx=g_idx)
    refused(InvalidProblemError, "act-order", lambda: parallelize_module(copy.deepcopy(ordered), mesh, RowwiseParallel()))
    mine = parallelize_module(copy.deepcopy(ordered), mesh, ColwiseParallel(output_layouts=Replicate()))
    near(mine(random(3, 256)), ordered(random(3, 256)))
    assert repr(ColwiseParallel(expand_scales=True)).startswith("ColwiseParallel(input_layouts=(Replicate(),)")
