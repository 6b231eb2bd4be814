// Sums over rows of what each channel would bring to each slot; the definition is in exchange.py.

#include "vectors.h"

namespace {
constexpr int64_t kSlots = 4;  // that share each read of a row
constexpr int64_t kWide = 8;   // numbers of a vector that every x86-64 since 2013 holds in a register
using Wide = float __attribute__((vector_size(32)));
}  // namespace

extern "C" void exchange_gains(const float* score, const float* threshold, const float* value,
                               const float* held, float* gains, int64_t rows, int64_t channels,
                               int64_t slots) {
#pragma omp parallel for schedule(dynamic)
  for (int64_t first = 0; first < slots; first += kSlots) {
    const int64_t last = std::min(first + kSlots, slots);
    for (int64_t r = 0; r < rows; ++r) {
      const float* s = score + r * channels;
      const float* v = value + r * channels;
      for (int64_t j = first; j < last; ++j) {
        const float bar = threshold[r * slots + j], lost = held[r * slots + j];
        float* out = gains + j * channels;
        int64_t i = 0;
        for (; i + kWide <= channels; i += kWide) {
          const auto above = load<Wide>(s + i) > bar;
          const Wide sum = load<Wide>(out + i) + (above ? load<Wide>(v + i) - lost : Wide{});
          std::memcpy(out + i, &sum, sizeof sum);
        }
        for (; i < channels; ++i) out[i] += s[i] > bar ? v[i] - lost : 0.0f;
      }
    }
  }
}
