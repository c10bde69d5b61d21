package org.tornadomoe.checkpoint;

import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.Objects;
import java.util.Set;
import java.util.function.Function;
import java.util.stream.Collectors;
import java.util.stream.IntStream;
import org.jspecify.annotations.Nullable;
import org.tornadomoe.config.GroupShape;
import org.tornadomoe.quant.RouterNetwork;
import org.tornadomoe.quant.RouterWeights;

/**
 * The tensors of one MoE layer, found by their names. Checkpoints differ in the prefix ({@code model.}, {@code
 * language_model.model.}, ...), the block's name ({@code mlp}, {@code block_sparse_moe}, {@code feed_forward}), the
 * router's, and in whether an expert's projections are tensors of their own or lie in one tensor of all experts. None
 * of this is looked up by family: what is there is taken. What changes numbers and no name tells is a {@link
 * Peculiarity}.
 *
 * @param router its weight [C, H] and the rest, as floats
 * @param routerFactor what the weights of all experts are multiplied by besides the configuration's factor
 * @param experts the routed ones, in the order of their numbers
 * @param shared the expert that every token gets, null if there is none; if several, one after the other
 * @param fused the tensors of all experts, scales and biases included, if that is how they are stored
 */
record LayerTensors(
        RouterWeights router,
        double routerFactor,
        List<Projections> experts,
        @Nullable Projections shared,
        List<Tensor> fused) {

    /** What a family's tensors hold that others' don't, or mean something else by. */
    enum Peculiarity {
        /** The router's bias is added to scores for the choice, and not to logits (DeepSeek-V4). */
        ROUTER_BIAS_CORRECTS,
        /** Without a correction bias it is 0: the groups are chosen as with one (Mistral 4). */
        CORRECTION_MAY_MISS,
        /** Rows of the router's weight after the experts' are the shared experts' (Inkling). */
        ROUTER_HAS_SHARED,
        /** One bias of all experts' outputs, {@code BLOCK.bias} (JetMoE). */
        ONE_BIAS,
        /** Experts may work on a projection of the token, {@code fc1_latent_proj}, and be projected back (Nemotron). */
        LATENT,
        /** The router reads another norm of the token than the experts, and has a factor an expert (Gemma 4). */
        GEMMA4_ROUTER,
        /** Experts' outputs have a factor each, {@code BLOCK.router_scale} (Pangu Pro MoE). */
        EXPERT_SCALES,
        /** Every two experts have a smaller one beside them, which is added to either (GroveMoE). */
        ADJUGATES,
        /** Tokens of pictures have a router and experts of their own in the block, which come after (Ernie 4.5 VL). */
        OF_PICTURES,
        /** The shared expert is a dense block beside the experts' (Grok-2). */
        DENSE_BESIDE,
        /** A dense block of the layer, which has another input, is no part of the experts' (Arctic, Gemma 4). */
        DENSE_ELSEWHERE
    }

    /** I of the experts beside others, how many have one, and what its output is multiplied by: GroveMoE's code. */
    static final int ADJUGATE_WIDTH = 128;

    static final int EXPERTS_AN_ADJUGATE = 2;
    static final float ADJUGATE_SCALE = 0.05f;

    /**
     * What a layer has to hold.
     *
     * @param intermediate width of an expert as it is stored
     * @param sharedIntermediate width of the shared expert, 0 if there is none
     * @param interleaved whether gate and up rows of a fused tensor alternate, rather than come one after the other
     * @param correctionBias whether there must be one
     * @param zeroExperts choices beyond the experts
     * @param gated whether an expert has a gate
     * @param sharedScale what the shared expert's output is multiplied by
     * @param tableWidth K where experts stand in a table of token ids, else 0
     * @param network that the router is; null if it isn't
     * @param stack where the layer stands in a model with an encoder; null in one without
     */
    record Shape(
            int experts,
            int hidden,
            int intermediate,
            int sharedIntermediate,
            boolean interleaved,
            boolean correctionBias,
            int zeroExperts,
            boolean gated,
            float sharedScale,
            int tableWidth,
            @Nullable Network network,
            @Nullable Stack stack,
            Set<Peculiarity> peculiarities) {
        boolean has(Peculiarity peculiarity) {
            return peculiarities.contains(peculiarity);
        }

        /** What a token chooses from. */
        int choices() {
            return experts + zeroExperts;
        }

        /** The shape of the router's weight in the file. */
        long[] storedRouter() {
            return has(Peculiarity.OF_PICTURES) ? new long[] {hidden, routerRows()} : new long[] {routerRows(), hidden};
        }

        /** Rows of the router's weight. */
        int routerRows() {
            if (network != null) {
                return network.width;
            }
            return choices() + (has(Peculiarity.ROUTER_HAS_SHARED) ? sharedIntermediate / intermediate : 0);
        }
    }

    /**
     * A router that is a network.
     *
     * @param width R
     * @param epsilon of its norm
     * @param readsState whether it reads the one before it
     */
    record Network(int width, double epsilon, boolean readsState) {}

    /**
     * Of a model with an encoder and a decoder, one of them.
     *
     * @param name that names of its tensors have in them, with a dot behind
     * @param layer its number there
     */
    record Stack(String name, int layer) {}

    /** The last is a layer itself, of a model whose router and experts have no block of their own. */
    private static final List<String> BLOCKS = List.of(
            "mlp.",
            "block_sparse_moe.",
            "feed_forward.",
            "moe.",
            "moe_block.",
            "ffn.",
            "mixer.",
            "layer.1.mlp.",
            "layer.2.mlp.",
            "");

    private static final List<String> LAYERS = List.of("layers.", "blocks.", "block.");
    private static final List<String> ROUTERS = List.of(
            "gate",
            "router",
            "router.layer",
            "router.gate",
            "router.classifier",
            "router.proj",
            "gate.wg",
            "primary_router");

    /** What a router that is a network begins with. */
    private static final List<String> NETWORKS = List.of("gate.down_proj");

    /** Under the router or the block. */
    private static final List<String> CORRECTIONS = List.of(
            "e_score_correction_bias",
            "moe_statics.e_score_correction_bias",
            "router.e_score_correction_bias",
            "experts.e_score_correction_bias",
            "expert_bias",
            "router_bias");

    /** Where a model with more than one stack of layers keeps the language model's. */
    private static final List<String> STACKS =
            List.of("model.", "language_model.model.", "model.language_model.", "thinker.model.");

    private static final List<Names> PER_EXPERT = List.of(
            new Names("gate_proj", "up_proj", "down_proj"),
            new Names("w1", "w3", "w2"),
            new Names("linear_gate", "up_proj", "down_proj"),
            new Names("linear", "linear_v", "linear_1"),
            new Names("gate", "up", "down"),
            new Names("", "fc1", "fc2"),
            new Names("", "wi", "wo"));
    private static final List<Fused> FUSED = List.of(
            new Fused("experts.gate_up_proj", "experts.down_proj", "_bias"),
            new Fused("experts.gate_up_proj.weight", "experts.down_proj.weight", ".bias"),
            new Fused("experts.w13", "experts.w2", "_bias"),
            new Fused("experts.fc1.weight", "experts.fc2.weight", ".bias"),
            new Fused("input_linear.weight", "output_linear.weight", ".bias"));

    /** What the tensors of gpt-oss's experts in MXFP4 end with, two values a byte; their scales end with _scales. */
    private static final String BLOCKS_OF_4_BITS = "_blocks";

    private static final List<String> SHARED = List.of("shared_experts", "shared_expert", "shared_mlp", "share_expert");
    private static final int NAMED_IN_MESSAGE = 4;

    /** Names of an expert's projections. */
    private record Names(String gate, String up, String down) {
        List<String> under(String expert) {
            return List.of(expert + gate, expert + up, expert + down);
        }

        /** Where there is no gate the up projection stands for it, too. */
        Names gated(boolean gated) {
            return gated ? this : new Names(up, up, down);
        }
    }

    /** Names of the tensors of all experts, under the block, and what a bias's name ends with. */
    private record Fused(String gateUp, String down, String bias) {
        String biasOf(String weight) {
            return weight.replaceFirst("\\.weight$", "") + bias;
        }
    }

    /** What is said where leaving a shared expert out would give wrong numbers. */
    static String unexpectedShared(int layer, String found) {
        return "layer " + layer + ": expected no shared expert, since the configuration tells of none, found " + found;
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

    /** Reads a layer's names and checks dtypes and shapes; the values are read later. */
    record Finder(BlockTensors tensors, @Nullable WeightQuantization quantization, int layer, Shape shape) {
        Finder(Safetensors tensors, @Nullable WeightQuantization quantization, int layer, Shape shape) {
            this(new BlockTensors(tensors), quantization, layer, shape);
        }

        /** A router and what its block's names begin with. */
        private record Found(String router, String block) {}

        /** What a token is projected to before the experts, [L, H], and back, [H, L]. */
        private record Latent(Matrix into, Matrix back) {}

        /**
         * The layer's tensors.
         *
         * @throws CheckpointException if one is missing or not what it should be, or the block has one more
         */
        LayerTensors find() {
            Found found = found();
            LayerTensors layer = find(found.router, found.block);
            for (String part : found.block.endsWith(number())
                    ? List.of(found.block + "router.", found.block + "experts.")
                    : List.of(found.block)) {
                tensors.requireAllTaken(part);
            }
            return layer;
        }

        private LayerTensors find(String router, String block) {
            RouterWeights weights = router(router, block);
            Projections shared = shared(block);
            List<Tensor> fused = new ArrayList<>();
            List<Projections> experts = experts(block, fused);
            double factor = 1;
            Tensor scale = tensors.find(router + ".global_scale");
            if (scale != null) {
                factor = scale.requireFloat().requireShape(1).requireFinite().getFloat(0);
            }
            if (shape.has(Peculiarity.GEMMA4_ROUTER) || shape.has(Peculiarity.EXPERT_SCALES)) {
                boolean gemma = shape.has(Peculiarity.GEMMA4_ROUTER);
                float[] each = required(block + (gemma ? "router.per_expert_scale" : "router_scale"), shape.experts);
                List<Projections> unscaled = experts;
                experts = IntStream.range(0, shape.experts)
                        .mapToObj(e -> unscaled.get(e).scaled(each[e]))
                        .toList();
            }
            if (shape.has(Peculiarity.ADJUGATES)) {
                experts = withAdjugates(block, experts);
            }
            if (shape.has(Peculiarity.OF_PICTURES)) {
                tensors.find(router + ".weight_1");
                String prefix = block + "experts.";
                for (String name : tensors.names()) {
                    String rest = name.startsWith(prefix) ? name.substring(prefix.length()) : "";
                    if (rest.matches("\\d{1,6}\\..*")
                            && Integer.parseInt(rest.substring(0, rest.indexOf('.'))) >= shape.experts) {
                        tensors.find(name);
                    }
                }
            }
            return new LayerTensors(weights, factor, List.copyOf(experts), shared, List.copyOf(fused));
        }

        /** Every expert and the one beside it as one. */
        private List<Projections> withAdjugates(String block, List<Projections> experts) {
            List<Projections> both = new ArrayList<>();
            for (int e = 0; e < experts.size(); e++) {
                Projections expert = experts.get(e);
                Projections beside = expert(
                        block + "chunk_experts." + e / EXPERTS_AN_ADJUGATE + ".",
                        PER_EXPERT.getFirst(),
                        ADJUGATE_WIDTH,
                        shape.hidden);
                both.add(expert.withAdjugate(beside.gate(), beside.up(), beside.down()));
            }
            tensors.find(block + "expert_bias"); // its module has it and doesn't read it
            return both;
        }

        /** The router's tensors; those of shared experts that it scores, too. */
        private RouterWeights router(String router, String block) {
            int h = shape.hidden;
            float[] all = shape.has(Peculiarity.OF_PICTURES)
                    ? transposed(router + ".weight", shape.routerRows(), h)
                    : floats(router, shape.routerRows(), h);
            if (shape.network != null) {
                RouterNetwork network = network(shape.network, router.substring(0, router.lastIndexOf('.') + 1), all);
                return new RouterWeights(new float[0], null, null, null, null, network);
            }
            boolean corrects = shape.has(Peculiarity.ROUTER_BIAS_CORRECTS);
            float[] bias = corrects ? null : vector(router + ".bias", shape.choices());
            float[] correction = null;
            if (shape.correctionBias) {
                correction = corrects ? vector(router + ".bias", shape.choices()) : null;
                for (String at : List.of(router + ".", block)) {
                    for (String name : CORRECTIONS) {
                        correction = correction == null ? vector(at + name, shape.choices()) : correction;
                    }
                }
                if (correction == null && shape.has(Peculiarity.CORRECTION_MAY_MISS)) {
                    correction = new float[shape.choices()];
                }
                if (correction == null) {
                    throw missing(List.of(router + ".e_score_correction_bias"), List.of());
                }
            }
            float[] shared = null;
            if (shape.routerRows() > shape.choices()) {
                shared = Arrays.copyOfRange(all, shape.choices() * h, all.length);
                all = Arrays.copyOf(all, shape.choices() * h);
            } else if (shape.sharedIntermediate > 0) {
                String gate = block + "shared_expert_gate";
                shared = hasAny(gate + ".") ? floats(gate, 1, h) : null;
            }
            if (shape.has(Peculiarity.GEMMA4_ROUTER)) {
                undoNorm(block, all);
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
            if (shape.tableWidth == 0) {
                return null;
            }
            Tensor table = tensors.tensor(name);
            long[] size = table.shape();
            return table.requireShape(size.length == 0 ? 1 : size[0], shape.tableWidth)
                    .toInts();
        }

        private RouterNetwork network(Network network, String prefix, float[] down) {
            int r = network.width;
            String mlp = prefix + "router_mlp.";
            return new RouterNetwork(
                    down,
                    required(prefix + "down_proj.bias", r),
                    network.readsState ? required(prefix + "router_states_scale", r) : null,
                    required(mlp + "norm.weight", r),
                    network.epsilon,
                    floats(mlp + "fc1", r, r),
                    required(mlp + "fc1.bias", r),
                    floats(mlp + "fc2", r, r),
                    required(mlp + "fc2.bias", r),
                    floats(mlp + "out_proj", shape.experts + 1, r),
                    required(prefix + "balancing_biases", shape.experts + 1));
        }

        private void undoNorm(String block, float[] router) {
            String norm = block + "pre_feedforward_layernorm_2.weight";
            LayerTensors.undoNorm(
                    router,
                    required(block + "router.scale", shape.hidden),
                    required(norm, shape.hidden),
                    problem -> new CheckpointException(tensors.path(), "tensor '" + norm + "': " + problem));
        }

        /** The shared expert, times its scale; null if there is none. */
        private @Nullable Projections shared(String block) {
            String layerPrefix = block.substring(0, block.indexOf(number()) + number().length());
            List<String> places = SHARED.stream()
                    .map(name -> (name.equals("share_expert") ? layerPrefix : block) + name + ".")
                    .map(place -> shape.has(Peculiarity.DENSE_BESIDE) ? layerPrefix + "mlp." : place)
                    .distinct()
                    .filter(place -> tensors.names().stream()
                            .anyMatch(name -> name.startsWith(place)
                                    && isProjection(name.substring(place.length()))
                                    && tensors.hasValues(name)))
                    .toList();
            if (shape.sharedIntermediate == 0) {
                if (!places.isEmpty()) {
                    throw new CheckpointException(tensors.path(), unexpectedShared(layer, places.getFirst() + "*"));
                }
                tensors.find(block + "shared_expert_gate.weight"); // weighs nothing
                return null;
            }
            if (places.isEmpty()) {
                throw missing(
                        List.of("the shared expert"),
                        SHARED.stream()
                                .map(name -> block + name + "." + PER_EXPERT.getFirst())
                                .toList());
            }
            return shared(places.getFirst(), shape.sharedIntermediate).scaled(shape.sharedScale);
        }

        private static boolean isProjection(String name) {
            return name.matches("((gate|up|down|gate_up)_proj|w[123]|linear_gate|(input|output)_linear)(\\..*)?");
        }

        /** One module, or a tensor of gate and up, or a tensor of several experts for each projection. */
        private Projections shared(String prefix, int wide) {
            int h = shape.hidden;
            for (Names names : PER_EXPERT) {
                if (hasAny(prefix + names.gated(shape.gated).gate + ".")) {
                    return expert(prefix, names, wide, h);
                }
            }
            List<String> modules = PER_EXPERT.getFirst().under(prefix);
            for (Names both : List.of(
                    new Names("gate_up_proj", "", "down_proj"), new Names("input_linear", "", "output_linear"))) {
                if (hasAny(prefix + both.gate + ".")) {
                    Matrix all = matrix(prefix + both.gate, 2 * wide, h);
                    return new Projections(
                            List.of(),
                            new Matrix.Window(all, wide, h, 0, 0),
                            new Matrix.Window(all, wide, h, wide, 0),
                            matrix(prefix + both.down, h, wide),
                            null,
                            null,
                            null);
                }
            }
            int i = shape.intermediate;
            int n = wide / i;
            Tensor down = stacked(modules.get(2), n, h, i);
            return new Projections(
                    List.of(),
                    new Matrix.Floats(stacked(modules.get(0), n, i, h), wide, h, 0, h, 1),
                    new Matrix.Floats(stacked(modules.get(1), n, i, h), wide, h, 0, h, 1),
                    new Matrix.Beside(IntStream.range(0, n)
                            .<Matrix>mapToObj(at -> new Matrix.Floats(down, h, i, (long) at * h * i, i, 1))
                            .toList()),
                    null,
                    null,
                    null);
        }

        private Tensor stacked(String name, long... expected) {
            return tensors.tensor(name).requireFloat().requireShape(expected);
        }

        /** The routed experts; {@code fused} gets the tensors of all of them. */
        private List<Projections> experts(String block, List<Tensor> fused) {
            Latent latent = latent(block);
            int inner = latent == null ? shape.hidden : latent.into.rows();
            List<Projections> found = experts(block, inner, fused);
            if (shape.has(Peculiarity.ONE_BIAS)) {
                float[] bias = required(block + "bias", shape.hidden);
                found = found.stream().map(expert -> expert.withDownBias(bias)).toList();
            }
            return latent == null
                    ? found
                    : found.stream()
                            .map(expert -> expert.between(latent.into, latent.back))
                            .toList();
        }

        private @Nullable Latent latent(String block) {
            String into = block + "fc1_latent_proj.weight";
            if (!shape.has(Peculiarity.LATENT) || !tensors.has(into)) {
                return null;
            }
            Tensor first = tensors.tensor(into);
            int inner = (int) Math.min(first.shape()[0], Integer.MAX_VALUE);
            return new Latent(
                    Matrix.Floats.of(first, inner, shape.hidden),
                    Matrix.Floats.of(tensors.tensor(block + "fc2_latent_proj.weight"), shape.hidden, inner));
        }

        private List<Projections> experts(String block, int inner, List<Tensor> fused) {
            for (Names names : PER_EXPERT) {
                if (isPerExpert(block, names.gated(shape.gated))) {
                    return perExpert(block, names.gated(shape.gated), inner);
                }
            }
            int before = tensors.mark();
            List<Projections> experts = together(block, inner);
            fused.addAll(tensors.takenSince(before));
            return experts;
        }

        /** The experts of tensors of all. */
        private List<Projections> together(String block, int inner) {
            for (Fused names : FUSED) {
                if (tensors.has(block + names.gateUp) || tensors.has(block + names.gateUp + BLOCKS_OF_4_BITS)) {
                    return fused(block, names);
                }
            }
            if (!shape.gated && tensors.has(block + "experts.up_proj")) {
                return fusedWithoutGate(block, inner);
            }
            if (tensors.has(block + "experts.mlp." + (shape.gated ? "v1" : "w1"))) {
                return stackedRows(block);
            }
            for (String each : List.of("", "switch_mlp.", "experts.")) {
                for (Names names : PER_EXPERT) {
                    String first = block + each + names.gated(shape.gated).gate + ".weight";
                    if (tensors.has(first) && tensors.shape(first).length == 3) {
                        return stackedEach(block, each, names.gated(shape.gated), inner);
                    }
                }
            }
            List<String> looked = new ArrayList<>();
            PER_EXPERT.forEach(names -> looked.add(block + "experts.0." + names.gate + ".weight"));
            FUSED.forEach(names -> looked.add(block + names.gateUp));
            throw missing(List.of("the experts"), looked);
        }

        /** {@code experts.up_proj} [E, I, H] and {@code experts.down_proj} [E, H, I]. */
        private List<Projections> fusedWithoutGate(String block, int inner) {
            int i = shape.intermediate;
            Tensor up = stacked(block + "experts.up_proj", shape.experts, i, inner);
            Tensor down = stacked(block + "experts.down_proj", shape.experts, inner, i);
            return stacked(block, inner, null, up, down, false);
        }

        /** A tensor of all experts for each projection, [E, I, H] or [E, H, I] (Step, MLX). */
        private List<Projections> stackedEach(String block, String under, Names names, int inner) {
            int i = shape.intermediate;
            String prefix = block + under;
            float[] gateBias = bias(prefix + names.gate + ".bias", shape.experts, i);
            float[] upBias = bias(prefix + names.up + ".bias", shape.experts, i);
            float[] downBias = bias(prefix + names.down + ".bias", shape.experts, shape.hidden);
            List<Projections> experts = new ArrayList<>();
            for (int e = 0; e < shape.experts; e++) {
                Matrix gate = ofAll(prefix + names.gate, e, i, inner);
                experts.add(new Projections(
                        PER_EXPERT.getFirst().gated(shape.gated).under(block + "experts." + e + "."),
                        gate,
                        shape.gated ? ofAll(prefix + names.up, e, i, inner) : gate,
                        ofAll(prefix + names.down, e, inner, i),
                        part(gateBias, e, i),
                        part(upBias, e, i),
                        part(downBias, e, shape.hidden)));
            }
            return experts;
        }

        /** An expert's matrix in a tensor of all. */
        private Matrix ofAll(String module, int expert, int rows, int cols) {
            return Mlx.has(tensors, module)
                    ? Mlx.read(tensors, module, expert, shape.experts, rows, cols)
                    : new SmallFloats.Place(expert, rows, rows, cols, 0, 1, false)
                            .floats(stacked(module + ".weight", shape.experts, rows, cols));
        }

        private static float @Nullable [] part(float @Nullable [] all, int expert, int length) {
            return all == null ? null : Arrays.copyOfRange(all, expert * length, (expert + 1) * length);
        }

        /**
         * DBRX's: all experts' rows one below the other in three tensors [E * I, H], the third's being columns; without
         * a gate in two, as Nomic's, whose bias of the sum has to be nothing.
         */
        private List<Projections> stackedRows(String block) {
            long rows = (long) shape.experts * shape.intermediate;
            int h = shape.hidden;
            Tensor first = stacked(block + "experts.mlp.w1", rows, h);
            Tensor down = stacked(block + "experts.mlp.w2", rows, h);
            if (shape.gated) {
                return stacked(block, h, first, stacked(block + "experts.mlp.v1", rows, h), down, true);
            }
            String bias = block + "experts.bias";
            float[] added = vector(bias, h);
            for (int i = 0; added != null && i < h; i++) {
                if (added[i] != 0) {
                    throw new CheckpointException(
                            tensors.path(), "tensor '" + bias + "': expected zeros, got " + added[i] + " at " + i);
                }
            }
            return stacked(block, h, null, first, down, true);
        }

        /**
         * The experts of tensors that hold their matrices one after the other.
         *
         * @param gate null where there is none
         * @param transposed whether the matrices of the down projection are
         */
        private List<Projections> stacked(
                String block, int inner, @Nullable Tensor gate, Tensor up, Tensor down, boolean transposed) {
            int i = shape.intermediate;
            List<Projections> experts = new ArrayList<>();
            for (int e = 0; e < shape.experts; e++) {
                SmallFloats.Place place = new SmallFloats.Place(e, i, i, inner, 0, 1, false);
                Matrix ups = place.floats(up);
                experts.add(new Projections(
                        PER_EXPERT.getFirst().gated(gate != null).under(block + "experts." + e + "."),
                        gate == null ? ups : place.floats(gate),
                        ups,
                        new SmallFloats.Place(e, inner, inner, i, 0, 1, transposed).floats(down),
                        null,
                        null,
                        null));
            }
            return experts;
        }

        private long[] shapeOf(String module) {
            return tensors.has(module + ".weight")
                    ? tensors.shape(module + ".weight")
                    : Arrays.stream(new MatrixReader(tensors, quantization).shape(module))
                            .mapToLong(n -> n)
                            .toArray();
        }

        /** The layer's number as a part of names. */
        private String number() {
            return "." + place() + ".";
        }

        private int place() {
            return shape.stack == null ? layer : shape.stack.layer;
        }

        /** Whether a name is of the stack that the layer is in. */
        private boolean isOfStack(String name) {
            return shape.stack == null || name.startsWith(shape.stack.name) || name.contains("." + shape.stack.name);
        }

        private Found found() {
            List<String> routers = shape.network == null ? ROUTERS : NETWORKS;
            List<Found> ends = BLOCKS.stream()
                    .flatMap(block -> LAYERS.stream().map(layers -> layers + place() + "." + block))
                    .flatMap(block -> routers.stream().map(router -> new Found(block + router, block)))
                    .toList();
            String number = number();
            List<Found> all = tensors.names().stream()
                    .filter(name -> name.contains(number) // the other layers' would be tried with every end
                            && isOfStack(name))
                    .flatMap(name -> MatrixReader.SUFFIXES.stream()
                            .flatMap(suffix -> ends.stream()
                                    .filter(end -> isUnder(name, end.router + "." + suffix))
                                    .map(end -> {
                                        int length = (end.router + "." + suffix).length();
                                        String stack = name.substring(0, name.length() - length);
                                        return new Found(stack + end.router, stack + end.block);
                                    })))
                    .toList();
            if (all.isEmpty()) {
                throw missing(
                        List.of("the router"),
                        List.of("*layers." + place() + ".{"
                                + String.join(",", BLOCKS).replace(".,", ",").replaceFirst(",$", "") + "}.{"
                                + String.join(",", routers) + "}.weight"));
            }
            List<Found> stack = STACKS.stream()
                    .map(start -> all.stream()
                            .filter(candidate -> candidate.router.startsWith(start + "layers."))
                            .toList())
                    .filter(candidates -> !candidates.isEmpty())
                    .findFirst()
                    .orElse(all);
            List<Found> found = stack.stream()
                    .filter(candidate -> Arrays.equals(shapeOf(candidate.router), shape.storedRouter()))
                    .toList();
            if (found.isEmpty()) {
                return stack.getFirst(); // whose shape will be complained of
            }
            if (found.size() > 1) {
                throw new CheckpointException(
                        tensors.path(),
                        "layer " + layer + ": expected one router, found " + found.get(0).router + ".weight and "
                                + found.get(1).router + ".weight");
            }
            return found.getFirst();
        }

        /** Whether a name is that end, or has it after a dot. */
        private static boolean isUnder(String name, String end) {
            int start = name.length() - end.length();
            return name.endsWith(end) && (start == 0 || name.charAt(start - 1) == '.');
        }

        /** Whether some expert has a projection of its own of that name. */
        private boolean isPerExpert(String block, Names names) {
            String experts = block + "experts.";
            return tensors.names().stream()
                    .filter(name -> name.startsWith(experts))
                    .anyMatch(name -> {
                        int dot = name.indexOf('.', experts.length());
                        return dot >= 0 && name.startsWith(names.gate + ".", dot + 1);
                    });
        }

        private List<Projections> perExpert(String block, Names names, int inner) {
            String named = block + "experts.expert_";
            boolean isNamed = tensors.names().stream().anyMatch(name -> name.startsWith(named));
            String numbered = isNamed ? named : block + "experts.";
            List<String> missing = new ArrayList<>();
            for (int e = 0; e < shape.experts; e++) {
                for (String module : names.under(numbered + e + ".")) {
                    if (!hasAny(module + ".")) {
                        missing.add(module + ".weight");
                    }
                }
            }
            if (!missing.isEmpty()) {
                throw missing(
                        missing,
                        names.under(numbered + "{0.." + (shape.experts - 1) + "}.").stream()
                                .map(module -> module + ".weight")
                                .toList());
            }
            List<Projections> experts = new ArrayList<>();
            for (int e = 0; e < shape.experts; e++) {
                experts.add(expert(numbered + e + ".", names, shape.intermediate, inner));
            }
            // What transformers saves of experts that hand their token on.
            for (int e = shape.experts; e < shape.choices(); e++) {
                names.under(block + "experts." + e + ".").forEach(module -> tensors.find(module + ".weight"));
            }
            return experts;
        }

        private Projections expert(String prefix, Names named, int intermediate, int inner) {
            Names names = named.gated(shape.gated);
            float[] gateBias = bias(prefix + names.gate + ".bias", intermediate);
            float[] upBias = bias(prefix + names.up + ".bias", intermediate);
            float[] downBias = bias(prefix + names.down + ".bias", shape.hidden);
            Matrix gate = matrix(prefix + names.gate, intermediate, inner);
            return new Projections(
                    names.under(prefix),
                    gate,
                    shape.gated ? matrix(prefix + names.up, intermediate, inner) : gate,
                    matrix(prefix + names.down, inner, intermediate),
                    gateBias,
                    upBias,
                    downBias);
        }

        private Matrix matrix(String module, int rows, int cols) {
            return new MatrixReader(tensors, quantization).read(module, rows, cols);
        }

        /** A matrix as floats: a router may be quantised as any module is. */
        private float[] floats(String module, int rows, int cols) {
            String plain = module + ".weight";
            if (tensors.has(plain) && (tensors.hasFloats(plain) || quantization == null)) {
                return tensors.tensor(plain)
                        .requireFloat()
                        .requireShape(rows, cols)
                        .requireFinite()
                        .toFloats();
            }
            Matrix matrix = matrix(module, rows, cols);
            float[] all = new float[rows * cols];
            float[] row = new float[cols];
            for (int r = 0; r < rows; r++) {
                matrix.row(r, row);
                System.arraycopy(row, 0, all, r * cols, cols);
            }
            for (float value : all) {
                if (!Float.isFinite(value)) {
                    throw new CheckpointException(
                            matrix.file(),
                            "tensor '" + matrix.tensorName() + "': expected finite values, got " + value + " in "
                                    + module);
                }
            }
            return all;
        }

        private List<Projections> fused(String block, Fused names) {
            int h = shape.hidden;
            int i = shape.intermediate;
            Experts gateUp = experts(block + names.gateUp, 2 * i, h);
            Experts down = experts(block + names.down, h, i);
            // Each [E, rows, cols], or both transposed; where 2I = H the second tensor tells.
            boolean transposed = (gateUp.isSquare() ? down : gateUp).isTransposed();
            float[] gateUpBias = bias(block + names.biasOf(names.gateUp), shape.experts, 2L * i);
            float[] downBias = bias(block + names.biasOf(names.down), shape.experts, h);
            int step = shape.interleaved ? 2 : 1;
            List<Projections> experts = new ArrayList<>();
            for (int e = 0; e < shape.experts; e++) {
                experts.add(new Projections(
                        PER_EXPERT.getFirst().under(block + "experts." + e + "."),
                        gateUp.matrix(new SmallFloats.Place(e, 2 * i, i, h, 0, step, transposed)),
                        gateUp.matrix(
                                new SmallFloats.Place(e, 2 * i, i, h, shape.interleaved ? 1 : i, step, transposed)),
                        down.matrix(new SmallFloats.Place(e, h, h, i, 0, 1, transposed)),
                        gateUpBias == null ? null : half(gateUpBias, e, 0),
                        gateUpBias == null ? null : half(gateUpBias, e, 1),
                        downBias == null ? null : Arrays.copyOfRange(downBias, e * h, (e + 1) * h)));
            }
            return experts;
        }

        /** One matrix [rows, cols] of each expert in a tensor of all: floats, 8-bit floats, MXFP4 or NVFP4. */
        private Experts experts(String name, int rows, int cols) {
            MatrixReader reader = new MatrixReader(tensors, quantization);
            if (tensors.has(name + BLOCKS_OF_4_BITS)) {
                Tensor values = tensors.tensor(name + BLOCKS_OF_4_BITS).requireDType(DType.U8);
                Tensor exponents = reader.scaleOf(name).requireDType(DType.U8, DType.F8_E8M0);
                return new Experts(values, exponents, null, reader.block(name), shape.experts, rows, cols);
            }
            DType dtype = tensors.dtype(name);
            if (dtype == DType.U8) {
                Tensor scale = reader.scaleOf(name).requireDType(DType.F8_E4M3, DType.F8_E8M0, DType.U8);
                float[] factors = reader.factors(name + "_", scale, shape.experts);
                return new Experts(tensors.tensor(name), scale, factors, null, shape.experts, rows, cols / 2);
            }
            boolean scaled = dtype != null && dtype.isFloat8();
            Tensor values = scaled ? tensors.tensor(name) : tensors.tensor(name).requireFloat();
            return new Experts(
                    values, scaled ? reader.scaleOf(name) : null, null, reader.block(name), shape.experts, rows, cols);
        }

        /**
         * @param scale null where the values are floats of at least 16 bits
         * @param factors what each expert's scales are multiplied by; null for 1
         * @param cols elements of the tensor, of which one may hold two values
         */
        private record Experts(
                Tensor values,
                @Nullable Tensor scale,
                float @Nullable [] factors,
                @Nullable GroupShape block,
                int count,
                int rows,
                int cols) {
            boolean isSquare() {
                return rows == cols;
            }

            boolean isTransposed() {
                return Arrays.equals(values.shape(), new long[] {count, cols, rows});
            }

            Matrix matrix(SmallFloats.Place place) {
                if (values.dtype() == DType.U8) {
                    return SmallFloats.fourBits(
                            values.name(),
                            values,
                            Objects.requireNonNull(scale),
                            factors == null ? place.straight() : place,
                            factors == null ? 1 : factors[place.index()]);
                }
                values.requireShape(count, place.transposed() ? cols : rows, place.transposed() ? rows : cols);
                return scale == null ? place.floats(values) : SmallFloats.eightBits(values, scale, place, block);
            }
        }

        /** The gate's (0) or the up projection's (1) part of an expert's bias. */
        private float[] half(float[] gateUp, int expert, int which) {
            int i = shape.intermediate;
            float[] half = new float[i];
            for (int r = 0; r < i; r++) {
                half[r] = gateUp[2 * i * expert + (shape.interleaved ? 2 * r + which : which * i + r)];
            }
            return half;
        }

        private float[] required(String name, int length) {
            float[] found = vector(name, length);
            if (found == null) {
                throw missing(List.of(name), List.of());
            }
            return found;
        }

        /** [length], or as Ernie has it [1, length]; where pictures have their own, the first of [2, length]. */
        private float @Nullable [] vector(String name, int length) {
            Tensor found = tensors.find(name);
            if (found == null) {
                return null;
            }
            if (shape.has(Peculiarity.OF_PICTURES)) {
                float[] both = found.requireFloat()
                        .requireShape(2, length)
                        .requireFinite()
                        .toFloats();
                return Arrays.copyOf(both, length);
            }
            boolean row = Arrays.equals(found.shape(), new long[] {1, length});
            Tensor floats = found.requireFloat();
            return (row ? floats : floats.requireShape(length)).requireFinite().toFloats();
        }

        private float @Nullable [] bias(String name, long... shape) {
            Tensor found = tensors.find(name);
            return found == null
                    ? null
                    : found.requireFloat().requireShape(shape).requireFinite().toFloats();
        }

        private boolean hasAny(String prefix) {
            return MatrixReader.SUFFIXES.stream().anyMatch(suffix -> tensors.has(prefix + suffix));
        }

        private CheckpointException missing(List<String> missing, List<String> lookedFor) {
            List<String> there = tensors.names().stream()
                    .filter(name -> LAYERS.stream().anyMatch(layers -> name.contains(layers + place() + "."))
                            && isOfStack(name))
                    .toList();
            return new CheckpointException(
                    tensors.path(),
                    "layer " + layer + ": " + some(missing, missing.size() == 1 ? " is missing" : " are missing")
                            + (lookedFor.isEmpty() ? "" : "; looked for " + String.join(", ", lookedFor))
                            + "; found " + (there.isEmpty() ? "no tensor of this layer" : some(there, "")));
        }

        private static String some(List<String> names, String what) {
            String first = names.stream().limit(NAMED_IN_MESSAGE).collect(Collectors.joining(", "));
            int more = names.size() - NAMED_IN_MESSAGE;
            return first + (more > 0 ? " and " + more + " more" : "") + what;
        }
    }
}
