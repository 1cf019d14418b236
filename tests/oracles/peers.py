"""Shared by the oracle tests: quiet imports, and the proof that two codes differ on a tie alone."""
from __future__ import annotations

import logging
import warnings

import pytest
import torch


def peer(name: str):
    """Import a third-party oracle without its chatter; skip where it is not installed (the ``test`` extra has all of them)."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return pytest.importorskip(name, reason=f"{name} is not installed; pip install 'tritonq[test]'")
    finally:
        logging.disable(disabled)


def assert_differ_on_ties_only(
    ours: torch.Tensor, theirs: torch.Tensor, quotient: torch.Tensor, product: torch.Tensor, encode, share: float = 1e-3
) -> None:
    """ours = encode(x / scale) and theirs = encode(x * (1 / scale)), each in every element, and they seldom differ.

    Where they do, the two float32 numbers, one rounding apart, lie on either side of a rounding boundary.
    """
    assert torch.equal(ours.long(), encode(quotient).long())
    assert torch.equal(theirs.long(), encode(product).long())
    differ = ours.long() != theirs.long()
    assert differ.double().mean() <= share
    assert ((quotient - product).abs() <= quotient.abs() * 2.0**-22)[differ].all()
