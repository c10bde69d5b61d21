// What is around the expert GEMMs of hopper-gemm.cu, for Hopper: router, alignment, quantiser, sum. CudaLibrary compiles it with
// NVRTC; LEAD is as in hopper-gemm.cu. What each kernel computes is what its namesake of the Java kernels does, and RouterKernels, AlignKernels, QuantizeKernels
// and CombineKernels say it in full: here is only what is different. A token gets the same bits whatever the other tokens are.
//
// Every kernel may be launched before the one in front of it is through (programmatic dependent launch), and waits for it itself.

typedef unsigned char u8;
typedef unsigned long long u64;

#define ALL 0xffffffffu
#define LAST (-3.402823466e38f)
#define LARGEST 3.402823466e38f

__device__ __forceinline__ void afterPredecessor() {
    asm volatile("griddepcontrol.wait;" ::: "memory");
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
}

// Four values from column c, 0 beyond the last; a row need not begin at a multiple of 16 bytes.
__device__ __forceinline__ void load4(float (&x)[4], const float *row, int c, int columns) {
    if (columns % 4 == 0) {
        float4 v = c < columns ? *(const float4 *) (row + c) : make_float4(0.0f, 0.0f, 0.0f, 0.0f);
        x[0] = v.x;
        x[1] = v.y;
        x[2] = v.z;
        x[3] = v.w;
    } else {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            x[i] = c + i < columns ? row[c + i] : 0.0f;
        }
    }
}

// ---- logits

// T tokens times R rows of the router by a warp. Lane s has the k with k / 8 % 32 = s and adds their products up in order; then the 32
// sums are added up in order. That is the same for every T and R.
template <int T, int R>
__device__ __forceinline__ void logitsOf(float *sums, int unit, int lane, int tokens, const float *hidden, const float *router,
                                         const float *bias, float *logits, int h, int rows) {
    int across = (rows + R - 1) / R, token = unit / across * T, row = unit % across * R;
    if (token >= tokens) {
        return;
    }
    float acc[T][R] = {};
    for (int k = lane * 8; k < h; k += 256) {
#pragma unroll
        for (int half = 0; half < 8; half += 4) {
            float w[R][4];
#pragma unroll
            for (int r = 0; r < R; r++) {
                load4(w[r], router + (u64) min(row + r, rows - 1) * h, k + half, h);
            }
#pragma unroll
            for (int t = 0; t < T; t++) {
                float x[4];
                load4(x, hidden + (u64) min(token + t, tokens - 1) * h, k + half, h);
#pragma unroll
                for (int r = 0; r < R; r++) {
#pragma unroll
                    for (int i = 0; i < 4; i++) {
                        acc[t][r] = __fmaf_rn(x[i], w[r][i], acc[t][r]);
                    }
                }
            }
        }
    }
#pragma unroll
    for (int o = 0; o < T * R; o++) {
        sums[o * 33 + lane] = acc[o / R][o % R];
    }
    __syncwarp();
    for (int o = lane; o < T * R; o += 32) {
        int t = token + o / R, r = row + o % R;
        if (t < tokens && r < rows) {
            float sum = 0.0f;
#pragma unroll
            for (int s = 0; s < 32; s++) {
                sum += sums[o * 33 + s];
            }
            logits[(u64) t * rows + r] = sum + bias[r];
        }
    }
}

// A row in int8 by a group of 128.
__device__ __forceinline__ void quantizeRow(const float *row, float weight, int columns, int chunks, u8 *out, float *scale) {
    __shared__ float greatest[4];
    float magnitude = 1e-10f;
    for (int c = threadIdx.x * 4; c < columns; c += 512) {
        float x[4];
        load4(x, row, c, columns);
#pragma unroll
        for (int i = 0; i < 4; i++) {
            magnitude = fmaxf(magnitude, fabsf(__fmul_rn(x[i], weight)));
        }
    }
#pragma unroll
    for (int s = 16; s > 0; s >>= 1) {
        magnitude = fmaxf(magnitude, __shfl_xor_sync(ALL, magnitude, s));
    }
    if ((threadIdx.x & 31) == 0) {
        greatest[threadIdx.x >> 5] = magnitude;
    }
    __syncthreads();
    magnitude = fmaxf(fmaxf(greatest[0], greatest[1]), fmaxf(greatest[2], greatest[3]));
    float inverse = 127.0f / magnitude;
    for (int c = threadIdx.x * 4; c < chunks * 128; c += 512) {
        float x[4];
        load4(x, row, c, columns);
        unsigned packed = 0;
#pragma unroll
        for (int i = 0; i < 4; i++) {
            packed |= ((int) roundf(__fmul_rn(__fmul_rn(x[i], weight), inverse)) & 0xff) << 8 * i;
        }
        *(unsigned *) (out + c) = packed;
    }
    if (threadIdx.x == 0) {
        *scale = magnitude / 127.0f;
    }
}

