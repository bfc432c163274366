// The rows that were quantized last, for as long as they are what they were.
#pragma once

#include "ggml.h"

namespace kvtuner {

class last_rows {
public:
    // A node is about to be computed. It may change them where it is no product of them.
    void go_on_to(const ggml_tensor * next) {
        node = next;
        if (!is_product_of(rows)) {
            rows = nullptr;
        }
    }

    // Whether the node is a product of these rows. Others that it multiplies on its way are none of the graph's: what
    // one step of it has at an address, another one has there, too.
    bool is_product_of(const ggml_tensor * others) const {
        return node && node->op == GGML_OP_MUL_MAT && node->src[1] == others;
    }

    // whether it is these; from now on they are
    bool take(const ggml_tensor * others) {
        const bool are_these = rows == others;
        rows = others;
        return are_these;
    }

private:
    const ggml_tensor *node = nullptr, *rows = nullptr;
};

}  // namespace kvtuner
