package org.tornadomoe.tornado;

import static org.assertj.core.api.Assertions.assertThat;

import org.junit.jupiter.api.Test;
import uk.ac.manchester.tornado.api.types.arrays.FloatArray;
import uk.ac.manchester.tornado.api.types.arrays.IntArray;

class HostMemoryTest {
    @Test
    void aClosedLayersMemoryServesTheNextOneAsZeros() {
        long address;
        try (HostMemory memory = HostMemory.of(true)) {
            FloatArray array = memory.floats(1_234_567);
            array.init(3f);
            address = array.getSegmentWithHeader().address();
            assertThat(address % 4096).isZero();
            assertThat(memory.floats(1_234_567).getSegmentWithHeader().address())
                    .isNotEqualTo(address);
        }
        try (HostMemory memory = HostMemory.of(true)) {
            FloatArray first = memory.floats(1_234_500);
            FloatArray second = memory.floats(1_234_500);
            assertThat(first.getSize()).isEqualTo(1_234_500);
            assertThat(address)
                    .isIn(
                            first.getSegmentWithHeader().address(),
                            second.getSegmentWithHeader().address());
            for (FloatArray array : new FloatArray[] {first, second}) {
                assertThat(array.getSegment().mismatch(new FloatArray(1_234_500).getSegment()))
                        .isEqualTo(-1);
            }
        }
    }

    @Test
    void aMuchLargerBlockIsLeftForWhoNeedsIt() {
        long address;
        try (HostMemory memory = HostMemory.of(true)) {
            address = memory.ints(7_654_321).getSegmentWithHeader().address();
        }
        try (HostMemory memory = HostMemory.of(true)) {
            assertThat(memory.ints(3_000_000).getSegmentWithHeader().address()).isNotEqualTo(address);
        }
    }

    @Test
    void elsewhereArraysAreOrdinary() {
        try (HostMemory memory = HostMemory.of(false)) {
            IntArray array = memory.ints(5);
            assertThat(array.toHeapArray()).containsExactly(0, 0, 0, 0, 0);
        }
    }
}
