// The expert GEMMs on NVIDIA's tensor cores from compute capability 8.0 on, for every scheme, but for their tiles, which mma-gemm.cu has, and for
// Hopper wgmma-gemm.cu; both include this file. int8 x int8 has an exact int32 sum, of all k or of each group of k; int8 weights x activations in
// float are products of halves, which hold int8 values less their zero points exactly, with a float sum. TornadoVM's CUDA backend has no words for
// these instructions, so the class CudaLibrary compiles them with NVRTC for the device's architecture, for one scheme and one activation at a
// time; beside what gemm.cu asks for, by
//
//     FORM     what a is: 0 int8; 1 halves, as a row's values times a power of two; 2 the same and after them the halves of what these leave
//     GROUPED  1 where weights have scales for groups of k, else they have one a row
//     STEP     k that have a scale in common, 16, 32 or 64, and for wgmma's tiles of int8 128, which all groups are multiples of
//     BLOCKED  1 where rows of a have scales for the same groups, too
//     ZEROS    1 where weights have zero points
//     NEAREST  of int8 with BLOCKED: 1 rounds to the nearest, 0 truncates
//     ONE_SCALE  1 where all rows of a have one scale, which is given
//
// Of every pair p of a token and an expert e, row(p) of a and packed row n of b[e]:
//
//     y[p][n] = (sum over k of a[row(p)][k] * (b[e][n][k] - zeros[e][g(k)][n]) * bScales[e][g(k)][n] * aScales[row(p)][g(k)]) + bias[e][n],
//               * topkWeights[p]
//
// Sums of int8 are exact up to where scales come in. skinnyGemm scales the sums of groups; tiles of halves scale the weights, and round what comes
// of it to a half, as they do with a's values, of which they read the first halves only.
//
//     header      [0] = M, [1] = pairs of a block: 8 for skinnyGemm, else those of the tile
//     sortedIds   pairs in expert order; what is no pair (their number) pads blocks
//     expertIds   [blocks]; a block of -1 is written biasless zeros
//     padded      [0] = places of sortedIds in use
//     a           [rows of a][chunks * 64] int8, or as many halves, or twice as many; of every 64 k the one at 16 s + 4 j + i is where 16 j + 4 s + i
//                 would be, so that a work-item has with 16 values those that it multiplies in four steps
//     aScales     [rows of a], or [rows of a][groupsOfK]
//     b           int8, in the order of the class MmaWeights
//     bScales, zeros, bias [E][groups * 8], in the order of b's rows; with groups of k there are groupsOfK times as many scales and zero points, and
//                 then for each row what all its scales are multiplied by, of zeros anything
//     topkWeights [pairs]
//     values      a before it was packed, float [pairs][depth]: up to often pairs skinnyGemm packs them, as packPairs does, with amax, and a and
//                 aScales are not read
//     later       1 where nothing of the kernel right in front of it is in sortedIds, expertIds, padded and topkWeights
//     out         float [pairs][columns], written for every pair in sortedIds
//     amax        [pairs], as the bits of a float, which must be 0 before; packTokens sees to that

// Packed rows of a tile, as groups of 8, and bytes of a group's 64 k.
#define TILE_GROUPS 16
#define GROUP_BYTES 512

#include "gemm.cu"

#if !defined(FORM) || !defined(GROUPED) || !defined(STEP) || !defined(BLOCKED) || !defined(ZEROS) || !defined(NEAREST) \
    || !defined(ONE_SCALE)
#error "FORM, GROUPED, STEP, BLOCKED, ZEROS, NEAREST and ONE_SCALE have to be defined"
#elif STEP != 16 && STEP != 32 && STEP != 64 && STEP != 128
#error "STEP: expected 16, 32, 64 or 128"
#elif FORM == 0 && (ZEROS || STEP == 16)
#error "int8 activations: expected no zero points, and groups of 32 k or more"
#endif

// Bytes of 64 k of a row of a that a tile reads, and of all that is there.
#define A_BYTES (FORM ? 128 : 64)
#define ROW_BYTES (FORM == 2 ? 256 : A_BYTES)

// Scales that a row has in a chunk of 64 k.
#define SCALES (!GROUPED ? 0 : STEP < 64 ? 64 / STEP : 1)

struct Gemm : Result, Weights {
    const int *header, *sortedIds, *expertIds, *padded;
    const u8 *a;
    const float *aScales;
    const float *bScales, *zeros, *bias, *topkWeights, *values;
    int pairsPerToken, pairsPerRow, groupsOfK, kOfGroup, weighted, biased, later, depth, often;
};

