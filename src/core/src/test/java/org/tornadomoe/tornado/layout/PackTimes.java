package org.tornadomoe.tornado.layout;

import java.lang.foreign.Arena;
import java.lang.foreign.ValueLayout;
import java.util.Arrays;
import java.util.LinkedHashMap;
import java.util.Map;
import org.tornadomoe.config.GroupShape;
import org.tornadomoe.config.Int8Quantization;
import org.tornadomoe.config.Int8Scheme;
import org.tornadomoe.quant.Int8Tensor;
import org.tornadomoe.tornado.kernels.ActivationKernels;
import uk.ac.manchester.tornado.api.types.arrays.FloatArray;
import uk.ac.manchester.tornado.api.types.arrays.IntArray;

/**
 * Measures what it takes a host to put a layer's weights in each GPU family's order, without a GPU: {@code PackTimes
 * ROUNDS EXPERTS}, H 2048 and I 768. It prints, for the best round of each family, the seconds for both projections'
 * weights and GB of int8 per second, and the seconds for scales in groups of 32 with zero points.
 */
public final class PackTimes {
    private static final int HIDDEN = 2048;
    private static final int INTERMEDIATE = 768;

    private final int rounds;
    private final int experts;

    private PackTimes(int rounds, int experts) {
        this.rounds = rounds;
        this.experts = experts;
    }

    public static void main(String[] args) {
        PackTimes times = new PackTimes(Integer.parseInt(args[0]), Integer.parseInt(args[1]));
        Map<String, WeightLayout> families = new LinkedHashMap<>();
        families.put("HopperGemm", new HopperWeights());
        families.put("MmaGemm, WgmmaGemm", new MmaWeights(true));
        families.put("FragmentGemm", new FragmentWeights(false));
        families.put("PanelGemm", new PanelWeights());
        families.put("PortableGemm, Dp4aGemm", new RowWeights());
        families.put("TensorCoreGemm", new TiledWeights());
        families.forEach(times::print);
    }

    private void print(String name, WeightLayout layout) {
        Int8Quantization groups = Int8Quantization.of(Int8Scheme.W8A16_GROUP)
                .withGrid(new GroupShape(1, 32))
                .withZeroPoints(true);
        try (Arena arena = Arena.ofShared()) {
            Int8Tensor w13 = tensor(arena, 2 * INTERMEDIATE, HIDDEN, groups);
            Int8Tensor w2 = tensor(arena, HIDDEN, INTERMEDIATE, groups);
            double weights = pack(layout, w13, ActivationKernels.HALVES) + pack(layout, w2, ActivationKernels.NO_GATE);
            double scales = scales(layout, w13, ActivationKernels.HALVES, groups)
                    + scales(layout, w2, ActivationKernels.NO_GATE, groups);
            long bytes = w13.values().byteSize() + w2.values().byteSize();
            System.out.printf(
                    "%s: weights %.3f s, %.1f GB/s; scales of groups of 32 %.3f s%n",
                    name, weights, bytes / weights / 1e9, scales);
        }
    }

    private Int8Tensor tensor(Arena arena, int rows, int cols, Int8Quantization groups) {
        Int8Tensor tensor = Int8Tensor.allocate(arena, experts, rows, cols, 1, groups.colsPerScale(cols), true);
        for (long i = 0; i < tensor.values().byteSize(); i += 64) { // so that every page is there
            tensor.values().set(ValueLayout.JAVA_BYTE, i, (byte) i);
        }
        Arrays.fill(tensor.scales(), 1);
        return tensor;
    }

    /** Seconds of the best round. */
    private double pack(WeightLayout layout, Int8Tensor from, int gate) {
        IntArray into = new IntArray(
                Math.toIntExact(layout.weightPad() + layout.ints(experts, from.rows(), from.cols(), gate)));
        return best(() -> layout.pack(from, gate, into));
    }

    private double scales(WeightLayout layout, Int8Tensor from, int gate, Int8Quantization groups) {
        int packedRows = layout.packedRows(from.rows(), gate);
        int count = Math.toIntExact(layout.scales(groups, experts, packedRows, from.cols()));
        FloatArray scales = new FloatArray(count);
        FloatArray zeroPoints = new FloatArray(count);
        return best(() -> layout.packScales(from, gate, scales, zeroPoints));
    }

    private double best(Runnable what) {
        long least = Long.MAX_VALUE;
        for (int round = 0; round < rounds; round++) {
            long start = System.nanoTime();
            what.run();
            least = Math.min(least, System.nanoTime() - start);
        }
        return least / 1e9;
    }
}
