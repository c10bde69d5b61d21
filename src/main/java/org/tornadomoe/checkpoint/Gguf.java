package org.tornadomoe.checkpoint;

import java.io.IOException;
import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.nio.ByteOrder;
import java.nio.channels.FileChannel;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.nio.file.StandardOpenOption;
import java.util.ArrayList;
import java.util.Collections;
import java.util.Comparator;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Locale;
import java.util.Map;
import java.util.Set;
import java.util.regex.Matcher;
import java.util.regex.Pattern;
import org.jspecify.annotations.Nullable;

/**
 * The metadata and tensors of a GGUF file, version 2 or 3, little-endian, or of all files of a split one. Files are mapped
 * read-only; nothing but the header is read on opening. Thread-safe; {@link #close} unmaps. Don't shorten a file while it is
 * open: reading a page that is gone is an {@link InternalError} of the JVM.
 *
 * <p>Format: <a href="https://github.com/ggml-org/ggml/blob/master/docs/gguf.md">ggml/docs/gguf.md</a>.
 */
final class Gguf implements AutoCloseable {
    private static final int MAGIC = 0x46554747; // "GGUF"
    private static final int MAX_DIMENSIONS = 4;
    private static final int MAX_NESTING = 4;

    /** Longer arrays are vocabularies, which nothing here reads. */
    private static final int MAX_KEPT_ARRAY = 4096;

    private static final ValueLayout.OfShort SHORT =
            ValueLayout.JAVA_SHORT_UNALIGNED.withOrder(ByteOrder.LITTLE_ENDIAN);
    private static final ValueLayout.OfInt INT = ValueLayout.JAVA_INT_UNALIGNED.withOrder(ByteOrder.LITTLE_ENDIAN);
    private static final ValueLayout.OfLong LONG = ValueLayout.JAVA_LONG_UNALIGNED.withOrder(ByteOrder.LITTLE_ENDIAN);

    /**
     * A tensor, row-major.
     *
     * @param shape sizes, outermost first: the reverse of the file's order
     */
    record Entry(Path file, String name, GgmlType type, long[] shape, MemorySegment data) {}

    private final Path path;
    private final Arena arena;
    private final Map<String, Object> metadata = new LinkedHashMap<>();
    private final Map<String, Entry> tensors = new LinkedHashMap<>();

    private Gguf(Path path, Arena arena) {
        this.path = path;
        this.arena = arena;
    }

    /** Whether a file begins as a GGUF file does, or at least is named like one. */
    static boolean looksLike(Path file) {
        if (!Files.isRegularFile(file)) {
            return false;
        }
        if (file.getFileName().toString().toLowerCase(Locale.ROOT).endsWith(".gguf")) {
            return true;
        }
        try (FileChannel channel = FileChannel.open(file, StandardOpenOption.READ)) {
            var magic = java.nio.ByteBuffer.allocate(4).order(ByteOrder.LITTLE_ENDIAN);
            return channel.read(magic) == 4 && magic.getInt(0) == MAGIC;
        } catch (IOException e) {
            return false;
        }
    }

    /**
     * Opens a file, and with the first of a split one the others. Nothing stays open if this throws.
     *
     * @throws CheckpointException if it is missing or damaged; the message names the file and the spot
     */
    static Gguf open(Path file) {
        Arena arena = Arena.ofShared();
        try {
            Gguf opened = new Gguf(file, arena);
            opened.add(file);
            long parts = opened.metadata.get("split.count") instanceof Number count ? count.longValue() : 1;
            if (parts > 1) {
                opened.addParts(file, parts);
            }
            return opened;
        } catch (Throwable e) {
            arena.close();
            throw e;
        }
    }

    private void addParts(Path first, long parts) {
        Matcher name = Pattern.compile("(.*)-(\\d{5})-of-(\\d{5})\\.gguf")
                .matcher(first.getFileName().toString());
        if (!name.matches() || !name.group(2).equals("00001") || Long.parseLong(name.group(3)) != parts) {
            throw new CheckpointException(
                    first,
                    String.format(
                            Locale.ROOT,
                            "is one of %d files: expected the first, named ...-00001-of-%05d.gguf",
                            parts,
                            parts));
        }
        for (int part = 2; part <= parts; part++) {
            Path file = first.resolveSibling(
                    String.format(Locale.ROOT, "%s-%05d-of-%s.gguf", name.group(1), part, name.group(3)));
            if (!Files.exists(file)) {
                throw new CheckpointException(
                        file, "no such file, though " + first.getFileName() + " says there are " + parts + " parts");
            }
            add(file);
        }
    }

