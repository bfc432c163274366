// The inputs of a split that the host has, on their way to the split's back end: none is waited for by itself.
//
// That is for back ends that say so, since they must do all that they are asked for in this order. Small inputs go
// together and may change as soon as the back end has them. Large ones in memory that the device copies from go one
// behind the other, and are waited for once, when the split is on its way. What nothing reads stays where it is.
#pragma once

#include "ggml-backend-impl.h"
#include "ggml-cpp.h"

#include <cstddef>
#include <vector>

#define KVTUNER_SET_INPUTS "kvtuner_set_inputs"

constexpr size_t KVTUNER_INPUT_ALIGNMENT = 16;
constexpr size_t KVTUNER_MOST_INPUT_BYTES = 256 * 1024;  // that go together, each padded

struct kvtuner_input {
    struct ggml_tensor * to;
    const void * from;  // all bytes of the tensor
};

// Behind what the back end was asked for before, and before what it is asked for next. False: nothing was done, and
// they are to be copied one behind the other.
typedef bool (*kvtuner_set_inputs_t)(ggml_backend_t backend, const kvtuner_input * inputs, size_t n);

// An input's copy, and a step of the split that reads it. Steps that the graph does not choose are passed over.
inline void kvtuner_mark_read(ggml_tensor * copy, const ggml_tensor * node) {
    copy->flags |= node->flags & GGML_TENSOR_FLAG_COMPUTE;
}

class kvtuner_inputs {
public:
    // is_on: whether the back end has one copy of its inputs
    kvtuner_inputs(ggml_backend_t backend, bool is_on) : backend(backend) {
        if (is_on && backend->device && backend->iface.set_tensor_async) {
            ggml_backend_reg_t reg = ggml_backend_dev_backend_reg(backend->device);
            set = reg ? (kvtuner_set_inputs_t)ggml_backend_reg_get_proc_address(reg, KVTUNER_SET_INPUTS) : nullptr;
        }
    }

    // whether an input, of the user or of the back end that made it, goes over to its copy this way, or need not
    bool take(ggml_backend_t made_by, const ggml_tensor * input, ggml_tensor * copy) {
        if (!set) {
            return false;
        }
        if ((copy->flags & GGML_TENSOR_FLAG_COMPUTE) == 0) {
            return true;
        }
        if (!is_of_host(made_by, input)) {
            return false;
        }
        const size_t n = GGML_PAD(ggml_nbytes(input), KVTUNER_INPUT_ALIGNMENT);
        if (n_bytes + n <= KVTUNER_MOST_INPUT_BYTES) {
            n_bytes += n;
            small.push_back({ copy, input->data });
            return true;
        }
        if (ggml_backend_buffer_get_type(buffer_of(input)) != ggml_backend_dev_host_buffer_type(backend->device)) {
            return false;
        }
        copy_behind({ copy, input->data });
        return true;
    }

    // once all are taken, and before the split is computed
    void send() {
        if (!small.empty() && !set(backend, small.data(), small.size())) {
            for (const kvtuner_input & input : small) {
                copy_behind(input);
            }
        }
        if (is_waited_for && backend->iface.event_record) {
            copied.reset(ggml_backend_event_new(backend->device));
        }
        if (copied) {
            ggml_backend_event_record(copied.get(), backend);
        } else if (is_waited_for) {
            ggml_backend_synchronize(backend);
        }
    }

    ~kvtuner_inputs() {
        if (copied) {
            ggml_backend_event_synchronize(copied.get());
        }
    }

    kvtuner_inputs(const kvtuner_inputs &) = delete;
    kvtuner_inputs & operator=(const kvtuner_inputs &) = delete;

private:
    // The CPU has made it when it is asked for more. Weights may be copied in part.
    bool is_of_host(ggml_backend_t made_by, const ggml_tensor * input) const {
        const bool is_made =
                (input->flags & GGML_TENSOR_FLAG_INPUT) ||
                (made_by->device && ggml_backend_dev_type(made_by->device) == GGML_BACKEND_DEVICE_TYPE_CPU);
        const ggml_backend_buffer_t buffer = buffer_of(input);
        return is_made && ggml_backend_buffer_is_host(buffer) &&
               ggml_backend_buffer_get_usage(buffer) != GGML_BACKEND_BUFFER_USAGE_WEIGHTS;
    }

    static ggml_backend_buffer_t buffer_of(const ggml_tensor * input) {
        return input->view_src ? input->view_src->buffer : input->buffer;
    }

    void copy_behind(const kvtuner_input & input) {
        ggml_backend_tensor_set_async(backend, input.to, input.from, 0, ggml_nbytes(input.to));
        is_waited_for = true;
    }

    ggml_backend_t backend;
    kvtuner_set_inputs_t set = nullptr;
    std::vector<kvtuner_input> small;
    size_t n_bytes = 0;
    bool is_waited_for = false;
    ggml_backend_event_ptr copied;  // what is waited for
};
