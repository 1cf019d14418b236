"""Bad usage and bad input: exit status 2, one line on stderr that names the value and the rule, no traceback (the fixture checks that)."""
from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import tritonq
from tests.cli.models import fingerprint, write_folder

ROOT = Path(__file__).resolve().parents[2]

# {src} is a model folder, {out} a folder that does not exist, {file} a text file, {empty} an empty folder
USAGE = [
    ("", "required: COMMAND"),
    ("fly", "invalid choice: 'fly' (choose from"),
    ("quantize", "required: SRC"),
    ("quantize {src} -o {out}", "required: --scheme"),
    ("quantize {src} --scheme nf4", "required: -o/--output"),
    ("quantize {src} --scheme nf4 -o {out} --shceme x", "unrecognized arguments: --shceme"),
    ("quantize {src} --scheme nf5 -o {out}", "unknown format 'nf5'; known formats and presets: "),
    ("quantize {src} --scheme int4.g0 -o {out}", "size below 1"),
    ("quantize {src} --scheme nf4.full -o {out}", "option 'full' is for signed integer formats"),
    ("quantize {src} --scheme nf4 --scheme int8 -o {out}", "two schemes for everything, nf4 and int8; write PATTERN=SCHEME"),
    ("quantize {src} --scheme *proj*=int9 -o {out}", "unknown format 'int9'"),
    ("quantize {src} --scheme *nothing*=int8 -o {out}", "scheme '*nothing*' matches none of the 19 tensors"),
    ("quantize {src} --scheme nf4 --exclude *nothing* -o {out}", "exclude '*nothing*' matches none"),
    ("quantize {src} --scheme nf4 --include *nothing* -o {out}", "include '*nothing*' matches none"),
    ("quantize {src} --scheme nf4 --exclude * -o {out}", "none of its 19 tensors is quantized (kept: 1-D tensors"),
    ("quantize {out} --scheme nf4 -o {out}", "no such file or folder"),
    ("quantize {file} --scheme nf4 -o {out}", "header length"),
    ("quantize {empty} --scheme nf4 -o {out}", "no .safetensors file in this folder"),
    ("quantize {src} --scheme nf4 -o {src}", "may not be the source folder"),
    ("quantize {src} --scheme nf4 -o {src}/sub/out", "or lie inside it"),
    ("quantize {src}/model.safetensors --scheme nf4 -o {src}", "may not be the source folder"),
    ("quantize {src} --scheme nf4 -o {file}", "the output is a folder, and this is a file"),
    ("quantize {src} --scheme nf4 -o {out}.safetensors", "the output is a folder; leave out .safetensors"),
    ("inspect", "required: PATH"),
    ("inspect {out}", "no such file or folder"),
    ("verify {out}", "no such file or folder"),
    ("verify {src} --fail-under 20dB", "fail_under needs against"),
    ("verify {src} --against {src} --fail-under loud", "'loud' is no number of decibels; write 20dB or 20"),
    ("verify {src} --against {out}", "no such file or folder"),
    ("plan --memory 24GiB", "either a MODEL or --params N"),
    ("plan {src} --params 7B --memory 24GiB", "either a MODEL or --params N"),
    ("plan --params 7B", "required: --memory"),
    ("plan --params seven --memory 24GiB", "'seven' is no count; write 7000000000, 7e9 or 7B"),
    ("plan --params 1.5 --memory 24GiB", "'1.5' is no count"),
    ("plan --params 7B --memory lots", "cannot read 'lots' as a number of bytes"),
    ("plan --params 7B --memory 24GiB --scheme nf5", "unknown format 'nf5'"),
    ("plan --params 7B --memory 24GiB --context 10", "--context is for a MODEL"),
    ("plan {src} --memory 24GiB --devices 0", "devices must be a whole number >= 1, got 0"),
    ("plan {src} --memory 24GiB --target tpu", "--target 'tpu' is unknown"),
    ("plan {src} --memory 24GiB --assign=", "is no name of a file"),
    ("plan {src} --memory 24GiB --assign .", "is no name of a file"),
    ("plan {src} --memory 24GiB --assign /", "is no name of a file"),
    ("plan {src} --memory 24GiB --assign {empty}", "is no name of a file"),
    ("plan {src} --memory 24GiB --assign {out}/schemes.json", "there is no folder"),
    ("plan {src} --memory 24GiB --assign /dev/null", "is a device or pipe"),
    ("plan {src} --memory 24GiB --assign {src}/model.safetensors", "holds something else than schemes and is not written over"),
    ("plan {src} --memory 24GiB --assign {src}/config.json", "holds something else than schemes and is not written over"),
    ("plan {src} --memory 24GiB --assign {file}", "holds something else than schemes and is not written over"),
    *((f"plan --params {params} --memory 1GiB", "is no count; write 7000000000, 7e9 or 7B, at most 1e18")
      for params in ("1e400", "1e5000", "1e999999999", "1e999999999B", "1e-999999999", "9" * 5000, "nan", "2e15T")),
    *((f"plan --params 7B --memory {size}", "as a number of bytes") for size in ("9" * 400 + "GiB", "9" * 5000, "0." + "1" * 5000)),
    ("plan --params 7B --memory 24GiB --scheme int4.g" + "9" * 5000, "of 5006 characters: no scheme has more than 100"),
    ("plan {src} --memory 24GiB --target sm_" + "9" * 5000, "is unknown; write cpu, sm_90"),
    ("bench --device cpu --shapes " + "9" * 5000 + "x1", "unknown shape '999"),
    ("bench --device cpu --m " + "9" * 5000, "--m takes whole numbers"),
    ("bench --device cpu --minutes abc", "'abc' is no positive number of minutes"),
    ("explain --m 1 --n 64 --scheme nf4", "required: --k"),
    ("explain --m 1 --n 64 --k 64 --scheme nf5", "unknown format 'nf5'"),
    ("explain --m -1 --n 64 --k 64 --scheme nf4", "'-1' is no count"),
    ("explain --m 1 --n 64 --k 64 --scheme nf4 --dtype int8", "invalid choice: 'int8'"),
    ("explain --m 1 --n 64 --k 64 --scheme nf4 --target tpu", "--target 'tpu' is unknown; write cpu, sm_90 (NVIDIA) or gfx942 (AMD)"),
    ("formats nf4", "unrecognized arguments: nf4"),
]


