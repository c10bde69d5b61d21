// The expert GEMMs of mma.cu on Hopper: tiles of BN pairs times 256 packed rows by wgmma (sm_90a), which give the bits that those of mma-gemm.cu do.
// Weights are the left factor, in registers, where they are widened, each once for all pairs of a tile; pairs are the right one, in shared memory.
// What a step multiplies is next to one another in a row of a, which is in another order than skinnyGemm's: of int8 in that of k; of halves, of every
// 64 k, the one at 16 s + 4 j + i is where 16 s + 2 j + i % 2 + i / 2 * 8 would be.
// Beside what mma.cu asks for it is compiled with MOST_STAGES of the copies to shared memory, fewer where they would take more than MOST_BYTES.

#include "mma.cu"
#include "hopper.cu"

#if !defined(MOST_BYTES) || !defined(MOST_STAGES)
#error "MOST_BYTES and MOST_STAGES have to be defined"
#elif BLOCKED
#error "BLOCKED: expected one scale for a row of a"
#endif

// k that a step multiplies, steps of a chunk, and the words of a lane's 16 weights that they take.
#define STEP_K (FORM ? 16 : 32)
#define STEPS (64 / STEP_K)

#if FORM
#define ACC(d, i) "+f"(d[i])
#define WGMMA_TYPES "k16.f32.f16.f16"
#define WGMMA_END ", 1, 1, 0"
#else
#define ACC(d, i) "+r"(d[i])
#define WGMMA_TYPES "k32.s32.s8.s8"
#define WGMMA_END ""
#endif
#define ACC4(d, i) ACC(d, i), ACC(d, i + 1), ACC(d, i + 2), ACC(d, i + 3)
#define ACC8(d, i) ACC4(d, i), ACC4(d, i + 4)
#define ACC16(d, i) ACC8(d, i), ACC8(d, i + 8)
#define ACC32(d, i) ACC16(d, i), ACC16(d, i + 16)
#define ACC64(d, i) ACC32(d, i), ACC32(d, i + 32)
#define NAMES8 "%0,%1,%2,%3,%4,%5,%6,%7"
#define NAMES16 NAMES8 ",%8,%9,%10,%11,%12,%13,%14,%15"
#define NAMES32 NAMES16 ",%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31"
#define NAMES64 \
    NAMES32 ",%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63"

// d (+)= a * b: 64 packed rows times N pairs times STEP_K k, of a warpgroup.
#define WGMMA_OF(N, SUMS, A0, A1, A2, A3, B, ADD) \
    __device__ __forceinline__ void wgmma(Sum(&d)[SUMS], const unsigned(&a)[4], u64 b, int add) { \
        asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, " ADD ", 0;\nwgmma.mma_async.sync.aligned.m64n" #N WGMMA_TYPES " {" NAMES##SUMS "}, {" A0 \
                     "," A1 "," A2 "," A3 "}, " B ", p" WGMMA_END ";\n}" \
                     : ACC##SUMS(d, 0) \
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(add)); \
    }
WGMMA_OF(16, 8, "%8", "%9", "%10", "%11", "%12", "%13")
WGMMA_OF(32, 16, "%16", "%17", "%18", "%19", "%20", "%21")
WGMMA_OF(64, 32, "%32", "%33", "%34", "%35", "%36", "%37")
WGMMA_OF(128, 64, "%64", "%65", "%66", "%67", "%68", "%69")

// A stage: 64 k of the weights of two tiles of packed rows, of their scales and zero points, and of BN pairs; as many as there is room for.
template <int BN>
struct Stage {
    static constexpr int WEIGHTS = 2 * TILE_GROUPS * GROUP_BYTES, PAIRS = BN * A_BYTES, SCALE = SCALES * 1024, ZERO = ZEROS ? SCALE : 0;
    static constexpr int BYTES = WEIGHTS + PAIRS + SCALE + ZERO;
    static constexpr int COUNT = MOST_BYTES / BYTES < MOST_STAGES ? MOST_BYTES / BYTES : MOST_STAGES;
};

// What the sums of a pair are multiplied by, and where they go.
struct __align__(16) PairOfTile {
    int pair;
    float aScale, weight, unused;
};

