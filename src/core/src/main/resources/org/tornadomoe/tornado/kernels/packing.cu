// How activations become what the expert GEMMs in CUDA C multiply: mma.cu includes this file for all its schemes, and hopper-gemm.cu where all rows
// have one scale. What FORM, BLOCKED, NEAREST and ONE_SCALE are mma.cu says; ROW_BYTES are those of 64 values in a packed row.

// What a row with this greatest magnitude is multiplied by to be packed, and its packed values by to be what they were. Infinite scales, beyond
// 1e30 and where a value is no number, make NaN of the row's sums.
__device__ __forceinline__ float scaleOf(unsigned bits, float &inverse) {
    float infinity = __uint_as_float(0x7f800000u);
#if FORM
    // So that the greatest is from 2^14 to 2^15.
    int exponent = (int) max(bits >> 23, 27u) - 127;
    inverse = bits > __float_as_uint(1e30f) ? 0.0f : __uint_as_float((127 + 14 - exponent) << 23);
    return bits > __float_as_uint(1e30f) ? infinity : __uint_as_float((127 + exponent - 14) << 23);
#else
    float magnitude = bits > __float_as_uint(1e30f) ? infinity : fmaxf(__uint_as_float(bits), 1e-10f);
    inverse = 127.0f / magnitude;
    return magnitude / 127.0f;
#endif
}

// Where four neighbouring values, from k on, are in a packed row.
__device__ __forceinline__ int placeOf(int k) {
    return (k & ~63) + (k & 12) * 4 + (k >> 4 & 3) * 4;
}

// Four values times inverse: a word of int8, or two of halves and two of the halves of what these leave.
struct Packed {
    unsigned words[FORM ? 4 : 1];
};

__device__ __forceinline__ Packed packed(const float (&x)[4], float inverse) {
    Packed four;
#if FORM
#pragma unroll
    for (int i = 0; i < 2; i++) {
        float low = __fmul_rn(x[2 * i], inverse), high = __fmul_rn(x[2 * i + 1], inverse);
        unsigned &halves = four.words[i], &rest = four.words[2 + i];
        asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(halves) : "f"(high), "f"(low));
        float lowHalf, highHalf;
        asm("{\n.reg .b16 l, h;\nmov.b32 {l, h}, %2;\ncvt.f32.f16 %0, l;\ncvt.f32.f16 %1, h;\n}" : "=f"(lowHalf), "=f"(highHalf) : "r"(halves));
        asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(rest) : "f"(high - highHalf), "f"(low - lowHalf));
    }
#else
    four.words[0] = 0;
#pragma unroll
    for (int i = 0; i < 4; i++) {
        four.words[0] |= ((int) roundf(__fmul_rn(x[i], inverse)) & 0xff) << 8 * i;
    }
#endif
    return four;
}

// Puts them where they are in a packed row, or, for wgmma's tiles, in their order.
__device__ __forceinline__ void pack(u8 *row, int chunks, int k, const float (&x)[4], float inverse, bool tiled = false) {
    Packed four = packed(x, inverse);
#if FORM
    if (tiled) {
        // Rests are not multiplied.
        unsigned *to = (unsigned *) (row + 2 * (k & ~15) + (k & 12));
        to[0] = four.words[0];
        to[4] = four.words[1];
    } else {
        *(uint2 *) (row + 2 * placeOf(k)) = make_uint2(four.words[0], four.words[1]);
        if (FORM == 2) {
            *(uint2 *) (row + chunks * 128 + 2 * placeOf(k)) = make_uint2(four.words[2], four.words[3]);
        }
    }
#else
    *(unsigned *) (row + (tiled ? k : placeOf(k))) = four.words[0];
#endif
}

__device__ __forceinline__ unsigned warpMax(unsigned bits) {
#pragma unroll
    for (int s = 16; s > 0; s >>= 1) {
        bits = max(bits, __shfl_xor_sync(0xffffffffu, bits, s));
    }
    return bits;
}

