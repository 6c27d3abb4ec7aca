// DReLU's forward pass, with the statistics of its negative inputs, and its backward pass, each in one pass over memory.
// Plain C++ without torch's headers, so that it builds in seconds with any compiler; `cpu.py` builds, loads and calls it.
//
// Tensors come as [outer, channels, inner] without gaps. Where `inner` is short, (channel, position) pairs are taken for
// channels, so that there are two loops only: along a run of one channel, and across a row of many.
// The rational form's backward pass reads the output and inverts it; the exponential form's reads the input.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>
#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace {

// torch's own pool of threads: GOMP_parallel and omp_get_thread_num of the OpenMP library that torch uses.
using Region = void (*)(void*);
void (*gomp_parallel)(Region, void*, unsigned, unsigned) = nullptr;
int (*thread_number)() = nullptr;

template <typename Body>
void in_parallel(int threads, const Body& body) {
    if (threads <= 1 || !gomp_parallel) return body(0);
    gomp_parallel([](void* data) { (*static_cast<const Body*>(data))(thread_number()); }, const_cast<Body*>(&body), threads, 0);
}

constexpr int64_t GRAIN = 32768;  // elements that are worth a thread, as in torch
constexpr int64_t SHORT = 32;     // a shorter run is not worth a loop of its own
constexpr int64_t BLOCK = 65536;  // elements of a channel whose sums are kept in T, before they go into a double
constexpr int64_t SUMMED = 256;   // and rows

// ---- Vectors: GCC's and Clang's own, as wide as the machine's. ----

#if defined(__AVX512F__)
#define RELUME_BYTES 64
#elif defined(__AVX__)
#define RELUME_BYTES 32
#else
#define RELUME_BYTES 16
#endif

struct BF16 { uint16_t bits; };
struct F16 { uint16_t bits; };

// What a stored type is computed in.
template <typename S> struct Computed { using type = float; };
template <> struct Computed<double> { using type = double; };
template <typename S> using computed = typename Computed<S>::type;

using Halves = uint16_t __attribute__((vector_size(RELUME_BYTES / 2)));
using Floats = float __attribute__((vector_size(RELUME_BYTES)));
using Doubles = double __attribute__((vector_size(RELUME_BYTES)));
using Words = uint32_t __attribute__((vector_size(RELUME_BYTES)));
using Longs = int64_t __attribute__((vector_size(RELUME_BYTES)));
using Ints = int32_t __attribute__((vector_size(RELUME_BYTES)));
template <typename T> struct Vector { using type = Floats; };
template <> struct Vector<double> { using type = Doubles; };
template <typename T> using vector = typename Vector<T>::type;
template <typename T> constexpr int LANES = RELUME_BYTES / sizeof(T);

template <typename To, typename From> inline To same_bytes(const From& from) {
    To to;
    static_assert(sizeof(to) == sizeof(from), "");
    std::memcpy(&to, &from, sizeof(to));
    return to;
}

inline Floats load(const float* from) { Floats v; std::memcpy(&v, from, sizeof(v)); return v; }
inline Doubles load(const double* from) { Doubles v; std::memcpy(&v, from, sizeof(v)); return v; }
inline void store(Floats v, float* to) { std::memcpy(to, &v, sizeof(v)); }
inline void store(Doubles v, double* to) { std::memcpy(to, &v, sizeof(v)); }

