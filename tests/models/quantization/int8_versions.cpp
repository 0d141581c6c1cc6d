// Compares every version of the INT8 kernel that this processor can run with the portable one, to the last bit.
// test_int8_kernel.py compiles it, for aarch64 too, where it runs in an emulator.

#include "int8_linear.cpp"

#include <cstdio>
#include <vector>

namespace {

uint64_t state = 1;

float uniform() {  // in (-1, 1)
    state = state * 6364136223846793005ull + 1442695040888963407ull;
    return static_cast<float>(static_cast<int64_t>(state >> 40) - (1 << 23)) / (1 << 23);
}

std::vector<float> run(int64_t version, const std::vector<int8_t>& weight, const std::vector<float>& x, const std::vector<float>& scale,
                       const std::vector<float>& bias, int64_t m, int64_t n, int64_t k) {
    std::vector<int8_t> packed(static_cast<size_t>(balancer_int8_packed_bytes(version, weight.data(), n, k)));
    std::vector<int32_t> sums(static_cast<size_t>(balancer_int8_packed_channels(version, n)));
    balancer_int8_pack(version, weight.data(), n, k, packed.data(), sums.data());
    const Layer layer{packed.empty() ? weight.data() : packed.data(), sums.data(), scale.data(), bias.empty() ? nullptr : bias.data(), n, k, version};
    std::vector<float> y(static_cast<size_t>(m * n), -1.0f);
    if (balancer_int8_linear(&layer, x.data(), m, y.data(), 1)) std::abort();
    return y;
}

}  // namespace

int main() {
    const int64_t supported = balancer_int8_supported();
    int64_t compared = 0, different = 0;
    for (const int64_t m : {1, 2, 5, 6, 7, 50, 100})
        for (const int64_t n : {1, 3, 15, 16, 63, 64, 65})
            for (const int64_t k : {1, 3, 4, 16, 63, 64, 65, 515, 1100}) {
                std::vector<float> x(static_cast<size_t>(m * k)), scale(static_cast<size_t>(n)), bias(static_cast<size_t>(compared % 2 ? n : 0));
                std::vector<int8_t> weight(static_cast<size_t>(n * k));
                for (auto& value : x) value = uniform();
                for (auto& value : scale) value = uniform();
                for (auto& value : bias) value = uniform();
                for (auto& value : weight) {  // uniform, then as in trained layers: few large ones
                    const float part = uniform();
                    value = static_cast<int8_t>(127.4f * (compared % 5 < 2 ? part : part * part * part * part * part));
                }
                for (int64_t j = 0; j < k && j < 8; ++j) weight[static_cast<size_t>(j)] = j % 3 ? 127 : -127;
                for (int64_t j = 0; j < k; ++j) {  // magnitudes that are extreme, and ties
                    if (m > 1) x[static_cast<size_t>(k + j)] *= 1e38f;
                    if (m > 2) x[static_cast<size_t>(2 * k + j)] *= 1e-41f;
                    if (m > 3) x[static_cast<size_t>(3 * k + j)] = j ? static_cast<float>(j % 254 - 127) + 0.5f : 127.0f;
                    if (m > 4) x[static_cast<size_t>(4 * k + j)] = j % 2 ? -127.0f : 127.0f;
                    if (m > 6) x[static_cast<size_t>(6 * k + j)] = 0.0f;
                }
                if (m > 5) x[static_cast<size_t>(6 * k - 1)] = compared % 3 ? std::numeric_limits<float>::infinity() : std::numeric_limits<float>::quiet_NaN();
                const std::vector<float> expected = run(0, weight, x, scale, bias, m, n, k);
                for (int64_t version = 1; version < NUM_VERSIONS; ++version) {
                    if (!(supported >> version & 1)) continue;
                    const std::vector<float> found = run(version, weight, x, scale, bias, m, n, k);
                    for (size_t i = 0; i < found.size(); ++i) {
                        const bool same = std::isnan(expected[i]) ? std::isnan(found[i]) : !std::memcmp(&found[i], &expected[i], sizeof(float));
                        if (!same && different++ < 5)
                            std::printf("version %d, m %d, n %d, k %d: %g, not %g\n", int(version), int(m), int(n), int(k), double(found[i]), double(expected[i]));
                    }
                    ++compared;
                }
                ++compared;
            }
    std::printf("versions %d, compared %d, different %d\n", int(supported), int(compared), int(different));
    return different > 0;
}
