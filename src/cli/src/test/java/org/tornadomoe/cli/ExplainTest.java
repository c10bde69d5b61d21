package org.tornadomoe.cli;

import static org.assertj.core.api.Assertions.assertThat;
import static org.tornadomoe.cli.Ran.moe;

import java.io.IOException;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.Collections;
import java.util.List;
import java.util.Map;
import java.util.Objects;
import java.util.stream.Stream;
import org.assertj.core.api.InstanceOfAssertFactories;
import org.jspecify.annotations.Nullable;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;
import org.junit.jupiter.params.provider.ValueSource;
import org.tornadomoe.MoeLayer;
import org.tornadomoe.MoeOptions;
import org.tornadomoe.config.Int8Scheme;

class ExplainTest {
    /** A layer by its sizes, with more options. */
    private static Ran explain(Object... options) {
        List<Object> args = new ArrayList<>(
                List.of("explain", "--experts", 8, "--top-k", 2, "--hidden", 128, "--intermediate", 64, "--json"));
        args.addAll(Arrays.asList(options));
        return moe(args.toArray());
    }

    @ParameterizedTest
    @CsvSource(delimiter = '|', nullValues = "-", textBlock = """
        mixtral     | silu      | RENORMALIZE_NAIVE
        qwen3_moe   | silu      | RENORMALIZE_NAIVE
        deepseek_v3 | silu      | DEEPSEEK_V3
        gpt_oss     | swigluoai | RENORMALIZE
        llama4      | silu      | LLAMA4
        """)
    void goldenConfigurationsAreExplained(String family, String activation, String routing) throws IOException {
        Ran ran = moe("explain", "--checkpoint", Ran.GOLDEN.resolve("hf").resolve(family), "--json");
        assertThat(ran.status()).isEqualTo(Moe.DONE);
        Map<?, ?> layer = (Map<?, ?>) ran.json().get("layer");
        assertThat(layer).extracting("activation").isEqualTo(activation);
        assertThat(layer).extracting("routing").isEqualTo(routing);
        assertThat(layer).extracting("hidden").isEqualTo(128);
        assertThat(ran.json().get("chosen")).isEqualTo("CpuExperts");
        assertThat(ran.list("candidates"))
                .extracting(candidate -> String.valueOf(candidate.get("backend")))
                .containsExactly(Stream.concat(Collections.nCopies(13, "TRITON").stream(), Stream.of("CPU"))
                        .toArray(String[]::new));
        assertThat(String.valueOf(ran.list("candidates").getFirst().get("reason")))
                .contains("interpreter:0", "has no wgmma: there are kernels for CUDA only");
        assertThat(String.valueOf(ran.list("candidates").get(3).get("reason")))
                .contains("interpreter:0", "has no mma.sync with asynchronous copies: there are kernels for CUDA only");
        assertThat(String.valueOf(ran.list("candidates").get(5).get("reason")))
                .contains("interpreter:0", "has no usable int8 tensor cores: there are kernels for CUDA and PTX only");
        assertThat(String.valueOf(ran.list("candidates").get(6).get("reason")))
                .contains("interpreter:0", "TornadoVM has matrix instructions through CUDA and PTX only");
        Map<?, ?> first = ran.list("candidates").get(8);
        assertThat(first.get("kernelClass")).isEqualTo("TornadoDp4aExperts");
        assertThat(first.get("supported")).isEqualTo(false);
        assertThat(String.valueOf(first.get("reason")))
                .contains("interpreter:0", "runs on the CPU itself, so it is taken only when asked for");
    }

    @Test
    void memoryIsTold() throws IOException {
        Ran ran = explain("--backend", "triton", "--tokens", 1);
        Map<?, ?> memory = (Map<?, ?>) ran.json().get("memory");
        assertThat(memory).extracting("int8").isEqualTo(8 * 3 * 128 * 64);
        assertThat(memory)
                .extracting("weights", InstanceOfAssertFactories.INTEGER)
                .isBetween(8 * 3 * 128 * 64, 8 * 3 * 128 * 64 * 5 / 4);
        assertThat(memory)
                .extracting("workspace", InstanceOfAssertFactories.INTEGER)
                .isPositive();
        assertThat(explain().json()).containsEntry("memory", null);
        assertThat(moe(
                                "explain",
                                "--experts",
                                8,
                                "--top-k",
                                2,
                                "--hidden",
                                4096,
                                "--intermediate",
                                14336,
                                "--backend",
                                "triton")
                        .out())
                .containsPattern(
                        "Memory: 1\\.3 GiB of weights, 1\\.00\\d times their int8 values, and \\d+\\.\\d MiB of"
                                + " workspace");
    }

