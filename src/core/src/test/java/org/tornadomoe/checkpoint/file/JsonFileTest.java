package org.tornadomoe.checkpoint.file;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatExceptionOfType;

import java.io.IOException;
import java.nio.channels.ClosedByInterruptException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.List;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;

class JsonFileTest {
    @TempDir
    Path directory;

    private JsonFile read(String json) throws IOException {
        return JsonFile.read(Files.writeString(directory.resolve("x.json"), json));
    }

    private void assertRefused(String json, String message) {
        assertThatExceptionOfType(CheckpointException.class)
                .isThrownBy(() -> read(json))
                .withMessageStartingWith(directory.resolve("x.json") + ": ")
                .withMessageContaining(message)
                .satisfies(e -> assertThat(e.getMessage()).hasSizeLessThan(600));
    }

    @Test
    void valuesOfEveryKindAreKept() throws IOException {
        JsonFile json =
                read("{\"i\": 3, \"l\": 99999999999, \"b\": 123456789012345678901234567890, \"d\": 1e-6, \"t\": true,"
                    + " \"n\": null, \"s\": \"x\", \"is\": [1, 2], \"ss\": [\"a\", \"b\"], \"o\": {\"p\": {\"q\": 1}},"
                    + " \"os\": [{\"r\": 1}]}");
        assertThat(json.integer("i")).isEqualTo(3);
        assertThat(json.fields().get("l")).isEqualTo(99999999999L);
        assertThat(json.fields().get("b")).hasToString("123456789012345678901234567890");
        assertThat(json.number("d")).isEqualTo(1e-6);
        assertThat(json.number("b")).isEqualTo(1.2345678901234568E29);
        assertThat(json.bool("t", false)).isTrue();
        assertThat(json.has("n")).isFalse();
        assertThat(json.fields()).containsKey("n");
        assertThat(json.string("s", "y")).isEqualTo("x");
        assertThat(json.string("n", "y")).isEqualTo("y");
        assertThat(json.integers("is")).isEqualTo(List.of(1, 2));
        assertThat(json.strings("ss")).isEqualTo(List.of("a", "b"));
        assertThat(json.nested("o").nested("p").integer("q")).isEqualTo(1);
        assertThat(json.objects("os").getFirst().integer("r")).isEqualTo(1);
    }

    /** A thread that is interrupted can't read on, and that is no fault of the file's. */
    @Test
    void anInterruptIsNoMalformedJson() throws IOException {
        Path file = directory.resolve("x.json");
        Files.writeString(file, "{\"a\": \"" + "b".repeat(5000) + "\"}");
        Thread.currentThread().interrupt();
        try {
            assertThatExceptionOfType(CheckpointException.class)
                    .isThrownBy(() -> JsonFile.read(file))
                    .withMessageStartingWith(file + ": cannot be read")
                    .withCauseInstanceOf(ClosedByInterruptException.class);
        } finally {
            assertThat(Thread.interrupted()).isTrue();
        }
    }

    /** As Python writes them, and as transformers 5 does. */
    @Test
    void numbersThatJsonHasNotAreRead() throws IOException {
        JsonFile json = read("{\"a\": Infinity, \"b\": -Infinity, \"c\": NaN, \"d\": [0.0, Infinity],"
                + " \"e\": {\"__float__\": \"Infinity\"}, \"f\": {\"__float__\": \"-Infinity\"},"
                + " \"g\": {\"__float__\": \"NaN\"}, \"h\": {\"__float__\": \"1\"}}");
        assertThat(List.of("a", "b", "c", "e", "f", "g").stream().map(json::number))
                .containsExactly(
                        Double.POSITIVE_INFINITY,
                        Double.NEGATIVE_INFINITY,
                        Double.NaN,
                        Double.POSITIVE_INFINITY,
                        Double.NEGATIVE_INFINITY,
                        Double.NaN);
        assertThatExceptionOfType(CheckpointException.class)
                .isThrownBy(() -> json.number("h"))
                .withMessageContaining("'h': expected a number, got {__float__=1}");
    }

    @ParameterizedTest
    @CsvSource(
            delimiter = '|',
            quoteCharacter = '`',
            value = {
                "`` | is not valid JSON: is empty",
                "[] | expected a JSON object",
                "{ | is not valid JSON: Unexpected end-of-input",
                "{\"a\": [1, 2 | is not valid JSON: Unexpected end-of-input",
                "{\"a\" 1} | is not valid JSON: Unexpected character",
                "{\"a\": 1, \"a\": 2} | is not valid JSON: has 'a' twice",
                "{\"o\": {\"a\": 1, \"a\": 2}} | is not valid JSON: has 'a' twice",
                "{} {} | is not valid JSON: goes on after its object",
                "{} x | is not valid JSON",
                "{\"a\": infinity} | is not valid JSON",
            })
    void whatIsWrongIsSaid(String json, String message) {
        assertRefused(json, message);
    }

    @Test
    void sizesAreBounded() {
        assertRefused(
                "{\"a\": [" + "1,".repeat(2_000_000) + "1]}", "expected at most 1048576 values of JSON, got more");
        assertRefused("{\"a\": [" + "{},".repeat(2_000_000) + "{}]}", "expected at most 1048576 values of JSON");
        assertRefused("{\"a\": " + "[".repeat(100_000), "is not valid JSON");
        assertRefused("{\"" + "a".repeat(100_000) + "\": 1}", "is not valid JSON");
        assertRefused("{\"a\": \"" + "x".repeat(1 << 26) + "\"}", "expected at most 67108864 bytes of JSON");
    }

    @Test
    void longValuesAreShortenedInMessages() throws IOException {
        JsonFile json = read("{\"a\": \"" + "x".repeat(1_000_000) + "\"}");
        assertThatExceptionOfType(CheckpointException.class)
                .isThrownBy(() -> json.integer("a"))
                .withMessageEndingWith("xxx... (1000000 characters)");
        assertThat(new CheckpointException(Path.of("x"), "y".repeat(1_000_000)))
                .message()
                .hasSizeLessThan(2100)
                .containsPattern("yyy \\.\\.\\. \\(99\\d{4} characters\\) \\.\\.\\. yyy");
    }
}
