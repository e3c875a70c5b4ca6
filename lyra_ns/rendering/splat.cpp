// Differentiable rasterizer of 3D Gaussians for the CPU, forward and backward, over tiles of 16 x 16 pixels.
//
// A splat is what one camera sees of one Gaussian. At the offset (x, y) of a pixel from its centre it has
//
//     alpha = min(max_alpha, opacity * exp(-q / (2 d)))
//     q     = (a x + b y)^2 + (c y)^2                          its whitening (a, b, c)
//     d     = 1 + u x + v y + e x^2 + 2 f x y + g y^2          its perspective (u, v, e, f, g)
//
// Without a perspective (d = 1) that is the ordinary, flat EWA splat. With it, it is the exact response along
// the pixel's ray in 3D; projection.py derives both. Splats are blended front to back, as gsplat does:
// alpha under min_alpha is skipped, and a pixel ends before the splat that would bring its transmittance to
// min_transmittance or less.
//
// One vector holds one row of a tile. Threads share nothing that they write: each tile writes its own pixels
// and one gradient row for each of its (tile, splat) pairs, and these rows are added up in a fixed order.
// So two runs give the same bits, with any number of threads.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <vector>

namespace {

constexpr int kTile = 16;
constexpr int kChannels = 4;  // red, green, blue, z-depth

// Columns of a gradient row.
constexpr int kCentre = 0, kWhitening = 2, kPerspective = 5, kOpacity = 10, kColour = 11, kRow = 15;

template <class Real>
struct Vectors;
template <>
struct Vectors<float> {
    typedef float Row __attribute__((vector_size(kTile * 4)));
    typedef int32_t Mask __attribute__((vector_size(kTile * 4)));
};
template <>
struct Vectors<double> {
    typedef double Row __attribute__((vector_size(kTile * 8)));
    typedef int64_t Mask __attribute__((vector_size(kTile * 8)));
};
template <class Real>
using Row = typename Vectors<Real>::Row;
template <class Real>
using Mask = typename Vectors<Real>::Mask;

// e^x for x <= 0 within 2 ulp (Cephes): the library's exp would be called once for each pixel.
inline Row<float> exponential(Row<float> x) {
    x = x < -87.0f ? (Row<float>{} - 87.0f) : x;
    const Mask<float> power = __builtin_convertvector(x * 1.44269504088896341f - 0.5f, Mask<float>);
    const Row<float> rounded = __builtin_convertvector(power, Row<float>);
    x -= rounded * 0.693359375f;  // ln 2 in two parts, so that nothing is lost
    x -= rounded * -2.12194440e-4f;
    Row<float> y = Row<float>{} + 1.9875691500E-4f;
    y = y * x + 1.3981999507E-3f;
    y = y * x + 8.3334519073E-3f;
    y = y * x + 4.1665795894E-2f;
    y = y * x + 1.6666665459E-1f;
    y = y * x + 5.0000001201E-1f;
    y = y * (x * x) + x + 1.0f;
    const Mask<float> exponent_bits = (power + 127) << 23;
    Row<float> two_to_power;
    std::memcpy(&two_to_power, &exponent_bits, sizeof two_to_power);
    return y * two_to_power;
}

inline Row<double> exponential(Row<double> x) {
    for (int i = 0; i < kTile; i++) x[i] = std::exp(x[i]);
    return x;
}

// The two halves of a vector, by which sums and questions take a step for each doubling and not for each lane.
template <class Vector>
struct Halved;
#define LYRA_HALVED(Scalar, lanes)                                                          \
    template <>                                                                             \
    struct Halved<Scalar __attribute__((vector_size((lanes) * sizeof(Scalar))))> {          \
        typedef Scalar Part __attribute__((vector_size((lanes) / 2 * sizeof(Scalar))));     \
        Part parts[2];                                                                      \
    };
LYRA_HALVED(float, 16) LYRA_HALVED(float, 8) LYRA_HALVED(float, 4)
LYRA_HALVED(int32_t, 16) LYRA_HALVED(int32_t, 8) LYRA_HALVED(int32_t, 4)
LYRA_HALVED(double, 16) LYRA_HALVED(double, 8) LYRA_HALVED(double, 4)
LYRA_HALVED(int64_t, 16) LYRA_HALVED(int64_t, 8) LYRA_HALVED(int64_t, 4)
#undef LYRA_HALVED

template <class Vector>
inline Halved<Vector> halved(const Vector& vector) {
    Halved<Vector> halves;
    std::memcpy(&halves, &vector, sizeof vector);
    return halves;
}

template <class Vector>
inline auto sum(const Vector& vector) {
    const auto eight = halved(vector);
    const auto four = halved(eight.parts[0] + eight.parts[1]);
    const auto two = halved(four.parts[0] + four.parts[1]);
    const auto pair = two.parts[0] + two.parts[1];
    return pair[0] + pair[1];
}

template <class MaskVector>
inline bool any(const MaskVector& mask) {
    const auto eight = halved(mask);
    const auto four = halved(eight.parts[0] | eight.parts[1]);
    const auto two = halved(four.parts[0] | four.parts[1]);
    const auto pair = two.parts[0] | two.parts[1];
    return (pair[0] | pair[1]) != 0;
}

}  // namespace

