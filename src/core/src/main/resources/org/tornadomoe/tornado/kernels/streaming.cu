// Weights that are streamed: each warp of skinnyGemm has places of its own in shared memory, for the chunks of k that it multiplies next.
// hopper-gemm.cu and mma.cu include this file; with BULK, which Hopper's files define, Hopper's copy engine fills the places, else every lane copies.

// Places of a warp. With more, activations wait longer for the memory behind weights that nobody needs yet.
#define PLACES 2

#ifdef BULK
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

// Whether that would not wait.
__device__ __forceinline__ bool barrierPassed(unsigned at, int parity) {
    int passed;
    asm volatile("{\n.reg .pred p;\nmbarrier.test_wait.parity.shared::cta.b64 p, [%1], %2;\nselp.b32 %0, 1, 0, p;\n}"
                 : "=r"(passed) : "r"(at), "r"(parity) : "memory");
    return passed;
}

__device__ __forceinline__ void barrierExpect(unsigned at, int bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(at), "r"(bytes) : "memory");
}

// To shared memory, by the copy engine, which tells the barrier. What is read once shall not drive out of the L2 cache what is read again.
__device__ __forceinline__ void bulkCopy(unsigned to, const void *from, int bytes, unsigned barrier, bool once = false) {
    if (once) {
        u64 policy;
        asm volatile("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
        asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1], %2, [%3], %4;" ::"r"(to),
                     "l"(from), "r"(bytes), "r"(barrier), "l"(policy)
                     : "memory");
    } else {
        asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(to), "l"(from),
                     "r"(bytes), "r"(barrier)
                     : "memory");
    }
}
#endif

// A warp's chunks, of BYTES each, on their way; await() and refill() go through the places in turn.
template <int BYTES>
struct Stream {
    unsigned first, barriers, place = 0, phase = 0;

    // Of barriers there are PLACES a warp.
    __device__ __forceinline__ Stream(u8 *dynamic, u64 *barriersOfAll, int warp, int lane)
        : first((unsigned) __cvta_generic_to_shared(dynamic) + warp * PLACES * BYTES),
          barriers((unsigned) __cvta_generic_to_shared(barriersOfAll) + warp * PLACES * 8) {
#ifdef BULK
        if (lane < PLACES) {
            barrierInit(barriers + 8 * lane, 1);
            asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
        }
        __syncwarp();
#endif
    }

    // Of a warp, in all its lanes; nothing is copied where isThere is false.
    __device__ __forceinline__ void fill(int place, const u8 *from, bool isThere, int lane) const {
        unsigned to = first + place * BYTES;
#ifdef BULK
        if (isThere && lane == 0) {
            barrierExpect(barriers + 8 * place, BYTES);
            bulkCopy(to, from, BYTES, barriers + 8 * place);
        }
#else
        if (isThere) {
#pragma unroll
            for (int i = 0; i < BYTES; i += 512) {
                copy16(to + i + lane * 16, from + i + lane * 16, 16);
            }
        }
        asm volatile("cp.async.commit_group;" ::: "memory");
#endif
    }

    // Where the chunk is that was asked for first.
    __device__ __forceinline__ unsigned await() const {
#ifdef BULK
        barrierWait(barriers + 8 * place, phase);
#else
        asm volatile("cp.async.wait_group %0;" ::"n"(PLACES - 1) : "memory");
        __syncwarp();
#endif
        return first + place * BYTES;
    }

    // The warp has read that chunk; its place is another's.
    __device__ __forceinline__ void refill(const u8 *from, bool isThere, int lane) {
        __syncwarp();
        fill(place, from, isThere, lane);
        if (++place == PLACES) {
            place = 0;
            phase ^= 1;
        }
    }
};
