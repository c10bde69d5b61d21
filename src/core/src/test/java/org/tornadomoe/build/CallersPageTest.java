package org.tornadomoe.build;

import static org.assertj.core.api.Assertions.assertThat;
import static org.tornadomoe.build.PagePrograms.CHECKPOINT;

import java.io.IOException;
import java.nio.file.Path;
import java.util.List;
import java.util.regex.Matcher;
import java.util.regex.Pattern;
import jdk.jfr.consumer.RecordedEvent;
import jdk.jfr.consumer.RecordingFile;
import org.assertj.core.data.Offset;
import org.junit.jupiter.api.BeforeEach;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;
import org.tornadomoe.MoeLayer;
import org.tornadomoe.MoeOptions;

/** The programs of {@code docs/callers.md}, as they stand there, on the CPU. */
class CallersPageTest {
    @TempDir
    private Path folder;

    private PagePrograms programs;

    @BeforeEach
    void read() throws IOException {
        programs = new PagePrograms(Path.of("docs/callers.md"), folder);
    }

    @Test
    void everyJavaBlockIsOneThatIsRunHere() {
        programs.assertThatAllAre("Watched.java", "Callers.java", "Halves.java");
    }

    @Test
    void allListenersAreTold() throws Exception {
        Path recording = folder.resolve("moe.jfr");
        assertThat(programs.run(List.of("-XX:StartFlightRecording=filename=" + recording), "Watched.java", CHECKPOINT))
                .containsPattern("3 tokens, 1536 bytes in, \\d+ us, of which by stage, in ns: \\{\\w+=\\d+, .*\\}")
                .contains("3.0 tokens in all");
        assertThat(RecordingFile.readAllEvents(recording).stream()
                        .map(RecordedEvent::getEventType)
                        .map(type -> type.getName()))
                .contains("tornadomoe.Layer", "tornadomoe.Call", "tornadomoe.Stage");
    }

    @ParameterizedTest
    @CsvSource({"60000, 20", "0, 200"})
    void callersAreServedOrRefused(String wait, int callers) throws Exception {
        Matcher told = Pattern.compile("2 lanes, (\\d+) calls served, (\\d+) refused")
                .matcher(programs.run("Callers.java", CHECKPOINT, Integer.toString(callers), wait));
        assertThat(told.find()).isTrue();
        int refused = Integer.parseInt(told.group(2));
        assertThat(refused).isBetween(0, wait.equals("0") ? callers - 1 : 0);
        assertThat(Integer.parseInt(told.group(1))).isEqualTo(callers - refused);
    }

    @Test
    void halvesComeAndGo() throws Exception {
        String printed = programs.run("Halves.java", CHECKPOINT);
        float got = Float.parseFloat(printed.strip().lines().toList().getLast());
        try (MoeLayer layer = MoeLayer.load(
                Path.of(CHECKPOINT), 0, MoeOptions.DEFAULT.withBackend("cpu").withMaxTokens(3))) {
            float[] hidden = new float[3 * layer.config().hiddenDim()];
            for (int i = 0; i < hidden.length; i++) {
                hidden[i] = Float.intBitsToFloat(Float.floatToIntBits((float) Math.sin(i)) & 0xffff0000);
            }
            float exact = layer.forward(hidden)[0];
            assertThat(got).isCloseTo(exact, Offset.offset(Math.abs(exact) / 256));
        }
    }
}
