package example;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.io.ByteArrayOutputStream;
import java.io.PrintStream;
import java.nio.charset.StandardCharsets;
import java.util.List;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.ValueSource;
import org.tornadomoe.checkpoint.MoeCheckpoint;
import org.tornadomoe.quant.WeightRows;

/** The table of {@code --bench}. */
class BenchTest {
    @Test
    void oneRowPerTestAndLlamaBenchsColumns() throws Exception {
        String model = GoldenTest.path("qwen3_moe").toString();
        PrintStream out = System.out;
        ByteArrayOutputStream printed = new ByteArrayOutputStream();
        System.setOut(new PrintStream(printed, true, StandardCharsets.UTF_8));
        try {
            Generate.main(new String[] {model, "--bench", "--pp", "5", "--tg", "2", "--repeats", "2"});
        } finally {
            System.setOut(out);
        }
        List<String> rows = printed.toString(StandardCharsets.UTF_8)
                .lines()
                .filter(line -> line.startsWith("|"))
                .toList();
        assertEquals(4, rows.size());
        assertEquals("| model | size | params | backend | device | test | t/s |", rows.get(0));
        String start = "\\| qwen3_moe \\| 0\\.\\d\\d MiB \\| 0\\.\\d\\d M \\| CPU \\| \\d+ threads \\| ";
        assertTrue(rows.get(2).matches(start + "pp5 \\| [\\d.]+ ± [\\d.]+ \\|"), rows.get(2));
        assertTrue(rows.get(3).matches(start + "tg2 \\| [\\d.]+ ± [\\d.]+ \\|"), rows.get(3));
    }

    /** As many weights as the file has. */
    @ParameterizedTest
    @ValueSource(strings = {"qwen3_moe", "olmoe", "mixtral", "mixtral/model.gguf"})
    void countsAllWeights(String checkpoint) {
        String path = GoldenTest.path(checkpoint).toString();
        try (MoeCheckpoint file = MoeCheckpoint.open(GoldenTest.path(checkpoint));
                Model model = Model.open(path)) {
            long count = 0;
            for (String name : file.names()) {
                WeightRows matrix = file.matrix(name);
                count += (long) matrix.rows() * matrix.cols();
            }
            Model.Weights weights = model.weights(null);
            assertEquals(count, weights.count());
            // A byte each; a row's scale, a norm or a row of the router four.
            assertTrue(weights.bytes() > count && weights.bytes() < 1.3 * count, weights.toString());
        }
    }
}
