package org.tornadomoe.checkpoint;

import java.util.ArrayList;
import java.util.List;
import java.util.stream.IntStream;
import org.jspecify.annotations.Nullable;
import org.tornadomoe.checkpoint.family.LayerShape;
import org.tornadomoe.checkpoint.family.LayerShape.Peculiarity;
import org.tornadomoe.checkpoint.file.CheckpointException;
import org.tornadomoe.checkpoint.file.Tensor;
import org.tornadomoe.checkpoint.weights.BlockTensors;
import org.tornadomoe.checkpoint.weights.Matrix;
import org.tornadomoe.checkpoint.weights.MatrixView;
import org.tornadomoe.checkpoint.weights.Projections;

/**
 * Finds the experts of a layer's block, the routed and the shared ones: an expert's projections are tensors of their
 * own or lie in one tensor of all experts, and have several names. As in {@link LayerReader}, what is there is taken.
 */
final class ExpertReader {
    private static final List<String> SHARED = List.of("shared_experts", "shared_expert", "shared_mlp", "share_expert");

    /** What a token is projected to before the experts, [L, H], and back, [H, L]. */
    private record Latent(Matrix into, Matrix back) {}

    private final BlockReader layer;
    private final BlockTensors tensors;
    private final LayerShape shape;
    private final String block;

    /** @param block what the names of the block's tensors begin with */
    ExpertReader(BlockReader layer, String block) {
        this.layer = layer;
        tensors = layer.tensors();
        shape = layer.shape();
        this.block = block;
    }

    /** What is said where leaving a shared expert out would give wrong numbers. */
    static String unexpectedShared(int layer, String found) {
        return "layer " + layer + ": expected no shared expert, since the configuration tells of none, found " + found;
    }

    /** The routed experts, in the order of their numbers; {@code fused} gets the tensors of all of them. */
    List<Projections> routed(List<Tensor> fused) {
        List<Projections> experts = experts(fused);
        if (shape.has(Peculiarity.GEMMA4_ROUTER) || shape.has(Peculiarity.EXPERT_SCALES)) {
            boolean gemma = shape.has(Peculiarity.GEMMA4_ROUTER);
            float[] each =
                    layer.required(block + (gemma ? "router.per_expert_scale" : "router_scale"), shape.experts());
            List<Projections> unscaled = experts;
            experts = IntStream.range(0, shape.experts())
                    .mapToObj(e -> unscaled.get(e).scaled(each[e]))
                    .toList();
        }
        if (shape.has(Peculiarity.UP_PLUS_ONE)) {
            experts = experts.stream().map(Projections::withUpPlusOne).toList();
        }
        if (shape.has(Peculiarity.ADJUGATES)) {
            experts = withAdjugates(experts);
        }
        if (shape.has(Peculiarity.OF_PICTURES)) {
            takeThoseOfPictures();
        }
        return List.copyOf(experts);
    }

    private void takeThoseOfPictures() {
        String prefix = block + "experts.";
        for (String name : tensors.names()) {
            String rest = name.startsWith(prefix) ? name.substring(prefix.length()) : "";
            if (rest.matches("\\d{1,6}\\..*")
                    && Integer.parseInt(rest.substring(0, rest.indexOf('.'))) >= shape.experts()) {
                tensors.find(name);
            }
        }
    }

    /** The shared expert, times its scale; null if there is none. */
    @Nullable
    Projections shared() {
        String layerPrefix = block.substring(
                0, block.indexOf(layer.number()) + layer.number().length());
        List<String> places = SHARED.stream()
                .map(name -> (name.equals("share_expert") ? layerPrefix : block) + name + ".")
                .map(place -> shape.has(Peculiarity.DENSE_BESIDE) ? layerPrefix + "mlp." : place)
                .distinct()
                .filter(place -> tensors.names().stream()
                        .anyMatch(name -> name.startsWith(place)
                                && isProjection(name.substring(place.length()))
                                && tensors.hasValues(name)))
                .toList();
        if (shape.sharedIntermediate() == 0) {
            if (!places.isEmpty()) {
                throw new CheckpointException(tensors.path(), unexpectedShared(layer.layer(), places.getFirst() + "*"));
            }
            tensors.find(block + "shared_expert_gate.weight"); // weighs nothing
            return null;
        }
        if (places.isEmpty()) {
            throw layer.missing(
                    List.of("the shared expert"),
                    SHARED.stream()
                            .map(name -> block + name + "." + ExpertNames.KNOWN.getFirst())
                            .toList());
        }
        return shared(places.getFirst(), shape.sharedIntermediate()).scaled(shape.sharedScale());
    }

