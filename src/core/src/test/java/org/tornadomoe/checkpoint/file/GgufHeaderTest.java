package org.tornadomoe.checkpoint.file;

import static java.util.Objects.requireNonNull;
import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatExceptionOfType;

import java.io.IOException;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Arrays;
import java.util.List;
import java.util.function.Consumer;
import java.util.stream.Stream;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.condition.EnabledOnOs;
import org.junit.jupiter.api.condition.OS;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.Arguments;
import org.junit.jupiter.params.provider.CsvSource;
import org.junit.jupiter.params.provider.MethodSource;
import org.junit.jupiter.params.provider.ValueSource;

/** A GGUF file's header, byte by byte. */
class GgufHeaderTest {
    private static final int F32 = 0;

    @TempDir
    Path directory;

    /** A file with these metadata pairs and tensors, which {@code body} writes behind their counts. */
    private Path file(int tensors, int entries, Consumer<ByteBuffer> body) throws IOException {
        ByteBuffer bytes = ByteBuffer.allocate(4096).order(ByteOrder.LITTLE_ENDIAN);
        bytes.put("GGUF".getBytes(StandardCharsets.US_ASCII)).putInt(3);
        bytes.putLong(tensors).putLong(entries);
        body.accept(bytes);
        return Files.write(directory.resolve("file.gguf"), Arrays.copyOf(bytes.array(), bytes.position()));
    }

    private static ByteBuffer text(ByteBuffer into, String text) {
        return into.putLong(text.length()).put(text.getBytes(StandardCharsets.US_ASCII));
    }

    private static void tensor(ByteBuffer into, String name, int type, long offset, long... sizes) {
        text(into, name).putInt(sizes.length);
        for (long size : sizes) {
            into.putLong(size);
        }
        into.putInt(type).putLong(offset);
    }

    /** Zeros up to a multiple of 32, and so many more. */
    private static void data(ByteBuffer into, int bytes) {
        into.position((into.position() + 31) / 32 * 32 + bytes);
    }

    private static void refused(Path file, String message) {
        assertThatExceptionOfType(CheckpointException.class)
                .isThrownBy(() -> Gguf.open(file).close())
                .withMessageContaining(message);
    }

    private static Stream<Arguments> values() {
        return Stream.of(
                value(0, bytes -> bytes.put((byte) 200), 200L),
                value(1, bytes -> bytes.put((byte) 200), -56L),
                value(2, bytes -> bytes.putShort((short) 40_000), 40_000L),
                value(3, bytes -> bytes.putShort((short) 40_000), -25_536L),
                value(4, bytes -> bytes.putInt(-1), 4_294_967_295L),
                value(5, bytes -> bytes.putInt(-1), -1L),
                value(6, bytes -> bytes.putFloat(1.5f), 1.5),
                value(7, bytes -> bytes.put((byte) 2), true),
                value(7, bytes -> bytes.put((byte) 0), false),
                value(8, bytes -> text(bytes, "abc"), "abc"),
                value(10, bytes -> bytes.putLong(-7), -7L),
                value(11, bytes -> bytes.putLong(-7), -7L),
                value(12, bytes -> bytes.putDouble(-2.25), -2.25));
    }

    private static Arguments value(int type, Consumer<ByteBuffer> write, Object value) {
        return Arguments.of(type, write, value);
    }

    @ParameterizedTest
    @MethodSource("values")
    void aValueOfEveryTypeIsReadAloneAndInAList(int type, Consumer<ByteBuffer> write, Object value) throws IOException {
        Path file = file(0, 3, bytes -> {
            write.accept(text(bytes, "one").putInt(type));
            text(bytes, "list").putInt(9).putInt(type).putLong(2);
            write.accept(bytes);
            write.accept(bytes);
            text(bytes, "behind").putInt(10).putLong(5);
        });
        try (Gguf gguf = Gguf.open(file)) {
            assertThat(gguf.metadata().get("one")).isEqualTo(value);
            assertThat(gguf.metadata().get("list")).hasToString("a list of 2");
            assertThat(gguf.metadata().get("behind")).isEqualTo(5L);
            assertThat(gguf.skipped("list")).isEqualTo(List.of(value, value));
            assertThat(gguf.skipped("one")).isEqualTo(type == 8 ? value : null);
            assertThat(gguf.skipped("none")).isNull();
            assertThat(requireNonNull(gguf.encoded().get("behind")).byteSize()).isEqualTo(12);
        }
        byte[] all = Files.readAllBytes(file);
        Files.write(file, Arrays.copyOf(all, all.length - 3));
        refused(file, "'behind': expected 8 bytes, but the file ends after 5 (truncated?)");
    }

