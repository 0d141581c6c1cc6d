// Sparse attention on CPUs: float32, forward and backward, with any window, chunk and number of global nodes.
// It is called by balancer/models/attention/native.py.
// The interface is plain C. The library contains the kernel for several instruction sets, and the best one of
// the processor is selected at run time.

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <exception>
#include <fstream>
#include <initializer_list>
#include <new>
#include <sstream>
#include <string>
#include <thread>
#include <type_traits>
#include <vector>

#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
#define HAS_X86_SETS 1
#include <immintrin.h>
#endif

#if defined(__linux__)
#include <sys/mman.h>
#endif

#if defined(_WIN32)
#define EXPORT extern "C" __declspec(dllexport)
#else
#define EXPORT extern "C" __attribute__((visibility("default")))
#endif

#if defined(__clang__)
#define UNROLL _Pragma("unroll")
#elif defined(__GNUC__)
#define UNROLL _Pragma("GCC unroll 16")
#else
#define UNROLL
#endif

namespace {

constexpr int TQ = 16;  // queries of a tile
constexpr int SLACK = 256;  // tokens that are packed before the contents of the buffers are moved
constexpr int64_t LARGE = 1 << 20;  // numbers of a result from which on it gets large pages

// Allocates at multiples of 64 bytes, so that no vector crosses the border of two cache lines.
template <class T>
struct Aligned {
    using value_type = T;
    Aligned() = default;
    template <class U> Aligned(const Aligned<U>&) {}
    T* allocate(size_t count) { return static_cast<T*>(::operator new(count * sizeof(T), std::align_val_t(64))); }
    void deallocate(T* p, size_t) { ::operator delete(p, std::align_val_t(64)); }
    template <class U> bool operator==(const Aligned<U>&) const { return true; }
    template <class U> bool operator!=(const Aligned<U>&) const { return false; }
};
using Floats = std::vector<float, Aligned<float>>;

// Arguments of native.py, in the order of the fields of its ctypes structure.
struct Problem {
    const float *query, *key, *value;
    int64_t queryStride[3], keyStride[3], valueStride[3];  // of batch, token, head; channels are contiguous
    int64_t B, n, H, d;
    const int64_t* index;  // (B, chunks, k), -1 for none
    int64_t chunks, k;
    const float* gate;       // (B, n) or null
    const uint8_t* padding;  // (B, n) or null
    int64_t window, chunk, causal, block;
    float* out;  // (B, n, H, d)
    float* lse;  // (B, H, n): log2 of the sum of exponentials; +inf for a query without any key, NaN for one whose result is NaN
    const float* grad;      // (B, n, H, d) gradient of out; null for the forward pass
    float *dq, *dk, *dv;    // (B, n, H, d)
    float* dgate;           // (B, H, n) initialized with zeros, or null
    float scale;
    int32_t threads, isa;

    int64_t first(int64_t t) const {
        if (block) return t / window * window;
        return std::max<int64_t>(0, t - (causal ? window - 1 : window / 2));
    }
    int64_t last(int64_t t) const {
        if (causal) return t;
        return std::min(n - 1, block ? t / window * window + window - 1 : t + (window - 1) / 2);
    }
};

#define ISA baseline
#define W 4
#define KB 2
#define QB 4
#include "attention.inc"
#undef ISA
#undef W
#undef KB
#undef QB

#if defined(HAS_X86_SETS)
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma")
#endif
#define ISA avx2
#define W 8
#define KB 6
#define QB 4
#include "attention.inc"
#undef ISA
#undef W
#undef KB
#undef QB
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
#define KB 8
#define QB 8
#include "attention.inc"
#undef ISA
#undef W
#undef KB
#undef QB
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif

}  // namespace

// The best instruction set of the processor: 0 for the compiler's baseline, 1 for AVX2, 2 for AVX-512.
EXPORT int32_t balancer_attention_isa() {
#if defined(HAS_X86_SETS)
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl")) return 2;
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return 1;
#endif
    return 0;
}

// The size of Problem, by which native.py detects a library of another version.
EXPORT int64_t balancer_attention_layout() { return (int64_t)sizeof(Problem); }

