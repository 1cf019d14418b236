"""The tuner without a GPU: decisions, recording, going on, stopping, refusing; with made-up candidates and times, and a real engine."""
import dataclasses
import importlib
import json

import pytest
import torch

from tritonq import MatmulDesc, Scheme, reference
from tritonq.bench.timing import Times
from tritonq.codegen.speed import Prediction
from tritonq.errors import InvalidProblemError
from tritonq.plans import configs
from tritonq.plans.config_file import Source, read
from tritonq.plans.core import OK, Target
from tritonq.plans.frag_entry import MATMUL_FRAG
from tritonq.plans.kernel_entries import KERNELS
from tritonq.plans.registry import KernelEntry, accumulated
from tritonq.plans.select import explain, select
from tritonq.tuning import Candidate, GpuEngine, ModelEngine, Outcome, Problem, Store, problems, short, tune
from tritonq.tuning.tune import decide

TARGET = Target(backend="triton", device="cuda", arch=90, multiprocessors=132)
INT4 = Scheme.parse("int4.g128")
SHAPES = [("a", 4096, 4096), ("b", 8192, 8192)]


def todo(rows=(1, 16), shapes=SHAPES, kernels=("matmul_frag",)) -> list[Problem]:
    return problems(shapes, [INT4], rows, kernels, torch.bfloat16, TARGET)[0]


def guessed(us: float) -> Prediction:
    return Prediction(us=us, limit="memory", parts={"memory": us}, machine="made up", resident=8, rounds=1.0)


class FakePlanner:
    """Two splits beside the heuristic's config, at the same prediction."""

    def prepare(self, todo: list[Problem]) -> int:
        return 0

    def candidates(self, problem: Problem) -> list[Candidate]:
        first = problem.kernel.config(problem.desc)
        others = [first | {"SPLIT_K": split} for split in (1, 2) if split != first["SPLIT_K"]]
        pruned = Candidate(config=first | {"STAGES": 1}, kind="spills", reason="8 bytes")
        return [Candidate(config=first, heuristic=True, prediction=guessed(10.0)),
                *(Candidate(config=config, prediction=guessed(9.0)) for config in others), pruned]  # fmt: skip


class FakeEngine:
    """Splits of 1 are fast, the heuristic's are slow; ``stop_after`` problems somebody presses Ctrl-C."""

    measures = True

    def __init__(self, stop_after: int = 10**6, outcome=None):
        self.stop_after, self.outcome, self.seen = stop_after, outcome, []

    def __call__(self, problem: Problem, candidates: list[Candidate]) -> Outcome:
        if len(self.seen) == self.stop_after:
            raise KeyboardInterrupt
        self.seen.append(problem.name)
        assert not any(candidate.kind for candidate in candidates)
        if self.outcome is not None:
            return self.outcome(candidates)
        return Outcome(times={i: spread(20.0 if c.heuristic else 10.0 + c.config["SPLIT_K"]) for i, c in enumerate(candidates)})


def spread(us: float, half: float = 0.1) -> Times:
    return Times(us, us - half, us + half)


@pytest.fixture
def store(tmp_path) -> Store:
    return Store(tmp_path, Source(protocol="made up", time="2026-11-21T00:00:00Z", triton="3.9.0"), "test")


def run(store, engine=None, **options):
    return tune(todo(), FakePlanner(), engine or FakeEngine(), store, **options)


def entries(store) -> list:
    return list(read(store.folder / "sm_90x132" / "matmul_frag.json").entries)


