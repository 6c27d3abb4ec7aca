// One pass over a site's pre-activations: per unit the inputs and samples that fire, sum and sum of squares about a
// pivot, extremes, and for ReLU the sum of outputs, added to a meter's state. Plain C++ without torch's headers, so that it
// builds in a second with any compiler; `cpu.py` builds, loads and calls it. Asked to, it also writes down the mean, spread
// and extremes of these samples alone.
//
// Samples come as [inputs, rows, units, inner], contiguous. The rows of the state are those of state.py. Nothing is written
// when a sample is NaN or infinite: the caller then takes the path that sifts.

#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

namespace {

// As laid out by cpu.py. Counts and steps are int32 or, if wide, int64; extremes are float or double.
struct State {
    void *fired, *samples_fired;  // samples_fired may be null: as many as fired
    double *sum, *squares, *output;
    void *high, *low, *first, *last;
    const float* pivot;
    std::intptr_t wide_counts, wide_extremes;
};

constexpr int64_t BLOCK = 64;                // samples that a lane adds up in T before they go into a double
constexpr int64_t TILE = 1024;               // bytes of units that are counted together: their totals fit the first cache
constexpr double FAR = 1e-3;                 // a variance that is less of the squared distance from the pivot is not trusted
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
    T inside[N] = {}, count[N] = {}, sum[N] = {}, squares[N] = {}, output[N] = {}, high[N], low[N];

    Lanes() {
        for (int k = 0; k < N; ++k) {
            high[k] = -std::numeric_limits<T>::infinity();
            low[k] = std::numeric_limits<T>::infinity();
        }
    }
    // R samples of lane k, `stride` apart, at once: what is kept in memory is touched once for all of them.
    template <int R>
    inline void add(int k, const T* z, int64_t stride, T pivot, T low_edge, T high_edge) {
        T ins = 0, first = 0, second = 0, out = 0, most = z[0], least = z[0];
        for (int r = 0; r < R; ++r) {
            const T v = z[r * stride], d = v - pivot;
            ins += v > low_edge ? (v < high_edge ? T(1) : T(0)) : T(0);
            first += d;
            second += d * d;
            out += v > 0 ? v : T(0);
            most = v > most ? v : most;
            least = v < least ? v : least;
        }
        inside[k] += ins;
        sum[k] += first;
        squares[k] += second;
        output[k] += out;
        high[k] = most > high[k] ? most : high[k];
        low[k] = least < low[k] ? least : low[k];
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
    void finish(Totals<T>& t, int width, Unit at) {
        spill_sums(t, width, at);
        for (int k = 0; k < width; ++k) {
            t.samples[at(k)] += count[k];
            if (high[k] > t.high[at(k)]) t.high[at(k)] = high[k];
            if (low[k] < t.low[at(k)]) t.low[at(k)] = low[k];
            count[k] = 0;
        }
    }
};

// Units lie innermost: a lane is a unit, and a tile of units goes through all rows.
template <typename T>
void across(const T* x, int64_t inputs, int64_t rows, int64_t units, const T* pivots, T low_edge, T high_edge, Totals<T>& t) {
    constexpr int N = TILE / sizeof(T), R = 4;
    const bool single = rows == 1;  // each row is an input, which fires when its one sample does
    const int64_t span = single ? (inputs < EXACT ? inputs : EXACT) : rows;
    const int64_t spans = single ? (inputs + span - 1) / span : inputs;
    for (int64_t first = 0; first < units; first += N) {
        const int width = static_cast<int>(units - first < N ? units - first : N);
        const auto unit = [first](int k) { return first + k; };
        Lanes<T, N> lanes;
        T pivot[N] = {}, fired[N] = {};
        for (int k = 0; k < width; ++k) pivot[k] = pivots[first + k];
        int64_t pending = 0, counted = 0;
        const T* row = x + first;
        for (int64_t n = 0; n < spans; ++n) {
            const int64_t length = single && n + 1 == spans ? inputs - n * span : span;
            int64_t r = 0;
            for (; r + R <= length; r += R, row += R * units) {
                if (width == N)
                    for (int k = 0; k < N; ++k) lanes.template add<R>(k, row + k, units, pivot[k], low_edge, high_edge);
                else
                    for (int k = 0; k < width; ++k) lanes.template add<R>(k, row + k, units, pivot[k], low_edge, high_edge);
                if ((pending += R) >= BLOCK) {
                    lanes.spill_sums(t, width, unit);
                    pending = 0;
                }
            }
            for (; r < length; ++r, row += units)
                for (int k = 0; k < width; ++k) lanes.template add<1>(k, row + k, units, pivot[k], low_edge, high_edge);
            pending += R;
            for (int k = 0; k < N; ++k) {
                lanes.count[k] += lanes.inside[k];
                fired[k] += single ? lanes.inside[k] : lanes.inside[k] > 0 ? T(1) : T(0);
                lanes.inside[k] = 0;
            }
            if ((counted += length) >= EXACT || n + 1 == spans) {
                for (int k = 0; k < width; ++k) t.fired[first + k] += fired[k], fired[k] = 0;
                lanes.finish(t, width, unit);
                counted = 0;
            }
        }
    }
}

// Each unit has runs of `inner` samples: lanes share out the run.
template <typename T>
void along(const T* x, int64_t inputs, int64_t rows, int64_t units, int64_t inner, const T* pivots, T low_edge, T high_edge,
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
                        for (int k = 0; k < N; ++k) lanes.template add<1>(k, run + i + k, 1, pivot, low_edge, high_edge);
                    if ((pending += turns) >= BLOCK) {
                        lanes.spill_sums(t, N, unit);
                        pending = 0;
                    }
                }
                for (int k = 0; i < inner; ++i, ++k) lanes.template add<1>(k, run + i, 1, pivot, low_edge, high_edge);
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
                lanes.finish(t, N, unit);
                counted = 0;
            }
        }
    }
}

