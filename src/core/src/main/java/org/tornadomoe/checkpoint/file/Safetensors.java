package org.tornadomoe.checkpoint.file;

import java.io.IOException;
import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.nio.ByteOrder;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.Collections;
import java.util.HashMap;
import java.util.LinkedHashMap;
import java.util.LinkedHashSet;
import java.util.List;
import java.util.Locale;
import java.util.Map;
import java.util.Set;
import java.util.regex.Matcher;
import java.util.regex.Pattern;
import java.util.stream.Stream;
import org.jspecify.annotations.Nullable;

/**
 * The tensors of a safetensors file, or of a directory with {@code model.safetensors} or with shards and a {@code
 * model.safetensors.index.json}; without an index, of all shards, or of the only file. Files are mapped read-only:
 * opening reads the headers alone, tensors of any size cost no heap. Thread-safe; {@link #close} unmaps, and what was
 * not copied out can't be read any more. A file that is changed while it is open gives other values, zeros, or an
 * {@link InternalError} of the JVM: after reading, {@link #requireUnchanged} tells.
 *
 * <p>Format: an 8-byte little-endian header length, a JSON header, the data
 * (<a href="https://huggingface.co/docs/safetensors">huggingface.co/docs/safetensors</a>).
 */
public final class Safetensors implements AutoCloseable {
    /** The longest header read, as in the format's own library. */
    static final long MAX_HEADER = 100_000_000;

    private static final String SINGLE = "model.safetensors";
    private static final String INDEX = "model.safetensors.index.json";

    /** As Mistral names its own. */
    private static final String MISTRAL_SINGLE = "consolidated.safetensors";

    private static final String MISTRAL_INDEX = "consolidated.safetensors.index.json";

    /** A shard's name: the set's, its number, how many there are. */
    private static final Pattern SHARD = Pattern.compile("(.+)-(\\d{5})-of-(\\d{5})\\.safetensors");

    private final Path path;
    private final Arena arena;
    private final List<MappedFile> files = new ArrayList<>();
    private final Map<String, Tensor> tensors = new LinkedHashMap<>();

    /** Tensors whose type is none that is known: they block nothing until one is asked for. */
    private final Map<String, Unknown> unknown = new LinkedHashMap<>();

    private final Map<String, String> metadata = new LinkedHashMap<>();

    private record Unknown(Path file, String type) {}

    private Safetensors(Path path, Arena arena) {
        this.path = path;
        this.arena = arena;
    }

    /**
     * Opens a file or a directory. Nothing stays open if this throws.
     *
     * @throws CheckpointException if there is none, or it is damaged; the message names the file, and the tensor
     */
    public static Safetensors open(Path fileOrDirectory) {
        Arena arena = Arena.ofShared();
        try {
            Safetensors opened = new Safetensors(fileOrDirectory, arena);
            if (!Files.exists(fileOrDirectory)) {
                throw new CheckpointException(fileOrDirectory, "no such file or directory");
            }
            Path single = first(fileOrDirectory, SINGLE, INDEX, MISTRAL_SINGLE, MISTRAL_INDEX);
            if (!Files.isDirectory(fileOrDirectory)) {
                opened.addFile(fileOrDirectory);
            } else if (single != null && single.toString().endsWith(".json")) {
                opened.addShards(single);
            } else if (single != null) {
                opened.addFile(single);
            } else {
                withoutIndex(fileOrDirectory).forEach(opened::addFile);
            }
            return opened;
        } catch (Throwable e) {
            arena.close();
            throw e;
        }
    }

    private static @Nullable Path first(Path directory, String... names) {
        return Stream.of(names)
                .map(directory::resolve)
                .filter(Files::exists)
                .findFirst()
                .orElse(null);
    }

