package org.tornadomoe.checkpoint;

import java.util.ArrayList;
import java.util.Arrays;
import java.util.HashSet;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.stream.Collectors;
import java.util.stream.Stream;
import org.jspecify.annotations.Nullable;
import org.tornadomoe.checkpoint.family.LayerShape;
import org.tornadomoe.checkpoint.family.LayerShape.Peculiarity;
import org.tornadomoe.checkpoint.file.CheckpointException;
import org.tornadomoe.checkpoint.file.DType;
import org.tornadomoe.checkpoint.file.GgmlType;
import org.tornadomoe.checkpoint.file.Gguf;
import org.tornadomoe.checkpoint.file.Tensor;
import org.tornadomoe.checkpoint.weights.GgufBlocks;
import org.tornadomoe.checkpoint.weights.Matrix;
import org.tornadomoe.checkpoint.weights.MatrixView;
import org.tornadomoe.checkpoint.weights.Projections;
import org.tornadomoe.quant.RouterWeights;

/** The MoE block of a GGUF file's layer: its tensors by llama.cpp's names, all of which have to be read. */
final class GgufLayer {
    /** What a tensor's name has in it if it is part of a layer's feed-forward block. */
    private static final List<String> OF_BLOCK = List.of("ffn_", "exp_", "exps", "shexp", "moe");

    /** Tensors of a layer that have a name as its MoE block's have, and may be there unread: why. */
    private static final Map<String, String> UNREAD = Map.of(
            "ffn_norm.weight", "the norm before the block: a layer is handed hidden states that are normed",
            "ffn_norm.bias", "the same norm's",
            "exp_probs_b_vl.bias", "the correction bias of tokens of pictures");

    /** What the scale of a matrix's activations ends with, which may be there unread: they stay floats. */
    private static final String SCALE_OF_ACTIVATIONS = ".input_scale";

    private final Gguf gguf;
    private final String prefix;
    private final int layer;
    private final LayerShape shape;

    /** The tensors looked at. */
    private final Set<String> read = new HashSet<>();

    GgufLayer(Gguf gguf, int layer, LayerShape shape) {
        this.gguf = gguf;
        prefix = "blk." + layer + ".";
        this.layer = layer;
        this.shape = shape;
    }

    /** What the tensors around experts in a narrower space begin with: in llama.cpp, or its first files. */
    static String latentName(Gguf gguf, int layer) {
        return gguf.find("blk." + layer + ".ffn_routed_down.weight") == null ? "ffn_latent_" : "ffn_routed_";
    }

