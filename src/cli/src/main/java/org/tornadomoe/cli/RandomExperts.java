package org.tornadomoe.cli;

import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.util.Arrays;
import java.util.SplittableRandom;
import java.util.stream.IntStream;
import org.tornadomoe.config.FusedMoeConfig;
import org.tornadomoe.config.Int8Quantization;
import org.tornadomoe.quant.Int8Experts;
import org.tornadomoe.quant.Int8Tensor;
import org.tornadomoe.quant.RouterWeights;

/** Random int8 weights, for measurements. */
final class RandomExperts {
    private RandomExperts() {}

    /**
     * Random int8 weights, with scales that keep activations at a magnitude of about 1. The router's are BF16 numbers,
     * as in most checkpoints.
     *
     * @param skew lowers the nth expert's logit, counted from the middle, by this factor times the logarithm of n
     */
    static Int8Experts of(FusedMoeConfig config, Int8Quantization quantization, double skew) {
        Arena arena = Arena.ofShared();
        try {
            Int8Tensor w13 =
                    tensor(arena, quantization, config.numExperts(), config.gateUpRows(), config.hiddenDim(), 1);
            Int8Tensor w2 =
                    tensor(arena, quantization, config.numExperts(), config.hiddenDim(), config.intermediateSize(), 2);
            float[] router = new float[config.numExperts() * config.hiddenDim()];
            SplittableRandom random = new SplittableRandom(3);
            for (int i = 0; i < router.length; i++) {
                float weight = (float) (random.nextGaussian() / Math.sqrt(config.hiddenDim()));
                router[i] = Float.intBitsToFloat(Float.floatToRawIntBits(weight) & 0xffff0000);
            }
            float[] bias = new float[config.numExperts()];
            for (int n = 1; n <= bias.length; n++) {
                bias[(bias.length / 2 + n - 1) % bias.length] = (float) (-skew * Math.log(n));
            }
            RouterWeights weights = new RouterWeights(router, skew == 0 ? null : bias, null, null);
            return Int8Experts.builder(config, quantization.scheme(), w13, w2, arena)
                    .roundToNearest(quantization.roundToNearest())
                    .router(weights)
                    .build();
        } catch (RuntimeException | Error failure) {
            arena.close();
            throw failure;
        }
    }

    private static Int8Tensor tensor(Arena arena, Int8Quantization grid, int experts, int rows, int cols, long seed) {
        Int8Tensor tensor = Int8Tensor.allocate(
                arena, experts, rows, cols, grid.rowsPerScale(rows), grid.colsPerScale(cols), grid.zeroPoints());
        Arrays.fill(tensor.scales(), (float) (1 / (74 * Math.sqrt(cols)))); // 74: the magnitude of a random int8
        if (tensor.zeroPoints() != null) {
            new SplittableRandom(seed).nextBytes(tensor.zeroPoints());
        }
        MemorySegment values = tensor.values();
        IntStream.range(0, experts * rows).parallel().forEach(row -> {
            byte[] bytes = new byte[cols];
            new SplittableRandom(seed << 32 | row).nextBytes(bytes);
            MemorySegment.copy(bytes, 0, values, ValueLayout.JAVA_BYTE, (long) row * tensor.rowBytes(), cols);
        });
        return tensor;
    }
}
