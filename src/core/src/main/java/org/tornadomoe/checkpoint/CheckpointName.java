package org.tornadomoe.checkpoint;

import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.InvalidPathException;
import java.nio.file.Path;
import java.util.List;
import java.util.Map;
import java.util.regex.Pattern;
import java.util.stream.Stream;
import org.jspecify.annotations.Nullable;
import org.tornadomoe.checkpoint.family.ConfigFile;
import org.tornadomoe.checkpoint.file.CheckpointException;

/**
 * A checkpoint as people name it: a path, or where nothing is at that path the name of a model that Hugging
 * Face's cache holds, {@code ORG/MODEL}, or a file of it, {@code ORG/MODEL/FILE}.
 *
 * @param name the path or the name
 * @param environment where the cache is: {@code HF_HUB_CACHE}, {@code HF_HOME}, {@code XDG_CACHE_HOME}, {@code HOME}
 */
public record CheckpointName(Path name, Map<String, String> environment) {
    private static final Pattern PART = Pattern.compile("[A-Za-z0-9_][A-Za-z0-9._-]*");

    /** Files after the first of a GGUF model of several. */
    private static final Pattern LATER_PART = Pattern.compile(".*-(?!00001)\\d{5}-of-\\d{5}\\.gguf");

    /** With the cache that this process's environment tells of. */
    public static CheckpointName of(String name) {
        return new CheckpointName(Path.of(name), System.getenv());
    }

    /**
     * Where it lies.
     *
     * @throws CheckpointException if the cache has the model, but no snapshot of it that can be taken
     */
    public Path path() {
        int parts = name.getNameCount();
        if (Files.exists(name) || name.isAbsolute() || parts < 2 || !isModelName()) {
            return name;
        }
        Path cache = cache();
        if (cache == null) {
            return name;
        }
        Path model = cache.resolve("models--" + name.getName(0) + "--" + name.getName(1));
        if (!Files.isDirectory(model)) {
            throw new CheckpointException(
                    name, "no such checkpoint, and Hugging Face's cache has no such model: looked for " + model);
        }
        Path snapshot = snapshot(model);
        return parts > 2 ? snapshot.resolve(name.subpath(2, parts)) : onlyGguf(snapshot);
    }

    private boolean isModelName() {
        return Stream.of(name.getName(0), name.getName(1))
                .allMatch(part -> PART.matcher(part.toString()).matches());
    }

    /** As huggingface_hub finds it; null where nothing tells. */
    private @Nullable Path cache() {
        for (List<String> place : List.of(
                List.of("HF_HUB_CACHE", ""),
                List.of("HF_HOME", "hub"),
                List.of("XDG_CACHE_HOME", "huggingface/hub"),
                List.of("HOME", ".cache/huggingface/hub"))) {
            String folder = environment.get(place.getFirst());
            if (folder != null && !folder.isEmpty()) {
                try {
                    return Path.of(folder, place.getLast());
                } catch (InvalidPathException wrong) {
                    throw new IllegalArgumentException(place.getFirst() + ": " + wrong.getMessage(), wrong);
                }
            }
        }
        return null;
    }

    /** What the branch main was when it was fetched; where that isn't written down, the only snapshot there is. */
    private static Path snapshot(Path model) {
        Path snapshots = model.resolve("snapshots");
        Path main = model.resolve("refs").resolve("main");
        try {
            if (Files.isRegularFile(main) && Files.size(main) < 256) {
                String commit = Files.readString(main).strip();
                if (!PART.matcher(commit).matches() || !Files.isDirectory(snapshots.resolve(commit))) {
                    throw new CheckpointException(
                            main, "expected the name of a folder in " + snapshots + ", got '" + commit + "'");
                }
                return snapshots.resolve(commit);
            }
            List<Path> there = list(snapshots);
            if (there.size() != 1) {
                throw new CheckpointException(
                        snapshots, "expected one snapshot, since there is no " + main + ", found " + there.size());
            }
            return there.getFirst();
        } catch (IOException e) {
            throw CheckpointException.of(model, "cannot be read", e);
        }
    }

    /** The file of a model that is one GGUF file, or its first; else the folder. */
    private static Path onlyGguf(Path snapshot) {
        if (ConfigFile.isIn(snapshot)) {
            return snapshot;
        }
        try {
            List<Path> files = list(snapshot).stream()
                    .filter(file -> file.toString().endsWith(".gguf"))
                    .filter(file -> !LATER_PART.matcher(file.toString()).matches())
                    .toList();
            if (files.size() > 1) {
                throw new CheckpointException(
                        snapshot,
                        "expected one model, found several: add one of these to the name: "
                                + String.join(
                                        ", ",
                                        files.stream()
                                                .map(file -> file.getFileName().toString())
                                                .toList()));
            }
            return files.isEmpty() ? snapshot : files.getFirst();
        } catch (IOException e) {
            throw CheckpointException.of(snapshot, "cannot be read", e);
        }
    }

    private static List<Path> list(Path folder) throws IOException {
        try (Stream<Path> files = Files.list(folder)) {
            return files.sorted().toList();
        }
    }

    @Override
    public String toString() {
        return name.toString();
    }
}
