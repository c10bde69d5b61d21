package org.tornadomoe.tornado;

import static org.assertj.core.api.Assertions.assertThat;
import static org.junit.jupiter.api.Assumptions.assumeTrue;

import java.lang.foreign.ValueLayout;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Locale;
import java.util.Map;
import java.util.Objects;
import java.util.stream.Stream;
import org.junit.jupiter.api.Tag;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;
import org.junit.jupiter.params.provider.EnumSource;
import org.junit.jupiter.params.provider.ValueSource;
import org.tornadomoe.RandomLayer;
import org.tornadomoe.config.FusedMoeConfig;
import org.tornadomoe.config.GroupShape;
import org.tornadomoe.config.Int8Quantization;
import org.tornadomoe.config.Int8Scheme;
import org.tornadomoe.oracle.Int8MoeOracle;
import org.tornadomoe.oracle.Selection;
import org.tornadomoe.quant.Int8Experts;
import org.tornadomoe.quant.Int8Quantizer;
import org.tornadomoe.quant.Progress;
import org.tornadomoe.tornado.device.AmdDevice;
import org.tornadomoe.tornado.device.Device;
import org.tornadomoe.tornado.device.HostMemory;
import org.tornadomoe.tornado.device.TornadoHome;
import org.tornadomoe.tornado.graph.AmdGemm;
import org.tornadomoe.tornado.graph.LayerArrays;
import org.tornadomoe.tornado.graph.Stage;
import org.tornadomoe.tornado.layout.AmdWeights;
import org.tornadomoe.tornado.layout.RowTiles;
import uk.ac.manchester.tornado.api.types.arrays.IntArray;

/** What is around the kernel on AMD's matrix cores; {@code bench/amd} runs the kernel itself. */
class AmdGemmTest {
    private static final RandomLayer LAYER = RandomLayer.of(5, 2, 130, 150, 40, 1);

    @ParameterizedTest
    @CsvSource({"16, 64, false", "1, 1, false", "33, 130, false", "128, 192, false", "33, 130, true", "16, 64, true"})
    void weightsLieInFragments(int rows, int cols, boolean halves) {
        RandomLayer layer = RandomLayer.of(3, 1, cols, rows, 1, 7);
        try (Int8Experts experts =
                Int8Quantizer.quantize(layer, Int8Quantization.of(Int8Scheme.W8A8_CHANNEL), Progress.NONE)) {
            AmdWeights layout = new AmdWeights(halves);
            int tiles = RowTiles.tiles(2 * rows);
            int chunks = RowTiles.chunks(cols);
            IntArray packed = new IntArray((int) (layout.weightPad() + layout.ints(3, 2 * rows, cols, 0)));
            packed.init(-1);
            layout.pack(experts.w13(), 0, packed);
            for (int e = 0; e < 3; e++) {
                for (int n = 0; n < tiles * 16; n++) {
                    for (int k = 0; k < chunks * 64; k++) {
                        long fragment = ((long) e * tiles + n / 16) * chunks + k / 64;
                        int piece = halves ? k / 4 % 4 : k % 64 / 16;
                        int within = halves ? k % 64 / 16 * 4 + k % 4 : k % 16;
                        long at = 4L * layout.weightPad() + fragment * 1024 + piece * 256L + n % 16 * 16L + within;
                        int expected = n < 2 * rows && k < cols ? experts.w13().get(e, n, k) : 0;
                        assertThat(packed.getSegment().get(ValueLayout.JAVA_BYTE, at))
                                .isEqualTo((byte) (halves ? expected + 128 : expected));
                    }
                }
            }
        }
    }

