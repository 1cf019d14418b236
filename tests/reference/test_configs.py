"""Tuned configs: the file format, the order of fallbacks, and that every config passes the rules of its kernel."""
import dataclasses
import json
import os
from itertools import product
from pathlib import Path

import pytest
import torch

import tritonq
from tests.support.shapes import FULL
from tritonq import DequantizeDesc, MatmulBackwardDesc, MatmulDesc, QuantizeDesc, Scheme
from tritonq.errors import ConfigFileError
from tritonq.plans import configs
from tritonq.plans.config_file import ConfigFile, Entry, Source, bucket, parse, read
from tritonq.plans.core import Target
from tritonq.plans.kernel_entries import KERNELS

pytestmark = pytest.mark.skipif(not KERNELS, reason="Triton is not installed")
H200 = Target(backend="triton", device="cuda", arch=90)
BF16 = torch.bfloat16
ENTRY = Entry(scheme="int4.g128", dtype="bfloat16", layout="frag", n=4096, k=4096, m=1, measured=True, us=3.5, next_us=3.75, source="one",
              config={"BLOCK_M": 8, "BLOCK_N": 64, "BLOCK_K": 128, "SPLIT_K": 2, "STAGES": 4, "num_warps": 2})  # fmt: skip
SOURCE = Source(protocol="graphs over 256 MB", time="2026-11-21", device="NVIDIA H200", triton="3.9.0", torch="2.11.0", commit="abc")
FILE = ConfigFile(kernel="matmul_frag", revision=1, arch="sm_90", multiprocessors=132, sources={"one": SOURCE}, entries=(ENTRY,))


def problem(m=1, n=4096, k=4096, scheme="int4.g128", dtype=BF16, layout="frag", **other):
    return MatmulDesc(m=m, n=n, k=k, dtype=dtype, scheme=Scheme.parse(scheme), target=H200, source_dtype=dtype, layout=layout, **other)


def entry(split, **changes):
    """An entry that ``SPLIT_K`` tells apart."""
    return dataclasses.replace(ENTRY, config=ENTRY.config | {"SPLIT_K": split}, **changes)


@pytest.fixture
def folders(tmp_path, monkeypatch):
    """own, shipped: empty folders of configs, the first named by the variable."""
    own, shipped = tmp_path / "own", tmp_path / "shipped"
    own.mkdir(), shipped.mkdir()
    monkeypatch.setenv(configs.VARIABLE, str(own))
    monkeypatch.setattr(configs, "shipped", lambda: shipped)
    monkeypatch.setattr(configs, "RELEASE", (3, 9))  # that of SOURCE
    return own, shipped


def put(folder, *entries, **head):
    return dataclasses.replace(FILE, entries=(), **head).with_entries(entries, {"one": SOURCE}).write(folder)


def chosen(desc):
    plan = tritonq.select(desc)
    return plan.kernel.name, plan.config.get("SPLIT_K")


def test_a_file_comes_back_as_it_was(tmp_path):
    path = put(tmp_path, entry(1, k=8192), entry(4), entry(2, m=16, us=9.0))
    assert path == tmp_path / "sm_90x132" / "matmul_frag.json"
    file = read(path)
    assert parse(file.text()) == file and file.text() == path.read_text()
    assert [e.key for e in file.entries] == sorted(e.key for e in file.entries)
    assert sum('"scheme"' in line for line in path.read_text().splitlines()) == 3  # one line an entry
    assert json.loads(path.read_text())["sources"]["one"]["device"] == "NVIDIA H200"
    assert list(path.parent.iterdir()) == [path]


def test_new_entries_replace_their_like_and_unused_sources_go():
    other = dataclasses.replace(SOURCE, time="2027-01-01")
    file = FILE.with_entries([entry(8, source="two"), entry(1, n=64, source="two")], {"two": other})
    assert [(e.n, e.config["SPLIT_K"]) for e in file.entries] == [(64, 1), (4096, 8)]
    assert file.sources == {"two": other}
    spelled = dataclasses.replace(FILE, entries=(dataclasses.replace(ENTRY, scheme="int4.g128.full"),))
    (same,) = spelled.with_entries([dataclasses.replace(entry(16), scheme="W4A16")], {}).entries
    assert same.config["SPLIT_K"] == 16, "two names of one scheme"


