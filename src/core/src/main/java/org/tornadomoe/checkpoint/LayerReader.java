package org.tornadomoe.checkpoint;

import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.stream.Collectors;
import org.jspecify.annotations.Nullable;
import org.tornadomoe.checkpoint.family.LayerShape;
import org.tornadomoe.checkpoint.family.LayerShape.Peculiarity;
import org.tornadomoe.checkpoint.file.CheckpointException;
import org.tornadomoe.checkpoint.file.Tensor;
import org.tornadomoe.checkpoint.weights.BlockTensors;
import org.tornadomoe.checkpoint.weights.Matrix;
import org.tornadomoe.checkpoint.weights.MatrixReader;
import org.tornadomoe.checkpoint.weights.Projections;
import org.tornadomoe.checkpoint.weights.WeightQuantization;
import org.tornadomoe.quant.RouterWeights;

/**
 * Finds the MoE block of a layer by its names, and reads it. Checkpoints differ in the prefix ({@code model.}, {@code
 * language_model.model.}, ...), the block's name ({@code mlp}, {@code block_sparse_moe}, {@code feed_forward}) and the
 * router's. None of this is looked up by family: what is there is taken. Dtypes and shapes are checked here; the
 * experts' values are read later.
 */
public record LayerReader(
        BlockTensors tensors, @Nullable WeightQuantization quantization, int layer, LayerShape shape) {
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

    /** What a router begins with whose experts attend to each other. */
    private static final List<String> ATTENTIONS = List.of("router.query_key_value", "gate.query_key_value");

    /** Where a model with more than one stack of layers keeps the language model's. */
    private static final List<String> STACKS =
            List.of("model.", "language_model.model.", "model.language_model.", "thinker.model.");

    private static final int NAMED_IN_MESSAGE = 4;

    /** A router and what its block's names begin with. */
    private record Found(String router, String block) {}

    /**
     * The layer's tensors.
     *
     * @throws CheckpointException if one is missing or not what it should be, or the block has one more
     */
    LayerTensors read() {
        Found found = found();
        ExpertReader reader = new ExpertReader(this, found.block);
        RouterWeights router = new RouterReader(this, found.router, found.block).read();
        Projections shared = reader.shared();
        List<Tensor> fused = new ArrayList<>();
        List<Projections> experts =
                (isHome(found.block) ? reader : new ExpertReader(this, home(found.block))).routed(fused);
        double factor = 1;
        Tensor scale = tensors.find(found.router + ".global_scale");
        if (scale != null) {
            factor = scale.requireFloat().requireShape(1).requireFinite().getFloat(0);
        }
        if (shape.has(Peculiarity.OF_PICTURES)) {
            tensors.find(found.router + ".weight_1");
        }
        for (String part : found.block.endsWith(number())
                ? List.of(found.block + "router.", found.block + "experts.")
                : List.of(found.block)) {
            tensors.requireAllTaken(part);
        }
        return new LayerTensors(router, factor, experts, shared, List.copyOf(fused));
    }

    private Found found() {
        List<String> routers =
                shape.network() != null ? NETWORKS : shape.has(Peculiarity.ATTENDS) ? ATTENTIONS : ROUTERS;
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

    /** Whether a block has its experts itself, as it may where the configuration says otherwise. */
    private boolean isHome(String block) {
        return shape.home() == layer || tensors.names().stream().anyMatch(name -> name.startsWith(block + "experts."));
    }

    private String home(String block) {
        int at = block.indexOf(number());
        return block.substring(0, at) + "." + shape.home() + block.substring(at + number().length() - 1);
    }

    /** Whether a name is that end, or has it after a dot. */
    private static boolean isUnder(String name, String end) {
        int start = name.length() - end.length();
        return name.endsWith(end) && (start == 0 || name.charAt(start - 1) == '.');
    }

    private long[] shapeOf(String module) {
        return tensors.has(module + ".weight")
                ? tensors.shape(module + ".weight")
                : Arrays.stream(new MatrixReader(tensors, quantization).shape(module))
                        .mapToLong(n -> n)
                        .toArray();
    }

    /** The layer's number as a part of names. */
    String number() {
        return "." + place() + ".";
    }

    private int place() {
        return shape.stack() == null ? layer : shape.stack().layer();
    }

    /** Whether a name is of the stack that the layer is in. */
    private boolean isOfStack(String name) {
        return shape.stack() == null
                || name.startsWith(shape.stack().name())
                || name.contains("." + shape.stack().name());
    }

    /** A matrix [rows, cols], however it is stored. */
    Matrix matrix(String module, int rows, int cols) {
        return new MatrixReader(tensors, quantization).read(module, rows, cols);
    }

    /** A matrix as floats: a router may be quantised as any module is. */
    float[] floats(String module, int rows, int cols) {
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
                        "tensor '" + matrix.tensorName() + "': expected finite values, got " + value + " in " + module);
            }
        }
        return all;
    }

    /** As {@link #vector}, of a tensor that must be there. */
    float[] required(String name, int length) {
        float[] found = vector(name, length);
        if (found == null) {
            throw missing(List.of(name), List.of());
        }
        return found;
    }

    /** [length], or as Ernie has it [1, length]; where pictures have their own, the first of [2, length]; or null. */
    float @Nullable [] vector(String name, int length) {
        Tensor found = tensors.find(name);
        if (found == null) {
            return null;
        }
        if (shape.has(Peculiarity.OF_PICTURES)) {
            float[] both =
                    found.requireFloat().requireShape(2, length).requireFinite().toFloats();
            return Arrays.copyOf(both, length);
        }
        boolean row = Arrays.equals(found.shape(), new long[] {1, length});
        Tensor floats = found.requireFloat();
        return (row ? floats : floats.requireShape(length)).requireFinite().toFloats();
    }

    /** A tensor of just that shape, or null. */
    float @Nullable [] bias(String name, long... shape) {
        Tensor found = tensors.find(name);
        return found == null
                ? null
                : found.requireFloat().requireShape(shape).requireFinite().toFloats();
    }

    /** Whether there is a matrix whose tensors' names begin so. */
    boolean hasAny(String prefix) {
        return MatrixReader.SUFFIXES.stream().anyMatch(suffix -> tensors.has(prefix + suffix));
    }

    /** Names what is missing, where it was looked for if that is told, and what the layer has. */
    CheckpointException missing(List<String> missing, List<String> lookedFor) {
        List<String> there = tensors.names().stream()
                .filter(name ->
                        LAYERS.stream().anyMatch(layers -> name.contains(layers + place() + ".")) && isOfStack(name))
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
