package org.tornadomoe.checkpoint.file;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatExceptionOfType;
import static org.assertj.core.api.Assertions.assertThatIllegalArgumentException;
import static org.assertj.core.api.Assertions.assertThatIllegalStateException;

import java.io.IOException;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Arrays;
import java.util.function.Consumer;
import java.util.stream.Collectors;
import java.util.stream.IntStream;
import java.util.stream.Stream;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.condition.EnabledOnOs;
import org.junit.jupiter.api.condition.OS;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;
import org.junit.jupiter.params.provider.EnumSource;

class SafetensorsTest {
    @TempDir
    Path directory;

    private static MemorySegment little(int bytes, Consumer<ByteBuffer> filled) {
        ByteBuffer buffer = ByteBuffer.allocate(bytes).order(ByteOrder.LITTLE_ENDIAN);
        filled.accept(buffer);
        return MemorySegment.ofArray(buffer.array());
    }

    /** A file with that header and data, whether it makes sense or not. */
    private Path file(String header, int dataBytes) throws IOException {
        byte[] json = header.getBytes(StandardCharsets.UTF_8);
        ByteBuffer all = ByteBuffer.allocate(8 + json.length + dataBytes).order(ByteOrder.LITTLE_ENDIAN);
        all.putLong(json.length).put(json);
        return Files.write(directory.resolve("f.safetensors"), all.array());
    }

    private static void assertRefused(Path path, String message) {
        assertThatExceptionOfType(CheckpointException.class)
                .isThrownBy(() -> Safetensors.open(path).close())
                .withMessageContaining(message)
                .withMessageStartingWith(path.toString());
    }

    @Test
    void everyReadableTypeComesBackAsFloat() {
        Path file = directory.resolve("types.safetensors");
        new SafetensorsWriter()
                .add("f64", DType.F64, little(16, b -> b.putDouble(0.1).putDouble(-1e300)), 2)
                .add("f32", new float[] {1.5f, Float.NaN}, 2)
                .add(
                        "f16",
                        DType.F16,
                        little(
                                6,
                                b -> b.putShort((short) 0x3c00)
                                        .putShort((short) 0xfbff)
                                        .putShort((short) 1)),
                        3)
                .add(
                        "bf16",
                        DType.BF16,
                        little(4, b -> b.putShort((short) 0x3f80).putShort((short) 0xc2f7)),
                        2)
                .add("i64", DType.I64, little(16, b -> b.putLong(-3).putLong(1L << 40)), 2)
                .add("i32", new int[] {-7, Integer.MAX_VALUE}, 2)
                .add("i8", new byte[] {-128, 127}, 2)
                .add("u8", DType.U8, little(2, b -> b.put((byte) 200).put((byte) 3)), 2)
                .write(file);
        try (Safetensors tensors = Safetensors.open(file)) {
            assertThat(tensors.tensor("f64").toFloats()).containsExactly(0.1f, Float.NEGATIVE_INFINITY);
            assertThat(tensors.tensor("f32").toFloats()).containsExactly(1.5f, Float.NaN);
            assertThat(tensors.tensor("f16").toFloats()).containsExactly(1f, -65504f, 0x1p-24f);
            assertThat(tensors.tensor("bf16").toFloats()).containsExactly(1f, -123.5f);
            assertThat(tensors.tensor("i64").toFloats()).containsExactly(-3f, 0x1p40f);
            assertThat(tensors.tensor("i32").toInts()).containsExactly(-7, Integer.MAX_VALUE);
            assertThat(tensors.tensor("i32").toFloats()).containsExactly(-7f, 0x1p31f);
            assertThat(tensors.tensor("i8").toInts()).containsExactly(-128, 127);
            assertThat(tensors.tensor("i8").toBytes()).containsExactly(-128, 127);
            assertThat(tensors.tensor("u8").toInts()).containsExactly(200, 3);
            assertThatExceptionOfType(CheckpointException.class)
                    .isThrownBy(() -> tensors.tensor("i64").toInts())
                    .withMessage(file + ": tensor 'i64': expected values in the range of a 32-bit integer, got "
                            + (1L << 40) + " at index 1");
            assertThatExceptionOfType(CheckpointException.class)
                    .isThrownBy(() -> tensors.tensor("f32").toInts())
                    .withMessageContaining("tensor 'f32'")
                    .withMessageContaining("F32");
            assertThatExceptionOfType(CheckpointException.class)
                    .isThrownBy(() -> tensors.tensor("i32").toBytes())
                    .withMessageContaining("expected dtype I8 or U8, got I32");
        }
    }