#if FORM == 0 && (BLOCKED || ONE_SCALE)
// Four values in int8, as x / scale is rounded by IEEE 754: to the nearest, of two the even one, or truncated.
__device__ __forceinline__ void packQuotients(u8 *row, int k, const float (&x)[4], float scale, bool nearest, bool tiled) {
    unsigned packed = 0;
#pragma unroll
    for (int i = 0; i < 4; i++) {
        float q = fminf(fmaxf(__fdiv_rn(x[i], scale), -128.0f), 127.0f);
        packed |= ((int) (nearest ? rintf(q) : truncf(q)) & 0xff) << 8 * i;
    }
    *(unsigned *) (row + (tiled ? k : placeOf(k))) = packed;
}
#endif

// values -> a and aScales. A row is a token's, times its pair's weight where weighted is 1, or a pair's, and then, with keyed 1, nothing is done
// where its key is -1. one: with ONE_SCALE the scale of all rows. amax [cleared] is 0 after it. Blocks of tiledFrom pairs and more are multiplied
// by wgmma.
// Grid: a group of 128 a row.
extern "C" __global__ void __launch_bounds__(128) packRows(
    const int *header, const int *keys, const float *topkWeights, const float *values, const float *one, u8 *a, float *aScales, unsigned *amax,
    int rowsPerToken, int columns, int chunks, int groupsOfK, int kOfGroup, int keyed, int weighted, int clearedPerToken, int tiledFrom) {
    __shared__ unsigned greatest[4];
    afterPredecessor();
    int rows = header[0] * rowsPerToken, r = blockIdx.x, warp = threadIdx.x >> 5, lane = threadIdx.x & 31;
#if BLOCKED && STEP == 128
    // Tiles of 128 pairs have pairs and weights in the same order.
    bool tiled = header[1] >= tiledFrom && header[1] < 128;
#else
    bool tiled = header[1] >= tiledFrom;
#endif
    for (int p = r * 128 + threadIdx.x; p < header[0] * clearedPerToken; p += gridDim.x * 128) {
        amax[p] = 0;
    }
    if (r >= rows || (keyed && keys[r] < 0)) {
        return;
    }
    const float *row = values + (keyed ? LEAD / 4 : 0) + (u64) (weighted ? r / rowsPerToken : r) * columns;
    float weight = weighted ? topkWeights[r] : 1.0f;
    u8 *to = a + LEAD + (u64) r * (chunks * ROW_BYTES);
    auto load = [&](float(&x)[4], int k) { load4(x, row, k, columns, weight); };
    auto magnitude = [&](const float(&x)[4]) {
        unsigned bits = 0;
#pragma unroll
        for (int i = 0; i < 4; i++) {
            bits = max(bits, __float_as_uint(fabsf(x[i])));
        }
        return bits;
    };
#if BLOCKED
    for (int group = warp; group * kOfGroup < chunks * 64; group += 4) {
        int first = group * kOfGroup, end = min(first + kOfGroup, chunks * 64);
        unsigned bits = __float_as_uint(1e-10f);
        for (int k = first + 4 * lane; k < end; k += 128) {
            float x[4];
            load(x, k);
            bits = max(bits, magnitude(x));
        }
        bits = warpMax(bits);
        // Beyond 1e30, or no number: the sums are none, either.
        bool beyond = bits > __float_as_uint(1e30f);
        float scale = beyond ? __uint_as_float(0x7fc00000u) : __fdiv_rn(__uint_as_float(bits), 127.0f);
        for (int k = first + 4 * lane; k < end; k += 128) {
            float x[4];
            load(x, k);
            packQuotients(to, k, x, beyond ? 1e30f : scale, NEAREST, tiled);
        }
        if (lane == 0 && group < groupsOfK) {
            aScales[(u64) r * groupsOfK + group] = scale;
        }
    }
#elif ONE_SCALE
    float scale = one[0];
    bool beyond = false;
    for (int k = 4 * threadIdx.x; k < chunks * 64; k += 512) {
        float x[4];
        load(x, k);
        beyond = beyond || magnitude(x) > __float_as_uint(1e30f);
        packQuotients(to, k, x, scale, true, tiled);
    }
    beyond = __syncthreads_or(beyond);
    if (threadIdx.x == 0) {
        aScales[r] = beyond ? __uint_as_float(0x7fc00000u) : scale;
    }
#else
    // What is read first is kept for the second time.
    constexpr int KEPT = 8;
    float kept[KEPT][4];
    unsigned bits = 0;
#pragma unroll
    for (int i = 0; i < KEPT; i++) {
        load(kept[i], 4 * (threadIdx.x + 128 * i));
    }
#pragma unroll
    for (int i = 0; i < KEPT; i++) {
        bits = max(bits, magnitude(kept[i]));
    }
    for (int k = 4 * (threadIdx.x + 128 * KEPT); k < columns; k += 512) {
        float x[4];
        load(x, k);
        bits = max(bits, magnitude(x));
    }
    bits = warpMax(bits);
    if (lane == 0) {
        greatest[warp] = bits;
    }
    __syncthreads();
#pragma unroll
    for (int w = 0; w < 4; w++) {
        bits = max(bits, greatest[w]);
    }
    float inverse, scale = scaleOf(bits, inverse);
#pragma unroll
    for (int i = 0; i < KEPT; i++) {
        int k = 4 * (threadIdx.x + 128 * i);
        if (k < chunks * 64) {
            pack(to, chunks, k, kept[i], inverse, tiled);
        }
    }
    for (int k = 4 * (threadIdx.x + 128 * KEPT); k < chunks * 64; k += 512) {
        float x[4];
        load(x, k);
        pack(to, chunks, k, x, inverse, tiled);
    }
    if (threadIdx.x == 0) {
        aScales[r] = scale;
    }
#endif
}

