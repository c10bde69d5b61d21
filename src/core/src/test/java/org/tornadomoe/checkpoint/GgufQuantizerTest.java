package org.tornadomoe.checkpoint;

import static java.util.Objects.requireNonNull;
import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatExceptionOfType;
import static org.assertj.core.api.Assertions.assertThatIllegalArgumentException;
import static org.assertj.core.api.Assertions.within;

import java.io.IOException;
import java.lang.foreign.ValueLayout;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.Map;
import java.util.Random;
import java.util.stream.Collectors;
import java.util.stream.Stream;
import org.jspecify.annotations.Nullable;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.EnumSource;
import org.junit.jupiter.params.provider.ValueSource;
import org.tornadomoe.checkpoint.file.CheckpointException;
import org.tornadomoe.checkpoint.file.GgmlType;
import org.tornadomoe.checkpoint.file.Gguf;
import org.tornadomoe.checkpoint.file.GgufWriter;
import org.tornadomoe.checkpoint.file.SafetensorsWriter;
import org.tornadomoe.config.FusedMoeConfig;
import org.tornadomoe.config.GroupShape;
import org.tornadomoe.quant.ExpertWeights;
import org.tornadomoe.quant.Progress;

class GgufQuantizerTest {
    private static final Path GOLDEN = Path.of("src/test/resources/golden");

    @TempDir
    Path directory;

    private Path quantize(Path source, @Nullable List<Integer> layers) {
        Path out = directory.resolve("out.gguf");
        CheckpointQuantizer.Result result = GgufQuantizer.quantize(source, out, layers, Progress.NONE);
        try {
            assertThat(result.bytes()).isEqualTo(Files.size(out));
            try (Stream<Path> there = Files.list(directory)) {
                assertThat(there.filter(file -> file.toString().endsWith(".tmp")))
                        .isEmpty();
            }
        } catch (IOException e) {
            throw new AssertionError(e);
        }
        return out;
    }

    /** The relative error of a layer's weights, all experts and projections. */
    private static double error(ExpertWeights actual, ExpertWeights expected) {
        FusedMoeConfig config = expected.config();
        double error = 0;
        double square = 0;
        float[] a = new float[Math.max(config.hiddenDim(), config.intermediateSize())];
        float[] b = new float[a.length];
        for (int e = 0; e < config.globalNumExperts(); e++) {
            for (int r = 0; r < config.gateUpRows() + config.hiddenDim(); r++) {
                Arrays.fill(a, 0);
                Arrays.fill(b, 0);
                if (r < config.gateUpRows()) {
                    actual.gateUpRow(e, r, a);
                    expected.gateUpRow(e, r, b);
                } else {
                    actual.downRow(e, r - config.gateUpRows(), a);
                    expected.downRow(e, r - config.gateUpRows(), b);
                }
                for (int c = 0; c < a.length; c++) {
                    error += (double) (a[c] - b[c]) * (a[c] - b[c]);
                    square += (double) b[c] * b[c];
                }
            }
        }
        return Math.sqrt(error / square);
    }

    private static void assertSameButForExperts(ExpertWeights actual, ExpertWeights expected) {
        assertThat(actual.config()).isEqualTo(expected.config());
        assertThat(actual.router().weight()).isEqualTo(expected.router().weight());
        assertThat(actual.router().bias()).isEqualTo(expected.router().bias());
        assertThat(actual.router().correctionBias()).isEqualTo(expected.router().correctionBias());
        assertThat(actual.router().sharedExpertGate())
                .isEqualTo(expected.router().sharedExpertGate());
        assertThat(actual.w13Bias()).isEqualTo(expected.w13Bias());
        assertThat(actual.w2Bias()).isEqualTo(expected.w2Bias());
    }

    @ParameterizedTest
    @ValueSource(strings = {"mixtral", "qwen3_moe", "deepseek_v3", "gpt_oss", "llama4"})
    void theLayersOfSafetensorsAreWhatTheyWere(String family) {
        Path source = GOLDEN.resolve("hf").resolve(family);
        CheckpointQuantizer.Result result =
                GgufQuantizer.quantize(source, directory.resolve("out.gguf"), null, Progress.NONE);
        try (MoeCheckpoint before = MoeCheckpoint.open(source);
                MoeCheckpoint after = MoeCheckpoint.open(directory.resolve("out.gguf"))) {
            assertThat(after.moeLayers()).isEqualTo(before.moeLayers());
            for (int n : before.moeLayers()) {
                ExpertWeights expected = before.layer(n);
                ExpertWeights actual = after.layer(n);
                assertSameButForExperts(actual, expected);
                assertThat(actual.quantization().grid()).isEqualTo(new GroupShape(1, 32));
                assertThat(error(actual, expected)).isBetween(3e-3, 8e-3);
            }
            double mean = result.experts().stream()
                    .mapToDouble(QuantizationErrors.ExpertError::relativeL2)
                    .average()
                    .orElseThrow();
            assertThat(mean).isCloseTo(error(after.layer(0), before.layer(0)), within(1e-3));
        }
    }

