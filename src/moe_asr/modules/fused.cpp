// What the layers of an encoder compute, for inference on CPUs, from weights laid out once.
//
// Weights (N, K) are cut into panels of PANEL outputs, stored input by input, so that they are read in one forward
// stream. All numbers travel in words of 32 bits: one float, two bf16 or four int8 neighbouring inputs. A block of
// rows meets a panel in registers; a panel is read from memory once for a tile of rows and stays in the cache.
// The order of additions depends on neither the number of rows nor that of threads.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <vector>
#if defined(__linux__)
#include <sys/mman.h>
#endif
#if defined(__AVX512F__)
#include <immintrin.h>
constexpr long LANES = 16, ROWS = 14;  // two accumulators per row, two weights and an input: 31 of 32 registers
#elif defined(__AVX__)
constexpr long LANES = 8, ROWS = 6;
#elif defined(__aarch64__)
constexpr long LANES = 4, ROWS = 12;
#else
constexpr long LANES = 4, ROWS = 6;
#endif

namespace {

constexpr long PANEL = 2 * LANES;
constexpr long LINE = 16;  // words of a cache line; one more per row, so that rows do not compete for the same place
constexpr long STRETCH = 512;  // words of inputs that all blocks of a tile meet while the next ones are fetched
constexpr long TILE = 4;  // blocks of rows, unless inputs are so many that
constexpr long CACHED = 1 << 17;  // words are exceeded

typedef float Floats __attribute__((vector_size(4 * LANES)));
typedef int32_t Ints __attribute__((vector_size(4 * LANES)));
typedef float AnyFloats __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef int32_t AnyInts __attribute__((vector_size(4 * LANES), aligned(4), may_alias));

Floats load(const float* p) { return *reinterpret_cast<const AnyFloats*>(p); }
void store(float* p, Floats x) { *reinterpret_cast<AnyFloats*>(p) = x; }
template <class To, class From> To bits(From x) {
  static_assert(sizeof(To) == sizeof(From));
  To y;
  memcpy(&y, &x, sizeof y);
  return y;
}
Floats integral(Ints x) { return __builtin_convertvector(x, Floats); }

// How two words multiply; sums of products stay in words, too.
struct Fp32 {
  static Ints dot(Ints sum, Ints w, int32_t x) {
    return bits<Ints>(bits<Floats>(sum) + bits<Floats>(w) * bits<float>(x));
  }
};
struct Bf16 {
  static Ints dot(Ints sum, Ints w, int32_t x) {
#if defined(__AVX512BF16__)
    return bits<Ints>(_mm512_dpbf16_ps(bits<__m512>(sum), bits<__m512bh>(w), bits<__m512bh>(_mm512_set1_epi32(x))));
#else
    constexpr int32_t HIGH = int32_t(0xffff0000u);
    auto y = bits<Floats>(sum) + bits<Floats>(w << 16) * bits<float>(int32_t(uint32_t(x) << 16));
    return bits<Ints>(y + bits<Floats>(w & HIGH) * bits<float>(x & HIGH));
#endif
  }
};
struct Int8 {
  static Ints dot(Ints sum, Ints w, int32_t x) {  // x without, w with sign
#if defined(__AVX512VNNI__)
    return bits<Ints>(_mm512_dpbusd_epi32(bits<__m512i>(sum), _mm512_set1_epi32(x), bits<__m512i>(w)));
#else
    for (int shift = 0; shift < 32; shift += 8) sum += ((w << (24 - shift)) >> 24) * ((x >> shift) & 255);
    return sum;
#endif
  }
};

// Adds to `sums` (M, V * LANES) the products of M rows of inputs, whose words are WORD apart, and of weights, whose
// words are `apart`, or where WORD is 1 not at all; meanwhile `lines` of `next` per word are fetched, if any.
template <class Number, int M, int V, int WORD>
void block(const int32_t* x, long row, const int32_t* w, long apart, long words, Ints* sums, const int32_t* next,
           long lines) {
  Ints sum[M][V];
#pragma GCC unroll 16
  for (int m = 0; m < M; m++)
    for (int v = 0; v < V; v++) sum[m][v] = sums[V * m + v];
  for (long k = 0; k < words; k++, w += WORD == 1 ? V * LANES : apart, next += lines * LANES) {
    if (WORD == 1 && V == 2) __builtin_prefetch(next, 0, 2), __builtin_prefetch(next + (lines - 1) * LANES, 0, 2);
    Ints weight[V];
    for (int v = 0; v < V; v++) weight[v] = *reinterpret_cast<const AnyInts*>(w + v * LANES);
#pragma GCC unroll 16
    for (int m = 0; m < M; m++)
      for (int v = 0; v < V; v++) sum[m][v] = Number::dot(sum[m][v], weight[v], x[m * row + k * WORD]);
  }
#pragma GCC unroll 16
  for (int m = 0; m < M; m++)
    for (int v = 0; v < V; v++) sums[V * m + v] = sum[m][v];
}

template <class Number, int V = 2, int WORD = 1, int M = ROWS>
void blocks(long rows, const int32_t* x, long row, const int32_t* w, long apart, long words, Ints* sums,
            const int32_t* next = nullptr, long lines = 0) {
  if constexpr (M > 0) {
    if (rows == M)
      block<Number, M, V, WORD>(x, row, w, apart, words, sums, next ? next : w, lines);
    else
      blocks<Number, V, WORD, M - 1>(rows, x, row, w, apart, words, sums, next, lines);
  }
}

Floats exponential(Floats x) {
  x = x < -87.0f ? x * 0 - 87.0f : x;
  x = x > 88.0f ? x * 0 + 88.0f : x;
  constexpr float ROUND = 12582912.0f;  // 1.5 * 2^23: what is added to it loses its fraction
  Floats power = x * 1.44269504f + ROUND;
  Ints exponent = bits<Ints>(power) << 23;
  power -= ROUND;
  Floats r = (x - power * 0.693145752f) - power * 1.42860677e-6f;
  Floats y = r * 1.38888889e-3f + 8.33333333e-3f;
  y = ((((y * r + 4.16666667e-2f) * r + 1.66666667e-1f) * r + 0.5f) * r + 1.0f) * r + 1.0f;
  return bits<Floats>(bits<Ints>(y) + exponent);
}

enum Activation { NONE, SWISH, RELU, GELU, GLU };

Floats activated(Floats x, int activation) {
  switch (activation) {
    case SWISH:
      return x / (1.0f + exponential(-x));
    case RELU:
      return x < 0.0f ? x * 0 : x;
    case GELU: {  // erf: Abramowitz and Stegun, 7.1.26
      Floats z = (x < 0.0f ? -x : x) * 0.707106781f, t = 1.0f / (1.0f + 0.3275911f * z);
      Floats p = ((((1.061405429f * t - 1.453152027f) * t + 1.421413741f) * t - 0.284496736f) * t + 0.254829592f) * t;
      Floats half_erfc = 0.5f * p * exponential(-z * z);
      return x * (x < 0.0f ? half_erfc : 1.0f - half_erfc);
    }
  }
  return x;
}

enum Precision { FP32, BF16, INT8 };

}  // namespace

