package org.tornadomoe.checkpoint;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatExceptionOfType;
import static org.assertj.core.api.Assertions.assertThatIllegalArgumentException;
import static org.assertj.core.api.Assertions.within;

import java.io.IOException;
import java.lang.foreign.MemorySegment;
import java.nio.file.Files;
import java.nio.file.Path;
import java.nio.file.attribute.FileTime;
import java.util.ArrayList;
import java.util.List;
import java.util.Objects;
import java.util.concurrent.atomic.AtomicInteger;
import java.util.stream.Stream;
import org.junit.jupiter.api.BeforeEach;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;
import org.junit.jupiter.params.provider.EnumSource;
import org.junit.jupiter.params.provider.MethodSource;
import org.junit.jupiter.params.provider.ValueSource;
import org.tornadomoe.checkpoint.file.CheckpointException;
import org.tornadomoe.checkpoint.file.DType;
import org.tornadomoe.checkpoint.file.JsonFile;
import org.tornadomoe.checkpoint.file.Safetensors;
import org.tornadomoe.checkpoint.file.SafetensorsWriter;
import org.tornadomoe.checkpoint.file.Tensor;
import org.tornadomoe.config.GroupShape;
import org.tornadomoe.config.Int8Quantization;
import org.tornadomoe.config.Int8Scheme;
import org.tornadomoe.quant.ExpertWeights;
import org.tornadomoe.quant.Int8Experts;
import org.tornadomoe.quant.Int8Quantizer;
import org.tornadomoe.quant.Progress;
import org.tornadomoe.quant.QuantizedWeights;

class CheckpointQuantizerTest {
    private static final Int8Quantization CHANNEL = Int8Quantization.of(Int8Scheme.W8A8_CHANNEL);
    private static final String CONFIG =
            "{\"model_type\": \"qwen2_moe\", \"num_hidden_layers\": 2, \"hidden_size\": 12,"
                    + " \"num_experts_per_tok\": 2, \"num_experts\": 6, \"moe_intermediate_size\": 8, \"odd\": null,"
                    + " \"shared_expert_intermediate_size\": 20}";

    @TempDir
    Path directory;

    private Path source;
    private Path out;

    @BeforeEach
    void source() throws IOException {
        source = Files.createDirectory(directory.resolve("source"));
        out = directory.resolve("out");
    }

    /** Two layers, a file each, and in the second the tensors of a half-way expert from the first. */
    private PublishedModel qwen2() throws IOException {
        PublishedModel model = new PublishedModel(5, 20);
        StringBuilder map = new StringBuilder();
        for (int n = 0; n < 2; n++) {
            model.tensors.clear();
            String block = "model.layers." + n + ".mlp.";
            model.add(block + "gate.weight", model.router)
                    .perExpert(block, "gate_proj", "up_proj", "down_proj")
                    .mlp(block + "shared_expert.", model.shared, "gate_proj", "up_proj", "down_proj")
                    .add(block + "shared_expert_gate.weight", model.sharedGate)
                    .add("model.layers." + n + ".self_attn.q_proj.weight", model.router);
            String strayed = "model.layers.0.mlp.experts.3.down_proj.weight";
            if (n == 0) {
                model.tensors.remove(strayed);
            } else {
                model.add(strayed, model.experts[3].down());
            }
            String file = "model-0000" + (n + 1) + "-of-00002.safetensors";
            model.writer().write(source.resolve(file));
            model.tensors
                    .keySet()
                    .forEach(name -> map.append(map.isEmpty() ? "" : ",").append("\"" + name + "\": \"" + file + "\""));
        }
        Files.writeString(source.resolve("config.json"), CONFIG);
        Files.writeString(source.resolve("tokenizer.json"), "{}");
        Files.writeString(source.resolve("model.safetensors.index.json"), "{\"weight_map\": {" + map + "}}");
        return model;
    }

