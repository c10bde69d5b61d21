package org.tornadomoe.checkpoint.file;

import java.io.ByteArrayOutputStream;
import java.io.IOException;
import java.io.UncheckedIOException;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;

/** Writes GGUF files for tests, by the format's description. */
@SuppressWarnings("ByteBufferBackingArray") // every buffer is one of buffer()'s
public final class GgufWriter {
    /**
     * A tensor.
     *
     * @param shape outermost first
     */
    public record TestTensor(String name, int type, byte[] data, long[] shape) {}

    /** Keys and their values as bytes, the type before them. */
    final Map<String, byte[]> metadata = new LinkedHashMap<>();

    public final List<TestTensor> tensors = new ArrayList<>();

    private static ByteBuffer buffer(int bytes) {
        return ByteBuffer.allocate(bytes).order(ByteOrder.LITTLE_ENDIAN);
    }

    private static byte[] string(String text) {
        byte[] utf8 = text.getBytes(StandardCharsets.UTF_8);
        return buffer(8 + utf8.length).putLong(utf8.length).put(utf8).array();
    }

    public GgufWriter number(String key, int value) {
        metadata.put(key, buffer(8).putInt(4).putInt(value).array());
        return this;
    }

    public GgufWriter real(String key, float value) {
        metadata.put(key, buffer(8).putInt(6).putFloat(value).array());
        return this;
    }

    public GgufWriter bool(String key, boolean value) {
        metadata.put(key, buffer(5).putInt(7).put((byte) (value ? 1 : 0)).array());
        return this;
    }

    public GgufWriter text(String key, String value) {
        byte[] string = string(value);
        metadata.put(key, buffer(4 + string.length).putInt(8).put(string).array());
        return this;
    }

    public GgufWriter texts(String key, List<String> values) {
        ByteArrayOutputStream out = new ByteArrayOutputStream();
        out.writeBytes(buffer(16).putInt(9).putInt(8).putLong(values.size()).array());
        values.forEach(value -> out.writeBytes(string(value)));
        metadata.put(key, out.toByteArray());
        return this;
    }

    public GgufWriter reals(String key, float... values) {
        ByteBuffer out = buffer(16 + 4 * values.length).putInt(9).putInt(6).putLong(values.length);
        for (float value : values) {
            out.putFloat(value);
        }
        metadata.put(key, out.array());
        return this;
    }

    public GgufWriter tensor(String name, GgmlType type, float[] values, long... shape) {
        ByteBuffer data = buffer(values.length / type.elements * type.bytes);
        for (int i = 0; i < values.length; i += type.elements) {
            switch (type) {
                case F32 -> data.putFloat(values[i]);
                case F16 -> data.putShort(Float.floatToFloat16(values[i]));
                case BF16 -> data.putShort((short) (Float.floatToIntBits(values[i]) >>> 16));
                case Q8_0 -> {
                    data.putShort(Float.floatToFloat16(scale(values, i)));
                    for (int j = 0; j < 32; j++) {
                        data.put(q8(values, i, j));
                    }
                }
                default -> throw new IllegalArgumentException("type: " + type);
            }
        }
        return raw(name, type, data.array(), shape);
    }

    public GgufWriter raw(String name, GgmlType type, byte[] data, long... shape) {
        tensors.add(new TestTensor(name, type.number, data, shape));
        return this;
    }

    /** Says that a tensor is of another type, maybe of none. */
    public GgufWriter withTypeNumber(String name, int type) {
        tensors.replaceAll(t -> t.name.equals(name) ? new TestTensor(name, type, t.data, t.shape) : t);
        return this;
    }

    private static float scale(float[] values, int block) {
        float most = 0;
        for (int j = 0; j < 32; j++) {
            most = Math.max(most, Math.abs(values[block + j]));
        }
        return most / 127;
    }

    /** Element j of the block that begins there. */
    static byte q8(float[] values, int block, int j) {
        return (byte) Math.round(values[block + j] / scale(values, block));
    }

    byte[] bytes() {
        ByteArrayOutputStream out = new ByteArrayOutputStream();
        out.writeBytes("GGUF".getBytes(StandardCharsets.US_ASCII));
        out.writeBytes(buffer(20)
                .putInt(3)
                .putLong(tensors.size())
                .putLong(metadata.size())
                .array());
        metadata.forEach((key, value) -> {
            out.writeBytes(string(key));
            out.writeBytes(value);
        });
        long offset = 0;
        for (TestTensor tensor : tensors) {
            out.writeBytes(string(tensor.name));
            ByteBuffer head = buffer(4 + 8 * tensor.shape.length + 12).putInt(tensor.shape.length);
            for (int d = tensor.shape.length - 1; d >= 0; d--) {
                head.putLong(tensor.shape[d]);
            }
            out.writeBytes(head.putInt(tensor.type).putLong(offset).array());
            offset = (offset + tensor.data.length + 31) / 32 * 32;
        }
        for (TestTensor tensor : tensors) {
            out.writeBytes(new byte[-out.size() & 31]);
            out.writeBytes(tensor.data);
        }
        return out.toByteArray();
    }

    public void write(Path file) {
        try {
            Files.write(file, bytes());
        } catch (IOException e) {
            throw new UncheckedIOException(e);
        }
    }
}
