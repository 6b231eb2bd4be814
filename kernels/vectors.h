// Vectors of sixteen numbers in plain GCC vector types, and the number formats of caches and weights.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <omp.h>
#include <type_traits>

namespace {

constexpr int kLanes = 16; // numbers of a vector

using Floats = float __attribute__((vector_size(64)));
using Words = uint32_t __attribute__((vector_size(64)));
using Halves = uint16_t __attribute__((vector_size(32)));

struct BFloat16 {
  uint16_t bits;
};

struct Float16 {
  uint16_t bits;
};

template <class To, class From> To as(From value) {
  static_assert(sizeof(To) == sizeof(From));
  To result;
  std::memcpy(&result, &value, sizeof(To));
  return result;
}

template <class Vector> Vector load(const void *place) {
  Vector result;
  std::memcpy(&result, place, sizeof(Vector));
  return result;
}

inline float widen(float value) { return value; }
inline float widen(BFloat16 value) { return as<float>(uint32_t(value.bits) << 16); }

inline Floats widen16(const float *place) { return load<Floats>(place); }
inline Floats widen16(const BFloat16 *place) {
  return as<Floats>(__builtin_convertvector(load<Halves>(place), Words) << 16);
}

// Correct for all finite numbers: the exponent is moved by a product.
inline Floats widen16(const Float16 *place) {
  const Words bits = __builtin_convertvector(load<Halves>(place), Words);
  const Floats size = as<Floats>((bits & 0x7fff) << 13) * 0x1p112f;
  return as<Floats>(as<Words>(size) | ((bits & 0x8000) << 16));
}

// Round to nearest, ties to even.
template <class Bits> Bits rounded_bits(Bits bits) { return bits + 0x7fff + ((bits >> 16) & 1); }

inline void narrow(float value, float *place) { *place = value; }
inline void narrow(float value, BFloat16 *place) {
  place->bits = uint16_t(rounded_bits(as<uint32_t>(value)) >> 16);
}
inline void narrow(Floats value, float *place) { std::memcpy(place, &value, sizeof value); }
inline void narrow(Floats value, BFloat16 *place) {
  const Halves halves = __builtin_convertvector(rounded_bits(as<Words>(value)) >> 16, Halves);
  std::memcpy(place, &halves, sizeof halves);
}

// The value that is left after a store as T.
template <class T, class Value> Value rounded(Value value) {
  if constexpr (sizeof(T) == sizeof(float)) return value;
  using Bits = std::conditional_t<sizeof(Value) == sizeof(float), uint32_t, Words>;
  return as<Value>(rounded_bits(as<Bits>(value)) & 0xffff0000u);
}

inline float sum(Floats values) {
  float total = 0;
  for (int lane = 0; lane < kLanes; ++lane) total += values[lane];
  return total;
}

// Cephes' expf, correct to 2 ulp.
inline Floats exp(Floats x) {
  x = x < -87.0f ? Floats{} - 87.0f : x;
  x = x > 88.0f ? Floats{} + 88.0f : x;
  const Floats shifted = x * 1.44269504f + 12582912.0f; // the last bits hold the rounded integer
  const Floats whole = shifted - 12582912.0f;
  const Floats rest = x - whole * 0.693359375f + whole * 2.12194440e-4f;
  Floats series = Floats{} + 1.9875691500e-4f;
  for (float factor : {1.3981999507e-3f, 8.3334519073e-3f, 4.1665795894e-2f, 1.6666665459e-1f,
                       5.0000001201e-1f})
    series = series * rest + factor;
  series = series * rest * rest + rest + 1.0f;
  return as<Floats>(as<Words>(series) + (as<Words>(shifted) << 23));
}

// Rows become columns.
inline void transpose(Words (&rows)[kLanes]) {
  constexpr Words low = {0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23};
  constexpr Words high = {8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
  for (int turn = 0; turn < 4; ++turn) {
    Words mixed[kLanes];
    for (int i = 0; i < kLanes / 2; ++i) {
      mixed[2 * i] = __builtin_shuffle(rows[i], rows[i + kLanes / 2], low);
      mixed[2 * i + 1] = __builtin_shuffle(rows[i], rows[i + kLanes / 2], high);
    }
    std::copy(mixed, mixed + kLanes, rows);
  }
}

struct Range {
  int64_t begin, end;
};

inline Range share(int64_t count, int thread, int threads) {
  return {count * thread / threads, count * (thread + 1) / threads};
}

template <class T> std::unique_ptr<T[]> buffer(int64_t count) {
  return std::unique_ptr<T[]>(new T[count]);
}

} // namespace
