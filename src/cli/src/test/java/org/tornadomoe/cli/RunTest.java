package org.tornadomoe.cli;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.offset;
import static org.tornadomoe.cli.Ran.GOLDEN;
import static org.tornadomoe.cli.Ran.moe;

import java.io.IOException;
import java.lang.foreign.Arena;
import java.lang.foreign.ValueLayout;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Arrays;
import java.util.List;
import java.util.Map;
import java.util.Objects;
import java.util.function.Function;
import org.jspecify.annotations.Nullable;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;
import org.junit.jupiter.params.provider.ValueSource;
import org.tornadomoe.MoeLayer;
import org.tornadomoe.MoeOptions;
import org.tornadomoe.checkpoint.file.DType;
import org.tornadomoe.checkpoint.file.Safetensors;
import org.tornadomoe.checkpoint.file.SafetensorsWriter;
import org.tornadomoe.checkpoint.file.Tensor;
import tools.jackson.jr.ob.JSON;

class RunTest {
    private static final Path MIXTRAL = GOLDEN.resolve("hf/mixtral");
    private static final String DOWN = "model.layers.0.block_sparse_moe.experts.3.w2.weight";

    @TempDir
    Path directory;

    @ParameterizedTest
    @CsvSource({"reference, ReferenceExperts", "triton, TornadoDp4aExperts"})
    void reportsWhatItRan(String backend, String kernel) throws IOException {
        Ran ran = moe("run", MIXTRAL, "--backend", backend, "--tokens", 3, "--seconds", 0.2, "--json");

        assertThat(ran.status()).as(ran.err()).isEqualTo(Moe.DONE);
        Map<String, Object> json = ran.json();
        assertThat(json)
                .containsEntry("modelType", "mixtral")
                .containsEntry("layer", 0)
                .containsEntry("experts", 8)
                .containsEntry("topK", 2)
                .containsEntry("hidden", 128)
                .containsEntry("intermediate", 192)
                .containsEntry("scheme", "w8a8_channel")
                .containsEntry("backend", backend)
                .containsEntry("kernelClass", kernel)
                .containsEntry("tokens", 3)
                .containsEntry("checkedTokens", 3)
                .containsKeys("device", "output");
        assertThat(ran.number("relativeL2")).isBetween(1e-3, 3e-2);
        assertThat(ran.number("deviceBytes")).isGreaterThan(8 * 3 * 192 * 128);
        for (String positive :
                List.of("loadSeconds", "firstSeconds", "medianSeconds", "tokensPerSecond", "runs", "warmUpRuns")) {
            assertThat(ran.number(positive)).as(positive).isPositive();
        }
    }

    @Test
    void textNamesTheKernelClassAndTheError() {
        Ran ran = moe(
                "run", MIXTRAL, "--backend", "reference", "--tokens", 17, "--scheme", "w8a16_channel", "--seconds", 0);

        assertThat(ran.status()).isEqualTo(Moe.DONE);
        assertThat(ran.out())
                .contains("mixtral, layer 0", "8 experts, top 2", "w8a16_channel", "ReferenceExperts")
                .contains("17 tokens", "tokens/s", "relative L2", "first 16 tokens")
                .containsPattern("weights +[5-9][.]..e-03 relative L2 against the stored weights");
        assertThat(ran.err()).isEmpty();
    }

    /** Whole numbers of 4 bits are held as they are. */
    @Test
    void weightsThatAreHeldAsTheyAreHaveNoError() throws IOException {
        Path quantised = directory.resolve("int8");
        moe("quantize", MIXTRAL, quantised, "--scheme", "w8a16_group", "--group", 32);

        Ran asStored = moe("run", quantised, "--backend", "reference", "--tokens", 1, "--seconds", 0);
        assertThat(asStored.out()).doesNotContain("against the stored weights");
        Ran again = moe("run", quantised, "--backend", "cpu", "--seconds", 0, "--scheme", "w8a8_channel", "--json");
        assertThat(again.number("weightsRelativeL2")).isBetween(5e-3, 2e-2);
    }

