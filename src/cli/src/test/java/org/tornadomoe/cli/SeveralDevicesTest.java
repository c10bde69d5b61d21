package org.tornadomoe.cli;

import static org.assertj.core.api.Assertions.assertThat;
import static org.tornadomoe.cli.Ran.moe;

import java.io.IOException;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.Objects;
import org.jspecify.annotations.Nullable;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;
import org.junit.jupiter.params.provider.ValueSource;
import org.tornadomoe.parallel.ExpertBalance;

/** {@code --devices}, {@code --parallel} and {@code --redundant-experts}. */
class SeveralDevicesTest {
    @ParameterizedTest
    @CsvSource({
        "mixtral, w8a8_channel, tensor, 2.5e-2",
        "qwen3_moe, w8a8_channel, expert, 2.5e-2",
        "deepseek_v3, w8a16_channel, expert, 1.5e-2",
        "deepseek_v3, w8a16_channel, tensor, 1.5e-2",
        "gpt_oss, w8a8_channel, tensor, 2.5e-2",
        "llama4, w8a16_channel, expert, 1.5e-2"
    })
    void goldenCheckpointsPass(String family, String scheme, String parallel, double tolerance) throws IOException {
        Path checkpoint = Ran.GOLDEN.resolve("hf").resolve(family);
        Ran ran = moe(
                "verify",
                checkpoint,
                "--golden",
                checkpoint.resolve("golden.safetensors"),
                "--devices",
                "cpu,cpu",
                "--parallel",
                parallel,
                "--scheme",
                scheme,
                "--tolerance",
                tolerance,
                "--json");
        assertThat(ran.status()).as(ran.err()).isEqualTo(Moe.DONE);
        assertThat(String.valueOf(ran.json().get("device"))).matches("cpu \\(.*\\), cpu \\(.*\\)");
    }

    @ParameterizedTest
    @CsvSource({"expert, 2, 24", "tensor, 4, 12"})
    void benchTellsDevicesAndTheirMemory(String parallel, int experts, int intermediate) throws IOException {
        Ran ran = moe(
                "bench",
                "--backend",
                "triton",
                "--devices",
                "interpreter:0,interpreter:0",
                "--parallel",
                parallel,
                "--shape",
                "4:24:32:2",
                "--tokens",
                "1,3",
                "--runs",
                1,
                "--seconds",
                0.1,
                "--json");
        assertThat(ran.status()).as(ran.err()).isEqualTo(Moe.DONE);
        List<Map<?, ?>> rows = ran.list("rows");
        assertThat(rows).hasSize(2).allSatisfy(row -> {
            assertThat(row.get("parallel")).isEqualTo(parallel);
            assertThat((List<?>) row.get("devices"))
                    .hasSize(2)
                    .allMatch(device -> device.toString().startsWith("interpreter:0 ("));
            assertThat((List<?>) row.get("bytesByDevice"))
                    .hasSize(2)
                    .allMatch(bytes -> ((Number) bytes).longValue() > 3L * experts * intermediate * 32);
        });
    }

    @Test
    void explainTellsWhatEachDeviceGets() throws IOException {
        Ran ran = explain("--devices", "interpreter,interpreter,cpu", "--json");
        assertThat(ran.status()).as(ran.err()).isEqualTo(Moe.DONE);
        List<Map<?, ?>> devices = ran.list("devices");
        assertThat(devices)
                .extracting(device -> String.valueOf(device.get("experts")))
                .containsExactly("3", "3", "2");
        assertThat(devices.getFirst().get("memory")).isNotNull();
        assertThat(devices.getLast()).extracting("kernelClass").isEqualTo("CpuExperts");
        Map<?, ?> layer = (Map<?, ?>) Objects.requireNonNull(ran.json().get("layer"));
        assertThat(String.valueOf(layer.get("parallel"))).contains("ep_size=3", "use_ep=True");
        assertThat(explain("--devices", "cpu,cpu", "--parallel", "tensor").out())
                .contains("On 2 devices, tensor parallel:", "cpu (");
    }

