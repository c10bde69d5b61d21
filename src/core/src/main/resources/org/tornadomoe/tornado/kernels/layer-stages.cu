// What is around the expert GEMMs in CUDA C: router, alignment, Hopper's quantiser, sum. CudaLibrary compiles it with NVRTC; LEAD is as in
// gemm.cu. What each kernel computes is what its namesake of the Java kernels does, and RouterKernels, AlignKernels, QuantizeKernels
// and CombineKernels say it in full: here is only what is different. A token gets the same bits whatever the other tokens are, but for its logits,
// which tiles add up in another order.

#include "steps.cu"

#define ALL 0xffffffffu
#define LAST (-3.402823466e38f)
#define LARGEST 3.402823466e38f

// ---- logits

// Steps of 32 k that a quarter of a row has; the last quarter may have fewer.
__device__ __forceinline__ int quarterOf(int h) {
    return ((h + 31) / 32 + 3) / 4;
}

// Of few tokens a logit is 32 sums, which are added up in order: sum 8 * u + s has the k of quarter u with k / 4 % 8 = s, in order. So a token's
// logits are the same bits whatever the other few tokens are; and where many tokens have tiles, whatever the others are.

// A logit, or 3e38 where it is beyond 1e38 or no number, of which choose makes infinite weights.
__device__ __forceinline__ float known(float logit) {
    return logit > -1e38f && logit < 1e38f ? logit : 3e38f;
}

// Four products of each of T tokens and R rows of the router, k to k + 3, in order.
template <int T, int R>
__device__ __forceinline__ void addProducts(float (&acc)[T][R], const float (&x)[4], const float (&w)[R][4], int t) {
#pragma unroll
    for (int r = 0; r < R; r++) {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            acc[t][r] = __fmaf_rn(x[i], w[r][i], acc[t][r]);
        }
    }
}

// A lane's sums of T tokens and R rows of the router, U steps' loads at once.
template <int T, int R, int U>
__device__ __forceinline__ void addRows(float (&acc)[T][R], const float *(&x)[T], const float *(&w)[R], int lane, int h) {
    int quarter = 32 * quarterOf(h), k = (lane >> 3) * quarter + (lane & 7) * 4, end = min((lane >> 3) * quarter + quarter, h);
    auto steps = [&](int many) {
        float xs[U][T][4], ws[U][R][4];
#pragma unroll
        for (int u = 0; u < U; u++) {
            if (u < many) {
#pragma unroll
                for (int r = 0; r < R; r++) {
                    load4(ws[u][r], w[r], k + 32 * u, h);
                }
#pragma unroll
                for (int t = 0; t < T; t++) {
                    load4(xs[u][t], x[t], k + 32 * u, h);
                }
            }
        }
#pragma unroll
        for (int u = 0; u < U; u++) {
            if (u < many) {
#pragma unroll
                for (int t = 0; t < T; t++) {
                    addProducts<T, R>(acc, xs[u][t], ws[u], t);
                }
            }
        }
    };
    for (; k + 32 * (U - 1) < end; k += 32 * U) {
        steps(U);
    }
    for (; k < end; k += 32) {
        steps(1);
    }
}

// T tokens times R rows of the router, 16 at most, by a warp, whose lanes have a sum each. sums: room for 33 floats of each of them.
template <int T, int R, int U>
__device__ __forceinline__ void logitsOf(float *sums, int token, int row, int lane, int tokens, const float *hidden, const float *router,
                                         const float *bias, float *logits, int h, int rows) {
    float acc[T][R] = {};
    const float *x[T], *w[R];
#pragma unroll
    for (int t = 0; t < T; t++) {
        x[t] = hidden + (u64) min(token + t, tokens - 1) * h;
    }
#pragma unroll
    for (int r = 0; r < R; r++) {
        w[r] = router + (u64) min(row + r, rows - 1) * h;
    }
    addRows<T, R, U>(acc, x, w, lane, h);
#pragma unroll
    for (int o = 0; o < T * R; o++) {
        sums[o * 33 + lane] = acc[o / R][o % R];
    }
    __syncwarp();
    int t = token + lane / R, r = row + lane % R;
    if (lane < T * R && t < tokens && r < rows) {
        float sum = 0.0f;
#pragma unroll
        for (int s = 0; s < 32; s++) {
            sum += sums[lane * 33 + s];
        }
        logits[(u64) t * rows + r] = known(sum + bias[r]);
    }
}

// What of x the matrix instructions take, rounded to 11 bits, and what that leaves.
__device__ __forceinline__ void split(float x, unsigned &high, unsigned &rest) {
    high = (__float_as_uint(x) + 0x1000u) & 0xffffe000u;
    rest = __float_as_uint(x - __uint_as_float(high));
}