    @Test
    void theVersionIsTwoOrThree() throws IOException {
        Path file = file(0, 0, _ -> {});
        byte[] all = Files.readAllBytes(file);
        assertThat(all).hasSize(24);
        for (int version : new int[] {2, 3}) {
            all[4] = (byte) version;
            Gguf.open(Files.write(file, all)).close();
        }
        refused(Files.write(file, Arrays.copyOf(all, 23)), "is 23 bytes long: too short for a GGUF file");
        all[4] = 1;
        refused(Files.write(file, all), "version: expected 2 or 3, got 1");
        all[4] = 0;
        all[7] = 3;
        refused(Files.write(file, all), "version: expected 2 or 3, got a big-endian file");
    }

    @Test
    void namesAndKeptStringsHaveBounds() throws IOException {
        String longest = "n".repeat(1024);
        Path file = file(1, 0, bytes -> {
            tensor(bytes, longest, F32, 0, 8);
            data(bytes, 32);
        });
        try (Gguf gguf = Gguf.open(file)) {
            assertThat(gguf.names()).containsExactly(longest);
        }
        refused(
                file(1, 0, bytes -> tensor(bytes, longest + "n", F32, 0, 8)),
                "name of tensor 0: length: expected at most 1024, got 1025");
        file = file(0, 1, bytes -> text(text(bytes, "kept").putInt(8), "x".repeat(3000)));
        byte[] head = Arrays.copyOf(Files.readAllBytes(file), 24 + 8 + 4 + 4 + 8);
        for (int length : new int[] {4096, 4097}) {
            ByteBuffer all = ByteBuffer.allocate(head.length + length)
                    .order(ByteOrder.LITTLE_ENDIAN)
                    .put(head)
                    .putLong(head.length - 8, length);
            try (Gguf gguf = Gguf.open(Files.write(file, all.array()))) {
                assertThat(gguf.metadata().get("kept"))
                        .hasToString(length == 4096 ? "\0".repeat(4096) : "a string of 4097");
            }
        }
    }

    @Test
    @EnabledOnOs(OS.LINUX)
    void aRefusedFileIsNotMapped() throws IOException {
        Path file = file(1, 0, bytes -> tensor(bytes, "t", F32, 0));
        refused(file, "expected 1 to 4 dimensions");
        assertThat(Files.readString(Path.of("/proc/self/maps"))).doesNotContain(file.toString());
    }

    @Test
    void longStringsAndListsOfListsAreSkipped() throws IOException {
        Path file = file(0, 4, bytes -> {
            text(text(bytes, "kept").putInt(8), "x".repeat(1000));
            text(bytes, "lists").putInt(9).putInt(9).putLong(2);
            bytes.putInt(0).putLong(3).put(new byte[3]);
            bytes.putInt(8).putLong(1);
            text(bytes, "string");
            text(bytes, "deep").putInt(9);
            bytes.putInt(9)
                    .putLong(1)
                    .putInt(9)
                    .putLong(1)
                    .putInt(9)
                    .putLong(1)
                    .putInt(7)
                    .putLong(0);
            text(bytes, "behind").putInt(7).put((byte) 1);
        });
        try (Gguf gguf = Gguf.open(file)) {
            assertThat(gguf.metadata().get("kept")).isEqualTo("x".repeat(1000));
            assertThat(gguf.metadata().get("lists")).hasToString("a list of 2");
            assertThat(gguf.skipped("lists")).isNull();
            assertThat(gguf.metadata().get("behind")).isEqualTo(true);
        }
        refused(
                file(0, 1, bytes -> {
                    text(bytes, "deeper").putInt(9);
                    for (int depth = 0; depth < 4; depth++) {
                        bytes.putInt(9).putLong(1);
                    }
                    bytes.putInt(7).putLong(0);
                }),
                "'deeper': lists within lists, more than 4 deep");
        refused(file(0, 1, bytes -> text(bytes, "odd").putInt(13).putInt(0)), "'odd': unknown type 13");
        refused(file(0, 1, bytes -> text(bytes, "odd").putInt(9).putInt(13).putLong(0)), "'odd': unknown type 13");
    }

    @Test
    void aListIsNoLongerThanTheFile() throws IOException {
        // 2 bytes each, 4 of them are left
        refused(
                file(
                        0,
                        1,
                        bytes -> text(bytes, "list")
                                .putInt(9)
                                .putInt(2)
                                .putLong(3)
                                .putInt(0)),
                "'list': length: expected at most 2 in what is left of the file, got 3 (truncated?)");
        file(0, 1, bytes -> text(bytes, "list").putInt(9).putInt(2).putLong(2).putInt(0));
        Gguf.open(directory.resolve("file.gguf")).close();
    }

