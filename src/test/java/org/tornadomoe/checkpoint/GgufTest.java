package org.tornadomoe.checkpoint;

import static java.util.Objects.requireNonNull;
import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatExceptionOfType;
import static org.assertj.core.api.Assertions.assertThatIllegalStateException;

import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.List;
import java.util.Random;
import java.util.function.Consumer;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;
import org.junit.jupiter.params.provider.EnumSource;
import org.tornadomoe.checkpoint.PublishedModel.Plain;
import org.tornadomoe.config.Int8Scheme;
import org.tornadomoe.quant.ExpertWeights;
import org.tornadomoe.quant.Int8Experts;
import org.tornadomoe.quant.Int8Tensor;
import org.tornadomoe.quant.Progress;
import org.tornadomoe.quant.QuantizedWeights;
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
            assertThat(QuantizedWeights.schemeOf(weights)).isEqualTo(Int8Scheme.W8A16_GROUP);
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
            assertThat(Reference.relativeL2(actual, expected)).isLessThan(1e-6);
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
        assertRefused(w -> w.text("general.architecture", "bert"), "general.architecture: expected one of [deepseek2,");
        assertRefused(
                w -> w.tensors.removeIf(t -> t.name().contains("ffn_up")),
                "layer 0: blk.0.ffn_up_exps.weight is missing; found [blk.0.ffn_gate_inp.weight,");
        assertRefused(
                w -> w.tensors.removeIf(t -> t.name().contains("inp")),
                "holds no MoE layer: looked for blk.*.ffn_gate_inp.weight; found [blk.0.ffn_gate_exps.weight,");
        assertRefused(
                w -> {
                    w.tensors.removeIf(t -> t.name().contains("down"));
                    w.raw("blk.0.ffn_down_exps.weight", GgmlType.Q4_0, new byte[3 * 64 * 18], 3, 64, 32);
                },
                "tensor 'blk.0.ffn_down_exps.weight': expected type F32, F16, BF16 or (of experts) Q8_0, got Q4_0");
        assertRefused(
                w -> {
                    w.tensors.removeIf(t -> t.name().contains("down"));
                    w.tensor("blk.0.ffn_down_exps.weight", GgmlType.F32, new float[3 * 32 * 64], 3, 32, 64);
                },
                "tensor 'blk.0.ffn_down_exps.weight': expected shape [3, 64, 32] (outermost first), got [3, 32, 64]");
        Path file = directory.resolve("short.gguf");
        Files.write(file, new byte[] {'G', 'G', 'U', 'F'});
        assertRefused(file, "is 4 bytes long: too short for a GGUF file");
        Files.write(file, new byte[64]);
        assertRefused(file, "does not begin with 'GGUF'");
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
