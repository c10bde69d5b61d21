package org.tornadomoe.cli;

import static org.assertj.core.api.Assertions.assertThat;
import static org.tornadomoe.cli.Ran.GOLDEN;
import static org.tornadomoe.cli.Ran.moe;

import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.List;
import java.util.Map;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;

class VerifyTest {
    private static final Path MIXTRAL = GOLDEN.resolve("hf/mixtral");
    private static final Path MIXTRAL_GOLDEN = MIXTRAL.resolve("golden.safetensors");

    @ParameterizedTest
    @CsvSource({
        "mixtral,   reference, ReferenceExperts,       w8a8_channel,  2.5e-2",
        "mixtral,   reference, ReferenceExperts,       w8a16_channel, 1.5e-2",
        "mixtral,   triton,    TornadoDp4aExperts,     w8a8_channel,  2.5e-2",
        "mixtral,   triton,    TornadoPortableExperts, w8a16_channel, 1.5e-2",
        "mixtral,   triton,    TornadoDp4aExperts,     w8a8_block,    5e-2",
        "mixtral,   triton,    TornadoPortableExperts, w8a16_group,   1.5e-2",
        "qwen3_moe, reference, ReferenceExperts,       w8a8_channel,  2.5e-2",
        "mixtral, cpu, CpuExperts, w8a8_channel, 2.5e-2",
        "mixtral, cpu, CpuExperts, w8a16_channel, 1.5e-2",
        "qwen3_moe, cpu, CpuExperts, w8a8_channel, 2.5e-2",
        "qwen3_moe, cpu, CpuExperts, w8a16_channel, 1.5e-2",
        "deepseek_v3, cpu, CpuExperts, w8a8_channel, 2.5e-2",
        "deepseek_v3, cpu, CpuExperts, w8a16_channel, 1.5e-2",
        "gpt_oss, cpu, CpuExperts, w8a8_channel, 2.5e-2",
        "gpt_oss, cpu, CpuExperts, w8a16_channel, 1.5e-2",
        "qwen3_moe, triton,    TornadoPortableExperts, w8a8_channel,  2.5e-2",
        "qwen3_moe, triton,    TornadoPortableExperts, w8a16_channel, 1.5e-2",
        "deepseek_v3, reference, ReferenceExperts,       w8a8_channel,  2.5e-2",
        "deepseek_v3, triton,    TornadoDp4aExperts,     w8a8_channel,  2.5e-2",
        "deepseek_v3, triton,    TornadoPortableExperts, w8a16_channel, 1.5e-2",
        "gpt_oss,   reference, ReferenceExperts,       w8a8_channel,  2.5e-2",
        "gpt_oss,   triton,    TornadoDp4aExperts,     w8a8_channel,  2.5e-2",
        "gpt_oss,   triton,    TornadoPortableExperts, w8a16_channel, 1.5e-2",
        "llama4,    reference, ReferenceExperts,       w8a8_channel,  2.5e-2",
        "llama4,    triton,    TornadoDp4aExperts,     w8a8_channel,  2.5e-2",
        "llama4,    triton,    TornadoPortableExperts, w8a16_channel, 1.5e-2",
    })
    void goldenCheckpointsPass(String family, String backend, String kernel, String scheme, double tolerance)
            throws IOException {
        Path checkpoint = GOLDEN.resolve("hf").resolve(family);
        Path golden = checkpoint.resolve("golden.safetensors");
        Ran ran = moe(
                "verify",
                checkpoint,
                "--golden",
                golden,
                "--backend",
                backend,
                "--kernel",
                kernel,
                "--scheme",
                scheme,
                "--json");

        assertThat(ran.status()).as(ran.err()).isEqualTo(Moe.DONE);
        Map<String, Object> json = ran.json();
        assertThat(json)
                .containsEntry("file", golden.toString())
                .containsEntry("modelType", family.equals("llama4") ? "llama4_text" : family)
                .containsEntry("tokens", 37)
                .containsEntry("scheme", scheme)
                .containsEntry("backend", backend)
                .containsEntry("kernelClass", kernel)
                .containsEntry("expertIdMismatches", 0)
                .containsEntry("tolerance", tolerance)
                .containsEntry("passed", true)
                .containsKeys("device", "layer", "checkpoint");
        // no quantisation at all would be as wrong as too much of it
        assertThat(ran.number("relativeL2")).isBetween(tolerance / 10, tolerance);
        assertThat(ran.number("maxAbs")).isPositive();
    }