    @Test
    void linksToWhatCameWithTheCheckpointAreFollowed() throws IOException {
        qwen2();
        Files.createDirectory(source.resolve("more"));
        Files.writeString(source.resolve("more/readme"), "inside");
        Files.createSymbolicLink(source.resolve("README.md"), Path.of("more", "readme"));
        Files.createSymbolicLink(source.resolve("gone"), Path.of("nowhere"));
        Path named = Files.createSymbolicLink(directory.resolve("named"), source);
        CheckpointQuantizer.quantize(named, out, CHANNEL, null, Progress.NONE);
        assertThat(out.resolve("README.md"))
                .hasContent("inside")
                .satisfies(file -> assertThat(Files.isSymbolicLink(file)).isFalse());
        assertThat(out.resolve("tokenizer.json")).hasContent("{}");
    }

    @Test
    void linksOfHuggingFacesCacheAreFollowed() throws IOException {
        qwen2();
        Path blobs = Files.createDirectories(directory.resolve("models--a--b/blobs"));
        Path revision = Files.createDirectories(directory.resolve("models--a--b/snapshots/0123abcd"));
        try (Stream<Path> files = Files.list(source)) {
            int hash = 0;
            for (Path file : files.toList()) {
                Path blob = Files.move(file, blobs.resolve("hash" + hash++));
                Files.createSymbolicLink(
                        revision.resolve(file.getFileName()),
                        Path.of("..", "..", "blobs", blob.getFileName().toString()));
            }
        }
        CheckpointQuantizer.quantize(revision, out, CHANNEL, null, Progress.NONE);
        assertThat(out.resolve("tokenizer.json")).hasContent("{}");
    }

    @ParameterizedTest
    @ValueSource(strings = {"tokenizer_config.json", "notes"})
    void linksToOtherFilesAreRefusedByName(String name) throws IOException {
        qwen2();
        Path secret = Files.writeString(directory.resolve("secret"), "not the checkpoint's");
        Path link = Files.createSymbolicLink(source.resolve(name), secret);
        assertThatExceptionOfType(CheckpointException.class)
                .isThrownBy(() -> CheckpointQuantizer.quantize(source, out, CHANNEL, null, Progress.NONE))
                .withMessageStartingWith(link + ": ")
                .withMessageContaining("got a link to " + secret.toRealPath());
        assertThat(out).doesNotExist();
    }

    /** A directory that looks like the cache's does not make what lies beside it the checkpoint's. */
    @Test
    void aCacheThatIsNoneOpensNoDoor() throws IOException {
        qwen2();
        Path secret = Files.writeString(
                Files.createDirectory(directory.resolve("elsewhere")).resolve("secret"), "x");
        Path model = Files.createDirectories(directory.resolve("model/snapshots"));
        Path revision = Files.move(source, model.resolve("0123"));
        Files.createSymbolicLink(directory.resolve("model/blobs"), secret.getParent());
        Files.createSymbolicLink(revision.resolve("notes"), Path.of("..", "..", "blobs", "secret"));
        assertThatExceptionOfType(CheckpointException.class)
                .isThrownBy(() -> CheckpointQuantizer.quantize(revision, out, CHANNEL, null, Progress.NONE))
                .withMessageContaining("got a link to " + secret.toRealPath());
    }

