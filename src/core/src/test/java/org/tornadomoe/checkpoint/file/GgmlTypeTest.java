package org.tornadomoe.checkpoint.file;

import static java.util.Objects.requireNonNull;
import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatExceptionOfType;

import java.lang.foreign.MemorySegment;
import java.nio.file.Path;
import java.util.Arrays;
import java.util.List;
import java.util.Random;
import java.util.stream.Stream;
import org.jspecify.annotations.Nullable;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.MethodSource;

class GgmlTypeTest {
    private static final Path GOLDEN = Path.of("src/test/resources/golden/ggml/blocks.safetensors");

    private static Stream<GgmlType> read() {
        return Arrays.stream(GgmlType.values()).filter(type -> type.group > 0);
    }

    @Test
    void everyTypeThatIsReadHasAGolden() {
        try (Safetensors golden = Safetensors.open(GOLDEN)) {
            List<String> there = golden.names().stream()
                    .filter(name -> name.endsWith(".bytes"))
                    .map(name -> name.substring(0, name.length() - ".bytes".length()))
                    .toList();
            assertThat(read().map(GgmlType::name)).containsExactlyInAnyOrderElementsOf(there);
        }
    }

    @ParameterizedTest
    @MethodSource("read")
    void blocksAreDecodedAsGgmlDecodesThem(GgmlType type) {
        try (Safetensors golden = Safetensors.open(GOLDEN)) {
            MemorySegment data =
                    requireNonNull(golden.find(type.name() + ".bytes")).data();
            float[] expected =
                    requireNonNull(golden.find(type.name() + ".values")).toFloats();
            byte[] numbers = new byte[type.elements + 2];
            float[] decoded = new float[expected.length];
            for (int block = 0; block < expected.length / type.elements; block++) {
                long at = (long) block * type.bytes;
                type.numbers(data, at, numbers, 1);
                assertThat(numbers[0] | numbers[type.elements + 1])
                        .as("around the block's")
                        .isZero();
                for (int i = 0; i < type.elements; i++) {
                    int group = i / type.group;
                    decoded[block * type.elements + i] =
                            numbers[1 + i] * type.scale(data, at, group) - type.min(data, at, group);
                    if (!type.hasMin()) {
                        assertThat(type.min(data, at, group)).isZero();
                    }
                }
            }
            assertThat(expected).isNotEmpty();
            assertThat(decoded).isEqualTo(expected);
        }
    }

    private static int at(byte[] block, int i) {
        return block[i] & 0xff;
    }

    private static int nibble(byte[] block, int i, int half) {
        return at(block, i) >> (4 * half) & 0xf;
    }

    private static int bit(byte[] block, int from, int i) {
        return at(block, from + i / 8) >> (i % 8) & 1;
    }

    private static int halfSteps(int nibble) {
        return SmallFloats.HALF_STEPS[nibble];
    }

