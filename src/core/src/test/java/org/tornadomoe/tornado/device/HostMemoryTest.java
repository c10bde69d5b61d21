package org.tornadomoe.tornado.device;

import static org.assertj.core.api.Assertions.assertThat;

import java.util.ArrayList;
import java.util.List;
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
            FloatArray first = memory.floats(1_234_567);
            FloatArray second = memory.floats(1_234_567);
            assertThat(first.getSize()).isEqualTo(1_234_567);
            assertThat(address)
                    .isIn(
                            first.getSegmentWithHeader().address(),
                            second.getSegmentWithHeader().address());
            for (FloatArray array : new FloatArray[] {first, second}) {
                assertThat(array.getSegment().mismatch(new FloatArray(1_234_567).getSegment()))
                        .isEqualTo(-1);
            }
        }
    }

    @Test
    void anArrayOfAnotherSizeNeverLiesWhereOneWas() {
        List<FloatArray> arrays = new ArrayList<>();
        for (int count : new int[] {1000, 1001, 999, 5000, 1000}) {
            try (HostMemory memory = HostMemory.of(true)) {
                arrays.add(memory.floats(count));
            }
        }
        for (int i = 0; i < arrays.size(); i++) {
            for (int j = 0; j < i; j++) {
                boolean same = arrays.get(i).getSize() == arrays.get(j).getSize();
                assertThat(arrays.get(i)
                                .getSegmentWithHeader()
                                .asOverlappingSlice(arrays.get(j).getSegmentWithHeader())
                                .isPresent())
                        .isEqualTo(same);
            }
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
