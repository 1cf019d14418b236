"""The planner's bytes are those of real tensors; its assignment is held to brute force."""
import itertools
import json
import random
import re
import weakref

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import tritonq
from tritonq import assignment, checkpoints, memory_plan
from tritonq.assignment import Option, assign, assign_model
from tritonq.errors import InvalidProblemError, UnsupportedError
from tritonq.memory_plan import plan_memory
from tritonq.model_config import Use, activation_bytes, kv_cache_bytes, ties_embeddings
from tritonq.plans.core import Target

transformers = pytest.importorskip("transformers", minversion="5.19")
CPU, BF16 = Target.of("cpu"), torch.bfloat16
SIZES = {"vocab_size": 800, "hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 3, "num_attention_heads": 8,
         "num_key_value_heads": 4, "max_position_embeddings": 512, "dtype": "bfloat16"}  # fmt: skip


def language_model(**changed):
    torch.manual_seed(0)
    return transformers.AutoModelForCausalLM.from_config(transformers.LlamaConfig(**SIZES | changed)).to(BF16).eval()


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    language_model().save_pretrained(folder)
    return checkpoints.open(folder).source


def held(model) -> int:
    return sum(tensor.nbytes for tensor in {id(t): t for t in [*model.parameters(), *model.buffers()]}.values())


@pytest.mark.parametrize("layout, target", [("row", CPU), ("frag", Target(backend="triton", device="cuda", arch=90))])
@pytest.mark.parametrize("scheme", ["nf4", "int8", "int4.g32", "nf4.dq", "mxfp4", "int3.g64", "fp8_e4m3"])
def test_weights_are_those_of_a_real_model(source, scheme, layout, target):
    model = language_model()
    tritonq.quantize_(model, scheme, layout=layout)
    plan = plan_memory(source, scheme, Use(target=target))
    rotary = sum(buffer.nbytes for name, buffer in model.named_buffers() if "inv_freq" in name)
    assert plan.weights == held(model) - rotary
    assert abs(plan.weights - held(model)) < 0.02 * held(model)


@pytest.mark.parametrize("context, batch", [(64, 1), (50, 3)])
def test_kv_cache_is_that_of_transformers(source, context, batch):
    model, use = language_model(), Use(context=context, batch=batch)
    with torch.no_grad():
        cache = model(torch.ones(batch, context, dtype=torch.int64), use_cache=True).past_key_values
    tensors = [t for layer in cache.layers for t in (layer.keys, layer.values)]
    predicted = plan_memory(source, None, use).kv_cache
    assert predicted == sum(t.nbytes for t in tensors) == 2 * 3 * 4 * 16 * context * batch * 2
    static = transformers.StaticCache(config=model.config, max_cache_len=context)
    with torch.no_grad():
        model(torch.ones(batch, 8, dtype=torch.int64), use_cache=True, past_key_values=static)
    assert predicted == sum(t.nbytes for layer in static.layers for t in (layer.keys, layer.values))


@pytest.mark.parametrize("changed, told", [({"multi_query": True}, True), ({"multi_query": False}, True),
                                           ({"new_decoder_architecture": True, "num_kv_heads": 2}, False)])  # fmt: skip
def test_kv_cache_of_falcon(changed, told):
    config = transformers.FalconConfig(vocab_size=80, hidden_size=64, num_hidden_layers=2, num_attention_heads=8, **changed)
    model = transformers.AutoModelForCausalLM.from_config(config).to(BF16).eval()
    with torch.no_grad():
        cache = model(torch.ones(3, 10, dtype=torch.int64), use_cache=True).past_key_values
    kept = sum(t.nbytes for layer in cache.layers for t in (layer.keys, layer.values))
    raw = {"architectures": ["FalconForCausalLM"], **config.to_dict()} | ({} if "num_kv_heads" in changed else {"num_kv_heads": None})
    if told:
        assert kv_cache_bytes(raw, Use(context=10, batch=3), BF16) == kept
    else:
        assert kept == 2 * 2 * 8 * 8 * 10 * 3 * 2, "Transformers has a key for each query head, other engines have num_kv_heads"
        with pytest.raises(UnsupportedError, match="no num_key_value_heads"):
            kv_cache_bytes(raw, Use(context=10, batch=3), BF16)


