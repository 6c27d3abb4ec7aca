// One pass over a site's pre-activations: per unit the inputs and samples that fire, sum and sum of squares about a
// pivot, extremes, and for ReLU the sum of outputs, added to a meter's state. Plain C++ without torch's headers, so that it
// builds in a second with any compiler; `cpu.py` builds, loads and calls it.
//
// Samples come as [inputs, rows, units, inner], contiguous. State is double [11, units], rows as in meters.py. Nothing is
// written when a sample is NaN or infinite: the caller then takes the path that sifts.

#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

namespace {

enum Row { FIRED, SAMPLES_FIRED, SUM, SQUARES, OUTPUT, NONFINITE, MAX, MIN, FIRST, LAST, PIVOT };

constexpr int64_t BLOCK = 64;             // samples that a lane adds up in T before they go into a double
constexpr int64_t TILE = 1024;               // bytes of units that are counted together: their totals fit the first cache
constexpr int64_t EXACT = int64_t(1) << 22;  // ones that a lane counts in T, exactly

template <typename T>
struct Totals {
    std::vector<double> fired, samples, sum, squares, output;
    std::vector<T> high, low;
    explicit Totals(int64_t units)
        : fired(units), samples(units), sum(units), squares(units), output(units),
          high(units, -std::numeric_limits<T>::infinity()), low(units, std::numeric_limits<T>::infinity()) {}
};

// What lanes have seen. A lane is a unit, or every so-manieth sample of one unit.
template <typename T, int N>
struct Lanes {
    T inside[N] = {}, count[N] = {}, sum[N] = {}, squares[N] = {}, output[N] = {}, bad[N] = {}, high[N], low[N];