def line_of(text, part):
    return next(number for number, line in enumerate(text.splitlines(), 1) if part in line)


@pytest.mark.parametrize("old, new, says", [
    ('"schema": 1', '"schema": 2', "schema 2"),
    ('"kernel": ', '"kernels": ', "kernels"),
    ('"multiprocessors": 132', '"multiprocessors": "132"', "must be of type int"),
    ('"arch": "sm_90"', '"arch": "sm90"', "write sm_90"),
    ('"revision": 1', '"revision": -1', "above 0"),
    ('"protocol": ', '"protocl": ', "unknown field 'protocl'"),
    ('"triton": "3.9.0"', '"triton": 3.9', "triton must be of type str or null"),
    ('"scheme": "int4.g128"', '"scheme": "int44.g128"', "int44"),
    ('"dtype": "bfloat16"', '"dtype": "bf16"', "float16"),
    ('"layout": "frag"', '"layout": "fragment"', "ksplit"),
    ('"n": 4096', '"n": 0', "above 0"),
    ('"n": 4096', '"n": 4096.0', "of type int"),
    ('"n": 4096', '"n": true', "of type int"),
    ('"m": 1,', '"m": 3,', "power of two"),
    ('"m": 1,', "", "lacks m"),
    ('"SPLIT_K": 2', '"SPLIT_K": "2"', "SPLIT_K must be of type int"),
    ('"us": 3.5', '"us": -3.5', "above 0"),
    ('"us": 3.5', '"us": NaN', "above 0"),
    ('"us": 3.5', '"us": null', "measured is true"),
    ('"measured": true', '"measured": "true"', "of type bool"),
    ('"source": "one"', '"source": "three"', "one"),
    ('"next_us": 3.75', '"next": 3.75', "unknown field 'next'"),
    ('"next_us": 3.75', '"next_us": 3.75, "us": 4', "'us' twice"),
    ('"next_us": 3.75,', '"next_us": 3.75', "delimiter"),
])  # fmt: skip
def test_a_mistake_made_by_hand_is_named_with_its_line(old, new, says):
    text = FILE.text()
    assert text.count(old) == 1 or old.startswith('"n"')
    with pytest.raises(ConfigFileError, match=says) as error:
        parse(text.replace(old, new), "file.json")
    assert str(error.value).startswith(f"file.json:{line_of(text, old)}: ")


def test_two_entries_for_one_problem():
    text = FILE.text()
    line = line_of(text, '"int4.g128"')
    row = text.splitlines()[line - 1].removesuffix("]}")
    with pytest.raises(ConfigFileError, match=f"^f:{line + 1}: .* line {line};"):
        parse(text.replace(row, f"{row},\n{row}"), "f")
    with pytest.raises(ConfigFileError, match=f"^f:{line}: must be one JSON object on a line"):
        parse(text.replace(row, f"{row}, {row}"), "f")


def test_a_file_in_the_wrong_place(tmp_path):
    path = put(tmp_path, ENTRY)
    moved = tmp_path / "sm_90x114"
    moved.mkdir()
    path = path.rename(moved / path.name)
    with pytest.raises(ConfigFileError, match="sm_90x132"):
        read(path)


def test_buckets():
    assert [bucket(m) for m in (0, 1, 2, 3, 5, 64, 65, 8191, 8192, 10**6)] == [1, 1, 2, 4, 8, 64, 128, 8192, 8192, 8192]


