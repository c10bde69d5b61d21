package org.tornadomoe.checkpoint.file;

import static java.util.Objects.requireNonNull;
import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatExceptionOfType;
import static org.assertj.core.api.Assertions.assertThatIllegalStateException;

import java.io.IOException;
import java.lang.management.ManagementFactory;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Arrays;
import java.util.List;
import java.util.Random;
import java.util.function.Consumer;
import org.junit.jupiter.api.Assumptions;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.Timeout;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;
import org.junit.jupiter.params.provider.EnumSource;
import org.tornadomoe.checkpoint.MoeCheckpoint;
import org.tornadomoe.checkpoint.PublishedModel;
import org.tornadomoe.checkpoint.PublishedModel.Plain;
import org.tornadomoe.config.Int8Scheme;
import org.tornadomoe.quant.ExpertWeights;
import org.tornadomoe.quant.Int8Experts;
import org.tornadomoe.quant.Int8Tensor;
import org.tornadomoe.quant.Progress;
import org.tornadomoe.quant.QuantizedWeights;
import org.tornadomoe.reference.Numerics;
import org.tornadomoe.reference.Reference;

class GgufTest {
    @TempDir
    Path directory;

    /** A Qwen3-MoE of one layer as llama.cpp converts it, the experts of that type. E 3, H 64, I 32, K 2. */
    private static GgufWriter qwen3(GgmlType type, float[][] experts, float[] router) {
        return new GgufWriter()
                .text("general.architecture", "qwen3moe")
                .number("qwen3moe.block_count", 1)
                .number("qwen3moe.embedding_length", 64)
                .number("qwen3moe.feed_forward_length", 999)
                .number("qwen3moe.expert_feed_forward_length", 32)
                .number("qwen3moe.expert_count", 3)
                .number("qwen3moe.expert_used_count", 2)
                .texts("tokenizer.ggml.tokens", List.of("a", "b"))
                .tensor("blk.0.ffn_gate_inp.weight", GgmlType.F32, router, 3, 64)
                .tensor("blk.0.ffn_gate_exps.weight", type, experts[0], 3, 32, 64)
                .tensor("blk.0.ffn_up_exps.weight", type, experts[1], 3, 32, 64)
                .tensor("blk.0.ffn_down_exps.weight", type, experts[2], 3, 64, 32);
    }

    private static float[] random(int seed, int length) {
        Random random = new Random(seed);
        float[] values = new float[length];
        for (int i = 0; i < length; i++) {
            values[i] = (float) random.nextGaussian();
        }
        return values;
    }

    private static float[][] experts() {
        return new float[][] {random(1, 3 * 32 * 64), random(2, 3 * 32 * 64), random(3, 3 * 32 * 64)};
    }

    @ParameterizedTest
    @EnumSource(
            value = GgmlType.class,
            names = {"F32", "F16", "BF16", "Q8_0"})
    void expertsAreReadInTheirType(GgmlType type) {
        Path file = directory.resolve("model.gguf");
        float[][] experts = experts();
        qwen3(type, experts, random(4, 3 * 64)).write(file);
        try (MoeCheckpoint checkpoint = MoeCheckpoint.open(file)) {
            assertThat(checkpoint.modelType()).isEqualTo("qwen3_moe");
            ExpertWeights weights = checkpoint.layer(0);
            assertThat(weights.config().intermediateSize()).isEqualTo(32);
            assertThat(weights.config().router().renormalize()).isTrue();
            assertThat(weights.router().weight()).isEqualTo(random(4, 3 * 64));
            double tolerance = switch (type) {
                case F32 -> 0;
                case F16 -> 2e-3;
                case BF16 -> 4e-2;
                default -> 2e-2;
            };
            float[] row = new float[64];
            for (int e = 0; e < 3; e++) {
                for (int r = 0; r < 64; r++) {
                    weights.gateUpRow(e, r, row);
                    float[] from = experts[r / 32];
                    for (int c = 0; c < 64; c++) {
                        assertThat(Math.abs(row[c] - from[(e * 32 + r % 32) * 64 + c]))
                                .isLessThanOrEqualTo((float) tolerance);
                    }
                    weights.downRow(e, r, row);
                    for (int c = 0; c < 32; c++) {
                        assertThat(Math.abs(row[c] - experts[2][(e * 64 + r) * 32 + c]))
                                .isLessThanOrEqualTo((float) tolerance);
                    }
                }
            }
            assertThat(weights instanceof QuantizedWeights).isEqualTo(type == GgmlType.Q8_0);
        }
    }

