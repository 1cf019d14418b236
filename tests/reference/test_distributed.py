"""Tensor parallel on gloo ranks: shards bit for bit, products those of the whole but for the order of sums (support/rank_checks.py)."""
import importlib.util

import pytest
import torch

import tritonq
from tests.support import rank_checks, ranks

HAS_TRANSFORMERS = importlib.util.find_spec("transformers") is not None
pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch has no torch.distributed")
needs_transformers = pytest.mark.skipif(not HAS_TRANSFORMERS, reason="transformers is not installed")


def _cases(plain, framework):
    return [check.__name__ for check in plain] + [pytest.param(check.__name__, marks=needs_transformers) for check in framework]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    rank_checks.save_plain(folder)
    if HAS_TRANSFORMERS:
        for name, config in rank_checks.configs().items():
            rank_checks.causal_lm(config).save_pretrained(folder / name)
            for scheme in ("nf4.g32", "int3.g32", "int8"):
                tritonq.checkpoints.quantize_checkpoint(folder / name, folder / f"{name}-{scheme}", scheme)
    return folder


@pytest.fixture(scope="module")
def two(folder):
    return ranks.run([*rank_checks.ON_TWO, *(rank_checks.WITH_TRANSFORMERS if HAS_TRANSFORMERS else ())], 2, folder)


@pytest.fixture(scope="module")
def four(folder, two):
    return ranks.run(rank_checks.ON_FOUR, 4, folder)


@pytest.mark.parametrize("check", _cases(rank_checks.ON_TWO, rank_checks.WITH_TRANSFORMERS))
def test_on_two_ranks(two, check):
    assert two[check] is None, two[check]


@pytest.mark.parametrize("check", _cases(rank_checks.ON_FOUR, ()))
def test_on_four_ranks(four, check):
    assert four[check] is None, four[check]
