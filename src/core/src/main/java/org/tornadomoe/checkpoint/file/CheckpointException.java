package org.tornadomoe.checkpoint.file;

import java.io.IOException;
import java.nio.file.AccessDeniedException;
import java.nio.file.FileSystemException;
import java.nio.file.NoSuchFileException;
import java.nio.file.Path;

/**
 * A checkpoint is missing, damaged, or not what is supported. The message begins with the file it is about;
 * control characters of names are visible in it, and what is very long is shortened.
 */
public final class CheckpointException extends RuntimeException {
    private static final long serialVersionUID = 1L;

    /** Says what is wrong with a file. */
    public CheckpointException(Path file, String problem) {
        super(Printable.message(file + ": " + problem));
    }

    /** Says what is wrong with a file, and which failure told so. */
    public CheckpointException(Path file, String problem, Throwable cause) {
        super(Printable.message(file + ": " + problem), cause);
    }

    /** A failed read or write, in words: the JDK's own messages are often the bare file name. */
    public static CheckpointException of(Path file, String what, IOException e) {
        String reason = switch (e) {
            case NoSuchFileException _ -> "no such file or directory";
            case AccessDeniedException _ -> "permission denied";
            case FileSystemException f when f.getReason() != null -> f.getReason();
            default -> e.getMessage() == null ? e.getClass().getSimpleName() : e.getMessage();
        };
        return new CheckpointException(file, what + ": " + reason, e);
    }
}
