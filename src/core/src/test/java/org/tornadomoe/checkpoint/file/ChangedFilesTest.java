package org.tornadomoe.checkpoint.file;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatExceptionOfType;

import java.io.IOException;
import java.io.UncheckedIOException;
import java.nio.channels.FileChannel;
import java.nio.file.Files;
import java.nio.file.Path;
import java.nio.file.StandardOpenOption;
import java.nio.file.attribute.FileTime;
import java.time.Instant;
import java.util.List;
import java.util.Random;
import java.util.concurrent.atomic.AtomicBoolean;
import org.junit.jupiter.api.BeforeEach;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.EnumSource;
import org.junit.jupiter.params.provider.ValueSource;
import org.tornadomoe.MoeLayer;
import org.tornadomoe.MoeOptions;
import org.tornadomoe.checkpoint.CheckpointQuantizer;
import org.tornadomoe.checkpoint.GgufQuantizer;
import org.tornadomoe.checkpoint.MoeCheckpoint;
import org.tornadomoe.config.Int8Quantization;
import org.tornadomoe.config.Int8Scheme;
import org.tornadomoe.quant.ExpertWeights;
import org.tornadomoe.quant.Int8Experts;
import org.tornadomoe.quant.Progress;
import org.tornadomoe.quant.QuantizedWeights;
import org.tornadomoe.reference.Reference;

/** A file that is changed while weights are read from it never gives weights. */
class ChangedFilesTest {
    private static final int E = 4;
    private static final int H = 64;
    private static final int I = 32;

    @TempDir
    Path directory;

    /** How a checkpoint is stored. */
    enum Stored {
        FLOATS,
        SHARDS,
        INT8,
        GGUF_FLOATS,
        GGUF_INT8;

        /** Makes one and returns what is opened and the file that holds its tensors. */
        Path[] in(Path directory) {
            if (this == GGUF_FLOATS || this == GGUF_INT8) {
                GgmlType type = this == GGUF_INT8 ? GgmlType.Q8_0 : GgmlType.F32;
                Path file = directory.resolve("model.gguf");
                new GgufWriter()
                        .text("general.architecture", "llama")
                        .number("llama.block_count", 1)
                        .number("llama.embedding_length", H)
                        .number("llama.expert_count", E)
                        .number("llama.expert_used_count", 2)
                        .tensor("blk.0.ffn_gate_inp.weight", GgmlType.F32, random(E * H), E, H)
                        .tensor("blk.0.ffn_gate_exps.weight", type, random(E * I * H), E, I, H)
                        .tensor("blk.0.ffn_up_exps.weight", type, random(E * I * H), E, I, H)
                        .tensor("blk.0.ffn_down_exps.weight", type, random(E * H * I), E, H, I)
                        .write(file);
                return new Path[] {file, file};
            }
            Path floats = directory.resolve("floats");
            try {
                Files.createDirectories(floats);
                Files.writeString(floats.resolve("config.json"), """
                    {"model_type": "mixtral", "num_hidden_layers": 1, "hidden_size": 64, "intermediate_size": 32,
                     "num_local_experts": 4, "num_experts_per_tok": 2}\
                    """);
            } catch (IOException e) {
                throw new UncheckedIOException(e);
            }
            SafetensorsWriter writer = new SafetensorsWriter();
            String block = "model.layers.0.block_sparse_moe.";
            writer.add(block + "gate.weight", random(E * H), E, H);
            for (int e = 0; e < E; e++) {
                writer.add(block + "experts." + e + ".w1.weight", random(I * H), I, H)
                        .add(block + "experts." + e + ".w3.weight", random(I * H), I, H)
                        .add(block + "experts." + e + ".w2.weight", random(H * I), H, I);
            }
            if (this == SHARDS) {
                return shards(floats, writer);
            }
            writer.write(floats.resolve("model.safetensors"));
            if (this == FLOATS) {
                return new Path[] {floats, floats.resolve("model.safetensors")};
            }
            Path int8 = directory.resolve("int8");
            CheckpointQuantizer.quantize(
                    floats, int8, Int8Quantization.of(Int8Scheme.W8A16_CHANNEL), null, Progress.NONE);
            return new Path[] {int8, int8.resolve("model.safetensors")};
        }

