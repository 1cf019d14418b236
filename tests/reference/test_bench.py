"""tritonq.bench: how it times, judges, records and goes on after a failure."""
import contextlib
import dataclasses
import json
import os
import types

import pytest
import torch

import tritonq
from tritonq.bench import check, end_to_end, launch, machine, peers, run, timing
from tritonq.bench.backward import BACKWARD
from tritonq.bench.decoder import TINY
from tritonq.bench.matmul import MATMUL
from tritonq.bench.quantize import DEQUANTIZE, QUANTIZE
from tritonq.bench.results import Results, Row, merged, with_speedups
from tritonq.bench.shapes import Shape
from tritonq.bench.suite import Bench, Case, Contest, Suite
from tritonq.bench.suites import SUITES
from tritonq.bench.timing import Times
from tritonq.errors import InvalidProblemError
from tritonq.plans.core import Target
from tritonq.plans.descriptors import MatmulBackwardDesc, MatmulDesc
from tritonq.plans.select import select

CPU = torch.device("cpu")
ROOFS = {"bytes_per_s": 4e12, "flops_per_s": 8e14}


def bench(**fields) -> Bench:
    return Bench(**{"device": CPU, "roofs": ROOFS, "shapes": (Shape("64x256", 64, 256),), "schemes": ("int4.g128",), "ms": (1, 3),
                    "with_peers": False, "replays": 2} | fields)  # fmt: skip


# ---- timing


class FakeGraphs:
    """torch.cuda as far as timing uses it: a graph records the calls made while it is captured; a replay takes as many milliseconds."""

    def __init__(self, monkeypatch):
        self.now, self.recording, self.replays, self.captured = 0.0, None, [], []
        fake = self

        class Graph:
            def __init__(self):
                self.calls = 0

            def replay(self):
                fake.replays.append(self)
                fake.now += self.calls or 1

        class Event:
            def __init__(self, enable_timing):
                assert enable_timing

            def record(self):
                self.at = fake.now

            def synchronize(self):
                pass

            def elapsed_time(self, other):
                return other.at - self.at

        @contextlib.contextmanager
        def capture(graph):
            fake.recording = graph
            yield
            fake.recording = None
            fake.captured.append(graph)

        stream = types.SimpleNamespace(wait_stream=lambda other: None)
        for name, value in {"is_available": lambda: True, "Stream": lambda: stream, "current_stream": lambda: stream, "CUDAGraph": Graph,
                            "stream": lambda s: contextlib.nullcontext(), "graph": capture, "Event": Event,
                            "synchronize": lambda *a: None}.items():  # fmt: skip
            monkeypatch.setattr(torch.cuda, name, value)

    def call(self):
        if self.recording is not None:
            self.recording.calls += 1


def test_graphs_are_replayed_in_turns_and_divided_by_their_calls(monkeypatch):
    graphs = FakeGraphs(monkeypatch)
    times = timing.measure({"one": [graphs.call], "three": [graphs.call] * 3}, replays=4)
    assert times["one"] == times["three"] == Times(us=1000.0, p20=1000.0, p80=1000.0)
    assert [graph.calls for graph in graphs.captured] == [1, 3]
    assert [graph.calls for graph in graphs.replays] == [1, 3] * (timing.WARMUP + 4)


def test_a_contender_that_cannot_be_captured_is_left_out(monkeypatch):
    graphs, failures = FakeGraphs(monkeypatch), {}

    def broken():
        raise RuntimeError("operation not permitted\nwhen stream is capturing")

    assert set(timing.measure({"a": [graphs.call], "b": [broken]}, replays=1, failures=failures)) == {"a"}
    assert failures == {"b": "RuntimeError: operation not permitted"}
    with pytest.raises(RuntimeError):
        timing.measure({"b": [broken]}, replays=1)


def test_copies_fill_more_than_a_cache(monkeypatch):
    assert timing.copies(1 << 20) == 2  # nothing to flush on a CPU
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert [timing.copies(size) for size in (1 << 30, 100 << 20, 8 << 20, 100, 0)] == [2, 3, 32, 256, 256]
    assert all(timing.copies(size) * size >= 200e6 for size in (1 << 30, 100 << 20, 8 << 20, 1 << 20))
    assert timing.copies(8 << 20, CPU) == 2


