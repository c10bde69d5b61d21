package org.tornadomoe.checkpoint.file;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatExceptionOfType;

import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.concurrent.TimeUnit;
import org.assertj.core.api.ThrowableAssert.ThrowingCallable;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.Timeout;
import org.junit.jupiter.api.condition.DisabledOnOs;
import org.junit.jupiter.api.condition.OS;
import org.junit.jupiter.api.io.TempDir;
import org.tornadomoe.checkpoint.MoeCheckpoint;

/** Files that aren't what their names say. */
class CheckpointFileTest {
    private static final String CONFIG = "{\"model_type\": \"mixtral\"}";
    private static final String POINTER = """
        version https://git-lfs.github.com/spec/v1
        oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393
        size 4976698672
        """;

    @TempDir
    Path directory;

    private void assertRefused(ThrowingCallable what, String file, String message) {
        assertThatExceptionOfType(CheckpointException.class)
                .isThrownBy(what)
                .withMessage(directory.resolve(file) + ": " + message);
    }

    private ThrowingCallable opening() {
        return () -> MoeCheckpoint.open(directory).close();
    }

    @Test
    void aGitLfsPointerIsCalledThat() throws IOException {
        String what = "is a Git LFS pointer to a file of 4976698672 bytes, not the file: fetch it with 'git lfs pull'";
        Files.writeString(directory.resolve("config.json"), POINTER);
        assertRefused(opening(), "config.json", what);
        Files.writeString(directory.resolve("config.json"), CONFIG);
        Files.writeString(directory.resolve("model.safetensors.index.json"), POINTER);
        assertRefused(opening(), "model.safetensors.index.json", what);
        Files.writeString(
                directory.resolve("model.safetensors.index.json"), "{\"weight_map\": {\"a\": \"x.safetensors\"}}");
        Files.writeString(directory.resolve("x.safetensors"), POINTER);
        assertRefused(opening(), "x.safetensors", what);
        Files.writeString(directory.resolve("model.safetensors"), POINTER.replaceAll("size.*\n", ""));
        assertRefused(
                opening(),
                "model.safetensors",
                "is a Git LFS pointer to a file, not the file: fetch it with 'git lfs pull'");
    }

    /** What is a kibibyte long, or has another first line, is no pointer. */
    @Test
    void whatOnlyLooksLikeAPointerIsAFile() throws IOException {
        Path file = directory.resolve("f");
        Files.writeString(file, POINTER + "x".repeat(1024 - POINTER.length()));
        CheckpointFile.open(file).close();
        Files.writeString(file, POINTER.substring(1));
        CheckpointFile.open(file).close();
        Files.writeString(file, POINTER + "x".repeat(1023 - POINTER.length()));
        assertRefused(
                () -> CheckpointFile.open(file).close(),
                "f",
                "is a Git LFS pointer to a file of 4976698672 bytes, not the file: fetch it with 'git lfs pull'");
    }

    @Test
    @DisabledOnOs(OS.WINDOWS)
    @Timeout(value = 60, unit = TimeUnit.SECONDS)
    void whatReadingWouldNotEndOfIsRefused() throws Exception {
        String what = "expected a regular file, got a pipe, a socket or a device";
        Path pipe = directory.resolve("pipe");
        assertThat(new ProcessBuilder("mkfifo", pipe.toString()).start().waitFor())
                .isZero();
        assertRefused(() -> MoeCheckpoint.open(pipe), "pipe", what);
        assertRefused(() -> MoeCheckpoint.config(pipe), "pipe", what);
        assertRefused(() -> Safetensors.open(pipe), "pipe", what);
        Path config = Files.createSymbolicLink(directory.resolve("config.json"), pipe);
        assertRefused(opening(), "config.json", what);
        Files.delete(config);
        Files.createSymbolicLink(config, Path.of("/dev/zero"));
        assertRefused(opening(), "config.json", what);
        Files.delete(config);
        Files.createDirectory(config);
        assertRefused(opening(), "config.json", "expected a file, got a directory");
        Files.delete(config);
        Files.writeString(config, CONFIG);
        Path model = Files.createSymbolicLink(directory.resolve("model.safetensors"), pipe);
        assertRefused(opening(), "model.safetensors", what);
        Files.move(model, directory.resolve("model.safetensors.index.json"));
        assertRefused(opening(), "model.safetensors.index.json", what);
        Files.delete(directory.resolve("model.safetensors.index.json"));
        Files.createDirectory(model);
        assertRefused(opening(), "model.safetensors", "expected a file, got a directory");
    }
}
