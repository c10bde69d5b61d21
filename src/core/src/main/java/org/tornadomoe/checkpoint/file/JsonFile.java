package org.tornadomoe.checkpoint.file;

import java.io.BufferedInputStream;
import java.io.ByteArrayInputStream;
import java.io.IOException;
import java.io.InputStream;
import java.nio.channels.Channels;
import java.nio.channels.FileChannel;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Objects;
import org.jspecify.annotations.Nullable;
import tools.jackson.core.JacksonException;
import tools.jackson.core.JsonParser;
import tools.jackson.core.JsonToken;
import tools.jackson.core.ObjectReadContext;
import tools.jackson.core.TokenStreamFactory;
import tools.jackson.core.TokenStreamLocation;
import tools.jackson.core.exc.JacksonIOException;
import tools.jackson.core.json.JsonFactory;
import tools.jackson.core.json.JsonReadFeature;

/** A small JSON file that holds one object. Getters name file and field in what they throw. */
public record JsonFile(Path file, Map<String, @Nullable Object> fields) {
    private static final long MAX_BYTES = 64 << 20;

    /**
     * Names, values, objects and lists that are read of a file: enough for an index of a million tensors, in 300 MB.
     */
    private static final int MAX_VALUES = 1 << 20;

    private static final JsonFactory JSON = JsonFactory.builder()
            // Python writes Infinity and NaN into JSON.
            .enable(JsonReadFeature.ALLOW_NON_NUMERIC_NUMBERS)
            // The names of an index are all different, so a table of names seen before is only memory.
            .disable(TokenStreamFactory.Feature.CANONICALIZE_PROPERTY_NAMES)
            .build();

    public static JsonFile read(Path file) {
        try (FileChannel channel = CheckpointFile.open(file)) {
            long size = channel.size();
            if (size > MAX_BYTES) {
                throw new CheckpointException(file, "expected at most " + MAX_BYTES + " bytes of JSON, got " + size);
            }
            try (InputStream bytes = new BufferedInputStream(Channels.newInputStream(channel))) {
                return of(file, bytes);
            }
        } catch (IOException e) {
            throw CheckpointException.of(file, "cannot be read", e);
        }
    }

    /** What a tensor of a file holds. */
    public static JsonFile of(Tensor tensor) {
        return of(tensor.file(), new ByteArrayInputStream(tensor.toBytes()));
    }

    private static JsonFile of(Path file, InputStream bytes) {
        try (JsonParser parser = JSON.createParser(ObjectReadContext.empty(), bytes)) {
            return new JsonFile(file, new Reader(file, parser).root());
        } catch (JacksonIOException e) {
            throw CheckpointException.of(file, "cannot be read", Objects.requireNonNull(e.getCause()));
        } catch (JacksonException e) {
            throw new CheckpointException(file, "is not valid JSON: " + problem(e), e);
        }
    }

    /** Reads a file value by value, so that no file takes much more memory than what is kept of it. */
    private static final class Reader {
        private final Path file;
        private final JsonParser parser;
        private int values;

        /** An index names the same few shards again and again. */
        private String lastText = "";

        Reader(Path file, JsonParser parser) {
            this.file = file;
            this.parser = parser;
        }

        Map<String, @Nullable Object> root() {
            JsonToken first = parser.nextToken();
            if (first == null) {
                throw new CheckpointException(file, "is not valid JSON: is empty");
            }
            if (first != JsonToken.START_OBJECT) {
                throw new CheckpointException(file, "expected a JSON object");
            }
            Map<String, @Nullable Object> root = object();
            if (parser.nextToken() != null) {
                throw new CheckpointException(file, "is not valid JSON: goes on after its object");
            }
            return root;
        }

        private Map<String, @Nullable Object> object() {
            Map<String, @Nullable Object> object = new LinkedHashMap<>();
            for (String name = parser.nextName(); name != null; name = parser.nextName()) {
                if (object.containsKey(name)) {
                    throw new CheckpointException(file, "is not valid JSON: has '" + shown(name) + "' twice");
                }
                parser.nextToken();
                object.put(name, value());
            }
            return object;
        }

        private @Nullable Object value() {
            if (++values > MAX_VALUES) {
                throw new CheckpointException(file, "expected at most " + MAX_VALUES + " values of JSON, got more");
            }
            return switch (parser.currentToken()) {
                case START_OBJECT -> object();
                case START_ARRAY -> {
                    List<@Nullable Object> list = new ArrayList<>();
                    while (parser.nextToken() != JsonToken.END_ARRAY) {
                        list.add(value());
                    }
                    yield list;
                }
                case VALUE_STRING -> {
                    String text = parser.getString();
                    lastText = text.equals(lastText) ? lastText : text;
                    yield lastText;
                }
                case VALUE_NUMBER_INT -> parser.getNumberValue();
                case VALUE_NUMBER_FLOAT -> parser.getDoubleValue();
                case VALUE_TRUE -> true;
                case VALUE_FALSE -> false;
                case VALUE_NULL -> null;
                case null, default -> throw new CheckpointException(file, "is not valid JSON: ends too early");
            };
        }
    }

