// The expert GEMMs of mma.cu on Hopper: tiles of BN pairs times 256 packed rows by wgmma (sm_90a), which give the bits that those of mma-gemm.cu do,
// but for sums of 128 k.
// Weights are the left factor, in registers, where they are widened, each once for all pairs of a tile; pairs are the right one, in shared memory.
// What a step multiplies is next to one another in a row of a, which is in another order than skinnyGemm's: of int8 in that of k; of halves, of every
// 64 k, the one at 16 s + 4 j + i is where 16 s + 2 j + i % 2 + i / 2 * 8 would be. With BLOCKED, STEP may be 128, too.
// With STEP 128 tiles of 128 pairs have the pairs as their left factor, from registers, and weights from shared memory, both in skinnyGemm's order.
// Beside what mma.cu asks for it is compiled with MOST_STAGES of the copies to shared memory, fewer where they would take more than MOST_BYTES; and
// with UNIFORM 1 where of every 64 packed rows the even ones have the same scales and the odd ones, too.

#define BULK

#include "mma.cu"

#if FORM
#define ACC(d, i) "+f"(d[i])
#define WGMMA_TYPES "k16.f32.f16.f16"
#define WGMMA_END ", 1, 1, 0"
#else
#define ACC(d, i) "+r"(d[i])
#define WGMMA_TYPES "k32.s32.s8.s8"
#define WGMMA_END ""
#endif

#include "hopper.cu"

// Tiles of 128 pairs whose sums of 128 k are scaled.
#define FOLDS (BLOCKED && STEP == 128)

#if !defined(MOST_BYTES) || !defined(MOST_STAGES) || !defined(UNIFORM)
#error "MOST_BYTES, MOST_STAGES and UNIFORM have to be defined"
#elif BLOCKED && FORM
#error "BLOCKED: expected int8 activations"
#endif

// Bytes of a row of a in a stage, its k, and its chunks of 64; k that a step multiplies, and steps of a stage.
#define LINE 128
#define STAGE_CHUNKS (LINE / A_BYTES)
#define STAGE_K (64 * STAGE_CHUNKS)
#define STEP_K (FORM ? 16 : 32)
#define STEPS (STAGE_K / STEP_K)

// Scales that a row has in a stage.
#define STAGE_SCALES (GROUPED ? STAGE_K / STEP : 0)

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

// A stage: STAGE_K k of the weights of two tiles of packed rows, of their scales and zero points, of BN pairs and, with BLOCKED, of theirs; as many as
// there is room for.
template <int BN>
struct Stage {
    static constexpr int WEIGHTS = 2 * STAGE_CHUNKS * TILE_GROUPS * GROUP_BYTES, PAIRS = BN * LINE;
    static constexpr int SCALE = STAGE_SCALES * 1024, ZERO = ZEROS ? SCALE : 0, PAIR_SCALE = BLOCKED ? STAGE_SCALES * BN * 4 : 0;
    static constexpr int BYTES = (WEIGHTS + PAIRS + SCALE + ZERO + PAIR_SCALE + 1023) / 1024 * 1024;
    static constexpr int COUNT = MOST_BYTES / BYTES < MOST_STAGES ? MOST_BYTES / BYTES : MOST_STAGES;
    // Whether of every 64 packed rows the scales of two are copied: where memory is what holds a tile up, all would be 3 % more.
    static constexpr bool TWO_SCALES = UNIFORM && BN < 128;
};

// The weights of a lane in a stage: of its k, 64 at a time, and of twice 8 rows.
template <int BN>
__device__ __forceinline__ void load(Quad (&w)[STAGE_CHUNKS][2], unsigned at, const Rows &of, int i) {
#pragma unroll
    for (int k = 0; k < STAGE_CHUNKS; k++) {
#pragma unroll
        for (int h = 0; h < 2; h++) {
            w[k][h] = shared16(at + of.own * Stage<BN>::WEIGHTS / 2 + (k * of.groups + 4 * of.warp + 2 * i + h) * GROUP_BYTES + placeOfLane(of.lane));
        }
    }
}