def test_order_of_fallbacks(folders):
    """One's own entry for the problem, the shipped one, one's own for the nearest shape, the shipped one, the heuristic."""
    own, shipped = folders
    desc = problem(m=1, n=6144, k=4096)
    heuristic = chosen(desc)
    assert heuristic not in (("matmul_frag", 1), ("matmul_frag", 16)) and "config: heuristic" in tritonq.explain(desc)
    put(shipped, entry(16))
    assert chosen(desc) == ("matmul_frag", 16)
    assert "shipped sm_90x132/matmul_frag.json m=1 (nearest shape, 4096 x 4096)" in tritonq.explain(desc)
    put(own, entry(8, n=8192))
    assert chosen(desc) == ("matmul_frag", 8)
    assert "TRITONQ_CONFIG_DIR sm_90x132/matmul_frag.json m=1 (nearest shape, 8192 x 4096)" in tritonq.explain(desc)
    put(shipped, entry(16), entry(2, n=6144))
    assert chosen(desc) == ("matmul_frag", 2)
    assert "shipped sm_90x132/matmul_frag.json m=1\n" in tritonq.explain(desc) + "\n"
    put(own, entry(8, n=8192), entry(1, n=6144))
    assert chosen(desc) == ("matmul_frag", 1)


def test_what_an_entry_does_not_serve(folders):
    """Another bucket, scheme, layout, a shape far away, a target without that architecture, plain torch."""
    own, _ = folders
    put(own, entry(16))
    assert chosen(problem()) == ("matmul_frag", 16)
    for desc in (problem(m=2), problem(scheme="int4.g64"), problem(n=1024), problem(n=8192, k=8192)):
        assert chosen(desc)[1] != 16 and "config: heuristic" in tritonq.explain(desc)
    a100 = dataclasses.replace(problem(), target=dataclasses.replace(H200, arch=80))
    assert chosen(a100)[1] != 16
    assert tritonq.select(dataclasses.replace(problem(), target=Target.of("cpu"))).kernel.name == "reference"


def test_near_shapes_before_far_ones_and_predictions_for_their_own_shape_alone(folders):
    own, _ = folders
    put(own, entry(16, n=4096 + 64, measured=False), entry(8, n=5000), entry(1, n=6000))
    assert chosen(problem()) == ("matmul_frag", 8)
    put(own, entry(16, n=4096 + 64, measured=False))
    assert "config: heuristic" in tritonq.explain(problem())
    put(own, entry(16, measured=False))
    assert chosen(problem()) == ("matmul_frag", 16) and "a model's prediction, not measured" in tritonq.explain(problem())
    assert "config: heuristic" in tritonq.explain(problem(dtype=torch.float16))


def test_float16_takes_what_bfloat16_has(folders):
    own, _ = folders
    put(own, entry(16))
    half = problem(dtype=torch.float16)
    assert chosen(half) == ("matmul_frag", 16) and "(for bfloat16)" in tritonq.explain(half)
    put(own, entry(16), entry(1, dtype="float16", n=4100))
    assert chosen(half) == ("matmul_frag", 1)


def test_another_number_of_multiprocessors_and_another_triton(folders, monkeypatch):
    own, _ = folders
    put(own, entry(16), multiprocessors=114)
    put(own, entry(8), multiprocessors=64)
    assert chosen(problem()) == ("matmul_frag", 16)
    assert "for 114 multiprocessors, here are 132" in tritonq.explain(problem())
    put(own, entry(1))
    monkeypatch.setattr(configs, "RELEASE", (3, 6))
    assert chosen(problem()) == ("matmul_frag", 1) and "tuned on Triton 3.9.0" in tritonq.explain(problem())


def test_a_config_that_breaks_a_rule_is_passed_over(folders):
    """BLOCK_N=128 cannot pair gate and up of 2080 rows each; a split needs a step each."""
    own, _ = folders
    put(own, dataclasses.replace(ENTRY, n=4160, config=ENTRY.config | {"BLOCK_N": 128}))
    assert tritonq.select(problem(n=4160)).config["BLOCK_N"] == 128
    assert tritonq.select(problem(n=4160, activation="swiglu")).config["BLOCK_N"] == 64
    put(own, entry(16, n=64, k=256))
    assert chosen(problem(n=64, k=256))[1] == 1


