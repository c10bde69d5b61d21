package org.tornadomoe.tornado.graph;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import java.lang.foreign.Arena;
import java.util.List;
import java.util.Map;
import java.util.stream.Collectors;
import org.junit.jupiter.api.Test;
import org.tornadomoe.RandomLayer;
import org.tornadomoe.config.FusedMoeConfig;
import org.tornadomoe.config.Int8Quantization;
import org.tornadomoe.config.Int8Scheme;
import org.tornadomoe.config.MoeActivation;
import org.tornadomoe.kernel.DeviceMemory;
import org.tornadomoe.kernel.InsufficientMemoryException;
import org.tornadomoe.quant.Int8Experts;
import org.tornadomoe.quant.Int8Quantizer;
import org.tornadomoe.quant.Int8Tensor;
import org.tornadomoe.quant.Progress;
import org.tornadomoe.tornado.Families;
import org.tornadomoe.tornado.MoeTasks;
import org.tornadomoe.tornado.device.HostMemory;
import org.tornadomoe.tornado.layout.ExpertParts;
import org.tornadomoe.tuning.LaunchConfig;
import org.tornadomoe.tuning.LaunchConfigs;
import uk.ac.manchester.tornado.api.GridScheduler;
import uk.ac.manchester.tornado.api.TaskGraph;
import uk.ac.manchester.tornado.api.types.arrays.FloatArray;
import uk.ac.manchester.tornado.api.types.arrays.TornadoNativeArray;

/** What arrays a layer has, how large they are, and which of them layers share. */
class LayerArraysTest {
    private static final Int8Scheme SCHEME = Int8Scheme.W8A8_CHANNEL;
    private static final RandomLayer LAYER = RandomLayer.of(5, 2, 150, 70, 40, 51);
    private static final RandomLayer TWO_EXPERTS =
            RandomLayer.of(5, 2, 26, 14, 9, 3).on("interpreter:0");

    private static Map<String, Long> elements(LayerShape shape) {
        return LayerArrays.declare(shape).declared().values().stream()
                .collect(Collectors.toMap(ArrayTable.Declared::name, ArrayTable.Declared::elements));
    }

    private static long deviceBytes(
            FusedMoeConfig config, Int8Quantization quantization, int experts, ExpertGemm gemm) {
        return MemoryReport.of(new LayerShape(config, quantization, experts, gemm))
                .bytes();
    }

    /** DeepSeek-V3's first projections take 7.5 GB, its second half of that; both are partitioned alike. */
    @Test
    void aLayerThatNoArrayHoldsIsPartitioned() {
        RandomLayer layer = RandomLayer.of(256, 8, 7168, 2048, 16, 44);
        for (ExpertGemm gemm : Families.gemms()) {
            ExpertParts parts = ExpertParts.of(layer.config(), 256, gemm.layout());
            assertThat(parts).isEqualTo(new ExpertParts(256, 64));
            LayerShape shape = new LayerShape(layer.config(), Int8Quantization.of(Int8Scheme.W8A8_CHANNEL), 256, gemm);
            Map<String, Long> sizes = elements(shape);
            int lead = gemm.layout().weightPad();
            assertThat(sizes.get("w13[3]")).isEqualTo(lead + 64L * 4096 * 7168 / 4);
            assertThat(sizes.get("w2[0]")).isEqualTo(lead + 64L * 2048 * 7168 / 4);
            assertThat(sizes).doesNotContainKeys("w13", "w13[4]");
            assertThat(sizes.values()).allMatch(count -> 4 * count <= Integer.MAX_VALUE);
            assertThat(MemoryReport.of(shape).shortage("the device", 5))
                    .endsWith(String.format("the largest part is w13 with %,d", 7_516_192_768L + 16L * lead));
        }
        assertThat(ExpertParts.of(RandomLayer.of(8, 2, 4096, 14336, 16, 45).config(), 8, new HopperGemm().layout())
                        .count())
                .isEqualTo(1);
        assertThat(new ExpertParts(7, 3).count()).isEqualTo(3);
        assertThat(new ExpertParts(7, 3).experts(2)).isEqualTo(1);
    }

    @Test
    void memoryIsCountedBeforeItIsTaken() {
        RandomLayer layer = RandomLayer.of(8, 2, 64, 32, 16, 7);
        try (Int8Experts int8 = Int8Quantizer.quantize(layer, Int8Scheme.W8A8_CHANNEL, Progress.NONE)) {
            long needed =
                    deviceBytes(layer.config(), Int8Quantization.of(Int8Scheme.W8A8_CHANNEL), 8, new PortableGemm());
            Families.arrays(layer.config(), int8, needed, HostMemory.of(false));
            assertThatThrownBy(() -> Families.arrays(layer.config(), int8, needed - 1, HostMemory.of(false)))
                    .isInstanceOfSatisfying(InsufficientMemoryException.class, e -> {
                        assertThat(e.needed()).isEqualTo(needed);
                        assertThat(e.available()).isEqualTo(needed - 1);
                    })
                    .hasMessageContaining("the largest part is w13 with 32,768");
        }
    }