    /**
     * The files of a directory with neither of the usual names: shards that are all there, by their numbers, or else
     * its only one, whatever that is called.
     */
    private static List<Path> withoutIndex(Path directory) {
        List<String> names;
        try (Stream<Path> all = Files.list(directory)) {
            names = all.map(file -> file.getFileName().toString()).sorted().toList();
        } catch (IOException e) {
            throw CheckpointException.of(directory, "cannot be read", e);
        }
        String neither = "holds neither " + SINGLE + " nor " + INDEX;
        List<String> files =
                names.stream().filter(name -> name.endsWith(".safetensors")).toList();
        Map<String, List<String>> sets = new LinkedHashMap<>();
        for (String name : files) {
            Matcher shard = SHARD.matcher(name);
            if (shard.matches()) {
                sets.computeIfAbsent(shard.group(1) + shard.group(3), set -> new ArrayList<>())
                        .add(name);
            }
        }
        if (sets.size() > 1 || (sets.isEmpty() && files.size() > 1)) {
            throw new CheckpointException(
                    directory,
                    neither + "; it holds " + files.get(0) + " and " + files.get(files.size() - 1)
                            + ": which is the model's? Name that one " + SINGLE + ", or fetch the index");
        }
        for (List<String> shards : sets.values()) {
            String first = shards.getFirst();
            Matcher shard = SHARD.matcher(first);
            int total = shard.matches() ? Integer.parseInt(shard.group(3)) : 0;
            for (int i = 1; i <= total; i++) {
                String expected = shard.group(1) + String.format(Locale.ROOT, "-%05d-of-%05d", i, total);
                if (!shards.contains(expected + ".safetensors")) {
                    throw new CheckpointException(
                            directory,
                            neither + ", and of the " + total + " shards " + expected + ".safetensors is missing");
                }
            }
            return shards.stream().map(directory::resolve).toList();
        }
        if (files.isEmpty()) {
            throw new CheckpointException(directory, neither + insteadOf(names));
        }
        return List.of(directory.resolve(files.getFirst()));
    }

    /** What a directory without safetensors has instead, and what to do about it; empty if that is nothing known. */
    private static String insteadOf(List<String> names) {
        for (String name : names) {
            if (name.endsWith(".gguf")) {
                return "; it holds " + name + ": give the path of that file";
            }
            if (name.matches(".*\\.(bin|pt|pth|ckpt)")) {
                return "; it holds " + name + ": PyTorch's pickles are not read, since reading one may"
                        + " run any code; save the model as safetensors (save_pretrained)";
            }
        }
        return "";
    }

    private void addFile(Path file) {
        map(file).forEach((name, tensor) -> {
            Tensor other = tensors.putIfAbsent(name, tensor);
            if (other != null) {
                throw new CheckpointException(
                        file,
                        "tensor '" + JsonFile.shown(name) + "' is also in "
                                + other.file().getFileName());
            }
        });
    }

    private void addShards(Path index) {
        Map<String, @Nullable Object> weightMap = JsonFile.read(index).object("weight_map");
        Map<String, Map<String, Tensor>> shards = new HashMap<>();
        weightMap.forEach((name, value) -> {
            if (!(value instanceof String shard)) {
                throw new CheckpointException(
                        index,
                        "weight_map: tensor '" + JsonFile.shown(name) + "': expected a file name, got "
                                + JsonFile.shown(value));
            }
            Tensor tensor =
                    shards.computeIfAbsent(shard, s -> map(shard(index, s))).get(name);
            if (tensor == null && unknown.containsKey(name)) {
                return;
            }
            if (tensor == null) {
                throw new CheckpointException(
                        index.resolveSibling(shard),
                        "has no tensor '" + JsonFile.shown(name) + "', which " + index.getFileName() + " says it has");
            }
            tensors.put(name, tensor);
        });
    }

    private static Path shard(Path index, String name) {
        // An index must not reach outside its directory.
        if (name.isEmpty()
                || name.length() > 255
                || name.contains("/")
                || name.contains("\\")
                || name.contains("\0")
                || name.equals("..")) {
            throw new CheckpointException(
                    index, "weight_map: expected the name of a file beside it, got '" + JsonFile.shown(name) + "'");
        }
        Path shard = index.resolveSibling(name);
        if (!Files.exists(shard)) {
            throw new CheckpointException(
                    shard, "no such file, though " + index.getFileName() + " names it as a shard");
        }
        return shard;
    }

