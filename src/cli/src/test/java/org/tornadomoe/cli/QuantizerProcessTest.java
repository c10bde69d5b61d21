package org.tornadomoe.cli;

import static org.assertj.core.api.Assertions.assertThat;
import static org.junit.jupiter.api.Assumptions.assumeTrue;

import java.io.IOException;
import java.io.RandomAccessFile;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.concurrent.TimeUnit;
import java.util.regex.Matcher;
import java.util.regex.Pattern;
import java.util.stream.Stream;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.tornadomoe.checkpoint.MoeCheckpoint;

/**
 * A checkpoint is quantised by a process of its own: with a heap and memory off the heap that are together smaller than
 * two of its experts, the mapped files being in neither; and by one that is killed.
 */
class QuantizerProcessTest {
    private static final int E = 3;
    private static final int H = 2048;
    private static final int I = 2816;
    private static final int MIB = 1 << 20;
    private static final int EXPERT = 3 * H * I;
    private static final int HEAP = 36 * MIB;

    @TempDir
    Path directory;

    /** In BF16, all zeros: a file of holes. */
    private Path source() throws IOException {
        Path source = Files.createDirectory(directory.resolve("source"));
        Files.writeString(
                source.resolve("config.json"),
                "{\"model_type\": \"mixtral\", \"num_hidden_layers\": 1, \"num_experts_per_tok\": 2, \"hidden_size\": "
                        + H + ", \"num_local_experts\": " + E + ", \"intermediate_size\": " + I + "}");
        StringBuilder header = new StringBuilder("{");
        String block = "model.layers.0.block_sparse_moe.";
        long at = entry(header, block + "gate", E, H, 0);
        for (int e = 0; e < E; e++) {
            for (String name : List.of("w1", "w3", "w2")) {
                boolean down = name.equals("w2");
                at = entry(header, block + "experts." + e + "." + name, down ? H : I, down ? I : H, at);
            }
        }
        byte[] json = (header + "}").getBytes(StandardCharsets.UTF_8);
        try (RandomAccessFile file =
                new RandomAccessFile(source.resolve("model.safetensors").toFile(), "rw")) {
            file.write(ByteBuffer.allocate(8)
                    .order(ByteOrder.LITTLE_ENDIAN)
                    .putLong(json.length)
                    .array());
            file.write(json);
            file.setLength(8 + json.length + at);
        }
        return source;
    }

    private static long entry(StringBuilder header, String module, int rows, int cols, long at) {
        long end = at + 2L * rows * cols;
        header.append(header.length() == 1 ? "" : ", ")
                .append("\"" + module + ".weight\": {\"dtype\": \"BF16\", \"shape\": [" + rows + ", " + cols
                        + "], \"data_offsets\": [" + at + ", " + end + "]}");
        return end;
    }

    /** Runs moe in a JVM of its own, which prints at its end what it allocated off the heap. */
    private String moe(Object... args) throws IOException, InterruptedException {
        Process jvm = start(args);
        try {
            assertThat(jvm.waitFor(5, TimeUnit.MINUTES)).isTrue();
        } finally {
            jvm.destroyForcibly();
        }
        String log = Files.readString(directory.resolve("log"));
        assertThat(jvm.exitValue()).as(log).isZero();
        return log;
    }

    private Process start(Object... args) throws IOException {
        List<String> command = new ArrayList<>(List.of(
                Path.of(System.getProperty("java.home"), "bin", "java").toString(),
                "-Xmx" + HEAP,
                "-XX:+UseSerialGC",
                "-XX:TieredStopAtLevel=1",
                "-XX:NativeMemoryTracking=summary",
                "-XX:+UnlockDiagnosticVMOptions",
                "-XX:+PrintNMTStatistics",
                "-cp",
                System.getProperty("java.class.path"),
                Moe.class.getName()));
        for (Object arg : args) {
            command.add(arg.toString());
        }
        return new ProcessBuilder(command)
                .redirectErrorStream(true)
                .redirectOutput(directory.resolve("log").toFile())
                .start();
    }

    private static List<String> names(Path folder) throws IOException {
        if (!Files.isDirectory(folder)) {
            return List.of();
        }
        try (Stream<Path> files = Files.list(folder)) {
            return files.map(file -> file.getFileName().toString()).toList();
        }
    }

    /** A process that is killed has no time to tidy up. */
    @Test
    void aKilledRunLeavesNothingHalfWrittenUnderItsName() throws IOException, InterruptedException {
        Path source = source();
        Path out = directory.resolve("out");
        Process jvm = start("quantize", source, out);
        while (jvm.isAlive() && names(out).stream().noneMatch(name -> name.endsWith(".tmp"))) {
            Thread.sleep(1);
        }
        jvm.destroyForcibly().waitFor();
        assumeTrue(jvm.exitValue() != 0, "it was done before it was killed");
        assertThat(names(out)).contains(".moe-quantize").doesNotContain("model.safetensors", "config.json");
        assertThat(names(out)).anyMatch(name -> name.endsWith(".tmp"));
        moe("quantize", source, out);
        assertThat(names(out))
                .containsExactlyInAnyOrder(
                        "model.safetensors",
                        "config.json",
                        "quantization_report.json",
                        "quantization_report.txt",
                        "quantization_report.png");
    }

    @Test
    void memoryStaysBelowTwoExperts() throws IOException, InterruptedException {
        Path out = directory.resolve("out");
        String log = moe("quantize", source(), out);
        // The JVM files what segments are made of under Other; without native access all off-heap memory is theirs.
        Matcher peak = Pattern.compile("Other \\([^)]*\\)\\s*\\(malloc=[^)]*\\) \\(peak=(\\d+) ")
                .matcher(log);
        assertThat(peak.find()).as(log).isTrue();
        long offHeap = Long.parseLong(peak.group(1));
        assertThat(offHeap).as("one expert in int8 at least").isGreaterThanOrEqualTo(EXPERT);
        assertThat(HEAP + offHeap)
                .as("two experts, as they are stored, in BF16")
                .isLessThan(2 * 2L * EXPERT);
        assertThat(offHeap).as("no two experts in int8, either").isLessThan(2L * EXPERT);
        try (MoeCheckpoint written = MoeCheckpoint.open(out)) {
            assertThat(written.layer(0).config().numExperts()).isEqualTo(E);
        }
    }
}
