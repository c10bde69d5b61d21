package org.tornadomoe.tornado.graph;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.within;

import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.util.Arrays;
import java.util.List;
import java.util.Objects;
import java.util.SplittableRandom;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;
import org.junit.jupiter.params.provider.EnumSource;
import org.tornadomoe.RandomLayer;
import org.tornadomoe.config.FusedMoeConfig;
import org.tornadomoe.config.GroupShape;
import org.tornadomoe.config.Int8Quantization;
import org.tornadomoe.config.Int8Scheme;
import org.tornadomoe.config.MoeActivation;
import org.tornadomoe.config.RoutingMethodType;
import org.tornadomoe.quant.Int8Activations;
import org.tornadomoe.quant.Int8Experts;
import org.tornadomoe.quant.Int8Quantizer;
import org.tornadomoe.quant.Progress;
import org.tornadomoe.quant.RouterWeights;
import org.tornadomoe.reference.Alignment;
import org.tornadomoe.reference.Alignments;
import org.tornadomoe.reference.Numerics;
import org.tornadomoe.reference.Router;
import org.tornadomoe.reference.Routing;
import org.tornadomoe.tornado.Families;
import org.tornadomoe.tornado.LayerChecks;
import org.tornadomoe.tornado.device.Device;
import org.tornadomoe.tornado.device.HostMemory;
import org.tornadomoe.tornado.device.TornadoHome;
import org.tornadomoe.tornado.kernels.GemmKernels;
import uk.ac.manchester.tornado.api.types.arrays.FloatArray;

/** Single kernels at the edges of what they are asked for, on the interpreter. */
class KernelEdgeTest {
    @Test
    void tiesGoToTheLowerExpert() {
        // Few distinct logits, so that nearly every choice is a tie.
        FusedMoeConfig config = RandomLayer.of(200, 7, 4, 4, 40, 1).config();
        SplittableRandom random = new SplittableRandom(1);
        float[] logits = new float[40 * 200];
        for (int i = 0; i < logits.length; i++) {
            logits[i] = random.nextInt(5);
        }
        assertRouting(config, logits, 40);
    }

    @Test
    void everyExpertMayBeChosen() {
        assertRouting(
                RandomLayer.of(32, 32, 4, 4, 3, 1).config(),
                RandomLayer.of(32, 32, 32, 4, 3, 2).hidden(3, 0),
                3);
        assertRouting(
                RandomLayer.of(1024, 1, 4, 4, 2, 1).config(),
                RandomLayer.of(1, 1, 1024, 4, 2, 2).hidden(2, 0),
                2);
    }

    @Test
    void rowsWithoutProbabilitiesGetTheFirstExpertsWithWeightZero() {
        FusedMoeConfig config = RandomLayer.of(6, 2, 4, 4, 6, 1).config();
        float nan = Float.NaN;
        float inf = Float.POSITIVE_INFINITY;
        float[] logits = {
            nan, nan, nan, nan, nan, nan, 1, 2, nan, 4, 5, 6, 1, inf, 3, 4, 5, 6, -inf, -inf, 2, -inf, 1, -inf, -inf,
            -inf, -inf, 3, -inf, -inf, -inf, -inf, -inf, -inf, -inf, -inf
        };
        LayerArrays arrays = assertRouting(config, logits, 6);
        assertThat(arrays.work.topkIds.toHeapArray()).containsExactly(0, 1, 0, 1, 0, 1, 2, 4, 3, 0, 0, 1);
        assertThat(arrays.work.topkWeights.toHeapArray())
                .startsWith(0f, 0f, 0f, 0f, 0f, 0f)
                .endsWith(1f, 0f, 0f, 0f);
    }

    private static LayerArrays assertRouting(FusedMoeConfig config, float[] logits, int tokens) {
        LayerArrays last = null;
        for (RoutingMethodType method : List.of(RoutingMethodType.DEFAULT, RoutingMethodType.RENORMALIZE)) {
            FusedMoeConfig routed = new RandomLayer(config, 1).routedBy(method).config();
            LayerArrays arrays = arrays(routed);
            arrays.setTokens(tokens);
            MemorySegment.copy(logits, 0, arrays.work.logits.getSegment(), ValueLayout.JAVA_FLOAT, 0, logits.length);
            run(Families.program(arrays).topK(), tokens);
            Routing expected = Router.route(routed, RouterWeights.NONE, Numerics.widen(logits), tokens);
            assertThat(arrays.work.topkIds.toHeapArray()).as("%s ids", method).isEqualTo(expected.ids());
            float[] weights = arrays.work.topkWeights.toHeapArray();
            for (int p = 0; p < weights.length; p++) {
                assertThat((double) weights[p])
                        .as("%s weight %d", method, p)
                        .isCloseTo(expected.weights()[p], within(1e-6));
            }
            last = arrays;
        }
        return Objects.requireNonNull(last);
    }

