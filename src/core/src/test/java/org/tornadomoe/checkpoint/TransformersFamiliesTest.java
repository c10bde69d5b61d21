package org.tornadomoe.checkpoint;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatExceptionOfType;

import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.List;
import java.util.stream.Stream;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.MethodSource;
import org.tornadomoe.MoeLayer;
import org.tornadomoe.MoeOptions;
import org.tornadomoe.config.Int8Scheme;
import org.tornadomoe.reference.Numerics;
import org.tornadomoe.reference.Reference;

/** A layer of every family, configured and saved by transformers, computes what the family's own module does. */
class TransformersFamiliesTest {
    private static final Path FAMILIES = Path.of("src/test/resources/golden/families");

    private static List<Path> families() throws IOException {
        try (Stream<Path> families = Files.list(FAMILIES)) {
            return families.sorted().toList();
        }
    }

    @ParameterizedTest
    @MethodSource("families")
    void computesWhatItsModuleDoes(Path family) {
        int n = JsonFile.read(family.resolve("golden.json")).integer("layer");
        try (MoeCheckpoint checkpoint = MoeCheckpoint.open(family);
                Safetensors golden = Safetensors.open(family.resolve("golden.safetensors"))) {
            assertThat(checkpoint.moeLayers()).contains(n);
            Tensor hidden = golden.tensor("hidden_states");
            float[] expected = golden.tensor("output").toFloats();
            double[] output = Reference.forward(checkpoint.layer(n), hidden.toFloats(), (int) hidden.shape()[0])
                    .output();
            assertThat(Numerics.relativeL2(output, Numerics.widen(expected))).isLessThan(2e-6);
        }
    }

    /** As int8 on the cores, the layer as it is loaded for use. */
    @ParameterizedTest
    @MethodSource("families")
    void computesTheSameInInt8OnTheCores(Path family) {
        int n = JsonFile.read(family.resolve("golden.json")).integer("layer");
        MoeOptions options =
                MoeOptions.DEFAULT.withScheme(Int8Scheme.W8A16_CHANNEL).withBackend("cpu");
        try (MoeLayer layer = MoeLayer.load(family, n, options);
                Safetensors golden = Safetensors.open(family.resolve("golden.safetensors"))) {
            double[] output =
                    Numerics.widen(layer.forward(golden.tensor("hidden_states").toFloats()));
            double[] expected = Numerics.widen(golden.tensor("output").toFloats());
            assertThat(Numerics.relativeL2(output, expected)).isLessThan(1.5e-2);
        }
    }

    /** A shared expert that is cut off elsewhere than the others is nothing that the kernels of a device have. */
    @Test
    void noDeviceTakesASharedExpertWithALimitOfItsOwn() {
        Path family = FAMILIES.resolve("hy_v4_limits");
        MoeOptions options =
                MoeOptions.DEFAULT.withScheme(Int8Scheme.W8A16_CHANNEL).withBackend("triton");
        assertThatExceptionOfType(UnsupportedOperationException.class)
                .isThrownBy(() -> MoeLayer.load(family, 1, options).close());
        assertThat(MoeCheckpoint.config(family).hasOwnSharedLimit()).isTrue();
    }
}