    private void add(Path file) {
        try (FileChannel channel = FileChannel.open(file, StandardOpenOption.READ)) {
            MemorySegment bytes = Mapping.readOnly(channel, channel.size(), arena);
            new Reader(file, bytes).read();
        } catch (IOException e) {
            throw CheckpointException.of(file, "cannot be read", e);
        }
    }

    /** Reads one file's header, from front to back. */
    private final class Reader {
        private final Path file;
        private final MemorySegment bytes;
        private long at;

        Reader(Path file, MemorySegment bytes) {
            this.file = file;
            this.bytes = bytes;
        }

        void read() {
            if (bytes.byteSize() < 24) {
                throw new CheckpointException(
                        file, "is " + bytes.byteSize() + " bytes long: too short for a GGUF file (truncated?)");
            }
            int magic = int32("magic");
            if (magic != MAGIC) {
                throw new CheckpointException(file, "does not begin with 'GGUF': not a GGUF file");
            }
            int version = int32("version");
            if (version != 2 && version != 3) {
                throw new CheckpointException(
                        file,
                        "version: expected 2 or 3, got "
                                + (Integer.reverseBytes(version) == 3
                                        ? "a big-endian file"
                                        : Integer.toUnsignedString(version)));
            }
            long tensorCount = count("tensor count", 24);
            long entries = count("metadata count", 13);
            boolean first = metadata.isEmpty();
            Map<String, Object> own = new LinkedHashMap<>();
            for (long i = 0; i < entries; i++) {
                String key = string("metadata key " + i);
                Object value = value(int32("type of '" + key + "'"), "'" + key + "'", 0);
                if (own.putIfAbsent(key, value) != null) {
                    throw problem("metadata has the key '" + key + "' twice");
                }
            }
            if (first) {
                metadata.putAll(own);
            }
            long alignment = own.get("general.alignment") instanceof Number n ? n.longValue() : 32;
            if (alignment < 1 || alignment > 1 << 20) {
                throw new CheckpointException(
                        file, "general.alignment: expected 1 to " + (1 << 20) + ", got " + alignment);
            }
            List<Header> headers = new ArrayList<>();
            for (long i = 0; i < tensorCount; i++) {
                headers.add(header(i));
            }
            long dataStart = (at + alignment - 1) / alignment * alignment;
            requireApart(headers, bytes.byteSize() - dataStart);
            for (Header header : headers) {
                MemorySegment data = bytes.asSlice(dataStart + header.offset, header.bytes);
                if (tensors.putIfAbsent(header.name, new Entry(file, header.name, header.type, header.shape, data))
                        != null) {
                    throw new CheckpointException(file, "has the tensor '" + header.name + "' a second time");
                }
            }
        }

        private record Header(String name, GgmlType type, long[] shape, long offset, long bytes) {}

        private Header header(long i) {
            String name = string("name of tensor " + i);
            String tensor = "tensor '" + name + "'";
            int dimensions = int32(tensor + ": dimensions");
            if (dimensions < 1 || dimensions > MAX_DIMENSIONS) {
                throw problem(tensor + ": expected 1 to " + MAX_DIMENSIONS + " dimensions, got "
                        + Integer.toUnsignedString(dimensions));
            }
            long[] shape = new long[dimensions];
            long elements = 1;
            for (int d = 0; d < dimensions; d++) {
                long size = int64(tensor + ": shape");
                if (size < 1 || Math.multiplyHigh(elements, size) != 0 || elements * size < 0) {
                    throw problem(tensor + ": expected a positive size (and fewer than 2^63 elements), got "
                            + Long.toUnsignedString(size) + " as dimension " + d);
                }
                elements *= size;
                shape[dimensions - 1 - d] = size;
            }
            int number = int32(tensor + ": type");
            GgmlType type = GgmlType.of(number);
            if (type == null) {
                throw problem(tensor + ": unknown type " + Integer.toUnsignedString(number));
            }
            if (shape[dimensions - 1] % type.elements != 0) {
                throw problem(tensor + ": expected rows of a multiple of " + type.elements + " elements (" + type
                        + "), got " + shape[dimensions - 1]);
            }
            long offset = int64(tensor + ": offset");
            long blocks = elements / type.elements;
            if (blocks > Long.MAX_VALUE / type.bytes || offset < 0) {
                throw problem(tensor + ": its size or offset is out of range");
            }
            return new Header(name, type, shape, offset, blocks * type.bytes);
        }