// 384 work-items: four warps fetch, and two times four have 128 packed rows each, a warp 32 of them, twice 16.
template <int BN>
__device__ __forceinline__ void tile(const Gemm &m) {
    typedef Stage<BN> S;
    extern __shared__ __align__(16) u8 dynamic[];
    __shared__ __align__(8) u64 barriers[2 * S::COUNT];
    __shared__ PairOfTile known[2][BN];
    unsigned smem = ((unsigned) __cvta_generic_to_shared(dynamic) + 1023) & ~1023u;
    unsigned full = (unsigned) __cvta_generic_to_shared(barriers), empty = full + 8 * S::COUNT;
    if (threadIdx.x == 0) {
        for (int s = 0; s < S::COUNT; s++) {
            barrierInit(full + 8 * s, 129);
            barrierInit(empty + 8 * s, 2);
        }
        asm volatile("fence.mbarrier_init.release.cluster;");
    }
    __syncthreads();
    afterPredecessor();
    int pairs = m.header[0] * m.pairsPerToken, blocks = m.padded[0] / BN, packedRows = m.groups * 8;
    int tiles = (m.groups + 2 * TILE_GROUPS - 1) / (2 * TILE_GROUPS), total = blocks * tiles, stage = 0, phase = 0;
    int warpgroup = threadIdx.x >> 7, t = threadIdx.x & 127;
    if (warpgroup == 0) {
        asm volatile("setmaxnreg.dec.sync.aligned.u32 56;");
        constexpr int UNITS = A_BYTES / 16, APART = 128 / UNITS, COPIES = (BN + APART - 1) / APART;
        // Neighbours copy a row; each has rows APART apart. Which these are in the next tile is read a tile ahead.
        int r = t / UNITS, unit = t % UNITS;
        unsigned to = S::WEIGHTS + r * A_BYTES + (unit ^ (FORM ? r & 7 : r >> 1 & 3)) * 16;
        int next[COPIES], nextExpert = -1, nextTile = 0;
        auto look = [&](int id) {
            if (id < total) {
                int block;
                place(id, blocks, tiles, block, nextTile);
                nextExpert = m.expertIds[block];
#pragma unroll
                for (int i = 0; i < COPIES; i++) {
                    next[i] = r + APART * i < BN ? m.sortedIds[block * BN + r + APART * i] : pairs;
                }
            }
        };
        look(blockIdx.x);
        for (int id = blockIdx.x; id < total; id += gridDim.x) {
            int expert = nextExpert, tile = 2 * nextTile;
            const u8 *rows[COPIES];
            unsigned there = 0;
#pragma unroll
            for (int i = 0; i < COPIES; i++) {
                int p = next[i];
                there |= (p < pairs) << i;
                rows[i] = m.a + (u64) (p < pairs ? p / m.pairsPerRow : 0) * (m.chunks * ROW_BYTES) + unit * 16;
            }
            look(id + gridDim.x);
            if (expert < 0) {
                continue;
            }
            int first = groupsOf(m, tile) * GROUP_BYTES, second = max(groupsOf(m, tile + 1), 0) * GROUP_BYTES;
            const u8 *weights = tileStart(m, expert, tile), *more = tileStart(m, expert, tile + 1);
            u64 scaleRow = (u64) expert * (m.groupsOfK + GROUPED) * packedRows + tile * 128;
            int scaleBytes = (first + second) / 16;
            for (int c = 0; c < m.chunks; c++) {
                barrierWait(empty + 8 * stage, phase ^ 1);
                unsigned at = smem + stage * S::BYTES, told = full + 8 * stage;
                if (t == 0) {
                    barrierExpect(told, first + second + scaleBytes * SCALES * (1 + ZEROS));
                    bulkCopy(at, weights + (u64) c * first, first, told);
                    if (second) {
                        bulkCopy(at + TILE_GROUPS * GROUP_BYTES, more + (u64) c * second, second, told);
                    }
#pragma unroll
                    for (int i = 0; i < SCALES; i++) {
                        u64 of = scaleRow + (u64) groupOfK(m, c, i) * packedRows;
                        bulkCopy(at + S::WEIGHTS + S::PAIRS + i * 1024, m.bScales + of, scaleBytes, told);
                        if (ZEROS) {
                            bulkCopy(at + S::WEIGHTS + S::PAIRS + S::SCALE + i * 1024, m.zeros + of, scaleBytes, told);
                        }
                    }
                }
#pragma unroll
                for (int i = 0; i < COPIES; i++) {
                    if (r + APART * i < BN) {
                        copy16(at + to + i * APART * A_BYTES, rows[i] + c * A_BYTES, there >> i & 1 ? 16 : 0);
                    }
                }
                asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(told) : "memory");
                if (++stage == S::COUNT) {
                    stage = 0;
                    phase ^= 1;
                }
            }
        }
        asm volatile("cp.async.wait_all;");
        return;
    }
    asm volatile("setmaxnreg.inc.sync.aligned.u32 224;");
    int own = warpgroup - 1, warp = t >> 5, lane = t & 31, g = lane >> 2, j = lane & 3, q = lane >> 3, odd = g & 1;
    for (int id = blockIdx.x; id < total; id += gridDim.x) {
        int block, tile;
        place(id, blocks, tiles, block, tile);
        tile = 2 * tile + own;
        int expert = m.expertIds[block], chunks = expert < 0 ? 0 : m.chunks, before = stage;
        bool here = 4 * warp < groupsOf(m, tile);
        u64 scaleRow = (u64) (expert < 0 ? 0 : expert) * (m.groupsOfK + GROUPED) * packedRows + tile * 128;
        // What the sums are multiplied by is read before them, so that nobody waits for it.
        PairOfTile pairOfTile = {pairs, 1.0f, 1.0f, 0.0f};
        if (t < BN) {
            int p = pairOfTile.pair = m.sortedIds[block * BN + t];
            if (p < pairs) {
                pairOfTile.aScale = expert < 0 ? 1.0f : m.aScales[p / m.pairsPerRow];
                pairOfTile.weight = m.weighted ? m.topkWeights[p] : 1.0f;
            }
        }
        float2 scale[4], addend[4];
#pragma unroll
        for (int i = 0; i < 4; i++) {
            int n = (4 * warp + i) * 8 + 2 * q;
            bool isKnown = here && expert >= 0;
            u64 factors = scaleRow + (GROUPED ? m.groupsOfK * packedRows : 0) + n;
            scale[i] = isKnown ? *(const float2 *) (m.bScales + factors) : make_float2(1.0f, 1.0f);
            addend[i] = isKnown && m.biased ? *(const float2 *) (m.bias + (u64) expert * packedRows + tile * 128 + n) : make_float2(0.0f, 0.0f);
        }
        unsigned zero[4];
#pragma unroll
        for (int i = 0; i < 4; i++) {
            zero[i] = NO_ZERO;
#if ZEROS && !GROUPED
            zero[i] = here && expert >= 0 ? tooLarge(m.zeros[scaleRow + (4 * warp + i) * 8 + g]) : NO_ZERO;
#endif
        }
        Sum acc[2][BN / 2];
        for (int c = 0; c < chunks; c++) {
            barrierWait(full + 8 * stage, phase);
            asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
            unsigned at = smem + stage * S::BYTES, scales = at + S::WEIGHTS + S::PAIRS + own * 512;
            u64 rows = descriptor<A_BYTES>(at + S::WEIGHTS);
#if FORM == 0
            asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
            if (c > 0 && t == 0) {
                barrierArrive(empty + 8 * before);
            }
#endif
            Quad w[4];
#pragma unroll
            for (int i = 0; i < 4; i++) {
                w[i] = shared16(at + ((own * 4 + warp) * 4 + i) * GROUP_BYTES + lane * 16);
            }
            unsigned a[STEPS][2][4];
#if FORM
#pragma unroll
            for (int s = 0; s < STEPS; s++) {
                // What was multiplied from these registers is through.
                asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(STEPS - 1) : "memory");
                if (s == STEPS - 1 && c > 0 && t == 0) {
                    barrierArrive(empty + 8 * before);
                }
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    unsigned four = s == 0 ? w[i].x : s == 1 ? w[i].y : s == 2 ? w[i].z : w[i].w;
                    asm volatile("" : "+r"(four)); // so that it isn't widened before that
#if GROUPED
                    unsigned ofRow = scales + 16 * s / STEP * 1024 + ((4 * warp + i) * 8 + g) * 4;
                    if (ZEROS) {
                        zero[i] = tooLarge(shared4(ofRow + S::SCALE));
                    }
                    unsigned factor = twice(shared4(ofRow));
                    a[s][i >> 1][i & 1] = scaled(widened<0x4140>(four, zero[i]), factor);
                    a[s][i >> 1][2 + (i & 1)] = scaled(widened<0x4342>(four, zero[i]), factor);
#else
                    a[s][i >> 1][i & 1] = widened<0x4140>(four, zero[i]);
                    a[s][i >> 1][2 + (i & 1)] = widened<0x4342>(four, zero[i]);
#endif
                }
                asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
                wgmma(acc[0], a[s][0], rows + 2 * s, c > 0 || s > 0);
                wgmma(acc[1], a[s][1], rows + 2 * s, c > 0 || s > 0);
                asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
            }
