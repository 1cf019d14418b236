"""The documentation says what is so: generated pages are current, examples run, what it names exists, its byte layout decodes files."""
from __future__ import annotations

import ast
import doctest
import importlib
import json
import pkgutil
import re
from pathlib import Path

import numpy as np
import pytest
import torch

import tritonq
from docs import generate
from tests.support import made_up
from tests.support.schemes import same_bits
from tritonq import reference
from tritonq.formats.dynamic_map import DYNAMIC_MAP
from tritonq.scheme import Scheme, scheme_names

ROOT = Path(generate.ROOT)
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
README = (ROOT / "README.md").read_text(encoding="utf-8")
per_page = pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


# ---- generated pages


@pytest.mark.parametrize("path", [ROOT / "README.md", ROOT / "docs" / "formats.md"], ids=lambda p: p.name)
def test_generated_pages_are_current(path):
    pytest.importorskip("triton", reason="without Triton `tritonq explain` lists no kernels")
    assert path.read_text(encoding="utf-8") == generate.pages()[path], "run `make docs`"


def test_a_stale_page_is_noticed(tmp_path, monkeypatch, capsys):
    page = tmp_path / "page.md"
    page.write_text("old\n")
    monkeypatch.setattr(generate, "ROOT", tmp_path)
    monkeypatch.setattr(generate, "pages", lambda: {page: "new\n"})
    assert generate.main(["--check"]) == 1 and page.read_text() == "old\n"
    assert generate.main([]) == 0 and page.read_text() == "new\n"
    assert generate.main(["--check"]) == 0
    assert capsys.readouterr().out == "stale: page.md\nwrote: page.md\n"


def test_a_lost_marker_is_noticed():
    with pytest.raises(ValueError, match="section 'formats' once, found 0 times"):
        generate.with_sections("no markers", {"formats": ""})


def _worst_measured(name: str) -> float:
    """The largest error of dense values in groups whose absmax runs through three octaves, in the unit of the table."""
    scheme = Scheme.parse(name)
    steps = torch.linspace(-1, 1, 4001, dtype=torch.float64)
    if scheme.format.affine:
        # A range from -r to 1; the codes are computed for the extended range, float64 scales keep storage out of it.
        low = torch.linspace(0, 1, 301, dtype=torch.float64)[:, None]
        x = -low + (1 + low) * (steps + 1) / 2
        q = reference.quantize(x, Scheme.parse(f"{name.split('.')[0]}.channel.s64"))
        return float(((x - reference.dequantize(q, torch.float64)).abs() / (1 + low)).max())
    absmax = torch.exp2(torch.linspace(0, 3, 1537, dtype=torch.float64))[:, None]
    size = {"mxfp4": 32, "mxfp8": 32, "nvfp4": 16}.get(name, 0)
    if size:
        steps = torch.linspace(-1, 1, 126 * (size - 1), dtype=torch.float64).view(126, size - 1)
        steps = torch.cat([torch.ones(126, 1, dtype=torch.float64), steps], 1).flatten()
    text = name if size or not scheme.has_scale else f"{name.split('.')[0]}.channel.s64"
    x = absmax * steps
    error = (x - reference.dequantize(reference.quantize(x, Scheme.parse(text)), torch.float64)).abs()
    return float((error / (absmax if scheme.has_scale else x.abs().clamp(min=2.0**-10))).max())


@pytest.mark.parametrize("name", scheme_names())
def test_worst_error_of_the_table_is_met_and_not_exceeded(name):
    stated, measured = generate.worst_error(Scheme.parse(name)), _worst_measured(name)
    assert 0.97 * stated < measured <= stated * (1 + 1e-6)


# ---- examples


def test_readme_and_docs_examples_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    w = torch.randn(8, 64)
    tritonq.save({"w": tritonq.quantize(w, "nf4")}, "DST")
    for page in PAGES:
        if page.name == "CONTRIBUTING.md":  # its example registers a format; tests/*/test_made_up_format.py run it
            continue
        namespace: dict = {} if page.name == "README.md" else {"torch": torch, "tritonq": tritonq, "w": w}
        for number, source in enumerate(blocks(page, "python")):
            exec(compile(source, f"{page.name}, python block {number}", "exec"), namespace)
    assert "QTensor('nf4.g64', shape=(1024, 4096)" in capsys.readouterr().out
    assert len(blocks(ROOT / "README.md", "python")) >= 3