// hidden -> logits, and tokens in int8, which have nothing to do with one another.
// Grid: groups of 128; first as many as there are warps for the logits, four a group, then one a row in int8: M * rowsPerToken. With
// rowsPerToken > 0 a row is a token's, times its pair's weight where weighted is 1; with 0 nothing is quantised. With rows 0 there are no
// logits. tile: tokens and rows of the router of a warp, 1, 4 or 8.
extern "C" __global__ void __launch_bounds__(128) prepare(
    const int *header, const float *hidden, const float *router, const float *bias, const float *topkWeights, float *logits, u8 *tokens,
    float *tokenScales, int h, int rows, int chunks, int rowsPerToken, int weighted) {
    __shared__ float sums[4 * 64 * 33];
    afterPredecessor();
    int m = header[0], tile = m <= 16 ? 1 : m <= 128 ? 4 : 8;
    int units = rows == 0 ? 0 : (m + tile - 1) / tile * ((rows + tile - 1) / tile), groups = (units + 3) / 4;
    if (blockIdx.x < groups) {
        int unit = blockIdx.x * 4 + (threadIdx.x >> 5), lane = threadIdx.x & 31;
        float *own = sums + (threadIdx.x >> 5) * 64 * 33;
        if (unit < units) {
            if (tile == 1) {
                logitsOf<1, 1>(own, unit, lane, m, hidden, router, bias, logits, h, rows);
            } else if (tile == 4) {
                logitsOf<4, 4>(own, unit, lane, m, hidden, router, bias, logits, h, rows);
            } else {
                logitsOf<8, 8>(own, unit, lane, m, hidden, router, bias, logits, h, rows);
            }
        }
    } else {
        int row = blockIdx.x - groups;
        if (row < m * rowsPerToken) {
            quantizeRow(hidden + (u64) (row / rowsPerToken) * h, weighted ? topkWeights[row] : 1.0f, h, chunks,
                        tokens + LEAD + (u64) row * chunks * 128, tokenScales + row);
        }
    }
}

// ---- top-k

__device__ __forceinline__ float scoreOf(float logit, int scoring, float greatest) {
    float score = logit;
    if (scoring == 0) {
        score = expf(logit - greatest);
    } else if (scoring == 1) {
        score = 1.0f / (1.0f + expf(-logit));
    } else if (scoring == 2) {
        score = sqrtf(fmaxf(logit, 0.0f) + log1pf(expf(-fabsf(logit))));
    }
    return score > LAST && score < LARGEST ? score : 0.0f;
}

__device__ __forceinline__ float warpMax(float x) {
#pragma unroll
    for (int s = 16; s > 0; s >>= 1) {
        x = fmaxf(x, __shfl_xor_sync(ALL, x, s));
    }
    return x;
}

__device__ __forceinline__ float warpSum(float x) {
#pragma unroll
    for (int s = 16; s > 0; s >>= 1) {
        x += __shfl_xor_sync(ALL, x, s);
    }
    return x;
}

struct Choice {
    int numExperts, choices, shared, topK, scoring, renormalize, biased, groups, topkGroup, gate;
    float factor;
};