#else
#pragma unroll
            for (int i = 0; i < 4; i++) {
                a[0][i >> 1][i & 1] = w[i].x;
                a[0][i >> 1][2 + (i & 1)] = w[i].y;
                a[1][i >> 1][i & 1] = w[i].z;
                a[1][i >> 1][2 + (i & 1)] = w[i].w;
            }
            asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#pragma unroll
            for (int s = 0; s < STEPS; s++) {
                wgmma(acc[0], a[s][0], rows + 2 * s, c > 0 || s > 0);
                wgmma(acc[1], a[s][1], rows + 2 * s, c > 0 || s > 0);
            }
            asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
#endif
            before = stage;
            if (++stage == S::COUNT) {
                stage = 0;
                phase ^= 1;
            }
        }
        asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
#pragma unroll
        for (int i = 0; i < BN / 2; i++) {
            asm volatile("" : ACC(acc[0], i), ACC(acc[1], i)::"memory");
        }
        if (chunks > 0 && t == 0) {
            barrierArrive(empty + 8 * before);
        }
        if (t < BN) {
            known[own][t] = pairOfTile;
        }
        asm volatile("bar.sync %0, 128;" ::"r"(warpgroup) : "memory");
        // A work-item has of 32 packed rows four and of pairs two of every 8. It changes with its neighbour, so that it has two times four of one.