// c += a * b: 16 tokens times 8 rows times 8 k.
__device__ __forceinline__ void mma(float (&c)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
    asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// A tile of 32 tokens times ROWS rows of the router by eight warps, each with 16 tokens and 32 rows, on tensor cores. A factor is the sum of two
// numbers of 11 bits, and of their products but the least is left out: to 2^-22. A logit is four sums, of which the i-th has the steps of 32 k with
// step % 4 = i; what a step gives is added up by itself first, since tensor cores don't round. Where ROWS is 32, a warp has one of the four sums.
// K steps are in each of the stages. Shared memory: STAGES * K * (32 + ROWS) * 128 bytes.
template <int ROWS, int K, int STAGES>
__device__ __forceinline__ void logitsTile(float *stages, const int *header, const float *hidden, const float *router, const float *bias,
                                           float *logits, int h, int rows) {
    constexpr int LINES = 32 + ROWS, STAGE = K * LINES * 32, SUMS = ROWS == 32 ? 1 : 4, TIMES = LINES / 32;
    int tokens = header[0], across = (rows + ROWS - 1) / ROWS;
    int firstToken = blockIdx.x / across * 32, firstRow = blockIdx.x % across * ROWS;
    if (firstToken >= tokens) {
        return;
    }
    int warp = threadIdx.x >> 5, lane = threadIdx.x & 31, g = lane >> 2, j = lane & 3, steps = (h + 31) / 32;
    // Eight neighbours fetch the 128 bytes of a line, of which every second one has its halves the other way round, for the sake of the banks.
    int x = (threadIdx.x & 7) * 4, own = threadIdx.x >> 3;
    const float *from[TIMES];
#pragma unroll
    for (int i = 0; i < TIMES; i++) {
        from[i] = i == 0 ? hidden + (u64) min(firstToken + own, tokens - 1) * h : router + (u64) min(firstRow + own + 32 * (i - 1), rows - 1) * h;
    }
    auto fetch = [&](int first) {
        float *stage = stages + first / K % STAGES * STAGE;
#pragma unroll
        for (int s = 0; s < K; s++) {
            int k = (first + s) * 32 + x;
#pragma unroll
            for (int i = 0; i < TIMES; i++) {
                unsigned to = (unsigned) __cvta_generic_to_shared(stage + (s * LINES + own + 32 * i) * 32 + (x ^ (own & 1) * 16));
                asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from[i] + (k < h ? k : 0)), "r"(k < h ? 16 : 0)
                             : "memory");
            }
        }
        asm volatile("cp.async.commit_group;" ::: "memory");
    };
    int token = (warp & 1) * 16, row = SUMS == 1 ? 0 : (warp >> 1) * 32, place = g * 32 + (4 * j ^ (g & 1) * 16);
    float acc[SUMS][4][4] = {};
    // What 32 k add to sums of 16 tokens and 32 rows. A lane has of each 16 k four neighbours, which are the columns j and j + 4 of two products.
    auto add = [&](float(&sum)[4][4], const float *lines) {
        float part[4][4] = {};
#pragma unroll
        for (int half = 0; half < 2; half++) {
            unsigned a[2][2][4];
#pragma unroll
            for (int r = 0; r < 2; r++) {
                float v[4];
                load4(v, lines + (token + 8 * r) * 32 + (place ^ 16 * half), 0, 4);
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    split(v[i], a[i >> 1][0][r + 2 * (i & 1)], a[i >> 1][1][r + 2 * (i & 1)]);
                }
            }
#pragma unroll
            for (int n = 0; n < 4; n++) {
                float v[4];
                load4(v, lines + (32 + row + 8 * n) * 32 + (place ^ 16 * half), 0, 4);
#pragma unroll
                for (int i = 0; i < 2; i++) {
                    unsigned high[2], rest[2];
                    split(v[2 * i], high[0], rest[0]);
                    split(v[2 * i + 1], high[1], rest[1]);
                    mma(part[n], a[i][1], high);
                    mma(part[n], a[i][0], rest);
                    mma(part[n], a[i][0], high);
                }
            }
        }
#pragma unroll
        for (int n = 0; n < 4; n++) {
#pragma unroll
            for (int i = 0; i < 4; i++) {
                sum[n][i] += part[n][i];
            }
        }
    };
    for (int first = 0; first < (STAGES - 1) * K; first += K) {
        fetch(first);
    }
    for (int first = 0; first < steps; first += 4) {
#pragma unroll
        for (int s = 0; s < 4; s += K) {
            asm volatile("cp.async.wait_group %0;" ::"n"(STAGES - 2) : "memory");
            __syncthreads();
            fetch(first + s + (STAGES - 1) * K);
            const float *stage = stages + (first + s) / K % STAGES * STAGE;
            if (SUMS == 1) {
                add(acc[0], stage + (warp >> 1) * LINES * 32);
            } else {
#pragma unroll
                for (int i = 0; i < K; i++) {
                    add(acc[(s + i) % SUMS], stage + i * LINES * 32);
                }
            }
        }
    }
    if (SUMS == 1) {
        // The four sums come together in the first two warps.
        asm volatile("cp.async.wait_all;" ::: "memory");
        __syncthreads();
#pragma unroll
        for (int i = 0; i < 16; i++) {
            stages[(warp * 16 + i) * 32 + lane] = acc[0][i >> 2][i & 3];
        }
        __syncthreads();
        if (warp > 1) {
            return;
        }
    }
#pragma unroll
    for (int i = 0; i < 16; i++) {
        float sum = acc[0][i >> 2][i & 3];
#pragma unroll
        for (int q = 1; q < 4; q++) {
            sum += SUMS == 1 ? stages[((warp + 2 * q) * 16 + i) * 32 + lane] : acc[q % SUMS][i >> 2][i & 3];
        }
        int t = firstToken + token + g + 8 * (i >> 1 & 1), r = firstRow + row + 8 * (i >> 2) + 2 * j + (i & 1);
        if (t < tokens && r < rows) {
            logits[(u64) t * rows + r] = known(sum + bias[r]);
        }
    }
}

// hidden -> logits, for many tokens; a row must begin at a multiple of 16 bytes.
// Grid: groups of 256, for 32 tokens and 32 rows of the router each; shared memory 98304 bytes, which every device from compute capability
// 8.0 on has.
extern "C" __global__ void __launch_bounds__(256, 1) logits32(const int *header, const float *hidden, const float *router, const float *bias,
                                                              float *logits, int h, int rows) {
    extern __shared__ int dynamic[];
    afterPredecessor();
    logitsTile<32, 4, 3>((float *) dynamic, header, hidden, router, bias, logits, h, rows);
}

// Grid: groups of 256, for 32 tokens and 128 rows of the router each; shared memory 163840 bytes.
extern "C" __global__ void __launch_bounds__(256, 1) logits128(const int *header, const float *hidden, const float *router, const float *bias,
                                                               float *logits, int h, int rows) {
    extern __shared__ int dynamic[];
    afterPredecessor();
    logitsTile<128, 2, 4>((float *) dynamic, header, hidden, router, bias, logits, h, rows);
}

// ---- logits on Hopper

#ifdef __CUDA_ARCH_FEAT_SM90_ALL
#define SUM4(d, i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define SUM16(d, i) SUM4(d, i), SUM4(d, i + 4), SUM4(d, i + 8), SUM4(d, i + 12)

// d (+)= a * b: 64 tokens times 64 rows of the router times 16 k, of a warpgroup.
__device__ __forceinline__ void wgmma(float (&d)[32], const unsigned (&a)[4], u64 b, int add) {
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %37, 0;\nwgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 "
                 "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31}, "
                 "{%32,%33,%34,%35}, %36, p, 1, 1, 0;\n}"
                 : SUM16(d, 0), SUM16(d, 16)
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(add));
}