class Peak(TorchDispatchMode):
    """The most bytes of tensors that operators made and that were alive at once."""

    def __init__(self, known):
        super().__init__()
        self.live = self.most = 0
        self.seen = {tensor.untyped_storage()._cdata for tensor in known}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in torch.utils._pytree.tree_leaves(out):
            if isinstance(tensor, torch.Tensor) and (storage := tensor.untyped_storage())._cdata not in self.seen:
                self.seen.add(storage._cdata)
                self.live += storage.nbytes()
                weakref.finalize(storage, self.gone, storage._cdata, storage.nbytes())
        self.most = max(self.most, self.live)
        return out

    def gone(self, key: int, size: int) -> None:
        self.seen.discard(key)
        self.live -= size


@pytest.mark.parametrize("changed", [{}, {"intermediate_size": 1024}, {"head_dim": 64}, {"intermediate_size": 64, "vocab_size": 100}],
                         ids=["llama", "wide", "heads", "narrow"])  # fmt: skip
def test_activations_are_near_what_a_forward_holds(changed):
    model, ids = language_model(**changed), torch.ones(2, 128, dtype=torch.int64)
    with torch.no_grad(), Peak([*model.parameters(), *model.buffers(), ids]) as peak:
        model(ids, use_cache=False, logits_to_keep=1)
    predicted = activation_bytes(model.config.to_dict(), Use(context=128, batch=2), BF16)
    assert 0.9 < predicted / peak.most < 1.15, (predicted, peak.most)


def test_the_whole_is_the_sum_and_decides(source):
    plan = plan_memory(source, "nf4", Use(context=256, batch=2, target=CPU))
    assert plan.needed == plan.running == plan.weights + plan.kv_cache + plan.activations + plan.workspace and plan.scheme == "nf4"
    assert plan.fits(plan.needed) and plan.fits(plan.needed - 1) is False
    alone = plan_memory(source, "nf4", Use(target=CPU))
    largest = max(entry.nbytes for file in source.files for name, entry in file.entries.items() if "embed" not in name)
    assert alone.kv_cache == alone.activations == 0 and alone.needed == alone.load_peak == alone.weights + largest


def test_workspace_is_that_of_the_plans(source):
    pytest.importorskip("triton", reason="without Triton no kernel has a workspace")
    target = Target(backend="triton", device="cuda", arch=90)
    plan = plan_memory(source, "int8", Use(context=2048, batch=1, target=target))
    assert not plan.unknown
    int8 = tritonq.Scheme.parse("int8")
    wanted = [tritonq.MatmulDesc(m=m, n=n, k=k, dtype=BF16, scheme=int8, target=target, source_dtype=BF16, layout="frag")
              for m in (1, 2048) for n, k in ((128, 128), (64, 128), (384, 128), (128, 384), (800, 128))]  # fmt: skip
    assert plan.workspace == max(tritonq.select(desc).workspace_size() for desc in wanted) > 0