    @ParameterizedTest
    @CsvSource({"0, false", "1, true", "32, true", "1048576, true", "1048577, false"})
    void dataIsAligned(long alignment, boolean fits) throws IOException {
        Path file =
                file(0, 1, bytes -> text(bytes, "general.alignment").putInt(10).putLong(alignment));
        if (fits) {
            Gguf.open(file).close();
        } else {
            refused(file, "general.alignment: expected 1 to 1048576, got " + alignment);
        }
    }

    @ParameterizedTest
    @ValueSource(ints = {1, 2, 3, 4})
    void tensorsHaveUpToFourDimensions(int dimensions) throws IOException {
        long[] sizes = {2, 3, 1, 2};
        Path file = file(1, 0, bytes -> {
            tensor(bytes, "t", F32, 0, Arrays.copyOf(sizes, dimensions));
            data(bytes, 48);
        });
        try (Gguf gguf = Gguf.open(file)) {
            Gguf.Entry entry = requireNonNull(gguf.find("t"));
            assertThat(entry.shape()).hasSize(dimensions).endsWith(2);
            assertThat(entry.data().byteSize())
                    .isEqualTo(4 * Arrays.stream(sizes, 0, dimensions).reduce(1, (a, b) -> a * b));
        }
    }

    @Test
    void sizesThatCannotBeAreRefused() throws IOException {
        refused(file(1, 0, bytes -> tensor(bytes, "t", F32, 0)), "tensor 't': expected 1 to 4 dimensions, got 0");
        refused(
                file(1, 0, bytes -> tensor(bytes, "t", F32, 0, 1, 1, 1, 1, 1)),
                "tensor 't': expected 1 to 4 dimensions, got 5");
        refused(
                file(1, 0, bytes -> tensor(bytes, "t", F32, 0, 4, 0)),
                "tensor 't': expected a positive size (and fewer than 2^63 elements), got 0 as dimension 1");
        refused(
                file(1, 0, bytes -> tensor(bytes, "t", F32, 0, 1L << 32, 1L << 31)),
                "fewer than 2^63 elements), got 2147483648 as dimension 1");
        refused(
                file(1, 0, bytes -> tensor(bytes, "t", F32, 0, 1L << 62)),
                "tensor 't': its size or offset is out of range");
        refused(file(1, 0, bytes -> tensor(bytes, "t", F32, -4, 1)), "tensor 't': its size or offset is out of range");
        refused(
                file(1, 0, bytes -> tensor(bytes, "t", 8, 0, 31)), // Q8_0
                "tensor 't': expected rows of a multiple of 32 elements (Q8_0), got 31");
    }

    /** In whatever order they are told. */
    @Test
    void tensorsLieBesideOneAnother() throws IOException {
        Path file = file(2, 0, bytes -> {
            tensor(bytes, "second", F32, 32, 8);
            tensor(bytes, "first", F32, 0, 8);
            data(bytes, 64);
        });
        try (Gguf gguf = Gguf.open(file)) {
            assertThat(gguf.names()).containsExactly("second", "first");
        }
        byte[] all = Files.readAllBytes(file);
        Files.write(file, Arrays.copyOf(all, all.length - 1));
        refused(
                file,
                "tensor 'second' needs 32 bytes from byte 32 of the data, but the file holds only 63 bytes of it:"
                        + " truncated?");
        refused(
                file(2, 0, bytes -> {
                    tensor(bytes, "second", F32, 28, 8);
                    tensor(bytes, "first", F32, 0, 8);
                    data(bytes, 64);
                }),
                "tensor 'second' overlaps tensor 'first'");
        refused(
                file(2, 0, bytes -> {
                    tensor(bytes, "t", F32, 0, 8);
                    tensor(bytes, "t", F32, 32, 8);
                    data(bytes, 64);
                }),
                "has the tensor 't' a second time");
    }

    @Test
    void aFileIsKnownByItsNameOrItsFirstBytes() throws IOException {
        Path named = file(0, 0, _ -> {});
        assertThat(Gguf.looksLike(named)).isTrue();
        Path other = Files.copy(named, directory.resolve("blob"));
        assertThat(Gguf.looksLike(other)).isTrue();
        assertThat(Gguf.looksLike(Files.writeString(other, "GGUX"))).isFalse();
        assertThat(Gguf.looksLike(Files.writeString(other, "GGU"))).isFalse();
        assertThat(Gguf.looksLike(directory)).isFalse();
    }
}