#if FORM == 0
// Those of the 32 k of a step.
__device__ __forceinline__ void weightsOf(unsigned (&a)[4], const Quad (&w)[STAGE_CHUNKS][2], int step) {
    const Quad &low = w[step / 2][0], &high = w[step / 2][1];
    a[0] = step & 1 ? low.z : low.x;
    a[1] = step & 1 ? high.z : high.x;
    a[2] = step & 1 ? low.w : low.y;
    a[3] = step & 1 ? high.w : high.y;
}
#endif

#if BLOCKED
typedef float Total;

// acc = weights times pairs. A product of 64 pairs is multiplied by its scales while the other warpgroup multiplies.
template <int BN>
__device__ __forceinline__ void multiply(Total (&acc)[2][BN / 2], Stages<Stage<BN>> &stages, int chunks, const Rows &of, const unsigned (&)[4]) {
    typedef Stage<BN> S;
    constexpr int PRODUCT = BN < 64 ? BN : 64, WHOLE = STEP / STEP_K;
    int g = of.lane >> 2, j = of.lane & 3;
#pragma unroll
    for (int n = 0; n < BN / 2; n++) {
        acc[0][n] = acc[1][n] = 0.0f;
    }
    for (int c = 0; c < chunks; c += STAGE_CHUNKS) {
        stages.awaitFull();
        unsigned at = stages.at(), scales = at + S::WEIGHTS + S::PAIRS;
        u64 rows = descriptor(at + S::WEIGHTS);
#pragma unroll
        for (int i = 0; i < 2; i++) {
            Quad w[STAGE_CHUNKS][2];
            load<BN>(w, at, of, i);
#pragma unroll
            for (int first = 0; first < BN; first += PRODUCT) {
#pragma unroll
                for (int s = 0; s < STEPS; s += WHOLE) {
                    Sum part[PRODUCT / 2];
                    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#pragma unroll
                    for (int step = s; step < s + WHOLE; step++) {
                        unsigned a[4];
                        weightsOf(a, w, step);
                        wgmma(part, a, rows + first * (LINE / 16) + 2 * step, step > s);
                    }
                    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
                    int row = of.own * 128 + (S::TWO_SCALES ? (of.warp & 2) * 32 + (g & 1) : (4 * of.warp + 2 * i) * 8 + g);
                    unsigned ofRow = scales + s / WHOLE * 1024 + row * 4;
                    unsigned ofPair = scales + S::SCALE + (s / WHOLE * BN + first + 2 * j) * 4;
                    float low = shared4(ofRow), high = S::TWO_SCALES ? low : shared4(ofRow + 32);
                    float2 two[PRODUCT / 8];
#pragma unroll
                    for (int n = 0; n < PRODUCT / 8; n++) {
                        two[n] = shared8(ofPair + 32 * n);
                    }
                    asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
#pragma unroll
                    for (int n = 0; n < PRODUCT / 2; n++) {
                        asm volatile("" : "+r"(part[n])::"memory");
                    }
#pragma unroll
                    for (int n = 0; n < PRODUCT / 8; n++) {
                        float *sum = acc[i] + first / 2 + 4 * n;
                        sum[0] = __fmaf_rn((float) part[4 * n], __fmul_rn(two[n].x, low), sum[0]);
                        sum[1] = __fmaf_rn((float) part[4 * n + 1], __fmul_rn(two[n].y, low), sum[1]);
                        sum[2] = __fmaf_rn((float) part[4 * n + 2], __fmul_rn(two[n].x, high), sum[2]);
                        sum[3] = __fmaf_rn((float) part[4 * n + 3], __fmul_rn(two[n].y, high), sum[3]);
                    }
                }
            }
        }
        __syncwarp();
        if (of.lane == 0) {
            barrierArrive(stages.empty + 8 * stages.stage);
        }
        stages.next();
    }
}
#else
typedef Sum Total;

