// The experts' matrix products on AMD's matrix cores: WMMA of RDNA3 and RDNA4 (waves of 32), MFMA of CDNA (waves of
// 64), of int8 weights with int8 or, with HALVES, with activations in float as halves. A prebuilt task of TornadoVM's
// OpenCL backend; AmdGemm launches it, AmdWeights has the order of the weights. For other compilers the same product is
// here in plain C, one multiplication after the other, so that what is around the instructions can be tested without
// them; no layer is loaded with that.
//
// A fragment is 16 rows of 64 k: 1 KB in 64 pieces of 16 bytes. A lane holds LOADS pieces. Which k an instruction takes
// of them is nothing to the sum, as both factors have the same order; of int8 piece p of a row, at 16p + row, has k 16p
// to 16p + 15. With HALVES it has k 16n + 4p to 16n + 4p + 3 for n from 0 to 3, so that the n-th instruction takes k
// 16n to 16n + 15 however many pieces a lane has, and scales can change between instructions. In what comes out a lane
// has one pair, that of its number modulo 16, and REGS weight rows in a row, so that it writes 16 bytes at once.

#pragma OPENCL FP_CONTRACT OFF

// First bytes of an array are TornadoVM's.
#define HEADER 16
#define GROUP 256
#define TILE_PAIRS 128
#define TILE_ROWS 128
#define FEW_PAIRS 16
#define STREAM_PAIRS 4
#define CHUNK 64
#define FRAGMENT 64

// Whether activations are halves: a row's values times a power of two, and behind them halves of what these leave.
#ifndef HALVES
#define HALVES 0
#endif

// Whether scales change along k: 1 where a layer has blocks or groups. STEP k have a scale in common wherever they
// begin: 64, of halves 32 or 16, too.
#ifndef GROUPED
#define GROUPED 0
#endif
#ifndef STEP
#define STEP 64
#endif
#if defined(__GFX11__) && HALVES && GROUPED && STEP == 64
#undef STEP
#define STEP 32 // or there are not the registers, for so many halves that a lane has twice
#endif
#define STEPS (CHUNK / STEP)

// Whether weights have zero points, of halves.
#ifndef ZEROS
#define ZEROS 0
#endif

// Pieces of 16 bytes that a row of activations has of a chunk, and all that it has: of halves two parts and a scale.
#if HALVES
#define PIECES 8
#define ROW_PIECES(chunks) (2 * PIECES * (chunks) + 1)
typedef float Sum;
#else
#define PIECES 4
#define ROW_PIECES(chunks) (PIECES * (chunks))
typedef int Sum;
#endif

// What is added up in float.
#define FLOATING (GROUPED || HALVES)

#if defined(__gfx90a__) || defined(__gfx908__)
#define WAVE 64
#define REGS 4
#define LOADS 1
#elif defined(__gfx942__) || defined(__gfx950__) || defined(__gfx940__) || defined(__gfx941__)
#define WAVE 64
#define REGS 4
#define LOADS 1
#elif defined(__GFX12__)
#define WAVE 32
#define REGS 8
#define LOADS 2
#elif defined(__GFX11__)
#define WAVE 32
#define REGS 8
#define LOADS 4
#elif defined(__AMDGCN__)
#error "no matrix cores that these kernels know"
#endif

// A Factor is what a lane has of one of MULTIPLIES multiplications of a chunk, of weights or of activations, Sums what
// it has of the result. FACTOR is the n-th, where load(j) is the j-th piece that the lane has of a row of activations.
#ifdef WAVE
#pragma OPENCL EXTENSION cl_khr_fp16 : enable
#define PER_STEP (MULTIPLIES / STEPS)
#if HALVES
#define MULTIPLIES 4
#if LOADS == 4
typedef half16 Factor;
typedef float8 Sums;
#define FACTOR(n, load) as_half16((int8)(load(2 * (n)), load(2 * (n) + 1)))
static Sums multiply(Factor a, Factor b, Sums sums) {
    return __builtin_amdgcn_wmma_f32_16x16x16_f16_w32(a, b, sums);
}
#elif LOADS == 2
typedef half8 Factor;
typedef float8 Sums;
#define FACTOR(n, load) as_half8(load(n))
static Sums multiply(Factor a, Factor b, Sums sums) {
    return __builtin_amdgcn_wmma_f32_16x16x16_f16_w32_gfx12(a, b, sums);
}
#else
typedef half4 Factor;
typedef float4 Sums;
#define FACTOR(n, load) as_half4((n) % 2 ? load((n) / 2).hi : load((n) / 2).lo)
static Sums multiply(Factor a, Factor b, Sums sums) {
    return __builtin_amdgcn_mfma_f32_16x16x16f16(a, b, sums, 0, 0, 0);
}
#endif
#else
#define MULTIPLIES LOADS
typedef int4 Factor;
#define FACTOR(n, load) load(n)
#if LOADS == 4
typedef int8 Sums;
static Sums multiply(Factor a, Factor b, Sums sums) {
    return __builtin_amdgcn_wmma_i32_16x16x16_iu8_w32(true, a, true, b, sums, false);
}
#elif LOADS == 2
typedef int8 Sums;
static Sums multiply(Factor a, Factor b, Sums sums) {
    sums = __builtin_amdgcn_wmma_i32_16x16x16_iu8_w32_gfx12(true, a.lo, true, b.lo, sums, false);
    return __builtin_amdgcn_wmma_i32_16x16x16_iu8_w32_gfx12(true, a.hi, true, b.hi, sums, false);
}
#elif defined(__gfx90a__) || defined(__gfx908__)
typedef int4 Sums;
static Sums multiply(Factor a, Factor b, Sums sums) {
    sums = __builtin_amdgcn_mfma_i32_16x16x16i8(a.x, b.x, sums, 0, 0, 0);
    sums = __builtin_amdgcn_mfma_i32_16x16x16i8(a.y, b.y, sums, 0, 0, 0);
    sums = __builtin_amdgcn_mfma_i32_16x16x16i8(a.z, b.z, sums, 0, 0, 0);
    return __builtin_amdgcn_mfma_i32_16x16x16i8(a.w, b.w, sums, 0, 0, 0);
}
#else
typedef int4 Sums;
static Sums multiply(Factor a, Factor b, Sums sums) {
    sums = __builtin_amdgcn_mfma_i32_16x16x32_i8(as_long(a.lo), as_long(b.lo), sums, 0, 0, 0);
    return __builtin_amdgcn_mfma_i32_16x16x32_i8(as_long(a.hi), as_long(b.hi), sums, 0, 0, 0);
}
#endif
#endif
#endif

