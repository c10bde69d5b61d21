package org.tornadomoe.checkpoint.file;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatExceptionOfType;
import static org.junit.jupiter.api.Assumptions.assumeTrue;

import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.LinkOption;
import java.nio.file.Path;
import java.nio.file.attribute.PosixFilePermissions;
import java.util.List;
import java.util.UUID;
import java.util.stream.Stream;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;

class WholeFileTest {
    @TempDir
    Path directory;

    private List<String> names() throws IOException {
        try (Stream<Path> files = Files.list(directory)) {
            return files.map(file -> file.getFileName().toString()).sorted().toList();
        }
    }

    private static void assertRefused(Path file, String message) {
        assertThatExceptionOfType(CheckpointException.class)
                .isThrownBy(() -> WholeFile.requireWritable(file))
                .withMessageStartingWith(file + ": cannot be written: ")
                .withMessageContaining(message);
        assertThatExceptionOfType(CheckpointException.class)
                .isThrownBy(() -> WholeFile.write(file, "x"))
                .withMessageStartingWith(file + ": cannot be written: ")
                .withMessageContaining(message);
    }

    @Test
    void aFileIsReplacedAndKeepsItsPermissions() throws IOException {
        Path file = directory.resolve("a");
        WholeFile.write(file, "old");
        assumeTrue(Files.getFileStore(file).supportsFileAttributeView("posix"));
        Files.setPosixFilePermissions(file, PosixFilePermissions.fromString("rw-------"));
        WholeFile.requireWritable(file);
        WholeFile.write(file, "ü");
        assertThat(file).hasBinaryContent(new byte[] {(byte) 0xc3, (byte) 0xbc});
        assertThat(PosixFilePermissions.toString(Files.getPosixFilePermissions(file)))
                .isEqualTo("rw-------");
        assertThat(names()).containsExactly("a");
    }

    @Test
    void whatALinkPointsToIsWrittenAndTheLinkStays() throws IOException {
        Path elsewhere = Files.createDirectory(directory.resolve("elsewhere"));
        Path target = Files.writeString(elsewhere.resolve("target"), "old");
        Path link = Files.createSymbolicLink(directory.resolve("link"), Path.of("elsewhere", "target"));
        Path link2 = Files.createSymbolicLink(directory.resolve("link2"), link);
        WholeFile.write(link2, "new");
        assertThat(target).hasContent("new");
        assertThat(link2).isSymbolicLink();
        assertThat(link).isSymbolicLink();

        Path dangling = Files.createSymbolicLink(directory.resolve("dangling"), elsewhere.resolve("fresh"));
        WholeFile.write(dangling, "fresh");
        assertThat(dangling).isSymbolicLink();
        assertThat(elsewhere.resolve("fresh")).hasContent("fresh");
        assertThat(names()).containsExactly("dangling", "elsewhere", "link", "link2");
    }

    @Test
    void tensorsAreWrittenThroughALinkToo() throws IOException {
        Path target = Files.writeString(directory.resolve("target"), "old");
        Path link = Files.createSymbolicLink(directory.resolve("link"), target);
        new SafetensorsWriter().add("x", new float[] {1, 2}, 2).write(link);
        assertThat(link).isSymbolicLink();
        try (Safetensors read = Safetensors.open(target)) {
            assertThat(read.tensor("x").toFloats()).containsExactly(1, 2);
        }
    }

    @Test
    void whatIsNoRegularFileIsRefused() throws IOException, InterruptedException {
        Path folder = Files.createDirectory(directory.resolve("folder"));
        assertRefused(folder, "expected a regular file, or none yet, got a directory");
        Path pipe = directory.resolve("pipe");
        assumeTrue(new ProcessBuilder("mkfifo", pipe.toString()).start().waitFor() == 0);
        assertRefused(pipe, "got a device, a pipe or a socket");
        Path link = Files.createSymbolicLink(directory.resolve("link"), pipe);
        assertRefused(link, "got a device, a pipe or a socket");
        Path device = Path.of("/dev/null");
        assumeTrue(Files.exists(device) && !Files.isRegularFile(device));
        assertRefused(device, "got a device, a pipe or a socket");
        assertThat(Files.isRegularFile(device, LinkOption.NOFOLLOW_LINKS)).isFalse();
        assertThat(names()).containsExactly("folder", "link", "pipe");
    }

    @Test
    void whereNothingCanBeWrittenIsNamed() throws IOException {
        Path nowhere = directory.resolve("no/where");
        assertThatExceptionOfType(CheckpointException.class)
                .isThrownBy(() -> WholeFile.requireWritable(nowhere))
                .withMessage(nowhere + ": cannot be written: no such directory");
        assertThatExceptionOfType(CheckpointException.class)
                .isThrownBy(() -> WholeFile.write(nowhere, "x"))
                .withMessage(nowhere + ": cannot be written: no such file or directory");
        Path loop = directory.resolve("loop");
        Files.createSymbolicLink(loop, loop);
        assertRefused(loop, "too many levels of symbolic links");
    }

    @Test
    void aFailureLeavesWhatWasThereAndNothingElse() throws IOException {
        Path file = Files.writeString(directory.resolve("a"), "old");
        assertThatExceptionOfType(CheckpointException.class)
                .isThrownBy(() -> WholeFile.write(file, fresh -> {
                    Files.writeString(fresh, "half");
                    throw new IOException("disk full");
                }))
                .withMessage(file + ": cannot be written: disk full");
        assertThat(file).hasContent("old");
        assertThat(names()).containsExactly("a");
    }

    @Test
    void whatAKilledRunLeftIsKnownByItsName() {
        String id = UUID.randomUUID().toString();
        for (String name : new String[] {"." + id + ".tmp", ".model.safetensors." + id + ".tmp"}) {
            assertThat(WholeFile.isLeftover(directory.resolve(name))).as(name).isTrue();
        }
        for (String name : new String[] {id + ".tmp", "." + id, "." + id.substring(1) + ".tmp", ".x.tmp"}) {
            assertThat(WholeFile.isLeftover(directory.resolve(name))).as(name).isFalse();
        }
    }
}