        /** The router and what is left over in one file, expert 3's down projection in the other, which is changed. */
        private static Path[] shards(Path directory, SafetensorsWriter writer) {
            String last = "model.layers.0.block_sparse_moe.experts.3.w2.weight";
            Path whole = directory.resolve("whole");
            writer.write(whole);
            SafetensorsWriter a = new SafetensorsWriter();
            SafetensorsWriter b = new SafetensorsWriter();
            StringBuilder map = new StringBuilder();
            try (Safetensors tensors = Safetensors.open(whole)) {
                for (String name : tensors.names()) {
                    Tensor tensor = tensors.tensor(name);
                    (name.equals(last) ? b : a).add(name, tensor.dtype(), tensor.data(), tensor.shape());
                    map.append(map.isEmpty() ? "" : ", ")
                            .append(String.format("\"%s\": \"%s\"", name, name.equals(last) ? "b" : "a"));
                }
                a.write(directory.resolve("a"));
                b.write(directory.resolve("b"));
                Files.writeString(directory.resolve("model.safetensors.index.json"), "{\"weight_map\": {" + map + "}}");
            } catch (IOException e) {
                throw new UncheckedIOException(e);
            }
            return new Path[] {directory, directory.resolve("b")};
        }

        Int8Scheme scheme() {
            return this == GGUF_INT8 ? Int8Scheme.W8A16_GROUP : Int8Scheme.W8A16_CHANNEL;
        }
    }

    private static final Random RANDOM = new Random(5);

    private static float[] random(int length) {
        float[] values = new float[length];
        for (int i = 0; i < length; i++) {
            values[i] = (float) RANDOM.nextGaussian();
        }
        return values;
    }

    private static void cut(Path file, long bytes) {
        try (FileChannel channel = FileChannel.open(file, StandardOpenOption.WRITE)) {
            channel.truncate(channel.size() - bytes);
        } catch (IOException e) {
            throw new UncheckedIOException(e);
        }
    }

    @BeforeEach
    void seed() {
        RANDOM.setSeed(5);
    }

    /** Cuts the file the first time that it hears of progress. */
    private static Progress cutting(Path file, long bytes) {
        AtomicBoolean first = new AtomicBoolean(true);
        return (done, of) -> {
            if (first.getAndSet(false)) {
                cut(file, bytes);
            }
        };
    }

    private static void assertChanged(Path file, Int8Scheme scheme, ExpertWeights weights, Progress progress) {
        assertThatExceptionOfType(CheckpointException.class)
                .isThrownBy(
                        () -> QuantizedWeights.int8(weights, scheme, progress).close())
                .withMessageStartingWith(file + ": ");
    }

    /** The last page is filled with zeros; further ones are gone, and reading them is an InternalError. */
    @ParameterizedTest
    @EnumSource
    void aFileThatIsCutWhileItIsLoaded(Stored stored) {
        for (boolean asStored : new boolean[] {true, false}) {
            for (boolean pages : new boolean[] {false, true}) {
                Path[] paths = stored.in(directory);
                long bytes = pages ? paths[1].toFile().length() - 5000 : 100;
                assertThat(bytes).isPositive();
                try (MoeCheckpoint checkpoint = MoeCheckpoint.open(paths[0])) {
                    Int8Scheme scheme = asStored ? stored.scheme() : Int8Scheme.W8A8_TENSOR;
                    assertChanged(paths[1], scheme, checkpoint.layer(0), cutting(paths[1], bytes));
                }
                deleteOutput();
            }
        }
    }

    private void deleteOutput() {
        for (String name : List.of("model.safetensors", "config.json")) {
            try {
                Files.deleteIfExists(directory.resolve("int8").resolve(name));
            } catch (IOException e) {
                throw new UncheckedIOException(e);
            }
        }
    }

    /** A layer reads while it packs. */
    @ParameterizedTest
    @EnumSource
    void aFileThatIsChangedWhileALayerIsMadeOfIt(Stored stored) throws IOException {
        for (String backend : new String[] {"cpu", "reference"}) {
            for (long left : new long[] {5000, 100, 0}) {
                Path[] paths = stored.in(directory);
                long cut = left == 0 ? 0 : left == 100 ? 100 : paths[1].toFile().length() - left;
                AtomicBoolean first = new AtomicBoolean(true);
                Progress progress = (done, of) -> {
                    if (first.getAndSet(false)) {
                        cut(paths[1], cut);
                        touch(paths[1]);
                    }
                };
                try (MoeCheckpoint checkpoint = MoeCheckpoint.open(paths[0])) {
                    ExpertWeights weights = checkpoint.layer(0);
                    MoeOptions options = MoeOptions.DEFAULT
                            .withBackend(backend)
                            .withScheme(stored.scheme())
                            .withProgress(progress);
                    assertThatExceptionOfType(CheckpointException.class)
                            .isThrownBy(() -> MoeLayer.of(weights, options).close())
                            .withMessageStartingWith(paths[1] + ": ");
                }
                deleteOutput();
            }
        }
    }