    @Test
    void blocksAreKeptOrRequantised() {
        Path file = directory.resolve("model.gguf");
        float[][] experts = experts();
        qwen3(GgmlType.Q8_0, experts, random(4, 3 * 64)).write(file);
        try (MoeCheckpoint checkpoint = MoeCheckpoint.open(file)) {
            ExpertWeights weights = checkpoint.layer(0);
            assertThat(weights.quantization().scheme()).isEqualTo(Int8Scheme.W8A16_GROUP);
            try (Int8Experts kept = QuantizedWeights.int8(weights, Int8Scheme.W8A16_GROUP, Progress.NONE);
                    Int8Experts again = QuantizedWeights.int8(weights, Int8Scheme.W8A8_CHANNEL, Progress.NONE)) {
                Int8Tensor w13 = kept.w13();
                assertThat(w13.colsPerScale()).isEqualTo(32);
                float[] row = new float[64];
                weights.gateUpRow(2, 40, row);
                for (int c = 0; c < 64; c++) {
                    assertThat(w13.get(2, 40, c) * w13.scale(2, 40, c)).isEqualTo(row[c]);
                }
                assertThat(w13.get(2, 40, 5)).isEqualTo(GgufWriter.q8(experts[1], (2 * 32 + 8) * 64, 5));
                assertThat(again.w13().isPerRow()).isTrue();
                assertThat(again.scheme()).isEqualTo(Int8Scheme.W8A8_CHANNEL);
            }
        }
    }

    @ParameterizedTest
    @CsvSource({"fused", "apart"})
    void gateAndUpMayBeOneTensorOrEachExpertsOwn(String layout) {
        Path file = directory.resolve("model.gguf");
        float[][] experts = experts();
        GgufWriter writer = qwen3(GgmlType.Q8_0, experts, random(4, 3 * 64));
        Path other = directory.resolve("other.gguf");
        writer.write(file);
        writer.tensors.removeIf(tensor -> tensor.name().contains("_exps"));
        if (layout.equals("fused")) {
            float[] gateUp = new float[3 * 64 * 64];
            for (int e = 0; e < 3; e++) {
                System.arraycopy(experts[0], e * 32 * 64, gateUp, e * 64 * 64, 32 * 64);
                System.arraycopy(experts[1], e * 32 * 64, gateUp, (e * 64 + 32) * 64, 32 * 64);
            }
            writer.tensor("blk.0.ffn_gate_up_exps.weight", GgmlType.Q8_0, gateUp, 3, 64, 64)
                    .tensor("blk.0.ffn_down_exps.weight", GgmlType.Q8_0, experts[2], 3, 64, 32);
        } else {
            for (int e = 0; e < 3; e++) {
                writer.tensor("blk.0.ffn_gate." + e + ".weight", GgmlType.Q8_0, part(experts[0], e), 32, 64)
                        .tensor("blk.0.ffn_up." + e + ".weight", GgmlType.Q8_0, part(experts[1], e), 32, 64)
                        .tensor("blk.0.ffn_down." + e + ".weight", GgmlType.Q8_0, part(experts[2], e), 64, 32);
            }
        }
        writer.write(other);
        try (MoeCheckpoint a = MoeCheckpoint.open(file);
                MoeCheckpoint b = MoeCheckpoint.open(other);
                Int8Experts x = QuantizedWeights.int8(a.layer(0), Int8Scheme.W8A16_GROUP, Progress.NONE);
                Int8Experts y = QuantizedWeights.int8(b.layer(0), Int8Scheme.W8A16_GROUP, Progress.NONE)) {
            assertThat(x.w13().values().mismatch(y.w13().values())).isEqualTo(-1);
            assertThat(x.w13().scales()).isEqualTo(y.w13().scales());
            assertThat(x.w2().values().mismatch(y.w2().values())).isEqualTo(-1);
        }
    }

