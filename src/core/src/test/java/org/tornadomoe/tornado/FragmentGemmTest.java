package org.tornadomoe.tornado;

import static org.assertj.core.api.Assertions.assertThat;

import java.lang.foreign.Arena;
import java.util.Arrays;
import java.util.List;
import java.util.SplittableRandom;
import java.util.stream.Stream;
import org.junit.jupiter.api.Tag;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.extension.ExtendWith;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;
import org.junit.jupiter.params.provider.EnumSource;
import org.junit.jupiter.params.provider.MethodSource;
import org.junit.jupiter.params.provider.ValueSource;
import org.tornadomoe.RandomLayer;
import org.tornadomoe.config.GroupShape;
import org.tornadomoe.config.Int8Quantization;
import org.tornadomoe.config.Int8Scheme;
import org.tornadomoe.config.RoutingMethodType;
import org.tornadomoe.kernel.ChosenExperts;
import org.tornadomoe.kernel.MoeKernel;
import org.tornadomoe.quant.Int8Experts;
import org.tornadomoe.quant.Int8Quantizer;
import org.tornadomoe.quant.Int8Tensor;
import org.tornadomoe.quant.Progress;
import org.tornadomoe.tornado.device.Device;
import org.tornadomoe.tornado.device.TornadoHome;
import org.tornadomoe.tornado.graph.Stage;
import org.tornadomoe.tornado.graph.StageRun;
import org.tornadomoe.tornado.kernels.FragmentGemmKernels;
import org.tornadomoe.tornado.kernels.FragmentHalfKernels;
import org.tornadomoe.tornado.kernels.Pairs;
import org.tornadomoe.tornado.kernels.SplitKernels;
import org.tornadomoe.tornado.layout.FragmentWeights;
import uk.ac.manchester.tornado.api.KernelContext;
import uk.ac.manchester.tornado.api.types.arrays.FloatArray;
import uk.ac.manchester.tornado.api.types.arrays.IntArray;

/**
 * {@link FragmentGemmKernels} on the interpreter, with races looked for: the kernels alone, and as parts of a layer.
 */
@Tag("hot")
@ExtendWith(LooksForRaces.class)
class FragmentGemmTest {
    private static final TornadoExperts INT8 = new TornadoFragmentExperts();
    private static final TornadoExperts FLOATS = new TornadoFragmentHalfExperts();

    /**
     * Blocks of one pair, of some, and full ones; rows and columns that fill strips and chunks, and that don't; more
     * tiles than groups.
     */
    @ParameterizedTest
    @CsvSource({
        // block, rows, cols, times all blocks, form
        "16, 64, 64, 1, 1",
        "16, 1, 1, 1, 1",
        "16, 97, 75, 1, 0",
        "16, 130, 150, 1, 6",
        "16, 65, 5, 90, 2",
        "64, 128, 128, 1, 1",
        "64, 1, 3, 1, 7",
        "64, 65, 127, 1, 0",
        "64, 200, 161, 1, 4"
    })
    void everyIntegerIsRight(int block, int rows, int cols, int times, int form) {
        everyIntegerIsRight(false, block, rows, cols, times, form);
        everyIntegerIsRight(true, block, rows, cols, times, form);
    }