@pytest.mark.parametrize(("line", "text"), USAGE, ids=[line[:80] for line, _ in USAGE])
def test_usage(cli, tmp_path, monkeypatch, line, text):
    source = write_folder(tmp_path / "src")
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("this is no checkpoint, whatever its first eight bytes say")
    monkeypatch.setattr("tritonq.cli.plan_model.assign_model", None)  # asked before anything is measured
    before = fingerprint(tmp_path)
    words = {"src": source, "out": tmp_path / "out", "file": tmp_path / "file", "empty": tmp_path / "empty"}
    outcome = cli(*(word.format(**words) for word in line.split()))
    assert outcome.status == 2 and text in outcome.err
    assert fingerprint(tmp_path) == before, "a refused command writes nothing"


def refused(cli, tmp_path, source) -> str:
    outcome = cli("quantize", source, "--scheme", "nf4", "-o", tmp_path / "out")
    assert outcome.status == 2 and not (tmp_path / "out").exists()
    return outcome.err


def test_quantized_already(cli, tmp_path):
    source = write_folder(tmp_path / "src")
    cli("quantize", source, "--scheme", "nf4", "-o", tmp_path / "once")
    assert "is quantized already (config.json: quant_method 'tritonq')" in refused(cli, tmp_path, tmp_path / "once")
    (tmp_path / "once" / "config.json").unlink()
    assert "is a tritonq checkpoint already" in refused(cli, tmp_path, tmp_path / "once")
    empty = write_folder(tmp_path / "empty", config={"quantization_config": {}})
    other = write_folder(tmp_path / "gptq", config={"quantization_config": {"quant_method": "gptq"}})
    assert "quant_method 'gptq'" in refused(cli, tmp_path, other)
    assert "quant_method 'gptq'" in refused(cli, tmp_path, other / "model.safetensors")
    assert "quant_method '?'" in refused(cli, tmp_path, empty)
    outcome = cli("plan", tmp_path / "once", "--memory", "1GiB")
    assert outcome.status == 2 and "is quantized already" in outcome.err
    for folder in (other, empty):
        outcome = cli("plan", folder, "--memory", "1GiB")
        assert outcome.status == 2 and "is quantized already" in outcome.err
    outcome = cli("verify", source, "--against", tmp_path / "once")
    assert outcome.status == 2 and "against takes the original weights" in outcome.err