    @ParameterizedTest
    @EnumSource
    void aTensorOfEveryTypeKeepsItsBytesShapeAndPlace(DType dtype) {
        Path file = directory.resolve(dtype + ".safetensors");
        byte[] bytes = new byte[8 * dtype.bits() / 8];
        for (int i = 0; i < bytes.length; i++) {
            bytes[i] = (byte) (37 * i);
        }
        new SafetensorsWriter()
                .add("odd", new byte[] {1}, 1)
                .add("t", dtype, MemorySegment.ofArray(bytes), 2, 4)
                .write(file);
        try (Safetensors tensors = Safetensors.open(file)) {
            Tensor tensor = tensors.tensor("t");
            assertThat(tensor.dtype()).isEqualTo(dtype);
            assertThat(tensor.shape()).containsExactly(2, 4);
            assertThat(tensor.elements()).isEqualTo(8);
            assertThat(tensor.data().toArray(ValueLayout.JAVA_BYTE)).isEqualTo(bytes);
            assertThat(tensor.data().address() % dtype.bytes()).isZero();
            assertThat(tensor.data().isReadOnly()).isTrue();
            if (!dtype.isReadable()) {
                assertThatExceptionOfType(CheckpointException.class)
                        .isThrownBy(tensor::toFloats)
                        .withMessageContaining("tensor 't'")
                        .withMessageContaining(dtype.name());
            }
        }
    }

    @Test
    void typesThatAreReadAndThoseOfFloats() {
        assertThat(DType.values())
                .filteredOn(DType::isFloat)
                .containsExactlyInAnyOrder(DType.F64, DType.F32, DType.F16, DType.BF16);
        assertThat(DType.values()).filteredOn(DType::isFloat).allMatch(DType::isReadable);
        assertThat(DType.values())
                .filteredOn(DType::isReadable)
                .contains(DType.I64, DType.I32, DType.I8, DType.U8)
                .hasSizeLessThan(DType.values().length);
        assertThat(DType.I8.bytes(new long[] {1L << 31, 1L << 31, 2, 0})).isZero();
        assertThat(DType.I8.bytes(new long[] {Long.MAX_VALUE})).isEqualTo(Long.MAX_VALUE);
        assertThat(DType.I8.bytes(new long[] {1L << 32, 1L << 31})).isEqualTo(-1);
    }

    @Test
    void segmentsOfAnyHeapArrayAreWritten() {
        Path file = directory.resolve("heap.safetensors");
        new SafetensorsWriter()
                .add("floats", DType.F32, MemorySegment.ofArray(new float[] {1.5f, -2f}), 2)
                .add("bytes", DType.I8, MemorySegment.ofArray(new byte[] {3, -4}), 2)
                .write(file);
        try (Safetensors tensors = Safetensors.open(file)) {
            assertThat(tensors.tensor("floats").toFloats()).containsExactly(1.5f, -2f);
            assertThat(tensors.tensor("bytes").toBytes()).containsExactly(3, -4);
        }
    }

    @Test
    void rowsAreReadFromTheMiddle() {
        Path file = directory.resolve("rows.safetensors");
        new SafetensorsWriter().add("t", new float[] {0, 1, 2, 3, 4, 5}, 3, 2).write(file);
        try (Safetensors tensors = Safetensors.open(file)) {
            float[] into = new float[4];
            tensors.tensor("t").readFloats(3, into, 1, 2);
            assertThat(into).containsExactly(0, 3, 4, 0);
            assertThatExceptionOfType(IndexOutOfBoundsException.class)
                    .isThrownBy(() -> tensors.tensor("t").readFloats(5, into, 0, 2));
            assertThatExceptionOfType(IndexOutOfBoundsException.class)
                    .isThrownBy(() -> tensors.tensor("t").readFloats(0, into, 3, 2));
        }
    }

