// What the tiles for Hopper (sm_90a) share, in hopper-gemm.cu and wgmma-gemm.cu: stages in shared memory, what tells wgmma of rows there and of sums
// in registers, and where sums go whose rows are packed rows. ACC is what such a register is to asm.

#define ACC4(d, i) ACC(d, i), ACC(d, i + 1), ACC(d, i + 2), ACC(d, i + 3)
#define ACC8(d, i) ACC4(d, i), ACC4(d, i + 4)
#define ACC16(d, i) ACC8(d, i), ACC8(d, i + 8)
#define ACC32(d, i) ACC16(d, i), ACC16(d, i + 16)
#define ACC64(d, i) ACC32(d, i), ACC32(d, i + 32)
#define ACC128(d, i) ACC64(d, i), ACC64(d, i + 64)
#define NAMES8 "%0,%1,%2,%3,%4,%5,%6,%7"
#define NAMES16 NAMES8 ",%8,%9,%10,%11,%12,%13,%14,%15"
#define NAMES32 NAMES16 ",%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31"
#define NAMES64 \
    NAMES32 ",%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63"
#define NAMES128 \
    NAMES64 \
    ",%64,%65,%66,%67,%68,%69,%70,%71,%72,%73,%74,%75,%76,%77,%78,%79,%80,%81,%82,%83,%84,%85,%86,%87,%88,%89,%90,%91,%92,%93,%94,%95,%96,%97,%98," \
    "%99,%100,%101,%102,%103,%104,%105,%106,%107,%108,%109,%110,%111,%112,%113,%114,%115,%116,%117,%118,%119,%120,%121,%122,%123,%124,%125,%126,%127"

// The descriptor of rows of 128 bytes in shared memory, swizzled, 8 rows one behind the other; of every APART 8 rows the first.
template <int APART = 1>
__device__ __forceinline__ u64 descriptor(unsigned at) {
    return (u64) ((at & 0x3ffff) >> 4) | (u64) 1 << 16 | (u64) (64 * APART) << 32 | (u64) 1 << 62;
}

// The stages in turn, and their barriers: of being full, and of being empty.
template <class Stage>
struct Stages {
    unsigned smem, full, empty;
    int stage = 0, phase = 0;

    // Of barriers there are 2 * Stage::COUNT. A stage is full when 129 said so, and empty when givers did.
    __device__ __forceinline__ static Stages of(u8 *dynamic, u64 *barriers, int givers) {
        unsigned full = (unsigned) __cvta_generic_to_shared(barriers);
        Stages stages = {((unsigned) __cvta_generic_to_shared(dynamic) + 1023) & ~1023u, full, full + 8 * Stage::COUNT};
        if (threadIdx.x == 0) {
            for (int s = 0; s < Stage::COUNT; s++) {
                barrierInit(stages.full + 8 * s, 129);
                barrierInit(stages.empty + 8 * s, givers);
            }
            asm volatile("fence.mbarrier_init.release.cluster;");
        }
        __syncthreads();
        // What one lane told the others the compiler keeps in uniform registers; else it computes these addresses anew at every stage.
        stages.smem = __shfl_sync(0xffffffffu, stages.smem, 0);
        stages.full = __shfl_sync(0xffffffffu, stages.full, 0);
        stages.empty = stages.full + 8 * Stage::COUNT;
        return stages;
    }

    __device__ __forceinline__ unsigned at() const {
        return smem + stage * Stage::BYTES;
    }

    __device__ __forceinline__ void next() {
        if (++stage == Stage::COUNT) {
            stage = 0;
            phase ^= 1;
        }
    }

    __device__ __forceinline__ void awaitEmpty() const {
        barrierWait(empty + 8 * stage, phase ^ 1);
    }

    __device__ __forceinline__ void awaitFull() const {
        barrierWait(full + 8 * stage, phase);
        asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
    }
};

// Of the 128 packed rows of a warpgroup, groups * 8 of which there are, the warp's 32.
struct Rows {
    int own, groups, warp, lane;

    __device__ __forceinline__ bool here() const {
        return 4 * warp < groups;
    }
};

// What the sums of a pair are multiplied by, and where they go.
struct __align__(16) PairOfTile {
    int pair;
    float aScale, weight, unused;
};

// The t-th of a block; no pair where there is none. Where rows of a have a scale each it is 0 without an expert, so that sums that nobody made are
// none, either.
template <int BN, class Gemm>
__device__ __forceinline__ PairOfTile pairAt(const Gemm &m, int block, int expert, int pairs, int t, bool isScaled) {
    PairOfTile of = {pairs, 1.0f, 1.0f, 0.0f};
    if (t < BN) {
        int p = of.pair = m.sortedIds[block * BN + t];
        if (p < pairs) {
            of.aScale = !isScaled ? 1.0f : expert < 0 ? 0.0f : m.aScales[p / m.pairsPerRow];
            of.weight = m.weighted ? m.topkWeights[p] : 1.0f;
        }
    }
    return of;
}

// What sums of a work-item's two rows of each of the warp's four groups are multiplied by, and what is added to them.
struct Factors {
    float2 scale[4], addend[4];
};

