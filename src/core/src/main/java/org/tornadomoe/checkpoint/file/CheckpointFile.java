package org.tornadomoe.checkpoint.file;

import java.io.IOException;
import java.nio.ByteBuffer;
import java.nio.channels.FileChannel;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.nio.file.StandardOpenOption;

/** How files of a checkpoint are opened. */
public final class CheckpointFile {
    private static final String LFS = "version https://git-lfs.github.com/spec/";

    /** A Git LFS pointer is shorter than this. */
    private static final int LFS_LENGTH = 1024;

    private CheckpointFile() {}

    /**
     * Opens a file to be read.
     *
     * @throws CheckpointException if it is something that reading would not end of (a pipe, a device), a directory, or
     *     the pointer that Git LFS keeps in its place
     * @throws IOException if it can't be opened
     */
    static FileChannel open(Path file) throws IOException {
        requireRegular(file);
        FileChannel channel = FileChannel.open(file, StandardOpenOption.READ);
        try {
            requireNoPointer(file, channel);
            return channel;
        } catch (Throwable e) {
            channel.close();
            throw e;
        }
    }

    /** Refuses what is there and neither a file nor a link to one. */
    public static void requireRegular(Path file) {
        if (Files.exists(file) && !Files.isRegularFile(file)) {
            throw new CheckpointException(
                    file,
                    Files.isDirectory(file)
                            ? "expected a file, got a directory"
                            : "expected a regular file, got a pipe, a socket or a device");
        }
    }

    private static void requireNoPointer(Path file, FileChannel channel) throws IOException {
        long size = channel.size();
        if (size >= LFS_LENGTH) {
            return;
        }
        ByteBuffer start = ByteBuffer.allocate((int) size);
        while (start.hasRemaining() && channel.read(start, start.position()) > 0) {
            // the rest of it
        }
        String text = new String(start.array(), 0, start.position(), StandardCharsets.ISO_8859_1);
        if (text.startsWith(LFS)) {
            String bytes = text.lines()
                    .filter(line -> line.matches("size \\d{1,18}"))
                    .map(line -> " of " + line.substring(5) + " bytes")
                    .findFirst()
                    .orElse("");
            throw new CheckpointException(
                    file, "is a Git LFS pointer to a file" + bytes + ", not the file: fetch it with 'git lfs pull'");
        }
    }
}