#define PARAMETERS \
    const int *header, const int *sortedIds, const int *expertIds, const int *padded, const u8 *a, const float *aScales, \
        EACH_B(const u8 *), const float *bScales, const float *zeros, const float *bias, const float *topkWeights, const float *values, \
        float *out, unsigned *amax, int pairsPerToken, int pairsPerRow, int columns, int groups, int chunks, int groupsOfK, int kOfGroup, \
        int expertsOfPart, int weighted, int biased, int later, int depth, int often, float limit, float alpha, float beta, float linearBeta
#define ARGUMENTS \
    { \
        {out + LEAD / 4, amax, columns, limit, alpha, beta, linearBeta}, {{EACH_B()}, groups, chunks, expertsOfPart}, header, sortedIds, expertIds, \
            padded, a + LEAD, aScales, bScales, zeros, bias, topkWeights, values + LEAD / 4, pairsPerToken, pairsPerRow, groupsOfK, kOfGroup, \
            weighted, biased, later, depth, often \
    }

// The group of k of the i-th scale of a chunk; what pads k is 0, whatever its scale.
__device__ __forceinline__ int groupOfK(const Gemm &m, int chunk, int i) {
    int g = (chunk * 64 + i * STEP) / m.kOfGroup;
    return g < m.groupsOfK ? g : m.groupsOfK - 1;
}

// Where a lane's 16 bytes of 8 packed rows of 64 are: a row's i-th 16 bytes are in the (i ^ row / 2 % 4)-th place, as wgmma takes them from shared
// memory, too.
__device__ __forceinline__ int placeOfLane(int lane) {
    return (lane ^ lane >> 3 & 3) * 16;
}

// ---- one product

#if FORM
typedef float Sum;
#else
typedef int Sum;
#endif

// c += a * b: 16 rows times 8 columns times 32 k of int8, or 16 k of halves.
__device__ __forceinline__ void mma(Sum (&c)[4], unsigned a0, unsigned a1, unsigned a2, unsigned a3, unsigned b0, unsigned b1) {
#if FORM
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3]) : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
#else
    asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3]) : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
#endif
}

// What a weight's half is too large by: 1024, which stands before the byte, 128, which is in the byte, and the zero point; twice.
#define NO_ZERO 0x64806480u

__device__ __forceinline__ unsigned twice(float x) {
    unsigned both;
    asm("cvt.rn.f16x2.f32 %0, %1, %1;" : "=r"(both) : "f"(x));
    return both;
}

__device__ __forceinline__ unsigned tooLarge(float zero) {
    return twice(zero + 1152.0f);
}

__device__ __forceinline__ unsigned scaled(unsigned two, unsigned scale) {
    asm("mul.rn.f16x2 %0, %0, %1;" : "+r"(two) : "r"(scale));
    return two;
}

// Two of four weights as halves: the first two with selector 0x4140, the others with 0x4342.
template <unsigned SELECTOR>
__device__ __forceinline__ unsigned widened(unsigned four, unsigned tooLarge) {
    unsigned two;
    asm("prmt.b32 %0, %1, %2, %3;" : "=r"(two) : "r"(four), "r"(0x64646464u), "n"(SELECTOR));
    asm("sub.rn.f16x2 %0, %0, %1;" : "+r"(two) : "r"(tooLarge));
    return two;
}

// ---- activations

#include "packing.cu"

// ---- few pairs of an expert: weights are streamed

