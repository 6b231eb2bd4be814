// Reading a cache whose keys keep few channels per token; see packed_keys.py for the format.
//
// A key is rebuilt in registers, sixteen channels at a time, and multiplied with the queries of its
// group at once, so no dense key is ever written to memory.

#include "vectors.h"

#if defined(__AVX512F__)
#include <immintrin.h>
#endif

namespace {

// `rest`, with the places that `keep` marks filled in order from `values`.
inline Floats filled(Floats rest, uint32_t keep, const float *values) {
#if defined(__AVX512F__)
  return (Floats)_mm512_mask_expand_ps((__m512)rest, __mmask16(keep), _mm512_loadu_ps(values));
#else
  for (; keep; keep &= keep - 1) rest[__builtin_ctz(keep)] = *values++;
  return rest;
#endif
}

inline uint32_t bits16(const uint8_t *octets, int octet, int count) {
  return octets[octet] | (octet + 1 < count ? octets[octet + 1] << 8 : 0);
}

struct Keys {
  const void *values;         // (heads, tokens, kept)
  const uint8_t *mask, *sign; // (heads, tokens, channels / 8)
  const void *gain;           // (heads, tokens)
  const float *unit;          // (heads, channels)
  int64_t heads, tokens;
  int32_t channels, kept;
};

// scores (heads, group, tokens) = query (heads, group, channels) . keys
template <class Value, class Gain>
void score(const Keys &keys, const float *query, float *scores, int group, int threads) {
  const int octets = (keys.channels + 7) / 8, slices = (keys.channels + kLanes - 1) / kLanes;
  const int64_t blocks = (keys.tokens + kLanes - 1) / kLanes;
  const Words places = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  // Queries and units of all heads, padded with zeros to whole vectors.
  auto padded = buffer<Floats>((keys.heads * (group + 1)) * slices);
  for (int64_t row = 0; row < keys.heads * (group + 1); ++row) {
    const int64_t head = row / (group + 1), member = row % (group + 1);
    const float *from = member < group ? query + (head * group + member) * keys.channels
                                       : keys.unit + head * keys.channels;
    float *to = reinterpret_cast<float *>(padded.get() + row * slices);
    std::fill(std::copy_n(from, keys.channels, to), to + slices * kLanes, 0.0f);
  }
#pragma omp parallel num_threads(threads)
  {
    auto sums = buffer<Words>(int64_t(group) * kLanes);
    auto kept = buffer<float>(keys.kept + 2 * kLanes);
    const Range mine = share(keys.heads * blocks, omp_get_thread_num(), omp_get_num_threads());
    for (int64_t block = mine.begin; block < mine.end; ++block) {
      const int64_t head = block / blocks, first = block % blocks * kLanes;
      const int count = int(std::min<int64_t>(kLanes, keys.tokens - first));
      const Floats *queries = padded.get() + head * (group + 1) * slices;
      const Floats *unit = queries + int64_t(group) * slices;
      std::memset(static_cast<void *>(sums.get()), 0, sizeof(Words) * group * kLanes);
      for (int key = 0; key < count; ++key) {
        const int64_t token = head * keys.tokens + first + key;
        const uint8_t *mask = keys.mask + token * octets, *sign = keys.sign + token * octets;
        const Value *values = static_cast<const Value *>(keys.values) + token * keys.kept;
        int done = 0;
        for (; done + kLanes <= keys.kept; done += kLanes)
          narrow(widen16(values + done), kept.get() + done);
        if (done < keys.kept) { // do not read behind the last row
          Value tail[kLanes] = {};
          std::copy_n(values + done, keys.kept - done, tail);
          narrow(widen16(tail), kept.get() + done);
        }
        Gain gains[kLanes] = {static_cast<const Gain *>(keys.gain)[token]};
        const float gain = widen16(gains)[0];
        const float *next = kept.get();
        for (int slice = 0; slice < slices; ++slice) {
          const uint32_t keep = bits16(mask, 2 * slice, octets);
          const Words negative = (Words{} + bits16(sign, 2 * slice, octets)) >> places << 31;
          const Floats rest = as<Floats>(as<Words>(unit[slice] * gain) ^ negative);
          const Floats value = filled(rest, keep, next);
          next += __builtin_popcount(keep);
          for (int member = 0; member < group; ++member) {
            Words &sum = sums[int64_t(member) * kLanes + key];
            sum = as<Words>(as<Floats>(sum) + value * queries[member * slices + slice]);
          }
        }
      }
      for (int member = 0; member < group; ++member) {
        Words columns[kLanes];
        std::copy_n(sums.get() + int64_t(member) * kLanes, kLanes, columns);
        transpose(columns);
        Floats total{};
        for (const Words &column : columns) total += as<Floats>(column);
        float *to = scores + (head * group + member) * keys.tokens + first;
        std::memcpy(to, &total, count * sizeof(float));
      }
    }
  }
}

// mixed (heads, group, channels) = weights (heads, group, tokens), rows `stride` apart, times
// values (heads, tokens, channels); channels a multiple of 16
template <class Value>
void mix(const float *weights, int64_t stride, const void *stored, float *mixed, int64_t heads,
         int64_t tokens, int group, int channels, int threads) {
  const int slices = channels / kLanes;
  const int64_t size = heads * group * slices;
  auto partial = buffer<Floats>(threads * size);
  std::memset(static_cast<void *>(partial.get()), 0, sizeof(Floats) * threads * size);
#pragma omp parallel num_threads(threads)
  {
    Floats *mine = partial.get() + omp_get_thread_num() * size;
    const Range all = share(heads * tokens, omp_get_thread_num(), omp_get_num_threads());
    for (int64_t head = tokens ? all.begin / tokens : heads; head * tokens < all.end; ++head) {
      const int64_t begin = std::max(all.begin, head * tokens);
      const int64_t end = std::min(all.end, (head + 1) * tokens);
      for (int slice = 0; slice < slices; ++slice)
        for (int member = 0; member < group; member += 4) {
          const int members = std::min(4, group - member);
          Floats sums[4] = {};
          for (int64_t token = begin; token < end; ++token) {
            const Floats value =
                widen16(static_cast<const Value *>(stored) + token * channels + slice * kLanes);
            const float *weight = weights + (head * group + member) * stride + token - head * tokens;
            for (int one = 0; one < members; ++one) sums[one] += value * weight[one * stride];
          }
          for (int one = 0; one < members; ++one)
            mine[(head * group + member + one) * slices + slice] = sums[one];
        }
    }
  }
  for (int64_t place = 0; place < size; ++place) {
    Floats total{};
    for (int thread = 0; thread < threads; ++thread) total += partial[thread * size + place];
    narrow(total, mixed + place * kLanes);
  }
}

} // namespace

#define SCORE(name, Value, Gain)                                                                   \
  extern "C" void score_##name(const Keys *keys, const float *query, float *scores, int32_t group, \
                               int32_t threads) {                                                  \
    score<Value, Gain>(*keys, query, scores, group, threads);                                      \
  }
SCORE(float32, float, Float16)
SCORE(float16, Float16, Float16)
SCORE(bfloat16, BFloat16, BFloat16)

#define MIX(name, Value)                                                                           \
  extern "C" void mix_##name(const float *weights, int64_t stride, const void *values,             \
                             float *mixed, int64_t heads, int64_t tokens, int32_t group,           \
                             int32_t channels, int32_t threads) {                                  \
    mix<Value>(weights, stride, values, mixed, heads, tokens, group, channels, threads);           \
  }
MIX(float32, float)
MIX(float16, Float16)
MIX(bfloat16, BFloat16)
