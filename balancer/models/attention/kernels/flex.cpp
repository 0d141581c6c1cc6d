// Attention with a block mask on CPUs: float32, forward and backward.
// It is called by balancer/models/attention/flex_native.py with a plan of balancer/models/attention/flex_plan.py.
// The interface is plain C. The library contains the kernel for several instruction sets, and the best one of
// the processor is selected at run time.

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <exception>
#include <thread>
#include <vector>

#if defined(_WIN32)
#define EXPORT extern "C" __declspec(dllexport)
#else
#define EXPORT extern "C" __attribute__((visibility("default")))
#endif

namespace {

constexpr int TQ = 64;  // queries of a tile: the bits of one word of a mask
constexpr int TK = 64;  // most keys of a tile
constexpr int SLICE = 4 * TK;  // keys whose gradients are one unit of work of the second of two passes

// Arguments of flex_native.py, in the order of the fields of its ctypes structure. Strides are those of batch,
// head and token; channels are contiguous.
struct Problem {
    const float *query, *key, *value, *out, *grad;  // grad: gradient of out; null for the forward pass
    float *mixed, *dq, *dk, *dv;                    // mixed: out of the forward pass
    int64_t queryStride[3], keyStride[3], valueStride[3], outStride[3], gradStride[3];
    int64_t dqStride[3], dkStride[3], dvStride[3];
    float* lse;            // (B, H, n): log of the sum of exponentials, -inf for a query without any key
    const float* gradLse;  // (B, H, n) or null
    int64_t B, H, Hk, n, m, E, Ev;  // m keys and Hk heads of keys; E channels of keys, Ev of values
    const int64_t* plan;            // null: every query sees every key
    float scale;
    int32_t threads, isa;
};

// What flex_plan.py wrote. Each row of blocks lists the blocks of keys that its queries see, in ascending order;
// each column lists the blocks of queries. The mask of a block is -1 if all is seen, else an index of `bits`:
// (masks, columnSize, words), bit i of a word is query 64 * word + i of the block.
struct Plan {
    int64_t B = 1, H = 1, rows = 1, columns = 1, rowSize, columnSize, words = 0;
    const int64_t *rowStart, *rowBlock, *rowMask, *columnStart, *columnBlock, *columnMask;
    const uint64_t* bits = nullptr;

    explicit Plan(const Problem& p) : rowSize(std::max<int64_t>(p.n, 1)), columnSize(std::max<int64_t>(p.m, 1)) {
        static const int64_t start[] = {0, 1}, block[] = {0}, mask[] = {-1};
        rowStart = columnStart = start; rowBlock = columnBlock = block; rowMask = columnMask = mask;
        if (!p.plan) return;
        const int64_t* x = p.plan;
        B = x[0]; H = x[1]; rows = x[2]; columns = x[3]; rowSize = x[4]; columnSize = x[5]; words = x[6];
        const int64_t entries = x[7];
        x += 8;
        rowStart = x; x += B * H * rows + 1;
        rowBlock = x; x += entries;
        rowMask = x; x += entries;
        columnStart = x; x += B * H * columns + 1;
        columnBlock = x; x += entries;
        columnMask = x; x += entries;
        bits = (const uint64_t*)x;
    }

    // First row of blocks (or column, by their number) of a batch and head.
    int64_t of(int64_t b, int64_t h, int64_t number) const { return (b % B * H + h % H) * number; }
    int64_t tilesOfRow() const { return (rowSize + TQ - 1) / TQ; }
    int64_t slicesOfColumn() const { return (columnSize + SLICE - 1) / SLICE; }
};

// The bits of some keys for a tile of queries; `first` is null if all queries see all keys.
struct Seen {
    const uint64_t* first;
    int64_t stride;
    uint64_t of(int64_t s) const { return first[s * stride]; }
};

// Keys [from, from + count) of a tile, and who sees them.
struct Keys { int64_t from, count; Seen seen; };

// The keys of a block from `from` on, at most TK, without those at either end that no query of the tile sees.
inline Keys trimmed(const Plan& plan, int64_t mask, int64_t start, int64_t from, int64_t to, int64_t word, uint64_t lanes) {
    if (mask < 0) return {from, to - from, {nullptr, 0}};
    const uint64_t* bits = plan.bits + (mask * plan.columnSize - start) * plan.words + word;
    while (from < to && !(bits[from * plan.words] & lanes)) ++from;
    while (from < to && !(bits[(to - 1) * plan.words] & lanes)) --to;
    uint64_t all = lanes;
    for (int64_t s = from; s < to; ++s) all &= bits[s * plan.words];
    return {from, to - from, {all == lanes ? nullptr : bits + from * plan.words, plan.words}};
}

// Floats at an address that is a multiple of 64.
struct Buffer {
    std::vector<float> raw;
    float* data = nullptr;

