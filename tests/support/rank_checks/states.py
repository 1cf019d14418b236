"""State dicts and distributed checkpoints of split layers."""
from __future__ import annotations

import torch.distributed.checkpoint as dcp
from torch.distributed.tensor.parallel import parallelize_module

import tritonq
from tests.support.schemes import same_bits, same_tensors
from tritonq import distributed
from tritonq.errors import UnsupportedError

from .common import MLP, MLP_PLAN, near, random, refused, zeroed

DCP_SCHEMES = ("nf4.g32", "int3.g32", "uint4.g32", "mxfp4", "nvfp4", "fp8_e4m3", "int8")


def distributed_checkpoints_are_saved(mesh, folder):
    for scheme in DCP_SCHEMES:
        mine = parallelize_module(MLP(scheme), mesh, MLP_PLAN)
        dcp.save(mine.state_dict(), checkpoint_id=folder / f"dcp-{scheme}")


def distributed_checkpoints_are_loaded_on_any_number_of_ranks(mesh, folder):
    for scheme in DCP_SCHEMES:
        whole, mine = MLP(scheme), zeroed(parallelize_module(MLP(scheme), mesh, MLP_PLAN))
        state = mine.state_dict()
        dcp.load(state, checkpoint_id=folder / f"dcp-{scheme}")
        mine.load_state_dict(state)
        for name in ("gate", "up", "down"):
            q = getattr(whole, name).qtensor
            assert same_tensors(getattr(mine, name).gather().flat(), q.flat()), (scheme, name)
        near(mine(random(3, 128)), whole(random(3, 128)))


def a_whole_state_is_taken_too(mesh, folder):
    whole, mine = MLP("uint4.g32"), zeroed(parallelize_module(MLP("uint4.g32"), mesh, MLP_PLAN))
    mine.load_state_dict(whole.state_dict())
    near(mine(random(3, 128)), whole(random(3, 128)))
    assert mine.gate.weight.untyped_storage().nbytes() == mine.gate.weight.nbytes
    refused(RuntimeError, "gate.weight: is not that tensor of a whole uint4.g32", lambda: mine.load_state_dict(
        whole.state_dict() | {"gate.weight": whole.gate.weight[:8]}))  # fmt: skip
    gathered = distributed.gather(mine)
    assert same_tensors(gathered["down.weight"].flat(), whole.down.qtensor.flat())
    assert same_bits(gathered["up.bias"], whole.up.bias.detach()) and sorted(gathered) == sorted(
        f"{name}.{part}" for name in ("gate", "up", "down") for part in ("weight", "bias"))  # fmt: skip
    refused(UnsupportedError, "one of . parts of its weight.*gather", lambda: tritonq.save(mine, folder / "no.safetensors"))
    refused(UnsupportedError, "gather", lambda: mine.gate.to_linear())
