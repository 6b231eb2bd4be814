// Whom a channel has to beat in each slot, and what it would bring there, summed over rows; the
// definitions are in exchange.py.

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

extern "C" void rivals(const float* score, float* threshold, int64_t* slot, int64_t rows,
                       int64_t columns, int64_t group, int64_t keep) {
#pragma omp parallel for schedule(static)
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t first = 0; first < columns; first += group) {
      const float* entry = score + r * columns + first;
      int64_t* place = slot + r * columns + first;  // ranks until all are known
      int64_t last_in = 0, first_out = 0;
      for (int64_t i = 0; i < group; ++i) {
        int64_t rank = 0;
        for (int64_t j = 0; j < group; ++j)
          rank += entry[j] > entry[i] || (entry[j] == entry[i] && j < i);
        if (rank == keep - 1) last_in = i;
        if (rank == keep) first_out = i;
        place[i] = rank;
      }
      for (int64_t i = 0; i < group; ++i) {
        const int64_t rival = place[i] < keep ? first_out : last_in;
        threshold[r * columns + first + i] = entry[rival];
        place[i] = first + rival;
      }
    }
  }
}