    @Test
    void memoryThatIsCountedIsMemoryThatIsTaken() {
        RandomLayer standard = RandomLayer.of(5, 2, 37, 19, 7, 8);
        for (RandomLayer layer : List.of(standard, standard.batched())) {
            for (Int8Scheme scheme : List.of(Int8Scheme.W8A8_CHANNEL, Int8Scheme.W8A16_CHANNEL)) {
                try (Int8Experts int8 = Int8Quantizer.quantize(layer, scheme, Progress.NONE)) {
                    LayerArrays arrays = Families.arrays(layer.config(), int8, Long.MAX_VALUE, HostMemory.of(false));
                    assertThat(arrays.all().stream()
                                    .mapToLong(a -> a.getNumBytesOfSegmentWithHeader())
                                    .sum())
                            .isEqualTo(deviceBytes(layer.config(), Int8Quantization.of(scheme), 5, new PortableGemm()));
                }
            }
        }
    }

    @Test
    void bothGemmsShareAWorkspaceOfVllmsSize() {
        for (int hidden : new int[] {37, 41}) {
            RandomLayer layer = RandomLayer.of(5, 2, hidden, 19, 7, 8);
            try (Int8Experts int8 = Int8Quantizer.quantize(layer, Int8Scheme.W8A8_CHANNEL, Progress.NONE)) {
                LayerArrays arrays = Families.arrays(layer.config(), int8, Long.MAX_VALUE, HostMemory.of(false));
                assertThat(arrays.work.down).isSameAs(arrays.work.gateUp);
                assertThat(arrays.work.gateUp.getSize()).isEqualTo(7 * 2 * Math.max(2 * 19, hidden));
                assertThat(arrays.work.activated.getSize()).isEqualTo(7 * 2 * 19);
                assertThat(arrays.work.output.getSize()).isEqualTo(7 * hidden);
            }
        }
    }

    @Test
    void weightsAreMostOfTheMemory() {
        // Qwen3-30B-A3B, decode: what isn't weights is workspace for 16 tokens.
        // Here and for gpt-oss-20b, whose sizes are no tile's, in every order in which they may lie.
        for (RandomLayer layer : List.of(
                RandomLayer.of(128, 8, 2048, 768, 16, 9),
                RandomLayer.of(32, 4, 2880, 2880, 16, 9)
                        .activatedBy(MoeActivation.SWIGLUOAI)
                        .withBiases())) {
            FusedMoeConfig config = layer.config();
            Int8Quantization channel = Int8Quantization.of(Int8Scheme.W8A8_CHANNEL);
            for (ExpertGemm gemm : Families.gemms()) {
                DeviceMemory memory = MemoryReport.of(new LayerShape(config, channel, config.numExperts(), gemm))
                        .memory();
                assertThat(memory.int8())
                        .isEqualTo(3L * config.numExperts() * config.hiddenDim() * config.intermediateSize());
                assertThat(memory.overhead()).as("%s", gemm).isBetween(1.0, 1.05);
                assertThat(memory.bytes()).isEqualTo(deviceBytes(config, channel, config.numExperts(), gemm));
                assertThat(memory.bytes() / (double) memory.int8())
                        .as("%s", gemm)
                        .isLessThan(1.05);
            }
        }
    }

    /** Whatever configuration a call is launched with, its blocks have room. */
    @Test
    void everyConfigurationHasRoom() {
        for (ExpertGemm gemm : Families.gemms()) {
            assertThat(gemm.launches()).doesNotHaveDuplicates();
            for (int tokens : new int[] {1, 7, 40, 3000}) {
                for (RandomLayer layer :
                        List.of(LAYER.forUpTo(tokens), LAYER.forUpTo(tokens).batched())) {
                    FusedMoeConfig config = layer.config();
                    assertThat(gemm.launches()).contains(gemm.byRule(config, tokens));
                    LayerShape shape = new LayerShape(config, Int8Quantization.of(SCHEME), 5, gemm);
                    for (LaunchConfig launch : gemm.launches()) {
                        long blocks = shape.blocks(tokens, launch.blockSizeM());
                        assertThat(shape.mostBlocks()).isGreaterThanOrEqualTo(blocks);
                        assertThat(shape.mostPlaces()).isGreaterThanOrEqualTo(blocks * launch.blockSizeM());
                    }
                }
            }
        }
    }

