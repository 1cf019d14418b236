"""Triton's compiled code for the same features, its PTX run by the simulator for sm_80 and sm_90."""
import pytest
from triton._C.libtriton import ir
from triton._C.libtriton.passes.common import add_sccp

from tests.support import passes
from tests.support.feature_checks import CHECKS, same


@pytest.mark.parametrize("simulator", [80, 90], indirect=True)
@pytest.mark.parametrize("name", CHECKS)
def test_feature(name: str, simulator) -> None:
    if simulator.arch < CHECKS[name].min_arch:
        pytest.skip(f"the feature needs sm_{CHECKS[name].min_arch}")
    got, expected = CHECKS[name].run("cpu")
    assert simulator.launches > 0
    assert same(got, expected)


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
    manager = ir.pass_manager(context := ir.context())
    add_sccp(manager)
    with pytest.raises(RuntimeError, match="PassManager::run failed"):
        manager.run(invalid(context), "a stage")