// The experts of one token by a warp. keys: room for the choices and the groups.
__device__ void choose(const Choice &c, float *keys, const float *row, const float *correctionBias, int *ids, float *weights) {
    int lane = threadIdx.x & 31;
    float greatest = 0.0f, denominator = 1.0f;
    bool unusable = false;
    if (c.scoring == 0) {
        int usable = 0;
        greatest = LAST;
        for (int e = lane; e < c.choices; e += 32) {
            float logit = row[e];
            usable += logit < LARGEST ? 1 : 0;
            greatest = logit > greatest ? logit : greatest;
        }
        greatest = warpMax(greatest);
        usable = __reduce_add_sync(ALL, usable);
        unusable = usable < c.choices || !(greatest > LAST);
        if (!c.renormalize || c.biased) {
            float sum = 0.0f;
            for (int e = lane; e < c.choices; e += 32) {
                float logit = row[e];
                sum += unusable ? 0.0f : expf((logit > LAST ? logit : LAST) - greatest);
            }
            denominator = warpSum(sum);
        }
    }
    for (int e = lane; e < c.choices; e += 32) {
        float logit = row[e], key;
        if (c.biased) {
            key = (unusable ? 0.0f : scoreOf(logit, c.scoring, greatest) / denominator) + correctionBias[e];
            if (c.groups > 0) {
                key = logit > LAST && logit < LARGEST ? key : LAST;
            }
        } else if (c.scoring == 1) {
            key = logit > LAST ? (logit < LARGEST ? logit : LARGEST) : LAST;
        } else {
            key = logit > LAST && logit < LARGEST ? logit : LAST;
        }
        keys[e] = unusable && !c.biased ? 0.0f : key;
    }
    __syncwarp();
    if (c.groups > 1 && c.choices > c.groups && c.choices % c.groups == 0) {
        int size = c.choices / c.groups;
        float *best = keys + c.choices;
        for (int g = lane; g < c.groups; g += 32) {
            float first = LAST, second = LAST;
            for (int e = g * size; e < g * size + size; e++) {
                float key = keys[e];
                second = key > first ? first : (key > second ? key : second);
                first = key > first ? key : first;
            }
            best[g] = c.biased ? (second > LAST ? first + second : LAST) : first;
        }
        __syncwarp();
        for (int e = lane; e < c.choices; e += 32) {
            int group = e / size, before = 0;
            float own = best[group];
            for (int g = 0; g < c.groups; g++) {
                before += g < group ? !(best[g] < own) : best[g] > own;
            }
            if (before >= c.topkGroup) {
                keys[e] = LAST;
            }
        }
        __syncwarp();
    }
    // The greatest key that is still there, of equal ones the first, K times. A key as an unsigned number of the same order; 0 is none.
    auto ordered = [](float key) {
        unsigned bits = __float_as_uint(key == 0.0f ? 0.0f : key);
        return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
    };
    int mine = -1;
    float mineKey = LAST, firstKey = LAST;
    unsigned local = 0;
    int at = 0;
    auto scan = [&]() {
        local = 0;
        for (int e = lane; e < c.choices; e += 32) {
            float key = keys[e];
            unsigned o = key != key ? 0 : ordered(key);
            if (o > local) {
                local = o;
                at = e;
            }
        }
    };
    scan();
    for (int k = 0; k < c.topK; k++) {
        unsigned most = __reduce_max_sync(ALL, local);
        int id = (int) __reduce_min_sync(ALL, local == most ? (unsigned) at : 0xffffu);
        float key = keys[id];
        if (k == 0) {
            firstKey = key;
        }
        if (lane == k) {
            mine = id;
            mineKey = key;
        }
        __syncwarp();
        if (at == id && (id & 31) == lane) {
            keys[id] = __uint_as_float(0x7fffffffu);
            scan();
        }
        __syncwarp();
    }
    float weight = 0.0f;
    if (mine >= 0 && !unusable && mineKey > LAST) {
        weight = scoreOf(row[mine], c.scoring, greatest) / denominator;
    }
    if (c.renormalize) {
        float sum = 0.0f;
        for (int k = 0; k < c.topK; k++) {
            sum += __shfl_sync(ALL, weight, k);
        }
        weight = sum > 0.0f ? weight / sum : weight;
    }
    weight *= c.factor;
    if (c.groups == 1 && c.biased && c.renormalize) {
        weight = firstKey > LAST ? weight : 1.0f / c.topK;
    }
    if (mine >= 0) {
        ids[lane] = mine < c.numExperts ? mine : mine + c.shared;
        weights[lane] = weight;
    }
    for (int s = lane; s < c.shared; s += 32) {
        ids[c.topK + s] = c.numExperts + s;
        weights[c.topK + s] = c.gate ? scoreOf(row[c.choices], 1, 0.0f) : 1.0f;
    }
}

