"""Floor 7. vLLM: serves tritonq's checkpoints and those of other families, with tensor parallelism. vLLM finds it by its entry point.

``vllm serve PATH`` needs no flag: the method stands in the checkpoint's config.json. vLLM calls :func:`register` in every process, maybe
several times; importing this package alone imports no vLLM.
"""


def register() -> None:
    """Make vLLM know ``quantization="tritonq"``; the entry point ``vllm.general_plugins``."""
    from . import method  # noqa: F401 (importing it registers, once)
