"""What commands print with: tables on terminals of every width and in pipes, names as they are, streams that are closed or lack letters."""
import io
import os
import re
import sys

import pytest
import torch
from safetensors.torch import save_file

from tests.cli.models import tensors, write_folder
from tritonq.cli import main
from tritonq.cli.output import table

LONG = "model.layers.11.self_attn.q_proj." + 9 * "very." + "weight"
TITLE = "a [b] :fire: title " + 20 * "that is long "
COLUMNS = ["tensor~", "shape", "scheme", "size>", "needed>", "why~"]
ROWS = [[LONG, "4096x11008", "int4.g128", "1023.99 KiB", "1023.98 MiB", "a reason of several words"],
        ["w", "2x2", "nf4", "8 B", "9 B", "-"]]  # fmt: skip


def printed(capsys, monkeypatch, width: int | None, term: str) -> list[str]:
    """Lines without styles; ``width`` None: into a pipe."""
    monkeypatch.setattr(sys.stdout, "isatty", lambda: width is not None, raising=False)
    monkeypatch.setenv("TERM", term)
    monkeypatch.setenv("COLUMNS", str(width or 200))
    table(TITLE, COLUMNS, ROWS)
    return re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out).splitlines()


@pytest.mark.parametrize(("width", "term"), [*((width, "xterm") for width in (20, 40, 60, 80, 200, None)), (80, "dumb")])
def test_tables_keep_every_letter(capsys, monkeypatch, width, term):
    title, _, header, _, *body = printed(capsys, monkeypatch, width, term)
    assert title.rstrip() == TITLE.rstrip()
    assert header.split() == [name.rstrip("~>") for name in COLUMNS]
    assert all(cell in body[0] for cell in ROWS[0][1:5]), "what does not fold is whole, on one line"
    start, end = header.index("tensor"), header.index("shape")
    names = "".join(line[start:end].strip() for line in body)
    assert names == LONG + "w" and end - start >= 16
    least = 16 + 10 + 9 + 11 + 11 + 16 + 13  # cells, and what stands between them
    assert len(body[0]) <= max(width, least) if width else body[0].split()[0] == LONG


@pytest.mark.parametrize("name", ["a[/b].weight", "MiniLM[v2].weight", "a:fire:b.weight", r"a\[b].weight", "[bold]a[/bold]"])
def test_names_are_no_markup(cli, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    save_file({name: torch.zeros(2, 32)}, "m[v2] :fire:.safetensors")
    text = cli("inspect", "m[v2] :fire:.safetensors").out
    assert text.startswith("m[v2] :fire:.safetensors\n") and f" {name} " in text


@pytest.fixture
def models(tmp_path):
    main(["quantize", str(write_folder(tmp_path / "src")), "--scheme", "nf4", "-o", str(tmp_path / "q")])
    return tmp_path


@pytest.mark.parametrize(("line", "status"), [
    ("formats", 0),
    ("formats --json", 0),
    ("verify {m}/q --against {m}/src", 0),
    ("verify {m}/q --against {m}/src --fail-under 30dB", 1),
    ("verify {m}/q --against {m}/src --fail-under 30dB --json", 1),
    ("quantize {m}/src --scheme int8 -o {m}/out", 0),
    ("plan {m}/src --memory 1", 1),
])  # fmt: skip
def test_a_reader_that_goes_away_changes_no_status(models, monkeypatch, capsys, line, status):
    capsys.readouterr()
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as gone:
        monkeypatch.setattr(sys, "stdout", gone)
        assert main(line.format(m=models).split()) == status
    assert capsys.readouterr().err == ""


def test_a_closed_stdout(models, monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    assert main(["formats"]) == 0
    monkeypatch.setattr(sys, "stdout", None)
    assert main(["verify", str(models / "q"), "--against", str(models / "src"), "--fail-under", "30dB", "--json"]) == 1


def test_a_stdout_that_lacks_letters(tmp_path, monkeypatch):
    raw = io.BytesIO()
    save_file({"schicht.β.weight": torch.zeros(2, 32)}, tmp_path / "m.safetensors")
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, "latin-1"))
    for more in ([], ["--json"]):
        assert main(["inspect", str(tmp_path / "m.safetensors"), *more]) == 0
    assert raw.getvalue().count(rb"schicht.\u03b2.weight") >= 2


def test_out_of_memory_is_one_line(cli, monkeypatch):
    monkeypatch.setattr("tritonq.cli.formats.run", lambda args: torch.empty(1 << 60, dtype=torch.uint8))
    assert cli("formats").err == "tritonq: out of memory: the largest tensor and its quantized copy must fit\n"
    monkeypatch.setattr("tritonq.cli.formats.run", lambda args: torch.zeros(2) @ torch.zeros(3))
    with pytest.raises(RuntimeError, match="size"):
        main(["formats"])


def test_tensors_of_the_miniature_are_listed_whole_at_50_columns(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "50")
    assert main(["inspect", str(write_folder(tmp_path / "src"))]) == 0
    lines = re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out).splitlines()
    start, end = next((line.index("tensor"), line.index("shape")) for line in lines if " shape " in line)
    assert set(tensors()) <= set("".join(("\n" if line[end:].strip() else "") + line[start:end].strip() for line in lines[4:]).split())