    private static void touch(Path file) {
        try {
            Files.setLastModifiedTime(file, FileTime.from(Instant.EPOCH));
        } catch (IOException e) {
            throw new UncheckedIOException(e);
        }
    }

    @ParameterizedTest
    @EnumSource
    void rowsOfPagesThatAreGone(Stored stored) {
        Path[] paths = stored.in(directory);
        try (MoeCheckpoint checkpoint = MoeCheckpoint.open(paths[0])) {
            ExpertWeights weights = checkpoint.layer(0);
            cut(paths[1], paths[1].toFile().length() - 10);
            for (int e = stored == Stored.SHARDS ? E - 1 : 0; e < E; e++) {
                int expert = e;
                assertThatExceptionOfType(CheckpointException.class)
                        .isThrownBy(() -> weights.downRow(expert, H - 1, new float[I]))
                        .withMessageStartingWith(paths[1] + ": ");
            }
            assertThatExceptionOfType(CheckpointException.class)
                    .isThrownBy(() -> checkpoint.layer(0))
                    .withMessageStartingWith(paths[1] + ": ");
            assertThatExceptionOfType(CheckpointException.class)
                    .isThrownBy(() -> Reference.forward(weights, new float[H], 1))
                    .withMessageStartingWith(paths[1] + ": ");
        }
    }

    @ParameterizedTest
    @EnumSource
    void aFileOfTheSameLengthThatIsOlderOrGone(Stored stored) throws IOException {
        Path[] paths = stored.in(directory);
        FileTime time = Files.getLastModifiedTime(paths[1]);
        try (MoeCheckpoint checkpoint = MoeCheckpoint.open(paths[0])) {
            ExpertWeights weights = checkpoint.layer(0);
            Files.setLastModifiedTime(paths[1], FileTime.from(Instant.EPOCH));
            assertChanged(paths[1], stored.scheme(), weights, Progress.NONE);
            assertThatExceptionOfType(CheckpointException.class)
                    .isThrownBy(() -> Reference.forward(weights, random(H), 1))
                    .withMessageContaining("was changed while it was read: it was of " + time + " and is of 1970");
            Files.setLastModifiedTime(paths[1], time);
            QuantizedWeights.int8(weights, stored.scheme(), Progress.NONE).close();
            Files.delete(paths[1]);
            assertThatExceptionOfType(CheckpointException.class)
                    .isThrownBy(weights::requireUnchanged)
                    .withMessage(paths[1] + ": was changed while it was read: no such file or directory");
            assertThatExceptionOfType(CheckpointException.class)
                    .isThrownBy(checkpoint::requireUnchanged)
                    .withMessageContaining("was changed while it was read");
        }
    }

    @ParameterizedTest
    @ValueSource(booleans = {false, true})
    void aFileThatIsCutWhileItIsWrittenAgain(boolean pages) {
        Path[] paths = Stored.FLOATS.in(directory);
        long bytes = pages ? paths[1].toFile().length() - 5000 : 100;
        Path out = directory.resolve("out");
        assertThatExceptionOfType(CheckpointException.class)
                .isThrownBy(() -> CheckpointQuantizer.quantize(
                        paths[0], out, Int8Quantization.of(Int8Scheme.W8A8_CHANNEL), null, cutting(paths[1], bytes)))
                .withMessageStartingWith(paths[1] + ": ");
        assertThat(out.resolve("model.safetensors")).doesNotExist();
        assertThat(out.resolve("config.json")).doesNotExist();
    }

    @ParameterizedTest
    @EnumSource
    void aFileThatIsChangedWhileItIsWrittenAsGguf(Stored stored) {
        for (boolean pages : new boolean[] {false, true}) {
            Path[] paths = stored.in(directory);
            long bytes = pages ? paths[1].toFile().length() - 100 : 100;
            Path out = directory.resolve("out.gguf");
            assertThatExceptionOfType(CheckpointException.class)
                    .isThrownBy(() -> GgufQuantizer.quantize(paths[0], out, null, cutting(paths[1], bytes)))
                    .withMessageStartingWith(paths[1] + ": ");
            assertThat(out).doesNotExist();
            deleteOutput();
        }
    }

    @Test
    void whatIsNotChangedIsLoaded() {
        for (Stored stored : Stored.values()) {
            Path[] paths = stored.in(directory);
            try (MoeCheckpoint checkpoint = MoeCheckpoint.open(paths[0]);
                    Int8Experts experts = QuantizedWeights.int8(checkpoint.layer(0), stored.scheme(), Progress.NONE)) {
                assertThat(experts.w2().rows()).isEqualTo(H);
            }
            deleteOutput();
        }
    }
}