#define CHOICE_PARAMETERS \
    int numExperts, int choices, int shared, int topK, int scoring, int renormalize, int biased, int groups, int topkGroup, int gate, \
        float factor
#define CHOICE {numExperts, choices, shared, topK, scoring, renormalize, biased, groups, topkGroup, gate, factor}

// Grid: groups of 128, four tokens each. Shared memory: 4 * (choices + groups) floats.
extern "C" __global__ void __launch_bounds__(128) topK(const int *header, const float *logits, const float *correctionBias, int *topkIds,
                                                       float *topkWeights, CHOICE_PARAMETERS) {
    extern __shared__ int dynamic[];
    afterPredecessor();
    Choice c = CHOICE;
    int warp = threadIdx.x >> 5, token = blockIdx.x * 4 + warp, slots = topK + shared;
    if (token < header[0]) {
        choose(c, (float *) dynamic + warp * (choices + groups), logits + (u64) token * (choices + gate), correctionBias,
               topkIds + token * slots, topkWeights + token * slots);
    }
}

// ---- alignment

// A group of 1024: each warp has a run of neighbouring pairs, counts those of each expert, and then puts each pair in its place. counts:
// [32][experts + 1].
__device__ void alignPairs(int *counts, const int *header, const int *topkIds, const int *expertMap, int *keys, int *sortedIds,
                           int *expertIds, int *padded, int pairsPerToken, int globalExperts, int experts) {
    __shared__ int starts[33];
    constexpr int AHEAD = 4;
    int warp = threadIdx.x >> 5, lane = threadIdx.x & 31;
    int pairs = header[0] * pairsPerToken, blockSize = header[1];
    int run = (pairs + 1023) / 1024 * 32, first = warp * run, last = min(first + run, pairs);
    int *own = counts + warp * (experts + 1);
    for (int e = threadIdx.x; e < 32 * (experts + 1); e += 1024) {
        counts[e] = 0;
    }
    __syncthreads();
    for (int from = first; from < last; from += 32 * AHEAD) {
        int key[AHEAD];
#pragma unroll
        for (int i = 0; i < AHEAD; i++) {
            int p = from + 32 * i + lane, id = p < last ? topkIds[p] : -1;
            key[i] = id >= 0 && id < globalExperts ? expertMap[id] : -1;
            if (p < last) {
                keys[p] = key[i];
            }
        }
#pragma unroll
        for (int i = 0; i < AHEAD; i++) {
            unsigned same = __match_any_sync(ALL, key[i]);
            if (key[i] >= 0 && (same & ((1u << lane) - 1)) == 0) {
                own[key[i]] += __popc(same);
            }
            __syncwarp();
        }
    }
    __syncthreads();
    // An expert's pairs before those of each warp; then where the experts' runs start, 1024 experts at most.
    int e = threadIdx.x, total = 0;
    if (e < experts) {
#pragma unroll 8
        for (int w = 0; w < 32; w++) {
            int count = counts[w * (experts + 1) + e];
            counts[w * (experts + 1) + e] = total;
            total += count;
        }
    }
    int blocks = (total + blockSize - 1) / blockSize, before = blocks;
#pragma unroll
    for (int s = 1; s < 32; s <<= 1) {
        int left = __shfl_up_sync(ALL, before, s);
        before += lane >= s ? left : 0;
    }
    if (lane == 31) {
        starts[warp] = before;
    }
    __syncthreads();
    if (warp == 0) {
        int sum = starts[lane], inclusive = sum;
#pragma unroll
        for (int s = 1; s < 32; s <<= 1) {
            int left = __shfl_up_sync(ALL, inclusive, s);
            inclusive += lane >= s ? left : 0;
        }
        starts[lane] = inclusive - sum;
        if (lane == 31) {
            padded[0] = inclusive * blockSize;
        }
    }
    __syncthreads();
    int block = starts[warp] + before - blocks;
    if (e < experts) {
        for (int w = 0; w < 32; w++) {
            counts[w * (experts + 1) + e] += block * blockSize;
        }
        for (int b = 0; b < blocks; b++) {
            expertIds[block + b] = e;
        }
        for (int place = block * blockSize + total; place < (block + blocks) * blockSize; place++) {
            sortedIds[place] = pairs;
        }
    }
    __syncthreads();
    for (int from = first; from < last; from += 32 * AHEAD) {
        int key[AHEAD];
#pragma unroll
        for (int i = 0; i < AHEAD; i++) {
            int p = from + 32 * i + lane;
            key[i] = p < last ? keys[p] : -1;
        }
#pragma unroll
        for (int i = 0; i < AHEAD; i++) {
            unsigned same = __match_any_sync(ALL, key[i]);
            int rank = __popc(same & ((1u << lane) - 1)), place = key[i] >= 0 ? own[key[i]] + rank : 0;
            __syncwarp();
            if (key[i] >= 0) {
                sortedIds[place] = from + 32 * i + lane;
                if (rank == 0) {
                    own[key[i]] += __popc(same);
                }
            }
            __syncwarp();
        }
    }
}

