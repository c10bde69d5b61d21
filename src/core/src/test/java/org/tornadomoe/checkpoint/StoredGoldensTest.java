package org.tornadomoe.checkpoint;

import static org.assertj.core.api.Assertions.assertThat;

import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.List;
import java.util.stream.Stream;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.MethodSource;
import org.tornadomoe.MoeLayer;
import org.tornadomoe.MoeOptions;
import org.tornadomoe.checkpoint.file.Safetensors;
import org.tornadomoe.checkpoint.file.Tensor;
import org.tornadomoe.config.Int8Quantization;
import org.tornadomoe.config.Int8Scheme;
import org.tornadomoe.quant.ExpertWeights;
import org.tornadomoe.quant.Int8Experts;
import org.tornadomoe.quant.Progress;
import org.tornadomoe.quant.QuantizedWeights;
import org.tornadomoe.reference.Numerics;
import org.tornadomoe.reference.Reference;

/** A layer in a form that is published computes what its stored values stand for. */
class StoredGoldensTest {
    private static final Path STORED = Path.of("src/test/resources/golden/stored");

    private static List<Path> stored() throws IOException {
        try (Stream<Path> all = Files.list(STORED)) {
            return all.sorted().toList();
        }
    }

    private static double error(Path checkpoint, Safetensors golden) {
        try (MoeCheckpoint opened = MoeCheckpoint.open(checkpoint)) {
            Tensor hidden = golden.tensor("hidden_states");
            double[] output = Reference.forward(opened.layer(0), hidden.toFloats(), (int) hidden.shape()[0])
                    .output();
            return Numerics.relativeL2(
                    output, Numerics.widen(golden.tensor("output").toFloats()));
        }
    }

    @ParameterizedTest
    @MethodSource("stored")
    void computesWhatItsValuesStandFor(Path directory) {
        try (Safetensors golden = Safetensors.open(directory.resolve("golden.safetensors"))) {
            assertThat(error(directory, golden)).isLessThan(1e-6);
        }
    }

    /** As it is loaded for use: little is lost. */
    @ParameterizedTest
    @MethodSource("stored")
    void computesTheSameOnTheCores(Path directory) {
        try (Safetensors golden = Safetensors.open(directory.resolve("golden.safetensors"));
                MoeLayer layer = MoeLayer.load(directory, 0, MoeOptions.DEFAULT.withBackend("cpu"))) {
            double[] output =
                    Numerics.widen(layer.forward(golden.tensor("hidden_states").toFloats()));
            double[] expected = Numerics.widen(golden.tensor("output").toFloats());
            boolean truncates = directory.endsWith("int8-blocks"); // activations in groups, as vLLM does
            assertThat(Numerics.relativeL2(output, expected)).isLessThan(truncates ? 5e-2 : 2.5e-2);
        }
    }

    /** A layer that reads its weights while it packs them gives the bits of one whose weights were loaded first. */
    @ParameterizedTest
    @MethodSource("stored")
    void computesTheBitsOfLoadedWeights(Path directory) {
        MoeOptions options = MoeOptions.DEFAULT.withBackend("cpu");
        try (Safetensors golden = Safetensors.open(directory.resolve("golden.safetensors"));
                MoeCheckpoint opened = MoeCheckpoint.open(directory)) {
            ExpertWeights weights = opened.layer(0);
            try (Int8Experts loaded = QuantizedWeights.int8(weights, weights.quantization(), Progress.NONE);
                    MoeLayer ofLoaded = MoeLayer.of(loaded, options);
                    MoeLayer layer = MoeLayer.of(weights, options)) {
                float[] hidden = golden.tensor("hidden_states").toFloats();
                assertThat(layer.forward(hidden)).isEqualTo(ofLoaded.forward(hidden));
            }
        }
    }

    /** Written as int8 it is the same layer, with what rounding costs. */
    @ParameterizedTest
    @MethodSource("stored")
    void isTheSameWrittenAsInt8(Path directory, @TempDir Path out) {
        Path written = out.resolve("int8");
        CheckpointQuantizer.quantize(
                directory, written, Int8Quantization.of(Int8Scheme.W8A16_CHANNEL), List.of(0), Progress.NONE);
        try (Safetensors golden = Safetensors.open(directory.resolve("golden.safetensors"))) {
            assertThat(error(written, golden)).isLessThan(2e-2);
        }
    }

    @ParameterizedTest
    @MethodSource("stored")
    void isTheSameWrittenAsGguf(Path directory, @TempDir Path out) {
        Path written = out.resolve("model.gguf");
        GgufQuantizer.quantize(directory, written, null, Progress.NONE);
        try (Safetensors golden = Safetensors.open(directory.resolve("golden.safetensors"))) {
            assertThat(error(written, golden)).isLessThan(1.5e-2);
        }
    }
}
