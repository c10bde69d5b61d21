/* Multiply-adds of int8 values by AVX-512's vpdpbusd, all cores, registers only: what no JVM's compiler makes.
   gcc -O2 -fopenmp -mavx512f -mavx512vnni bench/src/main/c/int8-peak.c -o /tmp/int8-peak && /tmp/int8-peak */
#include <immintrin.h>
#include <omp.h>
#include <stdio.h>

#define ADD(sum) __asm__("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(x), "v"(y))

int main(void) {
    const int turns = 1 << 27;
    int total = 0;
    double start = omp_get_wtime();
#pragma omp parallel reduction(+ : total)
    {
        __m512i x = _mm512_set1_epi8(omp_get_thread_num() + 1), y = _mm512_set1_epi8(3);
        __m512i a = x, b = x, c = x, d = x, e = x, f = x, g = x, h = x, i = x, j = x, k = x, l = x;
        for (int turn = 0; turn < turns; turn++) {
            ADD(a); ADD(b); ADD(c); ADD(d); ADD(e); ADD(f); ADD(g); ADD(h); ADD(i); ADD(j); ADD(k); ADD(l);
        }
        a = _mm512_xor_epi32(_mm512_xor_epi32(_mm512_xor_epi32(a, b), _mm512_xor_epi32(c, d)), _mm512_xor_epi32(e, f));
        g = _mm512_xor_epi32(_mm512_xor_epi32(_mm512_xor_epi32(g, h), _mm512_xor_epi32(i, j)), _mm512_xor_epi32(k, l));
        total += _mm512_reduce_add_epi32(_mm512_or_epi32(a, g));
    }
    double seconds = omp_get_wtime() - start;
    int threads = omp_get_max_threads();
    printf("%.0f GMAC/s, %d threads (%d)\n", 1e-9 * 64 * 12 * turns * threads / seconds, threads, total);
    return 0;
}
