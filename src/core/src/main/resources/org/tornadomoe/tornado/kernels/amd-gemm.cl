// The experts' int8 matrix products on AMD's matrix cores: WMMA of RDNA3 and RDNA4 (waves of 32), MFMA of CDNA2 and
// CDNA3 (waves of 64). A prebuilt task of TornadoVM's OpenCL backend; AmdGemm launches it, AmdWeights has the order of
// the weights. For other compilers the same product is here in plain C, one multiplication after the other, so that
// what is around the instructions can be tested without them; no layer is loaded with that.
//
// A fragment is 16 rows of 64 k: 1 KB in 64 pieces of 16 bytes, piece p of a row (k 16p to 16p + 15) at 16p + row. A
// lane holds LOADS pieces. Which k an instruction takes of them is nothing to the sum, as both factors have the same
// order. In what comes out a lane has one pair, that of its number modulo 16, and REGS weight rows in a row, so that
// it writes 16 bytes at once.

#pragma OPENCL FP_CONTRACT OFF

// First bytes of an array are TornadoVM's.
#define HEADER 16
#define GROUP 256
#define TILE_PAIRS 128
#define TILE_ROWS 128
#define FEW_PAIRS 16
#define CHUNK 64
#define FRAGMENT 64

// Whether scales change along k: 1 where a layer has blocks.
#ifndef GROUPED
#define GROUPED 0
#endif

#if defined(__gfx942__) || defined(__gfx950__) || defined(__gfx940__) || defined(__gfx941__)
#define WAVE 64
#define REGS 4
#define LOADS 1
typedef int4 Sums;
static Sums multiply(int4 a, int4 b, Sums sums) {
    sums = __builtin_amdgcn_mfma_i32_16x16x32_i8(as_long(a.lo), as_long(b.lo), sums, 0, 0, 0);
    return __builtin_amdgcn_mfma_i32_16x16x32_i8(as_long(a.hi), as_long(b.hi), sums, 0, 0, 0);
}
#elif defined(__gfx90a__) || defined(__gfx908__)
#define WAVE 64
#define REGS 4
#define LOADS 1
typedef int4 Sums;
static Sums multiply(int4 a, int4 b, Sums sums) {
    sums = __builtin_amdgcn_mfma_i32_16x16x16i8(a.x, b.x, sums, 0, 0, 0);
    sums = __builtin_amdgcn_mfma_i32_16x16x16i8(a.y, b.y, sums, 0, 0, 0);
    sums = __builtin_amdgcn_mfma_i32_16x16x16i8(a.z, b.z, sums, 0, 0, 0);
    return __builtin_amdgcn_mfma_i32_16x16x16i8(a.w, b.w, sums, 0, 0, 0);
}
#elif defined(__GFX12__)
#define WAVE 32
#define REGS 8
#define LOADS 2
typedef int8 Sums;
static Sums multiply(int4 a, int4 b, Sums sums) {
    sums = __builtin_amdgcn_wmma_i32_16x16x16_iu8_w32_gfx12(true, a.lo, true, b.lo, sums, false);
    return __builtin_amdgcn_wmma_i32_16x16x16_iu8_w32_gfx12(true, a.hi, true, b.hi, sums, false);
}
#elif defined(__GFX11__)
#define WAVE 32
#define REGS 8
#define LOADS 4
typedef int8 Sums;
static Sums multiply(int4 a, int4 b, Sums sums) {
    return __builtin_amdgcn_wmma_i32_16x16x16_iu8_w32(true, a, true, b, sums, false);
}
#elif defined(__AMDGCN__)
#error "no int8 matrix cores that these kernels know"
#endif

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
    int perHeader;    // pairs that an element of the header stands for
    int pairsPerRow;  // pairs that have the same row of a
    int rows;         // of the weights
    int chunks;       // of 64 k
    int weighted;     // 1 to multiply by the router's weights
    int biased;       // 1 to add the expert's bias
    int lead;         // ints in front of the weights
    int groupChunks;  // chunks that have a scale in common; 0 where a row has one scale
    int rowsPerScale; // weight rows that have a scale in common
} Sizes;

