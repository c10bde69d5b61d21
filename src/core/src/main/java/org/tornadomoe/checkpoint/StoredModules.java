package org.tornadomoe.checkpoint;

import java.io.IOException;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.nio.ByteOrder;
import java.nio.file.Path;
import java.util.LinkedHashMap;
import java.util.LinkedHashSet;
import java.util.Map;
import java.util.Objects;
import java.util.Set;
import org.jspecify.annotations.Nullable;
import org.tornadomoe.checkpoint.file.CheckpointException;
import org.tornadomoe.checkpoint.file.DType;
import org.tornadomoe.checkpoint.file.Safetensors;
import org.tornadomoe.checkpoint.file.SafetensorsWriter;
import org.tornadomoe.checkpoint.file.Tensor;
import org.tornadomoe.checkpoint.weights.BlockTensors;
import org.tornadomoe.checkpoint.weights.Matrix;
import org.tornadomoe.checkpoint.weights.MatrixReader;
import org.tornadomoe.checkpoint.weights.WeightQuantization;
import org.tornadomoe.config.ScalarType;
import org.tornadomoe.quant.HiddenStates;

/**
 * The modules of a checkpoint that are stored in fewer bits than floats of 16, but for the experts that are quantised:
 * attention, dense layers, experts of other layers. They are written as floats.
 */
final class StoredModules {
    private static final ValueLayout.OfShort SHORT =
            ValueLayout.JAVA_SHORT_UNALIGNED.withOrder(ByteOrder.LITTLE_ENDIAN);

    private final DType floats;
    private final Map<String, Matrix> modules = new LinkedHashMap<>();
    private final Set<String> replaced = new LinkedHashSet<>();

    /**
     * Finds them.
     *
     * @param floats F16 or BF16
     * @param without names of tensors that others take care of
     * @throws CheckpointException if one can't be read
     */
    StoredModules(Safetensors source, @Nullable WeightQuantization quantization, DType floats, Set<String> without) {
        this.floats = floats;
        BlockTensors tensors = new BlockTensors(source);
        MatrixReader reader = new MatrixReader(tensors, quantization);
        for (String name : source.names()) {
            Tensor tensor = source.tensor(name);
            if (without.contains(name)) {
                continue;
            }
            String module = moduleOf(name, tensor);
            if (module == null) {
                boolean isMlx = tensor.dtype() == DType.U32 && name.endsWith(".weight");
                if (tensor.dtype().isFloat8() || isMlx || name.endsWith("_blocks")) {
                    throw tensor.problem("is of a module that is not quantised now, and can't be written as floats:"
                            + " expected all layers to be quantised");
                }
                continue;
            }
            int before = tensors.mark();
            int[] shape = reader.shape(module);
            modules.put(module, reader.read(module, shape[0], shape[1]));
            tensors.takenSince(before).forEach(taken -> replaced.add(taken.name()));
        }
    }

    /** The module whose values these are; null if it is another tensor, or floats. */
    private static @Nullable String moduleOf(String name, Tensor tensor) {
        for (String suffix : MatrixReader.SUFFIXES) {
            boolean whole = suffix.equals("weight")
                    && !tensor.dtype().isFloat8()
                    && tensor.dtype() != DType.I8
                    && tensor.dtype() != DType.U32
                    && tensor.dtype() != DType.U8;
            if (name.endsWith("." + suffix) && !whole && tensor.shape().length == 2) {
                return name.substring(0, name.length() - suffix.length() - 1);
            }
        }
        return null;
    }

    /** The tensors that are not copied. */
    Set<String> replaced() {
        return replaced;
    }

    void declare(Map<Path, SafetensorsWriter> files) {
        modules.forEach((module, matrix) -> Objects.requireNonNull(files.get(matrix.file()))
                .declare(module + ".weight", floats, matrix.rows(), matrix.cols()));
    }

    /** Writes those that live in a file. */
    void write(Path file, SafetensorsWriter.Sink sink) throws IOException {
        for (Map.Entry<String, Matrix> module : modules.entrySet()) {
            Matrix matrix = module.getValue();
            if (matrix.file().equals(file)) {
                sink.put(module.getKey() + ".weight", floats(matrix));
            }
        }
    }

    private MemorySegment floats(Matrix matrix) {
        int cols = matrix.cols();
        byte[] bytes = new byte[Math.multiplyExact(Math.multiplyExact(2, matrix.rows()), cols)];
        MemorySegment all = MemorySegment.ofArray(bytes);
        ScalarType type = floats == DType.F16 ? ScalarType.F16 : ScalarType.BF16;
        float[] row = new float[cols];
        for (int r = 0; r < matrix.rows(); r++) {
            matrix.row(r, row);
            for (int c = 0; c < cols; c++) {
                all.set(SHORT, 2 * ((long) r * cols + c), HiddenStates.narrow(type, row[c]));
            }
        }
        return all;
    }
}