inline Words load_halves(const void* from) {
    Halves v;
    std::memcpy(&v, from, sizeof(v));
    return __builtin_convertvector(v, Words);
}
inline void store_halves(Words w, void* to) {
    const Halves v = __builtin_convertvector(w, Halves);
    std::memcpy(to, &v, sizeof(v));
}
inline Floats load(const BF16* from) { return same_bytes<Floats>(load_halves(from) << 16); }
inline void store(Floats v, BF16* to) {
    const Words bits = same_bytes<Words>(v);
    const Words rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    store_halves(v == v ? rounded : Words{} + 0x7fc0u, to);
}
#if defined(__AVX512F__)
inline Floats load(const F16* from) { return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from))); }
inline void store(Floats v, F16* to) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm512_cvtps_ph(v, 0)); }
#elif defined(__AVX__) && defined(__F16C__)
inline Floats load(const F16* from) { return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from))); }
inline void store(Floats v, F16* to) { _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm256_cvtps_ph(v, 0)); }
#else
inline Floats load(const F16* from) {
    const Words bits = load_halves(from), sign = (bits & 0x8000u) << 16, rest = bits & 0x7fffu;
    const Floats small = __builtin_convertvector(same_bytes<Ints>(rest), Floats) * 5.9604644775390625e-8f;  // units of 2^-24
    const Words normal = (rest << 13) + (rest >= 0x7c00u ? Words{} + 0x70000000u : Words{} + 0x38000000u);
    return same_bytes<Floats>(sign | (rest < 0x400u ? same_bytes<Words>(small) : normal));
}
inline void store(Floats v, F16* to) {
    const Words bits = same_bytes<Words>(v), sign = (bits >> 16) & 0x8000u, rest = bits & 0x7fffffffu;
    const Words small = same_bytes<Words>(same_bytes<Floats>(rest) + 0.5f) - 0x3f000000u;  // rounds to units of 2^-24
    const Words normal = (rest - 0x38000000u + 0xfffu + ((rest >> 13) & 1u)) >> 13;
    const Words finite = rest < 0x38800000u ? small : normal;
    const Words large = rest > 0x7f800000u ? Words{} + 0x7e00u : Words{} + 0x7c00u;
    store_halves(sign | (rest >= 0x477ff000u ? large : finite), to);
}
#endif

// 1 / v and √v of positive finite numbers. AVX-512 estimates them to 14 bits, exactly for powers of two; Newton's step
// doubles that, in a third of the time of a division. ROUGH, for what is rounded to two bytes, does without it.
template <bool ROUGH> inline Doubles reciprocal(Doubles v) { return 1 / v; }
#if defined(__AVX512F__)
template <bool ROUGH> inline Floats reciprocal(Floats v) {
    const Floats r = _mm512_maskz_rcp14_ps(-1, v);
    return ROUGH ? r : r + r * (1 - v * r);
}
template <bool ROUGH> inline Floats root(Floats v) {
    const Floats r = _mm512_maskz_rsqrt14_ps(-1, v), s = v * r;
    return ROUGH ? s : s + 0.5f * r * (v - s * s);
}
#else
template <bool ROUGH> inline Floats reciprocal(Floats v) { return 1 / v; }
#endif
#if defined(__AVX512F__)
template <bool> inline Doubles root(Doubles v) { return _mm512_maskz_sqrt_pd(-1, v); }
#elif defined(__AVX__)
template <bool> inline Floats root(Floats v) { return _mm256_sqrt_ps(v); }
template <bool> inline Doubles root(Doubles v) { return _mm256_sqrt_pd(v); }
#elif defined(__SSE2__)
template <bool> inline Floats root(Floats v) { return _mm_sqrt_ps(v); }
template <bool> inline Doubles root(Doubles v) { return _mm_sqrt_pd(v); }
#elif defined(__aarch64__)
template <bool> inline Floats root(Floats v) { return same_bytes<Floats>(vsqrtq_f32(same_bytes<float32x4_t>(v))); }
template <bool> inline Doubles root(Doubles v) { return same_bytes<Doubles>(vsqrtq_f64(same_bytes<float64x2_t>(v))); }
#else
template <bool, typename V> inline V root(V v) {
    for (unsigned k = 0; k < sizeof(V) / sizeof(v[0]); ++k) v[k] = std::sqrt(v[k]);
    return v;
}
#endif

// ---- The two forms. Constants of a channel: τ, -1/τ, α, 1 - α; each a vector. ----

