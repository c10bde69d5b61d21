package org.tornadomoe.tornado;

import static org.assertj.core.api.Assertions.assertThat;

import java.lang.foreign.Arena;
import java.util.List;
import java.util.SplittableRandom;
import java.util.stream.Stream;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.extension.ExtendWith;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;
import org.junit.jupiter.params.provider.EnumSource;
import org.junit.jupiter.params.provider.MethodSource;
import org.tornadomoe.RandomLayer;
import org.tornadomoe.config.GroupShape;
import org.tornadomoe.config.Int8Quantization;
import org.tornadomoe.config.Int8Scheme;
import org.tornadomoe.config.RoutingMethodType;
import org.tornadomoe.quant.Int8Tensor;
import org.tornadomoe.tornado.device.Device;
import org.tornadomoe.tornado.device.TornadoHome;
import org.tornadomoe.tornado.graph.PanelGemm;
import org.tornadomoe.tornado.graph.Stage;
import org.tornadomoe.tornado.graph.StageRun;
import org.tornadomoe.tornado.kernels.Pairs;
import org.tornadomoe.tornado.kernels.PanelGemmKernels;
import org.tornadomoe.tornado.layout.PanelWeights;
import uk.ac.manchester.tornado.api.KernelContext;
import uk.ac.manchester.tornado.api.types.arrays.FloatArray;
import uk.ac.manchester.tornado.api.types.arrays.IntArray;

/** {@link PanelGemmKernels} on the interpreter, with races looked for: the kernels alone, and as parts of a layer. */
@ExtendWith(LooksForRaces.class)
class PanelGemmTest {
    private static final TornadoExperts EXPERTS = new TornadoPanelExperts();

    /**
     * Blocks of one pair, of up to four, of more and full ones; rows and columns that fill panels, slices and chunks,
     * and that don't.
     */
    @ParameterizedTest
    @CsvSource({
        // block, rows, cols, pairsPerRow
        "8, 64, 128, 1",
        "8, 1, 1, 1",
        "8, 97, 75, 3",
        "8, 130, 1030, 2",
        "16, 128, 256, 1",
        "16, 1, 3, 1",
        "16, 65, 127, 2",
        "16, 200, 261, 3"
    })
    void everyIntegerIsRight(int block, int rows, int cols, int pairsPerRow) {
        SplittableRandom random = new SplittableRandom(rows * 31L + cols);
        int experts = RandomBlocks.EXPERTS;
        RandomBlocks sorted = RandomBlocks.of(random, block, new int[] {1, block, 2, 4, 5, block - 1}, 1, pairsPerRow);
        int allPairs = sorted.pairs();
        int rowsOfA = allPairs / pairsPerRow;
        IntArray header = sorted.header();
        IntArray sortedIds = sorted.sortedIds();
        IntArray expertIds = sorted.expertIds();
        IntArray padded = sorted.padded();

        int kInts = Math.ceilDiv(cols, 4);
        byte[][] tokens = new byte[rowsOfA][cols];
        IntArray a = RandomBlocks.activations(random, tokens, kInts);
        FloatArray aScales = ones(rowsOfA);
        FloatArray bScales = ones(experts * rows);
        FloatArray weights = ones(allPairs);
        FloatArray bias = new FloatArray(experts * rows);
        for (int i = 0; i < bias.getSize(); i++) {
            bias.set(i, i % 7);
        }
        try (Arena arena = Arena.ofShared()) {
            Int8Tensor tensor = Int8Tensor.allocate(arena, experts, rows, cols);
            byte[] row = new byte[cols];
            for (int r = 0; r < experts * rows; r++) {
                random.nextBytes(row);
                tensor.setRow(r / rows, r % rows, row, 0, 1);
            }
            IntArray b = new IntArray(
                    Math.toIntExact(new PanelWeights().weightPad() + new PanelWeights().ints(experts, rows, cols, 0)));
            b.init(0x7F7F7F7F);
            new PanelWeights().pack(tensor, 0, b);
            FloatArray out = new FloatArray(allPairs * rows);
            out.init(Float.NaN);
            boolean few = block == PanelGemmKernels.FEW;
            List<Object> reads =
                    List.of(header, sortedIds, expertIds, padded, a, aScales, b, bScales, bias, weights, out);
            Stage stage = new Stage(
                    "gemm",
                    few ? PanelGemmKernels.STREAM_GROUP : PanelGemmKernels.TILE_GROUP,
                    m -> Math.ceilDiv(rows, few ? PanelGemmKernels.STREAM_ROWS : PanelGemmKernels.TILE_ROWS),
                    m -> sorted.blocks() + 1,
                    (g, task) -> g.task(
                            task,
                            few ? PanelGemmKernels::stream : PanelGemmKernels::tile,
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
                            out,
                            pairsPerRow,
                            rows,
                            kInts,
                            kInts,
                            1,
                            new PanelWeights().weightPad(),
                            Pairs.BIASED | Pairs.WEIGHTED | (pairsPerRow == 1 ? Pairs.PER_PAIR : 0)),
                    reads,
                    List.of(out));
            Device device = TornadoHome.current().devices().getFirst();
            StageRun.execute(device, "panels", List.of(stage), 1);
            for (int p = 0; p < allPairs; p++) {
                for (int n = 0; n < rows; n++) {
                    Float expected = Float.NaN;
                    if (sorted.has(p)) {
                        int expert = sorted.expertOf(p);
                        int sum = 0;
                        for (int c = 0; c < cols && expert >= 0; c++) {
                            sum += tokens[p / pairsPerRow][c] * tensor.get(expert, n, c);
                        }
                        expected = expert < 0 ? 0f : sum + bias.get(expert * rows + n);
                    }
                    assertThat(out.get(p * rows + n))
                            .as("pair %d, row %d", p, n)
                            .isEqualTo(expected);
                }
            }
            // The other kernel leaves blocks of this size alone.
            out.init(Float.NaN);
            header.set(1, few ? PanelGemmKernels.MANY : PanelGemmKernels.FEW);
            StageRun.execute(device, "panels", List.of(stage), 1);
            assertThat(out.toHeapArray()).containsOnly(Float.NaN);
        }
    }