// aScales with HALVES are the zero points of the weights in a product: a row's scale is behind its values.
#define PARAMETERS                                                                                                    \
    __global long *context, __constant uchar *constants, __local uchar *region, __global int *atomics,                \
        __global const uchar *headerBytes, __global const uchar *sizesBytes, __global const uchar *sortedIdsBytes,    \
        __global const uchar *expertIdsBytes, __global const uchar *paddedBytes, __global const uchar *aBytes,        \
        __global const uchar *aScalesBytes, __global const uchar *bBytes, __global const uchar *bScalesBytes,         \
        __global const uchar *biasBytes, __global const uchar *topkWeightsBytes, __global uchar *outBytes
#define INTS(array) ((__global const int *)(array##Bytes + HEADER))
#define FLOATS(array) ((__global const float *)(array##Bytes + HEADER))

// What AmdGemm puts into the sizes.
typedef struct {
    int perHeader;    // pairs, or rows to be packed, that an element of the header stands for
    int pairsPerRow;  // pairs that have the same row of a
    int rows;         // of the weights
    int chunks;       // of 64 k
    int weighted;     // 1 to multiply by the router's weights
    int biased;       // 1 to add the expert's bias
    int lead;         // ints in front of the weights
    int group;        // k that have a scale in common
    int rowsPerScale; // weight rows that have a scale in common
    int groups;       // scales along k
    int packed;       // of rows that are to be packed the columns; 0 for a product
    int keyed;        // 1 where rows that are to be packed are pairs, and those of key -1 aren't there
} Sizes;

// The group that a step of STEP k is of; those that pad k are of the last.
static int groupOf(int step, const Sizes *sizes) {
    return min(step / (sizes->group / STEP), sizes->groups - 1);
}

// What a sum, or with groups the sum of scaled ones, comes to.
static float finished(float value, int expert, int pair, int n, const Sizes *sizes, __global const float *bias,
                      __global const float *topkWeights) {
    if (sizes->biased && expert >= 0) {
        value += bias[expert * sizes->rows + n];
    }
    return sizes->weighted ? value * topkWeights[pair] : value;
}

#if HALVES

// The nearest half, of two the even one, and what a half is; ROCm's library of OpenCL has calls of functions for it.
#ifdef WAVE
static ushort toHalf(float x) {
    return as_ushort((half)x);
}
static float ofHalf(ushort bits) {
    return as_half(bits);
}
#else
static ushort toHalf(float x) {
    ushort bits;
    vstore_half_rte(x, 0, (half *)&bits);
    return bits;
}
static float ofHalf(ushort bits) {
    return vload_half(0, (const half *)&bits);
}
#endif

// The scale of a packed row.
static float scaleOf(__global const int4 *row, int chunks) {
    return as_float(row[2 * PIECES * chunks].x);
}

// Which k of a chunk the t-th half of a row's piece is.
static int placeOf(int piece, int t) {
#if !defined(WAVE) || LOADS == 4
    return 8 * piece + t;
#elif LOADS == 2
    return piece / 2 * 16 + t / 4 * 8 + piece % 2 * 4 + t % 4;
#else
    return piece / 4 * 32 + t / 4 * 16 + piece % 4 * 4 + t % 4;
#endif
}