    @Test
    void namesMetadataScalarsAndEmptyTensorsSurvive() {
        Path file = directory.resolve("odd.safetensors");
        new SafetensorsWriter()
                .metadata("format", "pt")
                .metadata("quote\"and\\", "ünï\u0000")
                .add("scalar", new float[] {5})
                .add("empty", new float[0], 0, 1L << 40)
                .add("ключ \"q\"", new int[] {1}, 1)
                .write(file);
        try (Safetensors tensors = Safetensors.open(file)) {
            assertThat(tensors.names()).containsExactlyInAnyOrder("scalar", "empty", "ключ \"q\"");
            assertThat(tensors.metadata()).containsEntry("format", "pt").containsEntry("quote\"and\\", "ünï\u0000");
            assertThat(tensors.tensor("scalar").shape()).isEmpty();
            assertThat(tensors.tensor("scalar").toFloats()).containsExactly(5);
            assertThat(tensors.tensor("empty").toFloats()).isEmpty();
        }
    }

    @Test
    void aFileWithoutTensorsIsFine() {
        Path file = directory.resolve("none.safetensors");
        new SafetensorsWriter().write(file);
        try (Safetensors tensors = Safetensors.open(file)) {
            assertThat(tensors.names()).isEmpty();
            assertThatExceptionOfType(CheckpointException.class)
                    .isThrownBy(() -> tensors.tensor("x"))
                    .withMessage(file + ": has no tensor 'x'; it has 0: ");
        }
    }

    @Test
    void closedMeansClosed() {
        Path file = directory.resolve("closed.safetensors");
        new SafetensorsWriter().add("t", new float[1], 1).write(file);
        Safetensors tensors = Safetensors.open(file);
        Tensor kept = tensors.tensor("t");
        tensors.close();
        tensors.close();
        assertThatIllegalStateException().isThrownBy(() -> tensors.tensor("t")).withMessage(file + " is closed");
        assertThatIllegalStateException().isThrownBy(kept::toFloats);
    }

