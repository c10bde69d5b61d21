package org.tornadomoe.cli;

import java.nio.file.Path;
import java.util.Arrays;
import java.util.Random;
import org.tornadomoe.checkpoint.file.CheckpointException;
import org.tornadomoe.checkpoint.file.DType;
import org.tornadomoe.checkpoint.file.Safetensors;
import org.tornadomoe.checkpoint.file.Tensor;
import org.tornadomoe.kernel.RouterInputs;
import org.tornadomoe.quant.ExpertWeights;
import org.tornadomoe.quant.RouterNetwork;

/**
 * Rows of finite floats, one per token: hidden states, or a layer's output.
 *
 * @param count M
 * @param values [M, H]
 */
record Tokens(int count, float[] values) {
    private static final long SEED = 42;

    /**
     * Normally distributed values, the same in every run.
     *
     * @throws IllegalArgumentException if the count is zero or too large for an array
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

    /**
     * The router's inputs beside hidden states: {@code input_ids} [M] for a router with a table of experts; {@code
     * router_input} [M, H] for a router that reads another input than the experts; {@code router_states} [M, R] for a
     * network. Missing states are zeros, which mean none.
     *
     * @throws CheckpointException if a tensor has the wrong shape or type
     */
    static RouterInputs inputs(Safetensors file, ExpertWeights layer, int tokens) {
        int[] table = layer.layerRouter().expertsOfToken();
        RouterNetwork network = layer.layerRouter().network();
        int k = layer.layerConfig().expertsPerToken();
        if (table != null) {
            Tensor tensor = file.tensor("input_ids").requireDType(DType.I64, DType.I32);
            if (tensor.elements() != tokens) {
                throw tensor(file, tensor, "expected a token id for each of " + tokens + " hidden states");
            }
            int[] ids = tensor.toInts();
            for (int id : ids) {
                if (id < 0 || id >= table.length / k) {
                    throw problem(file.path(), "input_ids", "expected 0 to " + (table.length / k - 1) + ", got " + id);
                }
            }
            return RouterInputs.ofTokenIds(ids);
        }
        if (network != null) {
            if (!file.names().contains("router_states")) {
                return RouterInputs.ofStates(new float[tokens * network.width()]);
            }
            return RouterInputs.ofStates(rows(file, "router_states", tokens, network.width()));
        }
        return layer.layerConfig().router().readsOwnInput()
                ? RouterInputs.ofHidden(
                        rows(file, "router_input", tokens, layer.layerConfig().hiddenDim()))
                : RouterInputs.NONE;
    }

    private static float[] rows(Safetensors file, String name, int tokens, int width) {
        Tokens rows = read(file, name, width);
        if (rows.count != tokens) {
            throw tensor(file, file.tensor(name), "expected " + tokens + " rows, as hidden_states has");
        }
        return rows.values;
    }

    /** The same for random tokens, equal in every run. */
    static RouterInputs randomInputs(ExpertWeights layer, int tokens) {
        int[] table = layer.layerRouter().expertsOfToken();
        RouterNetwork network = layer.layerRouter().network();
        if (table != null) {
            int rows = table.length / layer.layerConfig().expertsPerToken();
            return RouterInputs.ofTokenIds(
                    new Random(SEED).ints(tokens, 0, rows).toArray());
        }
        if (layer.layerConfig().router().readsOwnInput()) {
            return RouterInputs.ofHidden(random(tokens, layer.layerConfig().hiddenDim()).values);
        }
        return network == null ? RouterInputs.NONE : RouterInputs.ofStates(new float[tokens * network.width()]);
    }

    private static CheckpointException tensor(Safetensors file, Tensor tensor, String problem) {
        return problem(file.path(), tensor.name(), problem + ", got " + Arrays.toString(tensor.shape()));
    }

    private static CheckpointException problem(Path file, String name, String problem) {
        return new CheckpointException(file, "tensor '" + name + "': " + problem);
    }
}