    @ParameterizedTest
    @EnumSource(
            value = Int8Scheme.class,
            names = {"W8A8_CHANNEL", "W8A16_CHANNEL"})
    void whatWasWrittenIsReadAsItIs(Int8Scheme scheme) throws IOException {
        qwen2();
        CheckpointQuantizer.Result result =
                CheckpointQuantizer.quantize(source, out, Int8Quantization.of(scheme), null, Progress.NONE);

        assertThat(result.experts()).hasSize(14);
        assertThat(result.files()).isEqualTo(2);
        assertThat(result.resumed()).isZero();
        try (MoeCheckpoint floats = MoeCheckpoint.open(source);
                MoeCheckpoint written = MoeCheckpoint.open(out)) {
            for (int layer = 0; layer < 2; layer++) {
                ExpertWeights stored = written.layer(layer);
                assertThat(stored.quantization().scheme()).isEqualTo(scheme);
                try (Int8Experts expected = Int8Quantizer.quantize(floats.layer(layer), scheme, Progress.NONE);
                        Int8Experts actual = QuantizedWeights.int8(stored, scheme, Progress.NONE)) {
                    assertThat(actual.w13().values().mismatch(expected.w13().values()))
                            .isEqualTo(-1);
                    // Rows that fill up the shared expert's last part are zero, whatever their scale.
                    float[] scales = expected.w13().scales().clone();
                    for (int i = 0; i < scales.length; i++) {
                        scales[i] = scales[i] < 1e-11f ? 0 : scales[i];
                    }
                    assertThat(actual.w13().scales()).isEqualTo(scales);
                    assertThat(actual.router().weight())
                            .isEqualTo(expected.router().weight());
                    // The shared expert is one in the file: its down projection's parts share a scale a row.
                    int routed = 6 * 12 * actual.w2().rowBytes();
                    assertThat(actual.w2()
                                    .values()
                                    .asSlice(0, routed)
                                    .mismatch(expected.w2().values().asSlice(0, routed)))
                            .isEqualTo(-1);
                }
            }
        }
        try (Safetensors tensors = Safetensors.open(out)) {
            assertThat(tensors.tensor("model.layers.0.self_attn.q_proj.weight").dtype())
                    .isEqualTo(DType.F32);
            assertThat(tensors.tensor("model.layers.1.mlp.shared_expert_gate.weight")
                            .dtype())
                    .isEqualTo(DType.F32);
        }
        assertThat(Files.readString(out.resolve("tokenizer.json"))).isEqualTo("{}");
        assertThat(JsonFile.read(out.resolve("config.json")).fields()).containsKey("odd");
        assertOnlyWhole();
    }

    /** Nothing half-written, nothing of the run's own left. */
    private void assertOnlyWhole() throws IOException {
        try (var files = Files.list(out)) {
            assertThat(files.map(file -> file.getFileName().toString()))
                    .containsExactlyInAnyOrder(
                            "config.json",
                            "tokenizer.json",
                            "model.safetensors.index.json",
                            "model-00001-of-00002.safetensors",
                            "model-00002-of-00002.safetensors");
        }
    }

    /** Every scheme, and blocks and groups that end with the matrix or don't. */
    private static Stream<Int8Quantization> quantizations() {
        Int8Quantization block = Int8Quantization.of(Int8Scheme.W8A8_BLOCK);
        Int8Quantization group = Int8Quantization.of(Int8Scheme.W8A16_GROUP);
        return Stream.of(
                CHANNEL,
                Int8Quantization.of(Int8Scheme.W8A8_TENSOR),
                block.withGrid(new GroupShape(4, 4)),
                block.withGrid(new GroupShape(8, 5)),
                Int8Quantization.of(Int8Scheme.W8A16_CHANNEL),
                group.withGrid(new GroupShape(1, 4)),
                group.withGrid(GroupShape.PER_TOKEN));
    }

    @ParameterizedTest
    @MethodSource("quantizations")
    void everySchemeIsReadBackAsItIs(Int8Quantization quantization) throws IOException {
        PublishedModel model = new PublishedModel(6, 1);
        String block = "model.layers.0.mlp.";
        model.add(block + "gate.weight", model.router).perExpert(block, "gate_proj", "up_proj", "down_proj");
        model.write(
                source,
                "{\"model_type\": \"olmoe\", \"num_hidden_layers\": 1, \"hidden_size\": 12, \"num_experts_per_tok\": 2,"
                        + " \"num_experts\": 6, \"intermediate_size\": 8}");
        CheckpointQuantizer.quantize(source, out, quantization, null, Progress.NONE);
        // A group of a whole row is a channel, and called so.
        Int8Scheme scheme = quantization.grid().isPerToken() ? Int8Scheme.W8A16_CHANNEL : quantization.scheme();
        try (MoeCheckpoint floats = MoeCheckpoint.open(source);
                MoeCheckpoint written = MoeCheckpoint.open(out);
                Int8Experts expected = Int8Quantizer.quantize(floats.layer(0), quantization, Progress.NONE);
                Int8Experts actual = ((QuantizedWeights) written.layer(0)).load(scheme, Progress.NONE)) {
            assertThat(written.layer(0).quantization().scheme()).isEqualTo(scheme);
            assertThat(actual.w13().values().mismatch(expected.w13().values())).isEqualTo(-1);
            assertThat(actual.w13().scales()).isEqualTo(expected.w13().scales());
            assertThat(actual.w2().values().mismatch(expected.w2().values())).isEqualTo(-1);
            assertThat(actual.w2().scales()).isEqualTo(expected.w2().scales());
            if (scheme == quantization.scheme()) {
                assertThat(actual.quantization()).isEqualTo(quantization);
            }
        }
    }