// e^t - 1 for t <= 0, good to a few units in the last place: t = n ln 2 + r, and Taylor's series for r.
inline Floats expm1_below(Floats t) {
    t = t < -80.f ? Floats{} - 80.f : t;
    const Ints n = __builtin_convertvector(t * 1.44269504f - 0.5f, Ints);
    const Floats whole = __builtin_convertvector(n, Floats);
    const Floats r = (t - whole * 0.693145752f) - whole * 1.42860677e-6f;
    Floats p = r * (1.f / 40320) + 1.f / 5040;
    p = p * r + 1.f / 720; p = p * r + 1.f / 120; p = p * r + 1.f / 24; p = p * r + 1.f / 6; p = p * r + 0.5f;
    p = (p * r + 1.f) * r;
    const Floats scale = same_bytes<Floats>((n + 127) << 23);
    return scale * p + (scale - 1.f);
}
inline Doubles expm1_below(Doubles t) {
    t = t < -700. ? Doubles{} - 700. : t;
    const Longs n = __builtin_convertvector(t * 1.4426950408889634 - 0.5, Longs);
    const Doubles whole = __builtin_convertvector(n, Doubles);
    const Doubles r = (t - whole * 0.693147180369123816490) - whole * 1.90821492927058770002e-10;
    Doubles p = Doubles{} + 1.;
    for (int k = 15; k > 1; --k) p = 1. + p * r * (1. / k);
    p *= r;
    const Doubles scale = same_bytes<Doubles>((n + 1023) << 52);
    return scale * p + (scale - 1.);
}

template <typename V> struct Channel { V tau, minus_per_tau, alpha, rest; };

// max(v, 0), and v cut off at FAR, beyond which as |x|/τ or |y|/τ the slope is α to the last digit, and whose square does
// not overflow. NaN stays NaN.
constexpr float FAR = 1e18f;
#if defined(__AVX512F__)
inline Floats above_zero(Floats v) { return _mm512_maskz_max_ps(-1, Floats{}, v); }
inline Doubles above_zero(Doubles v) { return _mm512_maskz_max_pd(-1, Doubles{}, v); }
inline Floats not_too_far(Floats v) { return _mm512_maskz_min_ps(-1, Floats{} + FAR, v); }
inline Doubles not_too_far(Doubles v) { return _mm512_maskz_min_pd(-1, Doubles{} + FAR, v); }
#else
template <typename V> inline V above_zero(V v) { return v < 0 ? V{} : v; }
template <typename V> inline V not_too_far(V v) { return v > FAR ? V{} + FAR : v; }
#endif

struct Rational {
    // f(x), and u = |x|/τ for x < 0. For others u is 0, and the factor exactly 1; NaN stays NaN.
    template <bool ROUGH, typename V> static inline V output(V x, const Channel<V>& c, V& u) {
        u = above_zero(x * c.minus_per_tau);
        return x * (c.alpha + c.rest * reciprocal<ROUGH>(1 + not_too_far(u)));
    }
    // f'(x) from the output y, and u = |x|/τ: with v = |y|/τ, α u² + (1 - v) u - v = 0.
    template <bool ROUGH, typename V> static inline V slope(V y, const Channel<V>& c, V& u) {
        const V v = not_too_far(above_zero(y * c.minus_per_tau));
        const V w = 1 - v, twice = c.alpha + c.alpha;
        const V s = root<ROUGH>(w * w + 2 * twice * v);   // = (1 + u) f'(x)
        const V top = v < 1 ? v + v : s - w;       // two ways to write u = top / bottom; neither subtracts likes
        const V bottom = v < 1 ? s + w : twice;
        u = top / bottom;
        return s * bottom * reciprocal<ROUGH>(bottom + top);
    }
    // ∂f/∂τ and ∂f/∂α
    template <typename V> static inline void partials(V u, const Channel<V>& c, V& by_tau, V& by_alpha) {
        const V q = u / (1 + u);
        by_tau = -c.rest * q * q;
        by_alpha = -c.tau * u * q;
    }
};

struct Exponential {
    template <bool ROUGH, typename V> static inline V output(V x, const Channel<V>& c, V& u) {
        const V above = x > 0 ? x : V{}, below = x > 0 ? V{} : x;
        u = below * c.minus_per_tau;
        return above + (c.alpha * below + c.rest * c.tau * expm1_below(-u));
    }
    template <bool ROUGH, typename V> static inline V slope(V x, const Channel<V>& c, V& u) {
        u = above_zero(x * c.minus_per_tau);
        return c.alpha + c.rest * (expm1_below(-u) + 1);
    }
    template <typename V> static inline void partials(V u, const Channel<V>& c, V& by_tau, V& by_alpha) {
        const V m = expm1_below(-u);
        by_tau = c.rest * (m + u * (m + 1));
        by_alpha = -c.tau * (u + m);
    }
};

// ---- How elements are gone through. ----

// How elements lie, after short runs were folded into channels, and how they are divided among threads.
struct Plan {
    int64_t outer, channels, inner, fold;  // `fold` positions of one true channel lie side by side
    int threads;
    int64_t total() const { return outer * channels * inner; }
};