def test_measurements_decide_between_kernels(folders):
    """The crossover from the fused product to decoding first, per shape, as soon as both were measured there."""
    own, _ = folders
    fused, first = problem(m=300), problem(m=2000)
    chunk = tritonq.select(first).config
    assert chosen(fused)[0] == "matmul_frag" and chosen(first)[0] == "dequantize_matmul"
    rows = [entry(1, m=512, us=50.0), entry(1, m=2048, us=100.0)]
    put(own, *rows)
    assert chosen(fused)[0] == "matmul_frag" and chosen(first)[0] == "dequantize_matmul"
    other = [dataclasses.replace(row, config=chunk, us=us) for row, us in zip(rows, (40.0, 120.0))]
    put(own, *other, kernel="dequantize_matmul")
    assert chosen(fused)[0] == "dequantize_matmul" and chosen(first)[0] == "matmul_frag"
    assert "possible, but measured 50.0 us, 40.0 above" in tritonq.explain(fused)
    put(own, *(dataclasses.replace(row, measured=False) for row in other), kernel="dequantize_matmul")  # predictions do not decide
    assert chosen(fused)[0] == "matmul_frag" and chosen(first)[0] == "dequantize_matmul"
    put(own, *other, kernel="dequantize_matmul", multiprocessors=100)  # times of another device say nothing
    (own / "sm_90x132" / "dequantize_matmul.json").unlink()
    assert chosen(fused)[0] == "matmul_frag"


def test_a_broken_file_is_an_error_and_no_other_kernel_minds(folders, monkeypatch):
    own, _ = folders
    path = put(own, ENTRY)
    path.write_text(path.read_text().replace("4096", "forty"))
    with pytest.raises(ConfigFileError, match="matmul_frag.json:"):
        tritonq.select(problem())
    tritonq.select(QuantizeDesc(n=64, k=64, dtype=BF16, scheme=Scheme.parse("int4.g32"), target=H200))
    monkeypatch.setenv(configs.VARIABLE, str(own / "absent"))
    with pytest.raises(ConfigFileError, match="absent.*no folder"):
        tritonq.select(problem())


def test_a_file_is_read_once_and_again_when_it_changes(folders, monkeypatch):
    own, _ = folders
    put(own, entry(16))
    seen = []
    monkeypatch.setattr(configs, "read", lambda path, read=configs.read: (seen.append(path), read(path))[1])
    for m in (1, 1, 2, 64):
        tritonq.select(problem(m=m))
    assert [path.name for path in seen] == ["matmul_frag.json"]
    path = put(own, entry(2))
    os.utime(path, ns=(0, 12345))
    assert chosen(problem()) == ("matmul_frag", 2) and len(seen) == 2


def every_problem():
    shapes = [(1, 1), (7, 33), (64, 128), (4096, 4096), (4100, 4176), (128256, 4096), (8192, 28672)]
    schemes = ("int4.g128", "uint4.g32", "nf4.g64", "int8", "int3.g96", "fp8_e4m3", "mxfp4", "nvfp4", "int4.g12", "uint4.g128.fz")
    rows = (1, 5, 16, 64, 300, 4096)
    for arch, (n, k), scheme, dtype in product((80, 90, "gfx942"), shapes, schemes, (BF16, torch.float32)):
        facts = dict(n=n, k=k, dtype=dtype, scheme=Scheme.parse(scheme), target=dataclasses.replace(H200, arch=arch))
        yield QuantizeDesc(**facts)
        yield DequantizeDesc(**facts, source_dtype=dtype)
        for m in rows if FULL else rows[(n + len(scheme)) % 2 :: 2]:
            for layout in ("row", "frag", "ksplit"):
                yield MatmulDesc(**facts, m=m, source_dtype=dtype, layout=layout)
            yield MatmulBackwardDesc(**facts, m=m, source_dtype=dtype)