    @ParameterizedTest
    @CsvSource({"1, 1, 1", "4, 3, 8", "1, 1, 300", "7, 3, 300", "64, 6, 171", "300, 8, 96", "1024, 2, 257"})
    void alignmentIsTheReferences(int experts, int topK, int tokens) {
        FusedMoeConfig config = RandomLayer.of(experts, topK, 4, 4, tokens, 1).config();
        int pairs = tokens * topK;
        SplittableRandom random = new SplittableRandom(pairs);
        int[] anyIds = random.ints(pairs, 0, experts).toArray();
        int[] oneExpert = new int[pairs];
        Arrays.fill(oneExpert, experts - 1);
        int[] someInvalid = random.ints(pairs, -2, experts + 2).toArray();
        for (int[] ids : List.of(anyIds, oneExpert, someInvalid)) {
            LayerArrays arrays = arrays(config);
            arrays.setTokens(tokens);
            MemorySegment.copy(ids, 0, arrays.work.topkIds.getSegment(), ValueLayout.JAVA_INT, 0, pairs);
            run(Families.program(arrays).align(), tokens);
            assertAligned(arrays, Alignments.align(ids, experts, GemmKernels.BLOCK));
        }
    }

    /** With every pair of one expert, too, which then has more than its slots. */
    @ParameterizedTest
    @CsvSource({"1, 1, 1", "4, 3, 8", "33, 2, 4", "7, 3, 300", "64, 6, 171", "1024, 2, 257"})
    void slotsOfTheBatchedFormatAreTheReferences(int experts, int topK, int tokens) {
        FusedMoeConfig config =
                RandomLayer.of(experts, topK, 4, 4, tokens, 1).batched().config();
        LayerArrays arrays = arrays(config);
        List<Stage> align = Families.program(arrays).align();
        for (int m : new int[] {tokens, (tokens + 1) / 2}) {
            int pairs = m * topK;
            int[] anyIds = new SplittableRandom(m).ints(pairs, -1, experts + 1).toArray();
            int[] oneExpert = new int[pairs];
            for (int[] ids : List.of(anyIds, oneExpert)) {
                arrays.setTokens(m);
                MemorySegment.copy(ids, 0, arrays.work.topkIds.getSegment(), ValueLayout.JAVA_INT, 0, pairs);
                run(align, m);
                assertAligned(arrays, Alignments.alignBatched(ids, experts, m, GemmKernels.BLOCK));
                assertThat(arrays.work.numPostPadded.get(0)).isLessThanOrEqualTo(arrays.blocks(m) * GemmKernels.BLOCK);
            }
        }
    }

    @ParameterizedTest
    @CsvSource({"4, 2, 40, 8", "64, 6, 171, 16", "300, 8, 96, 8"})
    void expertsThatLiveElsewhereAreLeftOutOrKeptInBlocksOfNobody(int experts, int topK, int tokens, int blockSize) {
        FusedMoeConfig config = RandomLayer.of(experts, topK, 4, 4, tokens, 1).config();
        int pairs = tokens * topK;
        SplittableRandom random = new SplittableRandom(experts);
        int[] map = new int[experts];
        int local = 0;
        for (int e = 0; e < experts; e++) {
            map[e] = e % 3 == 1 ? local++ : -1;
        }
        int[] ids = random.ints(pairs, -1, experts + 1).toArray();
        for (int keep = 0; keep <= 1; keep++) {
            try (Int8Experts part = LayerChecks.part(new RandomLayer(config, 1), Int8Scheme.W8A8_CHANNEL, map)) {
                LayerArrays arrays = Families.arrays(config, part, Long.MAX_VALUE, HostMemory.of(false));
                assertThat(arrays.shape.localExperts).isEqualTo(local);
                arrays.setTokens(tokens);
                MemorySegment.copy(ids, 0, arrays.work.topkIds.getSegment(), ValueLayout.JAVA_INT, 0, pairs);
                arrays.work.header.set(1, blockSize);
                run(Families.program(arrays).align(keep), tokens);
                assertAligned(arrays, Alignments.align(ids, map, keep == 1, blockSize));
            }
        }
    }

