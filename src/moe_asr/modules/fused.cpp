// Linear maps and whole layers of experts for inference on CPUs, from weights laid out once.
//
// Weights (N, K) are cut into panels of PANEL outputs, stored input by input, so that they are read in one forward
// stream. All numbers travel in words of 32 bits: one float, two bf16 or four int8 neighbouring inputs. A block of
// rows meets a panel in registers; a panel is read from memory once for a tile of rows and stays in the cache.
// The order of additions depends on neither the number of rows nor that of threads.

#include <algorithm>
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

// Adds to `sums` (M, PANEL); meanwhile `lines` of `next` per word are fetched.
template <class Number, int M>
void block(const int32_t* x, long stride, const Ints* w, long words, Ints* sums, const Ints* next, long lines) {
  Ints sum[M][2];
#pragma GCC unroll 16
  for (int m = 0; m < M; m++) sum[m][0] = sums[2 * m], sum[m][1] = sums[2 * m + 1];
  for (long k = 0; k < words; k++, w += 2, next += lines) {
    __builtin_prefetch(next, 0, 2);
    __builtin_prefetch(next + lines - 1, 0, 2);
    Ints w0 = w[0], w1 = w[1];
#pragma GCC unroll 16
    for (int m = 0; m < M; m++) {
      int32_t input = x[m * stride + k];
      sum[m][0] = Number::dot(sum[m][0], w0, input);
      sum[m][1] = Number::dot(sum[m][1], w1, input);
    }
  }
#pragma GCC unroll 16
  for (int m = 0; m < M; m++) sums[2 * m] = sum[m][0], sums[2 * m + 1] = sum[m][1];
}