    LayerTensors find() {
        int e = shape.experts();
        int h = shape.hidden();
        String latentName = latentName(gguf, layer);
        Gguf.Entry into = shape.latent() != null
                ? required(latentName + "down.weight")
                : shape.has(Peculiarity.LATENT) ? look(latentName + "down.weight") : null;
        int inner = into == null ? h : latentWidth(into);
        int i = shape.intermediate();
        float @Nullable [] gateUpBias = bias("ffn_gate_up_exps", e, 2L * i);
        float @Nullable [] gateBias = bias("ffn_gate_exps", e, i);
        float @Nullable [] upBias = bias("ffn_up_exps", e, i);
        float @Nullable [] downBias = bias("ffn_down_exps", e, inner);
        if (gateUpBias != null && (gateBias != null || upBias != null)) {
            throw refused(prefix + "ffn_gate_up_exps.bias: expected no other bias of gate and up, found " + prefix
                    + (gateBias != null ? "ffn_gate_exps.bias" : "ffn_up_exps.bias"));
        }
        List<Projections> experts = new ArrayList<>();
        for (int expert = 0; expert < e; expert++) {
            Matrix first = routed(shape.gated() ? "ffn_gate" : "ffn_up", expert, i, inner);
            experts.add(new Projections(
                    List.of(),
                    first,
                    shape.gated() ? routed("ffn_up", expert, i, inner) : first,
                    routed("ffn_down", expert, inner, i),
                    gateUpBias == null ? part(gateBias, expert, i) : part(gateUpBias, 2 * expert, i),
                    gateUpBias == null ? part(upBias, expert, i) : part(gateUpBias, 2 * expert + 1, i),
                    part(downBias, expert, inner)));
        }
        LayerTensors.Latent latent = null;
        if (into != null) {
            Gguf.Entry back = required(latentName + "up.weight");
            if (shape.latent() == null) {
                Matrix first = matrix(into, 0, 1, inner, h);
                Matrix last = matrix(back, 0, 1, h, inner);
                experts = experts.stream()
                        .map(expert -> expert.between(first, last))
                        .collect(Collectors.toCollection(ArrayList::new));
            } else {
                latent = new LayerTensors.Latent(
                        floats(into).requireShape(inner, h).requireFinite().toFloats(),
                        shape.latent().normed()
                                ? vector(required(latentName + "norm.weight"), inner)
                                        .requireFinite()
                                        .toFloats()
                                : null,
                        floats(back).requireShape(h, inner).requireFinite().toFloats());
            }
        }
        if (shape.has(Peculiarity.ADJUGATES)) {
            experts = withAdjugates(experts);
        }
        Projections shared = null;
        Tensor sharedGate = null;
        int width = shape.sharedIntermediate();
        String first = shape.gated() ? "ffn_gate" : "ffn_up";
        if (width == 0 && gguf.find(prefix + first + "_shexp.weight") != null) {
            throw refused(ExpertReader.unexpectedShared(layer, prefix + first + "_shexp.weight"));
        }
        String end = shape.has(Peculiarity.DENSE_BESIDE) ? ".weight" : "_shexp.weight";
        if (width > 0) {
            Matrix gate = matrix(required(first + end), 0, 1, width, h);
            shared = new Projections(
                            List.of(),
                            gate,
                            shape.gated() ? matrix(required("ffn_up" + end), 0, 1, width, h) : gate,
                            matrix(required("ffn_down" + end), 0, 1, h, width),
                            null,
                            null,
                            null)
                    .scaled(shape.sharedScale());
            Gguf.Entry weight = look("ffn_gate_inp_shexp.weight");
            sharedGate = weight == null ? null : vector(weight, h);
        }
        if (shape.has(Peculiarity.DENSE_ELSEWHERE)) { // with Arctic the experts' norm is another
            List.of("ffn_gate", "ffn_up", "ffn_down", "ffn_norm_exps").forEach(name -> look(name + ".weight"));
        }
        float[] correction = shape.correctionBias() ? correction(e) : null;
        Gguf.Entry routerBias = look("ffn_gate_inp.bias");
        float[] router =
                floats(required("ffn_gate_inp.weight")).requireShape(e, h).toFloats();
        if (shape.has(Peculiarity.GEMMA4_ROUTER)) {
            Gguf.Entry handed = required("pre_ffw_norm_2.weight");
            RouterReader.undoNorm(
                    router,
                    vector(required("ffn_gate_inp.scale"), h).toFloats(),
                    vector(handed, h).toFloats(),
                    handed::problem);
        }
        int[] table = shape.tableWidth() == 0 ? null : expertsOfToken();
        requireAllRead();
        return new LayerTensors(
                new RouterWeights(
                        router,
                        routerBias == null ? null : vector(routerBias, e).toFloats(),
                        correction,
                        sharedGate == null ? null : sharedGate.toFloats(),
                        table,
                        null),
                1,
                List.copyOf(experts),
                shared,
                List.of(),
                latent);
    }

    /** Rows of what projects a token, which the metadata may tell, too. */
    private int latentWidth(Gguf.Entry into) {
        long rows = into.shape().length == 2 ? into.shape()[0] : 0;
        int expected = shape.latent() == null
                ? (int) Math.min(rows, Integer.MAX_VALUE)
                : shape.latent().width();
        if (rows < 1 || rows != expected) {
            throw into.problem("expected shape [" + (shape.latent() == null ? "width" : expected) + ", "
                    + shape.hidden() + "] (outermost first), got " + Arrays.toString(into.shape()));
        }
        return expected;
    }