// A row's values times a power of two that makes the greatest magnitude from 2^14 to 2^15, as halves, and halves of
// what these leave. A row with a value beyond 1e30, or one that is no number, gets NaN for a scale. Whole numbers do
// the comparing, as compilers may take for granted that there are none such.
static void pack(int r, const Sizes *sizes, __global const float *values, __global const float *topkWeights,
                 __global int4 *out, __local uint *shared) {
    int lid = get_local_id(0);
    __global const float *from = values + (long)(sizes->weighted ? r / sizes->perHeader : r) * sizes->packed;
    float weight = sizes->weighted ? topkWeights[r] : 1;
    uint greatest = 0;
    for (int k = lid; k < sizes->packed; k += GROUP) {
        greatest = max(greatest, as_uint(from[k] * weight) & 0x7fffffffu);
    }
    shared[lid] = greatest;
    for (int others = GROUP / 2; others > 0; others /= 2) {
        barrier(CLK_LOCAL_MEM_FENCE);
        if (lid < others) {
            shared[lid] = max(shared[lid], shared[lid + others]);
        }
    }
    barrier(CLK_LOCAL_MEM_FENCE);
    greatest = shared[0];
    bool beyond = greatest > as_uint(1e30f);
    int exponent = beyond ? 0 : (int)max(greatest >> 23, 27u) - 127;
    float factor = as_float((127 + 14 - exponent) << 23);
    __global int4 *to = out + (long)r * ROW_PIECES(sizes->chunks);
    for (int p = lid; p < PIECES * sizes->chunks; p += GROUP) {
        ushort halves[8], rest[8];
        for (int t = 0; t < 8; t++) {
            int k = p / PIECES * CHUNK + placeOf(p % PIECES, t);
            float x = k < sizes->packed && !beyond ? from[k] * weight * factor : 0;
            halves[t] = toHalf(x);
            rest[t] = toHalf(x - ofHalf(halves[t]));
        }
        to[p] = (int4)(halves[0] | halves[1] << 16, halves[2] | halves[3] << 16, halves[4] | halves[5] << 16,
                       halves[6] | halves[7] << 16);
        to[PIECES * sizes->chunks + p] =
            (int4)(rest[0] | rest[1] << 16, rest[2] | rest[3] << 16, rest[4] | rest[5] << 16, rest[6] | rest[7] << 16);
    }
    if (lid == 0) {
        to[2 * PIECES * sizes->chunks] = (int4)(beyond ? 0x7fc00000 : (127 + exponent - 14) << 23, 0, 0, 0);
    }
}

#endif

#ifdef WAVE

static int lane(void) {
    return get_local_id(0) % WAVE;
}

// The number of the wave, the same for all its lanes as the compiler sees it.
static int wave(void) {
    return __builtin_amdgcn_readfirstlane((int)get_local_id(0) / WAVE);
}

// In pieces of 16 bytes, of 16 rows, what this lane loads j-th.
static int piece(int j) {
#if LOADS == 4
    return j;
#else
    return j * (WAVE / 16) + lane() / 16;
#endif
}

// The weights' row that a lane loads. RDNA3 gives row 2r + h of a product to register r of half h.
static int weightRow(void) {
    int row = lane() % 16;
#if defined(__GFX11__)
    return 8 * (row & 1) + (row >> 1);
#else
    return row;
#endif
}

static void loadWeights(int4 into[LOADS], __global const int4 *fragment) {
    for (int j = 0; j < LOADS; j++) {
        into[j] = fragment[(uint)(16 * piece(j) + weightRow())];
    }
}

// What widened weights are too large by, a step each: 1024 by the exponent that makes a half of a byte, 128 as weights
// are stored that much larger, and their zero point.
static void loadOffsets(half2 into[STEPS], __global const float *zeros, int expert, int chunk, int row,
                        const Sizes *sizes) {
    for (int step = 0; step < STEPS; step++) {
        into[step] = (half2)(1152.0f);
        if (ZEROS) {
            int group = groupOf(chunk * STEPS + step, sizes);
            into[step] = (half2)((half)(1152.0f + zeros[((long)expert * sizes->groups + group) * sizes->rows + row]));
        }
    }
}

// What a step multiplies of the pieces of a chunk. Bytes become halves, exactly: a byte below 0x64 is the half 1024 +
// byte.
static void factors(Factor into[PER_STEP], const int4 pieces[LOADS], int step, const half2 offsets[STEPS]) {
#pragma unroll
    for (int m = 0; m < PER_STEP; m++) {
        int n = step * PER_STEP + m;
#if HALVES
        int twos[2 * LOADS];
#pragma unroll
        for (int j = 0; j < LOADS; j++) {
            uint four = pieces[j][n];
            twos[2 * j] = as_int(as_half2(__builtin_amdgcn_perm(0x64646464u, four, 0x04010400u)) - offsets[step]);
            twos[2 * j + 1] = as_int(as_half2(__builtin_amdgcn_perm(0x64646464u, four, 0x04030402u)) - offsets[step]);
        }
        into[m] = *(Factor *)twos;
#else
        into[m] = pieces[n];
#endif
    }
}