// What bfloat16 has of x and y, cut off, x in the lower half, and what that leaves of them.
__device__ __forceinline__ unsigned cut(float &x, float &y) {
    unsigned both = __byte_perm(__float_as_uint(x), __float_as_uint(y), 0x7632);
    x -= __uint_as_float(both << 16);
    y -= __uint_as_float(both & 0xffff0000u);
    return both;
}

__device__ __forceinline__ void awaitCluster() {
    asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;" ::: "memory");
}

// A value of the shared memory of the cluster's group of that rank.
__device__ __forceinline__ float sharedOf(const float *own, int rank) {
    float x;
    asm volatile("{\n.reg .b32 there;\nmapa.shared::cluster.u32 there, %1, %2;\nld.shared::cluster.f32 %0, [there];\n}"
                 : "=f"(x) : "r"((unsigned) __cvta_generic_to_shared(own)), "r"(rank) : "memory");
    return x;
}

// A tile of TOKENS tokens, 64 or 128, times 128 rows of the router by two warpgroups, each of which has half of the rows, or of the tokens. A float is
// the sum of three numbers of bfloat16; of the products of two floats those of the parts 2 and 3, 3 and 2, 3 and 3 are left out (2^-24), and so are
// those of the router's second and third parts as long as these are 0, as they are where it was bfloat16: that gives the same bits. A logit is
// eight sums, each of an eighth of k and of one group of a cluster; what 32 k give is added up by itself first, since tensor cores don't round.
// The fence between what is stored and what wgmma reads waits for all copies under way, too: so there is one for every 64 k, and copies begin right
// behind it. Shared memory: three stages of 64 k of the tokens, two of the rows' parts, of which each 8 k lie together, 32 bytes further for the
// sake of the banks: 768 * TOKENS + 99840 bytes.
template <int TOKENS>
__device__ __forceinline__ void hopperLogits(u8 *dynamic, const int *header, const float *hidden, const float *router, const float *bias,
                                             float *logits, int h, int rows) {
    constexpr int STAGES = 3, HALF_STAGE = TOKENS * 128, NEXT8 = 128 * 16 + 32, PART = 8 * NEXT8, N = TOKENS / 64;
    int across = (rows + 127) / 128, share = ((h + 63) / 64 + 7) / 8, rank = blockIdx.x & 7, begin = rank * share;
    int steps = min(share, (h + 63) / 64 - begin);
    int firstToken = (blockIdx.x >> 3) / across * TOKENS, firstRow = (blockIdx.x >> 3) % across * 128;
    int warpgroup = threadIdx.x >> 7, lane = threadIdx.x & 31, g = lane >> 2, j = lane & 3;
    // Eight neighbours fetch 32 k of a line; of tokens every second one has its halves the other way round, for the sake of the banks.
    int x = (threadIdx.x & 7) * 4, own = threadIdx.x >> 3;
    float4 w[2][4];
    auto load = [&](int step) {
#pragma unroll
        for (int of = 0; of < 2; of++) {
            int k = (begin + step) * 64 + of * 32 + x;
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const float *row = router + (u64) min(firstRow + own + 32 * i, rows - 1) * h;
                w[of][i] = step < steps && k < h ? *(const float4 *) (row + k) : make_float4(0.0f, 0.0f, 0.0f, 0.0f);
            }
        }
    };
    u8 *parts = dynamic + STAGES * 2 * HALF_STAGE;
    // The next part of the router's values. A work-item of a product has of each 16 k four neighbours, which are the columns 2 j, 2 j + 1, 2 j + 8 and
    // 2 j + 9.
    auto store = [&](int step, int part) {
        u8 *to = parts + ((step & 1) * 3 + part) * PART + (x >> 4) * 2 * NEXT8 + own * 16 + (x >> 2 & 3) * 4;
#pragma unroll
        for (int of = 0; of < 2; of++) {
#pragma unroll
            for (int i = 0; i < 4; i++) {
                *(unsigned *) (to + of * 4 * NEXT8 + i * 512) = cut(w[of][i].x, w[of][i].y);
                *(unsigned *) (to + of * 4 * NEXT8 + i * 512 + NEXT8) = cut(w[of][i].z, w[of][i].w);
            }
        }
    };
    auto rest = [&]() {
        unsigned bits = 0;
#pragma unroll
        for (int of = 0; of < 2; of++) {
#pragma unroll
            for (int i = 0; i < 4; i++) {
                bits |= __float_as_uint(w[of][i].x) | __float_as_uint(w[of][i].y) | __float_as_uint(w[of][i].z) | __float_as_uint(w[of][i].w);
            }
        }
        return (bits & 0x7fffffffu) != 0;
    };
    // The router is there before what is in front is through, and so is the header.
    load(0);
    store(0, 0);
    bool hasRest = false, isLeft = rest();
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
    load(1);
    int tokens = header[0];
    afterPredecessor();
    if (firstToken >= tokens) {
        return;
    }
    auto fetch = [&](int step) {
#pragma unroll
        for (int of = 0; of < 2; of++) {
            int k = (begin + step) * 64 + of * 32 + x;
            bool here = step < steps && k < h;
            u8 *stage = dynamic + (step % STAGES * 2 + of) * HALF_STAGE;
#pragma unroll
            for (int i = 0; i < TOKENS / 32; i++) {
                unsigned to = (unsigned) __cvta_generic_to_shared(stage + ((own + 32 * i) * 32 + (x ^ (own & 1) * 16)) * 4);
                const float *from = hidden + (u64) min(firstToken + own + 32 * i, tokens - 1) * h + (here ? k : 0);
                asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(here ? 16 : 0) : "memory");
            }
        }
        asm volatile("cp.async.commit_group;" ::: "memory");
    };
    // Of the tokens of a warp those of a work-item, and of the rows those of its warpgroup.
    int token = (N == 2 ? warpgroup * 64 : 0) + (threadIdx.x >> 5 & 3) * 16, row = N == 2 ? 0 : warpgroup * 64;
    int place = g * 32 + (4 * j ^ (g & 1) * 16);
    float acc[N][32] = {};
    auto await = [](float(&sum)[32]) {
        asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
#pragma unroll
        for (int i = 0; i < 32; i++) {
            asm volatile("" : "+f"(sum[i])::"memory");
        }
    };
    fetch(0);
    fetch(1);
