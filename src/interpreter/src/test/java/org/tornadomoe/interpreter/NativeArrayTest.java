package org.tornadomoe.interpreter;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.nio.FloatBuffer;
import org.junit.jupiter.api.Test;
import uk.ac.manchester.tornado.api.types.HalfFloat;
import uk.ac.manchester.tornado.api.types.arrays.ByteArray;
import uk.ac.manchester.tornado.api.types.arrays.CharArray;
import uk.ac.manchester.tornado.api.types.arrays.DoubleArray;
import uk.ac.manchester.tornado.api.types.arrays.FloatArray;
import uk.ac.manchester.tornado.api.types.arrays.HalfFloatArray;
import uk.ac.manchester.tornado.api.types.arrays.Int8Array;
import uk.ac.manchester.tornado.api.types.arrays.IntArray;
import uk.ac.manchester.tornado.api.types.arrays.LongArray;
import uk.ac.manchester.tornado.api.types.arrays.ShortArray;
import uk.ac.manchester.tornado.api.types.arrays.TornadoNativeArray;

class NativeArrayTest {
    @Test
    void headerThenValues() {
        IntArray array = IntArray.fromElements(7, 8, 9);
        assertThat(TornadoNativeArray.ARRAY_HEADER).isEqualTo(16);
        assertThat(array.getNumBytesOfSegment()).isEqualTo(12);
        assertThat(array.getNumBytesOfSegmentWithHeader()).isEqualTo(28);
        assertThat(array.getSegmentWithHeader().get(ValueLayout.JAVA_INT, 0)).isEqualTo(3);
        assertThat(array.getSegmentWithHeader().get(ValueLayout.JAVA_INT, 16)).isEqualTo(7);
        assertThat(array.getSegment().getAtIndex(ValueLayout.JAVA_INT, 2)).isEqualTo(9);
    }

    @Test
    void shallowSharesAndSegmentCopies() {
        try (Arena arena = Arena.ofConfined()) {
            MemorySegment room = arena.allocate(16 + 4 * 4, 16);
            room.setAtIndex(ValueLayout.JAVA_FLOAT, 5, 2.5f);
            FloatArray shared = FloatArray.fromSegmentShallow(room);
            FloatArray copied = FloatArray.fromSegment(room.asSlice(16));
            assertThat(shared.getSize()).isEqualTo(4);
            assertThat(room.get(ValueLayout.JAVA_INT, 0)).isEqualTo(4);
            shared.set(0, 1f);
            assertThat(room.getAtIndex(ValueLayout.JAVA_FLOAT, 4)).isEqualTo(1f);
            assertThat(copied.toHeapArray()).containsExactly(0f, 2.5f, 0f, 0f);
            assertThatThrownBy(() -> FloatArray.fromSegment(room.asSlice(0, 6)))
                    .isInstanceOf(IllegalArgumentException.class)
                    .hasMessageContaining("multiple of 4");
        }
    }

    @Test
    void everyTypeKeepsItsValues() {
        assertThat(ByteArray.fromElements((byte) -1, (byte) 2).toHeapArray()).containsExactly(-1, 2);
        assertThat(Int8Array.fromElements((byte) -1, (byte) 2).toHeapArray()).containsExactly(-1, 2);
        assertThat(ShortArray.fromElements((short) -1, (short) 300).toHeapArray())
                .containsExactly(-1, 300);
        assertThat(CharArray.fromElements('a', '\uffff').toHeapArray()).containsExactly('a', '\uffff');
        assertThat(LongArray.fromElements(-1, 1L << 40).toHeapArray()).containsExactly(-1, 1L << 40);
        assertThat(DoubleArray.fromElements(-1, 1e300).toHeapArray()).containsExactly(-1, 1e300);
        HalfFloatArray halves = HalfFloatArray.fromElements(new HalfFloat(1.5f), new HalfFloat(65504f));
        assertThat(halves.get(0).getFloat32()).isEqualTo(1.5f);
        assertThat(halves.get(1).getFloat32()).isEqualTo(65504f);
        assertThat(halves.toShortArray()).containsExactly(0x3e00, 0x7bff);
    }

    @Test
    void partsAndSums() {
        FloatArray array = FloatArray.concat(FloatArray.fromElements(1, 2), FloatArray.fromElements(3));
        assertThat(array.toHeapArray()).containsExactly(1, 2, 3);
        FloatArray part = array.slice(1, 2);
        part.set(0, 9);
        assertThat(part.toHeapArray()).containsExactly(9, 3);
        assertThat(array.get(1)).as("a slice is a copy").isEqualTo(2);
        assertThatThrownBy(() -> array.slice(2, 2)).isInstanceOf(IllegalArgumentException.class);
        array.init(4);
        assertThat(array.toHeapArray()).containsOnly(4);
        array.clear();
        assertThat(array.toHeapArray()).containsOnly(0);
        assertThat(FloatArray.fromFloatBuffer(FloatBuffer.wrap(new float[] {1, 2, 3}, 1, 2))
                        .toHeapArray())
                .containsExactly(2, 3);
    }

    @Test
    void boundsAreTheElements() {
        ByteArray array = new ByteArray(4);
        assertThatThrownBy(() -> array.get(4)).isInstanceOf(IndexOutOfBoundsException.class);
        assertThatThrownBy(() -> array.set(-1, (byte) 0)).isInstanceOf(IndexOutOfBoundsException.class);
        assertThatThrownBy(() -> array.getHalfFloat(4)).isInstanceOf(IndexOutOfBoundsException.class);
        assertThatThrownBy(() -> array.getHalfFloat(1)).isInstanceOf(IllegalArgumentException.class);
        array.setHalfFloat(2, new HalfFloat(-2f));
        assertThat(array.getHalfFloat(2).getFloat32()).isEqualTo(-2f);
        assertThatThrownBy(() -> new IntArray(-1)).isInstanceOf(IllegalArgumentException.class);
    }
}
