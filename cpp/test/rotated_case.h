// A case of attention whose queries are rotated before the node, and its output behind it, as caches of a plan are
// read.
#pragma once

#include "attention_case.h"

class rotated_case {
public:
    // The node then reads rotated queries, which are those of the case.
    explicit rotated_case(attention_case & c) : ctx(c.ctx.get()), size_v(c.s.size.v) {
        ggml_tensor * q = c.q;
        ggml_tensor * plain = ggml_dup_tensor(ctx, q);
        memcpy(plain->data, q->data, ggml_nbytes(q));
        turn((float *)plain->data, ggml_nelements(plain), rotation_for(c.s.size.k));
        ggml_tensor * turned = rotated(plain, c.s.size.k);
        c.out->src[0] = ggml_reshape_4d(ctx, turned, q->ne[0], q->ne[1], q->ne[2], q->ne[3]);
        out = rotated(c.out, size_v);
    }

    // what the node itself gave, from the values of `out`
    std::vector<float> before_rotation(std::vector<float> values) const {
        turn(values.data(), (int64_t)values.size(), rotation_for(size_v));
        return values;
    }

    ggml_tensor * out;

private:
    // values that are rotated together: the largest power of two that divides a head
    static int64_t rotation_for(int64_t size) {
        return size & -size;
    }

    // orthonormal, and its own inverse
    static float hadamard(int64_t i, int64_t j, int64_t n) {
        bool is_odd = false;
        for (int64_t both = i & j; both; both &= both - 1) {
            is_odd = !is_odd;
        }
        return (is_odd ? -1 : 1) / std::sqrt((float)n);
    }

    static void turn(float * values, int64_t n_value, int64_t n) {
        std::vector<double> sums(n);
        for (float * x = values; x < values + n_value; x += n) {
            for (int64_t i = 0; i < n; ++i) {
                sums[i] = 0;
                for (int64_t j = 0; j < n; ++j) {
                    sums[i] += (double)hadamard(i, j, n) * x[j];
                }
            }
            std::copy(sums.begin(), sums.end(), x);
        }
    }

    ggml_tensor * rotated(ggml_tensor * values, int64_t size) const {
        const int64_t n = rotation_for(size);
        ggml_tensor * rotation = ggml_new_tensor_2d(ctx, GGML_TYPE_F32, n, n);
        for (int64_t i = 0; i < n * n; ++i) {
            ((float *)rotation->data)[i] = hadamard(i / n, i % n, n);
        }
        ggml_tensor * rows = ggml_reshape_2d(ctx, values, n, ggml_nelements(values) / n);
        ggml_tensor * made = ggml_mul_mat(ctx, rotation, rows);
        ggml_mul_mat_set_hint(made, GGML_HINT_SRC0_IS_HADAMARD);
        return made;
    }

    ggml_context * ctx;
    int64_t size_v;
};
