// The expert GEMMs on NVIDIA's tensor cores: int8 x int8 with an exact int32 sum (mma.sync m16n8k32, compute capability 8.0
// and up). TornadoVM's CUDA backend compiles this file at run time; expert-gemm.ptx is made of it for the PTX backend:
//
//     nvcc -arch=compute_80 -ptx expert-gemm.cu, without the lines before the first entry
//
// It computes out[p][n] = sum over k of a[row(p)][k] * b[e][n][k], times aScales[row(p)] * bScales[e][n] from left to
// right, plus bias[e][n] if there are biases, times topkWeights[p] if they are applied here. Blocks of one expert's pairs come from
// the alignment. Arrays are TornadoVM's, with a header before the first element:
//
//     header      [0] = M, [1] = pairs of a block
//     sizes       [0] pairs a header's token, [1] pairs that share a row of a, [2] rows N, [3] chunks of 64 k, [4] tiles of 16
//                 rows, [5] whether router weights are applied, [6] whether there are biases, [7] 0: do nothing
//     sortedIds   pairs in expert order; what is no pair (their number) pads blocks
//     expertIds   [blocks]; a block of -1 is written biasless zeros
//     padded      [0] = places of sortedIds in use
//     a           int8 [rows of a][chunks * 64]
//     aScales     [rows of a]
//     b           int8, in the order of the class TiledWeights
//     bScales, bias [E][N]
//     topkWeights [pairs]
//     out         float [pairs][N], written for every pair in sortedIds

#define HEADER 16
#define INTS(p) ((const int *) ((p) + HEADER))
#define FLOATS(p) ((const float *) ((p) + HEADER))

typedef unsigned char u8;
typedef unsigned long long u64;

// Pairs of a block that is a tile of a matrix product; for smaller ones weights are streamed.
#define TILE 128

// Blocks of pairs that are multiplied with the same weights one after the other, so that these stay in the L2 cache.
#define GROUP 8

struct Quad {
    unsigned x, y, z, w;
};

// Weights, which nobody reads again soon.
__device__ __forceinline__ Quad streamed(const void *p) {
    Quad q;
    asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0,%1,%2,%3}, [%4];" : "=r"(q.x), "=r"(q.y), "=r"(q.z), "=r"(q.w) : "l"(p));
    return q;
}

__device__ __forceinline__ Quad cached(const void *p) {
    Quad q;
    asm volatile("ld.global.nc.v4.u32 {%0,%1,%2,%3}, [%4];" : "=r"(q.x), "=r"(q.y), "=r"(q.z), "=r"(q.w) : "l"(p));
    return q;
}

__device__ __forceinline__ Quad shared(unsigned address) {
    Quad q;
    asm volatile("ld.shared.v4.u32 {%0,%1,%2,%3}, [%4];" : "=r"(q.x), "=r"(q.y), "=r"(q.z), "=r"(q.w) : "r"(address));
    return q;
}

// 16 bytes to shared memory, asynchronously; zeros if bytes is 0.
__device__ __forceinline__ void copy16(unsigned to, const void *from, int bytes) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(bytes));
}

// c += a * b: 16 rows times 8 pairs times 32 k.
__device__ __forceinline__ void mma(int (&c)[4], const Quad &a, unsigned b0, unsigned b1) {
    asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3]) : "r"(a.x), "r"(a.y), "r"(a.z), "r"(a.w), "r"(b0), "r"(b1));
}

struct Gemm {
    const int *sortedIds;
    const u8 *a, *b;
    const float *aScales, *bScales, *bias, *topkWeights;
    float *out;
    int pairs, pairsPerRow, rows, chunks, tiles, weighted, biased, expert;

    // Where a pair's row starts. What is no pair reads row 0, and its sum is thrown away.
    __device__ __forceinline__ const u8 *row(int p) const {
        return a + (p < pairs ? (u64) (p / pairsPerRow) * (chunks * 64) : 0);
    }
};