    /** llama.cpp's converter writes them beside NVFP4: scales of activations, which stay floats. */
    @Test
    void scalesOfActivationsAreNoneOfTheWeights() {
        Path file = directory.resolve("model.gguf");
        GgufWriter writer = qwen3(GgmlType.Q8_0, experts(), random(4, 3 * 64));
        for (String name : List.of("ffn_gate", "ffn_up", "ffn_down")) {
            writer.tensor("blk.0." + name + "_exps.input_scale", GgmlType.F32, new float[] {3, 4, 5}, 3);
        }
        writer.write(file);
        try (MoeCheckpoint checkpoint = MoeCheckpoint.open(file)) {
            float[] row = new float[64];
            checkpoint.layer(0).gateUpRow(1, 2, row);
            float[] scaled = experts()[0];
            int block = (32 + 2) * 64;
            float scale = Float.float16ToFloat(Float.floatToFloat16(most(scaled, block) / 127));
            assertThat(row[3]).isEqualTo(scale * GgufWriter.q8(scaled, block, 3));
        }
    }

    private static float most(float[] values, int block) {
        float most = 0;
        for (int i = block; i < block + 32; i++) {
            most = Math.max(most, Math.abs(values[i]));
        }
        return most;
    }

    /** {@code NAME.scale} beside {@code NAME.weight}: an expert's products are multiplied by its value. */
    @ParameterizedTest
    @CsvSource({"F32,apart", "Q8_0,apart", "BF16,fused", "Q8_0,fused", "F16,own", "Q8_0,own"})
    void expertsHaveScales(GgmlType type, String layout) {
        Path plain = directory.resolve("plain.gguf");
        Path scaled = directory.resolve("scaled.gguf");
        GgufWriter writer = qwen3(type, experts(), random(4, 3 * 64));
        float[][] factors = {{2, -1, 0.25f}, {4, 0.5f, 8}, {1, 16, -2}};
        List<String> names = List.of("ffn_gate", "ffn_up", "ffn_down");
        if (layout.equals("fused")) {
            writer.tensors.removeIf(tensor -> tensor.name().matches(".*ffn_(gate|up)_exps.*"));
            writer.tensor("blk.0.ffn_gate_up_exps.weight", type, random(1, 3 * 64 * 64), 3, 64, 64);
            factors[1] = factors[0];
        } else if (layout.equals("own")) {
            writer.tensors.removeIf(tensor -> tensor.name().contains("_exps"));
            for (int e = 0; e < 3; e++) {
                for (int p = 0; p < 3; p++) {
                    String name = "blk.0." + names.get(p) + "." + e;
                    writer.tensor(name + ".weight", type, part(experts()[p], e), p == 2 ? 64 : 32, p == 2 ? 32 : 64);
                }
            }
        }
        writer.write(plain);
        if (layout.equals("own")) {
            for (int e = 0; e < 3; e++) {
                for (int p = 0; p < 3; p++) {
                    writer.tensor(
                            "blk.0." + names.get(p) + "." + e + ".scale", GgmlType.F32, new float[] {factors[p][e]}, 1);
                }
            }
        } else if (layout.equals("fused")) {
            writer.tensor("blk.0.ffn_gate_up_exps.scale", GgmlType.F32, factors[0], 3)
                    .tensor("blk.0.ffn_down_exps.scale", GgmlType.BF16, factors[2], 3);
        } else {
            for (int p = 0; p < 3; p++) {
                writer.tensor("blk.0." + names.get(p) + "_exps.scale", GgmlType.F32, factors[p], 3);
            }
        }
        writer.write(scaled);
        try (MoeCheckpoint a = MoeCheckpoint.open(plain);
                MoeCheckpoint b = MoeCheckpoint.open(scaled)) {
            ExpertWeights x = a.layer(0);
            ExpertWeights y = b.layer(0);
            assertThat(y.quantization().scheme()).isEqualTo(x.quantization().scheme());
            float[] row = new float[64];
            float[] times = new float[64];
            for (int e = 0; e < 3; e++) {
                for (int r = 0; r < 64; r++) {
                    x.gateUpRow(e, r, row);
                    y.gateUpRow(e, r, times);
                    assertThat(times).isEqualTo(times(row, factors[r / 32][e]));
                    x.downRow(e, r, row);
                    y.downRow(e, r, times);
                    assertThat(Arrays.copyOf(times, 32)).isEqualTo(times(Arrays.copyOf(row, 32), factors[2][e]));
                }
            }
            if (type == GgmlType.Q8_0) {
                try (Int8Experts p = QuantizedWeights.int8(x, Int8Scheme.W8A16_GROUP, Progress.NONE);
                        Int8Experts q = QuantizedWeights.int8(y, Int8Scheme.W8A16_GROUP, Progress.NONE)) {
                    assertThat(q.w2().values().mismatch(p.w2().values())).isEqualTo(-1);
                    assertThat(q.w2().scale(1, 5, 0)).isEqualTo(16 * p.w2().scale(1, 5, 0));
                    assertThat(q.w13().scale(2, 5, 40))
                            .isEqualTo(factors[0][2] * p.w13().scale(2, 5, 40));
                }
            }
        }
    }

