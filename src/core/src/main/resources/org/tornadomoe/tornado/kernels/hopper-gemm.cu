// The expert GEMMs on Hopper (compute capability 9.0): int8 x int8 with an exact int32 sum. TornadoVM's CUDA backend has no words for
// these instructions, so the class CudaLibrary compiles this file with NVRTC for sm_90a, for one activation at a time, by what gemm.cu asks for
// and ONE_SCALE, which is 1 where all rows of a have one scale, which packing.cu's kernels put into aScales for every row.
//
// Of every pair p of a token and an expert e, row(p) of a and packed row n of b[e]:
//
//     y[p][n] = (sum over k of a[row(p)][k] * b[e][n][k]) * aScales[row(p)] * bScales[e][n] from left to right, + bias[e][n],
//               * topkWeights[p]
//
//     header      [0] = M, [1] = pairs of a block: 8 for skinnyGemm, else as many as tileGemm has in its name
//     sortedIds   pairs in expert order; what is no pair (their number) pads blocks
//     expertIds   [blocks]; a block of -1 is written biasless zeros
//     padded      [0] = places of sortedIds in use
//     a           int8 [rows of a][chunks * 128]
//     aScales     [rows of a]
//     b           int8, in the order of the class HopperWeights; in PARTS arrays
//     bScales, bias [E][groups * 8], in the order of b's rows
//     topkWeights [pairs]
//     values      a before it was int8, float [pairs][depth]: up to often pairs skinnyGemm quantises them, as quantizePairs does, with amax,
//                 and a and aScales are not read
//     later       1 where nothing of the kernel right in front of it is in sortedIds, expertIds, padded and topkWeights
//     out         float [pairs][columns], written for every pair in sortedIds
//     amax        [pairs], as the bits of a float, which must be 0 before; layer-stages.cu sees to that

// Rows of b in a tile, as groups of 8, and bytes of a group's chunk.
#define TILE_GROUPS 32
#define GROUP_BYTES 1024

#include "gemm.cu"

#ifndef ONE_SCALE
#error "ONE_SCALE has to be defined"
#elif ONE_SCALE
// Rows in the order of k, which packRows gives from blocks of 0 pairs on.
#define FORM 0
#define BLOCKED 0
#define NEAREST 1
#define ROW_BYTES 64
#include "packing.cu"
#endif

#define ACC(d, i) "+r"(d[i])
#define BULK

#include "streaming.cu"

#include "hopper.cu"

struct Gemm : Result, Weights {
    const int *header, *sortedIds, *expertIds, *padded;
    const u8 *a;
    const float *aScales;
    const float *bScales, *bias, *topkWeights, *values;
    int pairsPerToken, pairsPerRow, weighted, biased, later, depth, often;
};

#define PARAMETERS \
    const int *header, const int *sortedIds, const int *expertIds, const int *padded, const u8 *a, const float *aScales, \
        EACH_B(const u8 *), const float *bScales, const float *bias, const float *topkWeights, const float *values, float *out, \
        unsigned *amax, int pairsPerToken, int pairsPerRow, int columns, int groups, int chunks, int expertsOfPart, int weighted, \
        int biased, int later, int depth, int often, \
        float limit, float alpha, float beta, float linearBeta
#define ARGUMENTS \
    { \
        {out + LEAD / 4, amax, columns, limit, alpha, beta, linearBeta}, {{EACH_B()}, groups, chunks, expertsOfPart}, header, sortedIds, expertIds, \
            padded, a + LEAD, aScales, bScales, bias, topkWeights, values + LEAD / 4, pairsPerToken, pairsPerRow, weighted, biased, later, depth, \
            often \
    }

// Stages of a tile, and of one of 128 pairs.
#define STAGES 5
#define STAGES_OF_128 4

// A stage: 128 k of BM pairs' rows and of the weights of TILE_GROUPS groups.
template <int BM>
struct Stage {
    static constexpr int PAIRS = BM * 128, BYTES = PAIRS + TILE_GROUPS * GROUP_BYTES, COUNT = BM == 128 ? STAGES_OF_128 : STAGES;
    // Scales and biases of a tile's rows, where pairs are the left factor; as the fetching warps can be COUNT tiles ahead, there is room for one more.
    static constexpr int SCALES = BM == 128 ? COUNT + 1 : 0;
};
#define SCALE_BYTES (TILE_GROUPS * 32)