// Mirrored field by field in cpu.py.
template <class Real>
struct View {
    int32_t width, height, num_threads, unused;
    int64_t num_splats, num_pairs;
    double max_alpha, min_alpha, min_transmittance;
    // Of each splat:
    const Real* centres;        // [N, 2] pixels
    const Real* whitenings;     // [N, 3] 1 / pixels
    const Real* perspectives;   // [N, 5], or null for flat splats
    const Real* opacities;      // [N]
    const Real* colours;        // [N, 4]
    const Real* depths;         // [N], positive where the box is not empty
    const int32_t* boxes;       // [N, 4] first and end column, first and end row; inside the image
    // Of each tile: its splats are pair_splats[tile_starts[t] .. tile_starts[t + 1]], near to far.
    int64_t* tile_starts;       // [tiles + 1]
    int32_t* pair_splats;       // [num_pairs]
    // Of each pixel:
    Real* image;                // [H, W, 4]
    Real* transmittance;        // [H, W]
    int32_t* last;              // [H, W] position of its last splat in the tile's list, -1 if none
    const Real* image_grad;          // [H, W, 4]
    const Real* transmittance_grad;  // [H, W]
    // Gradients:
    Real* pair_grads;           // [num_pairs, kRow]
    Real* splat_grads;          // [N, kRow]

    int tiles_across() const { return (width + kTile - 1) / kTile; }
    int tiles_down() const { return (height + kTile - 1) / kTile; }
    int num_tiles() const { return tiles_across() * tiles_down(); }
};