    private static float[] times(float[] row, float factor) {
        float[] all = row.clone();
        for (int i = 0; i < all.length; i++) {
            all[i] *= factor;
        }
        return all;
    }

    /** Gate, up and down may be each of a type of its own; what is int8 is kept. */
    @Test
    void projectionsMayBeOfSeveralTypes() {
        float[][] experts = experts();
        GgufWriter writer = qwen3(GgmlType.Q8_0, experts, random(4, 3 * 64));
        writer.tensors.removeIf(tensor -> tensor.name().matches(".*ffn_(up|down)_exps.*"));
        writer.tensor("blk.0.ffn_up_exps.weight", GgmlType.F16, experts[1], 3, 32, 64)
                .tensor("blk.0.ffn_down_exps.weight", GgmlType.F32, experts[2], 3, 64, 32);
        Path file = directory.resolve("model.gguf");
        writer.write(file);
        try (MoeCheckpoint checkpoint = MoeCheckpoint.open(file)) {
            ExpertWeights weights = checkpoint.layer(0);
            float[] row = new float[64];
            weights.downRow(1, 2, row);
            assertThat(row[3]).isEqualTo(experts[2][(64 + 2) * 32 + 3]);
            weights.gateUpRow(2, 32, row);
            assertThat(row[3]).isEqualTo(Float.float16ToFloat(Float.floatToFloat16(experts[1][2 * 32 * 64 + 3])));
            try (Int8Experts loaded = QuantizedWeights.int8(weights, Int8Scheme.W8A16_GROUP, Progress.NONE)) {
                float[] gate = new float[64];
                for (int r = 0; r < 32; r++) {
                    weights.gateUpRow(2, r, gate);
                    for (int c = 0; c < 64; c++) {
                        assertThat(loaded.w13().get(2, r, c) * loaded.w13().scale(2, r, c))
                                .isEqualTo(gate[c]);
                    }
                }
            }
        }
    }

    @Test
    void aTypeThatIsNotKnownBlocksNothingElsewhere() {
        GgufWriter writer = qwen3(GgmlType.F32, experts(), random(4, 3 * 64));
        Path file = directory.resolve("model.gguf");
        writer.raw("output.weight", GgmlType.F32, new byte[40], 7, 3).withTypeNumber("output.weight", 99);
        writer.write(file);
        try (MoeCheckpoint checkpoint = MoeCheckpoint.open(file)) {
            float[] row = new float[64];
            checkpoint.layer(0).downRow(2, 63, row);
            assertThat(row[31]).isEqualTo(experts()[2][3 * 64 * 32 - 1]);
        }
        writer.withTypeNumber("blk.0.ffn_up_exps.weight", 99);
        writer.write(file);
        assertRefused(
                file,
                "tensor 'blk.0.ffn_up_exps.weight': expected one of the types [F32, F16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0,"
                    + " Q2_K, Q3_K, Q4_K, Q5_K, Q6_K, IQ2_XXS, IQ2_XS, IQ3_XXS, IQ1_S, IQ4_NL, IQ3_S, IQ2_S, IQ4_XS,"
                    + " F64, IQ1_M, BF16, TQ1_0, TQ2_0, MXFP4, NVFP4, Q1_0, Q2_0], got type number 99");
    }