def test_suites_run_above_the_graph_layer(monkeypatch):
    """The CUDA path of a suite, but for the device: 256 copies, graphs, roofs."""
    graphs = FakeGraphs(monkeypatch)
    monkeypatch.setattr(timing, "_on_cuda", lambda device: True)
    monkeypatch.setattr(timing, "MOST_COPIES", 3)
    for name in ("mm", "empty"):  # every product of the reference makes its result by torch.empty
        real = getattr(torch, name)
        monkeypatch.setattr(torch, name, lambda *a, real=real, **b: (graphs.call(), real(*a, **b))[1])
    library, ours = (row for rows in next(MATMUL.cases(bench(ms=(2,)))).run() for row in rows)
    assert library.us == 1000.0 and ours.us and ours.us % 1000 == 0 and ours.speedup == {"torch bf16": 1000 / ours.us}
    assert graphs.captured[0].calls == 3


def test_the_machine_is_named(monkeypatch, tmp_path):
    about = timing.machine(CPU)
    assert about["torch"] == torch.__version__ and about["tritonq"] == tritonq.__version__ and "no result" in about["protocol"]
    smi = tmp_path / "nvidia-smi"
    smi.write_text("#!/bin/sh\necho '580.1, 1980 MHz, 123.4 W, 41'\n")
    smi.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: types.SimpleNamespace(multi_processor_count=132))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H200")
    about = timing.machine(torch.device("cuda"))
    assert (about["device"], about["multiprocessors"], about["driver"]) == ("NVIDIA H200", 132, "580.1")
    assert about["state"] == machine.state(torch.device("cuda")) == "1980 MHz, 123.4 W, 41"
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    assert machine.state(torch.device("cuda")).startswith("unknown") and machine.state(CPU) is None


# ---- judging


@pytest.mark.parametrize("scheme", ["int4.g128", "uint4.g64.fz", "fp8_e4m3.b32x32"])
@pytest.mark.parametrize("backward", [False, True], ids=["forward", "backward"])
def test_a_product_is_judged_by_its_guarantee(scheme, backward):
    q = tritonq.quantize(torch.randn(300, 256), scheme)
    x = torch.randn(70, 300 if backward else 256).bfloat16()
    plan = select((MatmulBackwardDesc if backward else MatmulDesc).of(x, q))
    got = plan.run(x, q)
    assert check.wrong(got, x, q, plan) == "" == check.product(plan, x, q, q)
    for row in (0, 69):
        for column in (0, got.shape[1] - 1):
            bad = got.clone()
            bad[row, column] += 0.3 * bad.abs().max()
            assert check.wrong(bad, x, q, plan).startswith("incorrect by"), (row, column)
    bad = got.clone()
    bad[0, 0] = float("nan")
    assert check.wrong(bad, x, q, plan) == "incorrect: NaN"


@pytest.mark.parametrize("scheme", ["int4.g128", "mxfp4", "nvfp4", "uint8.tensor", "fp8_e4m3"])
def test_codes_and_values_are_judged_bit_for_bit(scheme):
    x = torch.randn(100, 256).bfloat16()
    x[1, 5] = 60  # in no sampled row, and yet in the scale of a whole tensor
    q = tritonq.quantize(x, scheme)
    assert check.wrong_quantized(q, x) == "" and check.wrong_decoded(q.dequantize(), q) == ""
    packed = q.packed.clone()
    packed[-1, -1] ^= 1
    assert check.wrong_quantized(dataclasses.replace(q, packed=packed), x) == "incorrect: packed differs from the reference"
    values = q.dequantize().clone()
    values[0, 0] = torch.nextafter(values[0, 0].float(), torch.tensor(9e9)).bfloat16() + 1
    assert check.wrong_decoded(values, q).startswith("incorrect")


@pytest.mark.parametrize(("suite", "function"), [(MATMUL, "wrong"), (BACKWARD, "wrong"), (QUANTIZE, "wrong_quantized"),
                                                 (DEQUANTIZE, "wrong_decoded")])  # fmt: skip