    /** The next layer's router reads them. */
    @Test
    void statesOfARouterGoOutAndIn() throws IOException {
        for (String family : List.of("zaya_first", "zaya_next")) {
            Path checkpoint = GOLDEN.resolve("families/" + family);
            Path golden = checkpoint.resolve("golden.safetensors");
            Path output = directory.resolve(family + ".safetensors");
            Ran ran = moe(
                    "run",
                    checkpoint,
                    "--layer",
                    Objects.requireNonNull(JSON.std
                            .mapFrom(Files.readString(checkpoint.resolve("golden.json")))
                            .get("layer")),
                    "--input",
                    golden,
                    "--output",
                    output,
                    "--backend",
                    "cpu",
                    "--seconds",
                    0.2);

            assertThat(ran.status()).as(ran.err()).isEqualTo(Moe.DONE);
            try (Safetensors in = Safetensors.open(golden);
                    Safetensors out = Safetensors.open(output)) {
                assertThat(out.tensor("router_states").requireShape(23, 12).toFloats())
                        .containsExactly(in.tensor("router_states_after").toFloats(), offset(1e-5f));
            }
        }
    }

    /** Hidden states and error are the layer's, not those of its experts. */
    @Test
    void expertsInANarrowerSpaceRunAsALayer() throws IOException {
        Path checkpoint = GOLDEN.resolve("families/kimi_k3");
        Path golden = checkpoint.resolve("golden.safetensors");
        Ran ran = moe(
                "run",
                checkpoint,
                "--layer",
                1,
                "--input",
                golden,
                "--backend",
                "cpu",
                "--seconds",
                0,
                "--json",
                "--scheme",
                "w8a16_channel");
        assertThat(ran.status()).as(ran.err()).isEqualTo(Moe.DONE);
        assertThat(ran.number("relativeL2")).isBetween(1e-4, 1.5e-2);
        Ran verified = moe(
                "verify",
                checkpoint,
                "--layer",
                1,
                "--golden",
                golden,
                "--backend",
                "cpu",
                "--scheme",
                "w8a16_channel",
                "--json");
        assertThat(verified.status()).as(verified.out() + verified.err()).isEqualTo(Moe.DONE);
        assertThat(verified.number("expertIdMismatches")).isZero();
        assertThat(moe("inspect", checkpoint, "--backend", "cpu").status()).isEqualTo(Moe.DONE);
    }

    @Test
    void comparisonCanBeLeftOut() throws IOException {
        Ran ran = moe("run", MIXTRAL, "--backend", "reference", "--tokens", 1, "--seconds", 0, "--no-check", "--json");

        assertThat(ran.json())
                .containsEntry("weightsRelativeL2", null)
                .containsEntry("relativeL2", null)
                .containsEntry("checkedTokens", 0);
    }

    @Test
    void inputGoesInAndOutputComesOut() throws IOException {
        Path input = MIXTRAL.resolve("golden.safetensors");
        Path output = directory.resolve("out.safetensors");
        Ran ran = moe(
                "run",
                MIXTRAL,
                "--backend",
                "reference",
                "--input",
                input,
                "--output",
                output,
                "--seconds",
                0,
                "--json");

        assertThat(ran.status()).as(ran.err()).isEqualTo(Moe.DONE);
        assertThat(ran.json()).containsEntry("tokens", 37).containsEntry("output", output.toString());
        try (Safetensors in = Safetensors.open(input);
                Safetensors out = Safetensors.open(output);
                MoeLayer layer = MoeLayer.load(MIXTRAL, 0, MoeOptions.DEFAULT.withBackend("reference"))) {
            assertThat(out.tensor("output").requireShape(37, 128).toFloats())
                    .isEqualTo(layer.forward(in.tensor("hidden_states").toFloats()));
        }
    }