// ids -> pairs in expert order. Grid: one group of 1024. Shared memory: 32 * (experts + 1) ints.
extern "C" __global__ void __launch_bounds__(1024) align(
    const int *header, const int *topkIds, const int *expertMap, int *keys, int *sortedIds, int *expertIds, int *padded, int pairsPerToken,
    int globalExperts, int experts) {
    extern __shared__ int dynamic[];
    afterPredecessor();
    alignPairs(dynamic, header, topkIds, expertMap, keys, sortedIds, expertIds, padded, pairsPerToken, globalExperts, experts);
}

// topK and align for up to 32 tokens. Grid: one group of 1024. Shared memory: what either takes, with 32 tokens a group.
extern "C" __global__ void __launch_bounds__(1024) route(
    const int *header, const float *logits, const float *correctionBias, const int *expertMap, int *topkIds, float *topkWeights, int *keys,
    int *sortedIds, int *expertIds, int *padded, CHOICE_PARAMETERS, int globalExperts, int experts) {
    extern __shared__ int dynamic[];
    afterPredecessor();
    Choice c = CHOICE;
    int token = threadIdx.x >> 5, slots = topK + shared;
    if (token < header[0]) {
        choose(c, (float *) dynamic + token * (choices + groups), logits + (u64) token * (choices + gate), correctionBias,
               topkIds + token * slots, topkWeights + token * slots);
    }
    __syncthreads();
    alignPairs(dynamic, header, topkIds, expertMap, keys, sortedIds, expertIds, padded, slots, globalExperts, experts);
}

// ---- the sum over a token's experts

// Grid: groups of 128, four values a work-item.
extern "C" __global__ void __launch_bounds__(128) combine(const int *header, const int *keys, const float *down, float *output,
                                                          int pairsPerToken, int h) {
    afterPredecessor();
    int fours = (h + 3) / 4;
    u64 index = (u64) blockIdx.x * 128 + threadIdx.x;
    int token = (int) (index / fours), c = (int) (index % fours) * 4;
    if (token >= header[0]) {
        return;
    }
    float sum[4] = {};
#pragma unroll 4
    for (int k = 0; k < pairsPerToken; k++) {
        int p = token * pairsPerToken + k;
        if (keys[p] >= 0) {
            float x[4];
            load4(x, down + LEAD / 4 + (u64) p * h, c, h);
#pragma unroll
            for (int i = 0; i < 4; i++) {
                sum[i] += x[i];
            }
        }
    }
    float *out = output + (u64) token * h + c;
    if (h % 4 == 0) {
        *(float4 *) out = make_float4(sum[0], sum[1], sum[2], sum[3]);
    } else {
        for (int i = 0; i < 4 && c + i < h; i++) {
            out[i] = sum[i];
        }
    }
}