// acc = weights times pairs.
template <int BN>
__device__ __forceinline__ void multiply(Total (&acc)[2][BN / 2], Stages<Stage<BN>> &stages, int chunks, const Rows &of, unsigned (&zero)[4]) {
    typedef Stage<BN> S;
    int before = stages.stage;
#if FORM
    if (chunks == 0) {
        // Whole numbers need not be any in particular, to be multiplied by 0; these could be none.
#pragma unroll
        for (int i = 0; i < BN / 2; i++) {
            acc[0][i] = acc[1][i] = 0.0f;
        }
    }
#endif
    for (int c = 0; c < chunks; c += STAGE_CHUNKS) {
        stages.awaitFull();
        unsigned at = stages.at();
        u64 rows = descriptor(at + S::WEIGHTS);
#if FORM == 0
        asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
        if (c > 0 && of.lane == 0) {
            barrierArrive(stages.empty + 8 * before);
        }
#endif
        Quad w[2][STAGE_CHUNKS][2];
        load<BN>(w[0], at, of, 0);
        load<BN>(w[1], at, of, 1);
        unsigned a[STEPS][2][4];
#if FORM
#pragma unroll
        for (int s = 0; s < STEPS; s++) {
            // What was multiplied from these registers is through.
            asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(STEPS - 1) : "memory");
            if (s == STEPS - 1 && c > 0 && of.lane == 0) {
                barrierArrive(stages.empty + 8 * before);
            }
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const Quad &own = w[i >> 1][0][i & 1];
                unsigned four = s == 0 ? own.x : s == 1 ? own.y : s == 2 ? own.z : own.w;
                asm volatile("" : "+r"(four)); // so that it isn't widened before that
#if GROUPED
                unsigned ofRow = at + S::WEIGHTS + S::PAIRS + 16 * s / STEP * 1024 + of.own * 512 + ((4 * of.warp + i) * 8 + (of.lane >> 2)) * 4;
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
        for (int s = 0; s < STEPS; s++) {
            weightsOf(a[s][0], w[0], s);
            weightsOf(a[s][1], w[1], s);
        }
        asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#pragma unroll
        for (int s = 0; s < STEPS; s++) {
            wgmma(acc[0], a[s][0], rows + 2 * s, c > 0 || s > 0);
            wgmma(acc[1], a[s][1], rows + 2 * s, c > 0 || s > 0);
        }
        asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
#endif
        before = stages.stage;
        stages.next();
    }
    asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
#pragma unroll
    for (int i = 0; i < BN / 2; i++) {
        asm volatile("" : ACC(acc[0], i), ACC(acc[1], i)::"memory");
    }
    if (chunks > 0 && of.lane == 0) {
        barrierArrive(stages.empty + 8 * before);
    }
}
#endif

#if FOLDS
// The descriptor of packed rows of 64 bytes in shared memory, swizzled, 8 of them one behind the other.
__device__ __forceinline__ u64 weightsDescriptor(unsigned at) {
    return (u64) ((at & 0x3ffff) >> 4) | (u64) 1 << 16 | (u64) 32 << 32 | (u64) 2 << 62;
}

// sums += product * ofPair * ofRow, when all products but the last LATER are there.
template <int LATER>
__device__ __forceinline__ void fold(float (&sums)[32], Sum (&product)[32], const float (&ofPair)[2], float2 ofRow, unsigned scales) {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(LATER) : "memory");
#pragma unroll
    for (int n = 0; n < 32; n++) {
        asm volatile("" : "+r"(product[n])::"memory");
    }
