// One step of a classifier on one core: the next rows of some histories, from their states to probabilities.
// It is called by balancer/models/step/native.py, with arrays that balancer/models/step/packing.py made: no
// size is checked here.
//
// The bits of a result are the same for every instruction set and whatever other rows are computed in the same
// call: every number is one sum in a fixed order, sums across a vector are made in 16 lanes for every width of
// the vectors, and no product is fused with a sum.

#include <algorithm>
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

namespace {

constexpr int LANES = 16;       // numbers of a pack, and slots of a block of keys and values
constexpr int64_t HEADER = 16;  // numbers before the contents of a state
constexpr int64_t TOKENS = 32;  // most tokens that are computed together: their numbers stay in the cache
constexpr float NONE = -std::numeric_limits<float>::infinity();

enum { PIECEWISE = 1, PERIODIC = 2 };                                          // Encoding in packing.py
enum { LANDMARKS = 1, CHANNELS, SURPRISAL, LEARNED, RANDOM };                  // Score in packing.py
enum { FULL, INT8, BFLOAT16 };                                                 // Precision in linear.py
enum { QUERY, KEY_VALUE, SCORE, OUT, UP, DOWN, HEAD };                         // LAYERS in packing.py
constexpr int64_t EXACT = (1 << 24) / (127 * 127);  // products of INT8 numbers whose sum is exact in float, in any order

// A linear layer: panels of weights (inputs, 16), and a scale and a bias per output.
struct Linear {
    const float *weight, *bias, *scale;
    int64_t inputs, panels, kind;
};

}  // namespace

// Mirror of _Step in native.py. D, Q, E and N are d_model, the channels of a head times the heads, the hidden
// channels and the outputs, each rounded up to a multiple of 16; rounded channels hold zeros. A panel holds the
// weights of 16 outputs, (inputs, 16).
struct Step {
    int64_t fields, numeric, categories, channels, heads, layers, hidden, classes, window, nodes, history;
    int64_t histories;  // 1 for the form histories, 0 for rows
    int64_t encoding, levels, bins, frequencies, cycles, harmonics, missing;
    int64_t score, landmarks, gated, pairs, binary, margin;  // margin: column, or -1
    int64_t lowTable;   // 1 if the table is that of an encoder in bfloat16
    const float *search, *lower, *width;       // (numeric, 2^levels); (numeric * bins); (numeric * bins)
    const float* table;                        // (numeric * bins, 2, D) the sum up to each bin, and its slope
    const float *places, *frequency, *waves, *wavesBias;  // (numeric,); (numeric, f); (numeric, 2 f, D); (numeric, D)
    const int64_t* cycleColumn;                // (cycles,)
    const float *period, *harmonic, *cycleWaves;  // (cycles,); (harmonics,); (cycles, 2 harmonics, D)
    const int64_t* missingColumn;              // (missing,) columns of the fields with a vector for missing numbers
    const float* missingRows;                  // (missing, D)
    const int64_t *sizes, *offsets;            // (categories,) codes of each, and its first row of `codes`
    const float *codes, *position;             // (rows, D); (history, D)
    const float *mixing, *mixingBias;          // (layers, panels of query, key, value and landmarks); (layers, 16 a panel)
    const float *out, *outBias, *up, *upBias, *down, *downBias;
    const int64_t* kinds;                      // (layers, 6) precisions of the linear layers, then that of the head
    const float *mixingScale, *outScale, *upScale, *downScale, *headScale;  // like the biases; read for layers in low precision
    const float *norms, *eps;                  // (layers, 4, D): weight and bias before the attention and the rest; (layers, 2)
    const float *scoring, *gate;               // (layers, 2, D) numbers of the score; (layers, 2) slope and offset
    const double* speed;                       // (pairs,) rotation per position
    const float *lastNorm, *head, *headBias, *ones;  // (2, D); panels; (N,); (D,) 1 for channels and 0 beyond
    float lastEps, scale;
    int32_t isa;