    Lanes() {
        for (int k = 0; k < N; ++k) {
            high[k] = -std::numeric_limits<T>::infinity();
            low[k] = std::numeric_limits<T>::infinity();
        }
    }
    inline void add(int k, T z, T pivot, T low_edge, T high_edge) {
        const T d = z - pivot;
        inside[k] += z > low_edge ? (z < high_edge ? T(1) : T(0)) : T(0);
        sum[k] += d;
        squares[k] += d * d;
        output[k] += z > 0 ? z : T(0);
        high[k] = z > high[k] ? z : high[k];
        low[k] = z < low[k] ? z : low[k];
        bad[k] += z - z;  // 0, or NaN when z is not finite
    }
    // `at(k)` is the unit of lane k.
    template <typename Unit>
    void spill_sums(Totals<T>& t, int width, Unit at) {
        for (int k = 0; k < width; ++k) {
            t.sum[at(k)] += sum[k];
            t.squares[at(k)] += squares[k];
            t.output[at(k)] += output[k];
        }
        for (int k = 0; k < N; ++k) sum[k] = squares[k] = output[k] = 0;
    }
    template <typename Unit>
    bool finish(Totals<T>& t, int width, Unit at) {
        spill_sums(t, width, at);
        for (int k = 0; k < width; ++k) {
            t.samples[at(k)] += count[k];
            if (high[k] > t.high[at(k)]) t.high[at(k)] = high[k];
            if (low[k] < t.low[at(k)]) t.low[at(k)] = low[k];
            if (!(bad[k] == 0)) return false;
            count[k] = 0;
        }
        return true;
    }
};

// Units lie innermost: a lane is a unit, and a tile of units goes through all rows.
template <typename T>
bool across(const T* x, int64_t inputs, int64_t rows, int64_t units, const T* pivots, T low_edge, T high_edge, Totals<T>& t) {
    constexpr int N = TILE / sizeof(T);
    for (int64_t first = 0; first < units; first += N) {
        const int width = static_cast<int>(units - first < N ? units - first : N);
        const auto unit = [first](int k) { return first + k; };
        Lanes<T, N> lanes;
        T pivot[N] = {}, fired[N] = {};
        for (int k = 0; k < width; ++k) pivot[k] = pivots[first + k];
        int64_t pending = 0, counted = 0;
        const T* row = x + first;
        for (int64_t n = 0; n < inputs; ++n) {
            for (int64_t r = 0; r < rows; ++r, row += units) {
                if (width == N)
                    for (int k = 0; k < N; ++k) lanes.add(k, row[k], pivot[k], low_edge, high_edge);
                else
                    for (int k = 0; k < width; ++k) lanes.add(k, row[k], pivot[k], low_edge, high_edge);
                if (++pending == BLOCK) {
                    lanes.spill_sums(t, width, unit);
                    pending = 0;
                }
            }
            for (int k = 0; k < N; ++k) {
                lanes.count[k] += lanes.inside[k];
                fired[k] += lanes.inside[k] > 0 ? T(1) : T(0);
                lanes.inside[k] = 0;
            }
            if ((counted += rows) >= EXACT || n + 1 == inputs) {
                for (int k = 0; k < width; ++k) t.fired[first + k] += fired[k], fired[k] = 0;
                if (!lanes.finish(t, width, unit)) return false;
                counted = 0;
            }
        }
    }
    return true;
}

// Each unit has runs of `inner` samples: lanes share out the run.
template <typename T>
bool along(const T* x, int64_t inputs, int64_t rows, int64_t units, int64_t inner, const T* pivots, T low_edge, T high_edge,
           Totals<T>& t) {
    constexpr int N = 64 / sizeof(T);  // one cache line, so that the lanes stay in registers
    for (int64_t u = 0; u < units; ++u) {
        const auto unit = [u](int) { return u; };
        const T pivot = pivots[u];
        Lanes<T, N> lanes;
        int64_t pending = 0, counted = 0;
        for (int64_t n = 0; n < inputs; ++n) {
            for (int64_t r = 0; r < rows; ++r) {
                const T* run = x + ((n * rows + r) * units + u) * inner;
                int64_t i = 0;
                while (i + N <= inner) {
                    const int64_t left = (inner - i) / N, room = BLOCK - pending, turns = left < room ? left : room;
                    for (int64_t turn = 0; turn < turns; ++turn, i += N)
                        for (int k = 0; k < N; ++k) lanes.add(k, run[i + k], pivot, low_edge, high_edge);
                    if ((pending += turns) >= BLOCK) {
                        lanes.spill_sums(t, N, unit);
                        pending = 0;
                    }
                }
                for (int k = 0; i < inner; ++i, ++k) lanes.add(k, run[i], pivot, low_edge, high_edge);
                ++pending;
            }
            T any = 0;
            for (int k = 0; k < N; ++k) {
                any += lanes.inside[k];
                lanes.count[k] += lanes.inside[k];
                lanes.inside[k] = 0;
            }
            if (any > 0) t.fired[u] += 1;
            if ((counted += rows * inner) >= EXACT || n + 1 == inputs) {
                if (!lanes.finish(t, N, unit)) return false;
                counted = 0;
            }
        }
    }
    return true;
}

template <typename T>
int observe(const T* x, int64_t inputs, int64_t rows, int64_t units, int64_t inner, double low_edge, double high_edge,
            int relu, int counted, int flat, double step, double* state) {
    Totals<T> t(units);
    std::vector<T> pivot(units);
    for (int64_t u = 0; u < units; ++u) pivot[u] = static_cast<T>(state[PIVOT * units + u]);
    const T low = static_cast<T>(low_edge), high = static_cast<T>(high_edge);
    // One thread: torch's own wait for work on the other cores without giving them up.
    const bool fine = inner == 1 ? across(x, inputs, rows, units, pivot.data(), low, high, t)
                                 : along(x, inputs, rows, units, inner, pivot.data(), low, high, t);
    if (!fine) return 1;
    for (int64_t u = 0; u < units; ++u)  // finite samples may still be too large to square
        if (!std::isfinite(t.squares[u]) || !std::isfinite(t.sum[u]) || !std::isfinite(t.output[u])) return 1;
    const double samples = static_cast<double>(inputs) * rows * inner;
    for (int64_t u = 0; u < units; ++u) {
        const double fired = flat ? t.fired[u] : static_cast<double>(inputs);
        state[FIRED * units + u] += fired;
        state[SAMPLES_FIRED * units + u] += counted ? t.samples[u] : samples;
        state[SUM * units + u] += t.sum[u];
        state[SQUARES * units + u] += t.squares[u];
        if (relu) state[OUTPUT * units + u] += t.output[u];
        double& most = state[MAX * units + u];
        double& least = state[MIN * units + u];
        if (t.high[u] > most) most = t.high[u];
        if (t.low[u] < least) least = t.low[u];
        if (fired > 0) {
            if (state[FIRST * units + u] < 0) state[FIRST * units + u] = step;
            state[LAST * units + u] = step;
        }
    }
    return 0;
}

}  // namespace

extern "C" {

int relume_observe_f32(const float* x, int64_t inputs, int64_t rows, int64_t units, int64_t inner, double low, double high,
                       int relu, int counted, int flat, double step, double* state) {
    return observe<float>(x, inputs, rows, units, inner, low, high, relu, counted, flat, step, state);
}

int relume_observe_f64(const double* x, int64_t inputs, int64_t rows, int64_t units, int64_t inner, double low, double high,
                       int relu, int counted, int flat, double step, double* state) {
    return observe<double>(x, inputs, rows, units, inner, low, high, relu, counted, flat, step, state);
}
}