#pragma unroll
    for (int n = 0; n < 8; n++) {
        if (!UNIFORM && n > 0) {
            ofRow = shared8(scales + 32 * n);
        }
#pragma unroll
        for (int h = 0; h < 2; h++) {
            float *sum = sums + 4 * n + 2 * h;
            sum[0] = __fmaf_rn((float) product[4 * n + 2 * h], __fmul_rn(ofPair[h], ofRow.x), sum[0]);
            sum[1] = __fmaf_rn((float) product[4 * n + 2 * h + 1], __fmul_rn(ofPair[h], ofRow.y), sum[1]);
        }
    }
}

// acc = pairs times weights: 64 pairs, from registers, times four times 64 packed rows. While a product of 128 k is multiplied by its scales, the
// next one is made.
__device__ __forceinline__ void multiplyPairs(float (&acc)[4][32], Stages<Stage<128>> &stages, int chunks, int own, int warp, int lane) {
    typedef Stage<128> S;
    int firstRow = own * 64 + warp * 16, j = lane & 3;
    // Where the 16 bytes of a row are that the lane names to ldmatrix, and the scale of its own row; not to be computed anew every time.
    unsigned place = (firstRow + (lane & 15)) * LINE + (lane >> 4 ^ lane & 7) * 16, ofScale = (firstRow + (lane >> 2)) * 4;
    asm volatile("" : "+r"(place), "+r"(ofScale));
#pragma unroll
    for (int n = 0; n < 128; n++) {
        acc[n / 32][n % 32] = 0.0f;
    }
    if (chunks == 0) {
        return;
    }
    unsigned a[STEPS][4], scales = 0;
    float ofPair[2];
    Sum even[32], odd[32];
    u64 weights = 0;
    auto enter = [&](bool isFull) {
        if (!isFull) {
            // What wgmma reads the copy engine wrote, which needs no fence.
            barrierWait(stages.full + 8 * stages.stage, stages.phase);
        }
        unsigned at = stages.at();
#pragma unroll
        for (int s = 0; s < STEPS; s++) {
            asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                         : "=r"(a[s][0]), "=r"(a[s][1]), "=r"(a[s][2]), "=r"(a[s][3]) : "r"(at + S::WEIGHTS + (place ^ 32 * s)));
        }
        weights = weightsDescriptor(at);
    };
    auto scale = [&]() {
        scales = stages.at() + S::WEIGHTS + S::PAIRS;
        ofPair[0] = shared4(scales + S::SCALE + ofScale);
        ofPair[1] = shared4(scales + S::SCALE + ofScale + 32);
        scales += UNIFORM ? 0 : 8 * j;
    };
    auto product = [&](Sum(&d)[32], int quarter) {
        u64 first = weights + (quarter >> 1) * (S::WEIGHTS / 32) + (quarter & 1) * (8 * GROUP_BYTES / 16);
        asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#pragma unroll
        for (int s = 0; s < STEPS; s++) {
            wgmma(d, a[s], first + (s >> 1) * (TILE_GROUPS * GROUP_BYTES / 16) + 2 * (s & 1), s > 0);
        }
        asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
    };
    auto leave = [&](unsigned empty) {
        __syncwarp();
        if (lane == 0) {
            barrierArrive(empty);
        }
    };
    enter(false);
    product(even, 0);
    scale();
    // The scales of each product's rows are read while the one before it is scaled.
    float2 ofRow = shared8(scales), next;
    for (int c = STAGE_CHUNKS;; c += STAGE_CHUNKS) {
        unsigned before = stages.empty + 8 * stages.stage;
        product(odd, 1);
        next = shared8(scales + 256);
        fold<1>(acc[0], even, ofPair, ofRow, scales);
        product(even, 2);
        ofRow = shared8(scales + 512);
        fold<1>(acc[1], odd, ofPair, next, scales + 256);
        product(odd, 3);
        stages.next();
        // The answer is there when it is needed.
        bool isFull = barrierPassed(stages.full + 8 * stages.stage, stages.phase);
        next = shared8(scales + 768);
        fold<1>(acc[2], even, ofPair, ofRow, scales + 512);
        asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
        if (c >= chunks) {
            fold<0>(acc[3], odd, ofPair, next, scales + 768);
            leave(before);
            return;
        }
        enter(isFull);
        product(even, 0);
        fold<1>(acc[3], odd, ofPair, next, scales + 768);
        leave(before);
        scale();
        ofRow = shared8(scales);
    }
}