    @ParameterizedTest
    @CsvSource(delimiter = '|', textBlock = """
        OPENCL | pthread-haswell           | its name is none of gfx908
        OPENCL | NVIDIA H100 80GB HBM3     | its name is none of gfx908
        OPENCL | gfx1030                   | its name is none of gfx908
        OPENCL | gfx906:sramecc+:xnack-    | its name is none of gfx908
        OPENCL | gfx9420                   | its name is none of gfx908
        CUDA   | gfx942:sramecc+:xnack-    | there are kernels for OpenCL only
        PTX    | gfx1100                   | there are kernels for OpenCL only
        """)
    void noOtherDeviceIsServed(String backend, String name, String why) {
        for (Int8Scheme scheme : List.of(Int8Scheme.W8A8_CHANNEL, Int8Scheme.W8A16_CHANNEL)) {
            Selection selection = select(AmdDevice.home(backend, name), scheme);
            assertThat(selection.experts().name()).doesNotStartWith("TornadoAmd");
            assertThat(selection.refusals())
                    .anySatisfy(refusal -> assertThat(refusal)
                            .contains(kernelClass(scheme) + ": " + backend.toLowerCase(Locale.ROOT) + ":0")
                            .contains("has no AMD matrix cores: " + why));
        }
    }

    private static String kernelClass(Int8Scheme scheme) {
        return scheme.quantizesActivations() ? "TornadoAmdExperts" : "TornadoAmdHalfExperts";
    }

    /** Here nothing but Java compiles, as it would be with a compiler that lacks the words. */
    @ParameterizedTest
    @ValueSource(strings = {"gfx942:sramecc+:xnack-", "gfx90a:sramecc+:xnack-", "gfx1100", "gfx1151", "gfx1201"})
    void whereTheProbeFailsKernelsInJavaServeAndTheReasonIsTold(String name) {
        Stream.of(Int8Scheme.W8A8_CHANNEL, Int8Scheme.W8A16_GROUP).forEach(scheme -> {
            Selection selection = select(AmdDevice.home(Device.OPENCL, name), scheme);
            assertThat(selection.experts()).isInstanceOf(TornadoPanelExperts.class);
            assertThat(selection.refusals())
                    .anySatisfy(refusal -> assertThat(refusal)
                            .contains(kernelClass(scheme) + ": opencl:0 (" + name + ") has no AMD matrix cores: ")
                            .contains("amdGemm"));
        });
    }

    private static Selection select(TornadoHome home, Int8Scheme scheme) {
        FusedMoeConfig config = LAYER.config().toBuilder().moeBackend("triton").build();
        return home.assuming(() -> Int8MoeOracle.installed().select(config, scheme, null));
    }

    @ParameterizedTest
    @CsvSource({"1, 4, 16", "4, 4, 16", "5, 16, 16", "40, 16, 16", "41, 128, 128"})
    void blocksGrowWithThePairsOfAnExpert(int tokens, int ofInt8, int ofHalves) {
        AmdGemm int8 = AmdGemm.ofInt8();
        AmdGemm halves = AmdGemm.ofHalves();
        assertThat(int8.byRule(LAYER.config(), tokens).blockSizeM()).isEqualTo(ofInt8);
        assertThat(halves.byRule(LAYER.config(), tokens).blockSizeM()).isEqualTo(ofHalves);
        assertThat(int8.byRule(LAYER.batchInvariant().config(), tokens).blockSizeM())
                .isEqualTo(128);
        assertThat(halves.byRule(LAYER.batchInvariant().config(), tokens).blockSizeM())
                .isEqualTo(128);
    }