    @Test
    void textSaysWhatTheJsonSays() {
        Ran ran = moe("verify", MIXTRAL, "--golden", MIXTRAL_GOLDEN, "--backend", "reference");

        assertThat(ran.status()).isEqualTo(Moe.DONE);
        assertThat(ran.out())
                .contains("ReferenceExperts", "expert ids that differ  0", "relative L2 error", "2.50e-02");
        assertThat(ran.out().lines().toList()).last().isEqualTo("passed");
        assertThat(ran.err()).isEmpty();
    }

    @Test
    void errorAboveTheToleranceIsNo() throws IOException {
        Ran ran = moe(
                "verify",
                MIXTRAL,
                "--golden",
                MIXTRAL_GOLDEN,
                "--backend",
                "reference",
                "--tolerance",
                "1e-3",
                "--json");

        assertThat(ran.status()).isEqualTo(Moe.NO);
        assertThat(ran.json()).containsEntry("passed", false).containsEntry("tolerance", 1e-3);
    }

    @Test
    void otherFamilysNumbersAreNo() {
        Ran ran = moe(
                "verify",
                MIXTRAL,
                "--golden",
                GOLDEN.resolve("hf/qwen3_moe/golden.safetensors"),
                "--backend",
                "reference");

        assertThat(ran.status()).isEqualTo(Moe.NO);
        assertThat(ran.out()).contains("NOT OK").endsWith("FAILED" + System.lineSeparator());
    }

    @ParameterizedTest
    @CsvSource({
        "w8a8_channel_m1,   triton,    TornadoDp4aExperts",
        "w8a8_channel_m1, cpu, CpuExperts",
        "w8a8_channel_m33,  reference, ReferenceExperts",
        "w8a8_channel_m33, cpu, CpuExperts",
        "w8a8_channel_m33,  triton,    TornadoDp4aExperts",
        "w8a8_channel_m33,  triton,    TornadoPortableExperts",
        "w8a8_channel_ep,   reference, ReferenceExperts",
        "w8a8_channel_ep, cpu, CpuExperts",
        "w8a8_channel_ep,   triton,    TornadoDp4aExperts",
        "w8a8_channel_bias_swigluoai, reference, ReferenceExperts",
        "w8a8_channel_bias_swigluoai, cpu, CpuExperts",
        "w8a8_channel_bias_swigluoai, triton, TornadoDp4aExperts",
        "w8a8_channel_bias_swigluoai, triton, TornadoPortableExperts",
        "w8a8_tensor_m16,   reference, ReferenceExperts",
        "w8a8_tensor_m16, cpu, CpuExperts",
        "w8a8_tensor_m16,   triton,    TornadoDp4aExperts",
        "w8a8_tensor_m16,   triton,    TornadoPortableExperts",
        "w8a8_block_m33,    reference, ReferenceExperts",
        "w8a8_block_m33, cpu, CpuExperts",
        "w8a8_block_m33,    triton,    TornadoDp4aExperts",
        "w8a8_block_m33,    triton,    TornadoPortableExperts",
        "w8a16_channel_m33, reference, ReferenceExperts",
        "w8a16_channel_m33, cpu, CpuExperts",
        "w8a16_channel_m33, triton,    TornadoPortableExperts",
    })
    void caseFilesPass(String name, String backend, String kernel) throws IOException {
        Path file = GOLDEN.resolve("vllm").resolve(name + ".safetensors");
        Ran ran = moe("verify", "--case", file, "--backend", backend, "--kernel", kernel, "--json");

        assertThat(ran.status()).as(ran.out() + ran.err()).isEqualTo(Moe.DONE);
        Map<String, Object> json = ran.json();
        assertThat(json)
                .containsEntry("file", file.toString())
                .containsEntry("kernelClass", kernel)
                .containsEntry("expertIdMismatches", 0)
                .containsEntry("passed", true);
        assertThat(ran.list("stages")).hasSize(name.startsWith("w8a8") ? 17 : 9).allSatisfy(stage -> {
            assertThat(stage.get("ok")).isEqualTo(true);
            assertThat(stage.get("stage")).isNotNull();
            assertThat(stage.get("measure")).isNotNull();
            assertThat(stage.get("value")).isNotNull();
        });
    }

