package org.tornadomoe.checkpoint;

import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.Objects;
import java.util.stream.Collectors;
import java.util.stream.Stream;
import org.jspecify.annotations.Nullable;
import org.tornadomoe.config.GroupShape;

/**
 * The tensors of one MoE layer, found by their names. Checkpoints differ in the prefix ({@code model.}, {@code
 * language_model.model.}, ...), the block's name ({@code mlp}, {@code block_sparse_moe}, {@code feed_forward}), the
 * router's, and in whether an expert's projections are tensors of their own or lie in one tensor of all experts. None
 * of this is looked up by family: what is there is taken.
 *
 * @param routerName the router's module, {@code model.layers.0.mlp.gate}
 * @param router [E, H]
 * @param routerBias [E], null if there is none
 * @param correctionBias [E], added to scores for the choice only; null if there is none
 * @param experts the routed ones, in the order of their numbers
 * @param shared the expert that every token gets, null if there is none
 * @param sharedGate [1, H]: its sigmoid weighs the shared expert; null if there is none
 * @param fused the tensors of all experts, scales and biases included, if that is how they are stored
 */
record LayerTensors(
        String routerName,
        Tensor router,
        @Nullable Tensor routerBias,
        @Nullable Tensor correctionBias,
        List<Projections> experts,
        @Nullable Projections shared,
        @Nullable Tensor sharedGate,
        List<Tensor> fused) {

    /**
     * What a layer has to hold.
     *
     * @param sharedIntermediate width of the shared expert, 0 if there is none
     * @param interleaved whether gate and up rows of a fused tensor alternate, rather than come one after the other
     * @param correctionBias whether there must be one
     */
    record Shape(
            int experts,
            int hidden,
            int intermediate,
            int sharedIntermediate,
            boolean interleaved,
            boolean correctionBias) {}

    private static final List<String> BLOCKS = List.of("mlp", "block_sparse_moe", "feed_forward", "moe", "ffn");
    private static final List<String> ROUTERS = List.of("gate", "router", "router.layer");

    /** Where a model with more than one stack of layers keeps the language model's. */
    private static final List<String> STACKS = List.of("model.", "language_model.model.", "model.language_model.");

    private static final List<Names> PER_EXPERT =
            List.of(new Names("gate_proj", "up_proj", "down_proj"), new Names("w1", "w3", "w2"));
    private static final List<Fused> FUSED = List.of(
            new Fused("experts.gate_up_proj", "experts.down_proj", "_bias"),
            new Fused("experts.gate_up_proj.weight", "experts.down_proj.weight", ".bias"),
            new Fused("experts.w13", "experts.w2", "_bias"),
            new Fused("input_linear.weight", "output_linear.weight", ".bias"));

    /** What the tensors of gpt-oss's experts in MXFP4 end with, two values a byte; their scales end with _scales. */
    private static final String BLOCKS_OF_4_BITS = "_blocks";

    private static final List<String> SHARED = List.of("shared_experts", "shared_expert");
    private static final int NAMED_IN_MESSAGE = 4;

    /** Names of an expert's projections. */
    private record Names(String gate, String up, String down) {
        List<String> under(String expert) {
            return List.of(expert + gate, expert + up, expert + down);
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

    /** Reads a layer's names and checks dtypes and shapes; the values are read later. */
    record Finder(BlockTensors tensors, @Nullable WeightQuantization quantization, int layer, Shape shape) {
        Finder(Safetensors tensors, @Nullable WeightQuantization quantization, int layer, Shape shape) {
            this(new BlockTensors(tensors), quantization, layer, shape);
        }

        /** A router and what its block's names begin with. */
        private record Found(String router, String block) {}

        /**
         * The layer's tensors.
         *
         * @throws CheckpointException if one is missing or not what it should be, or the block has one more
         */
        LayerTensors find() {
            Found found = found();
            LayerTensors layer = find(found.router, found.block);
            tensors.requireAllTaken(found.block);
            return layer;
        }

        private LayerTensors find(String router, String block) {
            Tensor routerWeight = tensors.tensor(router + ".weight")
                    .requireFloat()
                    .requireShape(shape.experts, shape.hidden)
                    .requireFinite();
            Tensor routerBias = vector(router + ".bias", shape.experts);
            Tensor correction = null;
            if (shape.correctionBias) {
                correction = Stream.of(router, block.substring(0, block.length() - 1))
                        .map(at -> vector(at + ".e_score_correction_bias", shape.experts))
                        .flatMap(Stream::ofNullable)
                        .findFirst()
                        .orElseThrow(() -> missing(List.of(router + ".e_score_correction_bias"), List.of()));
            }
            Projections shared = null;
            Tensor sharedGate = null;
            if (shape.sharedIntermediate == 0) {
                SHARED.stream()
                        .map(name -> block + name + ".")
                        .filter(this::hasAny)
                        .forEach(found -> {
                            throw new CheckpointException(tensors.path(), unexpectedShared(layer, found + "*"));
                        });
            } else {
                String name = SHARED.stream()
                        .map(sharedName -> block + sharedName + ".")
                        .filter(this::hasAny)
                        .findFirst()
                        .orElseThrow(() -> missing(
                                List.of("the shared expert"),
                                SHARED.stream()
                                        .map(sharedName -> block + sharedName + "." + PER_EXPERT.getFirst())
                                        .toList()));
                shared = expert(name, PER_EXPERT.getFirst(), shape.sharedIntermediate);
                Tensor gate = tensors.find(block + "shared_expert_gate.weight");
                sharedGate = gate == null
                        ? null
                        : gate.requireFloat().requireShape(1, shape.hidden).requireFinite();
            }
            for (Names names : PER_EXPERT) {
                if (isPerExpert(block, names)) {
                    return new LayerTensors(
                            router,
                            routerWeight,
                            routerBias,
                            correction,
                            perExpert(block, names),
                            shared,
                            sharedGate,
                            List.of());
                }
            }
            for (Fused fused : FUSED) {
                if (tensors.has(block + fused.gateUp) || tensors.has(block + fused.gateUp + BLOCKS_OF_4_BITS)) {
                    int before = tensors.mark();
                    List<Projections> experts = fused(block, fused);
                    return new LayerTensors(
                            router,
                            routerWeight,
                            routerBias,
                            correction,
                            experts,
                            shared,
                            sharedGate,
                            tensors.takenSince(before));
                }
            }
            List<String> looked = new ArrayList<>();
            PER_EXPERT.forEach(names -> looked.add(block + "experts.0." + names.gate + ".weight"));
            FUSED.forEach(fused -> looked.add(block + fused.gateUp));
            throw missing(List.of("the experts"), looked);
        }

        private Found found() {
            List<Found> ends = BLOCKS.stream()
                    .map(block -> "layers." + layer + "." + block + ".")
                    .flatMap(block -> ROUTERS.stream().map(router -> new Found(block + router, block)))
                    .toList();
            List<Found> all = tensors.names().stream()
                    .flatMap(name -> ends.stream()
                            .filter(end -> isUnder(name, end.router + ".weight"))
                            .map(end -> {
                                String stack = name.substring(0, name.length() - (end.router + ".weight").length());
                                return new Found(stack + end.router, stack + end.block);
                            }))
                    .toList();
            if (all.isEmpty()) {
                throw missing(
                        List.of("the router"),
                        List.of("*layers." + layer + ".{" + String.join(",", BLOCKS) + "}.{" + String.join(",", ROUTERS)
                                + "}.weight"));
            }
            List<Found> stack = STACKS.stream()
                    .map(start -> all.stream()
                            .filter(candidate -> candidate.router.startsWith(start + "layers."))
                            .toList())
                    .filter(candidates -> !candidates.isEmpty())
                    .findFirst()
                    .orElse(all);
            List<Found> found = stack.stream()
                    .filter(candidate -> Arrays.equals(
                            tensors.shape(candidate.router + ".weight"), new long[] {shape.experts, shape.hidden}))
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

        private List<Projections> perExpert(String block, Names names) {
            List<String> missing = new ArrayList<>();
            for (int e = 0; e < shape.experts; e++) {
                for (String module : names.under(block + "experts." + e + ".")) {
                    if (!hasAny(module + ".")) {
                        missing.add(module + ".weight");
                    }
                }
            }
            if (!missing.isEmpty()) {
                throw missing(
                        missing,
                        names.under(block + "experts.{0.." + (shape.experts - 1) + "}.").stream()
                                .map(module -> module + ".weight")
                                .toList());
            }
            List<Projections> experts = new ArrayList<>();
            for (int e = 0; e < shape.experts; e++) {
                experts.add(expert(block + "experts." + e + ".", names, shape.intermediate));
            }
            return experts;
        }

        private Projections expert(String prefix, Names names, int intermediate) {
            float[] gateBias = bias(prefix + names.gate + ".bias", intermediate);
            float[] upBias = bias(prefix + names.up + ".bias", intermediate);
            float[] downBias = bias(prefix + names.down + ".bias", shape.hidden);
            return new Projections(
                    names.under(prefix),
                    matrix(prefix + names.gate, intermediate, shape.hidden),
                    matrix(prefix + names.up, intermediate, shape.hidden),
                    matrix(prefix + names.down, shape.hidden, intermediate),
                    gateBias,
                    upBias,
                    downBias);
        }

        private Matrix matrix(String module, int rows, int cols) {
            return new MatrixReader(tensors, quantization).read(module, rows, cols);
        }

        private List<Projections> fused(String block, Fused names) {
            int h = shape.hidden;
            int i = shape.intermediate;
            Experts gateUp = experts(block + names.gateUp, 2 * i, h);
            Experts down = experts(block + names.down, h, i);
            // Each [E, rows, cols], or both transposed; where 2I = H the second tensor tells.
            boolean transposed = (2 * i == h ? down : gateUp).isTransposed();
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

        /** One matrix [rows, cols] of each expert in a tensor of all: floats, 8-bit floats, or MXFP4 blocks. */
        private Experts experts(String name, int rows, int cols) {
            MatrixReader reader = new MatrixReader(tensors, quantization);
            if (tensors.has(name + BLOCKS_OF_4_BITS)) {
                Tensor values = tensors.tensor(name + BLOCKS_OF_4_BITS).requireDType(DType.U8);
                return new Experts(values, reader.scaleOf(name), reader.block(name), shape.experts, rows, cols);
            }
            DType dtype = tensors.dtype(name);
            boolean scaled = dtype != null && dtype.isFloat8();
            Tensor values = scaled ? tensors.tensor(name) : tensors.tensor(name).requireFloat();
            return new Experts(
                    values, scaled ? reader.scaleOf(name) : null, reader.block(name), shape.experts, rows, cols);
        }

        /** @param scale null where the values are floats of at least 16 bits */
        private record Experts(
                Tensor values,
                @Nullable Tensor scale,
                @Nullable GroupShape block,
                int count,
                int rows,
                int cols) {
            boolean isTransposed() {
                return Arrays.equals(values.shape(), new long[] {count, cols, rows});
            }

            Matrix matrix(SmallFloats.Place place) {
                if (values.dtype() == DType.U8) {
                    return SmallFloats.fourBits(
                            values.name(), values, Objects.requireNonNull(scale), place.straight(), 1);
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

        private @Nullable Tensor vector(String name, int length) {
            Tensor found = tensors.find(name);
            return found == null
                    ? null
                    : found.requireFloat().requireShape(length).requireFinite();
        }

        private float @Nullable [] bias(String name, long... shape) {
            Tensor found = tensors.find(name);
            return found == null
                    ? null
                    : found.requireFloat().requireShape(shape).requireFinite().toFloats();
        }

        private boolean hasAny(String prefix) {
            return MatrixReader.SUFFIXES.stream().anyMatch(suffix -> tensors.has(prefix + suffix))
                    || PER_EXPERT.stream()
                            .anyMatch(names -> MatrixReader.SUFFIXES.stream()
                                    .anyMatch(suffix -> tensors.has(prefix + names.gate + "." + suffix)));
        }

        private CheckpointException missing(List<String> missing, List<String> lookedFor) {
            List<String> there = tensors.names().stream()
                    .filter(name -> name.contains("layers." + layer + "."))
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