    @Test
    void theReportComesBeforeTheDirectoryIsComplete() throws IOException {
        qwen2();
        List<CheckpointQuantizer.Result> reported = new ArrayList<>();
        assertThatExceptionOfType(IllegalStateException.class)
                .isThrownBy(() -> CheckpointQuantizer.quantize(source, out, CHANNEL, null, Progress.NONE, result -> {
                    reported.add(result);
                    throw new IllegalStateException("disk full");
                }));
        assertThat(out.resolve("tokenizer.json")).exists();
        assertThat(out.resolve("config.json")).doesNotExist();
        CheckpointQuantizer.Result result =
                CheckpointQuantizer.quantize(source, out, CHANNEL, null, Progress.NONE, reported::add);
        assertThat(result.resumed()).isEqualTo(2);
        assertThat(reported).hasSize(2).last().isEqualTo(result);
        assertThat(reported.getFirst().experts()).isEqualTo(result.experts());
        assertOnlyWhole();
    }

    @Test
    void errorsAreThoseOfTheWeights() throws IOException {
        PublishedModel model = qwen2();
        CheckpointQuantizer.Result result = CheckpointQuantizer.quantize(source, out, CHANNEL, null, Progress.NONE);
        QuantizationErrors.ExpertError third = result.experts().get(3);
        assertThat(third.layer()).isZero();
        assertThat(third.expert()).isEqualTo(3);
        double error = 0;
        double square = 0;
        double worst = 0;
        for (float[] row : model.experts[3].up()) {
            float most = 0;
            for (float w : row) {
                most = Math.max(most, Math.abs(w));
            }
            float scale = most / 127f;
            double rowError = 0;
            double rowSquare = 0;
            for (float w : row) {
                double d = w - Math.rint(w / scale) * scale;
                rowError += d * d;
                rowSquare += (double) w * w;
            }
            error += rowError;
            square += rowSquare;
            worst = Math.max(worst, Math.sqrt(rowError / rowSquare));
        }
        assertThat(third.up())
                .isCloseTo(Math.sqrt(error / square), org.assertj.core.data.Percentage.withPercentage(1e-3));
        double worstUp = third.worst().stream()
                .filter(channel -> channel.projection().equals("up"))
                .mapToDouble(QuantizationErrors.Channel::relativeL2)
                .max()
                .orElse(worst);
        assertThat(worstUp).isCloseTo(worst, org.assertj.core.data.Percentage.withPercentage(1e-3));
        assertThat(result.experts().get(6).shared()).isTrue();
    }