#pragma unroll
        for (int n = 0; n < BN / 8; n++) {
            PairOfTile of = known[own][8 * n + 2 * j + odd];
            float y[8];
#pragma unroll
            for (int i = 0; i < 4; i++) {
                int low = 4 * n + 2 * (i & 1);
                float x0 = (float) acc[i >> 1][low], x1 = (float) acc[i >> 1][low + 1];
                float kept = odd ? x1 : x0, other = __shfl_xor_sync(0xffffffffu, odd ? x0 : x1, 4);
                y[2 * i] = expert < 0 ? 0.0f : __fmul_rn(__fmul_rn(odd ? other : kept, of.aScale), scale[i].x) + addend[i].x;
                y[2 * i + 1] = expert < 0 ? 0.0f : __fmul_rn(__fmul_rn(odd ? kept : other, of.aScale), scale[i].y) + addend[i].y;
            }
            unsigned magnitude = 0;
            if (of.pair < pairs && here) {
                int first = tile * 64 + warp * 16;
#if LAYOUT
                magnitude = emit<4>(m, of.pair, first + 4 * q, y, of.weight);
#else
#pragma unroll
                for (int half = 0; half < 2; half++) {
                    float four[4] = {y[4 * half], y[4 * half + 1], y[4 * half + 2], y[4 * half + 3]};
                    unsigned bits = emit<2>(m, of.pair, first + 8 * half + 2 * q, four, of.weight);
                    magnitude = bits > magnitude ? bits : magnitude;
                }
#endif
            }
#if ACTIVATION >= 0
#pragma unroll
            for (int s = 16; s >= 8; s >>= 1) {
                magnitude = max(magnitude, __shfl_xor_sync(0xffffffffu, magnitude, s));
            }
            if (q == 0 && of.pair < pairs) {
                atomicMax(m.amax + of.pair, magnitude);
            }
#endif
        }
        // known is read before the next tile's are written.
        asm volatile("bar.sync %0, 128;" ::"r"(warpgroup) : "memory");
    }
}

// Grid: as many groups of 384 as run at once. Shared memory: Stage<BN>::COUNT * Stage<BN>::BYTES + 1024.
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
