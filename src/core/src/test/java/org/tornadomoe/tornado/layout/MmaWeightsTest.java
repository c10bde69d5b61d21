package org.tornadomoe.tornado.layout;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.within;

import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.util.HashSet;
import java.util.Set;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;
import org.tornadomoe.RandomLayer;
import org.tornadomoe.config.GroupShape;
import org.tornadomoe.config.Int8Quantization;
import org.tornadomoe.config.Int8Scheme;
import org.tornadomoe.quant.Int8Experts;
import org.tornadomoe.quant.Int8Quantizer;
import org.tornadomoe.quant.Int8Tensor;
import org.tornadomoe.quant.Progress;
import org.tornadomoe.tornado.kernels.ActivationKernels;
import uk.ac.manchester.tornado.api.types.arrays.FloatArray;
import uk.ac.manchester.tornado.api.types.arrays.IntArray;

/** Every weight, scale and zero point is where {@code mma-gemm.cu} looks for it. */
class MmaWeightsTest {
    @Test
    void thePlacesOf64KArePermuted() {
        MmaWeights layout = new MmaWeights(true);
        Set<Integer> places = new HashSet<>();
        for (int k = 0; k < 128; k++) {
            places.add(layout.placeOf(k));
            int s = k / 16 % 4;
            int j = k / 4 % 4;
            assertThat(layout.placeOf(k)).isEqualTo(k / 64 * 64 + 16 * j + 4 * s + k % 4);
        }
        assertThat(places).hasSize(128).allMatch(place -> place >= 0 && place < 128);
    }

    /** Rows that are no tile's, k that are no chunk's, with and without a gate. */
    @ParameterizedTest
    @CsvSource({"1, 264, 70, 32", "0, 264, 70, 0", "2, 10, 200, 48", "0, 40, 24, 16", "1, 50, 65, 128"})
    void weightsComeBack(int gate, int rows, int cols, int group) {
        for (boolean halves : new boolean[] {true, false}) {
            for (boolean zeros : new boolean[] {true, false}) {
                Int8Quantization quantization = group == 0
                        ? Int8Quantization.of(Int8Scheme.W8A16_CHANNEL)
                        : Int8Quantization.of(Int8Scheme.W8A16_GROUP)
                                .withGrid(new GroupShape(1, group))
                                .withZeroPoints(zeros);
                RandomLayer layer = RandomLayer.of(3, 1, rows, cols, 4, 3); // w2 is [rows, cols]
                try (Int8Experts experts = Int8Quantizer.quantize(layer, quantization, Progress.NONE)) {
                    check(new MmaWeights(halves), experts.w2(), quantization, gate);
                }
            }
        }
    }

    private static void check(MmaWeights layout, Int8Tensor w, Int8Quantization quantization, int gate) {
        int packedRows = layout.packedRows(w.rows(), gate);
        int groups = packedRows / 8;
        int chunks = MmaWeights.chunks(w.cols());
        IntArray packed =
                new IntArray(Math.toIntExact(layout.weightPad() + layout.ints(w.experts(), w.rows(), w.cols(), gate)));
        int count = Math.toIntExact(layout.scales(quantization, w.experts(), packedRows, w.cols()));
        FloatArray scales = new FloatArray(count);
        FloatArray zeros = new FloatArray(count);
        layout.pack(w, gate, packed);
        layout.packScales(w, gate, scales, zeros);
        MemorySegment bytes = packed.getSegment().asSlice(4L * layout.weightPad());
        boolean grouped = quantization.scheme() == Int8Scheme.W8A16_GROUP;
        int perRow = grouped ? w.scaleCols() + 1 : 1;
        for (int e = 0; e < w.experts(); e++) {
            for (int n = 0; n < packedRows; n++) {
                int row = CudaWeights.row(n, w.rows(), gate);
                if (row < 0) {
                    continue;
                }
                int tile = n / MmaWeights.TILE_ROWS;
                int here = Math.min(16, groups - tile * 16);
                long start = (((long) e * groups + tile * 16L) * chunks) * 512;
                float factor = grouped ? scales.get((e * perRow + perRow - 1) * packedRows + n) : 1;
                for (int k = 0; k < w.cols(); k++) {
                    long at = start
                            + ((long) (k / 64) * here + n % MmaWeights.TILE_ROWS / 8) * 512
                            + n % 8 * 64L
                            + (layout.placeOf(k % 64) ^ n % 8 / 2 * 16);
                    int value = bytes.get(ValueLayout.JAVA_BYTE, at);
                    if (layout.halves()) {
                        value = (value & 0xFF) - 128;
                    }
                    int source = w.scaleIndex(e, row, k);
                    int of = (e * perRow + (grouped ? k / w.colsPerScale() : 0)) * packedRows + n;
                    assertThat(value)
                            .isEqualTo(w.values()
                                    .get(ValueLayout.JAVA_BYTE, ((long) e * w.rows() + row) * w.rowBytes() + k));
                    assertThat(scales.get(of) * factor).isEqualTo(w.scales()[source]);
                    if (grouped && layout.halves()) {
                        // A weight less its zero point times this is a half, and none of its bits is lost for want of
                        // range.
                        assertThat(scales.get(of)).isLessThan(128);
                    }
                    byte[] points = w.zeroPoints();
                    assertThat(zeros.get(of)).isCloseTo(points == null ? 0 : points[source], within(0f));
                }
            }
        }
    }

    @Test
    void rowsOfHalvesHaveRoomForWhatTheyLeave() {
        assertThat(new MmaWeights(true).rowInts(65)).isEqualTo(2 * 64 * 4 / 4);
        assertThat(new MmaWeights(false).rowInts(65)).isEqualTo(2 * 64 / 4);
        assertThat(CudaWeights.groups(40, ActivationKernels.NO_GATE)).isEqualTo(8);
    }
}