def test_a_wrong_result_gets_no_time(suite, function, monkeypatch):
    monkeypatch.setattr(check, function, lambda *a: "incorrect by 7")
    rows = [row for case in suite.cases(bench()) for found in case.run() for row in found]
    ours = [row for row in rows if row.name == "tritonq"]
    assert ours and all(row.us is None and row.fault == "incorrect by 7" for row in ours)
    assert all(row.us for row in rows if row.name != "tritonq")


# ---- peers


def test_peers_compute_the_same_product():
    torch.manual_seed(0)
    weight, x, ran = torch.randn(64, 256).bfloat16(), torch.randn(5, 256).bfloat16(), set()
    for peer in peers.PEERS:
        for scheme in peer.schemes:
            q = tritonq.quantize(weight, scheme)
            try:
                got = peer.make(weight.clone(), q)(x)
            except peers.Missing as reason:
                assert peer.name in str(reason)
                continue
            assert check.far(got, x.double() @ q.dequantize(torch.float64).T, peer.distance) == "", (peer.name, scheme)
            ran.add(peer.name)
    assert "torch tinygemm" in ran
    assert check.far(2 * x, x, 0.02).startswith("incorrect: 1 away")


def test_a_peer_that_is_missing_says_why(monkeypatch):
    def absent(name):
        raise ModuleNotFoundError(f"No module named {name!r}")

    monkeypatch.setattr(peers.importlib, "import_module", absent)
    rows = [row for case in MATMUL.cases(bench(schemes=("nf4.g64",), ms=(1,), with_peers=True)) for found in case.run() for row in found]
    (peer,) = [row for row in rows if row.name == "bitsandbytes"]
    assert peer.us is None and peer.note == "skipped: bitsandbytes: ModuleNotFoundError: No module named 'bitsandbytes'" and not peer.fault


def test_a_peer_that_breaks_or_is_wrong_costs_only_itself(monkeypatch):
    def broken(weight, q):
        raise ValueError("sizes")

    def product(x):
        raise RuntimeError("no kernel image")

    mine = (peers.Peer("broken", ("int4.g128",), broken), peers.Peer("late", ("int4.g128",), lambda w, q: product),
            peers.Peer("wrong", ("int4.g128",), lambda w, q: lambda x: torch.zeros(len(x), 64)))  # fmt: skip
    monkeypatch.setattr("tritonq.bench.matmul.PEERS", mine)
    rows = {row.name: row for case in MATMUL.cases(bench(ms=(2,), with_peers=True)) for found in case.run() for row in found}
    assert rows["broken"].note == "skipped: broken: ValueError: sizes" and rows["late"].note == "skipped: RuntimeError: no kernel image"
    assert rows["wrong"].note.startswith("incorrect: 1 away") and not any(row.fault for row in rows.values())
    assert [name for name, row in rows.items() if row.us] == ["torch bf16", "tritonq"]


def test_a_peer_that_tunes_for_long_is_left_out_of_further_m(monkeypatch):
    peer = peers.Peer("slow", ("int4.g128",), lambda w, q: lambda x: x @ q.dequantize(x.dtype).T)
    monkeypatch.setattr("tritonq.bench.matmul.PEERS", (peer,))
    monkeypatch.setattr("tritonq.bench.matmul.PATIENCE", -1.0)
    found = [row for rows in next(MATMUL.cases(bench(with_peers=True))).run() for row in rows if row.name == "slow"]
    assert [bool(row.us) for row in found] == [True, False] and [row.m for row in found] == [1, 3]
    assert found[1].note == "skipped: its first call at M=1 took 0 s, so no further M of this shape"


# ---- records


def test_derived_figures():
    row = Row(suite="s", op="matmul", name="tritonq", scheme="int4", bytes=4_000_000, flops=8_000_000_000)
    row = row.timed(Times(20.0, 19.0, 22.0), ROOFS)
    assert (row.tb_per_s, row.tflop_per_s) == (0.2, 400.0)
    assert (row.of_copy, row.of_product, row.floor_us, row.of_floor) == (0.05, 0.5, 10.0, 0.5)
    rivals = [dataclasses.replace(row, name=name, scheme=scheme, us=us) for name, scheme, us in
              (("cuBLAS bf16", "none", 60.0), ("gemlite", "int4", 30.0), ("other", "nf4", 10.0), ("lost", "int4", None))]  # fmt: skip
    done = with_speedups([row, *rivals])
    assert done[0].speedup == {"cuBLAS bf16": 3.0, "gemlite": 1.5} and done[2].speedup == {"cuBLAS bf16": 2.0} and done[1].speedup == {}