// Scales and biases of rows g and g + 8 of a tile.
struct Rows {
    float scale0, scale1, bias0, bias1;
    int n;
    bool there0, there1;

    __device__ __forceinline__ Rows(const Gemm &gemm, int tile, int g) {
        n = tile * 16 + g;
        there0 = n < gemm.rows;
        there1 = n + 8 < gemm.rows;
        bool here = gemm.expert >= 0;
        u64 at = (u64) (here ? gemm.expert : 0) * gemm.rows + n;
        scale0 = there0 && here ? gemm.bScales[at] : 0.0f;
        scale1 = there1 && here ? gemm.bScales[at + 8] : 0.0f;
        bias0 = there0 && here && gemm.biased ? gemm.bias[at] : 0.0f;
        bias1 = there1 && here && gemm.biased ? gemm.bias[at + 8] : 0.0f;
    }

    __device__ __forceinline__ void store(float *out, int low, int high, float aScale, float weight) const {
        if (there0) {
            out[n] = (__fmul_rn(__fmul_rn(low, aScale), scale0) + bias0) * weight;
        }
        if (there1) {
            out[n + 8] = (__fmul_rn(__fmul_rn(high, aScale), scale1) + bias1) * weight;
        }
    }
};

// Up to 8 NT pairs of one expert times 16 rows; four warps share the k among them, each reads a quarter of the weights.
template <int NT>
__device__ __forceinline__ void skinny(const Gemm &gemm, int place, int tile, int *sums) {
    constexpr int UNROLL = NT <= 2 ? 4 : 2;
    int warp = threadIdx.x >> 5, lane = threadIdx.x & 31, g = lane >> 2, j = lane & 3;
    int acc[NT][4];
    const u8 *a[NT];
#pragma unroll
    for (int t = 0; t < NT; t++) {
        acc[t][0] = acc[t][1] = acc[t][2] = acc[t][3] = 0;
        a[t] = gemm.row(gemm.sortedIds[place + 8 * t + g]) + j * 16;
    }
    const u8 *w = gemm.b + (u64) tile * gemm.chunks * 1024 + lane * 16;
    int chunks = gemm.expert < 0 ? 0 : gemm.chunks;
    int c = warp;
    for (; c + 4 * (UNROLL - 1) < chunks; c += 4 * UNROLL) {
        Quad q[UNROLL][2];
#pragma unroll
        for (int u = 0; u < UNROLL; u++) {
            q[u][0] = streamed(w + (c + 4 * u) * 1024);
            q[u][1] = streamed(w + (c + 4 * u) * 1024 + 512);
        }
#pragma unroll
        for (int u = 0; u < UNROLL; u++) {
#pragma unroll
            for (int t = 0; t < NT; t++) {
                Quad x = cached(a[t] + (c + 4 * u) * 64);
                mma(acc[t], q[u][0], x.x, x.y);
                mma(acc[t], q[u][1], x.z, x.w);
            }
        }
    }
    for (; c < chunks; c += 4) {
        Quad q0 = streamed(w + c * 1024), q1 = streamed(w + c * 1024 + 512);
#pragma unroll
        for (int t = 0; t < NT; t++) {
            Quad x = cached(a[t] + c * 64);
            mma(acc[t], q0, x.x, x.y);
            mma(acc[t], q1, x.z, x.w);
        }
    }
#pragma unroll
    for (int t = 0; t < NT; t++) {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            sums[((warp * NT + t) * 4 + i) * 32 + lane] = acc[t][i];
        }
    }
    __syncthreads();
    Rows rows(gemm, tile, g);
    for (int o = threadIdx.x; o < NT * 64; o += 128) {
        int t = o >> 6, q = (o >> 5) & 1;
        int p = gemm.sortedIds[place + 8 * t + 2 * j + q];
        if (p < gemm.pairs) {
            int low = 0, high = 0;
#pragma unroll
            for (int s = 0; s < 4; s++) {
                low += sums[((s * NT + t) * 4 + q) * 32 + lane];
                high += sums[((s * NT + t) * 4 + q + 2) * 32 + lane];
            }
            float weight = gemm.weighted ? gemm.topkWeights[p] : 1.0f;
            rows.store(gemm.out + (u64) p * gemm.rows, low, high, gemm.aScales[p / gemm.pairsPerRow], weight);
        }
    }
}