    /** @param floats whether activations are floats, whose rows have a power of two as their greatest */
    private static void everyIntegerIsRight(boolean floats, int block, int rows, int cols, int times, int form) {
        SplittableRandom random = new SplittableRandom(rows * 31L + cols);
        int experts = RandomBlocks.EXPERTS;
        int topK = 3;
        int pairsPerRow = (form & Pairs.PER_PAIR) != 0 ? 1 : topK;
        int[] pairsOfBlock = {1, block, 2, block / 2 + 1, 5, block - 1};
        RandomBlocks sorted = RandomBlocks.of(random, block, pairsOfBlock, times, topK);
        int pairs = sorted.pairs();
        IntArray header = sorted.header();
        IntArray sortedIds = sorted.sortedIds();
        IntArray expertIds = sorted.expertIds();
        IntArray padded = sorted.padded();

        FragmentWeights layout = new FragmentWeights(floats);
        int rowInts = layout.rowInts(cols);
        int rowsOfA = pairs / pairsPerRow;
        byte[][] factor = new byte[rowsOfA][cols];
        IntArray a = RandomBlocks.activations(random, factor, rowInts);
        FloatArray aScales = ones(rowsOfA);
        FloatArray values = new FloatArray(rowsOfA * cols);
        if (floats) {
            a.init(0x7F7F7F7F);
            aScales.init(Float.NaN);
            for (int r = 0; r < rowsOfA; r++) {
                factor[r][cols / 2] = -128;
                for (int c = 0; c < cols; c++) {
                    values.set(r * cols + c, factor[r][c]);
                }
            }
        }
        FloatArray bScales = ones(experts * rows);
        FloatArray zeroPoints = ones(1);
        FloatArray weights = new FloatArray(pairs);
        for (int p = 0; p < pairs; p++) {
            weights.set(p, 1 << p % 3);
        }
        FloatArray bias = new FloatArray(experts * rows);
        for (int i = 0; i < bias.getSize(); i++) {
            bias.set(i, i % 7);
        }
        IntArray sums = new IntArray(FragmentGemmKernels.MANY_GROUPS * FragmentGemmKernels.MANY_SCRATCH);
        sums.init(0x7F7F7F7F);
        FloatArray floatSums = new FloatArray(FragmentGemmKernels.MANY_GROUPS * FragmentGemmKernels.MANY_SCRATCH);
        floatSums.init(Float.NaN);
        try (Arena arena = Arena.ofShared()) {
            Int8Tensor tensor = Int8Tensor.allocate(arena, experts, rows, cols);
            byte[] row = new byte[cols];
            for (int r = 0; r < experts * rows; r++) {
                random.nextBytes(row);
                tensor.setRow(r / rows, r % rows, row, 0, 1);
            }
            IntArray b = new IntArray(Math.toIntExact(layout.ints(experts, rows, cols, 0)));
            b.init(0x7F7F7F7F);
            layout.pack(tensor, 0, b);
            FloatArray out = new FloatArray(pairs * rows);
            out.init(Float.NaN);
            boolean few = block == FragmentGemmKernels.FEW;
            int tiles = sorted.blocks()
                    * Math.ceilDiv(rows, few ? FragmentGemmKernels.STRIP : FragmentGemmKernels.MANY_ROWS);
            int chunks = FragmentWeights.chunks(cols);
            Stage split = new Stage(
                    "split",
                    SplitKernels.GROUP,
                    m -> rowsOfA,
                    m -> 1,
                    (g, task) -> g.task(
                            task,
                            SplitKernels::split,
                            new KernelContext(),
                            header,
                            sortedIds,
                            weights,
                            values,
                            a,
                            aScales,
                            topK / pairsPerRow,
                            cols,
                            0,
                            0),
                    List.of(header, sortedIds, weights, values),
                    List.of(a, aScales));
            Stage stage = new Stage(
                    "gemm",
                    few ? FragmentGemmKernels.FEW_GROUP : FragmentGemmKernels.MANY_GROUP,
                    m -> Math.min(tiles + 1, few ? FragmentGemmKernels.FEW_GROUPS : FragmentGemmKernels.MANY_GROUPS),
                    m -> 1,
                    (g, task) -> {
                        if (floats) {
                            g.task(
                                    task,
                                    few ? FragmentHalfKernels::few : FragmentHalfKernels::many,
                                    new KernelContext(),
                                    header,
                                    sortedIds,
                                    expertIds,
                                    padded,
                                    a,
                                    aScales,
                                    b,
                                    bScales,
                                    zeroPoints,
                                    bias,
                                    weights,
                                    floatSums,
                                    out,
                                    topK,
                                    rows,
                                    chunks,
                                    1,
                                    2 * chunks,
                                    form);
                        } else {
                            g.task(
                                    task,
                                    few ? FragmentGemmKernels::few : FragmentGemmKernels::many,
                                    new KernelContext(),
                                    header,
                                    sortedIds,
                                    expertIds,
                                    padded,
                                    a,
                                    aScales,
                                    b,
                                    bScales,
                                    bias,
                                    weights,
                                    sums,
                                    out,
                                    topK,
                                    rows,
                                    chunks,
                                    chunks,
                                    1,
                                    form);
                        }
                    },
                    floats
                            ? List.of(
                                    header,
                                    sortedIds,
                                    expertIds,
                                    padded,
                                    a,
                                    aScales,
                                    b,
                                    bScales,
                                    zeroPoints,
                                    bias,
                                    weights)
                            : List.of(header, sortedIds, expertIds, padded, a, aScales, b, bScales, bias, weights),
                    floats ? List.of(floatSums, out) : List.of(sums, out));
            Device device = TornadoHome.current().devices().getFirst();
            List<Stage> stages = floats ? List.of(split, stage) : List.of(stage);
            StageRun.execute(device, "fragments", stages, 1);
            for (int p = 0; p < pairs; p++) {
                for (int n = 0; n < rows; n++) {
                    Float expected = Float.NaN;
                    if (sorted.has(p)) {
                        int expert = sorted.expertOf(p);
                        int sum = 0;
                        for (int c = 0; c < cols && expert >= 0; c++) {
                            sum += factor[p / pairsPerRow][c] * tensor.get(expert, n, c);
                        }
                        boolean biased = (form & Pairs.BIASED) != 0;
                        float value = expert < 0 ? 0 : sum + (biased ? bias.get(expert * rows + n) : 0);
                        expected = (form & Pairs.WEIGHTED) != 0 ? value * weights.get(p) : value;
                    }
                    assertThat(out.get(p * rows + n))
                            .as("pair %d, row %d", p, n)
                            .isEqualTo(expected);
                }
            }
            // The other kernel leaves blocks of this size alone.
            out.init(Float.NaN);
            header.set(1, few ? FragmentGemmKernels.MANY : FragmentGemmKernels.FEW);
            StageRun.execute(device, "fragments", stages, 1);
            assertThat(out.toHeapArray()).containsOnly(Float.NaN);
        }
    }