// Where a piece of 16 rows of activations is in local memory: rows are exchanged so that neither those who write pieces
// of a row, of four two each, nor those who read a piece of sixteen rows meet in a bank.
static int place(int row, int p) {
    return 16 * p + (row ^ (p & 2) * 2);
}

static void scaled(float *into, Sums sums, float aScale, __global const float *bScales, int n, int rows,
                   int rowsPerScale) {
    for (int r = 0; r < REGS; r++) {
        int row = min(n + r, rows - 1);
        into[r] = fma(HALVES ? sums[r] : sums[r] * aScale, bScales[row / rowsPerScale], into[r]);
    }
}

// Sums that a group's slices have of 16 pairs or fewer, a row of 16 ints a pair, and all that is done with them.
static void finish(int block, int blockSize, int slices, int expert, int pairs, const Sizes *sizes,
                   __global const int *sortedIds, __global const int4 *a, __global const float *aScales,
                   __global const float *bScales, __global const float *bias, __global const float *topkWeights,
                   __global float *out, __local int4 *shared) {
    barrier(CLK_LOCAL_MEM_FENCE);
    // As many work-items as outputs: each has a pair and a weight row.
    int lid = get_local_id(0);
    int n = 16 * get_group_id(0) + lid % 16;
    if (lid >= 16 * blockSize || n >= sizes->rows) {
        return;
    }
    int pair = sortedIds[block * blockSize + lid / 16];
    if (pair >= pairs) {
        return;
    }
    float value = 0;
    Sum sum = 0;
    for (int s = 0; s < slices; s++) {
        int one = ((__local int *)shared)[s * 16 * blockSize + lid];
        if (FLOATING) {
            value += as_float(one);
        } else {
            sum += one;
        }
    }
    int row = pair / sizes->pairsPerRow;
    if (expert < 0) {
        value = 0;
    } else if (HALVES) {
#if HALVES
        value *= scaleOf(a + (long)row * ROW_PIECES(sizes->chunks), sizes->chunks);
        value = GROUPED ? value : value * bScales[expert * sizes->rows + n];
#endif
    } else if (!GROUPED) {
        value = sum * aScales[row] * bScales[expert * sizes->rows + n];
    }
    out[(long)pair * sizes->rows + n] = finished(value, expert, pair, n, sizes, bias, topkWeights);
}

#if !HALVES

static int dot(int a, int b, int sum) {
#if WAVE == 32
    return __builtin_amdgcn_sudot4(true, a, true, b, sum, false);
#else
    return __builtin_amdgcn_sdot4(a, b, sum, false);
#endif
}

// The first pairs of a block of STREAM_PAIRS. A lane has a weight row and every (WAVE / 16)-th piece of it; waves take
// chunks in turn.
static __attribute__((always_inline)) void stream(int count, int block, int expert, int pairs, const Sizes *sizes,
                                                  __global const int *sortedIds, __global const int4 *a,
                                                  __global const float *aScales, __global const int4 *b,
                                                  __global const float *bScales, __local int *shared) {
    int tiles = (sizes->rows + 15) / 16;
    int chunks = expert >= 0 ? sizes->chunks : 0;
    int scaleRows = (sizes->rows + sizes->rowsPerScale - 1) / sizes->rowsPerScale;
    int scaleRow = min(16 * (int)get_group_id(0) + lane() % 16, sizes->rows - 1) / sizes->rowsPerScale;
    __global const int4 *fragments = b + ((long)max(expert, 0) * tiles + get_group_id(0)) * sizes->chunks * FRAGMENT;
    __global const int4 *from[STREAM_PAIRS];
    int rows[STREAM_PAIRS], sums[STREAM_PAIRS];
    float totals[STREAM_PAIRS];
    for (int t = 0; t < count; t++) {
        int pair = sortedIds[block * STREAM_PAIRS + t];
        rows[t] = pair < pairs ? pair / sizes->pairsPerRow : 0; // a place that pads the block
        from[t] = a + (long)rows[t] * ROW_PIECES(sizes->chunks);
        sums[t] = 0;
        totals[t] = 0;
    }
#pragma unroll 4
    for (int c = wave(); c < chunks; c += GROUP / WAVE) {
        float scale = 0;
        int group = 0;
        if (GROUPED) {
            group = groupOf(c, sizes);
            scale = bScales[((long)expert * sizes->groups + group) * scaleRows + scaleRow];
        }
#pragma unroll
        for (int j = 0; j < 64 / WAVE; j++) {
            int p = j * (WAVE / 16) + lane() / 16;
            int4 w = fragments[(long)c * FRAGMENT + 16 * p + lane() % 16];
#pragma unroll
            for (int t = 0; t < count; t++) {
                int4 x = from[t][PIECES * c + p];
                sums[t] = dot(w.w, x.w, dot(w.z, x.z, dot(w.y, x.y, dot(w.x, x.x, sums[t]))));
            }
        }
        for (int t = 0; GROUPED && t < count; t++) {
            totals[t] = fma(sums[t] * aScales[rows[t] * sizes->groups + group], scale, totals[t]);
            sums[t] = 0;
        }
    }
    for (int t = 0; t < count; t++) {
        int sum = GROUPED ? as_int(totals[t]) : sums[t];
        shared[get_local_id(0) / 16 * (16 * STREAM_PAIRS) + t * 16 + lane() % 16] = sum;
    }
}

