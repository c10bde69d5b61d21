package org.tornadomoe.build;

import static org.assertj.core.api.Assertions.assertThat;

import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.List;
import java.util.stream.Stream;
import org.junit.jupiter.api.BeforeAll;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;

/** The programs in {@code examples}, built and run by its page's commands on the library as it is installed. */
class ExamplesIT {
    private static final Path EXAMPLES = Path.of("examples");
    private static final String MIXTRAL =
            Path.of("src/test/resources/golden/hf/mixtral").toAbsolutePath().toString();
    private static final String GGUF = Path.of("src/test/resources/cases/gguf-q4_0/model.gguf")
            .toAbsolutePath()
            .toString();

    @TempDir
    static Path project;

    @TempDir
    static Path repository;

    private static InstalledLibrary library;
    private static List<String> commands = List.of();

    @BeforeAll
    static void build() throws Exception {
        library = new InstalledLibrary(repository);
        try (Stream<Path> files = Files.walk(EXAMPLES)) {
            for (Path file : files.filter(path -> !path.startsWith(EXAMPLES.resolve("target")))
                    .toList()) {
                Path copy = project.resolve(EXAMPLES.relativize(file).toString());
                if (Files.isDirectory(file)) {
                    Files.createDirectories(copy);
                } else {
                    Files.copy(file, copy);
                }
            }
        }
        commands = Files.readAllLines(EXAMPLES.resolve("README.md")).stream()
                .filter(line -> line.startsWith("    "))
                .map(String::strip)
                .toList();
        assertThat(commands).hasSize(3);
        library.run(project, commands.get(1));
    }

    private static String run(String example) throws IOException, InterruptedException {
        String command = commands.get(2);
        assertThat(command).startsWith("java ").endsWith(" example.FromArrays");
        return library.run(
                project,
                InstalledLibrary.JAVA + command.substring("java".length()).replace("FromArrays", example));
    }

    @Test
    void aLayerFromArrays() throws Exception {
        assertThat(run("FromArrays"))
                .contains("MoeLayer[8 experts, top 2, hidden 64, intermediate 32, silu; w8a8_channel")
                .containsPattern("ChosenExperts\\[3 tokens of 2: \\d x 0\\.\\d+ \\+ \\d x 0\\.\\d+; .*\\]")
                .containsPattern("first value: -?\\d+\\.\\d+");
    }

    @Test
    void layersOfACheckpointAndOfAGgufFile() throws Exception {
        for (String checkpoint : List.of(MIXTRAL, GGUF)) {
            assertThat(run("FromCheckpoint " + checkpoint))
                    .containsPattern("w8a8_channel, .*: -?\\d\\S+ -?\\d\\S+\\R")
                    .containsPattern("w8a16_channel, .*: -?\\d\\S+ -?\\d\\S+\\R");
        }
    }

    @Test
    void manyCallers() throws Exception {
        assertThat(run("ManyCallers " + MIXTRAL)).containsPattern("\\d lanes, 100 calls, 400 tokens, waited \\d+ ms");
    }

    @Test
    void aLayerAmongOwnTasks() throws Exception {
        assertThat(run("InTaskGraph " + MIXTRAL)).containsPattern("on interpreter:0 .*: -?\\d\\S+ \\d\\S+");
    }

    /** Each program is one of the page's, and the other way round. */
    @Test
    void thePageHasEveryProgram() throws IOException {
        String page = Files.readString(EXAMPLES.resolve("README.md"));
        try (Stream<Path> sources = Files.list(EXAMPLES.resolve("src/main/java/example"))) {
            assertThat(sources.map(file -> file.getFileName().toString().replace(".java", "")))
                    .allSatisfy(name -> assertThat(page).contains("| `" + name))
                    .hasSize(4);
        }
    }

    /** The poms have one version, and so have the pages and examples. */
    @Test
    void thereIsOneVersion() throws IOException {
        String mark = "<version>" + InstalledLibrary.VERSION + "</version>";
        for (String pom : List.of(
                "pom.xml", "src/bom/pom.xml", "docs/java.md", "examples/spring-boot/pom.xml", "docs/quarkus.md")) {
            assertThat(Path.of(pom)).content().contains(mark);
        }
        assertThat(EXAMPLES.resolve("pom.xml"))
                .content()
                .contains("<tornado-moe.version>" + InstalledLibrary.VERSION + "</tornado-moe.version>");
        assertThat(Path.of("README.md"))
                .content()
                .contains("`org.tornadomoe:tornado-moe:" + InstalledLibrary.VERSION + "`");
        assertThat(Path.of("CHANGELOG.md")).content().contains("## " + InstalledLibrary.VERSION);
    }
}
