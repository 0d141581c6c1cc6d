// y = (x rounded to INT8 by row) (W rounded to INT8 by output channel)^T + bias, in one pass over x, for CPUs
// with AVX512-VNNI. It is called by balancer/models/quantization/native.py. Rounding, and the order of
// operations after the exact integer sums, are those of torch, so the results are bit-identical to those of
// the operator in modules.py.

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <exception>
#include <limits>
#include <vector>

#if defined(_WIN32)
#define EXPORT extern "C" __declspec(dllexport)
#else
#define EXPORT extern "C" __attribute__((visibility("default")))
#endif

#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
#define HAS_VNNI 1
#include <immintrin.h>
#define VNNI __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")))
#define VNNI_INLINE __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni"), always_inline)) inline
#else
#define HAS_VNNI 0
#endif

namespace {

constexpr int64_t PANEL = 64;   // output channels of a panel: four vectors of sixteen sums
constexpr int64_t GROUP = 4;    // products that one instruction adds
constexpr int64_t TILE = 6;     // rows whose sums are held in registers at a time
constexpr int64_t BLOCK = 96;   // maximum number of rows that are rounded together and share a cached panel
constexpr int64_t ONE_THREAD = 1 << 21;  // number of products below which a second thread does not pay off

int64_t panels(int64_t n) { return (n + PANEL - 1) / PANEL; }
int64_t groups(int64_t k) { return (k + GROUP - 1) / GROUP; }

#if HAS_VNNI

// Round one row to bytes with offset 128, and return its scale; a row that is not finite becomes zeros with
// scale NaN.
VNNI_INLINE float roundRow(const float* x, int64_t k, uint8_t* to) {
    __m512i most = _mm512_setzero_si512();
    const __m512i magnitude = _mm512_set1_epi32(0x7fffffff);
    int64_t j = 0;
    for (; j + 16 <= k; j += 16) most = _mm512_max_epi32(most, _mm512_and_si512(_mm512_castps_si512(_mm512_loadu_ps(x + j)), magnitude));
    if (j < k) {
        const __mmask16 rest = static_cast<__mmask16>((1u << (k - j)) - 1);
        most = _mm512_max_epi32(most, _mm512_and_si512(_mm512_castps_si512(_mm512_maskz_loadu_ps(rest, x + j)), magnitude));
    }
    // As integers, infinity and NaN exceed every finite number.
    const int32_t bits = _mm512_reduce_max_epi32(most);
    if (bits >= 0x7f800000) {
        std::memset(to, 128, static_cast<size_t>(groups(k) * GROUP));
        return std::numeric_limits<float>::quiet_NaN();
    }
    float largest;
    std::memcpy(&largest, &bits, sizeof largest);
    const float step = std::max(largest / 127.0f, std::numeric_limits<float>::min());
    const __m512 by = _mm512_set1_ps(step);
    const __m128i middle = _mm_set1_epi8(static_cast<char>(128));
    for (j = 0; j + 16 <= k; j += 16) {
        const __m512i whole = _mm512_cvtps_epi32(_mm512_div_ps(_mm512_loadu_ps(x + j), by));
        _mm_storeu_si128(reinterpret_cast<__m128i*>(to + j), _mm_xor_si128(_mm512_cvtsepi32_epi8(whole), middle));
    }
    if (j < k) {
        const __mmask16 rest = static_cast<__mmask16>((1u << (k - j)) - 1);
        const __m512i whole = _mm512_cvtps_epi32(_mm512_div_ps(_mm512_maskz_loadu_ps(rest, x + j), by));
        const __mmask16 padded = static_cast<__mmask16>((1u << (groups(k) * GROUP - j)) - 1);
        _mm_mask_storeu_epi8(to + j, padded, _mm_xor_si128(_mm512_cvtsepi32_epi8(whole), middle));
    }
    return step;
}

// Multiply R rows by one panel.
template <int R>
VNNI_INLINE void multiply(const uint8_t* rows, int64_t depth, const int8_t* panel, const int32_t* sums, const float* step, const float* scale,
                          const float* bias, float* y, int64_t n, int64_t width) {
    __m512i total[R][4];
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
        for (int v = 0; v < 4; ++v) total[r][v] = _mm512_setzero_si512();
    for (int64_t g = 0; g < depth; ++g) {
        const int8_t* w = panel + g * PANEL * GROUP;
        const __m512i w0 = _mm512_loadu_si512(w), w1 = _mm512_loadu_si512(w + 64), w2 = _mm512_loadu_si512(w + 128), w3 = _mm512_loadu_si512(w + 192);
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) {
            int32_t four;
            std::memcpy(&four, rows + r * depth * GROUP + g * GROUP, sizeof four);
            const __m512i a = _mm512_set1_epi32(four);
            total[r][0] = _mm512_dpbusd_epi32(total[r][0], a, w0);
            total[r][1] = _mm512_dpbusd_epi32(total[r][1], a, w1);
            total[r][2] = _mm512_dpbusd_epi32(total[r][2], a, w2);
            total[r][3] = _mm512_dpbusd_epi32(total[r][3], a, w3);
        }
    }
#pragma GCC unroll 4
    for (int v = 0; v < 4; ++v) {
        const int64_t left = width - 16 * v;
        if (left <= 0) break;
        const __mmask16 there = left >= 16 ? static_cast<__mmask16>(0xffff) : static_cast<__mmask16>((1u << left) - 1);
        // 128 times the sum of a channel's weights, because the bytes have offset 128.
        const __m512i over = _mm512_loadu_si512(sums + 16 * v);
        const __m512 by = _mm512_maskz_loadu_ps(there, scale + 16 * v);
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) {
            // Not fused, because torch rounds in between.
            __m512 out = _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_sub_epi32(total[r][v], over)), _mm512_set1_ps(step[r]));
            out = _mm512_mul_ps(out, by);
            if (bias) out = _mm512_add_ps(out, _mm512_maskz_loadu_ps(there, bias + 16 * v));
            _mm512_mask_storeu_ps(y + r * n + 16 * v, there, out);
        }
    }
}