    @ParameterizedTest
    @CsvSource(
            delimiter = '|',
            quoteCharacter = '`',
            value = {
                // JSON and its shape
                "'' | 0 | does not begin with '{'",
                "[1] | 0 | does not begin with '{'",
                "{ | 0 | the header is not valid JSON: Unexpected end-of-input: expected close marker for Object (line"
                        + " 1, column 2)",
                "{} {} | 0 | goes on after its JSON object",
                "{\"a\": nonsense} | 0 | not valid JSON",
                "{\"a\": 1} | 0 | tensor 'a': expected an object, got an integer",
                "{\"a\": null} | 0 | tensor 'a': expected an object, got null",
                "{\"a\": {}} | 0 | tensor 'a': has no dtype",
                "{\"a\": {\"dtype\":\"F32\"}} | 0 | tensor 'a': has no shape",
                "{\"a\": {\"dtype\":\"F32\",\"shape\":[1]}} | 4 | tensor 'a': has no data_offsets",
                "{\"a\": {\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4],\"x\":1}} | 4 | tensor 'a': expected"
                        + " dtype, shape and data_offsets, got 'x'",
                "{\"a\": {\"dtype\":\"F32\",\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]}} | 4 | tensor 'a':"
                        + " has 'dtype' twice",
                "{\"__metadata__\": {\"k\": 1}} | 0 | __metadata__ 'k': expected a string, got an integer",
                "{\"__metadata__\": {\"k\": {}}} | 0 | __metadata__ 'k': expected a string, got an object",
                "{\"__metadata__\": []} | 0 | __metadata__: expected an object, got an array",
                "{\"__metadata__\": {\"k\":\"\",\"k\":\"\"}} | 0 | __metadata__ has the key 'k' twice",
                "{\"__metadata__\": {},\"__metadata__\": {}} | 0 | names '__metadata__' twice",
                // values
                "{\"a\": {\"dtype\":\"F32\",\"shape\":[-1],\"data_offsets\":[0,4]}} | 4 | tensor 'a': shape: expected"
                        + " numbers from 0",
                "{\"a\": {\"dtype\":\"F32\",\"shape\":[1.0],\"data_offsets\":[0,4]}} | 4 | tensor 'a': shape: expected"
                        + " an integer, got a number with a fraction",
                "{\"a\": {\"dtype\":\"F32\",\"shape\":[\"1\"],\"data_offsets\":[0,4]}} | 4 | tensor 'a': shape:"
                        + " expected an integer, got a string",
                "{\"a\": {\"dtype\":\"F32\",\"shape\":[18446744073709551617],\"data_offsets\":[0,4]}} | 4 | tensor"
                        + " 'a': shape: expected numbers from 0 to 2^63 - 1",
                "{\"a\": {\"dtype\":\"F32\",\"shape\":[4294967296,4294967296],\"data_offsets\":[0,0]}} | 0 | takes"
                        + " more than 2^63, or parts of, bytes, but its data_offsets span 0",
                "{\"a\": {\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,4]}} | 4 | tensor 'a': F32[2] takes 8"
                        + " bytes, but its data_offsets span 4",
                "{\"a\": {\"dtype\":\"F32\",\"shape\":[0],\"data_offsets\":[0,4]}} | 4 | tensor 'a': F32[0] takes 0"
                        + " bytes, but its data_offsets span 4",
                "{\"a\": {\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[4,0]}} | 4 | tensor 'a': data_offsets:"
                        + " expected [begin, end] with begin <= end, got [4, 0]",
                "{\"a\": {\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0]}} | 4 | tensor 'a': data_offsets:"
                        + " expected [begin, end]",
                "{\"a\": {\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4,4]}} | 4 | tensor 'a': data_offsets:"
                        + " expected at most 2 numbers, got more",
                // places
                "{\"a\": {\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]}} | 3 | tensor 'a' ends at byte 4 of"
                        + " the data, but the file holds only 3 bytes of it: truncated?",
                "{\"a\": {\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]}} | 6 | 2 bytes at the end of the"
                        + " file belong to no tensor (after tensor 'a')",
                "{\"a\": {\"dtype\":\"I8\",\"shape\":[4],\"data_offsets\":[0,4]},\"b\":"
                    + " {\"dtype\":\"I8\",\"shape\":[4],\"data_offsets\":[3,7]}} | 7 | tensor 'b' overlaps tensor 'a'",
                "{\"a\": {\"dtype\":\"I8\",\"shape\":[4],\"data_offsets\":[5,9]},\"b\":"
                    + " {\"dtype\":\"I8\",\"shape\":[4],\"data_offsets\":[0,4]}} | 9 | tensor 'a' leaves a hole of 1"
                    + " bytes after tensor 'b'",
                "{\"a\": {\"dtype\":\"I8\",\"shape\":[4],\"data_offsets\":[1,5]}} | 5 | tensor 'a' leaves a hole of 1"
                        + " bytes after the header",
                "{\"a\": {\"dtype\":\"I8\",\"shape\":[4],\"data_offsets\":[0,4]},\"a\":"
                        + " {\"dtype\":\"I8\",\"shape\":[4],\"data_offsets\":[4,8]}} | 8 | the header names 'a' twice",
            })
    void aDamagedHeaderIsDescribed(String header, int dataBytes, String message) throws IOException {
        assertRefused(file(header.equals("''") ? "" : header, dataBytes), message);
    }

    @Test
    void namesAndMetadataHaveBounds() throws IOException {
        String entry = "\":{\"dtype\":\"I8\",\"shape\":[1],\"data_offsets\":[0,1]}}";
        try (Safetensors tensors = Safetensors.open(file("{\"" + "n".repeat(1024) + entry, 1))) {
            assertThat(tensors.names()).containsExactly("n".repeat(1024));
        }
        assertRefused(file("{\"" + "n".repeat(1025) + entry, 1), "expected a name of at most 1024 characters");
        String most = IntStream.range(0, 1 << 16)
                .mapToObj(n -> "\"" + n + "\":\"\"")
                .collect(Collectors.joining(",", "{\"__metadata__\":{", ""));
        try (Safetensors tensors = Safetensors.open(file(most + "}}", 0))) {
            assertThat(tensors.metadata()).hasSize(1 << 16);
        }
        assertRefused(file(most + ",\"more\":\"\"}}", 0), "__metadata__: expected at most 65536 keys");
    }

    @Test
    void notUtf8IsNotJson() throws IOException {
        byte[] bytes = {3, 0, 0, 0, 0, 0, 0, 0, '{', (byte) 0xff, '}'};
        assertRefused(Files.write(directory.resolve("utf"), bytes), "the header is not valid JSON");
    }

