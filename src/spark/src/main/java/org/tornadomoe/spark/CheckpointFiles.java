package org.tornadomoe.spark;

import java.io.IOException;
import java.io.UncheckedIOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.nio.file.attribute.BasicFileAttributes;
import java.nio.file.attribute.FileTime;
import java.util.Map;
import java.util.TreeMap;
import java.util.stream.Stream;

/**
 * A snapshot of a checkpoint's files; data read under another snapshot is stale.
 *
 * @param files the files by name
 */
record CheckpointFiles(Map<String, File> files) {
    record File(long size, FileTime modified) {}

    /**
     * For a directory, the files that a checkpoint may consist of; for a file, the file itself and all parts of a split
     * one. Empty if the path doesn't exist.
     */
    static CheckpointFiles of(Path path) {
        Path directory = Files.isDirectory(path) ? path : path.toAbsolutePath().getParent();
        if (directory == null || !Files.exists(path)) {
            return new CheckpointFiles(Map.of());
        }
        String part =
                directory.equals(path) ? "" : path.getFileName().toString().replaceFirst("-\\d+-of-\\d+.*", "-");
        Map<String, File> files = new TreeMap<>();
        try (Stream<Path> there = Files.list(directory)) {
            for (Path file : (Iterable<Path>) there::iterator) {
                String name = file.getFileName().toString();
                if (part.isEmpty() ? name.endsWith(".json") || name.endsWith(".safetensors") : name.startsWith(part)) {
                    BasicFileAttributes is = Files.readAttributes(file, BasicFileAttributes.class);
                    files.put(name, new File(is.size(), is.lastModifiedTime()));
                }
            }
        } catch (IOException e) {
            throw new UncheckedIOException(path + ": cannot be listed", e);
        }
        return new CheckpointFiles(files);
    }
}