    /** What the parser says is wrong, and where, without its remarks about its own settings. */
    static String problem(JacksonException e) {
        String message = e.getOriginalMessage().replaceAll(" \\(start marker at \\[Source: .*", "");
        TokenStreamLocation at = e.getLocation();
        return at == null ? message : message + " (line " + at.getLineNr() + ", column " + at.getColumnNr() + ")";
    }

    /** A value as messages show it: not longer than a line. */
    public static String shown(@Nullable Object value) {
        String text = String.valueOf(value);
        return text.length() <= 120 ? text : text.substring(0, 100) + "... (" + text.length() + " characters)";
    }

    /** Whether the field is there and not null. */
    public boolean has(String field) {
        return fields.get(field) != null;
    }

    public int integer(String field) {
        if (required(field) instanceof Integer value) {
            return value;
        }
        throw wrong(field, "an integer");
    }

    public int integer(String field, int absent) {
        return has(field) ? integer(field) : absent;
    }

    /** A number, also as transformers 5 writes those that JSON has not: {@code {"__float__": "Infinity"}}. */
    public @Nullable Double number(String field) {
        if (!has(field)) {
            return null;
        }
        Object value = required(field);
        if (value instanceof Number number) {
            return number.doubleValue();
        }
        if (value instanceof Map<?, ?> map && map.size() == 1 && map.get("__float__") instanceof String name) {
            switch (name) {
                case "Infinity" -> {
                    return Double.POSITIVE_INFINITY;
                }
                case "-Infinity" -> {
                    return Double.NEGATIVE_INFINITY;
                }
                case "NaN" -> {
                    return Double.NaN;
                }
                default -> {}
            }
        }
        throw wrong(field, "a number");
    }

    public boolean bool(String field, boolean absent) {
        if (!has(field)) {
            return absent;
        }
        if (required(field) instanceof Boolean value) {
            return value;
        }
        throw wrong(field, "true or false");
    }

    public String string(String field) {
        if (required(field) instanceof String value) {
            return value;
        }
        throw wrong(field, "a string");
    }

    public String string(String field, String absent) {
        return has(field) ? string(field) : absent;
    }

    public List<Integer> integers(String field) {
        if (!has(field)) {
            return List.of();
        }
        if (required(field) instanceof List<?> list && list.stream().allMatch(Integer.class::isInstance)) {
            return list.stream().map(Integer.class::cast).toList();
        }
        throw wrong(field, "a list of integers");
    }

    public List<String> strings(String field) {
        if (!has(field)) {
            return List.of();
        }
        if (required(field) instanceof List<?> list && list.stream().allMatch(String.class::isInstance)) {
            return list.stream().map(String.class::cast).toList();
        }
        throw wrong(field, "a list of strings");
    }

    public List<JsonFile> objects(String field) {
        if (required(field) instanceof List<?> list && list.stream().allMatch(Map.class::isInstance)) {
            return list.stream()
                    .map(object -> new JsonFile(file, Map.of(field, object)).nested(field))
                    .toList();
        }
        throw wrong(field, "a list of objects");
    }

    /** The object in a field, as if it were the file. */
    public JsonFile nested(String field) {
        return new JsonFile(file, object(field));
    }

    public Map<String, @Nullable Object> object(String field) {
        if (required(field) instanceof Map<?, ?> map) {
            @SuppressWarnings("unchecked") // a JSON object's keys are strings
            Map<String, @Nullable Object> object = (Map<String, @Nullable Object>) map;
            return object;
        }
        throw wrong(field, "an object");
    }

    private Object required(String field) {
        Object value = fields.get(field);
        if (value == null) {
            throw new CheckpointException(file, "has no '" + field + "'");
        }
        return value;
    }

    /** What is thrown where a field holds something else. */
    public CheckpointException wrong(String field, String expected) {
        return new CheckpointException(
                file, "'" + field + "': expected " + expected + ", got " + shown(fields.get(field)));
    }

    /** A finite number; {@code absent} if the field is not there. */
    public double finite(String field, double absent) {
        if (!fields.containsKey(field)) {
            return absent;
        }
        Double value = number(field);
        if (value == null || !Double.isFinite(value)) {
            throw wrong(field, "a finite number");
        }
        return value;
    }

    /**
     * An integer; {@code absent} if the field is not there. Null isn't one, which {@link #integer(String, int)} takes
     * for absent.
     */
    public int requireInteger(String field, int absent) {
        if (fields.containsKey(field) && !has(field)) {
            throw wrong(field, "an integer");
        }
        return integer(field, absent);
    }

    /** Likewise, 1 or more. */
    public int positive(String field, int absent) {
        int value = requireInteger(field, absent);
        if (value < 1) {
            throw wrong(field, "a positive number");
        }
        return value;
    }

    /** An integer from 0 on; {@code absent} if the field is not there, or null. */
    public int nonNegative(String field, int absent) {
        int value = integer(field, absent);
        if (value < 0) {
            throw wrong(field, "at least 0");
        }
        return value;
    }
}
