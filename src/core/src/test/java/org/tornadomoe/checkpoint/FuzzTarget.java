package org.tornadomoe.checkpoint;

import static org.assertj.core.api.Assertions.assertThat;

import java.io.IOException;
import java.io.UncheckedIOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.time.Duration;
import java.util.Arrays;
import java.util.List;
import java.util.Locale;
import java.util.stream.Stream;
import org.junit.jupiter.api.Assertions;
import org.tornadomoe.MoeLayer;
import org.tornadomoe.MoeOptions;
import org.tornadomoe.checkpoint.file.CheckpointException;
import org.tornadomoe.config.FusedMoeConfig;
import org.tornadomoe.quant.ExpertWeights;
import org.tornadomoe.quant.Int8Experts;
import org.tornadomoe.quant.Progress;
import org.tornadomoe.quant.QuantizedWeights;

/**
 * A file of a checkpoint that may hold anything: whatever it holds, opening the checkpoint, loading its layers and
 * computing with them ends in a result or in an exception that the methods document, soon. {@link CheckpointFuzz} makes
 * such files up, {@link CheckpointFuzzTest} tries those that are kept.
 */
enum FuzzTarget {
    /** {@code model.safetensors}, after a byte that chooses the kind of config.json beside it. */
    SAFETENSORS {
        @Override
        Path write(byte[] input, Path directory) throws IOException {
            Files.write(directory.resolve("config.json"), rest(CONFIG.seed(kind(input))));
            Files.write(directory.resolve("model.safetensors"), rest(input));
            return directory;
        }
    },

    /** A GGUF file. */
    GGUF {
        @Override
        Path write(byte[] input, Path directory) throws IOException {
            return Files.write(directory.resolve("model.gguf"), input);
        }
    },

    /** {@code config.json}, after a byte that chooses the kind of tensors beside it. */
    CONFIG {
        @Override
        Path write(byte[] input, Path directory) throws IOException {
            Files.write(directory.resolve("config.json"), rest(input));
            Files.write(directory.resolve("model.safetensors"), rest(SAFETENSORS.seed(kind(input))));
            return directory;
        }
    },

    /** {@code model.safetensors.index.json}, of Mixtral's tensors in two shards. */
    INDEX {
        @Override
        Path write(byte[] input, Path directory) throws IOException {
            Files.write(directory.resolve("config.json"), rest(CONFIG.seed(0)));
            Files.write(directory.resolve("model.safetensors.index.json"), input);
            Files.write(directory.resolve("a.safetensors"), rest(SAFETENSORS.seed(0)));
            Files.write(directory.resolve("b.safetensors"), rest(SAFETENSORS.seed(1)));
            return directory;
        }
    };

    /** The inputs that are there to begin with, for config.json and tensors alike, by the byte that chooses them. */
    private static final List<String> KINDS =
            List.of("mixtral", "deepseek", "gptoss", "channel", "groups", "gptq", "tensor", "block");

    private static final Path INPUTS =
            Path.of("src/core/src/test/resources/org/tornadomoe/checkpoint/CheckpointFuzzInputs");
    private static final Duration LONGEST = Duration.ofSeconds(30); // a second at most, on a machine that is busy
    private static final int MOST_LAYERS = 3;
    private static final long MOST_WEIGHTS = 1 << 18;

    /** Writes the file and what it needs beside it, and returns what is to be opened. */
    abstract Path write(byte[] input, Path directory) throws IOException;

    private static int kind(byte[] input) {
        return input.length == 0 ? 0 : Math.floorMod(input[0] - '0', KINDS.size());
    }

    private static byte[] rest(byte[] input) {
        return Arrays.copyOfRange(input, Math.min(1, input.length), input.length);
    }

    /** The folder of the inputs that are kept. */
    Path inputs() {
        return INPUTS.resolve(name().toLowerCase(Locale.ROOT));
    }

    /** The inputs that are kept, by name. */
    List<Path> kept() {
        try (Stream<Path> there = Files.list(inputs())) {
            return there.sorted().toList();
        } catch (IOException e) {
            throw new UncheckedIOException(e);
        }
    }

    private byte[] seed(int kind) throws IOException {
        return Files.readAllBytes(inputs().resolve(KINDS.get(kind)));
    }

    /** Tries a file; returns whether all of it was good. */
    boolean run(byte[] input, Path directory) {
        return Assertions.assertTimeoutPreemptively(LONGEST, () -> {
            try {
                return use(write(input, directory), directory);
            } catch (OutOfMemoryError e) {
                throw new AssertionError("out of memory", e); // JUnit would end with the other
            }
        });
    }

    /** Tries a checkpoint; returns whether all of it was good. */
    static boolean use(Path path, Path directory) {
        try (MoeCheckpoint checkpoint = MoeCheckpoint.open(path)) {
            assertThat(MoeCheckpoint.config(path)).isNotNull();
            List<Integer> layers = checkpoint.moeLayers();
            boolean good = !layers.isEmpty();
            for (int layer : layers.subList(0, Math.min(layers.size(), MOST_LAYERS))) {
                ExpertWeights weights = checkpoint.layer(layer, 1);
                FusedMoeConfig config = weights.config();
                long values = (long) config.globalNumExperts() * config.gateUpRows() * config.hiddenDim();
                good &= values > MOST_WEIGHTS || load(weights);
                checkpoint.experts(layer, 0);
            }
            return good;
        } catch (CheckpointException e) {
            assertThat(e).hasMessageStartingWith(directory.toString());
            return false;
        }
    }

    private static boolean load(ExpertWeights weights) {
        Int8Experts loaded;
        try {
            loaded = QuantizedWeights.int8(weights, weights.quantization(), Progress.NONE);
        } catch (IllegalArgumentException e) { // a weight, or a scale, that is not finite
            assertThat(e).hasMessageContaining("finite");
            return false;
        }
        try (Int8Experts experts = loaded;
                MoeLayer layer = MoeLayer.of(
                        experts, MoeOptions.DEFAULT.withBackend("cpu").withMaxTokens(1))) {
            int hidden = experts.config().hiddenDim();
            float[] token = new float[hidden];
            Arrays.fill(token, 0.5f);
            layer.forward(token, 1, new float[hidden], null);
            return true;
        } catch (UnsupportedOperationException e) { // no kernel class serves it
            return false;
        }
    }
}