    int64_t D() const { return (channels + LANES - 1) / LANES * LANES; }
    int64_t E() const { return (hidden + LANES - 1) / LANES * LANES; }
    int64_t ringBlocks() const { return (window + LANES - 1) / LANES; }
    int64_t nodeBlocks() const { return (nodes + LANES - 1) / LANES; }
    // Numbers of a block in one layer: scores and gates, keys (D, 16), values (16, D).
    int64_t part() const { return (nodes ? 2 * LANES : 0) + 2 * LANES * D(); }
    int64_t block() const { return layers * part(); }
    // Numbers of the positions of the nodes and the nodes.
    int64_t nodeNumbers() const { return nodeBlocks() * (layers * LANES + block()); }
    int64_t keptRows() const { return history - 1; }  // form rows
    int64_t scorePanels() const { return (landmarks + LANES - 1) / LANES; }
    int64_t mixingPanels() const { return 3 * D() / LANES + scorePanels(); }
    // A linear layer of block l; the head belongs to none.
    Linear linear(int64_t l, int which) const {
        const int64_t own = D() / LANES, kind = kinds[which == HEAD ? layers * HEAD : l * HEAD + which];
        if (which <= SCORE) {
            const int64_t begin = which == QUERY ? 0 : which == KEY_VALUE ? own : 3 * own, at = l * mixingPanels() + begin;
            const int64_t count = which == QUERY ? own : which == KEY_VALUE ? 2 * own : scorePanels();
            return {mixing + at * channels * LANES, mixingBias + at * LANES, mixingScale + at * LANES, channels, count, kind};
        }
        if (which == OUT) return {out + l * D() * channels, outBias + l * D(), outScale + l * D(), channels, own, kind};
        if (which == UP) return {up + l * E() * channels, upBias + l * E(), upScale + l * E(), channels, E() / LANES, kind};
        if (which == DOWN) return {down + l * D() * hidden, downBias + l * D(), downScale + l * D(), hidden, own, kind};
        return {head, headBias, headScale, channels, (classes + LANES - 1) / LANES, kind};
    }
};

namespace {

// A state is an array of float: a header, then
// - form histories: blocks of 16 slots, as many as are needed; the token at position t is in slot t % window.
//   After the last block, once the window has been filled: the positions (layers, nodes) as int32, and blocks
//   with the nodes, best first.
// - form rows: the embedded rows (history - 1, D) without their positions; row t is in slot t % (history - 1).
// At the end there are 16 numbers more, because whole packs are read.
struct Header {
    int32_t mark, version;
    int64_t rows;       // rows read
    int32_t sizes[8];   // channels, layers, window, nodes, history, histories, heads, 0
};
static_assert(sizeof(Header) <= HEADER * sizeof(float), "the header has its place");
constexpr int32_t MARK = 0x50455453, VERSION = 1;

Header headerOf(const Step& m, int64_t rows) {
    Header h{};
    h.mark = MARK; h.version = VERSION; h.rows = rows;
    const int64_t sizes[8] = {m.channels, m.layers, m.window, m.nodes, m.history, m.histories, m.heads, 0};
    for (int i = 0; i < 8; ++i) h.sizes[i] = static_cast<int32_t>(sizes[i]);
    return h;
}
inline int64_t rowsOf(const float* state) { Header h; std::memcpy(&h, state, sizeof h); return h.rows; }
inline void setRows(const Step& m, float* state, int64_t rows) {
    const Header h = headerOf(m, rows);
    std::memset(state, 0, HEADER * sizeof(float));
    std::memcpy(state, &h, sizeof h);
}

// Numbers of the state after some rows of a history or segment. There is room for a multiple of 16 rows.
int64_t stateNumbers(const Step& m, int64_t rows) {
    const int64_t all = (rows + LANES - 1) / LANES;
    if (!m.histories) return HEADER + std::min(all * LANES, m.keptRows()) * m.D() + LANES;
    const int64_t blocks = std::min(all, m.ringBlocks());
    return HEADER + blocks * m.block() + (m.nodes && rows > m.window ? m.nodeNumbers() : 0) + LANES;
}

// Buffers of one thread for TOKENS tokens.
struct Scratch {
    std::vector<float> all;
    float *x, *h, *mixing, *mixed, *added, *up, *logits, *cosine, *sine, *chosen, *chosenQuery, *embedded, *rounded;
    float step[TOKENS];                  // steps of the rounded rows
    std::vector<float> part;             // sums of a part of the inputs
    std::vector<int32_t> total;          // and of all
    std::vector<float> windows;          // states of the windows of the form rows
    std::vector<float> moved;            // nodes while they are merged
    std::vector<float> best;             // (nodes,) scores while they are merged
    std::vector<int64_t> source, bins;   // (numeric,) bins of a row
    std::vector<float> fractions;        // (numeric,)
    float* sequence[TOKENS];
    int64_t at[TOKENS];
    bool target[TOKENS];
    int64_t targets[TOKENS];