    @Test
    void outputThatCannotBeWrittenIsRefusedBeforeTheWork() {
        moe("run", MIXTRAL, "--backend", "reference", "--output", directory.resolve("no/where"))
                .assertRefused(directory.resolve("no/where").toString(), "no such directory");
        moe("run", MIXTRAL, "--backend", "reference", "--output", directory)
                .assertRefused(directory.toString(), "expected a regular file, or none yet, got a directory");
    }

    @Test
    void outputGoesThroughALink() throws IOException {
        Path target = Files.writeString(directory.resolve("target"), "old");
        Path link = Files.createSymbolicLink(directory.resolve("link"), target);
        Ran ran = moe(
                "run",
                MIXTRAL,
                "--backend",
                "reference",
                "--tokens",
                1,
                "--seconds",
                0,
                "--no-check",
                "--output",
                link);

        assertThat(ran.status()).as(ran.err()).isEqualTo(Moe.DONE);
        assertThat(link).isSymbolicLink();
        try (Safetensors out = Safetensors.open(target)) {
            assertThat(out.tensor("output").requireShape(1, 128).toFloats()).hasSize(128);
        }
    }

    @ParameterizedTest
    @ValueSource(strings = {"-1", "0", "2147483647"})
    void tokenCountsOutOfRangeAreRefused(String tokens) {
        moe("run", MIXTRAL, "--tokens", tokens).assertRefused("--tokens: expected 1 to ", "got " + tokens);
    }

    @Test
    void optionsAreChecked() {
        moe("run").assertRefused("moe run: ", "CHECKPOINT");
        moe("run", MIXTRAL, "--seconds", -1).assertRefused("--seconds: expected a number, 0 or more, got -1");
        moe("run", MIXTRAL, "--tokens", "NaN").assertRefused("--tokens", "'NaN'");
        moe("run", MIXTRAL, "--tokens", 1, "--input", "x").assertRefused("--tokens", "--input", "mutually exclusive");
        moe("run", MIXTRAL, "--scheme", "int4").assertRefused("--scheme", "w8a8_channel", "w8a16_channel", "'int4'");
        moe("run", MIXTRAL, "--backend", "cuda").assertRefused("backend", "triton", "reference", "'cuda'");
        moe("run", MIXTRAL, "--device", "abacus:0").assertRefused("device", "'abacus:0'");
        moe("run", MIXTRAL, "--kernel", "Nothing").assertRefused("TornadoPortableExperts", "ReferenceExperts");
        moe("run", MIXTRAL, "--fast").assertRefused("'--fast'", "--backend", "--tokens");
        moe("run", MIXTRAL, "--scheme", "w8a16_channel", "--kernel", "TornadoDp4aExperts", "--backend", "triton")
                .assertRefused("TornadoDp4aExperts", "kernel does not support quantization scheme");
    }

    @ParameterizedTest
    @ValueSource(strings = {"-1", "1", "99"})
    void layersThatAreNotThereAreRefused(String layer) {
        moe("run", MIXTRAL, "--layer", layer).assertRefused("config.json", "layer: expected 0 to 0, got " + layer);
    }

    @Test
    void missingCheckpointIsRefused() {
        moe("run", directory.resolve("none"))
                .assertRefused(directory.resolve("none").toString(), "no such");
        moe("run", directory).assertRefused("config.json");
        moe("verify", directory.resolve("none"), "--golden", "x").assertRefused("none");
    }

    @Test
    void truncatedTensorsAreRefused() throws IOException {
        Path model = changed(tensor -> tensor);
        byte[] whole = Files.readAllBytes(model);
        Files.write(model, Arrays.copyOf(whole, whole.length / 2));

        moe("run", directory).assertRefused(model.toString());
    }

    @Test
    void missingTensorIsRefused() throws IOException {
        changed(tensor -> tensor.name().equals(DOWN) ? null : tensor);

        moe("run", directory).assertRefused(directory.toString(), DOWN, "missing");
    }