Plan plan_for(int64_t outer, int64_t channels, int64_t inner, int threads) {
    Plan p{outer, channels, inner, 1, threads};
    if (channels > 1 && inner < SHORT) p = {outer, channels * inner, 1, inner, threads};
    p.threads = int(std::max<int64_t>(1, std::min<int64_t>(threads, (p.total() + GRAIN - 1) / GRAIN)));
    return p;
}

// The parts [from, to) of `n` that thread `t` takes, cut at multiples of `step`.
inline void part(int64_t n, int64_t step, int t, int threads, int64_t& from, int64_t& to) {
    const int64_t steps = (n + step - 1) / step;
    from = std::min(n, steps * t / threads * step);
    to = std::min(n, steps * (t + 1) / threads * step);
}

// The channels' constants, in columns, with room for a whole block behind the last.
template <typename T> struct Constants {
    std::vector<T> tau, minus_per_tau, alpha, rest;
    Constants(const Plan& p, const T* taus, int64_t n_taus, const T* alphas, int64_t n_alphas) {
        const int64_t n = p.channels;
        for (auto* column : {&tau, &minus_per_tau, &alpha, &rest}) column->resize(n + LANES<T>, T(1));
        for (int64_t c = 0, k = 0; c < n; ++k) {  // of true channel k
            const T t = taus[n_taus > 1 ? k : 0], a = alphas[n_alphas > 1 ? k : 0];
            for (const int64_t end = c + p.fold; c < end; ++c) {
                tau[c] = t;
                alpha[c] = a;
            }
        }
        for (int64_t c = 0; c < n; ++c) {
            minus_per_tau[c] = -1 / tau[c];
            rest[c] = 1 - alpha[c];
        }
    }
};

// The constants of a vector: all lanes of one channel, or each of its own.
template <typename T> struct OneChannel {
    using V = vector<T>;
    Channel<V> channel;
    OneChannel(const Constants<T>& k, int64_t c)
        : channel{V{} + k.tau[c], V{} + k.minus_per_tau[c], V{} + k.alpha[c], V{} + k.rest[c]} {}
};
template <typename T> struct ManyChannels {
    Channel<vector<T>> channel;
    ManyChannels(const Constants<T>& k, int64_t c)
        : channel{load(&k.tau[c]), load(&k.minus_per_tau[c]), load(&k.alpha[c]), load(&k.rest[c])} {}
};

// Two sums per channel (negative inputs and their number, or the two gradients), one set of columns for each thread.
struct Sums {
    std::vector<double> first, second;
    int64_t channels;
    Sums(const Plan& p, bool wanted) : channels(p.channels) {
        if (wanted) { first.resize(channels * p.threads); second.resize(channels * p.threads); }
    }
    // What U vectors have summed, all for channel c.
    template <int U, typename V> void add(const V* a, const V* b, int64_t c, int t) {
        V x = a[0], y = b[0];
        for (int v = 1; v < U; ++v) { x += a[v]; y += b[v]; }
        for (unsigned k = 0; k < sizeof(V) / sizeof(x[0]); ++k) {
            first[t * channels + c] += x[k];
            second[t * channels + c] += y[k];
        }
    }
    // What was summed for each of n channels from c on.
    template <typename T> void add(const T* a, const T* b, int64_t c, int64_t n, int t) {
        for (int64_t k = 0; k < n; ++k) {
            first[t * channels + c + k] += a[k];
            second[t * channels + c + k] += b[k];
        }
    }
    // Adds up threads, and the positions of a true channel, into out[0] and out[1].
    void collect(const Plan& p, double* out) const {
        const int64_t n = channels / p.fold;
        for (int64_t c = 0; c < 2 * n; ++c) out[c] = 0;
        for (int t = 0; t < p.threads; ++t) {
            const double *a = &first[t * channels], *b = &second[t * channels];
            if (p.fold == 1) {
                for (int64_t c = 0; c < n; ++c) out[c] += a[c];
                for (int64_t c = 0; c < n; ++c) out[n + c] += b[c];
            } else {
                for (int64_t c = 0; c < n; ++c)
                    for (int64_t k = c * p.fold; k < (c + 1) * p.fold; ++k) {
                        out[c] += a[k];
                        out[n + c] += b[k];
                    }
            }
        }
    }
};