def results() -> Results:
    row = Row(suite="matmul", op="matmul", name="tritonq", scheme="int4.g128", shape="a", n=4, k=8, m=1, sku="x", us=1.5, p20=1.25, p80=2.0,
              bytes=10, flops=64, speedup={"cuBLAS bf16": 3.0}, command="c", source="gpu")  # fmt: skip
    return Results(about={"device": "x"}, roofs=ROOFS, rows=[row, dataclasses.replace(row, us=None, p20=None, p80=None, fault="incorrect")])


def test_results_round_trip(tmp_path):
    file = tmp_path / "rows.json"
    results().write(file)
    again = Results.read(file)
    assert again == results() and len(again.faults) == 1 and list(tmp_path.iterdir()) == [file]
    lines = file.read_text().splitlines()
    assert sum('"suite": "matmul"' in line for line in lines) == 2  # one line a row


@pytest.mark.parametrize(("change", "said"), [
    (lambda d: d.update(schema=2), "schema 1, got 2"),
    (lambda d: d.update(more=1), "more"),
    (lambda d: d.pop("roofs"), "roofs"),
    (lambda d: d["roofs"].update(bytes_per_s="fast"), "roofs.bytes_per_s must be a number"),
    (lambda d: d["rows"].append(3), r"rows\[2\] must be an object"),
    (lambda d: d["rows"][1].update(us="1"), r"rows\[1\].us must be float or int or null, got \"1\""),
    (lambda d: d["rows"][1].update(us=1.0), r"rows\[1\]: us, p20 and p80 stand together"),
    (lambda d: d["rows"][0].update(speed=1), r"rows\[0\].speed is unknown; fields: suite"),
    (lambda d: d["rows"][0].update(m=True), r"rows\[0\].m must be int or null"),
    (lambda d: d["rows"][0].pop("op"), r"rows\[0\] lacks 'op'"),
    (lambda d: d["rows"][0].update(source="guess"), r"rows\[0\].source must be one of gpu, cpu, model"),
    (lambda d: d["rows"][0]["speedup"].update(x=None), r"rows\[0\].speedup.x must be a number"),
])  # fmt: skip
def test_files_that_are_no_results_are_refused(change, said, tmp_path):
    data = json.loads(results().json())
    change(data)
    file = tmp_path / "rows.json"
    file.write_text(json.dumps(data))
    with pytest.raises(InvalidProblemError, match=said) as error:
        Results.read(file)
    assert str(file) in str(error.value)


def test_several_files_of_one_device_become_one():
    untimed = Results(about={"device": "cpu"}, roofs={}, rows=[Row(suite="quality", op="noise", name="tritonq", figures={"sqnr_db": 1.0})])
    one = merged([untimed, results(), results()])
    assert one.about == {"device": "x"} and one.roofs == ROOFS and len(one.rows) == 5 and merged([untimed]) == untimed
    other = dataclasses.replace(results(), about={"device": "y"})
    with pytest.raises(InvalidProblemError, match="times of x and y"):
        merged([results(), other])


def test_a_file_that_is_not_json_is_refused(tmp_path):
    for content in ("{", "[]", "3"):
        (tmp_path / "f.json").write_text(content)
        with pytest.raises(InvalidProblemError, match="f.json"):
            Results.read(tmp_path / "f.json")
    with pytest.raises(InvalidProblemError, match="missing.json"):
        Results.read(tmp_path / "missing.json")


# ---- running


def _suite(*steps) -> Suite:
    def rows():
        for step in steps:
            if isinstance(step, Exception):
                raise step
            yield [Row(suite="s", op="o", name="tritonq", shape=step)]

    def cases(bench):
        yield Case(title="first", steps=len(steps), run=rows)
        yield Case(title="second", steps=1, run=last)

    def last():
        yield [Row(suite="s", op="o", name="tritonq", shape="last")]

    return Suite(name="s", title="t", cases=cases)


