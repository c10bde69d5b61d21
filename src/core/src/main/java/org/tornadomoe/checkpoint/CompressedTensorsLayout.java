package org.tornadomoe.checkpoint;

import java.io.IOException;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.nio.ByteOrder;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import org.jspecify.annotations.Nullable;
import org.tornadomoe.checkpoint.file.DType;
import org.tornadomoe.checkpoint.file.SafetensorsWriter;
import org.tornadomoe.config.Int8Quantization;
import org.tornadomoe.config.Int8Scheme;
import org.tornadomoe.quant.Int8Tensor;

/**
 * How compressed-tensors lays an int8 projection out: {@code int-quantized}, or {@code pack-quantized} where
 * activations stay floats, four values an int; and what {@code config.json} says of it.
 */
record CompressedTensorsLayout(Int8Quantization quantization) {
    private static final ValueLayout.OfFloat FLOAT =
            ValueLayout.JAVA_FLOAT_UNALIGNED.withOrder(ByteOrder.LITTLE_ENDIAN);
    private static final ValueLayout.OfLong LONG = ValueLayout.JAVA_LONG_UNALIGNED.withOrder(ByteOrder.LITTLE_ENDIAN);

    private boolean isPacked() {
        return !quantization.scheme().quantizesActivations();
    }

    /** Declares the tensors of a projection of so many rows and columns. */
    void declare(SafetensorsWriter file, String module, int rows, int cols, boolean hasBias) {
        if (isPacked()) {
            file.declare(module + ".weight_packed", DType.I32, rows, Math.ceilDiv(cols, 4));
            file.declare(module + ".weight_shape", DType.I64, 2);
        } else {
            file.declare(module + ".weight", DType.I8, rows, cols);
        }
        file.declare(module + ".weight_scale", DType.F32, scaleShape(rows, cols));
        if (hasBias) {
            file.declare(module + ".bias", DType.F32, rows);
        }
    }

    private long[] scaleShape(int rows, int cols) {
        return quantization.scheme() == Int8Scheme.W8A8_TENSOR
                ? new long[] {1}
                : new long[] {
                    Math.ceilDiv(rows, quantization.rowsPerScale(rows)),
                    Math.ceilDiv(cols, quantization.colsPerScale(cols))
                };
    }

    /**
     * Writes a projection's tensors.
     *
     * @param tensor of one expert, which has the projection's rows from {@code firstRow} on
     * @param bias [rows]; null for none
     */
    void put(
            String module,
            Int8Tensor tensor,
            int firstRow,
            int rows,
            float @Nullable [] bias,
            SafetensorsWriter.Sink sink)
            throws IOException {
        int cols = tensor.cols();
        int width = isPacked() ? Math.ceilDiv(cols, 4) * 4 : cols;
        byte[] row = new byte[width];
        // At most one projection at a time: with the expert itself that stays below two experts.
        try (var arena = java.lang.foreign.Arena.ofConfined()) {
            MemorySegment values = arena.allocate(Math.max(1, (long) rows * width));
            for (int r = 0; r < rows; r++) {
                tensor.row(0, firstRow + r, row);
                for (int c = 0; c < cols && isPacked(); c++) {
                    row[c] ^= (byte) 0x80;
                }
                MemorySegment.copy(row, 0, values, ValueLayout.JAVA_BYTE, (long) r * width, width);
            }
            sink.put(module + (isPacked() ? ".weight_packed" : ".weight"), values);
        }
        long[] shape = scaleShape(rows, cols);
        int scaleRows = (int) shape[0];
        int scaleCols = shape.length == 1 ? 1 : (int) shape[1];
        MemorySegment scales = MemorySegment.ofArray(new byte[4 * scaleRows * scaleCols]);
        for (int r = 0; r < scaleRows; r++) {
            for (int c = 0; c < scaleCols; c++) {
                float scale =
                        tensor.scale(0, firstRow + r * quantization.rowsPerScale(rows), c * tensor.colsPerScale());
                scales.set(FLOAT, 4L * (r * scaleCols + c), scale);
            }
        }
        sink.put(module + ".weight_scale", scales);
        if (isPacked()) {
            MemorySegment size = MemorySegment.ofArray(new byte[16]);
            size.set(LONG, 0, rows);
            size.set(LONG, 8, cols);
            sink.put(module + ".weight_shape", size);
        }
        if (bias != null) {
            MemorySegment data = MemorySegment.ofArray(new byte[4 * bias.length]);
            MemorySegment.copy(bias, 0, data, FLOAT, 0, bias.length);
            sink.put(module + ".bias", data);
        }
    }

    /**
     * The field {@code quantization_config} of {@code config.json}.
     *
     * @param floats patterns of the names of MoE layers that are not quantised
     */
    Map<String, Object> config(List<String> floats) {
        Int8Scheme scheme = quantization.scheme();
        Map<String, Object> weights = arguments();
        weights.put("dynamic", false);
        // A group of a whole row is a channel.
        boolean wholeRow =
                scheme == Int8Scheme.W8A16_GROUP && quantization.grid().col() == -1;
        weights.put("strategy", wholeRow ? Int8Scheme.W8A16_CHANNEL.weightStrategy() : scheme.weightStrategy());
        if (scheme == Int8Scheme.W8A8_BLOCK) {
            weights.put(
                    "block_structure",
                    List.of(quantization.grid().row(), quantization.grid().col()));
        } else if (scheme == Int8Scheme.W8A16_GROUP && !wholeRow) {
            weights.put("group_size", quantization.grid().col());
        }
        @Nullable Map<String, Object> activations = null;
        String strategy = scheme.activationStrategy();
        if (strategy != null) {
            activations = arguments();
            activations.put("dynamic", true);
            activations.put("strategy", strategy);
            if (strategy.equals("group")) {
                activations.put("group_size", quantization.grid().col());
            }
        }
        Map<String, @Nullable Object> group = new LinkedHashMap<>();
        // Mixtral's names as well as everybody else's, and the first expert by the names that vLLM asks for.
        group.put(
                "targets",
                List.of("re:.*\\.(experts\\.(expert_)?\\d+|shared_experts?|shared_mlp|share_expert)"
                        + "\\.(gate_proj|up_proj|down_proj|linear_gate|w1|w2|w3|v1|linear|linear_v|linear_1|gate|up"
                        + "|down|fc1|fc2|wi|wo)$"));
        group.put("weights", weights);
        group.put("input_activations", activations);
        group.put("output_activations", null);
        Map<String, @Nullable Object> all = new LinkedHashMap<>();
        all.put("quant_method", "compressed-tensors");
        all.put("format", isPacked() ? "pack-quantized" : "int-quantized");
        all.put("quantization_status", "compressed");
        all.put("global_compression_ratio", null);
        all.put("kv_cache_scheme", null);
        all.put("config_groups", Map.of("group_0", group));
        all.put("ignore", floats.stream().map(pattern -> "re:" + pattern).toList());
        return new LinkedHashMap<>(all);
    }

    private static Map<String, Object> arguments() {
        Map<String, Object> arguments = new LinkedHashMap<>();
        arguments.put("num_bits", 8);
        arguments.put("type", "int");
        arguments.put("symmetric", true);
        return arguments;
    }
}