    /** 64 MB of keys, lists and strings that nothing reads, and a little more than what stays of them. */
    @Test
    void metadataThatNothingReadsTakesNoHeap() {
        GgufWriter writer = qwen3(GgmlType.F32, experts(), random(4, 3 * 64));
        ByteBuffer list = ByteBuffer.allocate(16 + 40_000_000).order(ByteOrder.LITTLE_ENDIAN);
        writer.metadata.put(
                "tokenizer.ggml.scores",
                list.putInt(9).putInt(0).putLong(40_000_000).array());
        ByteBuffer lists = ByteBuffer.allocate(16 + 12 * 1_000_000).order(ByteOrder.LITTLE_ENDIAN);
        lists.putInt(9).putInt(9).putLong(1_000_000);
        for (int i = 0; i < 1_000_000; i++) {
            lists.putInt(4).putLong(0);
        }
        writer.metadata.put("lists", lists.array());
        ByteBuffer strings = ByteBuffer.allocate(16 + 8 * 1_000_000).order(ByteOrder.LITTLE_ENDIAN);
        writer.metadata.put(
                "tokenizer.ggml.merges",
                strings.putInt(9).putInt(8).putLong(1_000_000).array());
        writer.text("tokenizer.chat_template", "x".repeat(4_000_000));
        Path file = directory.resolve("model.gguf");
        writer.write(file);
        var threads = (com.sun.management.ThreadMXBean) ManagementFactory.getThreadMXBean();
        long before = threads.getCurrentThreadAllocatedBytes();
        try (Gguf gguf = Gguf.open(file)) {
            assertThat(gguf.metadata().get("tokenizer.ggml.scores")).hasToString("a list of 40000000");
            assertThat(gguf.metadata().get("lists")).hasToString("a list of 1000000");
            assertThat(gguf.metadata().get("tokenizer.ggml.merges")).hasToString("a list of 1000000");
            assertThat(gguf.metadata().get("tokenizer.chat_template")).hasToString("a string of 4000000");
        }
        assertThat(threads.getCurrentThreadAllocatedBytes() - before).isLessThan(200_000_000);
    }

    @Test
    void moreKeysOrTensorsThanAnyModelHasAreRefused() throws IOException {
        byte[] bytes = qwen3(GgmlType.F32, experts(), random(4, 3 * 64)).bytes();
        byte[] large = Arrays.copyOf(bytes, 8_000_000);
        ByteBuffer header = ByteBuffer.wrap(large).order(ByteOrder.LITTLE_ENDIAN);
        Path file = directory.resolve("model.gguf");
        Files.write(file, header.putLong(8, 300_000).array());
        assertRefused(file, "tensor count: expected at most 262144, got 300000");
        Files.write(file, header.putLong(8, 4).putLong(16, 70_000).array());
        assertRefused(file, "metadata count: expected at most 65536, got 70000");
        GgufWriter writer = qwen3(GgmlType.F32, experts(), random(4, 3 * 64));
        writer.tensor("x".repeat(1025), GgmlType.F32, new float[1], 1).write(file);
        assertRefused(file, "name of tensor 4: length: expected at most 1024, got 1025");
    }

    @Test
    void oneRowForGateAndUpIsRefused() {
        GgufWriter writer = qwen3(GgmlType.F32, experts(), random(4, 3 * 64));
        writer.tensors.removeIf(tensor -> tensor.name().matches(".*ffn_(gate|up)_exps.*"));
        for (int rows : new int[] {1, 3}) {
            Path file = directory.resolve(rows + ".gguf");
            GgufWriter with = new GgufWriter();
            with.metadata.putAll(writer.metadata);
            with.tensors.addAll(writer.tensors);
            with.tensor("blk.0.ffn_gate_up_exps.weight", GgmlType.F32, new float[3 * rows * 64], 3, rows, 64);
            with.write(file);
            assertRefused(
                    file,
                    "tensor 'blk.0.ffn_gate_up_exps.weight': expected as many rows of gate as of up, got " + rows
                            + " in all");
        }
    }

    @Test
    @Timeout(60)
    void whatIsNoFileIsNotWaitedFor() throws Exception {
        Path pipe = directory.resolve("model.gguf");
        Assumptions.assumeTrue(
                new ProcessBuilder("mkfifo", pipe.toString()).start().waitFor() == 0);
        assertRefused(pipe, "expected a regular file, got a pipe");
        GgufWriter writer = qwen3(GgmlType.F32, experts(), random(4, 3 * 64)).number("split.count", 2);
        writer.write(directory.resolve("m-00001-of-00002.gguf"));
        Files.move(pipe, directory.resolve("m-00002-of-00002.gguf"));
        assertRefused(
                directory.resolve("m-00001-of-00002.gguf"),
                "m-00002-of-00002.gguf: expected a regular file, got a pipe");
    }