def test_a_case_that_raises_is_a_fault_and_the_next_follows():
    into, saved, shown, steps = Results(about={}, roofs={}), [], [], []
    work = [(_suite("a", ValueError("boom\nmore")), bench())]
    left = run.run(work, into, save=lambda: saved.append(len(into.rows)), show=shown.append, progress=lambda *a: steps.append(a))
    assert left == [] and [row.shape for row in into.rows] == ["a", "", "last"] and shown == into.rows
    assert saved == [1, 2, 3] and into.faults[0].fault == "failed: ValueError: boom" and "after" in into.about
    assert steps[0] == (0, 3, "s first") and steps[-1] == (3, 3, "s second")


def test_when_the_time_is_over_what_is_left_is_named(monkeypatch):
    clock = iter([0.0, 0.0, 30.0, 90.0, 100.0, 100.0])
    monkeypatch.setattr(run.time, "monotonic", lambda: next(clock))
    into = Results(about={}, roofs={})
    assert run.run([(_suite("a", "b", "c"), bench())], into, minutes=1) == ["s first, 1 of 3 problems", "s second"]
    assert [row.shape for row in into.rows] == ["a", "b"]


def test_a_contender_of_ours_that_fails_while_timed_is_a_fault():
    def broken():
        raise RuntimeError("launch failed")

    contest = Contest(bench(), "s", "o", Shape("x", 2, 4), 1)
    contest.add("tritonq", [broken], scheme="int4")
    contest.add("peer", [broken], scheme="int4")
    contest.add("fine", [lambda: None])
    ours, peer, fine = contest.times()
    assert ours.fault == "failed: RuntimeError: launch failed" and peer.note == "skipped: RuntimeError: launch failed" and fine.us
    assert ours.command == "tritonq bench s --shapes 2x4 --schemes int4 --m 1 --device cpu"


def test_long_products_are_measured_less_often(monkeypatch):
    graphs = FakeGraphs(monkeypatch)
    clock = iter(float(second) for second in range(1000))
    monkeypatch.setattr(timing.time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(timing.time, "sleep", lambda seconds: None)
    timing.measure({"a": [graphs.call]}, replays=25)  # four looks at the clock are four seconds
    assert len(graphs.replays) == timing.WARMUP + timing.LEAST_REPLAYS + timing.MOST_SECONDS


def test_what_stays_in_a_cache_says_so(monkeypatch):
    monkeypatch.setattr(Bench, "source", "gpu")
    contest = Contest(bench(), "s", "o")
    for name, size in (("small", 10**6), ("large", 10**8), ("none", 0)):
        contest.add(name, [lambda: None] * 2, bytes=size, note="differs")
    notes = {row.name: row.note for row in contest.times()}
    assert notes == {"small": "differs; small: its data stays in the L2 cache", "large": "differs", "none": "differs"}


@pytest.mark.parametrize("name", [name for name, suite in SUITES.items() if suite.needs_gpu and name != "cold-start"])
def test_what_a_gpu_takes_of_every_suite(name, monkeypatch):
    """Graphs, copies, names and notes as on a GPU, above a CPU's tensors: the branches that --device cpu does not take."""
    graphs = FakeGraphs(monkeypatch)
    for module, values in ((timing, {"_on_cuda": lambda device: True, "MOST_COPIES": 3, "LEAST_REPLAYS": 1}), (Bench, {"source": "gpu"}),
                           (end_to_end, {"LLAMA3_8B": TINY}), (launch, {"N": 32, "K": 128}),
                           (Target, {"of": classmethod(lambda cls, device=None: cls(backend="reference"))})):  # fmt: skip
        for key, value in values.items():
            monkeypatch.setattr(module, key, value)
    suite, into = SUITES[name], Results(about={}, roofs={})
    schemes = tuple(suite.schemes.split(",")[:1]) if suite.schemes else ()
    assert run.run([(suite, bench(schemes=schemes, ms=(2,), with_peers=True, replays=1))], into) == []
    assert not into.faults and all(row.source == "gpu" and "--device" not in row.command for row in into.rows)
    assert name == "launch" or len(graphs.captured) >= 2 or name == "decode"
    assert {row.name for row in into.rows} & {"cuBLAS bf16", "copy"} or name == "decode"
    assert not any(row.note.startswith("skipped: ") for row in into.rows if row.name == "tritonq")
