package org.tornadomoe.checkpoint.file;

import java.io.ByteArrayInputStream;
import java.io.InputStreamReader;
import java.nio.charset.StandardCharsets;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.Collections;
import java.util.Comparator;
import java.util.HashSet;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Set;
import org.jspecify.annotations.Nullable;
import tools.jackson.core.JacksonException;
import tools.jackson.core.JsonParser;
import tools.jackson.core.JsonToken;
import tools.jackson.core.ObjectReadContext;
import tools.jackson.core.TokenStreamFactory;
import tools.jackson.core.json.JsonFactory;

/**
 * The JSON header of a safetensors file, checked: every tensor has a shape that fills its byte range, as far as its
 * dtype is known, and the ranges cover the data without overlap or hole.
 */
record SafetensorsHeader(Map<String, String> metadata, List<Entry> entries) {
    private static final String METADATA = "__metadata__";
    private static final int MAX_DIMENSIONS = 64;

    /** Tensors and metadata of one file: far more than any model has, in less memory than its names take. */
    private static final int MAX_TENSORS = 1 << 18;

    private static final int MAX_METADATA = 1 << 16;
    private static final int MAX_NAME = 1024;
    private static final JsonFactory JSON = JsonFactory.builder()
            // The names of a header are all different, so a table of names seen before is only memory.
            .disable(TokenStreamFactory.Feature.CANONICALIZE_PROPERTY_NAMES)
            .build();

    /**
     * A tensor's place: bytes [begin, end) after the header.
     *
     * @param dtype null if it is none that is known, so that {@code type} is all there is of it
     */
    record Entry(String name, String type, @Nullable DType dtype, long[] shape, long begin, long end) {}

    /**
     * Reads and checks a header.
     *
     * @param bytes the header without the length before it
     * @param dataLength bytes of the file after the header
     * @throws CheckpointException if anything about it is wrong
     */
    static SafetensorsHeader parse(Path file, byte[] bytes, long dataLength) {
        if (bytes.length == 0 || bytes[0] != '{') {
            throw new CheckpointException(file, "the header does not begin with '{': not a safetensors file");
        }
        var text = new InputStreamReader(new ByteArrayInputStream(bytes), StandardCharsets.UTF_8.newDecoder());
        SafetensorsHeader header;
        try (JsonParser parser = JSON.createParser(ObjectReadContext.empty(), text)) {
            header = new Reader(file, parser).header();
        } catch (JacksonException e) {
            throw new CheckpointException(file, "the header is not valid JSON: " + JsonFile.problem(e), e);
        }
        requireCovered(file, header.entries, dataLength);
        return header;
    }

    private static void requireCovered(Path file, List<Entry> entries, long dataLength) {
        List<Entry> byPlace = new ArrayList<>(entries);
        byPlace.sort(Comparator.comparingLong(Entry::begin).thenComparingLong(Entry::end));
        long end = 0;
        String before = "the header";
        for (Entry entry : byPlace) {
            String tensor = "tensor '" + entry.name + "'";
            if (entry.end > dataLength) {
                throw new CheckpointException(
                        file,
                        tensor + " ends at byte " + entry.end + " of the data, but the file holds only " + dataLength
                                + " bytes of it: truncated?");
            }
            if (entry.begin < end) {
                throw new CheckpointException(file, tensor + " overlaps " + before);
            }
            if (entry.begin > end) {
                throw new CheckpointException(
                        file, tensor + " leaves a hole of " + (entry.begin - end) + " bytes after " + before);
            }
            end = entry.end;
            before = tensor;
        }
        if (end < dataLength) {
            throw new CheckpointException(
                    file,
                    (dataLength - end) + " bytes at the end of the file belong to no tensor (after " + before + ")");
        }
    }

    /** Reads the header's one object token by token, so that no header costs more memory than its tensors do. */
    private record Reader(Path file, JsonParser parser) {
        SafetensorsHeader header() {
            Map<String, String> metadata = new LinkedHashMap<>();
            List<Entry> entries = new ArrayList<>();
            Set<String> names = new HashSet<>();
            expect(JsonToken.START_OBJECT, "the header");
            for (String name = parser.nextName(); name != null; name = parser.nextName()) {
                if (name.length() > MAX_NAME) {
                    throw new CheckpointException(
                            file,
                            "tensor '" + JsonFile.shown(name) + "': expected a name of at most " + MAX_NAME
                                    + " characters");
                }
                if (names.size() == MAX_TENSORS) {
                    throw new CheckpointException(file, "expected at most " + MAX_TENSORS + " tensors, got more");
                }
                if (!names.add(name)) {
                    throw new CheckpointException(file, "the header names '" + name + "' twice");
                }
                if (name.equals(METADATA)) {
                    metadata(metadata);
                } else {
                    entries.add(entry(name));
                }
            }
            if (parser.nextToken() != null) {
                throw new CheckpointException(file, "the header goes on after its JSON object");
            }
            return new SafetensorsHeader(Collections.unmodifiableMap(metadata), List.copyOf(entries));
        }