namespace {

// Calls visit(tile) for the tiles that a splat's box touches.
template <class Real, class Visit>
inline void for_tiles_of(const View<Real>& view, int64_t splat, Visit visit) {
    const int32_t* box = view.boxes + 4 * splat;
    if (box[0] >= box[1] || box[2] >= box[3]) return;
    for (int row = box[2] / kTile; row <= (box[3] - 1) / kTile; row++)
        for (int column = box[0] / kTile; column <= (box[1] - 1) / kTile; column++)
            visit(row * view.tiles_across() + column);
}

template <class Real>
int64_t count_pairs(const View<Real>& view) {
    const int num_tiles = view.num_tiles();
    std::fill_n(view.tile_starts, num_tiles + 1, int64_t{0});
    for (int64_t splat = 0; splat < view.num_splats; splat++)
        for_tiles_of(view, splat, [&](int tile) { view.tile_starts[tile + 1]++; });
    for (int tile = 0; tile < num_tiles; tile++) view.tile_starts[tile + 1] += view.tile_starts[tile];
    return view.tile_starts[num_tiles];
}

// Visible splats from near to far; equal depths keep their order. Bits of positive floats sort as integers,
// so eight bits at a time sort them without a comparison.
template <class Real>
std::vector<int32_t> near_to_far(const View<Real>& view) {
    typedef typename std::conditional<sizeof(Real) == 4, uint32_t, uint64_t>::type Key;
    struct Entry {
        Key key;
        int32_t splat;
    };
    std::vector<Entry> entries;
    for (int64_t splat = 0; splat < view.num_splats; splat++) {
        const int32_t* box = view.boxes + 4 * splat;
        if (box[0] >= box[1] || box[2] >= box[3]) continue;
        Entry entry;
        std::memcpy(&entry.key, view.depths + splat, sizeof(Key));
        entry.splat = int32_t(splat);
        entries.push_back(entry);
    }
    std::vector<Entry> sorted(entries.size());
    for (unsigned shift = 0; shift < 8 * sizeof(Key); shift += 8) {
        int64_t starts[257] = {0};
        for (const Entry& entry : entries) starts[((entry.key >> shift) & 255) + 1]++;
        for (int digit = 0; digit < 256; digit++) starts[digit + 1] += starts[digit];
        for (const Entry& entry : entries) sorted[starts[(entry.key >> shift) & 255]++] = entry;
        entries.swap(sorted);
    }
    std::vector<int32_t> splats;
    for (const Entry& entry : entries) splats.push_back(entry.splat);
    return splats;
}

template <class Real>
void list_pairs(const View<Real>& view) {
    std::vector<int64_t> next(view.tile_starts, view.tile_starts + view.num_tiles());
    for (int32_t splat : near_to_far(view))
        for_tiles_of(view, splat, [&](int tile) { view.pair_splats[next[tile]++] = splat; });
}

// The part of the image that one thread works on.
template <class Real>
struct Tile {
    int left, top, columns, rows;
    Row<Real> pixel_x;

    Tile(const View<Real>& view, int index)
        : left(index % view.tiles_across() * kTile),
          top(index / view.tiles_across() * kTile),
          columns(std::min(kTile, view.width - left)),
          rows(std::min(kTile, view.height - top)) {
        for (int i = 0; i < kTile; i++) pixel_x[i] = Real(left + i) + Real(0.5);
    }
    Real pixel_y(int row) const { return Real(top + row) + Real(0.5); }
};

// A splat over the columns of one tile.
template <class Real, bool kPerRay>
struct SplatInTile {
    const Real* whitening;
    const Real* perspective;
    Real centre_y, opacity;
    const Real* colour;
    int first_row, end_row;
    Row<Real> x;
    Real reach;  // q beyond which alpha is under min_alpha, with a margin for rounding

    SplatInTile(const View<Real>& view, const Tile<Real>& tile, int64_t splat)
        : whitening(view.whitenings + 3 * splat),
          perspective(kPerRay ? view.perspectives + 5 * splat : nullptr),
          centre_y(view.centres[2 * splat + 1]),
          opacity(view.opacities[splat]),
          colour(view.colours + kChannels * splat),
          first_row(std::max(0, view.boxes[4 * splat + 2] - tile.top)),
          end_row(std::min(tile.rows, view.boxes[4 * splat + 3] - tile.top)),
          x(tile.pixel_x - view.centres[2 * splat]),
          reach(2 * std::log(std::max(opacity / Real(view.min_alpha), Real(1))) * Real(1.001) + Real(0.001)) {}

    // Whether no pixel of a row can be reached: a skewed splat's box is mostly empty. Flat splats only.
    bool misses(Real y) const {
        const Real at_first = whitening[0] * x[0] + whitening[1] * y;
        const Real at_last = whitening[0] * x[kTile - 1] + whitening[1] * y;
        const Real across = std::max(Real(0), std::max(at_first, -at_last)), down = whitening[2] * y;
        return across * across + down * down > reach;
    }

