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

#include "streaming.cu"

// ---- few pairs of an expert: weights are streamed

// 8 pairs of one expert times 32 packed rows; the group's warps share the chunks of k among them. With later, weights are on their way before the
// kernel in front is through. Here weights are the rows of the product and pairs its columns.
// Grid: 32 packed rows along x, blocks along y; groups of 128 or 256. Shared memory: PLACES * 2048 bytes a warp.
extern "C" __global__ void __launch_bounds__(256, 2) skinnyGemm(PARAMETERS) {
    extern __shared__ __align__(128) u8 dynamic[];
    __shared__ u64 barriers[8 * PLACES];
    Gemm m = ARGUMENTS;
    if (!m.later) {
        afterPredecessor();
    }
    int block = blockIdx.y, first = block * 8;
    int warps = blockDim.x >> 5, warp = threadIdx.x >> 5, lane = threadIdx.x & 31, g = lane >> 2, j = lane & 3;
    int places = now(m.padded), tokens = now(m.header), expert = now(m.expertIds + block), p = now(m.sortedIds + first + (lane & 7));
    Stream<4 * GROUP_BYTES> stream(dynamic, barriers, warp, lane);
    if (first >= places) {
        return;
    }
    int pairs = tokens * m.pairsPerToken, tile = blockIdx.x >> 2;
    int stride = groupsOf(m, tile) * GROUP_BYTES, end = expert < 0 ? 0 : m.chunks, packedRows = m.groups * 8;
    const u8 *w = tileStart(m, expert < 0 ? 0 : expert, tile) + (blockIdx.x & 3) * 4 * GROUP_BYTES;
#pragma unroll
    for (int i = 0; i < PLACES; i++) {
        int chunk = warp + warps * i;
        stream.fill(i, w + (u64) chunk * stride, chunk < end, lane);
    }
    // A lane reads the scales of one row, and has those of its rows from the others.
    u64 expertScales = (u64) (expert < 0 ? 0 : expert) * (m.groupsOfK + GROUPED) * packedRows;
    u64 ownScales = expertScales + blockIdx.x * 32 + 8 * j + g;
    // What the sums are multiplied by is read before them, so that nobody waits for it: of two neighbouring values of the result.
    int two = threadIdx.x & 15, n = threadIdx.x >> 4, pair = __shfl_sync(0xffffffffu, p, n & 7);
    int placeOfTwo = LAYOUT ? 8 * (two & 3) + 2 * (two >> 2) : 16 * (two >> 3) + 8 * (two & 1) + 2 * (two >> 1 & 3);
    float2 scale = make_float2(1.0f, 1.0f), addend = make_float2(0.0f, 0.0f);
    if (expert >= 0) {
        int at = blockIdx.x * 32 + placeOfTwo;
        scale = *(const float2 *) (m.bScales + expertScales + (GROUPED ? m.groupsOfK * packedRows : 0) + at);
        if (m.biased) {
            addend = *(const float2 *) (m.bias + (u64) expert * packedRows + at);
        }
    }
#if ZEROS && !GROUPED
    unsigned rowZeros = tooLarge(expert < 0 ? 0.0f : m.zeros[ownScales]);
#endif
    bool isPair = n < 8 && pair < pairs, packs = pairs <= m.often;
    float weight = isPair && m.weighted ? m.topkWeights[pair] : 1.0f;
    if (m.later) {
        afterPredecessor();
    }
    // Pairs that the block has; of the one in place lane & 7, its row of a and what that is multiplied by, which nobody waits for here.
    int count = __popc(__ballot_sync(0xffffffffu, p < pairs) & 0xff), row = p < pairs ? p / m.pairsPerRow : 0;
    unsigned ownAmax = packs && p < pairs ? (unsigned) now((const int *) m.amax + p) : 0;
    float ownScale = packs || p >= pairs ? 0.0f : BLOCKED ? 1.0f : m.aScales[row];
    const u8 *rowOfLane = m.a + (u64) __shfl_sync(0xffffffffu, row, g) * (m.chunks * ROW_BYTES) + j * (FORM ? 32 : 16);
#if BLOCKED
    // Of the two pairs whose sums a lane has.
    const float *pairScales[2];
#pragma unroll
    for (int i = 0; i < 2; i++) {
        pairScales[i] = m.aScales + (u64) __shfl_sync(0xffffffffu, row, 2 * j + i) * m.groupsOfK;
    }
#endif
    // What a lane multiplies of a chunk of the g-th pair: 16 values, and with FORM 2 what their halves leave.
    constexpr int WORDS = FORM == 2 ? 16 : FORM ? 8 : 4, FOURS = SCALES ? SCALES : 1;
    struct Chunk {
        unsigned x[WORDS];
        float scale[FOURS], zero[FOURS], pairScale[FOURS][2];
    };
    auto read = [&](Chunk &c, int chunk) {
#pragma unroll
        for (int s = 0; s < SCALES; s++) {
            int group = groupOfK(m, chunk, s);
            u64 at = ownScales + (u64) group * packedRows;
            c.scale[s] = __ldg(m.bScales + at);
            c.zero[s] = ZEROS ? __ldg(m.zeros + at) : 0.0f;
#if BLOCKED
            c.pairScale[s][0] = pairScales[0][group];
            c.pairScale[s][1] = pairScales[1][group];
#endif
        }
#pragma unroll
        for (int i = 0; i < WORDS; i++) {
            c.x[i] = 0;
        }
        if (packs) {
            // Sixteen lanes have four values of every pair in turn.
#pragma unroll 1
            for (int r = 0; r < count; r++) {
                float x[4];
                load4(x, m.values + (u64) __shfl_sync(0xffffffffu, p, r) * m.depth, chunk * 64 + (lane & 15) * 4, m.depth);
                float inverse;
                scaleOf(__shfl_sync(0xffffffffu, ownAmax, r), inverse);
                Packed four = packed(x, inverse);
#pragma unroll
                for (int i = 0; i < WORDS; i++) {
                    // The halves of the i / 2-th four, and behind all these what they leave.
                    unsigned word = four.words[FORM ? i / 8 * 2 + i % 2 : 0];
                    unsigned wanted = __shfl_sync(0xffffffffu, word, 4 * (FORM ? i % 8 / 2 : i) + j);
                    c.x[i] = g == r ? wanted : c.x[i];
                }
            }
        } else if (g < count) {
#pragma unroll
            for (int i = 0; i < WORDS; i += 4) {
                Quad q = cached(rowOfLane + chunk * A_BYTES + (i < 8 ? i * 4 : m.chunks * 128 + (i - 8) * 4));
                c.x[i] = q.x;
                c.x[i + 1] = q.y;
                c.x[i + 2] = q.z;
                c.x[i + 3] = q.w;
            }
        }
    };
#if GROUPED
    float acc[2][4] = {};
#else
    Sum acc[2][4] = {};
#endif
    Chunk c, next;
#pragma unroll 1
    for (int chunk = warp - warps; chunk < end; chunk += warps) {
        // The rows of the next chunk are there before this one's weights are waited for.
        if (chunk + warps < end) {
            read(next, chunk + warps);
        }
        if (chunk >= 0) {
            unsigned at = stream.await() + placeOfLane(lane);
            const unsigned *b = c.x;
#pragma unroll
            for (int h = 0; h < 2; h++) {
                Quad rows[2] = {shared16(at + 2 * h * GROUP_BYTES), shared16(at + (2 * h + 1) * GROUP_BYTES)};
                const unsigned *low = (const unsigned *) rows, *high = low + 4;
                int lowRow = 4 * g + 2 * h, highRow = lowRow + 1;
#pragma unroll
                for (int s = 0; s < FOURS; s++) {
#if GROUPED
                    Sum part[4] = {};
                    Sum(&sum)[4] = part;
#else
                    Sum(&sum)[4] = acc[h];
#endif
#if FORM
                    unsigned lowZero = NO_ZERO, highZero = NO_ZERO;
#if ZEROS && GROUPED
                    unsigned own = tooLarge(c.zero[s]);
                    lowZero = __shfl_sync(0xffffffffu, own, lowRow);
                    highZero = __shfl_sync(0xffffffffu, own, highRow);
#elif ZEROS
                    lowZero = __shfl_sync(0xffffffffu, rowZeros, lowRow);
                    highZero = __shfl_sync(0xffffffffu, rowZeros, highRow);
#endif
#pragma unroll
                    for (int t = 4 / FOURS * s; t < 4 / FOURS * (s + 1); t++) {
                        unsigned a0 = widened<0x4140>(low[t], lowZero), a1 = widened<0x4140>(high[t], highZero);
                        unsigned a2 = widened<0x4342>(low[t], lowZero), a3 = widened<0x4342>(high[t], highZero);
                        mma(sum, a0, a1, a2, a3, b[2 * t], b[2 * t + 1]);
#if FORM == 2
                        mma(sum, a0, a1, a2, a3, b[8 + 2 * t], b[8 + 2 * t + 1]);
#endif
                    }
#else
#pragma unroll
                    for (int t = 2 / FOURS * s; t < 2 / FOURS * (s + 1); t++) {
                        mma(sum, low[2 * t], high[2 * t], low[2 * t + 1], high[2 * t + 1], b[2 * t], b[2 * t + 1]);
                    }
#endif
#if GROUPED
                    float lowScale = __shfl_sync(0xffffffffu, c.scale[s], lowRow);
                    float highScale = __shfl_sync(0xffffffffu, c.scale[s], highRow);
                    float a0Scale = BLOCKED ? c.pairScale[s][0] : 1.0f, a1Scale = BLOCKED ? c.pairScale[s][1] : 1.0f;
                    acc[h][0] += (float) part[0] * a0Scale * lowScale;
                    acc[h][1] += (float) part[1] * a1Scale * lowScale;
                    acc[h][2] += (float) part[2] * a0Scale * highScale;
                    acc[h][3] += (float) part[3] * a1Scale * highScale;
#endif
                }
            }
            int then = chunk + PLACES * warps;
            stream.refill(w + (u64) then * stride, then < end, lane);
        }
        c = next;
    }
    __syncwarp();
    // A warp's sums are where its weights were. Sums of int8 stay whole numbers until all are together.
#if GROUPED
    typedef float Total;
#else
    typedef Sum Total;
#endif
    constexpr int APART = PLACES * GROUP_BYTES;
    Total *sums = (Total *) dynamic + warp * APART;
#pragma unroll
    for (int i = 0; i < 8; i++) {
        sums[i * 32 + lane] = acc[i >> 2][i & 3];
    }
    __syncthreads();
    float unused, aScale = __shfl_sync(0xffffffffu, ownScale, n & 7);
    if (packs) {
        aScale = scaleOf(__shfl_sync(0xffffffffu, ownAmax, n & 7), unused);
    }
    if (n < 8) {
        const Total *sum =
            (const Total *) dynamic + ((placeOfTwo >> 4) * 4 + (placeOfTwo >> 3 & 1) * 2 + (n & 1)) * 32 + (placeOfTwo & 7) * 4 + (n >> 1);
        Total low = 0, high = 0;
#pragma unroll 4
        for (int v = 0; v < warps; v++) {
            low += sum[v * APART];
            high += sum[v * APART + 4];
        }
        float y[2] = {__fmul_rn(__fmul_rn((float) low, aScale), scale.x) + addend.x,
                      __fmul_rn(__fmul_rn((float) high, aScale), scale.y) + addend.y};
        float magnitude = emit<1>(m, columnsFrom(m, pair, isPair, blockIdx.x * 16 + two), 0, y, weight, 0.0f);
#if ACTIVATION >= 0
        tellMagnitude<16>(m.amax, pair, isPair, magnitude);
#endif
    }
}
