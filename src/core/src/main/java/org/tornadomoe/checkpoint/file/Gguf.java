package org.tornadomoe.checkpoint.file;

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
 * The metadata and tensors of a GGUF file, version 2 or 3, little-endian, or of all files of a split one. Files are
 * mapped read-only; nothing but the header is read on opening. Thread-safe; {@link #close} unmaps. A file that is
 * changed while it is open gives other values, zeros, or an {@link InternalError} of the JVM: after reading, {@link
 * #requireUnchanged} tells.
 *
 * <p>Format: <a href="https://github.com/ggml-org/ggml/blob/master/docs/gguf.md">ggml/docs/gguf.md</a>.
 */
public final class Gguf implements AutoCloseable {
    private static final int MAGIC = 0x46554747; // "GGUF"
    private static final int MAX_DIMENSIONS = 4;
    private static final int MAX_NESTING = 4;

    /** A hundred keys are usual; a list, and a string that is longer than these, say a vocabulary, is not kept. */
    private static final int MAX_KEYS = 1 << 16;

    private static final int MAX_KEY = (1 << 16) - 1; // the format's own limit
    private static final int MAX_KEPT_STRING = 4096;

    /** The largest models, with a tensor for each expert, have 50,000; ggml's names have 63 bytes at most. */
    private static final int MAX_TENSORS = 1 << 18;

    private static final int MAX_NAME = 1024;

    /** Bytes of a metadata value of that type; 0 for strings and lists. */
    private static final int[] VALUE_BYTES = {1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8};

    private static final int STRING = 8;
    private static final int LIST = 9;

    private static final ValueLayout.OfShort SHORT =
            ValueLayout.JAVA_SHORT_UNALIGNED.withOrder(ByteOrder.LITTLE_ENDIAN);
    private static final ValueLayout.OfInt INT = ValueLayout.JAVA_INT_UNALIGNED.withOrder(ByteOrder.LITTLE_ENDIAN);
    private static final ValueLayout.OfLong LONG = ValueLayout.JAVA_LONG_UNALIGNED.withOrder(ByteOrder.LITTLE_ENDIAN);

    /**
     * A tensor, row-major.
     *
     * @param type null if its number is none that is known: nobody can tell how long it is, and data is empty
     * @param typeNumber ggml's number of the type
     * @param shape sizes, outermost first: the reverse of the file's order
     */
    public record Entry(
            Path file, String name, @Nullable GgmlType type, int typeNumber, long[] shape, MemorySegment data) {
        public String typeName() {
            return type == null ? "type number " + Integer.toUnsignedString(typeNumber) : type.name();
        }

        public CheckpointException problem(String problem) {
            return new CheckpointException(file, "tensor '" + name + "': " + problem);
        }
    }

    /** A metadata value that is not kept, and how many elements or bytes it has. */
    public record Skipped(String what, long length) {
        @Override
        public String toString() {
            return what + " of " + length;
        }
    }

    private final Path path;
    private final Arena arena;
    private final List<MappedFile> files = new ArrayList<>();
    private final Map<String, Object> metadata = new LinkedHashMap<>();
    private final Map<String, Entry> tensors = new LinkedHashMap<>();

    /** The metadata's values as they lie in the (first) file, the type's number before each. */
    private final Map<String, MemorySegment> encoded = new LinkedHashMap<>();

    private Gguf(Path path, Arena arena) {
        this.path = path;
        this.arena = arena;
    }

    /** Whether a file begins as a GGUF file does, or at least is named like one. */
    public static boolean looksLike(Path file) {
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
    public static Gguf open(Path file) {
        Arena arena = Arena.ofShared();
        try {
            Gguf opened = new Gguf(file, arena);
            opened.add(file, 1);
            long parts = opened.metadata.get("split.count") instanceof Long count ? count : 1;
            if (parts > 1) {
                opened.addParts(file, parts);
            }
            if (opened.metadata.get("split.tensors.count") instanceof Long count && count != opened.tensors.size()) {
                throw new CheckpointException(
                        file,
                        "split.tensors.count: expected the " + opened.tensors.size()
                                + " tensors that the files hold, got " + count);
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
            add(file, part);
        }
    }

    private void add(Path file, int part) {
        MappedFile mapped = MappedFile.map(file, arena);
        files.add(mapped);
        try {
            new Reader(file, mapped.bytes()).read(part);
        } catch (InternalError e) {
            throw mapped.lost(e);
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

        void read(int part) {
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
            long tensorCount = count("tensor count", 24, MAX_TENSORS);
            long entries = count("metadata count", 13, MAX_KEYS);
            boolean first = metadata.isEmpty();
            Map<String, Object> own = new LinkedHashMap<>();
            for (long i = 0; i < entries; i++) {
                String key = string("metadata key " + i, MAX_KEY);
                long start = at;
                Object value = value(int32("type of '" + key + "'"), "'" + key + "'");
                if (first) {
                    encoded.put(key, bytes.asSlice(start, at - start));
                }
                if (own.putIfAbsent(key, value) != null) {
                    throw problem("metadata has the key '" + key + "' twice");
                }
            }
            if (own.get("split.no") instanceof Long number && number != part - 1) {
                throw new CheckpointException(
                        file, "split.no: expected " + (part - 1) + ", since it is file " + part + ", got " + number);
            }
            if (first) {
                metadata.putAll(own);
            }
            long alignment = own.get("general.alignment") instanceof Long n ? n : 32;
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
                if (tensors.putIfAbsent(
                                header.name,
                                new Entry(file, header.name, header.type, header.typeNumber, header.shape, data))
                        != null) {
                    throw new CheckpointException(file, "has the tensor '" + header.name + "' a second time");
                }
            }
        }

        /** @param bytes 0 if the type is not known */
        private record Header(
                String name, @Nullable GgmlType type, int typeNumber, long[] shape, long offset, long bytes) {}

        private Header header(long i) {
            String name = string("name of tensor " + i, MAX_NAME);
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
            if (type != null && shape[dimensions - 1] % type.elements != 0) {
                throw problem(tensor + ": expected rows of a multiple of " + type.elements + " elements (" + type
                        + "), got " + shape[dimensions - 1]);
            }
            long offset = int64(tensor + ": offset");
            long blocks = type == null ? 0 : elements / type.elements;
            int blockBytes = type == null ? 0 : type.bytes;
            if (offset < 0 || (type != null && blocks > Long.MAX_VALUE / blockBytes)) {
                throw problem(tensor + ": its size or offset is out of range");
            }
            return new Header(name, type, number, shape, offset, blocks * blockBytes);
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

        /** A metadata value: a Long, a Double, a Boolean, a String, or what is skipped. */
        private Object value(int type, String what) {
            return switch (type) {
                case 0 -> (long) (int8(what) & 0xff);
                case 1 -> (long) int8(what);
                case 2 -> (long) (int16(what) & 0xffff);
                case 3 -> (long) int16(what);
                case 4 -> Integer.toUnsignedLong(int32(what));
                case 5 -> (long) int32(what);
                case 6 -> (double) Float.intBitsToFloat(int32(what));
                case 7 -> int8(what) != 0;
                case STRING -> {
                    long length = count(what + ": length", 1);
                    yield length <= MAX_KEPT_STRING ? text(length) : skipped("a string", length, length);
                }
                case LIST -> new Skipped("a list", list(what, 1));
                case 10, 11 -> int64(what);
                case 12 -> Double.longBitsToDouble(int64(what));
                default -> throw unknownType(type, what);
            };
        }

        /** A list of numbers, booleans or strings, or a string of any length; null if it is none of these. */
        @Nullable
        Object whole(String what) {
            int type = int32(what);
            if (type == STRING) {
                return text(count(what + ": length", 1));
            }
            if (type != LIST) {
                return null;
            }
            int each = int32(what + ": type of its elements");
            if (each == LIST) {
                return null;
            }
            long length = count(what + ": length", 1, Integer.MAX_VALUE);
            List<Object> list = new ArrayList<>();
            for (long i = 0; i < length; i++) {
                list.add(each == STRING ? text(count(what + ": length", 1)) : value(each, what));
            }
            return list;
        }

        private CheckpointException unknownType(int type, String what) {
            return problem(what + ": unknown type " + Integer.toUnsignedString(type));
        }

        private Skipped skipped(String kind, long length, long bytes) {
            at += bytes;
            return new Skipped(kind, length);
        }

        /** Goes past a list and returns how many elements it has. */
        private long list(String what, int depth) {
            if (depth > MAX_NESTING) {
                throw problem(what + ": lists within lists, more than " + MAX_NESTING + " deep");
            }
            int type = int32(what + ": type of its elements");
            if (type < 0 || type >= VALUE_BYTES.length) {
                throw unknownType(type, what);
            }
            int bytes = VALUE_BYTES[type];
            String lengthOf = what + ": length";
            long length = count(lengthOf, type == STRING ? 8 : type == LIST ? 12 : bytes);
            if (bytes > 0) {
                at += length * bytes;
                return length;
            }
            for (long i = 0; i < length; i++) {
                if (type == STRING) {
                    long string = count(lengthOf, 1); // which is behind at now
                    at += string;
                } else {
                    list(what, depth + 1);
                }
            }
            return length;
        }

        /** A count of things that take at least so many bytes each. */
        private long count(String what, int least) {
            return count(what, least, Long.MAX_VALUE);
        }

        private long count(String what, int least, long limit) {
            long count = int64(what);
            long most = (bytes.byteSize() - at) / least;
            if (count < 0 || count > most) {
                throw problem(what + ": expected at most " + most + " in what is left of the file, got "
                        + Long.toUnsignedString(count) + " (truncated?)");
            }
            if (count > limit) {
                throw problem(what + ": expected at most " + limit + ", got " + count);
            }
            return count;
        }

        private String string(String what, int limit) {
            return text(count(what + ": length", 1, limit));
        }

        private String text(long length) {
            byte[] utf8 = bytes.asSlice(at, length).toArray(ValueLayout.JAVA_BYTE);
            at += length;
            return new String(utf8, StandardCharsets.UTF_8);
        }

        private byte int8(String what) {
            return bytes.get(ValueLayout.JAVA_BYTE, take(1, what));
        }

        private short int16(String what) {
            return bytes.get(SHORT, take(2, what));
        }

        private int int32(String what) {
            return bytes.get(INT, take(4, what));
        }

        private long int64(String what) {
            return bytes.get(LONG, take(8, what));
        }

        /** Where the next bytes begin. */
        private long take(int length, String what) {
            if (length > bytes.byteSize() - at) {
                throw problem(what + ": expected " + length + " bytes, but the file ends after "
                        + (bytes.byteSize() - at) + " (truncated?)");
            }
            long start = at;
            at += length;
            return start;
        }

        private CheckpointException problem(String problem) {
            return new CheckpointException(file, "near byte " + at + ": " + problem);
        }
    }

    public Path path() {
        return path;
    }

    /** Key-value pairs of the (first) file: a Long, Double, Boolean or String each, or {@link Skipped}. */
    public Map<String, Object> metadata() {
        return Collections.unmodifiableMap(metadata);
    }

    /**
     * A metadata value that is not kept: the elements of a list, or a string of any length; null if there is no such
     * key, or it is neither, or a list of lists.
     */
    public @Nullable Object skipped(String key) {
        MemorySegment value = encoded.get(key);
        return value == null ? null : new Reader(path, value).whole("'" + key + "'");
    }

    /** The same pairs as they lie in the file: the number of the value's type, then the value. */
    public Map<String, MemorySegment> encoded() {
        return Collections.unmodifiableMap(encoded);
    }

    public Set<String> names() {
        return Collections.unmodifiableSet(tensors.keySet());
    }

    /**
     * The tensor of that name, null if there is none.
     *
     * @throws IllegalStateException after {@link #close}
     */
    public @Nullable Entry find(String name) {
        if (!arena.scope().isAlive()) {
            throw new IllegalStateException(path + " is closed");
        }
        return tensors.get(name);
    }

    /** As {@link Safetensors#requireUnchanged}. */
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
}
