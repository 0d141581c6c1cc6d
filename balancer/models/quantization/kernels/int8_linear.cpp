// y = (x rounded to INT8 by row) (W rounded to INT8 by output channel)^T + bias, in one pass over x, on CPUs.
// It is called by balancer/models/quantization/native.py. The interface is plain C. The library contains the
// kernel for several instruction sets. Rounding, and the order of operations after the exact integer sums, are
// those of torch, so every version gives the bits of the operator in modules.py.

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <memory>
#include <new>
#include <vector>

#if defined(_WIN32)
#define EXPORT extern "C" __declspec(dllexport)
#else
#define EXPORT extern "C" __attribute__((visibility("default")))
#endif

#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
#define HAS_X86 1
#include <cpuid.h>
#include <immintrin.h>
#if defined(__clang__) ? __clang_major__ >= 12 : __GNUC__ >= 11
#define HAS_AVXVNNI 1
#endif
#elif defined(__aarch64__) && (defined(__GNUC__) || defined(__clang__))
#define HAS_ARM 1
#include <arm_neon.h>
#if defined(__ARM_FEATURE_DOTPROD) || (defined(__clang__) ? __clang_major__ >= 16 : __GNUC__ >= 8)
#define HAS_DOT 1
#endif
#if defined(__linux__)
#include <sys/auxv.h>
#endif
#endif

namespace {

constexpr int64_t ONE_THREAD = 1 << 21;  // number of products below which a second thread does not pay off
constexpr int64_t LINE = 64;             // bytes of a cache line

// A linear layer. native.py has the same structure.
struct Layer {
    const int8_t* packed;  // by balancer_int8_pack
    const int32_t* sums;   // by balancer_int8_pack
    const float* scale;    // (n)
    const float* bias;     // (n) or null
    int64_t n, k;
    int64_t version;       // index in VERSIONS
};

// Rows that are rounded together: x (count, k), y (count, n). `memory` has the bytes of scratchBytes.
using Block = void (*)(const Layer& layer, const float* x, int64_t count, float* y, unsigned char* memory);

// One version of the kernel.
struct Version {
    bool (*supported)();
    Block block;
    int64_t (*packedBytes)(const int8_t* weight, int64_t n, int64_t k);
    void (*pack)(const int8_t* weight, int64_t n, int64_t k, int8_t* packed, int32_t* sums);
    int64_t (*scratchBytes)(int64_t k);
    int64_t panel;   // output channels of a panel of the packed weight
    int64_t tile;    // rows of a block are a multiple of this
    int64_t rows;    // maximum number of rows of a block
};

constexpr int64_t roundedUp(int64_t value, int64_t unit) { return (value + unit - 1) / unit * unit; }

// Bytes between two rows of `bytes` bytes. Rows at a multiple of a large power of two would share cache sets.
constexpr int64_t spaced(int64_t bytes) { return roundedUp(bytes, LINE) + (roundedUp(bytes, LINE) / LINE % 2 ? 0 : LINE); }

float fromBits(int32_t bits) {
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

// Scale of a row with this largest magnitude.
float stepOf(float largest) { return std::max(largest / 127.0f, std::numeric_limits<float>::min()); }

// Number of bytes of a weight (N, K) in panels of PANEL channels, in which GROUP inputs of a channel lie side by side.
template <int64_t PANEL, int64_t GROUP>
int64_t panelBytes(const int8_t*, int64_t n, int64_t k) { return roundedUp(n, PANEL) * roundedUp(k, GROUP); }

// Pack a weight (N, K) into panels, and compute 128 times the sum of each channel; padding is zero.
template <int64_t PANEL, int64_t GROUP>
void packPanels(const int8_t* weight, int64_t n, int64_t k, int8_t* packed, int32_t* sums) {
    const int64_t depth = roundedUp(k, GROUP);
    std::memset(packed, 0, static_cast<size_t>(roundedUp(n, PANEL) * depth));
    std::memset(sums, 0, static_cast<size_t>(roundedUp(n, PANEL)) * sizeof(int32_t));
    for (int64_t i = 0; i < n; ++i) {
        int8_t* panel = packed + i / PANEL * PANEL * depth + i % PANEL * GROUP;
        int32_t sum = 0;
        for (int64_t j = 0; j < k; ++j) {
            panel[j / GROUP * GROUP * PANEL + j % GROUP] = weight[i * k + j];
            sum += weight[i * k + j];
        }
        sums[i] = 128 * sum;
    }
}

#include "int8_portable.inc"

#if defined(HAS_X86)

#include "int8_split.inc"

#if defined(__clang__)
#define BEGIN_TARGET(set) _Pragma(TEXT(clang attribute push(__attribute__((target(set))), apply_to = function)))
#define END_TARGET _Pragma("clang attribute pop")
#else
#define BEGIN_TARGET(set) _Pragma("GCC push_options") _Pragma(TEXT(GCC target(set)))
#define END_TARGET _Pragma("GCC pop_options")
#endif
#define TEXT(...) #__VA_ARGS__

#define NAME avx2
#define LANES 8
#define VECTORS 2
#define VNNI 0
BEGIN_TARGET("avx2,fma")
#include "int8_x86.inc"
END_TARGET
#undef NAME
#undef VNNI

#if defined(HAS_AVXVNNI)
#define NAME avxvnni
#define VNNI 1
BEGIN_TARGET("avx2,fma,avxvnni")
#include "int8_x86.inc"
END_TARGET
#undef NAME
#undef VNNI
#endif
#undef LANES
#undef VECTORS

#define LANES 16
#define VECTORS 4
#define NAME avx512
#define VNNI 0
BEGIN_TARGET("avx2,fma,avx512f,avx512bw,avx512vl,avx512dq")
#include "int8_x86.inc"
END_TARGET
#undef NAME
#undef VNNI

#define NAME avx512vnni
#define VNNI 1
BEGIN_TARGET("avx2,fma,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")
#include "int8_x86.inc"
END_TARGET
#undef NAME
#undef VNNI
#undef LANES
#undef VECTORS

bool hasAvx2() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }
bool hasAvx512() {
    return hasAvx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512dq");
}
bool hasAvx512Vnni() { return hasAvx512() && __builtin_cpu_supports("avx512vnni"); }
#if defined(HAS_AVXVNNI)
bool hasAvxVnni() {
    unsigned a = 0, b = 0, c = 0, d = 0;
    return hasAvx2() && __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a & (1u << 4));
}
#endif

