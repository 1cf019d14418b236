"""tritonq.bench.shapes: the published dimensions, and what is refused."""
import pytest

from tritonq.bench.shapes import MODELS, Shape, shapes
from tritonq.errors import InvalidProblemError

LAYERS = ["qkv", "o", "gate_up", "down", "lm_head"]


def test_published_dimensions():
    assert [tuple(s)[1:] for s in shapes("llama3-8b")] == [(6144, 4096), (4096, 4096), (28672, 4096), (4096, 14336), (128256, 4096)]
    assert [tuple(s)[1:] for s in shapes("llama3-70b")] == [(10240, 8192), (8192, 8192), (57344, 8192), (8192, 28672), (128256, 8192)]
    assert [tuple(s)[1:] for s in shapes("qwen3-32b")] == [(10240, 5120), (5120, 8192), (51200, 5120), (5120, 25600), (151936, 5120)]
    assert all(list(layers) == LAYERS for layers in MODELS.values())


def test_parts_are_joined_in_order_and_without_repeats():
    found = shapes("64x128, llama3-8b.o,llama3-8b,4096x4096")
    assert found[:2] == [Shape("64x128", 64, 128), Shape("llama3-8b.o", 4096, 4096)]
    assert [s.name for s in found[2:]] == [f"llama3-8b.{layer}" for layer in LAYERS if layer != "o"]


def test_a_file_of_shapes(tmp_path):
    file = tmp_path / "mine.json"
    file.write_text('{"experts": [1408, 2048]}')
    assert shapes(f"{file},8x8") == [Shape("experts", 1408, 2048), Shape("8x8", 8, 8)]
    bad = {"[]": "must hold", "{}": "at least one", '{"a": [1]}': r"'a' must be \[N, K\]", '{"a": [1, true]}': "integers",
           '{"a": [0, 4]}': "at least 1", "{": "Expecting"}  # fmt: skip
    for content, said in bad.items():
        file.write_text(content)
        with pytest.raises(InvalidProblemError, match=said) as error:
            shapes(str(file))
        assert str(file) in str(error.value)


@pytest.mark.parametrize("text", ["llama3", "llama3-8b.q", "", "64x", "-1x4", "missing.json", "llama3-8b,"])
def test_unknown_shapes_are_refused(text):
    with pytest.raises(InvalidProblemError):
        shapes(text)
    with pytest.raises(InvalidProblemError, match="at least 1"):
        shapes("0x128")
