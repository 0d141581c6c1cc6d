// Raw scores and contributions of boosted trees. It is called by balancer/trees/native.py, with arrays that
// balancer/trees/layout.py made and balancer/trees/model_text.py checked: no index is checked here.
//
// Every value of a row becomes an integer key, in which the treatment of missing values is included, so that a
// split is one comparison. A tree is a list of nodes. Both children of a node lie side by side, so one subtraction chooses between them,
// and a leaf is its own child. Several walks are made at the same time, because one walk by itself waits for
// the memory at every step: several rows through one tree, or one row through several trees. Leaves are added
// in the order of the trees, as LightGBM does it, so the sums have the same bits.

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <exception>
#include <limits>
#include <new>
#include <thread>
#include <utility>
#include <vector>

#if defined(_WIN32)
#define EXPORT extern "C" __declspec(dllexport)
#else
#define EXPORT extern "C" __attribute__((visibility("default")))
#endif

namespace {

// Mirror of NODE in layout.py.
struct Node {
    int32_t threshold;  // keys below it go left; no key is below that of a leaf or of a categorical split
    uint32_t column;    // column of the keys
    uint32_t right;     // position of the child on the right; the child on the left is one before it
    uint32_t set;       // position of the categorical set in `words`; 0 is the empty set
};

constexpr float ZERO = 1e-35f;          // LightGBM takes smaller magnitudes for zero
constexpr int LANES = 8;                // walks at the same time
constexpr int64_t CACHED = 6144;        // keys of a block of rows: they stay in the first-level cache
constexpr int64_t LONGEST_BLOCK = 256;
constexpr int64_t SHORTEST_SHARE = 64;  // rows for which a further thread pays off

// How a key is made of a value. Mirror of Kind in layout.py.
enum { MISSING_RIGHT, MISSING_LEFT, ZERO_RIGHT, ZERO_LEFT, CODE, KINDS };

}  // namespace

// Mirror of _Trees in native.py.
struct Trees {
    const Node* nodes;
    const double* values;      // (nodes,) value of a leaf
    const uint32_t* words;     // categorical sets: the number of words, the words, and a zero
    const uint32_t* roots;     // (trees + 1,) first node of every tree, and the end
    const uint8_t* special;    // (trees,) the tree has categorical splits
    const int32_t* sources;    // (columns,) feature of which the column is made
    const int64_t* kinds;      // (KINDS + 1,) first column of every kind, and the end
    int64_t trees, outputs, features, columns;
};

// Mirror of _Paths in native.py. An edge is named by the node at its lower end.
struct Paths {
    const uint32_t* parent;    // (nodes,) node at the upper end
    const int32_t* previous;   // (nodes,) edge above it with the same feature, or -1
    const int32_t* feature;    // (nodes,) column
    const double* share;       // (nodes,) share of the training rows that take all edges of this feature down to here
    const int32_t* points;     // (trees,) number of points of integration
    const double* rules;       // for every number q of points, at q (q - 1): q points, then q weights
    const double* expected;    // (outputs,)
    int64_t mostPoints, mostNodes;
};

