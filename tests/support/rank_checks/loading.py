"""Checkpoints loaded by parts: what is read, what is refused."""
from __future__ import annotations

import pathlib
import re

import safetensors.torch
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.tensor import DTensor, Replicate

import tritonq
from tests.support import bitsandbytes_files
from tests.support.schemes import same_bits, same_tensors
from tritonq import distributed, shards
from tritonq.distributed import ColwiseParallel, ExpertParallel, RowwiseParallel, ShardedLinear
from tritonq.errors import CheckpointError, InvalidProblemError
from tritonq.memory_plan import plan_memory
from tritonq.model_config import Use
from tritonq.nn import QuantLinear
from tritonq.plans.core import Target

from .common import near, refused
from .models import STORED, causal_lm, configs, layers_split, plan_of

PLAIN_SCHEMES = ("uint4.g32", "nvfp4", "nf4.dq")

PLAIN_FILES = [f"plain-{scheme}" for scheme in PLAIN_SCHEMES] + ["bitsandbytes-nf4", "bitsandbytes-nf4.dq"]


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


class Shared(nn.Module):
    """One layer in two places, and one whose weight it reads itself."""

    def __init__(self):
        super().__init__()
        self.a, self.out = nn.Linear(128, 128), nn.Linear(128, 128)
        self.b = self.a

    def forward(self, x):
        return self.out(self.b(self.a(x)).to(self.out.weight.dtype))


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
    torch.manual_seed(0)
    model = Shared().eval()
    tritonq.quantize_(model, "int8", lambda *_: True)
    tritonq.save(model, folder / "shared.safetensors")
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
    with torch.device("meta"):
        model = Shared().eval()
    distributed.load_sharded(model, folder / "shared.safetensors", mesh, {})
    stored = tritonq.load(folder / "shared.safetensors")
    assert type(model.a) is QuantLinear and model.a is model.b and type(model.out) is nn.Linear
    assert same_bits(model.out.weight.detach(), stored["out.weight"].dequantize()) and model(torch.ones(1, 128)).isfinite().all()


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
                assert same_tensors(module.part.flat(), piece.flat()), path_
        assert len(sharded) == layers_split(config)
        reference = causal_lm(config)
        tritonq.quantize_(reference, scheme)
        with torch.no_grad():
            near(mine(ids).logits, reference(ids).logits)


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


def causal_lm_on_meta(config) -> nn.Module:
    import transformers

    with torch.device("meta"):
        return transformers.AutoModelForCausalLM.from_config(config)


def _bytes_read() -> int:
    """By read calls of this process, file cache or not."""
    return int(re.search(r"rchar: (\d+)", pathlib.Path("/proc/self/io").read_text())[1])