    @Test
    void explainCountsCopies() throws IOException {
        Ran ran = explain("--devices", "interpreter,interpreter", "--redundant-experts", 2, "--json");
        assertThat(ran.status()).as(ran.err()).isEqualTo(Moe.DONE);
        assertThat(ran.list("devices"))
                .hasSize(2)
                .allSatisfy(device -> assertThat(device.get("experts")).isEqualTo(5))
                .allSatisfy(device ->
                        assertThat(number(fields(device, "memory"), "int8")).isEqualTo(5 * 3 * 64 * 128));
        assertThat(ran.json().get("loadBalancing"))
                .isEqualTo(Map.of("redundantExperts", 2, "window", 1000, "interval", 3000));
        assertThat(explain("--devices", "cpu,cpu", "--redundant-experts", 0, "--eplb-window", 7, "--eplb-interval", 9)
                        .out())
                .contains("experts move by the load of the last 7 of every 9 calls, with 0 copies");
        assertThat(explain("--devices", "cpu,cpu", "--json").json()).containsEntry("loadBalancing", null);
    }

    @ParameterizedTest
    @ValueSource(ints = {0, 4})
    void benchTellsWhatBalancingGives(int copies) throws IOException {
        Ran ran = bench(copies, "--json");
        assertThat(ran.status()).as(ran.err()).isEqualTo(Moe.DONE);
        assertThat(ran.json()).containsEntry("skew", 1.5);
        Map<?, ?> row = ran.list("rows").getFirst();
        Map<?, ?> unbalanced = fields(row, "unbalanced");
        Map<?, ?> balance = fields(row, "balance");
        assertThat(unbalanced.get("rearrangements")).isEqualTo(0);
        // Seven calls of 64 tokens and two experts each.
        assertThat(sum(unbalanced.get("loads"))).isEqualTo(7 * 64 * 2);
        assertThat(number(unbalanced, "balancedness")).isLessThan(0.7);
        assertThat(number(balance, "rearrangements")).isPositive();
        assertThat(balance.get("refusal")).isNull();
        assertThat(sum(balance.get("loads")) % (64 * 2)).isZero();
        assertThat(number(balance, "balancedness")).isGreaterThan(0.8);
        assertThat((List<?>) balance.get("experts"))
                .hasSize(2)
                .allSatisfy(device -> assertThat((List<?>) device)
                        .hasSizeBetween(8, 8 + copies / 2)
                        .doesNotHaveDuplicates());
        assertThat(bench(copies).out())
                .containsPattern(
                        "16:24:32:2, 64 tokens, before experts moved: 0 rearrangements, device loads \\[\\d+, \\d+\\],"
                                + " balancedness 0\\.[56]\\d\\d\n")
                .containsPattern("16:24:32:2, 64 tokens, after the calls: \\d+ rearrangements?, device loads");
    }

    private static Map<?, ?> fields(Map<?, ?> of, String field) {
        return (Map<?, ?>) Objects.requireNonNull(of.get(field));
    }

    private static double number(Map<?, ?> of, String field) {
        return ((Number) Objects.requireNonNull(of.get(field))).doubleValue();
    }

    private static int sum(@Nullable Object loads) {
        return ((List<?>) Objects.requireNonNull(loads))
                .stream().mapToInt(load -> ((Number) load).intValue()).sum();
    }

    private static Ran bench(int copies, String... more) {
        List<Object> arguments = new ArrayList<>(List.of("bench", "--backend", "cpu", "--devices", "cpu,cpu"));
        arguments.addAll(List.of("--shape", "16:24:32:2", "--tokens", 64, "--runs", 3, "--skew", 1.5));
        arguments.addAll(List.of("--redundant-experts", copies, "--eplb-window", 32, "--eplb-interval", 32));
        arguments.addAll(List.of(more));
        return moe(arguments.toArray());
    }