    @Test
    void partsOfASplitFileBelongTogether() {
        GgufWriter first = qwen3(GgmlType.F32, experts(), random(4, 3 * 64)).number("split.count", 2);
        GgufWriter second = new GgufWriter().number("split.no", 0);
        second.tensor("output.weight", GgmlType.F32, new float[2], 2);
        Path file = directory.resolve("m-00001-of-00002.gguf");
        first.write(file);
        second.write(directory.resolve("m-00002-of-00002.gguf"));
        assertRefused(file, "m-00002-of-00002.gguf: split.no: expected 1, since it is file 2, got 0");
        second.number("split.no", 1).write(directory.resolve("m-00002-of-00002.gguf"));
        first.number("split.tensors.count", 6).write(file);
        assertRefused(file, "split.tensors.count: expected the 5 tensors that the files hold, got 6");
    }

    private static float[] part(float[] all, int e) {
        return java.util.Arrays.copyOfRange(all, e * 32 * 64, (e + 1) * 32 * 64);
    }

    /** DeepSeek-V2 with shared experts computes what the plain loops do. */
    @Test
    void sharedExpertsAndScalingComeFromTheMetadata() {
        PublishedModel model = new PublishedModel(9, 16);
        GgufWriter writer = new GgufWriter()
                .text("general.architecture", "deepseek2")
                .number("deepseek2.block_count", 2)
                .number("deepseek2.embedding_length", PublishedModel.H)
                .number("deepseek2.expert_count", PublishedModel.E)
                .number("deepseek2.expert_used_count", PublishedModel.K)
                .number("deepseek2.expert_gating_func", 1)
                .real("deepseek2.expert_weights_scale", 16)
                .bool("deepseek2.expert_weights_norm", false);
        model.add("blk.1.ffn_gate_inp.weight", model.router)
                .add("blk.1.ffn_gate_exps.weight", parts(model, e -> e.gate()))
                .add("blk.1.ffn_up_exps.weight", parts(model, e -> e.up()))
                .add("blk.1.ffn_down_exps.weight", model.down())
                .add("blk.1.ffn_gate_shexp.weight", model.shared.gate())
                .add("blk.1.ffn_up_shexp.weight", model.shared.up())
                .add("blk.1.ffn_down_shexp.weight", model.shared.down());
        model.tensors.forEach(
                (name, values) -> writer.tensor(name, GgmlType.F32, values, requireNonNull(model.shapes.get(name))));
        Path file = directory.resolve("deepseek.gguf");
        writer.write(file);
        float[] hidden = random(1, 5 * PublishedModel.H);
        try (MoeCheckpoint checkpoint = MoeCheckpoint.open(file)) {
            assertThat(checkpoint.moeLayers()).containsExactly(1);
            double[] expected = model.forward(
                    hidden,
                    Plain.of((logits, _) -> {
                                double[] p = PublishedModel.softmax(logits);
                                return PublishedModel.only(p, PublishedModel.top(p, 2), false, 16);
                            })
                            .withShared(false));
            double[] actual = Reference.forward(checkpoint.layer(1), hidden, 5).output();
            assertThat(Numerics.relativeL2(actual, expected)).isLessThan(1e-6);
            assertThatExceptionOfType(CheckpointException.class)
                    .isThrownBy(() -> checkpoint.layer(0))
                    .withMessageContaining("layer 0 is not an MoE layer: it has no blk.0.ffn_gate_inp.weight");
        }
    }

    private static float[][][] parts(
            PublishedModel model, java.util.function.Function<PublishedModel.Expert, float[][]> of) {
        return java.util.Arrays.stream(model.experts).map(of).toArray(float[][][]::new);
    }

    @Test
    void aSplitFileIsReadAsOne() throws IOException {
        GgufWriter whole = qwen3(GgmlType.Q8_0, experts(), random(4, 3 * 64)).number("split.count", 2);
        GgufWriter second = new GgufWriter();
        second.tensors.addAll(whole.tensors.subList(2, 4));
        whole.tensors.subList(2, 4).clear();
        Path first = directory.resolve("m-00001-of-00002.gguf");
        Path rest = directory.resolve("m-00002-of-00002.gguf");
        whole.write(first);
        second.write(rest);
        try (MoeCheckpoint checkpoint = MoeCheckpoint.open(first)) {
            checkpoint.layer(0).downRow(0, 0, new float[32]);
        }
        Files.delete(rest);
        assertRefused(
                first, "m-00002-of-00002.gguf: no such file, though m-00001-of-00002.gguf says there are 2 parts");
        Path renamed = Files.move(first, directory.resolve("m.gguf"));
        assertRefused(renamed, "is one of 2 files: expected the first, named ...-00001-of-00002.gguf");
    }

