"""What architectures do to their KV caches that no metadata say.

Source: ``load_arch_hparams`` of ``src/models/*.cpp`` and ``llama_model::create_memory`` of ``src/llama-model.cpp`` at
the pinned base. An architecture that stands nowhere here is not known.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Windows:
    """Where sliding windows are.

    ``period``: of so many layers one sees all tokens, the first (``dense_first``) or the last; metadata may have
    another pattern, and must have one where it is None. ``every``: all layers with a cache have windows.
    ``default``: tokens of a window where metadata are silent; None: they must not be. ``fixed``: tokens whatever they
    say. ``optional``: no windows where they say 0. ``n_layer``: only in models of so many layers.
    """

    period: int | None = None
    dense_first: bool = False
    every: bool = False
    default: int | None = None
    fixed: int | None = None
    optional: bool = False
    n_layer: int | None = None


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


def _optional(
    period: int | None = None, dense_first: bool = False, every: bool = False, fixed: int | None = None
) -> Windows:
    return Windows(period, dense_first, every, default=0, fixed=fixed, optional=True)


WINDOWS = {
    **{name: Windows() for name in ("dots3note", "gemma4", "granite_swa", "maple", "mimo2", "spark2_5", "step35")},
    **{name: Windows(4) for name in ("cohere2", "exaone-moe", "muse-glimmer")},
    **{name: _optional(4) for name in ("afmoe", "mellum", "olmo2")},
    "cohere2moe": Windows(4, dense_first=True),
    "exaone4": Windows(4, default=4096, n_layer=64),
    "gemma2": Windows(2, default=4096),
    "gemma3": _optional(6),
    "gemma3n": Windows(5),
    "gpt-oss": Windows(2),
    "laguna": _optional(4, dense_first=True),
    "lfm2": _optional(every=True),
    "llama4": Windows(4, default=8192, fixed=8192, optional=True),
    "plamo3": _optional(8),
    "smallthinker": _optional(4, dense_first=True, fixed=4096),
}

# of so many layers the last has a KV cache, the others a recurrent state; metadata may have another number or a list
FULL_ATTENTION = {"minimax-01": 8, "qwen35": 4, "qwen35moe": 4, "qwen3next": 4, "qwen4exp": 4}
# hybrid architectures in which the layers without KV heads are the recurrent ones
HEADLESS = _names(
    "bailingmoe3 falcon-h1 glm5-next granitehybrid jamba kimi-k3 kimi-linear lfm2 lfm2moe nemotron_h nemotron_h_moe "
    "plamo2"
)
# those of them in which layers with a feed-forward network have nothing else
FEED_FORWARD_ALONE = frozenset({"nemotron_h", "nemotron_h_moe"})
# architectures whose draft layers have their cache in the model's own context, too
WITH_DRAFT_LAYERS = (HEADLESS - {"glm5-next"}) | {"hy_v4", "minimax-m3"}
# K and V in one tensor where metadata have the head sizes of latent attention
LATENT = _names("bailingmoe3 deepseek2 deepseek32 dots3note glm-dsa glm5-next hy_v4 kimi-k3 kimi-linear mistral4")
# attention that reads neither exact ends nor tables of centers: `kvtuner_can_read_exact` in
# cpp/runtime/kvtuner-check.cpp
WITHOUT_ENDS = frozenset({"minimax-m3", "qwen4exp"})
# no layer has RoPE. Source: ``llama_model_rope_type``
WITHOUT_ROPE = _names(
    "bloom glm5-next gpt2 gptj jais jamba jina-bert-v2 kimi-k3 kimi-linear mpt nemotron_h nemotron_h_moe refact t5 "
    "t5encoder"
)
# those that have none either where their metadata say that RoPE was not finetuned
ROPE_IF_FINETUNED = frozenset({"granite", "granitehybrid"})
# those whose metadata may list the layers that have it
ROPE_LISTED = frozenset({"granite_swa"})
# layers from this one on read the cache of an earlier layer; gemma4 has their number in its metadata
SHARED_FROM = {"gemma3n": 20}
# layers that are run several times, with a cache each time
LOOPED = frozenset({"nanbeige"})

WITHOUT_CACHE = _names(
    "arwkv7 bert dream eurobert gemma-embedding jina-bert-v2 jina-bert-v3 llada llada-moe mamba mamba2 modern-bert "
    "neo-bert nomic-bert nomic-bert-moe rnd1 rwkv6 rwkv6qwen2 rwkv7"
)
# every layer keeps K and V of all tokens
PLAIN = _names(
    "apertus arcee arctic baichuan bailingmoe bailingmoe2 bitnet bloom chameleon chatglm codeshell cogvlm command-r "
    "dbrx deci deepseek deepseek2-ocr dots1 eagle3 ernie4_5 ernie4_5-moe exaone falcon gemma glm4 glm4moe gpt2 gptj "
    "gptneox granite granitemoe grok grovemoe hrm_text hunyuan-dense hunyuan-moe hunyuan_vl hy_v3 internlm2 jais "
    "jais2 llama llama-embed maincoder minicpm minicpm3 minimax-m2 minimax-m3 mistral3 mpt nanbeige nemotron olmo "
    "olmoe openelm orion paddleocr pangu-embedded phi2 phi3 phimoe plamo plm pockettts qwen qwen2 qwen2moe qwen2vl "
    "qwen3 qwen3moe qwen3tts qwen3vl qwen3vlmoe refact seed_oss smollm3 stablelm starcoder starcoder2 t5 t5encoder "
    "talkie xverse"
)
KNOWN = PLAIN | WITHOUT_CACHE | HEADLESS | LATENT | WINDOWS.keys() | FULL_ATTENTION.keys()

# why what queries see is not captured, so that nothing is measured of an architecture
UNCAPTURED = {
    "grok": "attends without FlashAttention",
    "minimax-m3": "chooses blocks of the cache to attend to",
}
# why the cache of an architecture cannot be counted
UNCOUNTED = {
    "deepseek4": "keeps compressed keys, to which no plan applies",
    "dflash": "drafts for another model, whose layers decide its cache",
    "gemma4-assistant": "drafts for another model and reads its cache",
}