def test_problems_are_buckets_of_what_a_kernel_takes():
    schemes, kernels = [INT4, Scheme.parse("int4.g12")], ["matmul_frag", "dequantize_rows"]
    found, left_out = problems(SHAPES, schemes, [3, 4, 16], kernels, torch.bfloat16, TARGET)
    names = [problem.name for problem in found]
    assert "matmul_frag int4.g128 bfloat16 4096x4096 m=4" in names and "dequantize_rows int4.g128 bfloat16 4096x4096" in names
    assert [problem.m for problem in found if problem.shape == "a" and problem.desc.scheme == INT4] == [4, 16, None]
    assert {problem.desc.layout for problem in found if problem.kernel.name == "matmul_frag"} == {"frag"}
    assert names.index("dequantize_rows int4.g128 bfloat16 4096x4096") < names.index("matmul_frag int4.g128 bfloat16 8192x8192 m=4")
    assert any("int4.g12" in name and "multiple of 16" in reason for name, reason in left_out)
    near, far = problems(SHAPES[:1], [INT4], [1, 64], ["dequantize_matmul"], torch.bfloat16, TARGET)
    assert [problem.m for problem in near] == [64] and "far from paying" in far[0][1]
    with pytest.raises(InvalidProblemError, match="unknown kernel 'x'; known: quantize_frag"):
        problems(SHAPES, [INT4], [1], ["x"], torch.bfloat16, TARGET)


def test_the_backward_takes_whole_tiles_of_frag():
    (dx,), _ = problems(SHAPES[:1], [INT4], [16], ["matmul_dx"], torch.bfloat16, TARGET)
    space = dx.kernel.space(dx.desc)
    assert dx.desc.layout == "frag" and len(space) > 4 and all(min(c["BLOCK_N"], c["BLOCK_K"]) >= 64 for c in space)
    assert "tiles of 64 rows" in dx.kernel.config_ok(dx.desc, space[0] | {"BLOCK_N": 32}).reason


@pytest.mark.parametrize(
    ("times", "predicted", "expected"),
    [
        ([spread(10.0), spread(8.0), spread(9.0)], False, (1, 8.0, 9.0)),
        ([spread(10.0, 3.0), spread(8.0), spread(9.0)], False, (0, 10.0, 8.0)),  # inside the spread: the heuristic's
        ([spread(8.0), spread(10.0), spread(9.0)], False, (0, 8.0, 9.0)),
        ([spread(10.0, 0), spread(9.6, 0), spread(9.9, 0)], True, (0, 10.0, 9.6)),  # a model's 4 per cent
        ([spread(10.0, 0), spread(8.0, 0), spread(8.1, 0)], True, (2, 8.1, 8.0)),  # a tie: what is more like the heuristic's
        ([spread(10.0, 0), spread(8.0, 0), spread(8.3, 0)], True, (1, 8.0, 8.3)),
    ],
)
def test_decisions(times, predicted, expected):
    first = MATMUL_FRAG.config(todo()[0].desc)
    far, near = first | {"BLOCK_K": 128, "SPLIT_K": 1}, first | {"SPLIT_K": 1}
    candidates = [Candidate(config=first, heuristic=True), Candidate(config=far), Candidate(config=near)]
    chosen = decide(candidates, dict(enumerate(times)), predicted=predicted)
    assert (chosen.index, chosen.us, chosen.next_us) == expected


def test_no_time_no_decision_and_a_failed_heuristic_loses():
    candidates = [Candidate(config={"a": 1}, heuristic=True), Candidate(config={"a": 2})]
    assert decide(candidates, {}) is None
    assert decide(candidates, {1: spread(5.0)}).index == 1 and decide(candidates, {1: spread(5.0)}).next_us is None


def test_entries_are_recorded_and_taken(store, monkeypatch):
    summary = run(store)
    found = entries(store)
    assert [(e.n, e.m, e.measured, e.us, e.next_us, e.config["SPLIT_K"], e.source) for e in found] == [
        (n, m, True, 11.0, 12.0, 1, "test") for n in (4096, 8192) for m in (1, 16)]  # fmt: skip
    assert len(summary.results) == 4 and all(result.heuristic_us == 20.0 and not result.heuristic for result in summary.results)
    monkeypatch.setenv(configs.VARIABLE, str(store.folder))
    desc = todo()[0].desc
    assert select(desc).config["SPLIT_K"] == 1 != MATMUL_FRAG.config(desc)["SPLIT_K"]
    assert f"{configs.VARIABLE} sm_90x132/matmul_frag.json m=1" in explain(desc)


