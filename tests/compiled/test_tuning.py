"""Which candidates are timed: pruned by the code that the compiler makes of them, each with its reason; compiled once, in processes too."""
import dataclasses

import pytest
import torch

import tritonq
from tests.compiled.test_lint import newest
from tritonq import MatmulDesc, Scheme
from tritonq.bench import check
from tritonq.bench.timing import Times
from tritonq.codegen import compiler as backend
from tritonq.codegen.machines import machine_named
from tritonq.plans.core import OK, Status, Target, multiprocessors
from tritonq.plans.frag_entry import MATMUL_FRAG
from tritonq.plans.select import Plan
from tritonq.tuning import Candidate, Compiler, GpuEngine, Planner, Problem
from tritonq.tuning.compiling import told
from tritonq.tuning.problems import problems

TARGET = Target(backend="triton", device="cuda", arch=90, multiprocessors=132)
INT4 = Scheme.parse("int4.g128")
H200 = machine_named("h200")


def problem(configs: list[dict], m: int = 1, n: int = 4096, rule=lambda desc, config: OK) -> Problem:
    """matmul_frag with the heuristic's config and changes of it for a space."""
    desc = MatmulDesc(m=m, n=n, k=4096, dtype=torch.bfloat16, scheme=INT4, target=TARGET, source_dtype=torch.bfloat16, layout="frag")
    kernel = dataclasses.replace(MATMUL_FRAG, space=lambda desc: [MATMUL_FRAG.config(desc) | change for change in configs], config_ok=rule)
    return Problem(shape="o", kernel=kernel, desc=desc, m=m)


@pytest.fixture
def compiled(monkeypatch) -> list:
    """The configs of every compilation."""
    seen, real = [], backend.compile_source

    def spy(fn, signature, constexprs, *others):
        seen.append(constexprs)
        return real(fn, signature, constexprs, *others)

    monkeypatch.setattr("tritonq.codegen.launches.compile_source", spy)
    return seen


@newest  # which of these configs spill or take long code is up to the compiler
def test_pruned_by_rule_code_and_model_in_this_order(compiled):
    changes = [{}, {"SPLIT_K": 1}, {"SPLIT_K": 8}, {"BLOCK_K": 64, "STAGES": 1},
               {"BLOCK_M": 16, "BLOCK_N": 128, "num_warps": 2, "maxnreg": 96}, {"BLOCK_K": 128, "num_warps": 4},
               {"STAGES": 7, "BLOCK_M": 64}]  # fmt: skip

    def rule(desc, config):
        return Status("BLOCK_K=64 is not one of 128, 256") if config["BLOCK_K"] == 64 else OK

    found = Planner(Compiler(), H200, most=2).candidates(problem(changes, rule=rule))
    by_kind = {candidate.kind: candidate for candidate in found}
    assert [c.config["SPLIT_K"] for c in found if not c.kind] == [8, 4] and len(found) == len(changes)
    assert "is not one of 128, 256" in by_kind["rule"].reason
    assert "bytes per thread (96 registers)" in by_kind["spills"].reason and by_kind["spills"].config["BLOCK_N"] == 128
    assert "1.5 times the heuristic's" in by_kind["instructions"].reason
    assert "shared memory" in by_kind["does not fit"].reason or "schedulers idle" in by_kind["occupancy"].reason
    assert by_kind["later by the model"].config["SPLIT_K"] == 1 and "2 come first" in by_kind["later by the model"].reason
    assert all(candidate.prediction for candidate in found if not candidate.kind)
    assert not any(constants["BLOCK_K"] == 64 for constants in compiled)  # what a rule forbids is not compiled


def test_the_heuristic_is_never_pruned_and_what_fails_to_compile_is(monkeypatch):
    def fail(fn, signature, constexprs, *others):
        raise RuntimeError("PTXAS error: too much\nand more")

    monkeypatch.setattr("tritonq.codegen.launches.compile_source", fail)
    first, second = Planner(Compiler(), H200).candidates(problem([{}, {"STAGES": 4}]))
    assert first.heuristic and not first.kind and first.prediction is None
    assert (second.kind, second.reason) == ("does not compile", "RuntimeError: PTXAS error: too much")


def test_shapes_share_binaries(compiled):
    planner = Planner(Compiler(), H200)
    planner.candidates(problem([{}, {"STAGES": 4}], n=28672))
    count = len(compiled)
    planner.candidates(problem([{}, {"STAGES": 4}], n=14336 * 4))
    assert count == 2 == len(compiled)


def test_another_matrix_instruction_and_two_changes_need_a_measurement():
    changes = [{}, {"num_warps": 4}, {"num_warps": 4, "STAGES": 1}]
    planners = [Planner(Compiler(), H200, predicting=predicting) for predicting in (False, True)]
    kinds = [[candidate.kind for candidate in planner.candidates(problem(changes, m=16))] for planner in planners]
    assert kinds == [["", "", ""], ["", "other instruction", "far from the heuristic"]]


def test_nothing_is_compiled_where_no_config_can_gain(compiled):
    first, *others = Planner(Compiler(), H200, predicting=True).candidates(problem([{}, {"STAGES": 4}, {"SPLIT_K": 2}], n=128256))
    assert first.heuristic and {other.kind for other in others} == {"no room"} and len(compiled) == 1
    assert "memory and launch take" in others[0].reason