def modules() -> list[str]:
    names = (m.name for m in pkgutil.walk_packages(tritonq.__path__, "tritonq."))
    return ["tritonq", *(name for name in names if not name.endswith("__main__"))]


@pytest.mark.parametrize("name", modules())
def test_docstring_examples_run(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if name.startswith("tritonq.integrations.vllm."):
        pytest.importorskip("vllm")
    module = importlib.import_module(name)
    result = doctest.testmod(module, extraglobs={"torch": torch, "tritonq": tritonq}, optionflags=doctest.NORMALIZE_WHITESPACE)
    assert result.failed == 0


def test_public_functions_have_an_example():
    for name in ("quantize", "dequantize", "matmul", "select", "explain", "pack", "unpack", "backend", "estimate_memory", "save"):
        assert ">>>" in getattr(tritonq, name).__doc__, name


def test_the_worked_example_is_the_file_that_tests_load():
    assert made_up.FILE.read_text(encoding="utf-8") in blocks(ROOT / "CONTRIBUTING.md", "python")


# ---- what the pages name


def names_in(file: Path) -> set[str]:
    return {node.name for node in ast.parse(file.read_text(encoding="utf-8")).body if isinstance(node, ast.FunctionDef)}


@per_page
def test_named_tests_exist(page):
    text = page.read_text(encoding="utf-8")
    for path, name in re.findall(r"`(tests/[\w/.*]+?)(?:::(\w+))?`", text):
        files = list(ROOT.glob(path))
        assert files, path
        if name:
            assert name.startswith("test_") and name in names_in(files[0]), f"{path}::{name}"


@per_page
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)]+)\)", page.read_text(encoding="utf-8")):
        if target.startswith("http"):
            continue
        path, _, anchor = target.partition("#")
        file = page.parent / path if path else page
        assert file.exists(), target
        headings = re.findall(r"^#+ (.*)$", file.read_text(encoding="utf-8"), re.MULTILINE) if anchor else []
        assert not anchor or anchor in {re.sub(r"[^\w\- ]", "", h).strip().lower().replace(" ", "-") for h in headings}, target


def test_make_targets_exist():
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    for page in PAGES:
        assert set(re.findall(r"^make ([\w-]+)|`make ([\w-]+)", page.read_text(encoding="utf-8"), re.MULTILINE)) <= {
            pair for t in targets for pair in ((t, ""), ("", t))
        }, page.name


def test_every_environment_variable_is_documented():
    table = README.split("## Environment variables")[1].split("\n## ")[0]
    used = set()
    for file in (ROOT / "tritonq").rglob("*.py"):
        used |= set(re.findall(r"environ(?:\.get\(|\[)\"(\w+)\"", file.read_text(encoding="utf-8")))
    assert used and all(f"`{name}`" in table for name in used)


SEED_NAMES = (
    *("QuantizationMethod", "QuantizedDataType", "QuantizationParams", "quantize_matrix", "quantize_vector", "quantize_matrix_per_channel"),
    *("dequantize_matrix", "dequantize_vector", "fake_quantize", "quantized_matmul", "quantized_matvec", "quantized_dot"),
    *("QuantizationLevel", "estimate_memory", "suggest_quantization", "plan_sharding", "Nf4Quantizer"),
)


def test_the_seed_table_has_every_public_name():
    section = README.split("## The four seed systems")[1].split("\n## ")[0]
    plans = [name for name in tritonq.plans.__all__ if name.endswith("Plan")]
    assert len(plans) == 23
    for name in [*SEED_NAMES, *plans]:
        assert hasattr(tritonq, name) or hasattr(tritonq.plans, name)
        rows = [line for line in section.splitlines() if line.startswith("|") and f"`{name}`" in line.split("|")[1]]
        assert rows and all(line.count("::test_") >= 1 for line in rows), name
        files = {ROOT / file for line in rows for file in re.findall(r"`(tests/\S+?)::", line)}
        spoken = name.removesuffix("Plan").removesuffix("Backward") if name in plans else name  # plans are built from their kind's name
        stem = re.sub("^(Quantize|Dequantize)(?=Per)", "", spoken)
        assert any(stem in file.read_text(encoding="utf-8") for file in files), f"{name} does not occur in {files}"


