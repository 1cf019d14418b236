"""A quantize job that is killed, at any moment, leaves the source untouched and no half-written file, and the next run finishes it."""
from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

import tritonq
from tests.cli.models import fingerprint, model_files, tensors, write_folder
from tritonq.checkpoints import journal, quantize_checkpoint, writer
from tritonq.files import write_atomic

ROOT = Path(__file__).resolve().parents[2]


class Killed(BaseException):
    """Stands for the end of the process: no handler of ours catches it."""


@pytest.fixture
def source(tmp_path) -> Path:
    return write_folder(tmp_path / "src", shards=3)


@pytest.fixture
def expected(source, tmp_path) -> dict[str, str]:
    """What an undisturbed run writes."""
    quantize_checkpoint(source, tmp_path / "expected", "nf4")
    return model_files(tmp_path / "expected")


def assert_files_whole(out: Path) -> None:
    """Every file under its final name is complete; files that are being written are called .partial."""
    for path in out.rglob("*") if out.exists() else ():
        if path.suffix == ".safetensors":
            with safe_open(path, "pt") as file:
                for name in file.keys():  # noqa: SIM118
                    file.get_tensor(name)
        elif path.suffix == ".json":
            json.loads(path.read_text())


KILL = """
import os, signal, sys
from tritonq.checkpoints import quantize_checkpoint, writer
calls, add = 0, writer.FileWriter.add
def killing(self, name, tensor):
    global calls
    calls += 1
    add(self, name, tensor)
    if calls == int(sys.argv[3]):
        self._file.flush()
        os.kill(os.getpid(), signal.SIGKILL)
writer.FileWriter.add = killing
quantize_checkpoint(sys.argv[1], sys.argv[2], "nf4")
"""