#endif

// Blocks of FEW_PAIRS: a group has 16 weight rows, its waves take chunks in turn. Of halves what they leave is
// multiplied, too.
static void few(int block, int expert, int pairs, const Sizes *sizes, __global const int *sortedIds,
                __global const int4 *a, __global const float *aScales, __global const int4 *b,
                __global const float *bScales, __local int4 *shared) {
    int tiles = (sizes->rows + 15) / 16;
    int tile = get_group_id(0);
    int own = sortedIds[block * FEW_PAIRS + lane() % 16];
    int row = own < pairs ? own / sizes->pairsPerRow : 0; // a place that pads the block; its sum is thrown away
    int chunks = expert >= 0 ? sizes->chunks : 0;
    __global const int4 *from = a + (long)row * ROW_PIECES(sizes->chunks);
    __global const int4 *fragments = b + ((long)max(expert, 0) * tiles + tile) * sizes->chunks * FRAGMENT;
    int scaleRows = (sizes->rows + sizes->rowsPerScale - 1) / sizes->rowsPerScale;
    int rowOfWeights = min(16 * tile + weightRow(), sizes->rows - 1);
    Sums sums = 0;
    float total[REGS] = {0};
#pragma unroll(HALVES ? 2 : 4)
    for (int c = wave(); c < chunks; c += GROUP / WAVE) {
        int4 pieces[LOADS];
        half2 offsets[STEPS];
        loadWeights(pieces, fragments + (long)c * FRAGMENT);
        loadOffsets(offsets, aScales, expert, c, rowOfWeights, sizes);
#pragma unroll
        for (int step = 0; step < STEPS; step++) {
            Factor w[PER_STEP];
            factors(w, pieces, step, offsets);
#pragma unroll
            for (int m = 0; m < PER_STEP; m++) {
#define GLOBAL(j) from[PIECES * c + piece(j)]
#define REST(j) from[PIECES * (sizes->chunks + c) + piece(j)]
                sums = multiply(w[m], FACTOR(step * PER_STEP + m, GLOBAL), sums);
#if HALVES
                sums = multiply(w[m], FACTOR(step * PER_STEP + m, REST), sums);
#endif
            }
            if (GROUPED) {
                int group = groupOf(c * STEPS + step, sizes);
                scaled(total, sums, HALVES ? 1 : aScales[row * sizes->groups + group],
                       bScales + ((long)expert * sizes->groups + group) * scaleRows, 16 * tile + REGS * (lane() / 16),
                       sizes->rows, sizes->rowsPerScale);
                sums = 0;
            }
        }
    }
    for (int r = 0; r < REGS; r += 4) {
        int4 four;
        for (int i = 0; i < 4; i++) {
            four[i] = GROUPED ? as_int(total[r + i]) : *(int *)&(Sum){sums[r + i]};
        }
        shared[wave() * FRAGMENT + lane() % 16 * 4 + (lane() / 16 * REGS + r) / 4] = four;
    }
}

// Fragments of weight rows that a wave has, and of pairs; pieces of activations of these.
#define FRAGMENTS (TILE_ROWS / 16 / (GROUP / WAVE))
#define SIXTEENS (TILE_PAIRS / 16)
#define SIXTEEN (16 * PIECES)

// What a wave has of its tile, and the scales that go with it where these change along k.
typedef struct {
    Sums sums[FRAGMENTS][SIXTEENS];
    float total[FRAGMENTS][SIXTEENS][REGS];
    float aScales[SIXTEENS];
    float bScales[FRAGMENTS][REGS];
} Tile;

// A step of a wave's tile; of the pairs the first 16 * live.
static __attribute__((always_inline)) void multiplyStep(Tile *tile, Factor w[FRAGMENTS][PER_STEP], int step,
                                                        __local const int4 *pairs, int live) {
#pragma unroll
    for (int s = 0; s < SIXTEENS; s++) {
        if (s < live) {
            __builtin_amdgcn_sched_barrier(0); // or all loads come first, for which there are not the registers
            Sums sums[FRAGMENTS];
            for (int f = 0; f < FRAGMENTS; f++) {
                sums[f] = GROUPED ? 0 : tile->sums[f][s];
            }
#pragma unroll
            for (int m = 0; m < PER_STEP; m++) {
#define LOCAL(j) pairs[s * SIXTEEN + place(lane() % 16, piece(j))]
                Factor x = FACTOR(step * PER_STEP + m, LOCAL);
#pragma unroll
                for (int f = 0; f < FRAGMENTS; f++) {
                    sums[f] = multiply(w[f][m], x, sums[f]);
                }
            }
            for (int f = 0; f < FRAGMENTS; f++) {
                for (int r = 0; GROUPED && r < REGS; r++) {
                    float *total = &tile->total[f][s][r];
                    float sum = HALVES ? sums[f][r] : sums[f][r] * tile->aScales[s];
                    *total = fma(sum, tile->bScales[f][r], *total);
                }
                tile->sums[f][s] = sums[f];
            }
        }
    }
}