    @Test
    void endlesslyNestedJsonIsRefused() throws IOException {
        assertRefused(file("{\"a\":" + "[".repeat(1_000_000), 0), "tensor 'a': expected an object, got an array");
        assertRefused(
                file("{\"a\":{\"shape\":[" + "0,".repeat(1_000_000), 0),
                "tensor 'a': shape: expected at most 64 numbers, got more");
    }

    @Test
    void aHeaderLengthThatCannotBeIsRefusedBeforeItIsRead() throws IOException {
        Path file = directory.resolve("length");
        Files.write(file, new byte[] {1, 2, 3});
        assertRefused(file, "is 3 bytes long: too short for a safetensors file");
        Files.write(file, new byte[0]);
        assertRefused(file, "is 0 bytes long");
        Files.write(file, new byte[8]);
        assertRefused(file, "the header does not begin with '{'");
        for (long length : new long[] {-1, Long.MIN_VALUE, 100_000_001, Long.MAX_VALUE}) {
            Files.write(
                    file,
                    ByteBuffer.allocate(16)
                            .order(ByteOrder.LITTLE_ENDIAN)
                            .putLong(length)
                            .array());
            assertRefused(file, "header length: expected 0 to 100000000, got " + Long.toUnsignedString(length));
        }
        Files.write(
                file,
                ByteBuffer.allocate(16)
                        .order(ByteOrder.LITTLE_ENDIAN)
                        .putLong(9)
                        .array());
        assertRefused(file, "header length: expected at most the 8 bytes that follow it, got 9 (truncated?)");
        Files.write(
                file,
                ByteBuffer.allocate(16)
                        .order(ByteOrder.LITTLE_ENDIAN)
                        .putLong(100_000_000)
                        .array());
        assertRefused(file, "header length: expected at most the 8 bytes that follow it, got 100000000 (truncated?)");
    }

    @Test
    void aFileCutShortAnywhereIsRefused() throws IOException {
        Path whole = directory.resolve("whole");
        new SafetensorsWriter()
                .add("a", new float[] {1, 2}, 2)
                .add("b", new byte[] {1}, 1)
                .write(whole);
        byte[] bytes = Files.readAllBytes(whole);
        Path cut = directory.resolve("cut");
        for (int length = 0; length < bytes.length; length++) {
            Files.write(cut, Arrays.copyOf(bytes, length));
            assertThatExceptionOfType(CheckpointException.class)
                    .as("first %d of %d bytes", length, bytes.length)
                    .isThrownBy(() -> Safetensors.open(cut).close());
        }
    }

    @Test
    @EnabledOnOs(OS.LINUX)
    void neitherARefusedNorAClosedFileStaysMapped() throws IOException {
        Path refused = file("{\"a\": {}}", 0);
        assertRefused(refused, "has no dtype");
        assertThat(mappedFiles()).doesNotContain(refused.toString());
        Path file = directory.resolve("mapped");
        new SafetensorsWriter().add("a", new float[1], 1).write(file);
        Safetensors tensors = Safetensors.open(file);
        assertThat(mappedFiles()).contains(file.toString());
        tensors.close();
        assertThat(mappedFiles()).doesNotContain(file.toString());
    }

    private static String mappedFiles() throws IOException {
        return Files.readString(Path.of("/proc/self/maps"));
    }

    @Test
    void whatIsNotThereIsNamed() throws IOException {
        assertRefused(directory.resolve("nowhere"), "no such file or directory");
        assertRefused(directory, "holds neither model.safetensors nor model.safetensors.index.json");
    }

    /** Other files that people have, and what they can do. */
    @ParameterizedTest
    @CsvSource({
        "pytorch_model-00001-of-00002.bin, PyTorch's pickles are not read",
        "consolidated.00.pth, save the model as safetensors",
        "Qwen3-Q4_K_M.gguf, give the path of that file"
    })
    void whatIsThereInsteadIsNamed(String file, String advice) throws IOException {
        Files.createFile(directory.resolve("a.txt"));
        Files.createFile(directory.resolve(file));
        assertRefused(directory, "holds neither model.safetensors nor model.safetensors.index.json; it holds " + file);
        assertRefused(directory, advice);
    }