// Four values in int8.
__device__ __forceinline__ unsigned quantized(const float (&x)[4], float inverse) {
    unsigned packed = 0;
#pragma unroll
    for (int b = 0; b < 4; b++) {
        packed |= ((int) roundf(x[b] * inverse) & 0xff) << 8 * b;
    }
    return packed;
}

// The greatest magnitude that a row of pair p is divided by: infinite beyond 1e30 and where one is no number, whose bits are greater
// than all that are, so that what comes of it is NaN.
__device__ __forceinline__ float greatest(unsigned bits) {
    return bits > __float_as_uint(1e30f) ? __uint_as_float(0x7f800000u) : fmaxf(__uint_as_float(bits), 1e-10f);
}

// ---- few pairs of an expert: weights are streamed

// c += a * b: 16 rows times 8 pairs times 32 k.
__device__ __forceinline__ void mma(int (&c)[4], unsigned a0, unsigned a1, unsigned a2, unsigned a3, unsigned b0, unsigned b1) {
    asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3]) : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

// 8 pairs of one expert times 32 packed rows; the group's warps share the chunks of k among them. With later, weights are on their way before the
// kernel in front is through.
// Grid: 32 packed rows along x, blocks along y; groups of 128 or 256. Shared memory: PLACES * 4096 bytes a warp.
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
    Stream<4096> stream(dynamic, barriers, warp, lane);
    if (first >= places) {
        return;
    }
    int pairs = tokens * m.pairsPerToken, tile = blockIdx.x >> 3;
    int stride = groupsOf(m, tile) * 1024, end = expert < 0 ? 0 : m.chunks;
    const u8 *w = tileStart(m, expert < 0 ? 0 : expert, tile) + (blockIdx.x & 7) * 4096;
#pragma unroll
    for (int i = 0; i < PLACES; i++) {
        int chunk = warp + warps * i;
        stream.fill(i, w + (u64) chunk * stride, chunk < end, lane);
    }
    // What the sums are multiplied by is read before them, so that nobody waits for it: of two neighbouring values of the result.
    int two = threadIdx.x & 15, n = threadIdx.x >> 4, pair = __shfl_sync(0xffffffffu, p, n & 7);
    int packed = LAYOUT ? 8 * (two & 3) + 2 * (two >> 2) : 16 * (two >> 3) + 8 * (two & 1) + 2 * (two >> 1 & 3);
    float2 scale = make_float2(0.0f, 0.0f), addend = scale;
    if (expert >= 0) {
        u64 row = (u64) expert * (m.groups * 8) + blockIdx.x * 32 + packed;
        scale = *(const float2 *) (m.bScales + row);
        if (m.biased) {
            addend = *(const float2 *) (m.bias + row);
        }
    }
    bool isPair = n < 8 && pair < pairs, quantizes = pairs <= m.often;
    float weight = isPair && m.weighted ? m.topkWeights[pair] : 1.0f;
    if (m.later) {
        afterPredecessor();
    }
    // Pairs that the block has; of the one in place lane & 7, its row of a and what that is multiplied by, which nobody waits for here.
    int count = __popc(__ballot_sync(0xffffffffu, p < pairs) & 0xff), row = p < pairs ? p / m.pairsPerRow : 0;
    unsigned ownAmax = quantizes && p < pairs ? (unsigned) now((const int *) m.amax + p) : 0;
    float ownScale = quantizes || p >= pairs ? 0.0f : m.aScales[row];
    const u8 *rowOfLane = m.a + (u64) __shfl_sync(0xffffffffu, row, g) * (m.chunks * 128) + j * 16;
    // A lane's 32 bytes of a chunk of the g-th pair.
    auto rows = [&](unsigned (&x)[8], int chunk) {
#pragma unroll
        for (int i = 0; i < 8; i++) {
            x[i] = 0;
        }
        if (quantizes) {
            // Each lane has four values of every pair in turn.
#pragma unroll 1
            for (int r = 0; r < count; r++) {
                float four[4];
                load4(four, m.values + (u64) __shfl_sync(0xffffffffu, p, r) * m.depth, chunk * 128 + lane * 4, m.depth);
                unsigned word = quantized(four, 127.0f / greatest(__shfl_sync(0xffffffffu, ownAmax, r)));
#pragma unroll
                for (int i = 0; i < 8; i++) {
                    unsigned wanted = __shfl_sync(0xffffffffu, word, (i >> 2) * 16 + 4 * j + (i & 3));
                    x[i] = g == r ? wanted : x[i];
                }
            }
        } else if (g < count) {
#pragma unroll
            for (int h = 0; h < 2; h++) {
                Quad q = cached(rowOfLane + chunk * 128 + h * 64);
                x[4 * h] = q.x;
                x[4 * h + 1] = q.y;
                x[4 * h + 2] = q.z;
                x[4 * h + 3] = q.w;
            }
        }
    };
    // Rows of a group in an order in which eight lanes read from all banks.
    int own = g >> 1 | (g & 1) << 2, acc[2][4] = {};
    unsigned x[8], next[8];
