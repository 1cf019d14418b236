"""That compilation verifies what it makes: once per stage in the other tests, after every pass here."""
import pytest
import torch
from triton import knobs
from triton._C.libtriton import ir
from triton._C.libtriton.passes.common import add_sccp

from tests.support import passes
from tritonq import DequantizeDesc, MatmulBackwardDesc, MatmulDesc, QuantizeDesc, Scheme
from tritonq.codegen.examine import examine
from tritonq.plans.core import Target


def invalid(context) -> ir.module:
    """A function that never returns to its caller."""
    ir.load_dialects(context)
    builder = ir.builder(context)
    module = builder.create_module()
    function = builder.get_or_insert_function(module, "f", builder.get_function_ty([], []), "public", False)
    function.add_entry_block()
    module.push_back(function)
    return module


@pytest.mark.skipif(not passes.KNOWN, reason="this Triton verifies after every pass")
def test_an_invalid_module_ends_its_stage():
    with passes.verified_once_per_stage():
        manager = ir.pass_manager(context := ir.context())
        add_sccp(manager)
        with pytest.raises(RuntimeError, match="^a stage left an invalid module"):
            manager.run(invalid(context), "a stage")
    with passes.verified_after_every_pass():
        manager = ir.pass_manager(context := ir.context())
        add_sccp(manager)
        with pytest.raises(RuntimeError, match="PassManager::run failed"):
            manager.run(invalid(context), "a stage")


PROBLEMS = [
    (QuantizeDesc, "int4.g128", {"layout": "row"}, "quantize_rows"),
    (QuantizeDesc, "int4.b32x32", {"layout": "row"}, "quantize_area"),
    (QuantizeDesc, "nvfp4", {"layout": "row"}, "range_partials"),
    (QuantizeDesc, "uint4.g128", {"layout": "frag"}, "quantize_frag"),
    (QuantizeDesc, "nf4", {"layout": "ksplit"}, "quantize_ksplit"),
    (DequantizeDesc, "mxfp4", {"layout": "row"}, "dequantize_rows"),
    (DequantizeDesc, "int4.g12", {"layout": "row"}, "dequantize_tiles"),
    (MatmulDesc, "int3", {"m": 16, "layout": "row"}, "matmul_tiles"),
    (MatmulDesc, "nf4", {"m": 1, "layout": "frag"}, "matmul_frag"),
    (MatmulDesc, "uint4.g128.fz", {"m": 64, "layout": "frag"}, "matmul_frag"),
    (MatmulDesc, "uint4", {"m": 8, "layout": "ksplit"}, "matmul_ksplit"),
    (MatmulBackwardDesc, "int4.g128", {"m": 8, "layout": "frag"}, "matmul_dx_tiles"),
]


@pytest.mark.parametrize("kind, scheme, fields, kernel", PROBLEMS, ids=lambda value: getattr(value, "op", str(value)))
def test_every_pass_leaves_a_valid_module(kind, scheme, fields, kernel, tmp_path, monkeypatch):
    monkeypatch.setattr(knobs.cache, "dir", str(tmp_path))  # what another test compiled would not be compiled again
    target, source = Target(backend="triton", device="cuda", arch=90), {} if kind is QuantizeDesc else {"source_dtype": torch.bfloat16}
    desc = kind(n=256, k=4096, dtype=torch.bfloat16, scheme=Scheme.parse(scheme), target=target, **source, **fields)
    with passes.verified_after_every_pass():
        assert kernel in [row.kernel for row in examine(desc)]
    assert any(tmp_path.rglob("*.ttgir"))
