package org.tornadomoe.cli;

import static org.assertj.core.api.Assertions.assertThat;
import static org.tornadomoe.cli.Ran.moe;

import java.io.IOException;
import java.nio.file.Path;
import java.util.List;
import java.util.Map;
import java.util.Objects;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;

/** {@code --devices} and {@code --parallel}. */
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
                .contains("Over 2 devices, tensor parallel:", "cpu (");
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
    }
}