    void prepare(const Step& m, int64_t panels) {
        const int64_t D = m.D(), E = m.E(), keys = (m.ringBlocks() + m.nodeBlocks()) * LANES, N = (m.classes + LANES - 1) / LANES * LANES;
        const int64_t sizes[] = {TOKENS * D, TOKENS * D, TOKENS * panels * LANES, TOKENS * (D + LANES), TOKENS * std::max(D, N), TOKENS * E,
                                 m.heads * keys, TOKENS * (m.pairs + 1), TOKENS * (m.pairs + 1), TOKENS * D, TOKENS * D, D, TOKENS * std::max(D, E)};
        float** const places[] = {&x, &h, &mixing, &mixed, &added, &up, &logits, &cosine, &sine, &chosen, &chosenQuery, &embedded, &rounded};
        int64_t total = 0;
        for (const int64_t size : sizes) total += size + LANES;
        if (static_cast<int64_t>(all.size()) < total) all.resize(total);
        if (static_cast<int64_t>(bins.size()) < m.numeric) { bins.resize(m.numeric); fractions.resize(m.numeric); }
        int64_t begin = 0;
        for (size_t i = 0; i < sizeof sizes / sizeof *sizes; ++i) { *places[i] = all.data() + begin; begin += sizes[i] + LANES; }
    }
};

// A score rounded for the selection; mirror of `ranked` in attention/scores.py.
inline float ranked(float score) {
    if (score != score) return NONE;
    int32_t bits;
    std::memcpy(&bits, &score, sizeof bits);
    bits = static_cast<int32_t>((static_cast<uint32_t>(bits) + 0x200u) & 0xfffffc00u);
    std::memcpy(&score, &bits, sizeof bits);
    return score;
}

// Probabilities (classes,) of the logits of the head.
void finish(const Step& m, const float* logits, float margin, float* out) {
    const double fraud = static_cast<double>(logits[0] + margin);
    const double small = std::exp(-std::fabs(fraud)), below = small / (1 + small), above = 1 / (1 + small);
    const double yes = fraud >= 0 ? above : below;
    out[0] = static_cast<float>(fraud == fraud ? (fraud >= 0 ? below : above) : fraud);
    if (m.binary) {
        out[1] = static_cast<float>(fraud == fraud ? yes : fraud);
        return;
    }
    double most = logits[1], total = 0;
    for (int64_t k = 2; k < m.classes; ++k) most = std::max(most, static_cast<double>(logits[k]));
    for (int64_t k = 1; k < m.classes; ++k) total += std::exp(logits[k] - most);
    for (int64_t k = 1; k < m.classes; ++k) out[k] = static_cast<float>(yes * (std::exp(logits[k] - most) / total));
}

#define ISA baseline
#define W 4
#include "step.inc"
#undef ISA
#undef W

#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
#define HAS_X86_SETS 1

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2")
#endif
#define ISA avx2
#define W 8
#include "step.inc"
#undef ISA
#undef W
#if defined(__clang__)
#pragma clang attribute pop
#pragma clang attribute push(__attribute__((target("avx512f,avx512dq,avx512bw,avx512vl"))), apply_to = function)
#else
#pragma GCC pop_options
#pragma GCC push_options
#pragma GCC target("avx512f,avx512dq,avx512bw,avx512vl,prefer-vector-width=512")
#endif
#define ISA avx512
#define W 16
#include "step.inc"
#undef ISA
#undef W
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif

}  // namespace

// The best instruction set of the processor: 0 for the compiler's baseline, 1 for AVX2, 2 for AVX-512.
EXPORT int32_t balancer_step_isa() {
#if defined(HAS_X86_SETS)
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl")) return 2;
    if (__builtin_cpu_supports("avx2")) return 1;
#endif
    return 0;
}

// The size of Step and the version of states, by which native.py detects a library of another version.
EXPORT int64_t balancer_step_layout() { return static_cast<int64_t>(sizeof(Step)) + 1000000 * VERSION; }

// Numbers of the state after some rows of a history (form rows) or of a segment (form histories).
EXPORT int64_t balancer_step_numbers(const Step* m, int64_t rows) { return stateNumbers(*m, rows); }

// Write the header of a state after `rows` rows.
EXPORT void balancer_step_begin(const Step* m, float* state, int64_t rows) { setRows(*m, state, rows); }

