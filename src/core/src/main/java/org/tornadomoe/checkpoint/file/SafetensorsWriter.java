package org.tornadomoe.checkpoint.file;

import java.io.IOException;
import java.io.StringWriter;
import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.channels.FileChannel;
import java.nio.charset.StandardCharsets;
import java.nio.file.Path;
import java.nio.file.StandardOpenOption;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.HashMap;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import org.jspecify.annotations.Nullable;
import tools.jackson.core.JsonGenerator;
import tools.jackson.core.ObjectWriteContext;
import tools.jackson.core.json.JsonFactory;

/**
 * Collects tensors and writes them as one safetensors file, wider element types first so that all lie aligned. The file
 * appears whole or not at all ({@link WholeFile}). Not thread-safe.
 */
public final class SafetensorsWriter {
    private static final JsonFactory JSON = new JsonFactory();
    private static final int MAX_WRITE = 1 << 30;

    /** @param data null for a tensor whose data is handed over while the file is written */
    private record Pending(
            DType dtype, long[] shape, @Nullable MemorySegment data) {
        long bytes() {
            return dtype.bytes(shape);
        }
    }

    /** Takes the data of declared tensors while a file is written. */
    @FunctionalInterface
    public interface Sink {
        /** Writes a declared tensor's data, which may be reused afterwards. */
        void put(String name, MemorySegment data) throws IOException;
    }

    /** Hands over the data of all declared tensors, in any order. */
    @FunctionalInterface
    public interface Filler {
        void fill(Sink sink) throws IOException;
    }

    private final Map<String, String> metadata = new LinkedHashMap<>();
    private final Map<String, Pending> tensors = new LinkedHashMap<>();

    /** Adds a pair to {@code __metadata__}, in place of one with that key. */
    public SafetensorsWriter metadata(String key, String value) {
        metadata.put(key, value);
        return this;
    }

    /**
     * Adds a tensor without copying it.
     *
     * @param data its elements, row-major and little-endian; read when {@link #write} is called
     * @throws IllegalArgumentException if the name is taken or the data's length is not that of dtype and shape
     */
    public SafetensorsWriter add(String name, DType dtype, MemorySegment data, long... shape) {
        if (Arrays.stream(shape).anyMatch(size -> size < 0)) {
            throw new IllegalArgumentException(
                    "tensor '" + name + "': shape: expected no negative sizes, got " + Arrays.toString(shape));
        }
        long bytes = dtype.bytes(shape);
        if (data.byteSize() != bytes) {
            throw new IllegalArgumentException(
                    "tensor '" + name + "': expected " + (bytes < 0 ? "more than 2^63" : bytes) + " bytes for " + dtype
                            + Arrays.toString(shape) + ", got " + data.byteSize());
        }
        return put(name, new Pending(dtype, shape.clone(), data));
    }

    /** Adds a tensor whose data is handed over later ({@link #write(Path, Filler)}). */
    public SafetensorsWriter declare(String name, DType dtype, long... shape) {
        return put(name, new Pending(dtype, shape.clone(), null));
    }

    private SafetensorsWriter put(String name, Pending tensor) {
        if (name.equals("__metadata__") || tensors.containsKey(name)) {
            throw new IllegalArgumentException("tensor '" + name + "': the name is taken");
        }
        tensors.put(name, tensor);
        return this;
    }

    /** Bytes of all tensors. */
    public long bytes() {
        return tensors.values().stream().mapToLong(Pending::bytes).sum();
    }

    /** The names and, as text, types and shapes: equal for files of the same layout. */
    public Map<String, String> layout() {
        Map<String, String> layout = new LinkedHashMap<>();
        tensors.forEach((name, tensor) -> layout.put(name, tensor.dtype + Arrays.toString(tensor.shape)));
        return layout;
    }

    /** Adds a copy of floats as F32. Throws as {@link #add}. */
    public SafetensorsWriter add(String name, float[] values, long... shape) {
        MemorySegment data = Arena.ofAuto().allocate(4L * values.length, 4);
        MemorySegment.copy(
                values, 0, data, ValueLayout.JAVA_FLOAT.withOrder(ByteOrder.LITTLE_ENDIAN), 0, values.length);
        return add(name, DType.F32, data, shape);
    }

    /** Adds a copy of ints as I32. Throws as {@link #add}. */
    public SafetensorsWriter add(String name, int[] values, long... shape) {
        MemorySegment data = Arena.ofAuto().allocate(4L * values.length, 4);
        MemorySegment.copy(values, 0, data, ValueLayout.JAVA_INT.withOrder(ByteOrder.LITTLE_ENDIAN), 0, values.length);
        return add(name, DType.I32, data, shape);
    }

