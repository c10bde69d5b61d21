package org.tornadomoe.cli;

import static java.util.Objects.requireNonNull;
import static org.assertj.core.api.Assertions.assertThat;
import static org.junit.jupiter.api.Assumptions.assumeTrue;
import static org.tornadomoe.cli.Ran.moe;

import java.awt.image.BufferedImage;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.HashSet;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.concurrent.TimeUnit;
import javax.imageio.ImageIO;
import org.assertj.core.api.InstanceOfAssertFactories;
import org.assertj.core.data.Percentage;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;
import org.junit.jupiter.params.provider.ValueSource;
import org.tornadomoe.tornado.device.TornadoHome;
import tools.jackson.jr.ob.JSON;

class BenchTest {
    @TempDir
    Path directory;

    private static double number(Map<?, ?> row, String field) {
        return ((Number) requireNonNull(row.get(field), field)).doubleValue();
    }

    @Test
    void groupsAndZeroPointsAreThoseAskedFor() throws IOException {
        Ran ran = moe((Object[]) ("bench --backend cpu --shape 4:64:96:2 --tokens 5 --runs 1 --json"
                        + " --scheme w8a16_group --group 32 --zero-points")
                .split(" "));
        assertThat(ran.status()).as(ran.err()).isEqualTo(Moe.DONE);
        assertThat(ran.json()).containsEntry("scheme", "w8a16_group of 32 with zero points");
        assertThat(ran.list("rows"))
                .allSatisfy(row -> assertThat(row.get("passed")).isEqualTo(true));
        assertThat(moe("bench", "--scheme", "w8a8_channel", "--group", "32").err())
                .contains("--group: expected --scheme w8a16_group");
    }

    @ParameterizedTest
    @CsvSource({"triton, w8a8_channel", "triton, w8a16_channel", "reference, w8a8_channel"})
    void everySizeIsMeasuredAndChecked(String backend, String scheme) throws IOException {
        Path file = directory.resolve("out.json");
        Ran ran = moe(
                "bench",
                "--shape",
                "4:24:20:2,tiny",
                "--tokens",
                "1,5",
                "--runs",
                2,
                "--seconds",
                0.1,
                "--limit-gbs",
                100,
                "--limit-tops",
                "0.5",
                "--backend",
                backend,
                "--scheme",
                scheme,
                "--output",
                file,
                "--json");
        assertThat(ran.status()).as(ran.err()).isEqualTo(Moe.DONE);
        assertThat(ran.json()).containsEntry("backend", backend).containsEntry("scheme", scheme);
        assertThat(JSON.std.mapFrom(Files.readString(file))).isEqualTo(ran.json());
        List<Map<?, ?>> rows = ran.list("rows");
        assertThat(rows)
                .extracting(row -> row.get("shape") + " " + row.get("tokens"))
                .containsExactly("4:24:20:2 1", "4:24:20:2 5", "tiny 1", "tiny 5");
        for (Map<?, ?> row : rows) {
            assertThat(row.get("passed")).isEqualTo(true);
            assertThat(number(row, "relativeL2")).isLessThan(1e-2);
            assertThat(number(row, "call")).isPositive();
            assertThat(number(row, "runs")).isBetween(1.0, 2.0);
            // Weights of the active experts in bytes, over microseconds, in 10^9 bytes/s.
            double bytes = 3 * number(row, "activeExperts") * number(row, "intermediate") * number(row, "hidden");
            double gemms =
                    row.get("gateUp") == null ? number(row, "call") : number(row, "gateUp") + number(row, "down");
            double operations = 6
                    * number(row, "tokens")
                    * number(row, "topK")
                    * number(row, "intermediate")
                    * number(row, "hidden");
            assertThat(number(row, "gbs")).isCloseTo(bytes / gemms / 1e3, relative());
            assertThat(number(row, "tops")).isCloseTo(operations / gemms / 1e6, relative());
            double least = Math.max(bytes / 100e3, operations / 0.5e6);
            assertThat(number(row, "percentOfLimit")).isCloseTo(100 * least / gemms, relative());
        }
        assertThat(number(rows.getFirst(), "activeExperts")).isEqualTo(2);
        assertThat(number(rows.get(1), "activeExperts")).isBetween(2.0, 4.0);
    }

    private static Percentage relative() {
        return Percentage.withPercentage(1e-6);
    }

    /** Times, and a roofline beside them. */
    @ParameterizedTest
    @ValueSource(strings = {"cpu", "reference"})
    void timesAreDrawn(String backend) throws IOException {
        Path png = directory.resolve("times.png");
        Ran ran = moe(
                "bench",
                "--shape",
                "4:24:20:2",
                "--tokens",
                "1,5",
                "--runs",
                1,
                "--seconds",
                0.1,
                "--backend",
                backend,
                "--plot",
                png);
        assertThat(ran.status()).as(ran.err()).isEqualTo(Moe.DONE);
        BufferedImage image = ImageIO.read(png.toFile());
        assertThat(image.getWidth()).isEqualTo(2 * 760);
        Set<Integer> colours = new HashSet<>();
        for (int x = 0; x < image.getWidth(); x++) {
            colours.add(image.getRGB(x, image.getHeight() / 2));
        }
        assertThat(colours).hasSizeGreaterThan(3);
        moe("bench", "--shape", "tiny", "--plot", directory.resolve("no/where.png"))
                .assertRefused("--plot: ", "no such");
        moe("bench", "--shape", "tiny", "--layers", 2, "--plot", png).assertRefused("--plot: ", "--layers");
    }