    void resize(int64_t count) {
        raw.assign(count + 16, 0.0f);
        data = (float*)(((uintptr_t)raw.data() + 63) / 64 * 64);
    }
};

inline const float* at(const float* x, const int64_t* stride, int64_t b, int64_t h, int64_t t) { return x + b * stride[0] + h * stride[1] + t * stride[2]; }
inline float* at(float* x, const int64_t* stride, int64_t b, int64_t h, int64_t t) { return x + b * stride[0] + h * stride[1] + t * stride[2]; }

#define ISA baseline
#define W 4
#define GROUP 4
#define VECTORS 2
#include "flex.inc"
#undef ISA
#undef W
#undef GROUP
#undef VECTORS

#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
#define HAS_X86_SETS 1

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma")
#endif
#define ISA avx2
#define W 8
#define GROUP 6
#define VECTORS 2
#include "flex.inc"
#undef ISA
#undef W
#undef GROUP
#undef VECTORS
#if defined(__clang__)
#pragma clang attribute pop
#pragma clang attribute push(__attribute__((target("avx512f,avx512dq,avx512bw,avx512vl,fma"))), apply_to = function)
#else
#pragma GCC pop_options
#pragma GCC push_options
#pragma GCC target("avx512f,avx512dq,avx512bw,avx512vl,fma,prefer-vector-width=512")
#endif
#define ISA avx512
#define W 16
#define GROUP 6
#define VECTORS 4
#include "flex.inc"
#undef ISA
#undef W
#undef GROUP
#undef VECTORS
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif

// Run `work` on some threads, this one included. Returns 1 if memory could not be allocated.
template <class Work>
int32_t runOnThreads(int64_t wanted, Work work) {
    std::atomic<int32_t> failed{0};
    auto guarded = [&] {
        try {
            work();
        } catch (const std::exception&) {
            failed = 1;
        }
    };
    std::vector<std::thread> others;
    try {
        for (int64_t extra = 1; extra < wanted; ++extra) others.emplace_back(guarded);
    } catch (const std::exception&) {  // no more threads can be started: the existing ones do all the work
    }
    guarded();
    for (auto& other : others) other.join();
    return failed;
}

}  // namespace

// The best instruction set of the processor: 0 for the compiler's baseline, 1 for AVX2, 2 for AVX-512.
EXPORT int32_t balancer_flex_isa() {
#if defined(HAS_X86_SETS)
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl")) return 2;
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return 1;
#endif
    return 0;
}

// The size of Problem, by which flex_native.py detects a library of another version.
EXPORT int64_t balancer_flex_layout() { return (int64_t)sizeof(Problem); }

// Returns 0, or 1 if memory could not be allocated.
EXPORT int32_t balancer_flex_run(const Problem* problem) {
    const Problem& p = *problem;
    const Plan plan(p);
    typedef void (*Run)(const Problem&, const Plan&, std::atomic<int64_t>&);
    Run forward = baseline::runForward, queries = baseline::runQueries, keys = baseline::runKeys, heads = baseline::runHeads;
#if defined(HAS_X86_SETS)
    const int32_t isa = std::min(p.isa, balancer_flex_isa());
    if (isa == 1) forward = avx2::runForward, queries = avx2::runQueries, keys = avx2::runKeys, heads = avx2::runHeads;
    if (isa == 2) forward = avx512::runForward, queries = avx512::runQueries, keys = avx512::runKeys, heads = avx512::runHeads;
#endif
    const auto run = [&](Run part, int64_t units) {
        std::atomic<int64_t> next{0};
        return runOnThreads(std::min<int64_t>(p.threads, units), [&] { part(p, plan, next); });
    };
    const int64_t tiles = p.B * p.H * plan.rows * plan.tilesOfRow(), groups = p.B * p.Hk;
    if (!p.grad) return run(forward, tiles);
    // One pass over the heads needs five products a tile, two passes over queries and keys seven. Both add the
    // same numbers in the same order.
    if (7 * std::min<int64_t>(groups, p.threads) >= 5 * p.threads) return run(heads, groups);
    return run(queries, tiles) | run(keys, groups * plan.columns * plan.slicesOfColumn());
}