def test_every_heuristic_and_every_candidate_passes_the_rules():
    kernels = set()
    for desc in every_problem():
        for kernel in KERNELS:
            if kernel.op == desc.op and kernel.can_implement(desc):
                kernels.add(kernel.name)
                first = kernel.config(desc)
                assert kernel.config_ok(desc, first), (str(desc), kernel, kernel.config_ok(desc, first).reason)
    assert kernels >= {"matmul_frag", "matmul_ksplit", "matmul_tiles", "matmul_dx", "dequantize_matmul", "quantize_rows", "dequantize_rows"}
    for kernel, desc in ((kernel, desc) for desc in (problem(m=m, n=4096) for m in (1, 64)) for kernel in KERNELS if kernel.op == "matmul"):
        for layout in ("row", "frag", "ksplit"):
            desc = dataclasses.replace(desc, layout=layout)
            if kernel.can_implement(desc):
                tried = kernel.space(desc)
                assert tried[0] == kernel.config(desc) and all(kernel.config_ok(desc, config) for config in tried)
                assert len({tuple(config.items()) for config in tried}) == len(tried) > 1


@pytest.mark.parametrize("change, says", [
    ({"BLOCK_M": 24}, "BLOCK_M=24 is not one of"), ({"BLOCK_K": 256, "x": 1}, "has no field x"), ({"SPLIT_K": 16}, "8 steps"),
    ({"STAGES": True}, "STAGES=True"),
])  # fmt: skip
def test_rules_say_what_they_refuse(change, says):
    frag = next(kernel for kernel in KERNELS if kernel.name == "matmul_frag")
    assert says in frag.config_ok(problem(k=1024), ENTRY.config | change).reason
    assert "lacks num_warps" in frag.config_ok(problem(), {k: v for k, v in ENTRY.config.items() if k != "num_warps"}).reason


def test_wgmma_reads_no_asynchronous_copies_before_triton_3_9(monkeypatch):
    """matmul_frag puts the fence itself; the portable kernels leave it to Triton."""
    from tritonq.plans import ksplit_entry

    frag, ksplit = (next(kernel for kernel in KERNELS if kernel.name == name) for name in ("matmul_frag", "matmul_ksplit"))
    desc = dataclasses.replace(problem(), layout="ksplit")
    wide = {**ksplit.config(desc), "num_warps": 4, "STAGES": 3, "BLOCK_N": 64}
    monkeypatch.setattr(ksplit_entry, "LACKS_PROXY_FENCE", True)
    assert "STAGES=1" in ksplit.config_ok(desc, wide).reason and ksplit.config_ok(desc, wide | {"STAGES": 1})
    assert frag.config_ok(problem(), ENTRY.config | {"num_warps": 4, "STAGES": 3})
    monkeypatch.setattr(ksplit_entry, "LACKS_PROXY_FENCE", False)
    assert ksplit.config_ok(desc, wide)


@pytest.mark.parametrize(("n", "padded"), [(1, 64), (64, 64), (130, 192)])
def test_tiles_of_ksplit_end_where_its_scales_end(n, padded):
    """Scales and zero points are loaded without a mask."""
    ksplit = next(kernel for kernel in KERNELS if kernel.name == "matmul_ksplit")
    desc = dataclasses.replace(problem(), layout="ksplit", n=n)
    config = ksplit.config(desc)
    assert f"the {padded} rows of the layout" in ksplit.config_ok(desc, config | {"BLOCK_N": 128}).reason
    assert ksplit.config_ok(desc, config | {"BLOCK_N": 64})
    assert ksplit.config_ok(dataclasses.replace(desc, n=128), config | {"BLOCK_N": 128})
    assert all(padded % tried["BLOCK_N"] == 0 for tried in ksplit.space(desc))


def test_the_shipped_files_are_in_order_and_pass_the_rules():
    """Compiling them is tests/compiled/test_shipped_configs.py."""
    for path in sorted(Path(configs.shipped()).rglob("*.json")):
        file = read(path)
        assert file.text() == path.read_text(), f"{path} is not as tritonq writes it"
        kernel = next(kernel for kernel in KERNELS if kernel.name == file.kernel)
        assert file.revision == kernel.revision
        for entry in file.entries:
            desc = entry.problem(kernel.op, file.target)
            assert kernel.can_implement(desc) and kernel.config_ok(desc, entry.config), (path, entry)