// 128 rows times up to TN pairs of one expert. Each of the eight warps has 32 rows times half of the pairs. Weights and pairs' rows
// come through three stages of 64 k in shared memory.
template <int TN>
__device__ __forceinline__ void tile(const Gemm &gemm, int place, int tile0, u8 *stages) {
    constexpr int NT = TN / 16, STAGE = 8192 + TN * 64, COPIES = TN / 64;
    unsigned smem = (unsigned) __cvta_generic_to_shared(stages);
    int warp = threadIdx.x >> 5, lane = threadIdx.x & 31, g = lane >> 2, j = lane & 3;
    const u8 *rows[COPIES], *weights[2];
    int there = 0;
#pragma unroll
    for (int i = 0; i < 2; i++) {
        int copy = i * 256 + threadIdx.x, t = tile0 + copy / 64;
        weights[i] = gemm.b + (u64) (t < gemm.tiles ? t : gemm.tiles - 1) * gemm.chunks * 1024 + copy % 64 * 16;
    }
#pragma unroll
    for (int i = 0; i < COPIES; i++) {
        int p = gemm.sortedIds[place + i * 64 + threadIdx.x / 4];
        rows[i] = gemm.row(p) + j * 16;
        there |= (p < gemm.pairs) << i;
    }
    int acc[2][NT][4];
#pragma unroll
    for (int r = 0; r < 2; r++) {
#pragma unroll
        for (int t = 0; t < NT; t++) {
            acc[r][t][0] = acc[r][t][1] = acc[r][t][2] = acc[r][t][3] = 0;
        }
    }
    int chunks = gemm.expert < 0 ? 0 : gemm.chunks;
    auto load = [&](int c, int stage) {
        unsigned to = smem + stage * STAGE + threadIdx.x * 16;
        if (c < chunks) {
            copy16(to, weights[0] + c * 1024, 16);
            copy16(to + 4096, weights[1] + c * 1024, 16);
#pragma unroll
            for (int i = 0; i < COPIES; i++) {
                copy16(to + 8192 + i * 4096, rows[i] + c * 64, there >> i & 1 ? 16 : 0);
            }
        }
        asm volatile("cp.async.commit_group;");
    };
    load(0, 0);
    load(1, 1);
    int stage = 0;
    for (int c = 0; c < chunks; c++) {
        asm volatile("cp.async.wait_group 1;");
        __syncthreads();
        load(c + 2, stage == 0 ? 2 : stage - 1);
        unsigned as = smem + stage * STAGE + (warp & 3) * 2048 + lane * 16;
        unsigned bs = smem + stage * STAGE + 8192 + ((warp >> 2) * NT * 8 + g) * 64 + j * 16;
        Quad w00 = shared(as), w01 = shared(as + 512), w10 = shared(as + 1024), w11 = shared(as + 1536);
#pragma unroll
        for (int t0 = 0; t0 < NT; t0 += 4) {
            Quad x[4];
#pragma unroll
            for (int t = 0; t < 4; t++) {
                x[t] = shared(bs + (t0 + t) * 512);
            }
#pragma unroll
            for (int t = 0; t < 4; t++) {
                mma(acc[0][t0 + t], w00, x[t].x, x[t].y);
                mma(acc[1][t0 + t], w10, x[t].x, x[t].y);
            }
#pragma unroll
            for (int t = 0; t < 4; t++) {
                mma(acc[0][t0 + t], w01, x[t].z, x[t].w);
                mma(acc[1][t0 + t], w11, x[t].z, x[t].w);
            }
        }
        stage = stage == 2 ? 0 : stage + 1;
    }
    // The stages make room for the pairs' scales and weights.
    asm volatile("cp.async.wait_group 0;");
    __syncthreads();
    float *aScale = (float *) stages, *weight = aScale + TN;
    int *pair = (int *) (weight + TN);
    for (int i = threadIdx.x; i < TN; i += 256) {
        int p = gemm.sortedIds[place + i];
        bool here = p < gemm.pairs;
        pair[i] = here ? p : -1;
        aScale[i] = here ? gemm.aScales[p / gemm.pairsPerRow] : 0.0f;
        weight[i] = here && gemm.weighted ? gemm.topkWeights[p] : 1.0f;
    }
    __syncthreads();
    int tile1 = tile0 + (warp & 3) * 2;
    Rows r0(gemm, tile1, g), r1(gemm, tile1 + 1, g);
#pragma unroll
    for (int t = 0; t < NT; t++) {
#pragma unroll
        for (int q = 0; q < 2; q++) {
            int i = ((warp >> 2) * NT + t) * 8 + 2 * j + q;
            if (pair[i] >= 0) {
                float *out = gemm.out + (u64) pair[i] * gemm.rows;
                r0.store(out, acc[0][t][q], acc[0][t][q + 2], aScale[i], weight[i]);
                r1.store(out, acc[1][t][q], acc[1][t][q + 2], aScale[i], weight[i]);
            }
        }
    }
}

