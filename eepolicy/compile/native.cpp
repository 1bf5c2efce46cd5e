// Runs a list of kernel calls for one layer after another, and products of few rows with a weight.
#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>
#include <utility>
#include <vector>

#if defined(__AVX512F__) && defined(__AVX512DQ__)
#include <immintrin.h>
#define LANES 16
#elif defined(__AVX2__)
#define LANES 8
#else
#define LANES 4
#endif

namespace {

typedef float Vec __attribute__((vector_size(4 * LANES)));
typedef float Unaligned __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef int8_t Bytes __attribute__((vector_size(LANES), aligned(1), may_alias));
typedef uint16_t Halves __attribute__((vector_size(2 * LANES), aligned(2), may_alias));
typedef uint32_t Words __attribute__((vector_size(4 * LANES)));

// the upper half of the bits of a float
struct BFloat16 {
  uint16_t bits;
};

// a tile has outputs of so many rows of the weight, for so many rows of the other matrix: their
// sums stay in registers
constexpr int OUTS = LANES == 16 ? 4 : 2, ROWS = LANES == 16 ? 6 : 4;
constexpr int TALL_OUTS = LANES == 16 ? 3 : 2, TALL_ROWS = LANES == 16 ? 8 : 5;
// rows of the weight that are loaded into the cache ahead
constexpr int AHEAD = 16;
// multiplications from which threads share a product
constexpr int64_t MIN_SHARED_WORK = 1 << 18;

inline Vec load(const float* from) { return *reinterpret_cast<const Unaligned*>(from); }
inline Vec load(const int8_t* from) {
#if LANES == 16
  const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
  return (Vec)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes));
#else
  return __builtin_convertvector(*reinterpret_cast<const Bytes*>(from), Vec);
#endif
}
inline Vec load(const BFloat16* from) {
#if LANES == 16
  const __m256i halves = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
  return (Vec)_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16));
#else
  return (Vec)(__builtin_convertvector(*reinterpret_cast<const Halves*>(from), Words) << 16);
#endif
}

inline float number(float from) { return from; }
inline float number(int8_t from) { return from; }
inline float number(BFloat16 from) {
  const uint32_t bits = uint32_t(from.bits) << 16;
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

inline void store(float value, float* to) { *to = value; }
inline void store(float value, BFloat16* to) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  // to the nearest number, and to the even one of two; not a number stays that
  to->bits = value == value ? (bits + 0x7FFF + (bits >> 16 & 1)) >> 16 : 0x7FC0;
}

// otherwise the compiler loads a vector again for each instruction that uses it
#if LANES == 16
#define KEEP_IN_REGISTER(vector) __asm__("" : "+v"(vector))
#else
#define KEEP_IN_REGISTER(vector)
#endif

// the sums of the lanes of some vectors
template <int COUNT>
inline void lane_sums(const Vec* vectors, float* out) {
#if LANES == 16
  for (int i = 0; i < COUNT; i += 4) {
    __m512 part[4];
    for (int j = 0; j < 4; ++j) part[j] = i + j < COUNT ? (__m512)vectors[i + j] : __m512{};
    const __m512 a = _mm512_unpacklo_ps(part[0], part[1]) + _mm512_unpackhi_ps(part[0], part[1]);
    const __m512 b = _mm512_unpacklo_ps(part[2], part[3]) + _mm512_unpackhi_ps(part[2], part[3]);
    const __m512 c = _mm512_shuffle_ps(a, b, 0x44) + _mm512_shuffle_ps(a, b, 0xEE);
    const __m256 d = _mm512_castps512_ps256(c) + _mm512_extractf32x8_ps(c, 1);
    const __m128 e = _mm256_castps256_ps128(d) + _mm256_extractf128_ps(d, 1);
    for (int j = 0; j < std::min(4, COUNT - i); ++j) out[i + j] = e[j];
  }
#else
  for (int i = 0; i < COUNT; ++i) {
    out[i] = 0.0f;
    for (int lane = 0; lane < LANES; ++lane) out[i] += vectors[i][lane];
  }
#endif
}

template <typename Weight, typename Out, int R, int O>
void tile(
    const float* x,
    const Weight* w,
    const float* scale,
    const Out* bias,
    Out* out,
    int64_t n,
    int64_t k) {
  Vec sums[R * O];
  for (auto& sum : sums) sum = Vec{};
  int64_t i = 0;
  for (; i + LANES <= k; i += LANES) {
    Vec weights[O];
    for (int o = 0; o < O; ++o) {
      weights[o] = load(w + o * k + i);
      // into the second level: the first one has fewer loads in flight
      __builtin_prefetch(w + (o + AHEAD) * k + i, 0, 2);
    }
    for (int r = 0; r < R; ++r) {
      Vec part = load(x + r * k + i);
      KEEP_IN_REGISTER(part);
      for (int o = 0; o < O; ++o) sums[r * O + o] += weights[o] * part;
    }
  }
  float results[R * O];
  lane_sums<R * O>(sums, results);
  for (; i < k; ++i)
    for (int r = 0; r < R; ++r)
      for (int o = 0; o < O; ++o) results[r * O + o] += number(w[o * k + i]) * x[r * k + i];
  for (int r = 0; r < R; ++r)
    for (int o = 0; o < O; ++o)
      store(
          results[r * O + o] * (scale ? scale[o] : 1.0f) + (bias ? number(bias[o]) : 0.0f),
          out + r * n + o);
}

template <typename Weight, typename Out>
using Tile =
    void (*)(const float*, const Weight*, const float*, const Out*, Out*, int64_t, int64_t);