    @Test
    void anInterruptedRunGoesOn() throws IOException {
        qwen2();
        AtomicInteger told = new AtomicInteger();
        assertThatExceptionOfType(IllegalStateException.class)
                .isThrownBy(() -> CheckpointQuantizer.quantize(source, out, CHANNEL, null, (done, total) -> {
                    if (told.incrementAndGet() == 10) {
                        throw new IllegalStateException("killed");
                    }
                }));
        Path first = out.resolve("model-00001-of-00002.safetensors");
        assertThat(first).exists();
        assertThat(out.resolve("model-00002-of-00002.safetensors")).doesNotExist();
        assertThat(out.resolve("config.json")).doesNotExist();
        Files.writeString(
                out.resolve(".model-00002-of-00002.safetensors.11111111-1111-1111-1111-111111111111.tmp"), "x");
        FileTime written = Files.getLastModifiedTime(first);

        assertThatExceptionOfType(CheckpointException.class)
                .isThrownBy(() -> CheckpointQuantizer.quantize(
                        source, out, Int8Quantization.of(Int8Scheme.W8A16_CHANNEL), null, Progress.NONE))
                .withMessageContaining("another scheme")
                .withMessageContaining("expected w8a16_channel, got w8a8_channel");
        CheckpointQuantizer.Result result = CheckpointQuantizer.quantize(source, out, CHANNEL, null, Progress.NONE);

        assertThat(result.resumed()).isOne();
        assertThat(result.experts())
                .hasSize(14)
                .allSatisfy(expert -> assertThat(expert.relativeL2()).isPositive());
        assertThat(Files.getLastModifiedTime(first)).isEqualTo(written);
        assertOnlyWhole();
        CheckpointQuantizer.Result whole =
                CheckpointQuantizer.quantize(source, directory.resolve("whole"), CHANNEL, null, Progress.NONE);
        assertThat(whole.experts()).isEqualTo(result.experts());
        assertThat(Files.mismatch(first, directory.resolve("whole").resolve(first.getFileName())))
                .isEqualTo(-1);
    }

    @Test
    void aDamagedFileIsWrittenAgain() throws IOException {
        qwen2();
        AtomicInteger told = new AtomicInteger();
        assertThatExceptionOfType(IllegalStateException.class)
                .isThrownBy(() -> CheckpointQuantizer.quantize(source, out, CHANNEL, null, (done, total) -> {
                    if (told.incrementAndGet() == 10) {
                        throw new IllegalStateException("killed");
                    }
                }));
        Files.writeString(out.resolve("model-00001-of-00002.safetensors"), "not a file");
        assertThat(CheckpointQuantizer.quantize(source, out, CHANNEL, null, Progress.NONE)
                        .resumed())
                .isZero();
        assertOnlyWhole();
    }

    @Test
    void someLayersOnly() throws IOException {
        qwen2();
        CheckpointQuantizer.quantize(source, out, CHANNEL, List.of(1), Progress.NONE);
        try (MoeCheckpoint written = MoeCheckpoint.open(out)) {
            assertThat(written.layer(1)).isInstanceOf(QuantizedWeights.class);
            assertThat(written.layer(0)).isNotInstanceOf(QuantizedWeights.class);
        }
        assertThat(JsonFile.read(out.resolve("config.json"))
                        .nested("quantization_config")
                        .strings("ignore"))
                .containsExactly("re:(.*\\.)?layers\\.0\\..*");
        assertThatExceptionOfType(CheckpointException.class)
                .isThrownBy(() -> CheckpointQuantizer.quantize(
                        source, directory.resolve("other"), CHANNEL, List.of(2), Progress.NONE))
                .withMessageContaining("layer: expected 0 to 1, got 2");
        assertThat(directory.resolve("other")).doesNotExist();
    }

    /** Experts of one fused tensor get a tensor each, biases too. */
    @Test
    void fusedExpertsComeApart() throws IOException {
        Path golden = Path.of("src/test/resources/golden/hf/gpt_oss");
        CheckpointQuantizer.quantize(golden, out, CHANNEL, null, Progress.NONE);
        try (MoeCheckpoint floats = MoeCheckpoint.open(golden);
                MoeCheckpoint written = MoeCheckpoint.open(out);
                Int8Experts expected = Int8Quantizer.quantize(floats.layer(0), Int8Scheme.W8A8_CHANNEL, Progress.NONE);
                Int8Experts actual =
                        ((QuantizedWeights) written.layer(0)).load(Int8Scheme.W8A8_CHANNEL, Progress.NONE)) {
            assertThat(actual.w13().values().mismatch(expected.w13().values())).isEqualTo(-1);
            assertThat(actual.w2().values().mismatch(expected.w2().values())).isEqualTo(-1);
            assertThat(actual.w13Bias()).isEqualTo(Objects.requireNonNull(expected.w13Bias()));
            assertThat(actual.w2Bias()).isEqualTo(Objects.requireNonNull(expected.w2Bias()));
        }
        try (Safetensors tensors = Safetensors.open(out)) {
            assertThat(tensors.names()).noneMatch(name -> name.endsWith("gate_up_proj"));
            assertThat(tensors.tensor("model.layers.0.mlp.experts.7.up_proj.weight")
                            .dtype())
                    .isEqualTo(DType.I8);
        }
    }