#ifdef TORNADO_CUDA
#define BEFORE long *context, u8 *constants, u8 *local, int *atomics,
#else
#define BEFORE void *context,
#endif
#define PARAMETERS \
    BEFORE const u8 *header, const u8 *sizes, const u8 *sortedIds, const u8 *expertIds, const u8 *padded, const u8 *a, \
        const u8 *aScales, const u8 *b, const u8 *bScales, const u8 *bias, const u8 *topkWeights, u8 *out
#define GEMM(block) \
    const int *s = INTS(sizes); \
    int expert = INTS(expertIds)[block]; \
    Gemm gemm = {INTS(sortedIds), a + HEADER, b + HEADER + (u64) (expert < 0 ? 0 : expert) * s[4] * s[3] * 1024, \
        FLOATS(aScales), FLOATS(bScales), FLOATS(bias), FLOATS(topkWeights), (float *) (out + HEADER), \
        INTS(header)[0] * s[0], s[1], s[2], s[3], s[4], s[5], s[6], expert};

// One kernel for every block size, as TornadoVM (5.2.0) takes one prebuilt kernel a graph. Blocks of 8, 16 or 32: groups of 128, a
// block of pairs times a tile of rows each; blocks of TILE: groups of 256, a block times 8 tiles. The grid has blocks along x and
// tiles along y, and is gone through in the order that GROUP says.
extern "C" __global__ void __launch_bounds__(256, 2) expertGemm(PARAMETERS) {
    __shared__ __align__(128) u8 memory[3 * TILE * 128];
    int blockSize = INTS(header)[1];
    int used = INTS(padded)[0] / blockSize;
    int id = blockIdx.y * gridDim.x + blockIdx.x;
    if (INTS(sizes)[7] == 0 || id >= used * gridDim.y) {
        return;
    }
    int group = id / (GROUP * gridDim.y);
    int size = used - group * GROUP < GROUP ? used - group * GROUP : GROUP;
    int within = id - group * GROUP * gridDim.y;
    int block = group * GROUP + within % size;
    int row = within / size;
    int place = block * blockSize;
    GEMM(block)
    switch (blockSize) {
        case 8: skinny<1>(gemm, place, row, (int *) memory); break;
        case 16: skinny<2>(gemm, place, row, (int *) memory); break;
        case 32: skinny<4>(gemm, place, row, (int *) memory); break;
        default:
            if (gemm.sortedIds[place + TILE / 2] < gemm.pairs) {
                tile<TILE>(gemm, place, row * 8, memory);
            } else {
                tile<TILE / 2>(gemm, place, row * 8, memory);
            }
    }
}
