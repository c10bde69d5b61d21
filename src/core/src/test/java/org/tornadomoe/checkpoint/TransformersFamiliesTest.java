package org.tornadomoe.checkpoint;

import static org.assertj.core.api.Assertions.assertThat;

import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.List;
import java.util.stream.Stream;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.MethodSource;
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
            assertThat(checkpoint.modelType())
                    .isIn(family.getFileName().toString(), family.getFileName() + "_text", "glm4_moe", "qwen3_vl_moe");
            assertThat(checkpoint.moeLayers()).contains(n);
            Tensor hidden = golden.tensor("hidden_states");
            float[] expected = golden.tensor("output").toFloats();
            double[] output = Reference.forward(checkpoint.layer(n), hidden.toFloats(), (int) hidden.shape()[0])
                    .output();
            double[] wanted = new double[expected.length];
            for (int i = 0; i < wanted.length; i++) {
                wanted[i] = expected[i];
            }
            assertThat(Numerics.relativeL2(output, wanted)).isLessThan(2e-6);
        }
    }
}