# ---- the layout, read by its description alone


def _read(path: Path) -> tuple[dict, dict[str, np.ndarray]]:
    """A safetensors file by the format's description: header length, JSON, bytes. 8-bit floats stay bytes."""
    data = path.read_bytes()
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:end])
    description = json.loads(header.pop("__metadata__")["tritonq"])
    types = {"U8": "u1", "F16": "<f2", "F32": "<f4", "F64": "<f8", "F8_E8M0": "u1", "F8_E4M3": "u1"}
    tensors = {}
    for name, entry in header.items():
        begin, stop = entry["data_offsets"]
        tensors[name] = np.frombuffer(data[end + begin : end + stop], types[entry["dtype"]]).reshape(entry["shape"])
    return description, tensors


def _code(row: np.ndarray, k: int, bits: int) -> int:
    stream = int.from_bytes(row.tobytes(), "little")
    return (stream >> (k * bits)) & (2**bits - 1)


def _small_float(code: int, kind: str) -> np.float32:
    if kind == "e8m0":
        return np.float32(2.0 ** (code - 127))
    exponent, mantissa = code >> 3, code & 7
    return np.float32(2.0 ** (exponent - 7) * (1 + mantissa / 8) if exponent else mantissa * 2.0**-9)


def _decode(name: str, description: dict, tensors: dict[str, np.ndarray]) -> np.ndarray:
    f4, record = np.float32, description["weights"][name]
    scheme = Scheme.parse(record["scheme"])
    bits, (n, k) = scheme.format.bits, record["shape"]
    rows, columns = scheme.group_shape(n, k)
    packed, out = tensors[name], np.empty((n, k), f4)
    assert packed.dtype == np.uint8 and packed.shape == (n, -(-k * bits // 8))
    scale, zero, second, offset = (tensors.get(name + part) for part in ("_scale", "_zero_point", "_second_scale", "_scale_offset"))
    for i in range(n):
        assert _code(packed[i], k, bits) == 0  # what is behind the last code
        for j in range(k):
            code = _code(packed[i], j, bits)
            if not scheme.has_scale:
                out[i, j] = np.uint16(code).view(np.float16)
                continue
            at = (i // rows, j // columns)
            s = scale[at]
            if "dq" in scheme.options:
                group = at[0] * scale.shape[1] + at[1]
                s = f4(f4(f4(DYNAMIC_MAP[s]) * second[group // 256]) + offset[()])
            elif scheme.scale in ("e8m0", "e4m3"):
                s = _small_float(int(s), scheme.scale)
                s = f4(s * second[()]) if scheme.recipe == "nv" else s
            if scheme.format.is_integer:
                level = f4(code - 2**bits if scheme.format.signed and code >= 2 ** (bits - 1) else code)
            else:
                level = f4(scheme.format.levels[code])
            s, z = f4(s), f4(0 if zero is None else zero[at])
            out[i, j] = f4(f4(s * level) + z) if scheme.float_zero else f4(s * f4(level - z))
    return out


LAID_OUT = ("nf4.g16", "int3.g24", "int8", "uint4.g7", "uint2.b2x5.fz", "nvfp4", "mxfp4", "int4.g1.dq", "fp16", "fp8_e4m3")


@pytest.mark.parametrize("scheme", LAID_OUT)
def test_the_layout_of_the_readme_decodes_saved_files(scheme, tmp_path):
    q = tritonq.quantize(torch.randn(7, 45), scheme)
    tritonq.save({"w": q}, tmp_path / "w.safetensors")
    description, tensors = _read(tmp_path / "w.safetensors")
    assert description["format_version"] == 1
    assert description["weights"]["w"] == {"scheme": scheme, "shape": [7, 45], "dtype": "float32"}
    assert same_bits(torch.from_numpy(_decode("w", description, tensors)), q.dequantize(torch.float32))
    for field in ("format_version", "scheme", "shape", "dtype", "X_scale_offset", "tritonq.json", "tritonq_report.json"):
        assert field in README
