"""``tritonq.save``, ``tritonq.load``, ``tritonq.checkpoints.open``."""
from __future__ import annotations

import dataclasses

import pytest
import torch
from safetensors import safe_open

import tritonq
from tritonq.errors import CheckpointError, InvalidProblemError
from tritonq.scheme import scheme_names


def assert_same(a: tritonq.QTensor, b: tritonq.QTensor) -> None:
    assert (str(a.scheme), a.shape, a.dtype, a.layout) == (str(b.scheme), b.shape, b.dtype, b.layout)
    for field in dataclasses.fields(a):
        left, right = getattr(a, field.name), getattr(b, field.name)
        if isinstance(left, torch.Tensor):
            assert left.dtype == right.dtype and left.shape == right.shape
            assert torch.equal(left.reshape(-1).view(torch.uint8), right.reshape(-1).view(torch.uint8)), field.name


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_every_scheme_round_trips(tmp_path, dtype):
    w = torch.randn(5, 70).to(dtype)
    schemes = [*scheme_names(), "nf4.dq", "uint4.g32.fz", "int8.b2x16", "uint2.column", "int3.g9.full"]
    saved = {name: tritonq.quantize(w, name) for name in schemes}
    tritonq.save(saved | {"plain": w}, tmp_path / "all.safetensors")
    loaded = tritonq.load(tmp_path / "all.safetensors")
    assert loaded.keys() == saved.keys() | {"plain"} and torch.equal(loaded["plain"], w)
    for name, q in saved.items():
        assert_same(q, loaded[name])


def test_folder_and_lazy_reading(tmp_path):
    saved = {"a.weight": tritonq.quantize(torch.randn(4, 64), "nf4"), "b": torch.arange(3)}
    tritonq.save(saved, tmp_path / "deep" / "model")
    checkpoint = tritonq.checkpoints.open(tmp_path / "deep" / "model")
    assert checkpoint.family == "tritonq" and sorted(checkpoint.names()) == ["a.weight", "b"] and len(checkpoint) == 2
    assert "a.weight" in checkpoint and "a.weight_scale" not in checkpoint and checkpoint.shape("a.weight") == (4, 64)
    assert_same(dict(checkpoint)["a.weight"], saved["a.weight"])
    assert_same(checkpoint["a.weight"], saved["a.weight"])
    assert repr(checkpoint).endswith("tritonq, 2 tensors, 1 quantized)")
    with pytest.raises(CheckpointError, match="no tensor 'c'"):
        checkpoint["c"]


def test_plain_safetensors_open_too(tmp_path):
    tritonq.save({"w": torch.randn(3, 3)}, tmp_path / "w.safetensors")
    from safetensors.torch import save_file

    save_file({"w": torch.ones(3)}, tmp_path / "plain.safetensors")
    plain = tritonq.checkpoints.open(tmp_path / "plain.safetensors")
    assert plain.family == "safetensors" and torch.equal(plain["w"], torch.ones(3))


def test_module(tmp_path):
    model = torch.nn.Sequential(torch.nn.Linear(64, 8), torch.nn.LayerNorm(8))
    tritonq.save(model, tmp_path / "m.safetensors")
    loaded = tritonq.load(tmp_path / "m.safetensors")
    assert loaded.keys() == model.state_dict().keys() and torch.equal(loaded["0.weight"], model[0].weight)

    class Quantized(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.q = tritonq.quantize(torch.randn(4, 64), "nf4")
            self.register_buffer("weight", self.q.packed)
            self.register_buffer("weight_scale", self.q.scale)
            self.bias = torch.nn.Parameter(torch.zeros(4))

        def qtensor(self):
            return self.q

    model = torch.nn.Sequential(Quantized())
    tritonq.save(model, tmp_path / "q.safetensors")
    loaded = tritonq.load(tmp_path / "q.safetensors")
    assert loaded.keys() == {"0.weight", "0.bias"}
    assert_same(loaded["0.weight"], model[0].q)


def test_strided_and_shared_tensors(tmp_path):
    base = torch.randn(8, 6)
    named = {"t": base.T, "s": base[::2], "again": base}
    tritonq.save(named, tmp_path / "x.safetensors")
    with safe_open(tmp_path / "x.safetensors", "pt") as file:
        assert all(torch.equal(file.get_tensor(name), tensor) for name, tensor in named.items())


def test_failed_save_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "x.safetensors"
    tritonq.save({"a": torch.ones(2)}, path)
    with pytest.raises(CheckpointError, match="safetensors has no dtype for torch.complex128"):
        tritonq.save({"a": torch.zeros(2), "b": torch.zeros(2, dtype=torch.complex128)}, path)
    assert torch.equal(tritonq.load(path)["a"], torch.ones(2)) and [p.name for p in tmp_path.iterdir()] == ["x.safetensors"]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ([torch.zeros(1)], "save takes a module or a dict of tensors, got list"),
        ({"a": 1}, "got 'a' -> int"),
        ({1: torch.zeros(1)}, "got 1 -> Tensor"),
    ],
)
def test_what_cannot_be_saved(tmp_path, value, text):
    with pytest.raises(InvalidProblemError, match=text):
        tritonq.save(value, tmp_path / "x.safetensors")