    @Test
    void whatWasMeasuredIsToldWhereNothingCanBeDrawn() throws IOException, InterruptedException {
        Path png = directory.resolve("times.png");
        Path out = directory.resolve("out.txt");
        Path err = directory.resolve("err.txt");
        Process jvm = new ProcessBuilder(
                        Path.of(System.getProperty("java.home"), "bin", "java").toString(),
                        "-XX:TieredStopAtLevel=1",
                        "-XX:+UseSerialGC",
                        "--limit-modules",
                        "java.logging,java.management,java.xml,jdk.unsupported",
                        "-cp",
                        System.getProperty("java.class.path"),
                        Moe.class.getName(),
                        "bench",
                        "--shape=8:24:20:2",
                        "--tokens=1",
                        "--seconds=0.1",
                        "--backend=reference",
                        "--plot=" + png)
                .redirectOutput(out.toFile())
                .redirectError(err.toFile())
                .start();
        try {
            assertThat(jvm.waitFor(5, TimeUnit.MINUTES)).isTrue();
        } finally {
            jvm.destroyForcibly();
        }
        assertThat(Files.readString(err))
                .contains("moe: " + png + ": cannot be drawn")
                .doesNotContain("not have happened");
        assertThat(jvm.exitValue()).isEqualTo(Moe.BAD_INPUT);
        assertThat(Files.readString(out)).contains("8:24:20:2");
    }

    @Test
    void aLayerForEachSizeIsMeasuredAsWell() throws IOException {
        Ran ran = moe(
                "bench",
                "--shape",
                "16:24:20:2",
                "--tokens",
                "1,5",
                "--runs",
                1,
                "--seconds",
                0.1,
                "--separate",
                "--backend",
                "triton",
                "--json");
        assertThat(ran.status()).as(ran.err()).isEqualTo(Moe.DONE);
        assertThat(ran.list("rows"))
                .hasSize(2)
                .allSatisfy(row -> assertThat(row.get("passed")).isEqualTo(true));
        assertThat(ran.err()).contains("loaded for 1 tokens", "loaded for 5 tokens");
    }

    @Test
    void layersInOneGraphAreMeasured() throws IOException {
        Ran ran = moe(
                "bench",
                "--shape",
                "8:24:20:2",
                "--tokens",
                "1,5",
                "--runs",
                1,
                "--layers",
                10,
                "--skew",
                1,
                "--backend",
                "triton",
                "--json");
        assertThat(ran.status()).as(ran.err()).isEqualTo(Moe.DONE);
        assertThat(ran.list("layers")).hasSize(2).allSatisfy(row -> {
            assertThat(number(row, "layers")).isEqualTo(10);
            assertThat(number(row, "distinctWeights")).isEqualTo(8);
            assertThat(number(row, "layer")).isPositive();
            assertThat(row.get("passed")).isEqualTo(true);
        });
    }

    @Test
    void textHasARowForEach() {
        Ran ran =
                moe("bench", "--shape", "tiny", "--tokens", 2, "--runs", 1, "--seconds", 0.1, "--backend", "reference");
        assertThat(ran.status()).as(ran.err()).isEqualTo(Moe.DONE);
        assertThat(ran.out().lines().skip(1).filter(line -> line.startsWith("tiny   2 ")))
                .hasSize(1);
        assertThat(ran.out()).contains("tokens/s", "GB/s", "TOPS");
    }

    @Test
    void whatDoesNotFitIsLeftOutAndTheAnswerIsNo() throws IOException {
        long memory = TornadoHome.current().devices().getFirst().memory();
        assumeTrue(memory < 1024L * 3 * 65535 * 60, () -> "the device has memory for it: " + memory);
        Ran ran = moe(
                "bench",
                "--shape",
                "1024:65535:60:1,tiny",
                "--tokens",
                1,
                "--runs",
                1,
                "--seconds",
                0.1,
                "--backend",
                "triton",
                "--json");
        assertThat(ran.list("rows")).hasSize(1);
        assertThat(ran.json().get("skipped"))
                .asInstanceOf(InstanceOfAssertFactories.MAP)
                .containsOnlyKeys("1024:65535:60:1");
        assertThat(ran.status()).isEqualTo(Moe.NO);
    }

    @ParameterizedTest
    @ValueSource(strings = {"mixtral", "1:2:3", "1:2:3:4:5", "a:b:c:d"})
    void unknownShapesAreRefused(String shape) {
        moe("bench", "--shape", shape)
                .assertRefused("--shape: expected one of [mixtral-8x7b, ", "sizes E:I:H:K", "'" + shape + "'");
    }

    @Test
    void optionsAreChecked() {
        moe("bench", "--shape", "2:8:8:3").assertRefused("expertsPerToken: expected at most numExperts = 2, got 3");
        moe("bench", "--tokens", "1,0").assertRefused("--tokens: expected positive numbers, got 0");
        moe("bench", "--runs", 0).assertRefused("--runs: expected a positive number, got 0");
        moe("bench", "--seconds", "NaN").assertRefused("--seconds: expected a positive number, got NaN");
        moe("bench", "--limit-gbs", -1).assertRefused("--limit-gbs: expected a positive number, got -1.0");
        moe("bench", "--output", directory.resolve("no/where")).assertRefused("--output: expected a file");
        moe("bench", "--output", directory).assertRefused("--output: expected a file");
    }
}
