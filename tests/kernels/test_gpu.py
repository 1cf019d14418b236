"""What only a device can show: determinism, streams, graphs, offsets beyond 32 bits. The other tests of this folder run there too."""
import pytest
import torch

import tritonq
from tests.support.schemes import same_bits, same_tensors
from tritonq import reference
from tritonq.scheme import Scheme

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("scheme", ["int4.g128", "nf4.g64", "nvfp4", "uint4.tensor", "int8", "uint3.g5"])
def test_a_hundred_runs_give_the_same_bits(scheme, device):
    x = torch.randn(512, 4096, device=device).bfloat16()
    first = tritonq.quantize(x, scheme)
    activations = torch.randn(7, 4096, device=device).bfloat16()
    product = tritonq.matmul(activations, first)
    for _ in range(100):
        again = tritonq.quantize(x, scheme)
        assert same_tensors(first.flat(), again.flat())
        assert same_bits(tritonq.matmul(activations, first), product)


@pytest.mark.parametrize("scheme", ["int4.g128", "nf4.g64", "int8"])
def test_large_layers_equal_the_reference(scheme, device):
    x = torch.randn(1024, 14336).bfloat16()
    got, want = tritonq.quantize(x.to(device), scheme), reference.quantize(x, Scheme.parse(scheme))
    assert same_tensors(got.to("cpu").flat(), want.flat())
    assert same_bits(got.dequantize().cpu(), reference.dequantize(want, x.dtype))


def test_offsets_beyond_32_bits(device):
    x = torch.zeros(70_000, 40_000, dtype=torch.bfloat16, device=device)  # 2.8e9 elements, 5.6 GB
    x[-3:] = torch.randn(3, 40_000, device=device).bfloat16()
    q = tritonq.quantize(x, "int4.g128")
    want = reference.quantize(x[-3:].cpu(), Scheme.parse("int4.g128"))
    assert same_bits(q.packed[-3:].cpu(), want.packed)
    assert same_bits(q.dequantize()[-3:].cpu(), reference.dequantize(want, torch.bfloat16))


def test_side_streams_and_graphs(device):
    x = torch.randn(256, 1024, device=device).half()
    want = tritonq.quantize(x, "int4.g128").packed
    plan = tritonq.select(tritonq.QuantizeDesc.of(x, "int4.g128"))
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        side = plan.run(x)
    stream.synchronize()
    assert same_bits(side.packed, want)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = plan.run(x)
    captured.packed.zero_()
    graph.replay()
    torch.cuda.synchronize()
    assert same_bits(captured.packed, want)