extern "C" {

// `count` maps of one shape, one after the other.
struct Maps {
  const int32_t* weights;  // (count, padded outputs / PANEL, words, PANEL)
  const int32_t* start;    // (count, padded outputs): where sums begin
  const float* scale;      // int8: (count, padded outputs), what a sum is multiplied by before
  const float* bias;       // int8: (count, padded outputs) is added
  long inputs, outputs;    // inputs a multiple of PANEL
  int precision, activation;
  int zero;                // int8: what stands for an input of 0
};

}  // extern "C"

namespace {

long padded(long n) { return (n + PANEL - 1) / PANEL * PANEL; }
long words(const Maps& maps) { return maps.inputs >> maps.precision; }
long stride(const Maps& maps) { return words(maps) + LINE; }
const int32_t* weights_of(const Maps& maps, long index) {
  return maps.weights + index * padded(maps.outputs) * words(maps);
}

// (n,) -> words; the rest up to maps.inputs is 0. Returns the size of an int8 step.
float convert(const Maps& maps, const float* x, long n, int32_t* out) {
  long full = n / LANES * LANES;
  if (maps.precision == FP32) {
    memcpy(out, x, 4 * n);
    memset(out + n, 0, 4 * (maps.inputs - n));
    return 1;
  }
  if (maps.precision == BF16) {
    auto half = reinterpret_cast<uint16_t*>(out);
    for (long i = 0; i < n; i++) {
      uint32_t u = bits<uint32_t>(x[i]);
      uint32_t rounded = (u + 0x7fff + ((u >> 16) & 1)) >> 16;
      half[i] = uint16_t(x[i] == x[i] ? rounded : 0x7fc0);
    }
    memset(half + n, 0, 2 * (maps.inputs - n));
    return 1;
  }
  Floats low = {}, high = {}, odd = {};  // odd becomes NaN where x is not finite
  auto meet = [&](Floats v) {
    low = v < low ? v : low;
    high = v > high ? v : high;
    odd += v * 0.0f;
  };
  for (long i = 0; i < full; i += LANES) meet(load(x + i));
  Floats rest = {};
  memcpy(&rest, x + full, 4 * (n - full));
  meet(rest);
  float least = 0, most = 0, strange = 0;
  for (long i = 0; i < LANES; i++)
    least = std::min(least, low[i]), most = std::max(most, high[i]), strange += odd[i];
  float step = std::max({most / float(255 - maps.zero), least / -float(maps.zero), 1.17549435e-38f});
  auto byte = reinterpret_cast<uint8_t*>(out);
  float inverse = 1 / step;
  for (long i = 0; i < n; i++) {
    float q = x[i] * inverse + float(maps.zero);
    byte[i] = uint8_t(int32_t((q > 0 ? q < 255 ? q : 255 : 0) + 0.5f));
  }
  memset(byte + n, maps.zero, maps.inputs - n);
  return step + strange;
}

// What becomes of results: rows of `out`, or row[m] of it, to which share[m] times the result is added.
struct Target {
  float* out;
  long stride, columns;
  const long* row;
  const float* share;
};

// The first `valid` of the results.
void put(float* out, Floats y, long valid, bool add) {
  if (valid >= LANES)
    store(out, add ? load(out) + y : y);
  else
    for (long i = 0; i < valid; i++) out[i] = add ? out[i] + y[i] : y[i];
}

// Map `index` of `maps` on rows of words; each thread of the team computes some of the panels. then: what is read next.
void multiply(const Maps& maps, long index, long rows, const int32_t* x, const float* steps, Target target,
              const int32_t* then = nullptr) {
  long panels = padded(maps.outputs) / PANEL, n_words = words(maps), count = (rows + ROWS - 1) / ROWS;
  const int32_t* weights = weights_of(maps, index);
  auto kernel = maps.precision == FP32 ? blocks<Fp32> : maps.precision == BF16 ? blocks<Bf16> : blocks<Int8>;
#pragma omp for schedule(static)
  for (long panel = 0; panel < panels; panel++) {
    long first_output = panel * PANEL, offset = index * panels * PANEL + first_output;
    long first_column = maps.activation == GLU ? first_output / 2 : first_output;
    long valid = target.columns - first_column;
    auto start = reinterpret_cast<const Ints*>(maps.start + offset);
    Ints sums[2 * ROWS * TILE];
    for (long m = 0; m < rows; m++) sums[2 * m] = start[0], sums[2 * m + 1] = start[1];
    for (long k = 0; k < n_words; k += STRETCH) {
      long length = std::min(STRETCH, n_words - k);
      const int32_t* w = weights + PANEL * (panel * n_words + k);
      for (long b = 0; b < count; b++) {
        long first = rows * b / count, size = rows * (b + 1) / count - first;
        // The first two blocks fetch a line per word each, or one block two: what follows in memory, whole.
        const int32_t* next = then && panel == panels - 1 && k + length == n_words ? then : w + length * PANEL;
        kernel(size, x + first * stride(maps) + k, stride(maps), w, PANEL, length, sums + 2 * first,
               b < 2 ? next + b * length * LANES : w, count == 1 ? 2 : 1);
      }
    }
    for (long m = 0; m < rows; m++) {
      float* out = target.out + (target.row ? target.row[m] : m) * target.stride + first_column;
      Floats y[2];
      for (long half = 0; half < 2; half++) {
        y[half] = bits<Floats>(sums[2 * m + half]);
        if (maps.precision == INT8)
          y[half] = integral(bits<Ints>(y[half])) * (steps[m] * load(maps.scale + offset + half * LANES)) +
                    load(maps.bias + offset + half * LANES);
      }
      if (maps.activation == GLU) {
        put(out, y[0] / (1.0f + exponential(-y[1])), valid, false);
        continue;
      }
      for (long half = 0; half < 2; half++) {
        Floats result = activated(y[half], maps.activation);
        if (target.share) result *= target.share[m];
        put(out + half * LANES, result, valid - half * LANES, target.share != nullptr);
      }
    }
  }
}

struct Memory {  // kept between calls; its words begin at a cache line
  std::vector<int32_t> held;
  int32_t* of(long count) {
    if (long(held.size()) < count + LINE) held.resize(count + LINE);
    return reinterpret_cast<int32_t*>((reinterpret_cast<uintptr_t>(held.data()) + 63) / 64 * 64);
  }
};
thread_local Memory inputs, activations, words_of_activations, results, scores;

long tile_rows(const Maps& maps) {
  return ROWS * std::clamp(CACHED / (ROWS * stride(maps)), 1L, TILE);
}

// x (rows, n) -> rows of the target, by the only one of `maps`.
void map(const Maps& maps, const float* x, long n, long rows, Target target, int threads) {
  long most = tile_rows(maps), tiles = (rows + most - 1) / most;
  int32_t* in = inputs.of(most * stride(maps));
  std::vector<float> steps(most);
#pragma omp parallel num_threads(threads) if (threads > 1)
  for (long tile = 0; tile < tiles; tile++) {
    long first = rows * tile / tiles, size = rows * (tile + 1) / tiles - first;
    Target part = target;
    if (target.row) part.row += first;
    else part.out += first * target.stride;
#pragma omp for schedule(static)
    for (long m = 0; m < size; m++) steps[m] = convert(maps, x + (first + m) * n, n, in + m * stride(maps));
    multiply(maps, 0, size, in, steps.data(), part);
  }
}

float sum(Floats x) {
  float all = 0;
  for (long i = 0; i < LANES; i++) all += x[i];
  return all;
}

// Normalises n numbers, a multiple of LANES, in place.
void normalise(float* x, long n, const float* gain, const float* shift, float epsilon) {
  Floats total = {}, squares = {};
  for (long i = 0; i < n; i += LANES) total += load(x + i);
  float mean = sum(total) / float(n);
  for (long i = 0; i < n; i += LANES) squares += (load(x + i) - mean) * (load(x + i) - mean);
  float scale = 1 / std::sqrt(sum(squares) / float(n) + epsilon);
  for (long i = 0; i < n; i += LANES) store(x + i, (load(x + i) - mean) * scale * load(gain + i) + load(shift + i));
}

// One head of attention: queries (count, .) -> out (count, .). Keys and values (keys, 2 * width + 1): a key, its value,
// and what is added to its scores; `row` apart. seen: by which queries, seen_row = 0: by all; or none are masked.
// Scores stand key by key, V * LANES queries side by side.
template <int V>
void head(const float* q, long q_row, const float* bias, long count, const float* memory, long row, long keys,
          const uint8_t* seen, long seen_row, long width, float* out, long out_row) {
  constexpr long SIDE = V * LANES;
  auto table = reinterpret_cast<float*>(scores.of((keys + width) * SIDE + ROWS * PANEL));
  float *transposed = table + keys * SIDE, scale = 1 / std::sqrt(float(width));
  auto sums = reinterpret_cast<Ints*>(transposed + width * SIDE);
  memset(transposed, 0, 4 * width * SIDE);
  for (long i = 0; i < count; i++)
    for (long j = 0; j < width; j++) transposed[j * SIDE + i] = (q[i * q_row + j] + bias[j]) * scale;
  Floats most[V], total[V];
  for (int v = 0; v < V; v++) most[v] = Floats{} - INFINITY, total[v] = Floats{};
  for (long first = 0; first < keys; first += ROWS) {
    long size = std::min(ROWS, keys - first);
    const float* key = memory + first * row;
    for (long m = 0; m < size; m++)  // of the next head
      for (long j = 0; j < 2 * width + LINE; j += LINE) __builtin_prefetch(key + m * row + 2 * width + 1 + j, 0, 2);
    auto to = reinterpret_cast<Ints*>(table + first * SIDE);
    for (long m = 0; m < size; m++)
      for (int v = 0; v < V; v++) to[V * m + v] = bits<Ints>(Floats{} + key[m * row + 2 * width]);
    blocks<Fp32, V>(size, reinterpret_cast<const int32_t*>(key), row, reinterpret_cast<int32_t*>(transposed), SIDE,
                    width, to);
    for (long m = 0; m < size && seen; m++)
      for (long i = 0; i < count; i++)
        if (!seen[i * seen_row + first + m]) table[(first + m) * SIDE + i] = -INFINITY;
    for (long m = 0; m < size; m++)
      for (int v = 0; v < V; v++) {
        Floats score = bits<Floats>(to[V * m + v]);
        most[v] = score > most[v] ? score : most[v];
      }
  }
  for (long k = 0; k < keys; k++)
    for (int v = 0; v < V; v++) {
      Floats score = load(table + k * SIDE + v * LANES), p = exponential(score - most[v]);
      p = score == -INFINITY ? Floats{} : p;
      store(table + k * SIDE + v * LANES, p);
      total[v] += p;
    }
  for (long first = 0; first < count; first += ROWS) {
    long size = std::min(ROWS, count - first);
    for (long j = 0; j < width; j += PANEL) {
      auto p = reinterpret_cast<const int32_t*>(table + first);
      auto values = reinterpret_cast<const int32_t*>(memory + width + j);
      int wide = j + LANES < width ? 2 : 1;
      std::fill(sums, sums + size * wide, Ints{});
      wide == 2 ? blocks<Fp32, 2, SIDE>(size, p, 1, values, row, keys, sums)
                : blocks<Fp32, 1, SIDE>(size, p, 1, values, row, keys, sums);
      for (long m = 0; m < size; m++) {
        float all = total[(first + m) / LANES][(first + m) % LANES];
        for (int v = 0; v < wide; v++)
          store(out + (first + m) * out_row + j + v * LANES, bits<Floats>(sums[wide * m + v]) / (all > 0 ? all : 1));
      }
    }
  }
}

}  // namespace