// Pieces of a pair's chunk that each of two work-items copies: of every four two in a row, the second one's 2 further.
#define COPIES (PIECES / 2)
#define COPIED(i) ((i) / 2 * 4 + (i) % 2)

// Scales of the group that a step is of.
static void loadScales(float into[FRAGMENTS][REGS], __global const float *bScales, int expert, int step,
                       int rows[FRAGMENTS][REGS], const Sizes *sizes) {
    int scaleRows = (sizes->rows + sizes->rowsPerScale - 1) / sizes->rowsPerScale;
    __global const float *scales = bScales + ((long)expert * sizes->groups + groupOf(step, sizes)) * scaleRows;
    for (int f = 0; f < FRAGMENTS; f++) {
        for (int r = 0; r < REGS; r++) {
            into[f][r] = scales[(uint)rows[f][r]];
        }
    }
}

// Blocks of TILE_PAIRS: a group has TILE_ROWS weight rows. Weights go from memory to registers, a chunk ahead;
// activations through local memory, of which there is twice what a chunk takes.
static void tile(int block, int expert, int pairs, const Sizes *sizes, __global const int *sortedIds,
                 __global const int4 *a, __global const float *aScales, __global const int4 *b,
                 __global const float *bScales, __global const float *bias, __global const float *topkWeights,
                 __global float *out, __local int4 *shared) {
    int lid = get_local_id(0);
    int tiles = (sizes->rows + 15) / 16;
    int firstTile = get_group_id(0) * (TILE_ROWS / 16) + wave() * FRAGMENTS;
    int firstPlace = block * TILE_PAIRS;
    int chunks = expert >= 0 ? sizes->chunks : 0;
    int live = 0;
    for (int s = 0; s < SIXTEENS; s++) {
        live += sortedIds[firstPlace + 16 * s] < pairs;
    }
    int taken = sortedIds[firstPlace + lid / 2];
    int rowOfA = taken < pairs ? taken / sizes->pairsPerRow : 0; // a place that pads the block has any row
    __global const int4 *from = a + (long)rowOfA * ROW_PIECES(sizes->chunks) + lid % 2 * 2;
    __local int4 *into = shared + lid / 32 * SIXTEEN + place(lid / 2 % 16, lid % 2 * 2);
    __global const int4 *fragments[FRAGMENTS];
    for (int f = 0; f < FRAGMENTS; f++) {
        int one = min(firstTile + f, tiles - 1); // what is past the last one is multiplied, and not written
        fragments[f] = b + ((long)max(expert, 0) * tiles + one) * sizes->chunks * FRAGMENT;
    }
    Tile own;
    int rowsOfWeights[FRAGMENTS];
    int rowsOfScales[FRAGMENTS][REGS];
    for (int f = 0; f < FRAGMENTS; f++) {
        for (int s = 0; s < SIXTEENS; s++) {
            own.sums[f][s] = 0;
            for (int r = 0; r < REGS; r++) {
                own.total[f][s][r] = 0;
            }
        }
        rowsOfWeights[f] = min(16 * (firstTile + f) + weightRow(), sizes->rows - 1);
        for (int r = 0; r < REGS; r++) {
            int row = 16 * min(firstTile + f, tiles - 1) + REGS * (lane() / 16) + r;
            // With HALVES there is room behind the scales for those of rows that pad a tile.
            rowsOfScales[f][r] = HALVES ? row : min(row, sizes->rows - 1) / sizes->rowsPerScale;
        }
    }
#if GROUPED && !HALVES
    int rowsOfA[SIXTEENS];
    for (int s = 0; s < SIXTEENS; s++) {
        int pair = sortedIds[firstPlace + 16 * s + lane() % 16];
        rowsOfA[s] = pair < pairs ? pair / sizes->pairsPerRow : 0;
    }
#endif
    int4 next[FRAGMENTS][LOADS];
    half2 nextOffsets[FRAGMENTS][STEPS];
    float nextScales[FRAGMENTS][REGS];
    if (chunks > 0) {
        for (int f = 0; f < FRAGMENTS; f++) {
            loadWeights(next[f], fragments[f]);
            loadOffsets(nextOffsets[f], aScales, expert, 0, rowsOfWeights[f], sizes);
        }
        for (int i = 0; i < COPIES; i++) {
            into[16 * COPIED(i)] = from[COPIED(i)];
        }
#if GROUPED && HALVES
        loadScales(nextScales, bScales, expert, 0, rowsOfScales, sizes);
#endif
    }
    for (int c = 0; c < chunks; c++) {
        barrier(CLK_LOCAL_MEM_FENCE);
        int ahead = min(c + 1, chunks - 1); // past the last chunk it is the last again
        int4 pieces[FRAGMENTS][LOADS];
        half2 offsets[FRAGMENTS][STEPS];
        for (int f = 0; f < FRAGMENTS; f++) {
            for (int j = 0; j < LOADS; j++) {
                pieces[f][j] = next[f][j];
            }
            for (int step = 0; step < STEPS; step++) {
                offsets[f][step] = nextOffsets[f][step];
            }
            loadWeights(next[f], fragments[f] + (long)ahead * FRAGMENT);
            loadOffsets(nextOffsets[f], aScales, expert, ahead, rowsOfWeights[f], sizes);
        }
        int4 x[COPIES];
        for (int i = 0; i < COPIES; i++) {
            x[i] = from[PIECES * ahead + COPIED(i)];
        }
        int now = c % 2 * (SIXTEENS * SIXTEEN);
        int then = (c + 1) % 2 * (SIXTEENS * SIXTEEN);
#if GROUPED && !HALVES
        if (c % (sizes->group / CHUNK) == 0) {
            int group = groupOf(c, sizes);
            for (int s = 0; s < SIXTEENS; s++) {
                own.aScales[s] = aScales[rowsOfA[s] * sizes->groups + group];
            }
            loadScales(own.bScales, bScales, expert, c, rowsOfScales, sizes);
        }
#endif
#pragma unroll
        for (int step = 0; step < STEPS; step++) {
            Factor w[FRAGMENTS][PER_STEP];
            for (int f = 0; f < FRAGMENTS; f++) {
                factors(w[f], pieces[f], step, offsets[f]);
#if GROUPED && HALVES
                for (int r = 0; r < REGS; r++) {
                    own.bScales[f][r] = nextScales[f][r];
                }
#endif
            }
#if GROUPED && HALVES
            loadScales(nextScales, bScales, expert, c * STEPS + step + 1, rowsOfScales, sizes);
#endif
            if (live == SIXTEENS) {
                multiplyStep(&own, w, step, shared + now, SIXTEENS);
            } else {
                multiplyStep(&own, w, step, shared + now, live);
            }
        }
        for (int i = 0; i < COPIES; i++) {
            into[then + 16 * COPIED(i)] = x[i];
        }
    }
#pragma unroll
    for (int s = 0; s < SIXTEENS; s++) {
        int pair = sortedIds[firstPlace + 16 * s + lane() % 16];
        if (pair >= pairs) {
            continue;
        }
#if HALVES
        float aScale = scaleOf(a + (long)(pair / sizes->pairsPerRow) * ROW_PIECES(sizes->chunks), sizes->chunks);
#else
        float aScale = GROUPED ? 0 : aScales[pair / sizes->pairsPerRow];
#endif
#pragma unroll
        for (int f = 0; f < FRAGMENTS; f++) {
            int n = 16 * (firstTile + f) + REGS * (lane() / 16);
            float value[REGS];
#pragma unroll
            for (int r = 0; r < REGS; r++) {
                value[r] = 0;
                if (n + r < sizes->rows) {
                    if (expert >= 0) {
                        value[r] = GROUPED ? own.total[f][s][r] * (HALVES ? aScale : 1)
                                           : own.sums[f][s][r] * aScale * bScales[expert * sizes->rows + n + r];
                    }
                    value[r] = finished(value[r], expert, pair, n + r, sizes, bias, topkWeights);
                }
            }
            __global float *to = out + (long)pair * sizes->rows + n;
#pragma unroll
            for (int r = 0; r < REGS; r += 4) {
                if (sizes->rows % 4 == 0 && n + r < sizes->rows) {
                    *(__global float4 *)(to + r) = (float4)(value[r], value[r + 1], value[r + 2], value[r + 3]);
                } else {
                    for (int i = r; i < r + 4; i++) {
                        if (n + i < sizes->rows) {
                            to[i] = value[i];
                        }
                    }
                }
            }
        }
    }
}

