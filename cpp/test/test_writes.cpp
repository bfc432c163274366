// Which writes into a cache one kernel may do, and whether it stores what the steps store: on the CPU, or on the device
// that is named.

#include "write_graphs.h"

#include "ggml-impl.h"

#include <cstdio>

namespace {

enum centering { NONE, SINGLE, OF_BLOCKS };

constexpr centering CENTERINGS[] = { NONE, SINGLE, OF_BLOCKS };

bool none(const kvtuner_write &) {
    return false;
}

void expect_found(const char * what, const ggml_cgraph * graph, const std::string & wanted,
                  bool (*can_do)(const kvtuner_write &) = any) {
    const std::string text = found(graph, can_do);
    expect(text == wanted, std::string(what) + ": found '" + text + "', wanted '" + wanted + "'");
}

shape shape_of(centering center, int64_t rotation) {
    shape s;
    s.center = center != NONE;
    s.has_table = center == OF_BLOCKS;
    s.rotation = rotation;
    return s;
}

// what is found of its steps, but for a scale
std::string steps_of(const shape & s) {
    return s.center ? s.rotation ? "rotation center" : "center" : s.rotation ? "rotation" : "";
}

void test_steps() {
    for (const centering center : CENTERINGS) {
        for (const int64_t rotation : { 0, 64 }) {
            ggml_context_ptr ctx = new_context();
            const shape s = shape_of(center, rotation);
            ggml_cgraph * graph = graph_of(ctx.get(), { make_writing(ctx.get(), s).stored });
            expect_found("steps", graph, steps_of(s));
            expect_found("a back end that cannot", graph, "", none);
        }
    }
}

// a scale is a part of what rotates after it
void test_scales() {
    for (const centering center : CENTERINGS) {
        for (const int64_t rotation : { 0, 64 }) {
            ggml_context_ptr ctx = new_context();
            shape s = shape_of(center, rotation);
            s.has_scale = true;
            const std::string plain = steps_of(s);
            const std::string wanted = rotation ? "scale " + plain : plain;
            const writing w = make_writing(ctx.get(), s);
            expect_found("scaled", graph_of(ctx.get(), { w.stored }), wanted);
            expect(found(graph_of(ctx.get(), { w.stored }), any, false) == plain, "the scale is left a step");
            expect_found("scaled values are read", graph_of(ctx.get(), { w.stored, ggml_sqr(ctx.get(), w.scaled) }),
                         plain);
            s.has_exact = true;
            const writing twice = make_writing(ctx.get(), s);
            if (rotation) {
                expect_found("scaled, stored twice", graph_of(ctx.get(), { twice.stored, twice.stored_exact }),
                             wanted + " x2");
            }
        }
    }
    ggml_context_ptr ctx = new_context();
    shape s;
    s.has_scale = true;
    const writing w = make_writing(ctx.get(), s);
    w.scaled->src[1] = ggml_new_tensor_2d(ctx.get(), GGML_TYPE_F32, s.head_size, 1);
    expect_found("one scale of all heads", graph_of(ctx.get(), { w.stored }), "rotation center");
    const writing normed = make_writing(ctx.get(), s);
    normed.scaled->src[0] = ggml_rms_norm(ctx.get(), normed.scaled->src[0], 1e-6f);
    expect_found("the weights of a norm", graph_of(ctx.get(), { normed.stored }), "rotation center");
}

// keys and values as a graph has them: the values are rotated before the keys and stored after them
void test_order() {
    ggml_context_ptr ctx = new_context();
    shape s;
    const writing k = make_writing(ctx.get(), s);
    s.center = false;
    const writing v = make_writing(ctx.get(), s);
    expect_found("keys and values", graph_of(ctx.get(), { v.rotated, k.rotated, k.stored, v.stored }),
                 "rotation, rotation center");
    ggml_cgraph * graph = graph_of(ctx.get(), { k.stored });
    ggml_cgraph last = ggml_graph_view(graph, graph->n_nodes - 1, graph->n_nodes);
    expect_found("rotated in another graph", &last, "");
}

void test_other_readers() {
    const auto with = [](void (*change)(ggml_context *, writing &, std::vector<ggml_tensor *> &)) {
        static std::vector<ggml_context_ptr> kept;
        kept.push_back(new_context());
        ggml_context * ctx = kept.back().get();
        writing w = make_writing(ctx, shape());
        std::vector<ggml_tensor *> last = { w.stored };
        change(ctx, w, last);
        return graph_of(ctx, last);
    };
    expect_found("centered values are read",
                 with([](ggml_context * ctx, writing & w, std::vector<ggml_tensor *> & last) {
                     last.push_back(ggml_sqr(ctx, w.centered));
                 }),
                 "");
    expect_found("rotated values are read",
                 with([](ggml_context * ctx, writing & w, std::vector<ggml_tensor *> & last) {
                     last.push_back(ggml_sqr(ctx, w.rotated));
                 }),
                 "center");
    expect_found("centered values are an output",
                 with([](ggml_context *, writing & w, std::vector<ggml_tensor *> &) { ggml_set_output(w.centered); }),
                 "");
    expect_found("the cache is read between",
                 with([](ggml_context * ctx, writing & w, std::vector<ggml_tensor *> & last) {
                     last = { w.rotated, ggml_cast(ctx, w.cache, GGML_TYPE_F32), w.stored };
                 }),
                 "");
    expect_found("the cache is read after",
                 with([](ggml_context * ctx, writing & w, std::vector<ggml_tensor *> & last) {
                     last.push_back(ggml_cast(ctx, w.cache, GGML_TYPE_F32));
                 }),
                 "rotation center");
}

// after which of the steps of a graph no thread waits: a letter for each that does something, small where they wait
std::string waits(const ggml_cgraph * graph) {
    const kvtuner_writes writes(*graph, any, true);
    std::string text;
    for (int i = 0; i < graph->n_nodes; ++i) {
        const ggml_tensor * node = graph->nodes[i];
        if (!ggml_op_is_empty(node->op) && (!writes.covers(i) || writes.starting_with(i))) {
            const char letter = writes.starting_with(i) ? 'w' : node->op == GGML_OP_SQR ? 's' : 'o';
            text += writes.goes_on_after(i) ? (char)toupper(letter) : letter;
        }
    }
    return text;
}

void expect_waits(const char * what, const ggml_cgraph * graph, const std::string & wanted) {
    const std::string text = waits(graph);
    expect(text == wanted, std::string(what) + ": waits are '" + text + "', wanted '" + wanted + "'");
}

// a row that is also stored beside the cache
void test_exact() {
    for (const centering center : CENTERINGS) {
        ggml_context_ptr ctx = new_context();
        shape s;
        s.has_exact = true;
        s.center = center != NONE;
        s.has_table = center == OF_BLOCKS;
        const std::string one = s.center ? "rotation center" : "rotation";
        const writing w = make_writing(ctx.get(), s);
        expect_found("stored twice", graph_of(ctx.get(), { w.stored, w.stored_exact }), one + " x2");
        expect_found("stored once", graph_of(ctx.get(), { w.stored_exact }), one);
        expect_found("the rotated values are read, too",
                     graph_of(ctx.get(), { w.stored, w.stored_exact, ggml_sqr(ctx.get(), w.rotated) }),
                     s.center ? "center, center" : "");
        ggml_tensor * read = ggml_cast(ctx.get(), w.exact, GGML_TYPE_F32);
        expect_found("what is beside the cache is read between",
                     graph_of(ctx.get(), { w.stored, read, w.stored_exact }), s.center ? "center, center" : "");
        expect_waits("what is beside the cache is read after", graph_of(ctx.get(), { w.stored, w.stored_exact, read }),
                     "wo");
        const shape plain;
        const writing other = make_writing(ctx.get(), plain);
        expect_waits("a write after one to two places",
                     graph_of(ctx.get(), { w.rotated, other.rotated, w.stored, w.stored_exact, other.stored }), "Ww");
        expect_waits("a write after what reads beside its cache",
                     graph_of(ctx.get(), { read, w.stored, w.stored_exact }), "ow");
    }
    ggml_context_ptr ctx = new_context();
    const writing w = make_writing(ctx.get(), shape());
    ggml_tensor * row = ggml_view_2d(ctx.get(), w.rotated, w.cache->ne[0], w.rotated->ne[2], w.rotated->nb[2], 0);
    ggml_tensor * other = ggml_set_rows(ctx.get(), ggml_dup_tensor(ctx.get(), w.cache), row, w.indices);
    expect_found("stored twice, once without the center", graph_of(ctx.get(), { w.stored, other }), "center");
}

void test_other_shapes() {
    ggml_context_ptr ctx = new_context();
    expect_found("indices of 32 bits", graph_of(ctx.get(), { make_writing(ctx.get(), shape(), GGML_TYPE_I32).stored }),
                 "");

    const shape s;
    ggml_tensor * x = ggml_new_tensor_3d(ctx.get(), GGML_TYPE_F32, s.head_size, s.n_head, s.n_tokens);
    ggml_tensor * matrix = ggml_new_tensor_2d(ctx.get(), GGML_TYPE_F32, s.rotation, s.rotation);
    ggml_tensor * cache = ggml_new_tensor_2d(ctx.get(), s.type, s.head_size * s.n_head, N_CELLS);
    ggml_tensor * indices = ggml_new_tensor_1d(ctx.get(), GGML_TYPE_I64, s.n_tokens);
    const auto store = [&](ggml_tensor * values, int64_t n, size_t offset) {
        return graph_of(
                ctx.get(),
                { ggml_set_rows(ctx.get(), cache,
                                ggml_view_2d(ctx.get(), values, s.head_size * s.n_head, n, values->nb[2], offset),
                                ggml_view_1d(ctx.get(), indices, n, 0)) });
    };
    ggml_tensor * of_each_token = ggml_sub(ctx.get(), x, ggml_dup_tensor(ctx.get(), x));
    expect_found("a part of the tokens", store(rotate(ctx.get(), x, matrix), s.n_tokens - 1, x->nb[2]), "");
    expect_found("a vector of each token", store(of_each_token, s.n_tokens, 0), "");
}

void test_waits() {
    ggml_context_ptr ctx = new_context();
    const writing k = make_writing(ctx.get(), shape());
    const writing v = make_writing(ctx.get(), shape());
    ggml_tensor * query = ggml_sqr(ctx.get(), k.center);
    expect_waits("two writes", graph_of(ctx.get(), { k.rotated, v.rotated, k.stored, v.stored }), "Ww");
    expect_waits("a query, two writes, a reader",
                 graph_of(ctx.get(), { query, k.rotated, v.rotated, k.stored, v.stored,
                                       ggml_cast(ctx.get(), k.cache, GGML_TYPE_F32) }),
                 "SWwo");
    expect_waits("the cache is read just before",
                 graph_of(ctx.get(), { ggml_cast(ctx.get(), v.cache, GGML_TYPE_F32), k.stored, v.stored }), "Oww");
    ggml_context_ptr other = new_context();
    const writing own = make_writing(other.get(), shape());
    ggml_tensor * product = own.rotated->src[0];
    product->src[1] = ggml_sqr(other.get(), product->src[1]);
    expect_waits("values made just before", graph_of(other.get(), { own.stored }), "sw");
}

}  // namespace

int main(int argc, char ** argv) {
    test_other_graphs();
    test_steps();
    test_scales();
    test_order();
    test_other_readers();
    test_exact();
    test_other_shapes();
    test_waits();
    test_on(argc > 1 ? argv[1] : "CPU");
    printf("%d failures\n", failures);
    return failures != 0;
}