#pragma unroll 1
    for (int chunk = warp - warps; chunk < end; chunk += warps) {
        // The rows of the next chunk are there before this one's weights are waited for.
        if (chunk + warps < end) {
            rows(next, chunk + warps);
        }
        if (chunk >= 0) {
            unsigned at = stream.await() + own * 128;
#pragma unroll
            for (int h = 0; h < 2; h++) {
                Quad q[4];
#pragma unroll
                for (int r = 0; r < 4; r++) {
                    q[r] = shared16(at + r * 1024 + ((4 * h + j) ^ own) * 16);
                }
#pragma unroll
                for (int i = 0; i < 2; i++) {
                    mma(acc[i], q[2 * i].x, q[2 * i + 1].x, q[2 * i].y, q[2 * i + 1].y, x[4 * h], x[4 * h + 1]);
                    mma(acc[i], q[2 * i].z, q[2 * i + 1].z, q[2 * i].w, q[2 * i + 1].w, x[4 * h + 2], x[4 * h + 3]);
                }
            }
            int then = chunk + PLACES * warps;
            stream.refill(w + (u64) then * stride, then < end, lane);
        }
#pragma unroll
        for (int i = 0; i < 8; i++) {
            x[i] = next[i];
        }
    }
    __syncwarp();
    // A warp's sums are where its weights were.
    int *sums = (int *) (dynamic + warp * PLACES * 4096);
#pragma unroll
    for (int i = 0; i < 8; i++) {
        sums[i * 32 + lane] = acc[i >> 2][i & 3];
    }
    __syncthreads();
    float aScale = quantizes ? greatest(__shfl_sync(0xffffffffu, ownAmax, n & 7)) / 127.0f : __shfl_sync(0xffffffffu, ownScale, n & 7);
    if (n < 8) {
        int lanes = (packed & 3) * 8 + (packed >> 2 & 1) * 4 + (n >> 1);
        const int *sum = (const int *) dynamic + ((packed >> 4) * 4 + (packed >> 3 & 1) * 2 + (n & 1)) * 32 + lanes;
        int low = 0, high = 0;
#pragma unroll 4
        for (int v = 0; v < warps; v++) {
            low += sum[v * PLACES * 1024];
            high += sum[v * PLACES * 1024 + 8];
        }
        float y[2] = {__fmul_rn(__fmul_rn((float) low, aScale), scale.x) + addend.x,
                      __fmul_rn(__fmul_rn((float) high, aScale), scale.y) + addend.y};
        float magnitude = emit<1>(m, columnsFrom(m, pair, isPair, blockIdx.x * 16 + two), 0, y, weight, 0.0f);
#if ACTIVATION >= 0
        tellMagnitude<16>(m.amax, pair, isPair, magnitude);
#endif
    }
}

// ---- more: tiles of 16 to 128 pairs times 256 packed rows

// d (+)= a * b: 64 rows of a times N of b times 32 k, of a warpgroup.
#define WGMMA_OF(N, SUMS, A, B, ADD) \
    __device__ __forceinline__ void wgmma(int(&d)[SUMS], u64 a, u64 b, int add) { \
        asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, " ADD ", 0;\nwgmma.mma_async.sync.aligned.m64n" #N "k32.s32.s8.s8 {" NAMES##SUMS "}, " A \
                     ", " B ", p;\n}" \
                     : ACC##SUMS(d, 0) \
                     : "l"(a), "l"(b), "r"(add)); \
    }
WGMMA_OF(16, 8, "%8", "%9", "%10")
WGMMA_OF(32, 16, "%16", "%17", "%18")
WGMMA_OF(64, 32, "%32", "%33", "%34")
WGMMA_OF(256, 128, "%128", "%129", "%130")