// Calls `pass.stretch(i, n, channel, thread)` for stretches of one channel, or `pass.rows(i, n, channel, rows, thread)` for
// blocks of rows of n channels each; both cover every element once.
template <typename Pass>
void sweep(const Plan& p, Pass& pass) {
    in_parallel(p.threads, [&](int t) {
        int64_t from, to;
        if (p.channels == 1 || p.inner > 1) {
            part(p.total(), 64, t, p.threads, from, to);
            while (from < to) {
                const int64_t run = from / p.inner, end = std::min(to, std::min((run + 1) * p.inner, from + BLOCK));
                pass.stretch(from, end - from, run % p.channels, t);
                from = end;
            }
        } else if (p.outer >= 4 * p.threads) {
            part(p.outer, 1, t, p.threads, from, to);
            for (int64_t row = from; row < to; row += SUMMED)
                pass.rows(row * p.channels, p.channels, 0, std::min(SUMMED, to - row), t);
        } else {
            part(p.channels, 64, t, p.threads, from, to);
            pass.rows(from, to - from, from, p.outer, t);
        }
    });
}

// How a pass goes through a stretch, in blocks of four vectors, then of one; or through rows, one vector wide. The last
// vector is padded.
template <typename Derived, typename T>
struct Pass {
    using V = vector<T>;
    static constexpr int FOUR = 4 * LANES<T>, ONE = LANES<T>;
    const Plan& p;
    const Constants<T>& k;
    Sums& sums;

    void stretch(int64_t i, int64_t n, int64_t c, int t) {
        const int64_t whole = n / FOUR * FOUR, rest = (n - whole) / ONE * ONE;
        if (whole) run<4>(i, c, FOUR, whole / FOUR, t);
        if (rest) run<1>(i + whole, c, ONE, rest / ONE, t);
        if (n > whole + rest) run<1>(i + whole + rest, c, n - whole - rest, 1, t);
    }
    // Some rows at a time: with sums, which wait in T until the last row, more, so that they are loaded less often.
    void rows(int64_t i, int64_t n, int64_t c, int64_t rows, int t) {
        constexpr int64_t ROWS = Derived::SUMS ? 16 : 2;
        std::vector<T> a(Derived::SUMS ? n + ONE : 0), b(a.size());
        for (int64_t r = 0; r < rows; r += ROWS, i += ROWS * p.channels) {
            const int64_t count = std::min<int64_t>(ROWS, rows - r);
            for (int64_t j = 0; j < n; j += ONE) {
                V x[1] = {}, y[1] = {};
                if (Derived::SUMS) { x[0] = load(&a[j]); y[0] = load(&b[j]); }
                const ManyChannels<T> channels(k, c + j);
                blocks<1>(i + j, channels, std::min<int64_t>(ONE, n - j), count, p.channels, x, y);
                if (Derived::SUMS) { store(x[0], &a[j]); store(y[0], &b[j]); }
            }
        }
        if (Derived::SUMS) sums.add(&a[0], &b[0], c, n, t);
    }

private:
    template <int U>
    inline void run(int64_t i, int64_t c, int64_t width, int64_t count, int t) {
        V x[U] = {}, y[U] = {};
        blocks<U>(i, OneChannel<T>(k, c), width, count, U * ONE, x, y);
        if (Derived::SUMS) sums.template add<U>(x, y, c, t);
    }
    // `count` blocks of `width` elements, `stride` apart.
    template <int U, typename Constant>
    inline void blocks(int64_t i, const Constant& channels, int64_t width, int64_t count, int64_t stride, V* x, V* y) {
        if (width == U * ONE)
            for (int64_t r = 0; r < count; ++r) self().template block<U>(i + r * stride, channels, x, y);
        else
            for (int64_t r = 0; r < count; ++r) self().padded(i + r * stride, width, channels, x, y);
    }
    Derived& self() { return *static_cast<Derived*>(this); }
};

template <typename Form, typename S, bool STATISTICS>
struct Forward : Pass<Forward<Form, S, STATISTICS>, computed<S>> {
    using T = computed<S>;
    using V = vector<T>;
    static constexpr bool SUMS = STATISTICS;
    const S* x;
    S* y;