    private void index(String json) throws IOException {
        Files.writeString(directory.resolve("model.safetensors.index.json"), json);
    }

    @Test
    void shardsAreOneSetOfTensors() throws IOException {
        new SafetensorsWriter()
                .metadata("of", "1")
                .add("a", new float[] {1}, 1)
                .add("extra", new float[1], 1)
                .write(directory.resolve("model-00001-of-00002.safetensors"));
        new SafetensorsWriter()
                .add("b", new float[] {2}, 1)
                .write(directory.resolve("model-00002-of-00002.safetensors"));
        index("{\"metadata\": {\"total_size\": 8}, \"weight_map\": {\"b\": \"model-00002-of-00002.safetensors\","
                + " \"a\": \"model-00001-of-00002.safetensors\"}}");
        try (Safetensors tensors = Safetensors.open(directory)) {
            assertThat(tensors.names()).containsExactly("b", "a");
            assertThat(tensors.tensor("a").toFloats()).containsExactly(1);
            assertThat(tensors.tensor("b").toFloats()).containsExactly(2);
            assertThat(tensors.metadata()).containsEntry("of", "1");
        }
    }

    private void write(String file, String tensor) {
        new SafetensorsWriter().add(tensor, new float[] {1}, 1).write(directory.resolve(file));
    }

    /** As when somebody fetched the shards and not the index; what lies beside them is none of theirs. */
    @Test
    void shardsNeedNoIndexIfAllAreThere() {
        write("model-00001-of-00003.safetensors", "a");
        write("model-00003-of-00003.safetensors", "c");
        write("golden.safetensors", "hidden_states");
        assertRefused(
                directory,
                "holds neither model.safetensors nor model.safetensors.index.json, and of the 3 shards"
                        + " model-00002-of-00003.safetensors is missing");
        write("model-00002-of-00003.safetensors", "b");
        try (Safetensors tensors = Safetensors.open(directory)) {
            assertThat(tensors.names()).containsExactly("a", "b", "c");
        }
        write("model-00002-of-00003.safetensors", "a");
        assertThatExceptionOfType(CheckpointException.class)
                .isThrownBy(() -> Safetensors.open(directory).close())
                .withMessage(directory.resolve("model-00002-of-00003.safetensors")
                        + ": tensor 'a' is also in model-00001-of-00003.safetensors");
        write("other-00001-of-00001.safetensors", "b");
        assertRefused(
                directory, "it holds golden.safetensors and other-00001-of-00001.safetensors: which is the model's?");
    }

    /** As AutoGPTQ names it. */
    @Test
    void theOnlyFileMayHaveAnyName() {
        write("gptq_model-4bit-128g.safetensors", "a");
        try (Safetensors tensors = Safetensors.open(directory)) {
            assertThat(tensors.names()).containsExactly("a");
        }
        write("hidden.safetensors", "b");
        assertRefused(
                directory,
                "it holds gptq_model-4bit-128g.safetensors and hidden.safetensors: which is the model's?"
                        + " Name that one model.safetensors, or fetch the index");
    }

    @Test
    void aSingleFileIsPreferredToAnIndex() throws IOException {
        new SafetensorsWriter().add("single", new float[1], 1).write(directory.resolve("model.safetensors"));
        index("not even JSON");
        try (Safetensors tensors = Safetensors.open(directory)) {
            assertThat(tensors.names()).containsExactly("single");
        }
    }

    /** A tensor of a type of the future, in a shard: it is there, and only whoever asks for it is told. */
    @Test
    void aTensorOfAnUnknownTypeBlocksNothingButItself() throws IOException {
        String tensor = "\"new\": {\"dtype\": \"F3\", \"shape\": [4], \"data_offsets\": [0, 2]}, \"old\":"
                + " {\"dtype\": \"I8\", \"shape\": [1], \"data_offsets\": [2, 3]}";
        Path file = file("{" + tensor + "}", 3);
        index("{\"weight_map\": {\"new\": \"f.safetensors\", \"old\": \"f.safetensors\"}}");
        for (Path path : new Path[] {file, directory}) {
            try (Safetensors tensors = Safetensors.open(path)) {
                assertThat(tensors.names()).containsExactlyInAnyOrder("new", "old");
                assertThat(tensors.tensor("old").toBytes()).containsExactly(0);
                assertThatExceptionOfType(CheckpointException.class)
                        .isThrownBy(() -> tensors.find("new"))
                        .withMessageStartingWith(file + ": tensor 'new': dtype: expected one of [")
                        .withMessageEndingWith(", got 'F3'");
                assertThatExceptionOfType(UnsupportedOperationException.class)
                        .isThrownBy(() -> tensors.names().clear());
            }
        }
    }