    /** What GGUF's metadata can't say is noticed, and no file is written that would be read otherwise. */
    @Test
    void whatMetadataCannotSayIsRefused() throws IOException {
        Path mixtral = GOLDEN.resolve("hf/mixtral");
        Path source = Files.createDirectory(directory.resolve("model"));
        Files.copy(mixtral.resolve("model.safetensors"), source.resolve("model.safetensors"));
        String config = Files.readString(mixtral.resolve("config.json"));
        Files.writeString(source.resolve("config.json"), config.replace("\"silu\"", "\"gelu\""));
        Path out = directory.resolve("out.gguf");
        assertThatExceptionOfType(CheckpointException.class)
                .isThrownBy(() -> GgufQuantizer.quantize(source, out, null, Progress.NONE))
                .withMessageContaining("layer 0: GGUF's metadata has no way to say what it is");
        assertThatExceptionOfType(CheckpointException.class)
                .isThrownBy(
                        () -> GgufQuantizer.quantize(GOLDEN.resolve("families/jetmoe"), out, List.of(1), Progress.NONE))
                .withMessageContaining("is of the family jetmoe, for which GGUF has no name that is known");
        assertThatIllegalArgumentException()
                .isThrownBy(() ->
                        GgufQuantizer.quantize(GOLDEN.resolve("families/qwen2_moe"), out, List.of(0), Progress.NONE))
                .withMessageContaining("Q8_0 requires its columns (24) to be divisible by 32.");
        assertThat(out).doesNotExist();
    }

    private static float[] random(int seed, int length) {
        Random random = new Random(seed);
        float[] values = new float[length];
        for (int i = 0; i < length; i++) {
            values[i] = (float) random.nextGaussian() / 50;
        }
        return values;
    }

    /** Random blocks whose scales are plain numbers; a value is their first byte. */
    private static byte[] blocks(GgmlType type, int seed, int elements) {
        byte[] data = new byte[elements / type.elements * type.bytes];
        new Random(seed).nextBytes(data);
        for (int at = 0; at < data.length; at += type.bytes) {
            data[at] = (byte) (type == GgmlType.MXFP4 ? 118 + at % 5 : at);
            if (type != GgmlType.MXFP4) {
                data[at + 1] = (byte) (0x14 + at % 3);
            }
            if (type.hasMin()) {
                data[at + 3] = (byte) (0xa0 + at % 3);
            }
        }
        return data;
    }

    /** Layers of E 2, H 64, I 32, and tensors that no MoE layer reads. */
    private static GgufWriter model(GgmlType type, int layers) {
        GgufWriter writer = new GgufWriter()
                .text("general.architecture", "qwen2moe")
                .number("general.file_type", 2)
                .number("general.alignment", 32)
                .number("qwen2moe.block_count", layers)
                .number("qwen2moe.embedding_length", 64)
                .number("qwen2moe.expert_count", 2)
                .number("qwen2moe.expert_used_count", 1)
                .texts("tokenizer.ggml.tokens", List.of("a", "", "c"));
        writer.raw("token_embd.weight", GgmlType.Q6_K, blocks(GgmlType.Q6_K, 9, 512), 2, 256);
        for (int n = 0; n < layers; n++) {
            String block = "blk." + n + ".";
            writer.tensor(block + "ffn_norm.weight", GgmlType.F32, random(n, 64), 64)
                    .tensor(block + "ffn_gate_inp.weight", GgmlType.F32, random(n + 1, 2 * 64), 2, 64)
                    .raw(block + "ffn_gate_exps.weight", type, blocks(type, 3 * n, 2 * 32 * 64), 2, 32, 64)
                    .raw(block + "ffn_up_exps.weight", type, blocks(type, 3 * n + 1, 2 * 32 * 64), 2, 32, 64)
                    .raw(block + "ffn_down_exps.weight", type, blocks(type, 3 * n + 2, 2 * 32 * 64), 2, 64, 32);
        }
        return writer;
    }

    private static byte[] bytes(Gguf gguf, String name) {
        return requireNonNull(gguf.find(name), name).data().toArray(ValueLayout.JAVA_BYTE);
    }

