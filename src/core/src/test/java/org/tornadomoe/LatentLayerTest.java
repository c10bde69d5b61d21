package org.tornadomoe;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatExceptionOfType;
import static org.assertj.core.api.Assertions.within;

import java.lang.foreign.MemorySegment;
import java.nio.file.Path;
import java.util.Arrays;
import java.util.List;
import java.util.stream.IntStream;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;
import org.junit.jupiter.params.provider.ValueSource;
import org.tornadomoe.checkpoint.MoeCheckpoint;
import org.tornadomoe.checkpoint.file.CheckpointException;
import org.tornadomoe.checkpoint.file.Safetensors;
import org.tornadomoe.config.EplbConfig;
import org.tornadomoe.config.Int8Scheme;
import org.tornadomoe.config.ScalarType;
import org.tornadomoe.kernel.ChosenExperts;
import org.tornadomoe.quant.HiddenStates;
import org.tornadomoe.reference.Numerics;

/** Layers whose experts compute in a narrower space (Kimi K3), on each backend. */
class LatentLayerTest {
    private static final Path FAMILIES = Path.of("src/test/resources/golden/families");
    private static final Path K3 = FAMILIES.resolve("kimi_k3");
    private static final int LAYER = 1;

    private static float[] tensor(Path family, String name) {
        try (Safetensors golden = Safetensors.open(family.resolve("golden.safetensors"))) {
            return golden.tensor(name).toFloats();
        }
    }

    private static double error(float[] output, Path family) {
        return Numerics.relativeL2(Numerics.widen(output), Numerics.widen(tensor(family, "output")));
    }

    @ParameterizedTest
    @CsvSource({
        "kimi_k3, reference, ",
        "kimi_k3, cpu, ",
        "kimi_k3, triton, TornadoPortableExperts",
        "kimi_k3_plain, reference, ",
        "kimi_k3_plain, triton, TornadoPortableExperts",
        "kimi_k3_mxfp4, reference, ",
        "kimi_k3_mxfp4, cpu, ",
        "kimi_k3_mxfp4, triton, TornadoPortableExperts"
    })
    void everyBackendComputesWhatTheModelDoes(String family, String backend, String kernel) {
        Path directory = FAMILIES.resolve(family);
        boolean stored = family.equals("kimi_k3_mxfp4");
        MoeOptions options = MoeOptions.DEFAULT.withBackend(backend).withKernelClass(kernel);
        if (!stored) {
            options = options.withScheme(Int8Scheme.W8A16_CHANNEL);
        }
        try (MoeLayer layer = MoeLayer.load(directory, LAYER, options)) {
            float[] hidden = tensor(directory, "hidden_states");
            assertThat(layer.config().hiddenDim() * layer.config().numExperts()).isEqualTo(stored ? 512 : 256);
            assertThat(error(layer.forward(hidden), directory)).isLessThan(1.5e-2);
            assertThat(layer.deviceBytes()).isPositive();
            assertThat(layer.parts().getFirst().bytes()).isEqualTo(layer.deviceBytes());
        }
    }

    @Test
    void activationsAreQuantisedInTheNarrowerSpace() {
        MoeOptions options = MoeOptions.DEFAULT.withBackend("cpu").withScheme(Int8Scheme.W8A8_CHANNEL);
        try (MoeLayer layer = MoeLayer.load(K3, LAYER, options)) {
            assertThat(error(layer.forward(tensor(K3, "hidden_states")), K3)).isLessThan(4e-2);
        }
    }

    /** Through kernels that multiply int8 by int8, too. */
    @Test
    void dp4aServesIt() {
        MoeOptions options = MoeOptions.DEFAULT
                .withBackend("triton")
                .withKernelClass("TornadoDp4aExperts")
                .withScheme(Int8Scheme.W8A8_CHANNEL);
        try (MoeLayer layer = MoeLayer.load(K3, LAYER, options)) {
            assertThat(error(layer.forward(tensor(K3, "hidden_states")), K3)).isLessThan(4e-2);
        }
    }

