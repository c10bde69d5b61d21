package org.tornadomoe.checkpoint;

import static org.assertj.core.api.Assertions.assertThat;

import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Arrays;
import java.util.List;
import net.jqwik.api.ForAll;
import net.jqwik.api.Property;
import net.jqwik.api.constraints.IntRange;
import net.jqwik.api.constraints.Size;

/** Whatever a file holds, reading it gives tensors that lie inside it, or a CheckpointException that names it. */
class GgufFuzzTest {
    private static final byte[] VALID = new GgufWriter()
            .text("general.architecture", "llama")
            .number("llama.block_count", 1)
            .number("llama.embedding_length", 32)
            .number("llama.expert_count", 2)
            .number("llama.expert_used_count", 1)
            .texts("tokenizer.ggml.tokens", List.of("a", "bc"))
            .tensor("blk.0.ffn_gate_inp.weight", GgmlType.F32, new float[64], 2, 32)
            .tensor("blk.0.ffn_gate_exps.weight", GgmlType.F16, new float[2 * 32 * 32], 2, 32, 32)
            .tensor("blk.0.ffn_up_exps.weight", GgmlType.Q8_0, new float[2 * 32 * 32], 2, 32, 32)
            .tensor("blk.0.ffn_down_exps.weight", GgmlType.BF16, new float[2 * 32 * 32], 2, 32, 32)
            .bytes();
    private static final int HEADER = VALID.length - 256 - 2 * 4096 - 2176;

    private static boolean read(byte[] bytes) throws IOException {
        Path file = Files.createTempFile("fuzz", ".gguf");
        try {
            Files.write(file, bytes);
            try (MoeCheckpoint checkpoint = MoeCheckpoint.open(file)) {
                var weights = checkpoint.layer(0);
                float[] row = new float
                        [Math.max(weights.config().hiddenDim(), weights.config().intermediateSize())];
                weights.gateUpRow(0, 0, row);
                weights.downRow(
                        weights.config().numExperts() - 1, weights.config().hiddenDim() - 1, row);
                return true;
            } catch (CheckpointException e) {
                assertThat(e).hasMessageContaining(file.toString());
                return false;
            }
        } finally {
            Files.delete(file);
        }
    }

    @Property(tries = 1)
    void theFileItselfIsRead() throws IOException {
        assertThat(read(VALID)).isTrue();
    }

    @Property(tries = 400)
    void anyByteOfTheHeaderMayBeAnother(@ForAll @IntRange(min = 0, max = 100_000) int place, @ForAll byte value)
            throws IOException {
        byte[] bytes = VALID.clone();
        bytes[place % HEADER] = value;
        read(bytes);
    }

    @Property(tries = 200)
    void eightBytesOfTheHeaderMayBeAnything(
            @ForAll @IntRange(min = 0, max = 100_000) int place, @ForAll @Size(8) byte[] values) throws IOException {
        byte[] bytes = VALID.clone();
        System.arraycopy(values, 0, bytes, place % (HEADER - 8), 8);
        read(bytes);
    }

    @Property(tries = 200)
    void theFileMayEndAnywhere(@ForAll @IntRange(min = 0, max = 1_000_000) int length) throws IOException {
        assertThat(read(Arrays.copyOf(VALID, length % VALID.length))).isFalse();
    }

    @Property(tries = 200)
    void anythingMayFollowTheMagic(@ForAll @Size(max = 200) byte[] rest) throws IOException {
        byte[] bytes =
                Arrays.copyOf("GGUF\3\0\0\0".getBytes(java.nio.charset.StandardCharsets.ISO_8859_1), 8 + rest.length);
        System.arraycopy(rest, 0, bytes, 8, rest.length);
        assertThat(read(bytes)).isFalse();
    }
}
