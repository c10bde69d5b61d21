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
 * Tokens with a hidden value beyond {@link #LARGEST} (through OpenCL {@link #LARGEST_BY_OPENCL}), or none that is a
 * number. Sums in float may leave float's range with them, and compilers that take fast mathematics for granted make
 * any number of what is none: so the host looks for such tokens, and makes their output NaN. On Hopper, whose kernels
 * are compiled without, it is the quantiser that does.
 */
record BeyondRange(ScalarType type, int h, int[] tokens) {
    /** Of hidden values, the greatest magnitude. */
    static final float LARGEST = 1e30f;

    /** The same through OpenCL, of which NVIDIA's gave other numbers for 9e29. */
    static final float LARGEST_BY_OPENCL = 1e20f;

    /** Of a call; with one scale of all activations that is found in it all of its tokens if there is one. */
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

    /** What compiles for other backends is taken to be no better than OpenCL. */
    private static boolean isAsExactAsCuda(Device device) {
        return device.is(Device.CUDA) || device.is(Device.PTX) || device.is(Device.INTERPRETER);
    }

    private static boolean isBeyond(float largest, ScalarType type, MemorySegment hidden, long from, int h) {
        // As whole numbers, magnitudes have the same order, and what is none is greater than all that are.
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