    private Map<String, Tensor> map(Path file) {
        MappedFile mapped = MappedFile.map(file, arena);
        files.add(mapped);
        try {
            MemorySegment bytes = mapped.bytes();
            long size = bytes.byteSize();
            if (size < 8) {
                throw new CheckpointException(
                        file, "is " + size + " bytes long: too short for a safetensors file (truncated?)");
            }
            long headerLength = bytes.get(ValueLayout.JAVA_LONG_UNALIGNED.withOrder(ByteOrder.LITTLE_ENDIAN), 0);
            if (headerLength < 0 || headerLength > MAX_HEADER) {
                throw new CheckpointException(
                        file,
                        "header length: expected 0 to " + MAX_HEADER + ", got " + Long.toUnsignedString(headerLength)
                                + ": not a safetensors file");
            }
            if (headerLength > size - 8) {
                throw new CheckpointException(
                        file,
                        "header length: expected at most the " + (size - 8) + " bytes that follow it, got "
                                + headerLength + " (truncated?)");
            }
            MemorySegment data = bytes.asSlice(8 + headerLength);
            SafetensorsHeader header = SafetensorsHeader.parse(
                    file, bytes.asSlice(8, headerLength).toArray(ValueLayout.JAVA_BYTE), data.byteSize());
            metadata.putAll(header.metadata());
            Map<String, Tensor> found = new LinkedHashMap<>();
            for (SafetensorsHeader.Entry entry : header.entries()) {
                MemorySegment values = data.asSlice(entry.begin(), entry.end() - entry.begin());
                DType dtype = entry.dtype();
                if (dtype == null) {
                    unknown.put(entry.name(), new Unknown(file, entry.type()));
                } else {
                    found.put(entry.name(), new Tensor(file, entry.name(), dtype, entry.shape(), values));
                }
            }
            return found;
        } catch (InternalError e) {
            throw mapped.lost(e);
        }
    }

    /** What was opened. */
    public Path path() {
        return path;
    }

    /** The tensors' names, in the order of the file or of the index. */
    public Set<String> names() {
        if (unknown.isEmpty()) {
            return Collections.unmodifiableSet(tensors.keySet());
        }
        Set<String> all = new LinkedHashSet<>(tensors.keySet());
        all.addAll(unknown.keySet());
        return Collections.unmodifiableSet(all);
    }

    /** The {@code __metadata__} of the file; of several shards, all of it together. */
    public Map<String, String> metadata() {
        return Collections.unmodifiableMap(metadata);
    }

    /**
     * The tensor of that name, null if there is none.
     *
     * @throws CheckpointException if it is of a type that this library doesn't know
     * @throws IllegalStateException after {@link #close}
     */
    public @Nullable Tensor find(String name) {
        requireOpen();
        Unknown odd = unknown.get(name);
        if (odd != null) {
            throw new CheckpointException(
                    odd.file,
                    "tensor '" + name + "': dtype: expected one of " + Arrays.toString(DType.values()) + ", got '"
                            + JsonFile.shown(odd.type) + "'");
        }
        return tensors.get(name);
    }

    /**
     * The tensor of that name.
     *
     * @throws CheckpointException if there is none, or it is of a type that this library doesn't know
     * @throws IllegalStateException after {@link #close}
     */
    public Tensor tensor(String name) {
        Tensor tensor = find(name);
        if (tensor == null) {
            String some = String.join(", ", names().stream().limit(8).toList());
            throw new CheckpointException(
                    path,
                    "has no tensor '" + name + "'; it has " + names().size() + ": " + some
                            + (names().size() > 8 ? ", ..." : ""));
        }
        return tensor;
    }

    /**
     * Makes sure that what was read until now is what the files held when they were opened.
     *
     * @throws CheckpointException if one was changed, by its length or time; the message names it
     */
    public void requireUnchanged() {
        files.forEach(MappedFile::requireUnchanged);
    }

    /** Unmaps the files. A second call does nothing. */
    @Override
    public void close() {
        if (arena.scope().isAlive()) {
            arena.close();
        }
    }

    private void requireOpen() {
        if (!arena.scope().isAlive()) {
            throw new IllegalStateException(path + " is closed");
        }
    }
}