    template <int U, typename Constant>
    static inline void compute(const S* from, S* to, const Constant& channels, V* sum, V* count) {
#pragma GCC unroll 4
        for (int v = 0; v < U; ++v) {
            V u;
            store(Form::template output<sizeof(S) == 2>(load(from + v * LANES<T>), channels.channel, u), to + v * LANES<T>);
            if (STATISTICS) {
                sum[v] += u;  // of |x|/τ: NaN or infinite when x is, which spoils this sum alone
                count[v] = u > 0 ? count[v] + 1 : count[v];
            }
        }
    }
    template <int U, typename Constant> void block(int64_t i, const Constant& channels, V* sum, V* count) {
        compute<U>(x + i, y + i, channels, sum, count);
    }
    template <typename Constant> void padded(int64_t i, int64_t width, const Constant& channels, V* sum, V* count) {
        S in[LANES<T>] = {}, out[LANES<T>];
        std::memcpy(in, x + i, width * sizeof(S));
        compute<1>(in, out, channels, sum, count);
        std::memcpy(y + i, out, width * sizeof(S));
    }
};

// `kept` is what the forward pass left: the output for the rational form, the input for the exponential one.
template <typename Form, typename S, bool PARTIALS>
struct Backward : Pass<Backward<Form, S, PARTIALS>, computed<S>> {
    using T = computed<S>;
    using V = vector<T>;
    static constexpr bool SUMS = PARTIALS;
    const S *g, *kept;
    S* dx;

    template <int U, typename Constant>
    static inline void compute(const S* up, const S* from, S* to, const Constant& channels, V* by_tau, V* by_alpha) {
#pragma GCC unroll 4
        for (int v = 0; v < U; ++v) {
            V u, a, b;
            const V gradient = load(up + v * LANES<T>);
            store(gradient * Form::template slope<sizeof(S) == 2>(load(from + v * LANES<T>), channels.channel, u), to + v * LANES<T>);
            if (PARTIALS) {
                Form::partials(u, channels.channel, a, b);
                by_tau[v] += gradient * a;
                by_alpha[v] += gradient * b;
            }
        }
    }
    template <int U, typename Constant> void block(int64_t i, const Constant& channels, V* by_tau, V* by_alpha) {
        compute<U>(g + i, kept + i, dx + i, channels, by_tau, by_alpha);
    }
    template <typename Constant> void padded(int64_t i, int64_t width, const Constant& channels, V* by_tau, V* by_alpha) {
        S up[LANES<T>] = {}, from[LANES<T>] = {}, out[LANES<T>];
        std::memcpy(up, g + i, width * sizeof(S));
        std::memcpy(from, kept + i, width * sizeof(S));
        compute<1>(up, from, out, channels, by_tau, by_alpha);
        std::memcpy(dx + i, out, width * sizeof(S));
    }
};

template <typename Form, typename S, bool STATISTICS>
void forward(const Plan& p, const S* x, S* y, const Constants<computed<S>>& k, Sums& sums) {
    Forward<Form, S, STATISTICS> pass{{p, k, sums}, x, y};
    sweep(p, pass);
}

template <typename Form, typename S, bool PARTIALS>
void backward(const Plan& p, const S* g, const S* kept, S* dx, const Constants<computed<S>>& k, Sums& sums) {
    Backward<Form, S, PARTIALS> pass{{p, k, sums}, g, kept, dx};
    sweep(p, pass);
}

template <typename S>
void run_forward(const Plan& p, const void* x, void* y, const void* tau, int64_t n_tau, const void* alpha, int64_t n_alpha,
                 int exponential, double* statistics) {
    using T = computed<S>;
    const Constants<T> k(p, static_cast<const T*>(tau), n_tau, static_cast<const T*>(alpha), n_alpha);
    Sums sums(p, statistics != nullptr);
    auto* from = static_cast<const S*>(x);
    auto* to = static_cast<S*>(y);
    if (exponential) {
        if (statistics) forward<Exponential, S, true>(p, from, to, k, sums);
        else forward<Exponential, S, false>(p, from, to, k, sums);
    } else {
        if (statistics) forward<Rational, S, true>(p, from, to, k, sums);
        else forward<Rational, S, false>(p, from, to, k, sums);
    }
    if (!statistics) return;
    sums.collect(p, statistics);
    for (int64_t c = 0; c < p.channels / p.fold; ++c) statistics[c] *= k.tau[c * p.fold];  // |x|/τ was summed
}

