package org.tornadomoe.checkpoint;

import static org.assertj.core.api.Assertions.assertThat;

import java.io.IOException;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.List;
import net.jqwik.api.Arbitraries;
import net.jqwik.api.Arbitrary;
import net.jqwik.api.ForAll;
import net.jqwik.api.Property;
import net.jqwik.api.Provide;
import net.jqwik.api.constraints.IntRange;
import net.jqwik.api.constraints.Size;

/** Whatever a file holds, reading it gives tensors that lie inside it, or a CheckpointException. */
class SafetensorsFuzzTest {
    private static final byte[] VALID =
            ("{\"__metadata__\":{\"k\":\"v\"},\"a\":{\"dtype\":\"F32\",\"shape\":[2,1],\"data_offsets\":[0,8]},"
                            + "\"b\":{\"dtype\":\"BF16\",\"shape\":[3],\"data_offsets\":[8,14]}}")
                    .getBytes(StandardCharsets.UTF_8);
    private static final int DATA = 14;

    private static void read(byte[] bytes) throws IOException {
        Path file = Files.createTempFile("fuzz", ".safetensors");
        try {
            Files.write(file, bytes);
            try (Safetensors tensors = Safetensors.open(file)) {
                for (String name : tensors.names()) {
                    Tensor tensor = tensors.tensor(name);
                    if (tensor.dtype().isReadable()) {
                        assertThat(tensor.toFloats()).hasSize((int) tensor.elements());
                    }
                }
            } catch (CheckpointException e) {
                assertThat(e).hasMessageStartingWith(file.toString());
            }
        } finally {
            Files.delete(file);
        }
    }

    private static byte[] file(byte[] header, int dataBytes) {
        return ByteBuffer.allocate(8 + header.length + dataBytes)
                .order(ByteOrder.LITTLE_ENDIAN)
                .putLong(header.length)
                .put(header)
                .array();
    }

    @Property(tries = 300)
    void anyBytes(@ForAll @Size(max = 200) byte[] bytes) throws IOException {
        read(bytes);
    }

    @Property(tries = 500)
    void anyBytesAsTheHeader(@ForAll @Size(max = 200) byte[] header, @ForAll @IntRange(max = 20) int dataBytes)
            throws IOException {
        read(file(header, dataBytes));
    }

    @Property(tries = 1000)
    void aValidFileWithAFewBytesChanged(
            @ForAll @Size(min = 1, max = 4) List<@IntRange(max = 1000) Integer> places,
            @ForAll @Size(value = 4) byte[] values)
            throws IOException {
        byte[] bytes = file(VALID, DATA);
        for (int i = 0; i < places.size(); i++) {
            bytes[places.get(i) % bytes.length] = values[i];
        }
        read(bytes);
    }

    @Property(tries = 1000)
    void aHeaderPutTogetherFromItsPieces(
            @ForAll("pieces") List<String> pieces, @ForAll @IntRange(max = 20) int dataBytes) throws IOException {
        read(file(("{" + String.join("", pieces)).getBytes(StandardCharsets.UTF_8), dataBytes));
    }

    @Provide
    Arbitrary<List<String>> pieces() {
        return Arbitraries.of(
                        "{",
                        "}",
                        "[",
                        "]",
                        ",",
                        ":",
                        "\"a\":",
                        "\"b\":",
                        "\"dtype\":",
                        "\"F32\"",
                        "\"I8\"",
                        "\"shape\":",
                        "\"data_offsets\":",
                        "[0,4]",
                        "[4,8]",
                        "[1]",
                        "[]",
                        "0",
                        "-1",
                        "1e400",
                        "9223372036854775807",
                        "99999999999999999999",
                        "null",
                        "true",
                        "NaN",
                        "\"__metadata__\":",
                        "\"\\ud800\"",
                        "\"\\u0000\"",
                        "{\"dtype\":\"I8\",\"shape\":[4],\"data_offsets\":[0,4]}",
                        "\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]}")
                .list()
                .ofMaxSize(14);
    }
}