#pragma unroll 1
    for (int step = 0; step < steps; step++) {
        asm volatile("cp.async.wait_group 1;" ::: "memory");
        bool isNew = __shfl_sync(ALL, __syncthreads_or(isLeft), 0) && !hasRest;
        if (isNew) {
            // From here on the other parts are stored, too.
            hasRest = true;
            load(step);
            store(step, 0);
            store(step, 1);
            store(step, 2);
            asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
            load(step + 1);
            __syncthreads();
        }
        unsigned at = (unsigned) __cvta_generic_to_shared(parts + (step & 1) * 3 * PART) + row * 16;
        u64 ofRows = (u64) ((at & 0x3ffff) >> 4) | (u64) (NEXT8 / 16) << 16 | (u64) (128 / 16) << 32;
#pragma unroll
        for (int of = 0; of < 2; of++) {
            const float *lines = (const float *) (dynamic + (step % STAGES * 2 + of) * HALF_STAGE) + token * 32;
            unsigned a[2][3][4];
#pragma unroll
            for (int half = 0; half < 2; half++) {
                float v[2][4];
                load4(v[0], lines + (place ^ 16 * half), 0, 4);
                load4(v[1], lines + 256 + (place ^ 16 * half), 0, 4);
#pragma unroll
                for (int part = 0; part < 3; part++) {
#pragma unroll
                    for (int i = 0; i < 4; i++) {
                        a[half][part][i] = cut(v[i & 1][i & 2], v[i & 1][(i & 2) + 1]);
                    }
                }
            }
#pragma unroll
            for (int n = 0; n < N; n++) {
                u64 b = ofRows + of * 4 * (NEXT8 / 16) + n * (1024 / 16);
                float sum[32];
                if (hasRest) {
                    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#pragma unroll
                    for (int half = 0; half < 2; half++) {
                        wgmma(sum, a[half][0], b + half * (2 * NEXT8 / 16) + 2 * (PART / 16), half);
                        wgmma(sum, a[half][1], b + half * (2 * NEXT8 / 16) + PART / 16, 1);
                        wgmma(sum, a[half][0], b + half * (2 * NEXT8 / 16) + PART / 16, 1);
                    }
                    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
                    await(sum);
                }
                asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#pragma unroll
                for (int half = 0; half < 2; half++) {
                    wgmma(sum, a[half][2], b + half * (2 * NEXT8 / 16), half || hasRest);
                    wgmma(sum, a[half][1], b + half * (2 * NEXT8 / 16), 1);
                    wgmma(sum, a[half][0], b + half * (2 * NEXT8 / 16), 1);
                }
                asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
                if (of == 1 && n == N - 1) {
                    store(step + 1, 0);
                    isLeft = rest();
                    if (hasRest) {
                        store(step + 1, 1);
                        store(step + 1, 2);
                    }
                    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
                    load(step + 2);
                    fetch(step + 2);
                }
                await(sum);
#pragma unroll
                for (int i = 0; i < 32; i++) {
                    acc[n][i] += sum[i];
                }
            }
        }
    }
    // The eight sums come together, an eighth of the logits in each group.
    constexpr int OWN = N * 4;
    float *sums = (float *) dynamic;
    asm volatile("cp.async.wait_all;" ::: "memory");
    __syncthreads();
#pragma unroll
    for (int i = 0; i < N * 32; i++) {
        sums[i * 256 + threadIdx.x] = acc[i >> 5][i & 31];
    }
    awaitCluster();
    float got[8][OWN];
#pragma unroll
    for (int i = 0; i < OWN; i++) {
#pragma unroll
        for (int q = 0; q < 8; q++) {
            got[q][i] = sharedOf(sums + (rank * OWN + i) * 256 + threadIdx.x, q);
        }
    }
#pragma unroll
    for (int i = 0; i < OWN; i++) {
        int of = rank * OWN + i, t = firstToken + token + g + 8 * (of >> 1 & 1), r = firstRow + row + (of >> 2) * 8 + 2 * j + (of & 1);
        float sum = got[0][i];
#pragma unroll
        for (int q = 1; q < 8; q++) {
            sum += got[q][i];
        }
        if (t < tokens && r < rows) {
            logits[(u64) t * rows + r] = known(sum + bias[r]);
        }
    }
    awaitCluster();
}

// hidden -> logits, for many tokens; a row must begin at a multiple of 16 bytes.
// Grid: clusters of eight groups of 256, for 64 tokens and 128 rows of the router each.
extern "C" __global__ void __cluster_dims__(8, 1, 1) __launch_bounds__(256) hopperLogits64(
    const int *header, const float *hidden, const float *router, const float *bias, float *logits, int h, int rows) {
    extern __shared__ int dynamic[];
    hopperLogits<64>((u8 *) dynamic, header, hidden, router, bias, logits, h, rows);
}

// Grid: clusters of eight groups of 256, for 128 tokens and 128 rows of the router each.
extern "C" __global__ void __cluster_dims__(8, 1, 1) __launch_bounds__(256) hopperLogits128(
    const int *header, const float *hidden, const float *router, const float *bias, float *logits, int h, int rows) {
    extern __shared__ int dynamic[];
    hopperLogits<128>((u8 *) dynamic, header, hidden, router, bias, logits, h, rows);
}
#endif

// ---- tokens in int8

// A row in int8 by 128 neighbouring work-items of a group, each of which keeps what it has of the first 512 * KEPT columns. Beyond 1e30, and where
// a value is no number, its scale is infinite. Magnitudes are compared as bits, of which those of no number are the greatest.
template <int KEPT>
__device__ __forceinline__ void quantizeRow(const float *row, float weight, int columns, int chunks, u8 *out, float *scale) {
    __shared__ unsigned greatest[32];
    int t = threadIdx.x & 127, part = threadIdx.x >> 7;
    unsigned bits = __float_as_uint(1e-10f);
    float kept[KEPT][4];
    auto load = [&](float(&x)[4], int c) { load4(x, row, c, columns, weight); };
    auto measure = [&](const float(&x)[4]) {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            bits = max(bits, __float_as_uint(fabsf(x[i])));
        }
    };
#pragma unroll
    for (int j = 0; j < KEPT; j++) {
        load(kept[j], (t + 128 * j) * 4);
    }