    private static void assertRefused(Path file, String message) {
        assertThatExceptionOfType(CheckpointException.class)
                .isThrownBy(() -> {
                    try (MoeCheckpoint checkpoint = MoeCheckpoint.open(file)) {
                        checkpoint.layer(0);
                    }
                })
                .withMessageContaining(message);
    }

    private void assertRefused(Consumer<GgufWriter> change, String message) {
        Path file = directory.resolve("wrong.gguf");
        GgufWriter writer = qwen3(GgmlType.Q8_0, experts(), random(4, 3 * 64));
        change.accept(writer);
        writer.write(file);
        assertRefused(file, message);
    }

    @Test
    void whatIsWrongIsNamed() throws IOException {
        assertRefused(w -> w.metadata.remove("qwen3moe.expert_count"), "has no 'qwen3moe.expert_count'");
        assertRefused(
                w -> w.text("qwen3moe.expert_count", "many"), "qwen3moe.expert_count: expected an integer, got many");
        assertRefused(
                w -> w.number("qwen3moe.expert_count", 4),
                "tensor 'blk.0.ffn_gate_exps.weight': expected shape [4, 32, 64] (outermost first)");
        assertRefused(
                w -> w.text("general.architecture", "bert"),
                "general.architecture: expected one of [afmoe, arctic, axk2, bailingmoe, bailingmoe2,");
        assertRefused(
                w -> w.tensors.removeIf(t -> t.name().contains("ffn_up")),
                "layer 0: blk.0.ffn_up_exps.weight is missing; found [blk.0.ffn_gate_inp.weight,");
        assertRefused(
                w -> w.tensors.removeIf(t -> t.name().contains("inp")),
                "holds no MoE layer: looked for blk.*.ffn_gate_inp.weight; found [blk.0.ffn_gate_exps.weight,");
        assertRefused(
                w -> {
                    w.tensors.removeIf(t -> t.name().contains("down"));
                    w.raw("blk.0.ffn_down_exps.weight", GgmlType.Q8_1, new byte[3 * 64 * 36], 3, 64, 32);
                },
                "tensor 'blk.0.ffn_down_exps.weight': expected one of the types [F32, F16, Q4_0,");
        assertRefused(
                w -> {
                    w.tensors.removeIf(t -> t.name().contains("down"));
                    w.tensor("blk.0.ffn_down_exps.weight", GgmlType.F32, new float[3 * 32 * 64], 3, 32, 64);
                },
                "tensor 'blk.0.ffn_down_exps.weight': expected shape [3, 64, 32] (outermost first), got [3, 32, 64]");
        Path file = directory.resolve("short.gguf");
        Files.write(file, new byte[0]);
        assertRefused(file, "is 0 bytes long: too short for a GGUF file");
        Files.write(file, new byte[] {'G', 'G', 'U', 'F'});
        assertRefused(file, "is 4 bytes long: too short for a GGUF file");
        Files.write(file, new byte[64]);
        assertRefused(file, "does not begin with 'GGUF'");
        Files.writeString(
                file, "version https://git-lfs.github.com/spec/v1\noid sha256:" + "0".repeat(64) + "\nsize 12345678\n");
        assertRefused(file, "is a Git LFS pointer to a file of 12345678 bytes, not the file");
        Files.delete(file);
        assertRefused(file, "no such checkpoint");
    }

    @Test
    void closingEndsTheLayers() {
        Path file = directory.resolve("model.gguf");
        qwen3(GgmlType.Q8_0, experts(), random(4, 3 * 64)).write(file);
        MoeCheckpoint checkpoint = MoeCheckpoint.open(file);
        ExpertWeights weights = checkpoint.layer(0);
        checkpoint.close();
        checkpoint.close();
        assertThatIllegalStateException().isThrownBy(() -> weights.downRow(0, 0, new float[32]));
        assertThatIllegalStateException().isThrownBy(() -> checkpoint.layer(0)).withMessageContaining("is closed");
    }
}
