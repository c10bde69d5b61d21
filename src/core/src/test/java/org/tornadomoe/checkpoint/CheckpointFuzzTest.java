package org.tornadomoe.checkpoint;

import static org.assertj.core.api.Assertions.assertThat;

import java.io.IOException;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Arrays;
import java.util.Random;
import java.util.stream.Stream;
import org.junit.jupiter.api.DynamicTest;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.TestFactory;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.EnumSource;

/** What {@link CheckpointFuzz} found and began with, and changes of that, the same in every run. */
class CheckpointFuzzTest {
    private static final int CHANGED = 60;

    @TempDir
    Path directory;

    @TestFactory
    Stream<DynamicTest> keptInputs() {
        return Arrays.stream(FuzzTarget.values())
                .flatMap(target -> target.kept().stream()
                        .map(input -> DynamicTest.dynamicTest(
                                target + " " + input.getFileName(),
                                () -> target.run(Files.readAllBytes(input), directory))));
    }

    @ParameterizedTest
    @EnumSource
    void theFirstInputsAreGood(FuzzTarget target) throws IOException {
        for (Path input : target.kept()) {
            String name = input.getFileName().toString();
            if (name.matches(
                    "mixtral|deepseek2?|gptoss|gpt-oss|channel|groups|gptq|tensor|block|llama|q8_0|k-quants")) {
                assertThat(target.run(Files.readAllBytes(input), directory))
                        .as(target + " " + name)
                        .isTrue();
            }
        }
    }

    @ParameterizedTest
    @EnumSource
    void aFewBytesMayBeOthers(FuzzTarget target) throws IOException {
        Random random = new Random(1);
        for (Path input : target.kept()) {
            byte[] bytes = Files.readAllBytes(input);
            for (int i = 0; i < CHANGED; i++) {
                byte[] changed = bytes.clone();
                // Most of a file are values: what says what they are comes before them.
                int span = Math.min(changed.length, i % 2 == 0 ? 700 : changed.length);
                for (int b = random.nextInt(4); b >= 0; b--) {
                    changed[random.nextInt(span)] = (byte) random.nextInt();
                }
                target.run(changed, directory);
            }
        }
    }

    @ParameterizedTest
    @EnumSource
    void anInputMayEndAnywhere(FuzzTarget target) throws IOException {
        for (Path input : target.kept()) {
            byte[] bytes = Files.readAllBytes(input);
            for (int length = 0; length < bytes.length; length += Math.max(1, bytes.length / CHANGED)) {
                assertThat(target.run(Arrays.copyOf(bytes, length), directory)).isFalse();
            }
        }
    }

    private static byte[] safetensors(char kind, String header, int data) {
        byte[] utf8 = header.getBytes(StandardCharsets.UTF_8);
        return ByteBuffer.allocate(9 + utf8.length + data)
                .order(ByteOrder.LITTLE_ENDIAN)
                .put((byte) kind)
                .putLong(utf8.length)
                .put(utf8)
                .array();
    }

    private static String tensor(String name, int at) {
        return "\"" + name + "\":{\"dtype\":\"I8\",\"shape\":[1],\"data_offsets\":[" + at + "," + (at + 1) + "]}";
    }

    /** Patterns are matched with names in linear time. */
    @Test
    void namesMayBeLong() {
        for (String name : new String[] {".".repeat(49_000), "x".repeat(9_000), "layers.0.".repeat(6_000)}) {
            StringBuilder header = new StringBuilder("{").append(tensor(name, 0));
            for (int i = 1; i < 20; i++) {
                header.append(',').append(tensor(name + i, i));
            }
            FuzzTarget.SAFETENSORS.run(safetensors('0', header + "}", 20), directory);
        }
    }

    /** As {@link #namesMayBeLong}, where an expert's name is, and {@code ignore} has patterns. */
    @Test
    void modulesMayHaveLongNames() throws IOException {
        Path tensors = FuzzTarget.SAFETENSORS.inputs().resolve("channel");
        Path config = FuzzTarget.CONFIG.inputs().resolve("ignore-that-overflows-the-stack");
        String text = Files.readString(tensors, StandardCharsets.ISO_8859_1);
        int length = ByteBuffer.wrap(Files.readAllBytes(tensors))
                .order(ByteOrder.LITTLE_ENDIAN)
                .getInt(1);
        String header = text.substring(9, 9 + length).replace("model.layers", "x".repeat(9_000) + ".layers");
        byte[] data = text.substring(9 + length).getBytes(StandardCharsets.ISO_8859_1);
        byte[] whole = safetensors('3', header, data.length);
        System.arraycopy(data, 0, whole, whole.length - data.length, data.length);
        Path there = FuzzTarget.SAFETENSORS.write(whole, directory);
        byte[] json = Files.readAllBytes(config);
        Files.write(there.resolve("config.json"), Arrays.copyOfRange(json, 1, json.length));
        FuzzTarget.use(there, there);
    }

    /** 64 MB of JSON: refused, or read within the heap of a small JVM. */
    @Test
    void headersMayBeLarge() {
        StringBuilder header = new StringBuilder("{\"__metadata__\":{");
        while (header.length() < 64_000_000) {
            header.append("\"k").append(header.length()).append("\":\"\",");
        }
        header.append("\"k\":\"\"}}");
        FuzzTarget.SAFETENSORS.run(safetensors('0', header.toString(), 0), directory);
        FuzzTarget.CONFIG.run(("0" + header).getBytes(StandardCharsets.UTF_8), directory);
        FuzzTarget.CONFIG.run(
                ("0{\"a\":[" + "[],".repeat(20_000_000) + "1]}").getBytes(StandardCharsets.UTF_8), directory);
    }
}