def test_ctrl_c_keeps_what_is_done_and_the_next_run_goes_on(store):
    with pytest.raises(KeyboardInterrupt):
        run(store, FakeEngine(stop_after=2))
    assert len(entries(store)) == 2
    engine = FakeEngine()
    summary = run(store, engine)
    assert len(engine.seen) == 2 and len(summary.skipped) == 2 and len(entries(store)) == 4
    engine = FakeEngine()
    assert not run(store, engine).results and not engine.seen
    assert len(run(store, engine, again=True).results) == len(engine.seen) == 4


def test_a_budget_stops_before_the_next_problem(store):
    clock = iter([0.0, 10.0, 50.0, 101.0])
    summary = run(store, budget=100.0, clock=lambda: next(clock))
    assert len(summary.results) == len(entries(store)) == 2 and [problem.m for problem in summary.left] == [1, 16]


def test_a_wrong_result_is_refused_by_name(store):
    def outcome(candidates):
        return Outcome(times={0: spread(20.0), 2: spread(12.0)}, wrong={1: "incorrect by 3"}, failed={})

    summary = run(store, FakeEngine(outcome=outcome))
    assert all(entry.config["SPLIT_K"] == 2 and entry.next_us == 20.0 for entry in entries(store))
    problem, config, reason = summary.wrong[0]
    assert len(summary.wrong) == 4 and config["SPLIT_K"] == 1 and reason == "incorrect by 3" and problem.m == 1


def test_nothing_right_is_nothing_recorded(store):
    summary = run(store, FakeEngine(outcome=lambda c: Outcome(wrong={0: "incorrect: NaN"}, failed={1: "OutOfResources: shared memory"})))
    assert not store.folder.joinpath("sm_90x132").exists()
    assert summary.results[0].entry is None and "incorrect: NaN; OutOfResources: shared memory" in summary.results[0].reason


def test_a_prediction_never_replaces_a_measurement(store):
    run(store, FakeEngine())
    before = entries(store)
    assert not run(store, ModelEngine(), again=True).results and entries(store) == before


def test_a_measurement_replaces_a_prediction(store):
    run(store, ModelEngine())
    assert {(entry.measured, entry.us) for entry in entries(store)} == {(False, 9.0)}
    assert not run(store, ModelEngine()).results
    run(store, FakeEngine())
    assert {entry.measured for entry in entries(store)} == {True}


def test_entries_of_an_earlier_revision_are_tuned_again(store):
    run(store)
    path = store.folder / "sm_90x132" / "matmul_frag.json"
    path.write_text(path.read_text().replace('"revision": 1', '"revision": 7'))
    assert len(run(store).results) == 4 and read(path).revision == 1


# The real engine on a CPU, with a kernel that is the reference but for a config that is wrong and one that cannot run.


def _launch(desc, config, workspace, x, q, bias, residual):
    if config["TILE"] == 3:
        raise RuntimeError("out of resource: shared memory\nmore")
    return reference.matmul(x, q, bias, desc.activation, residual) * (1.5 if config["TILE"] == 2 else 1.0)


MADE_UP = KernelEntry(op="matmul", name="made_up", revision=1, can_implement=lambda desc: OK, guarantee=accumulated, launch=_launch,
                      config=lambda desc: {"TILE": 1}, space=lambda desc: [{"TILE": tile} for tile in (1, 2, 3, 4)])  # fmt: skip