// scales are those of the tile's packed rows.
template <class Gemm>
__device__ __forceinline__ Factors factorsOf(const Gemm &m, const float *scales, const Rows &of, int expert, int tile) {
    Factors factors;
#pragma unroll
    for (int i = 0; i < 4; i++) {
        int n = (4 * of.warp + i) * 8 + 2 * (of.lane >> 3);
        bool isKnown = of.here() && expert >= 0;
        factors.scale[i] = isKnown ? *(const float2 *) (scales + n) : make_float2(1.0f, 1.0f);
        factors.addend[i] =
            isKnown && m.biased ? *(const float2 *) (m.bias + (u64) expert * (m.groups * 8) + tile * 128 + n) : make_float2(0.0f, 0.0f);
    }
    return factors;
}

// What 128 packed rows times BN pairs make goes out. A work-item has of 32 packed rows four and of pairs two of every 8: sum(group, 4 n) and
// sum(group, 4 n + 1) are those of a row of the group and of pairs 8 n + 2 (lane % 4) and the next. It changes with its neighbour, so that it has two
// times four of one. known is the warpgroup's.
template <int BN, class Gemm, class Sum>
__device__ __forceinline__ void finish(
    const Gemm &m, const Factors &factors, PairOfTile (&known)[BN], const PairOfTile &own, const Rows &rows, int expert, int tile, int pairs, Sum sum) {
    int j = rows.lane & 3, q = rows.lane >> 3, odd = rows.lane >> 2 & 1, t = 32 * rows.warp + rows.lane;
    if (t < BN) {
        known[t] = own;
    }
    asm volatile("bar.sync %0, 128;" ::"r"(rows.own + 1) : "memory");
#pragma unroll
    for (int n = 0; n < BN / 8; n++) {
        PairOfTile of = known[8 * n + 2 * j + odd];
        if (!__any_sync(0xffffffffu, of.pair < pairs)) {
            continue;
        }
        float y[8];
#pragma unroll
        for (int i = 0; i < 4; i++) {
            float x0 = sum(i, 4 * n), x1 = sum(i, 4 * n + 1);
            float kept = odd ? x1 : x0, other = __shfl_xor_sync(0xffffffffu, odd ? x0 : x1, 4);
            float2 scale = factors.scale[i], addend = factors.addend[i];
            y[2 * i] = __fmul_rn(__fmul_rn(odd ? other : kept, of.aScale), scale.x) + addend.x;
            y[2 * i + 1] = __fmul_rn(__fmul_rn(odd ? kept : other, of.aScale), scale.y) + addend.y;
        }
        bool isThere = of.pair < pairs && rows.here();
        Columns to = columnsFrom(m, of.pair, isThere, tile * 64 + rows.warp * 16 + (LAYOUT ? 4 : 2) * q);
        float magnitude = 0.0f;
#if LAYOUT
        magnitude = emit<4>(m, to, 0, y, of.weight, magnitude);
#else
#pragma unroll
        for (int half = 0; half < 2; half++) {
            float four[4] = {y[4 * half], y[4 * half + 1], y[4 * half + 2], y[4 * half + 3]};
            magnitude = emit<2>(m, to, 8 * half, four, of.weight, magnitude);
        }
#endif
#if ACTIVATION >= 0
#pragma unroll
        for (int s = 16; s >= 8; s >>= 1) {
            magnitude = greater(magnitude, __shfl_xor_sync(0xffffffffu, magnitude, s));
        }
        if (q == 0 && isThere) {
            atomicMax(m.amax + of.pair, __float_as_uint(magnitude));
        }
#endif
    }
    // known is read before the next tile's are written.
    asm volatile("bar.sync %0, 128;" ::"r"(rows.own + 1) : "memory");
}

// The same of 64 pairs times 256 packed rows, of which left times 32 are there. A work-item has two pairs, 8 apart, -1 for none, and of every 32 packed
// rows 8, which are four neighbouring columns of out, or two times four: two(n, of) gives of the n-th 8 packed rows its two of each pair.
template <class Gemm, class Two>
__device__ __forceinline__ void finishPairs(
    const Gemm &m, const int (&pair)[2], const float (&weight)[2], int first, int left, int q, Two two) {
    left = __any_sync(0xffffffffu, pair[0] >= 0 || pair[1] >= 0) ? left : 0;
    Columns to[2];
    float magnitude[2] = {0.0f, 0.0f};
#pragma unroll
    for (int h = 0; h < 2; h++) {
        to[h] = columnsFrom(m, pair[h], pair[h] >= 0, first + (LAYOUT ? 4 : 2) * q);
    }
#pragma unroll
    for (int o = 0; o < 8; o++) {
        if (o < left) {
            float y[2][8];
#pragma unroll
            for (int i = 0; i < 4; i++) {
                float2 of[2];
                two(4 * o + i, of);
#pragma unroll
                for (int h = 0; h < 2; h++) {
                    y[h][2 * i] = of[h].x;
                    y[h][2 * i + 1] = of[h].y;
                }
            }
#pragma unroll
            for (int h = 0; h < 2; h++) {
#if LAYOUT
                magnitude[h] = emit<4>(m, to[h], o * 16, y[h], weight[h], magnitude[h]);
#else
                // Four at a time, so that what a warp stores fills sectors of 32 bytes.
#pragma unroll
                for (int half = 0; half < 2; half++) {
                    float four[4] = {y[h][4 * half], y[h][4 * half + 1], y[h][4 * half + 2], y[h][4 * half + 3]};
                    magnitude[h] = emit<2>(m, to[h], o * 16 + 8 * half, four, weight[h], magnitude[h]);
                }
#endif
            }
        }
    }
#if ACTIVATION >= 0
#pragma unroll
    for (int h = 0; h < 2; h++) {
        tellMagnitude<4>(m.amax, pair[h], pair[h] >= 0, magnitude[h]);
    }
#endif
}
