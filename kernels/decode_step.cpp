// One pass of a Llama-shaped model over a few tokens behind a cache, as one call.
//
// A pass over one token reads every weight once and computes next to nothing with it. So the whole
// pass runs in one parallel region: each thread streams its share of every weight matrix, and the
// threads meet five times per block. Numbers are rounded to the model's type wherever transformers
// rounds them; sums are kept in float32.
//
// Everything that is multiplied is seen as 32-bit words: one float32, or two neighbouring bfloat16.
// A weight is packed as [block of 16 rows][word][16 rows], so a vector holds one word of 16 rows and
// a product needs no sum across lanes. The C types below are mirrored in
// effllm/modules/decoding/native_step.py.

#include "vectors.h"

#if defined(__AVX512BF16__)
#include <immintrin.h>
#endif

namespace {

// Sums must stay in registers, so they are held in parts as wide as one: compilers keep wider vectors
// in memory. kTokens: most tokens that share a loaded weight; that many sums are held at a time.
#if defined(__AVX512F__)
constexpr int kPart = 16, kTokens = 16;
#elif defined(__AVX__)
constexpr int kPart = 8, kTokens = 6;
#else
constexpr int kPart = 4, kTokens = 6;
#endif
constexpr int kParts = kLanes / kPart;
using PartFloats = float __attribute__((vector_size(4 * kPart)));
using PartWords = uint32_t __attribute__((vector_size(4 * kPart)));
constexpr int kAhead = 64;  // words between the one in use and the one asked for
constexpr int kQueries = 8; // most queries that share a loaded key or value
constexpr int kChunk = 64;  // cached tokens that one thread attends to at a time
constexpr int kRows = 128;  // queries scored against a block of keys at a time
constexpr float kHidden = -1e30f;

// sum + weight * input, per lane; the word of the input is the same for all lanes.
template <class T, class Sum, class Weight> Sum accumulate(Sum sum, Weight weight, uint32_t input) {
  if constexpr (sizeof(T) == sizeof(float)) return sum + as<Sum>(weight) * as<float>(input);
#if defined(__AVX512BF16__)
  return _mm512_dpbf16_ps(sum, as<__m512bh>(weight), as<__m512bh>(_mm512_set1_epi32(int(input))));
#else
  const Sum low = as<Sum>(weight << 16), high = as<Sum>(weight & 0xffff0000u);
  return sum + low * as<float>(input << 16) + high * as<float>(input & 0xffff0000u);
#endif
}

// ---- arguments ----------------------------------------------------------------------------------

struct Product {        // a linear layer
  const uint32_t *packed;
  const float *bias;    // null, or one per row
  int32_t blocks;       // rows / 16
  int32_t words;        // words of an input
};

struct Layer {
  const float *attention_norm, *query_norm, *key_norm, *ffn_norm; // null: no such norm
  Product qkv;          // query heads, sorted by the key head that they read; key heads; value heads
  Product output;
  Product gate_up;      // blocks of gate and up rows in turn
  Product down;
  const int32_t *first_reader; // kv_heads + 1 numbers: the query heads of each key head
  int32_t heads, kv_heads;   // 0: no attention in this block
  int32_t window;            // a token sees so many tokens with itself; 0: all
  int32_t unused;
  void *keys, *values;       // (kv_heads, capacity, head_size)
  int64_t capacity;
};

struct Model {
  const Layer *layers;
  const void *embedding;     // (V, hidden)
  const float *norm;
  const float *cosines, *sines; // (positions, head_size)
  Product head;
  int32_t layer_count, hidden, head_size, columns; // columns: rows of the head
  float epsilon, scale;
  int32_t threads, unused;
};

struct Pass {
  const int64_t *tokens, *positions;
  const uint8_t *seen;       // (count, count): whether a new token sees another
  float *logits;             // (rows, columns)
  void *states;              // (count, hidden) after the last norm; null: not wanted
  int64_t start;             // cached tokens in front
  int32_t count, rows;       // new tokens; of the last `rows` logits are wanted
};

// ---- products -----------------------------------------------------------------------------------

// Splits a count into tiles of TILE, then one smaller tile: `tile(first, constant size)`.
template <int TILE, class Work> void in_tiles(int first, int count, const Work &tile) {
  for (; count >= TILE; first += TILE, count -= TILE)
    tile(first, std::integral_constant<int, TILE>());
  if constexpr (TILE > 1) in_tiles<TILE - 1>(first, count, tile);
}

// `sink(block, token, vector)` gets the products of one block of rows with a few tokens. One block
// at a time and asked for ahead: the weights are one stream of memory, whose reading hides most of the work on
// up to sixteen tokens.
template <class T, int TOKENS, class Sink>
void multiply_tile(const Product &product, int64_t block, const uint32_t *input, int first,
                   const Sink &sink) {
  const uint32_t *weight = product.packed + block * product.words * kLanes;
  input += int64_t(first) * product.words;
  PartFloats sums[TOKENS][kParts] = {};
  for (int word = 0; word < product.words; ++word) {
    const uint32_t *place = weight + int64_t(word) * kLanes;
    __builtin_prefetch(place + kAhead * kLanes);
    PartWords rows[kParts];
    for (int part = 0; part < kParts; ++part) rows[part] = load<PartWords>(place + part * kPart);
    for (int token = 0; token < TOKENS; ++token) {
      const uint32_t shared = input[int64_t(token) * product.words + word];
      for (int part = 0; part < kParts; ++part)
        sums[token][part] = accumulate<T>(sums[token][part], rows[part], shared);
    }
  }
  for (int token = 0; token < TOKENS; ++token) {
    Floats sum = load<Floats>(sums[token]);
    if (product.bias) sum += load<Floats>(product.bias + block * kLanes);
    sink(block, first + token, sum);
  }
}

template <class T, class Sink>
void multiply(const Product &product, Range blocks, const T *input, int count, const Sink &sink) {
  const uint32_t *words = reinterpret_cast<const uint32_t *>(input);
  for (int64_t block = blocks.begin; block < blocks.end; ++block)
    in_tiles<kTokens>(0, count, [&](int first, auto tokens) {
      multiply_tile<T, decltype(tokens)::value>(product, block, words, first, sink);
    });
}

// ---- norm and rotation --------------------------------------------------------------------------

template <class T> void normalise(const T *input, const float *weight, int size, float epsilon, T *out) {
  Floats squares{};
  for (int i = 0; i < size; i += kLanes) {
    const Floats value = widen16(input + i);
    squares += value * value;
  }
  const float factor = 1.0f / std::sqrt(sum(squares) / size + epsilon);
  for (int i = 0; i < size; i += kLanes)
    narrow(load<Floats>(weight + i) * rounded<T>(widen16(input + i) * factor), out + i);
}

template <class T> void rotate(T *head, const float *cosine, const float *sine, int size) {
  const int half = size / 2;
  for (int i = 0; i < half; ++i) {
    const float low = widen(head[i]), high = widen(head[i + half]);
    narrow(rounded<T>(low * cosine[i]) - rounded<T>(high * sine[i]), head + i);
    narrow(rounded<T>(high * cosine[i + half]) + rounded<T>(low * sine[i + half]), head + i + half);
  }
}

// ---- attention ----------------------------------------------------------------------------------

// Softmax sums of the queries of one key head over one chunk of cached tokens.
struct Partial {
  float *largest, *total, *values; // per query; values: (queries, head_size), not yet divided
};

// Attention of all queries of a key head over one chunk. Chunks are cut at fixed places and joined in
// order, whoever computes them, so a token's numbers do not depend on the other tokens of its pass.
// That takes room for every query and chunk: 20 MB for 64 tokens of SmolLM2-135M behind 8,192.
template <class T>
void attend(const Model &model, const Layer &layer, const Pass &pass, int kv, int64_t chunk,
            const T *queries, int padded, float *scores, Partial found) {
  const int size = model.head_size, words = size * sizeof(T) / 4;
  const int padded_words = padded * sizeof(T) / 4;
  const int first = layer.first_reader[kv];
  const int rows = (layer.first_reader[kv + 1] - first) * pass.count;
  const int64_t begin = chunk * kChunk;
  const int count = int(std::min<int64_t>(kChunk, pass.start + pass.count - begin));
  const T *keys = static_cast<const T *>(layer.keys) + (kv * layer.capacity + begin) * size;
  const T *values = static_cast<const T *>(layer.values) + (kv * layer.capacity + begin) * size;
  const auto *query_words = reinterpret_cast<const uint32_t *>(queries) +
                            int64_t(first) * pass.count * padded_words;

  for (int block = 0; block < count; block += kLanes) {
    Floats sums[kRows]; // of so many queries at a time
    for (int part = 0; part < rows; part += kRows) {
      const int queried = std::min(kRows, rows - part);
      std::fill(sums, sums + queried, Floats{});
      for (int word = 0; word < padded_words; word += kLanes) {
        Words columns[kLanes] = {};
        const int width = std::min(kLanes, words - word);
        for (int key = 0; key < std::min(kLanes, count - block); ++key) {
          const auto *from = reinterpret_cast<const uint32_t *>(keys + (block + key) * size) + word;
          if (width == kLanes) columns[key] = load<Words>(from);
          else std::memcpy(&columns[key], from, width * sizeof(uint32_t));
        }
        transpose(columns);
        in_tiles<kQueries>(0, queried, [&](int row, auto queries_of_tile) {
          constexpr int QUERIES = decltype(queries_of_tile)::value;
          Floats tile[QUERIES];
          std::copy(sums + row, sums + row + QUERIES, tile);
          const uint32_t *from = query_words + int64_t(part + row) * padded_words + word;
          for (int i = 0; i < kLanes; ++i)
            for (int q = 0; q < QUERIES; ++q)
              tile[q] = accumulate<T>(tile[q], columns[i], from[int64_t(q) * padded_words + i]);
          std::copy(tile, tile + QUERIES, sums + row);
        });
      }
      for (int row = 0; row < queried; ++row)
        narrow(sums[row] * model.scale, scores + int64_t(part + row) * kChunk + block);
    }
  }
  const int ends = (count + kLanes - 1) / kLanes * kLanes;
  for (int row = 0; row < rows; ++row) {
    float *line = scores + int64_t(row) * kChunk;
    const int token = row % pass.count;
    const uint8_t *seen = pass.seen + int64_t(token) * pass.count;
    for (int key = std::max<int64_t>(0, pass.start - begin); key < count; ++key)
      if (!seen[begin + key - pass.start]) line[key] = kHidden;
    if (layer.window) {
      const int64_t oldest = pass.positions[token] - layer.window + 1;
      for (int key = 0; key < std::min<int64_t>(count, oldest - begin); ++key) line[key] = kHidden;
    }
    std::fill(line + count, line + ends, kHidden);
    Floats most = Floats{} + kHidden;
    for (int i = 0; i < ends; i += kLanes) {
      const Floats value = load<Floats>(line + i);
      most = value > most ? value : most;
    }
    float largest = kHidden;
    for (int lane = 0; lane < kLanes; ++lane) largest = std::max(largest, float(most[lane]));
    Floats total{};
    for (int i = 0; i < ends; i += kLanes) {
      const Floats score = load<Floats>(line + i);
      const Floats weight = score > kHidden ? exp(score - largest) : Floats{};
      narrow(weight, line + i);
      total += weight;
    }
    found.largest[row] = largest;
    found.total[row] = sum(total);
  }
  for (int slice = 0; slice < size; slice += kLanes)
    in_tiles<kQueries>(0, rows, [&](int row, auto queries_of_tile) {
      constexpr int QUERIES = decltype(queries_of_tile)::value;
      Floats tile[QUERIES] = {};
      const float *line = scores + int64_t(row) * kChunk;
      for (int key = 0; key < count; ++key) {
        const Floats value = widen16(values + key * size + slice);
        for (int q = 0; q < QUERIES; ++q) tile[q] += value * line[int64_t(q) * kChunk + key];
      }
      for (int q = 0; q < QUERIES; ++q)
        narrow(tile[q], found.values + int64_t(row + q) * size + slice);
    });
}

// One query's attention over all chunks; `weights` is room for a number per chunk.
template <class T, class Part>
void join(int64_t chunks, int64_t row, int size, const Part &part, float *weights, T *to) {
  float largest = kHidden, total = 0;
  for (int64_t chunk = 0; chunk < chunks; ++chunk)
    largest = std::max(largest, part(chunk).largest[row]);
  for (int64_t chunk = 0; chunk < chunks; ++chunk) {
    weights[chunk] = std::exp(part(chunk).largest[row] - largest);
    total += weights[chunk] * part(chunk).total[row];
  }
  for (int slice = 0; slice < size; slice += kLanes) {
    Floats mixed{};
    for (int64_t chunk = 0; chunk < chunks; ++chunk)
      mixed += weights[chunk] * load<Floats>(part(chunk).values + row * size + slice);
    narrow(mixed / total, to + slice);
  }
}

// ---- the pass -----------------------------------------------------------------------------------

template <class T> void run(const Model &model, const Pass &pass) {
  const int count = pass.count, hidden = model.hidden, size = model.head_size;
  const int per_word = 4 / sizeof(T);
  const int padded = (size / per_word + kLanes - 1) / kLanes * kLanes * per_word;
  const int64_t chunks = (pass.start + count + kChunk - 1) / kChunk;
  int most_heads = 0, most_kv = 0, most_group = 0, most_neurons = 0;
  for (int i = 0; i < model.layer_count; ++i) {
    const Layer &layer = model.layers[i];
    most_heads = std::max(most_heads, layer.heads);
    most_kv = std::max(most_kv, layer.kv_heads);
    for (int kv = 0; kv < layer.kv_heads; ++kv)
      most_group = std::max(most_group, layer.first_reader[kv + 1] - layer.first_reader[kv]);
    most_neurons = std::max(most_neurons, layer.gate_up.blocks / 2 * kLanes);
  }
  const int64_t queries_per_kv = int64_t(most_group) * count;
  const int64_t partial_size = queries_per_kv * (size + 2);
  auto stream = buffer<T>(int64_t(count) * hidden);
  auto queries = buffer<T>(int64_t(most_heads) * count * padded);
  auto neurons = buffer<T>(int64_t(count) * most_neurons);
  auto partials = buffer<float>(most_kv * chunks * partial_size);
  std::memset(static_cast<void *>(queries.get()), 0, sizeof(T) * most_heads * count * padded);
  const T *embedding = static_cast<const T *>(model.embedding);
  for (int token = 0; token < count; ++token)
    std::copy_n(embedding + pass.tokens[token] * hidden, hidden, stream.get() + token * hidden);

#pragma omp parallel num_threads(model.threads)
  {
    const int thread = omp_get_thread_num(), threads = omp_get_num_threads();
    auto normed = buffer<T>(int64_t(count) * hidden);
    auto attended = buffer<T>(int64_t(count) * most_heads * size);
    auto head = buffer<T>(int64_t(count) * size);
    auto gates = buffer<float>(int64_t(count) * kLanes);
    auto scores = buffer<float>(queries_per_kv * kChunk);
    auto weights = buffer<float>(chunks);
    const auto normalise_all = [&](const float *weight) {
      for (int token = 0; token < count; ++token)
        normalise(stream.get() + token * hidden, weight, hidden, model.epsilon,
                  normed.get() + token * hidden);
    };
    const auto add_to_stream = [&](int block, int token, Floats value) {
      T *place = stream.get() + int64_t(token) * hidden + block * kLanes;
      narrow(widen16(place) + rounded<T>(value), place);
    };
    const auto partial = [&](int64_t kv, int64_t chunk) {
      float *place = partials.get() + (kv * chunks + chunk) * partial_size;
      return Partial{place, place + queries_per_kv, place + 2 * queries_per_kv};
    };

    for (int index = 0; index < model.layer_count; ++index) {
      const Layer &layer = model.layers[index];
      if (layer.heads) {
        normalise_all(layer.attention_norm);
        const int head_blocks = size / kLanes, all = layer.heads + 2 * layer.kv_heads;
        const Range mine = share(all, thread, threads);
        for (int64_t one = mine.begin; one < mine.end; ++one) {
          const Range blocks{one * head_blocks, (one + 1) * head_blocks};
          multiply<T>(layer.qkv, blocks, normed.get(), count, [&](int block, int token, Floats v) {
            narrow(v, head.get() + token * size + (block - blocks.begin) * kLanes);
          });
          const int64_t kv = one - layer.heads; // below 0: a query head
          for (int token = 0; token < count; ++token) {
            T *from = head.get() + token * size;
            const float *norm = kv < 0 ? layer.query_norm : layer.key_norm;
            if (kv < layer.kv_heads) {
              if (norm) normalise(from, norm, size, model.epsilon, from);
              const int64_t row = pass.positions[token] * size;
              rotate(from, model.cosines + row, model.sines + row, size);
            }
            const int64_t slot = pass.start + token;
            T *keys = static_cast<T *>(layer.keys), *values = static_cast<T *>(layer.values);
            T *to = kv < 0 ? queries.get() + (one * count + token) * padded
                    : kv < layer.kv_heads
                        ? keys + (kv * layer.capacity + slot) * size
                        : values + ((kv - layer.kv_heads) * layer.capacity + slot) * size;
            std::copy_n(from, size, to);
          }
        }
#pragma omp barrier
        const Range parts = share(layer.kv_heads * chunks, thread, threads);
        for (int64_t part = parts.begin; part < parts.end; ++part) {
          const int64_t kv = part / chunks, chunk = part % chunks;
          attend(model, layer, pass, int(kv), chunk, queries.get(), padded, scores.get(),
                 partial(kv, chunk));
        }
#pragma omp barrier
        for (int kv = 0; kv < layer.kv_heads; ++kv)
          for (int query = layer.first_reader[kv]; query < layer.first_reader[kv + 1]; ++query)
            for (int token = 0; token < count; ++token) {
              const int64_t row = int64_t(query - layer.first_reader[kv]) * count + token;
              T *to = attended.get() + (int64_t(token) * layer.heads + query) * size;
              join(chunks, row, size, [&](int64_t chunk) { return partial(kv, chunk); }, weights.get(),
                   to);
            }
        multiply<T>(layer.output, share(layer.output.blocks, thread, threads), attended.get(), count,
                    add_to_stream);
#pragma omp barrier
      }
      if (layer.gate_up.blocks) {
        normalise_all(layer.ffn_norm);
        const int wide = layer.gate_up.blocks / 2 * kLanes;
        Range mine = share(layer.gate_up.blocks / 2, thread, threads);
        mine = {2 * mine.begin, 2 * mine.end};
        // A gate's block comes before its up block.
        multiply<T>(layer.gate_up, mine, normed.get(), count, [&](int block, int token, Floats v) {
          float *gate = gates.get() + token * kLanes;
          v = rounded<T>(v);
          if (block % 2 == 0) {
            narrow(rounded<T>(v / (1.0f + exp(-v))), gate);
            return;
          }
          narrow(load<Floats>(gate) * v, neurons.get() + int64_t(token) * wide + block / 2 * kLanes);
        });
#pragma omp barrier
        multiply<T>(layer.down, share(layer.down.blocks, thread, threads), neurons.get(), count,
                    add_to_stream);
#pragma omp barrier
      }
    }
    normalise_all(model.norm);
    if (pass.states && thread == 0)
      std::copy_n(normed.get(), int64_t(count) * hidden, static_cast<T *>(pass.states));
    const int skipped = count - pass.rows;
    multiply<T>(model.head, share(model.head.blocks, thread, threads),
                normed.get() + int64_t(skipped) * hidden, pass.rows,
                [&](int block, int token, Floats value) {
                  float *to = pass.logits + int64_t(token) * model.columns + block * kLanes;
                  value = rounded<T>(value);
                  const int wanted = std::min(kLanes, model.columns - block * kLanes);
                  std::memcpy(to, &value, wanted * sizeof(float));
                });
  }
}

// Of each layer's states, the slots named go to `start` and behind it; they rise, and none is in
// front of its new place.
template <class T>
void keep(const Model &model, const int64_t *slots, int count, int64_t start) {
  const int size = model.head_size;
  for (int index = 0; index < model.layer_count; ++index) {
    const Layer &layer = model.layers[index];
    for (void *states : {layer.keys, layer.values})
      for (int head = 0; head < layer.kv_heads; ++head) {
        T *from = static_cast<T *>(states) + head * layer.capacity * size;
        for (int i = 0; i < count; ++i)
          if (slots[i] != start + i)
            std::copy_n(from + slots[i] * size, size, from + (start + i) * size);
      }
  }
}

} // namespace

extern "C" void step_float32(const Model *model, const Pass *pass) { run<float>(*model, *pass); }
extern "C" void step_bfloat16(const Model *model, const Pass *pass) { run<BFloat16>(*model, *pass); }
extern "C" void keep_float32(const Model *model, const int64_t *slots, int32_t count, int64_t start) {
  keep<float>(*model, slots, count, start);
}
extern "C" void keep_bfloat16(const Model *model, const int64_t *slots, int32_t count, int64_t start) {
  keep<BFloat16>(*model, slots, count, start);
}