#if ONE_SCALE
// The greatest magnitude of each row as packRows multiplies it, 0 of one that isn't there; infinite beyond 1e30 or of no number.
// Grid: a group of 128 a row.
extern "C" __global__ void __launch_bounds__(128) rowMagnitudes(
    const int *header, const int *keys, const float *topkWeights, const float *values, float *magnitudes, int rowsPerToken, int columns,
    int keyed, int weighted) {
    __shared__ unsigned greatest[4];
    afterPredecessor();
    int r = blockIdx.x;
    if (r >= header[0] * rowsPerToken) {
        return;
    }
    const float *row = values + (keyed ? LEAD / 4 : 0) + (u64) (weighted ? r / rowsPerToken : r) * columns;
    float weight = weighted ? topkWeights[r] : 1.0f;
    unsigned bits = 0;
    for (int k = 4 * threadIdx.x; k < (keyed && keys[r] < 0 ? 0 : columns); k += 512) {
        float x[4];
        load4(x, row, k, columns);
#pragma unroll
        for (int i = 0; i < 4; i++) {
            bits = max(bits, __float_as_uint(fabsf(__fmul_rn(x[i], weight))));
        }
    }
    bits = warpMax(bits);
    if ((threadIdx.x & 31) == 0) {
        greatest[threadIdx.x >> 5] = bits;
    }
    __syncthreads();
    if (threadIdx.x == 0) {
#pragma unroll
        for (int w = 0; w < 4; w++) {
            bits = max(bits, greatest[w]);
        }
        magnitudes[r] = __uint_as_float(min(bits, 0x7f800000u));
    }
}

// The one scale of all rows, max(greatest / 127, 1e-10), of what is at most 1e30: a row beyond is NaN, and the others as without it.
// Grid: a group of 1024.
extern "C" __global__ void __launch_bounds__(1024) tensorScale(const int *header, const float *magnitudes, float *scale, int rowsPerToken) {
    __shared__ unsigned greatest[32];
    afterPredecessor();
    unsigned bits = 0;
    for (int r = threadIdx.x; r < header[0] * rowsPerToken; r += 1024) {
        unsigned own = __float_as_uint(magnitudes[r]);
        bits = max(bits, own > __float_as_uint(1e30f) ? 0 : own);
    }
    bits = warpMax(bits);
    if ((threadIdx.x & 31) == 0) {
        greatest[threadIdx.x >> 5] = bits;
    }
    __syncthreads();
    if (threadIdx.x < 32) {
        bits = warpMax(greatest[threadIdx.x]);
        if (threadIdx.x == 0) {
            scale[0] = fmaxf(__fdiv_rn(__uint_as_float(bits), 127.0f), 1e-10f);
        }
    }
}
#endif
