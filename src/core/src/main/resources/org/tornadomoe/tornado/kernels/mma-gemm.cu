// The expert GEMMs of mma.cu with tiles of BM pairs times 128 packed rows by mma.sync, whose weights asynchronous copies bring. Beside what mma.cu
// asks for it is compiled with STAGES of these copies.

#include "mma.cu"

#ifndef STAGES
#error "STAGES has to be defined"
#endif

#define THREADS 128

// A stage: 64 k of the tile's weights, of its pairs, and their scales and zero points.
template <int BM>
struct Stage {
    static constexpr int WEIGHTS = TILE_GROUPS * GROUP_BYTES, PAIRS = BM * A_BYTES, SCALE = SCALES * 512, ZERO = ZEROS ? SCALE : 0;
    static constexpr int PAIR_SCALE = BLOCKED ? BM * 4 * SCALES : 0;
    static constexpr int BYTES = WEIGHTS + PAIRS + SCALE + ZERO + PAIR_SCALE;
};

// Four warps; each has a WM-th of the pairs and a (4 / WM)-th of the packed rows: so that they read as little as can be from shared memory.
template <int BM, int WM>
__device__ __forceinline__ void tile(const Gemm &m) {
    constexpr int MT = BM / WM / 16, NT = 4 * WM;
    typedef Stage<BM> S;
    extern __shared__ __align__(128) u8 dynamic[];
    afterPredecessor();
    int pairs = m.header[0] * m.pairsPerToken, blocks = m.padded[0] / BM, tiles = (m.groups + TILE_GROUPS - 1) / TILE_GROUPS;
    if (blockIdx.x >= blocks * tiles) {
        return;
    }
    int block, tile;
    place(blockIdx.x, blocks, tiles, block, tile);
    int expert = m.expertIds[block], chunks = expert < 0 ? 0 : m.chunks, here = groupsOf(m, tile), packedRows = m.groups * 8;
    int t = threadIdx.x, warp = t >> 5, lane = t & 31, g = lane >> 2, j = lane & 3, wm = warp % WM, wn = warp / WM;
    unsigned smem = (unsigned) __cvta_generic_to_shared(dynamic);
    const u8 *weights = tileStart(m, expert < 0 ? 0 : expert, tile);
    const int *ids = m.sortedIds + block * BM;

    // Which rows of a this work-item copies.
    constexpr int UNITS = A_BYTES / 16, COPIES = BM * UNITS / THREADS > 0 ? BM * UNITS / THREADS : 1;
    const u8 *from[COPIES];
    unsigned to[COPIES], there = 0;
#pragma unroll
    for (int i = 0; i < COPIES; i++) {
        int r = (t + THREADS * i) / UNITS, unit = t % UNITS;
        int p = r < BM ? ids[r] : pairs;
        there |= (p < pairs) << i;
        from[i] = m.a + (u64) (p < pairs ? p / m.pairsPerRow : 0) * (m.chunks * ROW_BYTES) + unit * 16;
        to[i] = S::WEIGHTS + r * A_BYTES + (FORM ? unit ^ (r & 7) : unit) * 16;
    }
    const float *pairScale = m.aScales;
    if (BLOCKED && t < BM) {
        int p = ids[t];
        pairScale += (u64) (p < pairs ? p / m.pairsPerRow : 0) * m.groupsOfK;
    }
    u64 scaleRow = (u64) (expert < 0 ? 0 : expert) * (m.groupsOfK + GROUPED) * packedRows + tile * 128;
    auto load = [&](int c) {
        unsigned at = smem + c % STAGES * S::BYTES;
#pragma unroll
        for (int i = 0; i < TILE_GROUPS * 32 / THREADS; i++) {
            int unit = t + THREADS * i;
            if (unit < here * 32) {
                copy16(at + unit * 16, weights + ((u64) c * here * 32 + unit) * 16, 16);
            }
        }
#pragma unroll
        for (int i = 0; i < COPIES; i++) {
            if (BM * UNITS >= THREADS || t < BM * UNITS) {
                copy16(at + to[i], from[i] + c * A_BYTES, there >> i & 1 ? 16 : 0);
            }
        }
        if (GROUPED) {
            // A warp a group of k.
            int s = t >> 5, k = groupOfK(m, c, s % (SCALES ? SCALES : 1));
            if (s < SCALES && lane < here * 2) {
                unsigned scales = at + S::WEIGHTS + S::PAIRS + s * 512 + lane * 16;
                copy16(scales, m.bScales + scaleRow + (u64) k * packedRows + 4 * lane, 16);
                if (ZEROS) {
                    copy16(scales + S::SCALE, m.zeros + scaleRow + (u64) k * packedRows + 4 * lane, 16);
                }
            }
            if (BLOCKED && t < BM) {
#pragma unroll
                for (int i = 0; i < SCALES; i++) {
                    copy4(at + S::WEIGHTS + S::PAIRS + S::SCALE + S::ZERO + (i * BM + t) * 4, pairScale + groupOfK(m, c, i));
                }
            }
        }
    };
    auto commit = [] { asm volatile("cp.async.commit_group;" ::: "memory"); };
#pragma unroll
    for (int c = 0; c < STAGES - 1; c++) {
        if (c < chunks) {
            load(c);
        }
        commit();
    }
#if BLOCKED
    float acc[MT][NT][4] = {};
#else
    Sum acc[MT][NT][4] = {};
#endif
#if FORM
    unsigned zero[NT];
#pragma unroll
    for (int i = 0; i < NT; i++) {
        zero[i] = NO_ZERO;
#if ZEROS && !GROUPED
        int n = (wn * NT + i) * 8 + g;
        zero[i] = n < here * 8 && expert >= 0 ? tooLarge(m.zeros[scaleRow + n]) : NO_ZERO;
#endif
    }
#endif
    for (int c = 0; c < chunks; c++) {
        asm volatile("cp.async.wait_group %0;" ::"n"(STAGES - 2) : "memory");
        __syncthreads();
        if (c + STAGES - 1 < chunks) {
            load(c + STAGES - 1);
        }
        commit();
        unsigned at = smem + c % STAGES * S::BYTES;
        unsigned rows = at + S::WEIGHTS + (wm * MT * 16 + g) * A_BYTES, scales = at + S::WEIGHTS + S::PAIRS + (wn * NT * 8 + 2 * j) * 4;
        Quad w[NT];
#pragma unroll
        for (int i = 0; i < NT; i++) {
            w[i] = shared16(at + (wn * NT + i) * GROUP_BYTES + placeOfLane(lane));
        }
#pragma unroll
        for (int half = 0; half < (BLOCKED && STEP == 64 ? 1 : 2); half++) {
            // 32 k: two steps of halves, or one of int8; in groups of 64 both of int8.
#if FORM
            unsigned b[2][NT][2];
#pragma unroll
            for (int step = 0; step < 2; step++) {
#pragma unroll
                for (int i = 0; i < NT; i++) {
                    unsigned four = half == 0 ? (step == 0 ? w[i].x : w[i].y) : (step == 0 ? w[i].z : w[i].w);
#if GROUPED
                    unsigned own = at + S::WEIGHTS + S::PAIRS + (32 * half + 16 * step) / STEP * 512 + ((wn * NT + i) * 8 + g) * 4;
                    if (ZEROS) {
                        zero[i] = tooLarge(shared4(own + S::SCALE));
                    }
                    unsigned scale = twice(shared4(own));
                    b[step][i][0] = scaled(widened<0x4140>(four, zero[i]), scale);
                    b[step][i][1] = scaled(widened<0x4342>(four, zero[i]), scale);
#else
                    b[step][i][0] = widened<0x4140>(four, zero[i]);
                    b[step][i][1] = widened<0x4342>(four, zero[i]);
#endif
                }
            }
#endif
#pragma unroll
            for (int o = 0; o < MT; o++) {
#if FORM
                Quad low = shared16(rows + o * 16 * A_BYTES + ((2 * j + half) ^ g) * 16);
                Quad high = shared16(rows + (o * 16 + 8) * A_BYTES + ((2 * j + half) ^ g) * 16);
#else
                Quad low = shared16(rows + o * 16 * A_BYTES + j * 16), high = shared16(rows + (o * 16 + 8) * A_BYTES + j * 16);
#endif
#if BLOCKED
                unsigned pairScales = at + S::WEIGHTS + S::PAIRS + S::SCALE + S::ZERO + (32 * half / STEP * BM + (wm * MT + o) * 16 + g) * 4;
                float lowScale = shared4(pairScales), highScale = shared4(pairScales + 32);
#endif
#if !BLOCKED
                // Neighbouring products have different sums, so that none waits for another.
#pragma unroll
                for (int step = 0; step < (FORM ? 2 : 1); step++) {
#pragma unroll
                    for (int i = 0; i < NT; i++) {
#if FORM
                        if (step == 0) {
                            mma(acc[o][i], low.x, high.x, low.y, high.y, b[0][i][0], b[0][i][1]);
                        } else {
                            mma(acc[o][i], low.z, high.z, low.w, high.w, b[1][i][0], b[1][i][1]);
                        }
#else
                        if (half == 0) {
                            mma(acc[o][i], low.x, high.x, low.y, high.y, w[i].x, w[i].y);
                        } else {
                            mma(acc[o][i], low.z, high.z, low.w, high.w, w[i].z, w[i].w);
                        }
#endif
                    }
                }
#else
                // Four groups of packed rows at a time.
#pragma unroll
                for (int first = 0; first < NT; first += 4) {
                    int part[4][4] = {};
#pragma unroll
                    for (int i = 0; i < 4; i++) {
                        if (half == 0) {
                            mma(part[i], low.x, high.x, low.y, high.y, w[first + i].x, w[first + i].y);
                        }
                        if (half == 1 || STEP == 64) {
                            mma(part[i], low.z, high.z, low.w, high.w, w[first + i].z, w[first + i].w);
                        }
                    }
#pragma unroll
                    for (int i = 0; i < 4; i++) {
                        float2 scale = shared8(scales + 32 * half / STEP * 512 + (first + i) * 32);
                        float(&sum)[4] = acc[o][first + i];
                        sum[0] = __fmaf_rn((float) part[i][0], __fmul_rn(lowScale, scale.x), sum[0]);
                        sum[1] = __fmaf_rn((float) part[i][1], __fmul_rn(lowScale, scale.y), sum[1]);
                        sum[2] = __fmaf_rn((float) part[i][2], __fmul_rn(highScale, scale.x), sum[2]);
                        sum[3] = __fmaf_rn((float) part[i][3], __fmul_rn(highScale, scale.y), sum[3]);
                    }
                }
#endif
            }
        }
    }
    // A work-item has of two pairs, 8 apart, and of every 32 packed rows 8 or 4, which are neighbouring columns of out.
    float2 scale[NT], addend[NT];
#pragma unroll
    for (int i = 0; i < NT; i++) {
        int n = (wn * NT + i) * 8 + 2 * j;
        bool known = n < here * 8 && expert >= 0;
        u64 at2 = (u64) (expert < 0 ? 0 : expert) * packedRows + tile * 128 + n;
        u64 factors = scaleRow + (GROUPED ? m.groupsOfK * packedRows : 0) + n;
        scale[i] = known ? *(const float2 *) (m.bScales + factors) : make_float2(1.0f, 1.0f);
        addend[i] = known && m.biased ? *(const float2 *) (m.bias + at2) : make_float2(0.0f, 0.0f);
    }
#pragma unroll
    for (int o = 0; o < MT; o++) {
#pragma unroll
        for (int h = 0; h < 2; h++) {
            int p = ids[(wm * MT + o) * 16 + g + 8 * h];
            float magnitude = 0.0f;
            if (p < pairs && wn * NT < here) {
                float aScale = BLOCKED || expert < 0 ? 1.0f : m.aScales[p / m.pairsPerRow];
                float weight = m.weighted ? m.topkWeights[p] : 1.0f;
                Columns to = columnsFrom(m, p, true, tile * 64 + wn * NT * 4 + (LAYOUT ? 4 : 2) * j);
#pragma unroll
                for (int i = 0; i < NT; i += 4) {
                    if ((wn * NT + i) < here) {
                        float y[8];
#pragma unroll
                        for (int n = 0; n < 4; n++) {
                            const float2 &s = scale[i + n], &add = addend[i + n];
                            y[2 * n] = __fmul_rn(__fmul_rn((float) acc[o][i + n][2 * h], aScale), s.x) + add.x;
                            y[2 * n + 1] = __fmul_rn(__fmul_rn((float) acc[o][i + n][2 * h + 1], aScale), s.y) + add.y;
                        }
#if LAYOUT
                        magnitude = emit<4>(m, to, 4 * i, y, weight, magnitude);
#else
#pragma unroll
                        for (int half = 0; half < 2; half++) {
                            float four[4] = {y[4 * half], y[4 * half + 1], y[4 * half + 2], y[4 * half + 3]};
                            magnitude = emit<2>(m, to, 4 * i + 8 * half, four, weight, magnitude);
                        }
#endif
                    }
                }
            }
#if ACTIVATION >= 0
            tellMagnitude<4>(m.amax, p, p < pairs, magnitude);
#endif
        }
    }
}

// Grid: along x as many groups of 128 as there can be tiles. Shared memory: STAGES * Stage<BM>::BYTES.
extern "C" __global__ void __launch_bounds__(128, 2) tileGemm128(PARAMETERS) {
    tile<128, 2>(ARGUMENTS);
}

extern "C" __global__ void __launch_bounds__(128, 3) tileGemm64(PARAMETERS) {
    tile<64, 2>(ARGUMENTS);
}

extern "C" __global__ void __launch_bounds__(128, 4) tileGemm32(PARAMETERS) {
    tile<32, 1>(ARGUMENTS);
}

extern "C" __global__ void __launch_bounds__(128, 5) tileGemm16(PARAMETERS) {
    tile<16, 1>(ARGUMENTS);
}