    /** The tensor-core kernels' grids, which only a device runs. */
    @Test
    void tensorCoresAreLaunchedAsToldToo() {
        try (Int8Experts int8 = Int8Quantizer.quantize(LAYER, SCHEME, Progress.NONE)) {
            for (LaunchConfig launch : new TensorCoreGemm().launches()) {
                LayerArrays arrays = new LayerArrays(
                        LAYER.config(),
                        int8,
                        Long.MAX_VALUE,
                        HostMemory.of(false),
                        new TensorCoreGemm(),
                        false,
                        LaunchConfigs.byRule(new TensorCoreGemm().launches(), m -> launch),
                        Map.of());
                arrays.setTokens(33);
                assertThat(arrays.work.header.get(1)).isEqualTo(launch.blockSizeM());
                Stage gateUp = Families.program(arrays).gateUp().getFirst();
                assertThat(gateUp.group().applyAsInt(33)).isEqualTo(32 * launch.numWarps());
                assertThat(gateUp.groupsX().applyAsInt(33)).isEqualTo(arrays.blocks(33));
                assertThat(gateUp.groupsY().applyAsInt(33)).isEqualTo(Math.ceilDiv(140, launch.blockSizeN()));
            }
        }
    }

    @Test
    void layersShareAllButWhatIsTheirs() {
        TaskGraph graph = new TaskGraph("shared");
        try (MoeTasks moe = new MoeTasks(graph, new GridScheduler(), TWO_EXPERTS.config());
                Int8Experts experts = Int8Quantizer.quantize(TWO_EXPERTS, Int8Scheme.W8A8_CHANNEL, Progress.NONE);
                LayerArrays alone =
                        Families.arrays(TWO_EXPERTS.config(), experts, Long.MAX_VALUE, HostMemory.of(false))) {
            int size = 9 * 26;
            moe.append("a", experts, new FloatArray(size), new FloatArray(size));
            long first = moe.deviceBytes();
            moe.append("b", experts, new FloatArray(size), new FloatArray(size));
            assertThat(first).isLessThan(alone.deviceBytes());
            long own = elements(alone.shape).entrySet().stream()
                    .filter(array -> !alone.sharedWith(experts).containsKey(array.getKey()))
                    .filter(array -> !List.of("hidden", "output").contains(array.getKey()))
                    .mapToLong(array -> TornadoNativeArray.ARRAY_HEADER + 4 * array.getValue())
                    .sum();
            assertThat(moe.deviceBytes() - first).isEqualTo(own);
            assertThat(alone.sharedWith(experts))
                    .containsKeys("expertMap", "routerBias", "w13Bias")
                    .doesNotContainKeys("router", "w13", "w13Scales", "w2", "hidden");
            alone.weights.routerBias.set(1, 0.5f);
            alone.weights.expertMap.set(0, -1);
            assertThat(alone.sharedWith(experts)).doesNotContainKeys("expertMap", "routerBias");
        }
    }

    /** A scale that is found in each call is of the workspace; of those known beforehand equal ones are shared. */
    @Test
    void layersShareTheScalesOfActivations() {
        try (Int8Experts found = Int8Quantizer.quantize(TWO_EXPERTS, Int8Scheme.W8A8_TENSOR, Progress.NONE);
                Int8Experts known = withScales(found, 0.5f, 0.25f);
                Int8Experts same = withScales(found, 0.5f, 0.25f);
                Int8Experts others = withScales(found, 0.5f, 0.75f);
                LayerArrays finding =
                        Families.arrays(TWO_EXPERTS.config(), found, Long.MAX_VALUE, HostMemory.of(false));
                LayerArrays knowing =
                        Families.arrays(TWO_EXPERTS.config(), known, Long.MAX_VALUE, HostMemory.of(false))) {
            assertThat(finding.sharedWith(found)).containsKeys("hiddenScale", "activatedScale");
            assertThat(finding.sharedWith(known)).doesNotContainKeys("hiddenScale", "activatedScale");
            assertThat(knowing.sharedWith(same)).containsKeys("hiddenScale", "activatedScale");
            assertThat(knowing.sharedWith(others)).doesNotContainKeys("hiddenScale", "activatedScale");
            assertThat(knowing.sharedWith(found)).doesNotContainKeys("hiddenScale", "activatedScale");
        }
    }

    private static Int8Experts withScales(Int8Experts of, float a1, float a2) {
        Arena arena = Arena.ofShared();
        Int8Tensor w13 = copy(arena, of.w13());
        Int8Tensor w2 = copy(arena, of.w2());
        return of.with(of.config(), w13, w2, arena).activationScales(a1, a2).build();
    }

    private static Int8Tensor copy(Arena arena, Int8Tensor from) {
        Int8Tensor to = Int8Tensor.allocate(arena, from.experts(), from.rows(), from.cols());
        byte[] values = new byte[from.cols()];
        for (int e = 0; e < to.experts(); e++) {
            for (int row = 0; row < to.rows(); row++) {
                from.row(e, row, values);
                to.setRow(e, row, values, 0, from.scale(e, row, 0));
            }
        }
        return to;
    }
}
