package org.tornadomoe.checkpoint;

import java.io.IOException;
import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.nio.ByteOrder;
import java.nio.channels.FileChannel;
import java.nio.file.Files;
import java.nio.file.Path;
import java.nio.file.StandardOpenOption;
import java.util.Collections;
import java.util.HashMap;
import java.util.LinkedHashMap;
import java.util.Map;
import java.util.Set;
import org.jspecify.annotations.Nullable;

/**
 * The tensors of a safetensors file, or of a directory with {@code model.safetensors} or with shards and a
 * {@code model.safetensors.index.json}. Files are mapped read-only: opening reads the headers alone, tensors of any size
 * cost no heap. Thread-safe; {@link #close} unmaps, and what was not copied out can't be read any more. Don't shorten a
 * file while it is open: reading a page that is gone is an {@link InternalError} of the JVM.
 *
 * <p>Format: an 8-byte little-endian header length, a JSON header, the data
 * (<a href="https://huggingface.co/docs/safetensors">huggingface.co/docs/safetensors</a>).
 */
public final class Safetensors implements AutoCloseable {
    /** The longest header read, as in the format's own library. */
    static final long MAX_HEADER = 100_000_000;

    private static final String SINGLE = "model.safetensors";
    private static final String INDEX = "model.safetensors.index.json";

    private final Path path;
    private final Arena arena;
    private final Map<String, Tensor> tensors = new LinkedHashMap<>();
    private final Map<String, String> metadata = new LinkedHashMap<>();

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
            } else if (!Files.isDirectory(fileOrDirectory)) {
                opened.addFile(fileOrDirectory);
            } else if (Files.exists(fileOrDirectory.resolve(SINGLE))) {
                opened.addFile(fileOrDirectory.resolve(SINGLE));
            } else if (Files.exists(fileOrDirectory.resolve(INDEX))) {
                opened.addShards(fileOrDirectory.resolve(INDEX));
            } else {
                throw new CheckpointException(fileOrDirectory, "holds neither " + SINGLE + " nor " + INDEX);
            }
            return opened;
        } catch (Throwable e) {
            arena.close();
            throw e;
        }
    }

    private void addFile(Path file) {
        tensors.putAll(map(file));
    }

    private void addShards(Path index) {
        Map<String, Object> weightMap = JsonFile.read(index).object("weight_map");
        Map<String, Map<String, Tensor>> shards = new HashMap<>();
        weightMap.forEach((name, value) -> {
            if (!(value instanceof String shard)) {
                throw new CheckpointException(
                        index, "weight_map: tensor '" + name + "': expected a file name, got " + value);
            }
            Tensor tensor =
                    shards.computeIfAbsent(shard, s -> map(shard(index, s))).get(name);
            if (tensor == null) {
                throw new CheckpointException(
                        index.resolveSibling(shard), "has no tensor '" + name + "', which " + INDEX + " says it has");
            }
            tensors.put(name, tensor);
        });
    }

    private static Path shard(Path index, String name) {
        // An index must not reach outside its directory.
        if (name.isEmpty() || name.contains("/") || name.contains("\\") || name.contains("\0") || name.equals("..")) {
            throw new CheckpointException(
                    index, "weight_map: expected the name of a file beside it, got '" + name + "'");
        }
        Path shard = index.resolveSibling(name);
        if (!Files.exists(shard)) {
            throw new CheckpointException(shard, "no such file, though " + INDEX + " names it as a shard");
        }
        return shard;
    }

    private Map<String, Tensor> map(Path file) {
        try (FileChannel channel = FileChannel.open(file, StandardOpenOption.READ)) {
            long size = channel.size();
            if (size < 8) {
                throw new CheckpointException(
                        file, "is " + size + " bytes long: too short for a safetensors file (truncated?)");
            }
            MemorySegment bytes = Mapping.readOnly(channel, size, arena);
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
                found.put(entry.name(), new Tensor(file, entry.name(), entry.dtype(), entry.shape(), values));
            }
            return found;
        } catch (IOException e) {
            throw CheckpointException.of(file, "cannot be read", e);
        }
    }

    /** What was opened. */
    public Path path() {
        return path;
    }

    /** The tensors' names, in the order of the file or of the index. */
    public Set<String> names() {
        return Collections.unmodifiableSet(tensors.keySet());
    }

    /** The {@code __metadata__} of the file; of several shards, all of it together. */
    public Map<String, String> metadata() {
        return Collections.unmodifiableMap(metadata);
    }

    /** The tensor of that name, null if there is none. */
    public @Nullable Tensor find(String name) {
        requireOpen();
        return tensors.get(name);
    }

    /**
     * The tensor of that name.
     *
     * @throws CheckpointException if there is none
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