    /** Adds a copy of bytes as I8. Throws as {@link #add}. */
    public SafetensorsWriter add(String name, byte[] values, long... shape) {
        return add(name, DType.I8, MemorySegment.ofArray(values.clone()), shape);
    }

    /**
     * Writes the file, replacing one that is there; a symbolic link stays, and what it points to is replaced.
     *
     * @throws CheckpointException if it cannot be written, or is something other than a regular file; what was there
     *     before is untouched
     */
    public void write(Path file) {
        write(file, sink -> {});
    }

    /**
     * Writes the file, and has declared tensors handed over meanwhile. Otherwise as {@link #write(Path)}.
     *
     * @throws IllegalStateException if a declared tensor is not handed over
     */
    public void write(Path file, Filler filler) {
        List<Map.Entry<String, Pending>> ordered = new ArrayList<>(tensors.entrySet());
        ordered.sort((a, b) -> b.getValue().dtype.bytes() - a.getValue().dtype.bytes());
        WholeFile.write(file, fresh -> {
            try (FileChannel channel =
                    FileChannel.open(fresh, StandardOpenOption.WRITE, StandardOpenOption.CREATE_NEW)) {
                byte[] header = header(ordered);
                write(channel, ByteBuffer.wrap(header), 0);
                Map<String, Long> declared = new HashMap<>();
                long at = header.length;
                for (Map.Entry<String, Pending> tensor : ordered) {
                    MemorySegment data = tensor.getValue().data;
                    if (data == null) {
                        declared.put(tensor.getKey(), at);
                    } else {
                        write(channel, data, at);
                    }
                    at += tensor.getValue().bytes();
                }
                filler.fill((name, data) -> fill(channel, declared, name, data));
                if (!declared.isEmpty()) {
                    throw new IllegalStateException("tensors were not handed over: " + declared.keySet());
                }
            }
        });
    }

    private void fill(FileChannel channel, Map<String, Long> declared, String name, MemorySegment data)
            throws IOException {
        Long at = declared.remove(name);
        Pending tensor = tensors.get(name);
        if (at == null || tensor == null || data.byteSize() != tensor.bytes()) {
            throw new IllegalArgumentException("tensor '" + name + "': expected one that is declared and not yet handed"
                    + " over, got " + data.byteSize() + " bytes");
        }
        write(channel, data, at);
    }

    private static void write(FileChannel channel, MemorySegment data, long at) throws IOException {
        for (long from = 0; from < data.byteSize(); from += MAX_WRITE) {
            MemorySegment part = data.asSlice(from, Math.min(MAX_WRITE, data.byteSize() - from));
            // Only byte arrays on the heap have a view as a buffer.
            ByteBuffer bytes =
                    part.isNative() ? part.asByteBuffer() : ByteBuffer.wrap(part.toArray(ValueLayout.JAVA_BYTE));
            write(channel, bytes, at + from);
        }
    }

    private static void write(FileChannel channel, ByteBuffer bytes, long at) throws IOException {
        long position = at;
        while (bytes.hasRemaining()) {
            position += channel.write(bytes, position);
        }
    }

    /** The header with the length before it, filled up with spaces so that the data starts on a multiple of 8. */
    private byte[] header(List<Map.Entry<String, Pending>> ordered) {
        StringWriter text = new StringWriter();
        try (JsonGenerator json = JSON.createGenerator(ObjectWriteContext.empty(), text)) {
            json.writeStartObject();
            if (!metadata.isEmpty()) {
                json.writeName("__metadata__").writeStartObject();
                metadata.forEach(json::writeStringProperty);
                json.writeEndObject();
            }
            long offset = 0;
            for (Map.Entry<String, Pending> entry : ordered) {
                Pending tensor = entry.getValue();
                long end = offset + tensor.bytes();
                json.writeName(entry.getKey()).writeStartObject();
                json.writeStringProperty("dtype", tensor.dtype.name());
                json.writeName("shape").writeArray(tensor.shape, 0, tensor.shape.length);
                json.writeName("data_offsets").writeArray(new long[] {offset, end}, 0, 2);
                json.writeEndObject();
                offset = end;
            }
            json.writeEndObject();
        }
        byte[] utf8 = text.toString().getBytes(StandardCharsets.UTF_8);
        int padded = (utf8.length + 7) / 8 * 8;
        ByteBuffer header = ByteBuffer.allocate(8 + padded).order(ByteOrder.LITTLE_ENDIAN);
        header.putLong(padded).put(utf8);
        while (header.hasRemaining()) {
            header.put((byte) ' ');
        }
        return header.array();
    }
}