def test_kill_9_in_the_middle_of_a_file(source, expected, tmp_path):
    before, out = fingerprint(source), tmp_path / "out"
    done = subprocess.run([sys.executable, "-c", KILL, source, out, "9"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    finished = sorted(path.name for path in out.glob("*.safetensors"))
    assert 0 < len(finished) < 3 and list(out.glob("*.safetensors.partial"))
    assert_files_whole(out)
    assert fingerprint(source) == before
    for path in (out, out / finished[0], out / "model.safetensors.index.json"):
        (out / "model.safetensors.index.json").write_text("{}")
        with pytest.raises(tritonq.errors.CheckpointError, match="unfinished"):
            tritonq.load(path)
    times = {name: (out / name).stat().st_mtime_ns for name in finished}
    report = quantize_checkpoint(source, out, "nf4")
    assert report["resumed_files"] == len(finished)
    assert {name: (out / name).stat().st_mtime_ns for name in finished} == times
    assert model_files(out) == expected


@pytest.mark.parametrize("step", range(17))
def test_stopped_before_any_rename(source, expected, tmp_path, monkeypatch, step):
    """Every file appears by one rename: stop before the first, the second, ... and carry on."""
    before, out, calls = fingerprint(source), tmp_path / "out", 0
    replace = os.replace

    def stopping(a, b):
        nonlocal calls
        if calls == step:
            raise Killed
        calls += 1
        replace(a, b)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", stopping)
        try:
            quantize_checkpoint(source, out, "nf4")
        except Killed:
            assert_files_whole(out)
        else:
            assert step > 10, "the job makes more files than this"
    assert fingerprint(source) == before
    finished = len(list(out.glob("*.safetensors")))
    report = quantize_checkpoint(source, out, "nf4")
    assert report["resumed_files"] in (finished, finished - 1)  # the last file may have been renamed and not yet recorded
    assert model_files(out) == expected and not list(out.glob("*.partial"))


def test_finished_job_runs_again_without_work(source, tmp_path, cli):
    out = tmp_path / "out"
    first = quantize_checkpoint(source, out, "nf4")
    times = {path: path.stat().st_mtime_ns for path in out.glob("*.safetensors")}
    outcome = cli("quantize", source, "--scheme", "nf4", "-o", out)
    assert "3 of 3 files were finished before and not redone" in outcome.out
    assert {path: path.stat().st_mtime_ns for path in out.glob("*.safetensors")} == times
    assert json.loads((out / "tritonq_report.json").read_text())["totals"] == first["totals"]


@pytest.mark.parametrize("damage", ["cut", "header", "words", "gone"])
def test_damaged_output_is_redone(source, expected, tmp_path, damage):
    out = tmp_path / "out"
    quantize_checkpoint(source, out, "nf4")
    path = out / "model-00002-of-00003.safetensors"
    raw = path.read_bytes()
    if damage == "gone":
        path.unlink()
    else:
        # "words": still a valid header, but it says nf5 where nf4 was written
        damaged = {"cut": raw[:-8], "header": raw[:10] + b"x" + raw[11:], "words": raw.replace(b"nf4", b"nf5")}
        path.write_bytes(damaged[damage])
    assert quantize_checkpoint(source, out, "nf4")["resumed_files"] == 2
    assert model_files(out) == expected


def test_another_scheme_is_refused_and_overwrite_redoes(source, tmp_path, cli):
    out = tmp_path / "out"
    quantize_checkpoint(source, out, "nf4")
    before = fingerprint(out)
    refused = cli("quantize", source, "--scheme", "int8", "-o", out)
    assert refused.status == 2 and "another scheme or choice (nf4, now int8)" in refused.err and "--overwrite" in refused.err
    assert cli("quantize", source, "--scheme", "nf4", "--exclude", "lm_head.weight", "-o", out).status == 2
    assert fingerprint(out) == before
    (out / "notes.txt").write_text("the user's own")
    assert cli("quantize", source, "--scheme", "int8", "-o", out, "--overwrite").status == 0
    assert {r.scheme for r in tritonq.checkpoints.open(out).records.values()} == {"int8"} and (out / "notes.txt").exists()


def test_overwrite_with_fewer_shards_leaves_no_old_ones(source, tmp_path):
    out = tmp_path / "out"
    quantize_checkpoint(source, out, "nf4")
    single = write_folder(tmp_path / "single")
    quantize_checkpoint(single, out, "nf4", overwrite=True)
    assert [path.name for path in out.glob("*.safetensors")] == ["model.safetensors"]
    assert len(tritonq.load(out)) == len(tensors())


def test_changed_source_is_refused(source, tmp_path, cli):
    out = tmp_path / "out"
    quantize_checkpoint(source, out, "nf4")
    changed = source / "model-00001-of-00003.safetensors"
    os.utime(changed, ns=(1, 1))
    refused = cli("quantize", source, "--scheme", "nf4", "-o", out)
    assert refused.status == 2 and "source, or the source changed since" in refused.err and "--overwrite" in refused.err


@pytest.mark.parametrize("config", [{"tie_word_embeddings": True}, {"text_config": {"tie_word_embeddings": True}}])
def test_a_head_that_is_tied_now_is_another_job(source, tmp_path, cli, config):
    out = tmp_path / "out"
    quantize_checkpoint(source, out, "nf4")
    (source / "config.json").write_text(json.dumps(config))
    refused = cli("quantize", source, "--scheme", "nf4", "-o", out)
    assert refused.status == 2 and "a job with another tie_word_embeddings (False, now True); --overwrite" in refused.err
    rows = quantize_checkpoint(source, out, "nf4", overwrite=True)["files"]["model-00003-of-00003.safetensors"]["tensors"]
    assert [row["reason"] for row in rows if row["name"] == "lm_head.weight"] == ["tied to the embedding"]


@pytest.mark.parametrize("finished", [True, False])
def test_overwrite_removes_what_the_other_job_carried_and_nothing_else(source, tmp_path, monkeypatch, finished):
    out, config = tmp_path / "out", source / "config.json"
    if finished:
        quantize_checkpoint(source, out, "int8")
    else:
        with monkeypatch.context() as patch, pytest.raises(Killed):
            patch.setattr(journal.Journal, "close", lambda *_: (_ for _ in ()).throw(Killed))
            quantize_checkpoint(source, out, "int8")
    (out / "model-00001-of-00003.safetensors.partial").write_text("of the other job")
    for name in ("notes.txt", "precious.partial", "precious.safetensors.partial"):
        (out / name).write_text("the user's own")
    single = tmp_path / "single.safetensors"
    tritonq.save({"w.weight": torch.ones(4, 64)}, single)
    quantize_checkpoint(single, out, "nf4", overwrite=True)
    own = {"notes.txt", "precious.partial", "precious.safetensors.partial"}
    assert fingerprint(out).keys() == own | {"single.safetensors", "tritonq.json", "tritonq_report.json"} and config.is_file()


@pytest.mark.parametrize("name", ["", "..", "../precious", "/{}/precious", "link/precious", "a\0b", 5, ["x"]])
def test_a_record_of_another_job_removes_nothing_elsewhere(source, tmp_path, name):
    out = tmp_path / "out"
    quantize_checkpoint(source, out, "nf4")
    (tmp_path / "precious").write_text("the user's own")
    (out / "link").symlink_to(tmp_path)
    report = json.loads((out / "tritonq_report.json").read_text())
    report |= {"carried": [name.format(tmp_path) if isinstance(name, str) else name], "job": {"source": [{"name": name}, name]}}
    (out / "tritonq_report.json").write_text(json.dumps(report))
    quantize_checkpoint(source, out, "nf4", overwrite=True)
    assert (tmp_path / "precious").is_file()


RULES = [5, {"patterns": 5}, {"default": 5, "patterns": [], "include": [], "exclude": []}, {"patterns": [5]}, {"include": 3}]


@pytest.mark.parametrize("rules", RULES)
def test_rules_of_a_job_that_cannot_be_read(source, tmp_path, cli, rules):
    out = tmp_path / "out"
    quantize_checkpoint(source, out, "nf4")
    report = json.loads((out / "tritonq_report.json").read_text())
    report["job"]["rules"] = rules
    (out / "tritonq_report.json").write_text(json.dumps(report))
    refused = cli("quantize", source, "--scheme", "nf4", "-o", out)
    assert refused.status == 2 and "another scheme or choice (unreadable, now nf4)" in refused.err


@pytest.mark.parametrize("tensors", [5, None, [], [{}], "gone", "quality"])
def test_rows_of_a_report_that_were_damaged_are_made_anew(source, expected, tmp_path, tensors):
    out = tmp_path / "out"
    quantize_checkpoint(source, out, "nf4")
    report = json.loads((out / "tritonq_report.json").read_text())
    record = report["files"]["model-00002-of-00003.safetensors"]
    if tensors == "gone":
        del record["tensors"]
    elif tensors == "quality":
        next(row for row in record["tensors"] if row["quality"])["quality"] = 3
    else:
        record["tensors"] = tensors
    report["files"]["of another job.safetensors"] = 5
    (out / "tritonq_report.json").write_text(json.dumps(report))
    assert quantize_checkpoint(source, out, "nf4")["resumed_files"] == 2
    assert model_files(out) == expected


def test_overwrite_removes_no_weights_that_a_killed_job_had_not_replaced_yet(source, tmp_path, cli):
    out, name = tmp_path / "out", "model-00001-of-00003.safetensors"
    quantize_checkpoint(source, out, "nf4")
    report = json.loads((out / "tritonq_report.json").read_text())
    (out / "tritonq_job.json").write_text(json.dumps({"job": report["job"], "carried": [], "files": {}}))
    single = tmp_path / "single.safetensors"
    tritonq.save({"w.weight": torch.ones(4, 64)}, single)
    refused = cli("quantize", single, "--scheme", "nf4", "-o", out, "--overwrite")
    assert refused.status == 2 and "holds other weights (model-0" in refused.err and (out / name).is_file()


def test_foreign_folder_is_refused(source, tmp_path, cli):
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.txt").write_text("precious")
    refused = cli("quantize", source, "--scheme", "nf4", "-o", out)
    assert refused.status == 2 and "is not empty" in refused.err
    assert fingerprint(out).keys() == {"thesis.txt"}


def test_two_jobs_on_one_folder(source, tmp_path, cli):
    out = tmp_path / "out"
    out.mkdir()
    with journal.locked(out):
        refused = cli("quantize", source, "--scheme", "nf4", "-o", out)
    assert refused.status == 2 and "another tritonq job is writing here" in refused.err


def test_full_disk_is_one_line_and_leaves_no_partial(source, tmp_path, cli, monkeypatch):
    def full(self, name, tensor):
        raise OSError(28, "No space left on device", str(self.partial))

    monkeypatch.setattr(writer.FileWriter, "add", full)
    refused = cli("quantize", source, "--scheme", "nf4", "-o", tmp_path / "out")
    assert refused.status == 2 and "No space left on device" in refused.err
    assert not list((tmp_path / "out").glob("*.partial"))


def test_writer_refuses_a_header_larger_than_reserved(tmp_path):
    """The room for the header is reserved before the tensors are known; a name that was not announced must not corrupt data."""
    with writer.FileWriter(tmp_path / "x.safetensors", {}, {}) as file:
        for i in range(40):
            file.add(f"surprise{i}", torch.zeros(8))
        with pytest.raises(tritonq.errors.CheckpointError, match="were reserved"):
            file.finish()
    assert not list(tmp_path.iterdir())


def test_a_failing_rename_leaves_no_partial(tmp_path, monkeypatch):
    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(PermissionError):
        writer.write_tensors(tmp_path / "x.safetensors", {"w": torch.zeros(3)}, {})
    assert not list(tmp_path.iterdir())


def test_a_write_that_fails_leaves_nothing(tmp_path):
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError):
        write_atomic(tmp_path / "folder", "text")
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]
