package org.tornadomoe.tornado;

import static org.assertj.core.api.Assertions.assertThat;
import static org.junit.jupiter.api.Assumptions.assumeTrue;

import java.lang.foreign.ValueLayout;
import java.util.Locale;
import java.util.Objects;
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
import org.tornadomoe.tornado.device.TornadoHome;
import org.tornadomoe.tornado.graph.AmdGemm;
import org.tornadomoe.tornado.layout.AmdWeights;
import org.tornadomoe.tornado.layout.RowTiles;
import uk.ac.manchester.tornado.api.types.arrays.IntArray;

/** What is around the kernel on AMD's matrix cores; {@code bench/amd} runs the kernel itself. */
class AmdGemmTest {
    private static final RandomLayer LAYER = RandomLayer.of(5, 2, 130, 150, 40, 1);

    @ParameterizedTest
    @CsvSource({"16, 64", "1, 1", "33, 130", "128, 192"})
    void weightsLieInFragments(int rows, int cols) {
        RandomLayer layer = RandomLayer.of(3, 1, cols, rows, 1, 7);
        try (Int8Experts experts =
                Int8Quantizer.quantize(layer, Int8Quantization.of(Int8Scheme.W8A8_CHANNEL), Progress.NONE)) {
            AmdWeights layout = new AmdWeights();
            int tiles = RowTiles.tiles(2 * rows);
            int chunks = RowTiles.chunks(cols);
            IntArray packed = new IntArray((int) (layout.weightPad() + layout.ints(3, 2 * rows, cols, 0)));
            packed.init(-1);
            layout.pack(experts.w13(), 0, packed);
            for (int e = 0; e < 3; e++) {
                for (int n = 0; n < tiles * 16; n++) {
                    for (int k = 0; k < chunks * 64; k++) {
                        long fragment = ((long) e * tiles + n / 16) * chunks + k / 64;
                        long at =
                                4L * layout.weightPad() + fragment * 1024 + k % 64 / 16 * 256L + n % 16 * 16L + k % 16;
                        int expected = n < 2 * rows && k < cols ? experts.w13().get(e, n, k) : 0;
                        assertThat(packed.getSegment().get(ValueLayout.JAVA_BYTE, at))
                                .isEqualTo((byte) expected);
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
        Selection selection = select(AmdDevice.home(backend, name), Int8Scheme.W8A8_CHANNEL);
        assertThat(selection.experts().name()).isNotEqualTo("TornadoAmdExperts");
        assertThat(selection.refusals())
                .anySatisfy(refusal -> assertThat(refusal)
                        .contains("TornadoAmdExperts: " + backend.toLowerCase(Locale.ROOT) + ":0")
                        .contains("has no matrix cores of AMD's: " + why));
    }

    /** Here nothing but Java compiles, as it would be with a compiler that lacks the words. */
    @ParameterizedTest
    @ValueSource(strings = {"gfx942:sramecc+:xnack-", "gfx90a:sramecc+:xnack-", "gfx1100", "gfx1151", "gfx1201"})
    void whereTheProbeFailsPanelsServeAndTheReasonIsTold(String name) {
        Selection selection = select(AmdDevice.home(Device.OPENCL, name), Int8Scheme.W8A8_CHANNEL);
        assertThat(selection.experts().name()).isEqualTo("TornadoPanelExperts");
        assertThat(selection.refusals())
                .anySatisfy(refusal -> assertThat(refusal)
                        .contains("TornadoAmdExperts: opencl:0 (" + name + ") has no matrix cores of AMD's: ")
                        .contains("amdGemm"));
    }

    private static Selection select(TornadoHome home, Int8Scheme scheme) {
        FusedMoeConfig config = LAYER.config().toBuilder().moeBackend("triton").build();
        return home.assuming(() -> Int8MoeOracle.installed().select(config, scheme, null));
    }

    @Test
    void blocksGrowWithThePairsOfAnExpert() {
        AmdGemm gemm = new AmdGemm();
        assertThat(gemm.byRule(LAYER.config(), 40).blockSizeM()).isEqualTo(16);
        assertThat(gemm.byRule(LAYER.config(), 41).blockSizeM()).isEqualTo(128);
        assertThat(gemm.byRule(LAYER.batchInvariant().config(), 1).blockSizeM()).isEqualTo(128);
    }

    /** What asks a device, asked of another: the kernel's plain form computes the same. */
    @Tag("device")
    @Test
    void theProbeComputesWhatItExpects() {
        TornadoHome home = TornadoHome.current();
        assumeTrue(home.kind() == TornadoHome.Kind.SDK && home.find("opencl") != null, "no OpenCL");
        Device device = Objects.requireNonNull(home.find("opencl"));
        assertThat(device.lacksAmdMatrixCores()).contains("its name is none of");
        assertThat(AmdDevice.called(Device.OPENCL, "gfx942", device).lacksAmdMatrixCores())
                .isNull();
    }

    /** The kernel's plain form, which any compiler of OpenCL's takes. */
    @Tag("device")
    @ParameterizedTest
    @EnumSource(value = Int8Scheme.class, names = "W8A8_.*", mode = EnumSource.Mode.MATCH_ALL)
    void theLayerAroundTheKernelIsRight(Int8Scheme scheme) {
        TornadoHome home = TornadoHome.current();
        assumeTrue(home.kind() == TornadoHome.Kind.SDK && home.find("opencl") != null, "no OpenCL");
        RandomLayer layer = RandomLayer.of(3, 2, 130, 150, 200, 31).on("opencl");
        LayerChecks.forwardMatchesReference(new TornadoAmdExperts(), scheme, layer, 200, 1, 24, 25, 3);
        LayerChecks.stagesMatchReference(new TornadoAmdExperts(), scheme, layer.withBiases(), 50);
        if (scheme == Int8Scheme.W8A8_BLOCK) {
            Int8Quantization small = Int8Quantization.of(scheme).withGrid(new GroupShape(8, 64));
            LayerChecks.forwardMatchesReference(new TornadoAmdExperts(), small, layer, 200, 1);
        }
    }
}