// What those multiply comes to shared memory, by four warps. They share registers' ports with those that multiply, so that every instruction of a stage
// costs: addresses are advanced, not computed anew, and each copy of the copy engine has a warp of its own.
__device__ __forceinline__ void fetchPairs(const Gemm &m, Stages<Stage<128>> &stages, int blocks, int tiles, int pairs, int t) {
    typedef Stage<128> S;
    constexpr int UNITS = LINE / 16, APART = 128 / UNITS, COPIES = 128 / APART;
    int total = blocks * tiles, packedRows = m.groups * 8;
    // The warp's number and its lane that copies, as the compiler knows that all of a warp have the same.
    int warp = __shfl_sync(0xffffffffu, t >> 5, 0), isElected;
    asm volatile("{\n.reg .pred p;\nelect.sync _|p, 0xffffffff;\nselp.b32 %0, 1, 0, p;\n}" : "=r"(isElected));
    // Neighbours copy a row; each has rows APART apart. Which these are in the next tile is read a tile ahead.
    int r = t / UNITS, unit = t % UNITS;
    unsigned to = S::WEIGHTS + r * LINE + (unit ^ (r & 7)) * 16, scaleTo = S::WEIGHTS + S::PAIRS + S::SCALE + t * 4;
    int next[COPIES], nextExpert = -1, nextTile = 0, nextScaled = pairs;
    auto look = [&](int id) {
        if (id < total) {
            int block;
            place(id, blocks, tiles, block, nextTile);
            nextExpert = m.expertIds[block];
#pragma unroll
            for (int i = 0; i < COPIES; i++) {
                next[i] = m.sortedIds[block * 128 + r + APART * i];
            }
            nextScaled = m.sortedIds[block * 128 + t];
        }
    };
    look(blockIdx.x);
    for (int id = blockIdx.x; id < total; id += gridDim.x) {
        int expert = __shfl_sync(0xffffffffu, nextExpert, 0), tile = 2 * nextTile;
        const u8 *rows[COPIES];
        unsigned there = 0;
#pragma unroll
        for (int i = 0; i < COPIES; i++) {
            int p = next[i];
            there |= (p < pairs) << i;
            rows[i] = m.a + (u64) (p < pairs ? p / m.pairsPerRow : 0) * (m.chunks * ROW_BYTES) + unit * 16;
        }
        const float *pairScale = m.aScales + (u64) (nextScaled < pairs ? nextScaled / m.pairsPerRow : 0) * m.groupsOfK;
        look(id + gridDim.x);
        if (expert < 0) {
            continue;
        }
        int first = groupsOf(m, tile) * GROUP_BYTES, second = max(groupsOf(m, tile + 1), 0) * GROUP_BYTES, scaleBytes = (first + second) / 16;
        // The warp's copy of a stage: weights of the one or the other tile of packed rows, a chunk's bytes, or scales of both.
        bool isScales = warp == 2;
        int bytes = warp == 0 ? first : warp == 1 ? second : isScales ? scaleBytes : 0, step = isScales ? bytes : STAGE_CHUNKS * bytes;
        const u8 *from = isScales ? (const u8 *) (m.bScales + (u64) expert * (m.groupsOfK + GROUPED) * packedRows + tile * 128)
                                  : tileStart(m, expert, tile + (warp == 1));
        unsigned copyTo = isScales ? S::WEIGHTS + S::PAIRS : warp * (S::WEIGHTS / 2);
        // Where they are read by descriptors, chunks are equally far apart.
        bool copies = bytes > 0 && isElected, isApart = !isScales && bytes != S::WEIGHTS / 4;
        // What is left of the group of k.
        int left = m.kOfGroup;
        auto fill = [&](int offset, int chunks, bool isFull) {
            stages.awaitEmpty();
            unsigned at = stages.at(), told = stages.full + 8 * stages.stage;
            left -= STEP;
            bool isLast = left == 0;
            left = isLast ? m.kOfGroup : left;
            if (copies) {
                if (warp == 0) {
                    barrierExpect(told, chunks * (first + second) + scaleBytes);
                }
                bulkCopy(at + copyTo, from, isApart || chunks < STAGE_CHUNKS ? bytes : step, told);
                if (isApart && chunks == STAGE_CHUNKS) {
                    bulkCopy(at + copyTo + S::WEIGHTS / 4, from + bytes, bytes, told);
                }
                from += !isScales ? step : isLast ? packedRows * 4 : 0;
            }
#pragma unroll
            for (int i = 0; i < COPIES; i++) {
                // What pads k is multiplied by zeros.
                bool known = (isFull || there >> i & 1) && (chunks == STAGE_CHUNKS || unit < UNITS / 2);
                copy16(at + to + i * APART * LINE, rows[i] + offset, known ? 16 : 0);
            }
            copy4(at + scaleTo, pairScale);
            pairScale += isLast;
            asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(told) : "memory");
            stages.next();
        };
        int whole = m.chunks / STAGE_CHUNKS;
        auto fillWhole = [&](bool isFull) {
            // Two at a time, so that half of the addresses are offsets.
            for (int n = 0; n < whole; n += 2) {
                fill(0, STAGE_CHUNKS, isFull);
                if (n + 1 < whole) {
                    fill(LINE, STAGE_CHUNKS, isFull);
                }
#pragma unroll
                for (int i = 0; i < COPIES; i++) {
                    rows[i] += 2 * LINE;
                }
            }
        };
        if (__all_sync(0xffffffffu, there == (1 << COPIES) - 1)) {
            fillWhole(true);
        } else {
            fillWhole(false);
        }
        if (m.chunks % STAGE_CHUNKS) {
            fill(-LINE * (whole & 1), 1, false);
        }
    }
    asm volatile("cp.async.wait_all;");
}
#endif

