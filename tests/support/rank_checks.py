"""What tests/reference/test_distributed.py checks on every rank of a group. Every rank runs the same lines."""
from __future__ import annotations

import copy
import pathlib
import re

import safetensors.torch
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import parallelize_module

import tritonq
from tests.support import bitsandbytes_files
from tests.support.schemes import SCHEMES, same_bits
from tritonq import distributed, shards
from tritonq.distributed import ColwiseParallel, ExpertParallel, RowwiseParallel, ShardedLinear, gather
from tritonq.errors import CheckpointError, InvalidProblemError, UnsupportedError
from tritonq.memory_plan import plan_memory
from tritonq.model_config import Use
from tritonq.nn import QuantEmbedding, QuantLinear
from tritonq.nn.weight import SUFFIXES
from tritonq.plans.core import Target

STYLES = {0: ColwiseParallel, 1: RowwiseParallel}
MODEL_SCHEMES = ("nf4.g32", "int4.g32", "int8", "fp8_e4m3")


def near(mine: torch.Tensor, whole: torch.Tensor, relative: float = 1e-5) -> None:
    """Equal but for the order of float32 sums."""
    assert mine.shape == whole.shape and mine.dtype == whole.dtype, (mine.shape, whole.shape)
    worst = (mine - whole).abs().max() / whole.abs().max()
    assert worst <= relative, f"{worst:.2e} of the largest value"


def refused(error: type, text: str, call) -> None:
    try:
        call()
    except error as caught:
        assert re.search(text, str(caught)), str(caught)
        return
    raise AssertionError(f"not refused: {text}")


