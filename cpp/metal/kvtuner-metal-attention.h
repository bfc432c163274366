// What host and kernel of the attention on Metal say to each other.
#pragma once

// kinds of caches, as function constants: a pipeline reads one kind of keys and one of values
enum kvtuner_metal_kind {
#define KVTUNER_NUMBER(TYPE, name) KVTUNER_METAL_##TYPE,
#define KVTUNER_BLOCK(TYPE, name, size) KVTUNER_METAL_##TYPE,
#include "kvtuner-formats.def"
};

#define FC_KVTUNER_ATTENTION 9000  // function constants begin here

#define KVTUNER_METAL_PARTS 32       // of the tokens, where more than one threadgroup has them
#define KVTUNER_METAL_UNSEEN -65504  // a mask of this or less hides a token

// bytes from a token or query, a head, a stream to the next
typedef struct {
    uint64_t token;
    uint64_t head;
    uint64_t stream;
} kvtuner_metal_strides;

typedef struct {
    int32_t n_query;
    int32_t n_head;
    int32_t n_head_kv;
    int32_t n_stream;
    int32_t n_token;
    int32_t n_exact;         // slots of a stream, tokens that have rows of their own
    int32_t n_slot;          // of all streams
    int32_t first_slots_at;  // among the integers, of each stream its first slot; negative: 0
    int32_t slot_blocks_at;  // of each slot its block of positions
    int32_t cell_blocks_at;  // and of each token of each stream
    float scale;
    float cap;       // of scores; 0: none
    float max_bias;  // of ALiBi; 0: none
    uint64_t center_block;  // bytes from the center of a block of positions to the next
    kvtuner_metal_strides q;
    kvtuner_metal_strides k;
    kvtuner_metal_strides v;
    kvtuner_metal_strides mask;
    kvtuner_metal_strides exact_k;
    kvtuner_metal_strides exact_v;
    kvtuner_metal_strides exact_mask;
} kvtuner_metal_attention_args;