    @Test
    void eightTensorsAreNamedAndOfMoreTheFirst() {
        Path file = directory.resolve("many.safetensors");
        SafetensorsWriter writer = new SafetensorsWriter();
        for (int i = 0; i < 8; i++) {
            writer.add("t" + i, new byte[1], 1);
        }
        writer.write(file);
        String eight = "t0, t1, t2, t3, t4, t5, t6, t7";
        assertMissing(file, "has no tensor 'x'; it has 8: " + eight);
        writer.add("t8", new byte[1], 1).write(file);
        assertMissing(file, "has no tensor 'x'; it has 9: " + eight + ", ...");
    }

    private static void assertMissing(Path file, String message) {
        try (Safetensors tensors = Safetensors.open(file)) {
            assertThatExceptionOfType(CheckpointException.class)
                    .isThrownBy(() -> tensors.tensor("x"))
                    .withMessage(file + ": " + message);
        }
    }

    @Test
    void theNameOfAShardIsNoLongerThanNamesOfFiles() throws IOException {
        String most = "s".repeat(255);
        index("{\"weight_map\": {\"a\": \"" + most + "\"}}");
        assertThatExceptionOfType(CheckpointException.class)
                .isThrownBy(() -> Safetensors.open(directory))
                .withMessageStartingWith(directory.resolve(most) + ": no such file, though ");
        index("{\"weight_map\": {\"a\": \"" + most + "s\"}}");
        assertThatExceptionOfType(CheckpointException.class)
                .isThrownBy(() -> Safetensors.open(directory))
                .withMessageContaining("weight_map: expected the name of a file beside it, got 'sss");
    }

    @Test
    void declaredTensorsAreHandedOverOnceEachAndWhole() {
        Path file = directory.resolve("declared.safetensors");
        SafetensorsWriter writer = new SafetensorsWriter()
                .declare("a", DType.I8, 3)
                .declare("b", DType.F32, 1, 2)
                .add("c", new byte[5], 5);
        assertThat(writer.bytes()).isEqualTo(3 + 8 + 5);
        MemorySegment three = MemorySegment.ofArray(new byte[] {1, 2, 3});
        MemorySegment two = MemorySegment.ofArray(new float[] {4, 5});
        assertThatIllegalArgumentException()
                .isThrownBy(() -> writer.write(file, sink -> {
                    sink.put("a", three);
                    sink.put("a", three);
                }))
                .withMessage("tensor 'a': expected one that is declared and not yet handed over, got 3 bytes");
        for (String name : new String[] {"b", "c", "d"}) {
            assertThatIllegalArgumentException()
                    .isThrownBy(() -> writer.write(file, sink -> sink.put(name, three)))
                    .withMessage("tensor '" + name + "': expected one that is declared and not yet handed over, got 3"
                            + " bytes");
        }
        assertThat(file).doesNotExist();
        writer.write(file, sink -> {
            sink.put("b", two);
            sink.put("a", three);
        });
        try (Safetensors tensors = Safetensors.open(file)) {
            assertThat(tensors.tensor("a").toBytes()).containsExactly(1, 2, 3);
            assertThat(tensors.tensor("b").toFloats()).containsExactly(4, 5);
            assertThat(tensors.tensor("b").shape()).containsExactly(1, 2);
        }
    }

