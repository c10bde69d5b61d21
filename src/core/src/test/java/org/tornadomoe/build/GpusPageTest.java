package org.tornadomoe.build;

import static org.assertj.core.api.Assertions.assertThat;
import static org.tornadomoe.build.PagePrograms.CHECKPOINT;

import java.io.IOException;
import java.nio.file.Path;
import java.util.List;
import org.junit.jupiter.api.BeforeEach;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.ValueSource;

/** The programs of {@code docs/gpus.md}, as they stand there, on the CPU under two names. */
class GpusPageTest {
    private PagePrograms programs;

    @BeforeEach
    void read(@TempDir Path folder) throws IOException {
        programs = new PagePrograms(Path.of("docs/gpus.md"), folder);
    }

    @Test
    void everyJavaBlockIsOneThatIsRunHere() {
        programs.assertThatAllAre("TwoGpus.java", "Balanced.java");
    }

    @ParameterizedTest
    @ValueSource(strings = {"expert", "tensor"})
    void twoDevices(String parallel) throws Exception {
        int part = parallel.equals("expert") ? 4 : 8;
        assertThat(programs.run("TwoGpus.java", CHECKPOINT, "cpu,cpu", parallel))
                .contains("128 values a token on cpu (")
                .containsPattern("(?s)(cpu \\([^)]*\\): " + part + " experts, .*){2}");
    }

    @Test
    void expertsThatMove() throws Exception {
        // It computes for long enough for C2's code, and for vectors.
        List<String> options = List.of("-XX:TieredStopAtLevel=4", "-Dtornadomoe.arithmetic=auto");
        assertThat(programs.run(options, "Balanced.java", CHECKPOINT, "cpu,cpu", "2"))
                .containsPattern("1 rearrangements, experts \\[\\[[0-7, ]+\\], \\[[0-7, ]+\\]\\]")
                .containsPattern("pairs of each device since: \\[\\d+, \\d+\\]");
    }
}