    /** As other formats are quantised, an expert's error is that against the numbers that are stored. */
    @ParameterizedTest
    @CsvSource({
        "mxfp4-gpt-oss, w8a16_group, 32, 0, 1e-7",
        "gptq-4, w8a16_group, 32, 0, 1e-7",
        "gptq-4, w8a8_channel, 0, 1e-3, 2e-2",
        "awq-4, w8a16_group, 32, 1e-4, 1e-2",
        "fp8-block, w8a8_channel, 0, 1e-3, 2e-2",
        "fp8-channel, w8a16_group, 16, 1e-4, 1e-2"
    })
    void otherFormatsBecomeInt8(String name, String scheme, int group, double least, double most) {
        Path stored = Path.of("src/test/resources/cases", name);
        Int8Quantization quantization = Int8Quantization.of(Int8Scheme.fromString(scheme));
        if (group > 0) {
            quantization = quantization.withGrid(new GroupShape(1, group));
        }
        CheckpointQuantizer.Result result =
                CheckpointQuantizer.quantize(stored, out, quantization, null, Progress.NONE);
        try (MoeCheckpoint before = MoeCheckpoint.open(stored);
                MoeCheckpoint after = MoeCheckpoint.open(out)) {
            ExpertWeights exact = before.layer(0);
            ExpertWeights written = after.layer(0);
            assertThat(written.quantization()).isEqualTo(quantization);
            int h = exact.config().hiddenDim();
            for (QuantizationErrors.ExpertError error : result.experts()) {
                double difference = 0;
                double square = 0;
                float[] a = new float[Math.max(h, exact.config().intermediateSize())];
                float[] b = a.clone();
                for (int row = 0; row < exact.config().gateUpRows() + h; row++) {
                    for (float[] into : List.of(a, b)) {
                        ExpertWeights from = into == a ? exact : written;
                        if (row < h) {
                            from.downRow(error.expert(), row, into);
                        } else {
                            from.gateUpRow(error.expert(), row - h, into);
                        }
                    }
                    for (int c = 0; c < (row < h ? exact.config().intermediateSize() : h); c++) {
                        difference += Math.pow((double) a[c] - b[c], 2);
                        square += (double) a[c] * a[c];
                    }
                }
                assertThat(Math.sqrt(difference / square)).isBetween(least, most);
                assertThat(error.relativeL2()).isCloseTo(Math.sqrt(difference / square), within(1e-6));
            }
        }
    }

    /** What is int8 as asked for already is written as it is. */
    @Test
    void whatIsInt8IsKept() throws IOException {
        qwen2();
        CheckpointQuantizer.quantize(source, out, CHANNEL, null, Progress.NONE);
        Path again = directory.resolve("again");
        assertThat(CheckpointQuantizer.quantize(out, again, CHANNEL, null, Progress.NONE)
                        .experts())
                .allMatch(error -> error.relativeL2() < 1e-7);
        try (Safetensors first = Safetensors.open(out);
                Safetensors second = Safetensors.open(again)) {
            assertThat(second.names()).isEqualTo(first.names());
            for (String name : first.names()) {
                assertThat(second.tensor(name)
                                .data()
                                .mismatch(first.tensor(name).data()))
                        .as(name)
                        .isEqualTo(-1);
            }
        }
    }

