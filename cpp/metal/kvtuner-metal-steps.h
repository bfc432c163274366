// Which steps of a graph kernels of ours do together on Metal: the writes of keys and values, and attention with the
// rotations of queries before it and of its output behind it.
#pragma once

#include "kvtuner-rotations.h"
#include "kvtuner-writes.h"

#include "ggml-metal-common.h"
#include "ggml-metal-device.h"

#include <memory>

struct ggml_cgraph;
struct ggml_tensor;

class kvtuner_metal_steps {
public:
    // Of the nodes [first, end) of a graph, which one encoder takes: what begins or ends elsewhere stays as it is. None
    // if that is off.
    kvtuner_metal_steps(const ggml_cgraph & graph, int first, int end, bool is_off);

    // Does what starts with a node, if something does, after what it must wait for: `ranges` is what runs meanwhile, or
    // null where nothing does. True: nothing is left to be done for the node.
    bool run(ggml_metal_library_t library, ggml_metal_encoder_t encoder, ggml_mem_ranges_t ranges,
             const ggml_tensor * node) const;

private:
    struct found_steps;

    void write(ggml_metal_library_t library, ggml_metal_encoder_t encoder, ggml_mem_ranges_t ranges,
               const kvtuner_write & write, const ggml_tensor * first) const;
    void attend(ggml_metal_library_t library, ggml_metal_encoder_t encoder, ggml_mem_ranges_t ranges,
                const ggml_tensor * node, const kvtuner::rotations & around) const;

    std::shared_ptr<const found_steps> found;
};