@pytest.mark.parametrize("call", [lambda path: tritonq.save({}, path), tritonq.load])
def test_a_path_with_a_zero_byte(call):
    with pytest.raises(InvalidProblemError, match="a path must hold no zero byte"):
        call("a\0b")


def test_names_that_clash(tmp_path):
    q = tritonq.quantize(torch.randn(2, 64), "nf4")
    for named in ({"w": q, "w_scale": torch.zeros(1)}, {"w_scale": torch.zeros(1), "w": q}):
        with pytest.raises(InvalidProblemError, match="weight 'w' is stored as 'w_scale' too"):
            tritonq.save(named, tmp_path / "x.safetensors")


def test_views_that_conjugate_or_negate(tmp_path):
    z = torch.randn(4, 3, dtype=torch.complex64)
    tritonq.save({"conj": z.conj(), "neg": z.conj().imag}, tmp_path / "x.safetensors")
    loaded = tritonq.load(tmp_path / "x.safetensors")
    assert torch.equal(loaded["conj"], torch.conj_physical(z)) and torch.equal(loaded["neg"], -z.imag)


@pytest.mark.parametrize(
    ("named", "text"),
    [
        ({"a": torch.zeros(3, device="meta")}, "tensor 'a' is on the meta device and has no values"),
        ({"a": torch.eye(3).to_sparse()}, "tensor 'a' has the layout torch.sparse_coo; safetensors holds dense values"),
        ({"a\ud800": torch.zeros(3)}, r"the name is not valid Unicode"),
    ],
)
def test_tensors_that_a_file_cannot_hold(tmp_path, named, text):
    with pytest.raises(CheckpointError, match=text):
        tritonq.save(named, tmp_path / "x.safetensors")
    assert not list(tmp_path.iterdir())


def test_a_module_under_two_names(tmp_path):
    class Tied(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.a = tritonq.nn.QuantLinear.from_linear(torch.nn.Linear(64, 8), "nf4")
            self.b = self.a

    model = Tied()
    tritonq.save(model, tmp_path / "m.safetensors")
    loaded = tritonq.load(tmp_path / "m.safetensors")
    assert loaded.keys() == {"a.weight", "a.bias", "b.weight", "b.bias"}
    assert_same(loaded["a.weight"], loaded["b.weight"])


@pytest.mark.parametrize("other", ["model.safetensors.index.json", "x.safetensors.index.json", "adapter.safetensors", "tritonq_job.json"])
def test_a_folder_that_would_open_as_something_else(tmp_path, other):
    folder = tmp_path / "m"
    tritonq.save({"a": torch.zeros(3)}, folder)
    tritonq.save({"a": torch.ones(3)}, folder)
    assert torch.equal(tritonq.load(folder)["a"], torch.ones(3))
    (folder / other).write_text("{}")
    before = (folder / "model.safetensors").read_bytes()
    with pytest.raises(CheckpointError, match=f"m: holds other weights or their index .{other}."):
        tritonq.save({"a": torch.zeros(3)}, folder)
    assert (folder / "model.safetensors").read_bytes() == before


@pytest.mark.parametrize("taken, path", [("x.safetensors", "x.safetensors"), ("m/model.safetensors", "m")])
def test_a_folder_under_the_name_of_the_file(tmp_path, taken, path):
    (tmp_path / taken).mkdir(parents=True)
    with pytest.raises(CheckpointError, match=f"{taken}: is a folder, and a file is saved under this name"):
        tritonq.save({"a": torch.zeros(3)}, tmp_path / path)
    assert not list(tmp_path.rglob("*.partial"))


def test_a_file_under_the_name_of_the_folder(tmp_path):
    (tmp_path / "m").write_text("precious")
    with pytest.raises(CheckpointError, match=r"m: is a file, and without .safetensors this names a folder"):
        tritonq.save({"a": torch.zeros(3)}, tmp_path / "m")
    assert (tmp_path / "m").read_text() == "precious"