template <typename Weight, typename Out, int O, size_t... R>
constexpr std::array<Tile<Weight, Out>, sizeof...(R)> tiles(std::index_sequence<R...>) {
  return {&tile<Weight, Out, int(R) + 1, O>...};
}

template <typename Weight, typename Out>
constexpr auto WIDE = tiles<Weight, Out, OUTS>(std::make_index_sequence<ROWS>{});
template <typename Weight, typename Out>
constexpr auto TALL = tiles<Weight, Out, TALL_OUTS>(std::make_index_sequence<TALL_ROWS>{});
template <typename Weight, typename Out>
constexpr auto SINGLE = tiles<Weight, Out, 1>(std::make_index_sequence<TALL_ROWS>{});

template <typename Weight, typename Out>
void multiply(
    const float* x,
    const Weight* w,
    const float* scale,
    const Out* bias,
    Out* out,
    int64_t m,
    int64_t n,
    int64_t k) {
  const int64_t few = (m + ROWS - 1) / ROWS, fewer = (m + TALL_ROWS - 1) / TALL_ROWS;
  const bool tall = fewer < few;
  const int64_t blocks = tall ? fewer : few, outs = tall ? TALL_OUTS : OUTS;
  const int64_t groups = (n + outs - 1) / outs;
#pragma omp parallel for if (m * n * k >= MIN_SHARED_WORK)
  for (int64_t group = 0; group < groups; ++group) {
    const int64_t first = group * outs, stop = std::min(first + outs, n);
    const int64_t step = stop - first == outs ? outs : 1;
    for (int64_t b = 0; b < blocks; ++b) {  // blocks of rows of about the same size
      const int64_t row = m * b / blocks, rows = m * (b + 1) / blocks - row;
      const Tile<Weight, Out> run = step == 1 ? SINGLE<Weight, Out>[rows - 1]
                                    : tall    ? TALL<Weight, Out>[rows - 1]
                                              : WIDE<Weight, Out>[rows - 1];
      for (int64_t o = first; o < stop; o += step)
        run(x + row * k,
            w + o * k,
            scale ? scale + o : nullptr,
            bias ? bias + o : nullptr,
            out + row * n + o,
            n,
            k);
    }
  }
}

constexpr size_t MAX_ARGUMENTS = 64;

template <size_t... I>
void call_with(int64_t kernel, const int64_t* values, std::index_sequence<I...>) {
  // pointers and 64-bit integers are passed in the same registers
  reinterpret_cast<void (*)(decltype((void)I, int64_t{})...)>(kernel)(values[I]...);
}

template <size_t COUNT>
void call_count(int64_t kernel, const int64_t* values) {
  call_with(kernel, values, std::make_index_sequence<COUNT>{});
}

using Caller = void (*)(int64_t, const int64_t*);

template <size_t... N>
constexpr std::array<Caller, sizeof...(N)> callers(std::index_sequence<N...>) {
  return {&call_count<N>...};
}

constexpr auto CALLERS = callers(std::make_index_sequence<MAX_ARGUMENTS + 1>{});

}  // namespace

// (m, k) with a weight (n, k) and a bias (n,) or null: (m, n)
extern "C" void product(
    const float* x, const float* w, const float* bias, float* out, int64_t m, int64_t n, int64_t k) {
  multiply(x, w, nullptr, bias, out, m, n, k);
}

// the same in bfloat16, with sums in float
extern "C" void bfloat16_product(
    const BFloat16* x,
    const BFloat16* w,
    const BFloat16* bias,
    BFloat16* out,
    int64_t m,
    int64_t n,
    int64_t k) {
  std::vector<float> rows(m * k);
  for (int64_t i = 0; i < m * k; ++i) rows[i] = number(x[i]);
  multiply(rows.data(), w, nullptr, bias, out, m, n, k);
}

// (m, k) with a weight (n, k) in int8 that has scales (n,): (m, n)
extern "C" void int8_product(
    const float* x,
    const int8_t* w,
    const float* scale,
    float* out,
    int64_t m,
    int64_t n,
    int64_t k) {
  multiply<int8_t, float>(x, w, scale, nullptr, out, m, n, k);
}

extern "C" int64_t address_of_product() { return reinterpret_cast<int64_t>(&product); }
extern "C" int64_t address_of_bfloat16_product() {
  return reinterpret_cast<int64_t>(&bfloat16_product);
}
extern "C" int64_t address_of_int8_product() { return reinterpret_cast<int64_t>(&int8_product); }

// Runs the calls for each layer.  A call is a kernel, a count, and for each argument a kind and a
// value.  Kind -2 is a number, -1 an offset into the scratch memory, and another kind an offset
// from that entry of the layer's line in the table.  Returns 1 where a kernel refuses its inputs.
extern "C" int run(
    const int64_t* calls,
    int64_t length,
    const int64_t* table,
    int64_t layers,
    int64_t entries,
    int64_t scratch) {
  int64_t values[MAX_ARGUMENTS];
  try {
    for (int64_t layer = 0; layer < layers; ++layer, table += entries) {
      for (const int64_t* at = calls; at < calls + length;) {
        const int64_t kernel = at[0], count = at[1];
        at += 2;
        for (int64_t i = 0; i < count; ++i, at += 2)
          values[i] = at[1] + (at[0] == -2 ? 0 : at[0] == -1 ? scratch : table[at[0]]);
        CALLERS[count](kernel, values);
      }
    }
  } catch (...) {
    return 1;
  }
  return 0;
}