template <class Number, int M = ROWS>
void blocks(long rows, const int32_t* x, long stride, const Ints* w, long words, Ints* sums, const Ints* next,
            long lines) {
  if constexpr (M > 0) {
    if (rows == M)
      block<Number, M>(x, stride, w, words, sums, next, lines);
    else
      blocks<Number, M - 1>(rows, x, stride, w, words, sums, next, lines);
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

enum Activation { NONE, SWISH, RELU, GELU };

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

// Map `index` of `maps` on rows of words; each thread of the team computes some of the panels.
void multiply(const Maps& maps, long index, long rows, const int32_t* x, const float* steps, Target target) {
  long panels = padded(maps.outputs) / PANEL, n_words = words(maps), count = (rows + ROWS - 1) / ROWS;
  auto weights = reinterpret_cast<const Ints*>(maps.weights + index * panels * PANEL * n_words);
  auto kernel = maps.precision == FP32 ? blocks<Fp32> : maps.precision == BF16 ? blocks<Bf16> : blocks<Int8>;
#pragma omp for schedule(static)
  for (long panel = 0; panel < panels; panel++) {
    long first_output = panel * PANEL, offset = index * panels * PANEL + first_output;
    long valid = std::min(PANEL, target.columns - first_output);
    auto start = reinterpret_cast<const Ints*>(maps.start + offset);
    Ints sums[2 * ROWS * TILE];
    for (long m = 0; m < rows; m++) sums[2 * m] = start[0], sums[2 * m + 1] = start[1];
    for (long k = 0; k < n_words; k += STRETCH) {
      long length = std::min(STRETCH, n_words - k);
      const Ints* w = weights + 2 * (panel * n_words + k);
      for (long b = 0; b < count; b++) {
        long first = rows * b / count, size = rows * (b + 1) / count - first;
        // The first two blocks fetch a line per word each, or one block two: what follows in memory, whole.
        kernel(size, x + first * stride(maps) + k, stride(maps), w, length, sums + 2 * first,
               b < 2 ? w + (2 + b) * length : w, count == 1 ? 2 : 1);
      }
    }
    for (long m = 0; m < rows; m++) {
      float* out = target.out + (target.row ? target.row[m] : m) * target.stride + first_output;
      for (long half = 0; half < 2; half++) {
        Floats y = bits<Floats>(sums[2 * m + half]);
        if (maps.precision == INT8)
          y = integral(bits<Ints>(y)) * (steps[m] * load(maps.scale + offset + half * LANES)) +
              load(maps.bias + offset + half * LANES);
        y = activated(y, maps.activation);
        if (target.share) y *= target.share[m];
        put(out + half * LANES, y, valid - half * LANES, target.share != nullptr);
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
thread_local Memory inputs, activations, words_of_activations;

long tile_rows(const Maps& maps) {
  return ROWS * std::clamp(CACHED / (ROWS * stride(maps)), 1L, TILE);
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
  long most = tile_rows(*maps), tiles = (rows + most - 1) / most, outputs = maps->outputs;
  int32_t* in = inputs.of(most * stride(*maps));
  std::vector<float> steps(most);
#pragma omp parallel num_threads(threads) if (threads > 1)
  for (long tile = 0; tile < tiles; tile++) {
    long first = rows * tile / tiles, size = rows * (tile + 1) / tiles - first;
#pragma omp for schedule(static)
    for (long m = 0; m < size; m++) steps[m] = convert(*maps, x + (first + m) * n, n, in + m * stride(*maps));
    multiply(*maps, 0, size, in, steps.data(), {y + first * outputs, outputs, outputs, nullptr, nullptr});
  }
}

// x (rows, width), expert ids and weights (rows, top_k) -> y (rows, width), which holds zeros before; id -1 is nothing.
// Experts are pairs of maps; a hidden width that is no multiple of PANEL is filled up by inputs of `out` whose weights are 0.
void experts(const Maps* in, const Maps* out, long count, const float* x, const int64_t* ids, const float* weights,
             float* y, long rows, long top_k, int threads) {
  long width = out->outputs, hidden = out->inputs, most = std::min(tile_rows(*in), tile_rows(*out));
  std::vector<long> begin(count + 1), row(rows * top_k);
  std::vector<float> share(rows * top_k), steps(most);
  auto real = [&](long i) { return ids[i] >= 0 && ids[i] < count; };
  for (long i = 0; i < rows * top_k; i++)
    if (real(i)) begin[ids[i] + 1]++;
  for (long e = 0; e < count; e++) begin[e + 1] += begin[e];
  std::vector<long> next(begin);
  for (long i = 0; i < rows * top_k; i++)
    if (real(i)) {
      long place = next[ids[i]]++;
      row[place] = i / top_k;
      share[place] = weights[i];
    }
  int32_t* gathered = inputs.of(most * stride(*in));
  long hidden_stride = hidden + LINE;
  auto between = reinterpret_cast<float*>(activations.of(most * hidden_stride));
  bool same = out->precision == FP32;
  int32_t* converted = same ? reinterpret_cast<int32_t*>(between) : words_of_activations.of(most * stride(*out));
#pragma omp parallel num_threads(threads) if (threads > 1)
  for (long e = 0; e < count; e++) {
    long tiles = (begin[e + 1] - begin[e] + most - 1) / most;
    for (long tile = 0; tile < tiles; tile++) {
      long all = begin[e + 1] - begin[e];
      long first = begin[e] + all * tile / tiles, size = begin[e] + all * (tile + 1) / tiles - first;
#pragma omp for schedule(static)
      for (long m = 0; m < size; m++)
        steps[m] = convert(*in, x + row[first + m] * width, width, gathered + m * stride(*in));
      multiply(*in, e, size, gathered, steps.data(), {between, hidden_stride, hidden, nullptr, nullptr});
      if (!same) {
#pragma omp for schedule(static)
        for (long m = 0; m < size; m++)
          steps[m] = convert(*out, between + m * hidden_stride, in->outputs, converted + m * stride(*out));
      }
      multiply(*out, e, size, converted, steps.data(), {y, width, width, &row[first], &share[first]});
    }
  }
}

}  // extern "C"