#pragma unroll
    for (int j = 0; j < KEPT; j++) {
        measure(kept[j]);
    }
    for (int c = (t + 128 * KEPT) * 4; c < columns; c += 512) {
        float x[4];
        load(x, c);
        measure(x);
    }
#pragma unroll
    for (int s = 16; s > 0; s >>= 1) {
        bits = max(bits, __shfl_xor_sync(ALL, bits, s));
    }
    if ((threadIdx.x & 31) == 0) {
        greatest[threadIdx.x >> 5] = bits;
    }
    asm volatile("bar.sync %0, 128;" ::"r"(part + 1) : "memory");
#pragma unroll
    for (int w = 0; w < 4; w++) {
        bits = max(bits, greatest[part * 4 + w]);
    }
    float magnitude = bits > __float_as_uint(1e30f) ? __uint_as_float(0x7f800000u) : __uint_as_float(bits);
    float inverse = 127.0f / magnitude;
    auto store = [&](const float(&x)[4], int c) {
        unsigned packed = 0;
#pragma unroll
        for (int i = 0; i < 4; i++) {
            packed |= ((int) roundf(__fmul_rn(x[i], inverse)) & 0xff) << 8 * i;
        }
        *(unsigned *) (out + c) = packed;
    };
#pragma unroll
    for (int j = 0; j < KEPT; j++) {
        int c = (t + 128 * j) * 4;
        if (c < chunks * 128) {
            store(kept[j], c);
        }
    }
    for (int c = (t + 128 * KEPT) * 4; c < chunks * 128; c += 512) {
        float x[4];
        load(x, c);
        store(x, c);
    }
    if (t == 0) {
        *scale = magnitude / 127.0f;
    }
}

// hidden -> logits, and tokens in int8, which have nothing to do with one another; and amax [pairs] is 0.
// Grid: groups of 128; first those for the logits, none if rows is 0, then one for each of M * rowsPerToken rows in int8. A row is a token's,
// times its pair's weight where weighted is 1. A warp has a token and a row of the router, or four of each, next to the other warps', so that
// they find in the cache what they share.
extern "C" __global__ void __launch_bounds__(128) prepare(
    const int *header, const float *hidden, const float *router, const float *bias, const float *topkWeights, float *logits, u8 *tokens,
    float *tokenScales, unsigned *amax, int h, int rows, int chunks, int rowsPerToken, int weighted, int pairsPerToken) {
    __shared__ float sums[4][16 * 33];
    int m = header[0], tile = m <= 16 ? 1 : 4, warp = threadIdx.x >> 5, lane = threadIdx.x & 31;
    int across = (rows + tile - 1) / tile, wide = min(2, across), tall = 4 / max(wide, 1);
    int groupsAcross = rows == 0 ? 0 : (across + wide - 1) / wide;
    int groups = groupsAcross * ((m + tile * tall - 1) / (tile * tall));
    bool multiplies = blockIdx.x < groups;
    int token = 0, row = 0;
    if (multiplies) {
        token = (blockIdx.x / groupsAcross * tall + warp / wide) * tile;
        row = (blockIdx.x % groupsAcross * wide + warp % wide) * tile;
        multiplies = warp < tall * wide && token < m && row < rows;
    }
    // The router is there before what is in front is through.
    if (multiplies && token == 0) {
        for (int r = row; r < min(row + tile, rows); r++) {
            for (int k = lane * 32; k < h; k += 1024) {
                asm volatile("prefetch.global.L2 [%0];" ::"l"(router + (u64) r * h + k));
            }
        }
    }
    afterPredecessor();
    for (int p = blockIdx.x * 128 + threadIdx.x; p < m * pairsPerToken; p += gridDim.x * 128) {
        amax[p] = 0;
    }
    if (blockIdx.x < groups) {
        if (multiplies && tile == 1) {
            logitsOf<1, 1, 8>(sums[warp], token, row, lane, m, hidden, router, bias, logits, h, rows);
        } else if (multiplies) {
            logitsOf<4, 4, 2>(sums[warp], token, row, lane, m, hidden, router, bias, logits, h, rows);
        }
    } else {
        int of = blockIdx.x - groups;
        if (of < m * rowsPerToken) {
            quantizeRow<8>(hidden + (u64) (of / rowsPerToken) * h, weighted ? topkWeights[of] : 1.0f, h, chunks,
                        tokens + LEAD + (u64) of * chunks * 128, tokenScales + of);
        }
    }
}

// ---- top-k

// The numbers of RouterKernels.
#define SOFTMAX 0
#define SIGMOID 1
#define SQRTSOFTPLUS 2
#define IDENTITY 3

