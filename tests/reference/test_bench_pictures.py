"""Pictures and the report: drawn, not blank, self-contained, and marked where no GPU measured."""
import builtins
import io
import json
import pathlib
import re

import pytest
import torch

from tests.support.bench_rows import made_up
from tritonq.bench import report
from tritonq.bench.results import Results
from tritonq.cli import main
from tritonq.errors import UnsupportedError

pytest.importorskip("matplotlib")
from matplotlib.image import imread  # noqa: E402

from tritonq.bench import canvas, plots  # noqa: E402

ROOT = pathlib.Path(__file__).parents[2]


def ink(image) -> float:
    """The share of pixels that are not white."""
    return float((torch.from_numpy(image[..., :3].copy()) < 0.99).any(-1).float().mean())


def texts(figure) -> str:
    found = [text.get_text() for text in figure.findobj(lambda artist: hasattr(artist, "get_text"))]
    return "\n".join(found)


@pytest.fixture(scope="module")
def drawn():
    return plots.pictures(made_up())


def test_every_picture_is_drawn_and_has_words(drawn):
    assert set(drawn) == {"speedup", "roofline", "floor", "quantize", "end-to-end", "quality"}
    said = {name: texts(figure) for name, figure in drawn.items()}
    for word in ("llama3-8b.down  [4096 x 14336]", "times as fast as cuBLAS bf16", "M, rows of x", "gemlite", "ideal", "int4.g128"):
        assert word in said["speedup"], word
    assert "FLOP/B" in said["roofline"] and "copy 4.3 TB/s, bf16 product 790 TFLOP/s" in said["roofline"]
    assert "% of the floor" in said["floor"] and "GB/s" in said["quantize"] and "copy, same turns" in said["quantize"]
    assert "SQNR [dB]" in said["quality"] and all(name in said["quality"] for name in ("int8", "nf4", "uint2", "bits per weight"))
    assert "1350" in said["end-to-end"]


def test_what_no_gpu_measured_says_so(drawn):
    timed = {name: figure for name, figure in drawn.items() if name != "quality"}  # computed, not timed
    assert all("PREDICTED BY A MODEL, NOT MEASURED" in texts(figure) for figure in timed.values())
    results = made_up("64x128", (1, 16))
    for source, mark in (("cpu", "CPU TRY-OUT: NO RESULT"), ("gpu", "")):
        again = json.loads(results.json())
        for row in again["rows"]:
            row["source"] = source
        figures = plots.pictures(Results.parse(again))
        marked = [name for name, figure in figures.items() if any(text in texts(figure) for text in canvas.MARKS.values())]
        assert set(marked) == (set(timed) if mark else set())
        assert all(mark in texts(figures[name]) for name in marked)


def test_curves_are_where_the_rows_are(drawn):
    results = made_up()
    want = sorted(row.speedup["cuBLAS bf16"] for row in results.rows
                  if (row.name, row.scheme, row.shape) == ("tritonq", "int4.g128", "llama3-8b.o") and row.suite == "matmul")  # fmt: skip
    axis = next(axis for axis in drawn["speedup"].axes if "llama3-8b.o" in axis.get_title())
    line = next(line for line in axis.get_lines() if line.get_linestyle() == "-" and line.get_color() == canvas.COLOURS[0])
    assert sorted(line.get_ydata()) == want and list(line.get_xdata()) == [1, 16, 64, 256, 4096]
    ideal = next(line for line in axis.get_lines() if line.get_linestyle() == ":" and line.get_color() == canvas.COLOURS[0])
    assert 3.8 < ideal.get_ydata()[0] < 3.9 and ideal.get_ydata()[-1] == 1  # 16 / 4.125 bits; the same operations


def test_names_of_points_do_not_cover_each_other(drawn):
    figure = drawn["quality"]
    figure.draw_without_rendering()
    boxes = [text.get_window_extent() for axis in figure.axes for text in axis.texts]
    assert len(boxes) == 6 and not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])


def test_the_report_needs_nothing_else(tmp_path, capsys):
    file = tmp_path / "rows.json"
    made_up("64x128", (1, 16)).write(file)
    assert main(["bench", "--from", str(file), "--plot", str(tmp_path / "out")]) == 1  # one row is wrong
    written = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert written == ["end-to-end.png", "floor.png", "quality.png", "quantize.png", "report.html", "roofline.png", "speedup.png"]
    assert all(ink(imread(tmp_path / "out" / name)) > 0.01 for name in written if name.endswith("png"))
    page = (tmp_path / "out" / "report.html").read_text()
    assert not re.search(r"https?:|//[a-z]|@import|url\(|<script|<link", page.replace("data:image/png;base64", "").split("</style>")[0])
    body = re.sub(r"base64,[A-Za-z0-9+/=]+", "", page)
    assert "http" not in body and "<script" not in body and "src='data:image/png;" in body and body.count("<img") == 6
    assert "Rows predicted by a model" in body and "1 rows are wrong" in body and "incorrect by 3" in body and "&lt;bad&gt;" in body
    printed = capsys.readouterr()
    assert "report.html" in printed.err and "incorrect by 3" in printed.out and "copy 4.3 TB/s, bf16 product 790 TFLOP/s" in printed.out


def test_a_cpu_run_is_drawn_with_its_mark(tmp_path):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    arguments = ["--device", "cpu", "--shapes", "32x128", "--m", "1,2", "--schemes", "int4.g128", "--no-peers", "--replays", "1"]
    assert main(["bench", "matmul", *arguments, "--json", str(tmp_path / "r.json"), "--plot", str(tmp_path)]) == 0
    assert "Times of a CPU" in (tmp_path / "report.html").read_text() and (tmp_path / "speedup.png").is_file()


def test_without_matplotlib_the_way_out_is_named(monkeypatch, tmp_path):
    real = builtins.__import__

    def absent(name, *rest, **more):
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", absent)
    with pytest.raises(UnsupportedError, match=r"pip install 'tritonq\[plot\]'"):
        report.write(made_up("64x128", (1,)), tmp_path)


def test_few_rows_draw_few_pictures():
    assert plots.pictures(Results(about={}, roofs={})) == {}


def test_the_pictures_of_the_readme():
    runs = json.loads((ROOT / "benchmarks" / "results" / "codegen.json").read_text())["runs"]
    figure = plots.instructions(runs)
    said = texts(figure)
    assert "not run on a GPU" in said and "as usually written" in said and "nf4.g64" in said and "4096 x 14336" in said
    want = [row["per_weight"] for row in runs[0]["rows"] if row["kernel"] == "matmul_frag" and row["scheme"] == "int4.g128"
            and (row["arch"], row["dtype"], row["n"], row["k"], row["m"]) == (90, "bfloat16", 4096, 14336, 16)]  # fmt: skip
    assert want and f"{want[0]:.1f}" in said.split()
    for name in ("instructions", "quality"):
        path = ROOT / "docs" / f"{name}.png"
        assert path.stat().st_size < 120_000 and ink(imread(path)) > 0.01, "python docs/generate.py --pictures"
    buffer = io.BytesIO()
    canvas.png(figure, buffer)
    assert ink(imread(io.BytesIO(buffer.getvalue()))) > 0.01
