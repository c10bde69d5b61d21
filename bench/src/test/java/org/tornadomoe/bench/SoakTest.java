package org.tornadomoe.bench;

import static org.assertj.core.api.Assertions.assertThat;

import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.concurrent.TimeUnit;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;

/**
 * The soak of {@code bench/}, for a few seconds, in a process of its own, whose threads and descriptors are counted.
 */
class SoakTest {
    private static final Path SOAK = Path.of("bench/src/main/java/org/tornadomoe/bench/Soak.java");

    @TempDir
    Path directory;

    @Test
    void theSameBitsAndNoGrowth() throws IOException, InterruptedException {
        assertThat(soak(0, "--checkpoint", "src/test/resources/golden/hf/mixtral"))
                .containsPattern("(?m)^6: [1-9][0-9]* calls")
                .contains("nothing grew of heap, memory off the heap, resident memory, threads, descriptors");
    }

    @Test
    void whatGrowsIsFound() throws IOException, InterruptedException {
        assertThat(soak(1, "--leak", "heap,memory,threads,descriptors"))
                .contains("GROWN: heap", "GROWN: memory off the heap", "GROWN: threads", "GROWN: descriptors")
                .containsPattern("; [45] grew of "); // resident memory may
    }

    /** What it prints. */
    private String soak(int status, String... options) throws IOException, InterruptedException {
        Path log = directory.resolve("log");
        List<String> command = new ArrayList<>(List.of(
                Path.of(System.getProperty("java.home"), "bin", "java").toString(),
                "-Xmx256m",
                "-XX:NativeMemoryTracking=summary",
                "--enable-native-access=ALL-UNNAMED",
                "-cp",
                System.getProperty("java.class.path"),
                SOAK.toString(),
                "--minutes",
                "0.05"));
        command.addAll(List.of(options));
        Process soak = new ProcessBuilder(command)
                .redirectErrorStream(true)
                .redirectOutput(log.toFile())
                .start();
        try {
            assertThat(soak.waitFor(5, TimeUnit.MINUTES)).isTrue();
        } finally {
            soak.destroyForcibly();
        }
        String told = Files.readString(log);
        assertThat(soak.exitValue()).as(told).isEqualTo(status);
        return told;
    }
}
