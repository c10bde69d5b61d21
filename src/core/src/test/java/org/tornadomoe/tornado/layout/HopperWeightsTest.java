package org.tornadomoe.tornado.layout;

import static org.assertj.core.api.Assertions.assertThat;

import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.util.SplittableRandom;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;
import org.tornadomoe.quant.Int8Tensor;
import org.tornadomoe.tornado.device.Quirks;
import org.tornadomoe.tornado.kernels.ActivationKernels;
import uk.ac.manchester.tornado.api.types.arrays.FloatArray;
import uk.ac.manchester.tornado.api.types.arrays.IntArray;

/** The packed weights, read as the kernels of {@code hopper-gemm.cu} read them, are the matrix. */
class HopperWeightsTest {
    private static final String SHAPES = """
        # experts, rows, cols, layout
        1, 64, 128, 0
        1, 64, 128, 1
        1, 64, 128, 2
        2, 2, 5, 1
        3, 33, 100, 0
        2, 66, 260, 1
        2, 66, 260, 2
        2, 700, 130, 1
        1, 530, 257, 0
        """;

    /**
     * Where the kernels find the weights of an expert's packed row: {@code tileStart}, then what both of them add to
     * it.
     */
    private record Packed(MemorySegment bytes, FloatArray scales, int groups, int chunks) {
        private static final int TILE_GROUPS = 32;

        private int tileStart(int expert, int tile) {
            return (expert * groups + tile * TILE_GROUPS) * chunks * 1024;
        }

        private int stageBytes(int tile) {
            return Math.min(TILE_GROUPS, groups - tile * TILE_GROUPS) * 1024;
        }

        /**
         * {@code tileGemm128} and the smaller ones: a stage is copied to shared memory as it lies, and there wgmma
         * reads rows of 128 bytes, eight each 1024, whose 16 bytes are swizzled.
         */
        byte wgmma(int expert, int packed, int k) {
            int tile = packed / 256;
            int stage = tileStart(expert, tile) + k / 128 * stageBytes(tile);
            int at = packed % 256 / 8 * 1024 + packed % 8 * 128 + k % 128;
            int swizzled = at ^ (at >> 7 & 7) << 4;
            return bytes.get(ValueLayout.JAVA_BYTE, stage + swizzled);
        }

        /**
         * {@code skinnyGemm}: work-item 4g + j of a warp reads rows g, g + 8 and so on of 32, 16 bytes of a unit of 64.
         */
        byte streamed(int expert, int packed, int k) {
            int x = packed / 32;
            int tile = x / 8;
            int g = packed % 8;
            int r = packed % 32 / 8;
            int unit = k / 64;
            int j = k % 64 / 16;
            int w = tileStart(expert, tile) + (x % 8) * 4096 + g * 128;
            int half = unit % 2 == 1 ? ((4 + j) ^ g) * 16 : (j ^ g) * 16;
            return bytes.get(ValueLayout.JAVA_BYTE, w + unit / 2 * stageBytes(tile) + half + r * 1024 + k % 16);
        }
    }

    @ParameterizedTest
    @CsvSource(textBlock = SHAPES)
    void theKernelsFindTheMatrix(int experts, int rows, int cols, int layout) {
        SplittableRandom random = new SplittableRandom(rows + cols);
        try (Arena arena = Arena.ofShared()) {
            Int8Tensor weights = Int8Tensor.allocate(arena, experts, rows, cols);
            byte[] row = new byte[cols];
            for (int r = 0; r < experts * rows; r++) {
                random.nextBytes(row);
                weights.setRow(r / rows, r % rows, row, 0, r + 1);
            }
            int groups = CudaWeights.groups(rows, layout);
            int chunks = HopperWeights.chunks(cols);
            IntArray into = new IntArray(Math.toIntExact(new HopperWeights().ints(experts, rows, cols, layout)));
            new HopperWeights().pack(weights, layout, into.getSegment());
            FloatArray scales = new FloatArray(experts * groups * 8);
            new HopperWeights().packScales(weights, layout, scales, new FloatArray(1));
            Packed packed = new Packed(into.getSegment(), scales, groups, chunks);
            for (int e = 0; e < experts; e++) {
                check(packed, weights, e, layout);
            }
        }
    }

    /**
     * The twos of an expert's packed rows, by the work-items that have them in {@code tileGemm128}: of every 32 packed
     * rows a quarter-lane q has the columns 8i + 2q and the next of the accumulator, which it hands on as twos 4q + i;
     * without a gate the first two as 2q and the next, the others as 8 + 2q and the next.
     */
    private static void check(Packed packed, Int8Tensor weights, int expert, int layout) {
        boolean halves = layout == ActivationKernels.HALVES;
        int rows = weights.rows();
        int found = 0;
        for (int o = 0; o < packed.groups / 4; o++) {
            for (int q = 0; q < 4; q++) {
                for (int i = 0; i < 4; i++) {
                    boolean gated = layout != ActivationKernels.NO_GATE;
                    int two = o * 16 + (gated ? 4 * q + i : i < 2 ? 2 * q + i : 8 + 2 * q + i - 2);
                    int column = o * 32 + 8 * i + 2 * q;
                    for (int second = 0; second < 2; second++) {
                        int row = halves ? two + second * (rows / 2) : 2 * two + second;
                        boolean there = halves ? two < rows / 2 : row < rows;
                        found += there ? 1 : 0;
                        check(packed, weights, expert, column + second, there ? row : -1);
                    }
                }
            }
        }
        assertThat(found).isEqualTo(rows);
    }

    private static void check(Packed packed, Int8Tensor weights, int expert, int packedRow, int row) {
        int padded = packed.chunks * HopperWeights.CHUNK;
        byte[] expected = new byte[padded];
        if (row >= 0) {
            byte[] values = new byte[weights.cols()];
            weights.row(expert, row, values);
            System.arraycopy(values, 0, expected, 0, values.length);
        }
        byte[] wgmma = new byte[padded];
        byte[] streamed = new byte[padded];
        for (int k = 0; k < padded; k++) {
            wgmma[k] = packed.wgmma(expert, packedRow, k);
            streamed[k] = packed.streamed(expert, packedRow, k);
        }
        assertThat(wgmma).as("packed row %d of expert %d", packedRow, expert).isEqualTo(expected);
        assertThat(streamed)
                .as("packed row %d of expert %d, streamed", packedRow, expert)
                .isEqualTo(expected);
        assertThat(packed.scales.get(expert * packed.groups * 8 + packedRow))
                .isEqualTo(row < 0 ? 0 : weights.scale(expert, row));
    }

    /** Memory of CUDA's begins at a multiple of 256 bytes. */
    @ParameterizedTest
    @CsvSource({"5.2.0-jdk25, 16", "6.0.0-jdk22plus, 16", "6.1.0-jdk22plus, 32", "8.2.0-jdk22plus, 32"})
    void whatHasALeadBeginsAtAMultipleOf128(String version, int payload) {
        Quirks quirks = new Quirks(version);
        assertThat(quirks.payload()).isEqualTo(payload);
        assertThat((quirks.payload() + 4 * CudaWeights.padTo(quirks)) % 128).isZero();
        assertThat(new TiledWeights().weightPad()).isZero();
    }
}