#elif defined(HAS_ARM)

#define NAME neon
#define DOT 0
#include "int8_arm.inc"
#undef NAME
#undef DOT

#if defined(HAS_DOT)
#define NAME dotprod
#define DOT 1
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("dotprod"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("arch=armv8.2-a+dotprod")
#endif
#include "int8_arm.inc"
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#undef NAME
#undef DOT

bool hasDotProducts() {
#if defined(__linux__)
    return getauxval(AT_HWCAP) & (1u << 20);  // HWCAP_ASIMDDP
#elif defined(__APPLE__)
    return true;
#else
    return false;
#endif
}
#endif

#endif

bool always() { return true; }
#if (defined(HAS_X86) && !defined(HAS_AVXVNNI)) || (defined(HAS_ARM) && !defined(HAS_DOT))
bool never() { return false; }
#endif

#define PORTABLE portable::block, portable::packedBytes, portable::pack, portable::scratchBytes, 1, 1, portable::ROWS
#define VERSION(name) name::block, name::packedBytes, name::pack, name::scratchBytes, name::PANEL, name::TILE, name::ROWS

// In the order of VERSIONS in native.py.
constexpr Version VERSIONS[] = {
    {always, PORTABLE},
#if defined(HAS_X86)
    {hasAvx2, VERSION(avx2)},
#if defined(HAS_AVXVNNI)
    {hasAvxVnni, VERSION(avxvnni)},
#else
    {never, PORTABLE},
#endif
    {hasAvx512, VERSION(avx512)},
    {hasAvx512Vnni, VERSION(avx512vnni)},
#elif defined(HAS_ARM)
    {always, VERSION(neon)},
#if defined(HAS_DOT)
    {hasDotProducts, VERSION(dotprod)},
#else
    {never, PORTABLE},
#endif
#endif
};
constexpr int64_t NUM_VERSIONS = sizeof VERSIONS / sizeof *VERSIONS;

// Memory of a thread, which grows and is kept, because most calls take less time than an allocation of this size.
unsigned char* scratch(int64_t bytes) {
    thread_local std::unique_ptr<unsigned char[]> memory;
    thread_local int64_t held = 0;
    if (held < bytes + LINE) {
        memory.reset();
        held = 0;
        memory.reset(new (std::nothrow) unsigned char[static_cast<size_t>(bytes + LINE)]);
        if (!memory) return nullptr;
        held = bytes + LINE;
    }
    return memory.get() + (LINE - reinterpret_cast<uintptr_t>(memory.get()) % LINE) % LINE;
}

// Runs a function on the threads of libgomp's pool, with which torch computes. Separate threads would compete
// with that pool, whose threads spin while they wait for work.
using Team = void (*)(void (*)(void*), void*, unsigned, unsigned);
Team threadTeam = nullptr;

}  // namespace