def test_the_engine_times_only_what_is_right():
    desc = MatmulDesc(m=4, n=64, k=128, dtype=torch.float32, scheme=INT4, target=Target.of("cpu"), source_dtype=torch.float32)
    problem = Problem(shape="s", kernel=MADE_UP, desc=desc, m=4)
    candidates = [Candidate(config=config, heuristic=config["TILE"] == 1) for config in MADE_UP.space(desc)]
    engine = GpuEngine(torch.device("cpu"))
    outcome = engine(problem, candidates)
    assert set(outcome.times) == {0, 3} and all(times.us > 0 for times in outcome.times.values())
    assert list(outcome.wrong) == [1] and "incorrect by" in outcome.wrong[1]
    assert outcome.failed == {2: "RuntimeError: out of resource: shared memory"}
    weights = engine._made[1]
    engine(dataclasses.replace(problem, m=8, desc=dataclasses.replace(desc, m=8)), candidates[:1])
    assert engine._made[1] is weights  # of the same weight, for another number of rows
    assert len(weights) == 2 and not torch.equal(weights[0].packed, weights[1].packed)


# The command line


@pytest.fixture
def fake(monkeypatch):
    """``tritonq tune`` on a GPU that is not there: sm_90 x 132, candidates and times made up."""
    from tritonq import tuning
    from tritonq.cli import tune_run as command

    def install(engine):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H200")
        monkeypatch.setattr(Target, "of", classmethod(lambda cls, device=None: TARGET))
        monkeypatch.setattr(command, "gpu_engine", lambda: engine)
        monkeypatch.setattr(command, "facts", lambda device: {"device": "NVIDIA H200", "driver": "1.0", "triton": "3.9.0", "torch": "2.13"})
        monkeypatch.setattr(tuning, "Planner", lambda *args, **options: FakePlanner())
        return engine

    return install


ARGUMENTS = ("tune", "--shapes", "4096x4096,8192x8192", "--schemes", "int4.g128", "--m", "1,16", "--kernels", "matmul_frag")


def test_the_command_records_and_goes_on(cli, fake, tmp_path):
    fake(FakeEngine())
    first = cli(*ARGUMENTS, "--out", tmp_path, "--json")
    assert first.status == 0 and first.json["measured"] and first.json["machine"] == "H200" and len(first.json["results"]) == 4
    file = read(tmp_path / "sm_90x132" / "matmul_frag.json")
    (source,) = file.sources.values()
    assert (source.device, source.driver, source.torch) == ("NVIDIA H200", "1.0", "2.13") and "CUDA graphs" in source.protocol
    again = cli(*ARGUMENTS, "--out", tmp_path, "--json")
    assert again.json["done_before"] == 4 and not again.json["results"]


def test_the_command_says_what_it_found(fake, tmp_path, capsys):
    from tritonq.cli import main

    fake(FakeEngine(outcome=lambda c: Outcome(times={0: spread(20.0), 2: spread(12.5)}, wrong={1: "incorrect by 3"})))
    assert main([*ARGUMENTS, "--out", str(tmp_path)]) == 1
    out, err = capsys.readouterr()
    config, wrong = (short(MATMUL_FRAG.config(todo()[0].desc) | {"SPLIT_K": split}) for split in (2, 1))
    assert f"matmul_frag int4.g128 bfloat16 4096x4096 m=1: 12.50 us, {config}; heuristic 20.00 us, 1.60x" in out
    assert f"WRONG RESULT, refused: matmul_frag int4.g128 bfloat16 4096x4096 m=1 {wrong}: incorrect by 3" in out
    assert "4 recorded in" in out and "[1/4] matmul_frag" in err and "[2/4, about 0 s left]" in err


def test_ctrl_c_is_one_line_and_keeps_entries(fake, tmp_path, capsys):
    from tritonq.cli import main

    fake(FakeEngine(stop_after=1))
    report = tmp_path / "times.json"
    assert main([*ARGUMENTS, "--out", str(tmp_path), "--report", str(report)]) == 130
    assert "run the same command again to go on" in capsys.readouterr().err
    (kept,) = json.loads(report.read_text())["results"]
    assert len(kept["timed"]) > 1 and all(row["us"] > 0 for row in kept["timed"])
    assert len(read(tmp_path / "sm_90x132" / "matmul_frag.json").entries) == 1


