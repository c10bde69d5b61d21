package org.tornadomoe.checkpoint;

import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.Objects;
import org.tornadomoe.config.FusedMoeConfig;
import org.tornadomoe.quant.ExpertWeights;
import org.tornadomoe.quant.RouterWeights;

/**
 * A checkpoint directory in Hugging Face's layout, {@code config.json} and safetensors, of a known model family
 * ({@code mixtral}, {@code qwen3_moe}). Nothing is read before a layer asks for it. Thread-safe; closing it ends the
 * layers taken from it.
 */
public final class MoeCheckpoint implements AutoCloseable {
    private static final DType[] WEIGHT_TYPES = {DType.F64, DType.F32, DType.F16, DType.BF16};
    private static final int NAMED_IN_MESSAGE = 4;

    private final JsonFile json;
    private final ModelFamily family;
    private final int layers;
    private final FusedMoeConfig config;
    private final Safetensors tensors;

    private MoeCheckpoint(JsonFile json, ModelFamily family, int layers, FusedMoeConfig config, Safetensors tensors) {
        this.json = json;
        this.family = family;
        this.layers = layers;
        this.config = config;
        this.tensors = tensors;
    }

    /**
     * Opens a checkpoint. Nothing stays open if this throws.
     *
     * @throws CheckpointException if the directory, its config.json or its tensors are missing or damaged, or the family
     *     is not known
     */
    public static MoeCheckpoint open(Path directory) {
        if (!Files.isDirectory(directory)) {
            throw new CheckpointException(
                    directory,
                    Files.exists(directory)
                            ? "is not a directory: expected one with config.json and safetensors"
                            : "no such checkpoint directory");
        }
        JsonFile json = JsonFile.read(directory.resolve("config.json"));
        ModelFamily family = ModelFamily.of(json);
        int layers = json.integer("num_hidden_layers");
        if (layers < 1) {
            throw new CheckpointException(
                    json.file(), "'num_hidden_layers': expected a positive number, got " + layers);
        }
        FusedMoeConfig config = family.config(json);
        return new MoeCheckpoint(json, family, layers, config, Safetensors.open(directory));
    }

    /**
     * What the MoE layers of a model are, from its config.json alone, for calls of one token. Knows more families than can be
     * opened: {@code deepseek_v3}, {@code gpt_oss} and {@code llama4_text} too.
     *
     * @param path config.json, or the directory that holds it
     * @throws CheckpointException if the file can't be read, or the family is not known
     */
    public static FusedMoeConfig config(Path path) {
        return ModelFamily.configOf(JsonFile.read(Files.isDirectory(path) ? path.resolve("config.json") : path));
    }

    /** The family, as config.json's {@code model_type} has it. */
    public String modelType() {
        return family.modelType();
    }

    /** Layers of the model, dense ones included. */
    public int layers() {
        return layers;
    }

    /** Layer n for calls of at most {@value FusedMoeConfig#DEFAULT_MAX_NUM_TOKENS} tokens; throws as the other. */
    public ExpertWeights layer(int n) {
        return layer(n, FusedMoeConfig.DEFAULT_MAX_NUM_TOKENS);
    }

    /**
     * The MoE weights of layer n, read from the mapped files row by row.
     *
     * @param n from 0
     * @param maxNumTokens goes into the layer's configuration, at least 1
     * @throws IllegalArgumentException if maxNumTokens is not positive or too large for the layer's sizes
     * @throws CheckpointException if the layer does not exist or has no experts, or a tensor is missing or has the wrong
     *     shape or dtype
     * @throws IllegalStateException after {@link #close}
     */
    public ExpertWeights layer(int n, int maxNumTokens) {
        FusedMoeConfig config = this.config.withMaxNumTokens(maxNumTokens);
        if (n < 0 || n >= layers) {
            throw new CheckpointException(json.file(), "layer: expected 0 to " + (layers - 1) + ", got " + n);
        }
        String dense = family.whyDense(json, n);
        if (dense != null) {
            throw new CheckpointException(json.file(), "layer " + n + " is not an MoE layer: " + dense);
        }
        int experts = config.numExperts();
        int hidden = config.hiddenDim();
        int intermediate = config.intermediateSize();
        requirePresent(n, experts);
        Tensor[] gate = new Tensor[experts];
        Tensor[] up = new Tensor[experts];
        Tensor[] down = new Tensor[experts];
        for (int e = 0; e < experts; e++) {
            gate[e] = weight(family.gate(n, e), intermediate, hidden);
            up[e] = weight(family.up(n, e), intermediate, hidden);
            down[e] = weight(family.down(n, e), hidden, intermediate);
        }
        return new Layer(config, weight(family.router(n), experts, hidden), gate, up, down);
    }

    private void requirePresent(int n, int experts) {
        List<String> wanted = new ArrayList<>();
        wanted.add(family.router(n));
        for (int e = 0; e < experts; e++) {
            wanted.addAll(List.of(family.gate(n, e), family.up(n, e), family.down(n, e)));
        }
        List<String> missing =
                wanted.stream().filter(name -> tensors.find(name) == null).toList();
        if (!missing.isEmpty()) {
            String range = "{0.." + (experts - 1) + "}";
            throw new CheckpointException(
                    tensors.path(),
                    "layer " + n + ": " + missing.size() + " of " + wanted.size() + " tensors are missing: "
                            + String.join(", ", missing.subList(0, Math.min(NAMED_IN_MESSAGE, missing.size())))
                            + (missing.size() > NAMED_IN_MESSAGE ? ", ..." : "") + "; looked for "
                            + String.join(
                                    ", ",
                                    family.router(n),
                                    family.gate(n, range),
                                    family.up(n, range),
                                    family.down(n, range)));
        }
    }

    private Tensor weight(String name, int rows, int cols) {
        return tensors.tensor(name).requireDType(WEIGHT_TYPES).requireShape(rows, cols);
    }

    /** Unmaps the files. A second call does nothing. */
    @Override
    public void close() {
        tensors.close();
    }

    /** A layer whose projections are a tensor each. */
    private static final class Layer implements ExpertWeights {
        private final FusedMoeConfig config;
        private final Tensor router;
        private final Tensor[] gate;
        private final Tensor[] up;
        private final Tensor[] down;

        Layer(FusedMoeConfig config, Tensor router, Tensor[] gate, Tensor[] up, Tensor[] down) {
            this.config = config;
            this.router = router;
            this.gate = gate;
            this.up = up;
            this.down = down;
        }

        @Override
        public FusedMoeConfig config() {
            return config;
        }

        @Override
        public void gateUpRow(int expert, int row, float[] into) {
            Objects.checkIndex(row, config.gateUpRows());
            int gateRows = config.intermediateSize();
            Tensor tensor = row < gateRows ? gate[expert] : up[expert];
            tensor.readFloats((long) (row % gateRows) * config.hiddenDim(), into, 0, config.hiddenDim());
        }

        @Override
        public void downRow(int expert, int row, float[] into) {
            Objects.checkIndex(row, config.hiddenDim());
            down[expert].readFloats((long) row * config.intermediateSize(), into, 0, config.intermediateSize());
        }

        @Override
        public RouterWeights router() {
            return RouterWeights.of(router.toFloats());
        }
    }
}