// Read the next row of each of `count` histories. `states` (count, 2): the state of the segment that gives the
// result and that of the next segment, or null; they have room for a row more. Returns 0, or 1 if memory could
// not be allocated; the states must then be thrown away.
EXPORT int32_t balancer_step_run(const Step* m, int64_t count, const float* fields, float* const* states, float* out) {
    try {
#if defined(HAS_X86_SETS)
        const int32_t isa = std::min(m->isa, balancer_step_isa());
        if (isa == 2) { avx512::run(*m, count, fields, states, out); return 0; }
        if (isa == 1) { avx2::run(*m, count, fields, states, out); return 0; }
#endif
        baseline::run(*m, count, fields, states, out);
    } catch (const std::exception&) {
        return 1;
    }
    return 0;
}

// Read `count` rows (count, fields) of one history into its state, which has room for them. The result is that of
// one row after another. Returns 0, or 1 if memory could not be allocated.
EXPORT int32_t balancer_step_read(const Step* m, int64_t count, const float* fields, float* state) {
    try {
#if defined(HAS_X86_SETS)
        const int32_t isa = std::min(m->isa, balancer_step_isa());
        if (isa == 2) { avx512::read(*m, count, fields, state); return 0; }
        if (isa == 1) { avx2::read(*m, count, fields, state); return 0; }
#endif
        baseline::read(*m, count, fields, state);
    } catch (const std::exception&) {
        return 1;
    }
    return 0;
}

// One linear layer by itself: rows x (count, inputs rounded up to a multiple of 16), out (count, panels * 16). `which` is its
// place in LAYERS of packing.py. Returns as balancer_step_run.
EXPORT int32_t balancer_step_linear(const Step* m, int64_t block, int64_t which, int64_t count, const float* x, float* out) {
    try {
        const Linear layer = m->linear(block, static_cast<int>(which));
#if defined(HAS_X86_SETS)
        const int32_t isa = std::min(m->isa, balancer_step_isa());
        if (isa == 2) { avx512::alone(*m, layer, count, x, out); return 0; }
        if (isa == 1) { avx2::alone(*m, layer, count, x, out); return 0; }
#endif
        baseline::alone(*m, layer, count, x, out);
    } catch (const std::exception&) {
        return 1;
    }
    return 0;
}

namespace {

// Copy the numbers of a state that later rows can depend on, without the empty slots of its blocks, from the state to
// `packed` or back. Returns their number; with null for `packed` nothing is copied.
int64_t copyPacked(const Step& m, float* state, float* packed, bool back) {
    int64_t place = 0;
    const auto copy = [&](float* from, int64_t count) {
        if (packed && back) std::memcpy(from, packed + place, count * sizeof(float));
        if (packed && !back) std::memcpy(packed + place, from, count * sizeof(float));
        place += count;
    };
    const int64_t rows = rowsOf(state), D = m.D(), channels = m.channels;
    if (!m.histories) {
        for (int64_t slot = 0; slot < std::min(rows, m.keptRows()); ++slot) copy(state + HEADER + slot * D, channels);
        return place;
    }
    const auto copyBlocks = [&](float* blocks, int64_t slots) {
        for (int64_t first = 0; first < slots; first += LANES) {
            const int64_t some = std::min<int64_t>(LANES, slots - first);
            for (int64_t l = 0; l < m.layers; ++l) {
                float* part = blocks + first / LANES * m.block() + l * m.part();
                if (m.nodes) { copy(part, some); copy(part + LANES, some); part += 2 * LANES; }
                for (int64_t c = 0; c < channels; ++c) copy(part + c * LANES, some);
                for (int64_t i = 0; i < some; ++i) copy(part + LANES * D + i * D, channels);
            }
        }
    };
    copyBlocks(state + HEADER, std::min(rows, m.window));
    if (m.nodes && rows > m.window) {
        float* nodes = state + HEADER + m.ringBlocks() * m.block();
        copy(nodes, m.layers * m.nodeBlocks() * LANES);
        copyBlocks(nodes + m.layers * m.nodeBlocks() * LANES, m.nodes);
    }
    return place;
}

}  // namespace

// Numbers of the packed state after some rows.
EXPORT int64_t balancer_step_packed_numbers(const Step* m, int64_t rows) {
    float header[HEADER];
    setRows(*m, header, rows);
    return copyPacked(*m, header, nullptr, false);
}

// Write the packed state.
EXPORT void balancer_step_pack(const Step* m, float* state, float* packed) { copyPacked(*m, state, packed, false); }

// Fill a state after `rows` rows, which is all zeros and has the room, from its packed form.
EXPORT void balancer_step_unpack(const Step* m, float* state, int64_t rows, float* packed) {
    setRows(*m, state, rows);
    copyPacked(*m, state, packed, true);
}
