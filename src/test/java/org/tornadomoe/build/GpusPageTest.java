package org.tornadomoe.build;

import static org.assertj.core.api.Assertions.assertThat;

import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.concurrent.TimeUnit;
import java.util.regex.Matcher;
import java.util.regex.Pattern;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.ValueSource;

/** The programs of {@code docs/gpus.md}, as they stand there, on the CPU under two names. */
class GpusPageTest {
    private static final Path CHECKPOINT = Path.of("src/test/resources/golden/hf/mixtral");
    private static final Pattern PROGRAM = Pattern.compile("`(\\w+\\.java)`:\n\n```java\n(.*?)```\n", Pattern.DOTALL);

    @TempDir
    private Path folder;

    private static List<String> programs() throws IOException {
        List<String> names = new ArrayList<>();
        Matcher program = PROGRAM.matcher(Files.readString(Path.of("docs/gpus.md")));
        while (program.find()) {
            names.add(program.group(1));
        }
        return names;
    }

    private String run(String name, String... args) throws IOException, InterruptedException {
        Matcher program = PROGRAM.matcher(Files.readString(Path.of("docs/gpus.md")));
        Path source = folder.resolve(name);
        while (program.find()) {
            if (program.group(1).equals(name)) {
                Files.writeString(source, program.group(2));
            }
        }
        List<String> command = new ArrayList<>(List.of(
                Path.of(System.getProperty("java.home"), "bin", "java").toString(),
                "--add-modules",
                "jdk.incubator.vector",
                "-cp",
                System.getProperty("surefire.test.class.path", System.getProperty("java.class.path")),
                source.toString()));
        command.addAll(List.of(args));
        Path log = folder.resolve("log");
        Process jvm = new ProcessBuilder(command)
                .redirectErrorStream(true)
                .redirectOutput(log.toFile())
                .start();
        try {
            assertThat(jvm.waitFor(2, TimeUnit.MINUTES)).isTrue();
        } finally {
            jvm.destroyForcibly();
        }
        String output = Files.readString(log);
        assertThat(jvm.exitValue()).as(output).isZero();
        return output;
    }

    @Test
    void everyJavaBlockIsOneThatIsRunHere() throws IOException {
        assertThat(programs()).containsExactly("TwoGpus.java", "Balanced.java");
        assertThat(Files.readString(Path.of("docs/gpus.md")).split("```java", -1))
                .hasSize(1 + programs().size());
    }

    @ParameterizedTest
    @ValueSource(strings = {"expert", "tensor"})
    void twoDevices(String parallel) throws Exception {
        int part = parallel.equals("expert") ? 4 : 8;
        assertThat(run("TwoGpus.java", CHECKPOINT.toString(), "cpu,cpu", parallel))
                .contains("128 values a token on cpu (")
                .containsPattern("(?s)(cpu \\([^)]*\\): " + part + " experts, .*){2}");
    }

    @Test
    void expertsThatMove() throws Exception {
        assertThat(run("Balanced.java", CHECKPOINT.toString(), "cpu,cpu", "2"))
                .containsPattern("1 rearrangements, experts \\[\\[[0-7, ]+\\], \\[[0-7, ]+\\]\\]")
                .containsPattern("pairs of each device since: \\[\\d+, \\d+\\]");
    }
}