VNNI void block(const float* x, int64_t m, int64_t k, const int8_t* packed, const int32_t* sums, const float* scale, const float* bias, float* y, int64_t n,
                uint8_t* rows, float* step) {
    const int64_t depth = groups(k);
    for (int64_t r = 0; r < m; ++r) step[r] = roundRow(x + r * k, k, rows + r * depth * GROUP);
    for (int64_t p = 0; p < panels(n); ++p) {
        const int8_t* panel = packed + p * depth * GROUP * PANEL;
        const int64_t width = std::min(PANEL, n - p * PANEL);
        const float* panelBias = bias ? bias + p * PANEL : nullptr;
        int64_t r = 0;
        for (; r + TILE <= m; r += TILE)
            multiply<TILE>(rows + r * depth * GROUP, depth, panel, sums + p * PANEL, step + r, scale + p * PANEL, panelBias, y + r * n + p * PANEL, n, width);
        for (; r + 2 <= m; r += 2)
            multiply<2>(rows + r * depth * GROUP, depth, panel, sums + p * PANEL, step + r, scale + p * PANEL, panelBias, y + r * n + p * PANEL, n, width);
        for (; r < m; ++r)
            multiply<1>(rows + r * depth * GROUP, depth, panel, sums + p * PANEL, step + r, scale + p * PANEL, panelBias, y + r * n + p * PANEL, n, width);
    }
}

#endif

}  // namespace

// Whether this processor has the instructions that the kernel needs.
EXPORT int32_t balancer_int8_supported() {
#if HAS_VNNI
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vnni");
#else
    return 0;
#endif
}

// Number of bytes of a packed weight (N, K).
EXPORT int64_t balancer_int8_packed_bytes(int64_t n, int64_t k) { return panels(n) * groups(k) * GROUP * PANEL; }

// Number of channels in the sums of a packed weight.
EXPORT int64_t balancer_int8_packed_channels(int64_t n) { return panels(n) * PANEL; }

// Pack a weight (N, K) int8 into panels, and compute 128 times the sum of each channel; padding is zero.
EXPORT void balancer_int8_pack(const int8_t* weight, int64_t n, int64_t k, int8_t* packed, int32_t* sums) {
    const int64_t depth = groups(k);
    std::memset(packed, 0, static_cast<size_t>(balancer_int8_packed_bytes(n, k)));
    std::memset(sums, 0, static_cast<size_t>(panels(n) * PANEL) * sizeof(int32_t));
    for (int64_t i = 0; i < n; ++i) {
        int8_t* panel = packed + (i / PANEL) * depth * GROUP * PANEL;
        for (int64_t j = 0; j < k; ++j) {
            panel[(j / GROUP) * GROUP * PANEL + (i % PANEL) * GROUP + j % GROUP] = weight[i * k + j];
            sums[i] += 128 * static_cast<int32_t>(weight[i * k + j]);
        }
    }
}

// Runs a function on the threads of libgomp's pool, with which torch computes. Separate threads would compete
// with that pool, whose threads spin while they wait for work.
using Team = void (*)(void (*)(void*), void*, unsigned, unsigned);

// x (M, K) and y (M, N) are contiguous. bias and team may be null; without a team one thread does all the
// work. Threads divide the rows, never a sum. Returns 0, or 1 if memory could not be allocated.
EXPORT int32_t balancer_int8_linear(const float* x, int64_t m, int64_t k, const int8_t* packed, const int32_t* sums, const float* scale,
                                    const float* bias, float* y, int64_t n, int32_t threads, Team team) {
#if HAS_VNNI
    const int64_t wanted = team && m * n * k >= ONE_THREAD ? std::max<int64_t>(1, threads) : 1;
    const int64_t share = (m + wanted - 1) / wanted;
    const int64_t height = std::min(BLOCK, (share + TILE - 1) / TILE * TILE);
    const int64_t blocks = (m + height - 1) / height;
    std::atomic<int64_t> next{0};
    std::atomic<int32_t> failed{0};
    auto work = [&] {
        try {
            std::vector<uint8_t> rows(static_cast<size_t>(height * groups(k) * GROUP));
            std::vector<float> step(static_cast<size_t>(height));
            for (int64_t b = next++; b < blocks; b = next++) {
                const int64_t first = b * height;
                block(x + first * k, std::min(height, m - first), k, packed, sums, scale, bias, y + first * n, n, rows.data(), step.data());
            }
        } catch (const std::exception&) {
            failed = 1;
        }
    };
    if (wanted > 1 && blocks > 1)
        team([](void* given) { (*static_cast<decltype(work)*>(given))(); }, &work, static_cast<unsigned>(std::min(wanted, blocks)), 0);
    else
        work();
    return failed;
#else
    (void)x, (void)m, (void)k, (void)packed, (void)sums, (void)scale, (void)bias, (void)y, (void)n, (void)threads, (void)team;
    return 1;
#endif
}