// Bits of the versions that this processor can run: bit i for VERSIONS[i].
EXPORT int64_t balancer_int8_supported() {
    int64_t bits = 0;
    for (int64_t i = 0; i < NUM_VERSIONS; ++i) bits |= static_cast<int64_t>(VERSIONS[i].supported()) << i;
    return bits;
}

// The size of Layer, by which native.py detects a library of another version.
EXPORT int64_t balancer_int8_layout() { return static_cast<int64_t>(sizeof(Layer)); }

// Use this function to start threads; null for one thread.
EXPORT void balancer_int8_use_team(Team team) { threadTeam = team; }

// Number of bytes of a packed weight (N, K); 0 if a version reads the weight itself.
EXPORT int64_t balancer_int8_packed_bytes(int64_t version, const int8_t* weight, int64_t n, int64_t k) {
    return VERSIONS[version].packedBytes(weight, n, k);
}

// Number of channels in the sums of a packed weight.
EXPORT int64_t balancer_int8_packed_channels(int64_t version, int64_t n) { return roundedUp(n, VERSIONS[version].panel); }

// Pack a weight (N, K) int8, and compute what the version subtracts from the sums of each channel.
EXPORT void balancer_int8_pack(int64_t version, const int8_t* weight, int64_t n, int64_t k, int8_t* packed, int32_t* sums) {
    VERSIONS[version].pack(weight, n, k, packed, sums);
}

// x (M, K) and y (M, N) are contiguous. Threads divide the rows, never a sum. Returns 0, or 1 if memory could not
// be allocated.
EXPORT int32_t balancer_int8_linear(const Layer* layer, const float* x, int64_t m, float* y, int32_t threads) {
    const Version& v = VERSIONS[layer->version];
    const int64_t n = layer->n, k = layer->k;
    if (m <= 0 || n <= 0) return 0;
    const int64_t wanted = threadTeam && m * n * k >= ONE_THREAD ? std::max<int64_t>(1, threads) : 1;
    const int64_t height = std::min(v.rows, roundedUp((m + wanted - 1) / wanted, v.tile));
    const int64_t blocks = (m + height - 1) / height;
    std::atomic<int64_t> next{0};
    std::atomic<int32_t> failed{0};
    auto work = [&] {
        unsigned char* memory = scratch(v.scratchBytes(k));
        if (!memory) {
            failed = 1;
            return;
        }
        for (int64_t b = next++; b < blocks; b = next++) {
            const int64_t first = b * height;
            v.block(*layer, x + first * k, std::min(height, m - first), y + first * n, memory);
        }
    };
    if (wanted > 1 && blocks > 1)
        threadTeam([](void* given) { (*static_cast<decltype(work)*>(given))(); }, &work, static_cast<unsigned>(std::min(wanted, blocks)), 0);
    else
        work();
    return failed;
}
