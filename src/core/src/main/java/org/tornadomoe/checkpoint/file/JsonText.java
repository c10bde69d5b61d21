package org.tornadomoe.checkpoint.file;

import java.util.Map;
import org.jspecify.annotations.Nullable;
import tools.jackson.core.json.JsonFactory;
import tools.jackson.core.json.JsonWriteFeature;
import tools.jackson.jr.ob.JSON;

/** The texts of a checkpoint's JSON files. */
public final class JsonText {
    private static final JSON PRETTY = JSON.builder(JsonFactory.builder()
                    .disable(JsonWriteFeature.WRITE_NAN_AS_STRINGS) // as Python does
                    .build())
            .enable(JSON.Feature.PRETTY_PRINT_OUTPUT)
            .enable(JSON.Feature.WRITE_NULL_PROPERTIES)
            .build();

    private JsonText() {}

    /** Over several lines, the last one's end included. */
    public static String of(Map<String, ? extends @Nullable Object> fields) {
        return PRETTY.asString(fields) + System.lineSeparator();
    }
}
