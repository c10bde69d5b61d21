// What the expert GEMMs in CUDA C have in common, hopper-gemm.cu and mma-gemm.cu, which include this file: who comes first, the activations,
// and how a result is written. Both are compiled with
//
//     ACTIVATION  -1: out = the product; else a function of ActivationKernels: out = the activation of gate and up projection, and
//                 amax[pair] = the greatest magnitude of its row
//     LAYOUT      what a row of the product is, as ActivationKernels has it: 0 rows without a gate, 1 a half of the gate and one of the
//                 up projection, 2 these alternating
//     LEAD        bytes in front of what is in a and out, and of what the other kernels read and write, so that it begins at a multiple of 128
//     WEIGHTS_LEAD   likewise of b
//     PARTS       arrays that b is in, 1 to 8, of expertsOfPart experts each

// The numbers of ActivationKernels.
#define SILU 0
#define GELU 1
#define GELU_TANH 2
#define RELU2 3
#define SWIGLU_OAI 4
#define SWIGLU_STEP 5
#define SITU 6
#define NO_GATE 0
#define HALVES 1
#define ALTERNATING 2

// A name that isn't defined counts as 0 in a condition, which would be a function and a layout.
#if !defined(ACTIVATION) || !defined(LAYOUT)
#error "ACTIVATION and LAYOUT have to be defined"
#elif ACTIVATION < -1
#error "ACTIVATION: no function has this number"
#elif LAYOUT != NO_GATE && LAYOUT != HALVES && LAYOUT != ALTERNATING
#error "LAYOUT: no layout has this number"
#endif

#include "steps.cu"

// Where a product goes to, and through which activation.
struct Result {
    float *out;
    unsigned *amax;
    int columns;
    float limit, alpha, beta, linearBeta;
};

#define B1(type) type b0
#define B2(type) B1(type), type b1
#define B3(type) B2(type), type b2
#define B4(type) B3(type), type b3
#define B5(type) B4(type), type b4
#define B6(type) B5(type), type b5
#define B7(type) B6(type), type b6
#define B8(type) B7(type), type b7
#define JOIN_(x, y) x##y
#define JOIN(x, y) JOIN_(x, y)
#define EACH_B JOIN(B, PARTS)

// The weights of all experts, in tiles of TILE_GROUPS groups of 8 packed rows, of GROUP_BYTES for each chunk of k.
struct Weights {
    const u8 *b[PARTS];
    int groups, chunks, expertsOfPart;
};

__device__ __forceinline__ const u8 *tileStart(const Weights &m, int expert, int tile) {
    const u8 *b = m.b[0];
    int first = 0;
#pragma unroll
    for (int part = 1; part < PARTS; part++) {
        if (expert >= part * m.expertsOfPart) {
            b = m.b[part];
            first = part * m.expertsOfPart;
        }
    }
    return b + WEIGHTS_LEAD + ((u64) (expert - first) * m.groups + (u64) tile * TILE_GROUPS) * m.chunks * GROUP_BYTES;
}

__device__ __forceinline__ int groupsOf(const Weights &m, int tile) {
    int left = m.groups - tile * TILE_GROUPS;
    return left < TILE_GROUPS ? left : TILE_GROUPS;
}

// Blocks of pairs that are multiplied with the same weights one after the other, so that these stay in the L2 cache.
#define GROUP 8

// The lesser and the greater of two; no number where one of them is none, as minimum and maximum would have it only where both are.
__device__ __forceinline__ float lesser(float x, float y) {
    asm("min.NaN.f32 %0, %0, %1;" : "+f"(x) : "f"(y));
    return x;
}

__device__ __forceinline__ float greater(float x, float y) {
    asm("max.NaN.f32 %0, %0, %1;" : "+f"(x) : "f"(y));
    return x;
}

#if ACTIVATION >= 0
// Without a branch, so that the steps of neighbouring values overlap.
__device__ __forceinline__ float sigmoid(float x) {
    float power = x * -1.4426950408889634f;
    asm("ex2.approx.ftz.f32 %0, %0;" : "+f"(power));
    return __fdividef(1.0f, 1.0f + power);
}