// What the others multiply comes to shared memory, by four warps.
template <int BM>
__device__ __forceinline__ void fetch(const Gemm &m, Stages<Stage<BM>> &stages, unsigned scales, int blocks, int tiles, int pairs, int t) {
    typedef Stage<BM> S;
    int total = blocks * tiles;
    // Eight work-items copy the 128 bytes of a row; each has rows 16 apart. Which these are in the next tile is read a tile ahead.
    int scale = 0;
    unsigned to = (t >> 3) * 128 + ((t & 7) ^ (t >> 3 & 7)) * 16;
    int next[BM / 16], nextExpert = -1, nextTile = 0;
    auto look = [&](int id) {
        if (id < total) {
            int block;
            place(id, blocks, tiles, block, nextTile);
            nextExpert = m.expertIds[block];
#pragma unroll
            for (int i = 0; i < BM / 16; i++) {
                next[i] = m.sortedIds[block * BM + 16 * i + (t >> 3)];
            }
        }
    };
    look(blockIdx.x);
    for (int id = blockIdx.x; id < total; id += gridDim.x) {
        int expert = nextExpert, tile = nextTile;
        unsigned rows[BM / 16], there = 0;
#pragma unroll
        for (int i = 0; i < BM / 16; i++) {
            int p = next[i];
            there |= (p < pairs) << i;
            rows[i] = (p < pairs ? p / m.pairsPerRow : 0) * (unsigned) (m.chunks * 8) + (t & 7);
        }
        look(id + gridDim.x);
        if (expert < 0) {
            continue;
        }
        const u8 *weights = tileStart(m, expert, tile);
        int bytes = groupsOf(m, tile) * GROUP_BYTES;
        for (int c = 0; c < m.chunks; c++) {
            stages.awaitEmpty();
            unsigned at = stages.at(), told = stages.full + 8 * stages.stage;
            if (t == 0) {
                int also = c > 0 || !S::SCALES ? 0 : m.biased ? bytes / 16 : bytes / 32;
                barrierExpect(told, bytes + also);
                // Where experts have several blocks of 128 pairs other groups read them, too.
                bulkCopy(at + S::PAIRS, weights + (u64) c * bytes, bytes, told, BM < 128 || blocks <= m.expertsOfPart * PARTS);
                if (c == 0 && S::SCALES) {
                    u64 row = (u64) expert * (m.groups * 8) + tile * 256;
                    bulkCopy(scales + scale * 2 * SCALE_BYTES, m.bScales + row, bytes / 32, told);
                    if (m.biased) {
                        bulkCopy(scales + (scale * 2 + 1) * SCALE_BYTES, m.bias + row, bytes / 32, told);
                    }
                }
            }
#pragma unroll
            for (int i = 0; i < BM / 16; i++) {
                copy16(at + to + i * 2048, m.a + (u64) (rows[i] + 8 * c) * 16, there >> i & 1 ? 16 : 0);
            }
            asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(told) : "memory");
            stages.next();
        }
        scale = scale == S::SCALES - 1 ? 0 : scale + 1;
    }
    asm volatile("cp.async.wait_all;");
}