// For `how`, see Counting in counting.py.
struct How {
    int64_t inputs;
    double samples;  // of each unit
    bool relu, counted, flat;
    int64_t step;
};

template <typename Count, typename Real, typename T>
void add(const Totals<T>& t, const How& how, const State& state, int64_t units) {
    Count *fired = static_cast<Count*>(state.fired), *samples = static_cast<Count*>(state.samples_fired);
    Count *first = static_cast<Count*>(state.first), *last = static_cast<Count*>(state.last);
    Real *high = static_cast<Real*>(state.high), *low = static_cast<Real*>(state.low);
    const Count step = static_cast<Count>(how.step);
    for (int64_t u = 0; u < units; ++u) {
        const Count fires = how.flat ? static_cast<Count>(t.fired[u]) : static_cast<Count>(how.inputs);
        fired[u] += fires;
        if (fires > 0) {
            if (first[u] < 0) first[u] = step;
            last[u] = step;
        }
        const Real most = static_cast<Real>(t.high[u]), least = static_cast<Real>(t.low[u]);
        if (most > high[u]) high[u] = most;
        if (least < low[u]) low[u] = least;
        state.sum[u] += t.sum[u];
        state.squares[u] += t.squares[u];
    }
    if (samples)
        for (int64_t u = 0; u < units; ++u) samples[u] += static_cast<Count>(how.counted ? t.samples[u] : how.samples);
    if (how.relu)
        for (int64_t u = 0; u < units; ++u) state.output[u] += t.output[u];
}

// One thread: torch's own wait for work on the other cores without giving them up.
template <typename T>
void total(const T* x, int64_t inputs, int64_t rows, int64_t units, int64_t inner, const T* pivot, T low, T high, Totals<T>& t) {
    if (inner == 1)
        across(x, inputs, rows, units, pivot, low, high, t);
    else
        along(x, inputs, rows, units, inner, pivot, low, high, t);
}

// Mean, standard deviation, maximum and minimum, [4, units]. False where a unit lies so far from its pivot, measured by its
// spread, that the spread is lost to rounding.
template <typename T>
bool moments_of(const Totals<T>& t, double samples, const std::vector<T>& pivot, int64_t units, double* to) {
    bool precise = true;
    for (int64_t u = 0; u < units; ++u) {
        const double off = t.sum[u] / samples, variance = t.squares[u] / samples - off * off;
        // A unit that is constant but for rounding needs no second look.
        const double slack = 1e-6 * static_cast<double>(pivot[u]);
        if (variance < FAR * off * off && off * off > slack * slack) precise = false;
        to[u] = pivot[u] + off;
        to[units + u] = variance > 0 ? std::sqrt(variance) : 0;
        to[2 * units + u] = t.high[u];
        to[3 * units + u] = t.low[u];
    }
    return precise;
}

template <typename T>
int observe(const T* x, int64_t inputs, int64_t rows, int64_t units, int64_t inner, double low_edge, double high_edge,
            int relu, int counted, int flat, int64_t step, const State* state, double* moments) {
    if (!state->wide_counts && step > std::numeric_limits<int32_t>::max()) return 1;
    Totals<T> t(units);
    std::vector<T> pivot(state->pivot, state->pivot + units);
    const T low = static_cast<T>(low_edge), high = static_cast<T>(high_edge);
    total(x, inputs, rows, units, inner, pivot.data(), low, high, t);
    // NaN and infinity stay in the squares; finite samples may be too large for them.
    for (int64_t u = 0; u < units; ++u)
        if (!std::isfinite(t.squares[u]) || !std::isfinite(t.sum[u]) || !std::isfinite(t.output[u])) return 1;
    const double samples = static_cast<double>(inputs) * rows * inner;
    if (moments && samples > 0 && !moments_of(t, samples, pivot, units, moments)) {
        // Units have moved far since the window began: once more, about the means that have just been found.
        Totals<T> again(units);
        for (int64_t u = 0; u < units; ++u) pivot[u] = static_cast<T>(moments[u]);
        total(x, inputs, rows, units, inner, pivot.data(), low, high, again);
        moments_of(again, samples, pivot, units, moments);
    }
    const How how{inputs, samples, relu != 0, counted != 0, flat != 0, step};
    if (state->wide_counts)
        state->wide_extremes ? add<int64_t, double>(t, how, *state, units) : add<int64_t, float>(t, how, *state, units);
    else
        state->wide_extremes ? add<int32_t, double>(t, how, *state, units) : add<int32_t, float>(t, how, *state, units);
    return 0;
}

}  // namespace

extern "C" {

int relume_observe_f32(const float* x, int64_t inputs, int64_t rows, int64_t units, int64_t inner, double low, double high,
                       int relu, int counted, int flat, int64_t step, const State* state, double* moments) {
    return observe<float>(x, inputs, rows, units, inner, low, high, relu, counted, flat, step, state, moments);
}

int relume_observe_f64(const double* x, int64_t inputs, int64_t rows, int64_t units, int64_t inner, double low, double high,
                       int relu, int counted, int flat, int64_t step, const State* state, double* moments) {
    return observe<double>(x, inputs, rows, units, inner, low, high, relu, counted, flat, step, state, moments);
}
}