    /**
     * Blocks of the tensor cores' own size for few and for many tokens, and the small ones of stages that run by
     * themselves.
     */
    @ParameterizedTest
    @CsvSource({"3, 2, 1, 8", "3, 2, 15, 16", "3, 2, 300, 128", "3, 2, 300, 16", "9, 4, 500, 16"})
    void tensorCoresHaveRoomForEveryBlockSize(int experts, int topK, int tokens, int blockSize) {
        FusedMoeConfig config = RandomLayer.of(experts, topK, 4, 4, tokens, 1).config();
        int[] ids = new SplittableRandom(tokens)
                .ints((long) tokens * topK, 0, experts)
                .toArray();
        try (Int8Experts int8 =
                Int8Quantizer.quantize(new RandomLayer(config, 1), Int8Scheme.W8A8_CHANNEL, Progress.NONE)) {
            LayerArrays arrays =
                    new LayerArrays(config, int8, Long.MAX_VALUE, HostMemory.of(false), new TensorCoreGemm(), false);
            arrays.setTokens(tokens);
            if (blockSize != Workspace.MAX_BLOCK) {
                assertThat(arrays.work.header.get(1)).isEqualTo(blockSize);
            }
            MemorySegment.copy(ids, 0, arrays.work.topkIds.getSegment(), ValueLayout.JAVA_INT, 0, ids.length);
            arrays.work.header.set(1, blockSize);
            run(Families.program(arrays).align(0), tokens);
            assertAligned(arrays, Alignments.align(ids, experts, blockSize));
        }
    }

    private static void assertAligned(LayerArrays arrays, Alignment expected) {
        assertThat(arrays.work.numPostPadded.get(0)).isEqualTo(expected.numTokensPostPadded());
        assertThat(Arrays.copyOf(arrays.work.sortedIds.toHeapArray(), expected.numTokensPostPadded()))
                .isEqualTo(expected.sortedTokenIds());
        assertThat(Arrays.copyOf(arrays.work.expertIds.toHeapArray(), expected.expertIds().length))
                .isEqualTo(expected.expertIds());
    }

    @ParameterizedTest
    @CsvSource({"8, 2, 1", "33, 2, 4", "128, 8, 4", "1024, 1, 256"})
    void fewPairsGetABlockEach(int experts, int topK, int most) {
        LayerArrays arrays = arrays(RandomLayer.of(experts, topK, 4, 4, most, 1).config());
        List<Stage> align = Families.program(arrays).align();
        assertThat(align).extracting(Stage::name).containsExactly("assignBlocks");
        for (int tokens : new int[] {most, 1}) {
            int[] ids = new SplittableRandom(tokens)
                    .ints((long) tokens * topK, -1, experts + 1)
                    .toArray();
            arrays.setTokens(tokens);
            MemorySegment.copy(ids, 0, arrays.work.topkIds.getSegment(), ValueLayout.JAVA_INT, 0, ids.length);
            run(align, tokens);
            Alignment expected = Alignments.naiveAlign(ids, experts, arrays.work.header.get(1));
            assertAligned(arrays, expected);
            assertThat(Arrays.copyOf(arrays.work.keys.toHeapArray(), ids.length))
                    .isEqualTo(expected.expertIds());
        }
        LayerArrays more =
                arrays(RandomLayer.of(experts, topK, 4, 4, most + 1, 1).config());
        assertThat(Families.program(more).align()).hasSize(3);
    }

    @Test
    void alignmentIsReadyForFewerTokensThanBefore() {
        FusedMoeConfig config = RandomLayer.of(9, 3, 4, 4, 200, 1).config();
        LayerArrays arrays = arrays(config);
        List<Stage> align = Families.program(arrays).align();
        for (int tokens : new int[] {200, 1, 90}) {
            int[] ids = new SplittableRandom(tokens).ints(tokens * 3L, 0, 9).toArray();
            arrays.setTokens(tokens);
            MemorySegment.copy(ids, 0, arrays.work.topkIds.getSegment(), ValueLayout.JAVA_INT, 0, ids.length);
            run(align, tokens);
            assertThat(arrays.work.numPostPadded.get(0))
                    .isEqualTo(Alignments.align(ids, 9, GemmKernels.BLOCK).numTokensPostPadded());
        }
    }