    /**
     * One writer's file can't tell of two formats: attention in FP8 becomes floats, those of the configuration, and its
     * scales go.
     */
    @ParameterizedTest
    @CsvSource({"'', BF16", "'\"torch_dtype\": \"float16\",', F16", "'\"dtype\": \"float16\",', F16"})
    void modulesBesideTheExpertsBecomeFloats(String field, DType floats) throws IOException {
        Path stored = Files.createDirectory(directory.resolve("fp8"));
        Path original = Path.of("src/test/resources/cases/fp8-channel");
        byte[] codes = {0x38, 0x40, (byte) 0xb8, 0x30};
        try (Safetensors tensors = Safetensors.open(original)) {
            SafetensorsWriter writer = new SafetensorsWriter();
            for (String name : tensors.names()) {
                Tensor tensor = tensors.tensor(name);
                writer.add(name, tensor.dtype(), tensor.data(), tensor.shape());
            }
            writer.add("model.layers.0.self_attn.q_proj.weight", DType.F8_E4M3, MemorySegment.ofArray(codes), 2, 2)
                    .add("model.layers.0.self_attn.q_proj.weight_scale", new float[] {2, 4}, 2, 1)
                    .add("model.norm.weight", new float[] {1}, 1)
                    .write(stored.resolve("model.safetensors"));
        }
        String config = Files.readString(original.resolve("config.json")).replaceFirst("\\{", "{" + field);
        Files.writeString(stored.resolve("config.json"), config);
        Files.writeString(stored.resolve("hf_quant_config.json"), "{}");
        CheckpointQuantizer.quantize(stored, out, CHANNEL, null, Progress.NONE);
        assertThat(out.resolve("hf_quant_config.json")).doesNotExist();
        try (Safetensors tensors = Safetensors.open(out)) {
            Tensor weight = tensors.tensor("model.layers.0.self_attn.q_proj.weight");
            assertThat(weight.dtype()).isEqualTo(floats);
            assertThat(weight.toFloats()).containsExactly(2, 4, -4, 2);
            assertThat(tensors.find("model.layers.0.self_attn.q_proj.weight_scale"))
                    .isNull();
            assertThat(tensors.tensor("model.norm.weight").toFloats()).containsExactly(1);
        }
    }

    @Test
    void theConfigurationTellsOfOneQuantization() throws IOException {
        qwen2();
        String fields = CONFIG.substring(1).replace("\"odd\": null", "\"compression_config\": null");
        Files.writeString(
                source.resolve("config.json"),
                "{\"model_type\": \"qwen2_moe\", \"compression_config\": null, \"text_config\": {" + fields + "}");
        CheckpointQuantizer.quantize(source, out, CHANNEL, null, Progress.NONE);
        JsonFile written = JsonFile.read(out.resolve("config.json"));
        assertThat(written.fields()).containsKey("quantization_config").doesNotContainKey("compression_config");
        assertThat(written.object("text_config")).containsKey("hidden_size").doesNotContainKey("compression_config");
    }

    @Test
    void whatCannotBeDoneIsSaidBeforeAnythingIsWritten() throws IOException {
        qwen2();
        Path taken = Files.createDirectory(directory.resolve("taken"));
        Files.writeString(taken.resolve("thesis.txt"), "");
        assertRefused(source, taken, "expected a directory that is new or empty", "it holds thesis.txt");
        assertRefused(source, source, "is the source itself");
        assertRefused(directory.resolve("nowhere"), out, "no such checkpoint");
        CheckpointQuantizer.quantize(source, out, CHANNEL, null, Progress.NONE);
        assertRefused(source, out, "expected a directory that is new or empty");
        assertThat(directory.resolve("again")).doesNotExist();
        Int8Quantization zeroPoints =
                Int8Quantization.of(Int8Scheme.W8A16_GROUP).withZeroPoints(true);
        Int8Quantization nearest = Int8Quantization.of(Int8Scheme.W8A8_BLOCK).withRoundToNearest(true);
        for (Int8Quantization untold : List.of(zeroPoints, nearest)) {
            assertThatIllegalArgumentException()
                    .isThrownBy(() -> CheckpointQuantizer.quantize(
                            source, directory.resolve("again"), untold, null, Progress.NONE))
                    .withMessageContaining(", a checkpoint ");
        }
        assertThatIllegalArgumentException()
                .isThrownBy(() -> CheckpointQuantizer.quantize(
                        source,
                        directory.resolve("again"),
                        Int8Quantization.of(Int8Scheme.W8A16_GROUP),
                        null,
                        Progress.NONE))
                .withMessage("CompressedTensors WNA16 MoE requires hidden_size (12) to be divisible by group_size"
                        + " (128).");
        assertThat(directory.resolve("again")).doesNotExist();
    }

