"""The core of the serving adapters, without an engine: shares of every rank put together again, streams, and what is refused."""
import pickle

import pytest
import torch
from safetensors.torch import save_file

import tritonq
from tests.support.bitsandbytes_files import decoded, weight
from tritonq.errors import CheckpointError, InvalidProblemError, UnsupportedError
from tritonq.integrations.serving import PARAMETERS, ServedCheckpoint, hold, product


def served(tmp_path, named) -> ServedCheckpoint:
    tritonq.save(named, tmp_path / "x.safetensors")
    return ServedCheckpoint.open(tmp_path / "x.safetensors")


def share(spec, tensor, axis: int, start: int, whole: int) -> torch.Tensor:
    """What a rank takes of a stored tensor: ``start`` and ``whole`` in rows or columns of the matrix."""
    along = (spec.output_axis, spec.input_axis)[axis]
    if along is None:
        return tensor
    length = spec.shape[along]
    return tensor.narrow(along, start * tensor.shape[along] // whole, length)


SCHEMES = ["nf4", "nf4.dq", "int4.g32", "uint4.g64", "uint3.g32", "int8", "fp8_e4m3", "mxfp4", "fp4_bnb.g32", "bf16"]


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("axis", [0, 1])
def test_the_shares_of_two_ranks_are_the_weight(tmp_path, scheme, axis):
    q = tritonq.quantize(torch.randn(64, 256), scheme)
    checkpoint = served(tmp_path, {"m.weight": q})
    layer, stored = checkpoint.layer("m"), dict(checkpoint.stream(file_of(tmp_path)))
    n, k = (32, 256) if axis == 0 else (64, 128)
    specs = layer.tensors([n], k)
    for rank in range(2):
        start = rank * (n, k)[axis]
        tensors = {name: share(spec, stored[f"m.{name}"], axis, start, (64, 256)[axis]) for name, spec in specs.items()}
        assert all(tensors[name].shape == spec.shape and tensors[name].dtype == spec.dtype for name, spec in specs.items())
        got = layer.assemble(tensors, n, k).dequantize()
        assert torch.equal(got, q.dequantize().narrow(axis, start, (n, k)[axis]))


@pytest.mark.parametrize("scheme", ["nf4", "nf4.dq", "uint4.g64", "int8"])
def test_parts_that_an_engine_fuses(tmp_path, scheme):
    """Rank 1 of 2 of Q, K and V: its share of each under each other."""
    parts = {f"a.{name}_proj.weight": tritonq.quantize(torch.randn(rows, 128), scheme) for name, rows in (("q", 64), ("k", 32), ("v", 32))}
    checkpoint = served(tmp_path, parts)
    layer = checkpoint.layer("a.qkv_proj")
    stored, specs = dict(checkpoint.stream(file_of(tmp_path))), layer.tensors([32, 16, 16], 128)
    half = {name: name.removesuffix(".weight") for name in parts}
    tensors = {own: torch.cat([stored[f"{path}.{own}"].chunk(2)[1] for path in half.values()]) for own in specs}
    got = layer.assemble(tensors, 64, 128).dequantize()
    assert torch.equal(got, torch.cat([q.dequantize().chunk(2)[1] for q in parts.values()]))
    assert "dq" not in str(layer.scheme)


def test_scales_of_blocks_say_how_many_rows_they_cover(tmp_path):
    layer = served(tmp_path, {"m.weight": tritonq.quantize(torch.randn(256, 256), "int8.b128x64")}).layer("m")
    specs = layer.tensors([128], 256)
    assert (specs["weight_scale"].shape, specs["weight_scale"].rows, specs["weight"].rows) == ((1, 4), 128, 1)
    with pytest.raises(InvalidProblemError, match="m.weight: .*cannot be cut into 4 equal parts along N.*Legal numbers of parts: 1, 2"):
        layer.tensors([64], 256)


def test_a_padded_head(tmp_path):
    """An engine pads the vocabulary: rows of zeros, which decode to zeros."""
    q = tritonq.quantize(torch.randn(100, 64), "nf4")
    layer = served(tmp_path, {"lm_head.weight": q}).layer("lm_head")
    specs = layer.tensors([128], 64)
    tensors = {name: torch.zeros(spec.shape, dtype=spec.dtype) for name, spec in specs.items()}
    tensors["weight"][:100], tensors["weight_scale"][:100] = q.packed, q.scale
    got = layer.assemble(tensors, 128, 64).dequantize()
    assert torch.equal(got[:100], q.dequantize()) and not got[100:].any()


def file_of(tmp_path):
    """The stored tensors in reverse order: an engine promises none."""
    source = tritonq.checkpoints.open(tmp_path / "x.safetensors").source
    return ((name, source.read(name)) for name in reversed(list(source.owner)))


@pytest.mark.parametrize("nested", [False, True])
def test_other_families_become_ours_on_the_way(tmp_path, nested):
    save_file(weight(nested) | {"a.bias": torch.ones(4)}, tmp_path / "x.safetensors")
    checkpoint = pickle.loads(pickle.dumps(ServedCheckpoint.open(tmp_path / "x.safetensors")))
    stored = dict(checkpoint.stream(file_of(tmp_path)))
    assert set(stored) == {"a.weight", "a.weight_scale", "a.bias"} and checkpoint.records["a.weight"].scheme == "nf4.g64"
    layer = checkpoint.layer("a")
    got = layer.assemble({name: stored[f"a.{name}"] for name in layer.tensors([4], 128)}, 4, 128)
    assert torch.equal(got.dequantize(), decoded(nested))
    assert dict(checkpoint.stream(stored.items())).keys() == stored.keys()  # an engine may send them by twice
    with pytest.raises(CheckpointError, match="weight 'a.weight' came without a.weight.absmax"):
        list(checkpoint.stream((name, tensor) for name, tensor in file_of(tmp_path) if not name.endswith("weight.absmax")))


def test_names_of_an_engine(tmp_path):
    checkpoint = served(tmp_path, {"model.a.weight": tritonq.quantize(torch.randn(8, 64), "nf4"), "b.weight": torch.ones(3)})
    checkpoint.rename(lambda name: "language." + name)
    assert checkpoint.layer("language.model.a").scheme == tritonq.Scheme.parse("nf4")
    assert checkpoint.layer("model.a") is None and checkpoint.layer("b") is None
    assert checkpoint.quantized_below("language.model") == ["language.model.a.weight"] and not checkpoint.quantized_below("lang")


def test_refused(tmp_path):
    rand = torch.randn(64, 192)
    checkpoint = served(tmp_path, {
        "q.weight": tritonq.quantize(rand, "nf4"), "k.weight": tritonq.quantize(rand, "int8"), "v.weight": rand,
        "n.weight": tritonq.quantize(rand, "nvfp4"), "o.weight": tritonq.quantize(rand, "nvfp4"),
    })  # fmt: skip
    fused = {"qk": ["q", "k"], "qv": ["q", "v"], "no": ["n", "o"]}
    with pytest.raises(UnsupportedError, match="qk is one layer of q: nf4 of torch.float32, k: int8 of torch.float32; quantize all of its"):
        checkpoint.layer("qk", fused)
    with pytest.raises(UnsupportedError, match="qv is one layer of q: nf4 of torch.float32, v: not quantized"):
        checkpoint.layer("qv", fused)
    with pytest.raises(InvalidProblemError, match=r"q.weight: nf4 .*cannot be cut into 2 equal parts along K: parts of 96 .*: 1, 3"):
        checkpoint.layer("q").tensors([64], 96)
    with pytest.raises(UnsupportedError, match="no: n.weight, o.weight: nvfp4 has one weight_second_scale for a whole weight"):
        checkpoint.layer("no", fused).tensors([64, 64], 192)
    assert checkpoint.layer("n").tensors([64], 64)[PARAMETERS["second_scale"]].input_axis is None
    save_file({"w": rand}, tmp_path / "plain.safetensors")
    with pytest.raises(CheckpointError, match="holds no quantized weight"):
        ServedCheckpoint.open(tmp_path / "plain.safetensors")


def test_a_module_holds_its_weight(tmp_path):
    """Loaded parameters become plain ones, and the product is that of the weight, in a compiled graph too."""
    q = tritonq.quantize(torch.randn(48, 128), "nf4.dq")
    checkpoint = served(tmp_path, {"m.weight": q})
    layer, stored = checkpoint.layer("m"), dict(checkpoint.stream(file_of(tmp_path)))
    module, specs = torch.nn.Module(), layer.tensors([48], 128)
    for name in specs:
        module.register_parameter(name, torch.nn.Parameter(stored[f"m.{name}"], requires_grad=False))
    hold(module, layer, specs, (48, 128))
    hold(module, layer, specs, (48, 128))
    x, bias = torch.randn(3, 128), torch.randn(48)
    want = tritonq.matmul(x, q, bias)
    assert torch.equal(product(module, x, bias), want) and {name for name, _ in module.named_parameters()} == {"weight", "weight_scale"}
    compiled = torch.compile(lambda x: product(module, x, bias), fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x), want)


def test_what_sglang_cannot_load_is_refused(tmp_path):
    """The one part of that adapter that runs without SGLang."""
    from tritonq.integrations.sglang import refuse_what_has_to_be_put_together

    w = torch.randn(8, 64)
    refuse_what_has_to_be_put_together(served(tmp_path, {"m.weight": tritonq.quantize(w, "nf4")}))
    with pytest.raises(UnsupportedError, match="m.weight has dq scales.*expand_scales"):
        refuse_what_has_to_be_put_together(served(tmp_path, {"m.weight": tritonq.quantize(w, "nf4.dq")}))
    save_file(weight(), tmp_path / "x.safetensors")
    with pytest.raises(UnsupportedError, match="it is of family bitsandbytes"):
        refuse_what_has_to_be_put_together(ServedCheckpoint.open(tmp_path / "x.safetensors"))


def test_plugins_import_no_engine():
    import subprocess
    import sys

    code = "import sys, tritonq.integrations.vllm, tritonq.integrations.sglang; assert not {'vllm', 'sglang'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