// Bytes of the free blocks of memory of at least 2 MiB; 0 where that is not known.
static int64_t freeInLargeBlocks() {
    int64_t bytes = 0;
#if defined(__linux__)
    std::ifstream file("/proc/buddyinfo");
    for (std::string line; std::getline(file, line);) {
        // Node 0, zone Normal, then the number of free blocks of 4 KiB, 8 KiB, ...
        std::istringstream words(line.substr(std::min(line.size(), line.find("zone"))));
        std::string word;
        words >> word >> word;
        int64_t size = 4096, count = 0;
        for (; words >> count; size *= 2) bytes += size >= (2 << 20) ? count * size : 0;
    }
#endif
    return bytes;
}

// Let large results that are written for the first time consist of large pages: to get them in pages of 4 KiB
// would take as long as to compute them. Only where enough of them are free, because the kernel would stop the
// process to make some.
static void useLargePages([[maybe_unused]] std::initializer_list<float*> results, [[maybe_unused]] int64_t count) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
    if (count < LARGE) return;
    constexpr uintptr_t PAGE = 4096;
    int64_t free = freeInLargeBlocks();
    for (float* start : results) {
        const uintptr_t from = (reinterpret_cast<uintptr_t>(start) + PAGE - 1) / PAGE * PAGE, to = reinterpret_cast<uintptr_t>(start + count) / PAGE * PAGE;
        free -= 2 * (to - from);
        if (start && free > 0) madvise(reinterpret_cast<void*>(from), to - from, MADV_HUGEPAGE);
    }
#endif
}

// Returns 0, or 1 if memory could not be allocated.
EXPORT int32_t balancer_attention_run(const Problem* problem) {
    const Problem& p = *problem;
    void (*heads)(const Problem&, std::atomic<int64_t>&) = baseline::runHeads;
#if defined(HAS_X86_SETS)
    const int32_t isa = std::min(p.isa, balancer_attention_isa());
    if (isa == 1) heads = avx2::runHeads;
    if (isa == 2) heads = avx512::runHeads;
#endif
    if (p.grad) useLargePages({p.dq, p.dk, p.dv}, p.B * p.n * p.H * p.d);
    else useLargePages({p.out}, p.B * p.n * p.H * p.d);
    std::atomic<int64_t> next{0};
    std::atomic<int32_t> failed{0};
    auto work = [&] {
        try {
            heads(p, next);
        } catch (const std::exception&) {
            failed = 1;
        }
    };
    std::vector<std::thread> others;
    const int64_t wanted = std::min<int64_t>(p.threads, p.B * p.H);
    try {
        for (int64_t extra = 1; extra < wanted; ++extra) others.emplace_back(work);
    } catch (const std::exception&) {  // no more threads can be started: the existing ones do all the work
    }
    work();
    for (auto& other : others) other.join();
    return failed;
}

// The k tokens with the highest scores, best first; among equal scores the earlier token comes first. NaN, -inf
// and padding are never selected.
//
// score (B, n); padding (B, n) or null; index (B, chunks, k), -1 where there are fewer candidates. Causal: for
// each chunk of `chunk` tokens, among the tokens before it; otherwise one chunk. Returns as above.
EXPORT int32_t balancer_attention_select(const float* score, const uint8_t* padding, int64_t B, int64_t n, int64_t chunk, int64_t k, int64_t causal, int64_t* index) {
    if (!k) return 0;
    const int64_t step = causal ? chunk : std::max<int64_t>(n, 1), chunks = std::max<int64_t>(1, (n + step - 1) / step);
    try {
        std::vector<float> best(k);
        std::vector<int64_t> at(k);
        for (int64_t b = 0; b < B; ++b) {
            int64_t found = 0;
            const auto write = [&](int64_t c) {
                int64_t* to = index + (b * chunks + c) * k;
                std::copy(at.begin(), at.begin() + found, to);
                std::fill(to + found, to + k, -1);
            };
            for (int64_t c = 0; c < chunks; ++c) {
                if (causal) write(c);
                for (int64_t t = c * step; t < std::min(n, (c + 1) * step); ++t) {
                    const float x = score[b * n + t];
                    if (!(x > -INFINITY) || (found == k && !(x > best[k - 1])) || (padding && padding[b * n + t])) continue;
                    int64_t place = found < k ? found++ : k - 1;
                    for (; place && best[place - 1] < x; --place) {
                        best[place] = best[place - 1];
                        at[place] = at[place - 1];
                    }
                    best[place] = x;
                    at[place] = t;
                }
            }
            if (!causal) write(0);
        }
    } catch (const std::exception&) {
        return 1;
    }
    return 0;
}
