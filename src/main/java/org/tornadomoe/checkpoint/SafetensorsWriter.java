package org.tornadomoe.checkpoint;

import java.io.IOException;
import java.io.StringWriter;
import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.channels.FileChannel;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.nio.file.StandardCopyOption;
import java.nio.file.StandardOpenOption;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.UUID;
import tools.jackson.core.JsonGenerator;
import tools.jackson.core.ObjectWriteContext;
import tools.jackson.core.json.JsonFactory;

/**
 * Collects tensors and writes them as one safetensors file, wider element types first so that all lie aligned. The file
 * appears whole or not at all: it is written beside its place and moved there. Not thread-safe.
 */
public final class SafetensorsWriter {
    private static final JsonFactory JSON = new JsonFactory();
    private static final int MAX_WRITE = 1 << 30;

    private record Pending(DType dtype, long[] shape, MemorySegment data) {}

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
        if (name.equals("__metadata__") || tensors.containsKey(name)) {
            throw new IllegalArgumentException("tensor '" + name + "': the name is taken");
        }
        tensors.put(name, new Pending(dtype, shape.clone(), data));
        return this;
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
     * Writes the file, replacing one that is there.
     *
     * @throws CheckpointException if it cannot be written; what was there before is untouched
     */
    public void write(Path file) {
        List<Map.Entry<String, Pending>> ordered = new ArrayList<>(tensors.entrySet());
        ordered.sort((a, b) -> b.getValue().dtype.bytes() - a.getValue().dtype.bytes());
        Path temporary = file.resolveSibling("." + file.getFileName() + "." + UUID.randomUUID() + ".tmp");
        try {
            try (FileChannel channel =
                    FileChannel.open(temporary, StandardOpenOption.WRITE, StandardOpenOption.CREATE_NEW)) {
                write(channel, ByteBuffer.wrap(header(ordered)));
                for (Map.Entry<String, Pending> tensor : ordered) {
                    MemorySegment data = tensor.getValue().data;
                    for (long from = 0; from < data.byteSize(); from += MAX_WRITE) {
                        long length = Math.min(MAX_WRITE, data.byteSize() - from);
                        MemorySegment part = data.asSlice(from, length);
                        // Only byte arrays on the heap have a view as a buffer.
                        write(
                                channel,
                                part.isNative()
                                        ? part.asByteBuffer()
                                        : ByteBuffer.wrap(part.toArray(ValueLayout.JAVA_BYTE)));
                    }
                }
                channel.force(true);
            }
            Files.move(temporary, file, StandardCopyOption.ATOMIC_MOVE, StandardCopyOption.REPLACE_EXISTING);
        } catch (IOException e) {
            throw CheckpointException.of(file, "cannot be written", e);
        } finally {
            discard(temporary);
        }
    }

    private static void write(FileChannel channel, ByteBuffer bytes) throws IOException {
        while (bytes.hasRemaining()) {
            channel.write(bytes);
        }
    }

    private static void discard(Path temporary) {
        try {
            Files.deleteIfExists(temporary);
        } catch (IOException e) {
            // It could not be created, or its directory went away: the failure that matters is on its way already.
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
                long end = offset + tensor.data.byteSize();
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
