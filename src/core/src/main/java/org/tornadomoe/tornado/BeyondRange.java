package org.tornadomoe.tornado;

import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.util.stream.IntStream;
import org.tornadomoe.config.Int8Scheme;
import org.tornadomoe.config.ScalarType;
import org.tornadomoe.quant.HiddenStates;
import org.tornadomoe.tornado.device.Device;
import org.tornadomoe.tornado.graph.LayerArrays;

/**
 * The tokens with a hidden value beyond {@link #LARGEST} (through OpenCL {@link #LARGEST_BY_OPENCL}), or with a NaN.
 * Such values may overflow float sums, and compilers with fast math may turn a NaN or an infinity into any number. So
 * the host finds these tokens and sets their output to NaN. Hopper's kernels are compiled without fast math; there the
 * quantiser does it.
 */
record BeyondRange(ScalarType type, int h, int[] tokens) {
    /** The largest magnitude of a hidden value. */
    static final float LARGEST = 1e30f;

    /** The same through OpenCL; NVIDIA's OpenCL gave wrong numbers for 9e29. */
    static final float LARGEST_BY_OPENCL = 1e20f;

    /**
     * The tokens of a call. With one scale found for all activations, one such token makes it all tokens of the call.
     */
    static BeyondRange of(LayerArrays arrays, Device device, MemorySegment hidden, int tokens) {
        float largest = isAsExactAsCuda(device) ? LARGEST : LARGEST_BY_OPENCL;
        ScalarType type = arrays.shape.config.inDtype();
        int h = arrays.shape.config.hiddenDim();
        int[] beyond = arrays.shape.gemm.keepsNaN()
                ? new int[0]
                : IntStream.range(0, tokens)
                        .filter(m -> isBeyond(largest, type, hidden, (long) m * h, h))
                        .toArray();
        boolean shared = arrays.shape.scheme == Int8Scheme.W8A8_TENSOR && !arrays.staticScales;
        return new BeyondRange(
                type,
                h,
                shared && beyond.length > 0 ? IntStream.range(0, tokens).toArray() : beyond);
    }

    /** Compilers of other backends are assumed to be no better than OpenCL's. */
    private static boolean isAsExactAsCuda(Device device) {
        return device.is(Device.CUDA) || device.is(Device.PTX) || device.is(Device.INTERPRETER);
    }

    private static boolean isBeyond(float largest, ScalarType type, MemorySegment hidden, long from, int h) {
        // As integers, magnitudes have the same order, and NaN is above all numbers.
        int greatest = 0;
        if (type == ScalarType.F32) {
            for (long v = from; v < from + h; v++) {
                greatest = Math.max(greatest, hidden.get(ValueLayout.JAVA_INT_UNALIGNED, 4 * v) & Integer.MAX_VALUE);
            }
            return greatest > Float.floatToRawIntBits(largest);
        }
        for (long v = from; v < from + h; v++) {
            greatest = Math.max(greatest, hidden.get(ValueLayout.JAVA_SHORT_UNALIGNED, 2 * v) & Short.MAX_VALUE);
        }
        return !(HiddenStates.widen(type, (short) greatest) <= largest);
    }

    /** @param output [M, H] */
    void makeNaN(MemorySegment output) {
        for (int m : tokens) {
            for (long v = (long) m * h; v < (long) (m + 1) * h; v++) {
                if (type == ScalarType.F32) {
                    output.set(ValueLayout.JAVA_FLOAT_UNALIGNED, 4 * v, Float.NaN);
                } else {
                    output.set(ValueLayout.JAVA_SHORT_UNALIGNED, 2 * v, HiddenStates.narrow(type, Float.NaN));
                }
            }
        }
    }
}
