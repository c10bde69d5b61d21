// What kernels in CUDA C share: who comes first, and four values of a row. gemm.cu, layer-stages.cu and join.cu include this file.

typedef unsigned char u8;
typedef unsigned long long u64;

// Every kernel may be launched before the one in front of it is through (programmatic dependent launch, from compute capability 9.0 on), and
// waits for it itself. What is behind it may be launched from then on.
__device__ __forceinline__ void awaitPredecessor() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

__device__ __forceinline__ void launchSuccessor() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

__device__ __forceinline__ void afterPredecessor() {
    awaitPredecessor();
    launchSuccessor();
}

// Four values from column c, 0 beyond the last; a row need not begin at a multiple of 16 bytes.
__device__ __forceinline__ void load4(float (&x)[4], const float *row, int c, int columns) {
    if ((columns & 3) == 0) {
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

// The same, each times weight.
__device__ __forceinline__ void load4(float (&x)[4], const float *row, int c, int columns, float weight) {
    load4(x, row, c, columns);
#pragma unroll
    for (int i = 0; i < 4; i++) {
        x[i] = __fmul_rn(x[i], weight);
    }
}