// 8 pairs of one expert times 32 packed rows; the group's warps share the k among them, 64 at a time. With later, weights are on their way
// before the kernel in front is through. Here weights are the rows of the product and pairs its columns.
// Grid: 32 packed rows along x, blocks along y; groups of 128 or 256. Shared memory, where it packs: 8 * (chunks * ROW_BYTES + 64) bytes.
extern "C" __global__ void __launch_bounds__(256, 2) skinnyGemm(PARAMETERS) {
    constexpr int UNROLL = 4;
    __shared__ float sums[8 * 2 * 4 * 32];
    extern __shared__ __align__(16) u8 dynamic[];
    Gemm m = ARGUMENTS;
    if (!m.later) {
        afterPredecessor();
    }
    int block = blockIdx.y, first = block * 8;
    int warps = blockDim.x >> 5, warp = threadIdx.x >> 5, lane = threadIdx.x & 31, g = lane >> 2, j = lane & 3;
    int places = now(m.padded), tokens = now(m.header), expert = now(m.expertIds + block), p = now(m.sortedIds + first + g);
    if (first >= places) {
        return;
    }
    int pairs = tokens * m.pairsPerToken, tile = blockIdx.x >> 2;
    int stride = groupsOf(m, tile) * GROUP_BYTES, units = expert < 0 ? 0 : m.chunks;
    int packedRows = m.groups * 8;
    int row = p < pairs ? p / m.pairsPerRow : 0;
    const u8 *w = tileStart(m, expert < 0 ? 0 : expert, tile) + (blockIdx.x & 3) * 4 * GROUP_BYTES + placeOfLane(lane);
    // A work-item reads the scales of one row, and has those of its rows from the others.
    u64 expertScales = (u64) (expert < 0 ? 0 : expert) * (m.groupsOfK + GROUPED) * packedRows;
    u64 ownScales = expertScales + blockIdx.x * 32 + 8 * j + g;
    Quad q[UNROLL][4];
    float ownScale[UNROLL][SCALES ? SCALES : 1], ownZero[UNROLL][SCALES ? SCALES : 1];
    auto fetch = [&](int u) {
#pragma unroll
        for (int i = 0; i < UNROLL; i++) {
            int unit = u + warps * i;
            if (unit < units) {
                const u8 *from = w + (u64) unit * stride;
#pragma unroll
                for (int r = 0; r < 4; r++) {
                    q[i][r] = streamed(from + r * GROUP_BYTES);
                }
#pragma unroll
                for (int s = 0; s < SCALES; s++) {
                    u64 at = ownScales + (u64) groupOfK(m, unit, s) * packedRows;
                    ownScale[i][s] = __ldg(m.bScales + at);
                    ownZero[i][s] = ZEROS ? __ldg(m.zeros + at) : 0.0f;
                }
            }
        }
    };
    fetch(warp);
    // What the sums are multiplied by is read before them, so that nobody waits for it: of two neighbouring values of the result.
    int two = threadIdx.x & 15;
    int packed = LAYOUT ? 8 * (two & 3) + 2 * (two >> 2) : 16 * (two >> 3) + 8 * (two & 1) + 2 * (two >> 1 & 3);
    float2 scale = make_float2(1.0f, 1.0f), addend = make_float2(0.0f, 0.0f);
    if (expert >= 0) {
        int at = blockIdx.x * 32 + packed;
        scale = *(const float2 *) (m.bScales + expertScales + (GROUPED ? m.groupsOfK * packedRows : 0) + at);
        if (m.biased) {
            addend = *(const float2 *) (m.bias + (u64) expert * packedRows + at);
        }
    }
#if ZEROS && !GROUPED
    unsigned rowZeros = tooLarge(expert < 0 ? 0.0f : m.zeros[ownScales]);
#endif
    int n = threadIdx.x >> 4, pair = n < 8 ? m.sortedIds[first + n] : pairs;
    float weight = pair < pairs && m.weighted ? m.topkWeights[pair] : 1.0f;
    if (m.later) {
        afterPredecessor();
    }
    bool packs = pairs <= m.often;
    int rowBytes = m.chunks * ROW_BYTES + (FORM ? 16 : 64);
    const u8 *x0 = packs ? dynamic + g * rowBytes : m.a + (u64) row * (m.chunks * ROW_BYTES);
    x0 += j * (FORM ? 32 : 16);
    float aScale = 1.0f, unused;
    if (packs) {
        for (int r = 0; r < 8; r++) {
            int of = __shfl_sync(0xffffffffu, p, 4 * r);
            if (of < pairs) {
                // Values are on their way before what they are divided by.
                const float *values = m.values + (u64) of * m.depth;
                int k = 4 * threadIdx.x;
                float x[4], next[4], inverse;
                load4(x, values, k, m.depth);
                load4(next, values, k + 4 * blockDim.x, m.depth);
                scaleOf(m.amax[of], inverse);
                for (; k < m.chunks * 64; k += 4 * blockDim.x) {
                    pack(dynamic + r * rowBytes, m.chunks, k, x, inverse);
#pragma unroll
                    for (int i = 0; i < 4; i++) {
                        x[i] = next[i];
                    }
                    load4(next, values, k + 8 * blockDim.x, m.depth);
                }
            }
        }
        aScale = pair < pairs ? scaleOf(m.amax[pair], unused) : 0.0f;
        __syncthreads();
    } else if (!BLOCKED) {
        aScale = pair < pairs ? m.aScales[pair / m.pairsPerRow] : 0.0f;
    }
#if BLOCKED
    // Of the two pairs whose sums a work-item has.
    const float *pairScales[2];
#pragma unroll
    for (int i = 0; i < 2; i++) {
        int of = __shfl_sync(0xffffffffu, row, 4 * (2 * j + i));
        pairScales[i] = m.aScales + (u64) of * m.groupsOfK;
    }
#endif
#if GROUPED
    float acc[2][4] = {};
#else
    Sum acc[2][4] = {};
#endif
    for (int u = warp; u < units; u += warps * UNROLL) {
        if (u > warp) {
            fetch(u);
        }
#pragma unroll
        for (int i = 0; i < UNROLL; i++) {
            int unit = u + warps * i;
            if (unit < units) {
                const u8 *x = x0 + (u64) unit * A_BYTES;
                Quad v[FORM == 2 ? 4 : FORM ? 2 : 1];
                v[0] = packs ? *(const Quad *) x : cached(x);
#if FORM
                v[1] = packs ? *(const Quad *) (x + 16) : cached(x + 16);
#endif
#if FORM == 2
                const u8 *rest = x + m.chunks * 128;
                v[2] = packs ? *(const Quad *) rest : cached(rest);
                v[3] = packs ? *(const Quad *) (rest + 16) : cached(rest + 16);
#endif
                const unsigned *word = (const unsigned *) q[i], *b = (const unsigned *) v;
#pragma unroll
                for (int h = 0; h < 2; h++) {
                    const unsigned *low = word + 8 * h, *high = low + 4;
                    int lowRow = 4 * g + 2 * h, highRow = lowRow + 1;
                    constexpr int PARTS_OF_K = SCALES ? SCALES : 1;
#pragma unroll
                    for (int s = 0; s < PARTS_OF_K; s++) {
#if GROUPED
                        Sum part[4] = {};
                        Sum(&sum)[4] = part;
#else
                        Sum(&sum)[4] = acc[h];
#endif
#if FORM
                        unsigned lowZero = NO_ZERO, highZero = NO_ZERO;
#if ZEROS && GROUPED
                        unsigned own = tooLarge(ownZero[i][s]);
                        lowZero = __shfl_sync(0xffffffffu, own, lowRow);
                        highZero = __shfl_sync(0xffffffffu, own, highRow);
#elif ZEROS
                        lowZero = __shfl_sync(0xffffffffu, rowZeros, lowRow);
                        highZero = __shfl_sync(0xffffffffu, rowZeros, highRow);
#endif
#pragma unroll
                        for (int t = 4 / PARTS_OF_K * s; t < 4 / PARTS_OF_K * (s + 1); t++) {
                            unsigned a0 = widened<0x4140>(low[t], lowZero), a1 = widened<0x4140>(high[t], highZero);
                            unsigned a2 = widened<0x4342>(low[t], lowZero), a3 = widened<0x4342>(high[t], highZero);
                            mma(sum, a0, a1, a2, a3, b[2 * t], b[2 * t + 1]);
#if FORM == 2
                            mma(sum, a0, a1, a2, a3, b[8 + 2 * t], b[8 + 2 * t + 1]);
#endif
                        }
#else
#pragma unroll
                        for (int t = 2 / PARTS_OF_K * s; t < 2 / PARTS_OF_K * (s + 1); t++) {
                            mma(sum, low[2 * t], high[2 * t], low[2 * t + 1], high[2 * t + 1], b[2 * t], b[2 * t + 1]);
                        }
#endif
#if GROUPED
                        float lowScale = __shfl_sync(0xffffffffu, ownScale[i][s], lowRow);
                        float highScale = __shfl_sync(0xffffffffu, ownScale[i][s], highRow);
                        float a0Scale = 1.0f, a1Scale = 1.0f;
#if BLOCKED
                        int k = groupOfK(m, unit, s);
                        a0Scale = pairScales[0][k];
                        a1Scale = pairScales[1][k];
#endif
                        acc[h][0] += (float) part[0] * a0Scale * lowScale;
                        acc[h][1] += (float) part[1] * a1Scale * lowScale;
                        acc[h][2] += (float) part[2] * a0Scale * highScale;
                        acc[h][3] += (float) part[3] * a1Scale * highScale;
#endif
                    }
                }
            }
        }
    }
    // Sums of int8 stay whole numbers until all are together.
    Sum *whole = (Sum *) sums;
#pragma unroll
    for (int i = 0; i < 8; i++) {
#if GROUPED
        sums[(warp * 8 + i) * 32 + lane] = acc[i >> 2][i & 3];
#else
        whole[(warp * 8 + i) * 32 + lane] = acc[i >> 2][i & 3];
#endif
    }
    __syncthreads();
    if (n < 8) {
        int at = ((packed >> 4) * 4 + (packed >> 3 & 1) * 2 + (n & 1)) * 32 + (packed & 7) * 4 + (n >> 1);
#if GROUPED
        float low = 0.0f, high = 0.0f;
#else
        Sum low = 0, high = 0;
#endif
        for (int v = 0; v < warps; v++) {
#if GROUPED
            low += sums[v * 256 + at];
            high += sums[v * 256 + at + 4];
#else
            low += whole[v * 256 + at];
            high += whole[v * 256 + at + 4];
#endif
        }
        float y[2] = {__fmul_rn(__fmul_rn((float) low, aScale), scale.x) + addend.x,
                      __fmul_rn(__fmul_rn((float) high, aScale), scale.y) + addend.y};
        float magnitude = emit<1>(m, columnsFrom(m, pair, pair < pairs, blockIdx.x * 16 + two), 0, y, weight, 0.0f);
#if ACTIVATION >= 0
        tellMagnitude<16>(m.amax, pair, pair < pairs, magnitude);
#endif
    }
}