namespace {

// The bits of a number as an integer of the same order.
inline int32_t ordered(float v) {
    int32_t bits;
    std::memcpy(&bits, &v, sizeof bits);
    return bits ^ ((bits >> 31) & std::numeric_limits<int32_t>::max());
}

// Write the keys (columns,) of one row. A key below or above those of all numbers sends a missing value left or right.
void loadRow(const Trees& trees, const float* x, int32_t* keys) {
    constexpr int32_t low = std::numeric_limits<int32_t>::min(), high = std::numeric_limits<int32_t>::max();
    const auto fill = [&](int kind, auto key) {
        for (int64_t c = trees.kinds[kind]; c < trees.kinds[kind + 1]; ++c) {
            const float v = x[trees.sources[c]];
            keys[c] = key(std::fabs(v) <= ZERO ? 0.0f : v);
        }
    };
    fill(MISSING_RIGHT, [&](float v) { return v != v ? high : ordered(v); });
    fill(MISSING_LEFT, [&](float v) { return v != v ? low : ordered(v); });
    fill(ZERO_RIGHT, [&](float v) { return v != v || v == 0.0f ? high : ordered(v); });
    fill(ZERO_LEFT, [&](float v) { return v != v || v == 0.0f ? low : ordered(v); });
    // Rounded towards zero. Negative numbers, NaN and numbers that are too large are in no set.
    fill(CODE, [&](float v) { return v > -1.0f && v < 2147483648.0f ? static_cast<int32_t>(v) : -1; });
}

// 1 if a row goes left at a node, else 0.
template <bool SPECIAL>
inline uint32_t left(const Node& node, const int32_t* keys, const uint32_t* words) {
    const int32_t key = keys[node.column];
    uint32_t goes = key < node.threshold;
    if (SPECIAL) {
        const uint32_t code = static_cast<uint32_t>(key);
        const uint32_t* set = words + node.set;
        goes |= set[1 + std::min(code >> 5, set[0])] >> (code & 31) & 1;
    }
    return goes;
}

// Walk from `at[lane]` in every lane, until all are at leaves.
template <bool SPECIAL, typename Keys>
inline void walk(const Trees& trees, uint32_t* at, Keys keysOf) {
    for (uint32_t moved = 1; moved;) {
        moved = 0;
        for (int lane = 0; lane < LANES; ++lane) {
            const Node& node = trees.nodes[at[lane]];
            const uint32_t next = node.right - left<SPECIAL>(node, keysOf(lane), trees.words);
            moved |= next ^ at[lane];
            at[lane] = next;
        }
    }
}

// Add tree after tree to the scores (count, outputs) of a block with the keys (count, columns).
void scoreBlock(const Trees& trees, const int32_t* keys, int64_t count, double* scores) {
    const int64_t width = trees.columns, outputs = trees.outputs;
    const int64_t whole = count - count % LANES;
    uint32_t at[LANES];
    for (int64_t t = 0; whole && t < trees.trees; ++t) {
        for (int64_t r = 0; r < whole; r += LANES) {
            std::fill(at, at + LANES, trees.roots[t]);
            const auto keysOf = [&](int lane) { return keys + (r + lane) * width; };
            if (trees.special[t])
                walk<true>(trees, at, keysOf);
            else
                walk<false>(trees, at, keysOf);
            for (int lane = 0; lane < LANES; ++lane) scores[(r + lane) * outputs + t % outputs] += trees.values[at[lane]];
        }
    }
    for (int64_t r = whole; r < count; ++r) {
        const auto keysOf = [&](int) { return keys + r * width; };
        for (int64_t t = 0; t < trees.trees; t += LANES) {
            const int lanes = static_cast<int>(std::min<int64_t>(LANES, trees.trees - t));
            bool special = false;
            for (int lane = 0; lane < LANES; ++lane) {
                const int64_t tree = t + std::min(lane, lanes - 1);
                at[lane] = trees.roots[tree];
                special |= trees.special[tree] != 0;
            }
            if (special)
                walk<true>(trees, at, keysOf);
            else
                walk<false>(trees, at, keysOf);
            for (int lane = 0; lane < lanes; ++lane) scores[r * outputs + (t + lane) % outputs] += trees.values[at[lane]];
        }
    }
}

// Memory of one thread for contributions, (nodes of a tree, points) each.
struct Scratch {
    std::vector<int32_t> keys;
    std::vector<double> product, inverse, sum, one;
};

// Contributions of one row, (outputs, features + 1). The Shapley value of feature f over the leaves of a tree is
// the sum of v (o_f - z_f) times the integral over t from 0 to 1 of the product of z_g (1 - t) + o_g t over the
// other features g of the leaf's path. Here z_g is the share of the training rows that takes the path's edges
// of g, and o_g is 1 if the row takes them, else 0. The rule of Gauss and Legendre is exact for this
// polynomial, and all its terms are positive.
void explainRow(const Trees& trees, const Paths& paths, const int32_t* keys, Scratch& m, double* out) {
    const int64_t width = trees.features + 1;
    for (int64_t k = 0; k < trees.outputs; ++k) {
        std::fill(out + k * width, out + (k + 1) * width, 0.0);
        out[(k + 1) * width - 1] = paths.expected[k];
    }
    for (int64_t t = 0; t < trees.trees; ++t) {
        const int64_t root = trees.roots[t], nodes = trees.roots[t + 1] - root, q = paths.points[t];
        if (nodes == 1) continue;
        const double* point = paths.rules + q * (q - 1);
        const double* weight = point + q;
        double* phi = out + (t % trees.outputs) * width;
        std::fill(m.product.begin(), m.product.begin() + q, 1.0);
        std::fill(m.sum.begin(), m.sum.begin() + nodes * q, 0.0);
        m.one[0] = 1.0;
        for (int64_t i = 1; i < nodes; ++i) {
            const int64_t edge = root + i, parent = paths.parent[edge];
            const int64_t previous = paths.previous[edge] < 0 ? -1 : paths.previous[edge] - root;
            const Node& node = trees.nodes[parent];
            const bool taken = node.right - left<true>(node, keys, trees.words) == edge;
            const double one = taken && (previous < 0 || m.one[previous] != 0.0) ? 1.0 : 0.0, zero = paths.share[edge];
            m.one[i] = one;
            const double* above = m.product.data() + (parent - root) * q;
            double *product = m.product.data() + i * q, *inverse = m.inverse.data() + i * q;
            const double* undone = previous < 0 ? inverse : m.inverse.data() + previous * q;
            for (int64_t p = 0; p < q; ++p) {
                const double factor = zero * (1.0 - point[p]) + one * point[p];
                // Where the factor is zero the whole subtree adds nothing.
                inverse[p] = factor > 0.0 ? 1.0 / factor : 0.0;
                product[p] = above[p] * factor * (previous < 0 ? 1.0 : undone[p]);
            }
        }
        for (int64_t i = nodes - 1; i > 0; --i) {
            const int64_t edge = root + i;
            const int64_t previous = paths.previous[edge] < 0 ? -1 : paths.previous[edge] - root;
            double* sum = m.sum.data() + i * q;
            if (trees.nodes[edge].right == edge) {
                const double* product = m.product.data() + i * q;
                for (int64_t p = 0; p < q; ++p) sum[p] = trees.values[edge] * product[p];
            }
            double* above = m.sum.data() + (paths.parent[edge] - root) * q;
            const double* inverse = m.inverse.data() + i * q;
            const double* undone = previous < 0 ? inverse : m.inverse.data() + previous * q;
            const double gain = m.one[i] - paths.share[edge];
            const double taken = previous < 0 ? 0.0 : m.one[previous] - paths.share[root + previous];
            double total = 0.0;
            for (int64_t p = 0; p < q; ++p) {
                above[p] += sum[p];
                total += weight[p] * sum[p] * (gain * inverse[p] - (previous < 0 ? 0.0 : taken * undone[p]));
            }
            phi[paths.feature[edge]] += total;
        }
    }
}

// Call work(first row, number of rows) for blocks of rows on up to `threads` threads.
template <typename Work>
void inBlocks(int64_t rows, int64_t block, int32_t threads, Work work) {
    const int64_t blocks = (rows + block - 1) / block;
    std::atomic<int64_t> next{0};
    std::atomic<bool> failed{false};
    const auto run = [&] {
        try {
            auto state = work();
            for (int64_t b; !failed && (b = next++) < blocks;) state(b * block, std::min(block, rows - b * block));
        } catch (const std::exception&) {
            failed = true;
        }
    };
    std::vector<std::thread> team;
    try {
        for (int64_t i = 1; i < std::min<int64_t>({threads, blocks, rows / SHORTEST_SHARE}); ++i) team.emplace_back(run);
    } catch (const std::exception&) {
        // The system gives no more threads: fewer do the work.
    }
    run();
    for (std::thread& thread : team) thread.join();
    if (failed) throw std::bad_alloc();
}

int64_t blockOf(const Trees& trees) {
    const int64_t block = std::min(LONGEST_BLOCK, CACHED / std::max<int64_t>(trees.columns, 1));
    return std::max<int64_t>(block - block % LANES, 2 * LANES);
}

}  // namespace