// What a sum, or with groups the sum of scaled ones, comes to.
static float finished(float value, int expert, int pair, int n, const Sizes *sizes, __global const float *bias,
                      __global const float *topkWeights) {
    if (sizes->biased && expert >= 0) {
        value += bias[expert * sizes->rows + n];
    }
    return sizes->weighted ? value * topkWeights[pair] : value;
}

#ifdef WAVE

static int lane(void) {
    return get_local_id(0) % WAVE;
}

// The number of the wave, the same for all its lanes as the compiler sees it.
static int wave(void) {
    return __builtin_amdgcn_readfirstlane((int)get_local_id(0) / WAVE);
}

// Of a fragment, in pieces of 16 bytes, what this lane loads j-th.
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
        into[j] = fragment[16 * piece(j) + weightRow()];
    }
}

// Where a piece of 16 rows of activations is in local memory: rows are turned so that neither those who write four
// pieces of a row nor those who read a piece of sixteen rows meet in a bank.
static int place(int row, int p) {
    return 16 * p + ((row + 2 * p) & 15);
}

static void scaled(float *into, Sums sums, float aScale, __global const float *bScales, int n, int rows,
                   int rowsPerScale) {
    for (int r = 0; r < REGS; r++) {
        int row = min(n + r, rows - 1);
        into[r] = fma(sums[r] * aScale, bScales[row / rowsPerScale], into[r]);
    }
}

// Blocks of FEW_PAIRS: a group has 16 weight rows, its waves take chunks in turn.
static void few(int block, int expert, int pairs, const Sizes *sizes, __global const int *sortedIds,
                __global const int4 *a, __global const float *aScales, __global const int4 *b,
                __global const float *bScales, __global const float *bias, __global const float *topkWeights,
                __global float *out, __local int4 *shared) {
    int tiles = (sizes->rows + 15) / 16;
    int tile = get_group_id(0);
    int own = sortedIds[block * FEW_PAIRS + lane() % 16];
    int row = own < pairs ? own / sizes->pairsPerRow : 0; // a place that pads the block; its sum is thrown away
    int chunks = expert >= 0 ? sizes->chunks : 0;
    __global const int4 *from = a + (long)row * sizes->chunks * 4;
    __global const int4 *fragments = b + ((long)max(expert, 0) * tiles + tile) * sizes->chunks * FRAGMENT;
    int groups = GROUPED ? (sizes->chunks + sizes->groupChunks - 1) / sizes->groupChunks : 1;
    int scaleRows = (sizes->rows + sizes->rowsPerScale - 1) / sizes->rowsPerScale;
    Sums sums = 0;
    float total[REGS] = {0};
#pragma unroll 4
    for (int c = wave(); c < chunks; c += GROUP / WAVE) {
        int4 w[LOADS];
        loadWeights(w, fragments + (long)c * FRAGMENT);
        for (int j = 0; j < LOADS; j++) {
            sums = multiply(w[j], from[4 * c + piece(j)], sums);
        }
        if (GROUPED) {
            int group = c / sizes->groupChunks;
            scaled(total, sums, aScales[row * groups + group],
                   bScales + ((long)expert * groups + group) * scaleRows, 16 * tile + REGS * (lane() / 16), sizes->rows,
                   sizes->rowsPerScale);
            sums = 0;
        }
    }
    for (int r = 0; r < REGS; r += 4) {
        int4 four = (int4)(sums[r], sums[r + 1], sums[r + 2], sums[r + 3]);
        if (GROUPED) {
            four = (int4)(as_int(total[r]), as_int(total[r + 1]), as_int(total[r + 2]), as_int(total[r + 3]));
        }
        shared[wave() * FRAGMENT + lane() % 16 * 4 + (lane() / 16 * REGS + r) / 4] = four;
    }
    barrier(CLK_LOCAL_MEM_FENCE);
    // As many work-items as outputs: each has a pair and a weight row.
    int lid = get_local_id(0);
    int pair = sortedIds[block * FEW_PAIRS + lid / 16];
    int n = 16 * tile + lid % 16;
    if (pair >= pairs || n >= sizes->rows) {
        return;
    }
    float value = 0;
    if (GROUPED) {
        for (int w = 0; w < GROUP / WAVE; w++) {
            value += as_float(((__local int *)shared)[w * 4 * FRAGMENT + lid]);
        }
    } else {
        int sum = 0;
        for (int w = 0; w < GROUP / WAVE; w++) {
            sum += ((__local int *)shared)[w * 4 * FRAGMENT + lid];
        }
        if (expert >= 0) {
            value = sum * aScales[pair / sizes->pairsPerRow] * bScales[expert * sizes->rows + n];
        }
    }
    out[(long)pair * sizes->rows + n] = finished(value, expert, pair, n, sizes, bias, topkWeights);
}

