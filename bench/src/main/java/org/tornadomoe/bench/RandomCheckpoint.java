package org.tornadomoe.bench;

import java.io.BufferedOutputStream;
import java.io.ByteArrayOutputStream;
import java.io.IOException;
import java.io.OutputStream;
import java.lang.foreign.MemorySegment;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Arrays;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Random;
import java.util.stream.Stream;
import org.tornadomoe.checkpoint.file.DType;
import org.tornadomoe.checkpoint.file.SafetensorsWriter;

/**
 * Writes a checkpoint of one layer [experts, hidden, intermediate], Qwen3-MoE's or gpt-oss', with random weights in one
 * of the formats in which checkpoints are published.
 */
final class RandomCheckpoint {
    /** Formats of safetensors. */
    private static final List<String> SAFETENSORS =
            List.of("int8", "bf16", "gptq", "awq", "pack-quantized", "mxfp4", "nvfp4", "fp8");

    /**
     * ggml's types.
     *
     * @param number its number in files
     * @param elements elements per block
     * @param bytes bytes per block
     * @param halves offsets of a block's 16-bit floats
     */
    private record Blocks(int number, int elements, int bytes, int... halves) {
        static final Map<String, Blocks> TYPES = new LinkedHashMap<>();

        static {
            TYPES.put("Q4_0", new Blocks(2, 32, 18, 0));
            TYPES.put("Q4_1", new Blocks(3, 32, 20, 0, 2));
            TYPES.put("Q5_0", new Blocks(6, 32, 22, 0));
            TYPES.put("Q5_1", new Blocks(7, 32, 24, 0, 2));
            TYPES.put("Q8_0", new Blocks(8, 32, 34, 0));
            TYPES.put("Q2_K", new Blocks(10, 256, 84, 80, 82));
            TYPES.put("Q3_K", new Blocks(11, 256, 110, 108));
            TYPES.put("Q4_K", new Blocks(12, 256, 144, 0, 2));
            TYPES.put("Q5_K", new Blocks(13, 256, 176, 0, 2));
            TYPES.put("Q6_K", new Blocks(14, 256, 210, 208));
            TYPES.put("IQ4_NL", new Blocks(20, 32, 18, 0));
            TYPES.put("IQ4_XS", new Blocks(23, 256, 136, 0));
            TYPES.put("TQ1_0", new Blocks(34, 256, 54, 52));
            TYPES.put("TQ2_0", new Blocks(35, 256, 66, 64));
            TYPES.put("MXFP4", new Blocks(39, 32, 17));
            TYPES.put("NVFP4", new Blocks(40, 64, 36));
        }
    }

    private final String format;
    private final int experts;
    private final int hidden;
    private final int intermediate;
    private final Random random = new Random(20);
    private final SafetensorsWriter tensors = new SafetensorsWriter();

    private RandomCheckpoint(String format, int experts, int hidden, int intermediate) {
        this.format = format;
        this.experts = experts;
        this.hidden = hidden;
        this.intermediate = intermediate;
    }

    /** All formats. */
    static List<String> formats() {
        return Stream.concat(SAFETENSORS.stream(), Blocks.TYPES.keySet().stream())
                .toList();
    }

    /**
     * Writes a checkpoint.
     *
     * @return its path in that folder
     */
    static Path write(String format, Path folder, int experts, int hidden, int intermediate) throws IOException {
        RandomCheckpoint checkpoint = new RandomCheckpoint(format, experts, hidden, intermediate);
        Blocks blocks = Blocks.TYPES.get(format);
        return blocks == null ? checkpoint.safetensors(folder) : checkpoint.gguf(folder, blocks);
    }

    private static ByteBuffer buffer(int bytes) {
        return ByteBuffer.allocate(bytes).order(ByteOrder.LITTLE_ENDIAN);
    }

    private byte[] bytes(long count) {
        byte[] bytes = new byte[Math.toIntExact(count)];
        random.nextBytes(bytes);
        return bytes;
    }

    /** A repeated byte pattern. */
    private static byte[] filled(long count, int... pattern) {
        byte[] bytes = new byte[Math.toIntExact(count)];
        for (int i = 0; i < bytes.length; i++) {
            bytes[i] = (byte) pattern[i % pattern.length];
        }
        return bytes;
    }

    /** Two-byte scales: F16 from 1/64 to 1/32, or BF16 from 1/64 to 1/33. */
    private byte[] halves(long count, boolean bfloat) {
        byte[] bytes = bytes(2 * count);
        for (int i = 1; i < bytes.length; i += 2) {
            bytes[i] = (byte) (bfloat ? 0x3c : 0x24 | (bytes[i] & 3));
            bytes[i - 1] = (byte) (bfloat ? 0x80 | (bytes[i - 1] & 0x7f) : bytes[i - 1]);
        }
        return bytes;
    }