    @ParameterizedTest
    @EnumSource(
            value = GgmlType.class,
            names = {"Q4_0", "Q5_0", "Q8_0", "IQ4_NL", "MXFP4"})
    void whatLiesInGroupsOf32UnderAHalfIsKept(GgmlType type) {
        Path source = directory.resolve("in.gguf");
        model(type, 2).write(source);
        Path out = quantize(source, null);
        try (MoeCheckpoint before = MoeCheckpoint.open(source);
                MoeCheckpoint after = MoeCheckpoint.open(out)) {
            for (int n = 0; n < 2; n++) {
                assertSameButForExperts(after.layer(n), before.layer(n));
                assertThat(error(after.layer(n), before.layer(n))).isZero();
                assertThat(after.bytes(n)).containsKey("Q8_0");
            }
        }
    }

    @Test
    void everythingElseIsCopied() {
        Path source = directory.resolve("in.gguf");
        model(GgmlType.Q4_1, 2).write(source);
        Path out = quantize(source, List.of(1));
        try (Gguf before = Gguf.open(source);
                Gguf after = Gguf.open(out)) {
            assertThat(after.names()).containsExactlyInAnyOrderElementsOf(before.names());
            for (String name : before.names()) {
                Gguf.Entry entry = requireNonNull(after.find(name));
                boolean written = name.matches("blk\\.1\\.ffn_(gate|up|down)_exps\\.weight");
                assertThat(entry.type())
                        .isEqualTo(
                                written
                                        ? GgmlType.Q8_0
                                        : requireNonNull(before.find(name)).type());
                if (!written) {
                    assertThat(bytes(after, name)).as(name).isEqualTo(bytes(before, name));
                }
            }
            assertThat(after.metadata())
                    .containsAllEntriesOf(before.metadata().entrySet().stream()
                            .filter(entry -> entry.getValue() instanceof Long
                                    && !entry.getKey().equals("general.file_type"))
                            .collect(Collectors.toMap(Map.Entry::getKey, Map.Entry::getValue)))
                    .containsEntry("general.file_type", 7L)
                    .containsEntry("general.quantization_version", 2L);
            assertThat(after.encoded().get("tokenizer.ggml.tokens"))
                    .satisfies(tokens -> assertThat(requireNonNull(tokens)
                                    .mismatch(requireNonNull(before.encoded().get("tokenizer.ggml.tokens"))))
                            .isEqualTo(-1));
        }
        try (MoeCheckpoint before = MoeCheckpoint.open(source);
                MoeCheckpoint after = MoeCheckpoint.open(out)) {
            assertThat(error(after.layer(0), before.layer(0))).isZero();
            assertThat(error(after.layer(1), before.layer(1))).isBetween(1e-3, 1e-2);
        }
    }

    @Test
    void aSplitModelBecomesOneFile() {
        GgufWriter first = model(GgmlType.Q4_0, 1).number("split.count", 2).number("split.no", 0);
        GgufWriter second = new GgufWriter().number("split.count", 2).number("split.no", 1);
        second.tensors.addAll(first.tensors.subList(3, first.tensors.size()));
        first.tensors.removeAll(second.tensors);
        Path source = directory.resolve("m-00001-of-00002.gguf");
        first.number("split.tensors.count", first.tensors.size() + second.tensors.size())
                .write(source);
        second.write(directory.resolve("m-00002-of-00002.gguf"));
        Path out = quantize(source, null);
        try (MoeCheckpoint before = MoeCheckpoint.open(source);
                MoeCheckpoint after = MoeCheckpoint.open(out);
                Gguf file = Gguf.open(out)) {
            assertThat(error(after.layer(0), before.layer(0))).isZero();
            assertThat(file.metadata().keySet()).noneMatch(key -> key.startsWith("split."));
        }
    }

    /** Factors go into the scales, and gate and up become tensors of their own, as their biases. */
    @Test
    void factorsAndTensorsOfGateAndUpBecomePlain() {
        GgufWriter writer = new GgufWriter()
                .text("general.architecture", "qwen2moe")
                .number("qwen2moe.block_count", 1)
                .number("qwen2moe.embedding_length", 64)
                .number("qwen2moe.expert_count", 2)
                .number("qwen2moe.expert_used_count", 1)
                .tensor("blk.0.ffn_gate_inp.weight", GgmlType.F32, random(1, 2 * 64), 2, 64)
                .tensor("blk.0.ffn_gate_up_exps.weight", GgmlType.F32, random(2, 2 * 64 * 64), 2, 64, 64)
                .tensor("blk.0.ffn_gate_up_exps.bias", GgmlType.F32, random(3, 2 * 64), 2, 64)
                .tensor("blk.0.ffn_down_exps.weight", GgmlType.F32, random(4, 2 * 64 * 32), 2, 64, 32)
                .tensor("blk.0.ffn_down_exps.scale", GgmlType.F32, new float[] {2, -3}, 2)
                .tensor("blk.0.ffn_down_exps.input_scale", GgmlType.F32, new float[] {2, 3}, 2);
        Path source = directory.resolve("in.gguf");
        writer.write(source);
        try (MoeCheckpoint before = MoeCheckpoint.open(source);
                MoeCheckpoint after = MoeCheckpoint.open(quantize(source, null))) {
            assertSameButForExperts(after.layer(0), before.layer(0));
            assertThat(after.layer(0).w13Bias()).isNotNull();
            assertThat(error(after.layer(0), before.layer(0))).isBetween(1e-3, 1e-2);
            assertThat(requireNonNull(after.gguf()).names())
                    .containsExactlyInAnyOrder(
                            "blk.0.ffn_gate_inp.weight",
                            "blk.0.ffn_gate_exps.weight",
                            "blk.0.ffn_up_exps.weight",
                            "blk.0.ffn_down_exps.weight",
                            "blk.0.ffn_gate_exps.bias",
                            "blk.0.ffn_up_exps.bias");
        }
    }

