package org.tornadomoe.checkpoint;

import static java.util.Objects.requireNonNull;
import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatExceptionOfType;

import java.lang.foreign.MemorySegment;
import java.nio.file.Path;
import java.util.Arrays;
import java.util.List;
import java.util.stream.Stream;
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