__device__ __forceinline__ float activate(const Result &m, float gate, float up) {
    float g = lesser(gate, m.limit), u = lesser(greater(up, -m.limit), m.limit);
#if ACTIVATION == SILU
    return g * sigmoid(g) * u;
#elif ACTIVATION == GELU
    return gate * normcdff(gate) * up;
#elif ACTIVATION == GELU_TANH
    float x = fmaxf(fminf(gate, 20.0f), -20.0f);
    return gate * sigmoid(1.595769f * (x + 0.044715f * x * x * x)) * up;
#elif ACTIVATION == RELU2
    float positive = gate < 0.0f ? 0.0f : gate;
    return positive * positive * up;
#elif ACTIVATION == SWIGLU_OAI
    return g * sigmoid(m.alpha * g) * (u + m.beta);
#elif ACTIVATION == SWIGLU_STEP
    return lesser(gate * sigmoid(gate), m.limit) * u;
#elif ACTIVATION == SITU
    float linear = m.linearBeta == 0.0f ? up : m.linearBeta * tanhf(up / m.linearBeta);
    return m.beta * tanhf(gate / m.beta) * sigmoid(gate) * linear;
#else
#error "ACTIVATION: no function has this number"
#endif
}
#endif

// Which block and which tile of rows is the id-th: GROUP blocks at a time.
__device__ __forceinline__ void place(int id, int blocks, int tiles, int &block, int &tile) {
    int group = id / (GROUP * tiles), first = group * GROUP;
    int size = blocks - first < GROUP ? blocks - first : GROUP;
    int within = id - first * tiles;
    block = first + within % size;
    tile = within / size;
}

// Where values of a row of out go, from some column on, and how many columns there are left: none of a pair that isn't there.
struct Columns {
    float *out;
    int left;
};

// Of neighbouring twos of a pair's packed rows, from the first-th on: a row of the gate and the up projection's, or two rows.
__device__ __forceinline__ Columns columnsFrom(const Result &m, int pair, bool isThere, int first) {
    int columns = ACTIVATION < 0 && LAYOUT == HALVES ? m.columns / 2 : m.columns;
    int column = first * (LAYOUT == NO_GATE || ACTIVATION < 0 && LAYOUT != HALVES ? 2 : 1);
    return {m.out + (isThere ? (u64) pair * m.columns + column : 0), isThere ? columns - column : 0};
}

// N neighbouring values, the first of them in column c; columns: of a row, or of what in it lies together.
template <int N>
__device__ __forceinline__ void store(const Columns &row, int columns, int c, const float (&v)[N]) {
    float *out = row.out + c;
    if (N % 4 == 0 && columns % 4 == 0) {
#pragma unroll
        for (int i = 0; i + 3 < N; i += 4) {
            if (c + i < row.left) {
                *(float4 *) (out + i) = make_float4(v[i], v[i + 1], v[i + 2], v[i + 3]);
            }
        }
    } else if (N == 2 && columns % 2 == 0) {
        if (c < row.left) {
            *(float2 *) out = make_float2(v[0], v[N - 1]);
        }
    } else {
#pragma unroll
        for (int i = 0; i < N; i++) {
            if (c + i < row.left) {
                out[i] = v[i];
            }
        }
    }
}

// N neighbouring twos of packed rows, the at-th of those that the row's columns are of and the next ones. Gives the greatest magnitude of the
// activations, or of magnitude, which are 0 where a row is padding.
template <int N>
__device__ __forceinline__ float emit(const Result &m, const Columns &row, int at, float (&y)[2 * N], float weight, float magnitude) {
#if ACTIVATION >= 0
    constexpr int VALUES = LAYOUT ? N : 2 * N;
    float v[VALUES];
#pragma unroll
    for (int i = 0; i < VALUES; i++) {
        v[i] = LAYOUT ? activate(m, y[LAYOUT ? 2 * i : 0], y[LAYOUT ? 2 * i + 1 : 0]) : activate(m, y[i], 1.0f);
        magnitude = greater(fabsf(v[i]), magnitude);
    }
    store(row, m.columns, at * (LAYOUT ? 1 : 2), v);
#elif LAYOUT == HALVES
    float gate[N], up[N];
#pragma unroll
    for (int i = 0; i < N; i++) {
        gate[i] = y[2 * i];
        up[i] = y[2 * i + 1];
    }
    int half = m.columns / 2;
    store(row, half, at, gate);
    store({row.out + half, row.left}, half, at, up);
#else
#pragma unroll
    for (int i = 0; i < 2 * N; i++) {
        y[i] *= weight;
    }
    store(row, m.columns, 2 * at, y);
#endif
    return magnitude;
}