// Sizes of the structures, for a check of the mirrors.
EXPORT int64_t balancer_trees_layout() { return static_cast<int64_t>(sizeof(Node) + 1000 * sizeof(Trees) + 1000000 * sizeof(Paths)); }

// Write the raw scores (rows, outputs). Returns 1 if memory is lacking.
EXPORT int32_t balancer_trees_raw(const Trees* trees, const float* x, int64_t rows, int64_t stride, int32_t threads, double* out) {
    try {
        const int64_t size = blockOf(*trees);
        inBlocks(rows, size, threads, [&] {
            return [&, keys = std::vector<int32_t>(static_cast<size_t>(std::min(size, rows) * trees->columns))](int64_t first, int64_t count) mutable {
                double* scores = out + first * trees->outputs;
                std::fill(scores, scores + count * trees->outputs, 0.0);
                for (int64_t r = 0; r < count; ++r) loadRow(*trees, x + (first + r) * stride, keys.data() + r * trees->columns);
                scoreBlock(*trees, keys.data(), count, scores);
            };
        });
    } catch (const std::exception&) {
        return 1;
    }
    return 0;
}

// Write the contributions (rows, outputs, features + 1). Returns 1 if memory is lacking.
EXPORT int32_t balancer_trees_contributions(const Trees* trees, const Paths* paths, const float* x, int64_t rows, int64_t stride, int32_t threads,
                                            double* out) {
    try {
        inBlocks(rows, 2 * LANES, threads, [&] {
            Scratch scratch;
            const size_t size = static_cast<size_t>(paths->mostNodes * paths->mostPoints);
            for (auto* part : {&scratch.product, &scratch.inverse, &scratch.sum}) part->resize(size);
            scratch.one.resize(static_cast<size_t>(paths->mostNodes));
            scratch.keys.resize(static_cast<size_t>(trees->columns));
            return [&, scratch = std::move(scratch)](int64_t first, int64_t count) mutable {
                for (int64_t r = first; r < first + count; ++r) {
                    loadRow(*trees, x + r * stride, scratch.keys.data());
                    explainRow(*trees, *paths, scratch.keys.data(), scratch, out + r * trees->outputs * (trees->features + 1));
                }
            };
        });
    } catch (const std::exception&) {
        return 1;
    }
    return 0;
}
