package org.tornadomoe.checkpoint;

import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.List;
import java.util.Map;
import org.jspecify.annotations.Nullable;
import tools.jackson.core.JacksonException;
import tools.jackson.core.StreamReadFeature;
import tools.jackson.core.TokenStreamLocation;
import tools.jackson.core.json.JsonFactory;
import tools.jackson.jr.ob.JSON;

/** A small JSON file that holds one object. Getters name file and field in what they throw. */
record JsonFile(Path file, Map<String, Object> fields) {
    private static final long MAX_BYTES = 64 << 20;
    private static final JSON STRICT = JSON.builder(JsonFactory.builder()
                    .enable(StreamReadFeature.STRICT_DUPLICATE_DETECTION)
                    .build())
            .build();

    static JsonFile read(Path file) {
        try {
            long size = Files.size(file);
            if (size > MAX_BYTES) {
                throw new CheckpointException(file, "expected at most " + MAX_BYTES + " bytes of JSON, got " + size);
            }
            Object root = STRICT.anyFrom(Files.readAllBytes(file));
            if (!(root instanceof Map<?, ?> map)) {
                throw new CheckpointException(file, "expected a JSON object");
            }
            @SuppressWarnings("unchecked") // a JSON object's keys are strings
            Map<String, Object> fields = (Map<String, Object>) map;
            return new JsonFile(file, fields);
        } catch (IOException e) {
            throw CheckpointException.of(file, "cannot be read", e);
        } catch (JacksonException e) {
            throw new CheckpointException(file, "is not valid JSON: " + problem(e), e);
        }
    }

    /** What the parser says is wrong, and where, without its remarks about its own settings. */
    static String problem(JacksonException e) {
        String message = e.getOriginalMessage().replaceAll(" \\(start marker at \\[Source: .*", "");
        TokenStreamLocation at = e.getLocation();
        return at == null ? message : message + " (line " + at.getLineNr() + ", column " + at.getColumnNr() + ")";
    }

    boolean has(String field) {
        return fields.get(field) != null;
    }

    int integer(String field) {
        if (required(field) instanceof Integer value) {
            return value;
        }
        throw wrong(field, "an integer");
    }

    int integer(String field, int absent) {
        return has(field) ? integer(field) : absent;
    }

    @Nullable
    Double number(String field) {
        if (!has(field)) {
            return null;
        }
        if (required(field) instanceof Number value) {
            return value.doubleValue();
        }
        throw wrong(field, "a number");
    }

    boolean bool(String field, boolean absent) {
        if (!has(field)) {
            return absent;
        }
        if (required(field) instanceof Boolean value) {
            return value;
        }
        throw wrong(field, "true or false");
    }

    String string(String field) {
        if (required(field) instanceof String value) {
            return value;
        }
        throw wrong(field, "a string");
    }

    List<Integer> integers(String field) {
        if (!has(field)) {
            return List.of();
        }
        if (required(field) instanceof List<?> list && list.stream().allMatch(Integer.class::isInstance)) {
            return list.stream().map(Integer.class::cast).toList();
        }
        throw wrong(field, "a list of integers");
    }

    List<String> strings(String field) {
        if (!has(field)) {
            return List.of();
        }
        if (required(field) instanceof List<?> list && list.stream().allMatch(String.class::isInstance)) {
            return list.stream().map(String.class::cast).toList();
        }
        throw wrong(field, "a list of strings");
    }

    List<JsonFile> objects(String field) {
        if (required(field) instanceof List<?> list && list.stream().allMatch(Map.class::isInstance)) {
            return list.stream()
                    .map(object -> new JsonFile(file, Map.of(field, object)).nested(field))
                    .toList();
        }
        throw wrong(field, "a list of objects");
    }

    /** The object in a field, as if it were the file. */
    JsonFile nested(String field) {
        return new JsonFile(file, object(field));
    }

    Map<String, Object> object(String field) {
        if (required(field) instanceof Map<?, ?> map) {
            @SuppressWarnings("unchecked") // a JSON object's keys are strings
            Map<String, Object> object = (Map<String, Object>) map;
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

    private CheckpointException wrong(String field, String expected) {
        return new CheckpointException(file, "'" + field + "': expected " + expected + ", got " + fields.get(field));
    }
}