    @Test
    void aWrongIndexIsDescribed() throws IOException {
        Path index = directory.resolve("model.safetensors.index.json");
        new SafetensorsWriter().add("a", new float[1], 1).write(directory.resolve("s.safetensors"));
        String[][] cases = {
            {"nonsense", "is not valid JSON"},
            {"{\"weight_map\": {}, \"weight_map\": {}}", "is not valid JSON: has 'weight_map' twice"},
            {"[]", "expected a JSON object"},
            {"", "is not valid JSON"},
            {"{}", "has no 'weight_map'"},
            {"{\"weight_map\": 3}", "'weight_map': expected an object, got 3"},
            {"{\"weight_map\": {\"a\": 3}}", "weight_map: tensor 'a': expected a file name, got 3"},
            {"{\"weight_map\": {\"a\": \"../s.safetensors\"}}", "expected the name of a file beside it"},
            {"{\"weight_map\": {\"a\": \"/etc/passwd\"}}", "expected the name of a file beside it"},
            {"{\"weight_map\": {\"a\": \"\"}}", "expected the name of a file beside it"},
            {"[".repeat(100_000), "expected a JSON object"},
        };
        for (String[] c : cases) {
            index(c[0]);
            assertThatExceptionOfType(CheckpointException.class)
                    .as("%.60s", c[0])
                    .isThrownBy(() -> Safetensors.open(directory))
                    .withMessageStartingWith(index.toString())
                    .withMessageContaining(c[1]);
        }
        index("{\"weight_map\": {\"a\": \"t.safetensors\"}}");
        assertThatExceptionOfType(CheckpointException.class)
                .isThrownBy(() -> Safetensors.open(directory))
                .withMessage(directory.resolve("t.safetensors")
                        + ": no such file, though model.safetensors.index.json names it as a shard");
        index("{\"weight_map\": {\"b\": \"s.safetensors\"}}");
        assertThatExceptionOfType(CheckpointException.class)
                .isThrownBy(() -> Safetensors.open(directory))
                .withMessage(directory.resolve("s.safetensors")
                        + ": has no tensor 'b', which model.safetensors.index.json says it has");
    }

    @Test
    void theWriterChecksBeforeItWrites() {
        SafetensorsWriter writer = new SafetensorsWriter().add("a", new float[2], 2);
        assertThatIllegalArgumentException()
                .isThrownBy(() -> writer.add("a", new float[2], 2))
                .withMessage("tensor 'a': the name is taken");
        assertThatIllegalArgumentException().isThrownBy(() -> writer.add("__metadata__", new float[2], 2));
        assertThatIllegalArgumentException()
                .isThrownBy(() -> writer.add("b", new float[2], 3))
                .withMessage("tensor 'b': expected 12 bytes for F32[3], got 8");
        assertThatIllegalArgumentException()
                .isThrownBy(() -> writer.add("b", new float[1], 0))
                .withMessage("tensor 'b': expected 0 bytes for F32[0], got 4");
        assertThatIllegalArgumentException()
                .isThrownBy(() -> writer.declare("a", DType.I8, 1))
                .withMessage("tensor 'a': the name is taken");
        assertThatIllegalArgumentException()
                .isThrownBy(() -> writer.add("b", new float[1], -1, -1))
                .withMessage("tensor 'b': shape: expected no negative sizes, got [-1, -1]");
        assertThatIllegalArgumentException().isThrownBy(() -> writer.add("b", new float[1], 1L << 40, 1L << 40));
    }

    @Test
    void aFailedWriteLeavesWhatWasThere() throws IOException {
        Path target = directory.resolve("taken");
        Files.createDirectories(target.resolve("inside"));
        SafetensorsWriter writer = new SafetensorsWriter().add("a", new float[2], 2);
        assertThatExceptionOfType(CheckpointException.class)
                .isThrownBy(() -> writer.write(target))
                .withMessageStartingWith(target + ": cannot be written");
        assertThatExceptionOfType(CheckpointException.class)
                .isThrownBy(() -> writer.write(directory.resolve("no/such/directory/f")))
                .withMessageContaining("cannot be written: no such file or directory");
        try (Stream<Path> left = Files.list(directory)) {
            assertThat(left).containsExactly(target);
        }
    }

    @Test
    void writingReplacesWholeFiles() throws IOException {
        Path file = directory.resolve("f.safetensors");
        new SafetensorsWriter().add("old", new float[100], 100).write(file);
        new SafetensorsWriter().add("new", new float[1], 1).write(file);
        try (Safetensors tensors = Safetensors.open(file);
                Stream<Path> left = Files.list(directory)) {
            assertThat(tensors.names()).containsExactly("new");
            assertThat(left).containsExactly(file);
        }
    }
}