    private static FloatArray ones(int size) {
        FloatArray ones = new FloatArray(size);
        ones.init(1);
        return ones;
    }

    @ParameterizedTest
    @CsvSource({"1, 1, 4, 4, 1", "5, 2, 37, 19, 7", "3, 2, 150, 70, 40"})
    void stagesMatchTheReference(int e, int k, int h, int i, int m) {
        RandomLayer layer = RandomLayer.of(e, k, h, i, m, 2);
        LayerChecks.stagesMatchReference(INT8, Int8Scheme.W8A8_CHANNEL, layer, m);
        LayerChecks.stagesMatchReference(FLOATS, Int8Scheme.W8A16_CHANNEL, layer, m);
    }

    /** One scale an expert; blocks and groups that end with rows and columns, that don't, and larger than all. */
    static Stream<Int8Quantization> quantizations() {
        Int8Quantization block = Int8Quantization.of(Int8Scheme.W8A8_BLOCK);
        Int8Quantization group = Int8Quantization.of(Int8Scheme.W8A16_GROUP);
        return Stream.of(
                Int8Quantization.of(Int8Scheme.W8A8_CHANNEL),
                Int8Quantization.of(Int8Scheme.W8A8_TENSOR),
                block,
                block.withGrid(new GroupShape(16, 64)),
                block.withGrid(new GroupShape(1, 128)).withRoundToNearest(true),
                Int8Quantization.of(Int8Scheme.W8A16_CHANNEL),
                group,
                group.withGrid(new GroupShape(1, 64)).withZeroPoints(true),
                group.withGrid(new GroupShape(1, 32)),
                group.withGrid(new GroupShape(1, 96)).withZeroPoints(true),
                group.withGrid(GroupShape.PER_TOKEN).withZeroPoints(true));
    }