    Row<Real> inverse_of_d(Real y) const {
        const Real* p = perspective;
        return Real(1) / ((Real(1) + (p[1] + p[4] * y) * y) + x * ((p[0] + 2 * p[3] * y) + p[2] * x));
    }
    Row<Real> half_q(Real y) const {
        const Row<Real> across = whitening[0] * x + whitening[1] * y;
        const Real down = whitening[2] * y;
        return Real(0.5) * (across * across + down * down);
    }
};

template <class Real, bool kPerRay>
void blend_tile(const View<Real>& view, int index) {
    const Tile<Real> tile(view, index);
    const Real max_alpha = Real(view.max_alpha), min_alpha = Real(view.min_alpha);
    const Real min_transmittance = Real(view.min_transmittance);
    Row<Real> transmittance[kTile], image[kTile][kChannels];
    Mask<Real> last[kTile], open[kTile];  // open: pixels that still let light through
    for (int j = 0; j < kTile; j++) {
        transmittance[j] = Row<Real>{} + Real(1);
        for (int c = 0; c < kChannels; c++) image[j][c] = Row<Real>{};
        last[j] = Mask<Real>{} - 1;
        for (int i = 0; i < kTile; i++) open[j][i] = i < tile.columns && j < tile.rows ? -1 : 0;
    }
    const int64_t start = view.tile_starts[index], end = view.tile_starts[index + 1];
    for (int64_t pair = start; pair < end; pair++) {
        const SplatInTile<Real, kPerRay> splat(view, tile, view.pair_splats[pair]);
        for (int j = splat.first_row; j < splat.end_row; j++) {
            const Real y = tile.pixel_y(j) - splat.centre_y;
            if (!kPerRay && splat.misses(y)) continue;
            Row<Real> exponent = splat.half_q(y);
            if (kPerRay) exponent *= splat.inverse_of_d(y);
            Row<Real> alpha = splat.opacity * exponential(-exponent);
            alpha = alpha < max_alpha ? alpha : (Row<Real>{} + max_alpha);
            // Written so that a NaN is never seen.
            Mask<Real> seen = (exponent >= 0) & (alpha >= min_alpha) & open[j];
            if (!any(seen)) continue;
            const Row<Real> behind = transmittance[j] * (Real(1) - alpha);
            const Mask<Real> ends = seen & (behind <= min_transmittance);
            open[j] &= ~ends;
            seen &= ~ends;
            const Row<Real> weight = seen ? alpha * transmittance[j] : Row<Real>{};
            transmittance[j] = seen ? behind : transmittance[j];
            const Mask<Real> position = Mask<Real>{} + int32_t(pair - start);
            last[j] = seen ? position : last[j];
            for (int c = 0; c < kChannels; c++) image[j][c] += splat.colour[c] * weight;
        }
        if (((pair - start) & 15) == 15) {  // looking more often costs more than it saves
            Mask<Real> any_open = open[0];
            for (int j = 1; j < kTile; j++) any_open |= open[j];
            if (!any(any_open)) break;
        }
    }
    for (int j = 0; j < tile.rows; j++)
        for (int i = 0; i < tile.columns; i++) {
            const int64_t pixel = int64_t(tile.top + j) * view.width + tile.left + i;
            view.transmittance[pixel] = transmittance[j][i];
            view.last[pixel] = int32_t(last[j][i]);
            for (int c = 0; c < kChannels; c++) view.image[pixel * kChannels + c] = image[j][c][i];
        }
}

// Sums over the pixels of a tile from which a splat's gradient follows. With s = q / (2 d) and L the loss:
// flat_* are moments of (dL/ds) / d, bent_* are moments of dL/dd = -(dL/ds) s / d.
template <class Real, bool kPerRay>
struct Moments {
    Row<Real> flat_x{}, flat_y{}, flat_xx{}, flat_xy{}, flat_yy{};
    Row<Real> bent{}, bent_x{}, bent_y{}, bent_xx{}, bent_xy{}, bent_yy{};
    Row<Real> opacity{}, colour[kChannels]{};

