// What host and kernels of the attention on Metal say to each other.
#pragma once

// kinds of caches, as function constants: a pipeline reads one kind of keys and one of values
enum kvtuner_metal_kind {
    KVTUNER_METAL_F32,
    KVTUNER_METAL_F16,
    KVTUNER_METAL_BF16,
    KVTUNER_METAL_Q8_0,
    KVTUNER_METAL_Q5_1,
    KVTUNER_METAL_Q5_0,
    KVTUNER_METAL_Q4_1,
    KVTUNER_METAL_Q4_0,
    KVTUNER_METAL_IQ4_NL,
    KVTUNER_METAL_Q3_NL,
    KVTUNER_METAL_Q2_NL,
};

// function constants begin here
#define FC_KVTUNER_ATTENTION 9000
#define FC_KVTUNER_DENSE 9100

// of the tokens, where more than one threadgroup has them: a lane adds up one
#define KVTUNER_METAL_PARTS 32

// a mask of this or less hides a token
#define KVTUNER_METAL_UNSEEN -65504

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
    int32_t q_rotation;      // values that a Walsh-Hadamard transform of queries takes, before; 0: none
    int32_t out_rotation;    // and of the result, behind
    float scale;
    float cap;              // of scores; 0: none
    float max_bias;         // of ALiBi; 0: none
    uint64_t center_block;  // bytes from the center of a block of positions to the next
    kvtuner_metal_strides q;
    kvtuner_metal_strides k;
    kvtuner_metal_strides v;
    kvtuner_metal_strides mask;
    kvtuner_metal_strides exact_k;
    kvtuner_metal_strides exact_v;
    kvtuner_metal_strides exact_mask;
} kvtuner_metal_attention_args;

// Tokens as halves, [values, to_tokens, heads, streams]: those of the cache, or slots.
typedef struct {
    int32_t n_quad;  // of four values, of a head
    int32_t n_to;    // tokens that are written: zeros where there are none any more
    int32_t n_from;
    int32_t rows_at;    // among the integers, of each token its row
    int32_t blocks_at;  // and its block of positions
    int32_t blocks_of_stream;
    uint64_t center_block;
    kvtuner_metal_strides from;
    uint64_t to_head;
    uint64_t to_stream;
} kvtuner_metal_halves_args;

// The masks of slots and of the cache side by side, [slots and cache, queries, streams], hidden where there is nothing.
typedef struct {
    int32_t n_query;
    int32_t n_slot;
    int32_t n_token;
    int32_t n_all;
    int32_t rows_at;  // among the integers, of each slot its row
    kvtuner_metal_strides cache;
    kvtuner_metal_strides exact;
} kvtuner_metal_masks_args;