def random(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def layer(scheme: str, n: int = 64, k: int = 256, bias: bool = True, **more) -> QuantLinear:
    torch.manual_seed(0)
    return QuantLinear.from_linear(nn.Linear(k, n, bias), scheme, **more)


class MLP(nn.Module):
    def __init__(self, scheme: str, bias: bool = True):
        super().__init__()
        torch.manual_seed(0)
        self.gate, self.up, self.down = (
            QuantLinear.from_linear(nn.Linear(k, n, bias), scheme) for n, k in ((512, 128), (512, 128), (128, 512)))  # fmt: skip

    def forward(self, x):
        return self.down(nn.functional.silu(self.gate(x)) * self.up(x))


MLP_PLAN = {"gate": ColwiseParallel(), "up": ColwiseParallel(), "down": RowwiseParallel()}


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
            assert all(map(same_bits, mine.part.flat(), piece.flat())), scheme
            state, stored = mine.state_dict(), whole.state_dict()
            assert list(state) == list(stored)
            placed = distributed.weight_placements(q.scheme, q.shape, axis, ranks)
            for field, placement in placed.items():
                if (name := "weight" + SUFFIXES[field]) in stored:
                    assert state[name].placements == (placement,) and state[name].shape == stored[name].shape, (scheme, name)
            gathered = mine.gather()
            assert all(map(same_bits, gathered.flat(), q.flat())), scheme
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
        assert all(map(same_bits, mine.gather().flat(), whole.qtensor.relayout("row").flat()))
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


def transformers_models(mesh, folder):
    for name, config in configs().items():
        ids = torch.arange(24).reshape(2, 12) * 7 % 256
        for scheme in MODEL_SCHEMES:
            whole = causal_lm(config)
            tritonq.quantize_(whole, scheme)
            mine = parallelize_module(copy.deepcopy(whole), mesh, plan_of(config))
            assert sum(type(m) is ShardedLinear for m in mine.modules()) == layers_split(config)
            with torch.no_grad():
                near(mine(ids).logits, whole(ids).logits)
            if scheme == "nf4.g32":
                a, b = (m.generate(ids, max_new_tokens=4, do_sample=False) for m in (mine, whole))
                assert torch.equal(a, b), name


def mixtures_of_experts(mesh, folder):
    """Attention split by heads, experts by expert; a state of DTensors, the whole gathered again, and gradients."""
    import transformers

    sizes = {"vocab_size": 256, "hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 8, "num_key_value_heads": 4}
    config = transformers.Qwen3MoeConfig(**sizes, head_dim=32, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=64)
    plan = {name: style for name, style in plan_of(config).items() if ".mlp." not in name}
    ids = torch.arange(24).reshape(2, 12) * 7 % 256
    for scheme in MODEL_SCHEMES:
        whole = causal_lm(config)
        tritonq.quantize_(whole, scheme)
        mine = parallelize_module(copy.deepcopy(whole), mesh, plan | {"model.layers.*.mlp.experts": ExpertParallel()})
        with torch.no_grad():
            near(mine(ids).logits, whole(ids).logits)
    experts, parts = whole.model.layers[0].mlp.experts, mine.model.layers[0].mlp.experts
    assert len(parts.quantized["down_proj"]) == 4 // mesh.size() and f"of {mesh.size()}" in repr(parts)
    together = gather(mine)
    assert all(map(same_bits, together["model.layers.0.mlp.experts.down_proj"].flat(), experts.quantized["down_proj"].flat()))
    state = {name: tensor.clone() for name, tensor in parts.state_dict().items()}
    assert all(tensor.placements == (Shard(0),) and tensor.shape[0] == 4 for tensor in state.values())
    for source in (state, experts.state_dict()):
        _zeroed(parts).load_state_dict(source)
        with torch.no_grad():
            near(mine(ids).logits, whole(ids).logits)
    x, index, shares = random(5, 128), torch.tensor([[0, 3], [2, 1], [0, 1], [3, 0], [1, 3]]), torch.rand(5, 2)
    grads = []
    for layer in (experts, parts):
        inputs = x.clone().requires_grad_(), index, shares.clone().requires_grad_()
        layer(*inputs).square().sum().backward()
        grads.append((inputs[0].grad, inputs[2].grad))
    for ours, theirs in zip(grads[1], grads[0], strict=True):
        near(ours, theirs)
    only_experts = nn.ModuleDict({"experts": parts})
    refused(UnsupportedError, "gather brings the whole together", lambda: tritonq.save(only_experts, folder / "refused.safetensors"))
    odd = tritonq.nn.QuantExperts.from_weights(torch.randn(3, 64, 32), torch.randn(3, 32, 32), "int8")
    refused(InvalidProblemError, "3 experts cannot be split into 2 equal parts. Legal numbers of parts: 1, 3",
            lambda: parallelize_module(nn.ModuleDict({"experts": odd}), mesh, {"experts": ExpertParallel()}))  # fmt: skip


def configs() -> dict:
    import transformers

    sizes = {"vocab_size": 256, "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 8,
             "num_key_value_heads": 4, "head_dim": 32, "max_position_embeddings": 64}  # fmt: skip
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64}
    return {"llama": transformers.LlamaConfig(**sizes), "qwen3": transformers.Qwen3Config(**sizes, tie_word_embeddings=True),
            "qwen3_moe": transformers.Qwen3MoeConfig(**sizes, **experts)}  # fmt: skip


def layers_split(config) -> int:
    """Projections of the attention, those of dense MLPs, and a head of its own; experts are kept by every rank."""
    moe = config.model_type == "qwen3_moe"
    return config.num_hidden_layers * (4 if moe else 7) + (not config.tie_word_embeddings)


STORED = {"llama": ("nf4.g32", "int3.g32"), "qwen3": ("int8",), "qwen3_moe": ("nf4.g32",)}


def causal_lm(config) -> nn.Module:
    import transformers

    torch.manual_seed(0)
    return transformers.AutoModelForCausalLM.from_config(config).eval()


def plan_of(config) -> dict:
    layers = "model.layers.*."
    plan = {f"{layers}self_attn.{name}": ColwiseParallel() for name in ("q_proj", "k_proj", "v_proj")}
    plan[f"{layers}self_attn.o_proj"] = RowwiseParallel()
    if config.model_type != "qwen3_moe":
        plan |= {f"{layers}mlp.{name}": ColwiseParallel() for name in ("gate_proj", "up_proj")}
        plan[f"{layers}mlp.down_proj"] = RowwiseParallel()
    return plan if config.tie_word_embeddings else plan | {"lm_head": ColwiseParallel(output_layouts=Replicate())}


DCP_SCHEMES = ("nf4.g32", "int3.g32", "uint4.g32", "mxfp4", "nvfp4", "fp8_e4m3", "int8")


def _zeroed(model: nn.Module) -> nn.Module:
    with torch.no_grad():
        for tensor in [*model.buffers(), *model.parameters()]:
            tensor.zero_() if tensor.dtype.itemsize > 1 else tensor.view(torch.uint8).zero_()
    return model


def distributed_checkpoints_are_saved(mesh, folder):
    for scheme in DCP_SCHEMES:
        mine = parallelize_module(MLP(scheme), mesh, MLP_PLAN)
        dcp.save(mine.state_dict(), checkpoint_id=folder / f"dcp-{scheme}")


def distributed_checkpoints_are_loaded_on_any_number_of_ranks(mesh, folder):
    for scheme in DCP_SCHEMES:
        whole, mine = MLP(scheme), _zeroed(parallelize_module(MLP(scheme), mesh, MLP_PLAN))
        state = mine.state_dict()
        dcp.load(state, checkpoint_id=folder / f"dcp-{scheme}")
        mine.load_state_dict(state)
        for name in ("gate", "up", "down"):
            q = getattr(whole, name).qtensor
            assert all(map(same_bits, getattr(mine, name).gather().flat(), q.flat())), (scheme, name)
        near(mine(random(3, 128)), whole(random(3, 128)))


def a_whole_state_is_taken_too(mesh, folder):
    whole, mine = MLP("uint4.g32"), _zeroed(parallelize_module(MLP("uint4.g32"), mesh, MLP_PLAN))
    mine.load_state_dict(whole.state_dict())
    near(mine(random(3, 128)), whole(random(3, 128)))
    assert mine.gate.weight.untyped_storage().nbytes() == mine.gate.weight.nbytes
    refused(RuntimeError, "gate.weight: is not that tensor of a whole uint4.g32", lambda: mine.load_state_dict(
        whole.state_dict() | {"gate.weight": whole.gate.weight[:8]}))  # fmt: skip
    gathered = distributed.gather(mine)
    assert all(map(same_bits, gathered["down.weight"].flat(), whole.down.qtensor.flat()))
    assert same_bits(gathered["up.bias"], whole.up.bias.detach()) and sorted(gathered) == sorted(
        f"{name}.{part}" for name in ("gate", "up", "down") for part in ("weight", "bias"))  # fmt: skip
    refused(UnsupportedError, "one of . parts of its weight.*gather", lambda: tritonq.save(mine, folder / "no.safetensors"))
    refused(UnsupportedError, "gather", lambda: mine.gate.to_linear())


def dq_weights_are_expanded_on_request(mesh, folder):
    refused(InvalidProblemError, "dq scales 256 neighbouring.*expand_scales", lambda: parallelize_module(
        layer("nf4.dq", 1024, 256), mesh, RowwiseParallel()))  # fmt: skip
    whole = layer("nf4.dq", 1024, 256)
    mine = parallelize_module(layer("nf4.dq", 1024, 256), mesh, RowwiseParallel(input_layouts=Replicate(), expand_scales=True))
    assert str(mine.scheme) == "nf4.g64" and same_bits(mine.gather().dequantize(), whole.qtensor.dequantize())
    near(mine(random(3, 256)), whole(random(3, 256)))


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
                want, y = tritonq.matmul(a, q), matmul(mine, weight, q.form)
                assert y.placements == (Shard(2) if axis == 0 else Partial(),) and y.shape == want.shape
                near(y.full_tensor().detach(), want.detach())
                near(matmul(mine, weight, q.form, everywhere).full_tensor().detach(), (want + bias).detach())
                want.square().sum().backward()
                y.redistribute(placements=[Replicate()]).square().sum().backward()
                near(mine.grad.full_tensor(), a.grad)
            if axis == 0:
                near(matmul(mine.detach(), weight, q.form, everywhere, "silu").full_tensor(), tritonq.matmul(x, q, bias, "silu"))
        kept = [distribute_tensor(t, mesh, [Replicate()]) for t in q.flat()]
        y = matmul(distribute_tensor(x, mesh, [Shard(1)]), kept, q.form, everywhere)
        assert y.placements == (Shard(1),)
        near(y.full_tensor(), tritonq.matmul(x, q, bias))
    compiled = torch.compile(lambda x, *weight: matmul(x, list(weight), q.form), fullgraph=True, backend="aot_eager")
    q = tritonq.quantize(random(128, 512), "int4.g32")
    want, weight, x = tritonq.matmul(x, q), distributed.distribute_weight(q, mesh, 1), distribute_tensor(x, mesh, [Replicate()])
    near(compiled(x, *weight).full_tensor(), want)
    refused(UnsupportedError, "partial sums", lambda: matmul(x, weight, q.form, None, "silu"))
    refused(UnsupportedError, "swiglu", lambda: matmul(x, distributed.distribute_weight(q, mesh, 0), q.form, None, "swiglu"))
    refused(InvalidProblemError, "stored_scale of .* must be S.*distribute_weight", lambda: matmul(
        x, [weight[0], distribute_tensor(q.stored_scale, mesh, [Replicate()])], q.form))  # fmt: skip
    refused(InvalidProblemError, "has the tensors packed, stored_scale, got 1", lambda: matmul(x, weight[:1], q.form))
    refused(InvalidProblemError, "x must be a DTensor", lambda: matmul(random(2, 8, 512), weight, q.form))


def loading_reads_only_what_is_kept(mesh, folder):
    """The files are written by the test; every rank counts the bytes that it reads."""
    ids = torch.arange(24).reshape(2, 12) * 7 % 256
    kept_whole = {"qwen3_moe": 1.0}  # of the bytes; elsewhere the embedding alone
    cases = [(name, f"{name}-{scheme}", scheme, {}) for name in STORED for scheme in STORED[name]]
    split_experts = {"model.layers.*.mlp.experts": ExpertParallel()}
    cases += [("qwen3_moe", stored, "nf4.g32", split_experts) for stored in ("qwen3_moe-nf4.g32", "fused.safetensors")]
    for name, stored, scheme, more in cases:
        path, config = folder / stored, configs()[name]
        with torch.device("meta"):
            mine = type(causal_lm_on_meta(config))(config).eval()
        mine.model.rotary_emb = type(mine.model.rotary_emb)(config)
        at = [_bytes_read()]
        tritonq.checkpoints.open(path)
        at.append(_bytes_read())
        distributed.load_sharded(mine, path, mesh, plan_of(config) | more)
        at.append(_bytes_read())
        headers, read = at[1] - at[0], at[2] - at[1]
        mine_bytes = sum(t.to_local().nbytes if isinstance(t, DTensor) else t.nbytes for t in [*mine.buffers(), *mine.parameters()])
        assert mine_bytes < read <= mine_bytes + headers, (mine_bytes, read, headers)
        planned = plan_memory(tritonq.checkpoints.open(folder / name).source, scheme, Use(devices=mesh.size(), target=Target.of("cpu")))
        rotary = sum(t.nbytes for buffer, t in mine.named_buffers() if "inv_freq" in buffer)
        assert planned.refused is None and (more or planned.weights == mine_bytes - rotary), (planned, mine_bytes)
        share = 0.75 if more else kept_whole.get(name, 0.75)
        assert mine_bytes < share * sum(t.nbytes for t in tritonq.load(path).values())
        sharded = [m for m in mine.modules() if isinstance(m, ShardedLinear)]
        whole = tritonq.load(path)
        for path_, module in mine.named_modules():
            if isinstance(module, ShardedLinear):
                split = module.sharding
                piece = shards.narrow(whole[f"{path_}.weight"], split.axis, split.start, split.length)
                assert all(map(same_bits, module.part.flat(), piece.flat())), path_
        assert len(sharded) == layers_split(config)
        reference = causal_lm(config)
        tritonq.quantize_(reference, scheme)
        with torch.no_grad():
            near(mine(ids).logits, reference(ids).logits)


class Plain(nn.Module):
    """Quantized and ordinary layers, a tied head, a buffer that is saved and one that is not."""

    def __init__(self):
        super().__init__()
        self.table, self.up, self.down = nn.Embedding(50, 128), nn.Linear(128, 512), nn.Linear(512, 128)
        self.odd, self.rows, self.norm = nn.Linear(128, 30), nn.Linear(30, 128, bias=False), nn.BatchNorm1d(128)
        self.head = nn.Linear(128, 50, bias=False)
        self.head.weight = self.table.weight

    def forward(self, ids):
        x = self.norm(self.table(ids))
        return self.head(self.down(self.up(x).relu()) + self.rows(self.odd(x).relu()))


PLAIN_SCHEMES = ("uint4.g32", "nvfp4", "nf4.dq")
PLAIN_FILES = [f"plain-{scheme}" for scheme in PLAIN_SCHEMES] + ["bitsandbytes-nf4", "bitsandbytes-nf4.dq"]


def save_fused(folder: pathlib.Path) -> None:
    model = causal_lm(configs()["qwen3_moe"])
    tritonq.quantize_(model, "nf4.g32")
    tritonq.save(model, folder / "fused.safetensors")


def save_plain(folder: pathlib.Path) -> None:
    for scheme in PLAIN_SCHEMES:
        torch.manual_seed(0)
        model = Plain().eval()
        model.norm.running_mean.normal_()
        tritonq.quantize_(model, {"up.*": scheme, "down.*": scheme})
        state = distributed.gather(model)
        del state["head.weight"]
        tritonq.save(state, folder / f"plain-{scheme}.safetensors")
    for scheme in ("nf4", "nf4.dq"):
        torch.manual_seed(0)
        named = {name: tensor.detach().clone() for name, tensor in Plain().eval().state_dict().items() if name != "head.weight"}
        for name in ("up.weight", "down.weight"):
            named |= bitsandbytes_files.stored(name, tritonq.quantize(named.pop(name), scheme))
        safetensors.torch.save_file(named, folder / f"bitsandbytes-{scheme}.safetensors", metadata={"format": "pt"})


def plain_modules_are_loaded(mesh, folder):
    import torch.distributed.tensor.parallel as torch_styles

    plan = {"odd": torch_styles.ColwiseParallel(output_layouts=Replicate()),
            "rows": torch_styles.RowwiseParallel(input_layouts=Replicate())}  # fmt: skip
    ids = torch.arange(20)
    for name in PLAIN_FILES:
        path = folder / f"{name}.safetensors"
        with torch.device("meta"):
            mine, whole = Plain().eval(), Plain().eval()
        expand = {"expand_scales": "dq" in name}
        distributed.load_sharded(mine, path, mesh, plan | {"up": ColwiseParallel(**expand), "down": RowwiseParallel(**expand)})
        distributed.load_sharded(whole, path, mesh, {})
        assert mine.head.weight is mine.table.weight and type(whole.up) is QuantLinear and whole.up.bias.shape == (512,)
        assert isinstance(mine.odd.weight, DTensor) and mine.odd.weight.full_tensor().shape == (30, 128)
        near(mine(ids), whole(ids))


def causal_lm_on_meta(config) -> nn.Module:
    import transformers

    with torch.device("meta"):
        return transformers.AutoModelForCausalLM.from_config(config)


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


def _bytes_read() -> int:
    """By read calls of this process, file cache or not."""
    return int(re.search(r"rchar: (\d+)", pathlib.Path("/proc/self/io").read_text())[1])


def loading_refuses_what_does_not_fit(mesh, folder):
    path = folder / "llama-nf4.g32"
    config = configs()["llama"]

    def load(change):
        with torch.device("meta"):
            model = type(causal_lm_on_meta(config))(config)
        change(model)
        return distributed.load_sharded(model, path, mesh, plan_of(config))

    def rope(model):
        model.model.rotary_emb = type(model.model.rotary_emb)(config)

    refused(InvalidProblemError, "on the meta device: model.rotary_emb.inv_freq", lambda: load(lambda model: None))
    refused(CheckpointError, "no place for: lm_head.weight", lambda: load(lambda model: delattr(model, "lm_head")))
    refused(CheckpointError, "lacks extra.weight, extra.bias", lambda: load(lambda m: (rope(m), setattr(m, "extra", nn.Linear(2, 2)))))
    refused(CheckpointError, r"lm_head.weight has shape \[256, 128\], the model needs \[3, 128\]",
            lambda: load(lambda model: setattr(model, "lm_head", nn.Linear(128, 3, device="meta"))))  # fmt: skip
    refused(CheckpointError, "holds lm_head.weight quantized .* and Conv1d cannot",
            lambda: load(lambda model: setattr(model, "lm_head", nn.Conv1d(128, 256, 1, device="meta"))))  # fmt: skip
    refused(InvalidProblemError, "mesh of one dimension", lambda: distributed.load_sharded(
        nn.Linear(2, 2), path, dist.device_mesh.init_device_mesh("cpu", (1, mesh.size())), {}))  # fmt: skip


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


ON_TWO = (
    parts_are_pieces_of_the_whole, layouts_and_moves, styles_take_and_give_what_they_are_told, gradients_are_those_of_the_whole,
    half_precision_is_as_near_as_partial_sums_allow, a_split_mlp_compiles_whole, distributed_checkpoints_are_saved,
    distributed_checkpoints_are_loaded_on_any_number_of_ranks, a_whole_state_is_taken_too, dq_weights_are_expanded_on_request,
    operators_on_dtensors, plain_modules_are_loaded, other_modules_are_refused,
)  # fmt: skip
WITH_PEFT = (adapters_learn_as_around_the_whole,)
WITH_TRANSFORMERS = (transformers_models, mixtures_of_experts, loading_reads_only_what_is_kept, loading_refuses_what_does_not_fit)
ON_FOUR = (styles_take_and_give_what_they_are_told, gradients_are_those_of_the_whole,
           distributed_checkpoints_are_loaded_on_any_number_of_ranks, plain_modules_are_loaded)  # fmt: skip
