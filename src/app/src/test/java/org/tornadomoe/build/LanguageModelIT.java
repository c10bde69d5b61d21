package org.tornadomoe.build;

import static org.assertj.core.api.Assertions.assertThat;

import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.List;
import java.util.concurrent.TimeUnit;
import java.util.stream.Stream;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.Timeout;
import org.junit.jupiter.api.io.TempDir;

/** {@code examples/language-model}, built, tested and run by the commands of {@code docs/language-model.md}. */
@Timeout(value = 15, unit = TimeUnit.MINUTES)
class LanguageModelIT {
    private static final Path EXAMPLE = Path.of("examples/language-model");
    private static final Path PAGE = Path.of("docs/language-model.md");

    @TempDir
    Path project;

    @TempDir
    Path repository;

    @Test
    void isBuiltAndTestedAndGenerates() throws Exception {
        try (Stream<Path> files = Files.walk(EXAMPLE)) {
            for (Path file : files.filter(path -> !path.startsWith(EXAMPLE.resolve("target")))
                    .filter(Files::isRegularFile)
                    .toList()) {
                Path copy = project.resolve(EXAMPLE.relativize(file).toString());
                Files.createDirectories(copy.getParent());
                Files.copy(file, copy);
            }
        }
        InstalledLibrary library = new InstalledLibrary(repository);
        List<String> lines = Files.readString(PAGE)
                .replaceAll("\\\\\n\\s+", "")
                .lines()
                .map(String::strip)
                .toList();
        // Online: the tokenizer's library is nothing that the build itself has resolved.
        library.run(project, "-ntp", command(lines, "mvn "));
        String command = command(lines, "java --add-modules")
                .replace("java ", InstalledLibrary.JAVA + " ")
                .replace("MODEL", "src/test/resources/qwen3_moe");
        assertThat(command).contains(" example.Generate ");
        assertThat(library.run(project, command + " --tokens 12"))
                .contains("qwen3_moe: 2 layers, safetensors, MoE layers by CpuExperts on cpu")
                .containsPattern("prompt: \\d+ tokens, [\\d.]+ tokens/s, \\d+ ms to the first token")
                .containsPattern("generated: \\d+ tokens, [\\d.]+ tokens/s")
                .containsPattern("memory: \\d+ MiB");
        String bench = command.replaceFirst("--prompt \"[^\"]*\"", "--bench --pp 9 --tg 3 --repeats 2");
        assertThat(library.run(project, bench))
                .contains("| model | size | params | backend | device | test | t/s |")
                .containsPattern(
                        "\\| qwen3_moe \\| [\\d.]+ MiB \\| [\\d.]+ M \\| CPU \\| \\d+ threads \\| pp9 \\| [\\d.]+ ±"
                                + " [\\d.]+ \\|")
                .containsPattern("\\| tg3 \\| [\\d.]+ ± [\\d.]+ \\|");
    }

    private static String command(List<String> lines, String start) {
        return lines.stream().filter(line -> line.startsWith(start)).findFirst().orElseThrow();
    }

    /** The page shows the classes as they are, and their version. */
    @Test
    void thePageNamesEveryClass() throws IOException {
        String page = Files.readString(PAGE);
        try (Stream<Path> sources = Files.list(EXAMPLE.resolve("src/main/java/example"))) {
            assertThat(sources.map(file -> file.getFileName().toString().replace(".java", "")))
                    .allSatisfy(name -> assertThat(page).contains("`" + name + "`"));
        }
        assertThat(EXAMPLE.resolve("pom.xml"))
                .content()
                .contains("<tornado-moe.version>" + InstalledLibrary.VERSION + "</tornado-moe.version>");
    }
}