def test_the_folder_is_the_variable_else_the_checkout(cli, fake, tmp_path, monkeypatch):
    fake(FakeEngine())
    monkeypatch.setenv(configs.VARIABLE, str(tmp_path))
    assert cli(*ARGUMENTS, "--json").json["folder"] == str(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "needs a GPU and none is visible; --dry-run --machine h200"),
        (("--arch", "sm_90", "--dry-run"), "--arch and --multiprocessors go together"),
        (("--arch", "sm_90", "--multiprocessors", "7", "--from-model"), "the model of speed knows no 90 with 7"),
        (("--machine", "h200", "--dry-run", "--report", ""), "is no name of a file"),
        (("--machine", "h200"), "take --dry-run or --from-model"),
        (("--machine", "h300", "--dry-run"), "unknown machine 'h300'; known: h100-sxm"),
        (("--machine", "h200", "--dry-run", "--from-model"), "take one of them"),
        (("--machine", "h200", "--dry-run", "--m", "0"), "whole numbers from 1 on"),
        (("--machine", "h200", "--dry-run", "--budget", "soon"), "is no time; write 90s, 5m or 1h"),
        (("--machine", "h200", "--dry-run", "--shapes", "llama9"), "unknown shape"),
        (("--machine", "h200", "--dry-run", "--schemes", "int4.g12", "--kernels", "matmul_frag"), "nothing to tune"),
        (("--machine", "h200", "--dry-run", "--candidates", "0"), "at least 1"),
    ],
)
def test_bad_usage(cli, arguments, words):
    outcome = cli("tune", *arguments)
    assert outcome.status == 2 and words in outcome.err


# Without a GPU


SMALL = ("tune", "--machine", "h100-sxm", "--shapes", "256x512", "--schemes", "int4.g128", "--m", "16", "--candidates", "2", "--jobs", "1")


def test_dry_run_and_from_model_with_the_real_compiler(cli, tmp_path, monkeypatch):
    (entry,) = [entry for entry in KERNELS if entry.name == "matmul_tiles"]
    few = dataclasses.replace(entry, space=lambda desc: entry.space(desc)[:4])
    monkeypatch.setattr(importlib.import_module("tritonq.tuning.problems"), "KERNELS", [few])
    text = cli(*SMALL, "--dry-run", "--kernels", "matmul_tiles").out
    assert text.startswith("sm_90 x 132 (H100 SXM), Triton ")
    assert "matmul_tiles int4.g128 bfloat16 256x512 m=16 (256x512): 4 configs, 2 to time" in text
    assert "us predicted, limit" in text and "(heuristic)" in text and "2 pruned, later by the model: " in text
    made = cli(*SMALL, "--from-model", "--kernels", "matmul_tiles", "--out", tmp_path, "--json").json
    (entry,) = read(tmp_path / "sm_90x132" / "matmul_tiles.json").entries
    assert made["measured"] is False and entry.measured is False and entry.source == "model-1" and entry.us == made["results"][0]["us"]
    assert json.loads((tmp_path / "sm_90x132" / "matmul_tiles.json").read_text())["sources"]["model-1"]["protocol"].endswith("a prediction")


def test_the_plan_as_json(cli, monkeypatch):
    from tritonq import tuning

    monkeypatch.setattr(tuning, "Planner", lambda *args, **options: FakePlanner())
    plan = cli(*SMALL, "--dry-run", "--kernels", "matmul_frag,dequantize_matmul", "--json").json
    assert plan["measured"] is False and (plan["target"], plan["multiprocessors"], plan["machine"]) == ("sm_90", 132, "H100 SXM")
    assert "far from paying" in plan["left_out"][0]["reason"]
    (problem,) = plan["problems"]
    assert [(c["pruned"], c["predicted_us"], c["heuristic"]) for c in problem["candidates"]] == [
        (None, 10.0, True), (None, 9.0, False), ("spills", None, False)]  # fmt: skip
    assert problem["candidates"][2]["reason"] == "8 bytes"