@pytest.mark.parametrize(
    ("codes", "dtype", "scales"),
    [
        ("a.qweight", torch.int32, "a.scales"),  # GPTQ, AWQ
        ("a.weight_packed", torch.int32, "a.weight_scale"),  # compressed-tensors
        ("a.weight", torch.float8_e4m3fn, "a.weight_scale_inv"),  # FP8 in blocks
        ("a.weight", torch.float8_e4m3fn, "a.weight_scale"),
        ("a.weight", torch.int8, "a.weight_scale"),
        ("a.weight", torch.int8, "a.SCB"),  # LLM.int8 of bitsandbytes
        ("experts.gate_up_proj", torch.float8_e4m3fn, "experts.gate_up_proj_scale_inv"),
        ("experts.gate_up_proj_blocks", torch.uint8, "experts.gate_up_proj_scales"),  # gpt-oss
    ],
)
def test_quantized_already_by_the_tensors_alone(cli, tmp_path, codes, dtype, scales):
    save_file({"b.weight": torch.ones(64, 64), codes: torch.ones(64, 64).to(dtype), scales: torch.ones(64, 4)}, tmp_path / "w.safetensors")
    text = refused(cli, tmp_path, tmp_path / "w.safetensors")
    assert f"is quantized already (tensor {codes!r} is " in text and f"its scales are in {scales!r}" in text


def test_what_tritonq_saved_unquantized_can_be_quantized(cli, tmp_path):
    tritonq.save({"w.weight": torch.ones(4, 64)}, tmp_path / "w.safetensors")
    assert cli("quantize", tmp_path / "w.safetensors", "--scheme", "nf4", "-o", tmp_path / "out").status == 0
    assert tritonq.checkpoints.open(tmp_path / "out").records.keys() == {"w.weight"}


@pytest.mark.parametrize("case", ["weights", "index", "carried", "link to the source", "sub-folder named like the source"])
def test_output_where_files_of_the_source_really_lie(cli, tmp_path, case):
    """Files of the source may be links, as in Hugging Face's cache: what they name is not replaced either."""
    real, source = write_folder(tmp_path / "real", shards=2), tmp_path / "link"
    target = real
    if case == "sub-folder named like the source":
        source = write_folder(tmp_path / "m", shards=2)
        (source / "m").mkdir()
        (source / "m" / "config.json").write_text("{}")
        target = tmp_path
    elif case == "link to the source":
        target = tmp_path / "out"
        target.mkdir()
        (target / "1_Pooling").symlink_to(real)
        source = real
    else:
        write_folder(source, shards=2)
        for path in real.glob({"weights": "*-of-*", "index": "*.index.json", "carried": "tokenizer.json"}[case]):
            (source / path.name).unlink()
            (source / path.name).symlink_to(Path("..") / "real" / path.name)
    before = fingerprint(tmp_path)
    outcome = cli("quantize", source, "--scheme", "nf4", "-o", target, "--overwrite")
    assert outcome.status == 2 and "may not be the source folder" in outcome.err and fingerprint(tmp_path) == before


