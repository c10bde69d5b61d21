package org.tornadomoe.checkpoint;

import static java.util.Objects.requireNonNull;
import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatExceptionOfType;

import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Map;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;
import org.junit.jupiter.params.provider.ValueSource;
import org.tornadomoe.checkpoint.file.CheckpointException;

/** Paths, and names of models in a cache laid out as huggingface_hub does it. */
class CheckpointNameTest {
    private static final String COMMIT = "0123456789abcdef";

    @TempDir
    Path directory;

    private Path found(String name) {
        return new CheckpointName(Path.of(name), Map.of("HF_HUB_CACHE", directory.toString())).path();
    }

    private void refused(String name, String message) {
        assertThatExceptionOfType(CheckpointException.class)
                .isThrownBy(() -> found(name))
                .withMessageContaining(message);
    }

    /** A file of a model's snapshot. */
    private Path file(String commit, String name) throws IOException {
        Path file = directory
                .resolve("models--org--model.v1")
                .resolve("snapshots")
                .resolve(commit)
                .resolve(name);
        Files.createDirectories(requireNonNull(file.getParent()));
        return Files.writeString(file, "");
    }

    private void main(String commit) throws IOException {
        Path refs = directory.resolve("models--org--model.v1").resolve("refs");
        Files.writeString(Files.createDirectories(refs).resolve("main"), commit);
    }

    @ParameterizedTest
    @ValueSource(
            strings = {"model", "/no/such/path", "src/test", "../org/model", "org /model", "org/.model", "org/mod:el"})
    void whatIsAPathOrNoModelsNameIsTakenAsItIs(String name) {
        assertThat(found(name)).isEqualTo(Path.of(name));
    }

    @Test
    void withoutACacheANameIsAPath() {
        assertThat(new CheckpointName(Path.of("org/model"), Map.of("HOME", "")).path())
                .isEqualTo(Path.of("org/model"));
        assertThat(CheckpointName.of("src")).hasToString("src").returns(Path.of("src"), CheckpointName::path);
    }

    @ParameterizedTest
    @CsvSource({
        "HF_HUB_CACHE, ''",
        "HF_HOME, hub",
        "XDG_CACHE_HOME, huggingface/hub",
        "HOME, .cache/huggingface/hub",
    })
    void theCacheIsWhereTheEnvironmentSays(String variable, String below) throws IOException {
        Path snapshot = directory
                .resolve(below)
                .resolve("models--org--model")
                .resolve("snapshots")
                .resolve(COMMIT);
        Files.createDirectories(snapshot);
        Map<String, String> environment = variable.equals("HOME")
                ? Map.of("HOME", directory.toString())
                : Map.of(
                        variable,
                        directory.toString(),
                        "HOME",
                        directory.resolve("elsewhere").toString());
        assertThat(new CheckpointName(Path.of("org/model"), environment).path()).isEqualTo(snapshot);
    }

    @Test
    void aModelThatIsNotThereIsSearchedForInVain() {
        refused(
                "org/other",
                "org/other: no such checkpoint, and Hugging Face's cache has no such model: looked for "
                        + directory.resolve("models--org--other"));
    }

    @Test
    void mainIsTakenOrTheOnlySnapshot() throws IOException {
        file(COMMIT, "config.json");
        Path snapshot = requireNonNull(file(COMMIT, "model.safetensors").getParent());
        assertThat(found("org/model.v1")).isEqualTo(snapshot);
        assertThat(found("org/model.v1/sub/file.gguf")).isEqualTo(snapshot.resolve("sub/file.gguf"));
        file("fedcba", "config.json");
        refused("org/model.v1", "expected one snapshot, since there is no ");
        refused("org/model.v1", ", found 2");
        main(COMMIT + "\n");
        assertThat(found("org/model.v1")).isEqualTo(snapshot);
        for (String wrong : new String[] {"another", "../snapshots/" + COMMIT, ""}) {
            main(wrong);
            refused("org/model.v1", "expected the name of a folder in ");
            refused("org/model.v1", ", got '" + wrong + "'");
        }
        main("x".repeat(256)); // no commit
        refused("org/model.v1", "expected one snapshot");
    }

    @Test
    void aModelOfOneGgufFileIsThatFile() throws IOException {
        Path first = file(COMMIT, "model-q4-00001-of-00003.gguf");
        file(COMMIT, "model-q4-00002-of-00003.gguf");
        file(COMMIT, "model-q4-00003-of-00003.gguf");
        file(COMMIT, "README.md");
        assertThat(found("org/model.v1")).isEqualTo(first);
        file(COMMIT, "model-q8.gguf");
        refused(
                "org/model.v1",
                "expected one model, found several: add one of these to the name: model-q4-00001-of-00003.gguf,"
                        + " model-q8.gguf");
        file(COMMIT, "config.json");
        assertThat(found("org/model.v1")).isEqualTo(requireNonNull(first.getParent()));
    }

    @Test
    void aModelWithoutGgufIsItsFolder() throws IOException {
        Path snapshot = requireNonNull(file(COMMIT, "model.safetensors").getParent());
        assertThat(found("org/model.v1")).isEqualTo(snapshot);
    }
}