#else

// One output: what the matrix cores' lanes have between them.
static float plain(int blockSize, int expert, int pair, int n, const Sizes *sizes, __global const uchar *a,
                   __global const float *aScales, __global const uchar *b, __global const float *bScales) {
    int tiles = (sizes->rows + 15) / 16;
    int scaleRows = (sizes->rows + sizes->rowsPerScale - 1) / sizes->rowsPerScale;
    __global const uchar *row = a + (long)(pair / sizes->pairsPerRow) * ROW_PIECES(sizes->chunks) * 16;
    float total = 0;
    for (int group = 0; group < sizes->groups; group++) {
        int end = group + 1 < sizes->groups ? (group + 1) * sizes->group : sizes->chunks * CHUNK;
        int scale = (expert * sizes->groups + group) * scaleRows + n / sizes->rowsPerScale;
        Sum sum = 0;
        for (int k = group * sizes->group; k < end; k++) {
            __global const uchar *fragment =
                b + (((long)expert * tiles + n / 16) * sizes->chunks + k / CHUNK) * (16 * FRAGMENT) + n % 16 * 16;
#if HALVES
            float w = fragment[k / 4 % 4 * 256 + k / 16 % 4 * 4 + k % 4] - 128.0f - (ZEROS ? aScales[scale] : 0.0f);
            float x = vload_half(k, (__global const half *)row);
            if (blockSize == FEW_PAIRS) {
                x += vload_half(sizes->chunks * CHUNK + k, (__global const half *)row);
            }
            sum += w * x;
#else
            sum += (char)fragment[k / 16 % 4 * 256 + k % 16] * (char)row[k];
#endif
        }
#if HALVES
        total += sum * bScales[scale];
#else
        total += sum * aScales[pair / sizes->pairsPerRow * sizes->groups + group] * bScales[scale];
#endif
    }
#if HALVES
    return total * scaleOf((__global const int4 *)row, sizes->chunks);
#else
    return total;
#endif
}

