// The cache types q2_nl and q3_nl on CUDA beside the write in one launch: set_rows, copies, and what else runs there.
#pragma once

struct ggml_backend_cuda_context;
struct ggml_tensor;

// whether a device runs a node with such a type
bool kvtuner_cuda_supports_op(int device, const ggml_tensor * node);

// False: the type is none of ours, and nothing was done.
bool kvtuner_cuda_set_rows(ggml_backend_cuda_context & ctx, const ggml_tensor * set_rows);

// f32 to or from blocks, which are written as keys. False: it is no such copy, and nothing was done.
bool kvtuner_cuda_copy(ggml_backend_cuda_context & ctx, const ggml_tensor * from, const ggml_tensor * to);