    @Test
    void quantisationRoundsHalfAwayFromZeroExactly() {
        // A row with a magnitude of 127 has the factor 1, so that these are the values that are rounded.
        float belowHalf = Math.nextDown(0.5f);
        float[] row = {127f, 0.5f, -0.5f, belowHalf, -belowHalf, 1.5f, -2.5f, 126.5f, -126.5f, -127f, 0f, 63.49f};
        FusedMoeConfig config = RandomLayer.of(2, 1, row.length, 4, 3, 1).config();
        LayerArrays arrays = arrays(config);
        arrays.setTokens(3);
        copy(row, arrays.work.hidden, 0);
        copy(new float[row.length], arrays.work.hidden, row.length);
        float[] tiny = new float[row.length];
        tiny[3] = 1e-20f;
        copy(tiny, arrays.work.hidden, 2 * row.length);
        run(Families.program(arrays).quantizeTokens(), 3);
        byte[] bytes = arrays.work.hiddenQ.getSegment().toArray(ValueLayout.JAVA_BYTE);
        assertThat(Arrays.copyOf(bytes, row.length)).containsExactly(127, 1, -1, 0, 0, 2, -3, 127, -127, -127, 0, 63);
        byte[] expected = new byte[row.length];
        assertThat(arrays.work.hiddenScales.get(0))
                .isEqualTo(Int8Activations.quantize(row, 0, row.length, expected, 0));
        assertThat(Arrays.copyOf(bytes, row.length)).isEqualTo(expected);
        assertThat(Arrays.copyOfRange(bytes, row.length, 3 * row.length)).containsOnly(0);
        assertThat(arrays.work.hiddenScales.get(1)).isEqualTo(1e-10f / 127f);
    }

    @Test
    void activationsAreQuantizedToTheBit() {
        Device device = TornadoHome.current().devices().getFirst();
        Int8Quantization block = Int8Quantization.of(Int8Scheme.W8A8_BLOCK).withGrid(new GroupShape(1, 12));
        StageChecks.quantizationIsExact(device, block);
        StageChecks.quantizationIsExact(device, block.withRoundToNearest(true));
        StageChecks.quantizationIsExact(device, Int8Quantization.of(Int8Scheme.W8A8_TENSOR));
    }

    @ParameterizedTest
    @EnumSource
    void activationsAreAccurateFromEndToEnd(MoeActivation activation) {
        StageChecks.activationIsAccurate(TornadoHome.current().devices().getFirst(), activation, 4e-6);
    }

    @Test
    void activatingAndQuantisingAtOnceGivesTheSameBits() {
        // A row that isn't there, a row of zeros and one that fills several rounds of a group.
        RandomLayer layer = RandomLayer.of(3, 1, 4, 1031, 3, 1);
        FusedMoeConfig config = layer.config();
        LayerArrays arrays = arrays(config);
        float[] gateUp = layer.hidden(3 * config.gateUpRows() / 4 + 1, 1);
        Arrays.fill(gateUp, 0, config.gateUpRows(), 0);
        copy(Arrays.copyOf(gateUp, 3 * config.gateUpRows()), arrays.work.gateUp, 0);
        arrays.setTokens(3);
        arrays.work.keys.init(1);
        arrays.work.keys.set(1, -1);
        LayerProgram stages = Families.program(arrays);
        run(stages.activateAndQuantize(), 3);
        int[] pairs = arrays.work.activatedQ.toHeapArray();
        float[] scales = arrays.work.activatedScales.toHeapArray();
        assertThat(scales[0]).isEqualTo(1e-10f / 127f);
        assertThat(scales[1]).as("poison").isNaN();
        run(stages.quantizePairs(), 3);
        assertThat(arrays.work.activatedQ.toHeapArray()).isEqualTo(pairs);
        assertThat(arrays.work.activatedScales.toHeapArray()).isEqualTo(scales);
    }

    private static void copy(float[] from, FloatArray into, int at) {
        MemorySegment.copy(from, 0, into.getSegment(), ValueLayout.JAVA_FLOAT, 4L * at, from.length);
    }

    private static LayerArrays arrays(FusedMoeConfig config) {
        try (Int8Experts experts =
                Int8Quantizer.quantize(new RandomLayer(config, 1), Int8Scheme.W8A8_CHANNEL, Progress.NONE)) {
            return Families.arrays(config, experts, Long.MAX_VALUE, HostMemory.of(false));
        }
    }

    private static void run(List<Stage> stages, int tokens) {
        StageRun.execute(TornadoHome.current().devices().getFirst(), "edge", stages, tokens);
    }
}
