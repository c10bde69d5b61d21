package org.tornadomoe.checkpoint;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatExceptionOfType;

import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.List;
import java.util.Set;
import java.util.stream.Stream;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.MethodSource;
import org.tornadomoe.MoeLayer;
import org.tornadomoe.MoeOptions;
import org.tornadomoe.checkpoint.file.CheckpointException;
import org.tornadomoe.checkpoint.file.JsonFile;
import org.tornadomoe.checkpoint.file.Safetensors;
import org.tornadomoe.checkpoint.file.SafetensorsWriter;
import org.tornadomoe.checkpoint.file.Tensor;
import org.tornadomoe.config.Int8Quantization;
import org.tornadomoe.config.Int8Scheme;
import org.tornadomoe.kernel.RouterInputs;
import org.tornadomoe.quant.Progress;
import org.tornadomoe.reference.Numerics;
import org.tornadomoe.reference.Reference;

/** A layer of every family, configured and saved by transformers, computes what the family's own module does. */
class TransformersFamiliesTest {
    private static final Path FAMILIES = Path.of("src/test/resources/golden/families");
    private static final Set<String> NOT_WRITTEN = Set.of(
            "cohere2_moe_sigmoid",
            "gemma4_text",
            "grok_2",
            "grove_moe",
            "hunyuan_image_3",
            "inkling2",
            "inkling_text",
            "minimax_m3_vl_text",
            "moondream3",
            "nemotron_h_latent",
            "nemotron_h_latent_mlx",
            "pangu_pro_moe");

    private static List<Path> families() throws IOException {
        try (Stream<Path> families = Files.list(FAMILIES)) {
            return families.sorted().toList();
        }
    }

    /** What a router reads beside hidden states. */
    static RouterInputs inputs(Safetensors golden) {
        Tensor ids = golden.find("input_ids");
        Tensor states = golden.find("router_states");
        Tensor own = golden.find("router_input");
        return new RouterInputs(
                ids == null ? null : ids.toInts(),
                states == null ? null : states.toFloats(),
                own == null ? null : own.toFloats());
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
            double[] output = Reference.forward(
                            checkpoint.layer(n), hidden.toFloats(), (int) hidden.shape()[0], inputs(golden))
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
            float[] hidden = golden.tensor("hidden_states").toFloats();
            float[] output = new float[hidden.length];
            RouterInputs inputs = inputs(golden);
            layer.forward(hidden, (int) golden.tensor("hidden_states").shape()[0], output, null, inputs);
            double[] expected = Numerics.widen(golden.tensor("output").toFloats());
            assertThat(Numerics.relativeL2(Numerics.widen(output), expected)).isLessThan(1.5e-2);
            if (golden.find("router_states_after") != null && inputs.states() != null) {
                double[] after =
                        Numerics.widen(golden.tensor("router_states_after").toFloats());
                assertThat(Numerics.relativeL2(Numerics.widen(inputs.states()), after))
                        .isLessThan(2e-6);
            }
        }
    }

    /** Written as int8 it is the same layer, unless no module holds what its experts compute with: that is refused. */
    @ParameterizedTest
    @MethodSource("families")
    void isTheSameWrittenAsInt8(Path family, @TempDir Path directory) {
        int n = JsonFile.read(family.resolve("golden.json")).integer("layer");
        Path out = directory.resolve("int8");
        Int8Quantization quantization = Int8Quantization.of(Int8Scheme.W8A16_CHANNEL);
        if (NOT_WRITTEN.contains(family.getFileName().toString())) {
            assertThatExceptionOfType(CheckpointException.class)
                    .isThrownBy(
                            () -> CheckpointQuantizer.quantize(family, out, quantization, List.of(n), Progress.NONE))
                    .withMessageContaining("no module of its own holds what it computes with");
            return;
        }
        CheckpointQuantizer.quantize(family, out, quantization, List.of(n), Progress.NONE);
        try (MoeCheckpoint checkpoint = MoeCheckpoint.open(out);
                Safetensors golden = Safetensors.open(family.resolve("golden.safetensors"))) {
            Tensor hidden = golden.tensor("hidden_states");
            double[] output = Reference.forward(
                            checkpoint.layer(n), hidden.toFloats(), (int) hidden.shape()[0], inputs(golden))
                    .output();
            double[] expected = Numerics.widen(golden.tensor("output").toFloats());
            assertThat(Numerics.relativeL2(output, expected)).isLessThan(1.5e-2);
            // And as it is loaded for use, without being quantised again.
            try (MoeLayer layer = MoeLayer.load(out, n, MoeOptions.DEFAULT.withBackend("cpu"))) {
                assertThat(layer.scheme()).isEqualTo(Int8Scheme.W8A16_CHANNEL);
                float[] loaded = new float[expected.length];
                layer.forward(hidden.toFloats(), (int) hidden.shape()[0], loaded, null, inputs(golden));
                assertThat(Numerics.relativeL2(Numerics.widen(loaded), output)).isLessThan(1e-5);
            }
        }
    }

    /** Experts that hand their token on have matrices all the same, which a quantiser takes for others. */
    @Test
    void unusedExpertsMayBeQuantised(@TempDir Path directory) throws IOException {
        Path family = FAMILIES.resolve("longcat_flash");
        String unused = "model.layers.0.mlp.experts.8.gate_proj.";
        Files.copy(family.resolve("config.json"), directory.resolve("config.json"));
        SafetensorsWriter writer = new SafetensorsWriter();
        try (Safetensors model = Safetensors.open(family)) {
            assertThat(model.names()).contains(unused + "weight");
            model.names().stream().map(model::tensor).forEach(tensor -> {
                writer.add(tensor.name(), tensor.dtype(), tensor.data(), tensor.shape());
            });
            writer.add(unused + "weight_scale", new float[] {1}, 1).write(directory.resolve("model.safetensors"));
        }
        try (MoeCheckpoint checkpoint = MoeCheckpoint.open(directory)) {
            assertThat(checkpoint.layer(0).config().router().numZeroExperts()).isPositive();
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