extern "C" {

long panel() { return PANEL; }

// For memory not yet written; a tenth faster where weights are read only once.
void ask_for_large_pages(void* memory, long bytes) {
#if defined(__linux__)
  constexpr uintptr_t PAGE = 1 << 12;
  auto begin = (reinterpret_cast<uintptr_t>(memory) + PAGE - 1) / PAGE * PAGE;
  auto end = (reinterpret_cast<uintptr_t>(memory) + bytes) / PAGE * PAGE;
  if (begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#else
  (void)memory, (void)bytes;
#endif
}

int fast_int8() {
#if defined(__AVX512VNNI__)
  return 1;
#else
  return 0;
#endif
}

// x (rows, n) -> y (rows, maps.outputs), by the only one of `maps`.
void linear(const Maps* maps, const float* x, long n, float* y, long rows, int threads) {
  map(*maps, x, n, rows, {y, maps->outputs, maps->outputs, nullptr, nullptr}, threads);
}

// Relative self-attention of x (streams, frames, heads * width) -> y, over a cache (streams, cached + frames, heads,
// 2 * width + 1), streams `apart`, to which the new frames are added. places (., heads, width + 1): what positions
// (streams or 1, frames) add to keys and scores. seen (streams or 1, frames or 1, cached + frames): which keys, by
// streams seen_stream and queries seen_row apart, or null.
void attention(const Maps* qkv, const Maps* last, const float* bias, const float* places, const int64_t* positions,
               long own_positions, const float* x, float* cache, long apart, long cached, const uint8_t* seen,
               long seen_stream, long seen_row, float* y, long streams, long frames, long heads, int threads) {
  long size = last->outputs, width = size / heads, row = heads * (2 * width + 1), keys = cached + frames;
  auto projected = reinterpret_cast<float*>(results.of(streams * frames * 4 * size));
  float* attended = projected + streams * frames * 3 * size;
  linear(qkv, x, size, projected, streams * frames, threads);
#pragma omp parallel for collapse(2) num_threads(threads) if (threads > 1)
  for (long s = 0; s < streams; s++)
    for (long h = 0; h < heads; h++) {
      float* memory = cache + s * apart + h * (2 * width + 1);
      const float* q = projected + s * frames * 3 * size + h * width;
      for (long i = 0; i < frames; i++) {
        const float* k = q + (3 * i + 1) * size;
        const float* place = places + (positions[(own_positions ? s * frames : 0) + i] * heads + h) * (width + 1);
        float* to = memory + (cached + i) * row;
        for (long j = 0; j < width; j++) to[j] = k[j] + place[j], to[width + j] = k[size + j];
        to[2 * width] = place[width];
      }
      long side = frames > LANES ? PANEL : LANES;
      auto one = side == PANEL ? head<2> : head<1>;
      for (long i = 0; i < frames; i += side)
        one(q + i * 3 * size, 3 * size, bias + h * width, std::min(side, frames - i), memory, row, keys,
            seen ? seen + s * seen_stream + i * seen_row : nullptr, seen_row, width,
            attended + (s * frames + i) * size + h * width, size);
    }
  linear(last, attended, size, y, streams * frames, threads);
}

// The causal convolution module on x (streams, frames, width) -> y. history (streams, before, width), streams `apart`,
// and the new frames go to seen (streams, before + frames, width). taps (before + 1, width).
void convolution(const Maps* first, const Maps* last, const float* taps, const float* bias, const float* gain,
                 const float* shift, float epsilon, int activation, const float* history, long apart, long before,
                 const float* x, float* seen, float* y, long streams, long frames, int threads) {
  long width = last->outputs, all = before + frames, rows = streams * frames;
  std::vector<long> row(rows);
  for (long i = 0; i < rows; i++) row[i] = i / frames * all + before + i % frames;
  for (long s = 0; s < streams; s++) memcpy(seen + s * all * width, history + s * apart, 4 * before * width);
  map(*first, x, width, rows, {seen, width, width, row.data(), nullptr}, threads);
  auto between = reinterpret_cast<float*>(results.of(rows * width));
#pragma omp parallel for num_threads(threads) if (threads > 1)
  for (long i = 0; i < rows; i++) {
    const float* from = seen + (row[i] - before) * width;
    float* to = between + i * width;
    memcpy(to, bias, 4 * width);
    for (long j = 0; j <= before; j++)
      for (long c = 0; c < width; c++) to[c] += taps[j * width + c] * from[j * width + c];
    if (gain) normalise(to, width, gain, shift, epsilon);
    for (long c = 0; c < width; c += LANES) store(to + c, activated(load(to + c), activation));
  }
  linear(last, between, width, y, rows, threads);
}

// Logits (rows, count) of x (rows, width), the ids of the top_k largest, first the largest, and their softmax weights,
// over themselves or over all; where not valid (rows) -1 and 0.
void route(const float* x, const float* weight, const uint8_t* valid, float* logits, int64_t* ids, float* weights,
           long rows, long width, long count, long top_k, int over_themselves, float scale) {
  for (long i = 0; i < rows; i++) {
    float* logit = logits + i * count;
    for (long e = 0; e < count; e++) {
      Floats sums[2] = {};
      long full = width / PANEL * PANEL;
      const float *a = x + i * width, *b = weight + e * width;
      for (long j = 0; j < full; j += PANEL)
        for (int v = 0; v < 2; v++) sums[v] += load(a + j + v * LANES) * load(b + j + v * LANES);
      logit[e] = sum(sums[0] + sums[1]);
      for (long j = full; j < width; j++) logit[e] += a[j] * b[j];
    }
    for (long k = 0; k < top_k; k++) {
      long best = -1;
      for (long e = 0; e < count; e++)
        if (std::find(ids + i * top_k, ids + i * top_k + k, e) == ids + i * top_k + k &&
            (best < 0 || logit[e] > logit[best]))
          best = e;
      ids[i * top_k + k] = best;
    }
    float most = logit[ids[i * top_k]], total = 0;
    for (long k = 0; k < top_k; k++) total += weights[i * top_k + k] = std::exp(logit[ids[i * top_k + k]] - most);
    if (!over_themselves) {
      total = 0;
      for (long e = 0; e < count; e++) total += std::exp(logit[e] - most);
    }
    for (long k = 0; k < top_k; k++) {
      weights[i * top_k + k] = valid[i] ? weights[i * top_k + k] / total * scale : 0.0f;
      if (!valid[i]) ids[i * top_k + k] = -1;
    }
  }
}

// x (rows, width), expert ids and weights (rows, top_k) -> y (rows, width), which holds zeros before; id -1 is nothing.
// Without ids and weights all rows visit expert 0.
// Experts are pairs of maps; a hidden width that is no multiple of PANEL is filled up by inputs of `out` whose weights are 0.
void experts(const Maps* in, const Maps* out, long count, const float* x, const int64_t* ids, const float* weights,
             float* y, long rows, long top_k, int threads) {
  long width = out->outputs, hidden = out->inputs, most = std::min(tile_rows(*in), tile_rows(*out));
  std::vector<long> begin(count + 1), row(rows * top_k);
  std::vector<float> share(rows * top_k), steps(most);
  auto id = [&](long i) { return ids ? ids[i] : 0; };
  auto real = [&](long i) { return id(i) >= 0 && id(i) < count; };
  for (long i = 0; i < rows * top_k; i++)
    if (real(i)) begin[id(i) + 1]++;
  for (long e = 0; e < count; e++) begin[e + 1] += begin[e];
  std::vector<long> next(begin);
  for (long i = 0; i < rows * top_k; i++)
    if (real(i)) {
      long place = next[id(i)]++;
      row[place] = i / top_k;
      share[place] = weights ? weights[i] : 1.0f;
    }
  int32_t* gathered = inputs.of(most * stride(*in));
  long hidden_stride = hidden + LINE;
  auto between = reinterpret_cast<float*>(activations.of(most * hidden_stride));
  bool same = out->precision == FP32;
  int32_t* converted = same ? reinterpret_cast<int32_t*>(between) : words_of_activations.of(most * stride(*out));
#pragma omp parallel num_threads(threads) if (threads > 1)
  for (long e = 0; e < count; e++) {
    long tiles = (begin[e + 1] - begin[e] + most - 1) / most, following = e + 1;
    while (following < count && begin[following + 1] == begin[following]) following++;
    following %= count;
    for (long tile = 0; tile < tiles; tile++) {
      long all = begin[e + 1] - begin[e];
      long first = begin[e] + all * tile / tiles, size = begin[e] + all * (tile + 1) / tiles - first;
#pragma omp for schedule(static)
      for (long m = 0; m < size; m++)
        steps[m] = convert(*in, x + row[first + m] * width, width, gathered + m * stride(*in));
      multiply(*in, e, size, gathered, steps.data(), {between, hidden_stride, hidden, nullptr, nullptr},
               weights_of(*out, e));
      if (!same) {
#pragma omp for schedule(static)
        for (long m = 0; m < size; m++)
          steps[m] = convert(*out, between + m * hidden_stride, in->outputs, converted + m * stride(*out));
      }
      multiply(*out, e, size, converted, steps.data(), {y, width, width, &row[first], &share[first]},
               weights_of(*in, tile + 1 < tiles ? e : following));
    }
  }
}

}  // extern "C"