    private float[] correction(int experts) {
        for (String name : List.of("exp_probs_b.bias", "exp_probs_b")) {
            Gguf.Entry found = look(name);
            if (found != null) {
                return vector(found, experts).toFloats();
            }
        }
        if (shape.has(Peculiarity.CORRECTION_MAY_MISS)) {
            return new float[experts];
        }
        throw missing("exp_probs_b.bias");
    }

    /** [V, K]. */
    private int[] expertsOfToken() {
        Gguf.Entry table = required("ffn_gate_tid2eid.weight");
        long[] size = table.shape();
        if (table.type() != GgmlType.I32 || size.length != 2 || size[1] != shape.tableWidth()) {
            throw table.problem("expected I32 of the shape [token ids, " + shape.tableWidth() + "], got "
                    + table.typeName() + " " + Arrays.toString(size));
        }
        return new Tensor(table.file(), table.name(), DType.I32, size, table.data()).toInts();
    }

    private List<Projections> withAdjugates(List<Projections> experts) {
        int i = LayerShape.ADJUGATE_WIDTH;
        int count = Math.ceilDiv(experts.size(), LayerShape.EXPERTS_AN_ADJUGATE);
        List<Projections> both = new ArrayList<>();
        for (int e = 0; e < experts.size(); e++) {
            int at = e / LayerShape.EXPERTS_AN_ADJUGATE;
            both.add(experts.get(e)
                    .withAdjugate(
                            matrix(required("ffn_gate_chexps.weight"), at, count, i, shape.hidden()),
                            matrix(required("ffn_up_chexps.weight"), at, count, i, shape.hidden()),
                            matrix(required("ffn_down_chexps.weight"), at, count, shape.hidden(), i)));
        }
        return both;
    }

    /** The tensors that were read. */
    List<Gguf.Entry> taken() {
        return gguf.names().stream()
                .filter(name -> name.startsWith(prefix) && read.contains(name.substring(prefix.length())))
                .map(gguf::find)
                .flatMap(Stream::ofNullable)
                .toList();
    }

    /** A tensor of the block that nothing read would be missing from the result. */
    private void requireAllRead() {
        for (String name : gguf.names()) {
            String own = name.startsWith(prefix) ? name.substring(prefix.length()) : "";
            boolean ofBlock = OF_BLOCK.stream().anyMatch(own::contains);
            boolean ofActivations = own.endsWith(SCALE_OF_ACTIVATIONS)
                    && read.contains(own.substring(0, own.length() - SCALE_OF_ACTIVATIONS.length()) + ".weight");
            if (ofBlock && !read.contains(own) && !UNREAD.containsKey(own) && !ofActivations) {
                throw refused(
                        "layer " + layer + ": the tensor '" + name + "' is part of its MoE block, and not understood");
            }
        }
    }

    private Gguf.@Nullable Entry look(String name) {
        Gguf.Entry found = gguf.find(prefix + name);
        if (found != null) {
            read.add(name);
        }
        return found;
    }

    /** An expert's matrix, in one tensor of all, of one with gate and up, or of its own, as old files have it. */
    private Matrix routed(String name, int expert, int rows, int cols) {
        Gguf.Entry all = look(name + "_exps.weight");
        if (all != null) {
            return matrix(all, expert, shape.experts(), rows, cols);
        }
        Gguf.Entry both = name.equals("ffn_down") ? null : look("ffn_gate_up_exps.weight");
        if (both != null) {
            Matrix gateUp = matrix(both, expert, shape.experts(), 2 * rows, cols);
            return new MatrixView.Window(gateUp, rows, cols, name.equals("ffn_up") ? rows : 0, 0);
        }
        Gguf.Entry own = look(name + "." + expert + ".weight");
        if (own == null) {
            throw missing(name + "_exps.weight");
        }
        return matrix(own, 0, 1, rows, cols);
    }

