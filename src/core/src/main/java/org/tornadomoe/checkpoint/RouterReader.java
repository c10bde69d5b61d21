package org.tornadomoe.checkpoint;

import java.util.Arrays;
import java.util.List;
import java.util.function.Function;
import org.jspecify.annotations.Nullable;
import org.tornadomoe.checkpoint.family.LayerShape;
import org.tornadomoe.checkpoint.family.LayerShape.Peculiarity;
import org.tornadomoe.checkpoint.file.CheckpointException;
import org.tornadomoe.checkpoint.file.Tensor;
import org.tornadomoe.checkpoint.weights.BlockTensors;
import org.tornadomoe.quant.RouterNetwork;
import org.tornadomoe.quant.RouterWeights;

/** Reads a layer's router, whole, as floats. */
final class RouterReader {
    /** Under the router or the block. */
    private static final List<String> CORRECTIONS = List.of(
            "e_score_correction_bias",
            "moe_statics.e_score_correction_bias",
            "router.e_score_correction_bias",
            "experts.e_score_correction_bias",
            "expert_bias",
            "router_bias");

    private final BlockReader layer;
    private final BlockTensors tensors;
    private final LayerShape shape;
    private final String router;
    private final String block;

    /**
     * @param router what its tensors' names begin with, without a dot behind
     * @param block what its block's begin with
     */
    RouterReader(BlockReader layer, String router, String block) {
        this.layer = layer;
        tensors = layer.tensors();
        shape = layer.shape();
        this.router = router;
        this.block = block;
    }

    /** The router's tensors; those of shared experts that it scores, too. */
    RouterWeights read() {
        int h = shape.hidden();
        float[] all = shape.has(Peculiarity.OF_PICTURES)
                ? transposed(router + ".weight", shape.routerRows(), h)
                : layer.floats(router, shape.routerRows(), h);
        if (shape.network() != null) {
            RouterNetwork network = network(shape.network(), router.substring(0, router.lastIndexOf('.') + 1), all);
            return new RouterWeights(new float[0], null, null, null, null, network);
        }
        boolean corrects = shape.has(Peculiarity.ROUTER_BIAS_CORRECTS);
        float[] bias = corrects ? null : layer.vector(router + ".bias", shape.choices());
        float[] correction = null;
        if (shape.correctionBias()) {
            correction = corrects ? layer.vector(router + ".bias", shape.choices()) : null;
            for (String at : List.of(router + ".", block)) {
                for (String name : CORRECTIONS) {
                    correction = correction == null ? layer.vector(at + name, shape.choices()) : correction;
                }
            }
            if (correction == null && shape.has(Peculiarity.CORRECTION_MAY_MISS)) {
                correction = new float[shape.choices()];
            }
            if (correction == null) {
                throw layer.missing(List.of(router + ".e_score_correction_bias"), List.of());
            }
        }
        float[] shared = null;
        if (shape.has(Peculiarity.COEFFICIENT) && shape.sharedIntermediate() > 0) {
            // A softmax of two: the second's is the sigmoid of their difference, the first's the rest.
            float[] two = layer.floats(block + "coefficient", 2, h);
            shared = new float[h];
            for (int c = 0; c < h; c++) {
                shared[c] = two[h + c] - two[c];
            }
            float[] added = layer.required(block + "coefficient.bias", 2);
            bias = Arrays.copyOf(bias == null ? new float[0] : bias, shape.choices() + 1);
            bias[shape.choices()] = added[1] - added[0];
        } else if (shape.has(Peculiarity.ROUTER_HAS_SHARED) && shape.routerRows() > shape.choices()) {
            shared = Arrays.copyOfRange(all, shape.choices() * h, all.length);
            all = Arrays.copyOf(all, shape.choices() * h);
        } else if (shape.sharedIntermediate() > 0) {
            String gate = block + "shared_expert_gate";
            shared = layer.hasAny(gate + ".") ? layer.floats(gate, 1, h) : null;
        }
        if (shape.has(Peculiarity.GEMMA4_ROUTER)) {
            undoNorm(all);
        }
        return new RouterWeights(all, bias, correction, shared, expertsOfToken(router + ".tid2eid"), null);
    }

    /** A matrix [rows, cols] of a tensor [cols, rows]. */
    private float[] transposed(String name, int rows, int cols) {
        float[] all = tensors.tensor(name)
                .requireFloat()
                .requireShape(cols, rows)
                .requireFinite()
                .toFloats();
        float[] turned = new float[all.length];
        for (int i = 0; i < all.length; i++) {
            turned[i] = all[i % cols * rows + i / cols];
        }
        return turned;
    }

    /** [V, K]. */
    private int @Nullable [] expertsOfToken(String name) {
        if (shape.tableWidth() == 0) {
            return null;
        }
        Tensor table = tensors.tensor(name);
        long[] size = table.shape();
        return table.requireShape(size.length == 0 ? 1 : size[0], shape.tableWidth())
                .toInts();
    }

    private RouterNetwork network(LayerShape.Network network, String prefix, float[] down) {
        int r = network.width();
        String mlp = prefix + "router_mlp.";
        return new RouterNetwork(
                down,
                layer.required(prefix + "down_proj.bias", r),
                network.readsState() ? layer.required(prefix + "router_states_scale", r) : null,
                layer.required(mlp + "norm.weight", r),
                network.epsilon(),
                layer.floats(mlp + "fc1", r, r),
                layer.required(mlp + "fc1.bias", r),
                layer.floats(mlp + "fc2", r, r),
                layer.required(mlp + "fc2.bias", r),
                layer.floats(mlp + "out_proj", shape.experts() + 1, r),
                layer.required(prefix + "balancing_biases", shape.experts() + 1));
    }

    private void undoNorm(float[] weights) {
        String norm = block + "pre_feedforward_layernorm_2.weight";
        undoNorm(
                weights,
                layer.required(block + "router.scale", shape.hidden()),
                layer.required(norm, shape.hidden()),
                problem -> new CheckpointException(tensors.path(), "tensor '" + norm + "': " + problem));
    }

    /**
     * Gemma 4's router reads the token as its own norm has it, and the layer is handed it as the experts' norm has it:
     * the same but for a factor a column, which goes into the router's weight.
     *
     * @param router [E, H], changed
     * @param own [H], of the router's norm
     * @param handed [H], of the experts' norm
     * @param refusal what is thrown where that is 0
     */
    static void undoNorm(float[] router, float[] own, float[] handed, Function<String, CheckpointException> refusal) {
        int h = own.length;
        for (int i = 0; i < router.length; i++) {
            int c = i % h;
            if (handed[c] == 0) {
                throw refusal.apply("expected values other than 0, got 0 at index " + c);
            }
            router[i] = (float) (router[i] * (own[c] / Math.sqrt(h)) / handed[c]);
        }
    }
}