    private static boolean isProjection(String name) {
        return name.matches(
                "((gate|up|down|gate_up|gate_and_up)_proj|w[123]|linear_gate|(input|output)_linear)(\\..*)?");
    }

    /** One module, or a tensor of gate and up, or a tensor of several experts for each projection. */
    private Projections shared(String prefix, int wide) {
        int h = shape.hidden();
        for (ExpertNames names : ExpertNames.KNOWN) {
            if (layer.hasAny(prefix + names.gated(shape.gated()).gate() + ".")) {
                return expert(prefix, names, wide, h);
            }
        }
        List<String> modules = ExpertNames.KNOWN.getFirst().under(prefix);
        for (ExpertNames both : List.of(
                new ExpertNames("gate_up_proj", "", "down_proj"),
                new ExpertNames(ExpertNames.UP_AND_GATE, "", "down_proj"),
                new ExpertNames("input_linear", "", "output_linear"))) {
            if (layer.hasAny(prefix + both.gate() + ".")) {
                Matrix all = layer.matrix(prefix + both.gate(), 2 * wide, h);
                int gate = both.gate().equals(ExpertNames.UP_AND_GATE) ? wide : 0;
                return new Projections(
                        List.of(),
                        new MatrixView.Window(all, wide, h, gate, 0),
                        new MatrixView.Window(all, wide, h, wide - gate, 0),
                        layer.matrix(prefix + both.down(), h, wide),
                        null,
                        null,
                        null);
            }
        }
        int i = shape.intermediate();
        int n = wide / i;
        Tensor down = stacked(modules.get(2), n, h, i);
        return new Projections(
                List.of(),
                new Matrix.Floats(stacked(modules.get(0), n, i, h), wide, h, 0, h, 1),
                new Matrix.Floats(stacked(modules.get(1), n, i, h), wide, h, 0, h, 1),
                new MatrixView.Beside(IntStream.range(0, n)
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
    private List<Projections> experts(List<Tensor> fused) {
        Latent latent = latent();
        int inner = latent == null ? shape.inner() : latent.into.rows();
        List<Projections> found = experts(inner, fused);
        if (shape.has(Peculiarity.ONE_BIAS)) {
            float[] bias = layer.required(block + "bias", shape.hidden());
            found = found.stream().map(expert -> expert.withDownBias(bias)).toList();
        }
        return latent == null
                ? found
                : found.stream()
                        .map(expert -> expert.between(latent.into, latent.back))
                        .toList();
    }

    /** What the experts of a narrower space are between; null if they read hidden states. */
    LayerTensors.@Nullable Latent latentSpace() {
        LayerShape.Latent space = shape.latent();
        if (space == null) {
            return null;
        }
        String prefix = block + "routed_expert_";
        return new LayerTensors.Latent(
                layer.floats(prefix + "down_proj", space.width(), shape.hidden()),
                space.normed() ? layer.required(prefix + "norm.weight", space.width()) : null,
                layer.floats(prefix + "up_proj", shape.hidden(), space.width()));
    }

    private @Nullable Latent latent() {
        String into = block + "fc1_latent_proj";
        if (!shape.has(Peculiarity.LATENT) || !layer.hasAny(into + ".")) {
            return null;
        }
        int inner = layer.rows(into);
        return new Latent(
                layer.matrix(into, inner, shape.hidden()),
                layer.matrix(block + "fc2_latent_proj", shape.hidden(), inner));
    }

    private List<Projections> experts(int inner, List<Tensor> fused) {
        for (ExpertNames names : ExpertNames.KNOWN) {
            if (isPerExpert(names.gated(shape.gated())) && !(names.gate().equals("w1") && hasNone(names.up()))) {
                return perExpert(names.gated(shape.gated()), inner);
            }
        }
        int before = tensors.mark();
        List<Projections> experts = new FusedExperts(layer, block).read(inner);
        fused.addAll(tensors.takenSince(before));
        return experts;
    }

    /** Whether experts lack a projection of that name, though they have a gate: w1 may hold both. */
    private boolean hasNone(String up) {
        return shape.gated() && !isPerExpert(new ExpertNames(up, "", ""));
    }

    /** Whether some expert has a projection of its own of that name. */
    private boolean isPerExpert(ExpertNames names) {
        String experts = block + "experts.";
        return tensors.names().stream().filter(name -> name.startsWith(experts)).anyMatch(name -> {
            int dot = name.indexOf('.', experts.length());
            return dot >= 0 && name.startsWith(names.gate() + ".", dot + 1);
        });
    }

    private List<Projections> perExpert(ExpertNames names, int inner) {
        String named = block + "experts.expert_";
        boolean isNamed = tensors.names().stream().anyMatch(name -> name.startsWith(named));
        String numbered = isNamed ? named : block + "experts.";
        List<String> missing = new ArrayList<>();
        for (int e = 0; e < shape.experts(); e++) {
            for (String module : names.under(numbered + e + ".")) {
                if (!layer.hasAny(module + ".")) {
                    missing.add(module + ".weight");
                }
            }
        }
        if (!missing.isEmpty()) {
            throw layer.missing(
                    missing,
                    names.under(numbered + "{0.." + (shape.experts() - 1) + "}.").stream()
                            .map(module -> module + ".weight")
                            .toList());
        }
        List<Projections> experts = new ArrayList<>();
        for (int e = 0; e < shape.experts(); e++) {
            experts.add(expert(numbered + e + ".", names, shape.intermediate(), inner));
        }
        // What transformers saves of experts that hand their token on, however it is stored.
        for (int e = shape.experts(); e < shape.choices(); e++) {
            String unused = block + "experts." + e + ".";
            tensors.names().stream().filter(name -> name.startsWith(unused)).forEach(tensors::find);
        }
        return experts;
    }

    private Projections expert(String prefix, ExpertNames named, int intermediate, int inner) {
        ExpertNames names = named.gated(shape.gated());
        float[] gateBias = layer.bias(prefix + names.gate() + ".bias", intermediate);
        float[] upBias = layer.bias(prefix + names.up() + ".bias", intermediate);
        float[] downBias = layer.bias(prefix + names.down() + ".bias", inner);
        Matrix gate = layer.matrix(prefix + names.gate(), intermediate, inner);
        return new Projections(
                names.under(prefix),
                gate,
                shape.gated() ? layer.matrix(prefix + names.up(), intermediate, inner) : gate,
                layer.matrix(prefix + names.down(), inner, intermediate),
                gateBias,
                upBias,
                downBias);
    }

    /** Every expert and the one beside it as one. */
    private List<Projections> withAdjugates(List<Projections> experts) {
        List<Projections> both = new ArrayList<>();
        for (int e = 0; e < experts.size(); e++) {
            Projections expert = experts.get(e);
            Projections beside = expert(
                    block + "chunk_experts." + e / LayerShape.EXPERTS_AN_ADJUGATE + ".",
                    ExpertNames.KNOWN.getFirst(),
                    LayerShape.ADJUGATE_WIDTH,
                    shape.hidden());
            both.add(expert.withAdjugate(beside.gate(), beside.up(), beside.down()));
        }
        tensors.find(block + "expert_bias"); // its module has it and doesn't read it
        return both;
    }
}
