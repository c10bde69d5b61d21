package org.tornadomoe.cli;

import java.nio.file.Path;
import java.util.Arrays;
import java.util.Random;
import org.tornadomoe.checkpoint.CheckpointException;
import org.tornadomoe.checkpoint.DType;
import org.tornadomoe.checkpoint.Safetensors;
import org.tornadomoe.checkpoint.Tensor;

/**
 * Rows of finite floats, one a token: hidden states, or a layer's output.
 *
 * @param count M
 * @param values [M, H]
 */
record Tokens(int count, float[] values) {
    private static final long SEED = 42;

    /**
     * Normally distributed, the same in every run.
     *
     * @throws IllegalArgumentException if there are none or too many for an array
     */
    static Tokens random(int count, int hiddenDim) {
        int most = (Integer.MAX_VALUE - 8) / hiddenDim;
        if (count < 1 || count > most) {
            throw new IllegalArgumentException(
                    "--tokens: expected 1 to " + most + " (hidden size " + hiddenDim + "), got " + count);
        }
        Random random = new Random(SEED);
        float[] values = new float[count * hiddenDim];
        for (int i = 0; i < values.length; i++) {
            values[i] = (float) random.nextGaussian();
        }
        return new Tokens(count, values);
    }

    /**
     * Reads a tensor [M, H] of any floating-point type.
     *
     * @throws CheckpointException if it is missing, has another shape or type, or a value is not finite
     */
    static Tokens read(Safetensors file, String name, int hiddenDim) {
        Tensor tensor = file.tensor(name).requireDType(DType.F32, DType.F64, DType.F16, DType.BF16);
        long[] shape = tensor.shape();
        if (shape.length != 2 || shape[0] < 1 || shape[1] != hiddenDim) {
            throw problem(
                    file.path(),
                    name,
                    "expected shape [tokens, " + hiddenDim + "] with at least one token, got "
                            + Arrays.toString(shape));
        }
        float[] values = tensor.toFloats();
        file.requireUnchanged();
        for (int i = 0; i < values.length; i++) {
            if (!Float.isFinite(values[i])) {
                throw problem(
                        file.path(),
                        name,
                        "expected finite values, got " + values[i] + " at [" + i / hiddenDim + ", " + i % hiddenDim
                                + "]");
            }
        }
        return new Tokens(values.length / hiddenDim, values);
    }

    private static CheckpointException problem(Path file, String name, String problem) {
        return new CheckpointException(file, "tensor '" + name + "': " + problem);
    }
}