    @Test
    void whatWouldHaveToChangeIsNamed() throws IOException {
        Ran ran = explain("--scheme", "w8a16_channel", "--backend", "triton");
        assertThat(ran.json())
                .containsEntry("chosen", "TornadoPanelExperts")
                .containsEntry("activationKey", null)
                .containsEntry("firstRefused", "TornadoHopperExperts")
                .containsEntry(
                        "changes",
                        List.of("scheme: one of [w8a8_channel, w8a8_tensor]", "device: one that has it, through CUDA"));
        ran = explain("--activation", "gelu", "--bias", "--ep", "--dp", 2, "--all2all", "flashinfer_nvlink_one_sided");
        assertThat(ran.json())
                .containsEntry("chosen", null)
                .containsEntry("failure", "No Int8 MoE backend supports the deployment configuration.")
                .containsEntry("lastResort", "ReferenceExperts")
                .containsEntry(
                        "changes",
                        List.of(
                                "all-to-all backend: one of [allgather_reducescatter, deepep_high_throughput,"
                                        + " deepep_low_latency, deepep_v2, nixl_ep, mori_high_throughput,"
                                        + " mori_low_latency]",
                                "device: one that has it, through CUDA",
                                "backend: triton"));
        assertThat(explain("--tp", 2, "--backend", "triton").json()).containsEntry("chosen", "TornadoDp4aExperts");
        assertThat(explain("--tp", 2, "--ep", "--backend", "triton").json())
                .containsEntry("chosen", "TornadoDp4aExperts");
    }

    @Test
    void blocksAndGroupsComeFromOptions() throws IOException {
        assertThat(explain("--scheme", "w8a8_block", "--block", "64x32", "--backend", "triton")
                        .json())
                .containsEntry("weightKey", "QuantKey(i8,scale(f32,static,GroupShape(row=64, col=32)),symmetric)")
                .containsEntry("activationKey", "QuantKey(i8,scale(f32,dynamic,GroupShape(row=1, col=32)),symmetric)")
                .containsEntry("chosen", "TornadoDp4aExperts");
        assertThat(explain("--scheme", "w8a16_group", "--group", 32, "--zero-points", "--backend", "triton")
                        .json())
                .containsEntry("weightKey", "QuantKey(i8,scale(f32,static,GroupShape(row=1, col=32)),asymmetric)")
                .containsEntry("chosen", "TornadoPanelExperts");
        assertThat(explain("--scheme", "w8a8_block", "--block", "30", "--backend", "triton")
                        .json())
                .containsEntry("chosen", null);
        explain("--scheme", "w8a8_block", "--block", "0x8").assertRefused("--block: expected a positive number");
        explain("--scheme", "w8a8_block", "--block", "12y").assertRefused("--block: expected a positive number");
        explain("--scheme", "w8a16_group", "--group", 0).assertRefused("--group: expected a positive number");
        explain("--group", 32).assertRefused("--group: expected --scheme w8a16_group, got w8a8_channel");
        explain("--scheme", "w8a8_tensor", "--zero-points")
                .assertRefused("--zero-points: expected --scheme w8a16_group");
    }

    @Test
    void keysAndAllToAllComeFromOptions() throws IOException {
        assertThat(explain("--weight-key", "int8_static_tensor_sym", "--activation-key", "none")
                        .json())
                .containsEntry("weightKey", "QuantKey(i8,scale(f32,static,per_tensor),symmetric)")
                .containsEntry("activationKey", null)
                .containsEntry("chosen", null);
        assertThat(explain("--dp", 2, "--ep", "--all2all", "nixl_ep", "--backend", "triton")
                        .json())
                .containsEntry("activationFormat", "batched_experts")
                .containsEntry("chosen", "TornadoDp4aExperts");
        assertThat(explain("--dp", 2, "--ep", "--all2all", "nixl_ep", "--device-profile", "h100")
                        .json())
                .containsEntry("activationFormat", "batched_experts")
                .containsEntry("chosen", "TornadoHopperExperts");
        assertThat(explain("--lora", "--activation", "situ", "--situ-beta", 4, "--backend", "triton")
                        .json())
                .containsEntry("chosen", "TornadoDp4aExperts");
        assertThat(explain("--backend", "cpu").json()).containsEntry("chosen", "CpuExperts");
        assertThat(explain("--backend", "reference").json()).containsEntry("chosen", "ReferenceExperts");
        assertThat(explain("--device", "ptx:99").list("candidates").getFirst().get("reason"))
                .isEqualTo("kernel does not support current device ptx:99");
    }

    @Test
    void anActivationWithoutItsConstantIsBadInput() throws IOException {
        explain("--activation", "swigluoai_uninterleave").assertRefused("SWIGLUOAI_UNINTERLEAVE requires clamp_limit");
        assertThat(explain("--activation", "swigluoai_uninterleave", "--swiglu-limit", 6, "--backend", "triton")
                        .json())
                .containsEntry("chosen", "TornadoDp4aExperts");
        assertThat(explain("--activation", "relu2_no_mul").json()).containsEntry("chosen", "CpuExperts");
    }