def test_devices_share_what_is_split(source):
    one, two = (plan_memory(source, "int4.g32", Use(context=64, devices=d, target=CPU)) for d in (1, 2))
    split = [e.shape for f in source.files for e in f.entries.values() if "proj" in e.name or "lm_head" in e.name]
    halves = sum(tritonq.quantize(torch.zeros(shape, dtype=BF16), "int4.g32").nbytes // 2 for shape in split)
    assert two.refused is None and one.weights - two.weights == halves
    assert two.kv_cache * 2 == one.kv_cache and two.activations < one.activations
    refused = plan_memory(source, "int4.g128", Use(devices=2)).refused
    assert "down_proj.weight: int4.g128 [128, 384] cannot be cut into 2" in refused and "Legal numbers of parts: 1, 3" in refused
    eight = plan_memory(source, "int8", Use(devices=8))
    assert eight.refused == "num_key_value_heads = 4 cannot be split over 8 devices" and eight.fits(1 << 40) is False


@pytest.mark.parametrize("changed, text", [
    ({"sliding_window": 32}, "sliding_window = 32 of 64 tokens"),
    ({"layer_types": ["full_attention", "sliding_attention"], "sliding_window": 32}, "sliding_window = 32"),
    ({"layer_types": ["full_attention", "linear_attention"]}, "layers of type linear_attention"),
    ({"kv_lora_rank": 512}, "kv_lora_rank = 512"),
    ({"architectures": ["BertModel"]}, "BertModel is not known to generate text"),
    ({"is_encoder_decoder": True}, "encoder and decoder"),
    ({"num_hidden_layers": None}, "num_hidden_layers = None"),
    ({"num_key_value_heads": None, "multi_query": True, "new_decoder_architecture": True, "num_kv_heads": 2}, "no num_key_value_heads"),
    ({"num_key_value_heads": None, "num_kv_heads": 2}, "no num_key_value_heads, and num_kv_heads = 2"),
    ({"num_key_value_heads": None, "block_configs": [{"attention": {"n_heads_in_group": 8}}] * 80}, "block_configs = .{80} says"),
    ({"hybrid_override_pattern": "M-M*-"}, "hybrid_override_pattern = 'M-M[*]-'"),
    ({"ssm_state_size": 128}, "ssm_state_size = 128"),
    ({"attn_type_list": [0, 0, 1]}, "attn_type_list"),
    ({"attention_chunk_size": 32}, "attention_chunk_size = 32 of 64 tokens"),
    ({"layer_types": ["full_attention", "chunked_attention"], "attention_chunk_size": 32}, "attention_chunk_size = 32"),
    ({"use_cla": True, "cla_share_factor": 2}, "use_cla = True"),
    ({"v_head_dim": 8, "swa_num_key_value_heads": 8}, "v_head_dim = 8"),
    ({"text_config": "x"}, "no num_hidden_layers"),
    ({"text_config": ["a"]}, "no num_hidden_layers"),
    ({"layer_types": [{}]}, r"layer_types = \[{}\]"),
    ({"layer_types": 5}, "layer_types = 5"),
    ({"architectures": 5}, "architectures = 5"),
])  # fmt: skip
def test_what_cannot_be_told_is_not_guessed(source, changed, text):
    config = source.config | changed
    with pytest.raises(UnsupportedError, match=f"KV cache: cannot tell.*{text}"):
        kv_cache_bytes(config, Use(context=64), BF16)
    plan = plan_memory(memory_plan.Source(**{**vars(source), "config": config}), "nf4", Use(context=64, target=CPU))
    assert plan.kv_cache is None and re.search(text, plan.unknown[0]) and plan.fits(1 << 40) is None and plan.fits(1) is False


@pytest.mark.parametrize("changed", [{"sliding_window": 64}, {"sliding_window": 8, "use_sliding_window": False}, {"sliding_window": None},
                                     {"sliding_window": 8, "layer_types": ["full_attention"] * 3}, {"head_dim": None},
                                     {"attention_chunk_size": 64}, {"use_cla": False, "cla_share_factor": 2}, {"dtype": ["a"]},
                                     {"head_dim": None, "hidden_size": 64, "kv_channels": 16}])  # fmt: skip
def test_harmless_settings_are_told(source, changed):
    assert kv_cache_bytes(source.config | changed, Use(context=64), BF16) == 2 * 3 * 4 * 16 * 64 * 2
    assert kv_cache_bytes({"architectures": ["XForConditionalGeneration"], "text_config": source.config}, Use(context=64), BF16) == 49152


@pytest.mark.parametrize("changed, text", [
    ({"num_experts_per_tok": "two"}, "num_experts_per_tok = 'two'"),
    ({"num_experts_per_tok": 2, "moe_intermediate_size": "x"}, "moe_intermediate_size = 'x'"),
])  # fmt: skip
def test_activations_of_odd_sizes_are_refused(source, changed, text):
    with pytest.raises(UnsupportedError, match=f"activations: cannot tell, config.json has {text}"):
        activation_bytes(source.config | changed, Use(context=64), BF16)


@pytest.mark.parametrize("odd", [{"text_config": "x"}, {"text_config": ["a"]}, {"dtype": ["a"]}, {"dtype": {"a": "bfloat16"}}])
def test_odd_settings_leave_the_dtype_to_the_weights(source, odd):
    plan = plan_memory(memory_plan.Source(**{**vars(source), "config": source.config | odd}), "nf4", Use(context=64, devices=2, target=CPU))
    assert plan.weights == plan_memory(source, "nf4", Use(devices=2, target=CPU)).weights
    assert memory_plan.model_dtype(memory_plan.Source(**{**vars(source), "config": odd})) == BF16


@pytest.mark.parametrize("config, tied", [({"tie_word_embeddings": True}, True), ({"text_config": {"tie_word_embeddings": True}}, True),
                                          ({"text_config": {}}, False), ({"text_config": "x"}, False), ({}, False)])  # fmt: skip
def test_a_tied_head_is_kept(source, config, tied):
    assert ties_embeddings(config) is tied
    chosen = memory_plan.chosen_schemes(memory_plan.Source(**{**vars(source), "config": config}), memory_plan.Rules.parse("nf4"))
    assert (chosen["lm_head.weight"] is None) == tied


def test_without_a_config_nothing_is_told(source):
    bare = memory_plan.Source(**{**vars(source), "config": {}})
    plan = plan_memory(bare, "nf4", Use(context=64))
    assert all("no config.json" in text for text in plan.unknown[-2:]) and plan_memory(bare, "nf4", Use(target=CPU)).fits(1 << 30)
    with pytest.raises(InvalidProblemError, match="batch must be a whole number >= 1, got 0"):
        Use(batch=0)


# ---- assignment


def instance(generator: random.Random, weights: int, options: int) -> dict[str, list[Option]]:
    return {f"w{i}": [Option(scheme=f"s{j}", size=generator.randint(1, 30), noise=generator.choice([0.0, generator.random() * 9]))
                      for j in range(options)] for i in range(weights)}  # fmt: skip


def test_assignments_against_brute_force():
    generator, exact, total = random.Random(0), 0, 0
    for _ in range(300):
        options = instance(generator, generator.randint(1, 5), generator.randint(1, 4))
        budget = generator.randint(1, 90)
        combinations = [c for c in itertools.product(*options.values()) if sum(o.size for o in c) <= budget]
        found = assign(options, budget)
        assert (found is None) == (not combinations)
        if found is None:
            continue
        best = min(sum(o.noise for o in c) for c in combinations)
        chosen = [next(o for o in options[name] if o.scheme == scheme) for name, scheme in found.schemes.items()]
        assert sum(o.size for o in chosen) <= budget and found.noise == pytest.approx(sum(o.noise for o in chosen))
        assert found.least_noise <= best + 1e-9 and best <= found.noise + 1e-9, "the bound holds"
        exact, total = exact + (found.noise <= best + 1e-9), total + 1
    assert exact > 0.75 * total, f"{exact} of {total} are the best"


def test_many_weights_come_near_the_bound():
    generator = random.Random(1)
    options = {f"w{i}": [Option(scheme=str(b), size=b * 1000, noise=generator.uniform(0.5, 2) * 4.0**-b) for b in (2, 3, 4, 8)]
               for i in range(200)}  # fmt: skip
    found = assign(options, 200 * 1000 * 5, signal=1.0)
    assert found.gap_db < 0.05 and found.sqnr_db > 0


CANDIDATES = ("int8", "nf4", "int3.g64")


def test_an_assignment_is_what_quantize_gives(source, tmp_path):
    use = Use(context=64, target=CPU)
    nf4, int8 = (plan_memory(source, scheme, use) for scheme in ("nf4", "int8"))
    memory = (nf4.needed + int8.needed) // 2
    steps = []
    found, least = assign_model(source, memory, CANDIDATES, use, progress=lambda *step: steps.append(step))
    plan = plan_memory(source, found.patterns(), use)
    assert plan.fits(memory) and plan.needed > 0.98 * memory and least < memory and len(set(found.schemes.values())) > 1
    assert steps[0][0] == 0 and steps[-1][0] < steps[-1][1]
    report = checkpoints.quantize_checkpoint(source.path, tmp_path / "out", found.patterns())
    assert report["totals"]["quality"]["sqnr_db"] == pytest.approx(found.sqnr_db, abs=1e-3)
    assert plan.saved == report["totals"]["bytes_after"]
    uniform = checkpoints.quantize_checkpoint(source.path, tmp_path / "nf4", "nf4")["totals"]["quality"]["sqnr_db"]
    assert found.sqnr_db > uniform + 1 and found.gap_db < 1
    model = language_model()
    tritonq.quantize_(model, found.patterns())
    assert {name: str(model.get_submodule(name.removesuffix(".weight")).scheme) for name in found.schemes} == found.schemes
    nothing, least = assign_model(source, 1 << 10, ["nf4"], use)
    assert nothing is None and least == plan_memory(source, "nf4", use).needed
    json.dumps(found.patterns())


def test_candidates_that_cannot_be_split_are_no_options(source):
    options, _ = assignment.measure(source, ("int4.g128", "int4.g64"), Use(devices=2))
    schemes = {name.split(".")[-2]: {o.scheme for o in found} for name, found in options.items()}
    assert schemes["o_proj"] == {"int4.g64"} and schemes["q_proj"] == {"int4.g128", "int4.g64"}
    with pytest.raises(InvalidProblemError, match="no candidate can hold .*down_proj.weight on 2 devices: .*Legal numbers of parts"):
        assignment.measure(source, ["int4.g128"], Use(devices=2))
    with pytest.raises(InvalidProblemError, match="at least one scheme"):
        assignment.measure(source, [])


def test_names_become_globs_that_match_nothing_else():
    found = assign({"a[0]*": [Option(scheme="nf4", size=1, noise=1.0)], "b": [Option(scheme="int8", size=1, noise=1.0)],
                    "c": [Option(scheme="int8", size=1, noise=1.0)]}, 10)  # fmt: skip
    assert found.patterns() == {"a[[]0][*]": "nf4", "*": "int8"}