    private static int normal(int nibble) {
        return List.of(-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
                .get(nibble);
    }

    private static int digit(int fraction, int digit) {
        for (int i = 0; i < digit; i++) {
            fraction = (fraction * 3) & 0xff;
        }
        return ((fraction * 3) >> 8) - 1;
    }

    /** The i-th number of a block, by itself, as the format's layout says; null of types with tables. */
    private static @Nullable Integer number(GgmlType type, byte[] b, int i) {
        int l = i % 32; // in the groups of 32 that K-quants' bytes have in turns
        int twoBits = 2 * (i / 32 % 4);
        return switch (type) {
            case Q4_0 -> nibble(b, 2 + i % 16, i / 16) - 8;
            case Q4_1 -> nibble(b, 4 + i % 16, i / 16);
            case Q5_0 -> (nibble(b, 6 + i % 16, i / 16) | bit(b, 2, i) << 4) - 16;
            case Q5_1 -> nibble(b, 8 + i % 16, i / 16) | bit(b, 4, i) << 4;
            case Q8_0 -> (int) b[2 + i];
            case Q2_K -> at(b, 16 + 32 * (i / 128) + l) >> twoBits & 3;
            case Q3_K -> ((at(b, 32 + 32 * (i / 128) + l) >> twoBits & 3) | (at(b, l) >> (i / 32) & 1) << 2) - 4;
            case Q4_K -> nibble(b, 16 + 32 * (i / 64) + l, i / 32 % 2);
            case Q5_K -> nibble(b, 48 + 32 * (i / 64) + l, i / 32 % 2) | (at(b, 16 + l) >> (i / 32) & 1) << 4;
            case Q6_K ->
                (nibble(b, 64 * (i / 128) + 32 * (i / 32 % 2) + l, i / 64 % 2)
                                | (at(b, 128 + 32 * (i / 128) + l) >> twoBits & 3) << 4)
                        - 32;
            case IQ4_NL -> normal(nibble(b, 2 + i % 16, i / 16));
            case IQ4_XS -> normal(nibble(b, 8 + 16 * (i / 32) + i % 16, i / 16 % 2));
            case TQ1_0 ->
                i < 160
                        ? digit(at(b, l), i / 32)
                        : i < 240 ? digit(at(b, 32 + i % 16), (i - 160) / 16) : digit(at(b, 48 + i % 4), (i - 240) / 4);
            case TQ2_0 -> (at(b, 32 * (i / 128) + l) >> twoBits & 3) - 1;
            case MXFP4 -> halfSteps(nibble(b, 1 + i % 16, i / 16));
            case NVFP4 -> halfSteps(nibble(b, 4 + 8 * (i / 16) + i % 8, i / 8 % 2));
            case Q1_0 -> 2 * bit(b, 2, i) - 1;
            case Q2_0 -> (at(b, 2 + i / 4) >> (2 * (i % 4)) & 3) - 1;
            default -> null;
        };
    }

    /** Whatever the bytes: numbers that are taken apart together are those taken one by one, and scales likewise. */
    @ParameterizedTest
    @MethodSource("read")
    void whatIsReadTogetherIsWhatEachIsByItself(GgmlType type) {
        Random random = new Random(type.number);
        byte[] bytes = new byte[3 + 40 * type.bytes];
        random.nextBytes(bytes);
        MemorySegment data = MemorySegment.ofArray(bytes);
        byte[] numbers = new byte[type.elements + 10];
        int groups = type.elements / type.group;
        float[] scales = new float[groups + 2];
        float[] mins = new float[groups + 2];
        for (int at = 3; at < bytes.length; at += type.bytes) {
            byte[] block = Arrays.copyOfRange(bytes, at, at + type.bytes);
            type.numbers(data, at, numbers, 5);
            for (int i = 0; i < type.elements; i++) {
                Integer expected = number(type, block, i);
                assertThat((int) numbers[5 + i]).as("%s", i).isEqualTo(expected == null ? numbers[5 + i] : expected);
            }
            type.scales(data, at, scales, 1);
            type.mins(data, at, mins, 1);
            for (int group = 0; group < groups; group++) {
                Float scale = type.scale(data, at, group); // NaNs are equal as objects
                Float min = type.min(data, at, group);
                assertThat(scales[1 + group]).isEqualTo(scale);
                assertThat(mins[1 + group]).isEqualTo(min);
            }
            assertThat(scales[0] + scales[groups + 1] + mins[0] + mins[groups + 1])
                    .as("around them")
                    .isZero();
        }
        for (int i : new int[] {0, 4, type.elements + 5, type.elements + 9}) {
            assertThat(numbers[i]).as("around them").isZero();
        }
    }

    /** The last block of a file has nothing behind it. */
    @ParameterizedTest
    @MethodSource("read")
    void nothingBehindABlockIsRead(GgmlType type) {
        MemorySegment exact = MemorySegment.ofArray(new byte[type.bytes]);
        type.numbers(exact, 0, new byte[type.elements], 0);
        for (int group = 0; group < type.elements / type.group; group++) {
            assertThat(type.scale(exact, 0, group)).isFinite();
            assertThat(type.min(exact, 0, group)).isZero();
        }
        assertThatExceptionOfType(IndexOutOfBoundsException.class)
                .isThrownBy(() -> type.numbers(exact, type.bytes - 1, new byte[type.elements], 0));
    }

    @Test
    void theScaleOfMxfp4ThatIsNoNumberIsNone() {
        byte[] block = new byte[GgmlType.MXFP4.bytes];
        block[0] = -1;
        assertThat(GgmlType.MXFP4.scale(MemorySegment.ofArray(block), 0, 0)).isNaN();
    }
}