    /** With few pairs an expert, and with many in the same graph. */
    @ParameterizedTest
    @MethodSource("quantizations")
    void everyScheme(Int8Quantization quantization) {
        TornadoExperts experts = quantization.scheme().quantizesActivations() ? INT8 : FLOATS;
        RandomLayer layer = RandomLayer.of(2, 2, 150, 134, 20, 31).withBiases();
        assertThat(experts.gemm().byRule(layer.config(), 16).blockSizeM()).isEqualTo(FragmentGemmKernels.FEW);
        assertThat(experts.gemm().byRule(layer.config(), 17).blockSizeM()).isEqualTo(FragmentGemmKernels.MANY);
        LayerChecks.stagesMatchReference(experts, quantization, layer, 20);
        LayerChecks.forwardMatchesReference(experts, quantization, layer, 20, 1);
    }

    /** The second group begins with the sixth step of 32 columns, in the middle of a round of few pairs' kernel. */
    @Test
    void groupsThatAreNoRounds() {
        Int8Quantization group = Int8Quantization.of(Int8Scheme.W8A16_GROUP).withGrid(new GroupShape(1, 160));
        RandomLayer layer = RandomLayer.of(2, 2, 252, 230, 17, 5);
        LayerChecks.stagesMatchReference(FLOATS, group, layer, 3);
        LayerChecks.stagesMatchReference(FLOATS, group, layer, 17);
    }

    /** Whatever the scheme adds up in float, it does so in the same order. */
    @ParameterizedTest
    @EnumSource(names = "W8A8_TENSOR", mode = EnumSource.Mode.EXCLUDE)
    void blocksOfEitherSizeGiveTheSameBits(Int8Scheme scheme) {
        TornadoExperts experts = scheme.quantizesActivations() ? INT8 : FLOATS;
        RandomLayer layer = RandomLayer.of(2, 2, 210, 140, 17, 8);
        float[] hidden = layer.hidden(17, 9);
        try (Int8Experts int8 = Int8Quantizer.quantize(layer, scheme, Progress.NONE);
                MoeKernel kernel = experts.load(layer.config(), int8)) {
            float[] many = LayerChecks.forward(kernel, hidden, 17, ChosenExperts.allocate(17, 2));
            float[] few = LayerChecks.forward(kernel, Arrays.copyOf(hidden, 3 * 210), 3, ChosenExperts.allocate(3, 2));
            assertThat(few).isEqualTo(Arrays.copyOf(many, 3 * 210));
        }
    }

    @ParameterizedTest
    @ValueSource(booleans = {true, false})
    void whatElseALayerMayHave(boolean int8) {
        TornadoExperts experts = int8 ? INT8 : FLOATS;
        Int8Scheme scheme = int8 ? Int8Scheme.W8A8_CHANNEL : Int8Scheme.W8A16_CHANNEL;
        if (int8) {
            LayerChecks.staticScalesMatchReference(experts, RandomLayer.of(5, 2, 50, 38, 13, 33), 13);
        }
        RandomLayer onInput = RandomLayer.of(2, 1, 37, 19, 11, 14)
                .routedBy(RoutingMethodType.DEFAULT)
                .weighedOnInput();
        LayerChecks.stagesMatchReference(experts, scheme, onInput, 11);
        LayerChecks.partsAddUp(experts, scheme, RandomLayer.of(4, 2, 50, 70, 11, 5), 2, 11);
        LayerChecks.adaptersMatchReference(experts, scheme, RandomLayer.of(5, 2, 37, 19, 9, 23), 9);
        LayerChecks.batchedMatchesStandard(experts, scheme, RandomLayer.of(3, 2, 37, 19, 5, 32), 5);
        LayerChecks.expertsInSeveralArraysGiveTheSameBits(
                experts,
                Int8Quantization.of(scheme),
                RandomLayer.of(5, 3, 37, 19, 30, 42).withBiases(),
                30);
    }
}