    @Test
    void optionsChangeTheCheckpointsLayer() throws IOException {
        Ran ran = moe(
                "explain",
                "--checkpoint",
                Ran.GOLDEN.resolve("hf/gpt_oss/config.json"),
                "--activation",
                "silu",
                "--json");
        assertThat(ran.json()).containsEntry("chosen", "CpuExperts");
        assertThat((Map<?, ?>) ran.json().get("layer")).extracting("activation").isEqualTo("silu");
    }

    @Test
    void asText() {
        String all2all = "flashinfer_nvlink_one_sided";
        Ran ran = moe(
                "explain", "--checkpoint", Ran.GOLDEN.resolve("hf/mixtral"), "--dp", 2, "--ep", "--all2all", all2all);
        assertThat(ran.status()).isEqualTo(Moe.DONE);
        assertThat(ran.out())
                .contains(
                        "8 experts, top 2, hidden 128, intermediate 192, silu, RENORMALIZE_NAIVE",
                        "TornadoPortableExperts",
                        "kernel does not support this parallel configuration",
                        "No Int8 MoE backend supports the deployment configuration.",
                        "Needed for TornadoHopperExperts: all-to-all backend: one of [");
    }

    @ParameterizedTest
    @ValueSource(strings = {"--experts", "--top-k", "--hidden", "--intermediate"})
    void sizesOrACheckpointAreNeeded(String option) {
        moe("explain").assertRefused("moe explain: ", "--checkpoint", option);
        moe("explain", "--checkpoint", Ran.GOLDEN.resolve("hf/mixtral"), option, 0)
                .assertRefused("expected", "got 0");
    }

    @Test
    void aShapeIsItsSizes() throws IOException {
        Ran sizes = explain();
        assertThat(moe("explain", "--shape", "8:64:128:2", "--json").out()).isEqualTo(sizes.out());
        assertThat(moe("explain", "--shape", "qwen3-30b-a3b", "--experts", 8, "--top-k", 2, "--hidden", 128)
                        .status())
                .isEqualTo(Moe.DONE);
        assertThat(moe("explain", "--shape", "mixtral-8x7b", "--json").json().get("layer"))
                .asInstanceOf(InstanceOfAssertFactories.MAP)
                .containsEntry("experts", 8)
                .containsEntry("topK", 2)
                .containsEntry("hidden", 4096);
        moe("explain", "--shape", "mixtral").assertRefused("--shape", "mixtral-8x7b", "'mixtral'");
        moe("explain", "--shape", "tiny", "--checkpoint", Ran.GOLDEN.resolve("hf/mixtral"))
                .assertRefused("--checkpoint", "--shape", "both");
    }

    @Test
    void wrongOptionsAreNamed() {
        explain("--activation", "tanh").assertRefused("Unknown MoE activation: 'tanh'");
        explain("--weight-key", "int4").assertRefused("quantization key", "int8_static_channel_sym", "'int4'");
        explain("--scheme", "w8a8_channel", "--weight-key", "none").assertRefused("--scheme", "mutually exclusive");
        explain("--backend", "marlin")
                .assertRefused("--backend: expected auto, triton, cpu or reference, got 'marlin'");
        explain("--tp", 3).assertRefused("intermediateSize: expected a multiple of the tensor-parallel size 3");
        explain("--all2all", "pigeons").assertRefused("all2allBackend", "'pigeons'");
        explain("--routing", "best").assertRefused("--routing", "LLAMA4");
        explain("--kernel", "Any").assertRefused("--kernel");
        moe("explain", "--checkpoint", "nowhere").assertRefused("nowhere");
    }

    @ParameterizedTest
    @CsvSource({"false, auto", "true, auto", "false, cpu", "true, cpu", "true, triton", "true, reference"})
    void whatIsExplainedAsTakenIsWhatLoadingTakes(boolean lora, String backend) throws IOException {
        for (Int8Scheme scheme : Int8Scheme.values()) {
            MoeOptions options =
                    MoeOptions.DEFAULT.withScheme(scheme).withBackend(backend).withMaxTokens(8);
            String loaded;
            try (MoeLayer layer =
                    MoeLayer.load(Ran.GOLDEN.resolve("hf/mixtral"), 0, lora ? options.withLora(2, 8) : options)) {
                loaded = layer.kernelClass();
            }
            List<Object> args = new ArrayList<>(List.of("explain", "--checkpoint", Ran.GOLDEN.resolve("hf/mixtral")));
            args.addAll(List.of("--scheme", scheme, "--backend", backend, "--tokens", 8, "--json"));
            if (lora) {
                args.add("--lora");
            }
            Map<String, Object> json = moe(args.toArray()).json();
            Object taken = json.get("chosen") == null ? json.get("lastResort") : json.get("chosen");
            assertThat(taken).as(args.toString()).isEqualTo(loaded);
        }
    }

