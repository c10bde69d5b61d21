// What devices that each have a part of a layer do together: each adds the parts of some of the tokens, in the order of
// the devices, reads what the others computed where they have it, and puts the sum in place of its own. Up to eight
// parts, [values] from `first` on. Grid: groups of 256, four ints a work-item.
typedef unsigned long long u64;

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

template <int TYPE> __device__ void add(Parts parts, int rank, int count, u64 first, u64 ints) {
    u64 i = ((u64) blockIdx.x * 256 + threadIdx.x) * 4;
    if ((first & 3) == 0 && i + 4 <= ints) {
        uint4 terms[8];
#pragma unroll
        for (int part = 0; part < 8; part++) {
            terms[part] = part < count ? *(const uint4 *) (parts.of[part] + first + i) : make_uint4(0, 0, 0, 0);
        }
        unsigned x[8], y[8], z[8], w[8];
#pragma unroll
        for (int part = 0; part < 8; part++) {
            x[part] = terms[part].x;
            y[part] = terms[part].y;
            z[part] = terms[part].z;
            w[part] = terms[part].w;
        }
        uint4 sum = make_uint4(sumOf<TYPE>(x, count), sumOf<TYPE>(y, count), sumOf<TYPE>(z, count), sumOf<TYPE>(w, count));
#pragma unroll
        for (int part = 0; part < 8; part++) {
            if (part == rank) {
                *(uint4 *) (parts.of[part] + first + i) = sum;
            }
        }
        return;
    }
    for (u64 at = i; at < i + 4 && at < ints; at++) {
        unsigned terms[8];
#pragma unroll
        for (int part = 0; part < 8; part++) {
            terms[part] = part < count ? parts.of[part][first + at] : 0;
        }
        unsigned sum = sumOf<TYPE>(terms, count);
#pragma unroll
        for (int part = 0; part < 8; part++) {
            if (part == rank) {
                parts.of[part][first + at] = sum;
            }
        }
    }
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