// 128 pairs times 256 packed rows: pairs are the left factor, 64 of them a warpgroup's.
__device__ __forceinline__ void multiply(
    const Gemm &m, Stages<Stage<128>> &stages, unsigned scales, unsigned zeros, int blocks, int tiles, int pairs, int own, int t) {
    typedef Stage<128> S;
    int total = blocks * tiles, scale = 0;
    int lane = t & 31, q = lane & 3;
    int acc[128];
    for (int id = blockIdx.x; id < total; id += gridDim.x) {
        int block, tile;
        place(id, blocks, tiles, block, tile);
        int expert = m.expertIds[block];
        int chunks = expert < 0 ? 0 : m.chunks, before = stages.stage;
        int pair[2];
        float aScale[2], weight[2];
#pragma unroll
        for (int h = 0; h < 2; h++) {
            int p = m.sortedIds[block * 128 + own * 64 + (t >> 5) * 16 + (lane >> 2) + 8 * h];
            bool here = p < pairs;
            pair[h] = here ? p : -1;
            // Without an expert there are no sums, and any number times 0 is what they would be.
            aScale[h] = here && expert >= 0 ? m.aScales[p / m.pairsPerRow] : 0.0f;
            weight[h] = here && m.weighted ? m.topkWeights[p] : 1.0f;
        }
        for (int c = 0; c < chunks; c++) {
            stages.awaitFull();
            unsigned at = stages.at();
            u64 aRows = descriptor(at + own * 8192), bRows = descriptor(at + S::PAIRS);
            asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#pragma unroll
            for (int s = 0; s < 4; s++) {
                wgmma(acc, aRows + 2 * s, bRows + 2 * s, c > 0 || s > 0);
            }
            asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
            if (c > 0) {
                asm volatile("wgmma.wait_group.sync.aligned 1;" ::: "memory");
                if (t == 0) {
                    barrierArrive(stages.empty + 8 * before);
                }
            }
            before = stages.stage;
            stages.next();
        }
        asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
#pragma unroll
        for (int i = 0; i < 128; i++) {
            asm volatile("" : "+r"(acc[i])::"memory");
        }
        if (chunks > 0 && t == 0) {
            barrierArrive(stages.empty + 8 * before);
        }
        unsigned rowScales = (expert < 0 ? zeros : scales + scale * 2 * SCALE_BYTES) + 8 * q;
        unsigned rowBiases = expert < 0 || !m.biased ? zeros + 8 * q : rowScales + SCALE_BYTES;
        finishPairs(m, pair, weight, tile * 128, (m.groups - tile * TILE_GROUPS) >> 2, q, [&](int n, float2(&of)[2]) {
            float2 s = shared8(rowScales + n * 32), bias = shared8(rowBiases + n * 32);
#pragma unroll
            for (int h = 0; h < 2; h++) {
                of[h].x = __fmul_rn(__fmul_rn((float) acc[4 * n + 2 * h], aScale[h]), s.x) + bias.x;
                of[h].y = __fmul_rn(__fmul_rn((float) acc[4 * n + 2 * h + 1], aScale[h]), s.y) + bias.y;
            }
        });
        if (expert >= 0) {
            scale = scale == S::SCALES - 1 ? 0 : scale + 1;
        }
    }
}

// BN pairs times 256 packed rows: these are the left factor, 128 of them a warpgroup's, and of a warp's four groups two in each of two products.
template <int BN>
__device__ __forceinline__ void multiply(
    const Gemm &m, Stages<Stage<BN>> &stages, unsigned, unsigned, int blocks, int tiles, int pairs, int own, int t) {
    typedef Stage<BN> S;
    __shared__ PairOfTile known[2][BN];
    int total = blocks * tiles;
    for (int id = blockIdx.x; id < total; id += gridDim.x) {
        int block, tile;
        place(id, blocks, tiles, block, tile);
        int expert = m.expertIds[block], chunks = expert < 0 ? 0 : m.chunks, before = stages.stage;
        Rows rows = {own, groupsOf(m, tile) - TILE_GROUPS / 2 * own, t >> 5, t & 31};
        tile = 2 * tile + own;
        // What the sums are multiplied by is read before them, so that nobody waits for it.
        PairOfTile pair = pairAt<BN>(m, block, expert, pairs, t, true);
        Factors factors = factorsOf(m, m.bScales + (u64) (expert < 0 ? 0 : expert) * (m.groups * 8) + tile * 128, rows, expert, tile);
        int acc[2][BN / 2];
        for (int c = 0; c < chunks; c++) {
            stages.awaitFull();
            unsigned at = stages.at();
            u64 weights = descriptor<2>(at + S::PAIRS + own * (TILE_GROUPS / 2 * GROUP_BYTES)), ofPairs = descriptor(at);
            asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#pragma unroll
            for (int s = 0; s < 4; s++) {
#pragma unroll
                for (int i = 0; i < 2; i++) {
                    wgmma(acc[i], weights + i * (GROUP_BYTES / 16) + 2 * s, ofPairs + 2 * s, c > 0 || s > 0);
                }
            }
            asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
            if (c > 0) {
                asm volatile("wgmma.wait_group.sync.aligned 1;" ::: "memory");
                if (t == 0) {
                    barrierArrive(stages.empty + 8 * before);
                }
            }
            before = stages.stage;
            stages.next();
        }
        asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
#pragma unroll
        for (int i = 0; i < BN / 2; i++) {
            asm volatile("" : ACC(acc[0], i), ACC(acc[1], i)::"memory");
        }
        if (chunks > 0 && t == 0) {
            barrierArrive(stages.empty + 8 * before);
        }
        finish<BN>(m, factors, known[own], pair, rows, expert, tile, pairs, [&](int group, int n) { return (float) acc[group & 1][n + 2 * (group >> 1)]; });
    }
}