def test_names_that_quantizing_would_need(cli, tmp_path):
    save_file({"w.weight": torch.zeros(4, 32), "w.weight_scale": torch.zeros(4, 1)}, tmp_path / "w.safetensors")
    assert "quantizing 'w.weight' writes 'w.weight_scale', a tensor that exists" in refused(cli, tmp_path, tmp_path / "w.safetensors")


def test_nothing_to_assign(cli, tmp_path):
    save_file({"norm.weight": torch.ones(64)}, tmp_path / "m.safetensors")
    outcome = cli("plan", tmp_path / "m.safetensors", "--memory", "1GiB", "--assign", tmp_path / "schemes.json")
    assert outcome.status == 2 and "none of its 1 tensors is quantized, so there is nothing to assign" in outcome.err


def test_folders_that_are_ambiguous_or_pickled(cli, tmp_path):
    folder = tmp_path / "m"
    folder.mkdir()
    (folder / "pytorch_model.bin").write_bytes(b"")
    assert "pytorch_model.bin is not read here, save it as safetensors first" in refused(cli, tmp_path, folder)
    for name in ("a", "b"):
        save_file({"w.weight": torch.zeros(4, 32)}, folder / f"{name}.safetensors")
    assert "2 safetensors files (a.safetensors, b.safetensors) and no model.safetensors.index.json" in refused(cli, tmp_path, folder)


def test_config_that_is_no_json(cli, tmp_path):
    source = write_folder(tmp_path / "src")
    (source / "config.json").write_text("{oops")
    assert "config.json is not valid JSON" in refused(cli, tmp_path, source)


def test_unreadable_file(cli, tmp_path, monkeypatch):
    source = write_folder(tmp_path / "src")

    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("tritonq.checkpoints.tensorfile.open", refuse, raising=False)
    assert "model.safetensors: cannot be read: Permission denied" in refused(cli, tmp_path, source)


def test_a_journal_that_is_garbage(cli, tmp_path):
    source = write_folder(tmp_path / "src")
    (tmp_path / "out").mkdir()
    for text, says in (("[]", "must be a JSON object"), ("{}", "another format version"), ("{", "not valid JSON")):
        (tmp_path / "out" / "tritonq_job.json").write_text(text)
        outcome = cli("quantize", source, "--scheme", "nf4", "-o", tmp_path / "out")
        assert outcome.status == 2 and says in outcome.err
    assert cli("quantize", source, "--scheme", "nf4", "-o", tmp_path / "out", "--overwrite").status == 0


def test_other_weights_in_the_output_folder(cli, tmp_path):
    source = write_folder(tmp_path / "src")
    save_file({"x": torch.zeros(1)}, write_folder(tmp_path / "out") / "other.safetensors")
    outcome = cli("quantize", source, "--scheme", "nf4", "-o", tmp_path / "out", "--overwrite")
    assert outcome.status == 2 and "holds other weights (other.safetensors)" in outcome.err


def test_as_a_process(tmp_path):
    """``python -m tritonq``: the exit status and the streams of a real process, and a reader that goes away."""
    options = {"cwd": ROOT, "capture_output": True, "text": True, "check": False}
    run = subprocess.run([sys.executable, "-m", "tritonq", "inspect", tmp_path / "no"], **options)
    assert run.returncode == 2 and run.stdout == "" and run.stderr == f"tritonq: {tmp_path / 'no'}: no such file or folder\n"
    run = subprocess.run(f"{sys.executable} -m tritonq formats --json | head -c 5", shell=True, **options)
    assert run.stdout == "{\n  \"" and run.stderr == ""


def test_errors_under_json_stay_on_stderr(cli, tmp_path):
    assert cli("inspect", tmp_path / "no", "--json").status == 2  # the fixture checks that stdout is empty
    write_folder(tmp_path / "src")
    assert json.loads(cli("inspect", tmp_path / "src", "--json").out)["family"] == "safetensors"