def test_what_the_model_does_not_know_is_not_ordered():
    (found,), _ = problems([("o", 4096, 4096)], [INT4], [512], ["dequantize_matmul"], torch.bfloat16, TARGET)
    candidates = Planner(Compiler(), H200).candidates(found)
    assert candidates[0].heuristic and not candidates[0].kind and all(candidate.prediction is None for candidate in candidates)
    plain = Planner(Compiler(), None).candidates(problem([{}]))
    assert plain[0].prediction is None


def test_processes_compile_ahead(tmp_path, monkeypatch):
    """What they leave in Triton's cache on disk serves this process."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    compiler = Compiler(jobs=2)
    planner = Planner(compiler, H200)
    todo = [problem([{"STAGES": 2}], m=m) for m in (1, 17)] + [problem([{"STAGES": 2}], m=1, n=8192)]
    todo = [dataclasses.replace(one, kernel=dataclasses.replace(MATMUL_FRAG, space=one.kernel.space)) for one in todo]
    assert planner.prepare(todo) == 2  # the third shares a binary
    assert len(list(tmp_path.glob("*/matmul_frag*.cubin"))) == 2
    for one in todo:
        compiler.rows(one.desc, MATMUL_FRAG, one.kernel.space(one.desc)[0])
    assert planner.prepare(todo) == 0
    compiler._processes[0].kill()  # what a process takes with it is compiled here
    compiler._processes[0].wait()
    assert planner.prepare([problem([{"STAGES": stages}], m=1) for stages in (4, 5)]) == 2
    compiler.close()


def test_the_engine_runs_compiled_kernels(simulator):
    """matmul_frag with two configs, and quantize_rows, as a GPU would run them; the wall clock says nothing here."""
    seen = []

    def measure(calls, *, device, failures):
        seen.append([len(contender) for contender in calls.values()])
        return {i: Times(1.0, 1.0, 1.0) for i in calls}

    engine, target = GpuEngine(torch.device("cpu"), measure), Target.of("cpu")
    (frag, rows), left_out = problems([("s", 64, 256)], [INT4], [2], ["matmul_frag", "quantize_rows"], torch.bfloat16, target)
    config = frag.kernel.config(frag.desc)
    other = config | {"BLOCK_K": 128, "SPLIT_K": 2, "STAGES": 2}
    outcome = engine(frag, [Candidate(config=config, heuristic=True), Candidate(config=other)])
    assert set(outcome.times) == {0, 1} and not outcome.wrong and not outcome.failed and not left_out
    outcome = engine(rows, [Candidate(config=rows.kernel.config(rows.desc), heuristic=True)])
    assert set(outcome.times) == {0} and seen == [[2, 2], [2]]


# Tiles of predicted entries (autotune_configs, not measured) that no heuristic takes, on an architecture that they are for: their products,
# at small sizes with ragged edges.
PREDICTED_TILES = [
    (90, "int4.g128", 33, dict(BLOCK_M=32, BLOCK_N=128, BLOCK_K=128, SPLIT_K=2)),
    (80, "int4.g128", 16, dict(BLOCK_M=16, BLOCK_N=128, BLOCK_K=256, SPLIT_K=1, maxnreg=160)),
    (80, "int4.g128", 33, dict(BLOCK_M=32, BLOCK_N=64, BLOCK_K=256, SPLIT_K=1)),
    (80, "int4.g128", 33, dict(BLOCK_M=32, BLOCK_N=64, BLOCK_K=128, SPLIT_K=2, STAGES=1)),
    (80, "nf4.g64", 33, dict(BLOCK_M=32, BLOCK_N=64, BLOCK_K=256, SPLIT_K=1)),
]


@pytest.mark.parametrize(("simulator", "text", "m", "config"), PREDICTED_TILES, indirect=["simulator"], ids=str)
def test_predicted_tiles_multiply(simulator, text, m, config):
    n, k, generator = config["BLOCK_N"] * 3 // 2, 256, torch.Generator().manual_seed(1)
    q = tritonq.quantize(torch.randn(n, k, generator=generator).bfloat16(), text).relayout("frag")
    x = torch.randn(m, k, generator=generator).bfloat16()
    plan = Plan.of(MatmulDesc.of(x, q), MATMUL_FRAG, {"STAGES": 3, "num_warps": 2} | config)
    assert MATMUL_FRAG.config_ok(plan.desc, plan.config)
    assert check.product(plan, x, q, q.relayout("row")) == ""


def test_a_process_that_compiles_does_not_ask_the_driver(monkeypatch):
    """Asking would make a context of hundreds of megabytes on the GPU, in every process."""
    desc = problem([{}]).desc
    here = dataclasses.replace(desc, target=Target(backend="triton", device="cuda", arch=90))
    there = told(here)
    assert there.target.multiprocessors == multiprocessors(here.target) and dataclasses.replace(there, target=here.target) == here
    monkeypatch.setattr("tritonq.plans.core._multiprocessors", None)
    assert MATMUL_FRAG.config(there)["num_warps"] == 2


def test_what_cannot_be_read_is_not_replaced():
    target = Target(backend="triton", device="cuda", arch="gfx942", multiprocessors=304)
    (found,), _ = problems([("o", 4096, 4096)], [INT4], [16], ["matmul_ksplit"], torch.bfloat16, target)
    first, *others = Planner(Compiler(), machine_named("mi300x"), predicting=True).candidates(found)
    assert first.heuristic and first.prediction and {other.kind for other in others} == {"no room"}
    assert "machine code of gfx942 cannot be read" in others[0].reason