    @Test
    void whatProductsRoundIsTold() throws IOException {
        assertThat(moe(
                                "explain",
                                "--checkpoint",
                                Ran.GOLDEN.resolve("hf/mixtral"),
                                "--device-profile",
                                "h200",
                                "--scheme",
                                "w8a16_channel")
                        .out())
                .contains("Rounds: activations of more than 8 rows");
        assertThat(explain("--device-profile", "h200", "--scheme", "w8a16_group").list("candidates").stream()
                        .map(candidate -> candidate.get("rounding"))
                        .filter(Objects::nonNull))
                .hasSize(2)
                .allSatisfy(told -> assertThat(told).asString().contains("weights times their group's scale"));
        assertThat(explain("--device-profile", "h200", "--scheme", "w8a8_channel")
                        .list("candidates"))
                .allSatisfy(candidate -> assertThat(candidate.get("rounding")).isNull());
    }

    @ParameterizedTest
    @CsvSource(delimiter = '|', nullValues = "-", textBlock = """
        h100    | -      | w8a8_channel  | TornadoHopperExperts
        h200    | ptx    | w8a8_channel  | TornadoTensorCoreExperts
        h200    | ptx    | w8a8_block    | TornadoFragmentExperts
        h200    | ptx    | w8a16_group   | TornadoFragmentHalfExperts
        h200    | -      | w8a8_tensor   | TornadoHopperExperts
        h200    | -      | w8a16_group   | TornadoWgmmaHalfExperts
        h200    | -      | w8a8_block    | TornadoWgmmaExperts
        b200    | -      | w8a8_channel  | TornadoMmaExperts
        a100    | -      | w8a8_block    | TornadoMmaExperts
        rtx4090 | -      | w8a16_group   | TornadoMmaHalfExperts
        h100    | opencl | w8a8_channel  | TornadoPanelExperts
        gfx942  | -      | w8a8_channel  | TornadoAmdExperts
        gfx1100 | -      | w8a8_tensor   | TornadoAmdExperts
        gfx1201 | -      | w8a8_block    | TornadoAmdExperts
        gfx90a  | -      | w8a16_channel | TornadoAmdHalfExperts
        gfx942  | -      | w8a16_group   | TornadoAmdHalfExperts
        gfx1100 | -      | w8a16_group   | TornadoAmdHalfExperts
        """)
    void whatAMachineThatIsNotHereWouldTake(String profile, @Nullable String device, String scheme, String taken)
            throws IOException {
        List<Object> options = new ArrayList<>(List.of("--device-profile", profile, "--scheme", scheme));
        if (device != null) {
            options.addAll(List.of("--device", device));
        }
        Map<String, Object> json = explain(options.toArray()).json();
        assertThat(json).containsEntry("chosen", taken);
        assertThat(String.valueOf(json.get("note")))
                .startsWith("profile " + profile + ", not a device of this machine");
        assertThat((Map<?, ?>) json.get("memory"))
                .extracting("weights", InstanceOfAssertFactories.INTEGER)
                .isPositive();
        assertThat(explain("--scheme", scheme).json()).containsEntry("chosen", "CpuExperts");
    }

    @Test
    void aLayerTooLargeForAProfilesMemoryIsRefusedThere() throws IOException {
        List<Object> large = new ArrayList<>(List.of(
                "explain",
                "--experts",
                256,
                "--top-k",
                8,
                "--hidden",
                7168,
                "--intermediate",
                2048,
                "--tokens",
                32_768,
                "--json"));
        large.addAll(List.of("--backend", "triton", "--device-profile"));
        Map<String, Object> refused = moe(Stream.concat(large.stream(), Stream.of("gfx1201"))
                        .toArray())
                .json();
        assertThat(refused).containsEntry("chosen", null);
        assertThat(String.valueOf(refused.get("failure"))).contains("opencl:0 (gfx1201) has");
        assertThat(moe(Stream.concat(large.stream(), Stream.of("gfx942")).toArray())
                        .json()
                        .get("chosen"))
                .isNotNull();
    }

    @Test
    void severalDevicesOfAProfile() throws IOException {
        Ran ran = explain("--device-profile", "gfx942", "--devices", "opencl:0,opencl:1,opencl:2,opencl:3");
        assertThat(ran.list("devices"))
                .hasSize(4)
                .allSatisfy(part -> assertThat(part.get("experts")).isEqualTo(2));
    }

    @Test
    void anUnknownProfileIsAUsersError() {
        Ran ran = explain("--device-profile", "gfx943");
        assertThat(ran.status()).isNotEqualTo(Moe.DONE);
        assertThat(ran.err()).contains("device profile: expected one of [a100, ", "got 'gfx943'");
    }
}
