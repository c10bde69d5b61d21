// Faults that compute-sanitizer has to find, so that finding nothing elsewhere means something: bench/sanitizer.md.
// The header begins with M, as every kernel's does; fresh has a pointer.

extern "C" __global__ void outOfBounds(const int *header, const int *const *fresh, int *out) {
    out[1ll << 34] = header[0];
}

// The second warp writes what the first reads.
extern "C" __global__ void race(const int *header, const int *const *fresh, int *out) {
    __shared__ int shared[32];
    if (threadIdx.x >= 32) {
        shared[threadIdx.x - 32] = header[0];
    } else {
        out[threadIdx.x] = shared[threadIdx.x];
    }
}

// What that points to was allocated and never written.
extern "C" __global__ void uninitialised(const int *header, const int *const *fresh, int *out) {
    out[threadIdx.x] = fresh[0][threadIdx.x];
}

// The same, which the compiler is told to be global memory.
extern "C" __global__ void uninitialisedGlobal(const int *header, const int *const *fresh, int *out) {
    int value;
    asm volatile("ld.global.b32 %0, [%1];" : "=r"(value) : "l"(__cvta_generic_to_global(fresh[0] + threadIdx.x)));
    out[threadIdx.x] = value;
}

// A barrier that half of a warp never comes to.
extern "C" __global__ void divergent(const int *header, const int *const *fresh, int *out) {
    if ((threadIdx.x & 1) == 0) {
        __syncthreads();
    }
    out[threadIdx.x] = header[0];
}