        private void metadata(Map<String, String> into) {
            expect(JsonToken.START_OBJECT, METADATA);
            for (String key = parser.nextName(); key != null; key = parser.nextName()) {
                expect(JsonToken.VALUE_STRING, METADATA + " '" + JsonFile.shown(key) + "'");
                if (into.put(key, parser.getString()) != null) {
                    throw new CheckpointException(file, METADATA + " has the key '" + JsonFile.shown(key) + "' twice");
                }
                if (into.size() > MAX_METADATA) {
                    throw new CheckpointException(file, METADATA + ": expected at most " + MAX_METADATA + " keys");
                }
            }
        }

        private Entry entry(String name) {
            String tensor = "tensor '" + name + "'";
            String type = null;
            long[] shape = null;
            long[] offsets = null;
            expect(JsonToken.START_OBJECT, tensor);
            for (String key = parser.nextName(); key != null; key = parser.nextName()) {
                boolean twice;
                switch (key) {
                    case "dtype" -> {
                        twice = type != null;
                        expect(JsonToken.VALUE_STRING, tensor + ": dtype");
                        type = parser.getString();
                    }
                    case "shape" -> {
                        twice = shape != null;
                        shape = numbers(tensor + ": shape", MAX_DIMENSIONS);
                    }
                    case "data_offsets" -> {
                        twice = offsets != null;
                        offsets = numbers(tensor + ": data_offsets", 2);
                        if (offsets.length != 2 || offsets[0] > offsets[1]) {
                            throw new CheckpointException(
                                    file,
                                    tensor + ": data_offsets: expected [begin, end] with begin <= end, got "
                                            + Arrays.toString(offsets));
                        }
                    }
                    default ->
                        throw new CheckpointException(
                                file,
                                tensor + ": expected dtype, shape and data_offsets, got '" + JsonFile.shown(key) + "'");
                }
                if (twice) {
                    throw new CheckpointException(file, tensor + ": has '" + key + "' twice");
                }
            }
            if (type == null || shape == null || offsets == null) {
                String missing = type == null ? "dtype" : shape == null ? "shape" : "data_offsets";
                throw new CheckpointException(file, tensor + ": has no " + missing);
            }
            long span = offsets[1] - offsets[0];
            DType dtype = DType.named(type);
            long bytes = dtype == null ? span : dtype.bytes(shape);
            if (bytes != span) {
                throw new CheckpointException(
                        file,
                        tensor + ": " + dtype + Arrays.toString(shape) + " takes "
                                + (bytes < 0 ? "more than 2^63, or parts of," : bytes)
                                + " bytes, but its data_offsets span " + span);
            }
            return new Entry(name, dtype == null ? type : dtype.name(), dtype, shape, offsets[0], offsets[1]);
        }

        /** Non-negative integers in brackets. */
        private long[] numbers(String what, int most) {
            expect(JsonToken.START_ARRAY, what);
            long[] numbers = new long[most];
            int count = 0;
            while (parser.nextToken() != JsonToken.END_ARRAY) {
                if (count == most) {
                    throw new CheckpointException(file, what + ": expected at most " + most + " numbers, got more");
                }
                expectCurrent(JsonToken.VALUE_NUMBER_INT, what);
                if (parser.getNumberType() == JsonParser.NumberType.BIG_INTEGER || parser.getLongValue() < 0) {
                    throw new CheckpointException(
                            file, what + ": expected numbers from 0 to 2^63 - 1, got " + parser.getString());
                }
                numbers[count++] = parser.getLongValue();
            }
            return Arrays.copyOf(numbers, count);
        }

        private void expect(JsonToken expected, String what) {
            parser.nextToken();
            expectCurrent(expected, what);
        }

        private void expectCurrent(JsonToken expected, String what) {
            JsonToken token = parser.currentToken();
            if (token != expected) {
                throw new CheckpointException(file, what + ": expected " + words(expected) + ", got " + words(token));
            }
        }

        private static String words(@Nullable JsonToken token) {
            return switch (token) {
                case null -> "the end";
                case START_OBJECT -> "an object";
                case END_OBJECT -> "the end of an object";
                case START_ARRAY -> "an array";
                case END_ARRAY -> "the end of an array";
                case VALUE_STRING -> "a string";
                case VALUE_NUMBER_INT -> "an integer";
                case VALUE_NUMBER_FLOAT -> "a number with a fraction";
                case VALUE_TRUE, VALUE_FALSE -> "a boolean";
                case VALUE_NULL -> "null";
                default -> token.name();
            };
        }
    }
}