// Fragments of weight rows that a wave has, and of pairs.
#define FRAGMENTS (TILE_ROWS / 16 / (GROUP / WAVE))
#define SIXTEENS (TILE_PAIRS / 16)

// What a wave has of its tile, and the scales that go with it where these change along k.
typedef struct {
    Sums sums[FRAGMENTS][SIXTEENS];
    float total[FRAGMENTS][SIXTEENS][REGS];
    float aScales[SIXTEENS];
    float bScales[FRAGMENTS][REGS];
} Tile;

// A chunk of a wave's tile; of the pairs the first 16 * live.
static __attribute__((always_inline)) void multiplyChunk(Tile *tile, int4 w[FRAGMENTS][LOADS],
                                                         __local const int4 *pairs, int live) {
#pragma unroll
    for (int s = 0; s < SIXTEENS; s++) {
        if (s < live) {
            Sums sums[FRAGMENTS];
            for (int f = 0; f < FRAGMENTS; f++) {
                sums[f] = GROUPED ? 0 : tile->sums[f][s];
            }
#pragma unroll
            for (int j = 0; j < LOADS; j++) {
                int4 x = pairs[s * FRAGMENT + place(lane() % 16, piece(j))];
#pragma unroll
                for (int f = 0; f < FRAGMENTS; f++) {
                    sums[f] = multiply(w[f][j], x, sums[f]);
                }
            }
            for (int f = 0; f < FRAGMENTS; f++) {
                for (int r = 0; GROUPED && r < REGS; r++) {
                    float *total = &tile->total[f][s][r];
                    *total = fma(sums[f][r] * tile->aScales[s], tile->bScales[f][r], *total);
                }
                tile->sums[f][s] = sums[f];
            }
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
    // Two work-items have a pair's row, half a chunk each.
    int taken = sortedIds[firstPlace + lid / 2];
    int rowOfA = taken < pairs ? taken / sizes->pairsPerRow : 0; // a place that pads the block has any row
    __global const int4 *from = a + (long)rowOfA * sizes->chunks * 4 + lid % 2 * 2;
    __local int4 *into0 = shared + lid / 32 * FRAGMENT + place(lid / 2 % 16, lid % 2 * 2);
    __local int4 *into1 = shared + lid / 32 * FRAGMENT + place(lid / 2 % 16, lid % 2 * 2 + 1);
    __global const int4 *fragments[FRAGMENTS];
    for (int f = 0; f < FRAGMENTS; f++) {
        int one = min(firstTile + f, tiles - 1); // what is past the last one is multiplied, and not written
        fragments[f] = b + ((long)max(expert, 0) * tiles + one) * sizes->chunks * FRAGMENT;
    }
    int groups = GROUPED ? (sizes->chunks + sizes->groupChunks - 1) / sizes->groupChunks : 1;
    int scaleRows = (sizes->rows + sizes->rowsPerScale - 1) / sizes->rowsPerScale;
    Tile own;
    int rowsOfA[SIXTEENS];
    int rowsOfScales[FRAGMENTS][REGS];
    for (int f = 0; f < FRAGMENTS; f++) {
        for (int s = 0; s < SIXTEENS; s++) {
            own.sums[f][s] = 0;
            for (int r = 0; r < REGS; r++) {
                own.total[f][s][r] = 0;
            }
        }
        for (int r = 0; r < REGS; r++) {
            rowsOfScales[f][r] = min(16 * (firstTile + f) + REGS * (lane() / 16) + r, sizes->rows - 1)
                / sizes->rowsPerScale;
        }
    }
    for (int s = 0; s < SIXTEENS; s++) {
        int pair = sortedIds[firstPlace + 16 * s + lane() % 16];
        rowsOfA[s] = pair < pairs ? pair / sizes->pairsPerRow : 0;
    }
    int4 w[FRAGMENTS][LOADS];
    if (chunks > 0) {
        for (int f = 0; f < FRAGMENTS; f++) {
            loadWeights(w[f], fragments[f]);
        }
        *into0 = from[0];
        *into1 = from[1];
    }
    for (int c = 0; c < chunks; c++) {
        barrier(CLK_LOCAL_MEM_FENCE);
        int ahead = min(c + 1, chunks - 1); // past the last chunk it is the last again
        int4 next[FRAGMENTS][LOADS];
        for (int f = 0; f < FRAGMENTS; f++) {
            loadWeights(next[f], fragments[f] + (long)ahead * FRAGMENT);
        }
        int4 x0 = from[4 * ahead];
        int4 x1 = from[4 * ahead + 1];
        int half0 = c % 2 * (SIXTEENS * FRAGMENT);
        int half1 = (c + 1) % 2 * (SIXTEENS * FRAGMENT);
        if (GROUPED && c % sizes->groupChunks == 0) {
            int group = c / sizes->groupChunks;
            for (int s = 0; s < SIXTEENS; s++) {
                own.aScales[s] = aScales[rowsOfA[s] * groups + group];
            }
            for (int f = 0; f < FRAGMENTS; f++) {
                for (int r = 0; r < REGS; r++) {
                    own.bScales[f][r] = bScales[((long)expert * groups + group) * scaleRows + rowsOfScales[f][r]];
                }
            }
        }
        if (live == SIXTEENS) {
            multiplyChunk(&own, w, shared + half0, SIXTEENS);
        } else {
            multiplyChunk(&own, w, shared + half0, live);
        }
        into0[half1] = x0;
        into1[half1] = x1;
        for (int f = 0; f < FRAGMENTS; f++) {
            for (int j = 0; j < LOADS; j++) {
                w[f][j] = next[f][j];
            }
        }
    }
#pragma unroll
    for (int s = 0; s < SIXTEENS; s++) {
        int pair = sortedIds[firstPlace + 16 * s + lane() % 16];
        if (pair >= pairs) {
            continue;
        }
        float aScale = GROUPED ? 0 : aScales[pair / sizes->pairsPerRow];
#pragma unroll
        for (int f = 0; f < FRAGMENTS; f++) {
            int n = 16 * (firstTile + f) + REGS * (lane() / 16);
            float value[REGS];
#pragma unroll
            for (int r = 0; r < REGS; r++) {
                value[r] = 0;
                if (n + r < sizes->rows) {
                    if (GROUPED) {
                        value[r] = own.total[f][s][r];
                    } else if (expert >= 0) {
                        value[r] = own.sums[f][s][r] * aScale * bScales[expert * sizes->rows + n + r];
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
static float plain(int expert, int pair, int n, const Sizes *sizes, __global const char *a,
                   __global const float *aScales, __global const char *b, __global const float *bScales) {
    int tiles = (sizes->rows + 15) / 16;
    int row = pair / sizes->pairsPerRow;
    int groupChunks = GROUPED ? sizes->groupChunks : sizes->chunks;
    int groups = (sizes->chunks + groupChunks - 1) / groupChunks;
    int scaleRows = (sizes->rows + sizes->rowsPerScale - 1) / sizes->rowsPerScale;
    float total = 0;
    for (int group = 0; group < groups; group++) {
        int sum = 0;
        for (int c = group * groupChunks; c < min(sizes->chunks, (group + 1) * groupChunks); c++) {
            __global const char *fragment =
                b + (((long)expert * tiles + n / 16) * sizes->chunks + c) * (16 * FRAGMENT);
            for (int k = 0; k < CHUNK; k++) {
                sum += fragment[k / 16 * 256 + n % 16 * 16 + k % 16] * a[((long)row * sizes->chunks + c) * CHUNK + k];
            }
        }
        total += sum * aScales[row * groups + group]
            * bScales[((long)expert * groups + group) * scaleRows + n / sizes->rowsPerScale];
    }
    return total;
}

#endif

// out[p][n] = sum * aScales[row(p)] * bScales[e][n], from left to right, plus bias[e][n] if biased, times the pair's
// router weight if weighted. With groups of k the sum of such products, a group each. Grid: groups of GROUP; along y
// blocks of pairs, as the header says FEW_PAIRS or TILE_PAIRS; along x 16 or TILE_ROWS weight rows.
__kernel __attribute__((reqd_work_group_size(GROUP, 1, 1))) void amdGemm(PARAMETERS) {
#ifdef WAVE
    __local int4 shared[2 * TILE_PAIRS / 16 * FRAGMENT];
#endif
    __global const int *header = INTS(header);
    __global const int *given = INTS(sizes);
    Sizes sizes = {given[0], given[1], given[2], given[3], given[4], given[5], given[6], given[7], given[8]};
    int pairs = header[0] * sizes.perHeader;
    int blockSize = header[1];
    int block = get_group_id(1);
    // A first task of a graph that does nothing has no sizes; see AmdGemm.
    if (sizes.rows == 0 || block * blockSize >= INTS(padded)[0]) {
        return;
    }
    int expert = INTS(expertIds)[block];
    __global float *out = (__global float *)(outBytes + HEADER);
#ifdef WAVE
    __global const int4 *b = (__global const int4 *)(INTS(b) + sizes.lead);
    if (blockSize == FEW_PAIRS) {
        few(block, expert, pairs, &sizes, INTS(sortedIds), (__global const int4 *)INTS(a), FLOATS(aScales), b,
            FLOATS(bScales), FLOATS(bias), FLOATS(topkWeights), out, shared);
    } else {
        tile(block, expert, pairs, &sizes, INTS(sortedIds), (__global const int4 *)INTS(a), FLOATS(aScales), b,
             FLOATS(bScales), FLOATS(bias), FLOATS(topkWeights), out, shared);
    }
#else
    int groupRows = blockSize == FEW_PAIRS ? 16 : TILE_ROWS;
    for (int o = get_local_id(0); o < blockSize * groupRows; o += GROUP) {
        int pair = INTS(sortedIds)[block * blockSize + o / groupRows];
        int n = get_group_id(0) * groupRows + o % groupRows;
        if (pair < pairs && n < sizes.rows) {
            float value = expert < 0 ? 0
                                     : plain(expert, pair, n, &sizes, (__global const char *)INTS(a), FLOATS(aScales),
                                             (__global const char *)(INTS(b) + sizes.lead), FLOATS(bScales));
            out[(long)pair * sizes.rows + n] =
                finished(value, expert, pair, n, &sizes, FLOATS(bias), FLOATS(topkWeights));
        }
    }
#endif
}