// 384 work-items: four warps fetch, and two times four have 128 packed rows each, a warp 32 of them, twice 16.
template <int BN>
__device__ __forceinline__ void tile(const Gemm &m) {
    typedef Stage<BN> S;
    extern __shared__ __align__(16) u8 dynamic[];
    __shared__ __align__(8) u64 barriers[2 * S::COUNT];
    __shared__ PairOfTile known[2][BN];
    Stages<S> stages = Stages<S>::of(dynamic, barriers, 8);
    afterPredecessor();
    int pairs = m.header[0] * m.pairsPerToken, blocks = m.padded[0] / BN, packedRows = m.groups * 8;
    int tiles = (m.groups + 2 * TILE_GROUPS - 1) / (2 * TILE_GROUPS), total = blocks * tiles;
    int warpgroup = threadIdx.x >> 7, t = threadIdx.x & 127;
    // Of many pairs other groups read the weights, too.
    constexpr bool ONCE = BN < 128;
    if (warpgroup == 0) {
        asm volatile("setmaxnreg.dec.sync.aligned.u32 56;");
#if FOLDS
        if constexpr (BN == 128) {
            fetchPairs(m, stages, blocks, tiles, pairs, t);
            return;
        }
#endif
        constexpr int UNITS = LINE / 16, APART = 128 / UNITS, COPIES = (BN + APART - 1) / APART;
        // Neighbours copy a row; each has rows APART apart. Which these are in the next tile is read a tile ahead.
        int r = t / UNITS, unit = t % UNITS;
        unsigned to = S::WEIGHTS + r * LINE + (unit ^ (r & 7)) * 16;
        int next[COPIES], nextExpert = -1, nextTile = 0, nextScaled = pairs;
        auto look = [&](int id) {
            if (id < total) {
                int block;
                place(id, blocks, tiles, block, nextTile);
                nextExpert = m.expertIds[block];
#pragma unroll
                for (int i = 0; i < COPIES; i++) {
                    next[i] = r + APART * i < BN ? m.sortedIds[block * BN + r + APART * i] : pairs;
                }
                nextScaled = BLOCKED && t < BN ? m.sortedIds[block * BN + t] : pairs;
            }
        };
        look(blockIdx.x);
        for (int id = blockIdx.x; id < total; id += gridDim.x) {
            int expert = nextExpert, tile = 2 * nextTile;
            unsigned rows[COPIES], there = 0;
#pragma unroll
            for (int i = 0; i < COPIES; i++) {
                int p = next[i];
                there |= (p < pairs) << i;
                rows[i] = (p < pairs ? p / m.pairsPerRow : 0) * (unsigned) (m.chunks * (ROW_BYTES / 16)) + unit;
            }
            const float *pairScale = m.aScales + (u64) (nextScaled < pairs ? nextScaled / m.pairsPerRow : 0) * m.groupsOfK;
            look(id + gridDim.x);
            if (expert < 0) {
                continue;
            }
            int first = groupsOf(m, tile) * GROUP_BYTES, second = max(groupsOf(m, tile + 1), 0) * GROUP_BYTES;
            const u8 *weights = tileStart(m, expert, tile), *more = tileStart(m, expert, tile + 1);
            u64 scaleRow = (u64) expert * (m.groupsOfK + GROUPED) * packedRows + tile * 128;
            int scaleBytes = S::TWO_SCALES ? 0 : (first + second) / 16;
            // A work-item's of every 64 rows' two.
            int scaled = (t & 7) / 2 * 64 + (t & 1);
            bool scales = S::TWO_SCALES && t >= 120 && tile * 128 + scaled < packedRows;
            // The group of k, and what is left of it.
            int group = 0, left = m.kOfGroup;
            for (int c = 0; c < m.chunks; c += STAGE_CHUNKS) {
                stages.awaitEmpty();
                unsigned at = stages.at(), told = stages.full + 8 * stages.stage;
                int chunks = min(STAGE_CHUNKS, m.chunks - c);
                int groups[STAGE_SCALES ? STAGE_SCALES : 1];
#pragma unroll
                for (int i = 0; i < STAGE_SCALES; i++) {
                    // What pads k is 0, whatever its scale.
                    groups[i] = min(group, m.groupsOfK - 1);
                    left -= STEP;
                    group += left == 0;
                    left = left == 0 ? m.kOfGroup : left;
                }
                if (t == 0) {
                    barrierExpect(told, (first + second) * chunks + scaleBytes * STAGE_SCALES * (1 + ZEROS));
                    bulkCopy(at, weights + (u64) c * first, first * chunks, told, ONCE);
                    if (second) {
                        bulkCopy(at + S::WEIGHTS / 2, more + (u64) c * second, second * chunks, told, ONCE);
                    }
#pragma unroll
                    for (int i = 0; i < (S::TWO_SCALES ? 0 : STAGE_SCALES); i++) {
                        u64 of = scaleRow + (u64) groups[i] * packedRows;
                        bulkCopy(at + S::WEIGHTS + S::PAIRS + i * 1024, m.bScales + of, scaleBytes, told, ONCE);
                        if (ZEROS) {
                            bulkCopy(at + S::WEIGHTS + S::PAIRS + S::SCALE + i * 1024, m.zeros + of, scaleBytes, told, ONCE);
                        }
                    }
                }
#pragma unroll
                for (int i = 0; i < COPIES; i++) {
                    if (r + APART * i < BN) {
                        // What pads k is multiplied by zeros.
                        bool known = (there >> i & 1) && unit * 16 < chunks * A_BYTES;
                        copy16(at + to + i * APART * LINE, m.a + (u64) (rows[i] + c * (A_BYTES / 16)) * 16, known ? 16 : 0);
                    }
                }
                if (scales) {
#pragma unroll
                    for (int i = 0; i < STAGE_SCALES; i++) {
                        copy4(at + S::WEIGHTS + S::PAIRS + i * 1024 + scaled * 4, m.bScales + scaleRow + (u64) groups[i] * packedRows + scaled);
                    }
                }
                if (BLOCKED && t < BN) {
#pragma unroll
                    for (int i = 0; i < STAGE_SCALES; i++) {
                        copy4(at + S::WEIGHTS + S::PAIRS + S::SCALE + (i * BN + t) * 4, pairScale + groups[i]);
                    }
                }
                asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(told) : "memory");
                stages.next();
            }
        }
        asm volatile("cp.async.wait_all;");
        return;
    }
    asm volatile("setmaxnreg.inc.sync.aligned.u32 224;");
    int own = warpgroup - 1, warp = t >> 5, lane = t & 31, g = lane >> 2;
    for (int id = blockIdx.x; id < total; id += gridDim.x) {
        int block, tile;
        place(id, blocks, tiles, block, tile);
#if FOLDS
        if constexpr (BN == 128) {
            tile *= 2;
            int expert = m.expertIds[block], pair[2];
            float acc[4][32], weight[2];
#pragma unroll
            for (int h = 0; h < 2; h++) {
                int p = m.sortedIds[block * BN + own * 64 + warp * 16 + g + 8 * h];
                pair[h] = p < pairs ? p : -1;
                weight[h] = p < pairs && m.weighted ? m.topkWeights[p] : 1.0f;
            }
            multiplyPairs(acc, stages, expert < 0 ? 0 : m.chunks, own, warp, lane);
            const float *bias = m.bias + (u64) expert * packedRows + tile * 128 + 2 * (lane & 3);
            bool biased = m.biased && expert >= 0;
            finishPairs(m, pair, weight, tile * 64, (m.groups - tile * TILE_GROUPS) >> 2, lane & 3, [&](int n, float2(&of)[2]) {
                float2 addend = biased ? *(const float2 *) (bias + 8 * n) : make_float2(0.0f, 0.0f);
#pragma unroll
                for (int h = 0; h < 2; h++) {
                    const float *sum = acc[n >> 3] + 4 * (n & 7) + 2 * h;
                    of[h] = make_float2(sum[0] + addend.x, sum[1] + addend.y);
                }
            });
            continue;
        }
#endif
        tile = 2 * tile + own;
        int expert = m.expertIds[block], chunks = expert < 0 ? 0 : m.chunks;
        u64 scaleRow = (u64) (expert < 0 ? 0 : expert) * (m.groupsOfK + GROUPED) * packedRows + tile * 128;
        // What the sums are multiplied by is read before them, so that nobody waits for it.
        PairOfTile pairOfTile = pairAt<BN>(m, block, expert, pairs, t, !BLOCKED);
        const float *scales = m.bScales + scaleRow + (GROUPED ? m.groupsOfK * packedRows : 0);
        Rows rows = {own, groupsOf(m, tile), warp, lane};
        Factors factors = factorsOf(m, scales, rows, expert, tile);
        unsigned zero[4];
#pragma unroll
        for (int i = 0; i < 4; i++) {
            zero[i] = NO_ZERO;
#if ZEROS && !GROUPED
            zero[i] = rows.here() && expert >= 0 ? tooLarge(m.zeros[scaleRow + (4 * warp + i) * 8 + g]) : NO_ZERO;
#endif
        }
        Total acc[2][BN / 2];
        multiply(acc, stages, chunks, rows, zero);
        finish<BN>(m, factors, known[own], pairOfTile, rows, expert, tile, pairs, [&](int group, int n) {
            return (float) acc[group >> 1][n + 2 * (group & 1)];
        });
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