    @Test
    void whatCannotBeWrittenIsRefusedAndLeavesNothing() {
        Path out = directory.resolve("out.gguf");
        Path source = directory.resolve("in.gguf");
        GgufWriter writer = model(GgmlType.Q4_0, 1);
        writer.tensors.removeIf(tensor -> tensor.name().contains("ffn_up"));
        float[] up = random(5, 2 * 32 * 64);
        up[2047] = 1e7f;
        writer.tensor("blk.0.ffn_up_exps.weight", GgmlType.F32, up, 2, 32, 64).write(source);
        assertThatIllegalArgumentException()
                .isThrownBy(() -> GgufQuantizer.quantize(source, out, null, Progress.NONE))
                .withMessageContaining("tensor 'blk.0.ffn_up_exps.weight': expected finite weights that Q8_0 can hold");
        assertThat(out).doesNotExist();
        assertThatExceptionOfType(CheckpointException.class)
                .isThrownBy(() -> GgufQuantizer.quantize(source, out, List.of(3), Progress.NONE))
                .withMessageContaining("got 3");
        writer.withTypeNumber("token_embd.weight", 99).write(source);
        assertThatExceptionOfType(CheckpointException.class)
                .isThrownBy(() -> GgufQuantizer.quantize(source, out, null, Progress.NONE))
                .withMessageContaining("tensor 'token_embd.weight'", "type number 99");
        assertThat(out).doesNotExist();
    }

    /** A shared expert with a gate, as Qwen 2's, after the last expert; the router is written as it was. */
    @Test
    void sharedExpertsAndTheirGateAreWritten() throws IOException {
        Path source = Files.createDirectory(directory.resolve("qwen2"));
        Files.writeString(source.resolve("config.json"), """
            {"model_type": "qwen2_moe", "num_hidden_layers": 1, "hidden_size": 32, "moe_intermediate_size": 64,
             "shared_expert_intermediate_size": 64, "num_experts": 2, "num_experts_per_tok": 1}\
            """);
        String block = "model.layers.0.mlp.";
        SafetensorsWriter writer = new SafetensorsWriter()
                .add(block + "gate.weight", random(1, 64), 2, 32)
                .add(block + "shared_expert_gate.weight", random(2, 32), 1, 32);
        int seed = 3;
        for (String expert : List.of("experts.0.", "experts.1.", "shared_expert.")) {
            writer.add(block + expert + "gate_proj.weight", random(seed++, 64 * 32), 64, 32)
                    .add(block + expert + "up_proj.weight", random(seed++, 64 * 32), 64, 32)
                    .add(block + expert + "down_proj.weight", random(seed++, 32 * 64), 32, 64);
        }
        writer.write(source.resolve("model.safetensors"));
        List<Long> told = new ArrayList<>();
        Path out = directory.resolve("out.gguf");
        CheckpointQuantizer.Result result = GgufQuantizer.quantize(source, out, null, (done, of) -> {
            told.add(done);
            assertThat(of).isEqualTo(3);
        });
        assertThat(told).containsExactly(1L, 2L, 3L);
        assertThat(result.experts()).hasSize(3);
        try (MoeCheckpoint before = MoeCheckpoint.open(source);
                MoeCheckpoint after = MoeCheckpoint.open(out)) {
            ExpertWeights expected = before.layer(0);
            assertThat(expected.router().sharedExpertGate()).isEqualTo(random(2, 32));
            assertSameButForExperts(after.layer(0), expected);
            assertThat(expected.config().globalNumExperts()).isEqualTo(3);
            assertThat(error(after.layer(0), expected)).isBetween(3e-3, 8e-3);
        }
    }
}