#endif

// out[p][n] = sum * aScales[row(p)] * bScales[e][n], from left to right, plus bias[e][n] if biased, times the pair's
// router weight if weighted. With groups of k the sum of such products, a group each. Grid: groups of GROUP; along y
// blocks of pairs, as the header says STREAM_PAIRS (not of halves), FEW_PAIRS or TILE_PAIRS; along x 16 or TILE_ROWS
// weight rows. With HALVES and sizes.packed, instead, out is the rows of aScales packed, those of key sortedIds[r] -1
// left out, times the router's weights if weighted; a group along x a row.
__kernel __attribute__((reqd_work_group_size(GROUP, 1, 1))) void amdGemm(PARAMETERS) {
#ifdef WAVE
    __local int4 shared[2 * TILE_PAIRS * PIECES];
#elif HALVES
    __local int4 shared[GROUP / 4];
#endif
    __global const int *header = INTS(header);
    __global const int *given = INTS(sizes);
    Sizes sizes = {given[0], given[1], given[2], given[3], given[4],  given[5],
                   given[6], given[7], given[8], given[9], given[10], given[11]};
    int pairs = header[0] * sizes.perHeader;
#if HALVES
    if (sizes.packed) {
        int r = get_group_id(0);
        if (r < pairs && !(sizes.keyed && INTS(sortedIds)[r] < 0)) {
            pack(r, &sizes, FLOATS(aScales), FLOATS(topkWeights), (__global int4 *)(outBytes + HEADER),
                 (__local uint *)shared);
        }
        return;
    }
#endif
    int blockSize = header[1];
    int block = get_group_id(1);
    // A first task of a graph that does nothing has no sizes; see AmdGemm.
    if (sizes.rows == 0 || block * blockSize >= INTS(padded)[0]) {
        return;
    }
    int expert = INTS(expertIds)[block];
    __global float *out = (__global float *)(outBytes + HEADER);
#ifdef WAVE
    __global const int4 *a = (__global const int4 *)INTS(a);
    __global const int4 *b = (__global const int4 *)(INTS(b) + sizes.lead);
    if (blockSize == TILE_PAIRS) {
        tile(block, expert, pairs, &sizes, INTS(sortedIds), a, FLOATS(aScales), b, FLOATS(bScales), FLOATS(bias),
             FLOATS(topkWeights), out, shared);
        return;
    }
    int slices = GROUP / WAVE;
    if (blockSize == FEW_PAIRS) {
        few(block, expert, pairs, &sizes, INTS(sortedIds), a, FLOATS(aScales), b, FLOATS(bScales), shared);
    } else {
#if !HALVES
        slices = GROUP / 16;
        bool one = INTS(sortedIds)[block * STREAM_PAIRS + 1] >= pairs;
        if (one) {
            stream(1, block, expert, pairs, &sizes, INTS(sortedIds), a, FLOATS(aScales), b, FLOATS(bScales),
                   (__local int *)shared);
        } else {
            stream(STREAM_PAIRS, block, expert, pairs, &sizes, INTS(sortedIds), a, FLOATS(aScales), b, FLOATS(bScales),
                   (__local int *)shared);
        }
#endif
    }
    finish(block, blockSize, slices, expert, pairs, &sizes, INTS(sortedIds), a, FLOATS(aScales), FLOATS(bScales),
           FLOATS(bias), FLOATS(topkWeights), out, shared);
#else
    int groupRows = blockSize == TILE_PAIRS ? TILE_ROWS : 16;
    for (int o = get_local_id(0); o < blockSize * groupRows; o += GROUP) {
        int pair = INTS(sortedIds)[block * blockSize + o / groupRows];
        int n = get_group_id(0) * groupRows + o % groupRows;
        if (pair < pairs && n < sizes.rows) {
            float value = expert < 0 ? 0
                                     : plain(blockSize, expert, pair, n, &sizes, (__global const uchar *)INTS(a),
                                             FLOATS(aScales), (__global const uchar *)(INTS(b) + sizes.lead),
                                             FLOATS(bScales));
            out[(long)pair * sizes.rows + n] =
                finished(value, expert, pair, n, &sizes, FLOATS(bias), FLOATS(topkWeights));
        }
    }
#endif
}