    private byte[] floats(long count) {
        ByteBuffer floats = buffer(Math.toIntExact(4 * count));
        while (floats.hasRemaining()) {
            floats.putFloat(random.nextFloat(0.01f, 0.02f));
        }
        return floats.array();
    }

    private Path safetensors(Path folder) throws IOException {
        String dense = format.equals("mxfp4")
                ? "'model_type':'gpt_oss','intermediate_size':%d,'num_local_experts':%d,"
                : "'model_type':'qwen3_moe','moe_intermediate_size':%d,'num_experts':%d,'norm_topk_prob':true,";
        String config = ("{" + dense + "'hidden_size':%d,'num_experts_per_tok':%d,'num_hidden_layers':1%s}")
                .formatted(intermediate, experts, hidden, Math.min(8, experts), quantization());
        Files.writeString(folder.resolve("config.json"), config.replace('\'', '"'));
        if (format.equals("mxfp4")) {
            gptOss();
        } else {
            add("model.layers.0.mlp.gate.weight", DType.F32, floats((long) experts * hidden), experts, hidden);
            for (int e = 0; e < experts; e++) {
                for (String name : List.of("gate_proj", "up_proj", "down_proj")) {
                    boolean down = name.equals("down_proj");
                    int rows = down ? hidden : intermediate;
                    matrix("model.layers.0.mlp.experts." + e + "." + name + ".", rows, down);
                }
            }
        }
        tensors.write(folder.resolve("model.safetensors"));
        return folder;
    }

    private void add(String name, DType dtype, byte[] bytes, long... shape) {
        tensors.add(name, dtype, MemorySegment.ofArray(bytes), shape);
    }

    private String quantization() {
        String packed = "{'config_groups':{'g':{'targets':['Linear'],'weights':{'type':'int','symmetric':true,%s}%s}},"
                + "'quant_method':'compressed-tensors','format':'%s','ignore':['re:.*mlp.gate$']}";
        String said = switch (format) {
            case "int8" ->
                packed.formatted(
                        "'num_bits':8,'strategy':'channel'",
                        ",'input_activations':{'num_bits':8,'type':'int','symmetric':true,'strategy':'token',"
                                + "'dynamic':true}",
                        "int-quantized");
            case "pack-quantized" ->
                packed.formatted("'num_bits':4,'strategy':'group','group_size':32", "", "pack-quantized");
            case "gptq" ->
                "{'quant_method':'gptq','bits':4,'group_size':128,'sym':true,'desc_act':false,"
                        + "'checkpoint_format':'gptq'}";
            case "awq" ->
                "{'quant_method':'awq','bits':4,'group_size':128,'zero_point':true,'version':'gemm',"
                        + "'modules_to_not_convert':['gate']}";
            case "mxfp4" -> "{'quant_method':'mxfp4'}";
            case "nvfp4" -> "{'quant_method':'modelopt'}";
            case "fp8" -> "{'quant_method':'fp8','weight_block_size':[128,128]}";
            default -> "";
        };
        return said.isEmpty() ? "" : ",'quantization_config':" + said;
    }

    private void matrix(String module, int rows, boolean down) {
        int cols = down ? intermediate : hidden;
        long all = (long) rows * cols;
        switch (format) {
            case "int8" -> {
                add(module + "weight", DType.I8, bytes(all), rows, cols);
                add(module + "weight_scale", DType.BF16, halves(rows, true), rows, 1);
            }
            case "gptq" -> {
                add(module + "qweight", DType.I32, bytes(all / 2), cols / 8, rows);
                add(module + "scales", DType.F16, halves(all / 128, false), cols / 128, rows);
                add(module + "qzeros", DType.I32, filled(all / 256, 0x77), cols / 128, rows / 8);
            }
            case "awq" -> {
                add(module + "qweight", DType.I32, bytes(all / 2), cols, rows / 8);
                add(module + "scales", DType.F16, halves(all / 128, false), cols / 128, rows);
                add(module + "qzeros", DType.I32, bytes(all / 256), cols / 128, rows / 8);
            }
            case "pack-quantized" -> {
                add(module + "weight_packed", DType.I32, bytes(all / 2), rows, cols / 8);
                add(module + "weight_scale", DType.BF16, halves(all / 32, true), rows, cols / 32);
            }
            case "nvfp4" -> {
                add(module + "weight", DType.U8, bytes(all / 2), rows, cols / 2);
                add(module + "weight_scale", DType.F8_E4M3, filled(all / 16, 0x30, 0x38, 0x2b), rows, cols / 16);
                add(module + "weight_scale_2", DType.F32, floats(1));
            }
            case "fp8" -> {
                byte[] values = bytes(all);
                for (int i = 0; i < values.length; i++) {
                    values[i] = (byte) (values[i] & 0xfe); // no NaN
                }
                add(module + "weight", DType.F8_E4M3, values, rows, cols);
                int down128 = Math.ceilDiv(rows, 128);
                int right = Math.ceilDiv(cols, 128);
                add(module + "weight_scale_inv", DType.F32, floats((long) down128 * right), down128, right);
            }
            default -> add(module + "weight", DType.BF16, halves(all, true), rows, cols);
        }
    }

