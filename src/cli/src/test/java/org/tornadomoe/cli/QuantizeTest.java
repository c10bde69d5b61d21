package org.tornadomoe.cli;

import static java.util.Objects.requireNonNull;
import static org.assertj.core.api.Assertions.assertThat;
import static org.tornadomoe.cli.Ran.GOLDEN;
import static org.tornadomoe.cli.Ran.moe;

import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.List;
import java.util.Map;
import javax.imageio.ImageIO;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;
import tools.jackson.jr.ob.JSON;

class QuantizeTest {
    private static final Path MIXTRAL = GOLDEN.resolve("hf/mixtral");

    @TempDir
    Path directory;

    @ParameterizedTest
    @CsvSource({"mixtral, w8a8_channel, 8", "qwen3_moe, w8a16_channel, 16"})
    void theQuantizedCheckpointPassesAsTheOriginalDoes(String family, String scheme, int experts) throws IOException {
        Path source = GOLDEN.resolve("hf").resolve(family);
        Path out = directory.resolve("out");
        Ran ran = moe("quantize", source, out, "--scheme", scheme, "--json");

        assertThat(ran.status()).as(ran.err()).isEqualTo(Moe.DONE);
        assertThat(ran.json()).containsEntry("scheme", scheme).containsEntry("resumedFiles", 0);
        List<Map<?, ?>> errors = ran.list("experts");
        assertThat(errors).hasSize(experts).allSatisfy(expert -> {
            assertThat(((Number) requireNonNull(expert.get("relativeL2"))).doubleValue())
                    .isBetween(1e-3, 2e-2);
            assertThat((List<?>) expert.get("worstChannels")).hasSize(3);
        });
        assertThat(JSON.std.mapFrom(Files.readString(out.resolve("quantization_report.json"))))
                .isEqualTo(ran.json());
        assertThat(Files.readString(out.resolve("quantization_report.txt"))).contains("worst channels", scheme);
        assertThat(ImageIO.read(out.resolve("quantization_report.png").toFile()).getWidth())
                .isPositive();

        Path golden = source.resolve("golden.safetensors");
        Ran original =
                moe("verify", source, "--golden", golden, "--scheme", scheme, "--backend", "reference", "--json");
        Ran written = moe("verify", out, "--golden", golden, "--backend", "reference", "--json");
        assertThat(written.status()).as(written.err()).isEqualTo(Moe.DONE);
        assertThat(written.json()).containsEntry("scheme", scheme); // its own, unasked
        assertThat(written.number("relativeL2")).isEqualTo(original.number("relativeL2"));

        Ran other =
                moe("verify", out, "--golden", golden, "--scheme", "w8a16_channel", "--backend", "reference", "--json");
        assertThat(other.status()).isEqualTo(Moe.DONE);
    }

    @ParameterizedTest
    @CsvSource({"w8a8_block, --block, 64x32", "w8a16_group, --group, 32", "w8a16_group, --group, -1"})
    void blocksAndGroupsComeFromOptions(String scheme, String option, String value) throws IOException {
        Path out = directory.resolve("out");
        Ran ran = moe("quantize", MIXTRAL, out, "--scheme", scheme, option + "=" + value, "--json");
        assertThat(ran.status()).as(ran.err()).isEqualTo(Moe.DONE);
        assertThat(ran.json()).containsEntry("scheme", scheme);
        Path golden = MIXTRAL.resolve("golden.safetensors");
        Ran written = moe("verify", out, "--golden", golden, "--backend", "reference", "--json");
        assertThat(written.status()).as(written.err()).isEqualTo(Moe.DONE);
        assertThat(written.json()).containsEntry("scheme", value.equals("-1") ? "w8a16_channel" : scheme);
    }

    @Test
    void aFileOfGgufIsWritten() throws IOException {
        Path out = directory.resolve("out.gguf");
        moe("quantize", MIXTRAL, out, "--scheme", "w8a8_channel").assertRefused("--scheme", "w8a16_group of 32");
        Ran ran = moe("quantize", MIXTRAL, out, "--json");
        assertThat(ran.status()).as(ran.err()).isEqualTo(Moe.DONE);
        assertThat(ran.json()).containsEntry("scheme", "w8a16_group").containsEntry("files", 1);
        assertThat(ran.list("experts")).hasSize(8);
        assertThat(directory.toFile().list()).containsExactly("out.gguf"); // no report, nothing half written
        Path golden = MIXTRAL.resolve("golden.safetensors");
        Ran written = moe("verify", out, "--golden", golden, "--backend", "reference", "--json");
        assertThat(written.status()).as(written.err()).isEqualTo(Moe.DONE);
        moe("quantize", out, directory.resolve("again")).assertRefused("got a GGUF file", "*.gguf");
        assertThat(moe("quantize", out, directory.resolve("again.gguf")).out()).contains("0      8        0");
    }

    @Test
    void textNamesWhatWasDone() {
        Ran ran = moe("quantize", MIXTRAL, directory.resolve("out"));
        assertThat(ran.status()).isEqualTo(Moe.DONE);
        assertThat(ran.out()).contains("relative L2 error of weights", "worst channels", "w8a8_channel");
        assertThat(ran.err()).isEmpty();
    }

    @Test
    void usageIsChecked() {
        moe("quantize", MIXTRAL).assertRefused("moe quantize: ", "OUT");
        moe("quantize", MIXTRAL, directory.resolve("out"), "--scheme", "int4").assertRefused("--scheme", "int4");
        moe("quantize", MIXTRAL, directory.resolve("out"), "--layers", "1")
                .assertRefused("layer: expected 0 to 0, got 1");
        moe("quantize", MIXTRAL, directory.resolve("out"), "--layers", "x").assertRefused("--layers", "x");
        moe("quantize", "nowhere", directory.resolve("out")).assertRefused("nowhere: no such checkpoint");
        moe("quantize", MIXTRAL, MIXTRAL).assertRefused("is the source itself");
        assertThat(directory.resolve("out")).doesNotExist();
    }
}