    @Test
    void layerOnTheInterpreterSaysSo() {
        Path file = GOLDEN.resolve("vllm/w8a8_channel_m1.safetensors");
        Ran ran = moe("verify", "--case", file, "--json", "--backend", "triton");

        assertThat(ran.status()).isEqualTo(Moe.DONE);
        assertThat(ran.err().lines()).hasSize(1);
        assertThat(ran.err()).startsWith("moe: ").contains("running on the interpreter");
    }

    @Test
    void withoutADeviceTheCpuIsTakenAndSaysSo() throws IOException {
        Path file = GOLDEN.resolve("vllm/w8a8_channel_m1.safetensors");
        Ran ran = moe("verify", "--case", file, "--json");

        assertThat(ran.status()).isEqualTo(Moe.DONE);
        assertThat(ran.json()).containsEntry("kernelClass", "CpuExperts");
        assertThat(ran.err().lines()).hasSize(1);
        assertThat(ran.err()).startsWith("moe: ").contains("running on the CPU");
        assertThat(moe("verify", "--case", file, "--backend", "cpu").err()).isEmpty();
    }

    @Test
    void usageIsChecked() {
        moe("verify").assertRefused("moe verify: ", "--golden", "--case");
        moe("verify", "--golden", MIXTRAL_GOLDEN).assertRefused("--golden", "CHECKPOINT");
        moe("verify", MIXTRAL, "--golden", MIXTRAL_GOLDEN, "--case", "x").assertRefused("--golden", "--case");
        moe("verify", MIXTRAL, "--case", "x").assertRefused("--case", "CHECKPOINT");
        moe("verify", "--case", "x", "--tolerance", "1").assertRefused("--case", "--tolerance");
        for (String tolerance : List.of("NaN", "-1", "Infinity")) {
            moe("verify", MIXTRAL, "--golden", MIXTRAL_GOLDEN, "--tolerance", tolerance)
                    .assertRefused("--tolerance", "got");
        }
        moe("verify", MIXTRAL, "--golden", MIXTRAL_GOLDEN, "--tolerance", "small")
                .assertRefused("--tolerance", "'small'");
    }

    @Test
    void badCaseFilesAreRefused() {
        moe("verify", "--case", "nowhere.safetensors").assertRefused("nowhere.safetensors", "no such file");
        moe("verify", "--case", MIXTRAL_GOLDEN).assertRefused(MIXTRAL_GOLDEN.toString(), "not a case file");
    }

    /** A JVM started without the module runs, and says so. */
    @Test
    void withoutTheVectorApiItRunsAndSaysSo(@TempDir Path directory) throws Exception {
        Path log = directory.resolve("log");
        Process process = new ProcessBuilder(
                        Path.of(System.getProperty("java.home"), "bin", "java").toString(),
                        "-XX:TieredStopAtLevel=1",
                        "-XX:+UseSerialGC",
                        "-cp",
                        System.getProperty("java.class.path"),
                        Moe.class.getName(),
                        "verify",
                        "--case",
                        GOLDEN.resolve("vllm/w8a8_channel_m1.safetensors").toString(),
                        "--backend",
                        "cpu")
                .redirectErrorStream(true)
                .redirectOutput(log.toFile())
                .start();
        assertThat(process.waitFor()).as(Files.readString(log)).isZero();
        assertThat(Files.readString(log)).contains("--add-modules jdk.incubator.vector", "no vectors", "passed");
    }
}