__device__ __forceinline__ float scoreOf(float logit, int scoring, float greatest) {
    float score = logit;
    if (scoring == SOFTMAX) {
        score = expf(logit - greatest);
    } else if (scoring == SIGMOID) {
        score = 1.0f / (1.0f + expf(-logit));
    } else if (scoring == SQRTSOFTPLUS) {
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
__device__ __forceinline__ void choose(const Choice &c, float *keys, const float *row, const float *correctionBias, int *ids, float *weights) {
    int lane = threadIdx.x & 31;
    float greatest = 0.0f, denominator = 1.0f;
    bool unusable = false;
    if (c.scoring == SOFTMAX) {
        int usable = 0;
        greatest = LAST;
#pragma unroll 4
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
    bool beyond = false;
    for (int e = lane; e < c.choices; e += 32) {
        float logit = row[e], key;
        beyond |= logit > 1e38f && logit < LARGEST;
        if (c.biased) {
            key = (unusable ? 0.0f : scoreOf(logit, c.scoring, greatest) / denominator) + correctionBias[e];
            if (c.groups > 0) {
                key = logit > LAST && logit < LARGEST ? key : LAST;
            }
        } else if (c.scoring == SIGMOID) {
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
#pragma unroll 4
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
        float key = __uint_as_float(most & 0x80000000u ? most ^ 0x80000000u : ~most);
        if (k == 0) {
            firstKey = key;
        }
        if (lane == k) {
            mine = id;
            mineKey = key;
        }
        if (at == id && (id & 31) == lane) {
            keys[id] = __uint_as_float(0x7fffffffu);
            scan();
        }
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
    weight = __any_sync(ALL, beyond) ? __uint_as_float(0x7f800000u) : weight;
    // What no score function has for a number gives no number, whatever became of it.
    weight = c.scoring >= SOFTMAX && c.scoring <= IDENTITY ? weight : __uint_as_float(0x7fffffffu);
    if (mine >= 0) {
        ids[lane] = mine < c.numExperts ? mine : mine + c.shared;
        weights[lane] = weight;
    }
    for (int s = lane; s < c.shared; s += 32) {
        ids[c.topK + s] = c.numExperts + s;
        weights[c.topK + s] = c.gate ? scoreOf(row[c.choices], SIGMOID, 0.0f) : 1.0f;
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
    int tokens = header[0];
    afterPredecessor();
    Choice c = CHOICE;
    int warp = threadIdx.x >> 5, token = blockIdx.x * 4 + warp, slots = topK + shared;
    if (token < tokens) {
        choose(c, (float *) dynamic + warp * (choices + groups), logits + (u64) token * (choices + gate), correctionBias,
               topkIds + token * slots, topkWeights + token * slots);
    }
}

// ---- alignment

// The place of one expert's run and the pairs in it, by a group, each of whose warps has a run of neighbouring pairs. Every group counts all
// experts' pairs for itself: that is less than waiting for one another. counts: [experts]. A pair's key is written by its expert's group, and
// by the first one's where it is left out. With balanced 1 the expert's load is written. With batched 1 every expert has a slot for each token.
__device__ __forceinline__ void alignExpert(int expert, int *counts, const int *header, const int *topkIds, const int *expertMap, int *keys,
                            int *sortedIds, int *expertIds, int *padded, int *loads, int pairsPerToken, int globalExperts, int experts,
                            int balanced, int batched) {
    __shared__ int ofWarp[32], blocksBefore[32], blocksOfAll[32];
    int warps = blockDim.x >> 5, warp = threadIdx.x >> 5, lane = threadIdx.x & 31;
    int pairs = header[0] * pairsPerToken, blockSize = header[1], slotBlocks = batched ? (header[0] + blockSize - 1) / blockSize : 0;
    int run = (pairs + 32 * warps - 1) / (32 * warps) * 32, first = warp * run, last = min(first + run, pairs);
    for (int e = threadIdx.x; e < experts; e += blockDim.x) {
        counts[e] = 0;
    }
    __syncthreads();
    // Which of a work-item's first 32 pairs are the expert's is kept, so that few are read twice.
    int own = 0;
    unsigned ours = 0;
#pragma unroll 8
    for (int from = first, i = 0; from < last; from += 32, i++) {
        int p = from + lane, id = p < last ? topkIds[p] : -1, key = id >= 0 && id < globalExperts ? expertMap[id] : -1;
        if (key >= 0) {
            atomicAdd(counts + key, 1);
        }
        if (p < last && (key == expert || key < 0 && expert == 0)) {
            keys[p] = key;
        }
        own += __popc(__ballot_sync(ALL, key == expert));
        ours |= key == expert && i < 32 ? 1u << i : 0;
    }
    if (lane == 0) {
        ofWarp[warp] = own;
    }
    __syncthreads();
    int before = 0, all = 0;
    for (int e = threadIdx.x; e < experts; e += blockDim.x) {
        int blocks = max((counts[e] + blockSize - 1) / blockSize, slotBlocks);
        all += blocks;
        before += e < expert ? blocks : 0;
    }
    before = __reduce_add_sync(ALL, before);
    all = __reduce_add_sync(ALL, all);
    if (lane == 0) {
        blocksBefore[warp] = before;
        blocksOfAll[warp] = all;
    }
    __syncthreads();
    before = __reduce_add_sync(ALL, lane < warps ? blocksBefore[lane] : 0);
    all = __reduce_add_sync(ALL, lane < warps ? blocksOfAll[lane] : 0);
    int total = counts[expert], used = (total + blockSize - 1) / blockSize, blocks = max(used, slotBlocks), start = before * blockSize;
    int place = start + __reduce_add_sync(ALL, lane < warp ? ofWarp[lane] : 0);
    for (int from = first, i = 0; from < last; from += 32, i++) {
        int p = from + lane;
        bool here = i < 32 && ours >> i & 1;
        if (i >= 32) {
            int id = p < last ? topkIds[p] : -1;
            here = id >= 0 && id < globalExperts && expertMap[id] == expert;
        }
        unsigned mine = __ballot_sync(ALL, here);
        if (here) {
            sortedIds[place + __popc(mine & ((1u << lane) - 1))] = p;
        }
        place += __popc(mine);
    }
    for (int pad = start + total + threadIdx.x; pad < start + blocks * blockSize; pad += blockDim.x) {
        sortedIds[pad] = pairs;
    }
    for (int b = threadIdx.x; b < blocks; b += blockDim.x) {
        expertIds[before + b] = b < used ? expert : -1;
    }
    if (expert == 0 && threadIdx.x == 0) {
        padded[0] = all * blockSize;
    }
    if (balanced && threadIdx.x == 0) {
        loads[expert] = total;
    }
}

// The id, if a token's pair with that expert is this device's, else -1; see Replicas. From globalExperts on ids are zero experts'.
__device__ __forceinline__ int placedId(int id, int token, const int *replicas, int globalExperts) {
    if (id < 0) {
        return -1;
    }
    const int *row = replicas + 3 * min(id, globalExperts);
    int replica = (unsigned) token * 2654435769u % (unsigned) row[0] - row[1];
    return replica >= 0 && replica < row[2] ? id : -1;
}

// Grid: groups of 128, a pair a work-item.
extern "C" __global__ void __launch_bounds__(128) place(const int *header, const int *topkIds, const int *replicas, int *placedIds,
                                                        int pairsPerToken, int globalExperts) {
    afterPredecessor();
    int p = blockIdx.x * 128 + threadIdx.x;
    if (p < header[0] * pairsPerToken) {
        placedIds[p] = placedId(topkIds[p], p / pairsPerToken, replicas, globalExperts);
    }
}

// The places of 1024 neighbouring pairs, by a group of as many. Every group counts all pairs for itself: that is less than waiting for one another.
// What there is for each expert is shared among the groups. dynamic: 76 bytes for each expert. With balanced 1 the experts' loads are
// written. With batched 1 every expert has a slot for each token.
__device__ __forceinline__ void alignRun(int *dynamic, int run, int runs, const int *header, const int *topkIds, const int *expertMap, int *keys,
                                         int *sortedIds, int *expertIds, int *padded, int *loads, int pairsPerToken, int globalExperts,
                                         int experts, int balanced, int batched) {
    int *counts = dynamic, *before = counts + experts, *firstBlock = before + experts;
    // Of each expert the run's pairs in each warp, and then in the warps before it.
    unsigned short *ofWarp = (unsigned short *) (firstBlock + experts);
    int warp = threadIdx.x >> 5, lane = threadIdx.x & 31;
    int pairs = header[0] * pairsPerToken, blockSize = header[1], slotBlocks = batched ? (header[0] + blockSize - 1) / blockSize : 0;
    auto keyOf = [&](int p) {
        int id = topkIds[p];
        return id >= 0 && id < globalExperts ? expertMap[id] : -1;
    };
    auto count = [&](int from, int to) {
#pragma unroll 8
        for (int p = from + threadIdx.x; p < to; p += 1024) {
            int key = keyOf(p);
            if (key >= 0) {
                atomicAdd(counts + key, 1);
            }
        }
    };
    auto blocksOf = [&](int e) { return max((counts[e] + blockSize - 1) / blockSize, slotBlocks); };
    for (int i = threadIdx.x; i < experts * 19; i += 1024) {
        dynamic[i] = 0;
    }
    __syncthreads();
    int first = run * 1024, p = first + threadIdx.x, key = p < pairs ? keyOf(p) : -1;
    count(0, min(first, pairs));
    unsigned same = __match_any_sync(ALL, key);
    int rank = __popc(same & ((1u << lane) - 1));
    if (key >= 0 && rank == 0) {
        ofWarp[warp * experts + key] = __popc(same);
    }
    if (p < pairs) {
        keys[p] = key;
    }
    __syncthreads();
    for (int e = threadIdx.x; e < experts; e += 1024) {
        before[e] = counts[e];
        int sum = 0;
#pragma unroll
        for (int from = 0; from < 32; from += 16) {
            int own[16];
#pragma unroll
            for (int w = 0; w < 16; w++) {
                own[w] = ofWarp[(from + w) * experts + e];
            }
#pragma unroll
            for (int w = 0; w < 16; w++) {
                ofWarp[(from + w) * experts + e] = sum;
                sum += own[w];
            }
        }
    }
    __syncthreads();
    count(first, pairs);
    __syncthreads();
    if (warp == 0) {
        int sum = 0;
        for (int from = 0; from < experts; from += 32) {
            int e = from + lane, own = e < experts ? blocksOf(e) : 0, all = own;
#pragma unroll
            for (int s = 1; s < 32; s <<= 1) {
                int other = __shfl_up_sync(ALL, all, s);
                all += lane >= s ? other : 0;
            }
            if (e < experts) {
                firstBlock[e] = sum + all - own;
            }
            sum += __shfl_sync(ALL, all, 31);
        }
        if (run == 0 && lane == 0) {
            padded[0] = sum * blockSize;
        }
    }
    __syncthreads();
    if (key >= 0) {
        sortedIds[firstBlock[key] * blockSize + before[key] + ofWarp[warp * experts + key] + rank] = p;
    }
    for (int e = run * 32 + warp; e < experts; e += runs * 32) {
        int total = counts[e], used = (total + blockSize - 1) / blockSize, blocks = blocksOf(e), start = firstBlock[e];
        for (int pad = total + lane; pad < blocks * blockSize; pad += 32) {
            sortedIds[start * blockSize + pad] = pairs;
        }
        for (int b = lane; b < blocks; b += 32) {
            expertIds[start + b] = b < used ? e : -1;
        }
        if (balanced && lane == 0) {
            loads[e] = total;
        }
    }
}

// What no kernel writes is on its way before the kernel in front is through.
__device__ __forceinline__ void prefetchMap(const int *header, const int *expertMap, int globalExperts) {
    for (int e = threadIdx.x * 32; e < globalExperts; e += blockDim.x * 32) {
        asm volatile("prefetch.global.L2 [%0];" ::"l"(expertMap + e));
    }
    if (threadIdx.x == 0) {
        asm volatile("prefetch.global.L2 [%0];" ::"l"(header));
    }
}

// ids -> pairs in expert order. Grid: a group of 1024 for every expert here. Shared memory: as many ints.
extern "C" __global__ void __launch_bounds__(1024) align(
    const int *header, const int *topkIds, const int *expertMap, int *keys, int *sortedIds, int *expertIds, int *padded, int *loads,
    int pairsPerToken, int globalExperts, int experts, int balanced, int batched) {
    extern __shared__ int dynamic[];
    prefetchMap(header, expertMap, globalExperts);
    afterPredecessor();
    alignExpert(blockIdx.x, dynamic, header, topkIds, expertMap, keys, sortedIds, expertIds, padded, loads, pairsPerToken, globalExperts,
                experts, balanced, batched);
}

// The same for many. Grid: a group of 1024 for as many pairs. Shared memory: 76 bytes for each expert.
extern "C" __global__ void __launch_bounds__(1024) alignRuns(
    const int *header, const int *topkIds, const int *expertMap, int *keys, int *sortedIds, int *expertIds, int *padded, int *loads,
    int pairsPerToken, int globalExperts, int experts, int balanced, int batched) {
    extern __shared__ int dynamic[];
    prefetchMap(header, expertMap, globalExperts);
    afterPredecessor();
    alignRun(dynamic, blockIdx.x, gridDim.x, header, topkIds, expertMap, keys, sortedIds, expertIds, padded, loads, pairsPerToken, globalExperts,
             experts, balanced, batched);
}

// The same, and by other groups tokens in int8, as prepare does it.
// Grid: groups of 1024, first those for the pairs, runs of them, then one for every 8 rows in int8. Shared memory: 76 bytes for each expert.
extern "C" __global__ void __launch_bounds__(1024) alignAndQuantize(
    const int *header, const int *topkIds, const int *expertMap, const float *hidden, const float *topkWeights, int *keys, int *sortedIds,
    int *expertIds, int *padded, int *loads, u8 *tokens, float *tokenScales, unsigned *amax, int pairsPerToken, int globalExperts,
    int experts, int balanced, int batched, int h, int chunks, int rowsPerToken, int weighted) {
    extern __shared__ int dynamic[];
    prefetchMap(header, expertMap, globalExperts);
    afterPredecessor();
    int m = header[0], pairs = m * pairsPerToken, runs = max(1, (pairs + 1023) / 1024);
    if (blockIdx.x < runs) {
        alignRun(dynamic, blockIdx.x, runs, header, topkIds, expertMap, keys, sortedIds, expertIds, padded, loads, pairsPerToken, globalExperts,
                 experts, balanced, batched);
        return;
    }
    for (int p = (blockIdx.x - runs) * 1024 + threadIdx.x; p < pairs; p += (gridDim.x - runs) * 1024) {
        amax[p] = 0;
    }
    int row = (blockIdx.x - runs) * 8 + (threadIdx.x >> 7);
    if (row < m * rowsPerToken) {
        quantizeRow<4>(hidden + (u64) (row / rowsPerToken) * h, weighted ? topkWeights[row] : 1.0f, h, chunks, tokens + LEAD + (u64) row * chunks * 128,
                    tokenScales + row);
    }
}

// topK, place and align for as many tokens as a group has warps. Grid: a group of a warp a token, but at least four, for every expert here; each
// chooses for itself. Shared memory: a warp's 4 * (choices + groups) bytes, but at least 4 * experts, and 8 for every pair.
extern "C" __global__ void __launch_bounds__(1024) route(
    const int *header, const float *logits, const float *correctionBias, const int *expertMap, const int *replicas, int *topkIds, float *topkWeights,
    int *placedIds, int *keys, int *sortedIds, int *expertIds, int *padded, int *loads, CHOICE_PARAMETERS, int globalExperts, int experts,
    int balanced, int batched) {
    extern __shared__ int dynamic[];
    afterPredecessor();
    Choice c = CHOICE;
    int token = threadIdx.x >> 5, slots = topK + shared, warps = blockDim.x >> 5, pairs = header[0] * slots;
    int *ids = dynamic + max(warps * (choices + groups), experts);
    float *weights = (float *) ids + warps * slots;
    if (token < header[0]) {
        choose(c, (float *) dynamic + token * (choices + groups), logits + (u64) token * (choices + gate), correctionBias,
               ids + token * slots, weights + token * slots);
    }
    __syncthreads();
    if (blockIdx.x == 0) {
        for (int p = threadIdx.x; p < pairs; p += blockDim.x) {
            topkIds[p] = ids[p];
            topkWeights[p] = weights[p];
        }
    }
    if (balanced) {
        for (int p = threadIdx.x; p < pairs; p += blockDim.x) {
            ids[p] = placedId(ids[p], p / slots, replicas, globalExperts);
            if (blockIdx.x == 0) {
                placedIds[p] = ids[p];
            }
        }
        __syncthreads();
    }
    alignExpert(blockIdx.x, dynamic, header, ids, expertMap, keys, sortedIds, expertIds, padded, loads, slots, globalExperts, experts,
                balanced, batched);
}

// ---- the sum over a token's experts

// Grid: groups of 128, four values a work-item.
extern "C" __global__ void __launch_bounds__(128) combine(const int *header, const int *keys, const float *down, float *output,
                                                          int pairsPerToken, int h) {
    int fours = (h + 3) / 4, tokens = header[0];
    u64 index = (u64) blockIdx.x * 128 + threadIdx.x;
    int token = (int) (index / fours), c = (int) (index % fours) * 4;
    if (token < tokens) {
        asm volatile("prefetch.global.L2 [%0];" ::"l"(keys + token * pairsPerToken));
    }
    afterPredecessor();
    if (token >= tokens) {
        return;
    }
    float sum[4] = {};
    for (int first = 0; first < pairsPerToken; first += 8) {
        float x[8][4];
#pragma unroll
        for (int k = 0; k < 8; k++) {
            int p = token * pairsPerToken + first + k;
            bool isThere = first + k < pairsPerToken && keys[p] >= 0;
            const float *row = down + LEAD / 4 + (u64) p * h;
            if (h % 4 == 0) {
                // Read once: it drives nothing out of the cache.
                float4 four = isThere ? __ldcs((const float4 *) (row + c)) : make_float4(0.0f, 0.0f, 0.0f, 0.0f);
                x[k][0] = four.x;
                x[k][1] = four.y;
                x[k][2] = four.z;
                x[k][3] = four.w;
            } else {
                load4(x[k], row, c, isThere ? h : 0);
            }
        }
#pragma unroll
        for (int k = 0; k < 8; k++) {
#pragma unroll
            for (int i = 0; i < 4; i++) {
                sum[i] += x[k][i];
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

// ---- hidden states of 16 bits, two to an int, the first in its lower half

// Grid: groups of 256, an int a work-item.
extern "C" __global__ void __launch_bounds__(256) widenHidden(const int *header, const unsigned *halves, float *hidden, int h, int bf16) {
    afterPredecessor();
    u64 i = (u64) blockIdx.x * 256 + threadIdx.x, values = (u64) header[0] * h;
    if (2 * i < values) {
        unsigned both = halves[i];
#pragma unroll
        for (int j = 0; j < 2; j++) {
            unsigned bits = both >> 16 * j & 0xffff;
            float x = __uint_as_float(bits << 16);
            if (!bf16) {
                asm("cvt.f32.f16 %0, %1;" : "=f"(x) : "h"((unsigned short) bits));
            }
            if (2 * i + j < values) {
                hidden[2 * i + j] = x;
            }
        }
    }
}

// To the nearest, of two the even one. Grid: groups of 256, an int a work-item.
extern "C" __global__ void __launch_bounds__(256) narrowOutput(const int *header, const float *output, unsigned *halves, int h, int bf16) {
    afterPredecessor();
    u64 i = (u64) blockIdx.x * 256 + threadIdx.x, values = (u64) header[0] * h;
    if (2 * i < values) {
        unsigned both = 0;
#pragma unroll
        for (int j = 0; j < 2; j++) {
            unsigned short bits;
            float x = 2 * i + j < values ? output[2 * i + j] : 0.0f;
            if (bf16) {
                asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(bits) : "f"(x));
            } else {
                asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(x));
            }
            both |= (unsigned) bits << 16 * j;
        }
        halves[i] = both;
    }
}
