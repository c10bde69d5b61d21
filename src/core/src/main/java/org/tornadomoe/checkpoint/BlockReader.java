package org.tornadomoe.checkpoint;

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
import org.tornadomoe.checkpoint.weights.WeightQuantization;

/**
 * Reads tensors of a layer's block by their names; {@link LayerReader} and the readers of the router and the experts
 * share it. A message about missing tensors says what the layer has.
 */
record BlockReader(BlockTensors tensors, @Nullable WeightQuantization quantization, int layer, LayerShape shape) {
    static final List<String> LAYERS = List.of("layers.", "blocks.", "block.");

    private static final int NAMED_IN_MESSAGE = 4;

    /** The layer's number as a part of names. */
    String number() {
        return "." + place() + ".";
    }

    /** Its number in the stack that it is in. */
    int place() {
        return shape.stack() == null ? layer : shape.stack().layer();
    }

    /** Whether a name is of the stack that the layer is in. */
    boolean isOfStack(String name) {
        return shape.stack() == null
                || name.startsWith(shape.stack().name())
                || name.contains("." + shape.stack().name());
    }

    /** A matrix [rows, cols], however it is stored. */
    Matrix matrix(String module, int rows, int cols) {
        return new MatrixReader(tensors, quantization).read(module, rows, cols);
    }

    /** How many rows a matrix has, however it is stored. */
    int rows(String module) {
        String plain = module + ".weight";
        return tensors.has(plain) && tensors.hasFloats(plain)
                ? Math.toIntExact(tensors.shape(plain)[0])
                : new MatrixReader(tensors, quantization).shape(module)[0];
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