    @Test
    void wrongDtypeIsRefused() throws IOException {
        changed(tensor -> tensor.name().equals(DOWN)
                ? new Tensor(tensor.file(), DOWN, DType.I32, tensor.shape(), tensor.data())
                : tensor);

        moe("run", directory).assertRefused(DOWN, "expected dtype", "got I32");
    }

    @Test
    void wrongShapeIsRefused() throws IOException {
        changed(tensor -> tensor.name().equals(DOWN)
                ? new Tensor(tensor.file(), DOWN, tensor.dtype(), new long[] {192, 128}, tensor.data())
                : tensor);

        moe("run", directory).assertRefused(DOWN, "expected shape [128, 192], got [192, 128]");
    }

    @Test
    void weightThatIsNotANumberIsRefused() throws IOException {
        changed(tensor -> {
            if (!tensor.name().equals(DOWN)) {
                return tensor;
            }
            float[] values = tensor.toFloats();
            values[5] = Float.NaN;
            return new Tensor(
                    tensor.file(),
                    DOWN,
                    DType.F32,
                    tensor.shape(),
                    Arena.ofAuto().allocateFrom(ValueLayout.JAVA_FLOAT, values));
        });

        moe("run", directory, "--backend", "reference").assertRefused("NaN", "expert 3", "down projection", "column 5");
    }

    @Test
    void hiddenStatesThatDoNotFitAreRefused() {
        refusedInput(new float[] {1, 2}, new long[] {1, 2}, "expected shape [tokens, 128]", "got [1, 2]");
        refusedInput(new float[128], new long[] {128}, "expected shape [tokens, 128]", "got [128]");
        refusedInput(new float[0], new long[] {0, 128}, "at least one token", "got [0, 128]");
        for (float bad : new float[] {Float.NaN, Float.POSITIVE_INFINITY, Float.NEGATIVE_INFINITY}) {
            float[] values = new float[256];
            values[130] = bad;
            refusedInput(values, new long[] {2, 128}, "expected finite values, got " + bad + " at [1, 2]");
        }
    }

    private void refusedInput(float[] values, long[] shape, String... named) {
        Path file = directory.resolve("in.safetensors");
        new SafetensorsWriter().add("hidden_states", values, shape).write(file);
        moe("run", MIXTRAL, "--input", file).assertRefused(named);
        moe("run", MIXTRAL, "--input", file).assertRefused(file.toString(), "tensor 'hidden_states'");
    }

    @Test
    void hiddenStatesOfAnotherKindAreRefused() {
        Path file = directory.resolve("in.safetensors");
        new SafetensorsWriter().add("hidden_states", new int[128], 1, 128).write(file);
        moe("run", MIXTRAL, "--input", file).assertRefused(file.toString(), "hidden_states", "dtype", "got I32");

        new SafetensorsWriter().add("states", new float[128], 1, 128).write(file);
        moe("run", MIXTRAL, "--input", file).assertRefused(file.toString(), "has no tensor 'hidden_states'");

        moe("run", MIXTRAL, "--input", directory.resolve("none")).assertRefused("none", "no such file");
    }

    /** The mixtral checkpoint in the temporary directory, with its tensors changed; null leaves one out. */
    private Path changed(Function<Tensor, @Nullable Tensor> change) throws IOException {
        Files.copy(MIXTRAL.resolve("config.json"), directory.resolve("config.json"));
        Path model = directory.resolve("model.safetensors");
        try (Safetensors original = Safetensors.open(MIXTRAL.resolve("model.safetensors"))) {
            SafetensorsWriter writer = new SafetensorsWriter();
            for (String name : original.names()) {
                Tensor tensor = change.apply(original.tensor(name));
                if (tensor != null) {
                    writer.add(name, tensor.dtype(), tensor.data(), tensor.shape());
                }
            }
            writer.write(model);
        }
        return model;
    }
}