    private static void assertRefused(Path source, Path out, String... message) {
        assertThatExceptionOfType(CheckpointException.class)
                .isThrownBy(() -> CheckpointQuantizer.quantize(source, out, CHANNEL, null, Progress.NONE))
                .withMessageContainingAll(message);
    }

    @Test
    void aWeightThatIsNotFiniteIsNamed() throws IOException {
        PublishedModel model = new PublishedModel(5, 1);
        model.experts[4].up()[3][2] = Float.NaN;
        String block = "model.layers.0.mlp.";
        model.add(block + "gate.weight", model.router).perExpert(block, "gate_proj", "up_proj", "down_proj");
        model.write(
                source,
                CONFIG.replace("\"shared_expert_intermediate_size\": 20", "\"shared_expert_intermediate_size\": 0")
                        .replace("layers\": 2", "layers\": 1"));
        assertThatIllegalArgumentException()
                .isThrownBy(() -> CheckpointQuantizer.quantize(source, out, CHANNEL, null, Progress.NONE))
                .withMessageContaining("layer 0, expert 4 of " + source)
                .withMessageContaining("up projection, row 3, column 2");
        assertThat(out.resolve("model.safetensors")).doesNotExist();
    }

    @ParameterizedTest
    @CsvSource({
        "W8A16_GROUP, 1, 8, 'CompressedTensors WNA16 MoE requires hidden_size (12) to be divisible by group_size (8).'",
        "W8A16_GROUP, 1, 12, 'CompressedTensors WNA16 MoE requires intermediate_size_per_partition (8) to be divisible"
                + " by group_size (12).'",
        "W8A8_BLOCK, 3, 4, 'model.layers.0.mlp.experts.0.gate_proj: w8a8_block 3x4 requires its rows (8) to be"
                + " divisible by block_n (3).'",
    })
    void groupsAndBlocksAreWhole(Int8Scheme scheme, int rows, int cols, String message) throws IOException {
        qwen2();
        assertThatIllegalArgumentException()
                .isThrownBy(() -> CheckpointQuantizer.quantize(
                        source,
                        out,
                        Int8Quantization.of(scheme).withGrid(new GroupShape(rows, cols)),
                        null,
                        Progress.NONE))
                .withMessage(message);
        assertThat(out).doesNotExist();
    }

    /** A part is done for each expert of each file, those of a run before it included. */
    @Test
    void progressIsToldOfExperts() throws IOException {
        qwen2();
        List<Long> told = new ArrayList<>();
        assertThatExceptionOfType(IllegalStateException.class)
                .isThrownBy(() -> CheckpointQuantizer.quantize(source, out, CHANNEL, null, (done, total) -> {
                    told.add(done);
                    if (done == 9) {
                        throw new IllegalStateException("killed");
                    }
                }));
        assertThat(told).containsExactly(1L, 2L, 3L, 4L, 5L, 6L, 7L, 8L, 9L);
        told.clear();
        CheckpointQuantizer.Result result = CheckpointQuantizer.quantize(source, out, CHANNEL, null, (done, total) -> {
            assertThat(total).isEqualTo(15);
            told.add(done);
        });
        assertThat(told).containsExactly(7L, 8L, 9L, 10L, 11L, 12L, 13L, 14L, 15L);
        long bytes = 0;
        for (int n = 1; n <= 2; n++) {
            try (Safetensors written = Safetensors.open(out.resolve("model-0000" + n + "-of-00002.safetensors"))) {
                for (String name : written.names()) {
                    bytes += written.tensor(name).data().byteSize();
                }
            }
        }
        assertThat(result.bytes()).isEqualTo(bytes);
    }
}
