// What kernels for Hopper (sm_90a) share, hopper-gemm.cu and wgmma-gemm.cu: barriers in shared memory, the copy engine, and what tells wgmma of
// rows in shared memory.

__device__ __forceinline__ void barrierInit(unsigned at, int count) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(at), "r"(count));
}

__device__ __forceinline__ void barrierArrive(unsigned at) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(at) : "memory");
}

__device__ __forceinline__ void barrierWait(unsigned at, int parity) {
    asm volatile(
        "{\n.reg .pred p;\nWAIT:\nmbarrier.try_wait.parity.shared::cta.b64 p, [%0], %1;\n@p bra DONE;\nbra WAIT;\nDONE:\n}" ::"r"(at),
        "r"(parity)
        : "memory");
}

__device__ __forceinline__ void barrierExpect(unsigned at, int bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(at), "r"(bytes) : "memory");
}

// To shared memory, by the copy engine, which tells the barrier.
__device__ __forceinline__ void bulkCopy(unsigned to, const void *from, int bytes, unsigned barrier) {
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(to), "l"(from),
                 "r"(bytes), "r"(barrier)
                 : "memory");
}

// The descriptor of rows of 128 bytes in shared memory, or of 64, swizzled, 8 rows one behind the other.
template <int LINE>
__device__ __forceinline__ u64 descriptor(unsigned at) {
    return (u64) ((at & 0x3ffff) >> 4) | (u64) 1 << 16 | (u64) (LINE / 2) << 32 | (u64) (LINE == 128 ? 1 : 2) << 62;
}
