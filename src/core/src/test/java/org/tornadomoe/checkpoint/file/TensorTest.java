package org.tornadomoe.checkpoint.file;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatExceptionOfType;

import java.lang.foreign.MemorySegment;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.file.Path;
import java.util.Arrays;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.EnumSource;

class TensorTest {
    /** More than is converted at once, twice and a rest. */
    private static final int COUNT = 2 * 2048 + 5;

    private static Tensor tensor(DType dtype, byte[] data, long... shape) {
        return new Tensor(Path.of("file"), "name", dtype, shape, MemorySegment.ofArray(data));
    }

    /** Numbers that each of these dtypes has, in their bytes. */
    private static byte[] bytes(DType dtype, float[] values) {
        ByteBuffer bytes = ByteBuffer.allocate(values.length * dtype.bytes()).order(ByteOrder.LITTLE_ENDIAN);
        for (float value : values) {
            switch (dtype) {
                case F64 -> bytes.putDouble(value);
                case F32 -> bytes.putFloat(value);
                case F16 -> bytes.putShort(Float.floatToFloat16(value));
                case BF16 -> bytes.putShort((short) (Float.floatToRawIntBits(value) >> 16));
                case F8_E4M3 -> bytes.put((byte) code(SmallFloats.E4M3, value));
                case F8_E5M2 -> bytes.put((byte) code(SmallFloats.E5M2, value));
                case F8_E8M0 -> bytes.put((byte) code(SmallFloats.E8M0, value));
                case I64 -> bytes.putLong((long) value);
                case I32 -> bytes.putInt((int) value);
                default -> bytes.put((byte) value);
            }
        }
        return bytes.array();
    }

    private static int code(float[] table, float value) {
        for (int code = 0; code < 256; code++) {
            if (table[code] == value) {
                return code;
            }
        }
        throw new IllegalArgumentException("no such value: " + value);
    }

    @ParameterizedTest
    @EnumSource(names = {"F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2", "F8_E8M0", "I64", "I32", "I8", "U8"})
    void anyPartIsReadAsFloats(DType dtype) {
        float[] values = new float[COUNT];
        for (int i = 0; i < COUNT; i++) {
            values[i] = 1 << (i * 7 + i / 2048) % 6;
        }
        Tensor tensor = tensor(dtype, bytes(dtype, values), COUNT);
        assertThat(tensor.toFloats()).containsExactly(values);
        float[] into = new float[COUNT];
        tensor.readFloats(3, into, 2, COUNT - 4);
        assertThat(Arrays.copyOfRange(into, 2, COUNT - 2)).containsExactly(Arrays.copyOfRange(values, 3, COUNT - 1));
        assertThat(into).startsWith(0, 0).endsWith(0, 0);
        assertThat(tensor.getFloat(COUNT - 1)).isEqualTo(values[COUNT - 1]);
        float[] every = new float[7];
        tensor.readFloats(5, 4, every, 1, 5);
        assertThat(every).containsExactly(0, values[5], values[9], values[13], values[17], values[21], 0);
        tensor.readFloats(COUNT - 9, 4, every, 0, 3); // the last of all
        assertThat(every).startsWith(values[COUNT - 9], values[COUNT - 5], values[COUNT - 1]);
        float[] untouched = new float[3];
        assertThatExceptionOfType(IndexOutOfBoundsException.class)
                .isThrownBy(() -> tensor.readFloats(COUNT - 8, 4, untouched, 0, 3));
        assertThat(untouched).containsOnly(0);
        tensor.readFloats(COUNT, untouched, 3, 0); // none
        assertThatExceptionOfType(IndexOutOfBoundsException.class).isThrownBy(() -> tensor.getFloat(COUNT));
    }

    /** Where the sign is, and the upper half of a word. */
    @Test
    void negativeValuesAndHighBitsAreRead() {
        assertThat(tensor(DType.F8_E4M3, bytes(DType.F8_E4M3, new float[] {-1.5f, 448}), 2)
                        .getFloat(0))
                .isEqualTo(-1.5f);
        assertThat(tensor(DType.F8_E5M2, new byte[] {0, (byte) 0xc0}, 2).getFloat(1))
                .isEqualTo(-2);
        float[] every = new float[2];
        tensor(DType.F8_E8M0, new byte[] {(byte) 128, 0, (byte) 126}, 3).readFloats(0, 2, every, 0, 2);
        assertThat(every).containsExactly(2, 0.5f);
        assertThat(tensor(DType.U8, new byte[] {-1}, 1).toFloats()).containsExactly(255);
        assertThat(tensor(DType.I8, new byte[] {-1}, 1).toInts()).containsExactly(-1);
    }

    @Test
    void aScaleIsOnePositiveNumber() {
        assertThat(tensor(DType.F32, bytes(DType.F32, new float[] {Float.MAX_VALUE}))
                        .toScale())
                .isEqualTo(Float.MAX_VALUE);
        assertThat(tensor(DType.F32, bytes(DType.F32, new float[] {Float.MIN_VALUE}))
                        .toScale())
                .isEqualTo(Float.MIN_VALUE);
        for (float wrong : new float[] {0, -1, Float.POSITIVE_INFINITY, Float.NaN}) {
            assertThatExceptionOfType(CheckpointException.class)
                    .isThrownBy(() -> tensor(DType.F32, bytes(DType.F32, new float[] {wrong}))
                            .toScale())
                    .withMessage("file: tensor 'name': expected a positive finite scale, got " + wrong);
        }
        assertThatExceptionOfType(CheckpointException.class)
                .isThrownBy(() -> tensor(DType.F32, new byte[8], 2).toScale())
                .withMessage("file: tensor 'name': expected one scale, got name F32[2]");
    }

    /** In whatever dimensions they are stored. */
    @Test
    void rowsLieOneAfterTheOther() {
        Tensor tensor = tensor(DType.I8, new byte[24], 2, 3, 4);
        assertThat(tensor.holds(6, 4)).isTrue();
        assertThat(tensor.holds(2, 12)).isTrue();
        assertThat(tensor.holds(1, 24)).isTrue();
        assertThat(tensor.holds(3, 8)).as("rows across the second dimension").isFalse();
        assertThat(tensor.holds(5, 4)).isFalse();
    }

    @Test
    void elementsOfHalfAByteAreCounted() {
        assertThat(tensor(DType.F4, new byte[12], 24).elements()).isEqualTo(24);

        assertThat(tensor(DType.F32, new byte[24], 2, 3).elements()).isEqualTo(6);
        assertThat(tensor(DType.U8, new byte[24], 24)).hasToString("name U8[24]");
    }
}