template <typename S>
void run_backward(const Plan& p, const void* g, const void* kept, void* dx, const void* tau, int64_t n_tau,
                  const void* alpha, int64_t n_alpha, int exponential, double* partials) {
    using T = computed<S>;
    const Constants<T> k(p, static_cast<const T*>(tau), n_tau, static_cast<const T*>(alpha), n_alpha);
    Sums sums(p, partials != nullptr);
    auto *up = static_cast<const S*>(g), *from = static_cast<const S*>(kept);
    auto* to = static_cast<S*>(dx);
    if (exponential) {
        if (partials) backward<Exponential, S, true>(p, up, from, to, k, sums);
        else backward<Exponential, S, false>(p, up, from, to, k, sums);
    } else {
        if (partials) backward<Rational, S, true>(p, up, from, to, k, sums);
        else backward<Rational, S, false>(p, up, from, to, k, sums);
    }
    if (partials) sums.collect(p, partials);
}

enum Dtype { FLOAT32, FLOAT64, BFLOAT16, FLOAT16 };

}  // namespace

extern "C" {

void relume_drelu_threads(void* parallel, void* number) {
    gomp_parallel = reinterpret_cast<decltype(gomp_parallel)>(parallel);
    thread_number = reinterpret_cast<decltype(thread_number)>(number);
}

// y from x; `statistics`, if given, gets [2, channels]: the sum of |x| over negative inputs, and their number.
// `tau` and `alpha` are float, or double for double tensors; one value, or one per channel.
void relume_drelu_forward(int dtype, int64_t outer, int64_t channels, int64_t inner, int threads, int exponential,
                          const void* x, void* y, const void* tau, int64_t n_tau, const void* alpha, int64_t n_alpha,
                          double* statistics) {
    const Plan p = plan_for(outer, channels, inner, threads);
    switch (dtype) {
        case FLOAT32: return run_forward<float>(p, x, y, tau, n_tau, alpha, n_alpha, exponential, statistics);
        case FLOAT64: return run_forward<double>(p, x, y, tau, n_tau, alpha, n_alpha, exponential, statistics);
        case BFLOAT16: return run_forward<BF16>(p, x, y, tau, n_tau, alpha, n_alpha, exponential, statistics);
        case FLOAT16: return run_forward<F16>(p, x, y, tau, n_tau, alpha, n_alpha, exponential, statistics);
    }
}

// dx from the incoming gradient and what was kept; `partials`, if given, gets [2, channels]: the gradients of τ and α.
void relume_drelu_backward(int dtype, int64_t outer, int64_t channels, int64_t inner, int threads, int exponential,
                           const void* g, const void* kept, void* dx, const void* tau, int64_t n_tau,
                           const void* alpha, int64_t n_alpha, double* partials) {
    const Plan p = plan_for(outer, channels, inner, threads);
    switch (dtype) {
        case FLOAT32: return run_backward<float>(p, g, kept, dx, tau, n_tau, alpha, n_alpha, exponential, partials);
        case FLOAT64: return run_backward<double>(p, g, kept, dx, tau, n_tau, alpha, n_alpha, exponential, partials);
        case BFLOAT16: return run_backward<BF16>(p, g, kept, dx, tau, n_tau, alpha, n_alpha, exponential, partials);
        case FLOAT16: return run_backward<F16>(p, g, kept, dx, tau, n_tau, alpha, n_alpha, exponential, partials);
    }
}

// As `statistics.moved` does: running means move towards those of a batch, but for channels without any, or not finite.
void relume_drelu_move(const double* statistics, float* tau, int64_t* batches, int64_t channels, double momentum, double least) {
    for (int64_t c = 0; c < channels; ++c) {
        const double count = statistics[channels + c], mean = statistics[c] / count;
        if (!(count > 0) || !std::isfinite(mean)) continue;
        const double share = batches[c] == 0 ? 1. : momentum < 0 ? 1. / double(batches[c] + 1) : momentum;
        tau[c] = float(std::max(tau[c] + share * (mean - tau[c]), least));
        ++batches[c];
    }
}

}  // extern "C"