    private static FloatArray ones(int size) {
        FloatArray ones = new FloatArray(size);
        ones.init(1);
        return ones;
    }

    @ParameterizedTest
    @CsvSource({"1, 1, 4, 4, 1", "5, 2, 37, 19, 7", "8, 2, 100, 70, 13", "33, 6, 65, 33, 50", "3, 2, 150, 70, 40"})
    void stagesMatchTheReference(int e, int k, int h, int i, int m) {
        LayerChecks.stagesMatchReference(EXPERTS, Int8Scheme.W8A8_CHANNEL, RandomLayer.of(e, k, h, i, m, 2), m);
    }

    /** One scale an expert; blocks and groups that end with rows and columns, that don't, and larger than all. */
    static Stream<Int8Quantization> quantizations() {
        Int8Quantization block = Int8Quantization.of(Int8Scheme.W8A8_BLOCK);
        Int8Quantization group = Int8Quantization.of(Int8Scheme.W8A16_GROUP);
        return Stream.of(
                Int8Quantization.of(Int8Scheme.W8A8_CHANNEL),
                Int8Quantization.of(Int8Scheme.W8A8_TENSOR),
                block,
                block.withGrid(new GroupShape(16, 12)),
                block.withGrid(new GroupShape(1, 128)).withRoundToNearest(true),
                Int8Quantization.of(Int8Scheme.W8A16_CHANNEL),
                group,
                group.withGrid(new GroupShape(1, 32)).withZeroPoints(true),
                group.withGrid(GroupShape.PER_TOKEN).withZeroPoints(true));
    }

    /** Blocks of both sizes in one graph; rows and columns that fill no panel, no slice and no chunk. */
    @ParameterizedTest
    @MethodSource("quantizations")
    void everyScheme(Int8Quantization quantization) {
        RandomLayer layer = RandomLayer.of(4, 2, 150, 134, 40, 5).withBiases();
        assertThat(new PanelGemm().byRule(layer.config(), 4).blockSizeM()).isEqualTo(PanelGemmKernels.FEW);
        assertThat(new PanelGemm().byRule(layer.config(), 5).blockSizeM()).isEqualTo(PanelGemmKernels.MANY);
        LayerChecks.stagesMatchReference(EXPERTS, quantization, layer, 4);
        LayerChecks.stagesMatchReference(EXPERTS, quantization, layer, 40);
        LayerChecks.forwardMatchesReference(EXPERTS, quantization, layer, 40, 4, 1);
    }

    /** Columns that fill no int, and more rows than a group has. */
    @ParameterizedTest
    @EnumSource(names = {"W8A8_BLOCK", "W8A16_CHANNEL", "W8A16_GROUP"})
    void rowsOfAnyLength(Int8Scheme scheme) {
        for (int m : new int[] {1, 5, 33}) {
            LayerChecks.stagesMatchReference(EXPERTS, scheme, RandomLayer.of(3, 2, 261, 147, m, 7), m);
            LayerChecks.stagesMatchReference(EXPERTS, scheme, RandomLayer.of(2, 1, 1, 3, m, 8), m);
        }
    }

    @ParameterizedTest
    @EnumSource(names = "W8A8_TENSOR", mode = EnumSource.Mode.EXCLUDE)
    void whatElseALayerMayHave(Int8Scheme scheme) {
        RandomLayer onInput = RandomLayer.of(5, 1, 37, 19, 40, 14)
                .routedBy(RoutingMethodType.DEFAULT)
                .weighedOnInput();
        LayerChecks.stagesMatchReference(EXPERTS, scheme, onInput, 11);
        LayerChecks.forwardMatchesReference(EXPERTS, scheme, onInput, 40, 11);
        LayerChecks.partsAddUp(
                EXPERTS, scheme, RandomLayer.of(4, 2, 50, 70, 40, 5).withBiases(), 2, 40);
        LayerChecks.adaptersMatchReference(EXPERTS, scheme, RandomLayer.of(5, 2, 37, 19, 9, 23), 9);
        LayerChecks.batchedMatchesStandard(EXPERTS, scheme, RandomLayer.of(3, 2, 37, 19, 5, 32), 5);
        for (int tokens : new int[] {7, 40}) {
            LayerChecks.expertsInSeveralArraysGiveTheSameBits(
                    EXPERTS,
                    Int8Quantization.of(scheme),
                    RandomLayer.of(5, 3, 37, 19, tokens, 42).withBiases(),
                    tokens);
        }
    }

    @Test
    void staticScales() {
        LayerChecks.staticScalesMatchReference(EXPERTS, RandomLayer.of(5, 2, 50, 38, 13, 33), 13);
    }
}