        private void requireApart(List<Header> headers, long dataLength) {
            List<Header> byPlace = new ArrayList<>(headers);
            byPlace.sort(Comparator.comparingLong(Header::offset));
            long end = 0;
            String before = "";
            for (Header header : byPlace) {
                if (header.offset < end) {
                    throw new CheckpointException(file, "tensor '" + header.name + "' overlaps " + before);
                }
                if (header.offset > dataLength || header.bytes > dataLength - header.offset) {
                    throw new CheckpointException(
                            file,
                            "tensor '" + header.name + "' needs " + header.bytes + " bytes from byte " + header.offset
                                    + " of the data, but the file holds only " + Math.max(0, dataLength)
                                    + " bytes of it: truncated?");
                }
                end = header.offset + header.bytes;
                before = "tensor '" + header.name + "'";
            }
        }

        /** A metadata value: a number, a boolean, a string, a list of these; for a long list, its length as a string. */
        private Object value(int type, String what, int depth) {
            return switch (type) {
                case 0 -> (long) (take(1, what).get(ValueLayout.JAVA_BYTE, 0) & 0xff);
                case 1 -> (long) take(1, what).get(ValueLayout.JAVA_BYTE, 0);
                case 2 -> (long) (take(2, what).get(SHORT, 0) & 0xffff);
                case 3 -> (long) take(2, what).get(SHORT, 0);
                case 4 -> Integer.toUnsignedLong(int32(what));
                case 5 -> (long) int32(what);
                case 6 -> (double) Float.intBitsToFloat(int32(what));
                case 7 -> take(1, what).get(ValueLayout.JAVA_BYTE, 0) != 0;
                case 8 -> string(what);
                case 9 -> array(what, depth + 1);
                case 10, 11 -> int64(what);
                case 12 -> Double.longBitsToDouble(int64(what));
                default -> throw problem(what + ": unknown type " + Integer.toUnsignedString(type));
            };
        }

        private Object array(String what, int depth) {
            if (depth > MAX_NESTING) {
                throw problem(what + ": lists within lists, more than " + MAX_NESTING + " deep");
            }
            int type = int32(what + ": type of its elements");
            long length = count(what + ": length", type == 8 ? 8 : type == 9 ? 12 : 1);
            List<Object> kept = new ArrayList<>();
            for (long i = 0; i < length; i++) {
                Object element = value(type, what, depth);
                if (length <= MAX_KEPT_ARRAY) {
                    kept.add(element);
                }
            }
            return length <= MAX_KEPT_ARRAY ? List.copyOf(kept) : "a list of " + length;
        }

        /** A count of things that take at least so many bytes each. */
        private long count(String what, int least) {
            long count = int64(what);
            long most = (bytes.byteSize() - at) / least;
            if (count < 0 || count > most) {
                throw problem(what + ": expected at most " + most + " in what is left of the file, got "
                        + Long.toUnsignedString(count) + " (truncated?)");
            }
            return count;
        }

        private String string(String what) {
            long length = count(what + ": length", 1);
            if (length > 1 << 26) {
                throw problem(what + ": expected a string of at most 2^26 bytes, got " + length);
            }
            return new String(take(length, what).toArray(ValueLayout.JAVA_BYTE), StandardCharsets.UTF_8);
        }

        private int int32(String what) {
            return take(4, what).get(INT, 0);
        }

        private long int64(String what) {
            return take(8, what).get(LONG, 0);
        }

        private MemorySegment take(long length, String what) {
            if (length > bytes.byteSize() - at) {
                throw problem(what + ": expected " + length + " bytes, but the file ends after "
                        + (bytes.byteSize() - at) + " (truncated?)");
            }
            MemorySegment taken = bytes.asSlice(at, length);
            at += length;
            return taken;
        }

        private CheckpointException problem(String problem) {
            return new CheckpointException(file, "near byte " + at + ": " + problem);
        }
    }

    Path path() {
        return path;
    }

    /** Key-value pairs of the (first) file: integers as Long, floats as Double, Boolean, String, List of these. */
    Map<String, Object> metadata() {
        return Collections.unmodifiableMap(metadata);
    }

    Set<String> names() {
        return Collections.unmodifiableSet(tensors.keySet());
    }

    /**
     * The tensor of that name, null if there is none.
     *
     * @throws IllegalStateException after {@link #close}
     */
    @Nullable
    Entry find(String name) {
        if (!arena.scope().isAlive()) {
            throw new IllegalStateException(path + " is closed");
        }
        return tensors.get(name);
    }

    /** Unmaps the files. A second call does nothing. */
    @Override
    public void close() {
        if (arena.scope().isAlive()) {
            arena.close();
        }
    }
}