    @Test
    void runTellsHowExpertsLie() throws IOException {
        Path checkpoint = Ran.GOLDEN.resolve("hf/mixtral");
        Object[] arguments = {"run", checkpoint, "--devices", "cpu,cpu", "--redundant-experts", 2, "--eplb-interval", 16
        };
        Ran ran = moe(arguments);
        assertThat(ran.status()).as(ran.err()).isEqualTo(Moe.DONE);
        assertThat(ran.out())
                .containsPattern("balance    1 rearrangement, device loads \\[\\d+, \\d+\\], balancedness [01]");
        Ran still = moe("run", checkpoint, "--backend", "cpu", "--tokens", 1, "--no-check", "--json");
        assertThat(still.json()).containsEntry("balance", null);
    }

    @Test
    void aRefusalIsTold() {
        ExpertBalance refused =
                new ExpertBalance(List.of(List.of(0), List.of(1)), List.of(0L, 0L), 2, "cpu would need 3 bytes");
        assertThat(Output.balance(refused))
                .isEqualTo("2 rearrangements, no load counted; the last one was refused: cpu would need 3 bytes");
        assertThat(Output.json(refused)).containsEntry("refusal", "cpu would need 3 bytes");
        assertThat(Output.json((ExpertBalance) null)).isNull();
    }

    private static Ran explain(Object... more) throws IOException {
        Object[] arguments = new Object[more.length + 9];
        Object[] layer = {"explain", "--experts", 8, "--top-k", 2, "--hidden", 128, "--intermediate", 64};
        System.arraycopy(layer, 0, arguments, 0, 9);
        System.arraycopy(more, 0, arguments, 9, more.length);
        return moe(arguments);
    }

    @Test
    void whatCannotBeIsRefused() throws IOException {
        Ran how = explain("--devices", "cpu,cpu", "--parallel", "data");
        assertThat(how.status()).isEqualTo(2);
        assertThat(how.err()).contains("--parallel: expected expert or tensor, got 'data'");
        Ran layers = moe("bench", "--devices", "cpu,cpu", "--layers", 2);
        assertThat(layers.status()).isEqualTo(2);
        assertThat(layers.err()).contains("--layers: expected one device with it, got [cpu, cpu]");
        Ran split = explain("--devices", "cpu,cpu,cpu", "--parallel", "tensor");
        assertThat(split.status()).isEqualTo(2);
        assertThat(split.err()).contains("expected a multiple of the tensor-parallel size 3, got 64");
        explain("--devices", "cpu,cpu", "--redundant-experts", 1)
                .assertRefused("numRedundantExperts: expected 0 to 8 that make the 8 experts a multiple of 2 devices");
        explain("--devices", "cpu,cpu", "--redundant-experts", -1).assertRefused("numRedundantExperts: expected 0 or");
        explain("--redundant-experts", 0).assertRefused("devices: expected several with load balancing, got []");
        explain("--devices", "cpu,cpu", "--redundant-experts", 0, "--parallel", "tensor")
                .assertRefused("expertParallel: expected true with load balancing");
        explain("--devices", "cpu,cpu", "--eplb-window", 5).assertRefused("--eplb-window", "--redundant-experts");
        explain("--devices", "cpu,cpu", "--redundant-experts", 0, "--eplb-interval", 0)
                .assertRefused("stepInterval: expected a positive number, got 0");
        moe("bench", "--redundant-experts", 0).assertRefused("devices: expected several with load balancing, got []");
        moe("bench", "--skew", -1).assertRefused("--skew: expected a number, 0 or more, got -1.0");
        moe("run", Ran.GOLDEN.resolve("hf/mixtral"), "--devices", "cpu,cpu", "--redundant-experts", 9)
                .assertRefused("numRedundantExperts: expected 0 to 8");
    }
}