    /** Matrix {@code index} of a tensor of {@code count}, times its scale where the tensor has scales. */
    private Matrix matrix(Gguf.Entry entry, int index, int count, int rows, int cols) {
        long[] expected = count == 1 ? new long[] {rows, cols} : new long[] {count, rows, cols};
        boolean one = count == 1 && Arrays.equals(entry.shape(), new long[] {1, rows, cols});
        if (!one && !Arrays.equals(entry.shape(), expected)) {
            throw entry.problem("expected shape " + Arrays.toString(expected) + " (outermost first), got "
                    + Arrays.toString(entry.shape()));
        }
        float scale = scale(entry, index, count);
        GgmlType type = entry.type();
        if (type != null && type.group > 0) {
            return new GgufBlocks(entry, type, index, rows, cols, scale).matrix();
        }
        Matrix floats = new Matrix.Floats(floats(entry), rows, cols, (long) index * rows * cols, cols, 1);
        return scale == 1 ? floats : new MatrixView.Scaled(floats, scale);
    }

    /** What a matrix's products are multiplied by: its value in {@code NAME.scale} beside {@code NAME.weight}. */
    private float scale(Gguf.Entry weight, int index, int count) {
        String own = weight.name().substring(prefix.length());
        Gguf.Entry found = look(own.substring(0, own.length() - ".weight".length()) + ".scale");
        if (found == null) {
            return 1;
        }
        float scale = vector(found, count).getFloat(index);
        if (!Float.isFinite(scale)) {
            throw found.problem("expected finite values, got " + scale + " at index " + index);
        }
        return scale;
    }

    private float @Nullable [] bias(String name, long experts, long length) {
        Gguf.Entry found = look(name + ".bias");
        return found == null
                ? null
                : floats(found).requireShape(experts, length).toFloats();
    }

    private static float @Nullable [] part(float @Nullable [] all, int expert, int length) {
        return all == null ? null : Arrays.copyOfRange(all, expert * length, (expert + 1) * length);
    }

    private Tensor vector(Gguf.Entry entry, int length) {
        Tensor tensor = floats(entry);
        if (tensor.elements() != length) {
            throw tensor.problem("expected " + length + " values, got " + tensor);
        }
        return tensor;
    }

    /** A whole tensor: its last dimension are the columns, all others the rows. */
    static Matrix matrix(Gguf.Entry entry) {
        GgmlType type = entry.type();
        if (type == null || type.group <= 0) {
            return Matrix.Floats.of(floats(entry));
        }
        long cols = entry.shape()[entry.shape().length - 1];
        long rows = entry.data().byteSize() / type.bytes * type.elements / cols;
        if (rows > Integer.MAX_VALUE || cols > Integer.MAX_VALUE) {
            throw entry.problem("expected fewer than 2^31 rows and columns, got " + Arrays.toString(entry.shape()));
        }
        return new GgufBlocks(entry, type, 0, (int) rows, (int) cols, 1).matrix();
    }

    private static Tensor floats(Gguf.Entry entry) {
        GgmlType type = entry.type();
        if (type != null && type.group > 0) {
            return GgufBlocks.toFloats(entry, type);
        }
        DType dtype = type == null ? null : type.dtype;
        if (dtype == null || !dtype.isFloat()) {
            throw entry.problem("expected one of the types " + GgmlType.READ + ", got " + entry.typeName());
        }
        return new Tensor(entry.file(), entry.name(), dtype, entry.shape(), entry.data());
    }

    private Gguf.Entry required(String name) {
        Gguf.Entry found = look(name);
        if (found == null) {
            throw missing(name);
        }
        return found;
    }

    private CheckpointException missing(String name) {
        return refused("layer " + layer + ": " + prefix + name + " is missing; found " + names());
    }

    private CheckpointException refused(String problem) {
        return new CheckpointException(gguf.path(), problem);
    }

    private List<String> names() {
        return gguf.names().stream().filter(name -> name.startsWith(prefix)).toList();
    }
}