    @Test
    void severalDevicesShareIt() {
        MoeOptions options = MoeOptions.DEFAULT
                .withBackend("cpu")
                .withScheme(Int8Scheme.W8A16_CHANNEL)
                .withDevices(List.of("cpu", "cpu"));
        for (boolean experts : new boolean[] {true, false}) {
            try (MoeLayer layer = MoeLayer.load(K3, LAYER, options.withExpertParallel(experts))) {
                assertThat(layer.parts()).hasSize(2);
                assertThat(error(layer.forward(tensor(K3, "hidden_states")), K3))
                        .isLessThan(1.5e-2);
            }
        }
    }

    /** Also of 16-bit hidden states, from many threads, and with the chosen experts told. */
    @ParameterizedTest
    @ValueSource(strings = {"kimi_k3", "kimi_k3_plain"})
    void callsAreAsOfAnyLayer(String family) {
        Path directory = FAMILIES.resolve(family);
        float[] hidden = tensor(directory, "hidden_states");
        MoeOptions options = MoeOptions.DEFAULT
                .withBackend("cpu")
                .withScheme(Int8Scheme.W8A16_CHANNEL)
                .withLanes(3);
        try (MoeLayer layer = MoeLayer.load(directory, LAYER, options);
                MoeLayer half = MoeLayer.load(directory, LAYER, options.withHiddenType(ScalarType.F16))) {
            assertThat(layer.lanes()).isEqualTo(3);
            int h = layer.config().hiddenDim();
            int tokens = hidden.length / h;
            ChosenExperts chosen = ChosenExperts.allocate(tokens, 3);
            float[] output = new float[hidden.length];
            layer.forward(hidden, tokens, output, chosen);
            assertThat(Arrays.stream(chosen.ids()).distinct().count()).isGreaterThan(3);
            double sum = chosen.weights()[0] + chosen.weights()[1] + chosen.weights()[2];
            assertThat(sum).isCloseTo(1.5, within(1e-5));
            IntStream.range(0, 8)
                    .parallel()
                    .forEach(_ -> assertThat(layer.forward(hidden)).isEqualTo(output));
            float[] one = layer.forward(Arrays.copyOfRange(hidden, h, 2 * h));
            assertThat(one).isEqualTo(Arrays.copyOfRange(output, h, 2 * h));
            assertThat(layer.forward(new float[0])).isEmpty();
            MemorySegment narrow = HiddenStates.memory(ScalarType.F16, hidden, hidden.length);
            MemorySegment written = MemorySegment.ofArray(new short[hidden.length]);
            half.forward(narrow, tokens, written, null);
            float[] read = new float[hidden.length];
            HiddenStates.read(ScalarType.F16, written, read, read.length);
            assertThat(error(read, directory)).isLessThan(1.5e-2);
        }
    }

    @Test
    void aCallersRouterChoosesInstead() {
        MoeOptions options = MoeOptions.DEFAULT.withBackend("cpu").withRouter((_, _, tokens, k, _) -> {
            ChosenExperts chosen = ChosenExperts.allocate(tokens, k);
            Arrays.setAll(chosen.ids(), pair -> pair % k);
            return chosen; // all weights are 0
        });
        Path plain = FAMILIES.resolve("kimi_k3_plain");
        try (MoeLayer layer = MoeLayer.load(plain, LAYER, options)) {
            assertThat(layer.forward(tensor(plain, "hidden_states"))).containsOnly(0);
        }
    }

    @Test
    void whatItHasNotIsRefused() {
        assertThatExceptionOfType(UnsupportedOperationException.class)
                .isThrownBy(() -> MoeLayer.load(K3, LAYER, MoeOptions.DEFAULT.withLora(1, 8))
                        .close())
                .withMessageContaining("neither adapters nor load balancing");
        MoeOptions balanced = MoeOptions.DEFAULT
                .withBackend("cpu")
                .withDevices(List.of("cpu", "cpu"))
                .withLoadBalancing(EplbConfig.DEFAULT);
        assertThatExceptionOfType(UnsupportedOperationException.class)
                .isThrownBy(() -> MoeLayer.load(K3, LAYER, balanced).close())
                .withMessageContaining("neither adapters nor load balancing");
        try (MoeCheckpoint checkpoint = MoeCheckpoint.open(K3)) {
            assertThatExceptionOfType(CheckpointException.class)
                    .isThrownBy(() -> checkpoint.experts(LAYER, 0, 1))
                    .withMessageContaining("run as a whole alone");
        }
    }
}
