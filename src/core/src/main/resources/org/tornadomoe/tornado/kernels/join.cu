// What devices that each have a part of a layer do together: each adds the parts of some of the tokens, in the order of
// the devices, reads what the others computed where they have it, and puts the sum in place of its own. Up to eight
// parts, [values] from `first` on. Grid: groups of 256, four ints a work-item.
#include "steps.cu"

struct Parts {
    unsigned *of[8];
};

// The sum of one int of each part: a float, or two values of 16 bits.
template <int TYPE> __device__ unsigned sumOf(const unsigned *terms, int count) {
    if (TYPE == 0) {
        float sum = __uint_as_float(terms[0]);
#pragma unroll
        for (int part = 1; part < 8; part++) {
            sum = part < count ? sum + __uint_as_float(terms[part]) : sum;
        }
        return __float_as_uint(sum);
    }
    unsigned both = 0;
#pragma unroll
    for (int j = 0; j < 2; j++) {
        float sum = 0;
#pragma unroll
        for (int part = 0; part < 8; part++) {
            unsigned bits = terms[part] >> 16 * j & 0xffff;
            float x = __uint_as_float(bits << 16);
            if (TYPE == 1) {
                asm("cvt.f32.f16 %0, %1;" : "=f"(x) : "h"((unsigned short) bits));
            }
            sum = part == 0 ? x : part < count ? sum + x : sum;
        }
        unsigned short rounded;
        if (TYPE == 1) {
            asm("cvt.rn.f16.f32 %0, %1;" : "=h"(rounded) : "f"(sum));
        } else {
            asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(rounded) : "f"(sum));
        }
        both |= (unsigned) rounded << 16 * j;
    }
    return both;
}

// The sums of up to four ints from at on, before end, put at to + at.
template <int TYPE> __device__ __forceinline__ void addFour(Parts parts, int count, unsigned *to, u64 at, u64 end) {
    if ((at & 3) == 0 && at + 4 <= end) {
        uint4 terms[8];
#pragma unroll
        for (int part = 0; part < 8; part++) {
            terms[part] = part < count ? *(const uint4 *) (parts.of[part] + at) : make_uint4(0, 0, 0, 0);
        }
        unsigned x[8], y[8], z[8], w[8];
#pragma unroll
        for (int part = 0; part < 8; part++) {
            x[part] = terms[part].x;
            y[part] = terms[part].y;
            z[part] = terms[part].z;
            w[part] = terms[part].w;
        }
        *(uint4 *) (to + at) =
            make_uint4(sumOf<TYPE>(x, count), sumOf<TYPE>(y, count), sumOf<TYPE>(z, count), sumOf<TYPE>(w, count));
        return;
    }
    for (u64 i = at; i < at + 4 && i < end; i++) {
        unsigned terms[8];
#pragma unroll
        for (int part = 0; part < 8; part++) {
            terms[part] = part < count ? parts.of[part][i] : 0;
        }
        to[i] = sumOf<TYPE>(terms, count);
    }
}

template <int TYPE> __device__ void add(Parts parts, int rank, int count, u64 first, u64 ints) {
    unsigned *own = parts.of[0];
#pragma unroll
    for (int part = 1; part < 8; part++) {
        own = part == rank ? parts.of[part] : own;
    }
    addFour<TYPE>(parts, count, own, first + ((u64) blockIdx.x * 256 + threadIdx.x) * 4, first + ints);
}

#define ADD(NAME, TYPE)                                                                                                                      \
    extern "C" __global__ void __launch_bounds__(256) NAME(                                                                                  \
        unsigned *p0, unsigned *p1, unsigned *p2, unsigned *p3, unsigned *p4, unsigned *p5, unsigned *p6, unsigned *p7, int rank, int count, \
        u64 first, u64 ints) {                                                                                                               \
        add<TYPE>({{p0, p1, p2, p3, p4, p5, p6, p7}}, rank, count, first, ints);                                                              \
    }

ADD(addFloats, 0)
ADD(addF16, 1)
ADD(addBf16, 2)

// ---- a call of few values, recorded as a graph: launches, copies and events would take longer than the kernels

// The call's number and the values come from the host's memory. Grid: groups of 256, four ints a work-item.
extern "C" __global__ void __launch_bounds__(256) take(const unsigned *number, const unsigned *from, unsigned *call, unsigned *to, u64 ints) {
    launchSuccessor();
    u64 i = ((u64) blockIdx.x * 256 + threadIdx.x) * 4;
    bool counts = blockIdx.x == 0 && threadIdx.x == 0;
    unsigned now = counts ? *number : 0;
    uint4 four = i + 4 <= ints ? *(const uint4 *) (from + i) : make_uint4(0, 0, 0, 0);
    awaitPredecessor();
    if (counts) {
        *call = now;
    }
    if (i + 4 <= ints) {
        *(uint4 *) (to + i) = four;
    } else {
        for (; i < ints; i++) {
            to[i] = from[i];
        }
    }
}

// Tells the device that adds that this one's part is there. Grid: one work-item.
extern "C" __global__ void __launch_bounds__(1) tell(unsigned *flag, const unsigned *call) {
    afterPredecessor();
    __threadfence_system();
    asm volatile("st.release.sys.global.u32 [%0], %1;" ::"l"(flag), "r"(*call) : "memory");
}

__device__ __forceinline__ unsigned acquired(const unsigned *at) {
    unsigned bits;
    asm volatile("ld.acquire.sys.global.u32 %0, [%1];" : "=r"(bits) : "l"(at) : "memory");
    return bits;
}

// Adds all parts, in their order, into the host's memory, once the others are there: their flags have the call's number,
// or the host's word has, which says that they are through. The other parts are one behind the other, stride ints each.
// type: 0 for floats, 1 for F16, 2 for BF16. Grid: few groups of 256, for what they wait for needs room beside them.
extern "C" __global__ void __launch_bounds__(256) sum(unsigned *own, unsigned *others, const unsigned *call, const unsigned *flags,
    const unsigned *through, unsigned *out, u64 stride, u64 ints, int count, int type) {
    afterPredecessor();
    if (threadIdx.x > 0 && threadIdx.x < count) {
        unsigned number = *call;
        for (int spins = 1; acquired(flags + threadIdx.x) != number; spins++) {
            if (spins % 1024 == 0 && acquired(through) == number) {
                break;
            }
        }
    }
    __syncthreads();
    Parts parts;
    parts.of[0] = own;
#pragma unroll
    for (int part = 1; part < 8; part++) {
        parts.of[part] = others + (part - 1) * stride;
    }
    for (u64 at = ((u64) blockIdx.x * 256 + threadIdx.x) * 4; at < ints; at += (u64) gridDim.x * 1024) {
        if (type == 0) {
            addFour<0>(parts, count, out, at, ints);
        } else if (type == 1) {
            addFour<1>(parts, count, out, at, ints);
        } else {
            addFour<2>(parts, count, out, at, ints);
        }
    }
}
