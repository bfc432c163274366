"""The metadata keys that a plan takes in a GGUF file. Stock llama.cpp ignores every one of them."""

from __future__ import annotations

SCHEMA_VERSION = 1


class Keys:
    """Names of the keys; those with ``{arch}`` need the architecture."""

    ARCHITECTURE = "general.architecture"
    ALIGNMENT = "general.alignment"
    TYPE = "general.type"
    ADAPTER_TYPE = "adapter.type"
    BLOCK_COUNT = "{arch}.block_count"
    NEXTN_LAYERS = "{arch}.nextn_predict_layers"
    NUM_LOOPS = "{arch}.num_loops"
    CONTEXT_LENGTH = "{arch}.context_length"
    EMBEDDING_LENGTH = "{arch}.embedding_length"
    FEED_FORWARD_LENGTH = "{arch}.feed_forward_length"
    HEAD_COUNT = "{arch}.attention.head_count"
    HEAD_COUNT_KV = "{arch}.attention.head_count_kv"
    KEY_LENGTH = "{arch}.attention.key_length"
    VALUE_LENGTH = "{arch}.attention.value_length"
    KEY_LENGTH_SWA = "{arch}.attention.key_length_swa"
    VALUE_LENGTH_SWA = "{arch}.attention.value_length_swa"
    KEY_LENGTH_MLA = "{arch}.attention.key_length_mla"
    VALUE_LENGTH_MLA = "{arch}.attention.value_length_mla"
    SLIDING_WINDOW = "{arch}.attention.sliding_window"
    SLIDING_WINDOW_PATTERN = "{arch}.attention.sliding_window_pattern"
    SHARED_KV_LAYERS = "{arch}.attention.shared_kv_layers"
    RECURRENT_LAYERS = "{arch}.attention.recurrent_layers"
    FULL_ATTENTION_INTERVAL = "{arch}.full_attention_interval"
    ROPE_PATTERN = "{arch}.attention.rope_pattern"
    ROPE_FINETUNED = "{arch}.rope.scaling.finetuned"
    SPLIT_NO = "split.no"
    SPLIT_COUNT = "split.count"

    TYPE_K = "{arch}.attention.kv_cache.type_k"
    TYPE_V = "{arch}.attention.kv_cache.type_v"
    CENTER_K = "{arch}.attention.kv_cache.center_k"
    SCALE_K = "{arch}.attention.kv_cache.scale_k"
    CENTER_SPAN = "{arch}.attention.kv_cache.center_span"
    EXACT_FIRST = "{arch}.attention.kv_cache.exact_first"
    EXACT_LAST = "{arch}.attention.kv_cache.exact_last"
    EXACT_TYPE = "{arch}.attention.kv_cache.exact_type"
    # of an earlier version: refused by readers, taken out with the plan
    CENTER_V = "{arch}.attention.kv_cache.center_v"

    SCHEMA = "kvtuner.schema"
    VERSION = "kvtuner.version"
    PLAN_FINGERPRINT = "kvtuner.plan_fingerprint"
    BITS_PER_VALUE = "kvtuner.bits_per_value"
    TEXT_SHA256 = "kvtuner.text_sha256"
    TEXT_TOKENS = "kvtuner.text_tokens"
    KLD_MEAN = "kvtuner.kld_mean"
    # without a meaning: room for the next plan, see `gguffile/room.py`, which has bytes of the name `RESERVED` counted
    RESERVED = "kvtuner.reserved"
    PADDING = "kvtuner.padding"
    SPARE = "kvtuner.spare"
    # one float32 per layer and key: the fields of `KeySpread`
    KEY_SPREAD = "kvtuner.key_spread.{field}"

    ROOM = (RESERVED, PADDING, SPARE)

    @staticmethod
    def is_ours(key: str) -> bool:
        """Whether ``key`` belongs to a plan, of any architecture and any schema version."""
        return key.startswith("kvtuner.") or ".attention.kv_cache." in key
