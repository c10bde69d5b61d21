package org.tornadomoe.checkpoint.file;

import java.io.IOException;
import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.nio.channels.FileChannel;
import java.nio.file.Files;
import java.nio.file.Path;
import java.nio.file.attribute.BasicFileAttributes;
import java.nio.file.attribute.FileTime;
import java.util.Objects;
import java.util.concurrent.ExecutionException;
import java.util.concurrent.FutureTask;

/**
 * A file mapped read-only, and what told its state before it was. A file that is shortened while it is mapped reads as
 * zeros up to the end of its last page and is an {@link InternalError} of the JVM beyond: what was read is known to be
 * right only after {@link #requireUnchanged}.
 *
 * @param modified the time of its last change
 */
record MappedFile(Path path, MemorySegment bytes, FileTime modified) {
    /**
     * Maps a whole file.
     *
     * @throws CheckpointException if it is not a file that {@link CheckpointFile} opens, or can't be read
     */
    static MappedFile map(Path path, Arena arena) {
        try {
            BasicFileAttributes before = attributes(path);
            try (FileChannel channel = CheckpointFile.open(path)) {
                MemorySegment bytes = readOnly(channel, channel.size(), arena);
                MappedFile mapped = new MappedFile(path, bytes, before.lastModifiedTime());
                mapped.requireUnchanged(); // since its attributes were read
                return mapped;
            }
        } catch (IOException e) {
            throw CheckpointException.of(path, "cannot be read", e);
        }
    }

    /**
     * {@link FileChannel#map}, read-only, on a thread that nobody interrupts: an interrupt just after the file was
     * mapped makes that throw, and the mapping stays until the process ends (JDK 25). The caller's interrupts are kept.
     *
     * @param arena a shared one
     */
    static MemorySegment readOnly(FileChannel channel, long size, Arena arena) throws IOException {
        FutureTask<MemorySegment> mapping =
                new FutureTask<>(() -> channel.map(FileChannel.MapMode.READ_ONLY, 0, size, arena));
        Thread.ofPlatform().name("moe-map").daemon().start(mapping);
        boolean interrupted = false;
        try {
            while (true) {
                try {
                    return mapping.get();
                } catch (InterruptedException e) {
                    interrupted = true;
                } catch (ExecutionException e) {
                    switch (Objects.requireNonNull(e.getCause())) {
                        case IOException cause -> throw cause;
                        case RuntimeException cause -> throw cause;
                        case Error cause -> throw cause;
                        default -> throw new AssertionError(e);
                    }
                }
            }
        } finally {
            if (interrupted) {
                Thread.currentThread().interrupt();
            }
        }
    }

    private static BasicFileAttributes attributes(Path path) throws IOException {
        return Files.readAttributes(path, BasicFileAttributes.class);
    }

    /** @throws CheckpointException if the file is not as long, or not of the time, as when it was mapped */
    void requireUnchanged() {
        try {
            BasicFileAttributes now = attributes(path);
            String change = now.size() != bytes.byteSize()
                    ? "it had " + bytes.byteSize() + " bytes and has " + now.size()
                    : !now.lastModifiedTime().equals(modified)
                            ? "it was of " + modified + " and is of " + now.lastModifiedTime()
                            : null;
            if (change != null) {
                throw new CheckpointException(path, "was changed while it was read: " + change);
            }
        } catch (IOException e) {
            throw CheckpointException.of(path, "was changed while it was read", e);
        }
    }

    /** What to throw where reading the file ended in such an error: that it was changed, or the error itself. */
    InternalError lost(InternalError e) {
        try {
            requireUnchanged();
        } catch (CheckpointException changed) {
            changed.addSuppressed(e);
            throw changed;
        }
        return e;
    }
}
