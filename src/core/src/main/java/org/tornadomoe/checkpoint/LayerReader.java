package org.tornadomoe.checkpoint;

import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import org.jspecify.annotations.Nullable;
import org.tornadomoe.checkpoint.family.LayerShape;
import org.tornadomoe.checkpoint.family.LayerShape.Peculiarity;
import org.tornadomoe.checkpoint.file.CheckpointException;
import org.tornadomoe.checkpoint.file.Tensor;
import org.tornadomoe.checkpoint.weights.BlockTensors;
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
public final class LayerReader {
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

    /** Where routers and experts of several layers are. */
    private static final String BANKS = "meta_mlp.";

    /** Where a model with more than one stack of layers keeps the language model's. */
    private static final List<String> STACKS =
            List.of("model.", "language_model.model.", "model.language_model.", "thinker.model.");

    private final BlockReader reader;
    private final BlockTensors tensors;
    private final LayerShape shape;

    LayerReader(BlockTensors tensors, @Nullable WeightQuantization quantization, int layer, LayerShape shape) {
        reader = new BlockReader(tensors, quantization, layer, shape);
        this.tensors = tensors;
        this.shape = shape;
    }

    /** A router and what its block's names begin with. */
    private record Found(String router, String block) {}

    /**
     * The layer's tensors.
     *
     * @throws CheckpointException if one is missing or not what it should be, or the block has one more
     */
    LayerTensors read() {
        boolean banked = shape.has(Peculiarity.BANKS);
        Found found = banked ? foundInBank() : found();
        ExpertReader experts = new ExpertReader(reader, found.block);
        RouterWeights router = new RouterReader(reader, found.router, found.block).read();
        Projections shared = experts.shared();
        List<Tensor> fused = new ArrayList<>();
        String home = banked
                ? found.router.substring(
                        0, found.router.length() - ROUTERS.getFirst().length())
                : isHome(found.block) ? found.block : home(found.block);
        List<Projections> routed = (home.equals(found.block) ? experts : new ExpertReader(reader, home)).routed(fused);
        LayerTensors.Latent latent = experts.latentSpace();
        double factor = 1;
        Tensor scale = tensors.find(found.router + ".global_scale");
        if (scale != null) {
            factor = scale.requireFloat().requireShape(1).requireFinite().getFloat(0);
        }
        if (shape.has(Peculiarity.OF_PICTURES)) {
            tensors.find(found.router + ".weight_1");
        }
        for (String part : found.block.endsWith(reader.number())
                ? List.of(found.block + "router.", found.block + "experts.")
                : List.of(found.block)) {
            tensors.requireAllTaken(part);
        }
        if (banked) {
            tensors.requireAllTaken(home);
        }
        return new LayerTensors(router, factor, routed, shared, List.copyOf(fused), latent);
    }

    private Found found() {
        List<String> routers =
                shape.network() != null ? NETWORKS : shape.has(Peculiarity.ATTENDS) ? ATTENTIONS : ROUTERS;
        List<Found> ends = BLOCKS.stream()
                .flatMap(block -> BlockReader.LAYERS.stream().map(layers -> layers + reader.place() + "." + block))
                .flatMap(block -> routers.stream().map(router -> new Found(block + router, block)))
                .toList();
        String number = reader.number();
        List<Found> all = tensors.names().stream()
                .filter(name -> name.contains(number) // the other layers' would be tried with every end
                        && reader.isOfStack(name))
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
            throw reader.missing(
                    List.of("the router"),
                    List.of("*layers." + reader.place() + ".{"
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
                    "layer " + reader.layer() + ": expected one router, found " + found.get(0).router + ".weight and "
                            + found.get(1).router + ".weight");
        }
        return found.getFirst();
    }

    /** A router that several layers have, and the block that is this layer's own. */
    private Found foundInBank() {
        String router = BANKS + shape.home() + "." + ROUTERS.getFirst();
        String stack = tensors.names().stream()
                .flatMap(name -> MatrixReader.SUFFIXES.stream()
                        .map(suffix -> router + "." + suffix)
                        .filter(end -> isUnder(name, end))
                        .map(end -> name.substring(0, name.length() - end.length())))
                .findFirst()
                .orElseThrow(() -> reader.missing(List.of("the router"), List.of("*" + router + ".weight")));
        return new Found(
                stack + router, stack + BlockReader.LAYERS.getFirst() + reader.place() + "." + BLOCKS.getFirst());
    }

    /** Whether a block has its experts itself, as it may where the configuration says otherwise. */
    private boolean isHome(String block) {
        return shape.home() == reader.layer()
                || tensors.names().stream().anyMatch(name -> name.startsWith(block + "experts."));
    }

    private String home(String block) {
        int at = block.indexOf(reader.number());
        return block.substring(0, at) + "." + shape.home()
                + block.substring(at + reader.number().length() - 1);
    }

    /** Whether a name is that end, or has it after a dot. */
    private static boolean isUnder(String name, String end) {
        int start = name.length() - end.length();
        return name.endsWith(end) && (start == 0 || name.charAt(start - 1) == '.');
    }

    private long[] shapeOf(String module) {
        return tensors.has(module + ".weight")
                ? tensors.shape(module + ".weight")
                : Arrays.stream(new MatrixReader(tensors, reader.quantization()).shape(module))
                        .mapToLong(n -> n)
                        .toArray();
    }
}