// 384 work-items: four warps fetch, two times four multiply. A stage is 128 k of the pairs' rows, gathered, and of the weights, which lie as the
// multiplication wants them.
template <int BM>
__device__ __forceinline__ void tile(const Gemm &m) {
    typedef Stage<BM> S;
    extern __shared__ __align__(16) u8 dynamic[];
    __shared__ __align__(8) u64 barriers[2 * S::COUNT];
    // Scales where there is no expert, and biases where there are none.
    __shared__ __align__(16) float zeros[TILE_GROUPS * 8];
    if (threadIdx.x < TILE_GROUPS * 8) {
        zeros[threadIdx.x] = 0.0f;
    }
    Stages<S> stages = Stages<S>::of(dynamic, barriers, 2);
    afterPredecessor();
    int pairs = m.header[0] * m.pairsPerToken, blocks = m.padded[0] / BM;
    // What one lane told the others is the same for a warp, and the compiler knows it: descriptors stay in uniform registers.
    int tiles = (m.groups + TILE_GROUPS - 1) / TILE_GROUPS, warpgroup = __shfl_sync(0xffffffffu, (int) threadIdx.x >> 7, 0), t = threadIdx.x & 127;
    unsigned scales = stages.smem + S::COUNT * S::BYTES;
    if (warpgroup == 0) {
        asm volatile("setmaxnreg.dec.sync.aligned.u32 56;");
        fetch<BM>(m, stages, scales, blocks, tiles, pairs, t);
        return;
    }
    asm volatile("setmaxnreg.inc.sync.aligned.u32 224;");
    multiply(m, stages, scales, (unsigned) __cvta_generic_to_shared(zeros), blocks, tiles, pairs, warpgroup - 1, t);
}

// Grid: as many groups of 384 as run at once. Shared memory: Stage<BM>::COUNT * Stage<BM>::BYTES + 2 * Stage<BM>::SCALES * SCALE_BYTES + 1024.
extern "C" __global__ void __launch_bounds__(384, 1) tileGemm16(PARAMETERS) {
    tile<16>(ARGUMENTS);
}

extern "C" __global__ void __launch_bounds__(384, 1) tileGemm32(PARAMETERS) {
    tile<32>(ARGUMENTS);
}

extern "C" __global__ void __launch_bounds__(384, 1) tileGemm64(PARAMETERS) {
    tile<64>(ARGUMENTS);
}

extern "C" __global__ void __launch_bounds__(384, 1) tileGemm128(PARAMETERS) {
    tile<128>(ARGUMENTS);
}

// out[p] = round(x * (127 / amax[p])), half away from zero, and scales[p] = amax[p] / 127, as vLLM's per_token_quant_int8, where amax is
// at least 1e-10. Nothing is done for a pair whose key is -1.
// Grid: groups of 128; pairs along x and 2048 columns each along y, or, from many tokens on, four pairs a group along x.
extern "C" __global__ void __launch_bounds__(128) quantizePairs(
    const int *header, const int *keys, const float *values, const unsigned *amax, u8 *out, float *scales, int pairsPerToken, int columns,
    int chunks, int many) {
    afterPredecessor();
    bool byWarp = header[0] >= many;
    int p = byWarp ? blockIdx.x * 4 + (threadIdx.x >> 5) : blockIdx.x;
    if (p >= header[0] * pairsPerToken || keys[p] < 0) {
        return;
    }
    float magnitude = greatest(amax[p]), inverse = 127.0f / magnitude;
    int first = byWarp ? threadIdx.x & 31 : blockIdx.y * 512 + threadIdx.x, step = byWarp ? 32 : 128;
    int end = byWarp ? chunks * 32 : min(chunks * 32, (int) (blockIdx.y + 1) * 512);
    if (first == 0) {
        scales[p] = magnitude / 127.0f;
    }
    const float *row = values + LEAD / 4 + (u64) p * columns;
    unsigned *to = (unsigned *) (out + LEAD + (u64) p * chunks * 128);
#pragma unroll 8
    for (int i = first; i < end; i += step) {
        float x[4] = {};
        if (columns % 4) {
            load4(x, row, 4 * i, columns);
        } else if (4 * i < columns) {
            // Read once: what is written instead shall stay in the cache.
            float4 four = __ldcs((const float4 *) row + i);
            x[0] = four.x;
            x[1] = four.y;
            x[2] = four.z;
            x[3] = four.w;
        }
        to[i] = quantized(x, inverse);
    }
}