#if ACTIVATION >= 0
// The greatest magnitude of LANES neighbouring work-items' goes to amax, where they have such a pair.
template <int LANES>
__device__ __forceinline__ void tellMagnitude(unsigned *amax, int pair, bool isThere, float magnitude) {
#pragma unroll
    for (int s = LANES / 2; s > 0; s >>= 1) {
        magnitude = greater(magnitude, __shfl_xor_sync(0xffffffffu, magnitude, s));
    }
    if (threadIdx.x % LANES == 0 && isThere) {
        atomicMax(amax + pair, __float_as_uint(magnitude));
    }
}
#endif

struct __align__(16) Quad {
    unsigned x, y, z, w;
};

__device__ __forceinline__ Quad cached(const void *p) {
    Quad q;
    asm volatile("ld.global.v4.u32 {%0,%1,%2,%3}, [%4];" : "=r"(q.x), "=r"(q.y), "=r"(q.z), "=r"(q.w) : "l"(p));
    return q;
}

// Read where it stands, not where the compiler would: several of them are under way at once.
__device__ __forceinline__ int now(const int *p) {
    int x;
    asm volatile("ld.global.s32 %0, [%1];" : "=r"(x) : "l"(p));
    return x;
}

// ---- copies to shared memory and what is read there, for tiles

__device__ __forceinline__ void copy16(unsigned to, const void *from, int bytes) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(bytes) : "memory");
}

__device__ __forceinline__ void copy4(unsigned to, const void *from) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"(to), "l"(from) : "memory");
}

__device__ __forceinline__ Quad shared16(unsigned at) {
    Quad q;
    asm volatile("ld.shared.v4.u32 {%0,%1,%2,%3}, [%4];" : "=r"(q.x), "=r"(q.y), "=r"(q.z), "=r"(q.w) : "r"(at));
    return q;
}

__device__ __forceinline__ float shared4(unsigned at) {
    float x;
    asm volatile("ld.shared.f32 %0, [%1];" : "=f"(x) : "r"(at));
    return x;
}

__device__ __forceinline__ float2 shared8(unsigned at) {
    float2 x;
    asm volatile("ld.shared.v2.f32 {%0,%1}, [%2];" : "=f"(x.x), "=f"(x.y) : "r"(at));
    return x;
}

// ---- the steps after the first product

#if ACTIVATION >= 0
// What the GEMMs do with their sums, on a product that is there already, such as one that adapters were added to: the same
// bits. Nothing is done for a pair whose key is -1.
// Grid: a group of 128 a pair.
extern "C" __global__ void __launch_bounds__(128) activatePairs(
    const int *header, const int *keys, const float *product, float *out, unsigned *amax, int pairsPerToken, int columns, float limit,
    float alpha, float beta, float linearBeta) {
    afterPredecessor();
    int p = blockIdx.x;
    if (p >= header[0] * pairsPerToken || keys[p] < 0) {
        return;
    }
    Result m = {};
    m.out = out + LEAD / 4;
    m.columns = columns;
    m.limit = limit;
    m.alpha = alpha;
    m.beta = beta;
    m.linearBeta = linearBeta;
    const float *row = product + LEAD / 4 + (u64) p * columns * (LAYOUT ? 2 : 1);
    Columns to = columnsFrom(m, p, true, 0);
    float magnitude = 0.0f;
    for (int two = threadIdx.x; two < (LAYOUT ? columns : (columns + 1) / 2); two += 128) {
        float y[2];
#if LAYOUT == HALVES
        y[0] = row[two];
        y[1] = row[columns + two];
#else
        y[0] = row[2 * two];
        y[1] = LAYOUT == ALTERNATING || 2 * two + 1 < columns ? row[2 * two + 1] : 0.0f;
#endif
        magnitude = emit<1>(m, to, two, y, 1.0f, magnitude);
    }
    tellMagnitude<32>(amax, p, true, magnitude);
}
#endif

