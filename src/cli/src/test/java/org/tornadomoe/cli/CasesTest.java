package org.tornadomoe.cli;

import static org.assertj.core.api.Assertions.assertThat;
import static org.tornadomoe.cli.Ran.moe;

import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.stream.Stream;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.MethodSource;

/** Small checkpoints in forms that public bug reports tell of, each with the right output. */
class CasesTest {
    private static final Path CASES = Path.of("src/test/resources/cases");

    /**
     * A row of {@code cases.tsv}.
     *
     * @param file the checkpoint, in the case's folder
     * @param tolerance the greatest relative L2 error
     * @param options more of them for {@code moe verify}
     */
    record Case(String name, String file, String tolerance, List<String> options) {
        @Override
        public String toString() {
            return name;
        }
    }

    private static Stream<Case> cases() throws IOException {
        return Files.readAllLines(CASES.resolve("cases.tsv")).stream().map(line -> {
            String[] columns = line.split("\t", -1);
            List<String> options = columns[3].equals("-") ? List.of() : List.of(columns[3].split(" ", -1));
            return new Case(columns[0], columns[1], columns[2], options);
        });
    }

    @Test
    void everyCaseIsListed() throws IOException {
        try (Stream<Path> folders = Files.list(CASES).filter(Files::isDirectory)) {
            List<String> there = folders.map(folder -> folder.getFileName().toString())
                    .sorted()
                    .toList();
            assertThat(cases().map(Case::name).sorted().toList())
                    .isEqualTo(there)
                    .isNotEmpty();
        }
    }

    @ParameterizedTest
    @MethodSource("cases")
    void passes(Case it) throws IOException {
        Path folder = CASES.resolve(it.name);
        Path golden = folder.resolve("golden.safetensors");
        List<Object> command = new ArrayList<>(Arrays.asList("verify", folder.resolve(it.file), "--golden", golden));
        command.addAll(List.of("--tolerance", it.tolerance, "--backend", "cpu", "--json"));
        command.addAll(it.options);
        Ran ran = moe(command.toArray());
        assertThat(ran.status()).as(ran.err()).isEqualTo(0);
        assertThat(ran.number("relativeL2")).isLessThanOrEqualTo(Double.parseDouble(it.tolerance));
    }
}
