package org.tornadomoe.checkpoint.file;

import java.io.IOException;
import java.nio.channels.FileChannel;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.LinkOption;
import java.nio.file.Path;
import java.nio.file.StandardCopyOption;
import java.nio.file.StandardOpenOption;
import java.nio.file.attribute.PosixFileAttributeView;
import java.util.UUID;

/**
 * Writes a file whole or not at all: a new one beside it takes its place, with the permissions that it had. What a
 * symbolic link points to is written, and the link stays. Only a regular file is replaced: a directory, a device, a
 * pipe or a socket is refused.
 */
public final class WholeFile {
    /** As Linux does. */
    private static final int MOST_LINKS = 40;

    /** Makes the new file. */
    @FunctionalInterface
    public interface Content {
        /**
         * Writes it.
         *
         * @param fresh where nothing is yet, to be created there
         */
        void writeTo(Path fresh) throws IOException;
    }

    private WholeFile() {}

    /**
     * Finds out before the work whether a file can be written, as far as that can be seen.
     *
     * @throws CheckpointException if its directory is not there, or it is something other than a regular file
     */
    public static void requireWritable(Path file) {
        try {
            if (!Files.isDirectory(target(file).resolveSibling(""))) {
                throw new CheckpointException(file, "cannot be written: no such directory");
            }
        } catch (IOException e) {
            throw CheckpointException.of(file, "cannot be written", e);
        }
    }

    /**
     * Writes text in UTF-8.
     *
     * @throws CheckpointException if the file can't be written; what was there before is untouched
     */
    public static void write(Path file, String text) {
        write(file, text.getBytes(StandardCharsets.UTF_8));
    }

    /** Writes bytes. Otherwise as the other. */
    public static void write(Path file, byte[] bytes) {
        write(file, fresh -> Files.write(fresh, bytes, StandardOpenOption.CREATE_NEW, StandardOpenOption.WRITE));
    }

    /** Writes what {@code content} makes, on the disk once this returns. Otherwise as the others. */
    public static void write(Path file, Content content) {
        try {
            Path target = target(file);
            Path fresh = target.resolveSibling("." + UUID.randomUUID() + ".tmp");
            try {
                content.writeTo(fresh);
                keepPermissions(target, fresh);
                try (FileChannel channel = FileChannel.open(fresh, StandardOpenOption.READ)) {
                    channel.force(true); // also where what was copied may not be written to
                }
                Files.move(fresh, target, StandardCopyOption.ATOMIC_MOVE, StandardCopyOption.REPLACE_EXISTING);
            } finally {
                discard(fresh);
            }
        } catch (IOException e) {
            throw CheckpointException.of(file, "cannot be written", e);
        }
    }

    /** Whether a name is that of a file that a run which was killed had begun. */
    static boolean isLeftover(Path file) {
        return file.getFileName().toString().matches("\\.(.*\\.)?[0-9a-f-]{36}\\.tmp");
    }

    /** What is written in the end: a regular file, or where nothing is in a directory. */
    private static Path target(Path file) throws IOException {
        Path target = file.toAbsolutePath();
        for (int links = 0; Files.isSymbolicLink(target); links++) {
            if (links == MOST_LINKS) {
                throw new CheckpointException(file, "cannot be written: too many levels of symbolic links");
            }
            target = target.resolveSibling(Files.readSymbolicLink(target));
        }
        if (Files.exists(target, LinkOption.NOFOLLOW_LINKS) && !Files.isRegularFile(target)) {
            String what = Files.isDirectory(target) ? "a directory" : "a device, a pipe or a socket";
            throw new CheckpointException(file, "cannot be written: expected a regular file, or none yet, got " + what);
        }
        if (Files.exists(target) && !Files.isWritable(target)) {
            throw new CheckpointException(file, "cannot be written: permission denied");
        }
        return target;
    }

    private static void keepPermissions(Path before, Path fresh) throws IOException {
        PosixFileAttributeView view = Files.getFileAttributeView(fresh, PosixFileAttributeView.class);
        if (view != null && Files.exists(before)) {
            view.setPermissions(Files.getPosixFilePermissions(before));
        }
    }

    private static void discard(Path fresh) {
        try {
            Files.deleteIfExists(fresh);
        } catch (IOException e) {
            // It could not be created, or its directory went away: the failure that matters is on its way already.
        }
    }
}