    void add(const Row<Real>& x, Real y, const Row<Real>& flat, const Row<Real>& bend) {
        const Row<Real> flat_times_x = flat * x;
        flat_x += flat_times_x;
        flat_y += flat * y;
        flat_xx += flat_times_x * x;
        flat_xy += flat_times_x * y;
        flat_yy += flat * (y * y);
        if (!kPerRay) return;
        const Row<Real> bend_times_x = bend * x;
        bent += bend;
        bent_x += bend_times_x;
        bent_y += bend * y;
        bent_xx += bend_times_x * x;
        bent_xy += bend_times_x * y;
        bent_yy += bend * (y * y);
    }

    void write_row(const SplatInTile<Real, kPerRay>& splat, Real* row) const {
        const Real *k = splat.whitening, *p = splat.perspective;
        const Real along_x = sum(flat_x), along_y = sum(flat_y), along = k[0] * along_x + k[1] * along_y;
        const Real xx = sum(flat_xx), xy = sum(flat_xy), yy = sum(flat_yy);
        row[kCentre] = -k[0] * along;
        row[kCentre + 1] = -(k[1] * along + k[2] * k[2] * along_y);
        row[kWhitening] = k[0] * xx + k[1] * xy;
        row[kWhitening + 1] = k[0] * xy + k[1] * yy;
        row[kWhitening + 2] = k[2] * yy;
        for (int c = 0; c < 5; c++) row[kPerspective + c] = 0;
        if (kPerRay) {
            const Real whole = sum(bent), bent_along_x = sum(bent_x), bent_along_y = sum(bent_y);
            row[kCentre] -= p[0] * whole + 2 * (p[2] * bent_along_x + p[3] * bent_along_y);
            row[kCentre + 1] -= p[1] * whole + 2 * (p[3] * bent_along_x + p[4] * bent_along_y);
            row[kPerspective] = bent_along_x;
            row[kPerspective + 1] = bent_along_y;
            row[kPerspective + 2] = sum(bent_xx);
            row[kPerspective + 3] = 2 * sum(bent_xy);
            row[kPerspective + 4] = sum(bent_yy);
        }
        row[kOpacity] = sum(opacity);
        for (int c = 0; c < kChannels; c++) row[kColour + c] = sum(colour[c]);
    }
};

// Walks back from each pixel's last splat; what lies before a splat is found by dividing its part out again.
template <class Real, bool kPerRay>
void differentiate_tile(const View<Real>& view, int index) {
    const Tile<Real> tile(view, index);
    const Real max_alpha = Real(view.max_alpha), min_alpha = Real(view.min_alpha);
    // behind: derivative of the loss by a brightening of everything that lies behind, times its light
    Row<Real> transmittance[kTile], behind[kTile], image_grad[kTile][kChannels];
    Mask<Real> last[kTile];
    int last_of_row[kTile], last_of_tile = -1;
    for (int j = 0; j < kTile; j++) {
        transmittance[j] = Row<Real>{} + Real(1);
        behind[j] = Row<Real>{};
        for (int c = 0; c < kChannels; c++) image_grad[j][c] = Row<Real>{};
        last[j] = Mask<Real>{} - 1;
        last_of_row[j] = -1;
        for (int i = 0; i < tile.columns && j < tile.rows; i++) {
            const int64_t pixel = int64_t(tile.top + j) * view.width + tile.left + i;
            transmittance[j][i] = view.transmittance[pixel];
            behind[j][i] = view.transmittance_grad[pixel] * view.transmittance[pixel];
            for (int c = 0; c < kChannels; c++) image_grad[j][c][i] = view.image_grad[pixel * kChannels + c];
            last[j][i] = view.last[pixel];
            last_of_row[j] = std::max(last_of_row[j], int(view.last[pixel]));
        }
        last_of_tile = std::max(last_of_tile, last_of_row[j]);
    }
    const int64_t start = view.tile_starts[index], end = view.tile_starts[index + 1];
    const int64_t end_seen = start + last_of_tile + 1;
    std::fill(view.pair_grads + end_seen * kRow, view.pair_grads + end * kRow, Real(0));
    for (int64_t pair = end_seen - 1; pair >= start; pair--) {
        const SplatInTile<Real, kPerRay> splat(view, tile, view.pair_splats[pair]);
        const int position = int(pair - start);
        Moments<Real, kPerRay> moments;
        for (int j = splat.first_row; j < splat.end_row; j++) {
            if (position > last_of_row[j]) continue;
            const Real y = tile.pixel_y(j) - splat.centre_y;
            if (!kPerRay && splat.misses(y)) continue;
            Row<Real> exponent = splat.half_q(y), inverse_of_d{};
            if (kPerRay) {
                inverse_of_d = splat.inverse_of_d(y);
                exponent *= inverse_of_d;
            }
            const Row<Real> response = exponential(-exponent), uncapped = splat.opacity * response;
            const Mask<Real> free = uncapped <= max_alpha;
            const Row<Real> alpha = free ? uncapped : (Row<Real>{} + max_alpha);
            const Mask<Real> seen = (exponent >= 0) & (alpha >= min_alpha) & (last[j] >= position);
            if (!any(seen)) continue;
            const Row<Real> inverse_rest = Real(1) / (Real(1) - alpha);
            transmittance[j] = seen ? transmittance[j] * inverse_rest : transmittance[j];
            const Row<Real> weight = seen ? alpha * transmittance[j] : Row<Real>{};
            Row<Real> colour_grad{};
            for (int c = 0; c < kChannels; c++) {
                colour_grad += splat.colour[c] * image_grad[j][c];
                moments.colour[c] += weight * image_grad[j][c];
            }
            const Row<Real> alpha_grad = colour_grad * transmittance[j] - behind[j] * inverse_rest;
            behind[j] += colour_grad * weight;
            const Row<Real> opacity_grad = (seen & free) ? response * alpha_grad : Row<Real>{};
            moments.opacity += opacity_grad;
            Row<Real> flat = -splat.opacity * opacity_grad, bend{};
            if (kPerRay) {
                flat = (seen & free) ? flat * inverse_of_d : Row<Real>{};
                bend = (seen & free) ? -flat * exponent : Row<Real>{};
            }
            moments.add(splat.x, y, flat, bend);
        }
        moments.write_row(splat, view.pair_grads + pair * kRow);
    }
}

template <class Real>
void add_up_pairs(const View<Real>& view) {
    std::fill_n(view.splat_grads, view.num_splats * kRow, Real(0));
    for (int64_t pair = 0; pair < view.num_pairs; pair++) {
        Real* total = view.splat_grads + int64_t(view.pair_splats[pair]) * kRow;
        const Real* part = view.pair_grads + pair * kRow;
        for (int c = 0; c < kRow; c++) total[c] += part[c];
    }
}

template <class Real>
void blend(const View<Real>& view) {
#pragma omp parallel for schedule(dynamic, 1) num_threads(view.num_threads)
    for (int tile = 0; tile < view.num_tiles(); tile++)
        if (view.perspectives)
            blend_tile<Real, true>(view, tile);
        else
            blend_tile<Real, false>(view, tile);
}

template <class Real>
void differentiate(const View<Real>& view) {
#pragma omp parallel for schedule(dynamic, 1) num_threads(view.num_threads)
    for (int tile = 0; tile < view.num_tiles(); tile++)
        if (view.perspectives)
            differentiate_tile<Real, true>(view, tile);
        else
            differentiate_tile<Real, false>(view, tile);
    add_up_pairs(view);
}

}  // namespace

extern "C" {
int64_t count_pairs_float32(const View<float>* view) { return count_pairs(*view); }
int64_t count_pairs_float64(const View<double>* view) { return count_pairs(*view); }
void list_pairs_float32(const View<float>* view) { list_pairs(*view); }
void list_pairs_float64(const View<double>* view) { list_pairs(*view); }
void blend_float32(const View<float>* view) { blend(*view); }
void blend_float64(const View<double>* view) { blend(*view); }
void differentiate_float32(const View<float>* view) { differentiate(*view); }
void differentiate_float64(const View<double>* view) { differentiate(*view); }
}