    private void gptOss() {
        String module = "model.layers.0.mlp.";
        add(module + "router.weight", DType.F32, floats((long) experts * hidden), experts, hidden);
        add(module + "router.bias", DType.F32, floats(experts), experts);
        for (String name : List.of("gate_up_proj", "down_proj")) {
            boolean down = name.equals("down_proj");
            int rows = down ? hidden : 2 * intermediate;
            int groups = (down ? intermediate : hidden) / 32;
            long all = (long) experts * rows * groups;
            add(module + "experts." + name + "_blocks", DType.U8, bytes(16 * all), experts, rows, groups, 16);
            add(module + "experts." + name + "_scales", DType.U8, filled(all, 118, 119, 120), experts, rows, groups);
            add(module + "experts." + name + "_bias", DType.F32, floats((long) experts * rows), experts, rows);
        }
    }

    private static void text(ByteArrayOutputStream out, String text) {
        byte[] utf8 = text.getBytes(StandardCharsets.UTF_8);
        out.writeBytes(buffer(8).putLong(utf8.length).array());
        out.writeBytes(utf8);
    }

    private static void number(ByteArrayOutputStream out, String key, int value) {
        text(out, "qwen3moe." + key);
        out.writeBytes(buffer(8).putInt(4).putInt(value).array());
    }

    private Path gguf(Path folder, Blocks blocks) throws IOException {
        Path file = folder.resolve("model.gguf");
        ByteArrayOutputStream head = new ByteArrayOutputStream();
        head.writeBytes("GGUF".getBytes(StandardCharsets.US_ASCII));
        head.writeBytes(buffer(20).putInt(3).putLong(4).putLong(6).array());
        text(head, "general.architecture");
        head.writeBytes(buffer(4).putInt(8).array());
        text(head, "qwen3moe");
        number(head, "block_count", 1);
        number(head, "embedding_length", hidden);
        number(head, "expert_count", experts);
        number(head, "expert_used_count", Math.min(8, experts));
        number(head, "expert_feed_forward_length", intermediate);
        byte[] router = floats((long) experts * hidden);
        long each = (long) experts * hidden * intermediate / blocks.elements * blocks.bytes;
        long offset = tensor(head, "ffn_gate_inp", 0, 0, router.length, hidden, experts);
        offset = tensor(head, "ffn_gate_exps", blocks.number, offset, each, hidden, intermediate, experts);
        offset = tensor(head, "ffn_up_exps", blocks.number, offset, each, hidden, intermediate, experts);
        tensor(head, "ffn_down_exps", blocks.number, offset, each, intermediate, hidden, experts);
        try (OutputStream out = new BufferedOutputStream(Files.newOutputStream(file), 1 << 20)) {
            out.write(head.toByteArray());
            out.write(new byte[-head.size() & 31]);
            out.write(router);
            for (int n = 0; n < 3; n++) {
                out.write(new byte[-router.length & 31]); // both are multiples of 32 where sizes are
                blocks(out, blocks, each / blocks.bytes);
            }
        }
        return file;
    }

    private static long tensor(
            ByteArrayOutputStream head, String name, int type, long offset, long bytes, long... columnsFirst) {
        text(head, "blk.0." + name + ".weight");
        ByteBuffer shape = buffer(4 + 8 * columnsFirst.length + 12).putInt(columnsFirst.length);
        for (long size : columnsFirst) {
            shape.putLong(size);
        }
        head.writeBytes(shape.putInt(type).putLong(offset).array());
        return offset + bytes;
    }

    private void blocks(OutputStream out, Blocks blocks, long count) throws IOException {
        for (long n = 0; n < count; n++) {
            byte[] block = bytes(blocks.bytes);
            for (int at : blocks.halves) {
                block[at + 1] = (byte) (0x24 | (block[at + 1] & 3));
            }
            switch (format) {
                case "MXFP4" -> block[0] = 119;
                case "NVFP4" -> Arrays.fill(block, 0, 4, (byte) 0x30);
                default -> {}
            }
            out.write(block);
        }
    }
}
