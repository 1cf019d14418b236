"""Tensor parallel on gloo ranks: shards bit for bit, products those of the whole but for the order of sums (support/rank_checks)."""
import importlib.util

import pytest
import torch

import tritonq
from tests.support import rank_checks, ranks
from tests.support.rank_checks import loading, models

HAS_TRANSFORMERS, HAS_PEFT = (importlib.util.find_spec(name) is not None for name in ("transformers", "peft"))


@pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch has no torch.distributed")
def test_on_two_ranks_and_then_on_four(tmp_path):
    """One test, because each group of ranks is spawned once, and four ranks load what two saved."""
    loading.save_plain(tmp_path)
    if HAS_TRANSFORMERS:
        loading.save_fused(tmp_path)
        for name, config in models.configs().items():
            models.causal_lm(config).save_pretrained(tmp_path / name)
            for scheme in models.STORED[name]:
                tritonq.checkpoints.quantize_checkpoint(tmp_path / name, tmp_path / f"{name}-{scheme}", scheme)
    checks = rank_checks.ON_TWO + rank_checks.WITH_TRANSFORMERS * HAS_TRANSFORMERS + rank_checks.WITH_PEFT * HAS_PEFT
    two = ranks.run(checks, 2, tmp_path)
    assert all(said is None for said in two.values()), "\n".join(f"{name}: {said}" for name, said in two.items() if said)
    four = ranks.run(rank_checks.ON_FOUR, 4, tmp_path)
    assert all(said is None for said in four.values()), "\n".join(f"{name}: {said}" for name, said in four.items() if said)