    /** Router weights that are applied on the input are in the packed tokens. */
    @ParameterizedTest
    @CsvSource({"2, 0", "1, 1"})
    void floatsArePackedBeforeEachProduct(int topK, int weighted) {
        RandomLayer layer = RandomLayer.of(5, topK, 130, 150, 40, 1);
        FusedMoeConfig config = layer.config().toBuilder()
                .applyRouterWeightOnInput(weighted == 1)
                .build();
        Int8Quantization groups = Int8Quantization.of(Int8Scheme.W8A16_GROUP)
                .withGrid(new GroupShape(1, 48))
                .withZeroPoints(true);
        try (Int8Experts experts = Int8Quantizer.quantize(layer, groups, Progress.NONE);
                LayerArrays arrays = new LayerArrays(
                        config,
                        experts,
                        Long.MAX_VALUE,
                        HostMemory.of(Device.INTERPRETER),
                        AmdGemm.ofHalves(),
                        false)) {
            Map<String, Stage> stages = new LinkedHashMap<>();
            Families.program(arrays).all().forEach(stage -> stages.put(stage.name(), stage));
            assertThat(stages.keySet())
                    .containsSubsequence("alignScatter", "packTokens", "gateUp", "activate", "packPairs", "down");
            Stage tokens = Objects.requireNonNull(stages.get("packTokens"));
            Stage pairs = Objects.requireNonNull(stages.get("packPairs"));
            Stage gateUp = Objects.requireNonNull(stages.get("gateUp"));
            assertThat(tokens.groupsX().applyAsInt(7)).isEqualTo(7);
            assertThat(pairs.groupsX().applyAsInt(7)).isEqualTo(7 * topK);
            assertThat(sizes(tokens)).containsExactly(1, 1, 0, 3, weighted, 0, 0, 64, 1, 1, 130, 0);
            assertThat(sizes(pairs)).containsExactly(topK, 1, 0, 3, 0, 0, 0, 64, 1, 1, 150, 1);
            assertThat(sizes(gateUp))
                    .containsExactly(topK, topK, 300, 3, 0, 0, new AmdWeights(true).weightPad(), 48, 1, 3, 0, 0);
            assertThat(tokens.writes())
                    .containsExactlyElementsOf(List.of(gateUp.reads().get(5)));
            // Halves, those of what they leave, and 16 bytes with the scale.
            assertThat(((IntArray) gateUp.reads().get(5)).getSize()).isEqualTo(40 * (3 * 64 + 4));
        }
    }

    private static int[] sizes(Stage stage) {
        return ((IntArray) stage.reads().get(1)).toHeapArray();
    }

    /** What asks a device, asked of another: the kernel's plain form computes the same. */
    @Tag("device")
    @Test
    void theProbeComputesWhatItExpects() {
        TornadoHome home = TornadoHome.current();
        assumeTrue(home.kind() == TornadoHome.Kind.SDK && home.find("opencl") != null, "no OpenCL");
        Device device = Objects.requireNonNull(home.find("opencl"));
        assertThat(device.lacksAmdMatrixCores()).contains("its name is none of");
        Device named = AmdDevice.called(Device.OPENCL, "gfx942", device);
        assertThat(named.lacksAmdMatrixCores()).isNull();
        assertThat(named.lacksAmdHalfMatrixCores()).isNull();
    }

    /** The kernel's plain form, which any compiler of OpenCL's takes. */
    @Tag("device")
    @ParameterizedTest
    @EnumSource(Int8Scheme.class)
    void theLayerAroundTheKernelIsRight(Int8Scheme scheme) {
        TornadoHome home = TornadoHome.current();
        assumeTrue(home.kind() == TornadoHome.Kind.SDK && home.find("opencl") != null, "no OpenCL");
        TornadoExperts experts = scheme.quantizesActivations() ? new TornadoAmdExperts() : new TornadoAmdHalfExperts();
        RandomLayer layer = RandomLayer.of(3, 2, 130, 150, 200, 31).on("opencl");
        LayerChecks.forwardMatchesReference(experts, scheme, layer, 200, 1, 24, 25, 3, 4, 5);
        LayerChecks.stagesMatchReference(experts, scheme, layer.withBiases(), 50);
        Int8Quantization usual = Int8Quantization.of(scheme);
        List<Int8Quantization> others = switch (scheme) {
            case W8A8_BLOCK -> List.of(usual.withGrid(new GroupShape(8, 64)));
            case W8A16_GROUP ->
                List.of(
                        usual.withGrid(new GroupShape(1, 16)).withZeroPoints(true),
                        usual.withGrid(new GroupShape(1, 96)),
                        usual.withGrid(new GroupShape(1, 64)).withZeroPoints(true));
            default -> List.of();
        };
        others.forEach(quantization -> LayerChecks.forwardMatchesReference(experts, quantization, layer, 200, 1));
    }
}
